//! For unit tests: a router out of a few lines of YAML, connections without sockets, a transport that does what it is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};

use parking_lot::Mutex;

use crate::config;
use crate::config::plan::DatabasePlan;
use crate::connection::transport::{Gone, Incoming, Outgoing, Transport};
use crate::hub::{Connection, Hub, Out};
use crate::log_channels::LogChannels;
use crate::model::view::ConnView;
use crate::model::{Close, Json, Now};
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
    let delivering = router.clone();
    tokio::spawn(async move { delivering.deliver().await });
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
    let connection = Arc::new(Connection::new(key, 0, Now::read(), view, limits.outbox, limits.slow.clone(), protocol.metrics.clone()));
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
        self.router.client(&self.connection, &mut self.limits, input, Now::read());
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.input(Input::Message(Frame::Text(text.into())));
    }

    /// Everything it was told since the last look.
    pub(crate) fn told(&self) -> Vec<String> {
        std::iter::from_fn(|| self.connection.outbox.pop())
            .map(|out| match out {
                Out::Frame(Frame::Text(text)) => text.to_string(),
                Out::Frame(Frame::Binary(bytes)) => format!("{bytes:?}"),
                Out::Ping => "ping".into(),
                Out::Close(close) => format!("close {} {}", close.code(), close.reason()),
            })
            .collect()
    }
}

/// A transport that a test plays the other side of.
#[derive(Clone, Default)]
pub(crate) struct Double(Arc<Mutex<Wires>>);

#[derive(Default)]
struct Wires {
    incoming: VecDeque<Incoming>,
    written: Vec<String>,
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

    /// The other side sends something.
    pub(crate) fn comes(&self, incoming: Incoming) {
        self.change(|wires| wires.incoming.push_back(incoming));
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
        self.0.lock().written.clone()
    }
}

impl Transport for Double {
    fn poll_incoming(&mut self, cx: &mut TaskContext<'_>) -> Poll<Incoming> {
        let mut wires = self.0.lock();
        assert!(!wires.broken, "the transport was told to break down");
        match wires.incoming.pop_front() {
            Some(incoming) => Poll::Ready(incoming),
            None => {
                wires.wakers.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn poll_ready(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Gone>> {
        let mut wires = self.0.lock();
        if wires.stalled {
            wires.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn start(&mut self, out: Outgoing) -> Result<(), Gone> {
        let text = match out {
            Outgoing::Frame(Frame::Text(text)) => text.to_string(),
            Outgoing::Frame(Frame::Binary(bytes)) => format!("{bytes:?}"),
            Outgoing::Ping => "ping".into(),
            Outgoing::Close(close) => {
                let code = close.code();
                // A well-behaved other side answers.
                self.comes(Incoming::Closed(Close::ByClient(code, String::new())));
                format!("close {code}")
            }
        };
        self.change(|wires| wires.written.push(text));
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Gone>> {
        self.poll_ready(cx)
    }

    fn poll_drain(&mut self, _: &mut TaskContext<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}
