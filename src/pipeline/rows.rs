//! Runs a row, in the order the language promises: `when`, `limit`, `schema`, `validate`, `transform`, `call`, `set`, `leave`,
//! `join`, `to`, `reply`, `close`. Effects are collected; a fault throws them away.

mod subscriptions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::plan::{FnRef, Publish, Reply, Row, SetTarget, Target};
use crate::hub::Connection;
use crate::limits::LimitVerdict;
use crate::model::event::Origin;
use crate::model::json::Index;
use crate::model::name::{PRINCIPAL_BYTES_MAX, is_principal};
use crate::model::template::{Reference, Root, Template, Text};
use crate::model::view::{CachedOrigin, ConnView, RequestView};
use crate::model::{Budget, ChannelName, Close, Code, Fault, Json, Now, Schema, SessionId, UserId, json};
use crate::pipeline::Snapshot;
use crate::pipeline::deliver;
use crate::pipeline::effect::{ConnectionEffect, Decision};
use crate::pipeline::env::Env;
use crate::pipeline::publish::{self, Destination, Proposal};
use crate::pipeline::reads::Recorder;
use crate::pipeline::scope::{Bindings, Message, Recovery, arguments};
use crate::protocol;
use crate::runtime::Reads;
use crate::script::{Call, Returned, ScriptEffect, ScriptError, SendTarget, World};

/// The most messages a transform may make of one.
const MESSAGES_MAX: usize = 1000;

/// How long a sender that far exceeds the limit of a row should wait.
const FLOODING_RETRY: Duration = Duration::from_secs(1);

/// One decision in the making.
pub struct Decider<'a> {
    pub(super) snapshot: &'a Snapshot,
    pub(super) now: Now,
    /// Nothing of it may be counted or logged.
    pub(super) trial: bool,
    connection: Option<&'a Connection>,
    /// The connection as the rows so far leave it.
    view: Arc<ConnView>,
    /// Its subscriptions after the rows so far; read when first needed.
    subscriptions: Option<Vec<(ChannelName, Arc<str>)>>,
    /// `None`: the origin of the view.
    origin: Option<Arc<Origin>>,
    /// The result of a join with `recover`.
    recovery: Option<Recovery>,
    /// Notes what scripts read, once a row runs whose scripts read something.
    recorder: Option<(Arc<Recorder>, Arc<dyn World>)>,
    decision: Decision,
}

impl<'a> Decider<'a> {
    /// A decision about a connection.
    pub(super) fn for_connection(snapshot: &'a Snapshot, connection: &'a Connection, env: &Env<'_>) -> Self {
        Self::about(snapshot, Some(connection), connection.view(), None, env)
    }

    /// A decision about an input without a connection.
    pub(super) fn new(snapshot: &'a Snapshot, origin: Arc<Origin>, request: Option<&RequestView>, env: &Env<'_>) -> Self {
        let view = ConnView {
            id: "".into(),
            protocol: origin.source.clone(),
            user: None,
            session: None,
            ip: "".into(),
            opened_ms: env.now.wall_ms,
            state: Json::empty_object(),
            request: Arc::new(request.cloned().unwrap_or_default()),
            origin: CachedOrigin::default(),
        };
        Self::about(snapshot, None, Arc::new(view), Some(origin), env)
    }

    fn about(
        snapshot: &'a Snapshot,
        connection: Option<&'a Connection>,
        view: Arc<ConnView>,
        origin: Option<Arc<Origin>>,
        env: &Env<'_>,
    ) -> Self {
        Self {
            snapshot,
            now: env.now,
            trial: env.trial,
            connection,
            view,
            subscriptions: None,
            origin,
            recovery: None,
            recorder: None,
            decision: Decision::default(),
        }
    }

    /// The origin of what is published: the connection as it was before this decision.
    fn origin(&self) -> Arc<Origin> {
        self.origin.as_ref().unwrap_or_else(|| self.view.origin()).clone()
    }

