//! What the REST interface tells: history, channels, connections, routes, plugins, sources, statistics, health.

use serde_json::{Value, json};

use super::canvas::greeted;
use crate::support::{SOME_TIME, Server};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("no object: {value}")).keys().map(|key| &**key).collect()
}

#[tokio::test]
async fn history_is_paged_newest_first_without_gaps() {
    let server = Server::shipped();
    for n in 0..25 {
        server
            .publish(
                &json!({ "channel": if n % 2 == 0 { "custom:a" } else { "custom:b" }, "type": format!("t{}", n % 3), "data": { "n": n } }),
            )
            .await;
    }
    let read = async |filter: &str| {
        let (mut found, mut next, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = server.get(&format!("/api/history?limit=4{filter}{next}")).await.json();
            found.extend(page["events"].as_array().unwrap().iter().map(|e| e["data"]["n"].as_u64().unwrap()));
            pages += 1;
            // What is published meanwhile does not shift the pages.
            server.publish(&json!({ "channel": "custom:other", "data": { "n": 1000 } })).await;
            match page["next"].as_str() {
                Some(cursor) => next = format!("&cursor={cursor}"),
                None => return (found, pages),
            }
        }
    };
    let down = |keep: fn(&u64) -> bool| (0..25).rev().filter(keep).collect::<Vec<u64>>();
    assert_eq!(read("&channel=custom:a").await, (down(|n| n % 2 == 0), 4));
    assert_eq!(read("&type=t1").await.0, down(|n| n % 3 == 1));
    assert_eq!(read("&type=t1&channel=custom:b").await.0, down(|n| n % 3 == 1 && n % 2 == 1));
    assert_eq!(read("&channel=custom:nothing").await, (Vec::new(), 1));
}

#[tokio::test]
async fn an_event_of_history_has_these_keys() {
    let server = Server::shipped();
    server.publish(&json!({ "channel": "custom:a", "type": "t", "data": { "n": 1 }, "metadata": { "by": "test" } })).await;
    let event = server.get("/api/history").await.json()["events"][0].clone();
    let mut found = keys(&event);
    found.sort_unstable();
    assert_eq!(found, ["channel", "data", "epoch", "id", "metadata", "offset", "source", "time", "type"]);
    assert_eq!((&event["time"], &event["metadata"], &event["offset"]), (&json!(SOME_TIME), &json!({ "by": "test" }), &json!(1)));
}

#[tokio::test]
async fn a_parameter_that_is_not_known_is_an_error() {
    let server = Server::shipped();
    let wrong = [
        ("/api/history?chanel=files", "chanel"),
        ("/api/history?limit=0", "limit"),
        ("/api/history?limit=1001", "limit"),
        ("/api/history?limit=ten", "limit"),
        ("/api/history?limit=5&limit=6", "limit"),
        ("/api/history?cursor=garbage", "cursor"),
        ("/api/channels?x=1", "x"),
        ("/api/connections?protocol=nope", "protocol"),
        ("/api/connections?users=u", "users"),
        ("/api/routes?x=1", "x"),
        ("/api/plugins?x=1", "x"),
        ("/api/sources?x=1", "x"),
        ("/api/stats?x=1", "x"),
    ];
    for (path, name) in wrong {
        let answer = server.get(path).await;
        assert_eq!((answer.status, answer.paths()), (400, vec![name.to_owned()]), "{path}");
    }
    for path in ["/api/nothing", "/", "/api/channels/files", "/api/connections/nobody"] {
        assert_eq!(server.get(path).await.status, 404, "{path}");
    }
    assert_eq!(server.post("/api/history", &json!({})).await.status, 405);
    assert_eq!(server.get("/api/publish").await.status, 405);
}

#[tokio::test]
async fn a_cursor_belongs_to_its_question() {
    let server = Server::shipped();
    for n in 0..3 {
        server.publish(&json!({ "channel": "custom:a", "data": { "n": n } })).await;
    }
    let page = server.get("/api/history?channel=custom:a&limit=1").await.json();
    let cursor = page["next"].as_str().unwrap();
    let answer = server.get(&format!("/api/history?channel=custom:b&cursor={cursor}")).await;
    assert_eq!((answer.status, answer.paths()), (400, vec!["cursor".to_owned()]));
}

