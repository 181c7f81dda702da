//! What is said to a server, and what it must answer: the protocol of `benches/routes.yaml`, and the same in Socket.IO's framing
//! (Engine.IO 4 over its WebSocket transport). Every text but its number is known beforehand, so answers are compared byte by byte.

/// Digits of a number in a text. There are always as many, so that all texts of a kind have one length.
pub const DIGITS: usize = 14;

/// Where the digits go.
const HOLE: &str = "##############";

/// 64 bytes with what is around it.
const WORDS: &str = "the quick brown fox jumps over the";

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dialect {
    Json,
    SocketIo,
}

impl Dialect {
    /// What the server says first, by its beginning, and what the client answers.
    pub fn greetings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Json => &[],
            Self::SocketIo => &[("0{", "40"), ("40{", "")],
        }
    }

    /// A text that asks whether the client is there, and its answer.
    pub fn heartbeat(self) -> Option<(&'static [u8], &'static [u8])> {
        (self == Self::SocketIo).then_some((b"2", b"3"))
    }

    pub fn subscribe(self, channel: &str) -> String {
        match self {
            Self::Json => format!(r#"{{"op":"sub","ch":"{channel}"}}"#),
            Self::SocketIo => format!(r#"421["sub",{{"ch":"{channel}"}}]"#),
        }
    }

    /// The answer to it.
    pub fn subscribed(self) -> &'static str {
        match self {
            Self::Json => r#"{"op":"ok"}"#,
            Self::SocketIo => "431[]",
        }
    }

    pub fn publish(self, channel: &str) -> Numbered {
        let data = data();
        Numbered::new(match self {
            Self::Json => format!(r#"{{"op":"pub","ch":"{channel}","data":{data}}}"#),
            Self::SocketIo => format!(r#"42["pub",{{"ch":"{channel}","data":{data}}}]"#),
        })
    }

    /// What every member gets of it.
    pub fn event(self, channel: &str) -> Numbered {
        let data = data();
        Numbered::new(match self {
            Self::Json => format!(r#"{{"ch":"{channel}","data":{data}}}"#),
            Self::SocketIo => format!(r#"42["event",{{"ch":"{channel}","data":{data}}}]"#),
        })
    }

    pub fn request(self) -> Numbered {
        let data = data();
        Numbered::new(match self {
            Self::Json => format!(r#"{{"op":"echo","data":{data}}}"#),
            Self::SocketIo => format!(r#"421["echo",{{"data":{data}}}]"#),
        })
    }

    /// The answer to it.
    pub fn reply(self) -> Numbered {
        let data = data();
        Numbered::new(match self {
            Self::Json => format!(r#"{{"op":"echo","data":{data}}}"#),
            Self::SocketIo => format!(r#"431[{{"data":{data}}}]"#),
        })
    }
}

fn data() -> String {
    format!(r#"{{"n":{HOLE},"text":"{WORDS}"}}"#)
}

/// A text with a number in it.
#[derive(Clone)]
pub struct Numbered {
    text: Vec<u8>,
    hole: usize,
}

impl Numbered {
    fn new(text: String) -> Self {
        let hole = text.find(HOLE).unwrap_or_default();
        Self { text: text.into_bytes(), hole }
    }

    /// The text with this number, which must have as many digits as there is room for.
    pub fn with(&mut self, mut number: u64) -> &[u8] {
        for digit in self.text[self.hole..self.hole + DIGITS].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        &self.text
    }

    /// The number of a text that is this one but for the number.
    pub fn number(&self, text: &[u8]) -> Option<u64> {
        let end = self.hole + DIGITS;
        if text.len() != self.text.len() || text[..self.hole] != self.text[..self.hole] || text[end..] != self.text[end..] {
            return None;
        }
        text[self.hole..end].iter().try_fold(0, |sum, digit| digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_any_other_text_is_noticed() {
        for dialect in [Dialect::Json, Dialect::SocketIo] {
            for mut text in [dialect.publish("c1"), dialect.event("c1"), dialect.request(), dialect.reply()] {
                let number = 10_000_000_000_017;
                let written = text.with(number).to_vec();
                assert_eq!(text.number(&written), Some(number));
                for at in 0..written.len() {
                    let mut other = written.clone();
                    other[at] ^= 0x40;
                    assert_eq!(text.number(&other), None, "{}", String::from_utf8_lossy(&other));
                }
                assert_eq!(text.number(&written[1..]), None);
            }
        }
    }

    #[test]
    fn the_data_is_json_of_64_bytes() {
        let mut event = Dialect::Json.event("c1");
        let event: serde_json::Value = serde_json::from_slice(event.with(10_000_000_000_017)).unwrap();
        assert_eq!(event["data"]["n"], 10_000_000_000_017u64);
        assert_eq!(event["data"].to_string().len(), 64);
    }
}
