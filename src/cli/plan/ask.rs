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
use rustls::pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::trust::{explain, trusting};
use super::{Planned, complain, faults, from_disk, refused};
use crate::config::plan::{ApiPlan, Listen};
use crate::reload::{Refusal, Report};

/// The time for the whole request: the server reads its files, perhaps more than once.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The size of the answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The variable with the token. It is not an argument, because everybody on the machine can see those.
const TOKEN: &str = "TRAMLINE_TOKEN";

/// Characters of an answer that is not JSON which are shown.
const SHOWN_CHARS: usize = 200;

/// Where the token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenFrom {
    Variable,
    RoutesFile,
    Nowhere,
}

impl TokenFrom {
    /// What to do if the server does not accept it.
    fn hint(self) -> String {
        match self {
            Self::Variable => format!("the token of {TOKEN} is not the one that the server runs with"),
            Self::RoutesFile => format!(
                "`api.token`, as the routes file has it now, is not the one that the server runs with; if it was changed since the \
                 server read it, set {TOKEN} to the one before"
            ),
            Self::Nowhere => format!("no token was sent; set {TOKEN} to the one that the server runs with"),
        }
    }
}

/// What a server would change if it read its files again. The error is text for people.
pub(super) fn ask(config: &Path, url: Option<&str>) -> Result<Planned, String> {
    let loaded = from_disk(config)();
    let api = loaded.plan.as_ref().map(|plan| &plan.api);
    let url = match (url, api) {
        (Some(url), _) => url.to_owned(),
        (None, Some(api)) => address(api)?,
        (None, None) => return Err(faults(&loaded.diagnostics, &loaded.files)),
    };
    // As everywhere, an empty variable counts as unset.
    let variable = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
    let written = api.and_then(|api| api.token.as_ref()).map(|token| token.0.to_string());
    let (token, from) = match (variable, written) {
        (Some(token), _) => (Some(token), TokenFrom::Variable),
        (None, Some(token)) => (Some(token), TokenFrom::RoutesFile),
        (None, None) => (None, TokenFrom::Nowhere),
    };
    let pinned = api.and_then(|api| api.tls.as_ref()).and_then(|tls| tls.pair.cert.first().cloned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| format!("cannot begin: {error}\n"))?;
    let asked = runtime.block_on(async { timeout(ANSWER_WITHIN, send(&url, token.as_deref(), pinned)).await });
    let asked = asked.unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())));
    let (status, body) = asked.map_err(|why| format!("{url}: {why}\n"))?;
    let report = match read(status, &body, from) {
        Ok(report) => report,
        Err(Failed { why, json: Some(json) }) => return Ok(Planned { changes: Vec::new(), failed: Some(format!("{url}: {why}\n")), json }),
        Err(Failed { why, json: None }) => return Err(format!("{url}: {why}\n")),
    };
    let read = &report.current.routes_file;
    if !is_same(config, Path::new(read)) {
        let here = config.display();
        complain(&format!(
            "note: the server reads {read}, not {here}: this is what it would change; to compare two files, use `--against FILE`\n"
        ));
    }
    let json = json!(report);
    Ok(Planned { changes: report.changes, failed: None, json })
}

