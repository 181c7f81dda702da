//! Stored events, one page at a time, and all of them as an export.
//!
//! A page continues from a key, never from a count, so rows that are added or removed meanwhile are neither repeated nor
//! skipped. An export consists of the same pages one after the other: short queries, so that none keeps the database's log from
//! being cleaned up.

use super::cursor::Order;
use super::db::Pool;
use super::filter::Filter;
use super::scan::{Budget, Scan};
use super::{Store, StoreError};
use crate::model::Event;

/// The most events of one page.
pub const HISTORY_LIMIT_MAX: usize = 1000;
/// Events of a page if no limit is given.
pub const HISTORY_LIMIT_DEFAULT: usize = 100;
/// Events that an export reads in one query.
const EXPORT_ROWS: usize = 256;

/// Which events.
#[derive(Debug, Clone)]
pub struct HistoryQuery {
    /// Those that match.
    pub filter: Filter,
    /// The order.
    pub order: Order,
    /// How many, at most [`HISTORY_LIMIT_MAX`].
    pub limit: usize,
    /// From [`Page::next`] of the page before, with the same filter and order.
    pub cursor: Option<String>,
}

impl Default for HistoryQuery {
    fn default() -> Self {
        Self { filter: Filter::default(), order: Order::default(), limit: HISTORY_LIMIT_DEFAULT, cursor: None }
    }
}

/// A page of events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Each as [`crate::model::Event::to_json`] writes it, in the requested order.
    pub events: Vec<String>,
    /// Where the next page begins. `None`: nothing follows.
    pub next: Option<String>,
    /// The page may be short, even empty, although more follows, because it had looked at enough rows.
    pub truncated: bool,
}

/// Every event that matches, read as it is needed.
pub struct Export {
    store: Store,
    scan: Option<Scan>,
    left: u64,
}

impl Store {
    /// A page of stored events. Sees what is committed; call [`Store::settled`] first to see what was just appended.
    pub async fn history(&self, query: &HistoryQuery) -> Result<Page, StoreError> {
        page(&self.shared.readers(), query, Budget::default()).await
    }

    /// Every stored event that matches, at most `limit`, from a page's cursor on if one is given.
    pub async fn export(&self, filter: &Filter, order: Order, cursor: Option<&str>, limit: Option<u64>) -> Result<Export, StoreError> {
        let scan = Scan::begin(&self.shared.readers(), filter, order, cursor).await?;
        Ok(Export { store: self.clone(), scan, left: limit.unwrap_or(u64::MAX) })
    }
}

pub(super) async fn page(pool: &Pool, query: &HistoryQuery, budget: Budget) -> Result<Page, StoreError> {
    if !(1..=HISTORY_LIMIT_MAX).contains(&query.limit) {
        return Err(StoreError::Limit);
    }
    match Scan::begin(pool, &query.filter, query.order, query.cursor.as_deref()).await? {
        Some(mut scan) => {
            let found = scan.step(pool, query.limit, budget).await?;
            Ok(Page { events: found.events.iter().map(Event::to_json).collect(), next: found.next, truncated: found.truncated })
        }
        None => Ok(Page::default()),
    }
}

impl Export {
    /// The next events; perhaps none, although many rows were looked at. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<String>>, StoreError> {
        let Some(scan) = self.scan.as_mut().filter(|scan| self.left > 0 && !scan.is_done()) else { return Ok(None) };
        let rows = EXPORT_ROWS.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let found = scan.step(&self.store.shared.readers(), rows, Budget::default()).await?;
        self.left -= found.events.len() as u64;
        Ok(Some(found.events.iter().map(Event::to_json).collect()))
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
