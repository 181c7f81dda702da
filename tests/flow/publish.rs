//! `POST /api/publish` and `POST /api/sources/{name}`, word by word.

use serde_json::{Value, json};

use super::canvas::greeted;
use crate::support::raw::{FIN, Raw, TEXT};
use crate::support::{Server, request};

#[tokio::test]
async fn every_kind_of_target_and_the_answer() {
    let server = Server::shipped();
    let (mut client, id) = greeted(&server, "?userId=u&sessionId=s").await;
    let targets = [
        (json!({ "channel": "session:s" }), Some("session:s")),
        (json!({ "session": "s" }), Some("session:s")),
        (json!({ "user": "u" }), Some("user:u")),
        (json!({ "client": id }), None),
    ];
    let mut sessions = 0;
    for (target, channel) in targets {
        let mut body = target.clone();
        body["type"] = "note".into();
        body["data"] = json!({ "n": 1 });
        let answer = server.publish(&body).await;
        let keys: Vec<&String> = answer.as_object().unwrap().keys().collect();
        match channel {
            Some(channel) => {
                assert_eq!(keys, ["id", "channel", "offset", "epoch", "delivered"]);
                assert_eq!(answer["channel"], channel);
                sessions += u32::from(channel == "session:s");
                assert_eq!(answer["offset"], if channel == "session:s" { sessions } else { 1 });
                assert!(!answer["epoch"].as_str().unwrap().is_empty());
            }
            None => assert_eq!(keys, ["id", "delivered"]),
        }
        assert_eq!(answer["delivered"], 1);
        assert_eq!(answer["id"].as_str().unwrap().len(), 36);
        let message = client.next().await;
        assert_eq!((&message["type"], &message["n"]), (&json!("note"), &json!(1)), "{target}");
    }
}

#[tokio::test]
async fn a_list_of_targets_is_answered_with_a_list_and_is_all_or_nothing() {
    let server = Server::shipped();
    let (mut one, _) = greeted(&server, "?sessionId=a").await;
    let (mut two, _) = greeted(&server, "?sessionId=b").await;
    let answer = server.publish(&json!({ "session": ["a", "b", "c"], "type": "note", "data": {} })).await;
    let seen: Vec<_> =
        answer.as_array().unwrap().iter().map(|a| (a["channel"].as_str().unwrap(), a["delivered"].as_u64().unwrap())).collect();
    assert_eq!(seen, [("session:a", 1), ("session:b", 1), ("session:c", 0)]);
    assert_eq!((one.next().await["sessionId"].clone(), two.next().await["sessionId"].clone()), (json!("a"), json!("b")));
    let single = server.publish(&json!({ "session": ["a"], "type": "note", "data": {} })).await;
    assert_eq!(single.as_array().unwrap().len(), 1);
    one.next().await;
    for wrong in [json!(["session:a", "nope"]), json!(["session:a", "user:"])] {
        assert_eq!(server.post("/api/publish", &json!({ "channel": wrong, "type": "note", "data": {} })).await.status, 404);
    }
    one.expect_nothing().await;
}

#[tokio::test]
async fn everything_wrong_with_a_body_is_named_at_once() {
    let server = Server::shipped();
    let table = [
        (json!({ "channel": "files", "dta": {}, "tpye": "x" }), vec!["/dta", "/tpye"]),
        (json!({ "type": 5, "metadata": [], "id": 7, "except": {}, "channel": "files" }), vec!["/except", "/id", "/metadata", "/type"]),
        (json!({}), vec![""]),
        (json!({ "channel": "files", "user": "u" }), vec![""]),
        (json!({ "channel": [], "id": "" }), vec!["/channel", "/id"]),
        (json!({ "channel": ["files", 5, ""] }), vec!["/channel/1", "/channel/2"]),
        (json!({ "channel": "" }), vec!["/channel"]),
        (json!([]), vec![""]),
        (json!("files"), vec![""]),
        (json!({ "session": vec!["s"; 1001] }), vec!["/session"]),
        (json!({ "channel": "files", "type": "x".repeat(257) }), vec!["/type"]),
    ];
    for (body, paths) in table {
        let answer = server.post("/api/publish", &body).await;
        assert_eq!((answer.status, answer.paths()), (400, paths.into_iter().map(str::to_owned).collect::<Vec<_>>()), "{body}");
    }
}

#[tokio::test]
async fn a_problem_has_the_shape_of_the_rfc() {
    let server = Server::shipped();
    let answer = server.post("/api/publish", &json!({ "channel": "nope" })).await;
    assert_eq!((answer.status, answer.header("content-type")), (404, "application/problem+json"));
    let problem = json!({ "type": "urn:tramline:fault:unknown_channel", "title": "Not Found", "status": 404, "detail": "unknown channel `nope`: no key of `channels` matches it" });
    assert_eq!(answer.json(), problem);
    assert_eq!(server.post("/api/publish", &json!({ "client": "nobody", "type": "x" })).await.status, 404);
}

