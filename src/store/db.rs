//! The two databases as one type: what is said to them is the same text where they agree, so a query is written once and
//! expanded for each. Placeholders are `$1`, `$2`; `"offset"` and `"user"` are quoted; numbers are 64 bits.

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Sqlite, SqlitePool};

/// One of the two.
#[derive(Debug, Clone)]
pub(super) enum Either<S, P> {
    Sqlite(S),
    Postgres(P),
}

/// Where readers get their connections. Cheap to clone.
pub(super) type Pool = Either<SqlitePool, PgPool>;

/// A connection in somebody's hands.
pub(super) type Held = Either<PoolConnection<Sqlite>, Box<PgConnection>>;

/// Expands what is done for each database: `both!(pool, db => sqlx::query("…").bind(1).fetch_all(db).await?)`. `pool` is
/// anything that is an `Either`; for a [`Held`] connection `db` is used as `&mut **db`.
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
    /// Resolves when its connections are closed.
    pub(super) async fn close(&self) {
        both!(self, db => db.close().await);
    }
}
