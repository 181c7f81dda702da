//! What is written beside events: connections, sessions, and what was counted.

use std::collections::{BTreeMap, HashMap};

use sqlx::Row;

use super::db::{Held, both};
use super::record::{ConnectionEnd, ConnectionRecord, Point, SessionRecord};

/// The step of the points that are written first.
const MINUTE: i64 = 60;

pub(super) async fn opened(db: &mut Held, record: &ConnectionRecord) -> sqlx::Result<()> {
    insert(db, record).await?;
    seen(db, record, record.opened_ms).await
}

/// Completes the row that was written when it opened; where that one was dropped, it is made first.
pub(super) async fn closed(db: &mut Held, record: &ConnectionRecord, end: &ConnectionEnd) -> sqlx::Result<()> {
    if update(db, record, end).await? == 0 {
        insert(db, record).await?;
        update(db, record, end).await?;
    }
    seen(db, record, end.seen_ms).await
}

async fn insert(db: &mut Held, record: &ConnectionRecord) -> sqlx::Result<u64> {
    let sql = "INSERT INTO connections (client, protocol, \"user\", session, address, opened_ms, seen_ms) \
               VALUES ($1, $2, $3, $4, $5, $6, $6)";
    both!(db, db => {
        let query = sqlx::query(sql)
            .bind(&*record.client)
            .bind(&*record.protocol)
            .bind(record.user.as_deref())
            .bind(record.session.as_deref())
            .bind(&*record.address)
            .bind(record.opened_ms);
        Ok(query.execute(&mut **db).await?.rows_affected())
    })
}

async fn update(db: &mut Held, record: &ConnectionRecord, end: &ConnectionEnd) -> sqlx::Result<u64> {
    let sql = "UPDATE connections SET \"user\" = $2, session = $3, closed_ms = $4, seen_ms = $5, code = $6, reason = $7, \
               messages_in = $8, messages_out = $9, bytes_in = $10, bytes_out = $11, dropped = $12 \
               WHERE client = $1 AND closed_ms IS NULL";
    both!(db, db => {
        let query = sqlx::query(sql)
            .bind(&*record.client)
            .bind(record.user.as_deref())
            .bind(record.session.as_deref())
            .bind(end.closed_ms)
            .bind(end.seen_ms)
            .bind(i64::from(end.code))
            .bind(end.reason.as_str())
            .bind(end.messages_in.cast_signed())
            .bind(end.messages_out.cast_signed())
            .bind(end.bytes_in.cast_signed())
            .bind(end.bytes_out.cast_signed())
            .bind(end.dropped.cast_signed());
        Ok(query.execute(&mut **db).await?.rows_affected())
    })
}

/// A connection of a session was there.
async fn seen(db: &mut Held, record: &ConnectionRecord, at_ms: i64) -> sqlx::Result<()> {
    let Some(session) = record.session.as_deref() else { return Ok(()) };
    let sql = "UPDATE sessions SET seen_ms = $2 WHERE id = $1 AND COALESCE(seen_ms, 0) < $2";
    both!(db, db => sqlx::query(sql).bind(session).bind(at_ms).execute(&mut **db).await.map(drop))
}

pub(super) async fn put_session(db: &mut Held, session: &SessionRecord) -> sqlx::Result<()> {
    let sql = "INSERT INTO sessions (id, \"user\", name, meta, created_ms, expires_ms, seen_ms) VALUES ($1, $2, $3, $4, $5, $6, $7) \
               ON CONFLICT (id) DO UPDATE SET \"user\" = excluded.\"user\", name = excluded.name, meta = excluded.meta, \
               created_ms = excluded.created_ms, expires_ms = excluded.expires_ms, \
               seen_ms = COALESCE(excluded.seen_ms, sessions.seen_ms)";
    both!(db, db => {
        let query = sqlx::query(sql)
            .bind(&*session.id)
            .bind(session.user.as_deref())
            .bind(session.name.as_deref())
            .bind(session.meta.as_ref().map(|meta| meta.as_str()))
            .bind(session.created_ms)
            .bind(session.expires_ms)
            .bind(session.seen_ms);
        query.execute(&mut **db).await.map(drop)
    })
}

pub(super) async fn end_session(db: &mut Held, id: &str) -> sqlx::Result<()> {
    both!(db, db => sqlx::query("DELETE FROM sessions WHERE id = $1").bind(id).execute(&mut **db).await.map(drop))
}

/// Adds to totals and to minutes.
pub(super) async fn points(db: &mut Held, points: &[Point]) -> sqlx::Result<()> {
    let mut totals: BTreeMap<(&str, &str, &str), i64> = BTreeMap::new();
    for point in points {
        let total = totals.entry((point.kind, &point.name, point.metric)).or_default();
        *total = total.saturating_add(point.delta.cast_signed());
    }
    let mut ids: HashMap<(&str, &str, &str), i64> = HashMap::with_capacity(totals.len());
    let sql = "INSERT INTO series (kind, name, metric, total) VALUES ($1, $2, $3, $4) \
               ON CONFLICT (kind, name, metric) DO UPDATE SET total = series.total + excluded.total RETURNING id";
    both!(&mut *db, db => {
        for ((kind, name, metric), delta) in totals {
            let query = sqlx::query(sql).bind(kind).bind(name).bind(metric).bind(delta);
            ids.insert((kind, name, metric), query.fetch_one(&mut **db).await?.try_get(0)?);
        }
        for point in points {
            let series = ids.get(&(point.kind, &*point.name, point.metric)).copied();
            let sql = "INSERT INTO points (step, at, series, value) VALUES ($1, $2, $3, $4) \
                       ON CONFLICT (step, at, series) DO UPDATE SET value = points.value + excluded.value";
            let query = sqlx::query(sql).bind(MINUTE).bind(point.minute_s).bind(series).bind(point.delta.cast_signed());
            query.execute(&mut **db).await?;
        }
    });
    Ok(())
}
