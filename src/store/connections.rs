//! Writes connections into their table, one row each and many per statement. A connection that came and went within one batch is
//! one complete row; the row of one that opened earlier is completed.
//!
//! It relies on ids: no connection opens with the id of one that is open.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use sqlx::{PgConnection, SqliteConnection};

use super::db::{Either, Held};
use super::insert::{in_chunks, insert_rows, statements};
use super::queue::Item;
use super::record::{ConnectionEnd, ConnectionRecord};
use crate::model::{SessionId, UserId};

macro_rules! into_columns {
    () => {
        " INTO connections (client, protocol, \"user\", session, address, opened_ms, seen_ms, closed_ms, code, reason, \
         messages_in, messages_out, bytes_in, bytes_out, dropped) "
    };
}

static INSERT: LazyLock<[String; 4]> =
    LazyLock::new(|| statements(concat!(insert_rows!(), into_columns!(), "VALUES "), "(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", ""));

const INSERT_UNNESTED: &str = concat!(
    "INSERT",
    into_columns!(),
    "SELECT * FROM UNNEST($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], \
     $9::bigint[], $10::text[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[], $15::bigint[])"
);

macro_rules! end_columns {
    () => {
        "(client, \"user\", session, seen_ms, closed_ms, code, reason, messages_in, messages_out, bytes_in, bytes_out, dropped)"
    };
}

macro_rules! complete {
    () => {
        "SET \"user\" = ends.\"user\", session = ends.session, seen_ms = ends.seen_ms, closed_ms = ends.closed_ms, \
         code = ends.code, reason = ends.reason, messages_in = ends.messages_in, messages_out = ends.messages_out, \
         bytes_in = ends.bytes_in, bytes_out = ends.bytes_out, dropped = ends.dropped FROM "
    };
}

macro_rules! of_the_open {
    () => {
        " WHERE connections.client = ends.client AND connections.closed_ms IS NULL RETURNING connections.client"
    };
}

/// The index is named, because otherwise all open connections might be scanned.
static COMPLETE: LazyLock<[String; 4]> = LazyLock::new(|| {
    let head = concat!("WITH ends ", end_columns!(), " AS (VALUES ");
    let tail = concat!(") UPDATE connections INDEXED BY connections_by_client ", complete!(), "ends", of_the_open!());
    statements(head, "(?,?,?,?,?,?,?,?,?,?,?,?)", tail)
});

const COMPLETE_UNNESTED: &str = concat!(
    "UPDATE connections ",
    complete!(),
    "UNNEST($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::bigint[], $9::bigint[], \
     $10::bigint[], $11::bigint[], $12::bigint[]) AS ends ",
    end_columns!(),
    of_the_open!()
);

/// A row of the table.
#[derive(Clone, Copy)]
struct Line<'a> {
    /// As it opened, or as it was first known if that was not seen.
    first: &'a ConnectionRecord,
    /// As it was last known.
    last: &'a ConnectionRecord,
    end: Option<&'a ConnectionEnd>,
    /// It opened before this batch, so its row should exist.
    opened_before: bool,
}

impl Line<'_> {
    fn seen_ms(&self) -> i64 {
        self.end.map_or(self.first.opened_ms, |end| end.seen_ms)
    }

    fn closed_ms(&self) -> Option<i64> {
        self.end.map(|end| end.closed_ms)
    }

    fn code(&self) -> Option<i64> {
        self.end.map(|end| i64::from(end.code))
    }

    fn reason(&self) -> Option<&str> {
        self.end.map(|end| end.reason.as_str())
    }

    /// Messages in and out, bytes in and out, dropped.
    fn counts(&self) -> [i64; 5] {
        let counts = |end: &ConnectionEnd| [end.messages_in, end.messages_out, end.bytes_in, end.bytes_out, end.dropped];
        self.end.map_or([0; 5], counts).map(u64::cast_signed)
    }
}

/// Writes the connections of a batch, within the caller's transaction.
pub(super) async fn write(db: &mut Held, items: &[Item]) -> sqlx::Result<()> {
    let mut lines = lines(items);
    let ends: Vec<Line<'_>> = lines.iter().filter(|line| line.opened_before).copied().collect();
    let completed = match db {
        Either::Sqlite(db) => complete_values(db, &ends).await?,
        Either::Postgres(db) => complete_unnested(db, &ends).await?,
    };
    // If the record of the opening was dropped, there was no row to complete.
    lines.retain(|line| !(line.opened_before && completed.contains(&*line.last.client)));
    match db {
        Either::Sqlite(db) => insert_values(db, &lines).await,
        Either::Postgres(db) => insert_unnested(db, &lines).await,
    }
}

