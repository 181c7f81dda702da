//! Rates and bounds: per row, per user, per address, per connection, and of connections.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Setup};

fn protocol(limits: &str) -> String {
    format!(
        r#"
protocols:
  p:
    listen: 127.0.0.1:0/
    user: $query.user
    limits: {limits}
    messages:
      rare: {{ limit: 2/60s, reply: {{ ok: rare }} }}
      join: {{ join: "room:{{$.n}}", reply: {{ ok: join }} }}
      ping: {{ reply: {{ type: pong }} }}
    error: {{ error: $error.message, code: $error.code, wait: $error.retry_after }}
channels: {{ "room:{{n}}": {{}} }}
"#
    )
}

fn limited(mut answer: Value) {
    let wait = answer["wait"].as_u64().unwrap_or_else(|| panic!("not limited: {answer}"));
    assert!((1..=60).contains(&wait), "{wait}");
    answer["wait"] = 0.into();
    assert_eq!(answer, json!({ "error": "rate limit exceeded", "code": "rate_limited", "wait": 0 }));
}

#[tokio::test]
async fn what_was_spent_comes_back_with_the_time() {
    let server = Setup::own(&protocol("{}")).embed();
    let mut client = server.client("p").await;
    let rare = json!({ "type": "rare" });
    for _ in 0..2 {
        assert_eq!(client.ask(&rare).await, json!({ "ok": "rare" }));
    }
    limited(client.ask(&rare).await);
    server.advance(Duration::from_secs(31));
    assert_eq!(client.ask(&rare).await, json!({ "ok": "rare" }));
    limited(client.ask(&rare).await);
}

#[tokio::test]
async fn a_rows_limit_is_each_connections_own() {
    let server = Setup::own(&protocol("{}")).embed();
    for mut client in server.clients::<2>("p").await {
        for _ in 0..2 {
            assert_eq!(client.ask(&json!({ "type": "rare" })).await, json!({ "ok": "rare" }));
        }
        limited(client.ask(&json!({ "type": "rare" })).await);
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn a_users_limit_is_for_all_its_connections() {
    let server = Setup::own(&protocol("{ user_rate: 3/60s }")).embed();
    let connect = async |user: &str| Client::connect(&format!("{}?user={user}", server.url("p"))).await;
    let (mut one, mut two, mut other) = (connect("ann").await, connect("ann").await, connect("bob").await);
    let ping = json!({ "type": "ping" });
    assert_eq!(one.ask(&ping).await["type"], "pong");
    assert_eq!(two.ask(&ping).await["type"], "pong");
    assert_eq!(one.ask(&ping).await["type"], "pong");
    limited(two.ask(&ping).await);
    limited(one.ask(&ping).await);
    assert_eq!(other.ask(&ping).await["type"], "pong");
    // Who is nobody shares a limit with nobody.
    let mut nobody = server.client("p").await;
    for _ in 0..5 {
        assert_eq!(nobody.ask(&ping).await["type"], "pong");
    }
}

#[tokio::test]
async fn an_addresss_limit_is_for_everyone_there() {
    let server = Setup::own(&protocol("{ address_rate: 2/60s }")).embed();
    let [mut one, mut two] = server.clients("p").await;
    let ping = json!({ "type": "ping" });
    assert_eq!(one.ask(&ping).await["type"], "pong");
    assert_eq!(two.ask(&ping).await["type"], "pong");
    limited(one.ask(&ping).await);
    limited(two.ask(&ping).await);
}

#[tokio::test]
async fn connections_are_bounded() {
    let url = |server: &crate::support::Server| server.url("p").to_owned();
    let server = Setup::own(&protocol("{ connections: 2 }")).embed();
    let [one, mut two] = server.clients("p").await;
    assert_eq!(Client::try_connect(&url(&server), &[]).await.err(), Some(503));
    two.expect_nothing().await;
    one.close().await;
    let again = || async { Client::try_connect(&url(&server), &[]).await.ok() };
    crate::support::until("there is room again", again, Option::is_some).await;

    let server = Setup::own(&protocol("{ connections: { max: 9, per_address: 1 } }")).embed();
    let mut one = server.client("p").await;
    assert_eq!(Client::try_connect(&url(&server), &[]).await.err(), Some(503));
    one.expect_nothing().await;

    let server = Setup::own(&protocol("{ connect_rate: 2/60s }")).embed();
    let _two = server.clients::<2>("p").await;
    assert_eq!(Client::try_connect(&url(&server), &[]).await.err(), Some(429));
}

#[tokio::test]
async fn subscriptions_are_bounded() {
    let server = Setup::own(&protocol("{ subscriptions: 2 }")).embed();
    let mut client = server.client("p").await;
    for n in [1, 2, 1] {
        assert_eq!(client.ask(&json!({ "type": "join", "n": n })).await, json!({ "ok": "join" }));
    }
    assert_eq!(client.ask(&json!({ "type": "join", "n": 3 })).await["code"], "limit_reached");
}

#[tokio::test]
async fn a_process_that_may_open_no_more_files_says_so() {
    let server = Setup::own(&protocol("{}")).within(&["sh", "-c", r#"ulimit -n 50 && exec "$0" "$@""#]).start();
    let address = server.url("p").split('/').nth(2).unwrap().to_owned();
    let mut streams = Vec::new();
    for _ in 0..60 {
        streams.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    let told = server.logged_when(|line| line["message"].as_str().is_some_and(|message| message.contains("no more files may be open")));
    assert!(told["hint"].as_str().unwrap().contains("ulimit -n"), "{told}");
    drop(streams);
    let served = || async { Client::try_connect(server.url("p"), &[]).await.ok() };
    crate::support::until("others have closed", served, Option::is_some).await;
}
