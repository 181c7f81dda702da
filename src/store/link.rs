//! The writer's hold on the database: one connection, transactions by hand, and a fresh connection after an error.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::db::{Either, Held};
use super::fault::Fault;
use super::{postgres, sqlite};

/// How long a whole transaction may take where the database is behind a network, which can swallow what is said.
const ANSWER_WAIT: Duration = Duration::from_secs(35);

/// The writer's side of either database.
pub(super) type Link = Either<sqlite::Link, postgres::Link>;

impl Link {
    /// The connection, outside a transaction.
    pub(super) async fn take(&mut self) -> Result<Held, Fault> {
        Ok(match self {
            Either::Sqlite(link) => Held::Sqlite(link.pool.acquire().await?),
            Either::Postgres(link) => Held::Postgres(link.take().await?),
        })
    }

    /// The connection, within a transaction that writes.
    pub(super) async fn begin(&mut self) -> Result<Held, Fault> {
        let mut held = self.take().await?;
        let word = if self.is_remote() { "BEGIN" } else { "BEGIN IMMEDIATE" };
        match say(&mut held, word).await {
            Ok(()) => Ok(held),
            Err(error) => {
                self.discard(held);
                Err(error.into())
            }
        }
    }

    /// Commits what was done, or takes it back where it failed. By hand rather than as a transaction of sqlx's: a full disk
    /// ends a transaction on its own, which that one never learns.
    pub(super) async fn end<T>(&mut self, mut held: Held, done: sqlx::Result<T>) -> Result<T, Fault> {
        let word = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = say(&mut held, word).await;
        match (done, ended) {
            (Ok(done), Ok(())) => {
                self.put_back(held);
                // What was written to a file that nobody can find any more is not stored.
                if self.is_there() { Ok(done) } else { Err(Fault::Gone) }
            }
            (Ok(_), Err(error)) => {
                let undone = say(&mut held, "ROLLBACK").await;
                tracing::debug!(?undone, "a commit failed");
                self.discard(held);
                Err(error.into())
            }
            (Err(error), ended) => {
                let fault = Fault::from(error);
                match ended {
                    Ok(()) if matches!(fault, Fault::Row(_)) => self.put_back(held),
                    _ => self.discard(held),
                }
                Err(fault)
            }
        }
    }

    /// One transaction, or an error where the network has swallowed it. The connection is dropped with the work then.
    pub(super) async fn in_time<T>(is_remote: bool, work: BoxFuture<'_, Result<T, Fault>>) -> Result<T, Fault> {
        if !is_remote {
            return work.await;
        }
        timeout(ANSWER_WAIT, work).await.unwrap_or_else(|_| Err(Fault::Unable("the database does not answer".into())))
    }

    pub(super) fn is_remote(&self) -> bool {
        matches!(self, Either::Postgres(_))
    }

    /// Whether the file is the one that was opened.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Either::Sqlite(link) => link.file.as_ref().is_none_or(sqlite::DatabaseFile::is_there),
            Either::Postgres(_) => true,
        }
    }

    /// For the next transaction.
    pub(super) fn put_back(&mut self, held: Held) {
        if let (Either::Postgres(link), Either::Postgres(db)) = (self, held) {
            link.db = Some(db);
        }
    }

    /// A connection that failed is not used again: one whose thread has died would fail for ever. A database in memory is its
    /// connection and stays.
    fn discard(&self, mut held: Held) {
        if let (Either::Sqlite(link), Either::Sqlite(db)) = (self, &mut held)
            && link.file.is_some()
        {
            db.close_on_drop();
        }
    }

    pub(super) async fn close(&mut self) -> sqlx::Result<()> {
        match self {
            Either::Sqlite(link) => link.pool.close().await,
            Either::Postgres(link) => link.close().await?,
        }
        Ok(())
    }
}

/// A word without parameters: SQLite keeps it prepared, to PostgreSQL it is one message there and back.
async fn say(held: &mut Held, word: &'static str) -> sqlx::Result<()> {
    match held {
        Either::Sqlite(db) => sqlx::query(word).execute(&mut **db).await.map(drop),
        Either::Postgres(db) => sqlx::raw_sql(word).execute(&mut **db).await.map(drop),
    }
}
