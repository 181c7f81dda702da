//! Another configuration takes the place of the one in use, while clients are connected: all of it or nothing, and whatever it does
//! not concern goes on.

mod addresses;
mod answers;
mod files;
mod history;
mod open;
mod scripts;

use std::collections::HashSet;
use std::fs;
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::support::{Answer, Authority, Client, Server, Setup, request};

const CHANNELS: &str = "channels: { \"room:{name}\": { history: true }, \"news:{name}\": {} }\n";

const CHAT: &str = r#"
  chat:
    listen: localhost:0/chat
    user: $query.user
    messages:
      join: { join: "{$.channel}", reply: { type: joined } }
      say: { to: "room:{$.room}", data: { text: $.text } }
      version: { reply: { version: 1 } }
      rare: { limit: 2/1h, reply: { type: rare } }
      ping: { reply: { type: pong } }
    error: { error: $error.message, code: $error.code }
"#;

const OTHER: &str = r#"
  other:
    listen: 127.0.0.1:0/other
    messages: { ping: { reply: { type: pong } } }
"#;

/// A routes file with this on top of what a test's server needs.
fn text(channels: &str, protocols: &str) -> String {
    format!("version: 1\napi: {{ listen: \"localhost:0\" }}\nstore: sqlite://t.db\n{channels}protocols:{protocols}")
}

fn setup(text: &str) -> Setup {
    Setup::own("").file("routes.yaml", text)
}

fn write(server: &Server, name: &str, text: &str) {
    fs::write(server.setup().path(name), text).unwrap();
}

async fn reload(server: &Server, query: &str) -> Answer {
    request("POST", &server.http("api", &format!("/api/reload{query}")), &[], None).await
}

/// Puts a routes file in place of the one in use; gives the report.
async fn become_(server: &Server, text: &str) -> Value {
    write(server, "routes.yaml", text);
    let answer = reload(server, "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn version(client: &mut Client) -> Value {
    client.ask(&json!({ "type": "version" })).await["version"].clone()
}

async fn join(client: &mut Client, channel: &str) -> Value {
    client.ask(&json!({ "type": "join", "channel": channel })).await
}

fn numbered(n: u32) -> String {
    text(CHANNELS, &CHAT.replace("version: 1", &format!("version: {n}")))
}
