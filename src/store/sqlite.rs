//! SQLite: the folder, the lock that keeps a second process out, the connections, and whether the file is still the one that
//! was opened.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Sqlite};

use super::StoreError;
use super::db::{Either, Pool};

/// Connections for readers. Queries are short and bounded; more would only queue for the disk.
pub(super) const READERS: u32 = 4;
/// How long a reader waits for a connection.
pub(super) const ACQUIRE_WAIT: Duration = Duration::from_secs(5);
/// How long a statement waits for a lock that another program (a backup, a shell) holds before it fails.
const BUSY_WAIT: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });
/// Pages of write-ahead log before it is copied back: 64 MiB. The more, the fewer times a page that changes often is copied.
const CHECKPOINT_PAGES: &str = "16384";
/// Rows read ahead per query. Few, because one row may be as large as a protocol's largest message.
const ROWS_AHEAD: usize = 8;
/// Statements that stay prepared: more than there are different texts.
const STATEMENTS: usize = 256;
/// How every SQLite file begins.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// The writer's side of an open file, or of a database in memory.
pub(super) struct Link {
    /// One connection, which only the writer uses. For a database in memory the readers use it too.
    pub(super) pool: SqlitePool,
    /// The connection, kept between two transactions on a file: returning it each time would be another round trip to its
    /// thread.
    kept: Option<PoolConnection<Sqlite>>,
    /// `None` for a database in memory.
    pub(super) file: Option<DatabaseFile>,
    /// Statements that a test wants to be run before the next transaction.
    #[cfg(test)]
    pub(super) said: std::sync::Arc<parking_lot::Mutex<Vec<&'static str>>>,
}

impl Link {
    pub(super) fn new(pool: SqlitePool, file: Option<DatabaseFile>) -> Self {
        Self {
            pool,
            kept: None,
            file,
            #[cfg(test)]
            said: std::sync::Arc::default(),
        }
    }

    pub(super) async fn take(&mut self) -> sqlx::Result<PoolConnection<Sqlite>> {
        #[cfg_attr(not(test), expect(unused_mut))]
        let mut db = match self.kept.take() {
            Some(db) => db,
            None => self.pool.acquire().await?,
        };
        #[cfg(test)]
        let said = std::mem::take(&mut *self.said.lock());
        #[cfg(test)]
        for word in said {
            sqlx::query(word).execute(&mut *db).await?;
        }
        Ok(db)
    }

    pub(super) fn put_back(&mut self, db: PoolConnection<Sqlite>) {
        self.kept = self.file.is_some().then_some(db);
    }

    /// Continues with another pool.
    pub(super) fn replace(&mut self, pool: SqlitePool) -> SqlitePool {
        self.kept = None;
        std::mem::replace(&mut self.pool, pool)
    }

    pub(super) async fn close(&mut self) {
        self.kept = None;
        self.pool.close().await;
    }
}

