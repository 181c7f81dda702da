//! `protocols:`

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::channels::Channels;
use super::codes;
use super::deliver;
use super::diagnostic::Diagnostic;
use super::expression;
use super::fields::{Collected, Fields};
use super::limits;
use super::listen::{self, Listeners};
use super::node::{Entry, Node, Yaml};
use super::plan::{BatchPlan, HttpRow, IdlePlan, Listen, ProtocolPlan, Role, Row};
use super::rows::{self, Kind, Rows};
use super::template::{self, AllowedRefs};
use super::{tls, values};
use crate::model::fault::Code;
use crate::model::id::ProtocolId;
use crate::model::pattern::Pattern;
use crate::model::template::{Root, Text};
use crate::model::{Codec, PluginName};

/// Codecs of the language that this build does not have.
const CODECS_TO_COME: [&str; 6] = ["json-lines", "json-rs", "text", "binary", "msgpack", "socketio"];
/// The most events of a batch, unless its protocol says otherwise.
const BATCH_EVENTS: usize = 100;
const BATCH_BYTES: usize = 64 << 10;
/// No event waits longer for others.
const BATCH_EVERY_MAX: Duration = Duration::from_secs(60);

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

/// Reads one entry.
pub(super) fn protocol(all: &Collected, channels: &Channels, listeners: &mut Listeners, entry: &Entry) -> Option<ProtocolPlan> {
    let name = values::name(all, &entry.key, &entry.key_span)?;
    let mut fields = Fields::of(all, &entry.value, "a protocol")?;
    let plugin = plugin(&mut fields, &name);
    let rows = Rows { all, channels, actor: &name, plugin: &plugin };
    let (listen, path) = fields.need("listen").and_then(|node| listen::address_and_path(all, node)).or_else(listen::nowhere)?;
    listeners.add(&listen, "WebSocket", &path, format!("the protocol `{name}`"), fields.key_span("listen").unwrap_or(&entry.key_span));
    let tls = tls::tls(all, &mut fields);
    let at = fields.key_span("tls").or(fields.key_span("listen")).unwrap_or(&entry.key_span);
    if let Some(tls) = &tls {
        listeners.covers.add(&listen, tls.as_ref(), format!("the protocol `{name}`"), at);
    }
    let codec = fields.read("codec", codec).unwrap_or_default();
    let request = |all: &Collected, node: &Node| template::text(all, node, AllowedRefs::REQUEST);
    let section = |fields: &mut Fields<'_>, key, kind| {
        fields.read(key, |_, node| Some(rows.rows(node, kind, &format!("{name}.{key}")))).unwrap_or_default()
    };
    let plan = ProtocolPlan {
        id: ProtocolId::of(&name),
        at: entry.key_span.location.clone(),
        codec,
        origins: fields.read("origins", values::origins).unwrap_or_default(),
        kind: fields.read("type", values::pointer).unwrap_or_else(|| vec!["type".into()]),
        data: fields.read("data", values::pointer),
        client: fields.read("client", request).or_else(|| Text::parse("{$uuid}").ok()).unwrap_or_else(|| Text::constant("")),
        user: fields.read("user", request),
        session: fields.read("session", request),
        auth: fields.read("auth", limits::auth).flatten(),
        limits: fields.read("limits", limits::limits).unwrap_or_else(limits::default_limits),
        heartbeat: fields.read("heartbeat", limits::heartbeat).unwrap_or(Some(limits::DEFAULT_HEARTBEAT)),
        compress: fields.read("compress", limits::compress).flatten(),
        idle: fields.read("idle", |_, node| idle(&rows, node)),
        every: fields.read("every", |_, node| every(&rows, node)).unwrap_or_default(),
        schema: fields.read("schema", values::schema),
        validate: fields.read("validate", |_, node| rows.function(node, Role::Validate)),
        open: section(&mut fields, "open", Kind::Open),
        close: section(&mut fields, "close", Kind::Close),
        messages: fields.read("messages", |_, node| rows.table(node, Kind::Message, &format!("{name}.messages"))).unwrap_or_default(),
        deliver: fields.read("deliver", |_, node| Some(deliver::deliver(&rows, node))).unwrap_or_default(),
        batch: fields.read("batch", |_, node| batch(&rows, node)).flatten(),
        error: fields.read("error", |all, node| template::template(all, node, AllowedRefs::ERROR)),
        errors: fields.read("errors", errors).unwrap_or_default(),
        http: fields.read("http", |_, node| http(&rows, node, &listen, listeners)).unwrap_or_default(),
        name: name.clone(),
        listen,
        tls: tls.flatten().and_then(|tls| tls.plan),
        path,
    };
    fields.finish();
    Some(plan)
}

/// The plugin whose functions need no prefix.
pub(super) fn plugin(fields: &mut Fields<'_>, name: &str) -> PluginName {
    let written = fields.read("plugin", |all, node| {
        let written = values::text(all, node)?;
        if super::plugins::is_plugin(&written) {
            return Some(written);
        }
        all.fail(codes::NAME, &node.span, format!("`{written}` is not a valid plugin name: lower-case letters, digits and `_`"))
    });
    written.unwrap_or_else(|| name.replace('-', "_")).into()
}

