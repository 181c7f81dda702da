//! What one transaction of the writer does.

use futures_util::FutureExt;
use sqlx::Row;

use super::channels::Channels;
use super::db::{Held, both};
use super::fault::Fault;
use super::known::{Known, Noted};
use super::link::Link;
use super::queue::Item;
use super::record::Point;
use super::recover::{meta, set_meta};
use super::whole::Whole;
use super::{aside, insert};
use crate::model::{ChannelName, Event};

/// A transaction.
pub(super) enum Work<'a> {
    /// What was queued.
    Items(&'a [Item]),
    /// The database refused these: only their offsets are noted.
    Refused(&'a [Item]),
    /// Counts.
    Points(&'a [Point]),
}

impl Work<'_> {
    fn rows(&self) -> usize {
        match self {
            Self::Items(items) | Self::Refused(items) => items.len(),
            Self::Points(points) => points.len(),
        }
    }

    /// As events of known channels, if it consists only of them.
    fn whole(&self, channels: &dyn Channels, known: &Known) -> Option<Whole<'_>> {
        let Self::Items(items) = self else { return None };
        Whole::of(&items.iter().map(event).collect::<Option<Vec<_>>>()?, known, channels)
    }

    /// The newest position in the log that it assigns.
    pub(super) fn last_seq(&self) -> u64 {
        match self {
            Self::Items(items) | Self::Refused(items) => items.iter().rev().find_map(event).map_or(0, |event| event.seq),
            Self::Points(_) => 0,
        }
    }
}

/// Does all of it or nothing. `again`: it was tried before and failed, perhaps after the commit; then `mark`, which must be the
/// same for all tries, tells whether it has been done. Returns the new state of the channels.
pub(super) async fn perform(
    link: &mut Link,
    work: &Work<'_>,
    channels: &dyn Channels,
    known: &Known,
    again: bool,
    mark: u64,
) -> Result<Vec<Noted>, Fault> {
    let is_remote = link.is_remote();
    let work = async {
        // Only the first time, because an earlier try may have succeeded.
        if let Some(whole) = work.whole(channels, known).filter(|_| !again && !is_remote) {
            return whole.write(link).await;
        }
        let mut held = link.begin(work.rows()).await?;
        let done = once(&mut held, work, channels, again, mark).await;
        link.end(held, done).await
    };
    Link::in_time(is_remote, work.boxed()).await
}

/// A transaction is there as a whole or not at all: it is recognized by its first event or, if it has none, by a mark.
async fn once(db: &mut Held, work: &Work<'_>, channels: &dyn Channels, again: bool, mark: u64) -> sqlx::Result<Vec<Noted>> {
    let first = if let Work::Items(items) = work { items.iter().find_map(event) } else { None };
    let mark = mark.to_string();
    let is_there = again
        && match first {
            Some(event) => is_written(db, event).await?,
            None => meta(db, "mark").await?.is_some_and(|there| there == mark),
        };
    if is_there {
        return match work {
            Work::Items(items) | Work::Refused(items) => insert::known_channels(db, &events(items)).await,
            Work::Points(_) => Ok(Vec::new()),
        };
    }
    if first.is_none() {
        set_meta(db, "mark", &mark).await?;
    }
    fill(db, work, channels).await
}

async fn fill(db: &mut Held, work: &Work<'_>, channels: &dyn Channels) -> sqlx::Result<Vec<Noted>> {
    match work {
        Work::Items(items) => {
            let events = events(items);
            let noted = insert::events(db, &events, channels).await?;
            aside::items(db, items).await?;
            Ok(noted)
        }
        Work::Refused(items) => insert::channels(db, &events(items), channels).await,
        Work::Points(points) => {
            aside::points(db, points).await?;
            Ok(Vec::new())
        }
    }
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

/// Records that the log is in use and by whom, and what each channel promises, so that a crash of this run is handled correctly.
pub(super) async fn begin(link: &mut Link, channels: &dyn Channels, run: &str) -> Result<(), Fault> {
    let mut held = link.begin(0).await?;
    let done = note_begin(&mut held, channels, run).await;
    link.end(held, done).await?;
    if let Link::Postgres(link) = link {
        link.run = Some(run.to_owned());
    }
    Ok(())
}

async fn note_begin(db: &mut Held, channels: &dyn Channels, run: &str) -> sqlx::Result<()> {
    set_meta(db, "clean", "0").await?;
    set_meta(db, "run", run).await?;
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

/// Records that these channels may show events before they are committed.
pub(super) async fn note_early(link: &mut Link, channels: &[ChannelName]) -> Result<(), Fault> {
    let mut held = link.begin(channels.len()).await?;
    let done = set_early(&mut held, channels).await;
    link.end(held, done).await
}

async fn set_early(db: &mut Held, channels: &[ChannelName]) -> sqlx::Result<()> {
    both!(db, db => {
        for name in channels {
            sqlx::query("UPDATE channels SET early = 1 WHERE name = $1").bind(name.as_str()).execute(&mut **db).await?;
        }
    });
    Ok(())
}

/// Records that this was an orderly end.
pub(super) async fn say_clean(link: &mut Link, seq: u64) -> Result<(), Fault> {
    let mut held = link.begin(0).await?;
    let done = async {
        set_meta(&mut held, "seq", &seq.to_string()).await?;
        set_meta(&mut held, "clean", "1").await
    };
    let done = done.await;
    link.end(held, done).await?;
    if let Link::Sqlite(link) = link {
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut *link.take().await?).await?;
    }
    Ok(())
}

/// Checks whether the database can be written to. `write`: by writing something, because reading proves nothing after a full
/// disk.
pub(super) async fn probe(link: &mut Link, write: bool) -> Result<(), Fault> {
    let is_remote = link.is_remote();
    let work = async {
        if !link.is_there() {
            return Err(Fault::Gone);
        }
        let mut held = link.begin(0).await?;
        let done = async {
            if write {
                set_meta(&mut held, "probe", "").await?;
            }
            is_read_only(&mut held).await
        };
        let done = done.await;
        if link.end(held, done).await? { Err(Fault::Unable("PostgreSQL is read-only".into())) } else { Ok(()) }
    };
    Link::in_time(is_remote, work.boxed()).await
}

/// Whether PostgreSQL accepts only reads now, like a standby. SQLite reports that when the transaction begins.
async fn is_read_only(db: &mut Held) -> sqlx::Result<bool> {
    match db {
        Held::Sqlite(_) => Ok(false),
        Held::Postgres(db) => sqlx::query_scalar("SELECT current_setting('transaction_read_only') = 'on'").fetch_one(&mut **db).await,
    }
}
