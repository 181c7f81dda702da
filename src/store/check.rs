//! Looks through an SQLite file beside everything else, after a crash and where a reader met damage: it can go unseen by
//! queries that use an index.

use std::sync::Arc;

use sqlx::ConnectOptions;
use tokio::task::JoinHandle;

use super::Shared;
use super::db::Either;
use super::fault::is_corruption;
use super::link::Link;
use super::sqlite::{identity, reading};

/// What somebody thinks of the file.
pub(super) enum Suspicion {
    /// A reader met damage, perhaps in a file that has been replaced since.
    Doubt,
    /// It was looked through and is corrupt; what was found.
    Certainty(Arc<str>),
}

/// Begins to look. What is found is told to the writer.
pub(super) fn spawn(shared: &Arc<Shared>, link: &Link) -> Option<JoinHandle<()>> {
    let Either::Sqlite(link) = link else { return None };
    let path = link.file.as_ref()?.path.clone();
    let shared = shared.clone();
    Some(tokio::spawn(async move {
        let before = identity(&path);
        let found = async {
            let mut db = reading(&path).connect().await?;
            sqlx::query_scalar::<_, String>("PRAGMA quick_check(1)").fetch_one(&mut db).await
        };
        let found = match found.await {
            Ok(found) if found == "ok" => return tracing::info!("the database was looked through and is sound"),
            Ok(found) => found,
            Err(error) if is_corruption(&error) => error.to_string(),
            Err(error) => return tracing::warn!(%error, "the database could not be looked through"),
        };
        if before == identity(&path) {
            shared.suspect(Suspicion::Certainty(found.into()));
        }
    }))
}
