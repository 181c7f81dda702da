//! Certificates that change while the server runs: with whatever else the files say, and by themselves.

use serde_json::{Value, json};

use crate::support::tls::replace;
use crate::support::{Answer, Authority, Ended, Server, Setup, request};

/// One protocol alone; the REST interface has no TLS.
const ONE: &str = r#"version: 1
store: "sqlite::memory:"
api: { listen: "localhost:0" }
protocols:
  chat:
    listen: localhost:0/chat
    tls: { cert: tls/tls.crt, key: tls/tls.key }
    messages: { ping: { reply: { type: pong } } }
"#;

/// The same with `reload: false`.
fn still() -> String {
    ONE.replace("version: 1\n", "version: 1\nreload: false\n")
}

fn start(text: &str, authority: &Authority) -> Server {
    authority.in_folder(Setup::own("").file("routes.yaml", text)).start()
}

async fn reload(server: &Server) -> Answer {
    request("POST", &server.http("api", "/api/reload"), &[], None).await
}

/// Everything that is logged of certificates.
fn told(ended: &Ended) -> Vec<Value> {
    let of_one =
        |line: &&Value| line["message"].as_str().is_some_and(|message| message.starts_with("a c") && message.contains("certificate"));
    ended.log.iter().filter(of_one).cloned().collect()
}

#[tokio::test]
async fn once_a_reload_is_answered_the_next_handshake_has_the_certificate() {
    for text in [ONE, &still()] {
        let mut before = Authority::new();
        let server = start(text, &before);
        let mut client = before.client(server.url("chat")).await;
        for _ in 0..3 {
            let after = Authority::new();
            after.replace(&server.setup());
            let answer = reload(&server).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert!(after.connect(server.url("chat")).await.is_ok(), "{answer:?}");
            assert!(before.connect(server.url("chat")).await.is_err(), "{answer:?}");
            before = after;
        }
        assert_eq!(client.ask(&json!({ "type": "ping" })).await["type"], "pong", "connections outlive their certificate");
        let metrics = server.get("/metrics").await.body;
        assert!(metrics.contains("\ntramline_certificates_read_total 3\n"), "{metrics}");
    }
}

#[tokio::test]
async fn a_changed_certificate_is_a_reload_like_any_other() {
    let (first, second) = (Authority::new(), Authority::new());
    let server = start(ONE, &first);
    second.replace(&server.setup());
    let line = server.logged("reloaded");
    assert_eq!((&line["generation"], &line["changed"]), (&json!(2), &json!(2)), "{line}");
    assert!(second.connect(server.url("chat")).await.is_ok());
    // A key that is not the certificate's.
    replace(&server.setup().path("tls/tls.key"), &first.key);
    let line = server.logged_when(|line| line["level"] == "ERROR");
    let message = line["message"].as_str().unwrap();
    assert!(message.starts_with("the reload is refused") && message.contains("routes.yaml:7:"), "{line}");
    assert!(message.contains("does not belong to the certificate"), "{line}");
    assert!(second.connect(server.url("chat")).await.is_ok(), "the old pair stays in use");
    std::fs::remove_file(server.setup().path("tls/tls.crt")).unwrap();
    let line = server.logged_when(|line| line["level"] == "ERROR");
    assert!(line["message"].as_str().unwrap().contains("tls/tls.crt: cannot be read"), "{line}");
    assert!(second.connect(server.url("chat")).await.is_ok());
    assert_eq!(told(&server.stop()), [json!(null); 0], "all of it was told once");
}

#[tokio::test]
async fn where_nobody_wants_reloads_certificates_are_renewed_all_the_same() {
    let (first, second) = (Authority::new(), Authority::new());
    let server = start(&still(), &first);
    let mut before = first.client(server.url("chat")).await;
    let config = async || server.get("/api/config").await.json();
    let hash = config().await["hash"].clone();
    // A key that is not the certificate's.
    replace(&server.setup().path("tls/tls.key"), &second.key);
    let told = server.logged("a changed certificate cannot be used: the one before stays in use");
    assert!(told["error"].as_str().unwrap().contains("does not belong to the certificate"), "{told}");
    assert!(told["at"].as_str().unwrap().ends_with("routes.yaml:8:36"), "{told}");
    assert!(first.connect(server.url("chat")).await.is_ok(), "the old pair stays in use");
    assert_eq!(config().await["hash"], hash);
    // What the routes file says is not taken with it.
    std::fs::write(server.setup().path("routes.yaml"), still().replace("pong", "other")).unwrap();
    second.replace(&server.setup());
    server.logged("a changed certificate is in use");
    assert!(first.connect(server.url("chat")).await.is_err(), "the old pair is still in use");
    let mut after = second.client(server.url("chat")).await;
    assert_eq!(after.ask(&json!({ "type": "ping" })).await["type"], "pong");
    assert_eq!(before.ask(&json!({ "type": "ping" })).await["type"], "pong", "connections outlive their certificate");
    let config = config().await;
    assert!(config["generation"] == 1 && config["hash"] != hash, "{config}");
    std::fs::remove_file(server.setup().path("tls/tls.crt")).unwrap();
    server.logged("a changed certificate cannot be used: the one before stays in use");
    assert!(second.connect(server.url("chat")).await.is_ok());
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("\ntramline_certificates_read_total 1\n"), "{metrics}");
    assert!(metrics.contains("\ntramline_certificates_invalid_total 2\n"), "{metrics}");
    second.replace(&server.setup());
    let report = reload(&server).await.json();
    assert_eq!(report["changes"].as_array().map(Vec::len), Some(1), "the certificate is known: {report}");
}

