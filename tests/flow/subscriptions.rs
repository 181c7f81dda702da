//! Several subscriptions of one connection, and how an event is written for each.

use serde_json::json;

use crate::support::{Client, Server, Setup};

const PRICES: &str = r#"
channels: { prices: { history: true } }
protocols:
  market:
    listen: 127.0.0.1:0/
    open: { set: { state.me: $query.me } }
    messages:
      watch: { join: { channel: prices, key: "{$.key}", meta: { above: $.above } }, reply: { watching: $.key } }
      stop: { leave: prices, reply: { stopped: true } }
      set: { to: prices, except: sender }
      ping: { reply: { type: pong } }
    deliver:
      - { when: "$event.type == \"secret\"", ignore: true }
      - { when: "$event.data.price > $sub.meta.above", send: { for: $sub.key, above: $sub.meta.above, price: $event.data.price, me: $conn.state.me } }
      - ignore
  plain:
    listen: 127.0.0.1:0/plain
    open: { join: prices }
    messages: { ping: { reply: { type: pong } } }
  picky:
    listen: 127.0.0.1:0/picky
    open: { join: { channel: prices, meta: { only: odd } } }
    messages: { ping: { reply: { type: pong } } }
    deliver: choose
"#;

const SCRIPT: &str = r#"
fn choose(event, sub, conn) {
    if event.data.price % 2 == 0 { return; }
    #{ price: event.data.price, only: sub.meta.only, on: sub.channel, me: conn.query.me }
}
"#;

fn server() -> Server {
    Setup::own(PRICES).plugin("picky", SCRIPT).embed()
}

async fn price(server: &Server, price: u32) -> u64 {
    let answer = server.publish(&json!({ "channel": "prices", "type": "price", "data": { "price": price } })).await;
    answer["delivered"].as_u64().unwrap()
}

#[tokio::test]
async fn each_subscription_is_asked_and_written_for_itself() {
    let server = server();
    let mut client = Client::connect(&format!("{}?me=ann", server.url("market"))).await;
    for (key, above) in [("low", 10), ("high", 100)] {
        client.ask(&json!({ "type": "watch", "key": key, "above": above })).await;
    }
    assert_eq!(price(&server, 5).await, 0);
    assert_eq!(price(&server, 50).await, 1);
    assert_eq!(client.next().await, json!({ "for": "low", "above": 10, "price": 50, "me": "ann" }));
    assert_eq!(price(&server, 500).await, 2);
    assert_eq!(client.next().await["for"], "low");
    assert_eq!(client.next().await["for"], "high");
    // The same key again takes the place of the one before.
    client.ask(&json!({ "type": "watch", "key": "low", "above": 200 })).await;
    assert_eq!(price(&server, 150).await, 1);
    assert_eq!(client.next().await["for"], "high");
    server.publish(&json!({ "channel": "prices", "type": "secret", "data": { "price": 1000 } })).await;
    client.expect_nothing().await;
    client.ask(&json!({ "type": "stop" })).await;
    assert_eq!(price(&server, 1000).await, 0);
    client.expect_nothing().await;
}

#[tokio::test]
async fn the_sender_can_be_left_out_on_all_its_subscriptions() {
    let server = server();
    let [mut one, mut two] = server.clients("market").await;
    for client in [&mut one, &mut two] {
        for key in ["a", "b"] {
            client.ask(&json!({ "type": "watch", "key": key, "above": 0 })).await;
        }
    }
    one.send(&json!({ "type": "set", "price": 7 })).await;
    assert_eq!((two.next().await["for"].clone(), two.next().await["for"].clone()), (json!("a"), json!("b")));
    one.expect_nothing().await;
}

#[tokio::test]
async fn one_event_is_written_in_each_protocols_own_dialect() {
    let server = server();
    let mut market = server.client("market").await;
    market.ask(&json!({ "type": "watch", "key": "k", "above": 0 })).await;
    let mut plain = server.client("plain").await;
    let mut picky = Client::connect(&format!("{}?me=bob", server.url("picky"))).await;
    plain.expect_nothing().await;
    picky.expect_nothing().await;
    assert_eq!(price(&server, 4).await, 2);
    assert_eq!(price(&server, 5).await, 3);
    assert_eq!(picky.next().await, json!({ "price": 5, "only": "odd", "on": "prices", "me": "bob" }));
    for n in [4, 5] {
        assert_eq!(plain.next().await, json!({ "type": "price", "channel": "prices", "data": { "price": n } }));
        assert_eq!(market.next().await["price"], n);
    }
    picky.expect_nothing().await;
}