/// A file that only this process uses.
pub(super) struct DatabaseFile {
    pub(super) path: PathBuf,
    /// Keeps a second process out while it is open.
    lock: File,
    /// Device and inode of the database and of its write-ahead log when they were opened.
    opened: [Option<(u64, u64)>; 2],
    /// The lock file names a process: a database of ours was here before.
    ours: bool,
    /// What was set aside and is not salvaged yet.
    pub(super) aside: Option<PathBuf>,
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

/// No connection is closed for its age or for being idle: the writer's keeps its statements, and in memory it is the database.
fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_WAIT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// A database that ends with the process.
pub(super) async fn memory() -> Result<(Link, Pool), StoreError> {
    let options = tuned(SqliteConnectOptions::from_str("sqlite::memory:")?).shared_cache(false);
    let pool = pool(1).connect_with(options).await?;
    Ok((Link::new(pool.clone(), None), Pool::new(Either::Sqlite(pool))))
}

/// For reading one file outside the pool.
pub(super) fn reading(path: &Path) -> SqliteConnectOptions {
    tuned(SqliteConnectOptions::new().filename(path)).read_only(true)
}

impl DatabaseFile {
    /// Takes `NAME.lock` beside the database. Not the file itself: closing a second handle to it would drop SQLite's own locks.
    pub(super) fn lock(path: &Path) -> Result<Self, StoreError> {
        let folder = path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Folder { path, source }
        };
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        // One file with two names must have one lock.
        let path = match path.canonicalize() {
            Ok(real) => real,
            Err(_) => folder.canonicalize().map_err(failed(folder))?.join(path.file_name().unwrap_or_default()),
        };
        let name = beside(&path, ".lock");
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&name).map_err(failed(&name))?;
        let mut text = String::new();
        let locked = file.try_lock();
        let pid = (&mut file).take(20).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
        match locked {
            Ok(()) => Ok(Self { path, lock: file, opened: [None; 2], ours: pid.is_some(), aside: None }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { place: path.display().to_string(), pid }),
            Err(TryLockError::Error(source)) => Err(failed(&name)(source)),
        }
    }

    /// Opens the file, and creates it if it does not exist.
    pub(super) async fn connect(&mut self) -> sqlx::Result<(SqlitePool, Pool)> {
        // Created here and not by a later connection, which would create another one if this was deleted.
        if !self.path.exists() {
            File::create_new(&self.path).map_err(sqlx::Error::Io)?;
        }
        let writing = tuned(SqliteConnectOptions::new().filename(&self.path))
            .journal_mode(SqliteJournalMode::Wal)
            // An acknowledgement must survive a power failure. Grouped into batches this costs next to nothing.
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES)
            .pragma("journal_size_limit", "67108864")
            .statement_cache_capacity(STATEMENTS)
            // The writer logs slow transactions itself, without the text of the statements.
            .disable_statement_logging();
        let writer = pool(1).connect_with(writing).await?;
        let readers = pool(READERS).connect_with(reading(&self.path)).await?;
        Ok((writer, Pool::new(Either::Sqlite(readers))))
    }

    /// Notes which file is open, and in the lock file which process has it.
    pub(super) fn note(&mut self) -> std::io::Result<()> {
        self.opened = [identity(&self.path), identity(&beside(&self.path, "-wal"))];
        self.ours = true;
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        writeln!(self.lock, "{}", std::process::id())
    }

    /// Whether the path still leads to the file that was opened.
    pub(super) fn is_there(&self) -> bool {
        identity(&self.path) == self.opened[0]
    }

    /// Whether there is a file at all.
    pub(super) fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Whether a file that is not a valid database may be set aside: only if it was a database, or is in the place of ours.
    pub(super) fn may_set_aside(&self) -> bool {
        let mut start = [0; MAGIC.len()];
        let is_database = File::open(&self.path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == MAGIC;
        self.ours || is_database
    }

    /// Renames the database and its other files. Returns the new name.
    pub(super) fn set_aside(&self, now_ms: i64) -> std::io::Result<PathBuf> {
        let aside = beside(&self.path, &format!(".corrupt-{now_ms}"));
        std::fs::rename(&self.path, &aside)?;
        self.each_log(|log, end| std::fs::rename(log, beside(&aside, end)))?;
        Ok(aside)
    }

    /// Removes the write-ahead log of a file that has been removed: another file must not use it.
    pub(super) fn remove_logs(&self) -> std::io::Result<()> {
        if identity(&beside(&self.path, "-wal")) == self.opened[1] || !self.exists() {
            self.each_log(|log, _| std::fs::remove_file(log))?;
        }
        Ok(())
    }

    fn each_log(&self, act: impl Fn(&Path, &str) -> std::io::Result<()>) -> std::io::Result<()> {
        for end in ["-wal", "-shm"] {
            match act(&beside(&self.path, end), end) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes the lock again if its file was removed together with the folder.
    pub(super) fn lock_again(&mut self) -> Result<(), StoreError> {
        let held = self.lock.metadata().ok().map(|file| (file.dev(), file.ino()));
        if identity(&beside(&self.path, ".lock")) != held {
            self.lock = Self::lock(&self.path)?.lock;
        }
        Ok(())
    }
}

/// The path with an ending added.
fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}
