//! `limits:`, `heartbeat:` and `auth:` of a protocol, with their defaults.

use std::sync::Arc;
use std::time::Duration;

use super::codes;
use super::diagnostic::Diagnostic;
use super::fields::{Collected, Fields};
use super::node::{Node, Yaml};
use super::plan::{AuthPlan, HeartbeatPlan, LimitsPlan, TokenFrom, WhenFull};
use super::values::{self, count, duration, rate, size};

const MIB: usize = 1 << 20;
const CONNECTIONS: usize = 10_000;
const HEARTBEAT: Duration = Duration::from_secs(30);

/// The default limits of a protocol.
pub(super) fn default_limits() -> LimitsPlan {
    LimitsPlan {
        message: MIB,
        rate: None,
        user_rate: None,
        address_rate: None,
        connect_rate: None,
        connections: CONNECTIONS,
        connections_per_address: usize::MAX,
        full: WhenFull::Refuse,
        outbox: MIB,
        slow: (1013, "too slow: outbox full".into()),
        subscriptions: 100,
    }
}

/// `limits:`
pub(super) fn limits(all: &Collected, node: &Node) -> Option<LimitsPlan> {
    let default = default_limits();
    let mut fields = Fields::of(all, node, "`limits`")?;
    let connections = fields.read("connections", connections).unwrap_or_default();
    let max = connections.max.unwrap_or(default.connections);
    let plan = LimitsPlan {
        message: fields.read("message", size).unwrap_or(default.message),
        rate: fields.read("rate", rate),
        user_rate: fields.read("user_rate", rate),
        address_rate: fields.read("address_rate", rate),
        connect_rate: fields.read("connect_rate", rate),
        connections: max,
        connections_per_address: connections.per_address.unwrap_or(default.connections_per_address),
        full: connections.full.unwrap_or(default.full),
        outbox: fields.read("outbox", size).unwrap_or(default.outbox),
        slow: fields.read("slow", values::fixed_close).unwrap_or(default.slow),
        subscriptions: fields.read("subscriptions", count).unwrap_or(default.subscriptions),
    };
    fields.finish();
    Some(plan)
}

#[derive(Default)]
struct Connections {
    max: Option<usize>,
    per_address: Option<usize>,
    full: Option<WhenFull>,
}

/// A number, or `{max, full, close, per_address}`.
fn connections(all: &Collected, node: &Node) -> Option<Connections> {
    if !matches!(node.value, Yaml::Map(_)) {
        return Some(Connections { max: count(all, node), ..Connections::default() });
    }
    let mut fields = Fields::of(all, node, "`connections`")?;
    let closes_oldest = fields.read("full", |all, node| values::word(all, node, &[("refuse", false), ("close_oldest", true)]));
    let close_at = fields.key_span("close");
    let close = fields.read("close", values::fixed_close);
    let plan = Connections { max: fields.read("max", count), per_address: fields.read("per_address", count), full: None };
    if let (Some(at), false) = (close_at, closes_oldest.unwrap_or(fields.has("full"))) {
        let message = "`close` needs `full: close_oldest`: connections that are refused get 503";
        all.report(Diagnostic::new(codes::CONFLICT, at.clone(), message));
    }
    fields.finish();
    let full = closes_oldest.map(|closes| {
        let (code, reason) = close.unwrap_or_else(|| (1013, "replaced by a newer connection".into()));
        if closes { WhenFull::CloseOldest(code, reason) } else { WhenFull::Refuse }
    });
    Some(Connections { full, ..plan })
}

/// The default heartbeat of a protocol.
pub(super) const DEFAULT_HEARTBEAT: HeartbeatPlan = HeartbeatPlan { every: HEARTBEAT, timeout: HEARTBEAT };

/// `heartbeat:` a map, a duration, or `false`.
pub(super) fn heartbeat(all: &Collected, node: &Node) -> Option<Option<HeartbeatPlan>> {
    match &node.value {
        Yaml::Bool(false) => Some(None),
        Yaml::Map(_) => {
            let mut fields = Fields::of(all, node, "`heartbeat`")?;
            let every = fields.read("every", duration).unwrap_or(HEARTBEAT);
            let plan = HeartbeatPlan { every, timeout: fields.read("timeout", duration).unwrap_or(every) };
            fields.finish();
            Some(Some(plan))
        }
        _ => duration(all, node).map(|every| Some(HeartbeatPlan { every, timeout: every })),
    }
}

