//! Checks an SQLite file after a crash, in the background: queries that use an index may not notice damage.

use std::path::PathBuf;

use sqlx::ConnectOptions;
use tokio::task::JoinHandle;

use super::db::{Either, Pool};
use super::fault::is_corruption;
use super::link::Link;
use super::sqlite::reading;

/// Starts the check. The writer learns what it finds.
pub(super) fn spawn(link: &Link, readers: Pool) -> Option<JoinHandle<()>> {
    let Either::Sqlite(link) = link else { return None };
    Some(tokio::spawn(look(link.file.as_ref()?.path.clone(), readers)))
}

async fn look(path: PathBuf, readers: Pool) {
    let found = async {
        let mut db = reading(&path).connect().await?;
        sqlx::query_scalar::<_, String>("PRAGMA quick_check(1)").fetch_one(&mut db).await
    };
    match found.await {
        Ok(found) if found == "ok" => tracing::info!("checked the database after the crash: it is valid"),
        Ok(found) => readers.is_corrupt(&found),
        Err(error) if is_corruption(&error) => readers.heed(&error),
        Err(error) => tracing::warn!(%error, "cannot check the database after the crash"),
    }
}
