//! A client that reads nothing, beside others that do.

use serde_json::json;

use crate::support::raw::{FIN, Raw, TEXT};
use crate::support::{Client, Setup, until};

const OUTBOX: u64 = 256 * 1024;

#[tokio::test]
async fn a_client_that_reads_nothing_disturbs_nobody_and_ends_as_its_protocol_says() {
    let server = Setup::shipped().env("WORKSPACE_OUTBOX", &OUTBOX.to_string()).start();
    let subscribe = json!({ "type": "subscribe", "channel": "custom:x" });
    let mut stalled = Raw::open(server.url("workspace")).await;
    stalled.send(FIN | TEXT, subscribe.to_string().as_bytes()).await;
    stalled.next().await.unwrap();
    let connections =
        || async { server.get("/api/connections?protocol=workspace").await.json()["connections"].as_array().unwrap().clone() };
    let stalled_id = connections().await[0]["id"].clone();

    let mut healthy: [Client; 20] = server.clients("workspace").await;
    for client in &mut healthy {
        client.ask(&subscribe).await;
    }
    // More than the sockets of a stalled client and its outbox can hold together.
    let text = "x".repeat(64 * 1024);
    let (mut published, mut peak) = (0, 0);
    while let Some(found) = connections().await.iter().find(|c| c["id"] == stalled_id).filter(|c| c["readyState"] == 1) {
        peak = peak.max(found["queue"]["peak"].as_u64().unwrap());
        server.publish(&json!({ "channel": "custom:x", "data": { "n": published, "text": text } })).await;
        for client in &mut healthy {
            assert_eq!(client.next().await["data"]["n"], published);
        }
        published += 1;
        assert!(published < 2000, "it is never closed");
    }
    assert!((1..=OUTBOX).contains(&peak), "{peak}");
    assert_eq!(stalled.close_code().await, 1013);
    until("it is gone", connections, |all| all.len() == 20).await;
    for client in &mut healthy {
        client.expect_nothing().await;
    }
}
