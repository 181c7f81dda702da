//! Every line of the agent protocol's page.

use serde_json::{Value, json};

use crate::support::raw::{FIN, PING, Raw};
use crate::support::{Client, SOME_TIME, Server, Setup, request, until};

async fn client(server: &Server) -> Client {
    let fence = json!({ "type": "test", "data": { "message": "fence" } });
    let client = Client::connect(server.url("agent")).await.fenced_by(fence);
    let mut client = client;
    // Answered, so it is on its channels.
    client.expect_nothing().await;
    client
}

async fn bus(server: &Server, event: &Value) -> Value {
    server.emit("bus", "/events", event).await
}

async fn status(server: &Server) -> Value {
    request("GET", &server.http("agent", "/api/websocket/status"), &[], None).await.json()
}

/// Whole times and made-up ids are not to be compared.
fn without_id(mut message: Value) -> Value {
    let id = message["data"]["id"].as_str().unwrap().to_owned();
    assert_eq!((id.len(), id.matches('-').count()), (36, 4), "{id}");
    message["data"]["id"] = "<uuid>".into();
    message
}

#[tokio::test]
async fn the_bus_as_clients_see_it() {
    let server = Server::shipped();
    let mut client = client(&server).await;
    for (event, user) in [("MessageSent", "user"), ("MessageReceived", "assistant")] {
        bus(&server, &json!({ "type": event, "data": { "content": "hi" } })).await;
        let filled = json!({ "id": "<uuid>", "content": "hi", "timestamp": SOME_TIME, "type": user });
        assert_eq!(without_id(client.next().await), json!({ "type": "messageReceived", "data": filled }));
        let whole = json!({ "id": "m1", "content": "hi", "timestamp": "2024-01-01T00:00:00.000Z", "type": "other" });
        bus(&server, &json!({ "type": event, "data": whole })).await;
        assert_eq!(client.next().await, json!({ "type": "messageReceived", "data": whole }));
    }
    let table = [
        (
            "activeIDEChanged",
            json!({ "port": 1, "workspacePath": "/w" }),
            "ideStatusChanged",
            json!({ "port": 1, "status": "active", "workspacePath": "/w" }),
        ),
        (
            "activeIDEChanged",
            json!({ "port": 1, "status": "active", "workspacePath": "/w", "previousPort": 2 }),
            "ideStatusChanged",
            json!({ "port": 1, "status": "active", "workspacePath": "/w", "previousPort": 2 }),
        ),
        (
            "userAppDetected",
            json!({ "url": "http://localhost:5173", "workspacePath": "/w" }),
            "userAppDetected",
            json!({ "url": "http://localhost:5173", "workspacePath": "/w" }),
        ),
        (
            "connectionStatus",
            json!({ "connected": true, "activePort": 9, "availablePorts": [9, 10] }),
            "connectionStatus",
            json!({ "connected": true, "activePort": 9, "availablePorts": [9, 10], "lastActivity": SOME_TIME }),
        ),
        (
            "connectionStatus",
            json!({ "connected": false, "activePort": null, "lastActivity": "2024-01-01T00:00:00.000Z" }),
            "connectionStatus",
            json!({ "connected": false, "activePort": null, "lastActivity": "2024-01-01T00:00:00.000Z" }),
        ),
        ("workspaceChanged", json!({ "workspacePath": "/w", "port": 3 }), "workspaceChanged", json!({ "workspacePath": "/w", "port": 3 })),
        (
            "connectionStateChanged",
            json!({ "connected": true, "reconnecting": false, "lastConnected": null, "reconnectAttempts": 0 }),
            "connectionStateChanged",
            json!({ "connected": true, "reconnecting": false, "lastConnected": null, "reconnectAttempts": 0 }),
        ),
        ("any other", json!({ "z": 1, "a": { "b": [] } }), "any other", json!({ "z": 1, "a": { "b": [] } })),
    ];
    for (event, data, kind, out) in table {
        assert_eq!(bus(&server, &json!({ "type": event, "data": data })).await["delivered"], 1, "{event}");
        assert_eq!(client.next().await, json!({ "type": kind, "data": out }));
    }
    client.expect_nothing().await;
}

#[tokio::test]
async fn every_client_gets_the_bus_in_the_same_order() {
    let server = Server::shipped();
    let (mut one, mut two) = (client(&server).await, client(&server).await);
    for n in 0..20 {
        bus(&server, &json!({ "type": "tick", "data": { "n": n } })).await;
    }
    for client in [&mut one, &mut two] {
        for n in 0..20 {
            assert_eq!(client.next().await, json!({ "type": "tick", "data": { "n": n } }));
        }
    }
}

