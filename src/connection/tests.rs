//! The connection's task against a socket that does what the test says, on a clock that the test moves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, advance};

use super::run;
use crate::connection::Admitted;
use crate::hub::Connection;
use crate::live::Live;
use crate::model::Close;
use crate::protocol::Frame;
use crate::testing::{Double, connect, live};

const TEXT: u8 = 0x81;
const PONG: u8 = 0x8a;

const YAML: &str = r#"
version: 1
channels: { room: {} }
protocols:
  p:
    listen: localhost:1/
    codec: json
    type: /type
    limits: { outbox: 1KiB, slow: [4008, too slow] }
    heartbeat: { every: 30s }
    idle: { after: 100s, send: { type: still there }, grace: 10s }
    every: [{ every: 70s, send: { type: tick } }]
    open: { join: room, send: { type: hello } }
    messages: { say: { reply: { type: said } }, bye: { reply: { type: bye }, close: [4001, done] } }
    error: { type: error, error: $error.message }
"#;

struct Running {
    live: Arc<Live>,
    connection: Arc<Connection>,
    wire: Double,
    task: JoinHandle<Close>,
}

async fn running(expires_in: Option<Duration>) -> Running {
    let live = live(YAML, &[]).await;
    // Not before: the database answers from threads of its own, which a paused clock does not wait for.
    tokio::time::pause();
    let connection = connect(&live, "c1");
    let wire = Double::default();
    connection.outbox.attach(Box::new(wire.clone()));
    let expires = expires_in.map(|wait| Instant::now() + wait);
    let task = tokio::spawn(run(
        Admitted { live: live.clone(), connection: connection.clone() },
        live.current().runtime.plan.protocols[0].clone(),
        Bytes::new(),
        expires,
        (),
    ));
    let running = Running { live, connection, wire, task };
    running.settle().await;
    running
}

impl Running {
    /// Lets the task do all it can do now.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, seconds: u64) {
        // A little more, because timers count whole milliseconds.
        advance(Duration::from_secs(seconds) + Duration::from_millis(2)).await;
        self.settle().await;
    }

    fn last(&self) -> String {
        self.wire.written().last().cloned().unwrap_or_default()
    }

    fn says(&self, text: &str) {
        self.wire.comes(TEXT, text.as_bytes());
    }

    async fn ended(self) -> Close {
        let close = self.task.await.unwrap();
        assert_eq!(self.live.hub.connection_count(None), 0);
        assert_eq!(self.live.hub.channel_report("room").unwrap().subscribers, 0);
        close
    }
}

