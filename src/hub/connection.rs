//! What the hub knows of one open connection: who it is, its subscriptions, what waits for it, and its traffic.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicI64, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed},
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::config::plan::LimitsPlan;
use crate::hub::delivery_policy::{DeliveryPolicy, SubscriptionId};
use crate::hub::outbox::{Outbox, Packet, Sent, Slot};
use crate::model::id::ProtocolId;
use crate::model::name::{ClientId, SessionId, UserId};
use crate::model::view::ConnView;
use crate::model::{ChannelName, Close, Now};
use crate::protocol::Frame;
use crate::protocol::wire::Wire;
use crate::telemetry::metrics::ProtocolMetrics;
use crate::telemetry::report::SlowCounted;

/// One open connection. Its task owns it; publishers reach its outbox through the hub.
#[derive(Debug)]
pub struct Connection {
    /// Unique while the process runs; grows with time.
    pub key: u64,
    /// The public id.
    pub id: ClientId,
    /// Its protocol.
    pub protocol: ProtocolId,
    /// When it opened.
    pub opened: Now,
    /// What waits to be written.
    pub outbox: Outbox,
    /// Its traffic.
    pub traffic: Traffic,
    // Code and reason for a client whose outbox overflows. Held for a look-up or a change.
    slow: Mutex<(u16, Arc<str>)>,
    /// The counters of its protocol.
    pub metrics: Arc<ProtocolMetrics>,
    // Whether its events are batched. Each of its subscriptions has a copy, which decides for events of its channel.
    batches: AtomicBool,
    // Protects the snapshot that templates and scripts see. Held for a clone or a swap.
    view: Mutex<Arc<ConnView>>,
    // Protects the list of its own subscriptions. Taken under a channel's lock, never the other way round. `None` once it has
    // ended: a transaction that is applied later joins nothing any more.
    pub(super) subscriptions: Mutex<Option<Vec<Subscribed>>>,
    /// Its transactions that wait for their commit.
    pub pending_commits: PendingCommits,
    // Subscriptions that are behind, for the connection's task. Held for a push or a pop.
    behind: Mutex<VecDeque<Subscribed>>,
}

/// The channel and key of a subscription.
pub type Subscribed = (ChannelName, Arc<str>);

/// The transactions of one connection that wait for their commit, as numbers. Only its task adds to them.
#[derive(Debug, Default)]
pub struct PendingCommits {
    /// How many.
    pub count: AtomicUsize,
    /// Bytes of what they will send and publish.
    pub bytes: AtomicUsize,
    /// How many of them change what the next decision reads: its identity, its subscriptions, whether it is still open.
    pub changes: AtomicUsize,
}

/// Transactions of one connection that may wait before no more is read from it.
const WAITING_MAX: usize = 256;

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Messages received.
    pub messages_in: AtomicU64,
    /// Payload bytes received.
    pub bytes_in: AtomicU64,
    /// When something last came from it, in milliseconds since the Unix epoch; 0 before anything did.
    pub seen_ms: AtomicI64,
    /// Set while a ping is unanswered.
    pub awaits_pong: AtomicBool,
}

impl Connection {
    /// A connection that is about to open.
    pub fn new(
        key: u64,
        protocol: ProtocolId,
        opened: Now,
        view: ConnView,
        limits: &LimitsPlan,
        wire: Wire,
        metrics: Arc<ProtocolMetrics>,
    ) -> Self {
        Self {
            key,
            id: view.id.clone(),
            protocol,
            opened,
            outbox: Outbox::new(wire, limits.outbox),
            traffic: Traffic::default(),
            slow: Mutex::new(limits.slow.clone()),
            metrics,
            batches: AtomicBool::new(false),
            view: Mutex::new(Arc::new(view)),
            subscriptions: Mutex::new(Some(Vec::new())),
            pending_commits: PendingCommits::default(),
            behind: Mutex::default(),
        }
    }

