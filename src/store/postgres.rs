//! PostgreSQL: the URL, the lock that keeps a second server out, and the connections.
//!
//! The lock is held by the writer's connection. Who has it knows that no earlier connection of this log can commit any more.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::timeout;

use super::StoreError;
use super::db::{Either, Pool};
use super::sqlite::{ACQUIRE_WAIT, READERS};
use crate::config::plan::Secret;

/// How long a statement waits for a lock that another program holds before it fails.
const LOCK_WAIT: &str = if cfg!(test) { "50ms" } else { "2s" };

/// The writer's side of a database.
pub(super) struct Link {
    options: PgConnectOptions,
    /// None where the last transaction failed: the next one has a fresh connection.
    pub(super) db: Option<Box<PgConnection>>,
}

/// Connects, and keeps a second server out of the same schema.
pub(super) async fn open(url: &Secret) -> Result<(Link, Pool), StoreError> {
    let options = PgConnectOptions::from_str(&url.0)?.application_name("tramline");
    let place = place(&options);
    let failed = |source| StoreError::Open { place: place.clone(), source };
    let reading = options.clone().options([("default_transaction_read_only", "on")]);
    let options = options.options([("lock_timeout", LOCK_WAIT), ("statement_timeout", "30s")]);
    let mut db = connect(&options).await.map_err(failed)?;
    if !lock(&mut db).await.map_err(failed)? {
        return Err(StoreError::InUse { place, pid: None });
    }
    let readers = PgPoolOptions::new().max_connections(READERS).acquire_timeout(ACQUIRE_WAIT).connect_lazy_with(reading);
    Ok((Link { options, db: Some(db) }, Either::Postgres(readers)))
}

/// Where it is, without the password.
fn place(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
    format!("postgres://{host}:{}/{}", options.get_port(), options.get_database().unwrap_or(options.get_username()))
}

async fn connect(options: &PgConnectOptions) -> sqlx::Result<Box<PgConnection>> {
    let connected = timeout(ACQUIRE_WAIT, options.connect()).await;
    let mut db = Box::new(connected.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??);
    // An acknowledgement must outlive the power, whatever the server is set to. Stronger settings stay.
    sqlx::query("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
        .execute(&mut *db)
        .await?;
    Ok(db)
}

/// One server per schema. `false`: another has it.
async fn lock(db: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('tramline'), hashtext(current_schema()))").fetch_one(db).await
}

impl Link {
    pub(super) async fn take(&mut self) -> sqlx::Result<Box<PgConnection>> {
        match self.db.take() {
            Some(db) => Ok(db),
            None => connect(&self.options).await,
        }
    }

    pub(super) async fn close(&mut self) -> sqlx::Result<()> {
        match self.db.take() {
            Some(db) => db.close().await,
            None => Ok(()),
        }
    }
}
