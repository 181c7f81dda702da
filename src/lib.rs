//! Tramline: an event router. A message passes through these modules from top to bottom, once.
//!
//! ```text
//! client ⇄ connection ⇄ protocol ⇄ [ limits → routing → script ] = pipeline → effects → apply → hub → outbox → connection
//!                      sources, http ────────────────────────────↗                        ↘ store
//! ```
//!
//! [`pipeline::decide`] says everything that happens to an input, and does none of it; [`apply`] does it, as one transaction.
//! [`live`] holds the configuration that is current, under which both happen. Read [`model`] for the words, [`config::plan`] for
//! what a routes file says, then the flow above from left to right.
//!
//! Layers: a module may use those of the rows above its own; modules of one row do not use each other. `tests/tidy.rs` holds this
//! table.
//!
//! | | modules | what they must not know |
//! | --- | --- | --- |
//! | L0 | `model` | everything else, tokio, axum, sqlx and rhai too |
//! | L1 | `telemetry`, `tasks` | what is counted, what runs |
//! | L2 | `protocol` | sockets, tasks, database, scripts |
//! | L3 | `config` | likewise |
//! | L4 | `limits`, `routing`, `script`, `store` | each other, the hub, any connection |
//! | L5 | `hub` | HTTP, transports, scripts |
//! | L6 | `runtime` | how an event arrived |
//! | L7 | `pipeline` | likewise |
//! | L8 | `apply` | likewise |
//! | L9 | `live` | likewise |
//! | L10 | `connection`, `sources` | axum, the text of routes.yaml, each other |
//! | L11 | `reload` | the command line |
//! | L12 | `http` | likewise |
//! | L13 | `engine` | likewise |
//! | L14 | `cli` | |

pub mod apply;
pub mod cli;
pub mod config;
pub mod connection;
pub mod engine;
pub mod http;
pub mod hub;
pub mod limits;
pub mod live;
pub mod model;
pub mod pipeline;
pub mod protocol;
pub mod reload;
pub mod routing;
pub mod runtime;
pub mod script;
pub mod sources;
pub mod store;
pub mod tasks;
pub mod telemetry;
#[cfg(test)]
mod testing;

#[global_allocator]
static ALLOCATOR: telemetry::memory::Counting = telemetry::memory::Counting;