#[tokio::test]
async fn one_id_publishes_once() {
    let server = Server::shipped();
    let (mut client, _) = greeted(&server, "?sessionId=s").await;
    let id = "0197f000-0000-7000-8000-00000000abcd";
    for id in ["order-1", id] {
        let body = json!({ "session": "s", "type": "note", "data": {}, "id": id });
        let first = server.publish(&body).await;
        assert_eq!(server.publish(&body).await, first);
        client.next().await;
        client.expect_nothing().await;
        // The id belongs to that event: another one is refused, not lost.
        for (key, other) in [("session", json!("t")), ("type", json!("other")), ("data", json!({ "n": 1 }))] {
            let mut another = body.clone();
            another[key] = other;
            let answer = server.post("/api/publish", &another).await;
            assert_eq!(answer.status, 422, "{answer:?}");
            assert!(answer.json()["detail"].as_str().unwrap().contains("used in the last 5 minutes for another event"), "{answer:?}");
        }
        // A refused one is not remembered.
        let refused = json!({ "session": "s", "type": "ai_error", "data": {}, "id": format!("{id}x") });
        assert_eq!(server.post("/api/publish", &refused).await.status, 422);
        assert_eq!(server.post("/api/publish", &refused).await.status, 422);
    }
    let history = server.get("/api/history?channel=session:s").await.json();
    assert_eq!(history["events"].as_array().unwrap().len(), 2);
    assert_eq!(history["events"][0]["id"], id);
}

#[tokio::test]
async fn except_leaves_one_client_out() {
    let server = Server::shipped();
    let (mut one, first) = greeted(&server, "?sessionId=s&userId=u").await;
    let (mut two, _) = greeted(&server, "?sessionId=s&userId=u").await;
    for target in ["session", "user"] {
        let to = if target == "session" { "s" } else { "u" };
        let answer = server.publish(&json!({ target: to, "type": "note", "data": {}, "except": first })).await;
        assert_eq!(answer["delivered"], 1);
        assert_eq!(two.next().await["type"], "note");
    }
    one.expect_nothing().await;
}

#[tokio::test]
async fn hostile_bodies_are_refused_and_the_next_is_served() {
    let server = Server::shipped();
    let url = server.http("api", "/api/publish");
    let post = async |url: &str, body: &str| request("POST", url, &[("content-type", "application/json")], Some(body)).await.status;
    let deep = format!("{{\"channel\":\"custom:x\",\"data\":{}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    for body in [&deep, "{", "not json", "{\"channel\":\"custom:x\"} trailing", "{\"channel\":\"\u{0}\"}"] {
        assert_eq!(post(&url, body).await, 400, "{body:.60}");
    }
    let huge = format!("{{\"channel\":\"custom:x\",\"data\":{{\"x\":\"{}\"}}}}", "x".repeat(17 << 20));
    assert_eq!(post(&url, &huge).await, 413);
    let large = format!("{{\"type\":\"x\",\"data\":{{\"x\":\"{}\"}}}}", "x".repeat(1 << 20));
    assert_eq!(post(&server.http("bus", "/events"), &large).await, 413);
    assert_eq!(post(&server.http("bus", "/events"), &deep).await, 400);
    assert_eq!(post(&url, "{\"channel\":\"custom:x\",\"data\":{}}").await, 202);
}

#[tokio::test]
async fn a_body_that_only_grows_is_cut_off() {
    let server = Server::shipped();
    let url = server.http("api", "/api/publish");
    let head = "POST /api/publish HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut bytes = head.as_bytes().to_vec();
    let chunk = [b"100000\r\n".to_vec(), vec![b' '; 0x10_0000], b"\r\n".to_vec()].concat();
    for _ in 0..18 {
        bytes.extend(&chunk);
    }
    let raw = Raw::send_first(&url, &bytes).await;
    assert_eq!(raw.status(), 413, "{}", raw.head);
}

#[tokio::test]
async fn an_event_as_if_a_source_had_made_it() {
    let server = Server::shipped();
    let mut client = server.client("agent").await.fenced_by(json!({ "type": "test", "data": {} }));
    client.expect_nothing().await;
    let answer = server.post("/api/sources/bus", &json!({ "type": "MessageSent", "data": { "id": "1", "content": "hi" } })).await;
    assert_eq!((answer.status, &answer.json()["channel"]), (202, &json!("agent")));
    let message = client.next().await;
    assert_eq!((&message["type"], &message["data"]["type"]), (&json!("messageReceived"), &json!("user")));
    let history = server.get("/api/history?channel=agent").await.json();
    assert_eq!(history["events"][0]["source"], "bus");
    let missing = server.post("/api/sources/nope", &json!({ "type": "x", "data": {} })).await;
    assert_eq!(missing.status, 404);
    assert!(missing.json()["detail"].as_str().unwrap().contains("`bus`"));
}

#[tokio::test]
async fn what_is_published_is_passed_on_as_it_came() {
    let server = Server::shipped();
    let mut raw = Raw::open(server.url("agent")).await;
    // The order of keys, big and exact numbers, escapes.
    let data = r#"{"z":1,"a":12345678901234567890,"f":1.10,"u":"\u00fc/\/","n":null,"e":{}}"#;
    raw.send(FIN | TEXT, br#"{"type":"test","data":{}}"#).await;
    raw.next().await.unwrap();
    let body = format!(r#"{{"channel":"agent","type":"x","data":{data}}}"#);
    let answer = request("POST", &server.http("api", "/api/publish"), &[("content-type", "application/json")], Some(&body)).await;
    assert_eq!(answer.status, 202);
    let (_, frame) = raw.next().await.unwrap();
    assert_eq!(String::from_utf8(frame).unwrap(), format!(r#"{{"type":"x","data":{data}}}"#));
    let history = server.get("/api/history?channel=agent").await;
    assert!(history.body.contains(data), "{}", history.body);
    let parsed: Value = serde_json::from_str(&history.body).unwrap();
    assert_eq!(parsed["events"][0]["type"], "x");
}
