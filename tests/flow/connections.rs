//! `/api/connections`: those that are open, those that were, and the operator's hand on them.

use serde_json::{Value, json};

use super::canvas::greeted;
use crate::support::{Answer, SOME_TIME, Server, Setup, on_both, request, soon, until};

async fn delete(server: &Server, path: &str) -> Answer {
    request("DELETE", &server.http("api", path), &[], None).await
}

/// The ids of a listing, in order.
fn ids(page: &Value) -> Vec<&str> {
    page["connections"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect()
}

/// What is told of a connection that was, once it is written.
async fn past(server: &Server, id: &str) -> Value {
    let path = format!("/api/connections/{id}");
    until("the record", || server.get(&path), |answer| answer.status == 200 && answer.json()["closed"] == SOME_TIME).await.json()
}

#[tokio::test]
async fn an_operator_closes_a_connection_and_its_client_reads_why() {
    let server = Server::shipped();
    for (query, code, reason) in [
        ("", 1008, "closed by the operator"),
        ("?code=1000&reason=bye", 1000, "bye"),
        ("?code=4001", 4001, "closed by the operator"),
        ("?reason=", 1008, ""),
        ("?code=1013&reason=%C3%BC", 1013, "ü"),
    ] {
        let (mut client, id) = greeted(&server, "").await;
        let answer = delete(&server, &format!("/api/connections/{id}{query}")).await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""), "{query}");
        assert_eq!(client.closed().await, (code, reason.to_owned()), "{query}");
        client.drained().await;
        let past = past(&server, &id).await;
        assert_eq!((&past["code"], &past["reason"]), (&json!(code), &json!(reason)));
    }
    assert_eq!(delete(&server, "/api/connections/nobody").await.status, 404);
}

#[tokio::test]
async fn what_may_not_be_sent_is_refused_and_closes_nothing() {
    let server = Server::shipped();
    let (mut client, id) = greeted(&server, "").await;
    let long = "x".repeat(124);
    for (query, paths) in [
        ("code=1005".to_owned(), vec!["code"]),
        ("code=1006".into(), vec!["code"]),
        ("code=999".into(), vec!["code"]),
        ("code=2000".into(), vec!["code"]),
        ("code=5000".into(), vec!["code"]),
        ("code=70000".into(), vec!["code"]),
        ("code=".into(), vec!["code"]),
        (format!("reason={long}"), vec!["reason"]),
        (format!("code=1&reason={long}&why=x"), vec!["code", "reason", "why"]),
    ] {
        let answer = delete(&server, &format!("/api/connections/{id}?{query}")).await;
        assert_eq!((answer.status, answer.paths()), (400, paths.into_iter().map(str::to_owned).collect::<Vec<_>>()), "{query}");
    }
    client.expect_nothing().await;
}

#[tokio::test]
async fn seen_is_when_something_last_came() {
    let server = Server::shipped();
    let (mut client, id) = greeted(&server, "").await;
    let seen = async || {
        let answer = server.get(&format!("/api/connections/{id}")).await;
        let json: Value = serde_json::from_str(&answer.body).unwrap();
        (json["opened"].as_str().unwrap().to_owned(), json["seen"].as_str().unwrap().to_owned())
    };
    let (opened, first) = seen().await;
    assert_eq!(opened, first, "nothing has come yet");
    soon("a later message", async {
        while seen().await.1 == first {
            client.ask(&json!({ "type": "ping" })).await;
        }
    })
    .await;
}

#[tokio::test]
async fn everything_wrong_with_a_question_is_named() {
    let server = Server::shipped();
    for (query, paths) in [
        ("closed=yes&limit=0&user=", vec!["closed", "limit", "user"]),
        ("protocol=nope&cursor=x", vec!["cursor", "protocol"]),
        ("cursor=live-x", vec!["cursor"]),
        ("closed=true&cursor=live-7", vec!["cursor"]),
        ("limit=1001&limit=5", vec!["limit", "limit"]),
        ("users=u", vec!["users"]),
    ] {
        let answer = server.get(&format!("/api/connections?{query}")).await;
        let found = answer.paths();
        assert_eq!((answer.status, found), (400, paths.into_iter().map(str::to_owned).collect::<Vec<_>>()), "{query}");
    }
}

