//! Opening the database: folder, lock, connections, migrations, and what the last run left behind.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, SqlSafeStr};

use super::StoreError;
use crate::config::plan::{DatabasePlan, StorePlan};
use crate::model::event::Epoch;
use crate::model::event::fresh_epoch;
use crate::model::{ChannelName, Now};

/// Connections for readers. Queries are short and bounded; more would only queue for the disk.
const READERS: u32 = 4;
/// How long a statement waits for a lock that another program holds (a backup, a shell) before it fails.
const BUSY_WAIT: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });
/// How long a reader waits for a connection.
const ACQUIRE_WAIT: Duration = Duration::from_secs(5);
/// Pages of write-ahead log before it is copied back: 16 MiB.
const CHECKPOINT_PAGES: &str = "4096";
/// Rows read ahead per query. Few, because one row may be as large as a protocol's largest message.
const ROWS_AHEAD: usize = 8;

/// What is written of connections that a crash left open.
const LOST_REASON: &str = "server lost";

const MIGRATIONS: [(i64, &str, &str); 2] = [
    (1, "log", include_str!("../../migrations/sqlite/0001_log.sql")),
    (2, "retention", include_str!("../../migrations/sqlite/0002_retention.sql")),
];

/// What the last run left behind.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Every channel that ever had stored events.
    pub channels: Vec<Standing>,
    /// The newest place in the log.
    pub last_seq: u64,
    /// Totals by name.
    pub counters: HashMap<String, u64>,
    /// Whether the last run stopped in order. If not, every channel has a new epoch: what was delivered may not have been
    /// written, and an offset must never name two events of one epoch.
    pub clean: bool,
}

/// Where a channel stands in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: ChannelName,
    /// Its stream.
    pub epoch: Epoch,
    /// The newest offset.
    pub top: u64,
    /// The oldest offset that is still there; `top + 1` where nothing is.
    pub first: u64,
}

/// The open database.
pub(super) struct Database {
    /// One connection, which only the writer uses. In memory it is the readers' too.
    pub(super) writer: SqlitePool,
    pub(super) readers: SqlitePool,
    /// Keeps a second process out while it is open. None in memory.
    pub(super) lock: Option<File>,
}

pub(super) async fn open(plan: &StorePlan, now: Now) -> Result<(Database, Recovered), StoreError> {
    let database = match &plan.database {
        DatabasePlan::Memory => open_memory().await?,
        DatabasePlan::Sqlite(path) => open_file(path).await?,
        DatabasePlan::Postgres(_) => return Err(StoreError::Query(sqlx::Error::Configuration("no PostgreSQL yet".into()))),
    };
    let migrations =
        MIGRATIONS.map(|(version, name, sql)| Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false));
    Migrator::with_migrations(migrations.to_vec()).run(&database.writer).await?;
    let recovered = recover(&database.writer, now).await?;
    Ok((database, recovered))
}

/// The pragmas of every connection.
fn tuned(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .busy_timeout(BUSY_WAIT)
        .foreign_keys(false)
        .row_buffer_size(ROWS_AHEAD)
        .pragma("cache_size", "-16384")
        .pragma("temp_store", "MEMORY")
        .pragma("trusted_schema", "OFF")
}

/// No connection is closed for its age or for being idle: the writer's holds its statements, and in memory it is the database.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_WAIT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

async fn open_memory() -> Result<Database, StoreError> {
    let options = tuned(SqliteConnectOptions::from_str("sqlite::memory:")?).shared_cache(false);
    let writer = pool(1).connect_with(options).await?;
    Ok(Database { readers: writer.clone(), writer, lock: None })
}

async fn open_file(path: &Path) -> Result<Database, StoreError> {
    let (path, lock) = lock(path)?;
    let failed = |source| StoreError::Open { path: path.clone(), source };
    let file = tuned(SqliteConnectOptions::new().filename(&path));
    let writing = file
        .clone()
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // An acknowledgement must outlive the power. Grouped into batches this costs next to nothing.
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
        .pragma("journal_size_limit", "67108864");
    let writer = pool(1).connect_with(writing).await.map_err(failed)?;
    let readers = pool(READERS).connect_with(file.read_only(true)).await.map_err(failed)?;
    Ok(Database { writer, readers, lock: Some(lock) })
}

/// Takes `NAME.lock` beside the database. Not the file itself: closing a second handle to it would drop SQLite's own locks.
fn lock(path: &Path) -> Result<(PathBuf, File), StoreError> {
    let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| StoreError::Folder { path, source }
    };
    std::fs::create_dir_all(folder).map_err(failed(folder))?;
    // One file by two names must meet one lock.
    let path = match path.canonicalize() {
        Ok(real) => real,
        Err(_) => folder.canonicalize().map_err(failed(folder))?.join(path.file_name().unwrap_or_default()),
    };
    let mut name = path.clone().into_os_string();
    name.push(".lock");
    let name = PathBuf::from(name);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name).map_err(failed(&name))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let read = (&mut file).take(20).read_to_string(&mut text);
            return Err(StoreError::InUse { path, pid: read.ok().and_then(|_| text.trim().parse().ok()) });
        }
        Err(TryLockError::Error(source)) => return Err(failed(&name)(source)),
    }
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write().map_err(failed(&name))?;
    Ok((path, file))
}

/// Reads what the last run left and puts it in order, in one transaction. After it the file is clean until the writer begins,
/// so a start that fails for another reason costs no epoch.
async fn recover(writer: &SqlitePool, now: Now) -> Result<Recovered, StoreError> {
    let mut tx = writer.begin_with("BEGIN IMMEDIATE").await?;
    let flag: Option<String> = sqlx::query_scalar("SELECT value FROM meta WHERE key = 'clean'").fetch_optional(&mut *tx).await?;
    let clean = flag.is_none_or(|flag| flag == "1");
    if !clean {
        let fresh = fresh_epoch().cast_signed();
        sqlx::query("UPDATE channels SET epoch = CASE epoch WHEN $1 THEN $1 + 1 ELSE $1 END").bind(fresh).execute(&mut *tx).await?;
    }
    sqlx::query("UPDATE connections SET closed_ms = $1, code = 1006, reason = $2 WHERE closed_ms IS NULL")
        .bind(now.wall_ms)
        .bind(LOST_REASON)
        .execute(&mut *tx)
        .await?;
    sqlx::query("INSERT INTO meta (key, value) VALUES ('clean', '1') ON CONFLICT (key) DO UPDATE SET value = '1'")
        .execute(&mut *tx)
        .await?;
    let mut recovered = Recovered { clean, ..Recovered::default() };
    for row in sqlx::query("SELECT name, epoch, top, first FROM channels ORDER BY id").fetch_all(&mut *tx).await? {
        let (epoch, top, first): (i64, i64, i64) = (row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        if let Some(name) = ChannelName::parse(row.try_get(0)?) {
            let (epoch, top, first) = (epoch.cast_unsigned(), top.cast_unsigned(), first.cast_unsigned());
            recovered.channels.push(Standing { name, epoch, top, first });
        }
    }
    let last: Option<i64> = sqlx::query_scalar("SELECT max(id) FROM events").fetch_one(&mut *tx).await?;
    recovered.last_seq = last.unwrap_or_default().cast_unsigned();
    for row in sqlx::query("SELECT name, value FROM counters").fetch_all(&mut *tx).await? {
        let (name, value): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
        recovered.counters.insert(name, value.cast_unsigned());
    }
    tx.commit().await?;
    Ok(recovered)
}
