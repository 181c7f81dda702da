//! Every test that needs more than one module.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking, and nobody depends on it")]

mod bench;
mod check;
mod cli;
mod flow;
mod log;
mod readme;
mod support;
mod tidy;