on_both! {
    async fn a_connection_that_was_is_told_in_full(backend) {
        let server = Setup::shipped().backend(backend).embed();
        let (mut client, id) = greeted(&server, "?userId=u&sessionId=s").await;
        client.ask(&json!({ "type": "ping" })).await;
        let open = server.get(&format!("/api/connections/{id}")).await.json();
        assert_eq!((&open["seen"], &open["messages"]), (&json!(SOME_TIME), &json!({ "in": 1, "out": 2 })));
        client.close().await;
        let was = past(&server, &id).await;
        let bytes = &was["bytes"];
        assert_eq!(bytes["in"], 15);
        let wanted = json!({
            "id": id, "protocol": "canvas", "user": "u", "session": "s", "address": "127.0.0.1", "opened": SOME_TIME, "seen": SOME_TIME,
            "closed": SOME_TIME, "code": 1005, "reason": "", "messages": { "in": 1, "out": 2 }, "bytes": bytes, "dropped": 0,
        });
        assert_eq!(was, wanted);
        // It is there after a restart too.
        let server = server.stop().setup.embed();
        assert_eq!(past(&server, &id).await, wanted);
        assert_eq!(delete(&server, &format!("/api/connections/{id}")).await.status, 404);
    }

    async fn listings_are_filtered_and_paged(backend) {
        let server = Setup::shipped().backend(backend).embed();
        let (mut open, mut all) = (Vec::new(), Vec::new());
        for n in 0..7 {
            let (client, id) = greeted(&server, &format!("?userId=u{}&sessionId=s{}", n % 2, n % 3)).await;
            open.push(client);
            all.push(id);
        }
        let _other = server.client("workspace").await;
        let pick =
            |keep: fn(usize) -> bool| -> Vec<&str> { all.iter().enumerate().filter(|(n, _)| keep(*n)).map(|(_, id)| id.as_str()).collect() };
        let read = async |filter: &str| {
            let (mut found, mut next) = (Vec::new(), String::new());
            loop {
                let page = server.get(&format!("/api/connections?{filter}&limit=2{next}")).await.json();
                assert!(ids(&page).len() <= 2);
                found.extend(ids(&page).into_iter().map(str::to_owned));
                match page["next"].as_str() {
                    Some(cursor) => next = format!("&cursor={cursor}"),
                    None => return found,
                }
            }
        };
        let filters: [(&str, Vec<&str>); 5] = [
            ("protocol=canvas", pick(|_| true)),
            ("user=u0", pick(|n| n % 2 == 0)),
            ("session=s1", pick(|n| n % 3 == 1)),
            ("user=u1&session=s1", pick(|n| n % 2 == 1 && n % 3 == 1)),
            ("protocol=agent&user=u1", vec![]),
        ];
        for (filter, wanted) in &filters {
            assert_eq!(read(filter).await, *wanted, "{filter}");
            assert_eq!(ids(&server.get(&format!("/api/connections?{filter}&closed=true")).await.json()), Vec::<&str>::new(), "{filter}");
        }
        assert_eq!(ids(&server.get("/api/connections").await.json()).len(), 8);
        // Those that were are told newest first, and they end in order.
        for (n, client) in open.into_iter().enumerate() {
            client.close().await;
            let listed = async || server.get("/api/connections?closed=true").await.json();
            until("the record", listed, |page| ids(page).len() == n + 1).await;
        }
        for (filter, wanted) in &filters {
            let newest_first: Vec<&str> = wanted.iter().rev().copied().collect();
            assert_eq!(read(&format!("closed=true&{filter}")).await, newest_first, "{filter}");
            assert_eq!(ids(&server.get(&format!("/api/connections?{filter}")).await.json()), Vec::<&str>::new(), "{filter}");
        }
    }

    async fn those_that_a_crash_left_open_are_closed_as_lost(backend) {
        let server = Setup::shipped().backend(backend).start();
        let (_client, id) = greeted(&server, "?userId=u").await;
        // Records are written once a second, and before anybody reads the log.
        assert_eq!(server.get("/api/connections?closed=true").await.status, 200);
        let server = server.kill().setup.start();
        let was = past(&server, &id).await;
        assert_eq!((&was["code"], &was["reason"]), (&json!(1006), &json!("server lost")));
    }
}