/// Whether two paths lead to one file.
fn is_same(here: &Path, there: &Path) -> bool {
    std::path::absolute(here).is_ok_and(|here| here == there)
        || here.canonicalize().is_ok_and(|here| there.canonicalize().is_ok_and(|there| here == there))
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
    exchange(stream.map_err(|error| explain(&error))?, request).await
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, Bytes), String> {
    let failed = |error: hyper::Error| match error {
        error if error.is_parse() => "the answer is not HTTP; over TLS the address begins with `https://`".to_owned(),
        error if error.is_incomplete_message() => "the server closed the connection without an answer".to_owned(),
        error => format!("no answer over HTTP: {error}"),
    };
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

/// What is wrong, in the server's words.
#[derive(Debug, PartialEq)]
struct Failed {
    why: String,
    /// The answer, if it is a JSON object.
    json: Option<Value>,
}

/// The report in an answer, or what is wrong.
fn read(status: StatusCode, body: &[u8], token: TokenFrom) -> Result<Box<Report>, Failed> {
    if status == StatusCode::OK {
        let unfit = |error| Failed { why: format!("the answer does not fit this version of tramline: {error}"), json: None };
        return serde_json::from_slice(body).map(Box::new).map_err(unfit);
    }
    let json = serde_json::from_slice::<Value>(body).ok().filter(Value::is_object);
    let problem: Problem = json.clone().and_then(|json| serde_json::from_value(json).ok()).unwrap_or_default();
    if let Some(refusal) = problem.refusal {
        return Err(Failed { why: refused(&refusal).trim_end().to_owned(), json });
    }
    let detail = problem.detail.or_else(|| first_line(body));
    let detail = detail.unwrap_or_else(|| "without a reason; is this the address of a Tramline server's REST interface?".into());
    let hint = if status == StatusCode::UNAUTHORIZED { format!(" ({})", token.hint()) } else { String::new() };
    Err(Failed { why: format!("{} {detail}{hint}", status.as_u16()), json })
}

/// The first line of an answer in plain text.
fn first_line(body: &[u8]) -> Option<String> {
    let line = std::str::from_utf8(body).ok()?.lines().next()?.trim();
    let is_plain = !line.is_empty() && !line.starts_with('<') && !line.contains(char::is_control);
    is_plain.then(|| line.chars().take(SHOWN_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use rustls::ServerConfig;
    use rustls::crypto::ring;
    use rustls::pki_types::PrivateKeyDer;
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
        let answer = |status: StatusCode, body: &Value| read(status, body.to_string().as_bytes(), TokenFrom::RoutesFile);
        assert_eq!(*answer(StatusCode::OK, &json!(report)).unwrap(), report);
        assert!(answer(StatusCode::OK, &json!({})).unwrap_err().why.contains("this version"));
        let refused = json!({ "detail": "no", "refusal": Refusal::new(Why::Invalid, 0, "routes.yaml:1:1 error[R001] x\n") });
        let told = "the reload would be refused\nroutes.yaml:1:1 error[R001] x".to_owned();
        let failed = answer(StatusCode::CONFLICT, &refused).unwrap_err();
        assert_eq!(failed, Failed { why: told, json: Some(refused) }, "programs get the answer as it is");
        let why = |status, body: &Value| answer(status, body).unwrap_err().why;
        assert_eq!(why(StatusCode::NOT_FOUND, &json!({ "detail": "there is no /api/reload" })), "404 there is no /api/reload");
        let plain = |status, body: &str| read(status, body.as_bytes(), TokenFrom::Nowhere).unwrap_err();
        assert_eq!(
            plain(StatusCode::BAD_REQUEST, "TLS is served here: use https://\n"),
            Failed { why: "400 TLS is served here: use https://".into(), json: None }
        );
        for body in ["<html>", "", "\u{1b}[2J", "\n"] {
            assert!(plain(StatusCode::BAD_GATEWAY, body).why.starts_with("502 without a reason"), "{body}");
        }
        // Whose token it was is said, because only then can it be put right.
        for (from, told) in
            [(TokenFrom::Variable, "of TRAMLINE_TOKEN"), (TokenFrom::RoutesFile, "`api.token`"), (TokenFrom::Nowhere, "no token")]
        {
            let failed = read(StatusCode::UNAUTHORIZED, br#"{"detail":"no"}"#, from).unwrap_err();
            assert!(failed.why.starts_with("401 no (") && failed.why.contains(told), "{failed:?}");
        }
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
            assert!(why.starts_with("no TLS connection: the server's certificate is not trusted: "), "{why}");
            assert_eq!(serving.await.unwrap(), "", "the token is sent to nobody");
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_speak_tls_is_named_as_one() {
        for (answer, told) in [("HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"), ("", "closed the connection")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("https://{}", listener.local_addr().unwrap());
            let serving = tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                // All of it, or the end would be a reset.
                assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let why = send(&url, None, None).await.unwrap_err();
            assert!(why.starts_with("no TLS connection: ") && why.contains(told), "{why}");
            serving.await.unwrap();
        }
    }
}
