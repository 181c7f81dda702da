//! Sockets to listen on and the loop that accepts: TLS, time-outs, bounds, no delay, an orderly stop.
//! Knows nothing of what is served.

mod progress;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use rustls::ServerConfig;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::plan::Listen;
use crate::connection::stream::Stream;
use crate::http::addresses::{AddressPermit, Addresses};
use crate::tasks::Core;
use crate::telemetry::metrics::SocketMetrics;
pub use progress::Waited;
use progress::{AnswerBody, Progress, WatchedStream};

/// How long a client may take over a request's head, the wait for the next request on a kept connection included.
const HEAD_WITHIN: Duration = Duration::from_secs(15);

/// How long a client may take over the rest of a request's head once the server stops.
const LAST_HEAD_WITHIN: Duration = Duration::from_millis(500);

/// The largest request head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// How long a client may take over reading the answer after which its stream is taken over.
const TAKEOVER_WITHIN: Duration = Duration::from_secs(10);

/// How long a client may take over the TLS handshake.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// TLS handshakes under way at one listener. More wait for their turn, and the wait counts towards their time limit: each holds
/// some 10 KiB, and many clients that come back at once are handled one after the other.
pub(crate) const HANDSHAKES_MAX: usize = 4096;

/// The first byte of a TLS handshake. No method of HTTP begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Sockets open at one listener. More wait in the system's queue.
const SOCKETS_MAX: usize = 60_000;

/// Sockets that wait to be accepted, where the system allows as many: clients that all come back at once find room.
const QUEUED_SOCKETS_MAX: u32 = 16_384;

/// How long accepting pauses after an error, doubled with each that follows.
const PAUSE: Duration = Duration::from_millis(5);

/// The longest pause.
const PAUSE_LONGEST: Duration = Duration::from_secs(1);

/// The sockets of one address.
pub struct Bound {
    /// Shared with the listener they are taken over from, until that one ends.
    pub sockets: Vec<Arc<TcpListener>>,
    /// The first one's address.
    pub address: SocketAddr,
}

/// Held as long as a client's socket is open.
pub struct SocketPermit {
    _listener: OwnedSemaphorePermit,
    _address: AddressPermit,
}

/// Something that answers requests.
pub trait Serve: Send + Sync + 'static {
    /// Answers one request.
    fn serve(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> impl Future<Output = Served> + Send;
}

/// The answer to a request.
pub struct Served {
    /// What is written.
    pub response: Response<Body>,
    /// Of a response that switches protocols: what goes on with the stream.
    pub takeover: Option<Takeover>,
}

/// Called once the response is written; dropped if that never happens.
pub type Takeover = Box<dyn FnOnce(TakenOver) + Send>;

/// A stream on which no more HTTP is spoken.
pub struct TakenOver {
    /// The stream alone: nothing of HTTP lives as long as it.
    pub stream: Stream,
    /// What came with the request.
    pub early: Bytes,
    /// To be held as long as the stream is open.
    pub permit: SocketPermit,
}

impl From<Response<Body>> for Served {
    fn from(response: Response<Body>) -> Self {
        Self { response, takeover: None }
    }
}

