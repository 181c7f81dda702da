//! A reader of Server-Sent Events, as browsers have it.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream, lookup_host};

use super::http::split;
use super::soon;

/// One event of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Its name; `message` where it has none.
    pub name: String,
    /// The stream's last `id` up to here.
    pub id: String,
    /// Whether it came with an `id` of its own.
    pub placed: bool,
    /// Its data.
    pub data: String,
}

/// An open stream.
pub struct Sse {
    body: Incoming,
    text: String,
    id: String,
}

impl Sse {
    /// Opens an URL, coming back with the `id` that came last where there is one. None where nobody is there.
    pub async fn open(url: &str, last: Option<&str>) -> Option<Self> {
        let authority = split(url).0;
        let stream = soon("connect", TcpStream::connect(authority)).await.ok()?;
        Self::over(stream, url, last).await
    }

    /// Opens an URL with a receive buffer so small that what is not read soon waits at the server.
    pub async fn open_narrow(url: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address = lookup_host(split(url).0).await.unwrap().find(SocketAddr::is_ipv4).unwrap();
        let stream = soon("connect", socket.connect(address)).await.unwrap();
        Self::over(stream, url, None).await.unwrap()
    }

    async fn over(stream: TcpStream, url: &str, last: Option<&str>) -> Option<Self> {
        let (authority, path) = split(url);
        let (mut sender, connection) = http1::Builder::new().max_buf_size(8192).handshake(TokioIo::new(stream)).await.ok()?;
        // Ends with the stream.
        tokio::spawn(connection);
        let mut request = Request::builder().uri(path).header("host", authority).header("accept", "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = soon(url, sender.send_request(request.body(Empty::<Bytes>::new()).unwrap())).await.ok()?;
        assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &"text/event-stream".parse().unwrap()));
        Some(Self { body: response.into_body(), text: String::new(), id: last.unwrap_or_default().to_owned() })
    }

    /// The next event; none where the stream ends instead. Signs of life are no events.
    pub async fn next(&mut self) -> Option<Told> {
        soon("an event", self.event()).await
    }

    async fn event(&mut self) -> Option<Told> {
        loop {
            while let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                if let Some(told) = self.read(&block) {
                    return Some(told);
                }
            }
            let frame = self.body.frame().await?.ok()?;
            self.text.push_str(std::str::from_utf8(&frame.into_data().ok()?).unwrap());
        }
    }

    /// A block of lines. One without data is no event, and its `id` counts all the same.
    fn read(&mut self, block: &str) -> Option<Told> {
        let (mut name, mut data, mut placed) = ("message", None, false);
        for line in block.lines() {
            match line.split_once(": ") {
                Some(("event", value)) => name = value,
                Some(("id", value)) => (self.id, placed) = (value.to_owned(), true),
                Some(("data", value)) => data = Some(value.to_owned()),
                Some(("" | "retry", _)) | None => {}
                Some(_) => panic!("no line of an event: {line}"),
            }
        }
        Some(Told { name: name.to_owned(), id: self.id.clone(), placed, data: data? })
    }
}
