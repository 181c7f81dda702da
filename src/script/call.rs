//! What goes into a call of a script and what comes out of it. Plain data and one trait; no engine.

use std::sync::Arc;
use std::time::Duration;

use super::senders::Sender;
use crate::config::plan::FnRef;
use crate::model::json::Index;
use crate::model::{ConnView, Event, Json, Now, PluginName, SessionId, SubView, UserId};

/// One call.
pub struct Call<'a> {
    /// The time, for the whole call.
    pub now: Now,
    /// The connection the message came from or the event goes to. None for sources. For HTTP rows one with an empty id.
    pub conn: Option<&'a Arc<ConnView>>,
    /// What the function is about.
    pub arguments: Arguments<'a>,
    /// What scripts may ask about the rest of the router.
    pub world: &'a Arc<dyn World>,
    /// Whether the call only shows what would happen: it is not counted, writes no log lines and puts no function back into
    /// service.
    pub trial: bool,
}

impl<'a> Call<'a> {
    /// Who caused it, if somebody did.
    pub(super) fn sender(&self) -> Option<Sender<'a>> {
        match self.arguments {
            Arguments::Message { .. } => self.conn.map(|view| Sender::of_connection(view)),
            Arguments::Deliver { event, .. } => Some(Sender::of_event(&event.new.origin)),
        }
    }

    /// Who gets what it writes, if it is about an event.
    pub(super) fn receiver(&self) -> Option<Sender<'a>> {
        match self.arguments {
            Arguments::Message { .. } => None,
            Arguments::Deliver { .. } => self.conn.map(|view| Sender::of_connection(view)),
        }
    }
}

/// What a function is about.
#[derive(Clone, Copy)]
pub enum Arguments<'a> {
    /// A message passes a row.
    Message {
        /// The message.
        msg: Option<&'a Json>,
        /// Where its members stand, if somebody looked.
        index: Option<&'a Index>,
        /// Its type.
        kind: Option<&'a str>,
        /// Returns its data, as the protocol defines it.
        data: Option<&'a dyn HasData>,
    },
    /// An event goes out.
    Deliver {
        /// The event.
        event: &'a Event,
        /// The subscription it goes out on.
        sub: &'a SubView,
    },
}

/// Returns a message's data. Called only if a script uses it, because finding it may cost.
pub trait HasData {
    /// The data, if there is any.
    fn data(&self) -> Option<&Json>;
}

/// What scripts may ask about the rest of the router. Answers come from memory, at once.
pub trait World: Send + Sync {
    /// Whether anything may be asked. If not, nothing else is called.
    fn may_be_asked(&self) -> bool {
        true
    }
    /// The members of a channel: one object each.
    fn members(&self, channel: &str) -> Vec<Json>;
    /// The last events of a channel, at most `count`, oldest first.
    fn history(&self, channel: &str, count: usize) -> Vec<Arc<Event>>;
    /// The open connections of a protocol: one object each.
    fn connections(&self, protocol: &str) -> Vec<Json>;
    /// The statistics of a protocol: one object. None if there is no such protocol.
    fn statistics(&self, protocol: &str, now: Now) -> Option<Json>;
}

/// What a call gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Returned {
    /// Its value. None for `()`.
    pub value: Option<Json>,
    /// Where the members of the value stand, if that is known.
    pub index: Option<Index>,
    /// The effects, in the order in which the script asked for them.
    pub effects: Vec<ScriptEffect>,
    /// The connection's state, where the script changed it.
    pub state: Option<Json>,
    /// The connection's user, if the script set it; none inside if the script removed it.
    pub user: Option<Option<UserId>>,
    /// The connection's session, likewise.
    pub session: Option<Option<SessionId>>,
}

/// Something a script asked for. Nothing of it has happened yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScriptEffect {
    /// To the connection of the call.
    Reply(Json),
    /// The connection joins a channel.
    Join {
        /// The channel.
        channel: String,
        /// Distinguishes several subscriptions to one channel.
        key: Option<String>,
        /// Metadata of the subscription.
        meta: Option<Json>,
    },
    /// The connection leaves a channel.
    Leave {
        /// Its name; a star in it has no special meaning.
        channel: String,
    },
    /// The connection leaves all channels that fit.
    LeaveAll {
        /// `*` matches any characters.
        glob: String,
    },
    /// An event on a channel.
    Publish {
        /// The channel.
        channel: String,
        /// The event's type.
        kind: String,
        /// Its data.
        data: Json,
        /// What travels beside it.
        metadata: Option<Json>,
        /// Not to the connection of the call.
        except_sender: bool,
        /// Not to this connection.
        except: Option<String>,
    },
    /// An event to one client, user or session.
    SendTo {
        /// To whom.
        target: SendTarget,
        /// The event's type.
        kind: String,
        /// Its data.
        data: Json,
    },
    /// The connection ends.
    Close {
        /// A code that may be sent.
        code: u16,
        /// Why.
        reason: String,
    },
}

/// To whom [`ScriptEffect::SendTo`] goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SendTarget {
    /// One connection, by its public id.
    Client(String),
    /// A user.
    User(String),
    /// A session.
    Session(String),
}

/// Why a call failed. None of its effects remain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// The script refused the message: `throw "text"` or `throw #{ code, message, … }`.
    #[error("{message}")]
    Thrown {
        /// The message for the sender.
        message: String,
        /// The other members of the thrown object.
        data: Option<Json>,
        /// Its `code`, where that is a text.
        code: Option<String>,
        /// The file, line and function that threw it.
        at: String,
    },
    /// The message exceeds what a script may hold; says which bound. The sender is at fault.
    #[error("{0}")]
    NotForScripts(String),
    /// The script failed: where, in which function, why, and through which calls.
    #[error("{0}")]
    Failed(String),
    /// It exceeded its budget; described in the same way. The caller charges it with [`super::Scripts::charge`] and
    /// [`super::Scripts::tripped`] say.
    #[error("{why}")]
    Tripped {
        /// The function.
        function: FnRef,
        /// Where, in which function, why.
        why: String,
    },
    /// Its sender has caused too many calls that exceeded their budgets.
    #[error("the sender caused too many script calls that exceeded their budgets")]
    Spent {
        /// After which it may cause the next one.
        retry_after: Duration,
    },
    /// The function is out of service, and why.
    #[error("{0}")]
    OutOfService(String),
}

/// How one plugin does.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginReport {
    /// Its name.
    pub name: PluginName,
    /// Its file.
    pub file: Arc<str>,
    /// SHA-256 of its text and of all it imports, in hexadecimal.
    pub hash: String,
    /// The functions that may be called from outside, with their parameters: `page(msg)`.
    pub functions: Vec<String>,
    /// Calls since the server started.
    pub calls: u64,
    /// Calls that failed; a `throw` is not a failure.
    pub failures: u64,
    /// Mean time of a call, in microseconds.
    pub mean_us: f64,
    /// Longest time of a call, in microseconds.
    pub max_us: u64,
    /// The last failure and when it was, in milliseconds since the Unix epoch.
    pub last_error: Option<(String, i64)>,
    /// Log lines that were over the limit and left out.
    pub log_lines_dropped: u64,
    /// Its functions that the routes file uses, in order.
    pub called: Vec<Arc<str>>,
    /// What is out of service: functions and, if they leak memory, expressions of the routes file.
    pub out: Vec<FunctionOut>,
}

/// A function that is out of service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionOut {
    /// Its name, or for an expression its place in the routes file.
    pub function: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// The last failure.
    pub why: String,
}
