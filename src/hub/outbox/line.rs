//! What waits to be written, in order. Nearly always that is one thing or nothing: the first has its place in the outbox, and
//! only what waits behind it takes memory of its own, for as long as there is any.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use super::packet::{Frame, Run};
use super::traits::Stream;

/// Something that waits.
#[derive(Debug)]
pub(super) enum Waiting {
    Frame(Box<Frame>),
    Run(Arc<Run>, Stream),
}

impl Waiting {
    pub(super) fn bytes(&self) -> &Bytes {
        match self {
            Waiting::Frame(frame) => &frame.wire,
            Waiting::Run(run, _) => &run.joined,
        }
    }

    pub(super) fn weight(&self) -> usize {
        match self {
            Waiting::Frame(frame) => frame.weight(),
            Waiting::Run(run, _) => run.weight,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Waiting::Frame(_) => 1,
            Waiting::Run(run, _) => run.len(),
        }
    }

    pub(super) fn into_frames(self) -> Vec<Frame> {
        match self {
            Waiting::Frame(frame) => vec![*frame],
            Waiting::Run(run, stream) => run.frames(stream).collect(),
        }
    }
}

impl From<Frame> for Waiting {
    fn from(frame: Frame) -> Self {
        Waiting::Frame(Box::new(frame))
    }
}

/// See the module. Where there is no first there is nothing.
#[derive(Debug, Default)]
pub(super) struct Line {
    first: Option<Waiting>,
    rest: VecDeque<Waiting>,
}

impl Line {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The only one that waits.
    pub(super) fn only(&self) -> Option<&Waiting> {
        self.first.as_ref().filter(|_| self.rest.is_empty())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiting> {
        self.first.iter().chain(&self.rest)
    }

    pub(super) fn first_mut(&mut self) -> Option<&mut Waiting> {
        self.first.as_mut()
    }

    pub(super) fn push_back(&mut self, waiting: Waiting) {
        match self.first {
            None => self.first = Some(waiting),
            Some(_) => self.rest.push_back(waiting),
        }
    }

    pub(super) fn push_front(&mut self, waiting: Waiting) {
        if let Some(second) = self.first.replace(waiting) {
            self.rest.push_front(second);
        }
    }

    /// Puts one behind the first, or in front where `keep` is not set.
    pub(super) fn push_next(&mut self, waiting: Waiting, keep: bool) {
        match self.first {
            Some(_) if keep => self.rest.push_front(waiting),
            _ => self.push_front(waiting),
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<Waiting> {
        let first = self.first.take();
        self.first = self.rest.pop_front();
        if self.rest.is_empty() && self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
        first
    }

    /// Takes all, but for the first where `keep` is set.
    pub(super) fn take(&mut self, keep: bool) -> impl DoubleEndedIterator<Item = Waiting> + use<> {
        let first = if keep { None } else { self.first.take() };
        first.into_iter().chain(std::mem::take(&mut self.rest))
    }
}
