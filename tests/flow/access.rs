//! Who may use which endpoint: origins, hosts, content types, tokens. No web page a developer happens to visit may.

use serde_json::json;

use crate::support::raw::{Raw, handshake};
use crate::support::{Answer, Client, Server, Setup, request};

const JSON: (&str, &str) = ("content-type", "application/json");
const FOREIGN: &str = "https://app.example";

/// Every endpoint: its name, the status of a request with these headers, and the status of an allowed request.
async fn knock(server: &Server, headers: &[(&'static str, &str)]) -> Vec<(&'static str, u16, u16)> {
    let body = json!({ "channel": "custom:x", "data": {} }).to_string();
    let event = json!({ "type": "x", "data": {} }).to_string();
    let mut statuses = Vec::new();
    for protocol in ["workspace", "canvas", "agent"] {
        let status = match Client::try_connect(server.url(protocol), headers).await {
            Ok(_) => 101,
            Err(status) => status,
        };
        statuses.push((protocol, status, 101));
    }
    let with_json = [headers, &[JSON]].concat();
    let requests = [
        ("a row", request("GET", &server.http("canvas", "/api/ws/stats"), headers, None).await, 200),
        ("another row", request("GET", &server.http("agent", "/api/websocket/status"), headers, None).await, 200),
        ("a source", request("POST", &server.http("bus", "/events"), &with_json, Some(&event)).await, 202),
        ("reading", request("GET", &server.http("api", "/api/history"), headers, None).await, 200),
        ("health", request("GET", &server.http("api", "/healthz"), headers, None).await, 200),
        ("metrics", request("GET", &server.http("api", "/metrics"), headers, None).await, 200),
        ("publishing", request("POST", &server.http("api", "/api/publish"), &with_json, Some(&body)).await, 202),
        ("as a source", request("POST", &server.http("api", "/api/sources/bus"), &with_json, Some(&event)).await, 202),
    ];
    statuses.extend(requests.into_iter().map(|(endpoint, answer, good)| (endpoint, answer.status, good)));
    statuses
}

async fn all_open(server: &Server, headers: &[(&'static str, &str)]) {
    for (endpoint, status, good) in knock(server, headers).await {
        assert_eq!(status, good, "{endpoint} {headers:?}");
    }
}

async fn all_shut(server: &Server, headers: &[(&'static str, &str)]) {
    for (endpoint, status, _) in knock(server, headers).await {
        assert_eq!(status, 403, "{endpoint} {headers:?}");
    }
}

#[tokio::test]
async fn programs_and_pages_of_this_machine_are_let_in() {
    let server = Server::shipped();
    all_open(&server, &[]).await;
    for origin in ["http://localhost:5173", "http://localhost", "https://127.0.0.1:8443", "http://[::1]:3000", "http://app.localhost:1"] {
        all_open(&server, &[("origin", origin)]).await;
    }
    all_open(&server, &[("sec-fetch-site", "same-origin")]).await;
    all_open(&server, &[("sec-fetch-site", "none")]).await;
}

#[tokio::test]
async fn pages_of_others_are_not() {
    let server = Server::shipped();
    let foreign = [
        FOREIGN,
        "null",
        "",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://evil.example:3000",
        "http://localhost@evil.example",
        "http://evil.example#localhost",
        "localhost",
        "file://",
        "http://128.0.0.1",
        "http://10.0.0.1:3000",
    ];
    for origin in foreign {
        all_shut(&server, &[("origin", origin)]).await;
    }
    all_shut(&server, &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]).await;
    // The page itself, and not what it shows, was what somebody followed a link to.
    let followed = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
    assert_eq!(request("GET", &server.http("api", "/api/channels"), &followed, None).await.status, 200);
    assert_eq!(request("POST", &server.http("api", "/api/publish"), &[&followed[..], &[JSON]].concat(), Some("{}")).await.status, 403);
}

#[tokio::test]
async fn a_listed_origin_opens_its_own_door_only() {
    let server = Setup::shipped().env("WORKSPACE_ORIGINS", "https://app.example, https://other.example").embed();
    let headers = [("origin", FOREIGN)];
    for (endpoint, status, good) in knock(&server, &headers).await {
        assert_eq!(status, if endpoint == "workspace" { good } else { 403 }, "{endpoint}");
    }
    let server = Setup::shipped().env("API_ORIGINS", FOREIGN).embed();
    let open = ["reading", "health", "metrics", "publishing", "as a source"];
    for (endpoint, status, good) in knock(&server, &headers).await {
        assert_eq!(status, if open.contains(&endpoint) { good } else { 403 }, "{endpoint}");
    }
    let answer = request("GET", &server.http("api", "/api/channels"), &headers, None).await;
    assert_eq!((answer.header("access-control-allow-origin"), answer.header("vary")), (FOREIGN, "Origin"));
}

#[tokio::test]
async fn only_names_of_this_machine_are_answered() {
    let server = Server::shipped();
    for host in ["evil.example", "evil.example:3000", "localhost.evil.example", "10.0.0.1", ""] {
        for (endpoint, status) in knock_with_host(&server, host).await {
            assert_eq!(status, 403, "{endpoint} {host}");
        }
    }
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:5", "[::1]", "localhost."] {
        for (endpoint, status) in knock_with_host(&server, host).await {
            assert_ne!(status, 403, "{endpoint} {host}");
        }
    }
}

async fn knock_with_host(server: &Server, host: &str) -> Vec<(&'static str, u16)> {
    let headers = [("host", host), JSON];
    let get = async |name: &str, path: &str| request("GET", &server.http(name, path), &headers[..1], None).await.status;
    let url = server.url("workspace");
    let authority = url.split('/').nth(2).unwrap();
    let upgrade = handshake(url).replace(&format!("Host: {authority}"), &format!("Host: {host}"));
    vec![
        ("a handshake", Raw::send_first(url, upgrade.as_bytes()).await.status()),
        ("a row", get("canvas", "/api/ws/stats").await),
        ("reading", get("api", "/api/channels").await),
        ("health", get("api", "/healthz").await),
        ("a source", request("POST", &server.http("bus", "/events"), &headers, Some("{\"type\":\"x\"}")).await.status),
    ]
}

#[tokio::test]
async fn localhost_is_both_loopback_addresses() {
    let server = Server::shipped();
    let port = server.http("api", "").rsplit(':').next().unwrap().to_owned();
    for host in ["127.0.0.1", "[::1]"] {
        assert_eq!(request("GET", &format!("http://{host}:{port}/healthz"), &[], None).await.status, 200, "{host}");
    }
}

#[tokio::test]
async fn a_body_says_that_it_is_json() {
    let server = Server::shipped();
    let body = json!({ "channel": "custom:x", "type": "x", "data": {} }).to_string();
    let endpoints = [server.http("api", "/api/publish"), server.http("api", "/api/sources/bus"), server.http("bus", "/events")];
    for url in &endpoints {
        for kind in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "application/jsonx", "text/json"]
        {
            assert_eq!(request("POST", url, &[("content-type", kind)], Some(&body)).await.status, 415, "{url} {kind}");
        }
        assert_eq!(request("POST", url, &[], Some(&body)).await.status, 415, "{url}");
        assert_eq!(request("POST", url, &[JSON], None).await.status, 400, "{url}");
    }
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/cloudevents+json"] {
        assert_eq!(
            request("POST", &endpoints[0], &[("content-type", kind)], Some(&json!({ "channel": "custom:x" }).to_string())).await.status,
            202,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn preflights_are_answered_to_origins_that_are_let_in() {
    let server = Setup::shipped().env("API_TOKEN", "t0ken").embed();
    let ask = async |url: String, origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type,authorization"),
        ];
        request("OPTIONS", &url, &headers, None).await
    };
    for (url, methods) in [(server.http("api", "/api/publish"), "GET, POST, DELETE"), (server.http("bus", "/events"), "POST")] {
        let good = ask(url.clone(), "http://localhost:5173").await;
        assert_eq!(good.status, 204, "{url}");
        assert_eq!(good.header("access-control-allow-origin"), "http://localhost:5173");
        assert_eq!(good.header("access-control-allow-methods"), methods);
        assert!(good.header("access-control-allow-headers").contains("authorization"));
        let bad = ask(url, FOREIGN).await;
        assert_eq!((bad.status, bad.header("access-control-allow-origin")), (403, ""));
    }
}

#[tokio::test]
async fn with_a_token_set_every_call_but_health_needs_it() {
    let server = Setup::shipped().env("API_TOKEN", "t0ken").embed();
    let get = async |path: &str, token: &str| -> Answer {
        let headers: &[(&str, &str)] = if token.is_empty() { &[] } else { &[("authorization", token)] };
        request("GET", &server.http("api", path), headers, None).await
    };
    for path in
        ["/api/channels", "/api/connections", "/api/routes", "/api/plugins", "/api/sources", "/api/stats", "/api/history", "/metrics"]
    {
        for wrong in ["", "Bearer wrong", "Bearer t0ke", "Bearer t0kenn", "Basic t0ken", "t0ken", "Bearer "] {
            let answer = get(path, wrong).await;
            assert_eq!((answer.status, answer.header("www-authenticate")), (401, "Bearer"), "{path} {wrong}");
        }
        assert_eq!(get(path, "Bearer t0ken").await.status, 200, "{path}");
        assert_eq!(get(path, "bearer t0ken").await.status, 200, "{path}");
    }
    assert_eq!(get("/nothing", "").await.status, 401);
    assert_eq!((get("/healthz", "").await.status, get("/readyz", "").await.status), (200, 200));
    for path in ["/api/publish", "/api/sources/bus"] {
        assert_eq!(server.post(path, &json!({ "channel": "custom:x" })).await.status, 401, "{path}");
    }
    // The token is the REST interface's alone.
    server.client("workspace").await.expect_nothing().await;
}

#[tokio::test]
async fn a_source_may_have_a_token_of_its_own() {
    let server = Setup::shipped().env("AGENT_BUS_TOKEN", "t0ken").embed();
    let url = server.http("bus", "/events");
    let body = json!({ "type": "x", "data": {} }).to_string();
    assert_eq!(request("POST", &url, &[JSON], Some(&body)).await.status, 401);
    assert_eq!(request("POST", &url, &[JSON, ("authorization", "Bearer t0ken")], Some(&body)).await.status, 202);
}
