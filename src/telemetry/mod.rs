//! What the router says of itself: log lines and numbers. Knows nothing of routes, channels or sockets; it is told.

pub mod conflation;
pub mod durations;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod process;
mod prometheus;
mod rates;
pub mod report;
pub mod series;
