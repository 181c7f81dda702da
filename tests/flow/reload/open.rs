//! What a reload means for what is open: connections, subscriptions, batches, and what was counted and spent.

use super::*;

#[tokio::test]
async fn a_channel_that_is_gone_ends_its_subscriptions_and_no_other() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    assert_eq!(join(&mut client, "room:a").await["type"], "joined");
    assert_eq!(join(&mut client, "news:a").await["type"], "joined");
    let before = server.publish(&json!({ "channel": "room:a", "data": 1 })).await;
    client.next().await;
    let text_without = numbered(1).replace("\"room:{name}\": { history: true }, ", "").replace("room:{$.room}", "news:{$.room}");
    let report = become_(&server, &text_without).await;
    assert_eq!(report["ended"]["subscriptions"], 1, "{report}");
    assert_eq!(client.next().await["code"], "unknown_channel");
    assert_eq!(server.post("/api/publish", &json!({ "channel": "room:a", "data": 2 })).await.status, 404);
    assert_eq!(join(&mut client, "room:a").await["code"], "unknown_channel");
    server.publish(&json!({ "channel": "news:a", "data": 3 })).await;
    assert_eq!(client.next().await["data"], 3);
    // It comes back as it was: its log has not ended.
    become_(&server, &numbered(1)).await;
    client.expect_nothing().await;
    let after = server.publish(&json!({ "channel": "room:a", "data": 4 })).await;
    assert_eq!((&after["epoch"], after["offset"].as_u64()), (&before["epoch"], before["offset"].as_u64().map(|n| n + 1)), "{after}");
}

#[tokio::test]
async fn events_for_a_batch_that_is_taken_away_are_written_one_by_one() {
    let batched = numbered(1).replace("    error:", "    batch: { every: 60s, as: { all: $messages } }\n    error:");
    let server = setup(&batched).embed();
    let mut client = server.client("chat").await;
    join(&mut client, "news:a").await;
    join(&mut client, "news:b").await;
    let publish = async |channel: &str, n: u32| server.publish(&json!({ "channel": channel, "data": n })).await;
    publish("news:a", 1).await;
    become_(&server, &numbered(2)).await;
    publish("news:a", 2).await;
    publish("news:a", 3).await;
    for n in 1..4 {
        assert_eq!(client.next().await["data"], n);
    }
    // It is there again, for those who are connected too.
    let soon = batched.replace("every: 60s", "every: 60s, events: 2");
    become_(&server, &soon).await;
    assert_eq!(client.ask(&json!({ "type": "ping" })).await, json!({ "type": "pong" }));
    publish("news:b", 4).await;
    publish("news:b", 5).await;
    let all: Vec<_> = client.next().await["all"].as_array().unwrap().iter().map(|one| one["data"].clone()).collect();
    assert_eq!(all, [4, 5]);
}

#[tokio::test]
async fn what_was_counted_goes_on_when_a_reload_brings_a_protocol_back() {
    // Beside `chat` on one address, which is the same all the time.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = |text: &str| text.replace("localhost:0/chat", &format!("127.0.0.1:{port}/chat"));
    let one = at(&numbered(1));
    let both = format!("{one}{}", OTHER.replace("127.0.0.1:0", &format!("127.0.0.1:{port}")));
    let ping = async || {
        let mut client = Client::connect(&format!("ws://127.0.0.1:{port}/other")).await;
        client.ask(&json!({ "type": "ping" })).await;
    };
    let count = async |server: &Server| server.get("/api/stats").await.json()["protocols"]["other"]["messagesIn"].clone();
    let server = setup(&both).embed();
    ping().await;
    let server = server.stop().setup.file("routes.yaml", &one).embed();
    assert_eq!(count(&server).await, Value::Null);
    become_(&server, &both).await;
    assert_eq!(count(&server).await, 1);
    ping().await;
    let server = server.stop().setup.embed();
    assert_eq!(count(&server).await, 2);
}

#[tokio::test]
async fn nobody_who_comes_while_a_protocol_goes_is_left_behind() {
    let with_sessions = OTHER.replace("/other\n", "/other\n    session: $query.s\n");
    let both = format!("{}{with_sessions}", numbered(1));
    let server = setup(&both).start();
    let session = server.post("/api/sessions", &json!({})).await.json()["sessionId"].as_str().unwrap().to_owned();
    let url = format!("{}?s={session}", server.url("other"));
    let done = tokio::sync::watch::channel(false);
    let goes = async {
        for _ in 0..10 {
            become_(&server, &numbered(1)).await;
            become_(&server, &both).await;
        }
        become_(&server, &numbered(1)).await;
        done.0.send_replace(true);
    };
    let (here, ()) = tokio::join!(async { tokio::join!(comes(&url, &done.1), comes(&url, &done.1), comes(&url, &done.1)) }, goes);
    let open = async || server.get("/api/stats").await.json()["connections"].clone();
    crate::support::until("all are gone", open, |open| *open == 0).await;
    drop(here);
}

/// Connects again and again until it is over; gives all connections that were let in.
async fn comes(url: &str, is_over: &tokio::sync::watch::Receiver<bool>) -> Vec<Client> {
    let mut here = Vec::new();
    while !*is_over.borrow() {
        here.extend(Client::connect_or_end(url).await);
    }
    here
}

#[tokio::test]
async fn a_protocol_that_is_gone_closes_its_connections_and_its_address() {
    let both = format!("{}{OTHER}", numbered(1));
    let server = setup(&both).start();
    let (mut client, mut other) = (server.client("chat").await, server.client("other").await);
    other.expect_nothing().await;
    let report = become_(&server, &numbered(1)).await;
    assert_eq!(report["ended"], json!({ "subscriptions": 0, "connections": 1, "sources": 0, "listeners": 1 }));
    assert_eq!(other.closed().await.0, 1012);
    assert_eq!(version(&mut client).await, 1);
    let address = server.url("other").split('/').nth(2).unwrap();
    crate::support::until("nobody listens", || tokio::net::TcpStream::connect(address), |connected| connected.is_err()).await.ok();
}

#[tokio::test]
async fn what_was_spent_of_a_limit_stays_spent_and_a_new_limit_is_everybodys() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    let rare = json!({ "type": "rare" });
    for _ in 0..2 {
        assert_eq!(client.ask(&rare).await["type"], "rare");
    }
    become_(&server, &numbered(2)).await;
    assert_eq!(client.ask(&rare).await["code"], "rate_limited");
    become_(&server, &numbered(2).replace("limit: 2/1h", "limit: 100/1h")).await;
    assert_eq!(client.ask(&rare).await["type"], "rare");
    // The messages of an open connection too.
    become_(&server, &numbered(2).replace("$query.user\n", "$query.user\n    limits: { message: 1KiB }\n")).await;
    assert_eq!(version(&mut client).await, 2);
    client.send(&json!({ "type": "version", "pad": "x".repeat(2000) })).await;
    assert_eq!(client.closed().await.0, 1009);
}
