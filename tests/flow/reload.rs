//! Another configuration takes the place of the one in use, while clients are connected: all of it or nothing, and whatever it does
//! not concern goes on.

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

#[tokio::test]
async fn however_a_file_is_replaced_the_next_message_is_handled_by_it() {
    let server = setup(&numbered(1)).start();
    let path = |name: &str| server.setup().path(name);
    let mut client = server.client("chat").await;
    assert_eq!(version(&mut client).await, 1);
    // In place.
    write(&server, "routes.yaml", &numbered(2));
    assert_eq!(server.logged("reloaded")["generation"], 2);
    assert_eq!(version(&mut client).await, 2);
    // Another file takes its name.
    write(&server, "new.yaml", &numbered(3));
    fs::rename(path("new.yaml"), path("routes.yaml")).unwrap();
    assert_eq!(server.logged("reloaded")["generation"], 3);
    assert_eq!(version(&mut client).await, 3);
    // It becomes a link to a file behind a link to a folder, and that is led elsewhere.
    for n in [4, 5] {
        fs::create_dir(path(&format!("v{n}"))).unwrap();
        write(&server, &format!("v{n}/routes.yaml"), &numbered(n));
        std::os::unix::fs::symlink(format!("v{n}"), path("new")).unwrap();
        fs::rename(path("new"), path("current")).unwrap();
        if n == 4 {
            std::os::unix::fs::symlink("current/routes.yaml", path("link")).unwrap();
            fs::rename(path("link"), path("routes.yaml")).unwrap();
        }
        assert_eq!(server.logged("reloaded")["generation"], n);
        assert_eq!(version(&mut client).await, n);
    }
    // It is written in pieces, and each is a file that could be used.
    let whole = numbered(6).replace("ping: {", "extra: { reply: { type: extra } }\n      ping: {");
    let (first, rest) = whole.split_at(whole.find("      rare:").unwrap());
    write(&server, "v5/routes.yaml", first);
    write(&server, "v5/routes.yaml", &format!("{first}{rest}"));
    assert_eq!(server.logged("reloaded")["generation"], 6);
    assert_eq!(client.ask(&json!({ "type": "extra" })).await["type"], "extra");
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_says_where() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    write(&server, "routes.yaml", &numbered(2).replace("text: $.text", "text: $nothing"));
    let line = server.logged_when(|line| line["level"] == "ERROR").to_string();
    assert!(line.contains("the reload is refused, the configuration in use stays in use") && line.contains("routes.yaml:11:"), "{line}");
    assert_eq!(server.get("/readyz").await.status, 200, "it does its work");
    assert_eq!(version(&mut client).await, 1);
    let config = server.get("/api/config").await.json();
    assert_eq!((&config["generation"], &config["refused"]["why"]), (&json!(1), &json!("invalid")));
    assert!(config["refused"]["diagnostics"].as_str().unwrap().starts_with("routes.yaml:11:"), "{config}");
    let answer = reload(&server, "").await;
    assert_eq!((answer.status, answer.header("content-type")), (409, "application/problem+json"));
    assert_eq!(answer.json()["refusal"]["why"], "invalid");
    assert_eq!(answer.json()["detail"].as_str().map(|text| text.starts_with("routes.yaml:11:")), Some(true));
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("\ntramline_config_last_reload_successful 0\n") && metrics.contains("\ntramline_config_generation 1\n"));
    // The whole file is gone, and comes back mended.
    fs::remove_file(server.setup().path("routes.yaml")).unwrap();
    server.logged_when(|line| line["level"] == "ERROR");
    assert_eq!(version(&mut client).await, 1);
    write(&server, "routes.yaml", &numbered(3));
    assert_eq!(server.logged("reloaded")["generation"], 2);
    assert_eq!(version(&mut client).await, 3);
    assert_eq!(server.get("/api/config").await.json()["refused"], Value::Null);
}

#[tokio::test]
async fn a_pipe_is_refused_wherever_a_file_is_wanted_and_holds_up_nothing() {
    let authority = Authority::new();
    let server = authority.in_folder(setup(&numbered(1)).plugin("extra", "fn told(conn, msg) { 1 }")).start();
    let secure = numbered(2).replace("/chat\n", "/chat\n    tls: { cert: tls/tls.crt, key: tls/tls.key }\n");
    let including = numbered(3).replace("version: 1\n", "version: 1\ninclude: [more.yaml]\n");
    for (name, text) in
        [("routes.yaml", &numbered(1)), ("plugins/extra.rhai", &numbered(1)), ("tls/tls.crt", &secure), ("more.yaml", &including)]
    {
        let path = server.setup().path(name);
        let before = fs::read(&path).ok();
        write(&server, "routes.yaml", text);
        fs::remove_file(&path).ok();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let answer = reload(&server, "").await;
        assert_eq!((answer.status, &answer.json()["refusal"]["why"]), (409, &json!("invalid")), "{name}: {answer:?}");
        fs::remove_file(&path).unwrap();
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
        }
        become_(&server, &numbered(1)).await;
    }
    assert_eq!(version(&mut server.client("chat").await).await, 1);
}

