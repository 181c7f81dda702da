//! PostgreSQL: the URL, the lock that keeps a second server out, and the connections.
//!
//! The writer's connection holds the lock. While it does, no earlier connection of this log can commit any more.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::StoreError;
use super::db::{Either, Pool};
use super::fault::Fault;
use super::sqlite::{ACQUIRE_WAIT, READERS};
use crate::config::plan::Secret;

/// How long a statement waits for a lock that another program holds before it fails.
const LOCK_WAIT: &str = if cfg!(test) { "50ms" } else { "2s" };
/// How long a start waits for the previous server to release the database.
const START_WAIT: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 5 });
/// How long a reader's query may take.
const QUERY_WAIT: &str = "30s";

/// The writer's side of a database.
pub(super) struct Link {
    options: PgConnectOptions,
    /// Where it is, without the password.
    pub(super) place: String,
    /// `None` if the last transaction failed: the next one uses a new connection.
    pub(super) db: Option<Box<PgConnection>>,
    /// The server process of the last connection.
    process: i32,
    /// The name that this run wrote, once it has begun.
    pub(super) run: Option<String>,
}

/// Connects, and keeps a second server out of the same schema.
pub(super) async fn open(url: &Secret) -> Result<(Link, Pool), StoreError> {
    // The URL contains a password, so nothing of it is repeated.
    let options = PgConnectOptions::from_str(&url.0).map_err(|_| StoreError::Url)?.application_name("tramline");
    // The brackets of an IPv6 address belong to the URL, not to the address.
    let host = options.get_host().trim_matches(['[', ']']).to_owned();
    let options = options.host(&host);
    let place = place(&options);
    let reading = options.clone().options([("default_transaction_read_only", "on"), ("statement_timeout", QUERY_WAIT)]);
    let options = options.options([
        ("lock_timeout", LOCK_WAIT),
        ("statement_timeout", QUERY_WAIT),
        // So the server releases the lock of a connection that broke on the way.
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
    ]);
    let mut link = Link { options, place, db: None, process: 0, run: None };
    let failed = |source| StoreError::Open { place: link.place.clone(), source };
    let mut db = connect(&link.options).await.map_err(failed)?;
    let until = Instant::now() + START_WAIT;
    while !lock(&mut db).await.map_err(failed)? {
        if Instant::now() > until {
            return Err(StoreError::InUse { place: link.place, pid: None });
        }
        sleep(Duration::from_millis(50)).await;
    }
    link.process = process(&mut db).await.map_err(failed)?;
    link.db = Some(db);
    let readers = PgPoolOptions::new().max_connections(READERS).acquire_timeout(ACQUIRE_WAIT).connect_lazy_with(reading);
    Ok((link, Pool::new(Either::Postgres(readers))))
}

fn place(options: &PgConnectOptions) -> String {
    let host = options.get_socket().map_or_else(|| options.get_host().to_owned(), |path| path.display().to_string());
    format!("postgres://{host}:{}/{}", options.get_port(), options.get_database().unwrap_or(options.get_username()))
}

async fn connect(options: &PgConnectOptions) -> sqlx::Result<Box<PgConnection>> {
    let connected = timeout(ACQUIRE_WAIT, options.connect()).await;
    let mut db = Box::new(connected.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??);
    // An acknowledgement must survive a power failure, whatever the server's setting. Stronger settings stay.
    sqlx::query("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
        .execute(&mut *db)
        .await?;
    Ok(db)
}

/// Allows one server per schema. `false`: another has the lock.
async fn lock(db: &mut PgConnection) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtext('tramline'), hashtext(COALESCE(current_schema(), '')))").fetch_one(db).await
}

async fn process(db: &mut PgConnection) -> sqlx::Result<i32> {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(db).await
}

impl Link {
    /// The connection, or a new one that is as good: it has the lock, and nobody wrote in between.
    pub(super) async fn take(&mut self) -> Result<Box<PgConnection>, Fault> {
        if let Some(db) = self.db.take() {
            return Ok(db);
        }
        let mut db = connect(&self.options).await?;
        if !lock(&mut db).await? {
            self.end_the_last(&mut db).await?;
            if !lock(&mut db).await? {
                return Err(Fault::Unable("another process has the lock of the database".into()));
            }
        }
        let wrote: Option<String> = match &self.run {
            Some(_) => sqlx::query_scalar("SELECT value FROM meta WHERE key = 'run'").fetch_optional(&mut *db).await?,
            None => None,
        };
        if wrote != self.run {
            return Err(Fault::Unable(
                "another server has written to the database meanwhile; restart this server to continue from there".into(),
            ));
        }
        self.process = process(&mut db).await?;
        Ok(db)
    }

    /// Ends the previous connection at the server, if it still has the lock: a broken network leaves it there.
    async fn end_the_last(&self, db: &mut PgConnection) -> sqlx::Result<()> {
        let sql = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
                   WHERE l.locktype = 'advisory' AND l.pid = $1 AND a.application_name = 'tramline' AND a.datname = current_database()";
        let ended = sqlx::query(sql).bind(self.process).execute(&mut *db).await?;
        if ended.rows_affected() > 0 {
            let until = Instant::now() + START_WAIT;
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
            while sqlx::query_scalar::<_, i64>(sql).bind(self.process).fetch_one(&mut *db).await? > 0 && Instant::now() < until {
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    pub(super) async fn close(&mut self) -> sqlx::Result<()> {
        match self.db.take() {
            Some(db) => db.close().await,
            None => Ok(()),
        }
    }
}
