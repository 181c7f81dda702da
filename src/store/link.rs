//! The writer's hold on the database: one connection, transactions by hand, and a fresh connection after an error.

use super::db::{Either, Held, both};
use super::fault::is_about_a_row;
use super::{StoreError, postgres, sqlite};

/// The writer's side of either database.
pub(super) type Link = Either<sqlite::Link, postgres::Link>;

impl Link {
    /// The connection, outside a transaction.
    pub(super) async fn take(&mut self) -> sqlx::Result<Held> {
        Ok(match self {
            Either::Sqlite(link) => Held::Sqlite(link.pool.acquire().await?),
            Either::Postgres(link) => Held::Postgres(link.take().await?),
        })
    }

    /// The connection, within a transaction that writes.
    pub(super) async fn begin(&mut self) -> sqlx::Result<Held> {
        let mut held = self.take().await?;
        let begun = match &mut held {
            Either::Sqlite(db) => sqlx::query("BEGIN IMMEDIATE").execute(&mut **db).await.map(drop),
            Either::Postgres(db) => sqlx::query("BEGIN").execute(&mut **db).await.map(drop),
        };
        match begun {
            Ok(()) => Ok(held),
            Err(error) => {
                self.discard(held);
                Err(error)
            }
        }
    }

    /// Commits what was done, or takes it back where it failed. By hand rather than as a transaction of sqlx's: a full disk
    /// ends a transaction on its own, which that one never learns.
    pub(super) async fn end<T>(&mut self, mut held: Held, done: sqlx::Result<T>) -> sqlx::Result<T> {
        let word = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = both!(&mut held, db => sqlx::query(word).execute(&mut **db).await.map(drop));
        match (done, ended) {
            (Ok(done), Ok(())) => {
                self.put_back(held);
                Ok(done)
            }
            (Ok(_), Err(error)) => {
                both!(&mut held, db => sqlx::query("ROLLBACK").execute(&mut **db).await.map(drop)).ok();
                self.discard(held);
                Err(error)
            }
            (Err(error), ended) => {
                match ended {
                    Ok(()) if is_about_a_row(&error) => self.put_back(held),
                    _ => self.discard(held),
                }
                Err(error)
            }
        }
    }

    /// For the next transaction.
    pub(super) fn put_back(&mut self, held: Held) {
        if let (Either::Postgres(link), Either::Postgres(db)) = (self, held) {
            link.db = Some(db);
        }
    }

    /// A connection that failed is not used again.
    fn discard(&self, mut held: Held) {
        if let (Either::Sqlite(link), Either::Sqlite(db)) = (self, &mut held)
            && !link.is_kept()
        {
            db.close_on_drop();
        }
    }

    pub(super) async fn close(&mut self) -> Result<(), StoreError> {
        match self {
            Either::Sqlite(link) => link.pool.close().await,
            Either::Postgres(link) => link.close().await?,
        }
        Ok(())
    }
}
