//! The statements of retention, each within the caller's transaction.

use std::collections::HashMap;

use sqlx::Row;

use super::db::{Held, both};
use super::insert::note;
use super::known::Channel;
use super::retention::CHUNK;
use crate::model::ChannelName;

/// The approximate space of an event besides its data.
const ROW_BYTES: u64 = 200;

/// What was removed from a channel.
pub(super) struct Trimmed {
    pub(super) name: ChannelName,
    /// The oldest offset that is still there, or the one after the top.
    pub(super) first: u64,
    /// The time of that event, if known.
    pub(super) oldest_ms: Option<i64>,
    pub(super) rows: usize,
    /// There may be more to remove.
    pub(super) more: bool,
}

/// What retention reads of an event.
struct Old {
    offset: u64,
    time_ms: i64,
    id: i64,
}

/// Removes a channel's oldest events, at most `most`: those with an offset under `below` and those of a time before `before_ms`.
pub(super) async fn channel(
    db: &mut Held,
    name: &ChannelName,
    channel: &Channel,
    below: u64,
    before_ms: i64,
    most: usize,
) -> sqlx::Result<Trimmed> {
    let goes = |event: &Old| event.offset < below || event.time_ms < before_ms;
    let mut oldest = oldest(db, channel.id, 1).await?;
    if oldest.first().is_some_and(goes) {
        oldest = self::oldest(db, channel.id, most.saturating_add(1)).await?;
    }
    let rows = oldest.iter().take_while(|event| goes(event)).count().min(most);
    let (first, oldest_ms) = match oldest.get(rows) {
        Some(next) => (next.offset.max(channel.first), Some(next.time_ms)),
        None => (channel.top + 1, None),
    };
    if let Some(last) = rows.checked_sub(1).and_then(|last| oldest.get(last)) {
        let sql = "DELETE FROM events WHERE channel = $1 AND \"offset\" <= $2";
        both!(&mut *db, db => sqlx::query(sql).bind(channel.id).bind(last.offset.cast_signed()).execute(&mut **db).await.map(drop)?);
        moved(db, channel.id, first, last.id).await?;
    }
    let more = rows > 0 && oldest.get(rows).is_some_and(goes);
    Ok(Trimmed { name: name.clone(), first, oldest_ms, rows, more })
}

async fn oldest(db: &mut Held, channel: i64, most: usize) -> sqlx::Result<Vec<Old>> {
    let sql = "SELECT \"offset\", time_ms, id FROM events WHERE channel = $1 ORDER BY \"offset\" LIMIT $2";
    let mut found = Vec::new();
    both!(db, db => {
        for row in sqlx::query(sql).bind(channel).bind(most as i64).fetch_all(&mut **db).await? {
            found.push(Old { offset: row.try_get::<i64, _>(0)?.cast_unsigned(), time_ms: row.try_get(1)?, id: row.try_get(2)? });
        }
    });
    Ok(found)
}

/// Records where the remaining events begin, and the position in the log of the newest one that was removed.
async fn moved(db: &mut Held, channel: i64, first: u64, gone: i64) -> sqlx::Result<()> {
    let sql = "UPDATE channels SET first = CASE WHEN first > $2 THEN first ELSE $2 END, \
               gone = CASE WHEN gone > $3 THEN gone ELSE $3 END WHERE id = $1";
    both!(db, db => sqlx::query(sql).bind(channel).bind(first.cast_signed()).bind(gone).execute(&mut **db).await.map(drop))
}

/// Removes the oldest events of all, until about `bytes` bytes are free: few if events are large.
pub(super) async fn oldest_of_all(db: &mut Held, bytes: u64) -> sqlx::Result<Vec<Trimmed>> {
    let (mut last_id, mut freed) = (None, 0);
    let mut channels: HashMap<i64, (i64, i64, usize)> = HashMap::new();
    both!(&mut *db, db => {
        let sql = "SELECT id, channel, \"offset\", CAST(octet_length(data) AS BIGINT) FROM events ORDER BY id LIMIT $1";
        for row in sqlx::query(sql).bind(CHUNK as i64).fetch_all(&mut **db).await? {
            if freed >= bytes {
                break;
            }
            freed += row.try_get::<i64, _>(3)?.cast_unsigned() + ROW_BYTES;
            let (id, channel, offset): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            let rows = channels.get(&channel).map_or(0, |(_, _, rows)| *rows);
            channels.insert(channel, (id, offset, rows + 1));
            last_id = Some(id);
        }
        sqlx::query("DELETE FROM events WHERE id <= $1").bind(last_id).execute(&mut **db).await.map(drop)?;
    });
    let mut trimmed = Vec::with_capacity(channels.len());
    for (channel, (id, offset, rows)) in channels {
        moved(db, channel, offset.cast_unsigned() + 1, id).await?;
        let noted = both!(&mut *db, db => {
            let query = sqlx::query("SELECT name, id, epoch, top, first FROM channels WHERE id = $1").bind(channel);
            query.fetch_optional(&mut **db).await?.map(|row| note(&row)).transpose()?.flatten()
        });
        trimmed.extend(noted.map(|noted| Trimmed { name: noted.name, first: noted.first, oldest_ms: None, rows, more: false }));
    }
    Ok(trimmed)
}

/// Forgets connections that ended long ago. `true`: there may be more.
pub(super) async fn connections(db: &mut Held, before_ms: i64) -> sqlx::Result<bool> {
    let sql = "DELETE FROM connections WHERE id IN (SELECT id FROM connections WHERE closed_ms < $1 ORDER BY closed_ms LIMIT $2)";
    let done = both!(db, db => sqlx::query(sql).bind(before_ms).bind(CHUNK as i64).execute(&mut **db).await?.rows_affected());
    Ok(done >= CHUNK as u64)
}

/// Forgets sessions that have expired. `true`: there may be more.
pub(super) async fn sessions(db: &mut Held, now_ms: i64) -> sqlx::Result<bool> {
    let sql = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires_ms < $1 ORDER BY expires_ms LIMIT $2)";
    let done = both!(db, db => sqlx::query(sql).bind(now_ms).bind(CHUNK as i64).execute(&mut **db).await?.rows_affected());
    Ok(done >= CHUNK as u64)
}

/// Adds the points of the oldest step to a longer one, if all of that is before `before_s`. `true`: there may be more.
pub(super) async fn points(db: &mut Held, step: i64, into: i64, before_s: i64) -> sqlx::Result<bool> {
    let sql = "SELECT min(at) FROM points WHERE step = $1";
    let at: Option<i64> = both!(&mut *db, db => sqlx::query_scalar(sql).bind(step).fetch_one(&mut **db).await?);
    let Some(at) = at.filter(|at| at.div_euclid(into) * into + into <= before_s) else { return Ok(false) };
    let add = "INSERT INTO points (step, at, series, value) SELECT $1, $2, series, value FROM points WHERE step = $3 AND at = $4 \
               ON CONFLICT (step, at, series) DO UPDATE SET value = points.value + excluded.value";
    let remove = "DELETE FROM points WHERE step = $1 AND at = $2";
    both!(db, db => {
        let query = sqlx::query(add).bind(into).bind(at.div_euclid(into) * into).bind(step).bind(at);
        query.execute(&mut **db).await?;
        sqlx::query(remove).bind(step).bind(at).execute(&mut **db).await?;
    });
    Ok(true)
}
