//! SQLite: the folder, the lock that keeps a second process out, and the connections.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};

use super::StoreError;
use super::db::{Either, Pool};

/// Connections for readers. Queries are short and bounded; more would only queue for the disk.
pub(super) const READERS: u32 = 4;
/// How long a reader waits for a connection.
pub(super) const ACQUIRE_WAIT: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock that another program holds (a backup, a shell) before it fails.
const BUSY_WAIT: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });
/// Pages of write-ahead log before it is copied back: 16 MiB.
const CHECKPOINT_PAGES: &str = "4096";
/// Rows read ahead per query. Few, because one row may be as large as a protocol's largest message.
const ROWS_AHEAD: usize = 8;

/// The writer's side of an open file, or of a database in memory.
pub(super) struct Link {
    /// One connection, which only the writer uses. In memory it is the readers' too.
    pub(super) pool: SqlitePool,
    /// None in memory.
    pub(super) file: Option<Opened>,
}

/// The file that is open.
pub(super) struct Opened {
    path: PathBuf,
    /// Keeps a second process out while it is open.
    lock: File,
}

impl Link {
    /// After an error the next transaction has a fresh connection: one whose thread has died would fail for ever. In memory it
    /// is the database itself and stays.
    pub(super) fn is_kept(&self) -> bool {
        self.file.is_none()
    }
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

/// A database that is gone with the process.
pub(super) async fn memory() -> Result<(Link, Pool), StoreError> {
    let options = tuned(SqliteConnectOptions::from_str("sqlite::memory:")?).shared_cache(false);
    let pool = pool(1).connect_with(options).await?;
    Ok((Link { pool: pool.clone(), file: None }, Either::Sqlite(pool)))
}

/// The file of this path, made where it is not there.
pub(super) async fn open(path: &Path) -> Result<(Link, Pool), StoreError> {
    let (path, lock) = lock(path)?;
    let failed = |source| StoreError::Open { place: path.display().to_string(), source };
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
    Ok((Link { pool: writer, file: Some(Opened { path, lock }) }, Either::Sqlite(readers)))
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
            return Err(StoreError::InUse { place: path.display().to_string(), pid: read.ok().and_then(|_| text.trim().parse().ok()) });
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
