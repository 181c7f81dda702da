//! `tramline check`: prints everything that is wrong with a routes file and its plugins.

use std::path::Path;
use std::process::ExitCode;

use super::{load, say};

pub(super) fn run(path: &Path) -> ExitCode {
    match load(path) {
        Ok(runtime) => {
            let plan = &runtime.plan;
            say(&format!(
                "{} is valid: {}, {}, {}\n",
                path.display(),
                count(plan.protocols.len(), "protocol"),
                count(plan.channels.len(), "channel"),
                count(plan.sources.len(), "source")
            ));
            ExitCode::SUCCESS
        }
        Err(text) => {
            say(&text);
            ExitCode::FAILURE
        }
    }
}

fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
