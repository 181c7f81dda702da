//! Decides everything that happens to an input: which row, which limit, what the scripts said, who gets what.
//!
//! [`decide`] awaits nothing and touches no socket, file or database, so a test of a route is a function call, and every
//! command that wants to know what a message would do runs the same code. What it reads of the world (members, tails,
//! subscriptions) is in memory. Applying a decision is somebody else's work.

pub mod deliver;
pub mod effect;
pub mod publish;
pub mod rows;
pub mod scope;
#[cfg(test)]
mod tests;
pub mod world;

use std::sync::Arc;

use crate::config::plan::{FnRef, HttpRow, ProtocolPlan, Reply, Row, SourcePlan};
use crate::hub::Connection;
use crate::limits::{LimitVerdict, Limiter};
use crate::model::event::Origin;
use crate::model::json::Index;
use crate::model::template::Text;
use crate::model::view::{ConnView, RequestView};
use crate::model::{Close, Code, Fault, Json, Now};
use crate::protocol::{self, Frame};
use crate::runtime::{Protocol, Runtime};
use crate::script::{Arguments, Call};

pub use effect::{Decision, Effect, Receivers};
use rows::Decider;
use scope::{Bindings, Message};
pub use world::Context;

/// Something that came in.
pub enum Input<'a> {
    /// A connection, once it is in the hub.
    Open,
    /// A message from a connection.
    Message(Frame),
    /// A connection's timer, by its place in the protocol's `every:`.
    Every(usize),
    /// A connection was silent for as long as `idle:` says.
    Idle,
    /// A connection has ended.
    Closed(&'a Close),
}

/// What belongs to one connection and only its task may change: the limiters.
#[derive(Debug, Default)]
pub struct ClientLimits {
    connection: Option<Limiter>,
    /// Of the rows with a limit that it has used. Few, so they are searched.
    rows: Vec<(usize, Limiter)>,
}

impl ClientLimits {
    /// Limiters for a connection of this protocol.
    pub fn new(plan: &ProtocolPlan, now: Now) -> Self {
        Self { connection: plan.limits.rate.as_ref().map(|rate| Limiter::new(rate, now)), rows: Vec::new() }
    }
}

/// Who counts the messages through a row that has a limit.
pub(crate) enum RowLimits<'l> {
    /// The connection they come from.
    Client(&'l mut ClientLimits),
    /// The row itself: there is no connection.
    Shared,
}

impl RowLimits<'_> {
    /// One more message through this row.
    fn check(&mut self, runtime: &Runtime, row: &Row, now: Now) -> LimitVerdict {
        match (&row.limit, self) {
            (None, _) => LimitVerdict::Pass,
            (Some(rate), RowLimits::Client(client)) => {
                let known = client.rows.iter().position(|(id, _)| *id == row.id);
                let at = known.unwrap_or_else(|| {
                    client.rows.push((row.id, Limiter::new(rate, now)));
                    client.rows.len() - 1
                });
                client.rows[at].1.check(now)
            }
            (Some(_), RowLimits::Shared) => runtime.row_limit(row).map_or(LimitVerdict::Pass, |limiter| limiter.check(now)),
        }
    }
}

