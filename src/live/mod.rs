//! The heart of the running server: the current configuration, the channels and connections, the log. Decides and applies every
//! input. Listeners, connections and sources know this module and nothing behind it.
//!
//! Each input takes one [`Snapshot`] and is handled entirely under it, while [`Live::swap`] installs the next one for those that
//! come after.

pub mod catch_up;
mod log_channels;
mod notes;
pub mod statistics;
mod swap;

use std::num::NonZeroU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use crate::apply::commit_queue::CommitQueue;
use crate::apply::{Accepted, Applied, Apply, Batch, Effects, Refusal};
use crate::config::plan::{HttpRow, ProtocolPlan, Rate, SourcePlan, WhenFull};
use crate::hub::{Admission, Bounds, Connection, Hub};
use crate::limits::{Limiter, SharedLimits};
use crate::model::chance::Chance;
use crate::model::id::ProtocolId;
use crate::model::view::RequestView;
use crate::model::{Clock, Close, Code, Fault, Json, Now};
use crate::pipeline::deliver::{Renderer, batches};
use crate::pipeline::publish::{Destination, Proposal};
use crate::pipeline::{ClientLimits, ConnectionEffect, Effect, Env, Input, Moment, Snapshot, Spending, Spent, decide, fault_reply};
use crate::runtime::{Counters, Runtime};
use crate::store::{ConnectionEnd, ConnectionRecord, Store};
use crate::telemetry::metrics::{DropReason, Metrics};
pub use log_channels::{LogChannels, policy};
pub use swap::Retired;

/// Warnings about clients' messages that are logged in a second. The rest are logged at level debug, and counted.
const WARNINGS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("20 is not 0");

/// How often an input is decided again because what it read has changed before it could be applied. Each try takes microseconds,
/// and one of those that compete always succeeds.
const TRIES_MAX: usize = 64;

/// See the module.
pub struct Live {
    current: Arc<ArcSwap<Snapshot>>,
    // Protects the configurations of removed protocols, kept for connections that are still closing. Held for a look-up.
    retired: Mutex<Vec<(ProtocolId, Arc<Snapshot>)>>,
    // Protects the earlier snapshots that may still be in use. Held for a look-up.
    before: Mutex<Vec<Weak<Snapshot>>>,
    /// How many warnings about messages are logged: clients cause them.
    warnings: Limiter,
    /// Warnings that were left out of the log and not yet reported there as left out.
    left_out: AtomicU64,
    clock: Clock,
    /// Channels and connections.
    pub hub: Arc<Hub>,
    /// The log.
    pub store: Store,
    /// Transactions that wait for their commit.
    pub commits: CommitQueue,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The immediate result for an input without a connection.
#[derive(Debug)]
pub struct Promised {
    accepted: Accepted,
    /// Why nothing is done, if that was decided on something that is not stored yet.
    fault: Option<Fault>,
    reply: Option<Json>,
    status: Option<u16>,
}

impl Promised {
    /// Resolves when it is applied and as durable as its channels promise.
    pub async fn settled(self, store: &Store) -> Result<Outcome, Fault> {
        let applied = self.accepted.settled(store).await?;
        self.fault.map_or(Ok(Outcome { applied, reply: self.reply, status: self.status }), Err)
    }
}

/// The final result for an input without a connection.
#[derive(Debug)]
pub struct Outcome {
    /// What happened.
    pub applied: Applied,
    /// The answer of a row, if it has one.
    pub reply: Option<Json>,
    /// The status of a row, if it says one.
    pub status: Option<u16>,
}

/// What comes from, or about, a connection.
pub struct Arrival<'a> {
    /// What it is.
    pub moment: Moment<'a>,
    /// What it has spent of its limits already.
    pub spent: &'a mut Spent,
    /// When it is handled.
    pub now: Now,
}

/// Whether an input was dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// It is done.
    Done,
    /// It reads what waiting transactions of the same connection will change: bring it again once none of them waits.
    Later,
}

