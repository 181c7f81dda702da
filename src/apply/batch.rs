//! Transactions that one door applies one after the other, without returning to the runtime in between: what they show on one
//! channel in a row is queued for its members at once, and what the connection they come from is told is queued as one piece.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;

use super::commit_queue::Released;
use crate::hub::{Channel, Connection, LockedChannels, Published};
use crate::model::{ChannelName, Close, Now};
use crate::pipeline::Snapshot;
use crate::pipeline::deliver::Renderer;
use crate::protocol::Frame;

/// Bytes that a connection is told at once: what comes next begins anew.
const REPLY_BYTES_MAX: usize = 16 << 10;

/// The most room that a thread keeps to write in.
const BUFFER_BYTES: usize = 64 << 10;

thread_local! {
    /// Where this thread's batches write what they tell: copied out whole, so that what waits has no room to spare.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// See the module. What is left is queued when it is dropped, with no channel held.
pub struct Batch<'a> {
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) renderer: Renderer<'a>,
    /// Where something was shown that is not queued yet.
    open: Option<Arc<Channel>>,
    /// The connection it comes from, whose task flushes when the batch has ended.
    own: Option<&'a Arc<Connection>>,
    /// What that one is told, one frame behind the other, before anything else is queued for it.
    replies: Vec<u8>,
    reply_count: u64,
    reply_payload: u64,
    /// Connections whose transactions wait no more once all of it is queued: only then may they go on.
    pub(super) released: Vec<Released>,
    /// Connections whose events are batched from now on, or are not any more, once no channel is held.
    switching: Vec<Arc<Connection>>,
    /// Connections that end then.
    ending: Vec<(Arc<Connection>, Close)>,
}

impl<'a> Batch<'a> {
    /// A batch for what comes from this connection; for any other door without one.
    pub fn new(snapshot: &'a Arc<Snapshot>, own: Option<&'a Arc<Connection>>, now: Now) -> Self {
        Self {
            snapshot,
            renderer: Renderer::new(snapshot, now),
            open: None,
            own,
            replies: Vec::new(),
            reply_count: 0,
            reply_payload: 0,
            released: Vec::new(),
            switching: Vec::new(),
            ending: Vec::new(),
        }
    }

    /// Tells a connection something by itself, behind everything that it was given before.
    pub(super) fn send(&mut self, locked: Option<&mut LockedChannels<'_>>, connection: &Arc<Connection>, frame: &Frame) {
        self.settle(locked);
        let own = self.own.is_some_and(|own| own.key == connection.key);
        let wire = connection.outbox.wire();
        let alone = !own || !wire.appends(frame);
        if alone || self.replies.len() > REPLY_BYTES_MAX {
            self.enqueue_replies();
        }
        if alone {
            connection.send(frame);
            return self.enqueued(connection);
        }
        if self.replies.capacity() == 0 {
            self.replies = BUFFER.take();
        }
        wire.append(&mut self.replies, frame);
        self.reply_count += 1;
        self.reply_payload += frame.len() as u64;
    }

    /// Queues what the connection is told.
    pub(super) fn enqueue_replies(&mut self) {
        if let (Some(own), false) = (self.own, self.replies.is_empty()) {
            let replies = Bytes::copy_from_slice(&self.replies);
            self.replies.clear();
            own.send_joint(replies, std::mem::take(&mut self.reply_count), std::mem::take(&mut self.reply_payload));
        }
    }

    /// Before the locks of these channels are taken: what was shown elsewhere goes first.
    pub(super) fn before<'c>(&mut self, mut channels: impl Iterator<Item = &'c ChannelName>) {
        if let Some(open) = &self.open
            && !channels.any(|name| *name == open.name)
        {
            self.settle(None);
        }
    }

    /// Something was shown on a channel that is held, to be queued with what follows on the same.
    pub(super) fn shown(&mut self, locked: &mut LockedChannels<'_>, name: &ChannelName) {
        self.enqueue_replies();
        if self.open.as_ref().is_none_or(|open| open.name != *name) {
            self.open = locked.channel(name);
        }
    }

    /// Before something else can be seen on `name`, or at all: what was shown on another channel is queued.
    pub(super) fn only(&mut self, locked: Option<&mut LockedChannels<'_>>, name: Option<&ChannelName>) {
        self.enqueue_replies();
        if self.open.as_ref().is_some_and(|open| Some(&open.name) != name) {
            self.settle(locked);
        }
    }

    /// Queues what was shown. `locked`: the channels that are locked.
    fn settle(&mut self, locked: Option<&mut LockedChannels<'_>>) {
        let Some(open) = self.open.take() else { return };
        let published = match locked {
            Some(locked) => locked.settle(&open.name, &mut self.renderer),
            None => self.snapshot.hub.settle(&open, &mut self.renderer),
        };
        self.count(&open, &published);
    }

    pub(super) fn count(&self, channel: &Channel, published: &[Published]) {
        published.iter().for_each(|published| self.snapshot.published(Some(&channel.plan()), published));
    }

    /// The events of a connection are batched behind this transaction, or are not any more.
    pub(super) fn switches(&mut self, connection: &Arc<Connection>) {
        self.switching.push(connection.clone());
    }

    /// A connection ends with this transaction.
    pub(super) fn ends(&mut self, connection: &Arc<Connection>, close: Close) {
        self.ending.push((connection.clone(), close));
    }

    pub(super) fn is_ending(&self, connection: &Connection) -> bool {
        self.ending.iter().any(|(ending, _)| ending.key == connection.key)
    }

    /// What a transaction does to connections on all their channels, whichever those are. Those it ends get all that waits for
    /// them. No channel may be held.
    pub(super) fn end(&mut self) {
        if self.switching.is_empty() && self.ending.is_empty() {
            return;
        }
        self.only(None, None);
        for connection in std::mem::take(&mut self.switching) {
            self.snapshot.hub.switch_batching(&connection, &mut self.renderer);
            self.enqueued(&connection);
        }
        for (connection, close) in std::mem::take(&mut self.ending) {
            self.snapshot.hub.end(&connection, close, &mut self.renderer);
        }
    }

    /// A connection was given something by itself.
    pub(super) fn enqueued(&self, connection: &Arc<Connection>) {
        if self.own.is_none_or(|own| own.key != connection.key) {
            self.snapshot.hub.flush.one(connection);
        }
    }
}

impl Drop for Batch<'_> {
    /// Queues what is left. No channel may be held.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.enqueue_replies();
            self.settle(None);
            self.renderer.finish();
        }
        if (1..=BUFFER_BYTES).contains(&self.replies.capacity()) {
            self.replies.clear();
            BUFFER.set(std::mem::take(&mut self.replies));
        }
    }
}
