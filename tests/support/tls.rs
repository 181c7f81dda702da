//! Certificates made for one test, and clients that trust nobody else's.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http::{request_over, split};
use super::{Answer, Client, Setup, soon};

/// A certificate for `localhost` that signs itself, and its key.
pub struct Authority {
    /// The certificate as PEM.
    pub cert: String,
    /// The key as PEM.
    pub key: String,
    der: CertificateDer<'static>,
}

impl Authority {
    /// A new one, like no other.
    pub fn new() -> Self {
        Self::of(Self::params())
    }

    /// A new one whose certificate expires in so many hours.
    pub fn expiring(hours: u64) -> Self {
        let mut params = Self::params();
        params.not_after = date_time_ymd(1970, 1, 1) + UNIX_EPOCH.elapsed().unwrap() + Duration::from_secs(hours * 3600);
        Self::of(params)
    }

    fn params() -> CertificateParams {
        CertificateParams::new(["localhost".into(), "127.0.0.1".into()]).unwrap()
    }

    fn of(params: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let cert = params.self_signed(&key).unwrap();
        Self { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().clone() }
    }

    /// Puts both files into the folder of a server that is to be.
    pub fn in_folder(&self, setup: Setup) -> Setup {
        setup.file("tls/tls.crt", &self.cert).file("tls/tls.key", &self.key)
    }

    /// The same where the server runs already, each file in one go.
    pub fn replace(&self, setup: &Setup) {
        for (name, text) in [("tls/tls.crt", &self.cert), ("tls/tls.key", &self.key)] {
            replace(&setup.path(name), text);
        }
    }

    /// TLS over a stream to a server that must have this certificate.
    pub async fn over(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let connecting = TlsConnector::from(Arc::new(config)).connect("localhost".try_into().unwrap(), stream);
        soon("TLS handshake", connecting).await
    }

    /// TLS to the address of an URL.
    pub async fn connect(&self, url: &str) -> io::Result<TlsStream<TcpStream>> {
        self.over(soon("connect", TcpStream::connect(split(url).0)).await.unwrap()).await
    }

    /// A WebSocket client.
    pub async fn client(&self, url: &str) -> Client {
        assert!(url.starts_with("wss://"), "{url}");
        Client::over(self.connect(url).await.unwrap(), url).await
    }

    /// A WebSocket client with a receive buffer so small that what is not read soon waits at the server.
    pub async fn client_narrow(&self, url: &str) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address = lookup_host(split(url).0).await.unwrap().find(SocketAddr::is_ipv4).unwrap();
        let stream = soon("connect", socket.connect(address)).await.unwrap();
        Client::over(self.over(stream).await.unwrap(), url).await
    }

    /// A request on a connection of its own.
    pub async fn request(&self, method: &str, url: &str, body: Option<&Value>) -> Answer {
        assert!(url.starts_with("https://"), "{url}");
        let body = body.map(Value::to_string);
        let headers = [("content-type", "application/json")];
        request_over(self.connect(url).await.unwrap(), method, url, &headers, body.as_deref()).await
    }
}

/// Puts another file in the place of one.
pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, path).unwrap();
}
