//! `store:` where sessions, statistics and history live.

use std::path::{Path, PathBuf};

use super::codes;
use super::fields::{Collected, Fields};
use super::node::{Node, Yaml};
use super::plan::{DatabasePlan, Secret, StorePlan};
use super::values;

/// Where nothing is said.
const STORE: &str = "sqlite://data/tramline.db";

/// A database's address, or a map with more.
pub(super) fn store(all: &Collected, node: &Node, folder: &Path) -> Option<StorePlan> {
    if !matches!(node.value, Yaml::Map(_)) {
        return database(all, node, folder).map(StorePlan::from);
    }
    let mut fields = Fields::of(all, node, "`store`")?;
    let plan = StorePlan {
        database: fields.read("url", |all, node| database(all, node, folder)).unwrap_or_else(|| sqlite(STORE, folder)),
        size: fields.read("size", values::disk_size),
    };
    fields.finish();
    Some(plan)
}

/// The embedded database beside the routes file.
pub(super) fn default(folder: &Path) -> StorePlan {
    sqlite(STORE, folder).into()
}

fn database(all: &Collected, node: &Node, folder: &Path) -> Option<DatabasePlan> {
    let url = values::text(all, node)?;
    if url == "sqlite::memory:" {
        return Some(DatabasePlan::Memory);
    }
    if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        all.secret(node);
        return Some(DatabasePlan::Postgres(Secret(url.into())));
    }
    match url.strip_prefix("sqlite://") {
        Some(path) if !path.is_empty() && !path.contains('?') => Some(sqlite(&url, folder)),
        _ => {
            all.fail(codes::VALUE, &node.span, "not a valid store: write `sqlite://path`, `postgres://user@host/name` or `sqlite::memory:`")
        }
    }
}

fn sqlite(url: &str, folder: &Path) -> DatabasePlan {
    DatabasePlan::Sqlite(folder.join(PathBuf::from(url.trim_start_matches("sqlite://"))))
}
