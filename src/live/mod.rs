//! The running whole behind the doors: the configuration that is current, channels and connections, the log. Decides and applies
//! what every door brings. Doors know this and nothing behind it.
//!
//! Each input takes one [`Snapshot`] and is handled wholly by it, while [`Live::swap`] puts the next one in place for those that
//! come after.

pub mod catch_up;
mod log_channels;
pub mod statistics;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::apply::commit_queue::CommitQueue;
use crate::apply::{Accepted, Applied, Apply, Batch, Effects, Refusal};
use crate::config::plan::{FnRef, HttpRow, ProtocolPlan, Rate, SourcePlan, WhenFull};
use crate::hub::connection::report;
use crate::hub::{Admission, Bounds, Connection, Hub};
use crate::limits::{LimitVerdict, Limiter, SharedLimits};
use crate::model::chance::Chance;
use crate::model::id::ProtocolId;
use crate::model::view::RequestView;
use crate::model::{Budget, ChannelName, Close, Code, Fault, Json, Now};
use crate::pipeline::deliver::{Renderer, batches};
use crate::pipeline::publish::{Destination, Proposal, unknown};
use crate::pipeline::{
    ClientLimits, ConnectionEffect, Decision, Effect, Env, Input, Moment, Snapshot, Spending, Spent, decide, fault_reply,
};
use crate::runtime::{Counters, Runtime};
use crate::script::{ScriptError, Sender};
use crate::store::{ConnectionEnd, ConnectionRecord, Store};
use crate::telemetry::metrics::{DropReason, Metrics};
pub use log_channels::{LogChannels, policy};

/// Warnings about clients' messages that are logged in a second. The rest are in the log at level debug, and counted.
const WARNINGS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("20 is not 0");

/// How often an input is decided again because what it read has changed before it could be applied. Each try takes microseconds,
/// and one of those that compete always succeeds.
const TRIES_MAX: usize = 64;

/// Connections that are seen to before others have their turn.
const TURN: usize = 256;

/// See the module.
pub struct Live {
    current: Arc<ArcSwap<Snapshot>>,
    // Protects what ended protocols were like, for connections that are still closing. Held for a look.
    retired: Mutex<Vec<(ProtocolId, Arc<Snapshot>)>>,
    // Protects what was in place before the last swap, as long as somebody may still use it. Held for a look.
    before: Mutex<Weak<Snapshot>>,
    /// How many warnings about messages are logged: clients cause them.
    warnings: Limiter,
    /// Warnings that were not logged, and that the log was not told of yet.
    left_out: AtomicU64,
    /// Channels and connections.
    pub hub: Arc<Hub>,
    /// What is kept.
    pub store: Store,
    /// What waits to be kept before anyone sees it.
    pub commits: CommitQueue,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// What a door without a connection gets back, at first.
#[derive(Debug)]
pub struct Promised {
    accepted: Accepted,
    /// Why nothing is done, where that was decided on what is still to be stored.
    fault: Option<Fault>,
    reply: Option<Json>,
    status: Option<u16>,
}

impl Promised {
    /// Resolves when it has happened and is as durable as its channels promise.
    pub async fn settled(self, store: &Store) -> Result<Outcome, Fault> {
        let applied = self.accepted.settled(store).await?;
        self.fault.map_or(Ok(Outcome { applied, reply: self.reply, status: self.status }), Err)
    }
}

/// What a door without a connection gets back, in the end.
#[derive(Debug)]
pub struct Outcome {
    /// What happened.
    pub applied: Applied,
    /// The answer of a row, if it has one.
    pub reply: Option<Json>,
    /// The status of a row, if it says one.
    pub status: Option<u16>,
}

/// What ended with a configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Connections whose protocol is gone.
    pub connections: usize,
    /// Subscriptions that are no longer allowed.
    pub subscriptions: usize,
    turns: usize,
}

/// Lets other tasks have their turn, now and then.
async fn turn(turns: &mut usize) {
    *turns += 1;
    if turns.is_multiple_of(TURN) {
        tokio::task::yield_now().await;
    }
}

/// Whether an input was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It was.
    Done,
    /// It looks at what the connection's own transactions will have changed: it is to be brought again once none of them waits.
    Later,
}

