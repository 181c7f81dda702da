//! `GET /api/events`: everything that passes, and what was missed, to whoever comes back.

use serde_json::{Value, json};

use crate::support::{Backend, Server, Setup, Sse, on_both, until};

const CHANNELS: &str = r#"
channels:
  "room:{id}": { history: { tail: 3 } }
  early: { history: { deliver: early } }
  relaxed: { history: { durability: relaxed } }
  "kept:{id}": { history: { tail: 1, keep: { events: 10 } } }
  "other:{id}": { history: {} }
  "live:{id}": {}
"#;

fn setup(backend: Backend) -> Setup {
    Setup::own(CHANNELS).backend(backend)
}

async fn say(server: &Server, channel: &str, n: u64) -> Value {
    server.publish(&json!({ "channel": channel, "type": format!("t{}", n % 2), "data": { "n": n } })).await
}

async fn open(server: &Server, query: &str, last: Option<&str>) -> Events {
    let sse = Sse::open(&server.http("api", &format!("/api/events{query}")), last).await.unwrap();
    Events { sse, last: last.unwrap_or_default().to_owned() }
}

/// A stream, its data read as JSON.
struct Events {
    sse: Sse,
    /// The `id` that came last.
    last: String,
}

/// One event of it.
#[derive(Debug, PartialEq)]
struct Sent {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Events {
    async fn next_or_end(&mut self) -> Option<Sent> {
        let told = self.sse.next().await?;
        self.last.clone_from(&told.id);
        Some(Sent { name: told.name, id: told.placed.then_some(told.id), data: serde_json::from_str(&told.data).unwrap() })
    }

    async fn next(&mut self) -> Sent {
        self.next_or_end().await.expect("the stream is open")
    }

    /// The first event of every stream.
    async fn position(&mut self) -> Value {
        let sent = self.next().await;
        assert_eq!((&*sent.name, sent.id.as_deref()), ("position", sent.data["id"].as_str()));
        sent.data
    }

