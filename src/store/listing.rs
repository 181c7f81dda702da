//! What is stored besides events, as it is queried: connections and sessions, one page at a time.

use std::ops::ControlFlow;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::cursor::{self, Order};
use super::read::{Columns, Query};
use super::record::SessionRecord;
use super::{Store, StoreError};
use crate::model::Json;
use crate::model::clock::iso;

/// The most entries of one page.
pub const LISTING_LIMIT_MAX: usize = 1000;

/// What [`session`] reads.
const SESSION: &str = "SELECT id, \"user\", name, meta, created_ms, expires_ms, seen_ms FROM sessions";

/// Which connections.
#[derive(Debug, Clone)]
pub struct ConnectionQuery {
    /// The protocol's name.
    pub protocol: Option<Box<str>>,
    /// The user it had at its end.
    pub user: Option<Box<str>>,
    /// The session it had at its end.
    pub session: Option<Box<str>>,
    /// Its public id, which is unique only among those that are open.
    pub client: Option<Box<str>>,
    /// Those that have ended, or those that are open as far as the store knows.
    pub closed: bool,
    /// How many, at most [`LISTING_LIMIT_MAX`].
    pub limit: usize,
    /// From [`Listing::next`] of the page before, with the same query.
    pub cursor: Option<String>,
}

/// A page of entries.
#[derive(Debug, Clone, PartialEq)]
pub struct Listing<T> {
    /// In order.
    pub entries: Vec<T>,
    /// Where the next page begins. `None`: nothing follows.
    pub next: Option<String>,
}

impl Store {
    /// Stored connections, newest first, each as JSON text: `id`, `protocol`, `user`?, `session`?, `address`, `opened`, `seen`?,
    /// `closed`?, `code`?, `reason`?, `messages` and `bytes` as `{"in","out"}`, `dropped`. Times are ISO 8601. Connections that
    /// ended before the query are included, unless the store cannot write.
    pub async fn connections(&self, asked: &ConnectionQuery) -> Result<Listing<String>, StoreError> {
        let limit = limit(asked.limit)?;
        let question = question(&json!(["connections", asked.client, asked.session, asked.user, asked.protocol, asked.closed]));
        let before = asked.cursor.as_deref().map(|text| cursor::read(text, Order::Descending, question)).transpose()?;
        self.settled().await;
        let pool = self.shared.readers();
        let mut query = Query::new(
            &pool,
            "SELECT id, client, protocol, \"user\", session, address, opened_ms, seen_ms, closed_ms, code, reason, messages_in, \
             messages_out, bytes_in, bytes_out, dropped FROM connections WHERE id < ",
        );
        query.value(before.unwrap_or(i64::MAX));
        // The first condition chooses the index: the most selective come first.
        let mut leads = true;
        for (column, value) in
            [("client", &asked.client), ("session", &asked.session), ("\"user\"", &asked.user), ("protocol", &asked.protocol)]
        {
            let Some(value) = value else { continue };
            query.push(" AND ");
            if std::mem::take(&mut leads) { query.push(column) } else { query.aside(column) }.push(" = ").value(&**value);
        }
        query.push(if asked.closed { " AND closed_ms IS NOT NULL" } else { " AND closed_ms IS NULL" });
        query.push(" ORDER BY id DESC LIMIT ").value(limit + 1);
        let rows = all(&query, |row| Ok((row.number(0)?, connection(row)?))).await?;
        Ok(listing(rows, asked.limit, |id| cursor::write(Order::Descending, *id, question)))
    }

    /// A session, whether or not it has ended.
    pub async fn session(&self, id: &str) -> Result<Option<SessionRecord>, StoreError> {
        let pool = self.shared.readers();
        let mut query = Query::new(&pool, SESSION);
        query.push(" WHERE id = ").value(id).first(session).await
    }

    /// Stored sessions by their ids, whether or not they have ended; of one user if `user` is given.
    pub async fn sessions(&self, user: Option<&str>, limit: usize, cursor: Option<&str>) -> Result<Listing<SessionRecord>, StoreError> {
        let rows = self::limit(limit)?;
        let question = question(&json!(["sessions", user]));
        let after = cursor.map(|text| cursor::read_text(text, Order::Ascending, question)).transpose()?;
        let pool = self.shared.readers();
        let mut query = Query::new(&pool, SESSION);
        query.push(" WHERE id > ").value(after.as_deref().unwrap_or(""));
        if let Some(user) = user {
            query.push(" AND \"user\" = ").value(user);
        }
        query.push(" ORDER BY id LIMIT ").value(rows + 1);
        let rows = all(&query, |row| session(row).map(|session| (session.id.clone(), session))).await?;
        Ok(listing(rows, limit, |id| cursor::write_text(Order::Ascending, id, question)))
    }
}

fn limit(limit: usize) -> Result<i64, StoreError> {
    i64::try_from(limit).ok().filter(|_| (1..=LISTING_LIMIT_MAX).contains(&limit)).ok_or(StoreError::Limit)
}

fn question(all: &serde_json::Value) -> [u8; 8] {
    let hash = Sha256::digest(all.to_string().as_bytes());
    std::array::from_fn(|i| hash[i])
}

async fn all<T>(query: &Query<'_>, read: impl Fn(&dyn Columns) -> Result<T, StoreError>) -> Result<Vec<T>, StoreError> {
    let mut found = Vec::new();
    query
        .each(|row| {
            found.push(read(row)?);
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    Ok(found)
}

/// Makes a page from rows, of which one more than needed was read.
fn listing<K, T>(mut rows: Vec<(K, T)>, limit: usize, cursor: impl Fn(&K) -> String) -> Listing<T> {
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next = rows.last().filter(|_| more).map(|(key, _)| cursor(key));
    Listing { entries: rows.into_iter().map(|(_, entry)| entry).collect(), next }
}

fn connection(row: &dyn Columns) -> Result<String, StoreError> {
    let mut shown = json!({ "id": row.word(1)?, "protocol": row.word(2)? });
    for (key, column) in [("user", 3), ("session", 4), ("address", 5)] {
        if let Some(text) = row.text(column)? {
            shown[key] = text.into();
        }
    }
    for (key, column) in [("opened", 6), ("seen", 7), ("closed", 8)] {
        if let Some(ms) = row.int(column)? {
            shown[key] = iso(ms).into();
        }
    }
    if let Some(code) = row.int(9)? {
        shown["code"] = code.into();
    }
    if let Some(reason) = row.text(10)? {
        shown["reason"] = reason.into();
    }
    shown["messages"] = json!({ "in": row.number(11)?, "out": row.number(12)? });
    shown["bytes"] = json!({ "in": row.number(13)?, "out": row.number(14)? });
    shown["dropped"] = row.number(15)?.into();
    Ok(shown.to_string())
}

fn session(row: &dyn Columns) -> Result<SessionRecord, StoreError> {
    Ok(SessionRecord {
        id: row.word(0)?.into(),
        user: row.text(1)?.map(Into::into),
        name: row.text(2)?.map(Into::into),
        meta: row.text(3)?.map(Json::trusted),
        created_ms: row.number(4)?,
        expires_ms: row.number(5)?,
        seen_ms: row.int(6)?,
    })
}

#[cfg(test)]
#[path = "listing_tests.rs"]
mod tests;
