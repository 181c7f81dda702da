//! The TLS socket against a client of another kind, over loopback sockets too small for what is sent.

use std::future::poll_fn;
use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpSocket};
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

/// Bytes that the system keeps for a socket, or twice as many.
const SYSTEM_BYTES: u32 = 16 * 1024;

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(ring::default_provider());
    let server = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let server = server.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    (server.into(), client.with_root_certificates(roots).with_no_client_auth().into())
}

/// A socket and its client. The client writes `early` in one go with the end of its handshake.
async fn pair(early: &[u8]) -> (TlsSocket, ClientStream<TcpStream>) {
    let (server, client) = configs();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        SockRef::from(&tcp).set_send_buffer_size(SYSTEM_BYTES as usize).unwrap();
        TlsSocket::from(TlsAcceptor::from(server).accept(tcp).await.unwrap())
    });
    let tcp = TcpSocket::new_v4().unwrap();
    tcp.set_recv_buffer_size(SYSTEM_BYTES).unwrap();
    let tcp = tcp.connect(address).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let mut client = TlsConnector::from(client).connect("localhost".try_into().unwrap(), tcp).await.unwrap();
    client.write_all(early).await.unwrap();
    (accepted.await.unwrap(), client)
}

fn ciphertext(socket: &TlsSocket) -> usize {
    socket.session.lock().tls.process_new_packets().unwrap().tls_bytes_to_write()
}

