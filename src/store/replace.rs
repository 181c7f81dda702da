//! Replaces a file that is gone or corrupt while the server runs. Offsets, epochs and positions in the log continue, because
//! they are known. The events that were in it are gone, and each channel says so.

use std::time::Duration;

use sqlx::sqlite::SqlitePool;
use tokio::time::timeout;

use super::channels::Channels;
use super::db::{Either, Held, Pool, both};
use super::fault::Fault;
use super::insert::{in_chunks, note, statements};
use super::known::{Known, Noted};
use super::link::Link;
use super::open::migrate;
use super::recover::{meta, set_meta};
use super::sqlite::DatabaseFile;
use super::{Shared, StoreError, salvage, sqlite, work};

/// How long queries on the old file may take to end.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// What the new file must record about the log.
pub(super) struct Identity<'a> {
    /// The log's id.
    pub(super) log: u64,
    /// The id of this run.
    pub(super) run: &'a str,
    pub(super) channels: &'a dyn Channels,
}

/// Opens the file at the link's path again: the one that is there now or, if there is none, a new one. A corrupt one is set
/// aside first. Returns the channels whose older events are gone.
pub(super) async fn replace(
    shared: &Shared,
    link: &mut Link,
    known: &mut Known,
    fault: &Fault,
    identity: &Identity<'_>,
) -> Result<Vec<Noted>, Fault> {
    let unable = |error: StoreError| Fault::Unable(error.to_string().into());
    let (Either::Sqlite(link), Either::Sqlite(readers)) = (&mut *link, shared.readers().db) else {
        return Err(Fault::Unable(fault.to_string().into()));
    };
    let Some(place) = &mut link.file else { return Err(Fault::Unable(fault.to_string().into())) };
    let folder_failed = |error: std::io::Error| Fault::Unable(format!("the database's folder cannot be used: {error}").into());
    if let Some(folder) = place.path.parent() {
        std::fs::create_dir_all(folder).map_err(folder_failed)?;
    }
    place.lock_again().map_err(unable)?;
    if matches!(fault, Fault::Corrupt(_)) && place.exists() {
        if !place.may_set_aside() {
            return Err(Fault::Unable("the file in the database's place is not a database".into()));
        }
        let path = place.set_aside(shared.clock.now().wall_ms).map_err(folder_failed)?;
        tracing::error!(aside = %path.display(), "the database is corrupt and was set aside; its events are only in that file");
        place.aside = Some(path);
    } else {
        place.remove_logs().map_err(folder_failed)?;
    }
    let (mut fresh, fresh_readers) = open(place).await?;
    let (adopted, is_new) = match adopt(&mut fresh, known, identity).await {
        Ok(adopted) => adopted,
        Err(fault) => {
            fresh_readers.close().await;
            fresh.close().await.ok();
            return Err(fault);
        }
    };
    match place.aside.take() {
        Some(path) => salvage::from_file(&path, &mut fresh).await,
        None if is_new => salvage::from_readers(&readers, &mut fresh).await,
        None => {}
    }
    place.note().map_err(folder_failed)?;
    if let Either::Sqlite(fresh) = fresh {
        let old = link.replace(fresh.pool);
        *shared.readers.write() = fresh_readers;
        close(&old, &readers).await;
    }
    Ok(adopted.into_iter().filter(|noted| known.note(noted)).collect())
}

async fn open(place: &mut DatabaseFile) -> Result<(Link, Pool), Fault> {
    let (pool, readers) = place.connect().await?;
    let mut link = Either::Sqlite(sqlite::Link::new(pool, None));
    match migrate(&mut link).await {
        Ok(()) => Ok((link, readers)),
        Err(error) => {
            readers.close().await;
            link.close().await.ok();
            Err(match error {
                StoreError::Corrupt(reason) => Fault::Corrupt(reason),
                StoreError::Unable(reason) => Fault::Unable(reason),
                error => Fault::Unable(error.to_string().into()),
            })
        }
    }
}

async fn close(writer: &SqlitePool, readers: &SqlitePool) {
    let closed = async {
        readers.close().await;
        writer.close().await;
    };
    if timeout(CLOSE_WAIT, closed).await.is_err() {
        tracing::warn!("queries on the old database did not end in time");
    }
}

/// Writes the log's identity and the state of its channels. A channel of which the file has less begins again after its top.
/// `true`: the file was empty.
async fn adopt(link: &mut Link, known: &Known, identity: &Identity<'_>) -> Result<(Vec<Noted>, bool), Fault> {
    let mut held = link.begin(known.len()).await?;
    let done = take_over(&mut held, known, identity).await;
    let foreign = || Fault::Unable("the database was replaced by that of another log; restart the server to use it".into());
    let adopted = link.end(held, done).await?.ok_or_else(foreign)?;
    work::begin(link, identity.channels, identity.run).await?;
    Ok(adopted)
}

/// `None`: this is another log, or a later state of this one. Queued events would meet other events at their positions.
async fn take_over(db: &mut Held, known: &Known, identity: &Identity<'_>) -> sqlx::Result<Option<(Vec<Noted>, bool)>> {
    let log = meta(db, "log").await?;
    if log.as_ref().is_some_and(|found| *found != identity.log.to_string()) || newest(db).await? > known.seq {
        return Ok(None);
    }
    Ok(Some((fill(db, known, identity).await?, log.is_none())))
}

async fn newest(db: &mut Held) -> sqlx::Result<u64> {
    let newest: Option<i64> = both!(db, db => sqlx::query_scalar("SELECT max(id) FROM events").fetch_one(&mut **db).await?);
    Ok(newest.unwrap_or_default().cast_unsigned())
}

async fn fill(db: &mut Held, known: &Known, identity: &Identity<'_>) -> sqlx::Result<Vec<Noted>> {
    set_meta(db, "log", &identity.log.to_string()).await?;
    let Held::Sqlite(db) = db else { return Ok(Vec::new()) };
    let head = "INSERT INTO channels (name, epoch, top, first, gone) VALUES ";
    let tail = " ON CONFLICT (name) DO UPDATE SET \
                first = CASE WHEN top = excluded.top AND epoch = excluded.epoch THEN first ELSE excluded.first END, \
                gone = CASE WHEN top = excluded.top AND epoch = excluded.epoch THEN gone ELSE excluded.gone END, \
                epoch = excluded.epoch, top = excluded.top RETURNING name, id, epoch, top, first";
    let sql = statements(head, "(?,?,?,?,?)", tail);
    let all: Vec<_> = known.iter().collect();
    let mut noted = Vec::with_capacity(all.len());
    in_chunks!(&all[..], |size, chunk| {
        let mut query = sqlx::query(sqlx::AssertSqlSafe(sql[size].as_str()));
        for (name, channel) in chunk {
            query = query
                .bind(name.as_str())
                .bind(channel.epoch.cast_signed())
                .bind(channel.top.cast_signed())
                .bind(channel.top.cast_signed() + 1)
                .bind(known.seq.cast_signed());
        }
        for row in query.fetch_all(&mut **db).await? {
            noted.extend(note(&row)?);
        }
    });
    Ok(noted)
}
