//! The writer's connection to the database: transactions by hand, and a new connection after an error. A slow transaction is
//! logged, with what took the time.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Executor, Sqlite};
use tokio::time::timeout;

use super::db::{Either, Held};
use super::fault::Fault;
use super::slow::Clock;
use super::{postgres, sqlite};

/// How long a whole transaction may take if the database is behind a network, in which messages can get lost.
const ANSWER_WAIT: Duration = Duration::from_secs(35);

/// The writer's side of either database.
pub(super) type Link = Either<sqlite::Link, postgres::Link>;

/// One or more SQL statements for SQLite in one text, with their parameters.
type Sentence<'q> = Query<'q, Sqlite, SqliteArguments>;

/// A transaction in progress. The caller that began it must end it.
pub(super) struct Open {
    held: Held,
    clock: Clock,
}

impl Deref for Open {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.held
    }
}

impl DerefMut for Open {
    fn deref_mut(&mut self) -> &mut Held {
        &mut self.held
    }
}

impl Link {
    /// The connection, outside a transaction.
    pub(super) async fn take(&mut self) -> Result<Held, Fault> {
        Ok(match self {
            Either::Sqlite(link) => Held::Sqlite(link.take().await?),
            Either::Postgres(link) => Held::Postgres(link.take().await?),
        })
    }

    /// The connection, within a transaction that writes this many rows, if known.
    pub(super) async fn begin(&mut self, rows: usize) -> Result<Open, Fault> {
        let mut clock = Clock::new(rows);
        let mut held = self.take().await?;
        let word = if self.is_remote() { "BEGIN" } else { "BEGIN IMMEDIATE" };
        match say(&mut held, word).await {
            Ok(()) => {
                clock.step();
                Ok(Open { held, clock })
            }
            Err(error) => {
                self.discard(held);
                Err(error.into())
            }
        }
    }

    /// Commits what was done, or rolls it back if it failed. By hand rather than as a transaction of sqlx: a full disk ends a
    /// transaction on its own, which sqlx never notices.
    pub(super) async fn end<T>(&mut self, open: Open, done: sqlx::Result<T>) -> Result<T, Fault> {
        let Open { mut held, mut clock } = open;
        let done = match done {
            Ok(done) => done,
            Err(error) => return Err(self.undo(held, error).await),
        };
        clock.step();
        match say(&mut held, "COMMIT").await {
            Ok(()) => {
                clock.step();
                self.committed(held, &clock).map(|()| done)
            }
            Err(error) => {
                let undone = say(&mut held, "ROLLBACK").await;
                tracing::debug!(?undone, "a commit failed");
                self.discard(held);
                Err(error.into())
            }
        }
    }

    /// [`begin`](Self::begin) on SQLite, with a text that begins the transaction and continues with other statements.
    pub(super) async fn begin_with(&mut self, rows: usize, text: Sentence<'_>) -> Result<Open, Fault> {
        let clock = Clock::new(rows);
        let held = self.take().await?;
        self.go_on(Open { held, clock }, text).await
    }

    /// Runs more statements. If that fails, everything is rolled back.
    pub(super) async fn go_on(&mut self, mut open: Open, text: Sentence<'_>) -> Result<Open, Fault> {
        match each(&mut open, text).await {
            Ok(()) => Ok(open),
            Err(error) => Err(self.undo(open.held, error).await),
        }
    }

    /// [`end`](Self::end) with a text whose last statement is the commit.
    pub(super) async fn end_with(&mut self, open: Open, text: Sentence<'_>) -> Result<(), Fault> {
        let Open { held, clock } = self.go_on(open, text).await?;
        self.committed(held, &clock)
    }

    fn committed(&mut self, held: Held, clock: &Clock) -> Result<(), Fault> {
        clock.tell();
        self.put_back(held);
        // What was written to a file that has been removed is not stored.
        if self.is_there() { Ok(()) } else { Err(Fault::Gone) }
    }

    /// Rolls back what was done before an error.
    async fn undo(&mut self, mut held: Held, error: sqlx::Error) -> Fault {
        let fault = Fault::from(error);
        match say(&mut held, "ROLLBACK").await {
            Ok(()) if matches!(fault, Fault::Row(_)) => self.put_back(held),
            _ => self.discard(held),
        }
        fault
    }

    /// Runs one transaction, with an error if the network has lost it. The connection is then dropped together with the work.
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

    /// Keeps the connection for the next transaction.
    pub(super) fn put_back(&mut self, held: Held) {
        match (self, held) {
            (Either::Sqlite(link), Either::Sqlite(db)) => link.put_back(db),
            (Either::Postgres(link), Either::Postgres(db)) => link.db = Some(db),
            _ => {}
        }
    }

    /// A connection that failed is not used again: one whose thread has died would fail every time. A database in memory is its
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
            Either::Sqlite(link) => link.close().await,
            Either::Postgres(link) => link.close().await?,
        }
        Ok(())
    }
}

/// Runs the statements of one text on SQLite, and notes the time after each.
async fn each(Open { held, clock }: &mut Open, text: Sentence<'_>) -> sqlx::Result<()> {
    let Held::Sqlite(db) = held else { return Err(sqlx::Error::Protocol("a text for SQLite".into())) };
    let mut said = (&mut **db).execute_many(text);
    while said.try_next().await?.is_some() {
        clock.step();
    }
    Ok(())
}

/// A statement without parameters: SQLite keeps it prepared, and for PostgreSQL it is one round trip.
async fn say(held: &mut Held, word: &'static str) -> sqlx::Result<()> {
    match held {
        Either::Sqlite(db) => sqlx::query(word).execute(&mut **db).await.map(drop),
        Either::Postgres(db) => sqlx::raw_sql(word).execute(&mut **db).await.map(drop),
    }
}
