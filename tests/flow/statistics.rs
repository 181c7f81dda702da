//! What is counted: now, over time, and on after a restart.

use serde_json::{Value, json};

use super::canvas::greeted;
use crate::support::{Server, Setup, on_both, until};

/// The sum of a series.
fn sum(answer: &Value, kind: &str, name: &str, metric: &str) -> u64 {
    let all = answer["series"].as_array().unwrap();
    let found = all.iter().find(|s| s["kind"] == kind && s["name"] == name && s["metric"] == metric);
    found.map_or(0, |series| series["points"].as_array().unwrap().iter().map(|point| point[1].as_u64().unwrap()).sum())
}

async fn series(server: &Server, query: &str) -> Value {
    let answer = server.get(&format!("/api/stats?{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

#[tokio::test]
async fn everything_wrong_with_a_question_is_named() {
    let server = Server::shipped();
    for (query, paths) in [
        ("to=-1h", vec!["from"]),
        ("step=1m", vec!["from"]),
        ("from=then&to=now&step=1s&kind=&x=1", vec!["from", "kind", "step", "to", "x"]),
        ("from=-1h&to=-2h", vec!["from"]),
        ("from=-1h&step=90s", vec!["step"]),
        ("from=-1h&step=60", vec!["step"]),
        ("from=-1h&kind=routes", vec!["kind"]),
        ("from=-1h&step=0", vec!["step"]),
        ("from=-2d&step=1m", vec!["step"]),
        ("from=-1h&from=-2h", vec!["from"]),
        ("x=1", vec!["x"]),
    ] {
        let answer = server.get(&format!("/api/stats?{query}")).await;
        assert_eq!((answer.status, answer.paths()), (400, paths.into_iter().map(str::to_owned).collect::<Vec<_>>()), "{query}");
    }
}

on_both! {
    async fn totals_and_series_go_on_over_restarts(backend) {
        let server = Setup::shipped().backend(backend).embed();
        let (mut client, _) = greeted(&server, "?sessionId=s").await;
        for _ in 0..3 {
            client.ask(&json!({ "type": "ping" })).await;
        }
        client.ask(&json!({ "type": "no such thing" })).await;
        for _ in 0..2 {
            server.publish(&json!({ "session": "s", "type": "note", "data": { "n": 1 } })).await;
            client.next().await;
        }
        client.close().await;
        let now = async |server: &Server| server.get("/api/stats").await.json();
        until("the end is counted", || now(&server), |stats| stats["protocols"]["canvas"]["closes"]["by_client"] == 1).await;
        let before = now(&server).await;
        let pattern = &before["channels"]["patterns"]["session:{id*}"];
        let bytes = pattern["bytes"].as_u64().unwrap();
        assert_eq!((&pattern["published"], &pattern["delivered"], bytes > 0), (&json!(2), &json!(2), true));
        assert_eq!(before["channels"]["patterns"]["files"], json!({ "published": 0, "delivered": 0, "bytes": 0, "slow": { "droppedOldest": 0, "droppedNewest": 0, "superseded": 0, "merged": 0 } }));

        let server = server.stop().setup.embed();
        let after = now(&server).await;
        for path in [
            "/channels/published",
            "/channels/delivered",
            "/channels/patterns",
            "/protocols/canvas/connectionsTotal",
            "/protocols/canvas/messagesIn",
            "/protocols/canvas/messagesOut",
            "/protocols/canvas/bytesIn",
            "/protocols/canvas/bytesOut",
            "/protocols/canvas/faults",
            "/protocols/canvas/closes",
            "/routes",
        ] {
            assert_eq!(after.pointer(path), before.pointer(path), "{path}");
            assert!(after.pointer(path).is_some(), "{path}");
        }
        assert_eq!(after["protocols"]["canvas"]["connections"], 0);

        // The same, over time; and each run adds to it.
        for round in 1..=2 {
            let answer = series(&server, "from=-10m&step=1m").await;
            assert_eq!(answer["step"], 60);
            for (kind, name, metric, expected) in [
                ("protocol", "canvas", "messagesIn", 4),
                ("protocol", "canvas", "connections", 1),
                ("channel", "session:{id*}", "published", 2),
                ("channel", "session:{id*}", "bytes", bytes),
                ("route", "canvas.messages.ping", "calls", 3),
                ("fault", "canvas", "unknown_type", 1),
                ("close", "canvas", "by_client", 1),
                ("total", "channels", "delivered", 2),
            ] {
                assert_eq!(sum(&answer, kind, name, metric), expected, "{round} {kind} {name} {metric}");
            }
        }
        server.publish(&json!({ "session": "s", "type": "note", "data": {} })).await;
        let server = server.stop().setup.embed();
        let answer = series(&server, "from=-10m&kind=channel").await;
        assert_eq!(sum(&answer, "channel", "session:{id*}", "published"), 3);
        assert!(answer["series"].as_array().unwrap().iter().all(|series| series["kind"] == "channel"));
        let elsewhen = series(&server, "from=2024-01-01&to=2024-01-02T00:00:00Z").await;
        assert_eq!(elsewhen, json!({ "from": "2024-01-01T00:00:00.000Z", "to": "2024-01-02T00:00:00.000Z", "step": 300, "series": [] }));
    }

    async fn what_is_counted_is_stored_while_it_runs(backend) {
        let server = Setup::shipped().backend(backend).start();
        server.publish(&json!({ "session": "s", "type": "note", "data": {} })).await;
        let ask = || series(&server, "from=-10m&kind=total");
        until("the next tenth second", ask, |answer| sum(answer, "total", "channels", "published") == 1).await;
        // A crash costs at most what was counted since.
        let server = server.kill().setup.start();
        assert_eq!(server.get("/api/stats").await.json()["channels"]["published"], 1);
    }

    async fn a_point_stands_at_the_beginning_of_its_step(backend) {
        let server = Setup::shipped().backend(backend).embed();
        server.publish(&json!({ "session": "s", "type": "note", "data": {} })).await;
        let server = server.stop().setup.embed();
        for (step, seconds) in [("1m", 60), ("1h", 3600), ("1d", 86_400)] {
            let answer = series(&server, &format!("from=-1d&step={step}&kind=total")).await;
            let published = answer["series"].as_array().unwrap().iter().find(|s| s["metric"] == "published").unwrap();
            let [point] = published["points"].as_array().unwrap().as_slice() else { panic!("{published}") };
            let at = humantime::parse_rfc3339(point[0].as_str().unwrap()).unwrap();
            let at_s = at.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            let now_s = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
            assert_eq!((at_s % seconds, &point[1], now_s - at_s < seconds + 60), (0, &json!(1), true), "{step}: {point}");
        }
    }
}
