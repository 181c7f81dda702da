//! Databases for tests: each test has its own, on SQLite or on the PostgreSQL server that TRAMLINE_TEST_POSTGRES names.

use std::path::PathBuf;

use futures_util::FutureExt;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions, FromRow, PgConnection, SqliteConnection};

use super::super::db::{Either, both};
use crate::config::plan::{DatabasePlan, Secret, StorePlan};

pub(in crate::store) fn memory() -> StorePlan {
    DatabasePlan::Memory.into()
}

/// A database of one test.
pub(in crate::store) struct Base {
    pub(in crate::store) plan: StorePlan,
    /// SQLite: its folder.
    folder: Option<tempfile::TempDir>,
}

/// Makes two tests from one body: `on_both! { async fn name(base) { … } }`.
macro_rules! on_both {
    ($($(#[$more:meta])* async fn $name:ident($base:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn body($base: &Base) $body

            $(#[$more])*
            #[tokio::test]
            async fn sqlite() {
                body(&Base::sqlite()).await;
            }

            #[tokio::test]
            #[ignore = "needs PostgreSQL"]
            async fn postgres() {
                Base::with_postgres(async |base| body(base).await).await;
            }
        }
    )*};
}
pub(in crate::store) use on_both;

impl Base {
    pub(in crate::store) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let plan = DatabasePlan::Sqlite(folder.path().join("data/deep/tramline.db")).into();
        Self { plan, folder: Some(folder) }
    }

    /// Runs a test on a new database, which is dropped however it ends.
    pub(in crate::store) async fn with_postgres(test: impl AsyncFnOnce(&Self)) {
        let server = std::env::var("TRAMLINE_TEST_POSTGRES").expect("TRAMLINE_TEST_POSTGRES: the URL of a PostgreSQL server");
        let options: PgConnectOptions = server.parse().unwrap();
        let name = format!("tramline_{}", uuid::Uuid::new_v4().simple());
        let mut db = options.connect().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut db).await.unwrap();
        let (address, rest) = server.split_once("://").unwrap();
        let host = rest.split(['/', '?']).next().unwrap();
        let url = format!("{address}://{host}/{name}");
        let base = Self { plan: DatabasePlan::Postgres(Secret(url.into())).into(), folder: None };
        let ended = std::panic::AssertUnwindSafe(test(&base)).catch_unwind().await;
        sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut db).await.unwrap();
        if let Err(panic) = ended {
            std::panic::resume_unwind(panic);
        }
    }

    /// The file; SQLite only.
    pub(in crate::store) fn path(&self) -> PathBuf {
        let DatabasePlan::Sqlite(path) = &self.plan.database else { panic!("no file") };
        path.clone()
    }

    pub(in crate::store) fn folder(&self) -> PathBuf {
        self.folder.as_ref().unwrap().path().to_owned()
    }

    pub(in crate::store) fn is_postgres(&self) -> bool {
        matches!(self.plan.database, DatabasePlan::Postgres(_))
    }

    /// A connection of another program.
    pub(in crate::store) async fn stranger(&self) -> Stranger {
        Stranger(match &self.plan.database {
            DatabasePlan::Sqlite(path) => Either::Sqlite(Box::new(SqliteConnectOptions::new().filename(path).connect().await.unwrap())),
            DatabasePlan::Postgres(url) => Either::Postgres(Box::new(url.0.parse::<PgConnectOptions>().unwrap().connect().await.unwrap())),
            DatabasePlan::Memory => panic!("nobody else sees it"),
        })
    }
}

pub(in crate::store) struct Stranger(pub(in crate::store) Either<Box<SqliteConnection>, Box<PgConnection>>);

impl Stranger {
    pub(in crate::store) async fn run(&mut self, sql: &str) {
        both!(&mut self.0, db => sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut **db).await.map(drop).unwrap());
    }

    pub(in crate::store) async fn rows<T>(&mut self, sql: &'static str) -> Vec<T>
    where
        T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        both!(&mut self.0, db => sqlx::query_as(sql).fetch_all(&mut **db).await.unwrap())
    }
}
