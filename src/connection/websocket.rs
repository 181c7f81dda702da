//! WebSocket over tungstenite: sizes set by us, codes for what a client did wrong. Knows no protocol and no hub.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::error::{CapacityError, Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame as RawFrame};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::connection::transport::{Gone, Incoming, Outgoing, Transport};
use crate::model::Close;
use crate::protocol::Frame;

/// Bytes an idle connection keeps for reading.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Bytes collected before they are written without being asked to flush.
const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// Bytes read and thrown away after a fault, so that the close frame arrives.
const DRAIN_BYTES_MAX: usize = 64 << 20;

/// The server's end of a WebSocket.
pub struct WebSocket<S> {
    stream: WebSocketStream<S>,
    /// Nothing more is written.
    ended: bool,
    drained: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Takes over a socket after the handshake. `early` are bytes that came with it.
    pub async fn new(socket: S, early: Bytes, message_bytes_max: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max));
        let stream = WebSocketStream::from_partially_read(socket, early.into(), Role::Server, Some(config)).await;
        Self { stream, ended: false, drained: 0 }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Transport for WebSocket<S> {
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Incoming> {
        loop {
            let next = ready!(Pin::new(&mut self.stream).poll_next(cx));
            return Poll::Ready(match next {
                None => Incoming::Closed(Close::Lost),
                Some(Ok(Message::Text(text))) => match ByteString::try_from(Bytes::from(text)) {
                    Ok(text) => Incoming::Frame(Frame::Text(text)),
                    Err(_) => Incoming::Broken(Close::InvalidUtf8),
                },
                Some(Ok(Message::Binary(bytes))) => Incoming::Frame(Frame::Binary(bytes)),
                Some(Ok(Message::Pong(_))) => Incoming::Pong,
                Some(Ok(Message::Ping(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Close(None))) => Incoming::Closed(Close::ByClient(1005, String::new())),
                Some(Ok(Message::Close(Some(frame)))) => Incoming::Closed(Close::ByClient(frame.code.into(), frame.reason.to_string())),
                Some(Err(error)) => match fault(&error) {
                    Some(close) => Incoming::Broken(close),
                    None => Incoming::Closed(Close::Lost),
                },
            });
        }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        Pin::new(&mut self.stream).poll_ready(cx).map_err(|_| Gone)
    }

    fn start(&mut self, out: Outgoing) -> Result<(), Gone> {
        let message = match out {
            // As a ready-made frame: tungstenite would check the text's UTF-8 again, which ByteString promises already.
            Outgoing::Frame(Frame::Text(text)) => Message::Frame(RawFrame::message(text.into_bytes(), OpCode::Data(Data::Text), true)),
            Outgoing::Frame(Frame::Binary(bytes)) => Message::Binary(bytes),
            Outgoing::Ping => Message::Ping(Bytes::new()),
            Outgoing::Close(close) => {
                Message::Close(Some(CloseFrame { code: CloseCode::from(close.code()), reason: close.reason().to_owned().into() }))
            }
        };
        Pin::new(&mut self.stream).start_send(message).map_err(|_| Gone)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        Pin::new(&mut self.stream).poll_flush(cx).map_err(|_| Gone)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Our side is done: a client that waits for the end before it goes must see it.
        self.ended = self.ended || Pin::new(self.stream.get_mut()).poll_shutdown(cx).is_ready();
        let mut scratch = [0u8; 4096];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(self.stream.get_mut()).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() && self.drained < DRAIN_BYTES_MAX => self.drained += buffer.filled().len(),
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

/// What the client did wrong, if it did.
fn fault(error: &Error) -> Option<Close> {
    match error {
        Error::Capacity(CapacityError::MessageTooLong { .. } | CapacityError::TooManyHeaders) => Some(Close::TooLarge),
        Error::Utf8(_) => Some(Close::InvalidUtf8),
        Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake | ProtocolError::ReceivedAfterClosing | ProtocolError::SendAfterClosing,
        ) => None,
        Error::Protocol(_) | Error::AttackAttempt => Some(Close::ProtocolError),
        _ => None,
    }
}
