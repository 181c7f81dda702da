//! From `routes.yaml` to a checked plan: read, merge, check, compile. All mistakes are found at once, and a file with
//! any mistake gives no plan. Names of scripts' functions are collected here and looked up by `script`.
//!
//! In reading order: `positions` and `node` (text to tree), `include` (files), `fields` and `values` (reading a tree),
//! `template` and `expression`, `rows` and `effects`, then one module per section of the file. `inputs`, `outline` and `diff` are
//! for a reload: what the configuration was read from, what it said, and what is different.

pub mod certificate;
mod channels;
mod codes;
mod deliver;
pub mod diagnostic;
pub mod diff;
mod effects;
mod env;
mod expression;
mod fields;
mod files;
mod include;
mod inputs;
mod limits;
mod listen;
mod load;
mod node;
mod outline;
pub mod plan;
mod plugins;
mod positions;
mod protocols;
mod rows;
mod sources;
mod store;
mod template;
mod tls;
mod units;
mod values;

pub use codes::CODES;
pub use fields::DIAGNOSTICS_MAX;
pub use inputs::Inputs;
pub use load::{Loaded, load};
pub use outline::{Outline, PluginOutline};
