//! What everything stands on must not end: where one of its tasks does, the server stops, says which, and loses nothing that it
//! acknowledged.

use serde_json::{Value, json};

use crate::support::{Server, Setup};

const YAML: &str = r#"
channels: { log: { history: true } }
protocols:
  p:
    listen: localhost:0/
    messages: { ping: { reply: { type: pong } } }
"#;

async fn break_down(task: &str) {
    let server = Setup::own(YAML).env("TRAMLINE_BREAK_DOWN", task).start();
    let mut client = server.client("p").await;
    client.expect_nothing().await;
    for n in 0..20 {
        server.publish(&json!({ "channel": "log", "data": n })).await;
    }
    server.signal("USR2");
    let ended = server.wait();
    assert_eq!(ended.code, Some(1), "{task}: {:#?}", ended.log);
    let told = |line: &Value| line["level"] == "ERROR" && line["task"].as_str().is_some_and(|name| name.starts_with(task));
    assert!(ended.log.iter().any(told), "{task}: {:#?}", ended.log);
    let again: Server = ended.setup.env("TRAMLINE_BREAK_DOWN", "").start();
    let history = again.get("/api/history?channel=log&order=asc").await.json();
    let kept: Vec<_> = history["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
    assert_eq!(kept, (0..20).map(Value::from).collect::<Vec<_>>(), "{task}");
}

#[tokio::test]
async fn the_store_writer_may_not_end() {
    break_down("store writer").await;
}

#[tokio::test]
async fn the_commit_queue_may_not_end() {
    break_down("commit queue").await;
}

#[tokio::test]
async fn no_flush_may_end() {
    break_down("flush 0").await;
}

#[tokio::test]
async fn the_batches_may_not_end() {
    break_down("batches").await;
}

#[tokio::test]
async fn the_feed_may_not_end() {
    break_down("feed").await;
}

#[tokio::test]
async fn the_housekeeping_may_not_end() {
    break_down("housekeeping").await;
}

#[tokio::test]
async fn the_reload_may_not_end() {
    break_down("reload").await;
}