    /// The next events' data, of which `n` is a number.
    async fn numbers(&mut self, count: usize) -> Vec<u64> {
        let mut found = Vec::new();
        for _ in 0..count {
            let sent = self.next().await;
            found.push(sent.data["data"]["n"].as_u64().unwrap_or_else(|| panic!("{sent:?}")));
        }
        found
    }
}

on_both! {
    async fn what_passes_comes_as_it_is_stored(backend) {
        let server = setup(backend).embed();
        say(&server, "room:a", 0).await;
        let mut events = open(&server, "", None).await;
        assert_eq!(events.position().await.as_object().unwrap().keys().collect::<Vec<_>>(), ["id"], "it came with no position");
        say(&server, "room:a", 1).await;
        let first = events.next().await;
        let stored = server.get("/api/history?limit=1").await;
        let stored: Value = serde_json::from_str(&stored.body).unwrap();
        assert_eq!((&*first.name, &first.data), ("message", &stored["events"][0]));
        assert!(first.id.is_some());
        for (n, channel) in ["early", "relaxed", "live:x", "other:y"].into_iter().enumerate() {
            say(&server, channel, 10 + n as u64).await;
            let sent = events.next().await;
            assert_eq!((&sent.data["channel"], &sent.data["data"]["n"], sent.id.is_some()), (&json!(channel), &json!(10 + n), channel != "live:x"));
        }
        server.publish(&json!({ "channel": "live:x", "data": { "n": [1] } })).await;
        assert_eq!(events.next().await.data["data"], json!({ "n": [1] }));
    }

    async fn a_stream_that_comes_back_has_missed_nothing(backend) {
        let server = setup(backend).embed();
        let mut events = open(&server, "?channel=room:*&channel=early", None).await;
        events.position().await;
        for n in 0..5 {
            say(&server, ["room:a", "room:b", "early"][n as usize % 3], n).await;
        }
        assert_eq!(events.numbers(2).await, [0, 1]);
        let last = events.last.clone();
        drop(events);
        for n in 5..600 {
            say(&server, ["room:a", "other:x", "room:b"][n as usize % 3], n).await;
        }
        let wanted: Vec<u64> = (2..600).filter(|n| *n < 5 || n % 3 != 1).collect();
        // A browser keeps the address it began with.
        for (query, header) in [(String::new(), Some(&*last)), (format!("&after={last}"), None), ("&after=0-0".into(), Some(&*last))] {
            let mut events = open(&server, &format!("?channel=room:*&channel=early{query}"), header).await;
            let position = events.position().await;
            assert_eq!((&position["recovered"], &position["missed"], position["id"].as_str()), (&json!(true), &json!(0), Some(&*last)));
            assert_eq!(events.numbers(wanted.len()).await, wanted);
        }
        let mut events = open(&server, "?channel=room:*&channel=early", Some(&last)).await;
        events.position().await;
        assert_eq!(events.numbers(wanted.len()).await, wanted);
        say(&server, "room:c", 1000).await;
        say(&server, "other:x", 1001).await;
        assert_eq!(events.numbers(1).await, [1000]);
        let mut again = open(&server, "?channel=room:c", Some(&last)).await;
        again.position().await;
        assert_eq!(again.numbers(1).await, [1000]);
    }

    async fn a_restart_and_a_kill_lose_no_place(backend) {
        let server = setup(backend).start();
        let mut events = open(&server, "?channel=room:*", None).await;
        events.position().await;
        say(&server, "room:a", 0).await;
        events.next().await;
        say(&server, "room:a", 1).await;
        let last = events.last.clone();
        let server = server.kill().setup.start();
        say(&server, "room:a", 2).await;
        let mut events = open(&server, "?channel=room:*", Some(&last)).await;
        assert_eq!(events.position().await["recovered"], true);
        assert_eq!(events.numbers(2).await, [1, 2]);
    }

    async fn filters_hold_for_what_was_missed_and_for_what_comes(backend) {
        let server = setup(backend).embed();
        let begin = open(&server, "", None).await.position().await["id"].as_str().unwrap().to_owned();
        let publish = async || {
            for n in 0..6 {
                say(&server, "room:a", n).await;
                say(&server, "live:a", n).await;
            }
            server.publish(&json!({ "channel": "other:z", "type": "end", "data": { "n": 99, "deep": { "list": ["x", "Needle"] } } })).await;
        };
        let cases: [(&str, &[u64], &[u64]); 6] = [
            ("?type=t1", &[1, 3, 5], &[1, 1, 3, 3, 5, 5]),
            ("?channel=room:a&data.n=4", &[4], &[4]),
            ("?data.deep.list.1=Needle", &[99], &[99]),
            ("?q=nEEDLE&source=api", &[99], &[99]),
            ("?channel=live:*&channel=other:*", &[99], &[0, 1, 2, 3, 4, 5, 99]),
            ("?since=-1h&type=end", &[99], &[99]),
        ];
        let mut streams = Vec::new();
        for (query, ..) in &cases {
            let mut events = open(&server, query, None).await;
            events.position().await;
            streams.push(events);
        }
        publish().await;
        for (events, (query, stored, live)) in streams.iter_mut().zip(&cases) {
            // What is read from the log and what only passes keep their own order, not one with the other.
            let mut seen = events.numbers(live.len()).await;
            seen.sort_unstable();
            assert_eq!(seen, *live, "{query}");
            let mut late = open(&server, query, Some(&begin)).await;
            assert_eq!(late.position().await["recovered"], true);
            assert_eq!(late.numbers(stored.len()).await, *stored, "{query}");
            assert_eq!(late.last, events.last, "{query}: both stand at the same place");
        }
    }

    async fn a_stream_may_begin_in_the_past(backend) {
        let server = setup(backend).embed();
        for n in 0..3 {
            say(&server, "room:a", n).await;
        }
        let mut events = open(&server, "?since=-1h&channel=room:a", None).await;
        assert_eq!(events.position().await.get("recovered"), None);
        assert_eq!(events.numbers(3).await, [0, 1, 2]);
        let mut whole = open(&server, "?channel=room:a", Some(&events.last)).await;
        assert_eq!(whole.position().await["recovered"], true);
    }

    async fn what_retention_took_is_counted(backend) {
        let server = setup(backend).embed();
        let mut events = open(&server, "?channel=kept:*&channel=room:a", None).await;
        events.position().await;
        say(&server, "kept:a", 0).await;
        say(&server, "room:a", 1).await;
        assert_eq!(events.numbers(2).await, [0, 1]);
        let last = events.last.clone();
        drop(events);
        for n in 2..50 {
            say(&server, if n % 8 == 0 { "room:a" } else { "kept:a" }, n).await;
        }
        // 43 of them went to the channel that keeps 10.
        let read = async || server.get("/api/history?channel=kept:a&limit=1000").await.json()["events"].as_array().unwrap().len();
        let kept = until("retention", read, |kept| *kept <= 10).await;
        let mut events = open(&server, "?channel=kept:*&channel=room:a", Some(&last)).await;
        let position = events.position().await;
        assert_eq!((&position["recovered"], &position["missed"]), (&json!(false), &json!(42 - kept)));
        let left = events.numbers(kept + 6).await;
        assert_eq!((left.last(), left.is_sorted()), (Some(&49), true));
        // Told once: from here on nothing is missing.
        let mut again = open(&server, "?channel=kept:*&channel=room:a", Some(&events.last)).await;
        assert_eq!(again.position().await["recovered"], true);
        let mut elsewhere = open(&server, "?channel=room:*", Some(&last)).await;
        assert_eq!(elsewhere.position().await["recovered"], true, "this channel lost nothing");
    }

    async fn what_is_removed_before_a_stream_has_read_it_is_counted_in_its_place(backend) {
        let server = setup(backend).embed();
        let url = server.http("api", "/api/events?channel=kept:*&channel=room:a");
        let mut events = Events { sse: Sse::open_narrow(&url).await, last: String::new() };
        events.position().await;
        let text = "x".repeat(20_000);
        const LAST: u64 = 400;
        for n in 1..=LAST {
            let channel = if n % 40 == 0 { "room:a" } else { "kept:a" };
            server.publish(&json!({ "channel": channel, "data": { "n": n, "text": text } })).await;
        }
        // It was not read, so it fell behind by much more than the ten that are kept.
        let (mut seen, mut missing, mut told) = (Vec::new(), 0, 0);
        while seen.last() != Some(&LAST) {
            let sent = events.next().await;
            if sent.name == "position" {
                assert_eq!((&sent.data["recovered"], sent.id.as_deref()), (&json!(false), sent.data["id"].as_str()));
                told += sent.data["missed"].as_u64().unwrap();
            } else {
                let n = sent.data["data"]["n"].as_u64().unwrap();
                missing += n - seen.last().unwrap_or(&0) - 1;
                assert!(told >= missing, "{missing} were missing before {n}, and {told} were told");
                seen.push(n);
            }
        }
        assert!(missing > 200, "{seen:?}");
        assert_eq!((told, seen.iter().filter(|n| *n % 40 == 0).count()), (missing, 10));
        // From here on nothing is missing, whoever comes back.
        server.publish(&json!({ "channel": "kept:a", "data": { "n": LAST + 1 } })).await;
        assert_eq!(events.numbers(1).await, [LAST + 1]);
        let mut again = open(&server, "?channel=kept:*&channel=room:a", Some(&events.last)).await;
        let position = again.position().await;
        assert_eq!((&position["recovered"], &position["missed"]), (&json!(true), &json!(0)));
    }

    async fn random_disconnects_under_load_lose_and_double_nothing(backend) {
        let server = setup(backend).embed();
        let server = &server;
        const EACH: u64 = 150;
        let publish = async |channel: &'static str, from: u64| {
            for n in from..from + EACH {
                say(server, channel, n).await;
            }
        };
        let first = open(server, "?channel=room:*&channel=early&channel=relaxed", None).await.position().await["id"].as_str().map(str::to_owned);
        let reader = async |seed: u64| {
            let (mut seen, mut last, mut random) = (Vec::new(), first.clone(), seed);
            while seen.len() < 3 * EACH as usize {
                let mut events = open(server, "?channel=room:*&channel=early&channel=relaxed", last.as_deref()).await;
                let position = events.position().await;
                assert_eq!((&position["recovered"], &position["missed"]), (&json!(true), &json!(0)));
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                for _ in 0..(random >> 33) % 60 {
                    if seen.len() == 3 * EACH as usize {
                        break;
                    }
                    seen.push(events.next().await.data["id"].clone());
                }
                last = Some(events.last.clone());
            }
            seen
        };
        let late = async {
            let mut events = open(server, "?channel=room:*&channel=early&channel=relaxed", first.as_deref()).await;
            events.position().await;
            let mut seen = Vec::new();
            while seen.len() < 3 * EACH as usize {
                seen.push(events.next().await.data["id"].clone());
            }
            seen
        };
        let ((), (), (), a, b, c) =
            tokio::join!(publish("room:a", 0), publish("early", 1000), publish("relaxed", 2000), reader(1), reader(2), late);
        let all = server.get("/api/history?limit=1000&order=asc").await.json();
        let all: Vec<Value> = all["events"].as_array().unwrap().iter().map(|event| event["id"].clone()).collect();
        for seen in [a, b, c] {
            assert!(seen == all, "not what the log has, in its order");
        }
    }

