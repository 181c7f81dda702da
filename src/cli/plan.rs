//! `tramline plan`: what a reload would change and end, according to a running server, or, without one, the difference between
//! two files. Knows no rule of what can be reloaded; it asks and shows.

mod ask;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::{complain, faults, say};
use crate::config::Outline;
use crate::config::diff::{Change, diff, render};
use crate::reload::Report;
use crate::reload::load::{from_disk, outline};

/// The exit code for a difference, with `--exit-code`.
const DIFFERENT: u8 = 3;

/// What to compare, and how to print it.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Arguments {
    /// Compare the routes file with FILE, without a server: what would change if a server that runs with FILE read the routes
    /// file.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    against: Option<PathBuf>,

    /// Where the server's REST interface is, such as `http://localhost:4000`. By default it is at the address of `api` in the
    /// routes file. The token is taken from TRAMLINE_TOKEN or, if that is not set, from the routes file.
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Exit with 3 if there is a difference.
    #[arg(long)]
    exit_code: bool,
}

/// Runs the command.
pub(super) fn run(config: &Path, arguments: &Arguments) -> ExitCode {
    let planned = match &arguments.against {
        Some(against) => offline(against, config),
        None => ask::ask(config, arguments.url.as_deref()).map(Planned::Online),
    };
    let planned = match planned {
        Ok(planned) => planned,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    let changes = planned.changes();
    if arguments.json {
        let json = match &planned {
            Planned::Offline(changes) => json!({ "changes": changes }),
            Planned::Online(report) => json!(report),
        };
        say(&format!("{json:#}\n"));
    } else if changes.is_empty() {
        say("no difference\n");
    } else {
        say(&render(changes));
    }
    if arguments.exit_code && !changes.is_empty() { ExitCode::from(DIFFERENT) } else { ExitCode::SUCCESS }
}

enum Planned {
    Offline(Vec<Change>),
    Online(Box<Report>),
}

impl Planned {
    fn changes(&self) -> &[Change] {
        match self {
            Self::Offline(changes) => changes,
            Self::Online(report) => &report.changes,
        }
    }
}

/// Compares two files, both with the environment of this process.
fn offline(old: &Path, new: &Path) -> Result<Planned, String> {
    let [old, new] = [valid(old), valid(new)];
    match (old, new) {
        (Ok(old), Ok(new)) => Ok(Planned::Offline(diff(&old, &new))),
        (old, new) => Err(old.err().into_iter().chain(new.err()).collect()),
    }
}

fn valid(path: &Path) -> Result<Outline, String> {
    let loaded = from_disk(path)();
    let files = loaded.files.clone();
    outline(loaded).map_err(|found| faults(&found, &files))
}
