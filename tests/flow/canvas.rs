//! Every line of the canvas protocol's page but tokens.

use serde_json::{Value, json};

use crate::support::raw::{FIN, PING, Raw};
use crate::support::{Client, SOME_TIME, Server, Setup, request};

/// A client with a query, after its greeting; and its id.
pub async fn greeted(server: &Server, query: &str) -> (Client, String) {
    let mut client = Client::connect(&format!("{}{query}", server.url("canvas"))).await;
    let mut greeting = client.next().await;
    let id = greeting["clientId"].as_str().unwrap().to_owned();
    greeting["clientId"] = "…".into();
    assert_eq!(greeting, json!({ "type": "connection", "status": "connected", "clientId": "…", "timestamp": SOME_TIME }));
    (client, id)
}

async fn publish_to(server: &Server, session: &str, kind: &str, data: Value) -> Value {
    server.publish(&json!({ "session": session, "type": kind, "data": data })).await
}

async fn stats(server: &Server) -> Value {
    let answer = request("GET", &server.http("canvas", "/api/ws/stats"), &[], None).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, "application/json"));
    answer.json()
}

#[tokio::test]
async fn the_id_is_made_of_the_time_and_something_random() {
    let server = Server::shipped();
    let (_one, first) = greeted(&server, "").await;
    let (_two, second) = greeted(&server, "").await;
    let parts: Vec<&str> = first.split('_').collect();
    assert_eq!((parts.len(), parts[0]), (3, "client"), "{first}");
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    assert!(now_ms.abs_diff(parts[1].parse().unwrap()) < 60_000, "{first}");
    assert!(parts[2].len() >= 6 && parts[2].chars().all(|c| c.is_ascii_alphanumeric()), "{first}");
    assert_ne!(first, second);
}