#[tokio::test]
async fn channels_and_connections() {
    let server = Server::shipped();
    let (_client, id) = greeted(&server, "?userId=u&sessionId=s").await;
    let answer = server.publish(&json!({ "session": "s", "type": "note", "data": {} })).await;
    let mut channel = server.get("/api/channels/session:s").await.json();
    assert!(channel["bytes"].as_u64().unwrap() > 0);
    channel["bytes"] = 0.into();
    let wanted = json!({
        "name": "session:s", "pattern": "session:{id*}", "subscribers": 1, "offset": 1, "epoch": answer["epoch"],
        "history": true, "events": 1, "bytes": 0,
        "slow": { "droppedOldest": 0, "droppedNewest": 0, "superseded": 0, "merged": 0 },
    });
    assert_eq!(channel, wanted);
    let all = server.get("/api/channels").await.json();
    let names: Vec<&Value> = all["channels"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
    assert!(names.contains(&&json!("session:s")) && names.contains(&&json!("user:u")), "{all}");

    let connection = server.get(&format!("/api/connections/{id}")).await.json();
    let wanted = [
        "id",
        "protocol",
        "user",
        "session",
        "address",
        "opened",
        "seen",
        "alive",
        "readyState",
        "messages",
        "bytes",
        "dropped",
        "slow",
        "queue",
        "channels",
    ];
    assert_eq!(keys(&connection), wanted);
    assert_eq!(connection["channels"], json!(["user:u", "session:s"]));
    assert_eq!(connection["messages"], json!({ "in": 0, "out": 2 }));
    let listed = server.get("/api/connections").await.json();
    assert_eq!(listed["connections"][0]["id"], id);
    assert_eq!(server.get("/api/connections?protocol=agent").await.json(), json!({ "connections": [], "next": null }));
}

#[tokio::test]
async fn routes_plugins_and_sources() {
    let server = Server::shipped();
    let routes = server.get("/api/routes").await.json();
    let routes = routes["routes"].as_array().unwrap();
    assert!(routes.len() > 15);
    assert_eq!(keys(&routes[0]), ["from", "limit", "script", "to", "at"]);
    let plugins = server.get("/api/plugins").await.json();
    let names: Vec<&Value> = plugins["plugins"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
    assert_eq!(names, [&json!("agent"), &json!("canvas")]);
    assert_eq!(plugins["plugins"][0]["state"], "in service");
    let sources = server.get("/api/sources").await.json();
    assert_eq!(keys(&sources["sources"][0]), ["name", "from", "events", "state", "lastError"]);
}

#[tokio::test]
async fn health_and_statistics() {
    let server = Server::shipped();
    assert_eq!(server.get("/healthz").await.json(), json!({ "status": "ok" }));
    assert_eq!(server.get("/readyz").await.json(), json!({ "status": "ready", "reasons": [] }));
    let mut client = server.client("workspace").await;
    client.expect_nothing().await;
    let stats = server.get("/api/stats").await;
    assert_eq!(stats.status, 200);
    assert!(stats.json().is_object(), "{stats:?}");
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let server = Server::shipped();
    let mut client = server.client("workspace").await;
    client.expect_nothing().await;
    let answer = server.get("/metrics").await;
    assert!(answer.header("content-type").starts_with("text/plain; version=0.0.4"));
    let sample =
        regex::Regex::new(r#"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)*\})? (-?[0-9.e+-]+|[+-]Inf|NaN)$"#).unwrap();
    let (mut typed, mut samples) = (std::collections::HashSet::new(), std::collections::HashSet::new());
    for line in answer.body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            assert!(typed.insert(name.to_owned()), "{name} has two types");
        } else if !line.starts_with("# HELP ") {
            let found = sample.captures(line).unwrap_or_else(|| panic!("no sample: {line}"));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| found[1].strip_suffix(end)).filter(|f| typed.contains(*f));
            assert!(typed.contains(family.unwrap_or(&found[1])), "{line} has no type");
            assert!(samples.insert(line.rsplit_once(' ').unwrap().0.to_owned()), "{line} stands twice");
        }
    }
    assert!(samples.iter().any(|s| s.contains("protocol=\"workspace\"")), "{}", answer.body);
    assert!(answer.body.ends_with('\n'));
}
