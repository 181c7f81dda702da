//! The accept loop against clients that dawdle, crowd, or speak something else.

use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// After its answer no more HTTP is spoken.
const SWITCH: &[u8] = b"GET /switch HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";

/// Handshakes that may be under way at a time.
const HANDSHAKES: usize = 3;

/// Greets everybody. Where a switch is asked for, sends back what came early.
struct Hello;

impl Serve for Hello {
    async fn serve(self: Arc<Self>, request: Request<Incoming>, _: SocketAddr) -> Served {
        match request.uri().path() {
            "/switch" => Served { response: switching(), takeover: Some(Box::new(echo)) },
            _ => Response::new(Body::from("hello")).into(),
        }
    }
}

fn switching() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response
}

fn echo(TakenOver { mut stream, early, permit }: TakenOver) {
    tokio::spawn(async move {
        stream.write_all(&early).await.unwrap();
        stream.shutdown().await.unwrap();
        drop(permit);
    });
}

struct Rig {
    address: SocketAddr,
    client: Arc<ClientConfig>,
    metrics: Arc<SocketMetrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Rig {
    async fn start(tls: bool, per_address: Option<usize>) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let bound = bind(&Listen { host: "127.0.0.1".into(), port: 0 }, &[]).await.unwrap();
        let (tasks, stop, metrics) = (TaskTracker::new(), CancellationToken::new(), Arc::<SocketMetrics>::default());
        let waited = Arc::<Waited>::default();
        let address = bound.address;
        let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(ring::default_provider());
        let server = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let options = ListenerOptions { tls: tls.then(|| Arc::new(server)), per_address, handshakes: HANDSHAKES, metrics: metrics.clone() };
        let (core, _ends) = Core::new(stop.clone());
        serve(bound, Arc::new(ArcSwap::from_pointee(options)), &Arc::new(Hello), &core, &tasks, &waited, &stop);
        Self { address, client: trusting(made.cert.der().clone()), metrics, tasks, stop }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn shake_hands(&self) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        TlsConnector::from(self.client.clone()).connect("localhost".try_into().unwrap(), self.connect().await).await
    }
}

fn trusting(certificate: CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    client.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth().into()
}

/// What comes until the end, orderly or not, and how long that took by the clock, which runs on by itself while nothing happens.
async fn until_the_end(mut stream: impl tokio::io::AsyncRead + Unpin) -> (String, Duration) {
    tokio::time::pause();
    let begun = Instant::now();
    let mut got = Vec::new();
    drop(stream.read_to_end(&mut got).await);
    tokio::time::resume();
    (String::from_utf8(got).unwrap(), begun.elapsed())
}

#[tokio::test]
async fn a_tls_handshake_that_does_not_get_on_is_broken_off() {
    let rig = Rig::start(true, None).await;
    for begun in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"] {
        let mut stream = rig.connect().await;
        stream.write_all(begun).await.unwrap();
        let (got, after) = until_the_end(stream).await;
        assert_eq!(got, "", "{begun:?}");
        assert!((HANDSHAKE_WITHIN..HANDSHAKE_WITHIN + Duration::from_secs(2)).contains(&after), "{begun:?} after {after:?}");
    }
    assert_eq!(rig.metrics.handshakes_failed.get(), 3);
}

#[tokio::test]
async fn a_head_that_does_not_get_on_is_broken_off_with_and_without_tls() {
    let rig = Rig::start(true, None).await;
    let mut stream = rig.shake_hands().await.unwrap();
    stream.write_all(&REQUEST[..20]).await.unwrap();
    let (_, after) = until_the_end(stream).await;
    assert!((HEAD_WITHIN..HEAD_WITHIN + Duration::from_secs(2)).contains(&after), "{after:?}");
    let rig = Rig::start(false, None).await;
    let mut stream = rig.connect().await;
    stream.write_all(&REQUEST[..20]).await.unwrap();
    let (_, after) = until_the_end(stream).await;
    assert!((HEAD_WITHIN..HEAD_WITHIN + Duration::from_secs(2)).contains(&after), "{after:?}");
}

#[tokio::test]
async fn whoever_speaks_plain_http_to_tls_is_told_so() {
    let rig = Rig::start(true, None).await;
    let mut stream = rig.connect().await;
    stream.write_all(REQUEST).await.unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).await.unwrap();
    assert!(got.starts_with("HTTP/1.1 400 "), "{got}");
    assert!(got.ends_with("\r\n\r\nTLS is served here: connect with https:// or wss://\n"), "{got}");
    assert_eq!(rig.metrics.handshakes_failed.get(), 1);
}