/// Decides what happens to something that came from, or about, a connection.
pub fn decide(context: &Context, connection: &Connection, limits: &mut ClientLimits, input: Input<'_>, now: Now) -> Decision {
    let protocol = &context.runtime.protocols[connection.protocol];
    let plan = &protocol.plan;
    let mut decider = Decider::for_connection(context, connection, now);
    let is_over = matches!(input, Input::Closed(_));
    let mut seen = None;
    let outcome = match input {
        Input::Message(frame) => {
            if let Err(refusal) = admit(protocol, decider.seen(), limits, now) {
                return refuse(plan, &decider, refusal, now);
            }
            message(&mut decider, protocol, &mut RowLimits::Client(limits), frame, &mut seen)
        }
        Input::Open => decider.rows(&plan.open, None, &mut RowLimits::Client(limits)),
        Input::Every(index) => {
            plan.every.get(index).map_or(Ok(()), |(_, row)| decider.rows(std::slice::from_ref(row), None, &mut RowLimits::Client(limits)))
        }
        Input::Idle => {
            plan.idle.as_ref().map_or(Ok(()), |idle| decider.rows(std::slice::from_ref(&idle.row), None, &mut RowLimits::Client(limits)))
        }
        Input::Closed(close) => {
            let told = Json::of(&serde_json::json!({ "code": close.code(), "reason": close.reason() }));
            let message = Message::made(told, "close");
            decider.rows(&plan.close, Some(&message), &mut RowLimits::Client(limits))
        }
    };
    let view = outcome.is_err().then(|| decider.view());
    let mut decision = decider.finish();
    if let (Err(fault), Some(view)) = (outcome, view) {
        decision.effects.clear();
        if let Some(frame) = fault_reply(plan, &fault, seen.as_ref(), &view, now) {
            decision.effects.push(Effect::Send(frame));
        }
        decision.fault = Some(fault.into());
    }
    if is_over {
        // There is no connection any more that could join, change or be told anything.
        decision.effects.retain(|effect| matches!(effect, Effect::Publish { .. } | Effect::Direct { .. }));
    }
    decision
}

/// Whether deciding a message looks at what the connection's own transactions will have changed once they are committed: where
/// a channel stands, or what scripts ask about the world.
pub fn must_wait(context: &Context, connection: &Connection, frame: &Frame) -> bool {
    let plan = &context.runtime.protocols[connection.protocol].plan;
    let asks = |function: &Option<FnRef>| function.as_ref().is_some_and(|function| context.runtime.scripts.asks(function));
    let looks = |row: &Row| {
        let answers = matches!(&row.reply, Some(Reply::Call(function)) if context.runtime.scripts.asks(function));
        let functions = [&row.when, &row.validate, &row.transform, &row.call];
        answers || row.join.iter().any(|join| join.recover.is_some()) || functions.into_iter().any(asks)
    };
    let message = protocol::decode_json(frame.clone()).ok().map(|(json, index)| Message::new(json, index, &plan.kind, None));
    let rows = message.as_ref().and_then(Message::kind).and_then(|kind| plan.messages.rows(kind));
    asks(&plan.validate) || rows.is_some_and(|rows| rows.iter().any(looks))
}

enum Refusal {
    Over(Fault),
    Flooding,
}

/// Every limit a message meets before anyone looks into it.
fn admit(protocol: &Protocol, view: &ConnView, limits: &ClientLimits, now: Now) -> Result<(), Refusal> {
    let verdicts = [
        limits.connection.as_ref().map(|limiter| limiter.check(now)),
        protocol.user_limit.as_ref().zip(view.user.as_ref()).map(|(limiter, user)| limiter.check(user, now)),
        protocol.address_limit.as_ref().map(|limiter| limiter.check(&view.ip, now)),
    ];
    for verdict in verdicts.into_iter().flatten() {
        over(verdict)?;
    }
    Ok(())
}

fn over(verdict: LimitVerdict) -> Result<(), Refusal> {
    match verdict {
        LimitVerdict::Pass => Ok(()),
        LimitVerdict::Over { retry_after } => {
            let mut fault = Fault::new(Code::RateLimited);
            fault.retry_after = Some(retry_after);
            Err(Refusal::Over(fault))
        }
        LimitVerdict::Flooding => Err(Refusal::Flooding),
    }
}

fn refuse(plan: &ProtocolPlan, decider: &Decider<'_>, refusal: Refusal, now: Now) -> Decision {
    let mut decision = Decision::default();
    match refusal {
        Refusal::Over(fault) => {
            decision.effects.extend(fault_reply(plan, &fault, None, decider.seen(), now).map(Effect::Send));
            decision.fault = Some(fault.into());
        }
        Refusal::Flooding => {
            decision.effects.push(Effect::Close(Close::Flooding));
            decision.fault = Some(Fault::new(Code::RateLimited).into());
        }
    }
    decision
}

