//! A client that comes back says where it stands, and gets what it missed, then what is new: nothing twice, nothing between.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{Client, SOME_TIME, Server, Setup};

/// A protocol whose clients say where they stand. `few` keeps next to nothing in memory, `gone` forgets.
const ROOMS: &str = r#"
channels:
  many: { history: { tail: 100000, tail_bytes: 64MiB } }
  few: { history: { tail: 2 } }
  early: { history: { tail: 2, deliver: early } }
  none: {}
protocols:
  p:
    listen: "127.0.0.1:0/"
    type: /type
    limits: { rate: none, outbox: 64KiB }
    messages:
      ping: { reply: { type: pong } }
      join:
        join: { channel: $.channel, recover: { since: $.since, epoch: $.epoch } }
        reply: { type: joined, recovered: $recovery.recovered, missed: $recovery.missed, offset: $recovery.offset, epoch: $recovery.epoch }
      leave: { leave: $.channel, reply: { type: left } }
      last: { call: last, reply: { type: last, n: $result } }
      say: { to: $.channel, data: { n: $.n }, reply: { type: said } }
    deliver: { o: $event.offset, n: $event.data.n }
    error: { type: error, error: $error.message }
"#;

fn rooms() -> Setup {
    Setup::own(ROOMS).plugin("p", "fn last(conn, msg) { let all = history(\"many\", 1); all[0].data.n }")
}

fn join(channel: &str, since: &Value) -> Value {
    json!({ "type": "join", "channel": channel, "since": since })
}

async fn say(server: &Server, channel: &str, n: u64) -> Value {
    server.publish(&json!({ "channel": channel, "type": "e", "data": { "n": n } })).await
}

/// The offsets that come next.
async fn offsets(client: &mut Client, count: usize) -> Vec<u64> {
    let mut seen = Vec::new();
    for _ in 0..count {
        let event = client.next().await;
        seen.push(event["o"].as_u64().unwrap_or_else(|| panic!("no event: {event}")));
    }
    seen
}

#[tokio::test]
async fn what_was_missed_comes_behind_the_answer_and_before_what_is_new() {
    let server = rooms().embed();
    for channel in ["many", "few", "early"] {
        let mut epoch = Value::Null;
        for n in 1..=20 {
            epoch = say(&server, channel, n).await["epoch"].take();
        }
        let mut client = Client::connect(server.url("p")).await;
        let answer = client.ask(&json!({ "type": "join", "channel": channel, "since": 5, "epoch": epoch })).await;
        assert_eq!(answer, json!({ "type": "joined", "recovered": true, "missed": 0, "offset": 20, "epoch": epoch }), "{channel}");
        say(&server, channel, 21).await;
        assert_eq!(offsets(&mut client, 16).await, (6..=21).collect::<Vec<_>>(), "{channel}");
        client.expect_nothing().await;

        // Nothing missed; the past not wanted; as text, as from a query.
        assert_eq!(client.ask(&join(channel, &json!(21))).await["recovered"], true);
        let live = client.ask(&join(channel, &Value::Null)).await;
        assert_eq!(live, json!({ "type": "joined", "offset": 21, "epoch": epoch }));
        client.expect_nothing().await;
        assert_eq!(client.ask(&join(channel, &json!("20"))).await["recovered"], true);
        assert_eq!(offsets(&mut client, 1).await, [21]);

        // Another stream, the future, and what is no position.
        let other = client.ask(&json!({ "type": "join", "channel": channel, "since": 20, "epoch": "abc" })).await;
        assert_eq!((&other["recovered"], other.get("missed")), (&json!(false), Some(&Value::Null)));
        assert_eq!(client.ask(&join(channel, &json!(22))).await["recovered"], false);
        client.expect_nothing().await;
        for wrong in [json!(-1), json!(1.5), json!("x"), json!({}), json!([1]), json!(true)] {
            assert_eq!(client.ask(&join(channel, &wrong)).await["type"], "error", "{wrong}");
        }
    }
}

