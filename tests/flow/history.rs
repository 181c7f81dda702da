//! Questions to the log: filters, exports, and one channel from a position on.

use std::time::Instant;

use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::{Backend, Client, Lines, Server, Setup, on_both, request, soon, until};

const CHANNELS: &str = r#"
channels:
  "room:{id}": { history: { tail: 3 } }
  "kept:{id}": { history: { tail: 1, keep: { events: 10 } } }
  "live:{id}": {}
protocols:
  p:
    listen: "127.0.0.1:0/"
    type: /type
    user: $query.user
    messages:
      join: { join: { channel: $.channel, meta: $.meta }, reply: { type: joined } }
"#;

fn setup(backend: Backend) -> Setup {
    Setup::own(CHANNELS).backend(backend)
}

async fn say(server: &Server, channel: &str, n: u64) -> Value {
    server.publish(&json!({ "channel": channel, "type": format!("t{}", n % 2), "data": { "n": n } })).await
}

fn numbers(answer: &Value) -> Vec<u64> {
    answer["events"].as_array().unwrap_or_else(|| panic!("{answer}")).iter().map(|e| e["data"]["n"].as_u64().unwrap()).collect()
}

on_both! {
    async fn filters_are_combined(backend) {
        let server = setup(backend).embed();
        for n in 0..8 {
            say(&server, ["room:a", "room:b"][n as usize / 4], n).await;
        }
        server.publish(&json!({ "channel": "room:c", "data": { "n": 99, "sessionId": 42, "by": [{ "name": "Ünal" }], "ok": true } })).await;
        let cases: [(&str, &[u64]); 16] = [
            ("channel=room:a&type=t1", &[3, 1]),
            ("channel=room:*&type=t0&order=asc", &[0, 2, 4, 6]),
            ("data.n=5", &[5]),
            ("data.n=5.0", &[]),
            ("data.sessionId=42&data.ok=true", &[99]),
            ("data.sessionId=42&data.ok=false", &[]),
            ("data.by.0.name=%C3%9Cnal", &[99]),
            ("data.by.0.name=%C3%BCnal", &[]),
            ("q=%C3%9CNAL", &[99]),
            ("q=%25", &[]),
            ("since=-1h&until=-1m", &[]),
            ("since=-1h&channel=room:b", &[7, 6, 5, 4]),
            ("since=2024-01-01T00:00:00%2B02:00&type=t1&source=api", &[7, 5, 3, 1]),
            ("until=2024-01-01", &[]),
            ("user=nobody", &[]),
            ("client=nobody&session=nothing&source=api", &[]),
        ];
        for (query, wanted) in cases {
            let answer = server.get(&format!("/api/history?{query}")).await;
            assert_eq!((answer.status, numbers(&answer.json())), (200, wanted.to_vec()), "{query}");
        }
    }

    async fn an_export_is_every_match_a_line_each(backend) {
        let server = setup(backend).embed();
        for n in 0..700 {
            say(&server, "room:a", n).await;
        }
        server.post("/api/publish", &json!({ "channel": "room:b", "data": {} })).await;
        let pretty = "{ \"channel\": \"room:a\", \"data\": {\n  \"n\": 700\r\n} }";
        let posted = request("POST", &server.http("api", "/api/publish"), &[("content-type", "application/json")], Some(pretty)).await;
        assert_eq!(posted.status, 202);
        let lines = async |query: &str| {
            let accept = [("accept", "text/html, application/x-ndjson;q=0.9")];
            let answer = request("GET", &server.http("api", &format!("/api/history?channel=room:a{query}")), &accept, None).await;
            assert_eq!((answer.status, answer.header("content-type")), (200, "application/x-ndjson"), "{answer:?}");
            let lines = answer.body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["data"]["n"].as_u64().unwrap());
            lines.collect::<Vec<u64>>()
        };
        assert_eq!(lines("&order=asc").await, (0..=700).collect::<Vec<u64>>());
        assert_eq!(lines("&limit=300").await, (401..=700).rev().collect::<Vec<u64>>());
        let page = server.get("/api/history?channel=room:a&limit=2").await.json();
        assert_eq!(numbers(&page), [700, 699]);
        assert_eq!(lines(&format!("&limit=3&cursor={}", page["next"].as_str().unwrap())).await, [698, 697, 696]);
        assert_eq!(lines("&type=t1&data.n=51").await, [51]);
    }

    async fn a_channel_is_read_on_from_a_position(backend) {
        let server = setup(backend).embed();
        let mut epoch = Value::Null;
        for n in 1..=20 {
            epoch = say(&server, "room:a", n).await["epoch"].clone();
        }
        let read = async |query: &str| server.get(&format!("/api/channels/room:a/history{query}")).await.json();
        // Memory has three; the rest comes from the log.
        for (since, count) in [(18, 2), (17, 3), (5, 15), (20, 0)] {
            let answer = read(&format!("?since={since}&epoch={}", epoch.as_str().unwrap())).await;
            assert_eq!(numbers(&answer), (since + 1..=20).collect::<Vec<u64>>(), "{since}");
            assert_eq!(numbers(&answer).len(), count);
            let wanted = json!({ "offset": 20, "epoch": epoch, "recovered": true, "missed": 0 });
            assert_eq!(json!({ "offset": answer["offset"], "epoch": answer["epoch"], "recovered": answer["recovered"], "missed": answer["missed"] }), wanted);
        }
        let page = read("?since=2&limit=3").await;
        assert_eq!((numbers(&page), &page["offset"]), (vec![3, 4, 5], &json!(5)));
        let page = read("?limit=2").await;
        assert_eq!((numbers(&page), &page["recovered"]), (vec![1, 2], &json!(true)));
        let other = read("?since=12&epoch=abc").await;
        assert_eq!((&other["recovered"], &other["missed"], &other["events"], &other["offset"]), (&json!(false), &Value::Null, &json!([]), &json!(20)));
        let future = read("?since=21").await;
        assert_eq!((&future["recovered"], future.get("missed")), (&json!(false), Some(&Value::Null)));
        let unknown = server.get("/api/channels/room:new/history").await.json();
        assert_eq!(unknown, json!({ "events": [], "offset": 0, "epoch": null, "recovered": true, "missed": 0 }));
        assert_eq!(server.get("/api/channels/nowhere/history").await.status, 404);
        let wrong = server.get("/api/channels/room:a/history?since=-1&epoch=xyz&limit=0&wait=61s&when=1").await;
        assert_eq!((wrong.status, wrong.paths()), (400, ["epoch", "limit", "since", "wait", "when"].map(str::to_owned).to_vec()));
    }

    async fn what_retention_took_is_missed_and_said_so(backend) {
        let server = setup(backend).embed();
        for n in 1..=30 {
            say(&server, "kept:a", n).await;
        }
        let read = async || server.get("/api/channels/kept:a/history?since=3").await.json();
        let answer = until("retention", read, |answer| answer["missed"].as_u64().unwrap() >= 17).await;
        let missed = answer["missed"].as_u64().unwrap();
        assert_eq!((numbers(&answer), &answer["recovered"]), ((4 + missed..=30).collect(), &json!(false)));
    }

    async fn a_wait_ends_with_the_next_event(backend) {
        let server = setup(backend).embed();
        let server = &server;
        // A channel that has a past, one that never had an event, and one that keeps none.
        say(server, "room:a", 1).await;
        for (channel, since) in [("room:a", 1), ("room:new", 0), ("live:a", 0)] {
            let path = format!("/api/channels/{channel}/history?since={since}&wait=15s");
            let ask = server.get(&path);
            let publish = async {
                until("a wait", async || server.get("/metrics").await.body, |all| all.contains("log_followers 1")).await;
                say(server, channel, since + 1).await
            };
            let (answer, published) = tokio::join!(ask, publish);
            let answer = answer.json();
            assert_eq!(numbers(&answer), [since + 1], "{channel}: {answer}");
            assert_eq!((&answer["offset"], &answer["epoch"], &answer["recovered"]), (&json!(since + 1), &published["epoch"], &json!(true)), "{channel}");
        }
        let begin = Instant::now();
        let at_once = server.get("/api/channels/room:a/history?since=1&wait=60s").await.json();
        assert_eq!(numbers(&at_once), [2]);
        let lost = server.get("/api/channels/room:a/history?since=9&wait=60s").await.json();
        assert_eq!(lost["recovered"], false);
        let nothing = server.get("/api/channels/room:a/history?since=2&wait=50ms").await.json();
        assert_eq!((&nothing["events"], &nothing["offset"], &nothing["recovered"]), (&json!([]), &json!(2), &json!(true)));
        assert!(begin.elapsed().as_secs() < 30);
    }
}

