//! The state that the last run left behind, read and put in order at the start.

use sqlx::Row;

use super::db::{Held, both};
use super::fault::Fault;
use super::known::{Known, Noted};
use super::link::Link;
use crate::model::chance;
use crate::model::event::Epoch;
use crate::model::{ChannelName, Now};

/// The reason that is recorded for connections that a crash left open.
const LOST_REASON: &str = "server lost";

/// The state that the last run left behind.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Every channel that ever had stored events.
    pub channels: Vec<StoredChannel>,
    /// The newest position in the log that was ever assigned.
    pub last_seq: u64,
    /// What was counted so far.
    pub totals: Vec<Total>,
    /// Whether the last run stopped in an orderly way. If not, channels that deliver early have a new epoch: delivered events
    /// may not have been written, and an offset must never name two events of one epoch.
    pub clean: bool,
    /// Identifies this log: a position over all channels means nothing in another one.
    pub log: u64,
}

/// The position of a channel in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredChannel {
    /// Its name.
    pub name: ChannelName,
    /// Its stream.
    pub epoch: Epoch,
    /// The newest offset.
    pub top: u64,
    /// The oldest offset that is still there; `top + 1` if there is none.
    pub first: u64,
}

/// A counter that continues after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Total {
    /// What kind of thing is counted.
    pub kind: String,
    /// Which one.
    pub name: String,
    /// What of it.
    pub metric: String,
    /// The total of all runs.
    pub total: u64,
}

/// Reads what the last run left and puts it in order, in one transaction. After it the database is clean until the writer
/// begins, so a start that fails for another reason costs no epoch.
pub(super) async fn recover(link: &mut Link, now: Now) -> Result<(Recovered, Known), Fault> {
    let mut held = link.begin(0).await?;
    let done = in_order(&mut held, now).await;
    link.end(held, done).await
}

async fn in_order(db: &mut Held, now: Now) -> sqlx::Result<(Recovered, Known)> {
    let mut recovered = Recovered { clean: meta(db, "clean").await?.is_none_or(|flag| flag == "1"), ..Recovered::default() };
    if !recovered.clean {
        // One epoch for all: it is new to each of them. Earlier events are not part of it, but can still be queried.
        let fresh = chance::epoch().cast_signed();
        let sql = "UPDATE channels SET epoch = CASE epoch WHEN $1 THEN $1 + 1 ELSE $1 END, first = top + 1 WHERE early = 1";
        both!(&mut *db, db => sqlx::query(sql).bind(fresh).execute(&mut **db).await?.rows_affected());
    }
    let sql = "UPDATE connections SET closed_ms = $1, code = 1006, reason = $2 WHERE closed_ms IS NULL";
    both!(&mut *db, db => sqlx::query(sql).bind(now.wall_ms).bind(LOST_REASON).execute(&mut **db).await?.rows_affected());
    set_meta(db, "clean", "1").await?;
    recovered.log = match meta(db, "log").await?.and_then(|log| log.parse().ok()) {
        Some(log) => log,
        None => {
            let log = chance::epoch();
            set_meta(db, "log", &log.to_string()).await?;
            log
        }
    };
    let known = channels(db, &mut recovered).await?;
    totals(db, &mut recovered).await?;
    Ok((recovered, known))
}

async fn channels(db: &mut Held, recovered: &mut Recovered) -> sqlx::Result<Known> {
    let (mut known, mut last) = (Known::default(), 0);
    both!(&mut *db, db => {
        for row in sqlx::query("SELECT name, epoch, top, first, gone, id FROM channels ORDER BY id").fetch_all(&mut **db).await? {
            let [epoch, top, first, gone] = [row.try_get::<i64, _>(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
            last = last.max(gone);
            if let Some(name) = ChannelName::parse(row.try_get(0)?) {
                let (epoch, top, first) = (epoch.cast_unsigned(), top.cast_unsigned(), first.cast_unsigned());
                known.note(&Noted { name: name.clone(), id: row.try_get(5)?, epoch, top, first });
                recovered.channels.push(StoredChannel { name, epoch, top, first });
            }
        }
        let newest: Option<i64> = sqlx::query_scalar("SELECT max(id) FROM events").fetch_one(&mut **db).await?;
        last = last.max(newest.unwrap_or_default());
    });
    let noted = meta(db, "seq").await?.and_then(|seq| seq.parse().ok());
    recovered.last_seq = last.cast_unsigned().max(noted.unwrap_or_default());
    known.seq = recovered.last_seq;
    Ok(known)
}

async fn totals(db: &mut Held, recovered: &mut Recovered) -> sqlx::Result<()> {
    both!(db, db => {
        for row in sqlx::query("SELECT kind, name, metric, total FROM series ORDER BY id").fetch_all(&mut **db).await? {
            let total: i64 = row.try_get(3)?;
            let total = Total { kind: row.try_get(0)?, name: row.try_get(1)?, metric: row.try_get(2)?, total: total.cast_unsigned() };
            recovered.totals.push(total);
        }
    });
    Ok(())
}

/// A value of the table `meta`.
pub(super) async fn meta(db: &mut Held, key: &str) -> sqlx::Result<Option<String>> {
    both!(db, db => sqlx::query_scalar("SELECT value FROM meta WHERE key = $1").bind(key).fetch_optional(&mut **db).await)
}

/// Writes a value of the table `meta`.
pub(super) async fn set_meta(db: &mut Held, key: &str, value: &str) -> sqlx::Result<()> {
    let sql = "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
    both!(db, db => sqlx::query(sql).bind(key).bind(value).execute(&mut **db).await?.rows_affected());
    Ok(())
}
