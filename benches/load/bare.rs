//! The bare loop: rows into an SQLite file, each transaction on the disk before the next begins. Figures of two machines compare
//! only as ratios to it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Executor, SqliteConnection};

use super::histogram::Histogram;

/// What a row carries.
pub const DATA_BYTES: usize = 200;

const TABLE: &str = "CREATE TABLE IF NOT EXISTS events \
    (id INTEGER PRIMARY KEY, channel INTEGER, \"offset\" INTEGER, type TEXT, data TEXT, time_ms INTEGER)";
const INSERT: &str = "INSERT INTO events (channel, \"offset\", type, data, time_ms) VALUES ($1, $2, $3, $4, $5)";

/// Opens a file as the server does.
pub async fn open(file: &Path) -> sqlx::Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
    options.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full).connect().await
}

/// A loop over one file.
pub struct Bare {
    db: SqliteConnection,
    data: String,
    rows: i64,
}

impl Bare {
    pub async fn new(file: &Path) -> sqlx::Result<Self> {
        let mut db = open(file).await?;
        db.execute(TABLE).await?;
        Ok(Self { db, data: format!(r#"{{"text":"{}"}}"#, "x".repeat(DATA_BYTES)), rows: 0 })
    }

    /// One transaction of so many rows. Says how long it took.
    pub async fn commit(&mut self, rows: u64) -> sqlx::Result<Duration> {
        let asked = Instant::now();
        let mut transaction = self.db.begin_with("BEGIN IMMEDIATE").await?;
        for _ in 0..rows {
            self.rows += 1;
            let insert = sqlx::query(INSERT).bind(1).bind(self.rows).bind("put").bind(&self.data).bind(self.rows);
            insert.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(asked.elapsed())
    }
}

/// What 99 of 100 transactions of one row did not exceed, each by itself, where so many a second were wanted: a disk that is
/// slower makes fewer of them.
pub fn p99(per_second: u32, lasts: Duration) -> Result<Duration> {
    let folder = tempfile::tempdir()?;
    let measured = async {
        let (mut bare, mut took) = (Bare::new(&folder.path().join("bare.db")).await?, Histogram::default());
        let (begun, mut tick) = (Instant::now(), Instant::now());
        while begun.elapsed() < lasts {
            tokio::time::sleep_until(tick.into()).await;
            tick = Instant::now().max(tick + Duration::from_secs(1) / per_second);
            took.add(bare.commit(1).await?);
        }
        Ok(took.percentile(99))
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measured)
}
