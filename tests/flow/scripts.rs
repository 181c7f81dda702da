//! Scripts where rows name them, and what happens to those that fail.

use serde_json::{Value, json};

use crate::support::{Client, Server, Setup};

const YAML: &str = r#"
channels: { out: { history: true } }
protocols:
  p:
    listen: 127.0.0.1:0/
    plugin: good
    user: $query.user
    messages:
      watch: { join: out, reply: { ok: watch } }
      split: { transform: split, to: out }
      drop: { transform: drop, to: out, reply: { ok: never } }
      odd: { validate: odd, reply: { ok: odd } }
      told: { validate: told, reply: { ok: never } }
      coded: { call: coded }
      handler: greet
      broken: { call: broken, reply: { ok: never } }
      tags: { call: tags, reply: { ok: $result } }
      say: { to: out, data: { n: $.n, hang: $.hang } }
      endless: { call: hostile.endless, reply: { ok: never } }
      hungry: { call: hostile.hungry, reply: { ok: never } }
      deep: { call: hostile.deep, reply: { ok: never } }
      fine: { call: hostile.fine, reply: { ok: $result } }
      ping: { reply: { type: pong } }
    deliver:
      - { when: calm($event), send: { event: $event.type, data: $event.data } }
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
fn tags(msg) { let sum = 0; for tag in msg.tags { if tag > 0 { sum += tag; } } sum }
fn calm(event) { if event.data.hang == true { loop { } } true }
"#;

const HOSTILE: &str = r#"
fn endless(conn, msg) { let n = 0; while msg.end != true { n += 1; } }
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

/// 15,000 tags in 60 kB, and three.
fn tags(count: usize) -> Value {
    json!({ "type": "tags", "tags": vec![123; count] })
}

#[tokio::test]
async fn who_sends_what_a_script_cannot_handle_pays_and_nobody_else_does() {
    let server = server();
    let [mut spender, mut good, mut watcher] = server.clients("p").await;
    watcher.ask(&json!({ "type": "watch" })).await;
    let large = tags(15_000);
    assert!(large.to_string().len() > 60_000);
    for n in 0..10 {
        let answer = spender.ask(&large).await;
        assert_eq!(answer["code"], if n < 5 { "script_failed" } else { "rate_limited" }, "{n}: {answer}");
        assert_eq!(good.ask(&tags(3)).await, json!({ "ok": 369 }), "{n}");
        // What plugins say about events that go out is asked as before.
        good.send(&json!({ "type": "say", "n": n })).await;
        assert_eq!(watcher.next().await, json!({ "event": "say", "data": { "n": n } }));
    }
    assert_eq!(spender.ask(&tags(3)).await, json!({ "error": "rate limit exceeded", "code": "rate_limited" }));
    // What needs no script is answered.
    assert_eq!(spender.ask(&json!({ "type": "ping" })).await, json!({ "type": "pong" }));
    let good_state = state(&server, 0).await;
    assert_eq!((&good_state["state"], &good_state["out"], &good_state["failures"]), (&json!("in service"), &json!([]), &json!(5)));
    // Who goes on is closed.
    for _ in 0..44 {
        assert_eq!(spender.ask(&tags(3)).await["code"], "rate_limited");
    }
    assert_eq!(spender.ask(&tags(3)).await["code"], "rate_limited");
    assert_eq!(spender.closed().await.0, 1008);
    assert_eq!(good.ask(&tags(3)).await, json!({ "ok": 369 }));
    watcher.expect_nothing().await;
}

#[tokio::test]
async fn who_publishes_what_a_deliver_script_cannot_handle_pays_and_not_who_gets_it() {
    let server = server();
    let [mut spender, mut good, mut watcher] = server.clients("p").await;
    watcher.ask(&json!({ "type": "watch" })).await;
    for _ in 0..5 {
        spender.send(&json!({ "type": "say", "hang": true })).await;
    }
    // Sent by the one who has spent what it may, then by another.
    spender.send(&json!({ "type": "say", "n": 1 })).await;
    spender.expect_nothing().await;
    good.send(&json!({ "type": "say", "n": 2 })).await;
    assert_eq!(watcher.next().await, json!({ "event": "say", "data": { "n": 2 } }));
    assert_eq!(spender.ask(&tags(3)).await["code"], "rate_limited");
    assert_eq!(watcher.ask(&tags(3)).await, json!({ "ok": 369 }));
    watcher.expect_nothing().await;
}

/// Each receiver's events are written with what it has stored.
const PERSONAL: &str = r#"
channels: { out: {} }
protocols:
  p:
    listen: 127.0.0.1:0/
    plugin: personal
    messages:
      watch: { set: { state.words: $.words }, join: out, reply: { ok: watch } }
      say: { to: out, data: $.n, reply: { ok: say } }
      check: { call: personal.check, reply: { ok: $result } }
    deliver: personal.written
    error: { code: $error.code }
"#;