    async fn a_stream_that_is_not_read_goes_on_where_it_was(backend) {
        let server = setup(backend).embed();
        let url = server.http("api", "/api/events");
        let slow = Events { sse: Sse::open_narrow(&url).await, last: String::new() };
        let (mut slow, mut fast) = (slow, open(&server, "", None).await);
        slow.position().await;
        fast.position().await;
        let text = "x".repeat(20_000);
        for n in 0..400 {
            server.publish(&json!({ "channel": "room:a", "data": { "n": n, "text": text } })).await;
            assert_eq!(fast.numbers(1).await, [n], "others are not held up");
        }
        for n in 0..100 {
            server.publish(&json!({ "channel": "live:a", "data": { "live": n, "text": text } })).await;
        }
        let (mut stored, mut passed, mut dropped) = (Vec::new(), 0, 0);
        while stored.len() < 400 || passed + dropped < 100 {
            let sent = slow.next().await;
            match (&*sent.name, sent.data["data"]["n"].as_u64()) {
                ("dropped", _) => dropped += sent.data["count"].as_u64().unwrap(),
                (_, Some(n)) => stored.push(n),
                _ => passed += 1,
            }
        }
        assert_eq!(stored, (0..400).collect::<Vec<u64>>());
        assert!(dropped > 0, "100 events of 20 kB are more than may be buffered");
    }
}

