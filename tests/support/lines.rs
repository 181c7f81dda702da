//! An answer of lines that is read as it comes.

use std::collections::VecDeque;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::http::split;
use super::soon;

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
        let stream = soon("connect", TcpStream::connect(authority)).await.unwrap();
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
