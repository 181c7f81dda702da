//! What a decision consists of. Effects only say; `apply` does.

use std::sync::Arc;

use crate::config::plan::ChannelPlan;
use crate::hub::Recover;
use crate::model::event::NewEvent;
use crate::model::id::RowId;
use crate::model::view::{ConnView, SubView};
use crate::model::{ChannelName, Close, Fault, Json};
use crate::pipeline::reads::Read;
use crate::protocol::Frame;
use crate::script::ScriptError;

/// One thing to do; all of a decision in order, as one transaction.
#[derive(Debug)]
pub enum Effect {
    /// An event happens.
    Event(EventEffect),
    /// The connection that the decision is about changes, or is told something.
    Connection(ConnectionEffect),
}

/// An event happens. Any door can cause it.
#[derive(Debug)]
pub enum EventEffect {
    /// It gets its place in a channel and goes to all who are on it.
    Publish {
        /// The channel.
        channel: ChannelName,
        /// What the configuration says of it.
        plan: Arc<ChannelPlan>,
        /// The event.
        event: NewEvent,
        /// The key of a connection that is not to get it.
        except: Option<u64>,
    },
    /// It goes to connections directly: outside channels, kept nowhere.
    Direct {
        /// Who gets it.
        receivers: Receivers,
        /// The event.
        event: NewEvent,
        /// The key of a connection that is not to get it.
        except: Option<u64>,
    },
}

/// Something about one connection. Only a decision about a connection can cause it.
#[derive(Debug)]
pub enum ConnectionEffect {
    /// Its user, session or state changes.
    View {
        /// What it is from now on.
        view: Arc<ConnView>,
        /// Whether its events are batched from now on.
        batches: bool,
    },
    /// A subscription ends.
    Leave {
        /// The channel.
        channel: ChannelName,
        /// What the configuration says of it, so that it can be locked.
        plan: Arc<ChannelPlan>,
        /// The subscription's key.
        key: Arc<str>,
    },
    /// A subscription begins.
    Join {
        /// What the configuration says of the channel.
        plan: Arc<ChannelPlan>,
        /// The subscription.
        view: SubView,
        /// Where it goes on; none: with what comes next.
        recover: Option<Recover>,
    },
    /// It is told something.
    Send(Frame),
    /// It ends after what was sent.
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
    /// The channel it touches, and what the configuration says of it.
    pub fn channel(&self) -> Option<(&ChannelName, &Arc<ChannelPlan>)> {
        match self {
            Self::Publish { channel, plan, .. } => Some((channel, plan)),
            Self::Direct { .. } => None,
        }
    }
}

impl ConnectionEffect {
    /// The channel it touches, and what the configuration says of it.
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

    /// The channel it touches, and what the configuration says of it.
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
    Client(Arc<str>),
    /// All connections of a user.
    User(Arc<str>),
    /// All connections of a session.
    Session(Arc<str>),
}

/// Everything that happens to one input.
#[derive(Debug, Default)]
pub struct Decision {
    /// In order.
    pub effects: Vec<Effect>,
    /// What it was decided on. Where that has changed by the time it is applied, it is decided again.
    pub reads: Vec<Read>,
    /// The row that ran.
    pub row: Option<RowId>,
    /// Which condition of `batch` failed. Nothing is refused for it.
    pub warning: Option<ScriptError>,
    /// Why nothing of the input's row happened, if so. What its sender is told is among the effects already.
    pub fault: Option<Box<Fault>>,
    /// It looks at what the connection's own transactions, which wait for their commit, will have changed: nothing is decided
    /// yet, and the same input is to be decided once they are done.
    pub waits: bool,
    /// The answer, where the input came by HTTP.
    pub reply: Option<Json>,
    /// The answer's status, where a row says one.
    pub status: Option<u16>,
}

impl Decision {
    /// Its effects, where it is about no connection: then none of them concerns one.
    pub fn take_events(&mut self) -> Vec<EventEffect> {
        let event = |effect| match effect {
            Effect::Event(event) => Some(event),
            Effect::Connection(_) => None,
        };
        std::mem::take(&mut self.effects).into_iter().filter_map(event).collect()
    }
}
