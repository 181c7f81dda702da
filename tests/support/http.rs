//! HTTP requests: one on a connection of its own, or many on one that is kept.

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::{shaped, soon};

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON, times replaced.
    pub fn json(&self) -> Value {
        shaped(serde_json::from_str(&self.body).unwrap_or_else(|why| panic!("{why}: {self:?}")))
    }

    /// A header, empty where it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The paths that a problem names, sorted.
    pub fn paths(&self) -> Vec<String> {
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        let json = self.json();
        let mut paths: Vec<String> =
            json["errors"].as_array().into_iter().flatten().map(|e| e["path"].as_str().unwrap().to_owned()).collect();
        paths.sort();
        paths
    }
}

/// Sends a request. A `host` among the headers takes the place of the right one.
pub async fn request(method: &str, url: &str, headers: &[(&str, &str)], body: Option<&str>) -> Answer {
    let stream = soon("connect", TcpStream::connect(split(url).0)).await.unwrap();
    request_over(stream, method, url, headers, body).await
}

/// The same over a stream that is there already.
pub async fn request_over(
    stream: impl super::client::Stream + 'static,
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> Answer {
    let (authority, path) = split(url);
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let driver = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path);
    if !headers.iter().any(|(name, _)| *name == "host") {
        request = request.header("host", authority);
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.unwrap_or_default().to_owned()))).unwrap();
    let (parts, body) = soon(url, sender.send_request(request)).await.unwrap().into_parts();
    let body = soon(url, body.collect()).await.unwrap().to_bytes();
    driver.abort();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

/// A connection that is kept for many requests.
pub struct KeptAlive {
    authority: String,
    sender: SendRequest<Full<Bytes>>,
}

impl KeptAlive {
    /// Connects to the address of an URL, where somebody must be.
    pub async fn connect(url: &str) -> Self {
        Self::try_connect(url).await.unwrap_or_else(|| panic!("nobody is at {url}"))
    }

    /// Connects to the address of an URL. None where nobody is there.
    pub async fn try_connect(url: &str) -> Option<Self> {
        let authority = split(url).0.to_owned();
        let stream = soon("connect", TcpStream::connect(&authority)).await.ok()?;
        // Requests are small and each waits for its answer.
        stream.set_nodelay(true).ok()?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        // Ends with the connection, by whichever side.
        tokio::spawn(connection);
        Some(Self { authority, sender })
    }

    /// Asks and waits for the answer. None: the connection has ended before it.
    pub async fn ask(&mut self, method: &str, path: &str, body: Option<&Value>) -> Option<Answer> {
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .body(Full::new(body))
            .unwrap();
        let answer = async {
            // The answer before may have come before the connection is free again.
            self.sender.ready().await.ok()?;
            let (parts, body) = self.sender.send_request(request).await.ok()?.into_parts();
            let body = body.collect().await.ok()?.to_bytes();
            Some(Answer { status: parts.status.as_u16(), headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() })
        };
        soon(path, answer).await
    }
}

/// Authority and path of an URL.
pub fn split(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").unwrap().1;
    let at = rest.find('/').unwrap_or(rest.len());
    (&rest[..at], if at == rest.len() { "/" } else { &rest[at..] })
}
