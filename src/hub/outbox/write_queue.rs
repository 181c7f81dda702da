//! What waits to be written, in order. Nearly always that is one item or none: the first is stored in the outbox itself, and
//! only what waits after it uses other memory, for as long as there is any.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::delivery_policy::SubscriptionId;
use super::packet::{PacketRun, QueuedFrame};

/// Something that waits.
#[derive(Debug)]
pub(super) enum QueuedWrite {
    Frame(Box<QueuedFrame>),
    Run(Arc<PacketRun>, SubscriptionId),
}

impl QueuedWrite {
    pub(super) fn bytes(&self) -> &Bytes {
        match self {
            QueuedWrite::Frame(frame) => &frame.wire,
            QueuedWrite::Run(run, _) => &run.joined,
        }
    }

    pub(super) fn cost_bytes(&self) -> usize {
        match self {
            QueuedWrite::Frame(frame) => frame.cost_bytes(),
            QueuedWrite::Run(run, _) => run.cost_bytes,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            QueuedWrite::Frame(_) => 1,
            QueuedWrite::Run(run, _) => run.len(),
        }
    }

    pub(super) fn into_frames(self) -> Vec<QueuedFrame> {
        match self {
            QueuedWrite::Frame(frame) => vec![*frame],
            QueuedWrite::Run(run, subscription) => run.frames(subscription).collect(),
        }
    }
}

impl From<QueuedFrame> for QueuedWrite {
    fn from(frame: QueuedFrame) -> Self {
        QueuedWrite::Frame(Box::new(frame))
    }
}

/// See the module. Without a first item it is empty.
#[derive(Debug, Default)]
pub(super) struct WriteQueue {
    first: Option<QueuedWrite>,
    rest: VecDeque<QueuedWrite>,
}

impl WriteQueue {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The only item that waits.
    pub(super) fn only(&self) -> Option<&QueuedWrite> {
        self.first.as_ref().filter(|_| self.rest.is_empty())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &QueuedWrite> {
        self.first.iter().chain(&self.rest)
    }

    pub(super) fn first_mut(&mut self) -> Option<&mut QueuedWrite> {
        self.first.as_mut()
    }

    pub(super) fn push_back(&mut self, waiting: QueuedWrite) {
        match self.first {
            None => self.first = Some(waiting),
            Some(_) => self.rest.push_back(waiting),
        }
    }

    pub(super) fn push_front(&mut self, waiting: QueuedWrite) {
        if let Some(second) = self.first.replace(waiting) {
            self.rest.push_front(second);
        }
    }

    /// Inserts an item after the first, or at the front if `keep` is not set.
    pub(super) fn push_next(&mut self, waiting: QueuedWrite, keep: bool) {
        match self.first {
            Some(_) if keep => self.rest.push_front(waiting),
            _ => self.push_front(waiting),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<QueuedWrite> {
        let first = self.first.take();
        self.first = self.rest.pop_front();
        if self.rest.is_empty() && self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
        first
    }

    /// Takes all items, except the first if `keep` is set.
    pub(super) fn take(&mut self, keep: bool) -> impl DoubleEndedIterator<Item = QueuedWrite> + use<> {
        let first = if keep { None } else { self.first.take() };
        first.into_iter().chain(std::mem::take(&mut self.rest))
    }
}