/// The default size from which messages are compressed: below it compression does not pay, and others chose a kilobyte too.
const COMPRESS_ABOVE: usize = 1024;

/// `compress:` a map, a size, `true` or `false`: the size in bytes from which messages are compressed.
pub(super) fn compress(all: &Collected, node: &Node) -> Option<Option<usize>> {
    match &node.value {
        Yaml::Bool(on) => Some(on.then_some(COMPRESS_ABOVE)),
        Yaml::Map(_) => {
            let mut fields = Fields::of(all, node, "`compress`")?;
            let above = fields.read("above", values::size).unwrap_or(COMPRESS_ABOVE);
            fields.read("context_takeover", no_takeover);
            fields.finish();
            Some(Some(above))
        }
        Yaml::Text(word) if matches!(&**word, "yes" | "no" | "on" | "off") => {
            all.fail(codes::VALUE, &node.span, format!("`{word}` is not a size; write `true` or `false`, or from which size on: `1KiB`"))
        }
        _ => values::size(all, node).map(Some),
    }
}

/// Only `false`: if each connection had its own context, no message could be compressed once for all.
fn no_takeover(all: &Collected, node: &Node) -> Option<()> {
    match &node.value {
        Yaml::Bool(false) => Some(()),
        Yaml::Bool(true) => all.fail(
            codes::NOT_YET,
            &node.span,
            "`context_takeover: true` is not supported: each message is compressed once for all its receivers",
        ),
        _ => all.wrong_type(node, "`false`"),
    }
}

/// `auth: { jwt: … }`. Without a secret and without keys the protocol is open, as if `auth` were absent.
pub(super) fn auth(all: &Collected, node: &Node) -> Option<Option<AuthPlan>> {
    let mut fields = Fields::of(all, node, "`auth`")?;
    let plan = fields.read("jwt", jwt);
    fields.finish();
    plan
}

fn jwt(all: &Collected, node: &Node) -> Option<Option<AuthPlan>> {
    let mut fields = Fields::of(all, node, "`jwt`")?;
    let from = fields.read("from", values::list);
    let (secret, keys) = (fields.read("secret", values::secret), fields.read("keys", keys));
    let plan = AuthPlan {
        from: match from {
            Some(words) => words.iter().filter_map(|(word, span)| token_from(all, word, span)).collect(),
            None => vec![TokenFrom::Header("authorization".into())],
        },
        audience: fields.read("audience", values::text),
        issuer: fields.read("issuer", values::text),
        secret,
        keys,
    };
    fields.finish();
    let configured = plan.secret.is_some() || plan.keys.is_some();
    Some(configured.then_some(plan))
}

fn token_from(all: &Collected, word: &str, at: &super::plan::SourceSpan) -> Option<TokenFrom> {
    match word.split_once('.') {
        Some(("query", name)) if !name.is_empty() => Some(TokenFrom::Query(name.into())),
        Some(("header", name)) if !name.is_empty() => Some(TokenFrom::Header(name.to_lowercase().into())),
        Some(("cookie", name)) if !name.is_empty() => Some(TokenFrom::Cookie(name.into())),
        _ => {
            let message = format!("`{word}` is not a place for a token");
            all.report(Diagnostic::new(codes::VALUE, at.clone(), message).hint("write `query.NAME`, `header.NAME` or `cookie.NAME`"));
            None
        }
    }
}

/// A key set as JSON text, or as the same in YAML.
fn keys(all: &Collected, node: &Node) -> Option<Arc<str>> {
    // Most are public, but a key set may have a shared secret too.
    all.secret(node);
    let parsed = match &node.value {
        Yaml::Text(text) => serde_json::from_str(text).map_err(|e| e.to_string()),
        _ => node.to_json().map_err(|_| "JSON cannot represent this value".into()),
    };
    let set: serde_json::Value = match parsed {
        Ok(set) => set,
        Err(why) => return all.fail(codes::KEYS, &node.span, format!("not a valid JSON Web Key Set: {why}")),
    };
    let is_key = |key: &serde_json::Value| key.get("kty").is_some_and(serde_json::Value::is_string);
    match set.get("keys").and_then(serde_json::Value::as_array) {
        Some(keys) if !keys.is_empty() && keys.iter().all(is_key) => Some(set.to_string().into()),
        _ => all.fail(codes::KEYS, &node.span, "not a valid JSON Web Key Set: it must be a map with a list `keys`, each with a `kty`"),
    }
}
