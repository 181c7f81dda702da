//! How large the database is, and what goes where that is too much: the oldest events of all.
//!
//! What counts is what is in use, so that room that was freed counts as free. SQLite says how many of its pages are. PostgreSQL
//! does not, and its files do not shrink: there, once the files are too large, the rows are counted beside everything else and
//! then kept count of, and what a row takes with its indexes is estimated from the oldest and the newest. Autovacuum makes the
//! room of what went usable again.

use std::sync::{Arc, OnceLock};

use sqlx::PgConnection;

use super::db::{Held, Pool};
use super::fault::Fault;
use super::link::Link;
use super::trim::{self, Trimmed};

/// What a row of events takes in PostgreSQL besides its columns: a line pointer, and its share of the indexes.
const ROW_EXTRA: f64 = 300.0;
/// Rows at either end from which a row's size is estimated.
const SAMPLE: i64 = 500;

/// The bound on the database's size.
pub(super) struct Size {
    most: u64,
    /// It is time to look.
    pub(super) measure: bool,
    /// PostgreSQL: how many rows there were when somebody counted, and how many came and went since the count began.
    counted: Option<Arc<OnceLock<i64>>>,
    since: i64,
}

impl Size {
    pub(super) fn new(most: u64) -> Self {
        Self { most, measure: false, counted: None, since: 0 }
    }

    /// Rows came, or went.
    pub(super) fn changed(&mut self, rows: i64) {
        self.since += rows;
    }

    /// Removes some of the oldest events, where the database is too large. Where not, there is no more to do for now.
    pub(super) async fn chunk(&mut self, link: &mut Link, readers: &Pool) -> Result<Vec<Trimmed>, Fault> {
        let mut held = link.begin().await?;
        let done = async {
            let used = match &mut held {
                Held::Sqlite(db) => {
                    let sql = "SELECT (c.page_count - f.freelist_count) * s.page_size \
                               FROM pragma_page_count() c, pragma_freelist_count() f, pragma_page_size() s";
                    sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut **db).await?.cast_unsigned()
                }
                Held::Postgres(db) => self.on_postgres(db, readers).await?,
            };
            if used <= self.most { Ok(Vec::new()) } else { trim::oldest_of_all(&mut held, used - self.most).await }
        };
        let done = done.await;
        let trimmed = link.end(held, done).await?;
        self.measure = !trimmed.is_empty();
        Ok(trimmed)
    }

    async fn on_postgres(&mut self, db: &mut PgConnection, readers: &Pool) -> sqlx::Result<u64> {
        let sql = "SELECT pg_database_size(current_database()), pg_total_relation_size('events')";
        let (files, of_events): (i64, i64) = sqlx::query_as(sql).fetch_one(&mut *db).await?;
        if files.cast_unsigned() <= self.most {
            return Ok(files.cast_unsigned());
        }
        let Some(counted) = self.rows(readers) else { return Ok(0) };
        let sql = "SELECT CAST(avg(pg_column_size(e)) AS DOUBLE PRECISION) FROM \
                   ((SELECT * FROM events ORDER BY id LIMIT $1) UNION ALL (SELECT * FROM events ORDER BY id DESC LIMIT $1)) e";
        let row: Option<f64> = sqlx::query_scalar(sql).bind(SAMPLE).fetch_one(&mut *db).await?;
        let rows = (row.unwrap_or_default() + ROW_EXTRA) * counted as f64;
        Ok((files - of_events).max(0).cast_unsigned() + rows as u64)
    }

    /// How many events there are, once that is counted.
    fn rows(&mut self, readers: &Pool) -> Option<i64> {
        if let Some(counted) = &self.counted {
            return counted.get().map(|rows| (rows + self.since).max(0));
        }
        let Pool::Postgres(readers) = readers.clone() else { return None };
        let counted = Arc::new(OnceLock::new());
        self.counted = Some(counted.clone());
        self.since = 0;
        tokio::spawn(async move {
            let count = async {
                let mut tx = readers.begin().await?;
                sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *tx).await?;
                sqlx::query_scalar::<_, i64>("SELECT count(*) FROM events").fetch_one(&mut *tx).await
            };
            match count.await {
                Ok(rows) => drop(counted.set(rows)),
                Err(error) => tracing::warn!(%error, "the events could not be counted; the store's size is not held to its bound"),
            }
        });
        None
    }
}
