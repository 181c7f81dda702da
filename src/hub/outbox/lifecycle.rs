//! The life of a connection, from open to ended: one state, which its outbox owns and all others ask.
//!
//! ```text
//!          Close              Answer: the other side closes too
//!  Open ──────────▶ Closing ─────────────────────────────┐
//!   │ │               │ Fail                             ▼
//!   │ │               ▼                     ┌────────▶ Answering
//!   │ └─ Fail ──▶ Draining ── HangUp ──▶ HungUp          │
//!   │                 Answer: it asks for the end ───────┘
//!   ▼
//!  Ended ◀── End, from everywhere
//! ```
//!
//! The first reason to end counts, whatever comes after it.

use tokio::time::Instant;

use crate::model::Close;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifecycle {
    /// No end has been decided yet.
    #[default]
    Open,
    /// The close packet is the last that waits, or it is written. What the client still sends is discarded.
    Closing,
    /// The client has sent its close: nothing more is read, and it is over once everything is written.
    Answering,
    /// The client broke the rules, so nothing it sends can be understood: once everything is written, our side ends.
    Draining,
    /// Our side has ended. What arrives is discarded until the other side ends too.
    HungUp,
    /// Nothing can be written any more.
    Ended,
}

/// What moves a connection on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The server wants it to end.
    Close,
    /// The client sent its close.
    Answer,
    /// The client broke the rules.
    Fail,
    /// Everything is written to a client that broke the rules.
    HangUp,
    /// It is over: the socket broke, the other side ended it, the time is up, or nothing is left to do.
    End,
}

impl Lifecycle {
    /// The state after a transition.
    pub(super) fn after(self, transition: Transition) -> Self {
        match (self, transition) {
            (Self::Ended, _) | (_, Transition::End) => Self::Ended,
            (Self::Open, Transition::Close) => Self::Closing,
            (Self::Open | Self::Closing, Transition::Answer) => Self::Answering,
            (Self::Open | Self::Closing, Transition::Fail) => Self::Draining,
            (Self::Draining, Transition::HangUp) => Self::HungUp,
            (same, Transition::Close | Transition::Answer | Transition::Fail | Transition::HangUp) => same,
        }
    }
}

/// How a connection ends, and since when that is known.
#[derive(Clone, Debug)]
pub(super) struct Ending {
    pub(super) close: Close,
    pub(super) since: Instant,
}

#[cfg(test)]
mod tests {
    use super::Lifecycle::{Answering, Closing, Draining, Ended, HungUp, Open};
    use super::Transition::{Answer, Close, End, Fail, HangUp};

    #[test]
    fn every_transition_leads_on_or_nowhere() {
        let table = [
            (Open, [Closing, Answering, Draining, Open]),
            (Closing, [Closing, Answering, Draining, Closing]),
            (Answering, [Answering, Answering, Answering, Answering]),
            (Draining, [Draining, Draining, Draining, HungUp]),
            (HungUp, [HungUp, HungUp, HungUp, HungUp]),
            (Ended, [Ended, Ended, Ended, Ended]),
        ];
        for (from, to) in table {
            assert_eq!([Close, Answer, Fail, HangUp].map(|transition| from.after(transition)), to, "{from:?}");
            assert_eq!(from.after(End), Ended, "{from:?}");
        }
    }
}