/// `seen` is the message, once it could be read: a fault is told in its terms.
fn message<'p>(
    decider: &mut Decider<'_>,
    protocol: &'p Protocol,
    limits: &mut RowLimits<'_>,
    frame: Frame,
    seen: &mut Option<Message<'p>>,
) -> Result<(), Fault> {
    let plan = &protocol.plan;
    let (json, index) = protocol::decode_json(frame)?;
    let message = seen.insert(Message::new(json, index, &plan.kind, plan.data.as_deref()));
    envelope(decider, plan, message)?;
    let kind = message.kind().ok_or_else(|| Fault::new(Code::MissingType))?;
    let rows = plan.messages.rows(kind).ok_or_else(|| Fault::new(Code::UnknownType))?;
    decider.rows(rows, Some(message), limits)
}

/// What every message of a protocol must hold to.
fn envelope(decider: &Decider<'_>, plan: &ProtocolPlan, message: &Message<'_>) -> Result<(), Fault> {
    if let Some(schema) = &plan.schema {
        rows::check_schema(schema, &message.json)?;
    }
    let Some(function) = &plan.validate else { return Ok(()) };
    let call =
        Call { now: decider.now, conn: Some(decider.seen()), arguments: scope::arguments(Some(message)), world: &decider.context.world };
    match decider.context.runtime.scripts.test(function, call) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Fault::new(Code::Rejected)),
        Err(error) => Err(rows::script_fault(error)),
    }
}

/// How a fault is written for the client that caused it. Nothing where the protocol says nothing.
pub fn fault_reply(plan: &ProtocolPlan, fault: &Fault, message: Option<&Message<'_>>, view: &ConnView, now: Now) -> Option<Frame> {
    let template = plan.error.as_ref()?;
    let bare = Bindings { message, view: Some(view), fault: Some((fault, &fault.message)), ..Bindings::at(now) };
    let text = plan.errors.get(&fault.code).and_then(|text: &Text| text.render(&bare)).unwrap_or((&*fault.message).into());
    let bindings = Bindings { fault: Some((fault, &text)), ..bare };
    template.render(&bindings).map(protocol::encode_json)
}

/// Decides what happens to an event of a source.
pub fn decide_source(context: &Context, source: &SourcePlan, body: Json, request: Option<&RequestView>, now: Now) -> Decision {
    let origin = Arc::new(Origin { source: source.name.clone(), ..Origin::default() });
    let mut decider = Decider::new(context, origin, request, now);
    let (kind_at, data_at) = ([Box::from("type")], [Box::from("data")]);
    let index = Index::of(body.as_str());
    let message = Message::new(body, index, &kind_at, Some(&data_at));
    let outcome = match message.kind() {
        None => Err(Fault::new(Code::MissingType)),
        Some(kind) => match source.messages.rows(kind) {
            None => Err(Fault::new(Code::UnknownType)),
            Some(rows) => decider.rows(rows, Some(&message), &mut RowLimits::Shared),
        },
    };
    conclude(decider, outcome)
}

/// Decides what happens to an HTTP request that a protocol's `http:` row answers.
pub fn decide_http(context: &Context, protocol: &ProtocolPlan, row: &HttpRow, body: Json, request: &RequestView, now: Now) -> Decision {
    let origin = Arc::new(Origin { source: protocol.name.clone(), ..Origin::default() });
    let mut decider = Decider::new(context, origin, Some(request), now);
    let index = Index::of(body.as_str());
    let message = Message::new(body, index, &protocol.kind, protocol.data.as_deref());
    let outcome = decider.rows(&row.rows, Some(&message), &mut RowLimits::Shared);
    conclude(decider, outcome)
}

fn conclude(decider: Decider<'_>, outcome: Result<(), Fault>) -> Decision {
    let mut decision = decider.finish();
    if let Err(fault) = outcome {
        decision.effects.clear();
        decision.reply = None;
        decision.fault = Some(fault.into());
    }
    decision
}

/// The arguments of a script call without a message.
pub(crate) const NO_MESSAGE: Arguments<'static> = Arguments::Message { msg: None, index: None, kind: None, data: None };
