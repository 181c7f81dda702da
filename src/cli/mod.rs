//! The command line. Each command has its own file.

mod check;
mod plan;
mod routes;
mod serve;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config;
use crate::config::diagnostic::{self, Diagnostic, Files};
use crate::runtime::{self, Runtime};
use crate::tasks::STACK_BYTES;

/// Tramline routes events between clients, timers and HTTP, as routes.yaml says.
#[derive(Debug, Parser)]
#[command(name = "tramline", version, about, long_about = LONG, after_help = AFTER, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; `serve` by default.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The routes file. Plugins are read from the folder `plugins` beside it.
    #[arg(long, short, global = true, value_name = "FILE", default_value = "routes.yaml")]
    pub config: PathBuf,

    /// How to write the log, which goes to standard error. RUST_LOG chooses what: `RUST_LOG=debug`,
    /// `RUST_LOG=tramline::http=trace`.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log: LogFormat,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Start the router (the default).
    Serve,
    /// Check the routes file and its plugins; if they are not valid, print every error and exit with 1.
    Check,
    /// Show the routing table: from where, through which limit and script, to which channels.
    Routes,
    /// Show what a reload would change in a running server.
    Plan(plan::Arguments),
}

/// How to write the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object per line.
    Json,
}

const LONG: &str = "Tramline routes events between clients, timers and HTTP.

A routes file says which address speaks which protocol and what each message does. Where a table is not enough, short scripts \
in the folder `plugins` beside it decide. Clients connect over WebSocket; applications publish and read over REST.";

const AFTER: &str = "Examples:
  tramline                           start with ./routes.yaml
  tramline --config app/routes.yaml  start with another file
  tramline check                     report every error in ./routes.yaml without starting
  tramline routes                    show where messages go
  tramline plan                      show what would change if the running server read its files again

Once it runs:
  curl localhost:4000/readyz
  curl localhost:4000/api/publish -H 'content-type: application/json' -d '{\"channel\":\"custom:hello\",\"data\":{\"n\":1}}'";

/// Runs a command.
pub fn main(cli: Cli) -> ExitCode {
    // On a new thread: loading compiles scripts, and the system chooses the stack size of the first thread.
    let run = move || match cli.command.clone().unwrap_or(Command::Serve) {
        Command::Serve => serve::run(&cli),
        Command::Check => check::run(&cli.config),
        Command::Routes => routes::run(&cli.config),
        Command::Plan(arguments) => plan::run(&cli.config, &arguments),
    };
    let spawned = std::thread::Builder::new().name("main".into()).stack_size(STACK_BYTES).spawn(run);
    match spawned.map(std::thread::JoinHandle::join) {
        Ok(Ok(code)) => code,
        _ => ExitCode::FAILURE,
    }
}

/// Loads and compiles a configuration, or returns everything that is wrong with it, ready to be shown.
fn load(path: &Path) -> Result<Runtime, String> {
    let loaded = config::load(path, &|name| std::env::var(name).ok());
    let files = loaded.files.clone();
    runtime::build(loaded, None).map_err(|found| faults(&found, &files))
}

/// Everything that is wrong, as text for people.
fn faults(found: &[Diagnostic], files: &Files) -> String {
    let count = diagnostic::distinct(found);
    let noun = if count == 1 { "error" } else { "errors" };
    let more = if count >= config::DIAGNOSTICS_MAX { "; there may be more, which are not reported at once" } else { "" };
    format!("{}{count} {noun}{more}\n", diagnostic::render(found, files))
}

/// Writes to standard output. It is not an error if nobody reads it any more.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// Writes to standard error. Likewise.
fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    err.write_all(text.as_bytes()).ok();
}