#[tokio::test]
async fn pings_and_mistakes_are_answered() {
    let server = Server::shipped();
    let (mut client, _) = greeted(&server, "").await;
    assert_eq!(client.ask(&json!({ "type": "ping", "more": 1 })).await, json!({ "type": "pong", "timestamp": SOME_TIME }));
    for text in [
        "nonsense",
        "{}",
        "{\"type\":\"nope\"}",
        "{\"type\":\"subscribe\"}",
        "{\"type\":\"subscribe\",\"sessionId\":7}",
        "{\"type\":\"subscribe\",\"sessionId\":\"\"}",
    ] {
        client.send_text(text).await;
        let mut answer = client.next().await;
        let what = answer["error"].as_str().unwrap_or_else(|| panic!("{text}: {answer}")).to_owned();
        assert!(!what.is_empty());
        answer["error"] = "…".into();
        assert_eq!(answer, json!({ "type": "error", "error": "…", "timestamp": SOME_TIME }), "{text}");
    }
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_connection_has_one_session_at_a_time() {
    let server = Server::shipped();
    let (mut client, id) = greeted(&server, "?sessionId=first").await;
    let session = |server: &Server| {
        let path = format!("/api/connections/{id}");
        let url = server.http("api", &path);
        async move { request("GET", &url, &[], None).await.json()["session"].clone() }
    };
    let message = json!({ "anything": true });
    assert_eq!(publish_to(&server, "first", "note", message.clone()).await["delivered"], 1);
    assert_eq!(client.next().await, json!({ "type": "note", "anything": true, "sessionId": "first", "timestamp": SOME_TIME }));

    let answer = client.ask(&json!({ "type": "subscribe", "sessionId": "second" })).await;
    assert_eq!(answer, json!({ "type": "subscribed", "sessionId": "second", "timestamp": SOME_TIME }));
    assert_eq!(session(&server).await, "second");
    assert_eq!(publish_to(&server, "first", "note", message.clone()).await["delivered"], 0);
    assert_eq!(publish_to(&server, "second", "note", message.clone()).await["delivered"], 1);
    assert_eq!(client.next().await["sessionId"], "second");

    // The same session again delivers once.
    client.ask(&json!({ "type": "subscribe", "sessionId": "second" })).await;
    assert_eq!(publish_to(&server, "second", "note", message.clone()).await["delivered"], 1);
    client.next().await;

    assert_eq!(client.ask(&json!({ "type": "unsubscribe" })).await, json!({ "type": "unsubscribed", "timestamp": SOME_TIME }));
    assert_eq!(session(&server).await, Value::Null);
    assert_eq!(publish_to(&server, "second", "note", message).await["delivered"], 0);
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_refused_subscription_leaves_the_session_as_it_was() {
    let server = Server::shipped();
    let (mut client, _) = greeted(&server, "?sessionId=kept").await;
    for wrong in [
        json!({ "type": "subscribe" }),
        json!({ "type": "subscribe", "sessionId": "x".repeat(201) }),
        json!({ "type": "subscribe", "sessionId": "no*star" }),
    ] {
        assert_eq!(client.ask(&wrong).await["type"], "error", "{wrong}");
    }
    publish_to(&server, "kept", "note", json!({})).await;
    assert_eq!(client.next().await["sessionId"], "kept");
}

/// The table of what the server sends: type, its further keys, and the same broken.
fn events() -> Vec<(&'static str, Value, Value, &'static str)> {
    let all = [
        (
            "ai_start",
            json!({ "task": { "prompt": "p", "mode": "m", "targetFile": "f" } }),
            json!({ "task": { "prompt": "p" } }),
            "/data/task/mode",
        ),
        (
            "ai_start",
            json!({ "task": { "prompt": "p", "mode": "m" } }),
            json!({ "task": { "prompt": 1, "mode": "m" } }),
            "/data/task/prompt",
        ),
        (
            "ai_progress",
            json!({ "progress": { "chunksReceived": 2, "contentLength": 90 } }),
            json!({ "progress": { "chunksReceived": "2", "contentLength": 90 } }),
            "/data/progress/chunksReceived",
        ),
        (
            "ai_complete",
            json!({ "result": { "mode": "m", "contentLength": 4, "chunks": 1, "targetFile": "f" } }),
            json!({ "result": { "mode": "m", "contentLength": -4, "chunks": 1 } }),
            "/data/result/contentLength",
        ),
        ("ai_error", json!({ "error": { "message": "m", "type": "t" } }), json!({}), "/data/error"),
        ("ai_error", json!({ "error": { "message": "m", "type": "t" } }), json!({ "error": "m" }), "/data/error"),
    ];
    all.into()
}

#[tokio::test]
async fn a_session_gets_its_events_and_no_broken_ones() {
    let server = Server::shipped();
    let (mut here, _) = greeted(&server, "?sessionId=s").await;
    let (mut elsewhere, _) = greeted(&server, "?sessionId=other&userId=s").await;
    for (kind, good, broken, path) in events() {
        for target in [json!({ "session": "s" }), json!({ "channel": "session:s" })] {
            let body = |data: &Value| {
                let mut body = target.clone();
                body["type"] = kind.into();
                body["data"] = data.clone();
                body
            };
            let refused = server.post("/api/publish", &body(&broken)).await;
            assert_eq!((refused.status, refused.paths()), (422, vec![path.to_owned()]), "{kind} {broken}");
            server.publish(&body(&good)).await;
            let mut wanted = good.clone();
            wanted["type"] = kind.into();
            wanted["sessionId"] = "s".into();
            wanted["timestamp"] = SOME_TIME.into();
            assert_eq!(here.next().await, wanted);
        }
    }
    here.expect_nothing().await;
    elsewhere.expect_nothing().await;
}

#[tokio::test]
async fn a_notification_reaches_all_connections_of_its_user() {
    let server = Server::shipped();
    let (mut first, _) = greeted(&server, "?userId=ann&sessionId=1").await;
    let (mut second, _) = greeted(&server, "?userId=ann").await;
    let (mut other, _) = greeted(&server, "?userId=bob&sessionId=ann").await;
    let (mut nobody, _) = greeted(&server, "").await;
    let answer = server.publish(&json!({ "user": "ann", "type": "notification", "data": { "message": "hello" } })).await;
    assert_eq!(answer["delivered"], 2);
    for client in [&mut first, &mut second] {
        assert_eq!(client.next().await, json!({ "type": "notification", "message": "hello", "timestamp": SOME_TIME }));
        client.expect_nothing().await;
    }
    other.expect_nothing().await;
    nobody.expect_nothing().await;
    let refused = server.post("/api/publish", &json!({ "user": "ann", "type": "notification", "data": { "text": "hello" } })).await;
    assert_eq!((refused.status, refused.paths()), (422, vec!["/data/message".to_owned()]));
    first.expect_nothing().await;
}

#[tokio::test]
async fn names_that_make_no_channel_are_no_audience() {
    let server = Server::shipped();
    let (mut client, _) = greeted(&server, "?userId=&sessionId=").await;
    let (mut odd, _) = greeted(&server, "?userId=a%3Ab%2Fc&sessionId=%C3%BC").await;
    client.expect_nothing().await;
    server.publish(&json!({ "user": "a:b/c", "type": "notification", "data": { "message": "m" } })).await;
    assert_eq!(odd.next().await["type"], "notification");
    publish_to(&server, "ü", "note", json!({})).await;
    assert_eq!(odd.next().await["sessionId"], "ü");
}

#[tokio::test]
async fn what_a_page_missed_can_be_read_back() {
    let server = Server::shipped();
    for n in 0..3 {
        publish_to(&server, "s", "ai_progress", json!({ "progress": { "chunksReceived": n, "contentLength": 1 } })).await;
    }
    let (mut late, _) = greeted(&server, "?sessionId=s").await;
    late.expect_nothing().await;
    let history = server.get("/api/history?channel=session:s").await.json();
    let events = history["events"].as_array().unwrap();
    assert_eq!(history["next"], Value::Null);
    assert_eq!(events.len(), 3);
    let newest = &events[0];
    assert_eq!(newest["data"], json!({ "progress": { "chunksReceived": 2, "contentLength": 1 }, "sessionId": "s" }));
    assert_eq!(
        (&newest["channel"], &newest["type"], &newest["offset"], &newest["source"], &newest["time"]),
        (&json!("session:s"), &json!("ai_progress"), &json!(3), &json!("api"), &json!(SOME_TIME))
    );
}

#[tokio::test]
async fn the_statistics_page() {
    let server = Server::shipped();
    assert_eq!(stats(&server).await, json!({ "totalConnections": 0, "activeConnections": 0, "clients": [] }));
    let (one, first) = greeted(&server, "?userId=user_123&sessionId=session_456").await;
    let (_two, second) = greeted(&server, "").await;
    let whole = json!({
        "totalConnections": 2,
        "activeConnections": 2,
        "clients": [
            { "id": first, "userId": "user_123", "sessionId": "session_456", "isAlive": true, "state": 1 },
            { "id": second, "isAlive": true, "state": 1 },
        ],
    });
    assert_eq!(stats(&server).await, whole);
    one.close().await;
    let after = crate::support::until("the client is gone", || stats(&server), |s| s["activeConnections"] == 1).await;
    assert_eq!((&after["totalConnections"], &after["clients"][0]["id"]), (&json!(2), &json!(second)));
    // The workspace's connections are not the canvas's.
    let _other = server.client("workspace").await;
    assert_eq!(stats(&server).await, after);
    let ended = server.stop();
    assert_eq!(ended.code, Some(0));
    let again = ended.setup.embed();
    assert_eq!(stats(&again).await, json!({ "totalConnections": 2, "activeConnections": 0, "clients": [] }));
    let (_three, _) = greeted(&again, "").await;
    assert_eq!(stats(&again).await["totalConnections"], 3);
}

#[tokio::test]
async fn messages_of_several_megabytes_pass_both_ways() {
    let server = Setup::shipped().env("CANVAS_OUTBOX", "32MiB").embed();
    let (mut client, _) = greeted(&server, "?sessionId=s").await;
    let big = "x".repeat(6 << 20);
    assert_eq!(client.ask(&json!({ "type": "ping", "padding": big })).await["type"], "pong");
    publish_to(&server, "s", "note", json!({ "text": big })).await;
    assert_eq!(client.next().await["text"], *big);
}

#[tokio::test]
async fn a_client_that_answers_no_ping_is_terminated() {
    let server = Setup::shipped().env("CANVAS_HEARTBEAT", "200ms").embed();
    let mut silent = Raw::open(server.url("canvas")).await;
    assert_eq!(silent.next().await.unwrap().0, 0x81);
    assert_eq!(silent.next().await, Some((FIN | PING, Vec::new())));
    assert_eq!(silent.next().await, None);
    assert_eq!(stats(&server).await["activeConnections"], 0);
}
