//! What the hub knows of one open connection: who it is, what it is subscribed to, what waits for it, what passed over it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use crate::hub::outbox::{Outbox, Sent};
use crate::model::name::ClientId;
use crate::model::view::ConnView;
use crate::model::{ChannelName, Close, Now};
use crate::protocol::Frame;
use crate::telemetry::metrics::ProtocolMetrics;

/// One open connection. Its task owns it; publishers reach its outbox through the hub.
#[derive(Debug)]
pub struct Connection {
    /// Unique while the process runs; grows with time.
    pub key: u64,
    /// The public id.
    pub id: ClientId,
    /// Index of its protocol in the runtime.
    pub protocol: usize,
    /// When it opened.
    pub opened: Now,
    /// What waits to be written.
    pub outbox: Outbox,
    /// What passed over it.
    pub traffic: Traffic,
    /// Code and reason for a client whose outbox overflows.
    pub slow: (u16, Arc<str>),
    /// What is counted of its protocol.
    pub metrics: Arc<ProtocolMetrics>,
    // Protects the snapshot that templates and scripts see. Held for a clone or a swap.
    view: Mutex<Arc<ConnView>>,
    // Protects the list of its own subscriptions. Taken under a channel's lock, never the other way round.
    pub(super) subscriptions: Mutex<Vec<(ChannelName, Arc<str>)>>,
}

/// Counters of one connection.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Messages received.
    pub messages_in: AtomicU64,
    /// Messages queued to be written.
    pub messages_out: AtomicU64,
    /// Payload bytes received.
    pub bytes_in: AtomicU64,
    /// Payload bytes queued.
    pub bytes_out: AtomicU64,
    /// When something last came from it, in milliseconds since the epoch; 0 before anything did.
    pub seen_ms: AtomicI64,
    /// Set while a ping is unanswered.
    pub awaits_pong: AtomicBool,
    /// Set once the close handshake has begun.
    pub closing: AtomicBool,
}

impl Connection {
    /// A connection that is about to open.
    pub fn new(
        key: u64,
        protocol: usize,
        opened: Now,
        view: ConnView,
        outbox_bytes: usize,
        slow: (u16, Arc<str>),
        metrics: Arc<ProtocolMetrics>,
    ) -> Self {
        Self {
            key,
            id: view.id.clone(),
            protocol,
            opened,
            outbox: Outbox::new(outbox_bytes),
            traffic: Traffic::default(),
            slow,
            metrics,
            view: Mutex::new(Arc::new(view)),
            subscriptions: Mutex::default(),
        }
    }

    /// The snapshot as it is now.
    pub fn view(&self) -> Arc<ConnView> {
        self.view.lock().clone()
    }

    pub(super) fn set_view(&self, view: Arc<ConnView>) {
        *self.view.lock() = view;
    }

    /// Queues a frame for this client. Never waits.
    pub fn send(&self, frame: Frame) -> Sent {
        let bytes = frame.len() as u64;
        let sent = self.outbox.push(frame, || Close::Slow(self.slow.0, self.slow.1.to_string().into()));
        if sent == Sent::Queued {
            self.traffic.messages_out.fetch_add(1, Relaxed);
            self.traffic.bytes_out.fetch_add(bytes, Relaxed);
            self.metrics.message_out(bytes);
        }
        sent
    }

    /// When something last came from it, its opening included. Milliseconds since the epoch.
    pub fn seen_ms(&self) -> i64 {
        self.traffic.seen_ms.load(Relaxed).max(self.opened.wall_ms)
    }

    /// Its subscriptions: channel and key, in the order they began.
    pub fn subscriptions(&self) -> Vec<(ChannelName, Arc<str>)> {
        self.subscriptions.lock().clone()
    }

    /// The WebSocket state number: 1 open, 2 closing.
    pub fn ready_state(&self) -> u8 {
        if self.traffic.closing.load(Relaxed) || !self.outbox.is_open() { 2 } else { 1 }
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
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Arc<str>>,
    /// Its session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<Arc<str>>,
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
        messages: InOut { received: traffic.messages_in.load(Relaxed), sent: traffic.messages_out.load(Relaxed) },
        bytes: InOut { received: traffic.bytes_in.load(Relaxed), sent: traffic.bytes_out.load(Relaxed) },
        dropped: queue.dropped,
        queue: QueueReport { frames: queue.frames, bytes: queue.bytes, peak: queue.bytes_peak, max: queue.bytes_max },
        channels: connection.subscriptions().into_iter().map(|(name, _)| name).collect(),
    }
}
