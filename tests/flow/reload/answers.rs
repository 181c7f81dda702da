//! What a reload answers, what it counts, and what it keeps of what was spent.

use std::fs;

use serde_json::{Value, json};

use super::{become_, reload, setup};
use crate::support::{Server, request};

/// Nobody but a test reloads.
const HEAD: &str = "version: 1\nreload: false\nstore: \"sqlite::memory:\"\nchannels: { room: {} }\n";

const CHAT: &str = r#"
  chat:
    listen: localhost:0/chat
    messages:
      ping: { reply: { type: pong } }
      say: [{ when: $.loud == true, limit: 1/1h, reply: { say: loud } }, { when: $.low == true, limit: 1/1h, reply: { say: low } }, { limit: 1/1h, reply: { say: said } }]
    error: { error: $error.message, code: $error.code }
"#;

fn with(api: &str, protocols: &str, sources: &str) -> String {
    format!("{HEAD}api: {{ {api} }}\nprotocols:{protocols}sources: {{ {sources} }}\n")
}

fn text(protocols: &str) -> String {
    with("listen: \"localhost:0\"", protocols, "")
}

fn port(server: &Server, name: &str) -> String {
    server.url(name).split('/').nth(2).unwrap().rsplit_once(':').unwrap().1.to_owned()
}