#[tokio::test]
async fn ide_events_are_on_until_turned_off() {
    let server = Server::shipped();
    let (mut with, mut without) = (client(&server).await, client(&server).await);
    let ide = json!({ "type": "activeIDEChanged", "data": { "port": 1, "workspacePath": "/" } });
    without.send(&json!({ "type": "unsubscribe", "data": { "topic": "ide" } })).await;
    without.expect_nothing().await;
    bus(&server, &ide).await;
    assert_eq!(with.next().await["type"], "ideStatusChanged");
    without.expect_nothing().await;
    bus(&server, &json!({ "type": "userAppDetected", "data": {} })).await;
    assert_eq!(without.next().await["type"], "userAppDetected");
    for _ in 0..2 {
        without.send(&json!({ "type": "subscribe", "data": { "topic": "ide" } })).await;
    }
    without.expect_nothing().await;
    bus(&server, &ide).await;
    assert_eq!(without.next().await["type"], "ideStatusChanged");
    without.expect_nothing().await;
}

#[tokio::test]
async fn a_test_message_comes_back_as_it_was_and_to_nobody_else() {
    let server = Server::shipped();
    let (mut one, mut two) = (client(&server).await, client(&server).await);
    let message = json!({ "type": "test", "data": { "message": "Hello, WebSocket!" }, "more": [1, 2.50, null] });
    assert_eq!(one.ask(&message).await, message);
    one.expect_nothing().await;
    two.expect_nothing().await;
}

#[tokio::test]
async fn what_clients_send_is_kept_for_the_application() {
    let server = Server::shipped();
    let (mut one, mut two) = (client(&server).await, client(&server).await);
    let ids = server.get("/api/connections?protocol=agent").await.json();
    one.send(&json!({ "type": "userTyped", "data": { "text": "hi", "n": 1 } })).await;
    one.expect_nothing().await;
    two.expect_nothing().await;
    let history = server.get("/api/history?type=userTyped").await.json();
    let events = history["events"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["data"], &events[0]["source"]), (&json!({ "text": "hi", "n": 1 }), &json!("agent")));
    assert_eq!(events[0]["client"], ids["connections"][0]["id"]);
}