#[tokio::test]
async fn an_address_with_enough_sockets_gets_no_more_until_it_gives_one_back() {
    let rig = Rig::start(false, Some(2)).await;
    let hello = async || {
        // Refused sockets are reset at any moment.
        let mut stream = TcpStream::connect(rig.address).await.ok()?;
        stream.write_all(REQUEST).await.ok()?;
        let mut got = vec![0; 15];
        stream.read_exact(&mut got).await.ok()?;
        Some(stream)
    };
    let held = (hello().await.expect("a first"), hello().await.expect("a second"));
    assert!(hello().await.is_none() && hello().await.is_none());
    assert_eq!(rig.metrics.refused.get(), 2);
    drop(held.0);
    let again = async { while hello().await.is_none() {} };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("what is given back can be had again");
    drop(held.1);
}

#[tokio::test]
async fn a_stream_is_taken_over_behind_the_answer_and_with_what_came_early() {
    for tls in [false, true] {
        let rig = Rig::start(tls, Some(1)).await;
        let asked = [SWITCH, b"early"].concat();
        let mut got = String::new();
        if tls {
            let mut stream = rig.shake_hands().await.unwrap();
            stream.write_all(&asked).await.unwrap();
            stream.read_to_string(&mut got).await.unwrap();
        } else {
            let mut stream = rig.connect().await;
            stream.write_all(&asked).await.unwrap();
            stream.read_to_string(&mut got).await.unwrap();
        }
        assert!(got.starts_with("HTTP/1.1 101 ") && got.ends_with("\r\n\r\nearly"), "{got}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_the_answer_loses_the_stream_and_nobody_else_does() {
    let (takeover, begun) = (Mutex::new(None), Instant::now());
    let mut served = std::future::pending::<()>();
    let unbound = timeout(TAKEOVER_WITHIN * 2, until_taken_over(&mut served, &takeover));
    assert!(unbound.await.is_err(), "nothing is taken over");
    *takeover.lock() = Some(Box::new(echo) as Takeover);
    assert_eq!(until_taken_over(&mut served, &takeover).await, None);
    assert_eq!(begun.elapsed().as_secs(), (TAKEOVER_WITHIN * 3).as_secs());
    assert_eq!(until_taken_over(&mut std::future::ready(1), &takeover).await, Some(1));
}

#[tokio::test]
async fn what_is_written_is_not_delayed() {
    let bound = bind(&Listen { host: "127.0.0.1".into(), port: 0 }, &[]).await.unwrap();
    let (accepted, client) = tokio::join!(bound.sockets[0].accept(), TcpStream::connect(bound.address));
    drop(client.unwrap());
    assert!(accepted.unwrap().0.nodelay().unwrap());
}

#[tokio::test]
async fn handshakes_wait_while_too_many_are_under_way() {
    let rig = Rig::start(true, None).await;
    let mut begun = Vec::new();
    for _ in 0..HANDSHAKES {
        let mut stream = rig.connect().await;
        stream.write_all(b"\x16").await.unwrap();
        begun.push(stream);
    }
    // Those above may be seen later than the first of these; once they are, all that follow wait.
    let since = Instant::now();
    let waiting = loop {
        assert!(since.elapsed() < HANDSHAKE_WITHIN / 2, "none waits");
        let mut shaking = Box::pin(rig.shake_hands());
        let waits = async {
            while rig.metrics.handshakes_waited.get() == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            shaken = shaking.as_mut() => drop(shaken.unwrap()),
            () = waits => break shaking,
        }
    };
    drop(begun.pop());
    let mut stream = tokio::time::timeout(HANDSHAKE_WITHIN, waiting).await.unwrap().unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let mut got = vec![0; 15];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_crowd_that_says_nothing_keeps_nobody_out() {
    let rig = Rig::start(true, None).await;
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(rig.connect().await);
    }
    let mut stream = rig.shake_hands().await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let mut got = vec![0; 15];
    stream.read_exact(&mut got).await.unwrap();
    assert_eq!(got, b"HTTP/1.1 200 OK");
    // What hangs in a handshake does not hold up a stop.
    rig.stop.cancel();
    rig.tasks.close();
    drop(stream);
    tokio::time::timeout(Duration::from_secs(5), rig.tasks.wait()).await.unwrap();
    drop(crowd);
}
