//! Tramline.
pub mod config;
pub mod hub;
pub mod model;
pub mod protocol;