const WRITTEN: &str = r#"
fn written(event, sub, conn) { let same = 0; for a in conn.state.words { for b in conn.state.words { if a == b { same += 1; } } } #{ n: event.data, same: same } }
fn check(msg) { 1 }
"#;

#[tokio::test]
async fn who_makes_events_to_itself_expensive_pays_and_not_who_publishes_them() {
    let server = Setup::own(PERSONAL).plugin("personal", WRITTEN).start();
    let [mut heavy, mut good, mut light] = server.clients("p").await;
    heavy.ask(&json!({ "type": "watch", "words": vec![1; 5000] })).await;
    light.ask(&json!({ "type": "watch", "words": [1, 2] })).await;
    for n in 0..8 {
        assert_eq!(good.ask(&json!({ "type": "say", "n": n })).await, json!({ "ok": "say" }));
        assert_eq!(light.next().await, json!({ "n": n, "same": 2 }));
    }
    assert_eq!(good.ask(&json!({ "type": "check" })).await, json!({ "ok": 1 }));
    assert_eq!(heavy.ask(&json!({ "type": "check" })).await, json!({ "code": "rate_limited" }));
    let personal = state(&server, 0).await;
    assert_eq!((&personal["state"], &personal["failures"]), (&json!("in service"), &json!(5)));
}

#[tokio::test]
async fn several_connections_of_one_address_without_a_user_take_no_deliver_function_out() {
    let written = "fn written(event) { if event.data == 0 { loop { } } #{ n: event.data } } fn check(msg) { 1 }";
    let server = Setup::own(PERSONAL).plugin("personal", written).start();
    let [mut watcher, mut good, mut one, mut two, mut three] = server.clients("p").await;
    watcher.ask(&json!({ "type": "watch" })).await;
    for _ in 0..4 {
        for spender in [&mut one, &mut two, &mut three] {
            assert_eq!(spender.ask(&json!({ "type": "say", "n": 0 })).await, json!({ "ok": "say" }));
        }
    }
    assert_eq!(good.ask(&json!({ "type": "say", "n": 7 })).await, json!({ "ok": "say" }));
    assert_eq!(watcher.next().await, json!({ "n": 7 }));
    let personal = state(&server, 0).await;
    assert_eq!((&personal["state"], &personal["failures"]), (&json!("in service"), &json!(12)));
}

#[tokio::test]
async fn a_function_that_different_users_drive_over_its_budget_is_taken_out_and_comes_back() {
    let server = server();
    let mut users = Vec::new();
    for user in ["ann", "bob", "cem"] {
        users.push(Client::connect(&format!("{}?user={user}", server.url("p"))).await);
    }
    for n in 0..10 {
        assert_eq!(users[n % 3].ask(&json!({ "type": "endless" })).await["code"], "script_failed");
    }
    let hostile = state(&server, 1).await;
    assert_eq!(
        (&hostile["name"], &hostile["state"], &hostile["failures"]),
        (&json!("hostile"), &json!("partly out of service"), &json!(10))
    );
    assert_eq!(hostile["out"][0]["function"], "endless");
    assert!(hostile["out"][0]["why"].as_str().unwrap().contains("hostile.rhai:2:"), "{hostile}");
    let gone = server.logged("function out of service");
    assert_eq!((&gone["plugin"], &gone["function"]), (&json!("hostile"), &json!("endless")));
    // The server is ready all the same, and says what is not.
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["reasons"][0]["part"]), (200, &json!("plugin")));
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("tramline_script_function_in_service{plugin=\"hostile\",function=\"endless\"} 0"), "{metrics}");
    assert!(metrics.contains("tramline_script_function_in_service{plugin=\"hostile\",function=\"fine\"} 1"), "{metrics}");
    // Its other functions, and other plugins, are served.
    let mut good = server.client("p").await;
    assert_eq!(good.ask(&json!({ "type": "endless", "end": true })).await["code"], "script_failed");
    assert_eq!(good.ask(&json!({ "type": "fine" })).await, json!({ "ok": 42 }));
    assert_eq!(good.ask(&json!({ "type": "odd", "n": 1 })).await, json!({ "ok": "odd" }));
    let mut served = None;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while served.is_none() && std::time::Instant::now() < until {
        let answer = good.ask(&json!({ "type": "endless", "end": true })).await;
        served = (answer["code"] != "script_failed").then_some(answer);
    }
    assert_eq!(served, Some(json!({ "ok": "never" })));
    assert_eq!(server.logged("function back in service")["function"], "endless");
    assert_eq!(server.get("/readyz").await.json(), json!({ "status": "ready", "reasons": [] }));
}

#[tokio::test]
async fn a_message_that_is_too_large_for_a_script_is_its_senders_fault() {
    let server = server();
    let mut client = server.client("p").await;
    for _ in 0..20 {
        let answer = client.ask(&tags(20_001)).await;
        assert_eq!(
            (&answer["code"], answer["error"].as_str().unwrap().contains("20000 array items")),
            (&json!("invalid"), true),
            "{answer}"
        );
    }
    assert_eq!(client.ask(&tags(3)).await, json!({ "ok": 369 }));
    assert_eq!(state(&server, 0).await["failures"], 0);
}

