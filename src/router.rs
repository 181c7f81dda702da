//! The router: decides and applies what every door brings. Doors know this and nothing behind it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::apply::commit_queue::CommitQueue;
use crate::apply::{Accepted, Applied, Apply, Batch};
use crate::config::plan::{HttpRow, ProtocolPlan, Rate, SourcePlan, WhenFull};
use crate::hub::connection::report;
use crate::hub::{Admission, Bounds, Connection};
use crate::limits::{LimitVerdict, Limiter};
use crate::model::view::RequestView;
use crate::model::{Close, Code, Fault, Json, Now};
use crate::pipeline::deliver::{Renderer, batches};
use crate::pipeline::publish::{Destination, Proposal, prepare};
use crate::pipeline::{self, ClientLimits, Context, Decision, Effect, Input};
use crate::store::{ConnectionEnd, ConnectionRecord, Store};
use crate::telemetry::metrics::DropReason;

/// Warnings about clients' messages that are logged in a second. The rest are in the log at level debug, and counted.
const WARNINGS_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("20 is not 0");

/// The running whole behind the doors.
pub struct Router {
    /// How many warnings about messages are logged: clients cause them.
    warnings: Limiter,
    /// The configuration, channels and connections.
    pub context: Context,
    /// What is kept.
    pub store: Store,
    /// What waits to be kept before anyone sees it.
    pub commit_queue: CommitQueue,
}

/// What a door without a connection gets back, at first.
#[derive(Debug)]
pub struct Promised {
    accepted: Accepted,
    reply: Option<Json>,
    status: Option<u16>,
}

