//! Opening the database: connections, migrations, and what the last run left behind.

use futures_util::FutureExt;
use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::db::{Either, Pool, both};
use super::fault::{Fault, is_corruption};
use super::known::Known;
use super::link::Link;
use super::recover::{Recovered, recover};
use super::sqlite::DatabaseFile;
use super::{StoreError, postgres, salvage, sqlite};
use crate::config::plan::{DatabasePlan, StorePlan};
use crate::model::Now;

type Scripts = &'static [(i64, &'static str, &'static str)];

const SQLITE: Scripts = &[
    (1, "log", include_str!("../../migrations/sqlite/0001_log.sql")),
    (2, "retention", include_str!("../../migrations/sqlite/0002_retention.sql")),
    (3, "totals", include_str!("../../migrations/sqlite/0003_totals.sql")),
];
const POSTGRES: Scripts = &[(1, "log", include_str!("../../migrations/postgres/0001_log.sql"))];

/// The open database.
pub(super) struct Database {
    pub(super) link: Link,
    pub(super) readers: Pool,
    pub(super) known: Known,
}

pub(super) async fn open(plan: &StorePlan, now: Now) -> Result<(Database, Recovered), StoreError> {
    match &plan.database {
        DatabasePlan::Memory => {
            let (link, readers) = sqlite::memory().await?;
            ready(Either::Sqlite(link), readers, now).await
        }
        DatabasePlan::Sqlite(path) => on_file(DatabaseFile::lock(path)?, now).await,
        DatabasePlan::Postgres(url) => {
            let (link, readers) = postgres::open(url).await?;
            ready(Either::Postgres(link), readers, now).await
        }
    }
}

/// A file of ours that is no longer a valid database is set aside, and a new one begun: refusing to start would not bring back
/// what was in it.
async fn on_file(mut place: DatabaseFile, now: Now) -> Result<(Database, Recovered), StoreError> {
    let error = match try_file(&mut place, now).await {
        Err(error) if is_corrupt(&error) && place.may_set_aside() => error,
        Err(source) => return Err(located(source, &place)),
        Ok((link, readers, known, recovered)) => {
            place.note().map_err(|source| StoreError::Folder { path: place.path.clone(), source })?;
            return Ok((Database { link: with_place(link, place), readers, known }, recovered));
        }
    };
    let failed = |source| StoreError::Folder { path: place.path.clone(), source };
    let aside = place.set_aside(now.wall_ms).map_err(failed)?;
    tracing::error!(%error, aside = %aside.display(), "the database is corrupt and was set aside; a new log begins, and the old events are only in that file");
    let (mut link, readers, _, _) = try_file(&mut place, now).await?;
    salvage::from_file(&aside, &mut link).await;
    let (recovered, known) = recover(&mut link, now).await?;
    place.note().map_err(|source| StoreError::Folder { path: place.path.clone(), source })?;
    Ok((Database { link: with_place(link, place), readers, known }, recovered))
}

fn with_place(mut link: Link, place: DatabaseFile) -> Link {
    if let Either::Sqlite(link) = &mut link {
        link.file = Some(place);
    }
    link
}

/// Adds the file to an error.
fn located(error: StoreError, place: &DatabaseFile) -> StoreError {
    match error {
        StoreError::Query(source) => StoreError::Open { place: place.path.display().to_string(), source },
        error => error,
    }
}

async fn try_file(place: &mut DatabaseFile, now: Now) -> Result<(Link, Pool, Known, Recovered), StoreError> {
    let (pool, readers) = place.connect().await?;
    let mut link = Either::Sqlite(sqlite::Link::new(pool, None));
    let done = async {
        migrate(&mut link).await?;
        Ok(recover(&mut link, now).await?)
    };
    match done.await {
        Ok((recovered, known)) => Ok((link, readers, known, recovered)),
        Err(error) => {
            readers.close().await;
            link.close().await.ok();
            Err(error)
        }
    }
}

async fn ready(mut link: Link, readers: Pool, now: Now) -> Result<(Database, Recovered), StoreError> {
    migrate(&mut link).await?;
    let (recovered, known) = recover(&mut link, now).await?;
    Ok((Database { link, readers, known }, recovered))
}

/// Updates the tables. The store's own lock is held by then, so sqlx takes none.
pub(super) async fn migrate(link: &mut Link) -> Result<(), StoreError> {
    let scripts = if matches!(link, Either::Sqlite(_)) { SQLITE } else { POSTGRES };
    let migration = |&(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(scripts.iter().map(migration).collect());
    migrator.set_locking(false);
    let mut held = link.take().await?;
    if let Either::Postgres(db) = &mut held {
        // A new index over many rows may take long.
        sqlx::raw_sql("SET statement_timeout = 0").execute(&mut **db).await?;
    }
    // `run` itself requires more than the compiler can prove for a connection in a task.
    both!(&mut held, db => migrator.run_direct(None, &mut **db, false).boxed().await.map_err(explained)?);
    if let Either::Postgres(db) = &mut held {
        sqlx::raw_sql("RESET statement_timeout").execute(&mut **db).await?;
    }
    link.put_back(held);
    Ok(())
}

/// Returns the database's message instead of "a migration failed".
fn explained(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Fault::from(error).into(),
        error => StoreError::Migrate(error),
    }
}

fn is_corrupt(error: &StoreError) -> bool {
    match error {
        StoreError::Query(error) | StoreError::Open { source: error, .. } => is_corruption(error),
        StoreError::Corrupt(_) => true,
        _ => false,
    }
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Row(error) => Self::Query(error),
            Fault::Unable(reason) => Self::Unable(reason),
            Fault::Corrupt(reason) => Self::Corrupt(reason),
            Fault::Gone => Self::Unable(Fault::Gone.to_string().into()),
        }
    }
}
