//! The description of the REST interface and what the server really does say the same.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::canvas::greeted;
use crate::support::{Answer, Server, Setup, request, until};

/// Methods that somebody may try.
const METHODS: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];

async fn described(server: &Server) -> Value {
    let answer = server.get("/openapi.json").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

/// Every operation: method, path, and what is said of it.
fn operations(document: &Value) -> impl Iterator<Item = (String, &str, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| (method.to_uppercase(), path.as_str(), operation))
    })
}

/// What a reference leads to.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(reference.trim_start_matches('#')).unwrap_or_else(|| panic!("{reference} leads nowhere")),
        None => value,
    }
}

/// A path with something in place of its parameters.
fn filled(path: &str, with: &str) -> String {
    let mut parts = path.split('{');
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |text, part| text + with + part.split_once('}').unwrap().1)
}

/// `data.<path>` is one free-form parameter, `data`.
fn plain(listed: &str) -> String {
    listed.split('.').next().unwrap().to_owned()
}

fn names(operation: &Value, place: &str) -> BTreeSet<String> {
    let all = operation["parameters"].as_array().into_iter().flatten();
    all.filter(|p| p["in"] == place).map(|p| p["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_description_is_this() {
    let mut document = described(&Server::shipped()).await;
    document["info"]["version"] = "[version]".into();
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(".");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("openapi", serde_json::to_string_pretty(&document).unwrap()));
}

#[tokio::test]
async fn every_described_call_is_there_and_no_other_method_is() {
    let server = Server::shipped();
    let document = described(&server).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        // A stream that is let in does not end.
        let refused = if path == "/api/events" { "?nonsense=1" } else { "" };
        let url = server.http("api", &format!("{}{refused}", filled(path, "x")));
        let mut methods: BTreeSet<String> = item.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
        for method in METHODS {
            let answer = request(method, &url, &[], None).await;
            if methods.contains(method) {
                let is_route = answer.status != 405 && !answer.body.contains("\"there is no /");
                assert!(is_route, "{method} {path}: {answer:?}");
            } else {
                assert_eq!(answer.status, 405, "{method} {path}: {answer:?}");
                assert_eq!(answer.header("content-type"), "application/problem+json");
                let allowed: BTreeSet<String> = answer.header("allow").split(',').map(|m| m.trim().to_owned()).collect();
                if methods.contains("GET") {
                    methods.insert("HEAD".into());
                }
                assert_eq!(allowed, methods, "{method} {path}");
                methods.remove("HEAD");
            }
        }
    }
}

#[tokio::test]
async fn the_described_parameters_are_those_that_are_taken() {
    let server = Server::shipped();
    let document = described(&server).await;
    for (method, path, operation) in operations(&document) {
        let in_path: BTreeSet<String> = path.split('{').skip(1).map(|part| part.split_once('}').unwrap().0.to_owned()).collect();
        assert_eq!(names(operation, "path"), in_path, "{path}");
        if method != "GET" || !operation["responses"].as_object().unwrap().contains_key("400") {
            continue;
        }
        let answer = server.get(&format!("{}?nonsense=1", filled(path, "x"))).await;
        assert_eq!((answer.status, answer.paths()), (400, vec!["nonsense".to_owned()]), "{path}");
        let message = answer.json()["errors"][0]["message"].as_str().unwrap().to_owned();
        let listed: BTreeSet<String> =
            message.split_once("known here: ").map_or("", |(_, list)| list).split(", ").filter(|n| !n.is_empty()).map(plain).collect();
        assert_eq!(names(operation, "query"), listed, "{path}: {message}");
    }
}

