//! What can go wrong with the store, in words for those who react: an operator at the start, a publisher, a reader.

use std::path::PathBuf;
use std::sync::Arc;

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error("the store {place} is in use by another process{}; stop that process, or configure another `store`", holder(.pid))]
    InUse {
        /// The database: a path, or a URL without its password.
        place: String,
        /// What the lock file says of it.
        pid: Option<u32>,
    },
    /// Its folder or lock file cannot be created.
    #[error("cannot use {} for the store: {source}", path.display())]
    Folder {
        /// What could not be created.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The database cannot be opened.
    #[error("cannot open the store {place}: {source}")]
    Open {
        /// The database: a path, or a URL without its password.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The URL of the database is not valid.
    #[error("the store's URL must have the form postgres://user:password@host:port/database?options")]
    Url,
    /// The database cannot be written to; its message.
    #[error("the store cannot be written to: {0}")]
    Unable(Arc<str>),
    /// The file is not a valid database; the message.
    #[error("the store is corrupt: {0}")]
    Corrupt(Arc<str>),
    /// The tables cannot be brought up to date.
    #[error("cannot update the store's tables: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A query failed.
    #[error("the store failed: {0}")]
    Query(#[from] sqlx::Error),
    /// The limit of a query is not valid.
    #[error("limit must be between 1 and {max}", max = super::HISTORY_LIMIT_MAX)]
    Limit,
    /// A cursor that is not valid here.
    #[error("cursor: {0}")]
    Cursor(#[from] CursorError),
    /// The commit did not happen in time. The row may still be written.
    #[error("the store did not confirm in time")]
    Slow,
    /// The database refused exactly this row.
    #[error("the store refused the row")]
    RowRefused,
    /// The writer has ended; nothing more is written.
    #[error("the store has stopped")]
    Ended,
    /// A stored row is not a valid event.
    #[error("row {0} of the log cannot be read")]
    BadRow(i64),
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (pid {pid})"))
}

/// Why a cursor was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// Not a cursor that this server made.
    #[error("not a cursor of this server")]
    Malformed,
    /// Made for other filters.
    #[error("belongs to a query with other filters")]
    Foreign,
}

/// Why events cannot be accepted now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// The queue to the writer is full.
    #[error("the store's queue is full")]
    Full,
    /// The database cannot be written to; its message.
    #[error("the store cannot be written to: {0}")]
    Degraded(Arc<str>),
    /// The server is starting or stopping.
    #[error("the store is not running")]
    Stopped,
}