#[tokio::test]
async fn a_body_is_json_and_says_nothing() {
    let server = setup(&text(CHAT)).start();
    let url = server.http("api", "/api/reload");
    let send = async |kind: &str, body: &str| request("POST", &url, &[("content-type", kind)], Some(body)).await;
    for kind in ["text/plain", "application/x-www-form-urlencoded"] {
        let answer = send(kind, "dry=true").await;
        assert_eq!((answer.status, answer.header("content-type")), (415, "application/problem+json"), "{answer:?}");
    }
    for (body, path) in [(r#"{"dry":true}"#, "/dry"), ("true", ""), ("[]", "")] {
        let answer = send("application/json", body).await;
        assert_eq!((answer.status, answer.paths()), (400, vec![path.to_owned()]), "{body}");
    }
    assert_eq!(send("application/json", "{").await.status, 400);
    assert_eq!(send("application/json", " {} ").await.status, 200);
    assert_eq!(server.get("/api/config").await.json()["generation"], 1);
    // Any empty body does.
    let url = server.http("api", "/api/sessions/none");
    assert_eq!(request("DELETE", &url, &[("content-type", "text/plain")], Some("x")).await.status, 415);
}

#[tokio::test]
async fn any_generation_is_one() {
    let server = setup(&text(CHAT)).start();
    let url = server.http("api", "/api/reload");
    for (value, status) in [("*", 200), ("\"1\"", 200), ("\"2\"", 412), ("1", 400), ("W/\"1\"", 400)] {
        assert_eq!(request("POST", &url, &[("if-match", value)], None).await.status, status, "{value}");
    }
}

#[tokio::test]
async fn a_generation_is_something_different() {
    let token = |token: &str| with(&format!("listen: \"localhost:0\", token: {token}"), CHAT, "");
    let server = setup(&token("one")).start();
    let call = async |method: &str, path: &str, token: &str| {
        let answer = request(method, &server.http("api", path), &[("authorization", &format!("Bearer {token}"))], None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    let before = call("GET", "/api/config", "one").await;
    for text in [token("one"), format!("# A comment.\n{}", token("one"))] {
        fs::write(server.setup().path("routes.yaml"), text).unwrap();
        call("POST", "/api/reload", "one").await;
        assert_eq!(call("GET", "/api/config", "one").await, before, "nothing is different");
    }
    server.logged("reloaded: nothing is different");
    fs::write(server.setup().path("routes.yaml"), token("two")).unwrap();
    let report: Value = serde_json::from_str(&call("POST", "/api/reload", "one").await).unwrap();
    let before: Value = serde_json::from_str(&before).unwrap();
    assert_eq!(report["changes"], json!([{ "path": "api.token", "change": "secret" }]), "{report}");
    assert_eq!((&report["generation"], &report["hash"]), (&json!(2), &before["hash"]), "a hash tells nothing of a secret");
    call("GET", "/api/config", "two").await;
}

#[tokio::test]
async fn what_is_counted_is_what_ends() {
    let other = "\n  other: { listen: \"localhost:0/other\", messages: { ping: { reply: { say: pong } } } }\n";
    let sources = "door: { http: POST /door, on: \"127.0.0.1:0\", to: room }, tick: { every: 1h, emit: { type: tick }, to: room }";
    let server = setup(&with("listen: \"localhost:0\"", &format!("{CHAT}{other}"), sources)).start();
    let shared = setup(&text(CHAT)).start();
    let ends = |report: &Value| -> Vec<Value> {
        let changes = report["changes"].as_array().unwrap();
        changes.iter().filter(|change| !change["ends"].is_null()).map(|change| json!([change["path"], change["ends"]])).collect()
    };
    let counts = |sources: u32, listeners: u32| json!({ "subscriptions": 0, "connections": 0, "sources": sources, "listeners": listeners });
    // An address that somebody else still uses stays.
    let moved = sources.replace("POST /door", "POST /gate").replace("1h", "2h");
    for query in ["?dry=true", ""] {
        fs::write(server.setup().path("routes.yaml"), with("listen: \"localhost:0\"", CHAT, &moved)).unwrap();
        let report = reload(&server, query).await.json();
        assert_eq!(report["ended"], counts(2, 0), "{report}");
        assert_eq!(ends(&report), [json!(["sources.door.http", counts(1, 0)]), json!(["sources.tick.every", counts(1, 0)])], "{report}");
    }
    // A source with another token is the same source.
    let with_token = moved.replace("to: room }, tick", "token: secret, to: room }, tick");
    assert_eq!(become_(&server, &with("listen: \"localhost:0\"", CHAT, &with_token)).await["ended"], counts(0, 0));
    let report = become_(&server, &text(CHAT)).await;
    assert_eq!(report["ended"], counts(2, 1), "{report}");
    assert_eq!(ends(&report), [json!(["sources.door", counts(1, 1)]), json!(["sources.tick", counts(1, 0)])], "{report}");
    // Addresses that change: that of a protocol, and that of the REST interface.
    let fixed = text(&CHAT.replace("localhost:0", "127.0.0.1:0"));
    let report = become_(&shared, &fixed.replace("ping: {", "more: { reply: { say: more } }\n      ping: {")).await;
    assert_eq!((&report["ended"], ends(&report)), (&counts(0, 1), vec![json!(["protocols.chat.listen", counts(0, 1)])]), "{report}");
    let report = become_(&shared, &with("listen: \"127.0.0.1:0\"", CHAT, "")).await;
    let both = vec![json!(["api.listen", counts(0, 1)]), json!(["protocols.chat.listen", counts(0, 1)])];
    assert_eq!((&report["ended"], ends(&report)), (&counts(0, 2), both), "{report}");
}

#[tokio::test]
async fn an_address_of_the_servers_own_is_told_by_its_name() {
    let server = setup(&text(CHAT)).start();
    let at = port(&server, "chat");
    let detail = async |query: &str, text: &str| {
        fs::write(server.setup().path("routes.yaml"), text).unwrap();
        let answer = reload(&server, query).await;
        assert_eq!((answer.status, &answer.json()["refusal"]["why"]), (409, &json!("cannot_listen")), "{answer:?}");
        answer.json()["detail"].as_str().unwrap().to_owned()
    };
    let public = text(&CHAT.replace("localhost:0", &format!("0.0.0.0:{at}")));
    for query in ["?dry=true", ""] {
        assert_eq!(
            detail(query, &public).await,
            format!(
                "cannot listen on 0.0.0.0:{at}: this server's own listener on localhost:{at}, for the protocol `chat`, has that port; \
                 an address is handed over only as it is: restart the server, or reload twice, with another port in between"
            )
        );
    }
    let api = port(&server, "api");
    let told = detail("", &text(&CHAT.replace("localhost:0", &format!("0.0.0.0:{api}")))).await;
    assert!(told.contains(&format!("own listener on localhost:{api}, for the REST interface, has that port; use another port")), "{told}");
    // As it says: with another port in between.
    become_(&server, &text(&CHAT.replace("localhost:0", "127.0.0.1:0"))).await;
    become_(&server, &public).await;
}

#[tokio::test]
async fn a_row_keeps_what_was_spent_when_others_come_before_it() {
    let server = setup(&text(CHAT)).start();
    let mut client = server.client("chat").await;
    let say = |key: &str| json!({ "type": "say", key: true });
    for (key, answer) in [("loud", "loud"), ("low", "low"), ("none", "said")] {
        assert_eq!(client.ask(&say(key)).await["say"], answer);
        assert_eq!(client.ask(&say(key)).await["code"], "rate_limited", "{key}");
    }
    let spent = async |client: &mut crate::support::Client, keys: &[&str]| {
        for key in keys {
            assert_eq!(client.ask(&say(key)).await["code"], "rate_limited", "{key}");
        }
    };
    // Another row in front, with the same limit; one that says something else; the order changed; one gone.
    let more = CHAT.replace("say: [", "say: [{ when: $.new == true, limit: 1/1h, reply: { say: new } }, ");
    become_(&server, &text(&more)).await;
    assert_eq!(client.ask(&say("new")).await["say"], "new");
    spent(&mut client, &["new", "loud", "low", "none"]).await;
    become_(&server, &text(&more.replace("say: loud", "say: louder"))).await;
    spent(&mut client, &["new", "loud", "low", "none"]).await;
    let turned = CHAT.replace("$.loud", "$.x").replace("$.low", "$.loud").replace("$.x", "$.low");
    become_(&server, &text(&turned)).await;
    spent(&mut client, &["loud", "low", "none"]).await;
    let alone = CHAT.replace(
        "[{ when: $.loud == true, limit: 1/1h, reply: { say: loud } }, { when: $.low == true, limit: 1/1h, reply: { say: low } }, ",
        "",
    );
    become_(&server, &text(&alone.replace("said } }]", "said } }"))).await;
    spent(&mut client, &["none"]).await;
    // A changed limit begins anew.
    become_(&server, &text(&CHAT.replace("limit: 1/1h, reply: { say: loud }", "limit: 2/1h, reply: { say: loud }"))).await;
    assert_eq!(client.ask(&say("loud")).await["say"], "loud");
    spent(&mut client, &["low", "none"]).await;
}
