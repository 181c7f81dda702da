//! What is written besides events: connections, sessions, and counters.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use sqlx::Row;

use super::connections;
use super::db::{Either, Held, both};
use super::insert::{in_chunks, statements};
use super::queue::Item;
use super::record::{Point, SessionRecord};

/// The length of a minute in seconds: points are first written by the minute.
const MINUTE: i64 = 60;

static SEEN: LazyLock<[String; 4]> = LazyLock::new(|| {
    let tail = ") UPDATE sessions SET seen_ms = seen.at FROM seen WHERE sessions.id = seen.id AND COALESCE(sessions.seen_ms, 0) < seen.at";
    statements("WITH seen (id, at) AS (VALUES ", "(?,?)", tail)
});

const SEEN_UNNESTED: &str = "UPDATE sessions SET seen_ms = seen.at FROM UNNEST($1::text[], $2::bigint[]) AS seen (id, at) \
     WHERE sessions.id = seen.id AND COALESCE(sessions.seen_ms, 0) < seen.at";

/// Writes items that are not events, within the caller's transaction.
pub(super) async fn items(db: &mut Held, items: &[Item]) -> sqlx::Result<()> {
    connections::write(db, items).await?;
    // When a connection of each session was last seen: once per session, and before that session is replaced or ends.
    let mut latest: BTreeMap<&str, i64> = BTreeMap::new();
    for item in items {
        let (record, at_ms) = match item {
            Item::Event(_) => continue,
            Item::Opened(record) => (&**record, record.opened_ms),
            Item::Closed(both) => (&both.0, both.1.seen_ms),
            Item::Session(session) => {
                if let Some(seen_ms) = latest.remove(&*session.id) {
                    seen(db, &[(&session.id, seen_ms)]).await?;
                }
                put_session(db, session).await?;
                continue;
            }
            Item::SessionEnd(id) => {
                latest.remove(&**id);
                end_session(db, id).await?;
                continue;
            }
        };
        if let Some(session) = record.session.as_deref() {
            let latest = latest.entry(session).or_insert(at_ms);
            *latest = at_ms.max(*latest);
        }
    }
    seen(db, &latest.into_iter().collect::<Vec<_>>()).await
}

/// Records when connections of sessions were seen.
async fn seen(db: &mut Held, sessions: &[(&str, i64)]) -> sqlx::Result<()> {
    match db {
        Either::Sqlite(db) => {
            in_chunks!(sessions, |size, chunk| {
                let query = sqlx::query(SEEN[size].as_str());
                chunk.iter().fold(query, |query, (id, at)| query.bind(*id).bind(*at)).execute(&mut **db).await?;
            });
        }
        Either::Postgres(db) if !sessions.is_empty() => {
            let (ids, times): (Vec<&str>, Vec<i64>) = sessions.iter().copied().unzip();
            sqlx::query(SEEN_UNNESTED).bind(ids).bind(times).execute(&mut **db).await?;
        }
        Either::Postgres(_) => {}
    }
    Ok(())
}

async fn put_session(db: &mut Held, session: &SessionRecord) -> sqlx::Result<()> {
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

async fn end_session(db: &mut Held, id: &str) -> sqlx::Result<()> {
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