    /// The connection as it is now, by reference.
    pub(super) fn seen(&self) -> &Arc<ConnView> {
        &self.view
    }

    /// The connection as it is now.
    pub(super) fn view(&self) -> Arc<ConnView> {
        self.view.clone()
    }

    /// The decision.
    pub(super) fn finish(mut self) -> Decision {
        if let Some((recorder, _)) = &self.recorder {
            self.decision.reads.extend(recorder.take());
            self.join_where_it_was_read();
        }
        self.decision
    }

    /// Nothing is decided now: see [`Decision::waits`].
    pub(super) fn wait(&mut self) {
        self.decision.waits = true;
    }

    /// From now on notes what scripts read, if they read anything.
    pub(super) fn record(&mut self, reads: Reads) {
        if reads.world {
            self.recorder();
        }
    }

    pub(super) fn recorder(&mut self) -> &Recorder {
        let Snapshot { runtime, hub, world, .. } = self.snapshot;
        let (recorder, _) = self.recorder.get_or_insert_with(|| {
            let recorder = Recorder::new(runtime.clone(), hub.clone(), world.clone(), self.now);
            (recorder.clone(), recorder)
        });
        recorder
    }

    /// The world, as scripts may ask about it.
    pub(super) fn world(&self) -> &Arc<dyn World> {
        self.recorder.as_ref().map_or(&self.snapshot.world, |(_, world)| world)
    }

