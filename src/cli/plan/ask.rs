//! Asks a running server: one request over HTTP or TLS, bounded in time and size. Knows nothing of what the answer is for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HOST};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::{faults, from_disk};
use crate::config::plan::{ApiPlan, Listen};
use crate::reload::{Refusal, Report};

/// The time for the whole request: the server reads its files, perhaps more than once.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The size of the answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The variable with the token. It is not an argument, because everybody on the machine can see those.
const TOKEN: &str = "TRAMLINE_TOKEN";

/// What a server would change if it read its files again. The error is text for people.
pub(super) fn ask(config: &Path, url: Option<&str>) -> Result<Box<Report>, String> {
    let loaded = from_disk(config)();
    let api = loaded.plan.as_ref().map(|plan| &plan.api);
    let url = match (url, api) {
        (Some(url), _) => url.to_owned(),
        (None, Some(api)) => address(api)?,
        (None, None) => return Err(faults(&loaded.diagnostics, &loaded.files)),
    };
    let token = std::env::var(TOKEN).ok().or_else(|| api.and_then(|api| api.token.as_ref()).map(|token| token.0.to_string()));
    let pinned = api.and_then(|api| api.tls.as_ref()).and_then(|tls| tls.pair.cert.first().cloned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| format!("cannot begin: {error}\n"))?;
    let asked = runtime.block_on(async { timeout(ANSWER_WITHIN, send(&url, token.as_deref(), pinned)).await });
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())));
    let (status, body) = asked.map_err(|why| format!("{url}: {why}\n"))?;
    read(status, &body).map_err(|why| format!("{url}: {why}\n"))
}

/// Where a server with this configuration can be reached from here.
fn address(api: &ApiPlan) -> Result<String, String> {
    if api.listen.port == 0 {
        return Err(
            "`api` in the routes file lets the system choose the port: pass the server's address with `--url http://localhost:PORT`\n"
                .into(),
        );
    }
    let host = match &*api.listen.host {
        "0.0.0.0" => "127.0.0.1".into(),
        "::" => "::1".into(),
        _ => api.listen.host.clone(),
    };
    let scheme = if api.tls.is_some() { "https" } else { "http" };
    Ok(format!("{scheme}://{}", Listen { host, port: api.listen.port }))
}