#[tokio::test]
async fn where_an_address_cannot_be_bound_nothing_changes() {
    // Nobody else may find the address free.
    let still = |text: &str| text.replace("version: 1\n", "version: 1\nreload: false\n");
    let server = setup(&still(&numbered(1))).start();
    let mut client = server.client("chat").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = OTHER.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let text = format!("{}{other}", numbered(2));
    write(&server, "routes.yaml", &still(&text));
    assert_eq!(reload(&server, "?dry=true").await.json()["refusal"]["why"], "cannot_listen");
    let answer = reload(&server, "").await;
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(answer.json()["refusal"]["why"], "cannot_listen");
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(&taken.local_addr().unwrap().to_string()) && detail.contains("another program listens there"), "{detail}");
    assert_eq!(version(&mut client).await, 1);
    drop(taken);
    let report = reload(&server, "").await.json();
    assert_eq!(report["changes"][1]["path"], "protocols.other", "{report}");
    assert_eq!(version(&mut client).await, 2);
}

#[tokio::test]
async fn an_address_is_handed_over() {
    let server = setup(&format!("{}{OTHER}", numbered(1))).start();
    let port = |name: &str| server.url(name).split('/').nth(2).unwrap().rsplit_once(':').unwrap().1.to_owned();
    let (api, other) = (port("api"), port("other"));
    let with = |api: &str, other: &str| {
        let text = numbered(1).replace("listen: \"localhost:0\"", &format!("listen: \"localhost:{api}\""));
        format!("{text}{}", OTHER.replace("127.0.0.1:0", other))
    };
    let connect = async |port: &str| Client::connect(&format!("ws://127.0.0.1:{port}/other")).await;
    // What the system chose is written down, then both swap their ports, then one of them covers less.
    let mut client = connect(&other).await;
    for (at, text, api_now, other_now) in [
        (&api, with(&other, &format!("localhost:{api}")), &other, &api),
        (&other, with(&api, &format!("127.0.0.1:{other}")), &api, &other),
        (&api, with(&api, &format!("localhost:{other}")), &api, &other),
    ] {
        write(&server, "routes.yaml", &text);
        let url = |port: &str, path: &str| format!("http://127.0.0.1:{port}{path}");
        let answer = request("POST", &url(at, "/api/reload"), &[], None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        connect(other_now).await.expect_nothing().await;
        assert_eq!(request("GET", &url(api_now, "/healthz"), &[], None).await.status, 200);
    }
    client.expect_nothing().await;
}

#[tokio::test]
async fn reloads_leave_no_memory_behind() {
    for text in [numbered(1), numbered(1).replace("version: 1\n", "version: 1\nreload: false\n")] {
        let server = setup(&text).start();
        let held = async || {
            let metrics = server.get("/metrics").await.body;
            let line = metrics.lines().find_map(|line| line.strip_prefix("tramline_memory_live_bytes ")).unwrap();
            line.parse::<f64>().unwrap()
        };
        for _ in 0..20 {
            reload(&server, "").await;
        }
        let before = held().await;
        for _ in 0..100 {
            assert_eq!(reload(&server, "").await.status, 200);
        }
        let grown = held().await - before;
        // Each thread may hold back 16 KiB of the count; a reload that left its configuration behind would hold tens of times that.
        assert!(grown < 200_000.0, "{grown} bytes: {text}");
    }
}

#[tokio::test]
async fn the_store_cannot_change_while_the_server_runs() {
    let server = setup(&numbered(1)).start();
    write(&server, "routes.yaml", &numbered(2).replace("t.db", "u.db"));
    assert_eq!(reload(&server, "").await.json()["refusal"]["why"], "needs_restart");
    assert_eq!(version(&mut server.client("chat").await).await, 1);
}

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

/// Publishes one event; gives its position, which no other event of the test may have.
async fn place(server: &Server, all: &mut HashSet<(String, u64)>, data: u32) -> (String, u64) {
    let event = server.publish(&json!({ "channel": "room:a", "data": data })).await;
    let place = (event["epoch"].as_str().unwrap().to_owned(), event["offset"].as_u64().unwrap());
    assert!(all.insert(place.clone()), "{place:?} was given before");
    place
}

/// What a client that has seen the channel up to a position gets of it.
async fn since(server: &Server, (epoch, offset): &(String, u64)) -> (Value, Vec<Value>) {
    let answer = server.get(&format!("/api/channels/room:a/history?since={offset}&epoch={epoch}")).await.json();
    let events = answer["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
    (answer["recovered"].clone(), events)
}

#[tokio::test]
async fn no_position_is_given_twice_whether_events_are_stored_or_not() {
    let (on, off) = (numbered(1), numbered(1).replace("{ history: true }", "{}"));
    let (mut all, mut stored) = (HashSet::new(), Vec::new());
    let mut server = setup(&on).embed();
    for round in 0..3 {
        for n in 0..2 {
            place(&server, &mut all, round).await;
            stored.push(json!(round));
            if n == 0 {
                become_(&server, &off).await;
                become_(&server, &on).await;
            }
        }
        become_(&server, &off).await;
        place(&server, &mut all, 0).await;
        if round == 1 {
            // It starts with the history off, too.
            server = server.stop().setup.embed();
            place(&server, &mut all, 0).await;
        }
        become_(&server, &on).await;
        place(&server, &mut all, round).await;
        stored.push(json!(round));
        server = server.stop().setup.embed();
    }
    let history = server.get("/api/history?channel=room:a&order=asc").await.json();
    assert_eq!(history["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect::<Vec<_>>(), stored);
}

#[tokio::test]
async fn stored_events_can_be_recovered_once_the_history_is_on_again() {
    let (on, off) = (numbered(1), numbered(1).replace("{ history: true }", "{}"));
    let mut all = HashSet::new();
    let server = setup(&on).embed();
    let first = place(&server, &mut all, 1).await;
    place(&server, &mut all, 2).await;
    become_(&server, &off).await;
    assert_eq!(since(&server, &first).await, (json!(false), vec![]));
    become_(&server, &on).await;
    assert_eq!(since(&server, &first).await, (json!(true), vec![json!(2)]));
    place(&server, &mut all, 3).await;
    assert_eq!(since(&server, &first).await, (json!(true), vec![json!(2), json!(3)]));
    // What is not stored ends the epoch; what comes behind it is no part of the old one.
    become_(&server, &off).await;
    let passing = place(&server, &mut all, 4).await;
    become_(&server, &on).await;
    let last = place(&server, &mut all, 5).await;
    assert_eq!(since(&server, &first).await, (json!(false), vec![]));
    let here = async |server: &Server| {
        assert_eq!(since(server, &(last.0.clone(), first.1)).await, (json!(false), vec![json!(5)]));
        assert_eq!(since(server, &passing).await, (json!(true), vec![json!(5)]));
    };
    here(&server).await;
    here(&server.stop().setup.embed()).await;
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
async fn tls_is_for_those_who_come_after() {
    let authority = Authority::new();
    let server = authority.in_folder(setup(&numbered(1))).start();
    let mut client = server.client("chat").await;
    let secure = numbered(2).replace("/chat\n", "/chat\n    tls: { cert: tls/tls.crt, key: tls/tls.key }\n");
    become_(&server, &secure).await;
    assert_eq!(version(&mut client).await, 2, "who is there stays");
    let mut second = authority.client(&server.url("chat").replace("ws://", "wss://")).await;
    assert_eq!(version(&mut second).await, 2);
    become_(&server, &numbered(3)).await;
    assert_eq!(version(&mut second).await, 3);
    assert_eq!(version(&mut server.client("chat").await).await, 3);
}

#[tokio::test]
async fn a_plugin_can_be_added_and_edited() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    let scripted = |n: u32| format!("fn told(conn, msg) {{ {n} }}");
    fs::create_dir_all(server.setup().path("plugins")).unwrap();
    write(&server, "plugins/teller.rhai", &scripted(7));
    let with = numbered(1).replace("version: { reply: { version: 1 } }", "version: { call: teller.told, reply: { version: $result } }");
    become_(&server, &with).await;
    assert_eq!(version(&mut client).await, 7);
    write(&server, "plugins/teller.rhai", &scripted(8));
    let line = server.logged_when(|line| line["message"] == "reloaded" && line["changed"] == 1 && line["added"] == 0);
    assert_eq!(line["removed"], 0);
    assert_eq!(version(&mut client).await, 8);
    write(&server, "plugins/teller.rhai", "fn other() { }");
    let answer = reload(&server, "").await;
    assert_eq!(answer.json()["refusal"]["why"], "invalid", "{answer:?}");
    assert_eq!(version(&mut client).await, 8);
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

#[tokio::test]
async fn what_would_happen_can_be_asked_first() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    join(&mut client, "room:a").await;
    // Nobody but the test reloads: the answers must not depend on who is first.
    become_(&server, &numbered(1).replace("version: 1\n", "version: 1\nreload: false\n")).await;
    let text = numbered(2).replace("\"room:{name}\"", "\"hall:{name}\"").replace("room:", "hall:");
    write(&server, "routes.yaml", &text.replace("version: 1\n", "version: 1\nreload: false\n"));
    let report = reload(&server, "?dry=true").await.json();
    assert_eq!((&report["dry"], &report["generation"]), (&json!(true), &json!(2)));
    let gone = report["changes"].as_array().unwrap().iter().find(|change| change["path"] == "channels.room:{name}");
    assert_eq!(gone.expect("it is told")["ends"]["subscriptions"], 1, "{report}");
    assert_eq!(version(&mut client).await, 1);
    let url = server.http("api", "/api/reload");
    let outdated = request("POST", &url, &[("if-match", "\"1\"")], None).await;
    assert_eq!((outdated.status, outdated.json()["refusal"]["why"].clone()), (412, json!("outdated")));
    let etag = server.get("/api/config").await.header("etag").to_owned();
    let done = request("POST", &url, &[("if-match", &etag)], None).await;
    assert_eq!((done.status, &done.json()["ended"]["subscriptions"]), (200, &json!(1)));
    assert_eq!(client.next().await["code"], "unknown_channel");
    assert_eq!(version(&mut client).await, 2);
}

#[tokio::test]
async fn a_hang_up_reloads_where_nothing_is_watched() {
    let still = |n: u32| numbered(n).replace("version: 1\n", "version: 1\nreload: false\n");
    let server = setup(&still(1)).start();
    let mut client = server.client("chat").await;
    write(&server, "routes.yaml", &still(2));
    server.signal("HUP");
    let line = server.logged("reloaded");
    assert_eq!((&line["generation"], &line["changed"]), (&json!(2), &json!(1)), "nobody was first");
    assert_eq!(version(&mut client).await, 2);
    // Watched from now on.
    become_(&server, &numbered(2)).await;
    write(&server, "routes.yaml", &numbered(3));
    server.logged_when(|line| line["message"] == "reloaded" && line["generation"] == 4);
    assert_eq!(version(&mut client).await, 3);
}

/// A row whose script, reply and channel event all say which text they are from.
fn tagged(n: u32) -> (String, String) {
    let plugin = format!(
        "fn first(conn, msg) {{ conn.state.v = {n}; {n} }}\nfn second(msg) {{ msg.second = {n}; msg }}\nfn third(msg) {{ {n} == {n} }}"
    );
    let rows = "say: { validate: tags.third, transform: tags.second, to: \"room:{$.room}\", data: { second: $.second, text: $.text } }";
    let rows = format!("{rows}\n      both: {{ call: tags.first, reply: {{ version: $result, state: $conn.state.v }} }}");
    let text = numbered(1).replace("say: { to: \"room:{$.room}\", data: { text: $.text } }", &rows);
    (text, plugin)
}

#[tokio::test]
async fn while_scripts_are_replaced_each_message_is_handled_wholly_by_one_and_none_is_lost() {
    const RELOADS: u32 = 200;
    let (text, plugin) = tagged(0);
    let server = setup(&text).plugin("tags", &plugin).start();
    let mut reader = server.client("chat").await;
    join(&mut reader, "room:a").await;
    let (mut asker, mut sayer) = (server.client("chat").await, server.client("chat").await);
    let reloads = async {
        for n in 1..=RELOADS {
            write(&server, "plugins/tags.rhai", &tagged(n).1);
            let answer = reload(&server, "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    let done = tokio::sync::watch::channel(false);
    let asks = async {
        let mut last = 0;
        while !*done.1.borrow() {
            let answer = asker.ask(&json!({ "type": "both" })).await;
            assert_eq!(answer["version"], answer["state"], "{answer}");
            let version = answer["version"].as_u64().unwrap();
            assert!(version >= last, "an older one came back");
            last = version;
        }
        last
    };
    let says = async {
        let mut said = 0u32;
        while !*done.1.borrow() {
            sayer.send(&json!({ "type": "say", "room": "a", "text": said })).await;
            // Answered after it: so there are never more on the way than a reader can take.
            sayer.expect_nothing().await;
            said += 1;
        }
        said
    };
    let reads = async {
        let (mut next, mut last) = (0, 0);
        loop {
            let event = reader.next().await["data"].clone();
            if event == json!("the end") {
                return next;
            }
            assert_eq!(event["text"], next, "in order, and none is missing");
            let second = event["second"].as_u64().unwrap();
            assert!(second >= last, "an older one came back");
            (next, last) = (next + 1, second);
        }
    };
    let all = async {
        let ((), last, said) = tokio::join!(
            async {
                reloads.await;
                done.0.send_replace(true);
            },
            asks,
            says
        );
        server.publish(&json!({ "channel": "room:a", "data": "the end" })).await;
        (last, said)
    };
    let ((last, said), read) = tokio::join!(all, reads);
    assert_eq!(read, said);
    assert!(last > 0 && said > 0, "something was handled meanwhile");
    assert_eq!(asker.ask(&json!({ "type": "both" })).await["version"], RELOADS);
}

/// One of many configurations, by a number.
fn variant(n: u32) -> (String, String) {
    let has = |bit: u32| n >> bit & 1 == 1;
    let mut channels = "channels: { \"room:{name}\": { history: true }".to_owned();
    if has(0) {
        channels.push_str(", \"news:{name}\": {}");
    }
    if has(1) {
        channels = channels.replace("history: true", "history: { keep: { events: 5 } }");
    }
    channels.push_str(" }\n");
    let mut protocols = CHAT.replace("version: 1", &format!("version: {n}"));
    if has(2) {
        protocols = protocols.replace("limit: 2/1h, ", "");
    }
    if has(3) {
        protocols = protocols.replace("$query.user\n", "$query.user\n    limits: { connections: 3 }\n");
    }
    if has(5) {
        protocols = protocols.replace("ping: {", "scripted: { call: tags.told, reply: { told: $result } }\n      ping: {");
    }
    if has(4) {
        protocols.push_str(OTHER);
    }
    let sources = if has(6) { "sources: { door: { http: POST /door, on: \"localhost:0\", to: \"room:door\" } }\n" } else { "" };
    (format!("{}{sources}", text(&channels, &protocols)), format!("fn told(conn, msg) {{ {n} }}\n"))
}

/// Everything a server says of what it runs, without what has happened to it.
async fn told(server: &Server) -> Value {
    let hash = server.get("/api/config").await.json()["hash"].clone();
    let routes = server.get("/api/routes").await.json();
    let names = |list: &Value, keys: &[&str]| -> Value {
        let pick = |item: &Value| keys.iter().map(|key| item[*key].clone()).collect::<Value>();
        list.as_array().unwrap().iter().map(pick).collect()
    };
    let plugins = names(&server.get("/api/plugins").await.json()["plugins"], &["name", "hash", "state"]);
    let sources = names(&server.get("/api/sources").await.json()["sources"], &["name", "state"]);
    let mut client = server.client("chat").await;
    let mut answers = Vec::new();
    for message in [
        json!({ "type": "version" }),
        json!({ "type": "scripted" }),
        json!({ "type": "rare" }),
        json!({ "type": "rare" }),
        json!({ "type": "rare" }),
        json!({ "type": "join", "channel": "news:a" }),
        json!({ "type": "join", "channel": "room:never" }),
    ] {
        answers.push(client.ask(&message).await);
    }
    client.close().await;
    json!({ "hash": hash, "routes": routes, "plugins": plugins, "sources": sources, "answers": answers })
}

#[tokio::test]
async fn any_way_of_edits_leads_to_what_a_restart_would() {
    let mut state = 11u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16 & 127
    };
    let (text, plugin) = variant(next());
    let server = setup(&text).plugin("tags", &plugin).start();
    let mut client = server.client("chat").await;
    for walk in 0..6 {
        let mut way = Vec::new();
        for _ in 0..8 {
            let n = next();
            way.push(n);
            let (text, plugin) = variant(n);
            write(&server, "plugins/tags.rhai", &plugin);
            become_(&server, &text).await;
            assert_eq!(version(&mut client).await, n, "{way:?}");
        }
        let (text, plugin) = variant(*way.last().unwrap());
        let fresh = setup(&text).plugin("tags", &plugin).start();
        assert_eq!(told(&server).await, told(&fresh).await, "walk {walk}: {way:?}");
    }
}
