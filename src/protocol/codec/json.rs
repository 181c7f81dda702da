//! The `json` codec: a frame is a JSON text, and that is the message.

use bytestring::ByteString;

use crate::model::json::Index;
use crate::model::{Code, Fault, Json};
use crate::protocol::Frame;

/// A binary frame holds the same text, as in servers that do not look at the frame's kind.
pub(super) fn decode(frame: Frame) -> Result<(Json, Index), Fault> {
    let text = match frame {
        Frame::Text(text) => text,
        Frame::Binary(bytes) => {
            ByteString::try_from(bytes).map_err(|_| Fault::new(Code::InvalidJson).detail("a binary frame that is not UTF-8"))?
        }
    };
    Json::parse_indexed(text).map_err(|e| Fault::new(Code::InvalidJson).detail(e.to_string()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn binary_frames_hold_text() {
        assert_eq!(decode(Frame::Binary(Bytes::from_static(b"{}"))).unwrap().0.as_str(), "{}");
        assert_eq!(decode(Frame::Binary(Bytes::from_static(b"\xff"))).unwrap_err().code, Code::InvalidJson);
    }
}