#[tokio::test]
async fn a_certificate_is_renewed_although_the_routes_file_is_broken() {
    let (first, second, third) = (Authority::new(), Authority::new(), Authority::new());
    let server = start(ONE, &first);
    std::fs::write(server.setup().path("routes.yaml"), "version: [\n").unwrap();
    server.logged_when(|line| line["level"] == "ERROR");
    for authority in [&second, &third] {
        authority.replace(&server.setup());
        server.logged("a changed certificate is in use");
        assert!(authority.connect(server.url("chat")).await.is_ok());
    }
    assert!(second.connect(server.url("chat")).await.is_err());
    std::fs::write(server.setup().path("routes.yaml"), ONE.replace("pong", "other")).unwrap();
    let line = server.logged("reloaded");
    assert_eq!((&line["generation"], &line["changed"]), (&json!(2), &json!(1)), "{line}");
    let mut client = third.client(server.url("chat")).await;
    assert_eq!(client.ask(&json!({ "type": "ping" })).await["type"], "other");
}

#[tokio::test]
async fn a_certificate_that_expires_soon_is_told_at_the_start_and_when_it_is_changed() {
    let (soon, expired, later) = (Authority::expiring(13 * 24), Authority::expiring(0), Authority::expiring(15 * 24));
    let server = soon.in_folder(Setup::own("").file("routes.yaml", ONE)).start();
    assert!(soon.connect(server.url("chat")).await.is_ok());
    let ended = server.stop();
    let warnings = told(&ended);
    assert_eq!(warnings.iter().map(|line| &line["message"]).collect::<Vec<_>>(), ["a certificate expires soon"]);
    assert!(warnings[0]["cert"].as_str().unwrap().ends_with("tls/tls.crt") && warnings[0]["at"].is_string(), "{warnings:?}");
    later.replace(&ended.setup);
    let server = ended.setup.start();
    expired.replace(&server.setup());
    server.logged("a certificate has expired: clients refuse it");
    later.replace(&server.setup());
    server.logged_when(|line| line["message"] == "reloaded" && line["generation"] == 3);
    assert!(later.connect(server.url("chat")).await.is_ok());
    assert_eq!(told(&server.stop()), [json!(null); 0]);
}

#[tokio::test]
async fn a_certificate_behind_links_changes_with_them() {
    let (first, second) = (Authority::new(), Authority::new());
    let setup = Setup::own("").file("routes.yaml", ONE);
    for (name, authority) in [("one", &first), ("two", &second)] {
        let of = |file: &str| format!("tls/{name}/{file}");
        drop(setup.clone().file(&of("tls.crt"), &authority.cert).file(&of("tls.key"), &authority.key));
    }
    // As Kubernetes keeps secrets: files lead through a folder that is a link, and that alone is swapped.
    let folder = setup.path("tls");
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
    link("one", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let server = setup.start();
    assert!(first.connect(server.url("chat")).await.is_ok());
    link("two", "..new");
    std::fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
    server.logged("reloaded");
    assert!(second.connect(server.url("chat")).await.is_ok());
    assert!(first.connect(server.url("chat")).await.is_err());
}

#[tokio::test]
async fn without_names_of_files_there_is_no_tls() {
    let yaml = ONE.replace("tls/tls.crt", "\"${CERT:-}\"").replace("tls/tls.key", "\"${KEY:-}\"");
    let server = Setup::own("").file("routes.yaml", &yaml).start();
    assert!(server.url("chat").starts_with("ws://"));
    assert_eq!(server.client("chat").await.ask(&json!({ "type": "ping" })).await["type"], "pong");
}