#[tokio::test]
async fn a_message_sees_what_those_before_it_did_though_they_wait_for_the_store() {
    let server = rooms().embed();
    let mut client = Client::connect(server.url("p")).await;
    for n in 1..=100 {
        for message in [
            json!({ "type": "say", "channel": "many", "n": n }),
            json!({ "type": "last" }),
            json!({ "type": "join", "channel": "many", "since": n - 1 }),
            json!({ "type": "leave", "channel": "many" }),
            json!({ "type": "ping" }),
        ] {
            client.send(&message).await;
        }
    }
    for n in 1..=100 {
        assert_eq!(client.next().await, json!({ "type": "said" }));
        assert_eq!(client.next().await, json!({ "type": "last", "n": n }));
        let joined = client.next().await;
        assert_eq!((&joined["recovered"], &joined["offset"]), (&json!(true), &json!(n)), "{joined}");
        assert_eq!(client.next().await, json!({ "o": n, "n": n }));
        assert_eq!(client.next().await, json!({ "type": "left" }));
        assert_eq!(client.next().await, json!({ "type": "pong" }));
    }
}

#[tokio::test]
async fn a_channel_without_a_history_says_that_it_has_none() {
    let server = rooms().embed();
    let mut there = Client::connect(server.url("p")).await;
    assert_eq!(there.ask(&join("none", &json!(0))).await["recovered"], true);
    say(&server, "none", 1).await;
    say(&server, "none", 2).await;
    let mut late = Client::connect(server.url("p")).await;
    let answer = late.ask(&join("none", &json!(0))).await;
    assert_eq!((&answer["recovered"], &answer["missed"], &answer["offset"]), (&json!(false), &json!(2), &json!(2)));
    late.expect_nothing().await;
}

#[tokio::test]
async fn more_than_an_outbox_holds_is_given_as_the_client_reads() {
    let server = rooms().embed();
    // Some 40 bytes a frame, an outbox of 64 KiB: many times what fits.
    for channel in ["many", "few"] {
        for batch in 0..10u64 {
            let mut publisher = Client::connect(server.url("p")).await;
            for n in 0..1000 {
                publisher.send(&json!({ "type": "say", "channel": channel, "n": batch * 1000 + n })).await;
            }
            for _ in 0..1000 {
                assert_eq!(publisher.next().await["type"], "said");
            }
        }
        let mut client = Client::connect_narrow(server.url("p")).await;
        assert_eq!(client.ask(&join(channel, &json!(0))).await["recovered"], true);
        assert_eq!(offsets(&mut client, 10_000).await, (1..=10_000).collect::<Vec<_>>(), "{channel}");
        say(&server, channel, 1).await;
        assert_eq!(offsets(&mut client, 1).await, [10_001]);
    }
}

#[tokio::test]
async fn what_is_removed_before_it_was_read_is_not_left_out_silently() {
    let (some, all) =
        ("DELETE FROM events WHERE \"offset\" <= 7; UPDATE channels SET first = 8", "DELETE FROM events; UPDATE channels SET first = 21");
    for (sql, missed) in [(some, 2), (all, 13)] {
        let server = rooms().embed();
        for n in 1..=20 {
            say(&server, "few", n).await;
        }
        // As retention does, at the moment when nobody has been told yet.
        server.change_database(sql).await;
        let mut client = Client::connect(server.url("p")).await;
        assert_eq!(client.ask(&join("few", &json!(5))).await["recovered"], true);
        assert_eq!(client.closed().await.0, 1012);
        // Whoever comes back is told.
        let mut client = Client::connect(server.url("p")).await;
        let answer = client.ask(&join("few", &json!(5))).await;
        assert_eq!((&answer["recovered"], &answer["missed"]), (&json!(false), &json!(missed)));
        let after = 5 + missed;
        assert_eq!(offsets(&mut client, 20 - after).await, (after as u64 + 1..=20).collect::<Vec<_>>());
        say(&server, "few", 21).await;
        assert_eq!(offsets(&mut client, 1).await, [21]);
    }
}

