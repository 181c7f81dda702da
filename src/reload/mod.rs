//! From a change on disk to a configuration that could take the place of the running one: watch, read, compile, say what is
//! different. Knows neither what runs nor how it is replaced; whoever runs it builds, swaps and fills in what ended.
//!
//! Read [`watch`] for when, [`load`] for what is read, [`report`] for what is told.

pub mod load;
pub mod report;
pub mod watch;

pub use load::load;
pub use report::{Refusal, Report, Why};
pub use watch::Watcher;
