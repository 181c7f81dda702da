//! How files may change, and what becomes of what they say: all of it or nothing.

use super::*;

#[tokio::test]
async fn however_a_file_is_replaced_the_next_message_is_handled_by_it() {
    let server = setup(&numbered(1)).start();
    let path = |name: &str| server.setup().path(name);
    let mut client = server.client("chat").await;
    assert_eq!(version(&mut client).await, 1);
    // In place.
    write(&server, "routes.yaml", &numbered(2));
    assert_eq!(server.logged("reloaded")["generation"], 2);
    assert_eq!(version(&mut client).await, 2);
    // Another file takes its name.
    write(&server, "new.yaml", &numbered(3));
    fs::rename(path("new.yaml"), path("routes.yaml")).unwrap();
    assert_eq!(server.logged("reloaded")["generation"], 3);
    assert_eq!(version(&mut client).await, 3);
    // It becomes a link to a file behind a link to a folder, and that is led elsewhere.
    for n in [4, 5] {
        fs::create_dir(path(&format!("v{n}"))).unwrap();
        write(&server, &format!("v{n}/routes.yaml"), &numbered(n));
        std::os::unix::fs::symlink(format!("v{n}"), path("new")).unwrap();
        fs::rename(path("new"), path("current")).unwrap();
        if n == 4 {
            std::os::unix::fs::symlink("current/routes.yaml", path("link")).unwrap();
            fs::rename(path("link"), path("routes.yaml")).unwrap();
        }
        assert_eq!(server.logged("reloaded")["generation"], n);
        assert_eq!(version(&mut client).await, n);
    }
    // It is written in pieces, and each is a file that could be used.
    let whole = numbered(6).replace("ping: {", "extra: { reply: { type: extra } }\n      ping: {");
    let (first, rest) = whole.split_at(whole.find("      rare:").unwrap());
    write(&server, "v5/routes.yaml", first);
    write(&server, "v5/routes.yaml", &format!("{first}{rest}"));
    assert_eq!(server.logged("reloaded")["generation"], 6);
    assert_eq!(client.ask(&json!({ "type": "extra" })).await["type"], "extra");
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_says_where() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    write(&server, "routes.yaml", &numbered(2).replace("text: $.text", "text: $nothing"));
    let line = server.logged_when(|line| line["level"] == "ERROR").to_string();
    assert!(line.contains("the reload is refused, the configuration in use stays in use") && line.contains("routes.yaml:11:"), "{line}");
    assert_eq!(server.get("/readyz").await.status, 200, "it does its work");
    assert_eq!(version(&mut client).await, 1);
    let config = server.get("/api/config").await.json();
    assert_eq!((&config["generation"], &config["refused"]["why"]), (&json!(1), &json!("invalid")));
    assert!(config["refused"]["diagnostics"].as_str().unwrap().starts_with("routes.yaml:11:"), "{config}");
    let answer = reload(&server, "").await;
    assert_eq!((answer.status, answer.header("content-type")), (409, "application/problem+json"));
    assert_eq!(answer.json()["refusal"]["why"], "invalid");
    assert_eq!(answer.json()["detail"].as_str().map(|text| text.starts_with("routes.yaml:11:")), Some(true));
    let metrics = server.get("/metrics").await.body;
    assert!(metrics.contains("\ntramline_config_last_reload_successful 0\n") && metrics.contains("\ntramline_config_generation 1\n"));
    // The whole file is gone, and comes back mended.
    fs::remove_file(server.setup().path("routes.yaml")).unwrap();
    server.logged_when(|line| line["level"] == "ERROR");
    assert_eq!(version(&mut client).await, 1);
    write(&server, "routes.yaml", &numbered(3));
    assert_eq!(server.logged("reloaded")["generation"], 2);
    assert_eq!(version(&mut client).await, 3);
    assert_eq!(server.get("/api/config").await.json()["refused"], Value::Null);
}

