//! `/api/sessions`: identities that outlive a connection.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor};

use super::canvas::greeted;
use crate::support::{Answer, SOME_TIME, SOON, Server, Setup, on_both, request, until};

async fn begin(server: &Server, body: &Value) -> Value {
    let answer = server.post("/api/sessions", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let begun: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(answer.header("location"), format!("/api/sessions/{}", begun["sessionId"].as_str().unwrap()));
    begun
}

async fn id_of(server: &Server, body: &Value) -> String {
    begin(server, body).await["sessionId"].as_str().unwrap().to_owned()
}

async fn get(server: &Server, id: &str) -> Answer {
    server.get(&format!("/api/sessions/{id}")).await
}

async fn end(server: &Server, id: &str) -> Answer {
    request("DELETE", &server.http("api", &format!("/api/sessions/{id}")), &[], None).await
}

/// How long a session lasts, in seconds.
fn lasts(begun: &Value) -> u64 {
    let at = humantime::parse_rfc3339(begun["expiresAt"].as_str().unwrap()).unwrap();
    // It was made some moments ago.
    (at.duration_since(std::time::SystemTime::now()).unwrap().as_secs() + 30) / 60 * 60
}

#[tokio::test]
async fn a_session_lasts_as_long_as_it_is_told_to() {
    let server = Server::shipped();
    for (body, seconds) in [
        (json!({}), 86_400),
        (json!({ "ttl": "24h" }), 86_400),
        (json!({ "ttl": 120 }), 120),
        (json!({ "ttl": 120.0 }), 120),
        (json!({ "ttl": "1h30m" }), 5400),
        (json!({ "ttl": "366d" }), 366 * 86_400),
    ] {
        assert_eq!(lasts(&begin(&server, &body).await), seconds, "{body}");
    }
    let bodyless = request("POST", &server.http("api", "/api/sessions"), &[], None).await;
    assert_eq!(bodyless.status, 400);
}

#[tokio::test]
async fn a_session_ends_with_its_time() {
    let server = Setup::shipped().embed();
    let id = begin(&server, &json!({ "ttl": "24h" })).await["sessionId"].as_str().unwrap().to_owned();
    let path = format!("/api/sessions/{id}");
    server.advance(Duration::from_secs(24 * 3600 - 60));
    assert_eq!(server.get(&path).await.status, 200);
    server.advance(Duration::from_secs(60));
    assert_eq!(server.get(&path).await.status, 404);
}

#[tokio::test]
async fn everything_wrong_with_a_body_is_named_at_once() {
    let server = Server::shipped();
    for (body, paths) in [
        (json!({ "userId": "", "name": 5, "ttl": "soon", "meat": 1 }), vec!["/meat", "/name", "/ttl", "/userId"]),
        (json!({ "userId": "a*" }), vec!["/userId"]),
        (json!({ "userId": "x".repeat(201), "name": "x".repeat(201) }), vec!["/name", "/userId"]),
        (json!({ "ttl": 0 }), vec!["/ttl"]),
        (json!({ "ttl": "120" }), vec!["/ttl"]),
        (json!({ "ttl": -5 }), vec!["/ttl"]),
        (json!({ "ttl": 1.5 }), vec!["/ttl"]),
        (json!({ "ttl": "367d" }), vec!["/ttl"]),
        (json!({ "ttl": 31_622_401 }), vec!["/ttl"]),
        (json!({ "ttl": "500ms" }), vec!["/ttl"]),
        (json!({ "ttl": 1e300 }), vec!["/ttl"]),
        (json!({ "ttl": null }), vec!["/ttl"]),
        (json!({ "meta": "x".repeat(16 * 1024) }), vec!["/meta"]),
        (json!([]), vec![""]),
    ] {
        let answer = server.post("/api/sessions", &body).await;
        assert_eq!((answer.status, answer.paths()), (400, paths.into_iter().map(str::to_owned).collect::<Vec<_>>()), "{body}");
    }
    assert_eq!(server.post("/api/sessions", &json!({ "meta": "x".repeat(70_000) })).await.status, 413);
    let fits = json!({ "meta": "x".repeat(16 * 1024 - 2), "name": "ü".repeat(200), "userId": "x".repeat(200) });
    begin(&server, &fits).await;
    assert_eq!(server.get("/api/sessions").await.json()["sessions"].as_array().unwrap().len(), 1, "nothing else was made");
}

#[tokio::test]
async fn while_the_store_cannot_write_sessions_are_refused_and_those_that_are_known_serve() {
    let server = Server::shipped();
    let session = id_of(&server, &json!({ "userId": "ada" })).await;
    let options = SqliteConnectOptions::new().filename(server.setup().path("t.db")).busy_timeout(SOON);
    let mut other = options.connect().await.unwrap();
    other.execute("BEGIN EXCLUSIVE").await.unwrap();
    let refused = server.post("/api/sessions", &json!({ "userId": "ada" })).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{refused:?}");
    until("not ready", || server.get("/readyz"), |answer| answer.status == 503).await;
    let (mut client, id) = greeted(&server, &format!("?sessionId={session}")).await;
    assert_eq!(get(&server, &session).await.json()["connections"], json!([id]));
    assert_eq!(server.get(&format!("/api/connections/{id}")).await.json()["user"], "ada");
    let refused = end(&server, &session).await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "1"), "{refused:?}");
    client.expect_nothing().await;
    other.close().await.unwrap();
    until("ready again", || server.get("/readyz"), |answer| answer.status == 200).await;
    assert_eq!(end(&server, &session).await.status, 204);
    assert_eq!(client.closed().await.1, "session ended");
}