impl Live {
    /// Runs this configuration.
    pub fn new(runtime: Arc<Runtime>, hub: Arc<Hub>, store: Store, metrics: &Arc<Metrics>, clock: Clock) -> Self {
        let now = clock.now();
        let rate = Rate { count: WARNINGS_PER_SECOND, per: Duration::from_secs(1), burst: WARNINGS_PER_SECOND };
        let limits = SharedLimits::new(&runtime.plan, None, now);
        let counters = Counters::new(&runtime.plan, metrics, now);
        let snapshot = Snapshot::new(runtime, limits.into(), counters.into(), hub.clone(), clock.clone());
        Self {
            clock,
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

    /// This moment.
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// The configuration that is current, for one input.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.current.load()
    }

    /// The same, for use across an await.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The snapshot for connections of a protocol: the current one or, if it no longer has the protocol, the last one that did.
    pub fn snapshot_of(&self, protocol: ProtocolId) -> Guard<Arc<Snapshot>> {
        let current = self.current.load();
        if current.runtime.protocol(protocol).is_some() {
            return current;
        }
        let retired = self.retired.lock();
        retired.iter().find(|(id, _)| *id == protocol).map_or(current, |(_, last)| Guard::from_inner(last.clone()))
    }

    /// Answers the log's questions about channels from the configuration that is current at the time.
    pub fn log_channels(&self) -> LogChannels {
        LogChannels::new(self.current.clone())
    }

    /// Has the events of a connection batched, or not any more, as the configuration says now.
    pub fn update_batches(&self, snapshot: &Arc<Snapshot>, connection: &Arc<Connection>) {
        if self.set_batches(snapshot, connection) {
            let mut renderer = Renderer::new(snapshot, self.now());
            self.hub.switch_batching(connection, &mut renderer);
            renderer.finish();
            self.hub.flush.one(connection);
        }
    }

    /// Returns whether that is different from before.
    fn set_batches(&self, snapshot: &Snapshot, connection: &Connection) -> bool {
        let (mut failed, now) = (None, self.now());
        let batches = batches(&snapshot.runtime, connection.protocol, &connection.view(), now, &mut failed);
        if let Some(error) = failed {
            self.note_batch(snapshot, connection, &error, now);
        }
        connection.set_batches(batches)
    }

    /// Lets a connection in, or says why not. A displaced connection is closed.
    pub fn admit(&self, snapshot: &Arc<Snapshot>, connection: &Arc<Connection>) -> Result<(), Fault> {
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else {
            return Err(Fault::with(Code::NotFound, "the protocol is no longer served"));
        };
        let limits = &protocol.plan.limits;
        let bounds = Bounds {
            connections: limits.connections,
            per_address: limits.connections_per_address,
            displace: matches!(limits.full, WhenFull::CloseOldest(..)),
        };
        self.set_batches(snapshot, connection);
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
                return Err(Fault::with(Code::LimitReached, "the connection's id is already in use: `client` must make unique ids"));
            }
        }
        connection.metrics.opened();
        self.store.append_connection_opened(record(connection));
        tracing::debug!(protocol = %protocol.plan.name, client = %connection.id, "connection opened");
        Ok(())
    }

    /// Handles an input from, or about, a connection. Its effects are queued when the batch ends, at the latest.
    pub fn client(
        &self,
        snapshot: &Arc<Snapshot>,
        connection: &Arc<Connection>,
        Arrival { mut moment, spent, now }: Arrival<'_>,
        limits: &mut ClientLimits,
        batch: &mut Batch<'_>,
    ) -> Handled {
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else { return Handled::Done };
        if !moment.has_rows(&protocol.plan) {
            return Handled::Done;
        }
        let door = &protocol.plan.name;
        // Timers and the end of a connection are not postponed: they see what is committed.
        let is_message = matches!(moment, Moment::Message(_));
        let mut chance = Chance::System;
        let mut tries = 0;
        loop {
            tries += 1;
            let mut limits = Spending { shared: &snapshot.limits, client: Some(limits), spent };
            let mut env =
                Env { now, chance: &mut chance, limits: &mut limits, pending: is_message && connection.is_waiting(), trial: false };
            let mut decision = decide(snapshot, Input::Connection(connection, moment.again()), &mut env);
            if decision.waits {
                return Handled::Later;
            }
            if notes::is_flooding_scripts(snapshot, &decision, connection, now) {
                decision.effects.push(ConnectionEffect::Close(Close::Flooding).into());
            }
            let effects = Effects::Connection(connection, std::mem::take(&mut decision.effects));
            let fault = match self.applying(snapshot).apply(effects, std::mem::take(&mut decision.reads), batch, now) {
                Ok(_) => None,
                Err(Refusal::Changed) if tries < TRIES_MAX => continue,
                Err(Refusal::Changed) => Some(conflict()),
                Err(Refusal::Fault(why)) => Some(why),
            };
            self.note(snapshot, &decision, door, Some(connection), now);
            if let Some(fault) = fault {
                self.refuse(snapshot, connection, &fault, batch, now);
            }
            return Handled::Done;
        }
    }

    /// Tells the sender that a decision could not be applied.
    fn refuse(&self, snapshot: &Arc<Snapshot>, connection: &Arc<Connection>, fault: &Fault, batch: &mut Batch<'_>, now: Now) {
        connection.metrics.fault(fault.code);
        let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else { return };
        if self.may_warn() {
            let why = fault.detail.as_deref().unwrap_or(&fault.message);
            tracing::warn!(protocol = %protocol.plan.name, client = %connection.id, why, "a message was refused");
        }
        // Sent in order with the connection's other messages. Effects without channel and store are always accepted.
        if let Some(frame) = fault_reply(&protocol.plan, fault, None, &connection.view(), now) {
            let effects = Effects::Connection(connection, vec![Effect::Connection(ConnectionEffect::Send(frame))]);
            if self.applying(snapshot).apply(effects, Vec::new(), batch, now).is_err() {
                tracing::error!(client = %connection.id, "a fault could not be sent to a client");
            }
        }
    }

    /// Cleans up after a connection that has ended, and runs its protocol's `close` rows.
    pub fn closed(&self, connection: &Arc<Connection>, close: &Close, now: Now) {
        let snapshot = self.snapshot_of(connection.protocol);
        self.hub.close(connection);
        let mut batch = Batch::new(&snapshot, None, now);
        let (mut limits, mut spent) = (ClientLimits::default(), Spent::default());
        let arrival = Arrival { moment: Moment::Closed(close), spent: &mut spent, now };
        self.client(&snapshot, connection, arrival, &mut limits, &mut batch);
        drop(batch);
        connection.metrics.closed(close);
        let (traffic, sent) = (&connection.traffic, connection.outbox.measure());
        let end = ConnectionEnd {
            closed_ms: now.wall_ms,
            seen_ms: connection.seen_ms(),
            code: close.code(),
            reason: close.reason().to_owned(),
            messages_in: traffic.messages_in.load(Relaxed),
            messages_out: sent.messages,
            bytes_in: traffic.bytes_in.load(Relaxed),
            bytes_out: sent.payload,
            dropped: sent.dropped,
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

    /// Publishes for the application: to every destination or, if one is not possible, to none.
    pub fn publish(&self, snapshot: &Arc<Snapshot>, to: &[Destination], proposal: &Proposal, now: Now) -> Result<Accepted, Fault> {
        Ok(self.door(snapshot, Input::Publish { to, proposal }, &proposal.origin.source, now)?.accepted)
    }

    /// Handles an input without a connection.
    fn door(&self, snapshot: &Arc<Snapshot>, mut input: Input<'_>, door: &str, now: Now) -> Result<Promised, Fault> {
        let (mut chance, mut spent) = (Chance::System, Spent::default());
        let mut tries = 0;
        loop {
            tries += 1;
            let mut limits = Spending { shared: &snapshot.limits, client: None, spent: &mut spent };
            let mut env = Env { now, chance: &mut chance, limits: &mut limits, pending: false, trial: false };
            let mut decision = decide(snapshot, input.again(), &mut env);
            let mut batch = Batch::new(snapshot, None, now);
            let effects = Effects::Door(decision.take_events());
            let fault = match self.applying(snapshot).apply(effects, std::mem::take(&mut decision.reads), &mut batch, now) {
                Ok(accepted) => {
                    self.note(snapshot, &decision, door, None, now);
                    let fault = decision.fault.map(|fault| *fault);
                    return match (fault, &accepted) {
                        (Some(fault), Accepted::Done(_)) => Err(fault),
                        (fault, _) => Ok(Promised { accepted, fault, reply: decision.reply, status: decision.status }),
                    };
                }
                Err(Refusal::Changed) if tries < TRIES_MAX => continue,
                Err(Refusal::Changed) => conflict(),
                Err(Refusal::Fault(why)) => why,
            };
            self.note(snapshot, &decision, door, None, now);
            return Err(fault);
        }
    }

    fn applying<'a>(&'a self, snapshot: &'a Arc<Snapshot>) -> Apply<'a> {
        Apply { snapshot, store: &self.store, commits: &self.commits }
    }

    /// Ends a connection after everything that waits for it.
    pub fn end(&self, connection: &Arc<Connection>, close: Close) {
        let snapshot = self.snapshot_of(connection.protocol);
        let mut renderer = Renderer::new(&snapshot, self.now());
        self.hub.end(connection, close, &mut renderer);
        renderer.finish();
    }

    /// Writes batches when they are due, as long as it is polled.
    pub async fn write_due_batches(&self) {
        loop {
            let (channel, protocol) = self.hub.due.next().await;
            {
                let snapshot = self.snapshot_of(protocol);
                let mut renderer = Renderer::new(&snapshot, self.now());
                let written = self.hub.write_batch(&channel, protocol, &mut renderer);
                renderer.finish();
                snapshot.counters.channels.drop_many(DropReason::OutboxFull, written.overflowed as u64);
                snapshot.counters.channels.drop_many(DropReason::Gone, written.gone as u64);
            }
            // Others get their turn between one channel and the next.
            tokio::task::yield_now().await;
        }
    }

    /// Shows what the store settles, until the store has ended.
    pub async fn finish_commits(&self) {
        self.commits.run(&self.store, &self.clock).await;
    }
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
