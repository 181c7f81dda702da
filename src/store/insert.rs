//! Writes events into their table, many per statement, together with their channels.
//!
//! SQLite gets rows as `VALUES`, in chunks of a few fixed sizes so that their statements stay prepared. PostgreSQL gets columns
//! as arrays, so that one statement fits all sizes.

use std::collections::{BTreeSet, HashMap};
use std::sync::LazyLock;

use sqlx::query::Query;
use sqlx::sqlite::SqliteArguments;
use sqlx::{ColumnIndex, Decode, PgConnection, Row, Sqlite, SqliteConnection, Type};

use super::channels::Channels;
use super::db::{Either, Held, both};
use super::known::Noted;
use crate::model::{ChannelName, ClientId, Event, SessionId, UserId};

/// Rows of one statement, largest first.
pub(super) const CHUNKS: [usize; 4] = [512, 64, 8, 1];

/// SQLite's insert of many rows in one statement. On an error the rows before it stay, but the transaction is rolled back
/// anyway. Without `OR FAIL` SQLite keeps a journal to undo the single statement.
macro_rules! insert_rows {
    () => {
        "INSERT OR FAIL"
    };
}
pub(super) use insert_rows;

macro_rules! events_into {
    () => {
        concat!(
            $crate::store::insert::insert_rows!(),
            " INTO events (id, channel, \"offset\", epoch, uuid, type, data, time_ms, source, client, user, session, metadata) VALUES "
        )
    };
}
pub(super) use events_into;

static EVENTS: LazyLock<[String; 4]> = LazyLock::new(|| statements(events_into!(), "(?,?,?,?,?,?,?,?,?,?,?,?,?)", ""));

const EVENTS_UNNESTED: &str = "INSERT INTO events (id, channel, \"offset\", epoch, uuid, type, data, time_ms, source, client, \"user\", session, metadata) \
     SELECT * FROM UNNEST($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bytea[], $6::text[], $7::text[], $8::bigint[], \
     $9::text[], $10::text[], $11::text[], $12::text[], $13::text[])";

/// If the first offset does not follow the top, there is a gap, because an older database was put in place. Events before the
/// gap cannot be told from missing ones, so the channel begins again. What was early stays so until the next start.
macro_rules! channels_conflict {
    () => {
        " ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, \
         early = CASE WHEN excluded.early > channels.early THEN excluded.early ELSE channels.early END, \
         top = CASE WHEN excluded.top > channels.top THEN excluded.top ELSE channels.top END, \
         first = CASE WHEN excluded.first = channels.top + 1 THEN channels.first ELSE excluded.first END"
    };
}
pub(super) use channels_conflict;

macro_rules! channels_into {
    () => {
        "INSERT INTO channels (name, epoch, top, first, early) VALUES "
    };
}
pub(super) use channels_into;

macro_rules! returning {
    () => {
        " RETURNING name, id, epoch, top, first"
    };
}

static CHANNELS: LazyLock<[String; 4]> =
    LazyLock::new(|| statements(channels_into!(), "(?,?,?,?,?)", concat!(channels_conflict!(), returning!())));

const CHANNELS_UNNESTED: &str = concat!(
    "INSERT INTO channels (name, epoch, top, first, early) \
     SELECT * FROM UNNEST($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])",
    channels_conflict!(),
    returning!()
);

pub(super) fn statements(head: &str, row: &str, tail: &str) -> [String; 4] {
    CHUNKS.map(|n| format!("{head}{}{tail}", vec![row; n].join(",")))
}

/// Calls `each` with the index of a statement and the rows for it, until all are used.
macro_rules! in_chunks {
    ($rows:expr, |$size:ident, $chunk:ident| $body:block) => {
        let mut rest = $rows;
        for ($size, n) in $crate::store::insert::CHUNKS.into_iter().enumerate() {
            while rest.len() >= n {
                let ($chunk, after) = rest.split_at(n);
                rest = after;
                $body
            }
        }
    };
}
pub(super) use in_chunks;

type SqliteQuery<'q> = Query<'q, Sqlite, SqliteArguments>;

/// A channel of a batch.
pub(super) struct Span<'e> {
    pub(super) name: &'e ChannelName,
    pub(super) epoch: i64,
    /// The lowest and the highest offset.
    pub(super) first: i64,
    pub(super) top: i64,
    early: bool,
}

impl Span<'_> {
    pub(super) fn bind<'q>(&self, query: SqliteQuery<'q>) -> SqliteQuery<'q> {
        query.bind(self.name.as_str().to_owned()).bind(self.epoch).bind(self.top).bind(self.first).bind(i64::from(self.early))
    }
}

/// Writes events in their order, within the caller's transaction. Returns the new state of their channels.
pub(super) async fn events(db: &mut Held, events: &[&Event], policies: &dyn Channels) -> sqlx::Result<Vec<Noted>> {
    let noted = channels(db, events, policies).await?;
    let ids: HashMap<&str, i64> = noted.iter().map(|channel| (channel.name.as_str(), channel.id)).collect();
    let rows: Vec<(i64, &Event)> = events.iter().filter_map(|event| Some((*ids.get(event.channel.as_ref()?.as_str())?, *event))).collect();
    match db {
        Either::Sqlite(db) => as_values(db, &rows).await?,
        Either::Postgres(db) => unnested(db, &rows).await?,
    }
    Ok(noted)
}

