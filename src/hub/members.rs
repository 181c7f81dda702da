//! The members of a channel, in pieces that are shared with those who write to them: a fan-out reads a piece without the
//! channel's lock, and members who join or leave meanwhile change a copy.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Connection, Recipient, SubscriptionId};
use crate::model::view::SubView;
use crate::model::{Json, clock};

/// Members of one piece: as many as are written to before other tasks get their turn.
pub(super) const PIECE: usize = 256;

/// One subscription, from the channel's side.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its connection.
    pub connection: Arc<Connection>,
    pub(super) subscription: u64,
    /// What templates see of it.
    pub view: SubView,
    /// When it began, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// It has seen the channel up to this offset and catches up. `None`: it is live.
    pub(super) behind: Option<u64>,
    /// Whether live events are batched for it.
    pub(super) batches: bool,
    /// Live events begin after this offset.
    pub(super) live_after: u64,
}

/// Members that are written to together.
pub(super) type Piece = Arc<Vec<Member>>;

/// Members whose memory is touched ahead.
const AHEAD: usize = 16;

/// Members one after the other. With thousands of them, none is in the processor's cache any more at its turn. Touching some of
/// them ahead loads their memory in parallel instead of one after the other.
pub(super) fn ahead(piece: &Piece) -> impl Iterator<Item = &Member> {
    piece.chunks(AHEAD).flat_map(|some| {
        some.iter().for_each(|member| member.connection.touch());
        some
    })
}

#[derive(Debug, Default)]
pub(super) struct Members {
    pieces: Vec<Piece>,
    at: HashMap<(u64, Arc<str>), usize>,
}

impl Members {
    pub(super) fn len(&self) -> usize {
        self.at.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.pieces.iter().flat_map(|piece| piece.iter())
    }

    /// The index of a subscription among the members. Valid until one leaves.
    pub(super) fn find(&self, connection: u64, key: &Arc<str>) -> Option<usize> {
        self.at.get(&(connection, key.clone())).copied()
    }

    pub(super) fn get(&self, at: usize) -> Option<&Member> {
        self.pieces.get(at / PIECE)?.get(at % PIECE)
    }

    pub(super) fn get_mut(&mut self, at: usize) -> Option<&mut Member> {
        Arc::make_mut(self.pieces.get_mut(at / PIECE)?).get_mut(at % PIECE)
    }

    /// Adds one that is not a member yet, and returns its index.
    pub(super) fn push(&mut self, member: Member) -> usize {
        let at = self.at.len();
        self.at.insert((member.connection.key, member.view.key.clone()), at);
        if at.is_multiple_of(PIECE) {
            self.pieces.push(Piece::default());
        }
        if let Some(last) = self.pieces.last_mut() {
            Arc::make_mut(last).push(member);
        }
        at
    }

    /// Removes one; the last takes its index.
    pub(super) fn remove(&mut self, connection: u64, key: &Arc<str>) -> Option<Member> {
        let at = self.at.remove(&(connection, key.clone()))?;
        let last = self.pieces.last_mut().and_then(|piece| Arc::make_mut(piece).pop())?;
        if self.pieces.last().is_some_and(|piece| piece.is_empty()) {
            self.pieces.pop();
        }
        if self.at.is_empty() {
            *self = Self::default();
        }
        match self.get_mut(at) {
            Some(place) => {
                let moved = (last.connection.key, last.view.key.clone());
                let removed = std::mem::replace(place, last);
                self.at.insert(moved, at);
                Some(removed)
            }
            None => Some(last),
        }
    }
}

impl Member {
    /// A member that is live from here on.
    pub(super) fn new(connection: &Arc<Connection>, subscription: u64, view: SubView, since_ms: i64, live_after: u64) -> Self {
        let batches = connection.batches();
        Self { connection: connection.clone(), subscription, view, since_ms, behind: None, batches, live_after }
    }

    /// The subscription whose messages wait in the connection's outbox.
    pub(super) fn subscription(&self) -> SubscriptionId {
        SubscriptionId { number: self.subscription, positioned: self.view.positioned }
    }

    /// Who the events of its channel are written for.
    pub(super) fn recipient(&self) -> Recipient<'_> {
        Recipient { connection: &self.connection, subscription: Some(&self.view), view: None }
    }

    /// Presence as scripts and REST see it.
    pub fn to_json(&self) -> Json {
        let view = self.connection.view();
        let key = (!self.view.key.is_empty()).then(|| &*self.view.key);
        let meta: Option<Box<serde_json::value::RawValue>> = self.view.meta.as_ref().and_then(|m| serde_json::from_str(m.as_str()).ok());
        #[derive(serde::Serialize)]
        struct Shape<'a> {
            client: &'a str,
            protocol: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            user: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            session: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            key: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            meta: Option<Box<serde_json::value::RawValue>>,
            since: String,
        }
        Json::of(&Shape {
            client: &view.id,
            protocol: &view.protocol,
            user: view.user.as_deref(),
            session: view.session.as_deref(),
            key,
            meta,
            since: clock::iso(self.since_ms),
        })
    }
}