    /// Its protocol's limits have changed.
    pub fn update(&self, limits: &LimitsPlan) {
        self.outbox.set_bytes_max(limits.outbox);
        *self.slow.lock() = limits.slow.clone();
    }

    /// Touches the memory that a delivery will need, so that it is in the cache by then.
    pub(super) fn touch(&self) {
        std::hint::black_box((self.protocol, self.outbox.touch()));
    }

    /// The current snapshot.
    pub fn view(&self) -> Arc<ConnView> {
        self.view.lock().clone()
    }

    pub(super) fn set_view(&self, view: Arc<ConnView>) {
        *self.view.lock() = view;
    }

    /// Whether events for its subscriptions are batched.
    pub(super) fn batches(&self) -> bool {
        self.batches.load(Relaxed)
    }

    /// Sets whether events for its subscriptions are batched. Returns `true` if that is a change; then [`Hub::switch_batching`]
    /// must follow if it has subscriptions.
    ///
    /// [`Hub::switch_batching`]: super::Hub::switch_batching
    pub fn set_batches(&self, batches: bool) -> bool {
        self.batches.swap(batches, Relaxed) != batches
    }

    /// Queues a message for this client alone. Never waits. The caller must flush afterwards.
    pub fn send(&self, frame: &Frame) -> Sent {
        self.deliver(self.packet(frame), None)
    }

    /// Queues several messages for this client alone, which follow each other in `wire`. Never waits. The caller must flush
    /// afterwards.
    pub fn send_joint(&self, wire: Bytes, messages: u64, payload: u64) {
        if self.outbox.push_joint(wire, messages, payload, || self.slow()) == Sent::Queued {
            self.metrics.messages_out(messages, payload);
        }
    }

    /// A message as it is written to this client.
    pub fn packet(&self, frame: &Frame) -> Packet {
        Packet { wire: self.outbox.wire().message(frame), payload: frame.len(), policy: None }
    }

    /// Queues a message, of one of its subscriptions or none. Never waits. The caller must flush afterwards.
    pub fn deliver(&self, packet: Packet, subscription: Option<SubscriptionId>) -> Sent {
        let payload = packet.payload as u64;
        let sent = self.outbox.push(packet, subscription, || self.slow());
        if sent == Sent::Queued {
            self.metrics.messages_out(1, payload);
        }
        sent
    }

    /// Queues a message in place of the last one of its subscription, which it includes. `None`: that one no longer waits.
    pub(super) fn deliver_joined(&self, packet: Packet, subscription: SubscriptionId, last: &Arc<DeliveryPolicy>) -> Option<Sent> {
        let payload = packet.payload as u64;
        let sent = self.outbox.push_joined(packet, subscription, last, || self.slow())?;
        if sent == Sent::Queued {
            self.metrics.messages_out(1, payload);
        }
        Some(sent)
    }

    /// Fills a slot of its outbox: see [`Outbox::fill`].
    pub(super) fn fill(
        &self,
        slot: Slot,
        packets: Vec<Packet>,
        subscription: Option<SubscriptionId>,
        instead_of: Option<&Arc<DeliveryPolicy>>,
    ) -> Option<Vec<Sent>> {
        let payloads: Vec<u64> = packets.iter().map(|packet| packet.payload as u64).collect();
        let sent = self.outbox.fill(slot, packets, subscription, instead_of, || self.slow())?;
        for (_, payload) in sent.iter().zip(payloads).filter(|(sent, _)| **sent == Sent::Queued) {
            self.metrics.messages_out(1, payload);
        }
        Some(sent)
    }

    /// How it ends if it does not read.
    pub fn slow(&self) -> Close {
        let slow = self.slow.lock();
        Close::Slow(slow.0, slow.1.to_string().into())
    }

    /// When something last came from it, its opening included, in milliseconds since the Unix epoch.
    pub fn seen_ms(&self) -> i64 {
        self.traffic.seen_ms.load(Relaxed).max(self.opened.wall_ms)
    }

