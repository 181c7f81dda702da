//! For unit tests: a router out of a few lines of YAML, connections without sockets, a socket that does what it is told.

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use parking_lot::Mutex;

use crate::apply::Batch;
use crate::config;
use crate::config::plan::DatabasePlan;
use crate::hub::{Connection, Hub, Socket};
use crate::log_channels::LogChannels;
use crate::model::view::ConnView;
use crate::model::{Json, Now};
use crate::pipeline::{ClientLimits, Context, Input};
use crate::protocol::Frame;
use crate::router::Router;
use crate::runtime::{self, Runtime};
use crate::store::Store;
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
    let now = Now::read();
    runtime::build(loaded, &Arc::new(Metrics::new(now)), now)
        .unwrap_or_else(|found| panic!("{}", config::diagnostic::render(&found, &files)))
}

/// A router on a database in memory.
pub(crate) async fn router(yaml: &str, plugins: &[(&str, &str)]) -> Arc<Router> {
    let runtime = Arc::new(runtime(yaml, plugins));
    let (store, mut writer, recovered) = Store::open(&DatabasePlan::Memory.into(), Now::read()).await.unwrap();
    let hub = Arc::new(Hub::new(runtime.protocols.len(), recovered.channels));
    writer.begin(Arc::new(LogChannels { runtime: runtime.clone(), hub: hub.clone() })).await.unwrap();
    tokio::spawn(writer.run(std::future::pending()));
    let router = Arc::new(Router::new(Context::new(runtime, hub), store, Now::read()));
    let flushing = router.clone();
    tokio::spawn(async move { flushing.context.hub.flush.run_all().await });
    let delivering = router.clone();
    tokio::spawn(async move { delivering.deliver().await });
    let batching = router.clone();
    tokio::spawn(async move { batching.write_due_batches().await });
    let feed = router.context.hub.feed.clone();
    tokio::spawn(async move { feed.run().await });
    router
}

/// Resolves when a channel's events are committed and shown up to this offset.
pub(crate) async fn shown(router: &Router, channel: &str, offset: u64) {
    let there = async {
        while router.context.hub.position(channel).is_none_or(|at| at.offset < offset) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), there).await.unwrap();
}

/// A connection of the first protocol that the hub has let in.
pub(crate) fn connect(router: &Router, id: &str) -> Arc<Connection> {
    let protocol = &router.context.runtime.protocols[0];
    let view = ConnView {
        id: id.into(),
        protocol: protocol.plan.name.clone(),
        user: None,
        session: None,
        ip: "127.0.0.1".into(),
        opened_ms: 0,
        state: Json::empty_object(),
        request: Arc::default(),
        origin: Default::default(),
    };
    let limits = &protocol.plan.limits;
    let key = router.context.hub.next_key();
    let connection = Arc::new(Connection::new(key, 0, Now::read(), view, limits, None, protocol.metrics.clone()));
    router.admit(&connection).unwrap();
    connection
}

/// A client without a socket: what it says is decided and applied at once, what it is told waits in its outbox.
pub(crate) struct Client {
    pub(crate) router: Arc<Router>,
    pub(crate) connection: Arc<Connection>,
    limits: ClientLimits,
}

impl Client {
    pub(crate) fn open(router: &Arc<Router>, id: &str) -> Self {
        let connection = connect(router, id);
        let limits = ClientLimits::new(&router.context.runtime.protocols[0].plan, Now::read());
        let mut client = Self { router: router.clone(), connection, limits };
        client.input(Input::Open);
        client
    }

    pub(crate) fn input(&mut self, input: Input<'_>) {
        let now = Now::read();
        let mut batch = Batch::new(&self.router.context, Some(&self.connection), now);
        self.router.client(&self.connection, &mut self.limits, input, &mut batch, now);
        drop(batch);
        self.router.context.hub.flush.one(&self.connection);
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.input(Input::Message(Frame::Text(text.into())));
    }

    /// Everything it was told since the last look.
    pub(crate) fn told(&self) -> Vec<String> {
        told(&self.connection.outbox.take())
    }
}

/// The frames a server wrote, in words.
pub(crate) fn told(mut wire: &[u8]) -> Vec<String> {
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
        told(&self.0.lock().written)
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
