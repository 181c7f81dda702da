//! Who a token speaks for, and what happens without one.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

use super::canvas::greeted;
use crate::support::{Client, Server, Setup, request};

/// An Ed25519 key made for this test, as DER in base64, and its public half.
const PRIVATE: &str = "MC4CAQAwBQYDK2VwBCIEIIAyW3EU8X/QFP+uCJcYoQtSd6ojIue2JtflebkeV829";
const PUBLIC: &str = "yth0_VoonwzVt22ZYGc1rfB4fFiWKPNYACbVeBxN4Iw";

const SECRET: &str = "a secret of some length";

fn token(algorithm: Algorithm, claims: &Value, secret: &str) -> String {
    encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn in_seconds(seconds: i64) -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap() + seconds
}

fn server() -> Server {
    Setup::shipped().env("JWT_SECRET", SECRET).embed()
}

#[tokio::test]
async fn a_valid_tokens_subject_is_the_user_whatever_the_query_says() {
    let server = server();
    for algorithm in [Algorithm::HS256, Algorithm::HS512] {
        let valid = token(algorithm, &json!({ "sub": "ann", "exp": in_seconds(600) }), SECRET);
        let (mut client, id) = greeted(&server, &format!("?userId=bob&sessionId=s&token={valid}")).await;
        let seen = server.get(&format!("/api/connections/{id}")).await.json();
        assert_eq!((&seen["user"], &seen["session"]), (&json!("ann"), &json!("s")));
        server.publish(&json!({ "user": "bob", "type": "notification", "data": { "message": "not yours" } })).await;
        server.publish(&json!({ "user": "ann", "type": "notification", "data": { "message": "yours" } })).await;
        assert_eq!(client.next().await["message"], "yours");
        client.expect_nothing().await;
    }
}

#[tokio::test]
async fn anything_else_is_accepted_closed_and_receives_nothing() {
    let server = server();
    let good = json!({ "sub": "ann", "exp": in_seconds(600) });
    let unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.eyJzdWIiOiJhbm4ifQ.";
    let valid = token(Algorithm::HS256, &good, SECRET);
    let tokens = [
        String::new(),
        "garbage".into(),
        unsigned.into(),
        valid[..valid.len() - 2].into(),
        token(Algorithm::HS256, &good, "another secret"),
        token(Algorithm::HS256, &json!({ "sub": "ann", "exp": in_seconds(-1) }), SECRET),
        token(Algorithm::HS256, &json!({ "sub": "ann", "nbf": in_seconds(600) }), SECRET),
    ];
    for query in
        tokens.iter().map(|t| format!("?userId=ann&sessionId=s&token={t}")).chain(["?userId=ann".into(), format!("?Token={valid}")])
    {
        let mut client = Client::connect(&format!("{}{query}", server.url("canvas"))).await;
        // The first frame of all is the close: no greeting.
        assert_eq!(client.closed().await, (1008, "Unauthorized".into()), "{query}");
    }
    let listed = server.get("/api/connections").await.json();
    assert_eq!(listed, json!({ "connections": [], "next": null }));
}

#[tokio::test]
async fn a_token_that_runs_out_ends_the_connection() {
    let server = server();
    let short = token(Algorithm::HS256, &json!({ "sub": "ann", "exp": in_seconds(2) }), SECRET);
    let long = token(Algorithm::HS256, &json!({ "sub": "ann", "exp": in_seconds(600) }), SECRET);
    let (mut stays, _) = greeted(&server, &format!("?token={long}")).await;
    let (mut ends, _) = greeted(&server, &format!("?token={short}")).await;
    server.publish(&json!({ "user": "ann", "type": "notification", "data": { "message": "m" } })).await;
    assert_eq!(ends.next().await["type"], "notification");
    assert_eq!(ends.closed().await.0, 1008);
    assert_eq!(stays.next().await["type"], "notification");
    stays.expect_nothing().await;
}

#[tokio::test]
async fn the_statistics_page_and_other_protocols_need_no_token() {
    let server = server();
    assert_eq!(request("GET", &server.http("canvas", "/api/ws/stats"), &[], None).await.status, 200);
    let mut workspace = server.client("workspace").await;
    workspace.expect_nothing().await;
}

#[tokio::test]
async fn a_key_set_says_whose_tokens_hold() {
    let keys = json!({ "keys": [{ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": "k1", "x": PUBLIC }] });
    let server = Setup::shipped().env("JWT_KEYS", &keys.to_string()).embed();
    let claims = json!({ "sub": "ann", "exp": in_seconds(600) });
    let signed = |kid: Option<&str>| {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
        encode(&header, &claims, &EncodingKey::from_ed_der(&STANDARD.decode(PRIVATE).unwrap())).unwrap()
    };
    for kid in [Some("k1"), None] {
        let (_client, id) = greeted(&server, &format!("?token={}", signed(kid))).await;
        assert_eq!(server.get(&format!("/api/connections/{id}")).await.json()["user"], "ann");
    }
    // Another key's name, and the public key used as if it were a shared secret.
    for wrong in [signed(Some("k2")), token(Algorithm::HS256, &claims, PUBLIC), token(Algorithm::HS256, &claims, "")] {
        let mut client = Client::connect(&format!("{}?token={wrong}", server.url("canvas"))).await;
        assert_eq!(client.closed().await, (1008, "Unauthorized".into()));
    }
}
