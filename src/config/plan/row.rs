//! What the file says is to be done with a message.

use std::collections::HashMap;
use std::sync::Arc;

use super::{FnRef, Rate};
use crate::model::SourceLocation;
use crate::model::fault::Code;
use crate::model::id::RowId;
use crate::model::pattern::Glob;
use crate::model::schema::Schema;
use crate::model::template::Template;
use crate::model::template::Text;

/// `messages:` of a protocol or source: the rows of each message type. Looked up once per message.
#[derive(Debug, Default)]
pub struct Table {
    /// By exact type.
    pub exact: HashMap<Box<str>, Vec<Row>, foldhash::fast::RandomState>,
    /// By glob, in the order of the file.
    pub globs: Vec<(Glob, Vec<Row>)>,
    /// `_`
    pub otherwise: Option<Vec<Row>>,
}

impl Table {
    /// Every row.
    pub fn all(&self) -> impl Iterator<Item = &Row> {
        let globs = self.globs.iter().map(|(_, rows)| rows);
        self.exact.values().chain(globs).chain(&self.otherwise).flatten()
    }

    /// The rows of a type: exact before globs before `_`.
    pub fn rows(&self, kind: &str) -> Option<&[Row]> {
        let by_glob = || self.globs.iter().find(|(glob, _)| glob.matches(kind)).map(|(_, rows)| rows);
        self.exact.get(kind).or_else(by_glob).or(self.otherwise.as_ref()).map(Vec::as_slice)
    }
}

/// A row: what happens, in the order of these fields, as one transaction. The default row does nothing.
#[derive(Debug)]
pub struct Row {
    /// Stands for its name.
    pub id: RowId,
    /// `canvas.messages.ping`: for the log, statistics and the table of routes.
    pub name: Arc<str>,
    /// Its place in the routes file.
    pub at: SourceLocation,
    /// The row applies only if this expression holds.
    pub when: Option<FnRef>,
    /// Messages of one connection through this row.
    pub limit: Option<Rate>,
    /// What the message must look like.
    pub schema: Option<Arc<Schema>>,
    /// A function that says true, false, or throws why.
    pub validate: Option<FnRef>,
    /// A function that gives the new message, a list of them, or `()` to drop it.
    pub transform: Option<FnRef>,
    /// A function that is called for its effects; its value is `$result`.
    pub call: Option<FnRef>,
    /// Connection state.
    pub set: Vec<(SetTarget, Template)>,
    /// Subscriptions of this connection to end: names or globs.
    pub leave: Vec<Text>,
    /// Channels to join. A name with a missing part is skipped in `open`, and a fault elsewhere.
    pub join: Vec<Join>,
    /// What is published where.
    pub to: Vec<Publish>,
    /// What goes back to the sender.
    pub reply: Option<Reply>,
    /// HTTP status of the reply (HTTP rows only).
    pub status: Option<u16>,
    /// The connection ends after this row.
    pub close: Option<(u16, Text)>,
    /// The message is a fault, with this message. Nothing else of the row happens.
    pub fail: Option<(Code, Text)>,
}

/// `set:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetTarget {
    /// `user`
    User,
    /// `session`
    Session,
    /// `state.NAME`
    State(Box<str>),
}

/// One subscription of `join:`.
#[derive(Debug)]
pub struct Join {
    /// The channel's name.
    pub channel: Text,
    /// Distinguishes several subscriptions of one connection to one channel. Default: the empty text.
    pub key: Option<Text>,
    /// What `$sub.meta` is.
    pub meta: Option<Template>,
    /// Where the client says it stands.
    pub recover: Option<RecoverPlan>,
}

/// `recover:` of a `join:`. If `since` has a value, even `null`, the subscription knows its position.
#[derive(Debug)]
pub struct RecoverPlan {
    /// The offset up to which the client has seen the channel; `null`: it wants no past events.
    pub since: Template,
    /// The stream it has seen; none, missing or `null`: the current one.
    pub epoch: Option<Template>,
}

/// One target of `to:`.
#[derive(Debug)]
pub struct Publish {
    /// Where to.
    pub target: Target,
    /// The event's type; none: the message's type.
    pub kind: Option<Text>,
    /// The event's data; none: `$data`.
    pub data: Option<Template>,
    /// What travels beside it.
    pub metadata: Option<Template>,
    /// `except: sender`
    pub except_sender: bool,
}

/// Where an event goes.
#[derive(Debug)]
pub enum Target {
    /// To all who are on a channel.
    Channel(Text),
    /// To one connection, by its public id.
    Client(Text),
    /// To a user: the channel with `audience: user`, else all of that user's connections.
    User(Text),
    /// To a session, likewise.
    Session(Text),
}

/// `reply:` or `send:`
#[derive(Debug)]
pub enum Reply {
    /// A template.
    Template(Template),
    /// A function; its value is the reply, `()` is none.
    Call(FnRef),
}
