//! `sources:`

use super::channels::Channels;
use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, Fields};
use super::listen::{self, Listeners};
use super::node::{Entry, Node};
use super::plan::{SourceKind, SourcePlan, Table};
use super::protocols::{method_and_path, plugin};
use super::rows::{Kind, Rows};
use super::template::{self, AllowedRefs};
use super::{tls, values};
use crate::model::id::SourceId;
use crate::model::template::{Template, Text};

/// Kinds of the language that this build does not have.
const KINDS_TO_COME: [&str; 3] = ["files", "worker", "git"];
/// Keys of a row, which a source with a single row has itself.
const ROW_KEYS: [&str; 11] = ["when", "call", "schema", "validate", "transform", "to", "as", "data", "metadata", "priority", "fail"];

/// Reads one entry.
pub(super) fn source(all: &Collected, channels: &Channels, listeners: &mut Listeners, entry: &Entry) -> Option<SourcePlan> {
    let name = values::name(all, &entry.key, &entry.key_span)?;
    let mut fields = Fields::of(all, &entry.value, "a source")?;
    if let Some((kind, at)) = KINDS_TO_COME.iter().find_map(|kind| Some((kind, fields.key_span(kind)?))) {
        return all.fail(codes::NOT_YET, at, format!("sources of kind `{kind}` are not supported yet; the kinds are `every` and `http`"));
    }
    let plugin = plugin(&mut fields, &name);
    let rows = Rows { all, channels, actor: &name, plugin: &plugin };
    fields.exclude("every", &["http", "on", "tls", "token", "origins"]);
    fields.exclude("http", &["emit"]);
    let is_http = fields.has("http");
    let kind = if is_http { http(all, &mut fields, &name, listeners) } else { every(all, &mut fields) };
    let row_kind = if is_http { Kind::HttpSource } else { Kind::Source };
    fields.exclude("messages", &ROW_KEYS);
    let messages = match fields.get("messages") {
        Some(node) => rows.table(node, row_kind, &format!("{name}.messages")).unwrap_or_default(),
        None if ROW_KEYS.iter().any(|key| fields.has(key)) => {
            let row = rows.fill(&mut fields, row_kind, &name, all.row_id(&name), &entry.value.span);
            Table { otherwise: Some(vec![row]), ..Table::default() }
        }
        None => {
            let message = "a source needs `to`, or `messages` with rows";
            all.report(Diagnostic::new(codes::MISSING, entry.key_span.clone(), message));
            Table::default()
        }
    };
    fields.finish();
    Some(SourcePlan { id: SourceId::of(&name), name, at: entry.key_span.location.clone(), kind: kind?, messages })
}

/// `every: 30s` and `emit: {type, data}`
fn every(all: &Collected, fields: &mut Fields<'_>) -> Option<SourceKind> {
    let Some(period) = fields.get("every") else {
        // Asked for, so that "known here" names them.
        fields.get("http");
        fields.need("every");
        return None;
    };
    let emit = fields.need("emit").and_then(|node| emit(all, node));
    let period = values::duration(all, period);
    let (kind, data) = emit?;
    Some(SourceKind::Every { period: period?, kind, data })
}

fn emit(all: &Collected, node: &Node) -> Option<(Text, Template)> {
    let mut fields = Fields::of(all, node, "`emit`")?;
    let kind = fields.need("type").and_then(|node| template::text(all, node, AllowedRefs::EMIT));
    let said = fields.has("data");
    let data = fields.read_raw("data", |all, node| template::template(all, node, AllowedRefs::EMIT));
    fields.finish();
    let data = if said { data? } else { Template::Constant("{}".into()) };
    Some((kind?, data))
}

/// `http: METHOD /path` and `on: address`
fn http(all: &Collected, fields: &mut Fields<'_>, name: &str, listeners: &mut Listeners) -> Option<SourceKind> {
    let at = fields.key_span("http");
    let written = fields.need("http").and_then(|node| Some((values::text(all, node)?, &node.span)));
    let listener = written.and_then(|(written, span)| method_and_path(all, &written, span));
    let listen = fields.need("on").and_then(|node| listen::address(all, node));
    let tls = tls::tls(all, fields);
    let tls_at = fields.key_span("tls").or(fields.key_span("on"));
    let origins = fields.read("origins", values::origins).unwrap_or_default();
    let token = fields.read("token", values::secret);
    let ((method, path), listen, at) = (listener?, listen?, at?);
    if !listen.is_loopback() && token.is_none() {
        let message = format!("the source `{name}` on {listen} can be reached from other machines and has no token");
        let hint = "set its `token`: anyone who can reach it can send to all its clients";
        all.report(Diagnostic::new(codes::API_OPEN, at.clone(), message).hint(hint));
    }
    listeners.add(&listen, &method, &path, format!("the source `{name}`"), at);
    if let Some(tls) = &tls {
        listeners.covers.add(&listen, tls.as_ref(), format!("the source `{name}`"), tls_at.unwrap_or(at));
    }
    let tls = tls.flatten().and_then(|tls| tls.plan);
    Some(SourceKind::Http { method, path, listen, tls, origins, token })
}