impl Live {
    /// Runs this configuration.
    pub fn new(runtime: Arc<Runtime>, hub: Arc<Hub>, store: Store, metrics: &Arc<Metrics>, now: Now) -> Self {
        let rate = Rate { count: WARNINGS_PER_SECOND, per: Duration::from_secs(1), burst: WARNINGS_PER_SECOND };
        let limits = SharedLimits::new(&runtime.plan, None, now);
        let counters = Counters::new(&runtime.plan, metrics, now);
        let snapshot = Snapshot::new(runtime, limits.into(), counters.into(), hub.clone());
        Self {
            current: Arc::new(ArcSwap::from_pointee(snapshot)),
            retired: Mutex::default(),
            before: Mutex::default(),
            warnings: Limiter::new(&rate, now),
            left_out: AtomicU64::new(0),
            hub,
            store,
            commits: CommitQueue::default(),
            metrics: metrics.clone(),
        }
    }

    /// The configuration that is current, for one input.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The same, to be kept over what waits.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The one for what concerns connections of a protocol: the current one, or, where that has the protocol no more, the last that
    /// had it.
    pub fn snapshot_of(&self, protocol: ProtocolId) -> Guard<Arc<Snapshot>> {
        let current = self.current.load();
        if current.runtime.protocol(protocol).is_some() {
            return current;
        }
        let retired = self.retired.lock();
        retired.iter().find(|(id, _)| *id == protocol).map_or(current, |(_, last)| Guard::from_inner(last.clone()))
    }

    /// What the log asks about channels, as they are configured at the time.
    pub fn log_channels(&self) -> LogChannels {
        LogChannels::new(self.current.clone())
    }

    /// Puts a configuration in place for every input from now on: gives the one before.
    pub fn swap(&self, runtime: Runtime, now: Now) -> Arc<Snapshot> {
        let before = self.current.load_full();
        let limits = SharedLimits::new(&runtime.plan, Some(&before.limits), now);
        let counters = Counters::new(&runtime.plan, &self.metrics, before.counters.started);
        let mut retired = self.retired.lock();
        // A protocol that is back is retired no more, and one that nobody is left of needs nothing.
        retired.retain(|(id, _)| runtime.protocol(*id).is_none() && self.hub.connection_count(Some(*id)) > 0);
        for plan in &before.runtime.plan.protocols {
            if runtime.protocol(plan.id).is_none() {
                retired.push((plan.id, before.clone()));
            }
        }
        let next = Snapshot::new(Arc::new(runtime), limits.into(), counters.into(), self.hub.clone());
        self.current.store(Arc::new(next));
        *self.before.lock() = Arc::downgrade(&before);
        before
    }

    /// Ends what the current configuration no longer has and the one before had, and lets everything else follow. Others have their
    /// turn in between.
    pub async fn retire(&self, before: &Snapshot) -> Retired {
        let current = self.current();
        let mut retired = Retired::default();
        for plan in &before.runtime.plan.protocols {
            let is_same = current.runtime.protocol(plan.id).map(|protocol| Arc::ptr_eq(&protocol.plan, plan));
            for connection in self.hub.connections(Some(plan.id)) {
                match is_same {
                    None => {
                        self.end(&connection, Close::Retired);
                        retired.connections += 1;
                    }
                    // Its task looks at what is new.
                    Some(false) => connection.outbox.wake(),
                    Some(true) => break,
                }
                turn(&mut retired.turns).await;
            }
        }
        let plan = |name: &str| current.runtime.channels.resolve(name).map(|(_, plan)| plan);
        for (connection, channel) in self.hub.replan(plan) {
            self.tell_gone(&current, &connection, &channel);
            retired.subscriptions += 1;
            turn(&mut retired.turns).await;
        }
        retired
    }

    /// Ends again what somebody began under an older configuration just before the swap. Called now and then.
    pub fn sweep(&self) {
        // Looked at first: what is begun under it afterwards is begun by nobody.
        let in_use = std::mem::take(&mut *self.before.lock());
        if in_use.strong_count() > 0 {
            *self.before.lock() = in_use.clone();
        } else if in_use.ptr_eq(&Weak::new()) {
            return;
        }
        let current = self.current();
        for (connection, channel) in self.hub.replan(|name| current.runtime.channels.resolve(name).map(|(_, plan)| plan)) {
            self.tell_gone(&current, &connection, &channel);
        }
        self.retired.lock().retain(|(id, _)| self.hub.connection_count(Some(*id)) > 0);
    }

