//! Scripts: plugins and the expressions of the routes file, compiled, limited and called.
//!
//! A call takes values and returns values; its effects are returned for others to carry out. Knows nothing of
//! sockets, channels or the store: what scripts may ask about them goes through [`World`].
//!
//! Read [`engine`] for the limits, then [`run`] for how a call works, [`senders`] and [`service`] for what happens to those that
//! go over their budgets, [`check`] for what is found when plugins are loaded, [`host`] and [`conn`] for what scripts may call.

mod asks;
mod budget;
mod call;
mod check;
mod conn;
mod convert;
mod current;
mod engine;
mod error;
mod health;
mod host;
mod library;
mod outline;
mod overrides;
mod part;
mod program;
mod run;
mod senders;
mod service;
mod state;
mod walk;
mod wanted;

#[cfg(test)]
mod tests;

pub use call::{Arguments, Call, FunctionOut, HasData, PluginReport, Returned, ScriptEffect, ScriptError, SendTarget, World};
pub use check::CODES;
pub use run::Scripts;
pub use senders::Sender;
