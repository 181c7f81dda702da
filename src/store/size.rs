//! The size of the database, and what is removed if it is too large: the oldest events of all.
//!
//! Only used space counts; space that was freed counts as free. SQLite reports how many of its pages are free. PostgreSQL does
//! not, and its files do not shrink: once its files are too large, the space that a row takes with its indexes is estimated from
//! the oldest and the newest rows, times the number of rows. Autovacuum makes the freed space usable again.

use sqlx::PgConnection;

use super::db::Held;
use super::fault::Fault;
use super::link::Link;
use super::trim::{self, Trimmed};

/// The space of an event's row in PostgreSQL besides its columns: a line pointer, and its share of the indexes.
const ROW_EXTRA: f64 = 300.0;
/// Rows at either end from which the size of a row is estimated.
const SAMPLE: i64 = 500;

/// The bound on the database's size.
pub(super) struct Size {
    most: u64,
    /// Whether the size must be checked now.
    pub(super) measure: bool,
}

impl Size {
    pub(super) fn new(most: u64) -> Self {
        Self { most, measure: false }
    }

    /// Removes some of the oldest events if the database is too large. If not, there is nothing more to do for now. `rows`: the
    /// number of events.
    pub(super) async fn chunk(&mut self, link: &mut Link, rows: u64) -> Result<Vec<Trimmed>, Fault> {
        let mut held = link.begin(0).await?;
        let done = remove(&mut held, self.most, rows).await;
        let trimmed = link.end(held, done).await?;
        self.measure = !trimmed.is_empty();
        Ok(trimmed)
    }
}

async fn remove(db: &mut Held, most: u64, rows: u64) -> sqlx::Result<Vec<Trimmed>> {
    let used = match db {
        Held::Sqlite(db) => {
            let sql = "SELECT (c.page_count - f.freelist_count) * s.page_size \
                       FROM pragma_page_count() c, pragma_freelist_count() f, pragma_page_size() s";
            sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut **db).await?.cast_unsigned()
        }
        Held::Postgres(db) => on_postgres(db, most, rows).await?,
    };
    // The size of a row is an estimate, and removed rows do not come back: half of what is too much, then the next check.
    if used <= most { Ok(Vec::new()) } else { trim::oldest_of_all(db, (used - most).div_ceil(2)).await }
}

async fn on_postgres(db: &mut PgConnection, most: u64, rows: u64) -> sqlx::Result<u64> {
    let sql = "SELECT pg_database_size(current_database()), pg_total_relation_size('events')";
    let (files, of_events): (i64, i64) = sqlx::query_as(sql).fetch_one(&mut *db).await?;
    if files.cast_unsigned() <= most {
        return Ok(files.cast_unsigned());
    }
    let sql = "SELECT CAST(avg(pg_column_size(e)) AS DOUBLE PRECISION) FROM \
               ((SELECT * FROM events ORDER BY id LIMIT $1) UNION ALL (SELECT * FROM events ORDER BY id DESC LIMIT $1)) e";
    let row: Option<f64> = sqlx::query_scalar(sql).bind(SAMPLE).fetch_one(&mut *db).await?;
    let events = (row.unwrap_or_default() + ROW_EXTRA) * rows as f64;
    Ok((files - of_events).max(0).cast_unsigned() + events as u64)
}
