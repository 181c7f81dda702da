//! A WebSocket client as applications have it.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::http::split;
use super::{shaped, soon};

/// What a client speaks over: TCP, or TLS over it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// One connection.
pub struct Client {
    socket: WebSocketStream<Box<dyn Stream>>,
    fence: Value,
}

impl Client {
    /// Connects, and must be let in.
    pub async fn connect(url: &str) -> Self {
        Self::try_connect(url, &[]).await.unwrap_or_else(|status| panic!("{url}: {status}"))
    }

    /// Connects with headers of its own; the status where it is not let in.
    pub async fn try_connect(url: &str, headers: &[(&'static str, &str)]) -> Result<Self, u16> {
        let stream: Box<dyn Stream> = Box::new(soon("connect", TcpStream::connect(split(url).0)).await.unwrap());
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        match soon("handshake", client_async(request, stream)).await {
            Ok((socket, _)) => Ok(Self { socket, fence: json!({ "type": "ping" }) }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{url}: {error}"),
        }
    }

    /// Connects; none where nobody is there, or goes away meanwhile.
    pub async fn connect_or_end(url: &str) -> Option<Self> {
        let stream: Box<dyn Stream> = Box::new(soon("connect", TcpStream::connect(split(url).0)).await.ok()?);
        let (socket, _) = soon("handshake", client_async(url, stream)).await.ok()?;
        Some(Self { socket, fence: json!({ "type": "ping" }) })
    }

    /// Connects with a receive buffer so small that what is not read soon waits at the server.
    pub async fn connect_narrow(url: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let address = lookup_host(split(url).0).await.unwrap().find(SocketAddr::is_ipv4).unwrap();
        Self::over(soon("connect", socket.connect(address)).await.unwrap(), url).await
    }

    /// Over a stream that is there already.
    pub async fn over(stream: impl Stream + 'static, url: &str) -> Self {
        let stream: Box<dyn Stream> = Box::new(stream);
        let (socket, _) = soon("handshake", client_async(url, stream)).await.unwrap();
        Self { socket, fence: json!({ "type": "ping" }) }
    }

    /// The message that [`Client::expect_nothing`] sends: one that is answered by itself or with a `pong`.
    pub fn fenced_by(mut self, message: Value) -> Self {
        self.fence = message;
        self
    }

    /// Sends JSON.
    pub async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: &str) {
        self.send_frame(Message::text(text)).await;
    }

    /// Sends any frame.
    pub async fn send_frame(&mut self, message: Message) {
        soon("send", self.socket.send(message)).await.unwrap();
    }

    /// The next message, times replaced. Pings are answered on the way.
    pub async fn next(&mut self) -> Value {
        shaped(self.next_exact().await)
    }

    /// The next message as it came.
    pub async fn next_exact(&mut self) -> Value {
        match self.next_frame().await {
            Message::Text(text) => serde_json::from_str(&text).unwrap(),
            other => panic!("no text: {other:?}"),
        }
    }

    /// The next frame that is neither ping nor pong.
    pub async fn next_frame(&mut self) -> Message {
        loop {
            match soon("a frame", self.socket.next()).await.expect("the connection is open").unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                frame => return frame,
            }
        }
    }

    /// The next message as it came; none where the connection ends instead.
    pub async fn next_or_end(&mut self) -> Option<Value> {
        loop {
            match soon("a frame or the end", self.socket.next()).await? {
                Ok(Message::Text(text)) => return serde_json::from_str(&text).unwrap(),
                Ok(Message::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Sends; none where the connection has ended.
    pub async fn send_or_end(&mut self, message: &Value) -> Option<()> {
        soon("send", self.socket.send(Message::text(message.to_string()))).await.ok()
    }

    /// Sends, and gives the next message; none where the connection ends instead.
    pub async fn ask_or_end(&mut self, message: &Value) -> Option<Value> {
        self.send_or_end(message).await?;
        self.next_or_end().await
    }

    /// Sends and gives the answer.
    pub async fn ask(&mut self, message: &Value) -> Value {
        self.send(message).await;
        self.next().await
    }

    /// Nothing waits for this client: what it is sent next is the answer to what it sends now.
    pub async fn expect_nothing(&mut self) {
        let fence = self.fence.clone();
        let answer = self.ask(&fence).await;
        assert!(answer == fence || answer["type"] == "pong", "was sent {answer}");
    }

    /// The close frame that comes next, and answers it.
    pub async fn closed(&mut self) -> (u16, String) {
        match self.next_frame().await {
            Message::Close(Some(frame)) => (frame.code.into(), frame.reason.to_string()),
            other => panic!("no close: {other:?}"),
        }
    }

    /// Closes in order.
    pub async fn close(mut self) {
        soon("close", self.socket.close(None)).await.unwrap();
        self.drained().await;
    }

    /// Reads whatever is left until the end.
    pub async fn drained(&mut self) {
        while let Some(Ok(_)) = soon("the end", self.socket.next()).await {}
    }
}
