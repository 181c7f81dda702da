//! `conn`: the connection as a script sees it. Reads are copies; writes of `state`, `user` and `session` are kept until the call
//! has succeeded.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use rhai::{Dynamic, Engine, EvalAltResult, ImmutableString, Map};

use super::call::ScriptEffect;
use super::engine::OUTPUT_BYTES_MAX;
use super::error::a_kind;
use super::host::{failure, optional_text};
use super::{convert, current};
use crate::model::view::Pairs;
use crate::model::{ConnView, Json, SessionId, UserId, clock, close};

type Result<T> = std::result::Result<T, Box<EvalAltResult>>;

/// A connection during one call.
pub(super) struct ConnCell {
    view: Arc<ConnView>,
    /// The state, once it was looked at.
    state: RefCell<Option<Dynamic>>,
    changes: RefCell<Changes>,
}

/// What a script set.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) state: Option<Json>,
    pub(super) user: Option<Option<UserId>>,
    pub(super) session: Option<Option<SessionId>>,
}

impl ConnCell {
    pub(super) fn new(view: Arc<ConnView>) -> Self {
        Self { view, state: RefCell::new(None), changes: RefCell::default() }
    }

    pub(super) fn take_changes(&self) -> Changes {
        self.changes.take()
    }

    fn state(&self) -> Result<Dynamic> {
        if let Some(state) = &*self.state.borrow() {
            return Ok(state.clone());
        }
        let state = convert::to_dynamic(&self.view.state).map_err(|why| failure(format!("conn.state is {why}")))?;
        *self.state.borrow_mut() = Some(state.clone());
        Ok(state)
    }

    fn set_state(&self, state: Dynamic) -> Result<()> {
        if !state.is_map() {
            return Err(failure("conn.state is always an object"));
        }
        let json = convert::to_json(&state, OUTPUT_BYTES_MAX).map_err(|why| failure(format!("conn.state: {why}")))?;
        // The engine also sets after methods that only look, like `conn.state.keys()`.
        let before = convert::to_json(&self.state()?, OUTPUT_BYTES_MAX).map_err(failure)?;
        if json != before {
            current::may_act("conn.state")?;
            *self.state.borrow_mut() = Some(state);
            self.changes.borrow_mut().state = Some(json);
        }
        Ok(())
    }
}

/// The script's handle.
#[derive(Clone)]
pub(super) struct Conn(pub(super) Rc<ConnCell>);

pub(super) fn register(engine: &mut Engine) {
    engine.register_type_with_name::<Conn>("connection");
    engine.register_fn("to_string", |conn: &mut Conn| conn.0.view.id.to_string());
    engine.register_fn("to_debug", |conn: &mut Conn| conn.0.view.id.to_string());
    engine.register_get("id", |conn: &mut Conn| text(&conn.0.view.id));
    engine.register_get("protocol", |conn: &mut Conn| text(&conn.0.view.protocol));
    engine.register_get("ip", |conn: &mut Conn| text(&conn.0.view.ip));
    engine.register_get("opened", |conn: &mut Conn| ImmutableString::from(clock::iso(conn.0.view.opened_ms)));
    engine.register_get("query", |conn: &mut Conn| pairs(&conn.0.view.request.query));
    engine.register_get("path", |conn: &mut Conn| pairs(&conn.0.view.request.path));
    engine.register_get("header", |conn: &mut Conn| pairs(&conn.0.view.request.header));
    engine.register_get("cookie", |conn: &mut Conn| pairs(&conn.0.view.request.cookie));

    engine.register_get("state", |conn: &mut Conn| conn.0.state());
    engine.register_set("state", |conn: &mut Conn, state: Dynamic| conn.0.set_state(state));
    engine.register_get("user", |conn: &mut Conn| {
        let changes = conn.0.changes.borrow();
        optional(changes.user.as_ref().unwrap_or(&conn.0.view.user).as_deref())
    });
    engine.register_set("user", |conn: &mut Conn, user: Dynamic| -> Result<()> {
        current::may_act("conn.user")?;
        conn.0.changes.borrow_mut().user = Some(identity("conn.user", &user)?.map(UserId::from));
        Ok(())
    });
    engine.register_get("session", |conn: &mut Conn| {
        let changes = conn.0.changes.borrow();
        optional(changes.session.as_ref().unwrap_or(&conn.0.view.session).as_deref())
    });
    engine.register_set("session", |conn: &mut Conn, session: Dynamic| -> Result<()> {
        current::may_act("conn.session")?;
        conn.0.changes.borrow_mut().session = Some(identity("conn.session", &session)?.map(SessionId::from));
        Ok(())
    });

    for name in ["send", "reply"] {
        engine.register_fn(name, move |_: &mut Conn, value: Dynamic| -> Result<()> {
            current::with(|call| {
                let json = call.json(name, &value)?;
                call.push(name, ScriptEffect::Reply(json))
            })
        });
    }
    engine.register_fn("join", |_: &mut Conn, channel: &str| join(channel, &Map::new()));
    engine.register_fn("join", |_: &mut Conn, channel: &str, options: Map| join(channel, &options));
    engine.register_fn("leave", |_: &mut Conn, channel: &str| -> Result<()> {
        current::with(|call| call.push("leave", ScriptEffect::Leave { channel: channel.to_owned() }))
    });
    engine.register_fn("leave_all", |_: &mut Conn, glob: &str| -> Result<()> {
        current::with(|call| call.push("leave_all", ScriptEffect::LeaveAll { glob: glob.to_owned() }))
    });
    engine.register_fn("close", |_: &mut Conn, code: i64, reason: &str| close(code, reason));
    engine.register_fn("close", |_: &mut Conn, code: i64| close(code, ""));
}

fn join(channel: &str, options: &Map) -> Result<()> {
    only("join", options, &["key", "meta"])?;
    let key = optional_text("join", options, "key")?;
    current::with(|call| {
        let meta = options.get("meta").filter(|meta| !meta.is_unit()).map(|meta| call.json("join", meta)).transpose()?;
        call.push("join", ScriptEffect::Join { channel: channel.to_owned(), key, meta })
    })
}

fn close(code: i64, reason: &str) -> Result<()> {
    let code = u16::try_from(code).ok().filter(|code| close::may_send(*code));
    let code = code.ok_or_else(|| failure("close: the code must be one a server may send, like 1000, 1008 or 4000 to 4999"))?;
    current::with(|call| call.push("close", ScriptEffect::Close { code, reason: close::cut(reason).to_owned() }))
}

/// Fails where an object has a member nobody reads.
pub(super) fn only(what: &str, map: &Map, known: &[&str]) -> Result<()> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(failure(format!("{what}: unknown key `{key}`; known here: {}", known.join(", ")))),
        None => Ok(()),
    }
}

fn identity(what: &str, value: &Dynamic) -> Result<Option<Arc<str>>> {
    if value.is_unit() {
        return Ok(None);
    }
    let text = value.as_immutable_string_ref().map_err(|kind| failure(format!("{what} must be a text or (), not {}", a_kind(kind))))?;
    Ok(Some(text.as_str().into()))
}

fn text(value: &str) -> ImmutableString {
    value.into()
}

fn optional(value: Option<&str>) -> Dynamic {
    value.map_or(Dynamic::UNIT, |value| text(value).into())
}

/// The last of two equal names counts.
fn pairs(pairs: &Pairs) -> Map {
    pairs.iter().map(|(name, value)| (name.into(), value.into())).collect()
}
