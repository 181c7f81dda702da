//! From a change on disk to a new configuration in place of the running one: watch, read, compile, compare, put in place. What
//! else must be made ready for it, and what stops with it, is known only through a trait.
//!
//! Read [`watch`] for when, [`load`] for what is read, [`reloader`] for how it replaces the previous one, [`report`] for what is
//! reported.

mod certificates;
pub mod load;
pub mod reloader;
pub mod report;
pub mod watch;

pub use load::load;
pub use reloader::{Asked, Configuration, FilesRead, Parts, Ready, Reloader, Status};
pub use report::{Refusal, Report, Why};
pub use watch::Watcher;