/// Binds an address; `localhost` is both loopback addresses on one port, or the first alone where there is no IPv6. Of `held`,
/// what is on that very address is taken instead of a new socket.
pub async fn bind(listen: &Listen, held: &[Arc<TcpListener>]) -> io::Result<Bound> {
    let listener = |address: SocketAddr| {
        let same = held.iter().find(|socket| socket.local_addr().is_ok_and(|local| local == address));
        same.map_or_else(|| listener(address).map(Arc::new), |socket| Ok(socket.clone()))
    };
    if &*listen.host != "localhost" {
        let ip: IpAddr = listen.host.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let socket = listener(SocketAddr::new(ip, listen.port))?;
        return Ok(Bound { address: socket.local_addr()?, sockets: vec![socket] });
    }
    // With port 0 the system's choice for one address may be taken on the other: then it chooses again.
    let mut tries = if listen.port == 0 { 20 } else { 1 };
    loop {
        tries -= 1;
        let first = listener((Ipv4Addr::LOCALHOST, listen.port).into())?;
        let address = first.local_addr()?;
        match listener((Ipv6Addr::LOCALHOST, address.port()).into()) {
            Ok(second) => return Ok(Bound { sockets: vec![first, second], address }),
            Err(error) if is_without_ipv6(&error) => {
                tracing::warn!(%address, "no IPv6 loopback on this machine; serving IPv4 only");
                return Ok(Bound { sockets: vec![first], address });
            }
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    /// EAFNOSUPPORT of Linux and macOS, for which there is no `ErrorKind`.
    const NO_SUCH_FAMILY: [i32; 2] = [97, 47];
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.raw_os_error().is_some_and(|code| NO_SUCH_FAMILY.contains(&code))
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Old connections of a previous server must not block the address.
    socket.set_reuseaddr(true)?;
    // The sockets that it accepts inherit this.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(QUEUED_SOCKETS_MAX)
}

/// The options of one address. Replaced while it is served; existing connections keep the old ones.
#[derive(Clone)]
pub struct ListenerOptions {
    /// What TLS handshakes are made with; none: plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Sockets that one address may have; none: the default.
    pub per_address: Option<usize>,
    /// TLS handshakes that may be under way at a time.
    pub handshakes: usize,
    /// What is counted.
    pub metrics: Arc<SocketMetrics>,
}

/// What all sockets of one address have in common.
struct Acceptor<S> {
    routes: Arc<S>,
    options: Arc<ArcSwap<ListenerOptions>>,
    permits: Arc<Semaphore>,
    handshakes: Semaphore,
    http: http1::Builder,
    addresses: Arc<Addresses>,
    tasks: TaskTracker,
    waited: Arc<Waited>,
    stop: CancellationToken,
}

/// Accepts until `stop` fires. Each connection is a task of `tasks`; accepting is one of `core`. Who is still being answered when
/// `stop` fires is in `waited`.
pub fn serve<S: Serve>(
    bound: Bound,
    options: Arc<ArcSwap<ListenerOptions>>,
    routes: &Arc<S>,
    core: &Core,
    tasks: &TaskTracker,
    waited: &Arc<Waited>,
    stop: &CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES_MAX);
    let acceptor = Arc::new(Acceptor {
        http,
        routes: routes.clone(),
        permits: Arc::new(Semaphore::new(SOCKETS_MAX)),
        handshakes: Semaphore::new(options.load().handshakes),
        addresses: Addresses::new(),
        options,
        tasks: tasks.clone(),
        waited: waited.clone(),
        stop: stop.clone(),
    });
    for socket in bound.sockets {
        core.spawn_until(format!("listener {}", bound.address), stop.clone(), accept(socket, acceptor.clone()));
    }
}

/// Other tasks get their turn even if this loop never waits: tokio makes it yield.
async fn accept<S: Serve>(listener: Arc<TcpListener>, acceptor: Arc<Acceptor<S>>) {
    let mut pause = PAUSE;
    loop {
        let next = async {
            let permit = acceptor.permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            biased;
            () = acceptor.stop.cancelled() => return,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE;
                let Ok(permit) = permit else { return };
                let options = acceptor.options.load_full();
                let Some(address) = acceptor.addresses.admit(peer.ip(), options.per_address) else {
                    refuse(&stream, peer, &options.metrics);
                    continue;
                };
                let permit = SocketPermit { _listener: permit, _address: address };
                acceptor.tasks.spawn(connection(stream, peer, options, acceptor.clone(), permit));
            }
            Err(error) if is_of_one_client(&error) => {}
            Err(error) => {
                if is_out_of_files(&error) {
                    let hint = "raise the limit (`ulimit -n`, or `LimitNOFILE=` of systemd) and restart, or lower `limits.connections`";
                    tracing::error!(
                        %error,
                        ?pause,
                        hint,
                        "cannot accept a connection: no more files may be open, and a socket counts as one; clients wait until others close"
                    );
                } else {
                    tracing::warn!(%error, ?pause, "cannot accept a connection");
                }
                tokio::select! {
                    () = acceptor.stop.cancelled() => return,
                    () = sleep(pause) => pause = (pause * 2).min(PAUSE_LONGEST),
                }
            }
        }
    }
}

/// Whether a client disconnected before it was accepted: that needs no pause, or it could keep others waiting.
fn is_of_one_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Whether the process, or the system, has as many open files as it may.
fn is_out_of_files(error: &io::Error) -> bool {
    /// EMFILE and ENFILE of Linux and macOS, for which there is no `ErrorKind`.
    const TOO_MANY: [i32; 2] = [24, 23];
    error.raw_os_error().is_some_and(|code| TOO_MANY.contains(&code))
}

/// Resets the socket. An answer would cost a task, and with TLS a handshake; an orderly close would keep the pair of addresses in
/// the system for a minute. A client that opens this many sockets must cost nothing.
fn refuse(stream: &TcpStream, peer: SocketAddr, metrics: &SocketMetrics) {
    metrics.refused.inc();
    tracing::debug!(%peer, "a socket was closed: its address has as many as are allowed");
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
}

