//! How it ends, and what the next start finds.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::raw::{FIN, Raw, TEXT};
use crate::support::{Ended, Server, Setup, until};

async fn publish(server: &Server, n: u32) -> Value {
    server.publish(&json!({ "channel": "custom:log", "data": { "n": n } })).await
}

async fn numbers(server: &Server) -> Vec<Value> {
    let history = server.get("/api/history?channel=custom:log").await.json();
    history["events"].as_array().unwrap().iter().map(|event| event["data"]["n"].clone()).collect()
}

fn ended_well(ended: &Ended) {
    assert_eq!(ended.code, Some(0), "{:?}", ended.log);
    let last = ended.log.last().unwrap();
    assert_eq!((&last["message"], &last["level"]), (&json!("stopped"), &json!("INFO")));
    let worst = ended.log.iter().find(|line| line["level"] == "WARN" || line["level"] == "ERROR");
    assert_eq!(worst, None);
}

#[tokio::test]
async fn either_signal_says_goodbye_to_every_client_and_exits_with_0() {
    for signal in ["TERM", "INT"] {
        let server = Setup::shipped().start();
        let mut clients = [server.client("workspace").await, server.client("agent").await, server.client("canvas").await];
        clients[2].next().await;
        server.signal(signal);
        for client in &mut clients {
            assert_eq!(client.closed().await.0, 1001, "{signal}");
        }
        drop(clients);
        ended_well(&server.wait());
    }
}

#[tokio::test]
async fn a_client_that_does_not_answer_the_goodbye_holds_up_nothing_for_long() {
    let server = Setup::shipped().start();
    let mut silent = Raw::open(server.url("workspace")).await;
    silent.send(FIN | TEXT, br#"{"type":"ping"}"#).await;
    silent.next().await.unwrap();
    let address = server.url("workspace").split('/').nth(2).unwrap().to_owned();
    server.signal("TERM");
    assert_eq!(silent.close_code().await, 1001);
    // Those who come meanwhile are told at once that nobody is there.
    let refused = async || TcpStream::connect(&address).await.is_err();
    until("nobody listens", refused, |refused| *refused).await;
    assert_eq!(server.wait().code, Some(0));
}

#[tokio::test]
async fn what_does_not_end_in_time_is_named() {
    let yaml = r#"
stop_within: 300ms
protocols:
  p:
    listen: localhost:0/
    codec: json
    type: /type
    client: "stubborn-{$uuid}"
    messages: { ping: { reply: { type: pong } } }
"#;
    let server = Setup::own(yaml).start();
    let mut silent = Raw::open(server.url("p")).await;
    silent.send(FIN | TEXT, br#"{"type":"ping"}"#).await;
    silent.next().await.unwrap();
    let ended = server.stop();
    assert_eq!(ended.code, Some(0));
    let named = ended.log.iter().find(|line| line["message"] == "did not end in time").expect("it is named");
    assert!(named["clients"].as_str().unwrap().contains("stubborn-"), "{named}");
    assert_eq!(silent.close_code().await, 1001);
}

#[tokio::test]
async fn a_client_that_has_not_sent_a_whole_request_is_not_waited_for() {
    let server = Setup::own("stop_within: 1h\n").start();
    let address = server.url("api").split('/').nth(2).unwrap().to_owned();
    let mut streams = Vec::new();
    let whole = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n");
    for (sent, is_answered) in [("", false), ("GET /healthz HT", false), (&whole, true), (&format!("{whole}GET /heal"), true)] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        if is_answered {
            assert_eq!(stream.read_u8().await.unwrap(), b'H');
        }
        streams.push(stream);
    }
    ended_well(&server.stop());
}

#[tokio::test]
async fn a_request_that_does_not_end_in_time_is_named_without_its_query() {
    let server = Setup::own("stop_within: 300ms\nchannels: { c: {} }\n").start();
    let address = server.url("api").split('/').nth(2).unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let head = format!(
        "POST /api/publish?token=secret HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The body is waited for.
    assert_eq!(stream.read_u8().await.unwrap(), b'H');
    let from = stream.local_addr().unwrap();
    let ended = server.stop();
    assert_eq!(ended.code, Some(0));
    let named = ended.log.iter().find(|line| line["message"] == "did not end in time").expect("it is named");
    assert_eq!(named["requests"], format!("[\"POST /api/publish from {from}\"]"), "{named}");
}

#[tokio::test]
async fn after_an_orderly_stop_channels_go_on_where_they_were() {
    let server = Setup::shipped().start();
    let mut before = Value::Null;
    for n in 1..=20 {
        before = publish(&server, n).await;
    }
    let ended = server.stop();
    ended_well(&ended);
    let server = ended.setup.start();
    let wanted: Vec<Value> = (1..=20).rev().map(Value::from).collect();
    assert_eq!(numbers(&server).await, wanted);
    let after = publish(&server, 21).await;
    assert_eq!((&after["offset"], &after["epoch"]), (&json!(21), &before["epoch"]));
}

#[tokio::test]
async fn after_a_kill_what_was_acknowledged_is_there_and_the_epoch_is_the_same() {
    let server = Setup::shipped().start();
    let before = publish(&server, 1).await;
    publish(&server, 2).await;
    let ended = server.kill();
    assert_eq!(ended.code, None);
    let server = ended.setup.start();
    assert_eq!(numbers(&server).await, [json!(2), json!(1)]);
    let after = publish(&server, 3).await;
    assert_eq!((&after["offset"], &after["epoch"]), (&json!(3), &before["epoch"]));
    assert_eq!(numbers(&server).await, [json!(3), json!(2), json!(1)]);
}

#[tokio::test]
async fn two_cannot_share_a_database() {
    let server = Setup::shipped().start();
    publish(&server, 1).await;
    let ended = server.setup().start_in_vain();
    assert_eq!(ended.code, Some(1));
    assert_eq!(publish(&server, 2).await["offset"], 2);
}