impl Promised {
    /// Resolves when it has happened and is as durable as its channels promise.
    pub async fn settled(self, store: &Store) -> Result<Outcome, Fault> {
        Ok(Outcome { applied: self.accepted.settled(store).await?, reply: self.reply, status: self.status })
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

impl Router {
    /// A router over these.
    pub fn new(context: Context, store: Store, now: Now) -> Self {
        let rate = Rate { count: WARNINGS_PER_SECOND, per: Duration::from_secs(1), burst: WARNINGS_PER_SECOND };
        Self { context, store, commit_queue: CommitQueue::default(), warnings: Limiter::new(&rate, now) }
    }

    /// Lets a connection in, or says why not. A displaced connection is closed.
    pub fn admit(&self, connection: &Arc<Connection>) -> Result<(), Fault> {
        let protocol = &self.context.runtime.protocols[connection.protocol];
        let limits = &protocol.plan.limits;
        let bounds = Bounds {
            connections: limits.connections,
            per_address: limits.connections_per_address,
            displace: matches!(limits.full, WhenFull::CloseOldest(..)),
        };
        let mut failed = None;
        connection.set_batches(batches(&self.context.runtime, connection.protocol, &connection.view(), Now::read(), &mut failed));
        if let Some(why) = failed {
            self.warn_of_batch(&connection.id, &why);
        }
        match self.context.hub.open(connection, bounds) {
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
        protocol.metrics.opened();
        self.store.append_connection_opened(record(connection));
        tracing::debug!(protocol = %protocol.plan.name, client = %connection.id, "connection opened");
        Ok(())
    }

    /// Something came from, or about, a connection. What it does is queued when the batch ends, at the latest.
    pub fn client(&self, connection: &Arc<Connection>, limits: &mut ClientLimits, input: Input<'_>, batch: &mut Batch<'_>, now: Now) {
        let protocol = &self.context.runtime.protocols[connection.protocol];
        if let Input::Message(frame) = &input {
            protocol.metrics.message_in(frame.len() as u64, now.wall_ms);
        }
        let mut decision = pipeline::decide(&self.context, connection, limits, input, now);
        self.note(&decision, &protocol.plan.name, Some(connection));
        if let Err(fault) = self.applying().apply(Some(connection), std::mem::take(&mut decision.effects), batch, now) {
            protocol.metrics.fault(fault.code);
            if self.may_warn() {
                let why = fault.detail.as_deref().unwrap_or(&fault.message);
                tracing::warn!(protocol = %protocol.plan.name, client = %connection.id, why, "a message was refused");
            }
            // In its order among what the connection is told. What touches no channel and no store is always accepted.
            if let Some(frame) = pipeline::fault_reply(&protocol.plan, &fault, None, &connection.view(), now)
                && let Err(fault) = self.applying().apply(Some(connection), vec![Effect::Send(frame)], batch, now)
            {
                tracing::error!(client = %connection.id, why = %fault.message, "a client was not told of a fault");
            }
        }
    }

    /// A connection has ended: everything it had goes, and what its protocol wants done then is done.
    pub fn closed(&self, connection: &Arc<Connection>, close: &Close, now: Now) {
        let protocol = &self.context.runtime.protocols[connection.protocol];
        self.context.hub.close(connection);
        let mut batch = Batch::new(&self.context, None, now);
        self.client(connection, &mut ClientLimits::default(), Input::Closed(close), &mut batch, now);
        drop(batch);
        protocol.metrics.closed(close);
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
        self.store.append_connection_closed(record(connection), end);
        tracing::debug!(protocol = %protocol.plan.name, client = %connection.id, code = close.code(), reason = close.reason(), "connection closed");
    }

    /// An event of a source.
    pub fn source(&self, source: &SourcePlan, body: Json, request: Option<&RequestView>, now: Now) -> Result<Promised, Fault> {
        let counted = self.context.runtime.metrics.source(&source.name);
        counted.events.inc();
        let decision = pipeline::decide_source(&self.context, source, body, request, now);
        let outcome = self.conclude(decision, &source.name, now);
        if outcome.is_err() {
            counted.faults.inc();
        }
        outcome
    }

    /// An HTTP request for a protocol's row.
    pub fn http(&self, protocol: &ProtocolPlan, row: &HttpRow, body: Json, request: &RequestView, now: Now) -> Result<Promised, Fault> {
        let decision = pipeline::decide_http(&self.context, protocol, row, body, request, now);
        self.conclude(decision, &protocol.name, now)
    }

    /// Publishes from outside: to every destination or, where one cannot be, to none.
    pub fn publish(&self, to: &[Destination], proposal: &Proposal, now: Now) -> Result<Accepted, Fault> {
        let effect = |to: &Destination| {
            if let Destination::Client(id) = to
                && self.context.hub.connection(id).is_none()
            {
                return Err(Fault::with(Code::NotFound, format!("no connection has the id {id}")));
            }
            prepare(&self.context.runtime.channels, to, proposal.clone(), now)
        };
        self.apply(to.iter().map(effect).collect::<Result<_, _>>()?, now)
    }

    fn apply(&self, effects: Vec<Effect>, now: Now) -> Result<Accepted, Fault> {
        let mut batch = Batch::new(&self.context, None, now);
        self.applying().apply(None, effects, &mut batch, now)
    }

    fn applying(&self) -> Apply<'_> {
        Apply { context: &self.context, store: &self.store, commit_queue: &self.commit_queue }
    }

    /// Ends a connection after all that waits for it.
    pub fn end(&self, connection: &Arc<Connection>, close: Close) {
        let mut renderer = Renderer::new(&self.context.runtime, Now::read());
        self.context.hub.end(connection, close, &mut renderer);
        renderer.report();
    }

    /// Writes what was batched whenever it is due, as long as it is polled.
    pub async fn write_due_batches(&self) {
        let Context { runtime, hub, .. } = &self.context;
        loop {
            let (channel, protocol) = hub.due.next().await;
            let mut renderer = Renderer::new(runtime, Now::read());
            let written = hub.write_batch(&channel, protocol, &mut renderer);
            renderer.report();
            runtime.counters.drop_many(DropReason::OutboxFull, written.overflowed as u64);
            runtime.counters.drop_many(DropReason::Gone, written.gone as u64);
            // Others have their turn between one channel and the next.
            tokio::task::yield_now().await;
        }
    }

    /// Shows what the store settles, until it has ended.
    pub async fn deliver(&self) {
        self.commit_queue.run(self.applying()).await;
    }

    fn conclude(&self, mut decision: Decision, door: &str, now: Now) -> Result<Promised, Fault> {
        self.note(&decision, door, None);
        if let Some(fault) = decision.fault {
            return Err(*fault);
        }
        let accepted = self.apply(std::mem::take(&mut decision.effects), now)?;
        Ok(Promised { accepted, reply: decision.reply, status: decision.status })
    }

    fn may_warn(&self) -> bool {
        self.warnings.check(Now::read()) == LimitVerdict::Pass
    }

    fn warn_of_batch(&self, client: &str, why: &str) {
        if self.may_warn() {
            tracing::warn!(client, why, "a connection is given its events one by one: a script failed");
        }
    }

    /// Counts a decision and logs its fault.
    fn note(&self, decision: &Decision, door: &str, connection: Option<&Connection>) {
        if let Some(counted) = decision.row.and_then(|row| self.context.runtime.route_metrics(row)) {
            counted.calls.inc();
            if decision.fault.is_some() {
                counted.faults.inc();
            }
        }
        let client = connection.map_or("", |c| &*c.id);
        if let Some(why) = &decision.warning {
            self.warn_of_batch(client, why);
        }
        let Some(fault) = &decision.fault else { return };
        if fault.code == Code::RateLimited {
            self.context.runtime.counters.drop_one(DropReason::RateLimited);
        }
        if let Some(connection) = connection {
            self.context.runtime.protocols[connection.protocol].metrics.fault(fault.code);
        }
        let why = fault.detail.as_deref().unwrap_or(&fault.message);
        match fault.code {
            Code::ScriptFailed if self.may_warn() => tracing::warn!(door, client, code = fault.code.as_str(), why, "a script failed"),
            _ => tracing::debug!(door, client, code = fault.code.as_str(), why, "a message was refused"),
        }
    }
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