/// Creates the rows of all channels that need one, and raises their tops. Used alone if the database refused the events
/// themselves: their offsets count as used.
pub(super) async fn channels(db: &mut Held, events: &[&Event], policies: &dyn Channels) -> sqlx::Result<Vec<Noted>> {
    let spans = spans(events, policies);
    let mut noted = Vec::with_capacity(spans.len());
    match db {
        Either::Sqlite(db) => {
            in_chunks!(&spans[..], |size, chunk| {
                let mut query = sqlx::query(CHANNELS[size].as_str());
                for span in chunk {
                    query = span.bind(query);
                }
                for row in query.fetch_all(&mut **db).await? {
                    noted.extend(note(&row)?);
                }
            });
        }
        Either::Postgres(db) if !spans.is_empty() => {
            let query = sqlx::query(CHANNELS_UNNESTED)
                .bind(spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>())
                .bind(spans.iter().map(|span| span.epoch).collect::<Vec<_>>())
                .bind(spans.iter().map(|span| span.top).collect::<Vec<_>>())
                .bind(spans.iter().map(|span| span.first).collect::<Vec<_>>())
                .bind(spans.iter().map(|span| i64::from(span.early)).collect::<Vec<_>>());
            for row in query.fetch_all(&mut **db).await? {
                noted.extend(note(&row)?);
            }
        }
        Either::Postgres(_) => {}
    }
    Ok(noted)
}

/// The state of those channels of the events that exist already.
pub(super) async fn known_channels(db: &mut Held, events: &[&Event]) -> sqlx::Result<Vec<Noted>> {
    let names: BTreeSet<&ChannelName> = events.iter().filter_map(|event| event.channel.as_ref()).collect();
    let mut noted = Vec::with_capacity(names.len());
    both!(db, db => {
        for name in names {
            let query = sqlx::query("SELECT name, id, epoch, top, first FROM channels WHERE name = $1").bind(name.as_str());
            if let Some(row) = query.fetch_optional(&mut **db).await? {
                noted.extend(note(&row)?);
            }
        }
    });
    Ok(noted)
}

pub(super) fn spans<'e>(events: &[&'e Event], policies: &dyn Channels) -> Vec<Span<'e>> {
    let mut spans: Vec<Span<'_>> = Vec::new();
    let mut by_name: HashMap<&str, usize> = HashMap::new();
    for event in events {
        let Some(name) = &event.channel else { continue };
        let at = *by_name.entry(name.as_str()).or_insert_with(|| {
            let early = policies.policy(name.as_str()).early;
            spans.push(Span { name, epoch: 0, first: event.offset.cast_signed(), top: 0, early });
            spans.len() - 1
        });
        // An epoch that began with the batch has nothing before it.
        if spans[at].top > 0 && spans[at].epoch != event.epoch.cast_signed() {
            spans[at].first = event.offset.cast_signed();
        }
        spans[at].epoch = event.epoch.cast_signed();
        spans[at].top = event.offset.cast_signed();
    }
    spans
}

/// A row of name, id, epoch, top and first.
pub(super) fn note<R: Row>(row: &R) -> sqlx::Result<Option<Noted>>
where
    usize: ColumnIndex<R>,
    for<'r> &'r str: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let [id, epoch, top, first] = [row.try_get::<i64, _>(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
    let (epoch, top, first) = (epoch.cast_unsigned(), top.cast_unsigned(), first.cast_unsigned());
    Ok(ChannelName::parse(row.try_get(0)?).map(|name| Noted { name, id, epoch, top, first }))
}

/// Binds what [`events_into`] names.
pub(super) fn bind_event<'q>(query: SqliteQuery<'q>, channel: i64, event: &Event) -> SqliteQuery<'q> {
    let (new, origin) = (&event.new, &event.new.origin);
    query
        .bind(event.seq.cast_signed())
        .bind(channel)
        .bind(event.offset.cast_signed())
        .bind(event.epoch.cast_signed())
        .bind(new.id.as_bytes().to_vec())
        .bind(new.kind.to_string())
        .bind(new.data.as_str().to_owned())
        .bind(new.time_ms)
        .bind(origin.source.clone())
        .bind(origin.client.as_ref().map(ClientId::shared))
        .bind(origin.user.as_ref().map(UserId::shared))
        .bind(origin.session.as_ref().map(SessionId::shared))
        .bind(new.metadata.as_ref().map(|metadata| metadata.as_str().to_owned()))
}

async fn as_values(db: &mut SqliteConnection, rows: &[(i64, &Event)]) -> sqlx::Result<()> {
    in_chunks!(rows, |size, chunk| {
        let query = sqlx::query(EVENTS[size].as_str());
        let query = chunk.iter().fold(query, |query, (channel, event)| bind_event(query, *channel, event));
        query.execute(&mut *db).await?;
    });
    Ok(())
}

async fn unnested(db: &mut PgConnection, rows: &[(i64, &Event)]) -> sqlx::Result<()> {
    fn column<'e, T>(rows: &[(i64, &'e Event)], of: impl Fn(&'e Event) -> T) -> Vec<T> {
        rows.iter().map(|(_, event)| of(event)).collect()
    }
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(EVENTS_UNNESTED)
        .bind(column(rows, |event| event.seq.cast_signed()))
        .bind(rows.iter().map(|(channel, _)| *channel).collect::<Vec<_>>())
        .bind(column(rows, |event| event.offset.cast_signed()))
        .bind(column(rows, |event| event.epoch.cast_signed()))
        .bind(column(rows, |event| &event.new.id.as_bytes()[..]))
        .bind(column(rows, |event| &*event.new.kind))
        .bind(column(rows, |event| event.new.data.as_str()))
        .bind(column(rows, |event| event.new.time_ms))
        .bind(column(rows, |event| &*event.new.origin.source))
        .bind(column(rows, |event| event.new.origin.client.as_deref()))
        .bind(column(rows, |event| event.new.origin.user.as_deref()))
        .bind(column(rows, |event| event.new.origin.session.as_deref()))
        .bind(column(rows, |event| event.new.metadata.as_ref().map(|m| m.as_str())))
        .execute(db)
        .await?;
    Ok(())
}
