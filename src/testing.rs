//! For unit tests: a `Live` from a few lines of YAML, connections without sockets, a scripted socket.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use parking_lot::Mutex;

use crate::apply::Batch;
use crate::config;
use crate::config::plan::DatabasePlan;
use crate::hub::{Connection, Hub, Socket};
use crate::live::{Arrival, Handled, Live};
use crate::model::view::ConnView;
use crate::model::{Clock, Json, Now};
use crate::pipeline::{ClientLimits, Moment, Snapshot, Spent};
use crate::protocol::Frame;
use crate::protocol::wire::Wire;
use crate::runtime::{self, Runtime};
use crate::store::{Store, Writer};
use crate::telemetry::metrics::Metrics;

/// A runtime of this routes file and these plugins.
pub(crate) fn runtime(yaml: &str, plugins: &[(&str, &str)]) -> Runtime {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("routes.yaml"), yaml).unwrap();
    std::fs::create_dir(folder.path().join("plugins")).unwrap();
    for (name, text) in plugins {
        std::fs::write(folder.path().join("plugins").join(format!("{name}.rhai")), text).unwrap();
    }
    let loaded = config::load(&folder.path().join("routes.yaml"), &|_| None);
    let files = loaded.files.clone();
    runtime::build(loaded, None).unwrap_or_else(|found| panic!("{}", config::diagnostic::render(&found, &files)))
}

/// A `Live` on a database in memory, whose writer does not run yet.
pub(crate) async fn paused(yaml: &str, plugins: &[(&str, &str)]) -> (Arc<Live>, Writer) {
    let runtime = Arc::new(runtime(yaml, plugins));
    let clock = Clock::default();
    let (store, mut writer, recovered) = Store::open(&DatabasePlan::Memory.into(), &clock).await.unwrap();
    let hub = Arc::new(Hub::new(recovered.channels));
    let live = Arc::new(Live::new(runtime, hub.clone(), store, &Arc::new(Metrics::new(clock.now())), clock));
    writer.begin(Arc::new(live.log_channels())).await.unwrap();
    let committing = live.clone();
    tokio::spawn(async move { committing.finish_commits().await });
    (live, writer)
}

/// The running whole on a database in memory.
pub(crate) async fn live(yaml: &str, plugins: &[(&str, &str)]) -> Arc<Live> {
    let (live, writer) = paused(yaml, plugins).await;
    tokio::spawn(writer.run(std::future::pending()));
    let hub = live.hub.clone();
    tokio::spawn(async move { hub.flush.run_all().await });
    let hub = live.hub.clone();
    std::thread::spawn(move || hub.renderings.run());
    let batching = live.clone();
    tokio::spawn(async move { batching.write_due_batches().await });
    let feed = live.hub.feed.clone();
    tokio::spawn(async move { feed.run().await });
    live
}

/// Resolves when a channel's events are committed and shown up to this offset.
pub(crate) async fn shown(live: &Live, channel: &str, offset: u64) {
    let there = async {
        while live.hub.position(channel).is_none_or(|at| at.offset < offset) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), there).await.unwrap();
}

/// Resolves when scripts have written every event for these.
pub(crate) async fn rendered(clients: &[Client]) {
    let there = async {
        while clients.iter().any(|client| client.connection.outbox.has_places()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), there).await.unwrap();
}

/// A connection of the first protocol that the hub has let in.
pub(crate) fn connect(live: &Live, id: &str) -> Arc<Connection> {
    connect_by(live, 0, id)
}

/// The same of another, by its place in the file.
fn connect_by(live: &Live, protocol: usize, id: &str) -> Arc<Connection> {
    let snapshot = live.current();
    let plan = &snapshot.runtime.plan.protocols[protocol];
    let view = ConnView {
        id: id.into(),
        protocol: plan.name.clone(),
        user: None,
        session: None,
        ip: "127.0.0.1".into(),
        opened_ms: 0,
        state: Json::empty_object(),
        request: Arc::default(),
        origin: Default::default(),
    };
    let metrics = snapshot.counters.protocol(plan.id).unwrap().clone();
    let connection = Arc::new(Connection::new(
        live.hub.next_key(),
        plan.id,
        Now::read(),
        view,
        &plan.limits,
        Wire::WebSocket { compress: None },
        metrics,
    ));
    live.admit(&snapshot, &connection).unwrap();
    connection
}

/// A client without a socket: its messages are decided and applied at once, messages to it wait in its outbox.
pub(crate) struct Client {
    pub(crate) live: Arc<Live>,
    pub(crate) connection: Arc<Connection>,
    limits: ClientLimits,
}

impl Client {
    pub(crate) fn open(live: &Arc<Live>, id: &str) -> Self {
        Self::open_by(live, 0, id)
    }