#[tokio::test]
async fn an_offset_that_never_had_an_event_is_no_gap() {
    let server = rooms().embed();
    for n in 1..=20 {
        say(&server, "few", n).await;
    }
    // As if the database had refused them.
    server.change_database("DELETE FROM events WHERE \"offset\" IN (6, 7, 10)").await;
    let mut client = Client::connect(server.url("p")).await;
    assert_eq!(client.ask(&join("few", &json!(5))).await["recovered"], true);
    assert_eq!(offsets(&mut client, 12).await, [8, 9].into_iter().chain(11..=20).collect::<Vec<_>>());
    client.expect_nothing().await;
}

#[tokio::test]
async fn large_events_are_read_a_few_at_a_time() {
    let server = Setup::own(&ROOMS.replace("outbox: 64KiB", "outbox: 2MiB")).plugin("p", "fn last(conn, msg) {}").embed();
    let more = "x".repeat(400_000);
    for n in 1..=12 {
        server.publish(&json!({ "channel": "few", "type": "e", "data": { "n": n, "more": more } })).await;
    }
    let mut client = Client::connect(server.url("p")).await;
    assert_eq!(client.ask(&join("few", &json!(0))).await["recovered"], true);
    assert_eq!(offsets(&mut client, 12).await, (1..=12).collect::<Vec<_>>());
    client.expect_nothing().await;
}

#[tokio::test]
async fn positions_hold_over_a_restart() {
    let setup = rooms();
    let server = setup.clone().embed();
    for n in 1..=5 {
        say(&server, "many", n).await;
    }
    let epoch = say(&server, "many", 6).await["epoch"].clone();
    server.stop();
    let server = setup.embed();
    let mut client = Client::connect(server.url("p")).await;
    let answer = client.ask(&json!({ "type": "join", "channel": "many", "since": 2, "epoch": epoch })).await;
    assert_eq!((&answer["recovered"], &answer["epoch"], &answer["offset"]), (&json!(true), &epoch, &json!(6)));
    assert_eq!(offsets(&mut client, 4).await, [3, 4, 5, 6]);
    assert_eq!(say(&server, "many", 7).await["offset"], 7);
    assert_eq!(offsets(&mut client, 1).await, [7]);
}

#[tokio::test]
async fn canvas_and_workspace_recover_and_others_see_no_positions() {
    let server = Server::shipped();
    let notice = |n: u64| json!({ "channel": "custom:x", "type": "event", "data": { "n": n } });
    let mut plain = Client::connect(server.url("workspace")).await;
    let subscribe = json!({ "type": "subscribe", "channel": "custom:x" });
    assert_eq!(plain.ask(&subscribe).await, json!({ "type": "subscribed", "channel": "custom:x", "timestamp": SOME_TIME }));
    let epoch = server.publish(&notice(1)).await["epoch"].clone();
    server.publish(&notice(2)).await;
    for n in 1..=2 {
        let event = json!({ "type": "event", "channel": "custom:x", "data": { "n": n }, "timestamp": SOME_TIME });
        assert_eq!(plain.next().await, event);
    }
    let mut back = Client::connect(server.url("workspace")).await;
    let answer = back.ask(&json!({ "type": "subscribe", "channel": "custom:x", "since": 1, "epoch": epoch })).await;
    let recovery = json!({ "type": "subscribed", "channel": "custom:x", "timestamp": SOME_TIME, "recovered": true, "missed": 0, "offset": 2, "epoch": epoch });
    assert_eq!(answer, recovery);
    let missed = json!({ "type": "event", "channel": "custom:x", "data": { "n": 2 }, "timestamp": SOME_TIME, "offset": 2, "epoch": epoch });
    assert_eq!(back.next().await, missed);

    let progress = |n: u64| json!({ "progress": { "chunksReceived": n, "contentLength": n } });
    let told = async |n| server.publish(&json!({ "session": "s", "type": "ai_progress", "data": progress(n) })).await;
    let epoch = told(1).await["epoch"].as_str().unwrap().to_owned();
    told(2).await;
    let event = json!({ "type": "ai_progress", "sessionId": "s", "progress": progress(2)["progress"], "timestamp": SOME_TIME, "offset": 2, "epoch": epoch });
    let mut page = Client::connect(server.url("canvas")).await;
    page.next().await;
    let answer = page.ask(&json!({ "type": "subscribe", "sessionId": "s", "since": 1, "epoch": epoch })).await;
    assert_eq!((&answer["type"], &answer["recovered"], &answer["offset"]), (&json!("subscribed"), &json!(true), &json!(2)));
    assert_eq!(page.next().await, event);
    let mut page = Client::connect(&format!("{}?sessionId=s&since=1&epoch={epoch}", server.url("canvas"))).await;
    assert_eq!(page.next().await["recovered"], true);
    assert_eq!(page.next().await, event);
}

