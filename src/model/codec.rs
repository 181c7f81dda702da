//! How the messages of a protocol are written, by name. They are read and written elsewhere.

/// What `codec:` of a protocol says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// One JSON text in each frame.
    #[default]
    Json,
}
