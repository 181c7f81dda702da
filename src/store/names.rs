//! From names and globs to the channels of the database.

use std::ops::ControlFlow;

use super::StoreError;
use super::db::Pool;
use super::filter::{Filter, names};
use super::read::Query;
use crate::model::name::CHANNEL_BYTES_MAX;
use crate::model::pattern::Glob;

/// The most names that are compared with globs, and the most channels that are named to the database. Beyond that, each row's
/// channel is compared as it is read.
const NAMES_MAX: usize = 10_000;

/// The channels of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChannelSet {
    /// Any channel.
    All,
    /// One that was named. Never one that a glob found alone: later it may find two.
    One(i64),
    Some(Vec<i64>),
    /// Too many to be named.
    Many,
}

impl ChannelSet {
    /// Adds the condition that an event is of one of them, as far as they are named.
    pub(super) fn push(&self, query: &mut Query<'_>) {
        match self {
            ChannelSet::One(id) => {
                query.push(" AND ").aside_number("e.channel").push(" = ").value(*id);
            }
            ChannelSet::Some(ids) => {
                query.push(" AND ").among("e.channel", ids);
            }
            ChannelSet::All | ChannelSet::Many => {}
        }
    }
}

/// Adds the condition that a column may be one of these names, or match a glob among them. Every match is included; others may
/// be.
pub(super) fn push_names(query: &mut Query<'_>, column: &str, wanted: &[Box<str>]) {
    for (i, text) in wanted.iter().enumerate() {
        query.push(if i == 0 { "(" } else { " OR " });
        if Glob::is_glob(text) {
            let (begin, end) = range(text);
            query.push("(").push(column).push(" >= ").value(begin).push(" AND ").push(column).push(" <= ").value(&*end).push(")");
        } else {
            query.push(column).push(" = ").value(&**text);
        }
    }
    query.push(")");
}

/// The names that begin like a glob are between these two. Names have at most 256 bytes, so none of them is above the second.
fn range(glob: &str) -> (&str, String) {
    let prefix = glob.split('*').next().unwrap_or_default();
    (prefix, format!("{prefix}{}", "\u{10ffff}".repeat(CHANNEL_BYTES_MAX / 4)))
}

/// The channels that a filter selects. `None` if there is no such channel.
pub(super) async fn resolve(pool: &Pool, filter: &Filter) -> Result<Option<ChannelSet>, StoreError> {
    let all = |text: &str| !text.is_empty() && text.bytes().all(|b| b == b'*');
    if filter.channels.is_empty() || filter.channels.iter().any(|text| all(text)) {
        return Ok(Some(ChannelSet::All));
    }
    let (mut ids, mut looked) = (Vec::new(), 0);
    for text in &filter.channels {
        if !Glob::is_glob(text) {
            let mut one = Query::new(pool, "SELECT id FROM channels WHERE name = ");
            let id = one.value(&**text).number().await?;
            if filter.channels.len() == 1 {
                return Ok(id.map(ChannelSet::One));
            }
            ids.extend(id);
            continue;
        }
        // The index finds the names with the right beginning, and our own glob decides: SQLite's knows more than `*`, and can be
        // made to take time that grows with a power of the name's length.
        let (begin, end) = range(text);
        let mut some = Query::new(pool, "SELECT name, id FROM channels WHERE name >= ");
        some.value(begin).push(" AND name <= ").value(&*end).push(" LIMIT ").value(NAMES_MAX as i64 + 1);
        some.each(|row| {
            looked += 1;
            if names(text, row.word(0)?) {
                ids.push(row.number(1)?);
            }
            Ok(if looked > NAMES_MAX { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
        .await?;
        if looked > NAMES_MAX {
            return Ok(Some(ChannelSet::Many));
        }
    }
    Ok((!ids.is_empty()).then_some(ChannelSet::Some(ids)))
}
