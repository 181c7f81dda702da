//! What the router reports about itself: log lines and numbers. Does not know routes, channels or sockets; they report to it.

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
