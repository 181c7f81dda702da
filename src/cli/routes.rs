//! `tramline routes`: the routing table, for people.

use std::path::Path;
use std::process::ExitCode;

use super::{complain, load, say};
use crate::routing::table::{RouteEntry, table};

pub(super) fn run(path: &Path) -> ExitCode {
    match load(path) {
        Ok(runtime) => {
            say(&in_columns(&table(&runtime.plan)));
            ExitCode::SUCCESS
        }
        Err(text) => {
            complain(&text);
            ExitCode::FAILURE
        }
    }
}

fn in_columns(entries: &[RouteEntry]) -> String {
    let head = ["FROM", "LIMIT", "SCRIPT", "TO"].map(String::from);
    let rows: Vec<[String; 4]> =
        std::iter::once(head).chain(entries.iter().map(|e| [e.from.clone(), e.limit.clone(), e.script.clone(), e.to.clone()])).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..4).map(width).collect();
    let line = |row: &[String; 4]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}