    /// Of another protocol than the first, by its place in the file.
    pub(crate) fn open_by(live: &Arc<Live>, protocol: usize, id: &str) -> Self {
        let connection = connect_by(live, protocol, id);
        let limits = ClientLimits::new(&live.current().runtime.plan.protocols[protocol], Now::read());
        let mut client = Self { live: live.clone(), connection, limits };
        client.input(Moment::Open);
        client
    }

    pub(crate) fn input(&mut self, moment: Moment<'_>) -> Handled {
        self.input_under(&self.live.current(), moment)
    }

    /// The same under a snapshot of the test's own.
    pub(crate) fn input_under(&mut self, snapshot: &Arc<Snapshot>, moment: Moment<'_>) -> Handled {
        let now = Now::read();
        let mut batch = Batch::new(snapshot, Some(&self.connection), now);
        let arrival = Arrival { moment, spent: &mut Spent::default(), now };
        let handled = self.live.client(snapshot, &self.connection, arrival, &mut self.limits, &mut batch);
        drop(batch);
        self.live.hub.flush.one(&self.connection);
        handled
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.input(Moment::Message(&mut Frame::Text(text.into())));
    }

    pub(crate) fn say_under(&mut self, snapshot: &Arc<Snapshot>, text: &str) {
        self.input_under(snapshot, Moment::Message(&mut Frame::Text(text.into())));
    }

    /// Everything that was sent to it since the last look.
    pub(crate) fn received(&self) -> Vec<String> {
        received(&self.connection.outbox.drain(usize::MAX).concat())
    }
}

/// The frames a server wrote, in words.
pub(crate) fn received(mut wire: &[u8]) -> Vec<String> {
    let mut told = Vec::new();
    while let [first, length, rest @ ..] = wire {
        let (length, rest) = match length {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, &rest[8..]),
            short => (usize::from(*short), rest),
        };
        let payload = &rest[..length];
        wire = &rest[length..];
        told.push(match first {
            0x81 => String::from_utf8(payload.to_vec()).unwrap(),
            0x88 => format!("close {} {}", u16::from_be_bytes([payload[0], payload[1]]), String::from_utf8_lossy(&payload[2..])),
            0x89 => "ping".into(),
            0x8a => "pong".into(),
            other => panic!("no frame a server writes begins with {other:#x}"),
        });
    }
    assert!(wire.is_empty(), "half a frame");
    told
}

/// A socket that a test plays the other side of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Double(Arc<Mutex<Wires>>);

#[derive(Debug, Default)]
struct Wires {
    incoming: Vec<u8>,
    written: Vec<u8>,
    stalled: bool,
    broken: bool,
    wakers: Vec<Waker>,
}

impl Double {
    fn change(&self, change: impl FnOnce(&mut Wires)) {
        let mut wires = self.0.lock();
        change(&mut wires);
        for waker in std::mem::take(&mut wires.wakers) {
            waker.wake();
        }
    }

    /// The other side sends a frame.
    pub(crate) fn comes(&self, first: u8, payload: &[u8]) {
        assert!(payload.len() < 126);
        self.change(|wires| {
            // A mask of zeros changes nothing.
            wires.incoming.extend([first, 0x80 | payload.len() as u8, 0, 0, 0, 0]);
            wires.incoming.extend(payload);
        });
    }

    /// The other side sends these bytes.
    pub(crate) fn comes_as(&self, bytes: &[u8]) {
        self.change(|wires| wires.incoming.extend(bytes));
    }

    /// The other side reads no more, or again.
    pub(crate) fn stall(&self, stalled: bool) {
        self.change(|wires| wires.stalled = stalled);
    }

    /// The next look at what came in panics.
    pub(crate) fn break_down(&self) {
        self.change(|wires| wires.broken = true);
    }

    /// What was written so far.
    pub(crate) fn written(&self) -> Vec<String> {
        received(&self.0.lock().written)
    }

    fn poll(&self, cx: &TaskContext<'_>, ready: impl FnOnce(&Wires) -> bool) -> Poll<()> {
        let mut wires = self.0.lock();
        if ready(&wires) {
            return Poll::Ready(());
        }
        wires.wakers.push(cx.waker().clone());
        Poll::Pending
    }
}

impl Socket for Double {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut wires = self.0.lock();
        assert!(!wires.broken, "the socket was told to break down");
        let count = buffer.len().min(wires.incoming.len());
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        buffer[..count].copy_from_slice(&wires.incoming[..count]);
        wires.incoming.drain(..count);
        Ok(count)
    }

    fn try_write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.0.lock().stalled {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut count = 0;
        for buffer in buffers {
            self.change(|wires| wires.written.extend_from_slice(buffer));
            count += buffer.len();
            // A well-behaved other side answers.
            if let [0x88, _, code @ ..] = &buffer[..] {
                self.comes(0x88, &code[..2]);
            }
        }
        Ok(count)
    }

    fn poll_readable(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.poll(cx, |wires| wires.broken || !wires.incoming.is_empty())
    }

    fn poll_writable(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.poll(cx, |wires| !wires.stalled)
    }

    fn close(&self) {}
}
