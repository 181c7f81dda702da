//! What the router knows about itself.

pub mod memory;