async fn send(url: &str, token: Option<&str>, pinned: Option<CertificateDer<'static>>) -> Result<(StatusCode, Bytes), String> {
    let wrong = || "this is not a valid server address: it must look like `http://localhost:4000`, without a path".to_owned();
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let (Some(authority), Some(host), "" | "/") = (uri.authority(), uri.host(), uri.path()) else { return Err(wrong()) };
    let (secure, usual) = match uri.scheme_str() {
        Some("http") => (false, 80),
        Some("https") => (true, 443),
        _ => return Err(wrong()),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port = uri.port_u16().unwrap_or(usual);
    let stream = TcpStream::connect((host, port)).await.map_err(|error| {
        format!("cannot be reached: {error}; if the running server has another address than the routes file says now, pass it with `--url`")
    })?;
    let mut request = Request::builder()
        .method(Method::POST)
        .uri("/api/reload?dry=true")
        .header(HOST, authority.as_str())
        .header(ACCEPT, "application/json")
        .header(CONTENT_LENGTH, 0);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Empty::new()).map_err(|_| "the token has characters that a header cannot have".to_owned())?;
    if !secure {
        return exchange(stream, request).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
    let stream = TlsConnector::from(Arc::new(trusting(pinned)?)).connect(name, stream).await;
    exchange(stream.map_err(|error| format!("no TLS connection: {error}"))?, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let failed = |error: hyper::Error| format!("no answer over HTTP: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await.map_err(failed)?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| format!("cannot read the answer: {error}"))?;
    Ok((head.status, body.to_bytes()))
}

/// Why a server did not do what it was asked to.
#[derive(Default, Deserialize)]
struct Problem {
    detail: Option<String>,
    refusal: Option<Refusal>,
}

/// The report in an answer, or what is wrong, in the server's words.
fn read(status: StatusCode, body: &[u8]) -> Result<Box<Report>, String> {
    if status == StatusCode::OK {
        return serde_json::from_slice(body)
            .map(Box::new)
            .map_err(|error| format!("the answer does not fit this version of tramline: {error}"));
    }
    let problem: Problem = serde_json::from_slice(body).unwrap_or_default();
    if let Some(refusal) = problem.refusal {
        return Err(format!("the reload would be refused\n{}", refusal.diagnostics.trim_end()));
    }
    let detail = problem.detail.unwrap_or_else(|| "no reason given".into());
    let hint = if status == StatusCode::UNAUTHORIZED {
        format!(" (the token is taken from {TOKEN} or from the routes file)")
    } else {
        String::new()
    };
    Err(format!("{} {detail}{hint}", status.as_u16()))
}

/// Trusts the certificate that the routes file names, whatever its name, and otherwise those of public authorities.
fn trusting(pinned: Option<CertificateDer<'static>>) -> Result<ClientConfig, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot use TLS: {error}");
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    let public = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().map_err(|error| failed(&error))?;
    let versions =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|error| failed(&error))?;
    let verifier = Arc::new(Known { pinned, public, provider });
    Ok(versions.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct Known {
    pinned: Option<CertificateDer<'static>>,
    public: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Exactly this certificate. Its signature below shows that the other side has the key.
        if self.pinned.as_ref().is_some_and(|pinned| pinned == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.public.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::config::Inputs;
    use crate::reload::Why;
    use crate::reload::report::Current;

    fn api(host: &str, port: u16) -> ApiPlan {
        ApiPlan { listen: Listen { host: host.into(), port }, tls: None, token: None, origins: Vec::new() }
    }

    #[test]
    fn a_server_that_listens_everywhere_is_asked_here() {
        for (host, url) in [("localhost", "localhost"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("10.0.0.1", "10.0.0.1")] {
            assert_eq!(address(&api(host, 4000)).unwrap(), format!("http://{url}:4000"));
        }
        assert!(address(&api("localhost", 0)).unwrap_err().contains("--url"));
    }

    #[test]
    fn what_a_server_answers_is_told() {
        let current = Current::new(1, "a".into(), 0, &Inputs::default());
        let report = Report { dry: true, current, changes: Vec::new(), ended: Default::default(), milliseconds: 1 };
        let answer = |status: StatusCode, body: Value| read(status, body.to_string().as_bytes());
        assert_eq!(*answer(StatusCode::OK, json!(report)).unwrap(), report);
        assert!(answer(StatusCode::OK, json!({})).unwrap_err().contains("this version"));
        let refused = json!({ "detail": "no", "refusal": Refusal::new(Why::Invalid, 0, "routes.yaml:1:1 error[R001] x\n") });
        let told = "the reload would be refused\nroutes.yaml:1:1 error[R001] x";
        assert_eq!(answer(StatusCode::UNPROCESSABLE_ENTITY, refused).unwrap_err(), told);
        assert_eq!(
            answer(StatusCode::NOT_FOUND, json!({ "detail": "there is no /api/reload" })).unwrap_err(),
            "404 there is no /api/reload"
        );
        assert!(answer(StatusCode::UNAUTHORIZED, json!({ "detail": "no token" })).unwrap_err().contains("TRAMLINE_TOKEN"));
        assert_eq!(read(StatusCode::BAD_GATEWAY, b"<html>").unwrap_err(), "502 no reason given");
    }

    /// A server behind a certificate for another name. It answers one request, and the task returns what it was asked.
    async fn secure() -> (String, CertificateDer<'static>, tokio::task::JoinHandle<String>) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["router.example".into()]).unwrap().self_signed(&key).unwrap().der().clone();
        let versions =
            ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().unwrap();
        let pair = (vec![certificate.clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap());
        let acceptor = TlsAcceptor::from(Arc::new(versions.with_no_client_auth().with_single_cert(pair.0, pair.1).unwrap()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else { return String::new() };
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
            stream.flush().await.unwrap();
            String::from_utf8(asked).unwrap().to_lowercase()
        });
        (url, certificate, serving)
    }

    #[tokio::test]
    async fn the_certificate_of_the_routes_file_is_trusted_and_no_other() {
        let (url, certificate, serving) = secure().await;
        let (status, body) = send(&url, Some("secret"), Some(certificate.clone())).await.unwrap();
        assert_eq!((status, &*body), (StatusCode::OK, &b"{}"[..]));
        let asked = serving.await.unwrap();
        assert!(
            asked.starts_with("post /api/reload?dry=true http/1.1\r\n") && asked.contains("\r\nauthorization: bearer secret\r\n"),
            "{asked}"
        );
        for pinned in [None, Some(certificate)] {
            let (url, _, serving) = secure().await;
            let why = send(&url, Some("secret"), pinned).await.unwrap_err();
            assert!(why.starts_with("no TLS connection: "), "{why}");
            assert_eq!(serving.await.unwrap(), "", "the token is sent to nobody");
        }
    }
}
