//! What templates and scripts see of a connection, of the request it came by, and of a subscription. Snapshots: data, no behaviour.

use std::sync::Arc;

use crate::model::json::Json;
use crate::model::name::{ChannelName, ClientId};

/// A connection at one moment. A change makes a new one.
#[derive(Clone, Debug)]
pub struct ConnView {
    /// Its public id; empty where there is no connection, as in an HTTP row.
    pub id: ClientId,
    /// The name of its protocol.
    pub protocol: Arc<str>,
    /// Who it is.
    pub user: Option<Arc<str>>,
    /// The session it belongs to.
    pub session: Option<Arc<str>>,
    /// The other side's address, without port.
    pub ip: Arc<str>,
    /// When it opened, in milliseconds since the epoch.
    pub opened_ms: i64,
    /// State that rows and scripts keep: always an object.
    pub state: Json,
    /// The request it came by.
    pub request: Arc<RequestView>,
}

/// An HTTP request's parts that templates may use. Values are decoded.
#[derive(Clone, Debug, Default)]
pub struct RequestView {
    /// Query parameters.
    pub query: Vec<(Box<str>, Box<str>)>,
    /// Path parameters.
    pub path: Vec<(Box<str>, Box<str>)>,
    /// Headers, names in lower case.
    pub header: Vec<(Box<str>, Box<str>)>,
    /// Cookies.
    pub cookie: Vec<(Box<str>, Box<str>)>,
}

/// The first value of a name.
pub fn lookup<'a>(pairs: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
}

/// One subscription.
#[derive(Clone, Debug)]
pub struct SubView {
    /// The channel.
    pub channel: ChannelName,
    /// Tells several subscriptions of one connection to one channel apart.
    pub key: Arc<str>,
    /// What was said when it began.
    pub meta: Option<Json>,
}
