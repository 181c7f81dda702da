//! Stored events, a page at a time, newest first.
//!
//! A page continues from a key, never from a count, so rows that are added or removed meanwhile are neither repeated nor
//! skipped. One channel is read along its offsets, everything else along the ids, which grow with time. Where no index serves
//! a filter, one page looks at a bounded number of rows and says that it was cut short.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytestring::ByteString;
use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row, Sqlite, SqlitePool};
use uuid::Uuid;

use super::{CursorError, StoreError};
use crate::model::event::{Event, NewEvent, Origin};
use crate::model::name::CHANNEL_BYTES_MAX;
use crate::model::pattern::Glob;
use crate::model::{ChannelName, Json};

/// The most events of one page.
pub const HISTORY_LIMIT_MAX: usize = 1000;
/// Events of a page where nothing is said.
pub const HISTORY_LIMIT_DEFAULT: usize = 100;
/// The most rows one page looks at where no index serves its filter.
pub(super) const SCAN_ROWS_MAX: i64 = 200_000;
/// A page ends early once its events have this many bytes.
const PAGE_BYTES_MAX: usize = 16 << 20;

const CURSOR_VERSION: u8 = 1;
const CURSOR_BYTES: usize = 17;

/// Which events.
#[derive(Debug, Clone)]
pub struct HistoryQuery {
    /// A channel's name, or a glob over names.
    pub channel: Option<String>,
    /// The event's type.
    pub kind: Option<String>,
    /// How many, at most [`HISTORY_LIMIT_MAX`].
    pub limit: usize,
    /// From [`Page::next`] of the page before, with the same filters.
    pub cursor: Option<String>,
}

impl Default for HistoryQuery {
    fn default() -> Self {
        Self { channel: None, kind: None, limit: HISTORY_LIMIT_DEFAULT, cursor: None }
    }
}

/// Some events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Each as [`Event::to_json`] writes it, newest first.
    pub events: Vec<String>,
    /// Where the next page begins; none: there are no older events.
    pub next: Option<String>,
    /// The page may be short, even empty, although more follows: it had looked at enough rows.
    pub truncated: bool,
}

/// The channels of a query.
enum Channels {
    All,
    One(i64),
    Some(Vec<i64>),
}

pub(super) async fn page(db: &SqlitePool, query: &HistoryQuery, scan_rows: i64) -> Result<Page, StoreError> {
    if !(1..=HISTORY_LIMIT_MAX).contains(&query.limit) {
        return Err(StoreError::Limit);
    }
    let filters = fingerprint(query);
    let before = query.cursor.as_deref().map(|cursor| read_cursor(cursor, filters)).transpose()?;
    let Some(channels) = channels(db, query.channel.as_deref()).await? else { return Ok(Page::default()) };
    let Some((oldest, newest)) = keys(db, &channels).await? else { return Ok(Page::default()) };
    let before = before.unwrap_or(i64::MAX).min(newest.saturating_add(1));
    let indexed = match channels {
        Channels::All => true,
        Channels::One(_) => query.kind.is_none(),
        Channels::Some(_) => false,
    };
    let floor = if indexed { oldest } else { oldest.max(before.saturating_sub(scan_rows)) };
    let mut select = statement(&channels, query, before, floor);
    let mut rows = select.build().fetch(db);
    let (mut page, mut bytes, mut last) = (Page::default(), 0, before);
    while let Some(row) = rows.try_next().await? {
        // One row more than asked for says whether there are any.
        if page.events.len() == query.limit || bytes > PAGE_BYTES_MAX {
            page.next = Some(write_cursor(last, filters));
            return Ok(page);
        }
        last = row.try_get(0)?;
        let event = event(&row)?.to_json();
        bytes += event.len();
        page.events.push(event);
    }
    if floor > oldest {
        page.next = Some(write_cursor(floor, filters));
        page.truncated = true;
    }
    Ok(page)
}

/// The ids of the channels that are meant; none where there is no such channel.
async fn channels(db: &SqlitePool, text: Option<&str>) -> Result<Option<Channels>, StoreError> {
    let Some(text) = text.filter(|text| text.is_empty() || text.bytes().any(|b| b != b'*')) else { return Ok(Some(Channels::All)) };
    if !Glob::is_glob(text) {
        let id = sqlx::query_scalar("SELECT id FROM channels WHERE name = $1").bind(text).fetch_optional(db).await?;
        return Ok(id.map(Channels::One));
    }
    // The index gives the names that begin right, our own glob decides: SQLite's knows more than `*`, and can be made to take
    // time that grows with a power of the name's length. Names have at most 256 bytes, so none that begins right is above `end`.
    let glob = Glob::new(text);
    let prefix = text.split('*').next().unwrap_or_default();
    let end = format!("{prefix}{}", "\u{10ffff}".repeat(CHANNEL_BYTES_MAX / 4));
    let sql = "SELECT name, id FROM channels WHERE name >= $1 AND name <= $2";
    let mut rows = sqlx::query(sql).bind(prefix).bind(end).fetch(db);
    let mut ids = Vec::new();
    while let Some(row) = rows.try_next().await? {
        if glob.matches(row.try_get(0)?) {
            ids.push(row.try_get(1)?);
        }
    }
    Ok((!ids.is_empty()).then_some(Channels::Some(ids)))
}