#[tokio::test]
async fn what_is_removed_while_it_is_read_is_missed_and_said_so() {
    let server = setup(Backend::Sqlite).embed();
    for n in 1..=20 {
        say(&server, "room:a", n).await;
    }
    let read = async |since: u64| {
        let answer = server.get(&format!("/api/channels/room:a/history?since={since}&limit=5")).await.json();
        (numbers(&answer), answer["recovered"].clone(), answer["missed"].clone(), answer["offset"].clone())
    };
    // As if the database had refused one.
    server.change_database("DELETE FROM events WHERE \"offset\" = 6").await;
    assert_eq!(read(5).await, (vec![7, 8, 9, 10, 11], json!(true), json!(0), json!(11)));
    // As retention does, at the moment when nobody has been told yet.
    server.change_database("DELETE FROM events WHERE \"offset\" <= 12; UPDATE channels SET first = 13").await;
    assert_eq!(read(5).await, (vec![13, 14, 15, 16, 17], json!(false), json!(7), json!(17)));
    assert_eq!(read(12).await, (vec![13, 14, 15, 16, 17], json!(true), json!(0), json!(17)));
    server.change_database("DELETE FROM events; UPDATE channels SET first = 21").await;
    assert_eq!(read(5).await, (vec![], json!(false), json!(15), json!(20)));
}

