//! The command line: what a person can ask the binary to do.

pub(crate) mod output;
pub mod plan;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Tramline routes events between clients, timers and HTTP, as routes.yaml says.
#[derive(Debug, Parser)]
#[command(name = "tramline", version, about, long_about = LONG, after_help = AFTER, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do; `serve` unless said.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The routes file. Plugins are read from the folder `plugins` beside it.
    #[arg(long, short, global = true, value_name = "FILE", default_value = "routes.yaml")]
    pub config: PathBuf,

    /// How to write the log, which goes to standard error. RUST_LOG chooses what: `RUST_LOG=debug`, `RUST_LOG=tramline::http=trace`.
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log: LogFormat,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Start the router (the default).
    Serve,
    /// Say whether the routes file and its plugins are sound; exit with 1 and every fault if not.
    Check,
    /// Show the routing table: from where, through which limit and script, to which channels.
    Routes,
    /// Show what a reload would change: the files as they are now, beside what a running server has.
    Plan(plan::Arguments),
}

/// How to write the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

const LONG: &str = "Tramline routes events between clients, timers and HTTP.

A routes file says which address speaks which protocol and what each message does; scripts in the folder `plugins` beside \
it think where the table cannot. Clients connect over WebSocket; applications publish and read over REST.";

const AFTER: &str = "Examples:
  tramline                           start with ./routes.yaml
  tramline --config app/routes.yaml  start with another file
  tramline check                     find every fault in ./routes.yaml without starting
  tramline routes                    what goes where
  tramline plan                      what would change if the running server read its files again

Once it runs:
  curl localhost:4000/readyz
  curl localhost:4000/api/publish -H 'content-type: application/json' -d '{\"channel\":\"custom:hello\",\"data\":{\"n\":1}}'";