on_both! {
    async fn a_session_is_told_in_full_and_outlives_the_process(backend) {
        let server = Setup::shipped().backend(backend).start();
        let meta = json!({ "theme": "dark", "list": [1, null, "\u{0}"] });
        let id = id_of(&server, &json!({ "userId": "ada", "name": "Ada's phone", "ttl": "2h", "meta": meta })).await;
        let wanted = json!({
            "sessionId": id, "userId": "ada", "name": "Ada's phone", "meta": meta, "created": SOME_TIME, "connections": [],
        });
        let shown = async |server: &Server| {
            let mut session = get(server, &id).await.json();
            assert!(session.as_object_mut().unwrap().remove("expiresAt").is_some());
            session
        };
        assert_eq!(shown(&server).await, wanted);
        let server = server.kill().setup.start();
        assert_eq!(shown(&server).await, wanted);
        let nobody = id_of(&server, &json!({})).await;
        let keys = get(&server, &nobody).await.json();
        assert_eq!(keys.as_object().unwrap().keys().collect::<Vec<_>>(), ["sessionId", "created", "expiresAt", "connections"]);
    }

    async fn sessions_are_listed_by_user_and_by_page(backend) {
        let server = Setup::shipped().backend(backend).embed();
        let mut all = Vec::new();
        for n in 0..5 {
            all.push(id_of(&server, &json!({ "userId": format!("u{}", n % 2) })).await);
        }
        let read = async |filter: &str| {
            let (mut found, mut next) = (Vec::new(), String::new());
            loop {
                let page = server.get(&format!("/api/sessions?limit=2{filter}{next}")).await.json();
                found.extend(page["sessions"].as_array().unwrap().iter().map(|s| s["sessionId"].as_str().unwrap().to_owned()));
                match page["next"].as_str() {
                    Some(cursor) => next = format!("&cursor={cursor}"),
                    None => break,
                }
            }
            found.sort();
            found
        };
        let sorted = |mut ids: Vec<String>| {
            ids.sort();
            ids
        };
        assert_eq!(read("").await, sorted(all.clone()));
        assert_eq!(read("&user=u1").await, sorted(vec![all[1].clone(), all[3].clone()]));
        assert_eq!(read("&user=nobody").await, Vec::<String>::new());
        let answer = server.get("/api/sessions?limit=0&cursor=x&user=").await;
        assert_eq!((answer.status, answer.paths()), (400, vec!["limit".to_owned(), "user".to_owned()]));
        assert_eq!(server.get("/api/sessions?cursor=x").await.paths(), ["cursor"]);
    }

    async fn who_connects_with_a_session_is_its_user(backend) {
        let server = Setup::shipped().backend(backend).embed();
        let user = async |query: String| {
            let (client, id) = greeted(&server, &query).await;
            let connection = server.get(&format!("/api/connections/{id}")).await.json();
            (client, id, connection["user"].as_str().map(str::to_owned), connection["channels"].clone())
        };
        assert_eq!(user("?sessionId=before".into()).await.2, None, "there are no sessions yet");
        let session = id_of(&server, &json!({ "userId": "ada" })).await;
        let (_one, id, who, channels) = user(format!("?sessionId={session}")).await;
        assert_eq!((who.as_deref(), channels), (Some("ada"), json!(["user:ada", format!("session:{session}")])));
        assert_eq!(get(&server, &session).await.json()["connections"], json!([id]));
        assert_eq!(user(format!("?sessionId={session}&userId=own")).await.2.as_deref(), Some("own"), "it has a user of its own");
        assert_eq!(user("?sessionId=unknown".into()).await.2, None);
        let nobodys = id_of(&server, &json!({})).await;
        assert_eq!(user(format!("?sessionId={nobodys}")).await.2, None);
        // What was known before a restart is known after it.
        let server = server.stop().setup.embed();
        let (_client, id) = greeted(&server, &format!("?sessionId={session}")).await;
        assert_eq!(server.get(&format!("/api/connections/{id}")).await.json()["user"], "ada");
        until("the session is seen", || get(&server, &session), |answer| answer.json()["seen"] == SOME_TIME).await;
    }

    async fn a_session_that_is_ended_takes_its_connections_along(backend) {
        let server = Setup::shipped().backend(backend).embed();
        let session = id_of(&server, &json!({ "userId": "ada" })).await;
        let (mut one, _) = greeted(&server, &format!("?sessionId={session}")).await;
        let (mut two, _) = greeted(&server, &format!("?sessionId={session}")).await;
        let (mut other, _) = greeted(&server, "?sessionId=other").await;
        assert_eq!(end(&server, &session).await.status, 204);
        assert_eq!(one.closed().await, (1008, "session ended".to_owned()));
        assert_eq!(two.closed().await, (1008, "session ended".to_owned()));
        other.expect_nothing().await;
        assert_eq!((get(&server, &session).await.status, end(&server, &session).await.status), (404, 404));
        let (_late, id) = greeted(&server, &format!("?sessionId={session}")).await;
        assert!(server.get(&format!("/api/connections/{id}")).await.json()["user"].is_null());
    }

    async fn a_session_that_is_over_is_not_there(backend) {
        let server = Setup::shipped().backend(backend).embed();
        let session = id_of(&server, &json!({ "userId": "ada", "ttl": 1 })).await;
        until("it is over", || get(&server, &session), |answer| answer.status == 404).await;
        assert_eq!(end(&server, &session).await.status, 404);
        assert_eq!(server.get("/api/sessions").await.json()["sessions"], json!([]));
        let (_client, id) = greeted(&server, &format!("?sessionId={session}")).await;
        assert!(server.get(&format!("/api/connections/{id}")).await.json()["user"].is_null());
    }
}