fn codec(all: &Collected, node: &Node) -> Option<Codec> {
    let written = values::text(all, node)?;
    if CODECS_TO_COME.contains(&&*written) {
        return all.fail(codes::NOT_YET, &node.span, format!("the codec `{written}` is not supported yet; the only codec is `json`"));
    }
    values::word(all, node, &[("json", Codec::Json)])
}

/// `batch: {when, every, as, events, bytes}`. If `every` is empty there are no batches, as if `batch` were absent.
fn batch(rows: &Rows<'_>, node: &Node) -> Option<Option<BatchPlan>> {
    let all = rows.all;
    let mut fields = Fields::of(all, node, "`batch`")?;
    let when = |all: &Collected, node: &Node| expression::when(all, node, rows.plugin, AllowedRefs::BATCHED, expression::CONNECTION);
    let when = fields.read("when", when).map(|when| when.function);
    let every = if fields.has("every") { fields.get("every") } else { fields.need("every") };
    let every = every.map(|node| match values::duration(all, node)? {
        every if every <= BATCH_EVERY_MAX => Some(every),
        _ => all.fail(codes::VALUE, &node.span, "events may wait at most 60s for others"),
    });
    let form = fields.need("as").map(|node| {
        let form = template::template(all, node, AllowedRefs::BATCH)?;
        if form.references().iter().any(|reference| reference.root == Root::Messages && reference.path.is_empty()) {
            return Some(form);
        }
        let message = "`as` does not use `$messages`: the events of the batch would be lost";
        all.report(Diagnostic::new(codes::MISSING, node.span.clone(), message).hint("for example `as: { messages: $messages }`"));
        None
    });
    let events = fields.read("events", values::count).unwrap_or(BATCH_EVENTS);
    let bytes = fields.read("bytes", values::size).unwrap_or(BATCH_BYTES);
    fields.finish();
    match every {
        Some(every) => Some(Some(BatchPlan { when, every: every?, events, bytes, form: form?? })),
        None => Some(None),
    }
}

/// `idle: {after, send, close, grace}`
fn idle(rows: &Rows<'_>, node: &Node) -> Option<IdlePlan> {
    let mut fields = Fields::of(rows.all, node, "`idle`")?;
    let after = fields.need("after").and_then(|node| values::duration(rows.all, node));
    let grace = fields.read("grace", values::duration);
    let name = format!("{}.idle", rows.actor);
    let mut row = rows.fill(&mut fields, Kind::Idle, &name, rows.all.row_id(&name), &node.span);
    fields.finish();
    if row.reply.is_none() && row.close.is_none() {
        row.close = Some((1000, Text::constant("idle")));
    }
    Some(IdlePlan { after: after?, row, grace })
}

/// `every: [{every: 5s, …}]`
fn every(rows: &Rows<'_>, node: &Node) -> Option<Vec<(Duration, Row)>> {
    let items = if let Yaml::List(items) = &node.value { &**items } else { std::slice::from_ref(node) };
    let name = format!("{}.every", rows.actor);
    let one = |(i, item)| {
        let mut fields = Fields::of(rows.all, item, "a row of `every`")?;
        let period = fields.need("every").and_then(|node| values::duration(rows.all, node));
        let row = rows.fill(&mut fields, Kind::Every, &format!("{name}[{i}]"), rows::id(rows.all, &name, item), &item.span);
        fields.finish();
        Some((period?, row))
    };
    Some(items.iter().enumerate().filter_map(one).collect())
}

/// `errors:` messages by the code of the fault.
fn errors(all: &Collected, node: &Node) -> Option<HashMap<Code, Text>> {
    let mut fields = Fields::of(all, node, "`errors`")?;
    let read = |code: Code| Some((code, fields.read(code.as_str(), |all, node| template::text(all, node, AllowedRefs::ERROR))?));
    let found = Code::ALL.into_iter().filter_map(read).collect();
    fields.finish();
    Some(found)
}

/// `http:` rows by `METHOD /path`.
fn http(rows: &Rows<'_>, node: &Node, listen: &Listen, listeners: &mut Listeners) -> Option<Vec<HttpRow>> {
    let Yaml::Map(entries) = &node.value else { return rows.all.wrong_type(node, "a map of rows by `METHOD /path`") };
    let mut found = Vec::new();
    for entry in entries {
        let Some((method, path)) = method_and_path(rows.all, &entry.key, &entry.key_span) else { continue };
        let name = format!("{}.http.{}", rows.actor, entry.key);
        listeners.add(listen, &method, &path, format!("`{}` of the protocol `{}`", entry.key, rows.actor), &entry.key_span);
        found.push(HttpRow { method, path, rows: rows.rows(&entry.value, Kind::Http, &name) });
    }
    Some(found)
}

/// `METHOD /path`
pub(super) fn method_and_path(all: &Collected, written: &str, at: &super::plan::SourceSpan) -> Option<(Arc<str>, Pattern)> {
    let (method, path) = written.split_once(' ').unwrap_or((written, ""));
    if !METHODS.contains(&method) {
        let message = format!("`{written}` is not a valid method and path");
        all.report(
            Diagnostic::new(codes::ADDRESS, at.clone(), message).hint(format!("write `GET /path`; methods are {}", METHODS.join(", "))),
        );
        return None;
    }
    Some((method.into(), listen::path(all, path.trim(), at)?))
}