#[tokio::test]
async fn a_pipe_is_refused_wherever_a_file_is_wanted_and_holds_up_nothing() {
    let authority = Authority::new();
    let server = authority.in_folder(setup(&numbered(1)).plugin("extra", "fn told(conn, msg) { 1 }")).start();
    let secure = numbered(2).replace("/chat\n", "/chat\n    tls: { cert: tls/tls.crt, key: tls/tls.key }\n");
    let including = numbered(3).replace("version: 1\n", "version: 1\ninclude: [more.yaml]\n");
    for (name, text) in
        [("routes.yaml", &numbered(1)), ("plugins/extra.rhai", &numbered(1)), ("tls/tls.crt", &secure), ("more.yaml", &including)]
    {
        let path = server.setup().path(name);
        let before = fs::read(&path).ok();
        write(&server, "routes.yaml", text);
        fs::remove_file(&path).ok();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let answer = reload(&server, "").await;
        assert_eq!((answer.status, &answer.json()["refusal"]["why"]), (409, &json!("invalid")), "{name}: {answer:?}");
        fs::remove_file(&path).unwrap();
        if let Some(before) = before {
            fs::write(&path, before).unwrap();
        }
        become_(&server, &numbered(1)).await;
    }
    assert_eq!(version(&mut server.client("chat").await).await, 1);
}

#[tokio::test]
async fn the_store_cannot_change_while_the_server_runs() {
    let server = setup(&numbered(1)).start();
    write(&server, "routes.yaml", &numbered(2).replace("t.db", "u.db"));
    assert_eq!(reload(&server, "").await.json()["refusal"]["why"], "needs_restart");
    assert_eq!(version(&mut server.client("chat").await).await, 1);
}

#[tokio::test]
async fn what_would_happen_can_be_asked_first() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    join(&mut client, "room:a").await;
    // Nobody but the test reloads: the answers must not depend on who is first.
    become_(&server, &numbered(1).replace("version: 1\n", "version: 1\nreload: false\n")).await;
    let text = numbered(2).replace("\"room:{name}\"", "\"hall:{name}\"").replace("room:", "hall:");
    write(&server, "routes.yaml", &text.replace("version: 1\n", "version: 1\nreload: false\n"));
    let report = reload(&server, "?dry=true").await.json();
    assert_eq!((&report["dry"], &report["generation"]), (&json!(true), &json!(2)));
    let gone = report["changes"].as_array().unwrap().iter().find(|change| change["path"] == "channels.room:{name}");
    assert_eq!(gone.expect("it is told")["ends"]["subscriptions"], 1, "{report}");
    assert_eq!(version(&mut client).await, 1);
    let url = server.http("api", "/api/reload");
    let outdated = request("POST", &url, &[("if-match", "\"1\"")], None).await;
    assert_eq!((outdated.status, outdated.json()["refusal"]["why"].clone()), (412, json!("outdated")));
    let etag = server.get("/api/config").await.header("etag").to_owned();
    let done = request("POST", &url, &[("if-match", &etag)], None).await;
    assert_eq!((done.status, &done.json()["ended"]["subscriptions"]), (200, &json!(1)));
    assert_eq!(client.next().await["code"], "unknown_channel");
    assert_eq!(version(&mut client).await, 2);
}

#[tokio::test]
async fn a_hang_up_reloads_where_nothing_is_watched() {
    let still = |n: u32| numbered(n).replace("version: 1\n", "version: 1\nreload: false\n");
    let server = setup(&still(1)).start();
    let mut client = server.client("chat").await;
    write(&server, "routes.yaml", &still(2));
    server.signal("HUP");
    let line = server.logged("reloaded");
    assert_eq!((&line["generation"], &line["changed"]), (&json!(2), &json!(1)), "nobody was first");
    assert_eq!(version(&mut client).await, 2);
    // Watched from now on.
    become_(&server, &numbered(2)).await;
    write(&server, "routes.yaml", &numbered(3));
    server.logged_when(|line| line["message"] == "reloaded" && line["generation"] == 4);
    assert_eq!(version(&mut client).await, 3);
}