#[tokio::test]
async fn a_wait_does_not_take_another_stream_for_its_own() {
    let server = setup(Backend::Sqlite).embed();
    let join = json!({ "type": "join", "channel": "live:a" });
    let mut client = Client::connect(server.url("p")).await;
    client.ask(&join).await;
    say(&server, "live:a", 1).await;
    let epoch = say(&server, "live:a", 2).await["epoch"].clone();
    let path = format!("/api/channels/live:a/history?since=2&epoch={}&wait=15s", epoch.as_str().unwrap());
    let publish = async {
        until("a wait", async || server.get("/metrics").await.body, |all| all.contains("log_followers 1")).await;
        // Without a subscriber the channel is gone, and the next one begins it anew.
        client.close().await;
        until("no channel", async || server.get("/api/channels/live:a").await.status, |status| *status == 404).await;
        let mut client = Client::connect(server.url("p")).await;
        client.ask(&join).await;
        for n in 1..=3 {
            say(&server, "live:a", n).await;
        }
        client
    };
    let (answer, _client) = tokio::join!(server.get(&path), publish);
    let answer = answer.json();
    assert_eq!((&answer["events"], &answer["recovered"], answer.get("missed")), (&json!([]), &json!(false), Some(&Value::Null)));
    assert_ne!(answer["epoch"], epoch);
}

#[tokio::test]
async fn everything_wrong_is_named_at_once() {
    let server = setup(Backend::Sqlite).embed();
    let long = "x".repeat(300);
    let query = format!(
        "limit=1001&order=up&cursor=!&since=yesterday&until=2024-99-01&q=&type=&type=x&channel={long}&user=%00&data.a..b=1&data.=2&typ=1&data.n=1&data.n=2"
    );
    let answer = server.get(&format!("/api/history?{query}")).await;
    let mut wanted =
        vec!["channel", "cursor", "data.", "data.a..b", "data.n", "limit", "order", "q", "since", "typ", "type", "type", "until", "user"];
    wanted.sort_unstable();
    assert_eq!((answer.status, answer.paths()), (400, wanted.into_iter().map(str::to_owned).collect::<Vec<_>>()));
}

