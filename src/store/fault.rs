//! What a failed transaction means: a row that the database will never accept, or a database that cannot write now, and why, in
//! words for the operator.

use std::fmt;
use std::sync::Arc;

/// Why a transaction failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database refused its content, and would refuse it again.
    Row(sqlx::Error),
    /// The database cannot write now. Tried again until it can.
    Unable(Arc<str>),
    /// The file is gone, or another one is in its place.
    Gone,
    /// The file is not a valid database.
    Corrupt(Arc<str>),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(error) => error.fmt(f),
            Self::Unable(reason) => f.write_str(reason),
            Self::Gone => f.write_str("the database's file is gone, or another one is in its place"),
            Self::Corrupt(reason) => write!(f, "the database's file is corrupt ({reason})"),
        }
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        if is_about_a_row(&error) {
            Self::Row(error)
        } else if is_corruption(&error) {
            Self::Corrupt(error.to_string().into())
        } else {
            Self::Unable(reason(&error).into())
        }
    }
}

/// The error code of a database.
enum Code {
    /// SQLite: the primary code, and the extended one.
    Sqlite(u32, u32),
    /// PostgreSQL: five characters.
    State(String),
}

fn code(error: &sqlx::Error) -> Option<Code> {
    let sqlx::Error::Database(error) = error else { return None };
    let code = error.code()?;
    if error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
        return Some(Code::State(code.into_owned()));
    }
    let code: u32 = code.parse().ok()?;
    Some(Code::Sqlite(code & 0xff, code))
}

/// Whether the database refused a row rather than being unable to write: too large, a broken constraint, a wrong type.
pub(super) fn is_about_a_row(error: &sqlx::Error) -> bool {
    const TOO_BIG: u32 = 18;
    const CONSTRAINT: u32 = 19;
    const MISMATCH: u32 = 20;
    match code(error) {
        Some(Code::Sqlite(primary, _)) => matches!(primary, TOO_BIG | CONSTRAINT | MISMATCH),
        Some(Code::State(state)) => ["22", "23", "54"].iter().any(|class| state.starts_with(class)),
        None => matches!(error, sqlx::Error::Encode(_)),
    }
}

/// Whether the content of the file is damaged.
pub(super) fn is_corruption(error: &sqlx::Error) -> bool {
    const CORRUPT: u32 = 11;
    const NOT_A_DATABASE: u32 = 26;
    matches!(code(error), Some(Code::Sqlite(CORRUPT | NOT_A_DATABASE, _)))
}

fn reason(error: &sqlx::Error) -> String {
    let words = match code(error) {
        Some(Code::Sqlite(5 | 6, _)) => "the database is locked by another program",
        Some(Code::Sqlite(8, _)) => "the database's file or folder is read-only",
        Some(Code::Sqlite(10, whole)) => return format!("the disk failed ({error}, code {whole})"),
        Some(Code::Sqlite(13, _)) => "the disk is full",
        Some(Code::Sqlite(14, _)) => "the database's file cannot be opened",
        Some(Code::Sqlite(..)) => return error.to_string(),
        Some(Code::State(state)) => match state.as_str() {
            "53100" => "PostgreSQL's disk is full",
            "53300" => "PostgreSQL accepts no more connections",
            "25006" => "PostgreSQL is read-only",
            "55P03" => "the database is locked by another program",
            "57014" => "PostgreSQL took too long",
            "57P01" | "57P02" | "57P03" => "PostgreSQL is stopping or starting",
            _ => return format!("PostgreSQL fails: {error}"),
        },
        None => match error {
            sqlx::Error::Io(error) => return format!("no connection to the database: {error}"),
            sqlx::Error::Tls(error) => return format!("no connection to the database: {error}"),
            sqlx::Error::PoolTimedOut => "no free connection to the database in time",
            _ => return error.to_string(),
        },
    };
    words.to_owned()
}