#[tokio::test]
async fn every_call_is_described_in_full() {
    let document = described(&Server::shipped()).await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut ids = BTreeSet::new();
    let tags: BTreeSet<&str> = document["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    for (method, path, operation) in operations(&document) {
        let text = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
        assert!(text(&operation["summary"]), "{method} {path} has no summary");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{} stands twice", operation["operationId"]);
        let [tag] = operation["tags"].as_array().unwrap().as_slice() else { panic!("{method} {path} has no one tag") };
        assert!(tags.contains(tag.as_str().unwrap()), "{tag} is not introduced");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(text(&parameter["description"]), "{method} {path}: {parameter}");
        }
        let responses = operation["responses"].as_object().unwrap();
        let open = operation["tags"][0] == "health" || path == "/docs";
        assert!(open || ["401", "403"].iter().all(|status| responses.contains_key(*status)), "{method} {path}");
        for (status, response) in responses {
            let response = resolved(&document, response);
            assert!(text(&response["description"]), "{method} {path}: {status}");
            for (kind, content) in response["content"].as_object().into_iter().flatten() {
                let refused = status.as_str() >= "400" && (path, status.as_str()) != ("/readyz", "503");
                assert_eq!(kind == "application/problem+json", refused, "{method} {path}: {status}");
                resolved(&document, &content["schema"]);
            }
        }
    }
    // A bound is part of what is said: who reads it need not try.
    let limit = operations(&document).find(|(_, path, _)| *path == "/api/history").unwrap().2["parameters"].clone();
    let limit = limit.as_array().unwrap().iter().find(|p| p["name"] == "limit").unwrap();
    assert_eq!((&limit["schema"]["minimum"], &limit["schema"]["maximum"]), (&json!(1), &json!(1000)));
}

/// Nothing that is not described may be there either. What is described in parts is closed as a whole.
fn close(schema: &mut Value, is_part: bool) {
    if let Some(object) = schema.as_object_mut() {
        let in_parts = object.contains_key("allOf");
        for (key, value) in object.iter_mut() {
            close(value, in_parts && key == "allOf" || is_part && ["allOf", "oneOf", "anyOf"].contains(&&**key));
        }
        let word = if in_parts { "unevaluatedProperties" } else { "additionalProperties" };
        let is_closed = is_part || object.contains_key("additionalProperties");
        if !is_closed && (in_parts || object.contains_key("properties")) {
            object.insert(word.into(), false.into());
        }
    } else if let Some(list) = schema.as_array_mut() {
        list.iter_mut().for_each(|item| close(item, is_part));
    }
}

/// Holds an answer to what is said of it.
fn conform(document: &Value, method: &str, path: &str, answer: &Answer) {
    let operation = &document["paths"][path][method.to_lowercase()];
    let response = &operation["responses"][answer.status.to_string()];
    assert!(response.is_object(), "{method} {path} does not say {}: {answer:?}", answer.status);
    let content = &resolved(document, response)["content"][answer.header("content-type")];
    assert!(content.is_object(), "{method} {path} does not say {:?}: {answer:?}", answer.header("content-type"));
    if !answer.header("content-type").contains("json") {
        return;
    }
    let mut schema = content["schema"].clone();
    schema["components"] = document["components"].clone();
    close(&mut schema, false);
    let validator = jsonschema::validator_for(&schema).unwrap();
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    let errors: Vec<String> = validator.iter_errors(&body).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert_eq!(errors, Vec::<String>::new(), "{method} {path}: {}", answer.body);
}

