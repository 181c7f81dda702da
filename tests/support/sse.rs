//! Answers that are read as they come: Server-Sent Events, as the standard has them, and lines.

use std::collections::VecDeque;

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpSocket, lookup_host};
use tokio::task::JoinHandle;

use super::http::split;
use super::soon;

/// An open stream. It ends when this is dropped.
pub struct Events {
    /// The status of the answer.
    pub status: u16,
    /// Its headers.
    pub headers: HeaderMap,
    /// The last `id` of the stream.
    pub last: String,
    body: Incoming,
    text: String,
    driver: JoinHandle<()>,
}

/// One event of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// `event`, empty where it has none.
    pub name: String,
    /// `id`, where the event came with one.
    pub id: Option<String>,
    /// `data`.
    pub data: Value,
}

impl Drop for Events {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Events {
    /// Opens a stream; with `narrow` what is not read soon waits at the server.
    pub async fn open(url: &str, last: Option<&str>, narrow: bool) -> Self {
        Self::try_open(url, last, narrow).await.expect("the server answers")
    }

    /// The same; none where no server answers.
    pub async fn try_open(url: &str, last: Option<&str>, narrow: bool) -> Option<Self> {
        let (authority, path) = split(url);
        let socket = TcpSocket::new_v4().unwrap();
        if narrow {
            socket.set_recv_buffer_size(4096).unwrap();
        }
        let address = lookup_host(authority).await.unwrap().find(std::net::SocketAddr::is_ipv4).unwrap();
        let stream = soon("connect", socket.connect(address)).await.ok()?;
        let (mut sender, connection) = http1::Builder::new().max_buf_size(8192).handshake(TokioIo::new(stream)).await.ok()?;
        let driver = tokio::spawn(async move {
            // The server ends it, or we do.
            drop(connection.await);
        });
        let mut request = Request::builder().uri(path).header("host", authority).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (parts, body) = soon(url, sender.send_request(request)).await.ok()?.into_parts();
        let last = last.unwrap_or_default().to_owned();
        Some(Self { status: parts.status.as_u16(), headers: parts.headers, last, body, text: String::new(), driver })
    }

    /// The next event; none where the stream has ended. Signs of life are none.
    pub async fn next_or_end(&mut self) -> Option<Sent> {
        soon("an event", self.event()).await
    }

    async fn event(&mut self) -> Option<Sent> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.text = rest;
                if let Some(sent) = self.read(&block) {
                    return Some(sent);
                }
                continue;
            }
            let frame = self.body.frame().await?.ok()?;
            self.text.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
        }
    }

    /// The next event, which must come.
    pub async fn next(&mut self) -> Sent {
        self.next_or_end().await.expect("the stream is open")
    }

    /// The first event of every stream.
    pub async fn position(&mut self) -> Value {
        let sent = self.next().await;
        assert_eq!((&*sent.name, sent.id.as_deref()), ("position", sent.data["id"].as_str()));
        sent.data
    }

    /// The next events' data, of which `data.n` is a number.
    pub async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut found = Vec::new();
        for _ in 0..count {
            let sent = self.next().await;
            found.push(sent.data["data"]["n"].as_u64().unwrap_or_else(|| panic!("{sent:?}")));
        }
        found
    }

    fn read(&mut self, block: &str) -> Option<Sent> {
        let mut sent = Sent { name: String::new(), id: None, data: Value::Null };
        let mut data: Option<String> = None;
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("id", id)) => sent.id = Some(id.to_owned()),
                Some(("event", name)) => sent.name = name.to_owned(),
                Some(("data", more)) => {
                    assert!(data.is_none(), "the server writes one line: {block}");
                    data = Some(more.to_owned());
                }
                Some(("retry" | "", _)) => {}
                _ => panic!("no line of a stream: {line:?}"),
            }
        }
        if let Some(id) = &sent.id {
            self.last.clone_from(id);
        }
        sent.data = serde_json::from_str(&data?).unwrap();
        Some(sent)
    }
}

/// An answer of lines, read as they come.
pub struct Lines {
    body: Incoming,
    lines: VecDeque<String>,
    rest: String,
    driver: JoinHandle<()>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Lines {
    /// Asks for this kind of answer, which must be given.
    pub async fn open(url: &str, accept: &str) -> Self {
        let (authority, path) = split(url);
        let stream = soon("connect", tokio::net::TcpStream::connect(authority)).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder().uri(path).header("host", authority).header("accept", accept);
        let answer = soon(url, sender.send_request(request.body(Empty::<Bytes>::new()).unwrap())).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap()), (200, accept));
        Self { body: answer.into_body(), lines: VecDeque::new(), rest: String::new(), driver }
    }

    /// The next line; none at the end.
    pub async fn next(&mut self) -> Option<String> {
        while self.lines.is_empty() {
            let frame = soon("a line", self.body.frame()).await?.unwrap();
            self.rest.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
            let (whole, rest) = self.rest.rsplit_once('\n').unwrap_or(("", &self.rest));
            self.lines.extend(whole.lines().map(str::to_owned));
            self.rest = rest.to_owned();
        }
        self.lines.pop_front()
    }
}
