//! What one transaction of the writer does.

use sqlx::Row;

use super::channels::Channels;
use super::db::{Held, both};
use super::fault::Fault;
use super::link::Link;
use super::queue::Item;
use super::record::Point;
use super::recover::{meta, set_meta};
use super::{StoreError, aside, insert};
use crate::model::Event;

/// A transaction.
pub(super) enum Work<'a> {
    /// What was queued.
    Items(&'a [Item]),
    /// The database refused these: only their offsets are noted.
    Refused(&'a [Item]),
    /// What was counted.
    Points(&'a [Point]),
}

/// Does it, all or nothing. `again`: it was tried before and failed, perhaps only after the commit; then `mark`, which must be
/// the same for all tries of one work, says whether it is there already.
pub(super) async fn perform(link: &mut Link, work: &Work<'_>, channels: &dyn Channels, again: bool, mark: u64) -> Result<(), Fault> {
    let mut held = link.begin().await?;
    let done = once(&mut held, work, channels, again, mark).await;
    Ok(link.end(held, done).await?)
}

/// A transaction is there as a whole or not at all: it is known by its first event, or by a mark of its own where it has none.
async fn once(db: &mut Held, work: &Work<'_>, channels: &dyn Channels, again: bool, mark: u64) -> sqlx::Result<()> {
    let first = if let Work::Items(items) = work { items.iter().find_map(event) } else { None };
    let mark = mark.to_string();
    let is_there = again
        && match first {
            Some(event) => is_written(db, event).await?,
            None => meta(db, "mark").await?.is_some_and(|there| there == mark),
        };
    if is_there {
        return Ok(());
    }
    if first.is_none() {
        set_meta(db, "mark", &mark).await?;
    }
    fill(db, work, channels).await
}

async fn fill(db: &mut Held, work: &Work<'_>, channels: &dyn Channels) -> sqlx::Result<()> {
    match work {
        Work::Items(items) => {
            let events = events(items);
            insert::events(db, &events, channels).await?;
            for item in *items {
                match item {
                    Item::Event(_) => {}
                    Item::Opened(record) => aside::opened(db, record).await?,
                    Item::Closed(both) => aside::closed(db, &both.0, &both.1).await?,
                    Item::Session(session) => aside::put_session(db, session).await?,
                    Item::SessionEnd(id) => aside::end_session(db, id).await?,
                }
            }
        }
        Work::Refused(items) => {
            insert::channels(db, &events(items), channels).await?;
        }
        Work::Points(points) => aside::points(db, points).await?,
    }
    Ok(())
}

fn event(item: &Item) -> Option<&Event> {
    if let Item::Event(event) = item { Some(event) } else { None }
}

fn events(items: &[Item]) -> Vec<&Event> {
    items.iter().filter_map(event).collect()
}

async fn is_written(db: &mut Held, event: &Event) -> sqlx::Result<bool> {
    let sql = "SELECT uuid FROM events WHERE id = $1";
    let there: Option<Vec<u8>> = both!(db, db => sqlx::query_scalar(sql).bind(event.seq.cast_signed()).fetch_optional(&mut **db).await?);
    Ok(there.is_some_and(|uuid| uuid == event.new.id.as_bytes()))
}

/// Notes that the log is in use, and which channels promise what: a crash of this run must treat them right.
pub(super) async fn begin(link: &mut Link, channels: &dyn Channels) -> Result<(), StoreError> {
    let mut held = link.begin().await?;
    let done = note_begin(&mut held, channels).await;
    Ok(link.end(held, done).await?)
}

async fn note_begin(db: &mut Held, channels: &dyn Channels) -> sqlx::Result<()> {
    set_meta(db, "clean", "0").await?;
    both!(db, db => {
        for row in sqlx::query("SELECT id, name, early FROM channels").fetch_all(&mut **db).await? {
            let early = i64::from(channels.policy(row.try_get(1)?).early);
            if early != row.try_get::<i64, _>(2)? {
                let query = sqlx::query("UPDATE channels SET early = $2 WHERE id = $1").bind(row.try_get::<i64, _>(0)?).bind(early);
                query.execute(&mut **db).await?;
            }
        }
    });
    Ok(())
}

/// Notes that this was an orderly end.
pub(super) async fn say_clean(link: &mut Link, seq: u64) -> sqlx::Result<()> {
    let mut held = link.begin().await?;
    let done = note_end(&mut held, seq).await;
    link.end(held, done).await?;
    if let Link::Sqlite(link) = link {
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&link.pool).await?;
    }
    Ok(())
}

async fn note_end(db: &mut Held, seq: u64) -> sqlx::Result<()> {
    set_meta(db, "seq", &seq.to_string()).await?;
    set_meta(db, "clean", "1").await
}
