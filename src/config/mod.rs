//! From `routes.yaml` to a checked plan.
pub mod diagnostic;
pub mod plan;
