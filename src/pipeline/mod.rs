//! Decides everything that happens to an input: which row, which limit, what the scripts returned, who gets what.
//!
//! [`decide`] awaits nothing and does not use any socket, file, database, clock or random source directly: what it needs of them
//! comes in through [`Env`], and what it reads of the world (members, tails, subscriptions) is in memory. It changes nothing. So
//! a test of a route is a function call, and every command that wants to know what a message would do runs the same code.
//! Applying a decision is not done here.

pub mod deliver;
pub mod effect;
pub mod env;
pub mod publish;
pub mod reads;
mod rendering;
pub mod rows;
pub mod scope;
pub mod snapshot;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::config::plan::{HttpRow, ProtocolPlan, SourcePlan};
use crate::hub::Connection;
use crate::limits::LimitVerdict;
use crate::model::event::Origin;
use crate::model::id::RowId;
use crate::model::json::Index;
use crate::model::template::Text;
use crate::model::view::{ConnView, RequestView};
use crate::model::{Close, Code, Fault, Json, Now};
use crate::protocol::Frame;
use crate::runtime::Protocol;
use crate::script::{Arguments, Call};

pub use effect::{ConnectionEffect, Decision, Effect, EventEffect, Receivers};
pub use env::{ClientLimits, Env, Limits, Spending, Spent};
use publish::{Destination, Proposal};
pub use reads::Read;
use rows::Decider;
use scope::{Bindings, Message};
pub use snapshot::Snapshot;

/// An input, wherever it came from.
pub enum Input<'a> {
    /// From, or about, a connection.
    Connection(&'a Connection, Moment<'a>),
    /// An HTTP request that a protocol's `http:` row answers.
    Http {
        /// The protocol.
        protocol: &'a ProtocolPlan,
        /// The row.
        row: &'a HttpRow,
        /// The body.
        body: &'a Json,
        /// The request.
        request: &'a RequestView,
    },
    /// An event of a source.
    Source {
        /// The source.
        source: &'a SourcePlan,
        /// The event.
        body: &'a Json,
        /// The request it came with, if it did.
        request: Option<&'a RequestView>,
    },
    /// The application publishes: to every destination or, if one is not possible, to none.
    Publish {
        /// Where to.
        to: &'a [Destination],
        /// What.
        proposal: &'a Proposal,
    },
}

/// What happens with a connection.
pub enum Moment<'a> {
    /// It is in the hub.
    Open,
    /// It sent a message. Its text is taken while it is decided, and put back: that costs less than a share of it.
    Message(&'a mut Frame),
    /// A timer of `every:` is due.
    Every(RowId),
    /// It was silent for as long as `idle:` says.
    Idle,
    /// It has ended.
    Closed(&'a Close),
}

impl Input<'_> {
    /// The same, to be decided once more.
    pub fn again(&mut self) -> Input<'_> {
        match self {
            Self::Connection(connection, moment) => Input::Connection(connection, moment.again()),
            Self::Http { protocol, row, body, request } => Input::Http { protocol, row, body, request },
            Self::Source { source, body, request } => Input::Source { source, body, request: *request },
            Self::Publish { to, proposal } => Input::Publish { to, proposal },
        }
    }
}

impl Moment<'_> {
    /// The same, to be decided once more.
    pub fn again(&mut self) -> Moment<'_> {
        match self {
            Self::Open => Moment::Open,
            Self::Message(frame) => Moment::Message(frame),
            Self::Every(row) => Moment::Every(*row),
            Self::Idle => Moment::Idle,
            Self::Closed(close) => Moment::Closed(close),
        }
    }

    /// Whether there is anything to decide. Every connection begins and ends, and most protocols have no rows for that.
    pub fn has_rows(&self, plan: &ProtocolPlan) -> bool {
        match self {
            Self::Open => !plan.open.is_empty(),
            Self::Closed(_) => !plan.close.is_empty(),
            Self::Message(_) | Self::Every(_) | Self::Idle => true,
        }
    }
}

