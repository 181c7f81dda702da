//! `tramline plan`: what a reload would change and end, according to a running server, or, without one, the difference between
//! two files. Knows no rule of what can be reloaded; it asks and shows.

mod ask;
mod trust;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use super::{complain, faults, say};
use crate::config::Outline;
use crate::config::diff::{Change, diff, render};
use crate::http::listeners::foreseen;
use crate::model::Now;
use crate::reload::load::from_disk;
use crate::reload::reloader::{build, is_within, needs_restart};
use crate::reload::{Refusal, Why};
use crate::runtime::Runtime;

/// The exit code for a difference, with `--exit-code`.
const DIFFERENT: u8 = 3;

/// What to compare, and how to print it.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Arguments {
    /// Compare the routes file of `--config` with FILE, without a server: what would change if a server that runs with FILE read
    /// the other one. The plugins of each are read from the folder `plugins` beside it.
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    against: Option<PathBuf>,

    /// Where the server's REST interface is, such as `http://localhost:4000`. By default it is at the address of `api` in the
    /// routes file. The token is taken from TRAMLINE_TOKEN or, if that is not set or empty, from the routes file. The server
    /// reads its own files: of the routes file here only the address, the token and the certificate matter.
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Exit with 3 if there is a difference.
    #[arg(long)]
    exit_code: bool,
}

/// What is known of a reload.
struct Planned {
    changes: Vec<Change>,
    /// Why it would not happen, as text for people.
    failed: Option<String>,
    /// Everything, for programs.
    json: Value,
}

/// Runs the command.
pub(super) fn run(config: &Path, arguments: &Arguments) -> ExitCode {
    let planned = match &arguments.against {
        Some(against) => Ok(offline(against, config)),
        None => ask::ask(config, arguments.url.as_deref()),
    };
    let Planned { changes, failed, json } = match planned {
        Ok(planned) => planned,
        Err(why) => {
            complain(&why);
            return ExitCode::FAILURE;
        }
    };
    if arguments.json {
        say(&format!("{json:#}\n"));
    } else if !changes.is_empty() {
        say(&render(&changes));
    } else if failed.is_none() {
        say("no difference\n");
    }
    match failed {
        Some(why) => {
            complain(&why);
            ExitCode::FAILURE
        }
        None if arguments.exit_code && !changes.is_empty() => ExitCode::from(DIFFERENT),
        None => ExitCode::SUCCESS,
    }
}

/// Compares two files, both with the environment of this process. What only a running server can know is not foreseen: whether
/// other programs have an address, and what the store can record.
fn offline(old: &Path, new: &Path) -> Planned {
    let refuse = |why, text: String| Refusal::new(why, Now::read().wall_ms, text);
    let ((before, old), (next, new)) = match (valid(old), valid(new)) {
        (Ok(old), Ok(new)) => (old, new),
        (old, new) => {
            let text: String = old.err().into_iter().chain(new.err()).collect();
            let json = json!({ "refusal": refuse(Why::Invalid, text.clone()) });
            return Planned { changes: Vec::new(), failed: Some(text), json };
        }
    };
    let changes = diff(&old, &new);
    // The address of a store may depend on the folder of its file. Here the folders may differ; for a server they do not.
    let may_restart = changes.iter().any(|change| is_within(&change.path, "store"));
    let restart = needs_restart(&before, &next).filter(|_| may_restart).map(|why| refuse(Why::NeedsRestart, why.into()));
    let refusal = restart.or_else(|| foreseen(&before, &next).map(|why| refuse(Why::CannotListen, format!("{why}\n"))));
    let json = match &refusal {
        Some(refusal) => json!({ "changes": changes, "refusal": refusal }),
        None => json!({ "changes": changes }),
    };
    Planned { changes, failed: refusal.as_ref().map(refused), json }
}

/// A refusal, for people.
fn refused(refusal: &Refusal) -> String {
    format!("the reload would be refused\n{}\n", refusal.diagnostics.trim_end())
}

fn valid(path: &Path) -> Result<(Runtime, Outline), String> {
    let loaded = from_disk(path)();
    let files = loaded.files.clone();
    build(loaded, None).map_err(|found| faults(&found, &files))
}
