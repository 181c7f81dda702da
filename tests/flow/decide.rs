//! A row as a function call: what would happen is known without a socket, a database or a server.

use std::sync::Arc;

use tramline::config;
use tramline::config::plan::Row;
use tramline::hub::{Connection, Hub};
use tramline::limits::{LimitVerdict, SharedLimits};
use tramline::model::chance::Chance;
use tramline::model::id::ProtocolId;
use tramline::model::view::ConnView;
use tramline::model::{Clock, Code, Json, Now};
use tramline::pipeline::effect::{ConnectionEffect, Decision, Effect, EventEffect};
use tramline::pipeline::{Env, Input, Limits, Moment, Read, Snapshot, decide};
use tramline::protocol::Frame;
use tramline::protocol::wire::Wire;
use tramline::runtime::{self, Counters};
use tramline::telemetry::metrics::Metrics;

use crate::support::Setup;

const YAML: &str = r#"
channels: { doc: { history: true } }
protocols:
  p:
    listen: localhost:1/
    plugin: doc
    messages:
      edit:
        set: { state.last: $.n }
        validate: fresh
        join: doc
        to: { channel: doc, as: edited, data: { n: $.n, at: $now } }
        reply: { saved: $.n, token: $uuid }
    error: { error: $error.code, message: $error.message }
"#;

const PLUGIN: &str = r#"fn fresh(msg) { if msg.n != history("doc", 10).len() + 1 { throw "stale"; } true }"#;

struct NoLimits;

impl Limits for NoLimits {
    fn message(&mut self, _: ProtocolId, _: &ConnView, _: Now) -> LimitVerdict {
        LimitVerdict::Pass
    }

    fn row(&mut self, _: &Row, _: Now) -> LimitVerdict {
        LimitVerdict::Pass
    }
}

/// The world of a routes file, in which nothing has happened, and a connection of its first protocol.
fn world(now: Now) -> (Snapshot, Connection) {
    let setup = Setup::own(YAML).plugin("doc", PLUGIN);
    let loaded = config::load(&setup.path("routes.yaml"), &|_| None);
    let runtime = runtime::build(loaded, None).unwrap_or_else(|found| panic!("{found:?}"));
    let plan = runtime.plan.protocols[0].clone();
    let limits = SharedLimits::new(&runtime.plan, None, now);
    let counters = Counters::new(&runtime.plan, &Arc::new(Metrics::new(now)), now);
    let metrics = counters.protocol(plan.id).unwrap().clone();
    let hub = Arc::new(Hub::new([]));
    let view = ConnView {
        id: "c".into(),
        protocol: plan.name.clone(),
        user: Some("ann".into()),
        session: None,
        ip: "192.0.2.1".into(),
        opened_ms: now.wall_ms,
        state: Json::empty_object(),
        request: Arc::default(),
        origin: Default::default(),
    };
    let connection = Connection::new(hub.next_key(), plan.id, now, view, &plan.limits, Wire::WebSocket { compress: None }, metrics);
    (Snapshot::new(Arc::new(runtime), Arc::new(limits), Arc::new(counters), hub, Clock::default()), connection)
}

#[test]
fn what_a_message_would_do_is_a_function_of_what_is_given() {
    let now = Now { wall_ms: 1_704_067_200_000, ..Now::read() };
    let (snapshot, connection) = world(now);
    let say = |text: &str, chance: &mut Chance| -> Decision {
        let mut env = Env { now, chance, limits: &mut NoLimits, pending: false, trial: true };
        decide(&snapshot, Input::Connection(&connection, Moment::Message(&mut Frame::Text(text.into()))), &mut env)
    };
    let (mut chance, mut again) = (Chance::Seeded(7), Chance::Seeded(7));
    let edit = r#"{"type":"edit","n":1}"#;
    let decision = say(edit, &mut chance);
    assert!(decision.fault.is_none() && !decision.waits);
    let [
        Effect::Connection(ConnectionEffect::View { view, .. }),
        Effect::Connection(ConnectionEffect::Join { view: subscription, .. }),
        Effect::Event(EventEffect::Publish { channel, event, .. }),
        Effect::Connection(ConnectionEffect::Send(Frame::Text(reply))),
    ] = &decision.effects[..]
    else {
        panic!("{:?}", decision.effects)
    };
    assert_eq!((view.state.as_str(), subscription.channel.as_str(), channel.as_str()), (r#"{"last":1}"#, "doc", "doc"));
    assert_eq!((&*event.kind, event.data.as_str()), ("edited", r#"{"n":1,"at":"2024-01-01T00:00:00.000Z"}"#));
    assert_eq!((event.time_ms, event.origin.user.as_deref()), (now.wall_ms, Some("ann")));
    assert!(reply.starts_with(r#"{"saved":1,"token":""#), "{reply}");
    assert!(matches!(&decision.reads[..], [Read::Nothing { channel, .. }] if channel.as_str() == "doc"), "{:?}", decision.reads);
    // The same seed: the same ids, texts and names. It goes on: others.
    let shown = |decision: &Decision| format!("{:?} {:?}", decision.effects, decision.reads);
    assert_eq!(shown(&say(edit, &mut again)), shown(&decision));
    assert_eq!(chance, again);
    assert_ne!(shown(&say(edit, &mut chance)), shown(&decision));
    // Nothing has happened: nobody is on the channel, and what is refused is refused for what it says.
    assert!(snapshot.hub.channel("doc").is_none() && connection.subscriptions().is_empty());
    let stale = say(r#"{"type":"edit","n":2}"#, &mut chance);
    assert_eq!(stale.fault.as_ref().map(|fault| fault.code), Some(Code::Rejected));
    let [Effect::Connection(ConnectionEffect::Send(Frame::Text(told)))] = &stale.effects[..] else { panic!("{:?}", stale.effects) };
    assert_eq!(told, r#"{"error":"rejected","message":"stale"}"#);
}
