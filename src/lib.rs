//! Tramline.
pub mod config;
pub mod model;