#[tokio::test]
async fn the_shipped_agent_does_not_mind_how_much_data_a_message_has() {
    let server = Server::shipped();
    let [mut client, mut other] = server.clients("agent").await;
    let data: serde_json::Map<_, _> = (0..30_000).map(|n| (format!("m{n:05}"), json!({}))).collect();
    let message = json!({ "type": "test", "data": data });
    for n in 0..10 {
        assert!(client.ask(&message).await == message, "{n}");
        assert_eq!(other.ask(&json!({ "type": "test", "data": {} })).await["type"], "test", "{n}");
    }
    let agent = state(&server, 0).await;
    assert_eq!((&agent["name"], &agent["state"], &agent["failures"]), (&json!("agent"), &json!("in service"), &json!(0)));
}

#[tokio::test]
async fn a_slow_script_holds_up_no_other_connection_for_long() {
    let server = server();
    let [mut busy, mut other] = server.clients("p").await;
    let flood = tokio::spawn(async move {
        for _ in 0..200 {
            if busy.send_or_end(&json!({ "type": "endless" })).await.is_none() {
                break;
            }
        }
        busy
    });
    for _ in 0..20 {
        other.expect_nothing().await;
    }
    let mut busy: Client = flood.await.unwrap();
    for n in 0..5 {
        assert_eq!(busy.next_or_end().await.unwrap()["code"], "script_failed", "{n}");
    }
    while let Some(answer) = busy.next_or_end().await {
        assert_eq!(answer["code"], "rate_limited");
    }
}

#[tokio::test]
async fn the_log_counts_what_it_leaves_out() {
    let server = server();
    let mut client = server.client("p").await;
    for _ in 0..400 {
        client.ask(&json!({ "type": "broken" })).await;
    }
    let told = server.logged("some warnings about messages were not logged: too many in one second");
    assert!(told["left_out"].as_u64().unwrap() > 0, "{told}");
}

const SHAPED: &str = r#"
channels: { out: {} }
protocols:
  p:
    listen: 127.0.0.1:0/
    messages:
      watch: { join: out, reply: { ok: watch } }
      say: { to: out, reply: { ok: say } }
      who: { set: { user: $.user, session: $.session }, reply: { user: $conn.user, session: $conn.session } }
    deliver: shape
    error: { error: $error.message, code: $error.code }
"#;

const SHAPE: &str = r#"
fn shape(event) {
    switch event.data.ask {
        "members" => members("out"),
        "history" => history("out", 1),
        "connections" => connections("p"),
        "statistics" => statistics("p"),
        _ => refuse(),
    }
}
fn refuse() { throw "mute"; }
"#;

#[tokio::test]
async fn what_fails_in_deliver_is_logged_with_its_place_and_channel() {
    let server = Setup::own(SHAPED).plugin("p", SHAPE).start();
    let mut client = server.client("p").await;
    client.ask(&json!({ "type": "watch" })).await;
    for (line, ask) in [(4, "members"), (5, "history"), (6, "connections"), (7, "statistics")] {
        assert_eq!(client.ask(&json!({ "type": "say", "ask": ask })).await, json!({ "ok": "say" }));
        let logged = server.logged("events were not delivered: a script failed");
        let why = logged["why"].as_str().unwrap();
        assert!(why.starts_with(&format!("plugins/p.rhai:{line}:")) && why.contains(&format!(" in fn shape: {ask}: ")), "{why}");
        assert!(why.ends_with("may not ask about the rest of the router"), "{why}");
        assert_eq!((&logged["channel"], &logged["protocol"]), (&json!("out"), &json!("p")));
    }
    client.ask(&json!({ "type": "say" })).await;
    let logged = server.logged("events were not delivered: a script failed");
    assert_eq!(logged["why"], "plugins/p.rhai:11:15 in fn refuse: throws \"mute\"");
}

#[tokio::test]
async fn only_a_missing_value_clears_a_user_or_session() {
    let server = Setup::own(SHAPED).plugin("p", SHAPE).embed();
    let mut client = server.client("p").await;
    let both = json!({ "user": "ann", "session": "s" });
    assert_eq!(client.ask(&json!({ "type": "who", "user": "ann", "session": "s" })).await, both);
    for (user, session, what) in [(json!(7), json!("s"), "user"), (json!("ann"), json!([1]), "session"), (json!(true), Value::Null, "user")]
    {
        let refused = client.ask(&json!({ "type": "who", "user": user, "session": session })).await;
        assert_eq!(refused, json!({ "error": format!("the {what} must be a text"), "code": "invalid" }));
    }
    assert_eq!(client.ask(&json!({ "type": "who", "user": "ann", "session": null })).await, json!({ "user": "ann" }));
    assert_eq!(client.ask(&json!({ "type": "who" })).await, json!({}));
}
