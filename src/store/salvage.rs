//! What can be read from a database that is given up: sessions and totals are copied to the new one. Its events stay in the old
//! file.

use std::path::Path;

use futures_util::TryStreamExt;
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};

use super::db::Held;
use super::fault::Fault;
use super::link::Link;
use super::recover::set_meta;
use super::sqlite::reading;

/// Columns of the tables that are copied, as they are.
const SESSIONS: &str = "SELECT id, \"user\", name, meta, created_ms, expires_ms, seen_ms FROM sessions";
const SERIES: &str = "SELECT kind, name, metric, total FROM series";

/// A session as in the table.
type Session = (String, Option<String>, Option<String>, Option<String>, i64, i64, Option<i64>);
/// A total as in the table: kind, name, metric, total.
type Series = (String, String, String, i64);

/// Copies what can be read of a file that was set aside.
pub(super) async fn from_file(path: &Path, link: &mut Link) {
    match reading(path).connect().await {
        Ok(mut db) => between(&mut db, link).await,
        Err(error) => tracing::error!(%error, "nothing can be read from the database that was set aside"),
    }
}

/// Copies what can be read over connections to a file that has been removed.
pub(super) async fn from_readers(readers: &SqlitePool, link: &mut Link) {
    match readers.acquire().await {
        Ok(mut db) => between(&mut db, link).await,
        Err(error) => tracing::error!(%error, "nothing can be read from the database that is gone"),
    }
}

async fn between(old: &mut SqliteConnection, link: &mut Link) {
    let (mut sessions, mut series): (Vec<Session>, Vec<Series>) = Default::default();
    let mut rows = sqlx::query_as(SESSIONS).fetch(&mut *old);
    while let Ok(Some(row)) = rows.try_next().await {
        sessions.push(row);
    }
    drop(rows);
    let mut rows = sqlx::query_as(SERIES).fetch(&mut *old);
    while let Ok(Some(row)) = rows.try_next().await {
        series.push(row);
    }
    drop(rows);
    let mark: Option<String> =
        sqlx::query_scalar("SELECT value FROM meta WHERE key = 'mark'").fetch_optional(&mut *old).await.ok().flatten();
    match copy(link, &sessions, &series, mark.as_deref()).await {
        Ok(()) => tracing::warn!(sessions = sessions.len(), totals = series.len(), "taken over from the old database"),
        Err(error) => tracing::error!(%error, "sessions and totals of the old database could not be taken over"),
    }
}

async fn copy(link: &mut Link, sessions: &[Session], series: &[Series], mark: Option<&str>) -> Result<(), Fault> {
    let mut held = link.begin(sessions.len() + series.len()).await?;
    let done = fill(&mut held, sessions, series, mark).await;
    link.end(held, done).await
}

async fn fill(db: &mut Held, sessions: &[Session], series: &[Series], mark: Option<&str>) -> sqlx::Result<()> {
    // The last counts are already included in the totals and must not be counted twice.
    if let Some(mark) = mark {
        set_meta(db, "mark", mark).await?;
    }
    let Held::Sqlite(db) = db else { return Ok(()) };
    for (id, user, name, meta, created, expires, seen) in sessions {
        let sql = "INSERT INTO sessions (id, user, name, meta, created_ms, expires_ms, seen_ms) VALUES ($1, $2, $3, $4, $5, $6, $7) \
                   ON CONFLICT (id) DO NOTHING";
        let query = sqlx::query(sql).bind(id).bind(user).bind(name).bind(meta).bind(created).bind(expires).bind(seen);
        query.execute(&mut **db).await?;
    }
    for (kind, name, metric, total) in series {
        let sql = "INSERT INTO series (kind, name, metric, total) VALUES ($1, $2, $3, $4) ON CONFLICT (kind, name, metric) DO NOTHING";
        sqlx::query(sql).bind(kind).bind(name).bind(metric).bind(total).execute(&mut **db).await?;
    }
    Ok(())
}
