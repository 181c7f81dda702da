//! From frames to messages and back, as a protocol's `codec:` says. Knows nothing of the bytes that carry a frame.

mod json;

use bytestring::ByteString;

use crate::model::json::Index;
use crate::model::{Codec, Fault, Json};
use crate::protocol::Frame;

impl Codec {
    /// The message in a frame, and where its members stand.
    pub fn decode(self, frame: Frame) -> Result<(Json, Index), Fault> {
        match self {
            Codec::Json => json::decode(frame),
        }
    }

    /// A frame with this message, which is JSON text.
    pub fn encode(self, message: impl Into<ByteString>) -> Frame {
        match self {
            Codec::Json => Frame::Text(message.into()),
        }
    }
}
