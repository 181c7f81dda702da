//! Every line of the workspace protocol's page.

use serde_json::{Value, json};

use crate::support::raw::{FIN, PING, PONG, Raw};
use crate::support::{Client, SOME_TIME, Server, Setup};

async fn subscribed(server: &Server, channel: &str) -> Client {
    let mut client = server.client("workspace").await;
    let answer = client.ask(&json!({ "type": "subscribe", "channel": channel })).await;
    assert_eq!(answer, json!({ "type": "subscribed", "channel": channel, "timestamp": SOME_TIME }));
    client
}

fn event(channel: &str, data: &Value) -> Value {
    json!({ "type": "event", "channel": channel, "data": data, "timestamp": SOME_TIME })
}

/// Data that does not fit its channel, and the paths of what is wrong with it.
type Broken = (Value, &'static [&'static str]);

/// A channel, data that fits it, and data that does not.
fn channels() -> Vec<(&'static str, Value, Vec<Broken>)> {
    let problem = json!({ "file": "a.ts", "line": 3, "column": 7, "severity": "error", "message": "no" });
    let with = |key: &str, value: Value| {
        let mut wrong = problem.clone();
        wrong[key] = value;
        json!({ "diagnostics": [problem, wrong] })
    };
    vec![
        (
            "files",
            json!({ "file": "src/main.ts", "event": "change" }),
            vec![
                (json!({ "file": "src/main.ts", "event": "renamed" }), &["/data/event"]),
                (json!({ "file": 1, "event": "add" }), &["/data/file"]),
                (json!({ "file": 1, "event": 2 }), &["/data/event", "/data/file"]),
                (json!({ "file": "a", "event": "add", "timestamp": 5 }), &["/data/timestamp"]),
            ],
        ),
        (
            "diagnostics",
            json!({ "diagnostics": [problem, { "file": "b", "line": 1, "column": 1, "severity": "info", "message": "m", "code": "X1" }] }),
            vec![
                (with("severity", json!("fatal")), &["/data/diagnostics/1/severity"]),
                (with("line", json!("3")), &["/data/diagnostics/1/line"]),
                (json!({ "diagnostics": {} }), &["/data/diagnostics"]),
            ],
        ),
        (
            "ai-response",
            json!({ "id": "r", "chunk": "hello", "index": 0, "finished": false }),
            vec![
                (json!({ "id": "r", "chunk": "x", "index": -1, "finished": false }), &["/data/index"]),
                (json!({ "id": "r", "chunk": "x", "index": 0, "finished": "no" }), &["/data/finished"]),
            ],
        ),
        (
            "search",
            json!({ "query": "q", "count": 1, "total": 9, "results": [{ "file": "a" }] }),
            vec![(json!({ "query": "q", "count": "1", "total": 9, "results": [] }), &["/data/count"])],
        ),
        (
            "validation",
            json!({ "valid": true, "errors": [], "warnings": ["w"], "more": { "is": "kept" } }),
            vec![(json!({ "valid": 1, "errors": [], "warnings": [] }), &["/data/valid"])],
        ),
        ("git", json!({ "type": "commit", "message": "m" }), vec![(json!({ "type": "commit", "message": [] }), &["/data/message"])]),
        ("custom:build", json!({ "anything": [1, null, { "goes": true }] }), vec![(json!([1]), &["/data"]), (json!("text"), &["/data"])]),
    ]
}