    /// Runs the first row whose `when` holds. If none holds, nothing happens.
    pub(super) fn rows(&mut self, rows: &[Row], message: Option<&Message<'_>>, env: &mut Env<'_>) -> Result<(), Fault> {
        let runtime = &self.snapshot.runtime;
        if env.pending && rows.iter().any(|row| runtime.reads(row.id).any()) {
            self.wait();
            return Ok(());
        }
        for row in rows {
            self.record(runtime.reads(row.id));
            let holds = match &row.when {
                None => true,
                Some(function) => {
                    let call = Call {
                        now: self.now,
                        conn: Some(&self.view),
                        arguments: arguments(message),
                        world: self.world(),
                        trial: self.trial,
                    };
                    self.snapshot.runtime.scripts.test(function, call).map_err(|error| {
                        self.decision.row = Some(row.id);
                        script_fault(error)
                    })?
                }
            };
            if holds {
                self.decision.row = Some(row.id);
                return self.row(row, message, env);
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &Row, message: Option<&Message<'_>>, env: &mut Env<'_>) -> Result<(), Fault> {
        if row.limit.is_some() {
            let retry_after = match env.limits.row(row, self.now) {
                LimitVerdict::Pass => None,
                LimitVerdict::Over { retry_after } => Some(retry_after),
                LimitVerdict::Flooding => Some(FLOODING_RETRY),
            };
            if retry_after.is_some() {
                let mut fault = Fault::new(Code::RateLimited);
                fault.retry_after = retry_after;
                return Err(fault);
            }
        }
        if let Some((code, text)) = &row.fail {
            let message = self.text(text, message, None).unwrap_or_else(|| code.default_message().into());
            return Err(Fault::with(*code, message));
        }
        if let (Some(schema), Some(message)) = (&row.schema, message) {
            check_schema(schema, &message.json)?;
        }
        if let Some(function) = &row.validate {
            let call =
                Call { now: self.now, conn: Some(&self.view), arguments: arguments(message), world: self.world(), trial: self.trial };
            if !self.snapshot.runtime.scripts.test(function, call).map_err(script_fault)? {
                return Err(Fault::new(Code::Rejected));
            }
        }
        let Some(function) = &row.transform else { return self.effects(row, message) };
        let (value, mut index) = self.called(function, message)?;
        let Some(value) = value else { return Ok(()) };
        let made: Vec<&str> = if value.as_str().starts_with('[') { json::items(value.as_str()).collect() } else { vec![value.as_str()] };
        if made.len() > MESSAGES_MAX {
            return Err(Fault::new(Code::ScriptFailed).detail(format!("{}: a transform made more than {MESSAGES_MAX} messages", row.at)));
        }
        for text in made {
            let json = value.slice(text);
            let next = match message {
                Some(message) => message.transformed(json, index.take()),
                None => Message::made(json, ""),
            };
            self.effects(row, Some(&next))?;
        }
        Ok(())
    }

    /// Everything of a row that has an effect, for one message.
    fn effects(&mut self, row: &Row, message: Option<&Message<'_>>) -> Result<(), Fault> {
        let result = match &row.call {
            Some(function) => Some(self.call(function, message)?.unwrap_or_else(Json::null)),
            None => None,
        };
        let result = result.as_ref();
        self.set(row, message, result)?;
        for name in &row.leave {
            let is_glob = name.is_written('*');
            if let Some(name) = self.text(name, message, result) {
                if is_glob { self.leave_all(&name) } else { self.leave(&name)? }
            }
        }
        for join in &row.join {
            self.join_row(join, message, result)?;
        }
        for target in &row.to {
            self.publish_row(target, message, result)?;
        }
        match &row.reply {
            None => {}
            Some(Reply::Template(template)) => {
                if let Some(value) = template.json(&self.bindings(message, result)) {
                    self.reply(value);
                }
            }
            Some(Reply::Call(function)) => {
                if let Some(value) = self.call(function, message)? {
                    self.reply(value);
                }
            }
        }
        self.decision.status = row.status.or(self.decision.status);
        if let Some((code, reason)) = &row.close {
            let reason = self.text(reason, message, result).unwrap_or_default();
            self.decision.effects.push(ConnectionEffect::Close(Close::Asked(*code, reason.into())).into());
        }
        Ok(())
    }

    fn bindings<'s>(&'s self, message: Option<&'s Message<'s>>, result: Option<&'s Json>) -> Bindings<'s> {
        Bindings { message, view: Some(&self.view), result, recovery: self.recovery.as_ref(), ..Bindings::at(self.now) }
    }

    fn text(&self, text: &Text, message: Option<&Message<'_>>, result: Option<&Json>) -> Option<String> {
        text.render(&self.bindings(message, result)).map(std::borrow::Cow::into_owned)
    }

    fn reply(&mut self, value: Json) {
        if self.connection.is_some() {
            self.decision.effects.push(ConnectionEffect::Send(protocol::Frame::Text(value.into_shared())).into());
        } else {
            self.decision.reply = Some(value);
        }
    }

    fn change_view(&mut self, view: ConnView) {
        self.origin = Some(self.origin());
        self.view = Arc::new(view);
        if let Some(connection) = self.connection {
            let (runtime, failed) = (&self.snapshot.runtime, &mut self.decision.warning);
            let batches = deliver::batches(runtime, connection.protocol, &self.view, self.now, failed);
            // Only the last change counts for other connections; the following rows see each change.
            self.decision.effects.push(ConnectionEffect::View { view: self.view.clone(), batches }.into());
        }
    }

    fn set(&mut self, row: &Row, message: Option<&Message<'_>>, result: Option<&Json>) -> Result<(), Fault> {
        if row.set.is_empty() {
            return Ok(());
        }
        let mut view = (*self.view).clone();
        let mut state: Option<BTreeMap<String, Box<serde_json::value::RawValue>>> = None;
        for (target, template) in &row.set {
            let value = template.render(&self.bindings(message, result));
            match target {
                SetTarget::User => view.user = who("user", value.as_deref())?.map(UserId::from),
                SetTarget::Session => view.session = who("session", value.as_deref())?.map(SessionId::from),
                SetTarget::State(name) => {
                    let state = state.get_or_insert_with(|| serde_json::from_str(view.state.as_str()).unwrap_or_default());
                    match value.and_then(|value| serde_json::value::RawValue::from_string(value).ok()) {
                        Some(value) => state.insert(name.to_string(), value),
                        None => state.remove(&**name),
                    };
                }
            }
        }
        if let Some(state) = state {
            view.state = Json::of(&state);
        }
        named(&view)?;
        self.change_view(view);
        Ok(())
    }

    fn publish_row(&mut self, publish: &Publish, message: Option<&Message<'_>>, result: Option<&Json>) -> Result<(), Fault> {
        let bindings = self.bindings(message, result);
        let (Target::Channel(text) | Target::Client(text) | Target::User(text) | Target::Session(text)) = &publish.target;
        let Some(name) = text.render(&bindings) else {
            return Err(Fault::with(Code::Invalid, "the message does not say where to publish it"));
        };
        let data = match &publish.data {
            Some(Template::Value(Reference { root: Root::Data, path })) if path.is_empty() => message.and_then(Message::data).cloned(),
            Some(Template::Value(Reference { root: Root::Message, path })) => {
                message.and_then(|message| message.get(path).map(|part| message.kept(part)))
            }
            Some(template) => template.json(&bindings),
            None => message.and_then(Message::data).cloned(),
        };
        let data = data.unwrap_or_else(Json::null);
        let kind = match &publish.kind {
            Some(text) => text.render(&bindings).unwrap_or_default().into_owned().into(),
            None => message.map(|message| message.kind_beside(&data)).unwrap_or_default(),
        };
        let metadata = publish.metadata.as_ref().and_then(|m| m.json(&bindings));
        let except = publish.except_sender.then(|| self.connection.map(|c| c.key)).flatten();
        let proposal = Proposal { kind, data, metadata, origin: self.origin(), id: None, except };
        let to = match &publish.target {
            Target::Channel(_) => {
                let effect = publish::to_channel(&self.snapshot.runtime.channels, &name, proposal, self.now)?;
                self.decision.effects.push(effect.into());
                return Ok(());
            }
            Target::Client(_) => Destination::Client(name.into_owned()),
            Target::User(_) => Destination::User(name.into_owned()),
            Target::Session(_) => Destination::Session(name.into_owned()),
        };
        self.publish(&to, proposal)
    }

    fn publish(&mut self, to: &Destination, proposal: Proposal) -> Result<(), Fault> {
        if let Destination::Client(id) = to
            && self.snapshot.hub.connection(id).is_none()
        {
            return Err(Fault::with(Code::NotFound, format!("no connection has the id {id}")));
        }
        let effect = publish::prepare(&self.snapshot.runtime.channels, to, proposal, self.now)?;
        self.decision.effects.push(effect.into());
        Ok(())
    }

    fn call(&mut self, function: &FnRef, message: Option<&Message<'_>>) -> Result<Option<Json>, Fault> {
        Ok(self.called(function, message)?.0)
    }

    /// Calls a function and takes over its effects. Returns its value, with the value's index if it is known.
    fn called(&mut self, function: &FnRef, message: Option<&Message<'_>>) -> Result<(Option<Json>, Option<Index>), Fault> {
        let call = Call { now: self.now, conn: Some(&self.view), arguments: arguments(message), world: self.world(), trial: self.trial };
        let returned = self.snapshot.runtime.scripts.call(function, call).map_err(script_fault)?;
        let Returned { value, index, effects, state, user, session } = returned;
        if state.is_some() || user.is_some() || session.is_some() {
            let mut next = (*self.view).clone();
            next.state = state.unwrap_or(next.state);
            next.user = user.unwrap_or(next.user);
            next.session = session.unwrap_or(next.session);
            named(&next)?;
            self.change_view(next);
        }
        for effect in effects {
            self.script_effect(effect)?;
        }
        Ok((value, index))
    }

    fn script_effect(&mut self, effect: ScriptEffect) -> Result<(), Fault> {
        let sender = self.connection.map(|c| c.key);
        match effect {
            ScriptEffect::Reply(value) => self.reply(value),
            ScriptEffect::Join { channel, key, meta } => self.join(&channel, key.as_deref().unwrap_or(""), meta, None)?,
            ScriptEffect::Leave { channel } => self.leave(&channel)?,
            ScriptEffect::LeaveAll { glob } => self.leave_all(&glob),
            ScriptEffect::Close { code, reason } => {
                self.decision.effects.push(ConnectionEffect::Close(Close::Asked(code, reason.into())).into());
            }
            ScriptEffect::Publish { channel, kind, data, metadata, except_sender, except } => {
                let other = except.and_then(|id| self.snapshot.hub.connection(&id)).map(|c| c.key);
                let except = if except_sender { sender } else { other };
                let proposal = Proposal { kind: kind.into(), data, metadata, origin: self.origin(), id: None, except };
                self.publish(&Destination::Channel(channel), proposal)?;
            }
            ScriptEffect::SendTo { target, kind, data } => {
                let to = match target {
                    SendTarget::Client(id) => Destination::Client(id),
                    SendTarget::User(user) => Destination::User(user),
                    SendTarget::Session(session) => Destination::Session(session),
                };
                let proposal = Proposal { kind: kind.into(), data, metadata: None, origin: self.origin(), id: None, except: None };
                self.publish(&to, proposal)?;
            }
        }
        Ok(())
    }
}

/// The user or session that a value names: none where it is missing or null.
fn who(what: &str, value: Option<&str>) -> Result<Option<Arc<str>>, Fault> {
    let Some(value) = value.filter(|value| *value != "null") else { return Ok(None) };
    let text = json::as_text(value).ok_or_else(|| Fault::with(Code::Invalid, format!("the {what} must be a text")))?;
    Ok((!text.is_empty()).then(|| Arc::from(&*text)))
}

/// Checks that the names of a connection's user and session are valid.
fn named(view: &ConnView) -> Result<(), Fault> {
    for (what, who) in [("user", view.user.as_deref()), ("session", view.session.as_deref())] {
        if who.is_some_and(|who| !is_principal(who)) {
            return Err(Fault::with(
                Code::Invalid,
                format!("not a valid {what} name: at most {PRINCIPAL_BYTES_MAX} bytes, no control characters"),
            ));
        }
    }
    Ok(())
}

/// Checks a message against a row's or protocol's schema.
pub(super) fn check_schema(schema: &Schema, json: &Json) -> Result<(), Fault> {
    schema.check(json).map_err(|flaws| {
        let mut fault = Fault::with(Code::Invalid, publish::first_flaw(&flaws));
        fault.flaws = flaws;
        fault
    })
}

/// What a script's error means for the message it was called for.
pub(super) fn script_fault(error: ScriptError) -> Fault {
    match error {
        ScriptError::Thrown { message, data, code, .. } => {
            let known = code.as_deref().and_then(|code| Code::ALL.into_iter().find(|c| c.as_str() == code));
            let mut fault = Fault::with(known.unwrap_or(Code::Rejected), message);
            fault.label = code;
            fault.data = data;
            fault
        }
        ScriptError::NotForScripts(why) => Fault::with(Code::Invalid, why),
        ScriptError::Tripped { function, why } => {
            let mut fault = Fault::new(Code::ScriptFailed).detail(why);
            fault.budget = Some(Budget::Exceeded { plugin: function.plugin, function: function.name });
            fault
        }
        ScriptError::Spent { retry_after } => {
            let mut fault = Fault::new(Code::RateLimited).detail(error.to_string());
            fault.retry_after = Some(retry_after);
            fault.budget = Some(Budget::Spent);
            fault
        }
        ScriptError::Failed(why) | ScriptError::OutOfService(why) => Fault::new(Code::ScriptFailed).detail(why),
    }
}
