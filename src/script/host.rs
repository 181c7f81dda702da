//! What scripts may call besides the language's own library: events, members and connections, and the modules of
//! [`super::library`]. Everything here only records or reads; nothing waits and nothing reaches outside.

use std::sync::Arc;

use rhai::{Array, Dynamic, Engine, EvalAltResult, ImmutableString, Map, Position};
use uuid::Uuid;

use super::call::{ScriptEffect, SendTarget};
use super::conn::only;
use super::engine::ITEMS_MAX;
use super::error::a_kind;
use super::wanted::{Part, Wanted};
use super::{budget, conn, convert, current, library};
use crate::model::event::epoch_text;
use crate::model::{Event, Json, chance, clock};

type Result<T> = std::result::Result<T, Box<EvalAltResult>>;

/// Functions that read state that other decisions change.
pub(super) const ASKING: [&str; 4] = ["members", "connections", "history", "statistics"];

/// The host's functions and their forms. A plugin cannot define functions of these names with as many parameters. Methods of
/// `conn` count `conn` as their first.
pub(super) const FUNCTIONS: &[library::Form] = &[
    ("send", 2, "conn.send(value)"),
    ("reply", 2, "conn.reply(value)"),
    ("join", 2, "conn.join(channel)"),
    ("join", 3, "conn.join(channel, #{ key, meta })"),
    ("leave", 2, "conn.leave(channel)"),
    ("leave_all", 2, "conn.leave_all(glob)"),
    ("close", 2, "conn.close(code)"),
    ("close", 3, "conn.close(code, reason)"),
    ("publish", 2, "publish(channel, #{ type, data })"),
    ("publish", 3, "publish(channel, #{ type, data }, #{ except })"),
    ("send_to", 2, "send_to(id or #{ user } or #{ session }, #{ type, data })"),
    ("members", 1, "members(channel)"),
    ("history", 2, "history(channel, count)"),
    ("connections", 1, "connections(protocol)"),
    ("statistics", 1, "statistics(protocol)"),
    ("pick", 2, "pick(object or list, #{ new: \"old\" })"),
    ("has", 2, "map.has(name)"),
    ("uuid", 0, "uuid()"),
    ("now", 0, "now()"),
    ("now_ms", 0, "now_ms()"),
];

/// Why a host function refused. Kept apart from what scripts throw themselves.
#[derive(Clone, Debug)]
pub(super) struct HostError(pub(super) String);

/// An error of a host function.
pub(super) fn failure(why: impl Into<String>) -> Box<EvalAltResult> {
    EvalAltResult::ErrorRuntime(Dynamic::from(HostError(why.into())), Position::NONE).into()
}

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<HostError>("error");
    for name in ["to_string", "to_debug"] {
        engine.register_fn(name, |error: &mut HostError| error.0.clone());
    }
    engine.register_get("message", |error: &mut HostError| error.0.clone());
    engine.on_print(|text| library::log(tracing::Level::INFO, text).unwrap_or(()));
    engine.on_debug(|text, _, _| library::log(tracing::Level::DEBUG, text).unwrap_or(()));

    conn::register(engine);
    library::register(engine);

    engine.register_fn("publish", |channel: &str, event: Map| publish(channel, &event, &Map::new()));
    engine.register_fn("publish", |channel: &str, event: Map, options: Map| publish(channel, &event, &options));
    engine.register_fn("send_to", |client: &str, event: Map| send_to(SendTarget::Client(client.to_owned()), &event));
    engine.register_fn("send_to", |target: Map, event: Map| -> Result<()> {
        only("send_to", &target, &["user", "session"])?;
        let target = match (optional_text("send_to", &target, "user")?, optional_text("send_to", &target, "session")?) {
            (Some(user), None) => SendTarget::User(user),
            (None, Some(session)) => SendTarget::Session(session),
            _ => return Err(failure("send_to: the target must be an id, #{ user: … } or #{ session: … }")),
        };
        send_to(target, &event)
    });

    engine.register_fn("members", |channel: &str| current::ask("members", |world, _| world.members(channel), |items| list(items)));
    engine.register_fn("connections", |protocol: &str| {
        current::ask("connections", |world, _| world.connections(protocol), |items| list(items))
    });
    engine.register_fn("history", |channel: &str, count: i64| -> Result<Array> {
        let count = usize::try_from(count).unwrap_or(0).min(1000);
        let read = |events: &Vec<Arc<Event>>| {
            events.iter().map(|event| Ok(Dynamic::from_map(event_map(event, &Wanted::All).map_err(failure)?))).collect()
        };
        current::ask("history", |world, _| world.history(channel, count), read)
    });
    engine.register_fn("statistics", |protocol: &str| -> Result<Dynamic> {
        let read = |statistics: &Option<Json>| match statistics {
            Some(statistics) => convert::to_dynamic(statistics).map_err(failure),
            None => Err(failure(format!("statistics: there is no protocol `{protocol}`"))),
        };
        current::ask("statistics", |world, now| world.statistics(protocol, now), read)
    });

    engine.register_fn("pick", |list: Array, names: Map| -> Result<Array> {
        budget::host_work(|| list.into_iter().map(|item| Ok(Dynamic::from_map(pick(&item, &names)?))).collect())
    });
    engine.register_fn("pick", |map: Map, names: Map| pick(&Dynamic::from_map(map), &names));
    engine.register_fn("has", |map: &mut Map, name: &str| map.contains_key(name));
    engine.register_fn("uuid", || -> Result<String> { current::with(|call| Ok(chance::event_id(call.now.wall_ms).to_string())) });
    engine.register_fn("now", || current::with(|call| Ok(call.now.iso())));
    engine.register_fn("now_ms", || current::with(|call| Ok(call.now.wall_ms)));
}