/// The rows for the table, in the order in which they came.
fn lines(items: &[Item]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::with_capacity(items.len());
    // The row of each open connection; `None` for those that have closed.
    let mut open: HashMap<&str, Option<usize>> = HashMap::with_capacity(items.len());
    for item in items {
        match item {
            Item::Opened(record) => {
                open.insert(&record.client, Some(lines.len()));
                lines.push(Line { first: record, last: record, end: None, opened_before: false });
            }
            Item::Closed(both) => {
                let (record, end) = &**both;
                let before = open.insert(&record.client, None);
                if let Some(Some(at)) = before {
                    (lines[at].last, lines[at].end) = (record, Some(end));
                } else {
                    lines.push(Line { first: record, last: record, end: Some(end), opened_before: before.is_none() });
                }
            }
            Item::Event(_) | Item::Session(_) | Item::SessionEnd(_) => {}
        }
    }
    lines
}

/// Binds how a connection ended, which both statements have last. The two kinds of query have no common trait.
macro_rules! bind_end {
    ($query:expr, $line:expr) => {{
        let query = $query.bind($line.seen_ms()).bind($line.closed_ms()).bind($line.code()).bind($line.reason());
        $line.counts().into_iter().fold(query, |query, count| query.bind(count))
    }};
}

/// [`bind_end`] for many, a column at a time.
macro_rules! bind_ends {
    ($query:expr, $lines:expr) => {{
        let query = $query
            .bind(column($lines, Line::seen_ms))
            .bind(column($lines, Line::closed_ms))
            .bind(column($lines, Line::code))
            .bind(column($lines, |line| line.reason()));
        (0..5).fold(query, |query, which| query.bind(column($lines, |line| line.counts()[which])))
    }};
}

async fn insert_values(db: &mut SqliteConnection, lines: &[Line<'_>]) -> sqlx::Result<()> {
    in_chunks!(lines, |size, chunk| {
        let mut query = sqlx::query(INSERT[size].as_str());
        for line in chunk {
            let who = query
                .bind(line.first.client.shared())
                .bind(line.first.protocol.clone())
                .bind(line.last.user.as_ref().map(UserId::shared))
                .bind(line.last.session.as_ref().map(SessionId::shared))
                .bind(line.first.address.clone())
                .bind(line.first.opened_ms);
            query = bind_end!(who, line);
        }
        query.execute(&mut *db).await?;
    });
    Ok(())
}

async fn insert_unnested(db: &mut PgConnection, lines: &[Line<'_>]) -> sqlx::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let who = sqlx::query(INSERT_UNNESTED)
        .bind(column(lines, |line| &*line.first.client))
        .bind(column(lines, |line| &*line.first.protocol))
        .bind(column(lines, |line| line.last.user.as_deref()))
        .bind(column(lines, |line| line.last.session.as_deref()))
        .bind(column(lines, |line| &*line.first.address))
        .bind(column(lines, |line| line.first.opened_ms));
    bind_ends!(who, lines).execute(db).await.map(drop)
}

/// Returns whose rows existed.
async fn complete_values(db: &mut SqliteConnection, ends: &[Line<'_>]) -> sqlx::Result<HashSet<String>> {
    let mut completed = HashSet::new();
    in_chunks!(ends, |size, chunk| {
        let mut query = sqlx::query_scalar(COMPLETE[size].as_str());
        for line in chunk {
            let who = query
                .bind(line.last.client.shared())
                .bind(line.last.user.as_ref().map(UserId::shared))
                .bind(line.last.session.as_ref().map(SessionId::shared));
            query = bind_end!(who, line);
        }
        completed.extend(query.fetch_all(&mut *db).await?);
    });
    Ok(completed)
}

async fn complete_unnested(db: &mut PgConnection, ends: &[Line<'_>]) -> sqlx::Result<HashSet<String>> {
    if ends.is_empty() {
        return Ok(HashSet::new());
    }
    let who = sqlx::query_scalar(COMPLETE_UNNESTED)
        .bind(column(ends, |line| &*line.last.client))
        .bind(column(ends, |line| line.last.user.as_deref()))
        .bind(column(ends, |line| line.last.session.as_deref()));
    Ok(bind_ends!(who, ends).fetch_all(db).await?.into_iter().collect())
}

fn column<'l, 'r, T>(lines: &'l [Line<'r>], of: impl Fn(&'l Line<'r>) -> T) -> Vec<T> {
    lines.iter().map(of).collect()
}
