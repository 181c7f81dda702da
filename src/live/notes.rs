//! What is counted and logged about a decision. Clients cause these log lines, so their number is limited; changes nothing else.

use std::sync::atomic::Ordering::Relaxed;

use super::Live;
use crate::config::plan::FnRef;
use crate::hub::Connection;
use crate::limits::LimitVerdict;
use crate::model::{Budget, Code, Now};
use crate::pipeline::{Decision, Snapshot};
use crate::script::{ScriptError, Sender};
use crate::telemetry::metrics::DropReason;

impl Live {
    /// Whether one more warning may be logged now. If not, it is counted as left out.
    pub(super) fn may_warn(&self) -> bool {
        let may = self.warnings.check(self.now()) == LimitVerdict::Pass;
        if may {
            self.tell_left_out();
        } else {
            self.left_out.fetch_add(1, Relaxed);
        }
        may
    }

    /// Logs how many warnings were left out. Also called now and then, because there may be no further warning.
    pub fn tell_left_out(&self) {
        let left_out = self.left_out.swap(0, Relaxed);
        if left_out > 0 {
            tracing::warn!(left_out, "some warnings about messages were not logged: too many in one second");
        }
    }

    /// Logs that a `batch` condition failed, and charges the sender if it exceeded its budget.
    pub(super) fn note_batch(&self, snapshot: &Snapshot, connection: &Connection, error: &ScriptError, now: Now) {
        let (client, view) = (&*connection.id, connection.view());
        if self.may_warn() {
            let protocol = &*view.protocol;
            tracing::warn!(protocol, client, why = %error, "a connection gets its events one by one: a script failed");
        }
        if let ScriptError::Tripped { function, why } = error {
            note_trip(snapshot, function, why, &Sender::of_connection(&view), now);
        }
    }

    /// Counts a decision and logs its fault. `origin`: the protocol or source of the input.
    pub(super) fn note(&self, snapshot: &Snapshot, decision: &Decision, origin: &str, connection: Option<&Connection>, now: Now) {
        if let Some(counted) = decision.row.and_then(|row| snapshot.counters.row(row)) {
            counted.calls.inc();
            if decision.fault.is_some() {
                counted.faults.inc();
            }
        }
        let client = connection.map_or("", |c| &*c.id);
        if let Some((error, connection)) = decision.warning.as_ref().zip(connection) {
            self.note_batch(snapshot, connection, error, now);
        }
        let Some(fault) = &decision.fault else { return };
        if fault.code == Code::RateLimited {
            snapshot.counters.channels.drop_one(DropReason::RateLimited);
        }
        if let Some(connection) = connection {
            connection.metrics.fault(fault.code);
        }
        let why = fault.detail.as_deref().unwrap_or(&fault.message);
        match fault.code {
            Code::ScriptFailed if self.may_warn() => tracing::warn!(origin, client, code = fault.code.as_str(), why, "a script failed"),
            _ => tracing::debug!(origin, client, code = fault.code.as_str(), why, "a message was refused"),
        }
        if let Some(Budget::Exceeded { plugin, function }) = &fault.budget {
            let view = connection.map(Connection::view);
            let sender = view.as_ref().map_or(Sender::of_source(origin), |view| Sender::of_connection(view));
            note_trip(snapshot, &FnRef { plugin: plugin.clone(), name: function.clone() }, why, &sender, now);
        }
    }
}

/// A call exceeded its budget: counts it against its sender and against the function.
fn note_trip(snapshot: &Snapshot, function: &FnRef, why: &str, sender: &Sender<'_>, now: Now) {
    let scripts = &snapshot.runtime.scripts;
    scripts.charge(sender, now);
    scripts.tripped(function, why, sender, now);
}

/// Whether a connection keeps sending messages that are refused because it exceeded the budgets of scripts.
pub(super) fn is_flooding_scripts(snapshot: &Snapshot, decision: &Decision, connection: &Connection, now: Now) -> bool {
    let is_spent = decision.fault.as_ref().is_some_and(|fault| fault.budget == Some(Budget::Spent));
    is_spent && snapshot.runtime.scripts.refused(&Sender::of_connection(&connection.view()), now)
}