fn is_readable(socket: &TlsSocket) -> bool {
    socket.poll_readable(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
}

fn blocks<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    (0..count as u64).map(|n| (n.wrapping_add(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Writes all of it, so many bytes in so many buffers at a time, and ends.
async fn send(socket: &TlsSocket, bytes: &[u8], sizes: &[(usize, usize)]) {
    let mut rest = bytes;
    for (size, buffers) in sizes.iter().cycle() {
        let (now, each) = (&rest[..rest.len().min(*size)], size.div_ceil(*buffers).max(1));
        if now.is_empty() {
            break;
        }
        let parts: Vec<IoSlice<'_>> = now.chunks(each).map(IoSlice::new).collect();
        match socket.try_write(&parts) {
            Ok(taken) => {
                assert!(0 < taken && taken <= now.len());
                rest = &rest[taken..];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => poll_fn(|cx| socket.poll_writable(cx)).await,
            Err(error) => panic!("{error}"),
        }
        assert!(ciphertext(socket) <= PIECE_BYTES_MAX + 4096);
    }
    socket.close();
    while blocks(socket.try_flush()) {
        poll_fn(|cx| socket.poll_writable(cx)).await;
    }
}

/// Reads until the end, so many bytes at a time.
async fn receive(socket: &TlsSocket, sizes: &[usize]) -> io::Result<Vec<u8>> {
    let mut got = Vec::new();
    for size in sizes.iter().cycle() {
        poll_fn(|cx| socket.poll_readable(cx)).await;
        let mut buffer = vec![0; *size];
        match socket.try_read(&mut buffer) {
            Ok(0) => return Ok(got),
            Ok(read) => got.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    unreachable!("no sizes")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_byte_arrives_both_ways(
        (out, r#in) in (0usize..400_000, 0usize..400_000),
        writes in prop::collection::vec((1usize..100_000, 1usize..5), 1..8),
        reads in prop::collection::vec(1usize..40_000, 1..8),
        client_writes in prop::collection::vec(1usize..40_000, 1..8),
        client_reads in prop::collection::vec(1usize..40_000, 1..8),
        stalls in 0usize..200,
    ) {
        let (outgoing, incoming) = (bytes(out, 1), bytes(r#in, 2));
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let (socket, client) = pair(b"").await;
            let (mut from, mut to) = split(client);
            let client_sends = async {
                let mut rest = &incoming[..];
                for size in client_writes.iter().cycle() {
                    let (now, later) = rest.split_at(rest.len().min(*size));
                    if now.is_empty() {
                        break;
                    }
                    to.write_all(now).await.unwrap();
                    rest = later;
                }
                to.shutdown().await.unwrap();
            };
            let client_receives = async {
                // The others get as far as they can meanwhile.
                for _ in 0..stalls {
                    tokio::task::yield_now().await;
                }
                let mut got = Vec::new();
                for size in client_reads.iter().cycle() {
                    let mut buffer = vec![0; *size];
                    match from.read(&mut buffer).await.unwrap() {
                        0 => break,
                        read => got.extend_from_slice(&buffer[..read]),
                    }
                }
                got
            };
            let (got_by_client, got, (), ()) =
                tokio::join!(client_receives, receive(&socket, &reads), send(&socket, &outgoing, &writes), client_sends);
            assert!(got_by_client == outgoing, "what the client got");
            assert!(got.unwrap() == incoming, "what the server got");
        });
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_one_piece_and_gets_all_of_it_later() {
    let (socket, mut client) = pair(b"").await;
    let all = bytes(4 << 20, 3);
    let mut taken = 0;
    // Until the system takes no more: what the client's side has room for takes a while to get there.
    for _ in 0..1000 {
        while let Ok(more) = socket.try_write(&[IoSlice::new(&all[taken..])]) {
            taken += more;
        }
        tokio::task::yield_now().await;
    }
    assert!(taken < all.len() / 2, "{taken} bytes were taken that nobody reads");
    let held = ciphertext(&socket);
    assert!(0 < held && held <= PIECE_BYTES_MAX + 4096, "{held} bytes of ciphertext");
    assert!(blocks(socket.try_flush()) && blocks(socket.try_write(&[IoSlice::new(b"more")])));
    assert_eq!(ciphertext(&socket), held, "refused bytes are not kept");
    let mut got = Vec::new();
    let mut reader = std::pin::pin!(async { client.read_to_end(&mut got).await.unwrap() });
    tokio::join!(reader.as_mut(), send(&socket, &all[taken..], &[(1 << 20, 1)]));
    assert!(got == all);
}

#[tokio::test]
async fn what_came_with_the_handshake_is_read_first() {
    let (socket, mut client) = pair(b"early").await;
    assert!(!socket.session.lock().tls.wants_read(), "it is in the session already, or this tests nothing");
    assert!(is_readable(&socket));
    let mut buffer = [0; 64];
    assert_eq!(socket.try_read(&mut buffer[..2]).unwrap(), 2);
    assert!(is_readable(&socket), "three bytes are left");
    assert_eq!(socket.try_read(&mut buffer[2..]).unwrap(), 3);
    assert_eq!(&buffer[..5], b"early");
    assert!(blocks(socket.try_read(&mut buffer)) && !is_readable(&socket));
    client.write_all(b"late").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(receive(&socket, &[3]).await.unwrap(), b"late");
    assert!(is_readable(&socket), "the end is told as often as it is asked for");
    assert_eq!(socket.try_read(&mut buffer).unwrap(), 0);
}

#[tokio::test]
async fn a_connection_that_is_cut_off_has_no_end() {
    let (socket, mut client) = pair(b"").await;
    client.write_all(b"half a mess").await.unwrap();
    // TCP ends in order, TLS does not.
    let (mut tcp, _) = client.into_inner();
    tcp.shutdown().await.unwrap();
    assert_eq!(receive(&socket, &[64]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn what_is_no_tls_breaks_the_connection_for_good() {
    let (socket, client) = pair(b"").await;
    let (mut tcp, _) = client.into_inner();
    tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(receive(&socket, &[64]).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(socket.try_write(&[IoSlice::new(b"more")]).unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn closing_twice_is_closing_once() {
    let (socket, mut client) = pair(b"").await;
    assert_eq!(socket.try_write(&[IoSlice::new(b"b"), IoSlice::new(b"ye")]).unwrap(), 3);
    socket.close();
    socket.close();
    let mut got = Vec::new();
    assert_eq!(client.read_to_end(&mut got).await.unwrap(), 3);
    assert_eq!(got, b"bye");
}