#[tokio::test]
async fn messages_are_answered_in_order_and_a_row_can_close() {
    let running = running(None).await;
    running.says(r#"{"type":"say"}"#);
    running.says("nonsense");
    running.says(r#"{"type":"bye"}"#);
    running.says(r#"{"type":"say"}"#);
    running.settle().await;
    let written = running.wire.written();
    assert_eq!(
        written,
        [r#"{"type":"hello"}"#, r#"{"type":"said"}"#, r#"{"type":"error","error":"invalid JSON"}"#, r#"{"type":"bye"}"#, "close 4001 done"]
    );
    assert_eq!(running.ended().await, Close::Asked(4001, "done".into()));
}

#[tokio::test]
async fn a_ping_that_is_not_answered_ends_the_connection_without_a_word() {
    let running = running(None).await;
    running.pass(30).await;
    assert_eq!(running.last(), "ping");
    running.wire.comes(PONG, b"");
    running.pass(30).await;
    assert_eq!(running.wire.written().iter().filter(|text| *text == "ping").count(), 2);
    running.says(r#"{"type":"say"}"#);
    running.pass(29).await;
    assert!(!running.task.is_finished());
    running.pass(1).await;
    assert_eq!(running.ended().await, Close::PingTimeout);
}

#[tokio::test]
async fn silence_is_noticed_and_then_ends_the_connection() {
    let running = running(None).await;
    let pass = async |seconds: u64| {
        for _ in 0..seconds {
            running.wire.comes(PONG, b"");
            running.pass(1).await;
        }
    };
    pass(70).await;
    assert_eq!(running.last(), r#"{"type":"tick"}"#);
    running.says(r#"{"type":"say"}"#);
    pass(99).await;
    assert!(!running.wire.written().contains(&r#"{"type":"still there"}"#.to_owned()));
    pass(2).await;
    assert!(running.wire.written().contains(&r#"{"type":"still there"}"#.to_owned()));
    pass(11).await;
    assert_eq!(running.last(), "close 1000 idle");
    assert_eq!(running.ended().await, Close::Idle);
}

#[tokio::test]
async fn a_token_that_runs_out_ends_the_connection() {
    let running = running(Some(Duration::from_secs(5))).await;
    running.pass(4).await;
    assert!(!running.task.is_finished());
    running.pass(1).await;
    assert_eq!(running.last(), "close 1008 token expired");
    assert_eq!(running.ended().await, Close::Expired);
}

#[tokio::test]
async fn a_client_that_reads_nothing_ends_as_its_protocol_says() {
    let running = running(None).await;
    running.wire.stall(true);
    for _ in 0..100 {
        running.says(r#"{"type":"say"}"#);
    }
    running.settle().await;
    let queue = running.connection.outbox.measure();
    assert!(queue.bytes_peak <= 1024 && queue.dropped > 0, "{queue:?}");
    running.pass(4).await;
    assert_eq!(running.wire.written(), [r#"{"type":"hello"}"#]);
    assert_eq!(running.ended().await, Close::Slow(4008, "too slow".into()));
}

#[tokio::test]
async fn a_slow_client_that_reads_again_is_told_why() {
    let running = running(None).await;
    running.wire.stall(true);
    for _ in 0..100 {
        running.says(r#"{"type":"say"}"#);
    }
    running.settle().await;
    running.wire.stall(false);
    running.settle().await;
    assert_eq!(running.last(), "close 4008 too slow");
    assert_eq!(running.ended().await, Close::Slow(4008, "too slow".into()));
}

#[tokio::test]
async fn a_stop_closes_after_what_waits() {
    let running = running(None).await;
    running.connection.send(&Frame::Text("last".into()));
    running.connection.outbox.close(Close::GoingAway);
    running.settle().await;
    assert_eq!(running.wire.written()[1..], ["last", "close 1001 server is stopping"]);
    assert_eq!(running.ended().await, Close::GoingAway);
}

#[tokio::test]
async fn a_broken_rule_is_told_with_its_code() {
    let running = running(None).await;
    // A length that is more than the protocol allows.
    running.wire.comes_as(&[TEXT, 0xff, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0, 0]);
    running.settle().await;
    assert_eq!(running.last(), "close 1009 message too large");
    assert_eq!(running.ended().await, Close::TooLarge);
}

#[tokio::test]
async fn a_task_that_is_dropped_leaves_nothing_behind() {
    let running = running(None).await;
    running.task.abort();
    running.settle().await;
    assert_eq!(running.live.hub.connection_count(None), 0);
    assert_eq!(running.live.hub.channel_report("room").unwrap().subscribers, 0);
}

#[tokio::test]
async fn a_task_that_panics_is_an_error_of_ours_and_leaves_nothing_behind() {
    let running = running(None).await;
    running.wire.break_down();
    running.settle().await;
    assert!(running.task.await.unwrap_err().is_panic());
    assert_eq!(running.live.hub.connection_count(None), 0);
    assert_eq!(running.live.hub.channel_report("room").unwrap().subscribers, 0);
    let closes: Vec<_> = running.connection.metrics.closes().filter(|(_, n)| *n > 0).collect();
    assert_eq!(closes, [("internal", 1)]);
}
