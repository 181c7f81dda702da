//! Tramline: an event router. A message passes through these modules from top to bottom, once.
//!
//! ```text
//! client ⇄ connection ⇄ protocol ⇄ [ limits → routing → script ] = pipeline → effects → apply → hub → outbox → connection
//!                      sources, http ────────────────────────────↗                        ↘ store
//! ```
//!
//! [`pipeline::decide`] says everything that happens to an input, and does none of it; [`apply`] does it, as one transaction.
//! Read [`model`] for the words, [`config::plan`] for what a routes file says, then the flow above from left to right.
//!
//! Layers: a module may use those of its own row's left and of the rows above, never its neighbours. `tests/tidy.rs` holds this table.
//!
//! | | modules | what they must not know |
//! | --- | --- | --- |
//! | L0 | `model`, `telemetry` | everything else; `model` also tokio, axum, sqlx, rhai |
//! | L1 | `protocol`, `config` | sockets, tasks, database, scripts |
//! | L2 | `limits`, `routing`, `script`, `store` | each other, the hub, any connection |
//! | L3 | `hub` | HTTP, transports, scripts |
//! | L4 | `runtime`, `pipeline`, `apply`, `router`, `catch_up`, `log_channels`, `statistics` | how an event arrived |
//! | L5 | `connection`, `sources`, `reload` | axum, the text of routes.yaml, each other |
//! | L6 | `http` | the command line |
//! | L7 | `app`, `cli` | |

pub mod app;
pub mod apply;
pub mod catch_up;
pub mod cli;
pub mod config;
pub mod connection;
pub mod http;
pub mod hub;
pub mod limits;
pub mod log_channels;
pub mod model;
pub mod pipeline;
pub mod protocol;
pub mod reload;
pub mod router;
pub mod routing;
pub mod runtime;
pub mod script;
pub mod sources;
pub mod statistics;
pub mod store;
pub mod telemetry;
#[cfg(test)]
mod testing;

#[global_allocator]
static ALLOCATOR: telemetry::memory::Counting = telemetry::memory::Counting;