    /// A subscription has ended because the configuration no longer allows it: its protocol's `error` says so.
    fn tell_gone(&self, snapshot: &Snapshot, connection: &Arc<Connection>, channel: &ChannelName) {
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else { return };
        let fault = unknown(channel.as_str());
        if let Some(frame) = fault_reply(&protocol.plan, &fault, None, &connection.view(), Now::read()) {
            connection.send(&frame);
            self.hub.flush.one(connection);
        }
    }

    /// Lets a connection in, or says why not. A displaced connection is closed.
    pub fn admit(&self, snapshot: &Arc<Snapshot>, connection: &Arc<Connection>) -> Result<(), Fault> {
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else {
            return Err(Fault::with(Code::NotFound, "the protocol is served no more"));
        };
        let limits = &protocol.plan.limits;
        let bounds = Bounds {
            connections: limits.connections,
            per_address: limits.connections_per_address,
            displace: matches!(limits.full, WhenFull::CloseOldest(..)),
        };
        let mut failed = None;
        connection.set_batches(batches(&snapshot.runtime, connection.protocol, &connection.view(), Now::read(), &mut failed));
        if let Some(error) = failed {
            self.note_batch(snapshot, connection, &error, Now::read());
        }
        match self.hub.open(connection, bounds) {
            Admission::Opened => {}
            Admission::Displaced(oldest) => {
                if let WhenFull::CloseOldest(code, reason) = &limits.full {
                    self.end(&oldest, Close::Displaced(*code, reason.to_string().into()));
                }
            }
            Admission::Full => return Err(Fault::with(Code::LimitReached, "too many connections")),
            Admission::AddressFull => return Err(Fault::with(Code::LimitReached, "too many connections from this address")),
            Admission::IdTaken => {
                return Err(Fault::with(Code::LimitReached, "the connection's id is taken: `client:` does not make unique ids"));
            }
        }
        connection.metrics.opened();
        self.store.append_connection_opened(record(connection));
        tracing::debug!(protocol = %protocol.plan.name, client = %connection.id, "connection opened");
        Ok(())
    }

    /// Something came from, or about, a connection. What it does is queued when the batch ends, at the latest. `spent`: what this
    /// input has spent of its limits already.
    pub fn client(
        &self,
        snapshot: &Arc<Snapshot>,
        connection: &Arc<Connection>,
        moment: Moment<'_>,
        limits: &mut ClientLimits,
        spent: &mut Spent,
        batch: &mut Batch<'_>,
        now: Now,
    ) -> Handled {
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else { return Handled::Done };
        let door = &protocol.plan.name;
        // What a timer or the end asks for is not put off: it sees what is committed.
        let is_message = matches!(moment, Moment::Message(_));
        let mut chance = Chance::System;
        let mut decision = Decision::default();
        let mut fault = conflict();
        for _ in 0..TRIES_MAX {
            let mut limits = Spending { shared: &snapshot.limits, client: Some(limits), spent };
            let mut env =
                Env { now, chance: &mut chance, limits: &mut limits, pending: is_message && connection.is_waiting(), trial: false };
            decision = decide(snapshot, Input::Connection(connection, moment), &mut env);
            if decision.waits {
                return Handled::Later;
            }
            if is_flooding_scripts(snapshot, &decision, connection, now) {
                decision.effects.push(ConnectionEffect::Close(Close::Flooding).into());
            }
            let effects = Effects::Connection(connection, std::mem::take(&mut decision.effects));
            match self.applying(snapshot).apply(effects, std::mem::take(&mut decision.reads), batch, now) {
                Ok(_) => {
                    self.note(snapshot, &decision, door, Some(connection), now);
                    return Handled::Done;
                }
                Err(Refusal::Changed) => {}
                Err(Refusal::Fault(why)) => {
                    fault = why;
                    break;
                }
            }
        }
        self.note(snapshot, &decision, door, Some(connection), now);
        self.refuse(snapshot, connection, &fault, batch, now);
        Handled::Done
    }

    /// What was decided cannot be applied: the sender is told so.
    fn refuse(&self, snapshot: &Arc<Snapshot>, connection: &Arc<Connection>, fault: &Fault, batch: &mut Batch<'_>, now: Now) {
        connection.metrics.fault(fault.code);
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else { return };
        if self.may_warn() {
            let why = fault.detail.as_deref().unwrap_or(&fault.message);
            tracing::warn!(protocol = %protocol.plan.name, client = %connection.id, why, "a message was refused");
        }
        // In its order among what the connection is told. What touches no channel and no store is always accepted.
        if let Some(frame) = fault_reply(&protocol.plan, fault, None, &connection.view(), now) {
            let effects = Effects::Connection(connection, vec![Effect::Connection(ConnectionEffect::Send(frame))]);
            if self.applying(snapshot).apply(effects, Vec::new(), batch, now).is_err() {
                tracing::error!(client = %connection.id, "a client was not told of a fault");
            }
        }
    }

