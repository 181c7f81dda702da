//! Scripts as the rest of the router uses them: built from texts, called with messages and events.

mod again;
mod api;
mod asks;
mod errors;
mod hostile;
mod parts;
mod service;
mod shipped;

use std::sync::Arc;

use super::{Arguments, Call, Returned, ScriptError, Scripts, World};
use crate::config::diagnostic::Diagnostic;
use crate::config::plan::{ExpressionUse, FnRef, FunctionUse, PluginSource, Plugins, Role, SourceSpan};
use crate::model::{ConnView, Event, Json, Now, PluginName, RequestView, SourceLocation};

/// A world with two clients on every channel.
pub(super) struct TwoClients;

impl World for TwoClients {
    fn members(&self, channel: &str) -> Vec<Json> {
        vec![json(&format!(r#"{{"id":"c1","on":"{channel}"}}"#)), json(r#"{"id":"c2","user":"u2"}"#)]
    }

    fn history(&self, channel: &str, count: usize) -> Vec<Arc<Event>> {
        (1..=count.min(3)).map(|n| Arc::new(event(channel, n as u64, r#"{"text":"hello"}"#))).collect()
    }

    fn connections(&self, protocol: &str) -> Vec<Json> {
        let one = |id: &str| json(&format!(r#"{{"id":"{id}","protocol":"{protocol}","user":"u1","alive":true,"readyState":1}}"#));
        vec![one("c1"), one("c2")]
    }

    fn statistics(&self, protocol: &str, _: Now) -> Option<Json> {
        let text = r#"{"connections":2,"connections_total":7,"messages_in":4,"messages_out":5,"uptime_s":60,"last_activity":"2024-01-01T00:00:00.000Z"}"#;
        (protocol != "nowhere").then(|| json(text))
    }
}

pub(super) fn json(text: &str) -> Json {
    Json::parse(text.to_owned().into()).unwrap()
}

pub(super) fn event(channel: &str, offset: u64, data: &str) -> Event {
    let origin = crate::model::Origin { source: "test".into(), client: Some("c1".into()), user: None, session: None, address: None };
    Event {
        new: crate::model::NewEvent {
            id: uuid::Uuid::from_u128(7),
            kind: "greeting".into(),
            data: json(data),
            time_ms: 1_704_067_200_000,
            origin: Arc::new(origin),
            metadata: None,
        },
        channel: crate::model::ChannelName::parse(channel),
        offset,
        epoch: 0xab,
        seq: 0,
    }
}

pub(super) fn conn() -> Arc<ConnView> {
    Arc::new(ConnView {
        id: "c1".into(),
        protocol: "chat".into(),
        user: Some("ann".into()),
        session: None,
        ip: "127.0.0.1".into(),
        opened_ms: 1_704_067_200_000,
        state: json(r#"{"count":1,"list":[1]}"#),
        request: Arc::new(RequestView { query: [("room", "a"), ("room", "b")].into_iter().collect(), ..RequestView::default() }),
        origin: Default::default(),
    })
}

pub(super) fn span(line: u32, column: u32) -> SourceSpan {
    SourceSpan { location: SourceLocation { file: "routes.yaml".into(), line, column }, len: 3 }
}

pub(super) fn plugins(texts: &[(&str, &str)]) -> Plugins {
    let source = |&(name, text): &(&str, &str)| {
        let name: PluginName = name.into();
        (name.clone(), PluginSource { file: format!("plugins/{name}.rhai").into(), name, text: text.into() })
    };
    Plugins { folder: "plugins".into(), sources: texts.iter().map(source).collect() }
}

pub(super) fn f(name: &str) -> FnRef {
    let (plugin, name) = name.split_once('.').unwrap_or(("p", name));
    FnRef { plugin: plugin.into(), name: name.into() }
}

pub(super) fn used(name: &str, role: Role) -> FunctionUse {
    FunctionUse { function: f(name), role, at: span(3, 5) }
}

pub(super) fn expression(name: &str, source: &str, parameters: &'static [&'static str]) -> ExpressionUse {
    ExpressionUse { function: f(name), source: source.into(), parameters, at: span(9, 13) }
}

/// One plugin `p` whose public function `f` handles messages.
pub(super) fn one(text: &str) -> Arc<Scripts> {
    let (scripts, diagnostics) = Scripts::build(&plugins(&[("p", text)]), &[used("f", Role::Handler)], &[], None);
    assert_eq!(lines(&diagnostics), Vec::<String>::new());
    scripts
}

pub(super) fn lines(diagnostics: &[Diagnostic]) -> Vec<String> {
    let hint = |d: &Diagnostic| d.hint.as_ref().map_or_else(String::new, |hint| format!(" | {hint}"));
    diagnostics.iter().map(|d| format!("{}{}", d.line(), hint(d))).collect()
}

pub(super) fn message(scripts: &Scripts, function: &str, msg: &str) -> Result<Returned, ScriptError> {
    message_on(scripts, function, msg, &conn())
}

pub(super) fn message_on(scripts: &Scripts, function: &str, msg: &str, conn: &Arc<ConnView>) -> Result<Returned, ScriptError> {
    let (msg, world): (_, Arc<dyn World>) = (json(msg), Arc::new(TwoClients));
    let arguments = Arguments::Message { msg: Some(&msg), index: None, kind: Some("greeting"), data: None };
    scripts.call(&f(function), Call { now: at(1_704_067_200_000), conn: Some(conn), arguments, world: &world, trial: false })
}

pub(super) fn at(wall_ms: i64) -> Now {
    Now { wall_ms, instant: std::time::Instant::now() }
}

/// The value of `f(conn, msg)`.
pub(super) fn value(text: &str, msg: &str) -> String {
    let returned = message(&one(text), "f", msg).unwrap_or_else(|e| panic!("{e}"));
    returned.value.map_or_else(|| "()".to_owned(), |json| json.as_str().to_owned())
}

/// Why `f(conn, msg)` failed.
pub(super) fn why(text: &str, msg: &str) -> String {
    match message(&one(text), "f", msg) {
        Err(ScriptError::Failed(why) | ScriptError::Tripped { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}