/// Decides what happens to an input.
pub fn decide(snapshot: &Snapshot, input: Input<'_>, env: &mut Env<'_>) -> Decision {
    let mut chance = std::mem::take(env.chance);
    let decision = chance.run(|| match input {
        Input::Connection(connection, moment) => of_connection(snapshot, connection, moment, env),
        Input::Http { protocol, row, body, request } => {
            let index = Index::of(body.as_str());
            let message = Message::new(body.clone(), index, &protocol.kind, protocol.data.as_deref());
            without_connection(snapshot, &protocol.name, Some(request), env, |run, env| run.rows(&row.rows, Some(&message), env))
        }
        Input::Source { source, body, request } => {
            without_connection(snapshot, &source.name, request, env, |run, env| of_source(run, source, body, env))
        }
        Input::Publish { to, proposal } => published(snapshot, to, proposal, env.now),
    });
    *env.chance = chance;
    decision
}

fn of_connection(snapshot: &Snapshot, connection: &Connection, moment: Moment<'_>, env: &mut Env<'_>) -> Decision {
    let Some(protocol) = snapshot.runtime.protocol(connection.protocol) else { return Decision::default() };
    let plan = &protocol.plan;
    let mut run = Decider::for_connection(snapshot, connection, env);
    let is_over = matches!(moment, Moment::Closed(_));
    let (mut seen, mut taken) = (None, None);
    let outcome = match moment {
        Moment::Message(frame) => {
            match env.limits.message(connection.protocol, run.seen(), env.now) {
                LimitVerdict::Pass => {}
                over => return refuse(plan, &run, over, env.now),
            }
            let outcome = message(&mut run, protocol, std::mem::take(frame), env, &mut seen);
            taken = Some(frame);
            outcome
        }
        Moment::Open => run.rows(&plan.open, None, env),
        Moment::Every(id) => match plan.every.iter().find(|(_, row)| row.id == id) {
            Some((_, row)) => run.rows(std::slice::from_ref(row), None, env),
            None => Ok(()),
        },
        Moment::Idle => match &plan.idle {
            Some(idle) => run.rows(std::slice::from_ref(&idle.row), None, env),
            None => Ok(()),
        },
        Moment::Closed(close) => {
            let told = Json::of(&Told { code: close.code(), reason: close.reason() });
            let message = Message::made(told, "close");
            run.rows(&plan.close, Some(&message), env)
        }
    };
    let view = outcome.is_err().then(|| run.view());
    let mut decision = run.finish();
    if let (Err(fault), Some(view)) = (outcome, view) {
        decision.effects.clear();
        if let Some(frame) = fault_reply(plan, &fault, seen.as_ref(), &view, env.now) {
            decision.effects.push(ConnectionEffect::Send(frame).into());
        }
        decision.fault = Some(fault.into());
    }
    if is_over {
        // The connection is gone: it cannot join or change, and nothing can be sent to it.
        decision.effects.retain(|effect| matches!(effect, Effect::Event(_)));
    }
    // One that could not be read is not decided twice.
    if let Some(frame) = taken
        && let Some(Message { json, .. }) = seen
    {
        *frame = Frame::Text(json.into_shared());
    }
    decision
}

/// What `close` rows are told.
#[derive(serde::Serialize)]
struct Told<'a> {
    code: u16,
    reason: &'a str,
}

/// The result for a message that is over a limit, before it is parsed.
fn refuse(plan: &ProtocolPlan, run: &Decider<'_>, verdict: LimitVerdict, now: Now) -> Decision {
    let mut decision = Decision::default();
    let mut fault = Fault::new(Code::RateLimited);
    match verdict {
        LimitVerdict::Over { retry_after } => {
            fault.retry_after = Some(retry_after);
            let told = fault_reply(plan, &fault, None, run.seen(), now);
            decision.effects.extend(told.map(|frame| ConnectionEffect::Send(frame).into()));
        }
        LimitVerdict::Flooding => decision.effects.push(ConnectionEffect::Close(Close::Flooding).into()),
        LimitVerdict::Pass => return decision,
    }
    decision.fault = Some(fault.into());
    decision
}