/// The oldest and newest key there is. Two look-ups at the ends of an index.
async fn keys(db: &SqlitePool, channels: &Channels) -> Result<Option<(i64, i64)>, StoreError> {
    let by_channel =
        "SELECT (SELECT min(\"offset\") FROM events WHERE channel = $1), (SELECT max(\"offset\") FROM events WHERE channel = $1)";
    let by_id = "SELECT (SELECT min(id) FROM events), (SELECT max(id) FROM events)";
    let row = match channels {
        Channels::One(id) => sqlx::query(by_channel).bind(id).fetch_one(db).await?,
        Channels::All | Channels::Some(_) => sqlx::query(by_id).fetch_one(db).await?,
    };
    let (oldest, newest): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(oldest.zip(newest))
}

/// A `+` before a column keeps its index out of it, so that rows come in the order of the key and the scan stays in its bounds.
fn statement(channels: &Channels, query: &HistoryQuery, before: i64, floor: i64) -> QueryBuilder<Sqlite> {
    let key = if matches!(channels, Channels::One(_)) { "e.\"offset\"" } else { "e.id" };
    let mut sql = QueryBuilder::new("SELECT ");
    sql.push(key).push(
        ", e.id, c.name, e.\"offset\", e.epoch, e.uuid, e.type, e.data, e.time_ms, e.source, e.client, e.user, e.session, e.metadata",
    );
    sql.push(" FROM events e CROSS JOIN channels c ON c.id = e.channel WHERE ");
    sql.push(key).push(" < ").push_bind(before).push(" AND ").push(key).push(" >= ").push_bind(floor);
    match channels {
        Channels::All => {}
        Channels::One(id) => {
            sql.push(" AND e.channel = ").push_bind(*id);
        }
        Channels::Some(ids) => {
            let ids = serde_json::to_string(ids).unwrap_or_default();
            sql.push(" AND +e.channel IN (SELECT value FROM json_each(").push_bind(ids).push("))");
        }
    }
    if let Some(kind) = &query.kind {
        sql.push(if matches!(channels, Channels::All) { " AND e.type = " } else { " AND +e.type = " }).push_bind(kind.clone());
    }
    let rows = i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1);
    sql.push(" ORDER BY ").push(key).push(" DESC LIMIT ").push_bind(rows);
    sql
}

pub(super) fn event(row: &SqliteRow) -> Result<Event, StoreError> {
    let bad = || StoreError::BadRow(row.try_get(1).unwrap_or_default());
    let shared = |column: usize| row.try_get::<Option<&str>, _>(column).map(|text| text.map(Into::into));
    Ok(Event {
        channel: Some(ChannelName::parse(row.try_get(2)?).ok_or_else(bad)?),
        offset: row.try_get::<i64, _>(3)?.cast_unsigned(),
        epoch: row.try_get::<i64, _>(4)?.cast_unsigned(),
        seq: row.try_get::<i64, _>(1)?.cast_unsigned(),
        new: NewEvent {
            id: Uuid::from_slice(row.try_get(5)?).map_err(|_| bad())?,
            kind: ByteString::from(row.try_get::<&str, _>(6)?),
            data: Json::trusted(row.try_get::<String, _>(7)?),
            time_ms: row.try_get(8)?,
            origin: Origin { source: row.try_get::<&str, _>(9)?.into(), client: shared(10)?, user: shared(11)?, session: shared(12)? }
                .into(),
            metadata: row.try_get::<Option<String>, _>(13)?.map(Json::trusted),
        },
    })
}

/// What a cursor belongs to: the filters, not the limit.
fn fingerprint(query: &HistoryQuery) -> [u8; 8] {
    let text = serde_json::json!(["newest", query.channel, query.kind]).to_string();
    let hash = Sha256::digest(text.as_bytes());
    std::array::from_fn(|i| hash[i])
}

fn write_cursor(key: i64, filters: [u8; 8]) -> String {
    let mut bytes = [0; CURSOR_BYTES];
    bytes[0] = CURSOR_VERSION;
    bytes[1..9].copy_from_slice(&key.to_be_bytes());
    bytes[9..].copy_from_slice(&filters);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(text: &str, filters: [u8; 8]) -> Result<i64, CursorError> {
    let mut bytes = [0; CURSOR_BYTES];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| CursorError::Malformed)?;
    if length != CURSOR_BYTES || bytes[0] != CURSOR_VERSION {
        return Err(CursorError::Malformed);
    }
    if bytes[9..] != filters {
        return Err(CursorError::Foreign);
    }
    Ok(i64::from_be_bytes(std::array::from_fn(|i| bytes[1 + i])))
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
