//! The routing language by protocols that `src/` has never heard of.

use serde_json::{Value, json};

use crate::support::{Client, Server, Setup, request};

const CHAT: &str = r#"
channels:
  "room:{name}": { history: true }
protocols:
  chat:
    listen: 127.0.0.1:0/chat/{room}
    type: /do
    open: { join: "room:{$path.room}", send: { hello: $query.name } }
    messages:
      say: { transform: shout, to: "room:{$path.room}", except: sender, reply: { heard: $.text } }
      who: { call: count, reply: { here: $result } }
    deliver: { said: $event.data.text, as: $event.type, number: $event.offset }
    error: { oops: $error.message, code: $error.code }
"#;

const CHAT_SCRIPT: &str = r#"
fn shout(msg) { if msg.text == "" { throw "say something"; } msg.text = msg.text.to_upper(); msg }
fn count(conn, msg) { members("room:" + conn.path.room).len() }
"#;

async fn enter(server: &Server, room: &str, name: &str) -> Client {
    let url = server.url("chat").replace("{room}", room);
    let mut client = Client::connect(&format!("{url}?name={name}")).await;
    assert_eq!(client.next().await, json!({ "hello": name }));
    client
}

#[tokio::test]
async fn a_new_protocol_is_a_few_lines_and_a_script() {
    let server = Setup::own(CHAT).plugin("chat", CHAT_SCRIPT).embed();
    let (mut ann, mut bob, mut eve) =
        (enter(&server, "a", "ann").await, enter(&server, "a", "bob").await, enter(&server, "b", "eve").await);
    assert_eq!(ann.ask(&json!({ "do": "say", "text": "hi there" })).await, json!({ "heard": "HI THERE" }));
    assert_eq!(bob.next().await, json!({ "said": "HI THERE", "as": "say", "number": 1 }));
    assert_eq!(ann.ask(&json!({ "do": "who" })).await, json!({ "here": 2 }));
    assert_eq!(eve.ask(&json!({ "do": "who" })).await, json!({ "here": 1 }));
    assert_eq!(ann.ask(&json!({ "do": "say", "text": "" })).await, json!({ "oops": "say something", "code": "rejected" }));
    assert_eq!(ann.ask(&json!({ "do": "dance" })).await, json!({ "oops": "unknown message type", "code": "unknown_type" }));
    assert_eq!(bob.ask(&json!({ "do": "who" })).await, json!({ "here": 2 }));
    server.publish(&json!({ "channel": "room:b", "type": "note", "data": { "text": "from outside" } })).await;
    assert_eq!(eve.next().await, json!({ "said": "from outside", "as": "note", "number": 1 }));
}

#[tokio::test]
async fn a_protocol_can_live_in_a_file_of_its_own() {
    let (channels, protocols) = CHAT.split_at(CHAT.find("protocols:").unwrap());
    let server =
        Setup::own(&format!("include: chat/chat.yaml\n{channels}")).file("chat/chat.yaml", protocols).plugin("chat", CHAT_SCRIPT).embed();
    let mut ann = enter(&server, "a", "ann").await;
    assert_eq!(ann.ask(&json!({ "do": "who" })).await, json!({ "here": 1 }));
}