/// `seen` is the message, once it has been read: the fault's message may refer to it.
fn message<'p>(
    run: &mut Decider<'_>,
    protocol: &'p Protocol,
    frame: Frame,
    env: &mut Env<'_>,
    seen: &mut Option<Message<'p>>,
) -> Result<(), Fault> {
    let plan = &protocol.plan;
    let (json, index) = plan.codec.decode(frame)?;
    let message = seen.insert(Message::new(json, index, &plan.kind, plan.data.as_deref()));
    if env.pending && protocol.reads.any() {
        run.wait();
        return Ok(());
    }
    envelope(run, protocol, message)?;
    let kind = message.kind().ok_or_else(|| Fault::new(Code::MissingType))?;
    let rows = plan.messages.rows(kind).ok_or_else(|| Fault::new(Code::UnknownType))?;
    run.rows(rows, Some(message), env)
}

/// What every message of a protocol must satisfy.
fn envelope(run: &mut Decider<'_>, protocol: &Protocol, message: &Message<'_>) -> Result<(), Fault> {
    let plan = &protocol.plan;
    if let Some(schema) = &plan.schema {
        rows::check_schema(schema, &message.json)?;
    }
    let Some(function) = &plan.validate else { return Ok(()) };
    run.record(protocol.reads);
    let call =
        Call { now: run.now, conn: Some(run.seen()), arguments: scope::arguments(Some(message)), world: run.world(), trial: run.trial };
    match run.snapshot.runtime.scripts.test(function, call) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Fault::new(Code::Rejected)),
        Err(error) => Err(rows::script_fault(error)),
    }
}

/// How a fault is written for the client that caused it. None if the protocol has no `error`.
pub fn fault_reply(plan: &ProtocolPlan, fault: &Fault, message: Option<&Message<'_>>, view: &ConnView, now: Now) -> Option<Frame> {
    let template = plan.error.as_ref()?;
    let bare = Bindings { message, view: Some(view), fault: Some((fault, &fault.message)), ..Bindings::at(now) };
    let text = plan.errors.get(&fault.code).and_then(|text: &Text| text.render(&bare)).unwrap_or((&*fault.message).into());
    let bindings = Bindings { fault: Some((fault, &text)), ..bare };
    template.render(&bindings).map(|text| plan.codec.encode(text))
}

fn of_source(run: &mut Decider<'_>, source: &SourcePlan, body: &Json, env: &mut Env<'_>) -> Result<(), Fault> {
    let (kind_at, data_at) = ([Box::from("type")], [Box::from("data")]);
    let message = Message::new(body.clone(), Index::of(body.as_str()), &kind_at, Some(&data_at));
    let kind = message.kind().ok_or_else(|| Fault::new(Code::MissingType))?;
    let rows = source.messages.rows(kind).ok_or_else(|| Fault::new(Code::UnknownType))?;
    run.rows(rows, Some(&message), env)
}

/// A decision about an input without a connection. `source`: the source of its events.
fn without_connection(
    snapshot: &Snapshot,
    source: &Arc<str>,
    request: Option<&RequestView>,
    env: &mut Env<'_>,
    rows: impl FnOnce(&mut Decider<'_>, &mut Env<'_>) -> Result<(), Fault>,
) -> Decision {
    let origin = Arc::new(Origin { source: source.clone(), ..Origin::default() });
    let mut run = Decider::new(snapshot, origin, request, env);
    let outcome = rows(&mut run, env);
    let mut decision = run.finish();
    if let Err(fault) = outcome {
        decision.effects.clear();
        decision.reply = None;
        decision.fault = Some(fault.into());
    }
    decision
}

fn published(snapshot: &Snapshot, to: &[Destination], proposal: &Proposal, now: Now) -> Decision {
    let effect = |to: &Destination| {
        if let Destination::Client(id) = to
            && snapshot.hub.connection(id).is_none()
        {
            return Err(Fault::with(Code::NotFound, format!("no connection has the id {id}")));
        }
        publish::prepare(&snapshot.runtime.channels, to, proposal.clone(), now).map(Effect::from)
    };
    match to.iter().map(effect).collect() {
        Ok(effects) => Decision { effects, ..Decision::default() },
        Err(fault) => Decision { fault: Some(Box::new(fault)), ..Decision::default() },
    }
}

/// The arguments of a script call without a message.
pub(crate) const NO_MESSAGE: Arguments<'static> = Arguments::Message { msg: None, index: None, kind: None, data: None };
