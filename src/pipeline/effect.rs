//! What a decision consists of. Effects only describe; `apply` carries them out.

use std::sync::Arc;

use crate::config::plan::ChannelPlan;
use crate::hub::Recover;
use crate::model::event::NewEvent;
use crate::model::id::RowId;
use crate::model::view::{ConnView, SubView};
use crate::model::{ChannelName, ClientId, Close, Fault, Json, SessionId, UserId};
use crate::pipeline::reads::Read;
use crate::protocol::Frame;
use crate::script::ScriptError;

/// One thing to do. The effects of a decision happen in order, as one transaction.
#[derive(Debug)]
pub enum Effect {
    /// An event happens.
    Event(EventEffect),
    /// The connection that the decision is about changes, or gets a message.
    Connection(ConnectionEffect),
}

/// Something happens to an event. Any input can cause it.
#[derive(Debug)]
pub enum EventEffect {
    /// It gets an offset in a channel and goes to all its subscribers.
    Publish {
        /// The channel.
        channel: ChannelName,
        /// The channel's configuration.
        plan: Arc<ChannelPlan>,
        /// The event.
        event: NewEvent,
        /// The key of a connection that must not get it.
        except: Option<u64>,
    },
    /// It goes to connections directly: outside channels, and never stored.
    Direct {
        /// Who gets it.
        receivers: Receivers,
        /// The event.
        event: NewEvent,
        /// The key of a connection that must not get it.
        except: Option<u64>,
    },
}

/// Something about one connection. Only a decision about a connection can cause it.
#[derive(Debug)]
pub enum ConnectionEffect {
    /// Its user, session or state changes.
    View {
        /// Its identity from now on.
        view: Arc<ConnView>,
        /// Whether its events are batched from now on.
        batches: bool,
    },
    /// A subscription ends.
    Leave {
        /// The channel.
        channel: ChannelName,
        /// The channel's configuration, so that it can be locked.
        plan: Arc<ChannelPlan>,
        /// The subscription's key.
        key: Arc<str>,
    },
    /// A subscription begins.
    Join {
        /// The channel's configuration.
        plan: Arc<ChannelPlan>,
        /// The subscription.
        view: SubView,
        /// The position at which it continues. `None`: with the next event.
        recover: Option<Recover>,
    },
    /// A message is sent to it.
    Send(Frame),
    /// It is closed after everything sent before.
    Close(Close),
}

impl From<EventEffect> for Effect {
    fn from(effect: EventEffect) -> Self {
        Self::Event(effect)
    }
}

impl From<ConnectionEffect> for Effect {
    fn from(effect: ConnectionEffect) -> Self {
        Self::Connection(effect)
    }
}

impl EventEffect {
    /// The channel it concerns, and the channel's configuration.
    pub fn channel(&self) -> Option<(&ChannelName, &Arc<ChannelPlan>)> {
        match self {
            Self::Publish { channel, plan, .. } => Some((channel, plan)),
            Self::Direct { .. } => None,
        }
    }
}

impl ConnectionEffect {
    /// The channel it concerns, and the channel's configuration.
    pub fn channel(&self) -> Option<(&ChannelName, &Arc<ChannelPlan>)> {
        match self {
            Self::Leave { channel, plan, .. } => Some((channel, plan)),
            Self::Join { plan, view, .. } => Some((&view.channel, plan)),
            Self::View { .. } | Self::Send(_) | Self::Close(_) => None,
        }
    }
}

impl Effect {
    /// The event that happens, if one does.
    pub fn event(&self) -> Option<&EventEffect> {
        match self {
            Self::Event(event) => Some(event),
            Self::Connection(_) => None,
        }
    }

    /// The channel it concerns, and the channel's configuration.
    pub fn channel(&self) -> Option<(&ChannelName, &Arc<ChannelPlan>)> {
        match self {
            Self::Event(effect) => effect.channel(),
            Self::Connection(effect) => effect.channel(),
        }
    }
}

/// Who gets an event directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Receivers {
    /// One connection by its public id.
    Client(ClientId),
    /// All connections of a user.
    User(UserId),
    /// All connections of a session.
    Session(SessionId),
}

/// Everything that happens to one input.
#[derive(Debug, Default)]
pub struct Decision {
    /// In order.
    pub effects: Vec<Effect>,
    /// What the decision read. If that has changed by the time it is applied, the input is decided again.
    pub reads: Vec<Read>,
    /// The row that ran.
    pub row: Option<RowId>,
    /// The `batch` condition that failed. Nothing is refused because of it.
    pub warning: Option<Box<ScriptError>>,
    /// Why nothing of the input's row happened, if so. The message to its sender is already among the effects.
    pub fault: Option<Box<Fault>>,
    /// The input reads what transactions of its connection that still wait for their commit will change. Nothing is decided yet,
    /// and the same input must be decided again once they are done.
    pub waits: bool,
    /// The answer, if the input came by HTTP.
    pub reply: Option<Json>,
    /// The answer's status, if a row sets one.
    pub status: Option<u16>,
}

impl Decision {
    /// Its effects, if it is not about a connection: then none of them concerns one.
    pub fn take_events(&mut self) -> Vec<EventEffect> {
        let event = |effect| match effect {
            Effect::Event(event) => Some(event),
            Effect::Connection(_) => None,
        };
        std::mem::take(&mut self.effects).into_iter().filter_map(event).collect()
    }
}
