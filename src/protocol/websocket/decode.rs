//! Provisional.
use bytes::Bytes;
use crate::protocol::Frame;
/// x
pub enum Received { /** x */ Message(Frame), /** x */ Ping(Bytes), /** x */ Pong, /** x */ Close(Option<(u16, String)>) }
/// x
pub enum Violation { /** x */ Protocol(&'static str), /** x */ Utf8, /** x */ TooLarge }
/// x
pub struct Decoder { buf: Vec<u8>, message: Vec<u8>, text: bool, max: usize }
impl Decoder {
    /// x
    pub fn new(max: usize, _: bool) -> Self { Self { buf: vec![], message: vec![], text: false, max } }
    /// x
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Received>, Violation> {
        loop {
            let whole = self.buf.is_empty();
            if !whole { self.buf.extend_from_slice(input); *input = &[]; }
            let got = { let data: &[u8] = if whole { input } else { &self.buf };
                if data.len() < 2 { None } else {
                let (fin, op, masked, n) = (data[0] & 0x80 != 0, data[0] & 15, data[1] & 0x80 != 0, data[1] & 127);
                if !masked || data[0] & 0x70 != 0 { return Err(Violation::Protocol("")) }
                let (len, head) = match n { 126 if data.len() >= 4 => (u16::from_be_bytes([data[2], data[3]]) as usize, 4), 127 if data.len() >= 10 => (u64::from_be_bytes(data[2..10].try_into().unwrap_or_default()) as usize, 10), 126 | 127 => (usize::MAX, 0), n => (n as usize, 2) };
                if head > 0 && len + self.message.len() > self.max { return Err(Violation::TooLarge) }
                if op >= 8 && (len > 125 || !fin) { return Err(Violation::Protocol("")) }
                if head == 0 || data.len() < head + 4 + len { None } else {
                    let mask = &data[head..head + 4];
                    let payload: Vec<u8> = data[head + 4..head + 4 + len].iter().zip(mask.iter().cycle()).map(|(a, b)| a ^ b).collect();
                    Some((fin, op, payload, head + 4 + len)) } } };
            let Some((fin, op, payload, used)) = got else { if whole { self.buf = input.to_vec(); *input = &[]; } return Ok(None) };
            if whole { *input = &input[used..] } else { self.buf.drain(..used); }
            match op {
                9 => return Ok(Some(Received::Ping(payload.into()))), 10 => return Ok(Some(Received::Pong)),
                8 => return Ok(Some(Received::Close((payload.len() >= 2).then(|| (u16::from_be_bytes([payload[0], payload[1]]), String::from_utf8_lossy(&payload[2..]).into_owned()))))),
                _ => { if op != 0 { self.text = op == 1 } self.message.extend(payload); if fin { let m = std::mem::take(&mut self.message);
                    return Ok(Some(Received::Message(if self.text { Frame::Text(bytestring::ByteString::try_from(m).map_err(|_| Violation::Utf8)?) } else { Frame::Binary(m.into()) }))) } }
            }
        }
    }
}
