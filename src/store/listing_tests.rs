//! Connections and sessions, a page at a time.
