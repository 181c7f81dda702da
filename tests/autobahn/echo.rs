//! The server that Autobahn's suite tests: the connection engine without a router. Each message goes back, compressed where the
//! client agreed. Prints its address, and
//! ends when its input does.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for tests; its output is its interface")]

use std::future::poll_fn;
use std::io::{self, Read as _};
use std::task::Poll;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tramline::connection::reader::{Read, Reader, Taken};
use tramline::hub::{Lifecycle, Outbox};
use tramline::model::Close;
use tramline::protocol::wire::websocket::negotiate;
use tramline::protocol::wire::{Received, Wire};

/// The suite's largest message is of 16 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
const OUTBOX_BYTES_MAX: usize = 64 << 20;

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ws://{}", listener.local_addr()?);
    std::thread::spawn(|| {
        io::stdin().read_to_end(&mut Vec::new()).ok();
        std::process::exit(0);
    });
    loop {
        let (socket, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A client that goes away in the middle is what some cases are about.
            serve(socket).await.ok();
        });
    }
}

async fn serve(mut socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (request, early) = request(&mut socket).await?;
    let values = |name: &'static str| {
        request.lines().filter_map(move |line| line.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()))
    };
    let accept = derive_accept_key(values("Sec-WebSocket-Key").next().unwrap_or_default().as_bytes());
    let extensions = negotiate(values("Sec-WebSocket-Extensions"));
    let line = extensions.map(|extensions| format!("Sec-WebSocket-Extensions: {extensions}\r\n")).unwrap_or_default();
    let switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    socket.write_all(format!("{switching}Sec-WebSocket-Accept: {accept}\r\n{line}\r\n").as_bytes()).await?;

    let outbox = Outbox::new(Wire::WebSocket { compress: extensions.map(|_| 0) }, OUTBOX_BYTES_MAX);
    outbox.attach(Box::new(socket));
    let mut reader = Reader::new(early.into(), outbox.wire(), MESSAGE_BYTES_MAX);
    let told = |received| {
        match received {
            Received::Message(frame) => {
                let wire = outbox.wire().message(&frame);
                outbox.push_joint(wire, 1, frame.len() as u64, || Close::Internal);
            }
            Received::Ping(payload) => outbox.pong(&payload, || Close::Internal),
            Received::Pong | Received::Close(_) => {}
        }
        Taken::More
    };
    // As a connection's task does, without a router.
    poll_fn(|cx| {
        loop {
            let progress = outbox.poll_write(cx, true);
            let is_answered = progress.lifecycle == Lifecycle::Answering && progress.written;
            if is_answered || progress.lifecycle == Lifecycle::Ended {
                return Poll::Ready(());
            }
            let socket = match reader.poll_ready(cx, &outbox, &progress) {
                Poll::Ready(socket) => socket,
                Poll::Pending if outbox.can_write() => continue,
                Poll::Pending => return Poll::Pending,
            };
            match reader.read(&*socket, progress.lifecycle, &mut { told }) {
                Read::Last(transition, close) => outbox.advance(transition, close),
                Read::Ended => return Poll::Ready(()),
                Read::Some | Read::Enough => {}
            }
        }
    })
    .await;
    Ok(())
}

/// A request's head, and what came behind it.
async fn request(socket: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
            let early = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), early));
        }
        if socket.read_buf(&mut bytes).await? == 0 || bytes.len() > 64 << 10 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}
