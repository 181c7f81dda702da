//! Members of one protocol, some with batches and some without, and what happens when one switches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use serde_json::{Value, json};

use crate::live::Live;
use crate::model::{Json, Now, Origin};
use crate::pipeline::publish::{Destination, Proposal};
use crate::testing::{Client, live};

const YAML: &str = r#"
version: 1
channels: { "room:{id}": {} }
protocols:
  p:
    listen: localhost:1/
    limits: { outbox: 64MiB }
    messages:
      join: { join: $.channel }
      leave: { leave: $.channel }
      turn: { set: { state.on: $.on } }
      move: { set: { state.on: $.on }, leave: "room:*", join: $.channel, reply: { moved: $.channel } }
    deliver: { o: $event.offset }
    batch: { when: $conn.state.on == true, every: 60s, events: 4, as: { all: $messages } }
"#;

/// Clients on `room:a`; the first `batching` of them have batches.
async fn some<const N: usize>(batching: usize) -> (Arc<Live>, [Client; N]) {
    let live = live(YAML, &[]).await;
    let clients = std::array::from_fn(|nth| {
        let mut client = Client::open(&live, &format!("c{nth}"));
        client.say(r#"{"type":"join","channel":"room:a"}"#);
        turn(&mut client, nth < batching);
        client
    });
    (live, clients)
}

fn turn(client: &mut Client, on: bool) {
    client.say(&json!({ "type": "turn", "on": on }).to_string());
}

fn publish(live: &Live, count: usize) {
    for _ in 0..count {
        let origin = Arc::new(Origin { source: "api".into(), ..Origin::default() });
        let proposal = Proposal { kind: "e".into(), data: Json::null(), metadata: None, origin, id: None, except: None };
        live.publish(&live.current(), &[Destination::Channel("room:a".into())], &proposal, Now::read()).unwrap();
    }
}

/// What a client was sent since the last look: a list of offsets for a batch, one offset for a single event.
fn received(client: &Client) -> Value {
    let short = |message: &String| {
        let message: Value = serde_json::from_str(message).unwrap();
        match message["all"].as_array() {
            Some(all) => all.iter().map(|one| one["o"].clone()).collect(),
            None => message.get("o").cloned().unwrap_or(message),
        }
    };
    client.received().iter().map(short).collect()
}

#[tokio::test]
async fn each_member_gets_events_as_it_wants_them() {
    let (live, clients) = some::<4>(2).await;
    publish(&live, 3);
    assert_eq!(clients.each_ref().map(received), [json!([]), json!([]), json!([1, 2, 3]), json!([1, 2, 3])]);
    publish(&live, 1);
    let places: Vec<_> = clients.iter().map(|client| client.connection.outbox.places()).collect();
    assert!(places[0].len() == 1 && places[0] == places[1], "one text, shared by all who batch");
    assert!(places[2].len() == 1 && places[2] == places[3], "and one by all others");
    assert_eq!(clients.each_ref().map(received), [json!([[1, 2, 3, 4]]), json!([[1, 2, 3, 4]]), json!([4]), json!([4])]);
}

#[tokio::test]
async fn whoever_changes_its_mind_misses_nothing_and_gets_nothing_twice() {
    let (live, mut clients) = some::<2>(1).await;
    publish(&live, 2);
    turn(&mut clients[1], true);
    publish(&live, 1);
    assert_eq!(clients.each_ref().map(received), [json!([]), json!([1, 2])], "what comes after the change waits");
    publish(&live, 1);
    assert_eq!(clients.each_ref().map(received), [json!([[1, 2, 3, 4]]), json!([[3, 4]])]);
    publish(&live, 2);
    turn(&mut clients[1], false);
    publish(&live, 1);
    assert_eq!(clients.each_ref().map(received), [json!([]), json!([[5, 6], 7])], "what waited comes first");
    turn(&mut clients[1], true);
    turn(&mut clients[1], true);
    publish(&live, 1);
    assert_eq!(clients.each_ref().map(received), [json!([[5, 6, 7, 8]]), json!([8])]);
}

#[tokio::test]
async fn a_row_that_changes_it_and_moves_on_does_both() {
    let (live, mut clients) = some::<2>(2).await;
    publish(&live, 2);
    clients[0].say(r#"{"type":"move","on":false,"channel":"room:b"}"#);
    assert_eq!(received(&clients[0]), json!([[1, 2], { "moved": "room:b" }]));
    clients[0].say(r#"{"type":"move","on":false,"channel":"room:a"}"#);
    clients[1].say(r#"{"type":"leave","channel":"room:a"}"#);
    publish(&live, 1);
    assert_eq!(clients.each_ref().map(received), [json!([{ "moved": "room:a" }, 3]), json!([[1, 2]])]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_order_stays_while_clients_change_their_minds() {
    const EACH: usize = 2000;
    let (live, mut clients) = some::<3>(3).await;
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let publishers = [0, 1].map(|_| threads.spawn(|| publish(&live, EACH)));
        for client in &mut clients[1..] {
            threads.spawn(|| {
                for on in [false, true].into_iter().cycle().take_while(|_| !done.load(Relaxed)) {
                    turn(client, on);
                }
            });
        }
        publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
        done.store(true, Relaxed);
    });
    for mut client in clients {
        client.say(r#"{"type":"leave","channel":"room:a"}"#);
        let told = received(&client);
        let flat = told.as_array().unwrap().iter().flat_map(|one| one.as_array().cloned().unwrap_or_else(|| vec![one.clone()]));
        assert!(flat.map(|offset| offset.as_u64().unwrap()).eq(1..=2 * EACH as u64), "{told}");
    }
}
