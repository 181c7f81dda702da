//! Tramline.
pub mod config;
pub mod limits;
pub mod model;
pub mod store;
pub mod telemetry;
