//! The two databases as one type. Their SQL is the same text where they agree, so a query is written once and expanded for each.
//! Placeholders are `$1`, `$2`; `"offset"` and `"user"` are quoted; numbers have 64 bits.

use std::sync::{Arc, OnceLock};

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Sqlite, SqlitePool};

use super::fault::is_corruption;

/// One of the two.
#[derive(Debug, Clone)]
pub(super) enum Either<S, P> {
    Sqlite(S),
    Postgres(P),
}

/// Where readers get their connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) db: Either<SqlitePool, PgPool>,
    /// The damage that a reader has found, if any.
    corruption: Arc<OnceLock<Arc<str>>>,
}

/// A connection in use.
pub(super) type Held = Either<PoolConnection<Sqlite>, Box<PgConnection>>;

/// Expands code for each database: `both!(&pool.db, db => sqlx::query("…").fetch_all(db).await?)`, with any `Either`; for a
/// [`Held`] connection `db` is used as `&mut **db`.
macro_rules! both {
    ($either:expr, $db:ident => $body:expr) => {
        match $either {
            $crate::store::db::Either::Sqlite($db) => $body,
            $crate::store::db::Either::Postgres($db) => $body,
        }
    };
}

pub(super) use both;

impl Pool {
    pub(super) fn new(db: Either<SqlitePool, PgPool>) -> Self {
        Self { db, corruption: Arc::default() }
    }

    /// Tells the writer if an error reports damage.
    pub(super) fn heed(&self, error: &sqlx::Error) {
        if is_corruption(error) {
            self.is_corrupt(&error.to_string());
        }
    }

    /// Tells the writer that what is read here is damaged.
    pub(super) fn is_corrupt(&self, reason: &str) {
        self.corruption.get_or_init(|| reason.into());
    }

    /// What was found, if anything.
    pub(super) fn corruption(&self) -> Option<Arc<str>> {
        self.corruption.get().cloned()
    }

    /// Resolves when its connections are closed.
    pub(super) async fn close(&self) {
        both!(&self.db, db => db.close().await);
    }
}
