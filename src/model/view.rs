//! What a script or a template may see of a connection and a subscription: a copy taken when a message passes.
//! Pure data; whose connection it is and how it is kept is the connection's business.

use std::sync::{Arc, OnceLock};

use crate::model::{ChannelName, ClientId, Json, Origin};

/// A connection at one moment.
#[derive(Clone, Debug)]
pub struct ConnView {
    /// Its public id. Empty for an HTTP request.
    pub id: ClientId,
    /// Its protocol.
    pub protocol: Arc<str>,
    /// Whose it is.
    pub user: Option<Arc<str>>,
    /// Its session.
    pub session: Option<Arc<str>>,
    /// The address it came from.
    pub ip: Arc<str>,
    /// When it was opened, in milliseconds since the Unix epoch.
    pub opened_ms: i64,
    /// What rows and scripts keep with it: always an object.
    pub state: Json,
    /// The request it began with.
    pub request: Arc<RequestView>,
    /// See [`ConnView::origin`].
    pub origin: CachedOrigin,
}

impl ConnView {
    /// Who an event comes from that this connection causes. Made once for each view, at first use.
    pub fn origin(&self) -> &Arc<Origin> {
        let who = || Origin {
            source: self.protocol.clone(),
            client: Some(self.id.clone()),
            user: self.user.clone(),
            session: self.session.clone(),
        };
        self.origin.0.get_or_init(|| Arc::new(who()))
    }
}

/// What [`ConnView::origin`] made. A copy of a view begins without, so it may be changed.
#[derive(Debug, Default)]
pub struct CachedOrigin(OnceLock<Arc<Origin>>);

impl Clone for CachedOrigin {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Names and values in the order in which they came.
pub type Pairs = Vec<(Box<str>, Box<str>)>;

/// The parts of a request that templates and scripts may read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestView {
    /// The query string, decoded.
    pub query: Pairs,
    /// Parameters of the path.
    pub path: Pairs,
    /// Headers, their names in lower case.
    pub header: Pairs,
    /// Cookies.
    pub cookie: Pairs,
}

/// A subscription at one moment.
#[derive(Clone, Debug)]
pub struct SubView {
    /// Its channel.
    pub channel: ChannelName,
    /// What tells it apart from others of the connection on that channel.
    pub key: Arc<str>,
    /// What was said of it when it was made.
    pub meta: Option<Json>,
    /// Whether it knows its position, and so is told that of each event.
    pub positioned: bool,
}

/// The first value of a name.
pub fn lookup<'a>(pairs: &'a [(Box<str>, Box<str>)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value)
}
