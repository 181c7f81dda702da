//! What becomes of events that are rendered later.

use std::pin::pin;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use tokio::sync::Notify;

use crate::hub::Sent;

/// What becomes of an event that is rendered later, counted over all its receivers.
#[derive(Debug, Default)]
pub struct Outcome {
    counted: [AtomicUsize; 3],
    /// Renderings that are not done.
    left: AtomicUsize,
    done: Notify,
}

impl Outcome {
    pub(super) fn note(&self, sent: Sent) {
        if let Some(at) = counted_at(sent) {
            self.counted[at].fetch_add(1, Relaxed);
        }
    }

    /// Subscriptions it was queued for, those whose outbox was full, and those whose connection was already ending.
    pub fn counted(&self) -> [usize; 3] {
        self.counted.each_ref().map(|counted| counted.load(Relaxed))
    }

    /// Resolves when it is rendered for everybody.
    pub async fn done(&self) {
        let mut notified = pin!(self.done.notified());
        notified.as_mut().enable();
        if self.left.load(Acquire) > 0 {
            notified.await;
        }
    }

    /// This many renderings have to write it.
    pub(super) fn begin(&self, renderings: usize) {
        self.left.store(renderings, Release);
    }

    pub(super) fn end(&self) {
        if self.left.fetch_sub(1, AcqRel) == 1 {
            self.done.notify_waiters();
        }
    }
}

/// The index at which a message counts in [`Outcome::counted`].
pub(super) fn counted_at(sent: Sent) -> Option<usize> {
    match sent {
        Sent::Queued => Some(0),
        Sent::Full => Some(1),
        Sent::Gone => Some(2),
        // Either counted where it was decided, or given later.
        Sent::Dropped | Sent::Behind => None,
    }
}
