//! What a script or a template may see of a connection and a subscription: a copy taken when a message passes.
//! Pure data: does not know which connection it belongs to, nor how it is kept.

use std::sync::{Arc, OnceLock};

use crate::model::{ChannelName, ClientId, Json, Origin, SessionId, UserId};

/// A connection at one moment.
#[derive(Clone, Debug)]
pub struct ConnView {
    /// Its public id. Empty for an HTTP request.
    pub id: ClientId,
    /// Its protocol.
    pub protocol: Arc<str>,
    /// Its user.
    pub user: Option<UserId>,
    /// Its session.
    pub session: Option<SessionId>,
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
    /// The origin of the events that this connection causes. Made once for each view, at first use.
    pub fn origin(&self) -> &Arc<Origin> {
        let who = || Origin {
            source: self.protocol.clone(),
            client: Some(self.id.clone()),
            user: self.user.clone(),
            session: self.session.clone(),
            address: Some(self.ip.clone()).filter(|ip| !ip.is_empty()),
        };
        self.origin.0.get_or_init(|| Arc::new(who()))
    }
}

/// What [`ConnView::origin`] made. A copy of a view begins without it, so that the copy may be changed.
#[derive(Debug, Default)]
pub struct CachedOrigin(OnceLock<Arc<Origin>>);

impl Clone for CachedOrigin {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// Names and values in the order in which they came, in one piece of memory: every connection keeps its request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    text: Box<str>,
    /// Where each name and each value ends.
    ends: Box<[u32]>,
}

impl Pairs {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut at = 0;
        let mut next = move |end: u32| {
            let piece = &self.text[at..end as usize];
            at = end as usize;
            piece
        };
        self.ends.chunks_exact(2).map(move |ends| (next(ends[0]), next(ends[1])))
    }

    /// The first value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Pairs {
    /// What would not fit in 4 GiB is left out.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(all: I) -> Self {
        let all: Vec<(N, V)> = all.into_iter().collect();
        let bytes = all.iter().map(|(name, value)| name.as_ref().len() + value.as_ref().len()).sum();
        // As long as they will be, so that nothing is moved.
        let (mut text, mut ends) = (String::with_capacity(bytes), Vec::with_capacity(2 * all.len()));
        for (name, value) in &all {
            let (name, value) = (name.as_ref(), value.as_ref());
            let (Ok(middle), Ok(end)) = (u32::try_from(text.len() + name.len()), u32::try_from(text.len() + name.len() + value.len()))
            else {
                break;
            };
            text.push_str(name);
            text.push_str(value);
            ends.extend([middle, end]);
        }
        Self { text: text.into(), ends: ends.into() }
    }
}

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
    /// Distinguishes it from other subscriptions of the connection to that channel.
    pub key: Arc<str>,
    /// Metadata that was given when it was made.
    pub meta: Option<Json>,
    /// Whether it was made with a position, and so gets the position of each event.
    pub positioned: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_kept_as_they_came() {
        let all = [("a", "1"), ("", "x"), ("a", "2"), ("ü\0", ""), ("", "")];
        let pairs: Pairs = all.into_iter().collect();
        assert_eq!(pairs.iter().collect::<Vec<_>>(), all);
        assert_eq!((pairs.get("a"), pairs.get(""), pairs.get("b")), (Some("1"), Some("x"), None));
        assert_eq!(Pairs::default().iter().next(), None);
    }
}