/// One of many configurations, by a number.
fn variant(n: u32) -> (String, String) {
    let has = |bit: u32| n >> bit & 1 == 1;
    let mut channels = "channels: { \"room:{name}\": { history: true }".to_owned();
    if has(0) {
        channels.push_str(", \"news:{name}\": {}");
    }
    if has(1) {
        channels = channels.replace("history: true", "history: { keep: { events: 5 } }");
    }
    channels.push_str(" }\n");
    let mut protocols = CHAT.replace("version: 1", &format!("version: {n}"));
    if has(2) {
        protocols = protocols.replace("limit: 2/1h, ", "");
    }
    if has(3) {
        protocols = protocols.replace("$query.user\n", "$query.user\n    limits: { connections: 3 }\n");
    }
    if has(5) {
        protocols = protocols.replace("ping: {", "scripted: { call: tags.told, reply: { told: $result } }\n      ping: {");
    }
    if has(4) {
        protocols.push_str(OTHER);
    }
    let sources = if has(6) { "sources: { door: { http: POST /door, on: \"localhost:0\", to: \"room:door\" } }\n" } else { "" };
    (format!("{}{sources}", text(&channels, &protocols)), format!("fn told(conn, msg) {{ {n} }}\n"))
}

/// Everything a server says of what it runs, without what has happened to it.
async fn told(server: &Server) -> Value {
    let hash = server.get("/api/config").await.json()["hash"].clone();
    let routes = server.get("/api/routes").await.json();
    let names = |list: &Value, keys: &[&str]| -> Value {
        let pick = |item: &Value| keys.iter().map(|key| item[*key].clone()).collect::<Value>();
        list.as_array().unwrap().iter().map(pick).collect()
    };
    let plugins = names(&server.get("/api/plugins").await.json()["plugins"], &["name", "hash", "state"]);
    let sources = names(&server.get("/api/sources").await.json()["sources"], &["name", "state"]);
    let mut client = server.client("chat").await;
    let mut answers = Vec::new();
    for message in [
        json!({ "type": "version" }),
        json!({ "type": "scripted" }),
        json!({ "type": "rare" }),
        json!({ "type": "rare" }),
        json!({ "type": "rare" }),
        json!({ "type": "join", "channel": "news:a" }),
        json!({ "type": "join", "channel": "room:never" }),
    ] {
        answers.push(client.ask(&message).await);
    }
    client.close().await;
    json!({ "hash": hash, "routes": routes, "plugins": plugins, "sources": sources, "answers": answers })
}

#[tokio::test]
async fn any_way_of_edits_leads_to_what_a_restart_would() {
    let mut state = 11u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16 & 127
    };
    let (text, plugin) = variant(next());
    let server = setup(&text).plugin("tags", &plugin).start();
    let mut client = server.client("chat").await;
    for walk in 0..6 {
        let mut way = Vec::new();
        for _ in 0..8 {
            let n = next();
            way.push(n);
            let (text, plugin) = variant(n);
            write(&server, "plugins/tags.rhai", &plugin);
            become_(&server, &text).await;
            assert_eq!(version(&mut client).await, n, "{way:?}");
        }
        let (text, plugin) = variant(*way.last().unwrap());
        let fresh = setup(&text).plugin("tags", &plugin).start();
        assert_eq!(told(&server).await, told(&fresh).await, "walk {walk}: {way:?}");
    }
}

#[tokio::test]
async fn reloads_leave_no_memory_behind() {
    for text in [numbered(1), numbered(1).replace("version: 1\n", "version: 1\nreload: false\n")] {
        let server = setup(&text).start();
        let held = async || {
            let metrics = server.get("/metrics").await.body;
            let line = metrics.lines().find_map(|line| line.strip_prefix("tramline_memory_live_bytes ")).unwrap();
            line.parse::<f64>().unwrap()
        };
        for _ in 0..20 {
            reload(&server, "").await;
        }
        let before = held().await;
        for _ in 0..100 {
            assert_eq!(reload(&server, "").await.status, 200);
        }
        let grown = held().await - before;
        // Each thread may hold back 16 KiB of the count, and on a busy machine there are more threads. A hundred configurations are some
        // megabytes.
        assert!(grown < 1_000_000.0, "{grown} bytes: {text}");
    }
}
