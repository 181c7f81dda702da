//! Transactions that one input path applies one after the other, without returning to the runtime in between: consecutive events
//! on one channel are queued for its members together, and the replies to the connection they come from are queued as one piece.

use std::cell::Cell;
use std::sync::Arc;

use bytes::Bytes;

use super::commit_queue::Released;
use crate::hub::{Channel, Connection, LockedChannels, Published};
use crate::model::{ChannelName, Close, Now};
use crate::pipeline::Snapshot;
use crate::pipeline::deliver::Renderer;
use crate::protocol::Frame;

/// Bytes of replies that are queued as one piece; the next reply begins a new one.
const REPLY_BYTES_MAX: usize = 16 << 10;

/// The largest buffer that a thread keeps.
const BUFFER_BYTES: usize = 64 << 10;

thread_local! {
    /// Where this thread's batches write their replies. They are copied out, so that what waits takes no spare room.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// See the module. What is left is queued when it is dropped; no channel may be locked then.
pub struct Batch<'a> {
    pub(super) snapshot: &'a Arc<Snapshot>,
    pub(super) renderer: Renderer<'a>,
    /// The channel with events that are shown but not queued yet.
    open: Option<Arc<Channel>>,
    /// The connection it comes from. Its task flushes once the batch has ended.
    own: Option<&'a Arc<Connection>>,
    /// The replies to that connection, one frame after the other, not queued yet.
    replies: Vec<u8>,
    reply_count: u64,
    reply_payload: u64,
    /// Connections whose transactions no longer wait. They may go on only once everything is queued.
    pub(super) released: Vec<Released>,
    /// Connections whose events start or stop being batched, once no channel is locked.
    switching: Vec<Arc<Connection>>,
    /// Connections that end, once no channel is locked.
    ending: Vec<(Arc<Connection>, Close)>,
}

impl<'a> Batch<'a> {
    /// A batch for what comes from this connection; for inputs without a connection, `None`.
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

    /// Sends a message to one connection, after everything it was sent before.
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

    /// Queues the replies to the connection.
    pub(super) fn enqueue_replies(&mut self) {
        if let (Some(own), false) = (self.own, self.replies.is_empty()) {
            let replies = Bytes::copy_from_slice(&self.replies);
            self.replies.clear();
            own.send_joint(replies, std::mem::take(&mut self.reply_count), std::mem::take(&mut self.reply_payload));
        }
    }

    /// Called before the locks of these channels are taken: queues what was shown on other channels.
    pub(super) fn before<'c>(&mut self, mut channels: impl Iterator<Item = &'c ChannelName>) {
        if let Some(open) = &self.open
            && !channels.any(|name| *name == open.name)
        {
            self.settle(None);
        }
    }

    /// Called when something was shown on a locked channel. It is queued together with what follows on the same channel.
    pub(super) fn shown(&mut self, locked: &mut LockedChannels<'_>, name: &ChannelName) {
        self.enqueue_replies();
        if self.open.as_ref().is_none_or(|open| open.name != *name) {
            self.open = locked.channel(name);
        }
    }

    /// Called before something else can be seen on `name`, or anywhere if there is none: queues what was shown on other
    /// channels.
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

    /// The events of a connection start or stop being batched after this transaction.
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

    /// Does what concerns connections on all their channels: starts or stops batching, and ends connections, after everything
    /// that waits for them. No channel may be locked.
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

    /// A message to this connection alone was queued.
    pub(super) fn enqueued(&self, connection: &Arc<Connection>) {
        if self.own.is_none_or(|own| own.key != connection.key) {
            self.snapshot.hub.flush.one(connection);
        }
    }
}

impl Drop for Batch<'_> {
    /// Queues what is left. No channel may be locked.
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
