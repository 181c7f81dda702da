//! Looks through an SQLite file after a crash, beside everything else: damage can go unseen by queries that use an index.

use std::sync::Arc;

use sqlx::ConnectOptions;
use tokio::task::JoinHandle;

use super::Shared;
use super::db::Either;
use super::fault::is_corruption;
use super::link::Link;
use super::sqlite::reading;

/// Begins to look. What is found is told to the writer.
pub(super) fn spawn(shared: &Arc<Shared>, link: &Link) -> Option<JoinHandle<()>> {
    let Either::Sqlite(link) = link else { return None };
    let path = link.file.as_ref()?.path.clone();
    let shared = shared.clone();
    Some(tokio::spawn(async move {
        let found = async {
            let mut db = reading(&path).connect().await?;
            sqlx::query_scalar::<_, String>("PRAGMA quick_check(1)").fetch_one(&mut db).await
        };
        match found.await {
            Ok(found) if found == "ok" => tracing::info!("the database is sound after the crash"),
            Ok(found) => shared.suspect(found),
            Err(error) if is_corruption(&error) => shared.suspect(error.to_string()),
            Err(error) => tracing::warn!(%error, "the database could not be looked through after the crash"),
        }
    }))
}
