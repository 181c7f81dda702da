//! What `src/` promises of itself.