#[tokio::test]
async fn references_keep_their_types_and_what_is_missing_drops_its_key() {
    let yaml = r#"
protocols:
  echo:
    listen: 127.0.0.1:0/
    messages:
      all: { reply: { a: $.a, missing: $.b, text: "<{$.a}>", null: null, list: [$.a, $.b], brace: "{{x}", "...": $.more, json: !json { is: $.a } } }
      raw: { reply: { raw: $raw, type: $type, data: $data, cookie: $cookie.c, header: $header.x-mine, query: $query.q, ip: $conn.ip, protocol: $conn.protocol } }
"#;
    let server = Setup::own(yaml).embed();
    let headers = [("cookie", "a=b; c=d"), ("x-mine", "h")];
    let mut client = Client::try_connect(&format!("{}?q=%20x", server.url("echo")), &headers).await.ok().unwrap();
    let answer = client.ask(&json!({ "type": "all", "a": 1.5, "more": { "x": [1], "a": 2 } })).await;
    assert_eq!(
        (&answer["text"], &answer["null"], &answer["brace"], &answer["x"]),
        (&json!("<1.5>"), &Value::Null, &json!("{x}"), &json!([1]))
    );
    assert_eq!((answer.get("missing"), &answer["json"]), (None, &json!(r#"{"is":1.5}"#)));
    let text = r#"{ "type" : "raw","z":1.50 }"#;
    client.send_text(text).await;
    let frame = client.next_frame().await;
    assert!(frame.to_text().unwrap().contains(text), "{frame}");
    let wanted = json!({
        "raw": { "type": "raw", "z": 1.50 }, "type": "raw", "data": { "z": 1.50 }, "cookie": "d", "header": "h", "query": " x", "ip": "127.0.0.1", "protocol": "echo",
    });
    assert_eq!(serde_json::from_str::<Value>(frame.to_text().unwrap()).unwrap(), wanted);
}

#[tokio::test]
async fn the_row_is_the_first_that_holds_and_exact_types_come_before_globs() {
    let yaml = r#"
protocols:
  p:
    listen: 127.0.0.1:0/
    messages:
      "file:*": { reply: glob }
      "file:open": { reply: exact }
      7: { reply: seven }
      many:
        - { when: "$.n > 10", reply: { size: large } }
        - { when: "$.n > 5 && $conn.query.strict == ()", reply: { size: medium } }
        - { reply: { size: small } }
      _: { reply: { other: $type } }
"#;
    let yaml = yaml
        .replace("reply: glob", "reply: { by: glob }")
        .replace("reply: exact", "reply: { by: exact }")
        .replace("reply: seven", "reply: { by: seven }");
    let server = Setup::own(&yaml).embed();
    let mut client = server.client("p").await;
    let table = [
        (json!({ "type": "file:open" }), json!({ "by": "exact" })),
        (json!({ "type": "file:close" }), json!({ "by": "glob" })),
        (json!({ "type": 7 }), json!({ "by": "seven" })),
        (json!({ "type": "many", "n": 11 }), json!({ "size": "large" })),
        (json!({ "type": "many", "n": 6 }), json!({ "size": "medium" })),
        (json!({ "type": "many", "n": 1 }), json!({ "size": "small" })),
        (json!({ "type": "files" }), json!({ "other": "files" })),
    ];
    for (message, answer) in table {
        assert_eq!(client.ask(&message).await, answer, "{message}");
    }
}

#[tokio::test]
async fn http_rows_answer_with_what_they_say() {
    let yaml = r#"
channels: { log: { history: true } }
protocols:
  p:
    listen: 127.0.0.1:0/ws
    http:
      GET /items/{id}: { reply: { id: $path.id, q: $query.q } }
      POST /items: { schema: { required: [name] }, to: log, as: created, data: { name: $.name }, status: 201, reply: { created: $.name } }
      DELETE /items/{id}: { to: log, as: deleted, data: { id: $path.id } }
      GET /fail: { fail: { code: not_found, message: gone } }
      GET /script: { reply: page }
"#;
    let server = Setup::own(yaml).plugin("p", r#"fn page(msg) { #{ pages: 1 } }"#).embed();
    let ask = async |method: &str, path: &str, body: Option<&str>| {
        let headers = [("content-type", "application/json")];
        let answer = request(method, &server.http("p", path), &headers, body).await;
        (answer.status, answer)
    };
    let (status, answer) = ask("GET", "/items/a%20b?q=1", None).await;
    assert_eq!((status, answer.json()), (200, json!({ "id": "a b", "q": "1" })));
    let (status, answer) = ask("POST", "/items", Some(r#"{"name":"n"}"#)).await;
    assert_eq!((status, answer.json()), (201, json!({ "created": "n" })));
    let (status, answer) = ask("DELETE", "/items/7", None).await;
    assert_eq!((status, &answer.json()["offset"]), (202, &json!(2)));
    assert_eq!(ask("POST", "/items", Some("{}")).await.0, 422);
    assert_eq!(ask("GET", "/fail", None).await.0, 404);
    assert_eq!(ask("GET", "/script", None).await.1.json(), json!({ "pages": 1 }));
    let (status, answer) = ask("PUT", "/items", Some("{}")).await;
    assert_eq!((status, answer.header("allow")), (405, "POST"));
    let history = server.get("/api/history?channel=log").await.json();
    assert_eq!((&history["events"][0]["data"], &history["events"][1]["data"]), (&json!({ "id": "7" }), &json!({ "name": "n" })));
}
