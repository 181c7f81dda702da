//! The binary: parses the command line, runs the command, turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    tramline::cli::main(tramline::cli::Cli::parse())
}