#[tokio::test]
async fn a_place_that_is_none_of_ours_is_said_so() {
    let server = setup(Backend::Sqlite).embed();
    say(&server, "room:a", 1).await;
    for last in ["garbage", "1-1-1", "ffffffffffffffff-99-99"] {
        let mut events = open(&server, "", Some(last)).await;
        let position = events.position().await;
        assert_eq!((&position["recovered"], &position["missed"]), (&json!(false), &Value::Null), "{last}");
        say(&server, "room:a", 2).await;
        assert_eq!(events.numbers(1).await, [2]);
    }
    // From the future of this very log.
    let now = open(&server, "", None).await.position().await["id"].as_str().unwrap().to_owned();
    let log = now.split('-').next().unwrap();
    let position = open(&server, "", Some(&format!("{log}-1000000-5"))).await.position().await;
    assert_eq!(position["recovered"], false);
    let wrong = server.get("/api/events?after=garbage&until=-1m&limit=5&type=&data.=1").await;
    assert_eq!((wrong.status, wrong.paths()), (400, ["after", "data.", "limit", "type", "until"].map(str::to_owned).to_vec()));
}

#[tokio::test]
async fn a_stop_ends_streams() {
    let server = setup(Backend::Sqlite).start();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut events = open(&server, "", None).await;
        events.position().await;
        streams.push(events);
    }
    server.signal("TERM");
    for mut events in streams {
        assert_eq!(events.next_or_end().await, None);
    }
    assert_eq!(server.wait().code, Some(0));
}
