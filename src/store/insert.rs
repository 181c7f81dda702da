//! Rows into tables, many per statement. Chunks have a few fixed sizes so that their statements stay prepared.

use std::collections::HashMap;
use std::sync::LazyLock;

use sqlx::{Row, SqliteConnection};

use super::queue::Item;
use super::record::{ConnectionEnd, ConnectionRecord};
use crate::model::{ChannelName, Event};

/// Rows of one statement, largest first.
const CHUNKS: [usize; 4] = [512, 64, 8, 1];

static EVENTS: LazyLock<[String; 4]> = LazyLock::new(|| {
    let head =
        "INSERT INTO events (id, channel, \"offset\", epoch, uuid, type, data, time_ms, source, client, user, session, metadata) VALUES ";
    statements(head, "(?,?,?,?,?,?,?,?,?,?,?,?,?)", "")
});

static CHANNELS: LazyLock<[String; 4]> = LazyLock::new(|| {
    let tail = " ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch, top = max(top, excluded.top) RETURNING id, name";
    statements("INSERT INTO channels (name, epoch, top) VALUES ", "(?,?,?)", tail)
});

fn statements(head: &str, row: &str, tail: &str) -> [String; 4] {
    CHUNKS.map(|n| format!("{head}{}{tail}", vec![row; n].join(",")))
}

/// Calls `each` with the index of a statement and the rows for it, until all are used.
macro_rules! in_chunks {
    ($rows:expr, |$size:ident, $chunk:ident| $body:block) => {
        let mut rest = $rows;
        for ($size, n) in CHUNKS.into_iter().enumerate() {
            while rest.len() >= n {
                let ($chunk, after) = rest.split_at(n);
                rest = after;
                $body
            }
        }
    };
}

/// Writes items in their order, within the caller's transaction. Orders of events and of connection records are kept apart.
pub(super) async fn items(db: &mut SqliteConnection, items: &[Item]) -> sqlx::Result<()> {
    let events: Vec<(&ChannelName, &Event)> = items
        .iter()
        .filter_map(|item| if let Item::Event(event) = item { Some((event.channel.as_ref()?, &**event)) } else { None })
        .collect();
    let ids = channels(db, &events).await?;
    in_chunks!(&events[..], |size, chunk| {
        let mut query = sqlx::query(EVENTS[size].as_str());
        for (channel, event) in chunk {
            let (new, origin) = (&event.new, &event.new.origin);
            query = query
                .bind(event.seq.cast_signed())
                .bind(ids.get(channel.as_str()))
                .bind(event.offset.cast_signed())
                .bind(event.epoch.cast_signed())
                .bind(&new.id.as_bytes()[..])
                .bind(&*new.kind)
                .bind(new.data.as_str())
                .bind(new.time_ms)
                .bind(origin.source.clone())
                .bind(origin.client.clone())
                .bind(origin.user.clone())
                .bind(origin.session.clone())
                .bind(new.metadata.as_ref().map(|m| m.as_str()));
        }
        query.execute(&mut *db).await?;
    });
    for item in items {
        match item {
            Item::Event(_) => {}
            Item::Opened(record) => opened(db, record).await?,
            Item::Closed(both) => closed(db, &both.0, &both.1).await?,
        }
    }
    Ok(())
}

/// Makes sure of the rows of all channels concerned, raises their tops, and gives their ids.
async fn channels(db: &mut SqliteConnection, events: &[(&ChannelName, &Event)]) -> sqlx::Result<HashMap<String, i64>> {
    let mut last: HashMap<&ChannelName, &Event> = HashMap::new();
    for (channel, event) in events {
        last.insert(channel, event);
    }
    let last: Vec<_> = last.into_iter().collect();
    let mut ids = HashMap::with_capacity(last.len());
    in_chunks!(&last[..], |size, chunk| {
        let mut query = sqlx::query(CHANNELS[size].as_str());
        for (name, event) in chunk {
            query = query.bind(name.shared()).bind(event.epoch.cast_signed()).bind(event.offset.cast_signed());
        }
        for row in query.fetch_all(&mut *db).await? {
            ids.insert(row.try_get(1)?, row.try_get(0)?);
        }
    });
    Ok(ids)
}

async fn opened(db: &mut SqliteConnection, record: &ConnectionRecord) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO connections (client, protocol, user, session, address, opened_ms) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(record.client.clone())
        .bind(record.protocol.clone())
        .bind(record.user.clone())
        .bind(record.session.clone())
        .bind(record.address.clone())
        .bind(record.opened_ms)
        .execute(db)
        .await?;
    Ok(())
}

/// Completes the row that was written when it opened; where that one was dropped, it is made first.
async fn closed(db: &mut SqliteConnection, record: &ConnectionRecord, end: &ConnectionEnd) -> sqlx::Result<()> {
    if update(db, record, end).await? == 0 {
        opened(db, record).await?;
        update(db, record, end).await?;
    }
    Ok(())
}

async fn update(db: &mut SqliteConnection, record: &ConnectionRecord, end: &ConnectionEnd) -> sqlx::Result<u64> {
    let sql = "UPDATE connections SET user = $2, session = $3, closed_ms = $4, code = $5, reason = $6, messages_in = $7, \
               messages_out = $8, bytes_in = $9, bytes_out = $10, dropped = $11 WHERE client = $1 AND closed_ms IS NULL";
    let done = sqlx::query(sql)
        .bind(record.client.clone())
        .bind(record.user.clone())
        .bind(record.session.clone())
        .bind(end.closed_ms)
        .bind(end.code)
        .bind(end.reason.as_str())
        .bind(end.messages_in.cast_signed())
        .bind(end.messages_out.cast_signed())
        .bind(end.bytes_in.cast_signed())
        .bind(end.bytes_out.cast_signed())
        .bind(end.dropped.cast_signed())
        .execute(db)
        .await?;
    Ok(done.rows_affected())
}

/// Writes totals.
pub(super) async fn counters(db: &mut SqliteConnection, totals: &[(String, u64)]) -> sqlx::Result<()> {
    for (name, value) in totals {
        sqlx::query("INSERT INTO counters (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
            .bind(name.as_str())
            .bind(value.cast_signed())
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}