async fn connection<S: Serve>(
    tcp: TcpStream,
    peer: SocketAddr,
    options: Arc<ListenerOptions>,
    acceptor: Arc<Acceptor<S>>,
    permit: SocketPermit,
) {
    let stream = match &options.tls {
        None => Stream::Plain(tcp),
        Some(config) => {
            let tls = TlsAcceptor::from(config.clone());
            let shaken = timeout(HANDSHAKE_WITHIN, handshake(&tls, tcp, &acceptor.handshakes, &options.metrics));
            let shaken = tokio::select! {
                shaken = shaken => shaken.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
                () = acceptor.stop.cancelled() => return,
            };
            match shaken {
                Ok(Stream::Plain(tcp)) => {
                    options.metrics.handshakes_failed.inc();
                    return requests(Stream::Plain(tcp), &acceptor, peer, permit, async |_| not_tls().into()).await;
                }
                Ok(stream) => stream,
                Err(error) => {
                    options.metrics.handshakes_failed.inc();
                    tracing::debug!(%peer, %error, "a TLS handshake failed");
                    return;
                }
            }
        }
    };
    requests(stream, &acceptor, peer, permit, |request| acceptor.routes.clone().serve(request, peer)).await;
}

/// A TLS stream, or the plain stream if the client does not speak TLS. A client that sends nothing does not block others.
async fn handshake(tls_acceptor: &TlsAcceptor, tcp: TcpStream, turns: &Semaphore, metrics: &SocketMetrics) -> io::Result<Stream> {
    let mut first = [0];
    if tcp.peek(&mut first).await? == 1 && first[0] != TLS_HANDSHAKE {
        return Ok(Stream::Plain(tcp));
    }
    let _turn = match turns.try_acquire() {
        Ok(turn) => turn,
        Err(_) => {
            metrics.handshakes_waited.inc();
            turns.acquire().await.map_err(io::Error::other)?
        }
    };
    Ok(Stream::Tls(Box::new(tls_acceptor.accept(tcp).await?)))
}

/// The answer to plain HTTP on a TLS listener.
fn not_tls() -> Response<Body> {
    let mut response = Response::new(Body::from("TLS is served here: connect with https:// or wss://\n"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("connection", HeaderValue::from_static("close"));
    response
}

/// Answers the requests of one stream until it ends, or is taken over, or the listener stops. Then what is being answered is
/// answered, and a client in the middle of a request's head gets a moment for the rest of it.
async fn requests<S, A>(
    stream: Stream,
    acceptor: &Acceptor<S>,
    peer: SocketAddr,
    permit: SocketPermit,
    answer: impl Fn(Request<Incoming>) -> A,
) where
    A: Future<Output = Served>,
{
    let progress = Progress::new(peer);
    // Protects what the last answer leaves to do with the stream. Held to set it, or to look.
    let takeover = Mutex::new(None);
    let service = service_fn(|request| {
        let answering = progress.begin(&request);
        let answer = answer(request);
        let to_do = &takeover;
        async move {
            let Served { response, takeover } = answer.await;
            *to_do.lock() = takeover;
            Ok::<_, Infallible>(response.map(|body| AnswerBody { body, _answering: answering }))
        }
    });
    let mut served = acceptor.http.serve_connection(WatchedStream::new(stream, progress.clone()), service);
    let ended = tokio::select! {
        ended = until_taken_over(&mut served, &takeover) => ended,
        () = acceptor.stop.cancelled() => {
            Pin::new(&mut served).graceful_shutdown();
            let _waited_for = acceptor.waited.add(&progress);
            let mut rest = pin!(until_taken_over(&mut served, &takeover));
            loop {
                match timeout(LAST_HEAD_WITHIN, rest.as_mut()).await {
                    Ok(ended) => break ended,
                    Err(_) if progress.is_answering() => {}
                    Err(_) => return,
                }
            }
        }
    };
    match ended {
        Some(Ok(())) => {
            let parts = served.into_parts();
            let takeover = takeover.lock().take();
            if let Some(takeover) = takeover {
                // A copy, so that the buffer does not live as long as the stream.
                let early = Bytes::copy_from_slice(&parts.read_buf);
                takeover(TakenOver { stream: parts.io.into_inner(), early, permit });
            }
        }
        Some(Err(error)) => tracing::trace!(%peer, %error, "an HTTP connection broke"),
        None => tracing::trace!(%peer, "a client did not read the answer that switches protocols"),
    }
}

/// Runs what is served to its end. `None`: a client did not read, in time, the answer after which its stream is taken over.
async fn until_taken_over<C: Future + Unpin>(served: &mut C, takeover: &Mutex<Option<Takeover>>) -> Option<C::Output> {
    let ended = poll_fn(|cx| match Pin::new(&mut *served).poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending if takeover.lock().is_some() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    });
    match ended.await {
        Some(ended) => Some(ended),
        None => timeout(TAKEOVER_WITHIN, served).await.ok(),
    }
}

#[cfg(test)]
mod tests;