/// What one client does while others publish as fast as they can: reads so many events, goes away, comes back.
async fn comes_and_goes(server: &Server, channel: &str, visits: &[usize], last: u64) {
    let (mut seen, mut epoch) = (0, Value::Null);
    for (index, visit) in visits.iter().chain(&[usize::MAX]).enumerate() {
        let mut client = Client::connect(server.url("p")).await;
        let answer = client.ask(&json!({ "type": "join", "channel": channel, "since": seen, "epoch": epoch })).await;
        assert_eq!((&answer["recovered"], &answer["missed"]), (&json!(true), &json!(0)), "visit {index}: {answer}");
        epoch = answer["epoch"].clone();
        for _ in 0..*visit {
            if seen == last {
                return;
            }
            let event = client.next().await;
            assert_eq!(event["o"].as_u64(), Some(seen + 1), "visit {index}: {event}");
            seen += 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_doubled_however_clients_come_and_go(
        visits in prop::collection::vec(prop::collection::vec(0..400usize, 1..12), 6),
    ) {
        const EACH: u64 = 1500;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let server = std::sync::Arc::new(rooms().embed());
            let mut tasks = tokio::task::JoinSet::new();
            for channel in ["many", "few", "early"] {
                for _ in 0..2 {
                    let server = server.clone();
                    tasks.spawn(async move {
                        let mut publisher = Client::connect(server.url("p")).await;
                        for n in 0..EACH {
                            publisher.send(&json!({ "type": "say", "channel": channel, "n": n })).await;
                            if n % 50 == 49 {
                                for _ in 0..50 {
                                    assert_eq!(publisher.next().await["type"], "said");
                                }
                            }
                        }
                    });
                }
            }
            for (index, visits) in visits.into_iter().enumerate() {
                let server = server.clone();
                tasks.spawn(async move { comes_and_goes(&server, ["many", "few", "early"][index % 3], &visits, 2 * EACH).await });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_clients_that_come_back_is_served_while_others_publish() {
    const CLIENTS: usize = 5000;
    const LAST: u64 = 120;
    assert!(rlimit::increase_nofile_limit(20_000).unwrap() > 6000, "the system allows too few open files");
    let server = std::sync::Arc::new(rooms().embed());
    for n in 1..=100 {
        say(&server, "many", n).await;
    }
    // They connect a few at a time and come back all at once.
    let mut connecting = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    for index in 0..CLIENTS {
        let url = server.url("p").to_owned();
        connecting.spawn(async move { Client::connect(&url).await });
        if connecting.len() == 100 || index + 1 == CLIENTS {
            while let Some(client) = connecting.join_next().await {
                clients.push(client.unwrap());
            }
        }
    }
    let mut tasks = tokio::task::JoinSet::new();
    for mut client in clients {
        tasks.spawn(async move {
            client.send(&join("many", &json!(0))).await;
            let answer = client.next_frame().await.into_text().unwrap();
            assert!(answer.starts_with(r#"{"type":"joined","recovered":true,"missed":0,"#), "{answer}");
            for offset in 1..=LAST {
                let event = client.next_frame().await.into_text().unwrap();
                assert!(event.starts_with(&format!("{{\"o\":{offset},")), "{event} instead of {offset}");
            }
        });
    }
    for n in 101..=LAST {
        say(&server, "many", n).await;
    }
    let mut served = 0;
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
        served += 1;
    }
    assert_eq!(served, CLIENTS);
}
