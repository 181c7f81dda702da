//! The plugins that ship, called as the shipped routes file calls them.

use std::sync::Arc;

use super::super::{Arguments, Call, ScriptError, Scripts, World};
use super::{TwoClients, at, conn, event, expression, f, json, lines, message, plugins, used};
use crate::config::plan::Role;
use crate::model::{ChannelName, SubView};

const PARAMETERS: &[&str] = &["event", "sub", "conn"];

fn shipped() -> Arc<Scripts> {
    let texts = [("agent", include_str!("../../../plugins/agent.rhai")), ("canvas", include_str!("../../../plugins/canvas.rhai"))];
    let functions = [used("agent.envelope", Role::Validate), used("agent.status", Role::Handler), used("canvas.page", Role::Handler)];
    let expressions = [
        expression("agent.plain", "event.metadata?.where == ()", PARAMETERS),
        expression("agent.where", "matches(conn, event.metadata.where)", PARAMETERS),
        expression("agent.ide", "msg.data.topic == \"ide\"", &["msg"]),
        expression("bus.private", "msg.client != ()", &["msg", "kind"]),
    ];
    let (scripts, diagnostics) = Scripts::build(&plugins(&texts), &functions, &expressions, None);
    assert_eq!(lines(&diagnostics), Vec::<String>::new());
    scripts
}

fn test(function: &str, msg: &str) -> Result<bool, ScriptError> {
    let (scripts, msg, world): (_, _, Arc<dyn World>) = (shipped(), json(msg), Arc::new(TwoClients));
    let arguments = Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None };
    scripts.test(&f(function), Call { now: at(0), conn: Some(&conn()), arguments, world: &world, trial: false })
}

#[test]
fn the_envelope_says_what_is_wrong() {
    let test = |function: &str, msg: &str| {
        test(function, msg).map_err(|error| match error {
            ScriptError::Thrown { message, data: None, code: None, .. } => message,
            other => panic!("{msg}: {other:?}"),
        })
    };
    let thrown = |message: &str| Err(message.to_owned());
    assert_eq!(test("agent.envelope", r#"{"type":"x","data":{}}"#), Ok(true));
    assert_eq!(test("agent.envelope", r#"{"type":"x"}"#), thrown("Missing required field: data"));
    assert_eq!(test("agent.envelope", r#"{"data":{}}"#), thrown("Missing required field: type"));
    assert_eq!(test("agent.envelope", r#"{"type":"x","data":[]}"#), thrown("Invalid type for data: expected object"));
    assert_eq!(test("agent.envelope", r#"{"type":1,"data":{}}"#), thrown("Invalid type for type: expected string"));
    assert_eq!(test("agent.envelope", "[1]"), thrown("Invalid message format"));
}

#[test]
fn messages_are_taken_no_further_than_they_are_looked_at() {
    let maps: Vec<String> = (0..30_000).map(|n| format!("\"member{n:05}\":{{}}")).collect();
    let large = format!("{{{}}}", maps.join(","));
    let msg = format!(r#"{{"type":"test","data":{large}}}"#);
    assert!(msg.len() > 400_000);
    for (function, holds) in [("agent.envelope", true), ("agent.ide", false), ("bus.private", false)] {
        assert_eq!(test(function, &msg), Ok(holds), "{function}");
    }
    // None of it takes more of a message than this.
    let agent = include_str!("../../../plugins/agent.rhai");
    assert_eq!(super::parts::wants_of(agent, "envelope"), "data() type()");
    assert_eq!(super::parts::wants_of(agent, "status"), "");
    assert_eq!(super::parts::wants_of(include_str!("../../../plugins/canvas.rhai"), "page"), "");
    assert_eq!(super::parts::wants_of("fn f(msg) { msg.data.topic == \"ide\" }", "f"), "data(topic)");
    assert_eq!(super::parts::wants_of("fn f(event) { event.metadata?.where == () }", "f"), "metadata(where)");
}

#[test]
fn conditions_on_messages() {
    assert_eq!(test("agent.ide", r#"{"data":{"topic":"ide"}}"#), Ok(true));
    assert_eq!(test("agent.ide", r#"{"data":{}}"#), Ok(false));
    assert_eq!(test("bus.private", r#"{"client":"c1"}"#), Ok(true));
    assert_eq!(test("bus.private", "{}"), Ok(false));
}

#[test]
fn an_event_with_a_condition_is_for_those_it_holds_for() {
    let scripts = shipped();
    // More data than a script may hold, which these conditions do not ask for.
    let data = format!("[{}0]", "0,".repeat(20_000));
    let holds = |function: &str, wanted: Option<&str>| {
        let mut event = event("agent", 1, &data);
        event.new.metadata = wanted.map(|wanted| json(&format!(r#"{{"where":{wanted}}}"#)));
        let sub = SubView { channel: ChannelName::parse("agent").unwrap(), key: "".into(), meta: None, positioned: false };
        let (world, conn): (Arc<dyn World>, _) = (Arc::new(TwoClients), conn());
        let arguments = Arguments::Deliver { event: &event, sub: &sub };
        scripts.test(&f(function), Call { now: at(0), conn: Some(&conn), arguments, world: &world, trial: false })
    };
    assert_eq!(holds("agent.plain", None), Ok(true));
    assert_eq!(holds("agent.plain", Some(r#"{"id":"c1"}"#)), Ok(false));
    assert_eq!(holds("agent.where", Some(r#"{"id":"c1","user":"ann"}"#)), Ok(true));
    assert_eq!(holds("agent.where", Some(r#"{"id":"c2"}"#)), Ok(false));
    assert_eq!(holds("agent.where", Some(r#"{"state":{"count":1},"query":{"room":"b"}}"#)), Ok(true));
    assert_eq!(holds("agent.where", Some(r#"{"state":{"count":2}}"#)), Ok(false));
    assert_eq!(holds("agent.where", Some(r#"{"colour":"red"}"#)), Ok(false));
}

#[test]
fn the_pages_show_what_the_host_counts() {
    let scripts = shipped();
    let page = message(&scripts, "canvas.page", "{}").unwrap().value.unwrap();
    let client = |id: &str| format!(r#"{{"id":"{id}","isAlive":true,"state":1,"userId":"u1"}}"#);
    let wanted = format!(r#"{{"activeConnections":2,"clients":[{},{}],"totalConnections":7}}"#, client("c1"), client("c2"));
    assert_eq!(page.as_str(), wanted);
    let status = message(&scripts, "agent.status", "{}").unwrap().value.unwrap();
    assert_eq!(
        status.as_str(),
        r#"{"data":{"clients":2,"connected":true,"lastActivity":"2024-01-01T00:00:00.000Z","messageCount":9,"uptime":60},"success":true}"#
    );
}
