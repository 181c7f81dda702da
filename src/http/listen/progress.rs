//! What each HTTP connection is doing, so that a stop waits for answers and for nothing else, and can name those it waits for.
//! Knows nothing of what is served.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use crate::connection::stream::Stream;

/// What one connection is doing.
pub(super) struct Progress {
    peer: SocketAddr,
    // Protects the request that is being answered. Held to change it, or to name it.
    request: Mutex<Option<(Method, Uri)>>,
    /// Whether bytes of an answer wait because the client does not read.
    is_writing: AtomicBool,
}

impl Progress {
    /// Of a connection that has not sent anything yet.
    pub(super) fn new(peer: SocketAddr) -> Arc<Self> {
        Arc::new(Self { peer, request: Mutex::default(), is_writing: AtomicBool::new(false) })
    }

    /// A whole request head has come. It is being answered until the result is dropped.
    pub(super) fn begin<B>(self: &Arc<Self>, request: &Request<B>) -> Answering {
        *self.request.lock() = Some((request.method().clone(), request.uri().clone()));
        Answering(self.clone())
    }

    /// Whether a client waits for an answer, or for the rest of one.
    pub(super) fn is_answering(&self) -> bool {
        self.request.lock().is_some() || self.is_writing.load(Relaxed)
    }
}

/// `GET /api/history from 127.0.0.1:40000`. Without the query, which may have a token in it.
impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.request.lock() {
            Some((method, uri)) => write!(f, "{method} {} from {}", uri.path(), self.peer),
            None if self.is_writing.load(Relaxed) => write!(f, "the rest of an answer to {}", self.peer),
            None => write!(f, "an incomplete request from {}", self.peer),
        }
    }
}

/// Held while a request is being answered.
pub(super) struct Answering(Arc<Progress>);

impl Drop for Answering {
    fn drop(&mut self) {
        *self.0.request.lock() = None;
    }
}

/// The connections that a stop waits for.
#[derive(Default)]
pub struct Waited {
    // Protects who is waited for. Held to add, to remove, or for a report. Empty until the server or a listener stops.
    all: Mutex<BTreeMap<usize, Arc<Progress>>>,
}

impl Waited {
    /// What each of them is doing.
    pub fn names(&self) -> Vec<String> {
        self.all.lock().values().map(ToString::to_string).collect()
    }

    /// A connection is waited for until the result is dropped.
    pub(super) fn add(self: &Arc<Self>, progress: &Arc<Progress>) -> WaitedFor {
        let key = Arc::as_ptr(progress).addr();
        self.all.lock().insert(key, progress.clone());
        WaitedFor(self.clone(), key)
    }
}

/// Held while a connection is waited for.
pub(super) struct WaitedFor(Arc<Waited>, usize);

impl Drop for WaitedFor {
    fn drop(&mut self) {
        self.0.all.lock().remove(&self.1);
    }
}

/// The body of an answer. The request is being answered until it has been given to the connection.
pub(super) struct AnswerBody {
    pub(super) body: Body,
    pub(super) _answering: Answering,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A client's stream for hyper, which notes whether a write waits for the client.
pub(super) struct WatchedStream {
    io: TokioIo<Stream>,
    progress: Arc<Progress>,
}

impl WatchedStream {
    pub(super) fn new(stream: Stream, progress: Arc<Progress>) -> Self {
        Self { io: TokioIo::new(stream), progress }
    }

    /// The stream alone.
    pub(super) fn into_inner(self) -> Stream {
        self.io.into_inner()
    }

    fn note<T>(&self, done: Poll<T>) -> Poll<T> {
        self.progress.is_writing.store(done.is_pending(), Relaxed);
        done
    }
}

impl Read for WatchedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buffer)
    }
}

impl Write for WatchedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_write(cx, buffer);
        this.note(done)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_write_vectored(cx, buffers);
        this.note(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.io).poll_flush(cx);
        this.note(done)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
