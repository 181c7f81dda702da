//! What a decision consists of. Effects only say; `apply` does.

use std::sync::Arc;

use crate::config::plan::ChannelPlan;
use crate::hub::Recover;
use crate::model::event::NewEvent;
use crate::model::view::{ConnView, SubView};
use crate::model::{ChannelName, Close, Fault, Json};
use crate::protocol::Frame;

/// One thing to do, all of them in order, as one transaction.
#[derive(Debug)]
pub enum Effect {
    /// The connection's user, session or state changes.
    View {
        /// What it is from now on.
        view: Arc<ConnView>,
        /// Whether its events are batched from now on.
        batches: bool,
    },
    /// A subscription of the connection ends.
    Leave {
        /// The channel.
        channel: ChannelName,
        /// What the configuration says of it, so that it can be held.
        plan: Arc<ChannelPlan>,
        /// The subscription's key.
        key: Arc<str>,
    },
    /// A subscription of the connection begins.
    Join {
        /// What the configuration says of the channel.
        plan: Arc<ChannelPlan>,
        /// The subscription.
        view: SubView,
        /// Where it goes on; none: with what comes next.
        recover: Option<Recover>,
    },
    /// An event gets its place in a channel and goes to all who are on it.
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
    /// An event goes to connections directly: outside channels, kept nowhere.
    Direct {
        /// Who gets it.
        receivers: Receivers,
        /// The event.
        event: NewEvent,
        /// The key of a connection that is not to get it.
        except: Option<u64>,
    },
    /// A frame goes to the connection itself.
    Send(Frame),
    /// The connection ends after what was sent.
    Close(Close),
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
    /// The row that ran, by its id.
    pub row: Option<usize>,
    /// What went wrong without anything being refused for it.
    pub warning: Option<String>,
    /// Why nothing of the input's row happened, if so. What its sender is told is among the effects already.
    pub fault: Option<Box<Fault>>,
    /// The answer, where the input came by HTTP.
    pub reply: Option<Json>,
    /// The answer's status, where a row says one.
    pub status: Option<u16>,
}