fn publish(channel: &str, event: &Map, options: &Map) -> Result<()> {
    only("publish", event, &["type", "data", "metadata"])?;
    only("publish", options, &["except"])?;
    let except = optional_text("publish", options, "except")?;
    let except_sender = except.as_deref() == Some("sender");
    let kind = kind("publish", event)?;
    current::with(|call| {
        let data = call.json("publish: data", event.get("data").unwrap_or(&Dynamic::UNIT))?;
        let metadata = event.get("metadata").filter(|value| !value.is_unit());
        let metadata = metadata.map(|value| call.json("publish: metadata", value)).transpose()?;
        let except = except.filter(|_| !except_sender);
        call.push("publish", ScriptEffect::Publish { channel: channel.to_owned(), kind, data, metadata, except_sender, except })
    })
}

fn send_to(target: SendTarget, event: &Map) -> Result<()> {
    only("send_to", event, &["type", "data"])?;
    let kind = kind("send_to", event)?;
    current::with(|call| {
        let data = call.json("send_to: data", event.get("data").unwrap_or(&Dynamic::UNIT))?;
        call.push("send_to", ScriptEffect::SendTo { target, kind, data })
    })
}

fn kind(what: &str, event: &Map) -> Result<String> {
    optional_text(what, event, "type")?.ok_or_else(|| failure(format!("{what}: the event has no `type`")))
}

/// A member that is a text, or is not there.
pub(super) fn optional_text(what: &str, map: &Map, name: &str) -> Result<Option<String>> {
    match map.get(name) {
        None => Ok(None),
        Some(value) if value.is_unit() => Ok(None),
        Some(value) => match value.as_immutable_string_ref() {
            Ok(text) => Ok(Some(text.to_string())),
            Err(kind) => Err(failure(format!("{what}: `{name}` must be a text, not {}", a_kind(kind)))),
        },
    }
}

/// A list from the host. It is cut at the engine's bound, and fails if it does not fit into the call's memory.
fn list(items: &[Json]) -> Result<Array> {
    let mut out = Array::new();
    let mut bytes = 0;
    for item in items.iter().take(ITEMS_MAX / 2) {
        bytes += item.as_str().len();
        // As values JSON takes several times its text.
        if bytes.saturating_mul(8) > budget::bytes_left() {
            return Err(failure("the list is too large for a script"));
        }
        out.push(convert::to_dynamic(item).map_err(failure)?);
    }
    Ok(out)
}

/// Members of an object under new names. Missing members stay missing.
fn pick(item: &Dynamic, names: &Map) -> Result<Map> {
    let item = item.as_map_ref().map_err(|kind| failure(format!("pick: takes objects, not {}", a_kind(kind))))?;
    let mut out = Map::new();
    for (new, old) in names {
        let old = old.as_immutable_string_ref().map_err(|_| failure(format!("pick: `{new}` must be the name of a member")))?;
        if let Some(value) = item.get(old.as_str()) {
            out.insert(new.clone(), value.clone());
        }
    }
    Ok(out)
}

/// An event as scripts see it: the members that the script uses. Members that the event does not have are missing.
pub(super) fn event_map(event: &Event, wanted: &Wanted) -> std::result::Result<Map, String> {
    // A member that is changed is read as a whole, and one that is only replaced need not exist.
    let part = |name: &str| match wanted {
        Wanted::All | Wanted::Members { returned: true, .. } => Some(&Part::Whole),
        Wanted::Members { members, .. } => members.iter().find(|member| member.name == name)?.read.as_ref(),
    };
    let new = &event.new;
    let mut map = Map::new();
    let text = |text: &str| Dynamic::from(ImmutableString::from(text));
    let mut set = |name: &str, value: &dyn Fn() -> Dynamic| {
        if part(name).is_some() {
            map.insert(name.into(), value());
        }
    };
    set("id", &|| text(new.id.hyphenated().encode_lower(&mut Uuid::encode_buffer())));
    set("type", &|| text(&new.kind));
    set("time", &|| text(&clock::iso(new.time_ms)));
    set("time_ms", &|| new.time_ms.into());
    set("source", &|| text(&new.origin.source));
    if let Some(channel) = &event.channel {
        set("channel", &|| text(channel.as_str()));
        set("offset", &|| i64::try_from(event.offset).unwrap_or(i64::MAX).into());
        set("epoch", &|| text(&epoch_text(event.epoch)));
    }
    for (name, value) in new.origin.who() {
        if let Some(value) = value {
            set(if name == "client" { "from" } else { name }, &|| text(value));
        }
    }
    for (name, value) in [("data", Some(&new.data)), ("metadata", new.metadata.as_ref())] {
        if let Some((value, part)) = value.zip(part(name)) {
            map.insert(name.into(), super::part::of(value, part)?);
        }
    }
    Ok(map)
}
