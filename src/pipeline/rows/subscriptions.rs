//! `leave`, `join` and `recover`: what a row or a script changes about a connection's subscriptions.

use std::sync::Arc;

use super::Decider;
use crate::config::plan::{ChannelPlan, Join, RecoverPlan};
use crate::hub::{Connection, Recover};
use crate::model::event::Epoch;
use crate::model::pattern::Glob;
use crate::model::view::SubView;
use crate::model::{ChannelName, Code, Fault, Json, Position, json};
use crate::pipeline::effect::{ConnectionEffect, Decision, Effect};
use crate::pipeline::publish;
use crate::pipeline::reads::Read;
use crate::pipeline::scope::{Message, Recovery};

/// The position that a client sends.
#[derive(Clone, Copy)]
pub(super) struct Since {
    /// `None`: it wants no past events.
    offset: Option<u64>,
    /// `None`: the current stream.
    epoch: Option<Epoch>,
}

impl Decider<'_> {
    /// A subscription to a channel whose events were read begins after them, so that events in between are neither missed nor
    /// given twice.
    pub(super) fn join_where_it_was_read(&mut self) {
        let Decision { effects, reads, .. } = &mut self.decision;
        for effect in effects {
            let Effect::Connection(ConnectionEffect::Join { view, recover: recover @ None, .. }) = effect else { continue };
            *recover = reads.iter().find_map(|read| match read {
                Read::History { channel, at, .. } if *channel == view.channel => Some(Recover { after: at.offset, epoch: at.epoch }),
                Read::Nothing { channel, epoch } if *channel == view.channel => Some(Recover { after: 0, epoch: *epoch }),
                _ => None,
            });
        }
    }

    fn subscriptions(&mut self) -> &mut Vec<(ChannelName, Arc<str>)> {
        let connection = self.connection;
        self.subscriptions.get_or_insert_with(|| connection.map(Connection::subscriptions).unwrap_or_default())
    }

    /// Ends every subscription to one channel. A star in the name has no special meaning: a client must not leave more than it
    /// names.
    pub(super) fn leave(&mut self, name: &str) -> Result<(), Fault> {
        self.joinable(name)?;
        self.leave_all(name);
        Ok(())
    }

    /// The channel with this name, if this protocol's clients may join it.
    fn joinable(&self, name: &str) -> Result<(ChannelName, Arc<ChannelPlan>), Fault> {
        let (channel, plan) = publish::known(&self.snapshot.runtime.channels, name)?;
        if plan.join.as_ref().is_some_and(|allowed| !allowed.contains(&self.view.protocol)) {
            return Err(publish::unknown(name));
        }
        Ok((channel, plan))
    }

    /// Ends every subscription whose channel matches a glob.
    pub(super) fn leave_all(&mut self, glob: &str) {
        let glob = Glob::new(glob);
        let (gone, kept) = std::mem::take(self.subscriptions()).into_iter().partition(|(channel, _)| glob.matches(channel.as_str()));
        *self.subscriptions() = kept;
        let gone: Vec<(ChannelName, Arc<str>)> = gone;
        for (channel, key) in gone {
            if let Some((_, plan)) = self.snapshot.runtime.channels.resolve(channel.as_str()) {
                self.decision.effects.push(ConnectionEffect::Leave { channel, plan, key }.into());
            }
        }
    }

    pub(super) fn join_row(&mut self, join: &Join, message: Option<&Message<'_>>, result: Option<&Json>) -> Result<(), Fault> {
        let Some(name) = self.text(&join.channel, message, result) else {
            // In `open` no client asked for it; a message that asks for a channel must name it.
            return if message.is_none() { Ok(()) } else { Err(Fault::with(Code::Invalid, "the message does not name a channel")) };
        };
        let key = join.key.as_ref().and_then(|key| self.text(key, message, result)).unwrap_or_default();
        let meta = join.meta.as_ref().and_then(|meta| meta.json(&self.bindings(message, result)));
        let since = match &join.recover {
            Some(plan) => self.since(plan, message, result)?,
            None => None,
        };
        self.join(&name, &key, meta, since)
    }

    /// The position that the client sends, if it sends one.
    fn since(&self, plan: &RecoverPlan, message: Option<&Message<'_>>, result: Option<&Json>) -> Result<Option<Since>, Fault> {
        let bindings = self.bindings(message, result);
        let Some(since) = plan.since.render(&bindings) else { return Ok(None) };
        let offset = match &*since {
            "null" => None,
            text => {
                // A number, or its text, because query parameters are always text.
                let number = json::as_text(text).map_or_else(|| text.parse().ok(), |text| text.parse().ok());
                Some(number.ok_or_else(|| Fault::with(Code::Invalid, "`since` must be an offset: a whole number, 0 or more"))?)
            }
        };
        let epoch = plan.epoch.as_ref().and_then(|epoch| epoch.render(&bindings)).filter(|epoch| epoch != "null");
        // A text that is not an epoch cannot be an epoch of this server.
        let epoch = epoch.map(|epoch| json::as_text(&epoch).and_then(|text| Epoch::from_str_radix(&text, 16).ok()).unwrap_or_default());
        Ok(Some(Since { offset, epoch }))
    }

    /// The position of a channel. A channel that never had an event gets an epoch here, which is used if it still has none when
    /// this is applied. Events that this decision has read are before the position, whether others have seen them yet or not.
    fn position(&mut self, channel: &ChannelName) -> Position {
        let Some(mut position) = self.snapshot.hub.position(channel.as_str()) else {
            return Position { epoch: self.recorder().nothing(channel), first: 1, offset: 0 };
        };
        let read = self.recorder.as_ref().and_then(|(recorder, _)| recorder.history_of(channel));
        if let Some(read) = read.filter(|read| read.epoch == position.epoch) {
            position.offset = position.offset.max(read.offset);
        }
        position
    }

    pub(super) fn join(&mut self, name: &str, key: &str, meta: Option<Json>, since: Option<Since>) -> Result<(), Fault> {
        let (channel, plan) = self.joinable(name)?;
        let Some(connection) = self.connection else {
            return Err(Fault::with(Code::Forbidden, "only a connection can join a channel"));
        };
        let protocol = self.snapshot.runtime.protocol(connection.protocol);
        let most = protocol.map_or(0, |protocol| protocol.plan.limits.subscriptions);
        let subscriptions = self.subscriptions();
        if !subscriptions.iter().any(|(c, k)| *c == channel && **k == *key) {
            if subscriptions.len() >= most {
                return Err(Fault::with(Code::LimitReached, format!("more than {most} subscription{}", if most == 1 { "" } else { "s" })));
            }
            subscriptions.push((channel.clone(), key.into()));
        }
        let mut recover = None;
        if let Some(Since { offset, epoch }) = since {
            let position = self.position(&channel);
            let verdict = offset.map(|offset| position.recover(offset, epoch));
            self.recovery = Some(Recovery { position, verdict });
            recover = verdict.map(|verdict| Recover { after: verdict.after, epoch: position.epoch });
        }
        let view = SubView { channel, key: key.into(), meta, positioned: since.is_some() };
        self.decision.effects.push(ConnectionEffect::Join { plan, view, recover }.into());
        Ok(())
    }
}
