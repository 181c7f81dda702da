//! Channels in the plan.

use std::sync::Arc;
use std::time::Duration;

use crate::model::SourceLocation;
use crate::model::id::PatternId;
use crate::model::pattern::Glob;
use crate::model::pattern::Pattern;
use crate::model::schema::Schema;
use crate::model::template::Template;
use crate::model::template::Text;

/// One entry of `channels:`.
#[derive(Debug)]
pub struct ChannelPlan {
    /// Stands for its name or pattern.
    pub id: PatternId,
    /// Its name or pattern.
    pub pattern: Pattern,
    /// Its place in the routes file.
    pub at: SourceLocation,
    /// Whether and how its events are kept.
    pub history: Option<HistoryPlan>,
    /// Publishing to this user or session (the one capture of the pattern) is publishing here.
    pub audience: Option<Audience>,
    /// `data:` gives published data its final shape, before the schema checks it.
    pub data: Option<Template>,
    /// The schema of the data by event type; the first glob that matches decides; none: anything goes.
    pub schemas: Vec<(Glob, Arc<Schema>)>,
    /// The protocols whose clients may join; none named: all.
    pub join: Option<Vec<Arc<str>>>,
    /// Protocols, sources and `api` that may publish; none named: all.
    pub publish: Option<Vec<Arc<str>>>,
    /// What happens to its messages for a client that does not read.
    pub on_slow: OnSlow,
}

/// `on_slow:` What happens to a channel's messages for a client that does not read.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum OnSlow {
    /// They wait, and once the outbox is full the connection ends.
    #[default]
    Disconnect,
    /// Once the outbox is full, the oldest that waits makes room.
    DropOldest,
    /// Once the outbox is full, nothing new is taken.
    DropNewest,
    /// A newer message replaces a waiting one with the same key. References are to the event.
    LatestBy(Text),
    /// The text at this path of the data is joined with that of the message before, if everything else is equal.
    Concat(Box<[Box<str>]>),
}

/// `history:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryPlan {
    /// Events kept in memory.
    pub tail: usize,
    /// Bytes of them kept in memory.
    pub tail_bytes: usize,
    /// How long events stay in the log.
    pub keep: Keep,
    /// When subscribers get an event and publishers its acknowledgement.
    pub promise: Promise,
}

/// `keep:` How long a channel's events stay in the log. What exceeds either bound goes, oldest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// At most this many. `None`: no bound.
    pub events: Option<u64>,
    /// At most this old. `None`: no bound.
    pub age: Option<Duration>,
}

/// What a channel promises about an event that is not in the database yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Promise {
    /// It is delivered and acknowledged once it is committed.
    #[default]
    Committed,
    /// `deliver: early`: delivered immediately, acknowledged once it is committed.
    Early,
    /// `durability: relaxed`: delivered and acknowledged immediately.
    Relaxed,
}

impl Promise {
    /// Whether a crash may lose delivered events, so that the channel needs a new epoch after a crash.
    pub fn is_early(self) -> bool {
        self != Promise::Committed
    }
}

/// `audience:`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// `{"user": …}`
    User,
    /// `{"session": …}`
    Session,
}
