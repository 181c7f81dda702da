//! Scripts that are added and replaced under load.

use super::*;

#[tokio::test]
async fn a_plugin_can_be_added_and_edited() {
    let server = setup(&numbered(1)).start();
    let mut client = server.client("chat").await;
    let scripted = |n: u32| format!("fn told(conn, msg) {{ {n} }}");
    fs::create_dir_all(server.setup().path("plugins")).unwrap();
    write(&server, "plugins/teller.rhai", &scripted(7));
    let with = numbered(1).replace("version: { reply: { version: 1 } }", "version: { call: teller.told, reply: { version: $result } }");
    become_(&server, &with).await;
    assert_eq!(version(&mut client).await, 7);
    write(&server, "plugins/teller.rhai", &scripted(8));
    let line = server.logged_when(|line| line["message"] == "reloaded" && line["changed"] == 1 && line["added"] == 0);
    assert_eq!(line["removed"], 0);
    assert_eq!(version(&mut client).await, 8);
    write(&server, "plugins/teller.rhai", "fn other() { }");
    let answer = reload(&server, "").await;
    assert_eq!(answer.json()["refusal"]["why"], "invalid", "{answer:?}");
    assert_eq!(version(&mut client).await, 8);
}

/// A row whose script, reply and channel event all say which text they are from.
fn tagged(n: u32) -> (String, String) {
    let plugin = format!(
        "fn first(conn, msg) {{ conn.state.v = {n}; {n} }}\nfn second(msg) {{ msg.second = {n}; msg }}\nfn third(msg) {{ {n} == {n} }}"
    );
    let rows = "say: { validate: tags.third, transform: tags.second, to: \"room:{$.room}\", data: { second: $.second, text: $.text } }";
    let rows = format!("{rows}\n      both: {{ call: tags.first, reply: {{ version: $result, state: $conn.state.v }} }}");
    let text = numbered(1).replace("say: { to: \"room:{$.room}\", data: { text: $.text } }", &rows);
    (text, plugin)
}

#[tokio::test]
async fn while_scripts_are_replaced_each_message_is_handled_wholly_by_one_and_none_is_lost() {
    const RELOADS: u32 = 200;
    let (text, plugin) = tagged(0);
    let server = setup(&text).plugin("tags", &plugin).start();
    let mut reader = server.client("chat").await;
    join(&mut reader, "room:a").await;
    let (mut asker, mut sayer) = (server.client("chat").await, server.client("chat").await);
    let reloads = async {
        for n in 1..=RELOADS {
            write(&server, "plugins/tags.rhai", &tagged(n).1);
            let answer = reload(&server, "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    };
    let done = tokio::sync::watch::channel(false);
    let asks = async {
        let mut last = 0;
        while !*done.1.borrow() {
            let answer = asker.ask(&json!({ "type": "both" })).await;
            assert_eq!(answer["version"], answer["state"], "{answer}");
            let version = answer["version"].as_u64().unwrap();
            assert!(version >= last, "an older one came back");
            last = version;
        }
        last
    };
    let says = async {
        let mut said = 0u32;
        while !*done.1.borrow() {
            sayer.send(&json!({ "type": "say", "room": "a", "text": said })).await;
            // Answered after it: so there are never more on the way than a reader can take.
            sayer.expect_nothing().await;
            said += 1;
        }
        said
    };
    let reads = async {
        let (mut next, mut last) = (0, 0);
        loop {
            let event = reader.next().await["data"].clone();
            if event == json!("the end") {
                return next;
            }
            assert_eq!(event["text"], next, "in order, and none is missing");
            let second = event["second"].as_u64().unwrap();
            assert!(second >= last, "an older one came back");
            (next, last) = (next + 1, second);
        }
    };
    let all = async {
        let ((), last, said) = tokio::join!(
            async {
                reloads.await;
                done.0.send_replace(true);
            },
            asks,
            says
        );
        server.publish(&json!({ "channel": "room:a", "data": "the end" })).await;
        (last, said)
    };
    let ((last, said), read) = tokio::join!(all, reads);
    assert_eq!(read, said);
    assert!(last > 0 && said > 0, "something was handled meanwhile");
    assert_eq!(asker.ask(&json!({ "type": "both" })).await["version"], RELOADS);
}