    /// A connection has ended: everything it had goes, and what its protocol wants done then is done.
    pub fn closed(&self, connection: &Arc<Connection>, close: &Close, now: Now) {
        let snapshot = self.snapshot_of(connection.protocol);
        self.hub.close(connection);
        let mut batch = Batch::new(&snapshot, None, now);
        let (mut limits, mut spent) = (ClientLimits::default(), Spent::default());
        self.client(&snapshot, connection, Moment::Closed(close), &mut limits, &mut spent, &mut batch, now);
        drop(batch);
        connection.metrics.closed(close);
        let passed = report(connection);
        let end = ConnectionEnd {
            closed_ms: now.wall_ms,
            seen_ms: connection.seen_ms(),
            code: close.code(),
            reason: close.reason().to_owned(),
            messages_in: passed.messages.received,
            messages_out: passed.messages.sent,
            bytes_in: passed.bytes.received,
            bytes_out: passed.bytes.sent,
            dropped: passed.dropped,
        };
        let record = record(connection);
        tracing::debug!(protocol = %record.protocol, client = %connection.id, code = close.code(), reason = close.reason(), "connection closed");
        self.store.append_connection_closed(record, end);
    }

    /// An event of a source.
    pub fn source(
        &self,
        snapshot: &Arc<Snapshot>,
        source: &SourcePlan,
        body: &Json,
        request: Option<&RequestView>,
        now: Now,
    ) -> Result<Promised, Fault> {
        let counted = self.metrics.source(&source.name);
        counted.events.inc();
        let outcome = self.door(snapshot, Input::Source { source, body, request }, &source.name, now);
        if outcome.as_ref().map_or(true, |promised| promised.fault.is_some()) {
            counted.faults.inc();
        }
        outcome
    }

    /// An HTTP request for a protocol's row.
    pub fn http(
        &self,
        snapshot: &Arc<Snapshot>,
        protocol: &ProtocolPlan,
        row: &HttpRow,
        body: &Json,
        request: &RequestView,
        now: Now,
    ) -> Result<Promised, Fault> {
        self.door(snapshot, Input::Http { protocol, row, body, request }, &protocol.name, now)
    }

    /// Publishes from outside: to every destination or, where one cannot be, to none.
    pub fn publish(&self, snapshot: &Arc<Snapshot>, to: &[Destination], proposal: &Proposal, now: Now) -> Result<Accepted, Fault> {
        Ok(self.door(snapshot, Input::Publish { to, proposal }, &proposal.origin.source, now)?.accepted)
    }

    /// What comes by a door without a connection.
    fn door(&self, snapshot: &Arc<Snapshot>, input: Input<'_>, door: &str, now: Now) -> Result<Promised, Fault> {
        let (mut chance, mut spent) = (Chance::System, Spent::default());
        let (mut decision, mut fault) = (Decision::default(), conflict());
        for _ in 0..TRIES_MAX {
            let mut limits = Spending { shared: &snapshot.limits, client: None, spent: &mut spent };
            let mut env = Env { now, chance: &mut chance, limits: &mut limits, pending: false, trial: false };
            decision = decide(snapshot, input, &mut env);
            let mut batch = Batch::new(snapshot, None, now);
            let effects = Effects::Door(decision.take_events());
            match self.applying(snapshot).apply(effects, std::mem::take(&mut decision.reads), &mut batch, now) {
                Ok(accepted) => {
                    self.note(snapshot, &decision, door, None, now);
                    let fault = decision.fault.map(|fault| *fault);
                    return match (fault, &accepted) {
                        (Some(fault), Accepted::Done(_)) => Err(fault),
                        (fault, _) => Ok(Promised { accepted, fault, reply: decision.reply, status: decision.status }),
                    };
                }
                Err(Refusal::Changed) => {}
                Err(Refusal::Fault(why)) => {
                    fault = why;
                    break;
                }
            }
        }
        self.note(snapshot, &decision, door, None, now);
        Err(fault)
    }

