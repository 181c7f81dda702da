//! Who is connected: by public id, protocol, address, user and session. Plain maps; the hub locks them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::hub::connection::Connection;
use crate::model::id::{IdMap, ProtocolId};
use crate::model::name::{ClientId, SessionId, UserId};
use crate::model::view::ConnView;

#[derive(Debug, Default)]
pub(super) struct Directory {
    by_id: HashMap<ClientId, Arc<Connection>>,
    /// By key, so the first is the oldest. A displaced connection is removed immediately, while it is still closing.
    by_protocol: IdMap<ProtocolId, Peers>,
    by_address: HashMap<(ProtocolId, Arc<str>), usize>,
    by_user: HashMap<UserId, BTreeMap<u64, Arc<Connection>>>,
    by_session: HashMap<SessionId, BTreeMap<u64, Arc<Connection>>>,
}

/// The connections of a protocol.
#[derive(Debug, Default)]
struct Peers {
    open: BTreeMap<u64, Arc<Connection>>,
    /// Grows with each change.
    version: u64,
}

/// How many connections a protocol allows.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In total.
    pub connections: usize,
    /// From one address.
    pub per_address: usize,
    /// Whether the oldest makes room; otherwise the new one is refused.
    pub displace: bool,
}

/// Whether a connection was let in.
#[derive(Debug)]
pub enum Admission {
    /// It was let in.
    Opened,
    /// It was let in, and this one must go.
    Displaced(Arc<Connection>),
    /// The protocol is full.
    Full,
    /// Too many from this address.
    AddressFull,
    /// The id is taken.
    IdTaken,
}

impl Directory {
    pub(super) fn open(&mut self, connection: &Arc<Connection>, bounds: Bounds) -> Admission {
        let view = connection.view();
        let Entry::Vacant(id) = self.by_id.entry(connection.id.clone()) else { return Admission::IdTaken };
        let address = self.by_address.entry((connection.protocol, view.ip.clone()));
        if matches!(&address, Entry::Occupied(count) if *count.get() >= bounds.per_address) {
            return Admission::AddressFull;
        }
        let peers = self.by_protocol.get_or_insert_with(connection.protocol, Peers::default);
        let Peers { open: peers, version } = peers;
        let mut displaced = None;
        if peers.len() >= bounds.connections {
            displaced = if bounds.displace { peers.pop_first() } else { None };
            if displaced.is_none() {
                return Admission::Full;
            }
        }
        peers.insert(connection.key, connection.clone());
        *version += 1;
        *address.or_default() += 1;
        id.insert(connection.clone());
        self.remember(connection, &view);
        displaced.map_or(Admission::Opened, |(_, oldest)| Admission::Displaced(oldest))
    }

    pub(super) fn close(&mut self, connection: &Arc<Connection>) {
        // A connection that was refused must not remove the one that has the id.
        match self.by_id.entry(connection.id.clone()) {
            Entry::Occupied(held) if held.get().key == connection.key => held.remove(),
            _ => return,
        };
        let view = connection.view();
        if let Some(peers) = self.by_protocol.get_mut(connection.protocol) {
            peers.open.remove(&connection.key);
            peers.version += 1;
        }
        if let Entry::Occupied(mut count) = self.by_address.entry((connection.protocol, view.ip.clone())) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        self.forget(connection, &view);
    }

    /// Whether a connection is in the directory.
    pub(super) fn holds(&self, connection: &Connection) -> bool {
        self.by_id.get(&connection.id).is_some_and(|held| held.key == connection.key)
    }

    pub(super) fn remember(&mut self, connection: &Arc<Connection>, view: &ConnView) {
        if let Some(user) = &view.user {
            self.by_user.entry(user.clone()).or_default().insert(connection.key, connection.clone());
        }
        if let Some(session) = &view.session {
            self.by_session.entry(session.clone()).or_default().insert(connection.key, connection.clone());
        }
    }

    pub(super) fn forget(&mut self, connection: &Connection, view: &ConnView) {
        if let Some(user) = &view.user {
            remove_from(&mut self.by_user, user, connection.key);
        }
        if let Some(session) = &view.session {
            remove_from(&mut self.by_session, session, connection.key);
        }
    }

    pub(super) fn by_id(&self, id: &str) -> Option<Arc<Connection>> {
        self.by_id.get(id).cloned()
    }

    pub(super) fn of_user(&self, user: &str) -> Vec<Arc<Connection>> {
        self.by_user.get(user).map(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn of_session(&self, session: &str) -> Vec<Arc<Connection>> {
        self.by_session.get(session).map(|all| all.values().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn all(&self, protocol: Option<ProtocolId>) -> Vec<Arc<Connection>> {
        match protocol {
            Some(id) => self.by_protocol.get(id).map(|peers| peers.open.values().cloned().collect()).unwrap_or_default(),
            None => {
                let mut all: Vec<_> = self.by_id.values().cloned().collect();
                all.sort_by_key(|c| c.key);
                all
            }
        }
    }

    pub(super) fn count(&self, protocol: Option<ProtocolId>) -> usize {
        protocol.map_or(self.by_id.len(), |id| self.by_protocol.get(id).map_or(0, |peers| peers.open.len()))
    }

    /// Notes a change of a protocol's connections.
    pub(super) fn touch(&mut self, protocol: ProtocolId) {
        if let Some(peers) = self.by_protocol.get_mut(protocol) {
            peers.version += 1;
        }
    }

    /// Grows with each change of a protocol's connections.
    pub(super) fn version(&self, protocol: ProtocolId) -> u64 {
        self.by_protocol.get(protocol).map_or(0, |peers| peers.version)
    }
}

fn remove_from<K: Eq + Hash>(map: &mut HashMap<K, BTreeMap<u64, Arc<Connection>>>, name: &K, key: u64) {
    if let Some(all) = map.get_mut(name) {
        all.remove(&key);
        if all.is_empty() {
            map.remove(name);
        }
    }
}