#[tokio::test]
async fn what_is_answered_is_what_is_described() {
    let server = Server::shipped();
    let document = described(&server).await;
    let (_client, id) = greeted(&server, "?userId=u&sessionId=s").await;
    greeted(&server, "").await.0.close().await;
    for (body, status) in [
        (json!({ "session": "s", "type": "note", "data": {}, "metadata": { "a": 1 } }), 202),
        (json!({ "session": ["s", "t"], "type": "note", "data": {} }), 202),
        (json!({ "client": id, "type": "note", "data": {} }), 202),
        (json!({ "channel": "nobody knows" }), 404),
        (json!({ "channel": "files", "data": {} }), 422),
        (json!({ "chanel": "files" }), 400),
    ] {
        let answer = server.post("/api/publish", &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        conform(&document, "POST", "/api/publish", &answer);
    }
    for (body, status) in [(json!({ "type": "MessageSent", "data": {} }), 202), (json!({ "data": {} }), 422), (json!(3), 422)] {
        let answer = server.post("/api/sources/bus", &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        conform(&document, "POST", "/api/sources/{name}", &answer);
    }
    let current = server.get("/api/config").await.header("etag").to_owned();
    for (query, generation, status) in
        [("?dry=true", &*current, 200), ("", &*current, 200), ("", "\"99\"", 412), ("?dry=maybe", "*", 400), ("", "none", 400)]
    {
        let url = server.http("api", &format!("/api/reload{query}"));
        let answer = request("POST", &url, &[("if-match", generation)], None).await;
        assert_eq!(answer.status, status, "{answer:?}");
        conform(&document, "POST", "/api/reload", &answer);
    }
    let mut session = String::new();
    for (body, status) in [(json!({ "userId": "ada", "name": "phone", "meta": [1] }), 201), (json!({ "userId": 5 }), 400)] {
        let answer = server.post("/api/sessions", &body).await;
        assert_eq!(answer.status, status, "{answer:?}");
        conform(&document, "POST", "/api/sessions", &answer);
        session = answer.json()["sessionId"].as_str().map_or(session, str::to_owned);
    }
    let text = request("POST", &server.http("api", "/api/publish"), &[("content-type", "text/plain")], Some("{}")).await;
    assert_eq!(text.status, 415);
    conform(&document, "POST", "/api/publish", &text);

    // The stream of events does not end; it has tests of its own.
    for (method, path, _) in operations(&document).filter(|(method, path, _)| method == "GET" && *path != "/api/events") {
        let with = match path {
            "/api/connections/{id}" => &id,
            "/api/sessions/{id}" => &session,
            path if path.starts_with("/api/channels/") => "session:s",
            _ => "x",
        };
        for (with, status) in [(with, 200), ("not%00there", 404)] {
            let answer = server.get(&filled(path, with)).await;
            if status == 404 && !path.contains('{') {
                continue;
            }
            assert_eq!(answer.status, status, "{path}: {answer:?}");
            conform(&document, &method, path, &answer);
        }
    }
    let was = until("the record", || server.get("/api/connections?closed=true"), |answer| answer.body.contains("closed")).await;
    conform(&document, "GET", "/api/connections", &was);
    conform(&document, "GET", "/api/stats", &server.get("/api/stats?from=-1h").await);
    let foreign = request("GET", &server.http("api", "/api/stats"), &[("origin", "https://evil.example")], None).await;
    conform(&document, "GET", "/api/stats", &foreign);
    assert_eq!(foreign.status, 403);
}

#[tokio::test]
async fn with_a_token_every_call_but_health_needs_it_and_says_so() {
    let server = Setup::shipped().env("API_TOKEN", "secret").embed();
    let bearer = [("authorization", "Bearer secret")];
    let document: Value = serde_json::from_str(&request("GET", &server.http("api", "/openapi.json"), &bearer, None).await.body).unwrap();
    assert_eq!(document["security"], json!([{ "bearer": [] }]));
    assert_eq!(described(&Server::shipped()).await["security"], json!([{}, { "bearer": [] }]));
    for (method, path, operation) in operations(&document) {
        let answer = request(&method, &server.http("api", &filled(path, "x")), &[], None).await;
        let open = operation["security"] == json!([{}]);
        assert_eq!(answer.status == 401, !open, "{method} {path}: {answer:?}");
        if answer.status == 401 {
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            conform(&document, &method, path, &answer);
        }
    }
}

#[tokio::test]
async fn a_path_that_is_not_text_is_refused_like_any_other() {
    let server = Server::shipped();
    let document = described(&server).await;
    let answer = server.get("/api/channels/%ff").await;
    assert_eq!(answer.status, 400);
    conform(&document, "GET", "/api/channels/{name}", &answer);
}
