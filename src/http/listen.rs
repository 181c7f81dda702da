//! Sockets to listen on and the loop that accepts: header time-out, connection cap, no delay, an orderly stop.
//! Knows nothing of what is served.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::plan::Listen;

/// How long a client may take over a request's head, the wait for the next request on a kept connection included.
const HEAD_WITHIN: Duration = Duration::from_secs(15);

/// The largest request head.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// Sockets open at one listener. More wait in the system's queue.
const SOCKETS_MAX: usize = 60_000;

/// The sockets of one address.
pub struct Bound {
    sockets: Vec<TcpListener>,
    /// The first one's address.
    pub address: SocketAddr,
}

/// Held as long as a client's socket is open.
#[derive(Clone)]
pub struct SocketPermit(#[expect(dead_code, reason = "held, not read")] Arc<OwnedSemaphorePermit>);

/// Something that answers requests.
pub trait Serve: Send + Sync + 'static {
    /// Answers one request.
    fn serve(self: Arc<Self>, request: Request<Incoming>, peer: SocketAddr) -> impl Future<Output = Response<Body>> + Send;
}

/// Binds an address; `localhost` is both loopback addresses on one port, or the first alone where there is no IPv6.
pub async fn bind(listen: &Listen) -> io::Result<Bound> {
    if &*listen.host != "localhost" {
        let socket = TcpListener::bind((&*listen.host, listen.port)).await?;
        return Ok(Bound { address: socket.local_addr()?, sockets: vec![socket] });
    }
    // With port 0 the system's choice for one address may be taken on the other: then it chooses again.
    let mut tries = if listen.port == 0 { 20 } else { 1 };
    loop {
        tries -= 1;
        let first = TcpListener::bind(("127.0.0.1", listen.port)).await?;
        let address = first.local_addr()?;
        match TcpListener::bind(("::1", address.port())).await {
            Ok(second) => return Ok(Bound { sockets: vec![first, second], address }),
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported) => {
                tracing::warn!(%address, "no IPv6 loopback on this machine; serving IPv4 only");
                return Ok(Bound { sockets: vec![first], address });
            }
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

/// Accepts until `stop` fires. Each connection is a task of `tasks`.
pub fn serve<S: Serve>(bound: Bound, site: &Arc<S>, tasks: &TaskTracker, stop: &CancellationToken) {
    let permits = Arc::new(Semaphore::new(SOCKETS_MAX));
    for socket in bound.sockets {
        tasks.spawn(accept(socket, site.clone(), tasks.clone(), stop.clone(), permits.clone()));
    }
}

async fn accept<S: Serve>(listener: TcpListener, site: Arc<S>, tasks: TaskTracker, stop: CancellationToken, permits: Arc<Semaphore>) {
    loop {
        let next = async {
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            (accepted, permit) = next => match (accepted, permit) {
                (Ok((stream, peer)), Ok(permit)) => {
                    tasks.spawn(connection(stream, peer, site.clone(), stop.clone(), SocketPermit(Arc::new(permit))));
                }
                (Ok(_), Err(_)) => return,
                (Err(error), _) => {
                    // Out of file descriptors, mostly: others must close first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

async fn connection<S: Serve>(stream: TcpStream, peer: SocketAddr, site: Arc<S>, stop: CancellationToken, permit: SocketPermit) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(permit.clone());
        let answer = site.clone().serve(request, peer);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stop.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::trace!(%peer, %error, "an HTTP connection broke");
    }
}