#[tokio::test]
async fn a_stop_ends_a_wait() {
    let server = setup(Backend::Sqlite).start();
    say(&server, "room:a", 1).await;
    let url = server.http("api", "/api/channels/room:a/history?since=1&wait=60s");
    let waiting = tokio::spawn(async move { request("GET", &url, &[], None).await });
    // Its connection is there before this one's.
    server.get("/healthz").await;
    server.signal("TERM");
    let answer = soon("the answer", waiting).await.unwrap().json();
    assert_eq!(answer["events"], json!([]));
    assert_eq!(server.wait().code, Some(0));
}

#[tokio::test]
async fn members_are_who_is_there() {
    let server = setup(Backend::Sqlite).embed();
    let none = server.get("/api/channels/room:a/members").await.json();
    assert_eq!(none, json!({ "members": [] }));
    let url = format!("{}?user=ann", server.url("p"));
    let mut clients = Vec::new();
    for n in 0..3 {
        let mut client = Client::connect(&url).await;
        assert_eq!(client.ask(&json!({ "type": "join", "channel": "room:a", "meta": { "n": n } })).await["type"], "joined");
        clients.push(client);
    }
    let all = server.get("/api/channels/room:a/members").await.json();
    let all = all["members"].as_array().unwrap();
    assert_eq!(all.iter().map(|m| m["meta"]["n"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(all.iter().all(|m| m["user"] == "ann" && m["protocol"] == "p" && m["client"].is_string() && m["since"].is_string()), "{all:?}");
    assert_eq!(server.get("/api/channels/room:a/members?limit=2").await.json()["members"].as_array().unwrap().len(), 2);
    assert_eq!(server.get("/api/channels/nowhere/members").await.status, 404);
}

/// A great log is read in a small memory, and a search that finds nothing in it is cut short.
#[tokio::test]
async fn a_great_export_needs_a_constant_memory() {
    const ROWS: u64 = 220_000;
    let setup = setup(Backend::Sqlite).embed().stop().setup;
    let mut db = sqlx::SqliteConnection::connect(&format!("sqlite://{}", setup.path("t.db").display())).await.unwrap();
    let fill = format!(
        "INSERT INTO channels (name, epoch, top, first) VALUES ('room:great', 7, {ROWS}, 1);
         INSERT INTO events (id, channel, \"offset\", epoch, uuid, type, data, time_ms, source)
         SELECT n, (SELECT id FROM channels WHERE name = 'room:great'), n, 7, x'0190a5d2c0de7000800000000000abcd', 'x',
         '{{\"n\":' || n || ',\"text\":\"some text that makes it about as long as events are\"}}', 1700000000000 + n, 'api'
         FROM (WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < {ROWS}) SELECT n FROM g)"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(fill)).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
    let server = setup.embed();
    let live = async || server.get("/api/stats").await.json()["memory"]["liveBytes"].as_u64().unwrap();
    let before = live().await;
    let mut export = Lines::open(&server.http("api", "/api/history?order=asc"), "application/x-ndjson").await;
    let (mut count, mut peak) = (0, 0);
    while let Some(line) = export.next().await {
        count += 1;
        assert!(line.contains(&format!("\"data\":{{\"n\":{count},")), "{line}");
        if count % 50_000 == 0 {
            peak = peak.max(live().await);
        }
    }
    assert_eq!(count, ROWS);
    assert!(peak < before + (24 << 20), "{before} bytes before, {peak} at most");
    let (mut query, mut pages) = ("/api/history?q=nowhere-in-it".to_owned(), 0);
    loop {
        let begin = Instant::now();
        let page = server.get(&query).await.json();
        assert_eq!((&page["events"], begin.elapsed().as_secs() < 5), (&json!([]), true));
        pages += 1;
        match page["next"].as_str() {
            Some(next) => {
                assert_eq!(page["truncated"], true);
                query = format!("/api/history?q=nowhere-in-it&cursor={next}");
            }
            None => break,
        }
    }
    assert!(pages > 1, "220,000 rows are more than one page looks at");
}
