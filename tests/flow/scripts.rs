//! Scripts where rows name them, and what becomes of those that fail.

use serde_json::{Value, json};

use crate::support::{Client, Server, Setup};

const YAML: &str = r#"
channels: { out: { history: true } }
protocols:
  p:
    listen: 127.0.0.1:0/
    plugin: good
    messages:
      watch: { join: out, reply: { ok: watch } }
      split: { transform: split, to: out }
      drop: { transform: drop, to: out, reply: { ok: never } }
      odd: { validate: odd, reply: { ok: odd } }
      told: { validate: told, reply: { ok: never } }
      coded: { call: coded }
      handler: greet
      broken: { call: broken, reply: { ok: never } }
      endless: { call: hostile.endless, reply: { ok: never } }
      hungry: { call: hostile.hungry, reply: { ok: never } }
      deep: { call: hostile.deep, reply: { ok: never } }
      fine: { call: hostile.fine, reply: { ok: $result } }
      ping: { reply: { type: pong } }
    deliver: { event: $event.type, data: $event.data }
    error: { error: $error.message, code: $error.code, data: $error.data }
"#;

const GOOD: &str = r#"
fn split(msg) { let all = []; for n in 0..msg.count { all.push(#{ type: "part" + n, n: n }); } all }
fn drop(msg) { }
fn odd(msg) { msg.n % 2 == 1 }
fn told(msg) { throw "because"; }
fn coded(conn, msg) { throw #{ code: "my_code", message: "mine", n: 1 }; }
fn greet(conn, msg) { conn.reply(#{ hello: conn.id != "", you: msg.name }); }
fn broken(conn, msg) { msg.nothing.of.that }
"#;

const HOSTILE: &str = r#"
fn endless(conn, msg) { let n = 0; loop { n += 1; } }
fn hungry(conn, msg) { let s = "x"; loop { s += s; } }
fn deep(conn, msg) { deep(conn, msg) }
fn fine(conn, msg) { 42 }
"#;

fn server() -> Server {
    Setup::own(YAML).plugin("good", GOOD).plugin("hostile", HOSTILE).start()
}

async fn state(server: &Server, plugin: usize) -> Value {
    server.get("/api/plugins").await.json()["plugins"][plugin].clone()
}

#[tokio::test]
async fn a_transform_may_split_or_drop() {
    let server = server();
    let mut client = server.client("p").await;
    client.ask(&json!({ "type": "watch" })).await;
    client.send(&json!({ "type": "split", "count": 3 })).await;
    for n in 0..3 {
        assert_eq!(client.next().await, json!({ "event": format!("part{n}"), "data": { "n": n } }));
    }
    client.send(&json!({ "type": "split", "count": 0 })).await;
    client.send(&json!({ "type": "drop" })).await;
    client.expect_nothing().await;
}

#[tokio::test]
async fn what_scripts_refuse_is_told_in_their_words() {
    let server = server();
    let mut client = server.client("p").await;
    let table = [
        (json!({ "type": "odd", "n": 3 }), json!({ "ok": "odd" })),
        (json!({ "type": "odd", "n": 4 }), json!({ "error": "rejected", "code": "rejected" })),
        (json!({ "type": "told" }), json!({ "error": "because", "code": "rejected" })),
        (json!({ "type": "coded" }), json!({ "error": "mine", "code": "my_code", "data": { "n": 1 } })),
        (json!({ "type": "handler", "name": "ann" }), json!({ "hello": true, "you": "ann" })),
    ];
    for (message, answer) in table {
        assert_eq!(client.ask(&message).await, answer, "{message}");
    }
}

#[tokio::test]
async fn a_script_that_breaks_fails_its_own_message() {
    let server = server();
    let [mut client, mut other] = server.clients("p").await;
    let failed = json!({ "error": "internal error", "code": "script_failed" });
    for kind in ["broken", "endless", "hungry", "deep"] {
        assert_eq!(client.ask(&json!({ "type": kind })).await, failed, "{kind}");
        assert_eq!(client.ask(&json!({ "type": "fine" })).await, json!({ "ok": 42 }), "{kind}");
        other.expect_nothing().await;
    }
    // Where it broke is in the log, not on the wire.
    let line = server.logged("a script failed");
    assert!(line["why"].as_str().unwrap().contains("good.rhai:8"), "{line}");
    let good = state(&server, 0).await;
    assert_eq!((&good["failures"], &good["state"]), (&json!(1), &json!("in service")));
    assert!(good["lastError"]["error"].as_str().unwrap().contains("good.rhai:8"), "{good}");
}

#[tokio::test]
async fn a_plugin_that_fails_its_budget_again_and_again_is_taken_out() {
    let server = server();
    let mut client = server.client("p").await;
    assert_eq!(state(&server, 1).await["state"], "in service");
    for _ in 0..10 {
        assert_eq!(client.ask(&json!({ "type": "endless" })).await["code"], "script_failed");
    }
    let hostile = state(&server, 1).await;
    assert_eq!((&hostile["name"], &hostile["state"], &hostile["failures"]), (&json!("hostile"), &json!("out of service"), &json!(10)));
    assert!(hostile["why"].is_string() && hostile["since"].is_string(), "{hostile}");
    assert_eq!(client.ask(&json!({ "type": "fine" })).await["code"], "script_failed");
    assert_eq!(client.ask(&json!({ "type": "odd", "n": 1 })).await, json!({ "ok": "odd" }));
    client.expect_nothing().await;
}

#[tokio::test]
async fn a_slow_script_holds_up_no_other_connection_for_long() {
    let server = server();
    let [mut busy, mut other] = server.clients("p").await;
    let flood = tokio::spawn(async move {
        for _ in 0..200 {
            busy.send(&json!({ "type": "endless" })).await;
        }
        busy
    });
    for _ in 0..20 {
        other.expect_nothing().await;
    }
    let mut busy: Client = flood.await.unwrap();
    for _ in 0..200 {
        assert_eq!(busy.next().await["code"], "script_failed");
    }
}
