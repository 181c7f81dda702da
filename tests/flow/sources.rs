//! What a source says of itself while its events fail, and after.

use serde_json::{Value, json};

use crate::support::{Server, Setup, request, until};

const TIMER: &str = r#"
channels: { ticks: {} }
sources:
  clock: { every: 20ms, emit: { type: tick, data: { n: 1 } }, when: $data.n, to: ticks }
"#;

async fn clock(server: &Server, holds: impl Fn(&Value) -> bool) -> Value {
    until("the source says so", async || server.get("/api/sources").await.json()["sources"][0].clone(), holds).await
}

#[tokio::test]
async fn the_last_error_of_a_timer_is_that_of_its_last_event() {
    let server = Setup::own(TIMER).start();
    let failing = clock(&server, |clock| clock["lastError"] != Value::Null).await;
    let why = failing["lastError"]["error"].as_str().unwrap().to_owned();
    assert!(
        why.starts_with("routes.yaml:") && why.ends_with(" in this expression: the value it returns: must be true or false, is a number"),
        "{why}"
    );
    assert_eq!(failing["state"], "running");
    let logged = server.logged_when(|line| line["level"] == "WARN");
    assert_eq!((&logged["message"], &logged["why"]), (&json!("a script failed"), &json!(why)));
    // One line for each event.
    assert_eq!(server.logged_when(|line| line["level"] == "WARN")["message"], "a script failed");
    let metrics = server.get("/metrics").await.body;
    let faults = metrics.lines().find(|line| line.starts_with("tramline_route_faults_total{") && line.contains("clock")).unwrap();
    assert!(!faults.ends_with(" 0"), "{faults}");

    let file = server.setup().path("routes.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace("when: $data.n,", "when: $data.n == 1,")).unwrap();
    let reloaded = request("POST", &server.http("api", "/api/reload"), &[], None).await;
    assert_eq!(reloaded.status, 200, "{reloaded:?}");
    let events = clock(&server, |clock| clock["lastError"] == Value::Null).await["events"].as_u64().unwrap();
    clock(&server, |clock| clock["events"].as_u64().unwrap() > events).await;
}
