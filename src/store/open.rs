//! Opening the database: connections, migrations, and what the last run left behind.

use sqlx::SqlSafeStr;
use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::db::{Either, Pool, both};
use super::link::Link;
use super::recover::{Recovered, recover};
use super::{StoreError, postgres, sqlite};
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
}

pub(super) async fn open(plan: &StorePlan, now: Now) -> Result<(Database, Recovered), StoreError> {
    let mut database = match &plan.database {
        DatabasePlan::Memory => on_sqlite(sqlite::memory().await?),
        DatabasePlan::Sqlite(path) => on_sqlite(sqlite::open(path).await?),
        DatabasePlan::Postgres(url) => {
            let (link, readers) = postgres::open(url).await?;
            Database { link: Either::Postgres(link), readers }
        }
    };
    migrate(&mut database.link).await?;
    let recovered = recover(&mut database.link, now).await?;
    Ok((database, recovered))
}

fn on_sqlite((link, readers): (sqlite::Link, Pool)) -> Database {
    Database { link: Either::Sqlite(link), readers }
}

/// Our own lock is held by then, so sqlx takes none.
async fn migrate(link: &mut Link) -> Result<(), StoreError> {
    let scripts = if matches!(link, Either::Sqlite(_)) { SQLITE } else { POSTGRES };
    let migration = |&(version, name, sql): &(i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    let mut migrator = Migrator::with_migrations(scripts.iter().map(migration).collect());
    migrator.set_locking(false);
    let mut held = link.take().await?;
    both!(&mut held, db => migrator.run(&mut **db).await?);
    link.put_back(held);
    Ok(())
}