    fn applying<'a>(&'a self, snapshot: &'a Arc<Snapshot>) -> Apply<'a> {
        Apply { snapshot, store: &self.store, commits: &self.commits }
    }

    /// Ends a connection after all that waits for it.
    pub fn end(&self, connection: &Arc<Connection>, close: Close) {
        let snapshot = self.snapshot_of(connection.protocol);
        let mut renderer = Renderer::new(&snapshot, Now::read());
        self.hub.end(connection, close, &mut renderer);
        renderer.report();
    }

    /// Writes what was batched whenever it is due, as long as it is polled.
    pub async fn write_due_batches(&self) {
        loop {
            let (channel, protocol) = self.hub.due.next().await;
            {
                let snapshot = self.snapshot_of(protocol);
                let mut renderer = Renderer::new(&snapshot, Now::read());
                let written = self.hub.write_batch(&channel, protocol, &mut renderer);
                renderer.report();
                snapshot.counters.channels.drop_many(DropReason::OutboxFull, written.overflowed as u64);
                snapshot.counters.channels.drop_many(DropReason::Gone, written.gone as u64);
            }
            // Others have their turn between one channel and the next.
            tokio::task::yield_now().await;
        }
    }

    /// Shows what the store settles, until it has ended.
    pub async fn finish_commits(&self) {
        self.commits.run(&self.store).await;
    }

    fn may_warn(&self) -> bool {
        let may = self.warnings.check(Now::read()) == LimitVerdict::Pass;
        if may {
            self.tell_left_out();
        } else {
            self.left_out.fetch_add(1, Relaxed);
        }
        may
    }

    /// Tells the log how many warnings it does not have. Also to be called now and then, as there may be no further one.
    pub fn tell_left_out(&self) {
        let left_out = self.left_out.swap(0, Relaxed);
        if left_out > 0 {
            tracing::warn!(left_out, "warnings about messages were left out of the log: there were too many in a second");
        }
    }

    fn note_batch(&self, snapshot: &Snapshot, connection: &Connection, error: &ScriptError, now: Now) {
        let (client, view) = (&*connection.id, connection.view());
        if self.may_warn() {
            let protocol = &*view.protocol;
            tracing::warn!(protocol, client, why = %error, "a connection is given its events one by one: a script failed");
        }
        if let ScriptError::Tripped { function, why } = error {
            note_trip(snapshot, function, why, &Sender::of_connection(&view), now);
        }
    }

    /// Counts a decision and logs its fault.
    fn note(&self, snapshot: &Snapshot, decision: &Decision, door: &str, connection: Option<&Connection>, now: Now) {
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
            Code::ScriptFailed if self.may_warn() => tracing::warn!(door, client, code = fault.code.as_str(), why, "a script failed"),
            _ => tracing::debug!(door, client, code = fault.code.as_str(), why, "a message was refused"),
        }
        if let Some(Budget::Exceeded { plugin, function }) = &fault.budget {
            let view = connection.map(Connection::view);
            let sender = view.as_ref().map_or(Sender::of_source(door), |view| Sender::of_connection(view));
            note_trip(snapshot, &FnRef { plugin: plugin.clone(), name: function.clone() }, why, &sender, now);
        }
    }
}

/// A call went over its budget: that counts against who caused it, and against the function.
fn note_trip(snapshot: &Snapshot, function: &FnRef, why: &str, sender: &Sender<'_>, now: Now) {
    let scripts = &snapshot.runtime.scripts;
    scripts.charge(sender, now);
    scripts.tripped(function, why, sender, now);
}

/// Whether a connection goes on sending messages that are refused because it spent the budgets of scripts.
fn is_flooding_scripts(snapshot: &Snapshot, decision: &Decision, connection: &Connection, now: Now) -> bool {
    let is_spent = decision.fault.as_ref().is_some_and(|fault| fault.budget == Some(Budget::Spent));
    is_spent && snapshot.runtime.scripts.refused(&Sender::of_connection(&connection.view()), now)
}

fn conflict() -> Fault {
    Fault::new(Code::Conflict)
}

fn record(connection: &Connection) -> ConnectionRecord {
    let view = connection.view();
    ConnectionRecord {
        client: view.id.clone(),
        protocol: view.protocol.clone(),
        user: view.user.clone(),
        session: view.session.clone(),
        address: view.ip.clone(),
        opened_ms: view.opened_ms,
    }
}