#[tokio::test]
async fn every_channel_carries_its_events_and_refuses_broken_ones() {
    let server = Server::shipped();
    for (channel, good, broken) in channels() {
        let mut client = subscribed(&server, channel).await;
        for (data, paths) in broken {
            let answer = server.post("/api/publish", &json!({ "channel": channel, "data": data })).await;
            assert_eq!((answer.status, answer.paths()), (422, paths.iter().map(|p| (*p).to_owned()).collect()), "{channel} {data}");
        }
        client.expect_nothing().await;
        server.publish(&json!({ "channel": channel, "data": good })).await;
        let mut wanted = good.clone();
        if !channel.starts_with("custom:") {
            wanted["timestamp"] = SOME_TIME.into();
        }
        assert_eq!(client.next().await, event(channel, &wanted));
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn a_missing_member_is_named_too() {
    let server = Server::shipped();
    let answer = server.post("/api/publish", &json!({ "channel": "files", "data": { "event": "add" } })).await;
    assert_eq!((answer.status, answer.paths()), (422, vec!["/data/file".to_owned()]));
    assert_eq!(answer.json()["errors"][0]["message"], "is missing");
}

#[tokio::test]
async fn a_timestamp_that_the_publisher_gives_is_kept() {
    let server = Server::shipped();
    let mut client = subscribed(&server, "git").await;
    let data = json!({ "type": "branch", "message": "m", "timestamp": "2024-01-01T00:00:00.000Z", "also": 1 });
    server.publish(&json!({ "channel": "git", "data": data })).await;
    assert_eq!(client.next().await, event("git", &data));
}

#[tokio::test]
async fn pings_and_subscriptions_are_answered() {
    let server = Server::shipped();
    let mut client = subscribed(&server, "files").await;
    assert_eq!(client.ask(&json!({ "type": "ping" })).await, json!({ "type": "pong", "timestamp": SOME_TIME }));
    let left = client.ask(&json!({ "type": "unsubscribe", "channel": "files" })).await;
    assert_eq!(left, json!({ "type": "unsubscribed", "channel": "files", "timestamp": SOME_TIME }));
    let answer = server.publish(&json!({ "channel": "files", "data": { "file": "a", "event": "add" } })).await;
    assert_eq!(answer["delivered"], 0);
    client.expect_nothing().await;
}

#[tokio::test]
async fn subscribing_twice_delivers_once() {
    let server = Server::shipped();
    let mut client = subscribed(&server, "custom:a").await;
    let again = client.ask(&json!({ "type": "subscribe", "channel": "custom:a" })).await;
    assert_eq!(again["type"], "subscribed");
    server.publish(&json!({ "channel": "custom:a", "data": { "n": 1 } })).await;
    assert_eq!(client.next().await, event("custom:a", &json!({ "n": 1 })));
    client.expect_nothing().await;
    // One unsubscribe ends it.
    client.ask(&json!({ "type": "unsubscribe", "channel": "custom:a" })).await;
    server.publish(&json!({ "channel": "custom:a", "data": { "n": 2 } })).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn channels_that_are_not_the_workspaces_are_unknown() {
    let server = Server::shipped();
    let mut client = server.client("workspace").await;
    for channel in ["nope", "custom:", "agent", "agent:ide", "agent:inbox", "session:s", "user:u", "files2", "FILES", "*", "custom:*", ""] {
        for kind in ["subscribe", "unsubscribe"] {
            let answer = client.ask(&json!({ "type": kind, "channel": channel })).await;
            let unknown = json!({ "type": "error", "error": "unknown channel", "channel": channel, "timestamp": SOME_TIME });
            assert_eq!(answer, unknown, "{kind}");
        }
    }
    // Nothing of it has subscribed.
    server.publish(&json!({ "channel": "agent", "type": "x", "data": {} })).await;
    server.publish(&json!({ "session": "s", "type": "x", "data": {} })).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn chunks_of_an_answer_come_in_the_order_published() {
    let server = Server::shipped();
    let mut one = subscribed(&server, "ai-response").await;
    let mut two = subscribed(&server, "ai-response").await;
    for index in 0..50 {
        server
            .publish(&json!({ "channel": "ai-response", "data": { "id": "r", "chunk": "c", "index": index, "finished": index == 49 } }))
            .await;
    }
    for client in [&mut one, &mut two] {
        for index in 0..50 {
            let data = client.next().await["data"].clone();
            assert_eq!((&data["index"], &data["finished"]), (&json!(index), &json!(index == 49)));
        }
    }
}

#[tokio::test]
async fn mistakes_are_answered_and_the_connection_stays() {
    let server = Server::shipped();
    let mut client = subscribed(&server, "files").await;
    let told = |what: &str| json!({ "type": "error", "error": what, "timestamp": SOME_TIME });
    for text in ["not json", "", "{", "{\"type\":\"ping\"", "{\"type\":\"ping\"} x", "{'type':'ping'}", &"[".repeat(10_000)] {
        client.send_text(text).await;
        assert_eq!(client.next().await, told("invalid JSON"), "{:.40}", text);
    }
    for text in [
        "{}",
        "[]",
        "1",
        "null",
        "\"ping\"",
        "{\"type\":null}",
        "{\"type\":\"\"}",
        "{\"type\":\"Ping\"}",
        "{\"type\":\"publish\",\"channel\":\"files\"}",
        "{\"type\":{}}",
    ] {
        client.send_text(text).await;
        assert_eq!(client.next().await, told("unknown message type"), "{text}");
    }
    for message in [json!({ "type": "subscribe" }), json!({ "type": "subscribe", "channel": 5 }), json!({ "type": "unsubscribe" })] {
        let answer = client.ask(&message).await;
        assert_eq!(answer["type"], "error", "{message} {answer}");
    }
    server.publish(&json!({ "channel": "files", "data": { "file": "a", "event": "add" } })).await;
    assert_eq!(client.next().await["type"], "event");
    client.expect_nothing().await;
}

#[tokio::test]
async fn clients_do_not_see_each_other() {
    let server = Server::shipped();
    let mut files = subscribed(&server, "files").await;
    let mut git = subscribed(&server, "git").await;
    let mut none = server.client("workspace").await;
    none.send_text("broken").await;
    assert_eq!(none.next().await["type"], "error");
    server.publish(&json!({ "channel": "git", "data": { "type": "commit", "message": "m" } })).await;
    assert_eq!(git.next().await["channel"], "git");
    for client in [&mut files, &mut git, &mut none] {
        client.expect_nothing().await;
    }
    git.close().await;
    let answer = server.publish(&json!({ "channel": "files", "data": { "file": "a", "event": "unlink" } })).await;
    assert_eq!(answer["delivered"], 1);
    assert_eq!(files.next().await["data"]["event"], "unlink");
}

#[tokio::test]
async fn a_client_that_answers_pings_stays_and_one_that_does_not_goes() {
    let server = Setup::shipped().env("WORKSPACE_HEARTBEAT", "400ms").embed();
    let mut silent = Raw::open(server.url("workspace")).await;
    let mut polite = Raw::open(server.url("workspace")).await;
    let mut connections = 2;
    while connections > 1 {
        let (first, payload) = polite.next().await.expect("the polite client stays");
        assert_eq!(first, FIN | PING);
        polite.send(FIN | PONG, &payload).await;
        connections = server.get("/api/connections").await.json()["connections"].as_array().unwrap().len();
    }
    assert_eq!(silent.next().await.unwrap().0, FIN | PING);
    assert_eq!(silent.next().await, None);
    assert_eq!(polite.next().await.unwrap().0, FIN | PING);
}
