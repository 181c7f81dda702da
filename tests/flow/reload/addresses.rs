//! Addresses that are bound, given up and handed over.

use super::*;

#[tokio::test]
async fn where_an_address_cannot_be_bound_nothing_changes() {
    // Nobody else may find the address free.
    let still = |text: &str| text.replace("version: 1\n", "version: 1\nreload: false\n");
    let server = setup(&still(&numbered(1))).start();
    let mut client = server.client("chat").await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = OTHER.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let text = format!("{}{other}", numbered(2));
    write(&server, "routes.yaml", &still(&text));
    assert_eq!(reload(&server, "?dry=true").await.json()["refusal"]["why"], "cannot_listen");
    let answer = reload(&server, "").await;
    assert_eq!(answer.status, 409, "{answer:?}");
    assert_eq!(answer.json()["refusal"]["why"], "cannot_listen");
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(&taken.local_addr().unwrap().to_string()) && detail.contains("another program listens there"), "{detail}");
    assert_eq!(version(&mut client).await, 1);
    drop(taken);
    let report = reload(&server, "").await.json();
    assert_eq!(report["changes"][1]["path"], "protocols.other", "{report}");
    assert_eq!(version(&mut client).await, 2);
}

#[tokio::test]
async fn an_address_is_handed_over() {
    let server = setup(&format!("{}{OTHER}", numbered(1))).start();
    let port = |name: &str| server.url(name).split('/').nth(2).unwrap().rsplit_once(':').unwrap().1.to_owned();
    let (api, other) = (port("api"), port("other"));
    let with = |api: &str, other: &str| {
        let text = numbered(1).replace("listen: \"localhost:0\"", &format!("listen: \"localhost:{api}\""));
        format!("{text}{}", OTHER.replace("127.0.0.1:0", other))
    };
    let connect = async |port: &str| Client::connect(&format!("ws://127.0.0.1:{port}/other")).await;
    // What the system chose is written down, then both swap their ports, then one of them covers less.
    let mut client = connect(&other).await;
    for (at, text, api_now, other_now) in [
        (&api, with(&other, &format!("localhost:{api}")), &other, &api),
        (&other, with(&api, &format!("127.0.0.1:{other}")), &api, &other),
        (&api, with(&api, &format!("localhost:{other}")), &api, &other),
    ] {
        write(&server, "routes.yaml", &text);
        let url = |port: &str, path: &str| format!("http://127.0.0.1:{port}{path}");
        let answer = request("POST", &url(at, "/api/reload"), &[], None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        connect(other_now).await.expect_nothing().await;
        assert_eq!(request("GET", &url(api_now, "/healthz"), &[], None).await.status, 200);
    }
    client.expect_nothing().await;
}

#[tokio::test]
async fn tls_is_for_those_who_come_after() {
    let authority = Authority::new();
    let server = authority.in_folder(setup(&numbered(1))).start();
    let mut client = server.client("chat").await;
    let secure = numbered(2).replace("/chat\n", "/chat\n    tls: { cert: tls/tls.crt, key: tls/tls.key }\n");
    become_(&server, &secure).await;
    assert_eq!(version(&mut client).await, 2, "who is there stays");
    let mut second = authority.client(&server.url("chat").replace("ws://", "wss://")).await;
    assert_eq!(version(&mut second).await, 2);
    become_(&server, &numbered(3)).await;
    assert_eq!(version(&mut second).await, 3);
    assert_eq!(version(&mut server.client("chat").await).await, 3);
}
