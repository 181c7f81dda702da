//! Looks up the user of a session. Done once for each connection that names a session, and not at all
//! while nobody has made any.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use tokio::time::timeout;

use crate::model::{Now, UserId};
use crate::store::{SessionRecord, Store, StoreError};

/// How long a connection may wait for the answer. After that it continues without a user.
const ASK_WITHIN: Duration = Duration::from_secs(2);

const UNKNOWN: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;

/// The stored sessions.
pub struct Sessions {
    store: Store,
    /// Whether there are any sessions. Once there was one, they are looked up.
    any: AtomicU8,
}

impl Sessions {
    /// The sessions of this store.
    pub fn new(store: Store) -> Self {
        Self { store, any: AtomicU8::new(UNKNOWN) }
    }

    /// A session was created: from now on sessions are looked up.
    pub fn noted(&self) {
        self.any.store(SOME, Relaxed);
    }

    /// A session that has not ended.
    pub async fn find(&self, id: &str, now: Now) -> Result<Option<SessionRecord>, StoreError> {
        Ok(self.store.session(id).await?.filter(|session| session.expires_ms > now.wall_ms))
    }

    /// The user of a session, if the session is stored, has not ended, and has one. A store that does not answer keeps nobody out: the
    /// connection then has no user.
    pub async fn user(&self, id: &str, now: Now) -> Option<UserId> {
        let ask = async { if self.are_any().await? { self.find(id, now).await } else { Ok(None) } };
        match timeout(ASK_WITHIN, ask).await {
            Ok(Ok(found)) => found?.user,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a connection's session could not be looked up");
                None
            }
            Err(_) => {
                tracing::warn!("a connection's session could not be looked up in time");
                None
            }
        }
    }

    async fn are_any(&self) -> Result<bool, StoreError> {
        if self.any.load(Relaxed) == UNKNOWN {
            let found = !self.store.sessions(None, 1, None).await?.entries.is_empty();
            // A session that was created meanwhile has set this, and that counts.
            self.any.compare_exchange(UNKNOWN, if found { SOME } else { NONE }, Relaxed, Relaxed).ok();
        }
        Ok(self.any.load(Relaxed) == SOME)
    }
}
