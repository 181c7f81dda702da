//! HTTP: listeners, access control, WebSocket handshakes, rows and sources over HTTP, the REST interface.
//! Knows requests and answers; leaves everything else to `live`.

pub mod addresses;
pub mod api;
pub mod auth;
pub mod body;
pub mod certificate;
pub mod guard;
pub mod listen;
pub mod listeners;
pub mod measure;
pub mod problem;
pub mod routes;
pub mod sessions;
pub mod upgrade;