#[tokio::test]
async fn the_envelopes_errors_are_these_words() {
    let server = Server::shipped();
    let mut client = client(&server).await;
    let table = [
        (r#"{"type":"x"}"#, "Missing required field: data"),
        (r#"{"data":{}}"#, "Missing required field: type"),
        ("{}", "Missing required field: type"),
        (r#"{"type":"x","data":[]}"#, "Invalid type for data: expected object"),
        (r#"{"type":"x","data":"text"}"#, "Invalid type for data: expected object"),
        (r#"{"type":"x","data":null}"#, "Invalid type for data: expected object"),
        (r#"{"type":5,"data":{}}"#, "Invalid type for type: expected string"),
        ("not json", "Invalid message format"),
        ("", "Invalid message format"),
        ("[1]", "Invalid message format"),
        ("7", "Invalid message format"),
    ];
    for (text, error) in table {
        client.send_text(text).await;
        assert_eq!(client.next().await, json!({ "type": "error", "error": error }), "{text}");
    }
    client.expect_nothing().await;
    assert_eq!(server.get("/api/history?channel=agent:inbox").await.json()["events"], json!([]));
}

#[tokio::test]
async fn the_hundred_and_first_message_in_a_minute_is_refused() {
    let server = Server::shipped();
    let mut client = Client::connect(server.url("agent")).await;
    let message = json!({ "type": "test", "data": {} });
    for _ in 0..100 {
        assert_eq!(client.ask(&message).await, message);
    }
    for kind in ["test", "counted"] {
        let mut answer = client.ask(&json!({ "type": kind, "data": {} })).await;
        let wait = answer["retryAfter"].as_u64().unwrap();
        assert!((1..=60).contains(&wait), "{wait}");
        answer["retryAfter"] = 0.into();
        assert_eq!(answer, json!({ "type": "error", "error": "Rate limit exceeded", "retryAfter": 0 }));
    }
    assert_eq!(server.get("/api/history?type=counted").await.json()["events"], json!([]));
    // Another client has a limit of its own.
    let mut other = Client::connect(server.url("agent")).await;
    assert_eq!(other.ask(&message).await, message);
}

#[tokio::test]
async fn ten_times_the_rate_ends_the_connection() {
    let server = Setup::shipped().env("AGENT_RATE", "5/60s").embed();
    let mut client = Client::connect(server.url("agent")).await;
    let mut other = Client::connect(server.url("agent")).await;
    for _ in 0..60 {
        client.send(&json!({ "type": "test", "data": {} })).await;
    }
    let (mut passed, mut refused) = (0, 0);
    let close = loop {
        match client.next_frame().await {
            tokio_tungstenite::tungstenite::Message::Close(close) => break close.unwrap(),
            frame if frame.to_text().unwrap().contains("Rate limit exceeded") => refused += 1,
            _ => passed += 1,
        }
    };
    assert_eq!((u16::from(close.code), passed), (1008, 5));
    assert!((40..55).contains(&refused), "{refused}");
    assert_eq!(other.ask(&json!({ "type": "test", "data": {} })).await["type"], "test");
}

#[tokio::test]
async fn one_too_many_closes_the_oldest() {
    let server = Setup::shipped().env("AGENT_MAX_CONNECTIONS", "2").embed();
    let (mut first, mut second) = (client(&server).await, client(&server).await);
    let mut third = client(&server).await;
    assert_eq!(first.closed().await.0, 1013);
    let mut fourth = client(&server).await;
    assert_eq!(second.closed().await.0, 1013);
    third.expect_nothing().await;
    fourth.expect_nothing().await;
    assert_eq!(bus(&server, &json!({ "type": "x", "data": {} })).await["delivered"], 2);
}

#[tokio::test]
async fn the_heartbeat_is_a_message_to_all() {
    let server = Setup::shipped().env("AGENT_HEARTBEAT", "200ms").embed();
    let [mut one, mut two] = server.clients("agent").await;
    for client in [&mut one, &mut two] {
        for _ in 0..2 {
            assert_eq!(client.next().await, json!({ "type": "heartbeat", "data": { "timestamp": SOME_TIME } }));
        }
    }
    assert_eq!(server.get("/api/history?type=heartbeat").await.json()["events"], json!([]));
}

#[tokio::test]
async fn a_ping_that_nobody_answers_ends_the_connection() {
    let server = Setup::shipped().env("AGENT_PING", "200ms").embed();
    let mut silent = Raw::open(server.url("agent")).await;
    assert_eq!(silent.next().await, Some((FIN | PING, Vec::new())));
    assert_eq!(silent.next().await, None);
}

#[tokio::test]
async fn an_event_for_one_client() {
    let server = Server::shipped();
    let (mut one, mut two) = (client(&server).await, client(&server).await);
    let ids = server.get("/api/connections?protocol=agent").await.json();
    let id = &ids["connections"][0]["id"];
    let message = json!({ "type": "privateMessage", "data": { "text": "psst" } });
    bus(&server, &json!({ "type": "privateMessage", "data": { "text": "psst" }, "client": id })).await;
    assert_eq!(one.next().await, message);
    server.publish(&json!({ "client": id, "type": "privateMessage", "data": { "text": "psst" } })).await;
    assert_eq!(one.next().await, message);
    one.expect_nothing().await;
    two.expect_nothing().await;
    let url = server.http("bus", "/events");
    let gone = json!({ "type": "privateMessage", "data": {}, "client": "nobody" }).to_string();
    assert_eq!(request("POST", &url, &[("content-type", "application/json")], Some(&gone)).await.status, 404);
}

#[tokio::test]
async fn an_event_for_clients_of_which_a_condition_holds() {
    let server = Server::shipped();
    let fence = json!({ "type": "test", "data": {} });
    let mut red = Client::connect(&format!("{}?team=red&level=1", server.url("agent"))).await.fenced_by(fence.clone());
    let mut blue = Client::connect(&format!("{}?team=blue", server.url("agent"))).await.fenced_by(fence);
    red.expect_nothing().await;
    blue.expect_nothing().await;
    let message = |n: u32| json!({ "type": "news", "data": { "n": n } });
    let to = |n: u32, condition: Value| json!({ "type": "news", "data": { "n": n }, "where": condition });
    bus(&server, &to(1, json!({ "query": { "team": "red" } }))).await;
    assert_eq!(red.next().await, message(1));
    bus(&server, &to(2, json!({ "query": { "team": "red", "level": "2" } }))).await;
    bus(&server, &to(3, json!({ "nonsense": "red" }))).await;
    bus(&server, &to(4, json!({}))).await;
    assert_eq!(red.next().await, message(4));
    assert_eq!(blue.next().await, message(4));
    red.expect_nothing().await;
    blue.expect_nothing().await;
}

#[tokio::test]
async fn the_status_page() {
    let server = Server::shipped();
    let mut empty = status(&server).await;
    let uptime = empty["data"]["uptime"].as_u64().unwrap();
    assert!(uptime < 60);
    empty["data"]["uptime"] = 0.into();
    let nobody = json!({ "connected": false, "clients": 0, "lastActivity": SOME_TIME, "uptime": 0, "messageCount": 0 });
    assert_eq!(empty, json!({ "success": true, "data": nobody }));
    let mut one = client(&server).await;
    let _two = client(&server).await;
    bus(&server, &json!({ "type": "x", "data": {} })).await;
    one.next().await;
    let full = status(&server).await;
    // Two fences in, two out, one event to each of two.
    assert_eq!((&full["data"]["connected"], &full["data"]["clients"], &full["data"]["messageCount"]), (&json!(true), &json!(2), &json!(6)));
    one.close().await;
    until("the client is gone", || status(&server), |s| s["data"]["clients"] == 1).await;
}