    /// Its subscriptions: channel and key, in the order they began.
    pub fn subscriptions(&self) -> Vec<Subscribed> {
        self.subscriptions.lock().clone().unwrap_or_default()
    }

    /// Whether any of its transactions waits for the store.
    pub fn is_waiting(&self) -> bool {
        self.pending_commits.count.load(Acquire) > 0
    }

    /// Whether the next message may be decided: nothing waits that it must see, and not too much waits in total.
    pub fn may_go_on(&self) -> bool {
        let pending = &self.pending_commits;
        pending.changes.load(Acquire) == 0
            && pending.count.load(Acquire) < WAITING_MAX
            && pending.bytes.load(Acquire) < self.outbox.bytes_max()
    }

    /// A subscription is behind: the connection's task must take care of it.
    pub fn push_behind(&self, channel: ChannelName, key: Arc<str>) {
        self.behind.lock().push_back((channel, key));
        self.outbox.wake();
    }

    /// Whether a subscription must be taken care of.
    pub fn is_behind(&self) -> bool {
        !self.behind.lock().is_empty()
    }

    /// The next subscription to take care of.
    pub fn pop_behind(&self) -> Option<Subscribed> {
        self.behind.lock().pop_front()
    }

    /// The WebSocket state number: 1 open, 2 closing.
    pub fn ready_state(&self) -> u8 {
        if self.outbox.is_open() { 1 } else { 2 }
    }
}

/// A connection at one moment, as REST and scripts see it.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionReport {
    /// The public id.
    pub id: ClientId,
    /// Its protocol.
    pub protocol: Arc<str>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<UserId>,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The other side's address.
    pub address: Arc<str>,
    /// When it opened.
    pub opened: String,
    /// When something last came from it.
    pub seen: String,
    /// Whether the last ping was answered.
    pub alive: bool,
    /// The WebSocket state number.
    pub ready_state: u8,
    /// Messages received and queued.
    pub messages: InOut,
    /// Payload bytes received and queued.
    pub bytes: InOut,
    /// Messages that were never written.
    pub dropped: u64,
    /// What was not written as it was published, because the client was slow.
    pub slow: SlowCounted,
    /// What waits to be written.
    pub queue: QueueReport,
    /// The channels it is on.
    pub channels: Vec<ChannelName>,
}

/// Two directions.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct InOut {
    /// From the client.
    #[serde(rename = "in")]
    pub received: u64,
    /// To the client.
    #[serde(rename = "out")]
    pub sent: u64,
}

/// What waits to be written.
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueReport {
    /// Frames.
    pub frames: usize,
    /// Bytes.
    pub bytes: usize,
    /// The most bytes that ever waited.
    pub peak: usize,
    /// The bound.
    pub max: usize,
}

/// See [`ConnectionReport`].
pub fn report(connection: &Connection) -> ConnectionReport {
    let (view, traffic, queue) = (connection.view(), &connection.traffic, connection.outbox.measure());
    ConnectionReport {
        id: connection.id.clone(),
        protocol: view.protocol.clone(),
        user: view.user.clone(),
        session: view.session.clone(),
        address: view.ip.clone(),
        opened: crate::model::clock::iso(view.opened_ms),
        seen: crate::model::clock::iso(connection.seen_ms()),
        alive: !traffic.awaits_pong.load(Relaxed),
        ready_state: connection.ready_state(),
        messages: InOut { received: traffic.messages_in.load(Relaxed), sent: queue.messages },
        bytes: InOut { received: traffic.bytes_in.load(Relaxed), sent: queue.payload },
        dropped: queue.dropped,
        slow: queue.conflations.into(),
        queue: QueueReport { frames: queue.frames, bytes: queue.bytes, peak: queue.bytes_peak, max: queue.bytes_max },
        channels: connection.subscriptions().into_iter().map(|(name, _)| name).collect(),
    }
}
