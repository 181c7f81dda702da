//! From a change on disk to a configuration that could take the place of the running one: watch, read, compile, say what is
//! different, put it in place. What must be made ready for it besides, and what stops with it, is known by a trait only.
//!
//! Read [`watch`] for when, [`load`] for what is read, [`reloader`] for how it takes the place of the one before, [`report`] for
//! what is told.

mod certificates;
pub mod load;
pub mod reloader;
pub mod report;
pub mod watch;

pub use load::load;
pub use reloader::{Asked, Configuration, FilesRead, Parts, Ready, Reloader, Status};
pub use report::{Refusal, Report, Why};
pub use watch::Watcher;
