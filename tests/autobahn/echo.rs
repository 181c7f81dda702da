//! The server that Autobahn's suite tests: each message goes back, compressed where the client agreed. Prints its address, and
//! ends when its input does.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program for tests; its output is its interface")]

use std::io::{self, Read as _};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tramline::protocol::websocket::{Decoder, Received, Violation, close, compressed, message, negotiate, pong};

/// The suite's largest message is of 16 MiB.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

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

    let mut decoder = Decoder::new(MESSAGE_BYTES_MAX, extensions.is_some());
    let mut scratch = vec![0; 64 << 10];
    let mut input = &early[..];
    loop {
        while let Some((answer, is_last)) = answer(&mut decoder, &mut input, extensions.is_some()) {
            socket.write_all(&answer).await?;
            if is_last {
                socket.shutdown().await?;
                while socket.read(&mut scratch).await? > 0 {}
                return Ok(());
            }
        }
        match socket.read(&mut scratch).await? {
            0 => return Ok(()),
            n => input = &scratch[..n],
        }
    }
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

/// What goes back for the next thing in the input, and whether it is the last. None: nothing, until there is more.
fn answer(decoder: &mut Decoder, input: &mut &[u8], compresses: bool) -> Option<(Bytes, bool)> {
    loop {
        return Some(match decoder.next(input) {
            Ok(None) => return None,
            Ok(Some(Received::Pong)) => continue,
            Ok(Some(Received::Message(frame))) => (if compresses { compressed(&frame) } else { message(&frame) }, false),
            Ok(Some(Received::Ping(payload))) => (pong(&payload), false),
            Ok(Some(Received::Close(said))) => (said.map_or_else(|| close(1005, ""), |(code, _)| close(code, "")), true),
            Err(Violation::Protocol(why)) => (close(1002, why), true),
            Err(Violation::Utf8) => (close(1007, ""), true),
            Err(Violation::TooLarge) => (close(1009, ""), true),
        });
    }
}
