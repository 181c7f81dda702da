//! Tramline.
pub mod config;
pub mod model;
pub mod script;
pub mod telemetry;

#[global_allocator]
static ALLOCATOR: telemetry::memory::Counting = telemetry::memory::Counting;
