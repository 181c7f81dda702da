//! The one table of close codes: why a connection ends, which code and reason its client gets, and whether it may come back.

use std::borrow::Cow;

/// The most bytes a close reason may have (RFC 6455, section 5.5: 125 less the two of the code).
pub const REASON_BYTES_MAX: usize = 123;

/// How connections end whose session was ended over REST.
pub const SESSION_ENDED: (u16, &str) = (1008, "session ended");

/// How a connection ends that was closed over REST, unless the caller says otherwise.
pub const BY_OPERATOR: (u16, &str) = (1008, "closed by the operator");

/// Why the router ended a connection, or how it ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Close {
    /// The server is stopping.
    GoingAway,
    /// The other side broke the WebSocket protocol.
    ProtocolError,
    /// A text frame was not UTF-8.
    InvalidUtf8,
    /// A message was larger than the protocol allows.
    TooLarge,
    /// The client kept sending far above its rate, or kept sending messages that exceed the budgets of scripts.
    Flooding,
    /// No token, or one that is not valid.
    Unauthorized,
    /// The token ran out while the connection was open.
    Expired,
    /// The outbox was full: the client reads more slowly than it is sent to. Code and reason are its protocol's.
    Slow(u16, Cow<'static, str>),
    /// A newer connection took this one's place at the limit. Code and reason are its protocol's.
    Displaced(u16, Cow<'static, str>),
    /// Events of a channel that it had yet to get are gone: it must subscribe again with its position.
    PositionLost,
    /// The configuration no longer has its protocol.
    Retired,
    /// The connection sent nothing for longer than the protocol allows.
    Idle,
    /// No answer to the last ping. Nothing is sent: the other side is not there.
    PingTimeout,
    /// A bug in the server.
    Internal,
    /// What a row, a script or an operator asked for.
    Asked(u16, Cow<'static, str>),
    /// The client closed, with this code and reason.
    ByClient(u16, String),
    /// The transport ended without a close frame.
    Lost,
}

impl Close {
    /// The default close of a slow client.
    pub fn slow() -> Self {
        Close::Slow(1013, "too slow: outbox full".into())
    }

    /// The default close of a displaced connection.
    pub fn displaced() -> Self {
        Close::Displaced(1013, "replaced by a newer connection".into())
    }

    /// The code on the wire, or in the record where nothing was sent: 1005 for a close without a code, 1006 for none at all.
    pub fn code(&self) -> u16 {
        match self {
            Close::GoingAway => 1001,
            Close::ProtocolError => 1002,
            Close::Lost | Close::PingTimeout => 1006,
            Close::InvalidUtf8 => 1007,
            Close::Flooding | Close::Unauthorized | Close::Expired => 1008,
            Close::TooLarge => 1009,
            Close::Internal => 1011,
            Close::PositionLost | Close::Retired => 1012,
            Close::Idle => 1000,
            Close::Slow(code, _) | Close::Displaced(code, _) | Close::Asked(code, _) | Close::ByClient(code, _) => *code,
        }
    }

    /// The reason on the wire and in the record, at most [`REASON_BYTES_MAX`] bytes.
    pub fn reason(&self) -> &str {
        let text = match self {
            Close::GoingAway => "server is stopping",
            Close::ProtocolError => "protocol error",
            Close::InvalidUtf8 => "invalid UTF-8",
            Close::TooLarge => "message too large",
            Close::Flooding => "far over the rate limit",
            Close::Unauthorized => "Unauthorized",
            Close::Expired => "token expired",
            Close::PositionLost => "position lost: subscribe again",
            Close::Retired => "this protocol is no longer served",
            Close::Idle => "idle",
            Close::PingTimeout => "no answer to ping",
            Close::Internal => "internal error",
            Close::Slow(_, reason) | Close::Displaced(_, reason) | Close::Asked(_, reason) => reason,
            Close::ByClient(_, reason) => reason,
            Close::Lost => "connection lost",
        };
        cut(text)
    }

    /// Whether a client that is closed this way should connect again.
    pub fn may_retry(&self) -> bool {
        match self {
            Close::GoingAway | Close::PositionLost | Close::Retired | Close::Idle | Close::PingTimeout | Close::Internal | Close::Lost => {
                true
            }
            Close::ProtocolError | Close::InvalidUtf8 | Close::TooLarge | Close::Flooding | Close::Unauthorized | Close::Expired => false,
            Close::Slow(code, _) | Close::Displaced(code, _) | Close::Asked(code, _) | Close::ByClient(code, _) => {
                !matches!(code, 1002 | 1003 | 1007..=1010 | 4000..=4099)
            }
        }
    }
}

/// Whether a program may send this code (RFC 6455, section 7.4): 1000 to 1014 less the reserved ones, and 3000 to 4999.
pub fn may_send(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// A reason cut to what fits into a close frame, on a character's border.
pub fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let close = Close::Asked(4001, "ü".repeat(100).into());
        assert_eq!(close.reason().len(), 122);
    }

    #[test]
    fn every_code_that_is_told_may_be_sent() {
        for close in [
            Close::GoingAway,
            Close::ProtocolError,
            Close::InvalidUtf8,
            Close::TooLarge,
            Close::Flooding,
            Close::Unauthorized,
            Close::slow(),
            Close::displaced(),
            Close::Internal,
            Close::PositionLost,
            Close::Retired,
            Close::Idle,
        ] {
            assert!(may_send(close.code()), "{close:?}");
        }
    }
}
