//! What scripts may call, and what comes of it.

use std::sync::Arc;

use super::super::{Arguments, Call, Returned, ScriptEffect as Effect, ScriptError, Scripts, SendTarget, World};
use super::{TwoClients, at, conn, event, expression, f, json, lines, message, one, plugins, used, value, why};
use crate::config::plan::Role;
use crate::model::{ChannelName, SubView};

fn run(body: &str) -> Returned {
    message(&one(&format!("fn f(conn, msg) {{ {body} }}")), "f", "{}").unwrap_or_else(|e| panic!("{body}: {e}"))
}

fn gives(expression: &str) -> String {
    value(&format!("fn f(conn, msg) {{ {expression} }}"), r#"{"a":{"b":[1,2]},"text":"hi","n":null}"#)
}

#[test]
fn values_of_the_connection() {
    assert_eq!(gives("[conn.id, conn.user, conn.session, conn.protocol, conn.ip]"), r#"["c1","ann",null,"chat","127.0.0.1"]"#);
    assert_eq!(gives("conn.opened"), r#""2024-01-01T00:00:00.000Z""#);
    assert_eq!(gives("conn.query"), r#"{"room":"b"}"#);
    assert_eq!(gives("[conn.query.room, conn.query.nothing, conn.header, conn.path, conn.cookie]"), r#"["b",null,{},{},{}]"#);
    assert_eq!(gives("conn.state"), r#"{"count":1,"list":[1]}"#);
}

#[test]
fn state_is_given_back_only_where_it_changed() {
    assert_eq!(run("conn.state.count").state, None);
    assert_eq!(run("conn.state.keys(); conn.state.list.len()").state, None);
    assert_eq!(run("conn.state.count += 1;").state, Some(json(r#"{"count":2,"list":[1]}"#)));
    assert_eq!(run("conn.state.a = #{}; conn.state.a.b = 1;").state, Some(json(r#"{"a":{"b":1},"count":1,"list":[1]}"#)));
    assert_eq!(run("conn.state.list.push(2);").state, Some(json(r#"{"count":1,"list":[1,2]}"#)));
    assert_eq!(run("let s = conn.state; s.count = 9;").state, None);
    assert_eq!(run("conn.state = #{};").state, Some(json("{}")));
    assert!(why("fn f(conn, msg) { conn.state = 1; }", "{}").contains("conn.state is always an object"));
}

#[test]
fn user_and_session_can_be_set_and_taken_away() {
    let returned = run("conn.user = \"bob\"; conn.session = (); [conn.user, conn.session]");
    assert_eq!(returned.value, Some(json(r#"["bob",null]"#)));
    assert_eq!((returned.user, returned.session), (Some(Some("bob".into())), Some(None)));
    assert!(why("fn f(conn, msg) { conn.user = 5; }", "{}").contains("conn.user must be a text or (), not a number"));
}

#[test]
fn effects_come_in_the_order_they_were_asked_for() {
    let body = r#"
        conn.send(#{ a: 1 });
        conn.leave("room:*");
        conn.join("room:1");
        conn.join("room:2", #{ key: "k", meta: [1] });
        publish("room:1", #{ type: "said", data: "x" }, #{ except: "sender" });
        publish("room:1", #{ type: "said", metadata: 1 }, #{ except: "c9" });
        send_to("c2", #{ type: "t", data: 1 });
        send_to(#{ user: "u" }, #{ type: "t", data: 1 });
        send_to(#{ session: "s" }, #{ type: "t", data: 1 });
        conn.close(4001, "bye");
        conn.reply(2)"#;
    let send = |target| Effect::SendTo { target, kind: "t".into(), data: json("1") };
    let publish = |data: &str, metadata: Option<&str>, except_sender, except: Option<&str>| Effect::Publish {
        channel: "room:1".into(),
        kind: "said".into(),
        data: json(data),
        metadata: metadata.map(json),
        except_sender,
        except: except.map(Into::into),
    };
    let wanted = vec![
        Effect::Reply(json(r#"{"a":1}"#)),
        Effect::Leave { channel: "room:*".into() },
        Effect::Join { channel: "room:1".into(), key: None, meta: None },
        Effect::Join { channel: "room:2".into(), key: Some("k".into()), meta: Some(json("[1]")) },
        publish("\"x\"", None, true, None),
        publish("null", Some("1"), false, Some("c9")),
        send(SendTarget::Client("c2".into())),
        send(SendTarget::User("u".into())),
        send(SendTarget::Session("s".into())),
        Effect::Close { code: 4001, reason: "bye".into() },
        Effect::Reply(json("2")),
    ];
    let returned = run(body);
    assert_eq!((returned.value, returned.effects), (None, wanted));
}

#[test]
fn a_call_that_fails_leaves_nothing() {
    let scripts = one("fn f(conn, msg) { conn.send(1); conn.state.x = 1; if msg.bad { throw \"no\"; } }");
    assert!(message(&scripts, "f", r#"{"bad":true}"#).is_err());
    assert_eq!(message(&scripts, "f", r#"{"bad":false}"#).unwrap().effects.len(), 1);
}

#[test]
fn what_the_host_refuses_it_says() {
    for (body, wanted) in [
        ("publish(\"a\", #{ data: 1 })", "publish: the event has no `type`"),
        ("publish(\"a\", #{ type: \"t\", dta: 1 })", "publish: unknown key `dta`"),
        ("publish(\"a\", #{ type: 1 })", "publish: `type` must be a text, not a number"),
        ("conn.close(1006)", "close: the code must be one a server may send"),
        ("send_to(#{ usr: \"u\" }, #{ type: \"t\" })", "unknown key `usr`"),
        ("statistics(\"nowhere\")", "there is no protocol `nowhere`"),
        ("conn.send(|x| x)", "send: a function is not JSON"),
        ("conn.send(#{ a: [1, 0.0 / 0.0] })", "send: `a[1]`: NaN is not JSON"),
        ("#{ a: #{ b: conn } }", "`a.b`: a connection is not JSON"),
        (
            "publish(1, 2)",
            "`publish` takes publish(channel, #{ type, data }) or publish(channel, #{ type, data }, #{ except }), got (number, number)",
        ),
        ("crypto::base64_decode(\"!\")", "crypto::base64_decode: "),
        ("regex::find(\"(\", \"x\")", "regex: "),
    ] {
        let why = why(&format!("fn f(conn, msg) {{ {body} }}"), "{}");
        assert!(why.contains(wanted), "{body}: {why}");
    }
}

#[test]
fn a_script_can_catch_what_the_host_refuses() {
    assert_eq!(
        gives("let said = (); try { json::parse(\"{\") } catch (e) { said = `no: ${e}`; } said"),
        "\"no: json::parse: EOF while parsing an object at line 1 column 1\""
    );
}

#[test]
fn questions_about_the_router() {
    assert_eq!(gives("members(\"x\")"), r#"[{"id":"c1","on":"x"},{"id":"c2","user":"u2"}]"#);
    assert_eq!(gives("connections(\"chat\").len()"), "2");
    assert_eq!(gives("history(\"x\", 2).map(|e| e.offset)"), "[1,2]");
    assert_eq!(
        gives("history(\"x\", 1)[0]"),
        concat!(
            r#"{"channel":"x","data":{"text":"hello"},"epoch":"ab","from":"c1","id":"00000000-0000-0000-0000-000000000007","#,
            r#""offset":1,"source":"test","time":"2024-01-01T00:00:00.000Z","time_ms":1704067200000,"type":"greeting"}"#
        )
    );
    assert_eq!(gives("statistics(\"chat\").connections"), "2");
}

#[test]
fn long_lists_of_the_host_reach_scripts() {
    struct Many;
    impl World for Many {
        fn members(&self, _: &str) -> Vec<crate::model::Json> {
            Vec::new()
        }
        fn history(&self, channel: &str, count: usize) -> Vec<Arc<crate::model::Event>> {
            let data = format!(r#"{{"text":"{}"}}"#, "x".repeat(500));
            (1..=count).map(|n| Arc::new(event(channel, n as u64, &data))).collect()
        }
        fn connections(&self, _: &str) -> Vec<crate::model::Json> {
            let one = r#"{"id":"client_1704067200000_abcdefgh","user":"user_123","session":"session_456","alive":true,"readyState":1,"protocol":"canvas"}"#;
            (0..2000).map(|_| json(one)).collect()
        }
        fn statistics(&self, _: &str, _: crate::model::Now) -> Option<crate::model::Json> {
            None
        }
    }
    let text = "fn f(msg) { pick(connections(\"x\"), #{ id: \"id\", who: \"user\" }).len() }\nfn g(msg) { history(\"x\", 300).len() }";
    let (scripts, _) = Scripts::build(&plugins(&[("p", text)]), &[used("f", Role::Handler), used("g", Role::Handler)], &[], None);
    let (msg, world): (_, Arc<dyn World>) = (json("1"), Arc::new(Many));
    let arguments = Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None };
    let length =
        |name: &str| scripts.call(&f(name), Call { now: at(0), conn: None, arguments, world: &world, trial: false }).unwrap().value;
    assert_eq!((length("f"), length("g")), (Some(json("2000")), Some(json("300"))));
}

#[test]
fn scripts_are_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Scripts>();
}

#[test]
fn helpers() {
    assert_eq!(gives("pick(msg, #{ letters: \"text\", none: \"x\" })"), r#"{"letters":"hi"}"#);
    assert_eq!(gives("pick([msg, msg], #{ t: \"text\" })"), r#"[{"t":"hi"},{"t":"hi"}]"#);
    assert_eq!(gives("[msg.has(\"n\"), \"n\" in msg, msg.has(\"x\"), msg.n == msg.x]"), "[true,true,false,true]");
    assert_eq!(gives("json::parse(`[1, {\"b\":2,\"a\":\"\\u00e9\"}]`)"), r#"[1,{"a":"é","b":2}]"#);
    assert_eq!(gives("json::stringify(msg)"), r#""{\"a\":{\"b\":[1,2]},\"n\":null,\"text\":\"hi\"}""#);
    assert_eq!(gives("`${msg.a}`"), r#""{\"b\":[1,2]}""#);
    assert_eq!(gives("crypto::sha256(\"abc\")"), r#""ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad""#);
    assert_eq!(
        gives("crypto::hmac_sha256(\"key\", \"The quick brown fox jumps over the lazy dog\")"),
        r#""f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8""#
    );
    assert_eq!(
        gives("[crypto::base64(\"hi\"), crypto::base64_decode(\"aGk=\"), crypto::hex(\"hi\"), crypto::equal(\"a\", \"b\")]"),
        r#"["aGk=","hi","6869",false]"#
    );
    assert_eq!(gives("[now(), now_ms(), uuid().len()]"), r#"["2024-01-01T00:00:00.000Z",1704067200000,36]"#);
    assert_eq!(gives("regex::captures(\"(?P<n>[0-9]+)(x)?\", \"a12\")"), r#"{"0":"12","n":"12"}"#);
    assert_eq!(
        gives(
            "[regex::is_match(\"^a\", \"abc\"), regex::find(\"b.\", \"abc\"), regex::find(\"z\", \"abc\"), regex::replace(\"b(.)\", \"abc\", \"$1-\")]"
        ),
        r#"[true,"bc",null,"ac-"]"#
    );
    assert_eq!(
        gives("let s = \"ab\"; s.pad(5, \"xy\"); s.replace(\"x\", \"zz\"); [s, s.split(\"y\"), s.to_chars().len()]"),
        r#"["abzzyzz",["abzz","zz"],7]"#
    );
}

#[test]
fn numbers_keep_their_kind() {
    let text = "fn f(conn, msg) { msg }";
    assert_eq!(value(text, "[1,1.5,1e3,-7,9223372036854775807,1.0]"), "[1,1.5,1000.0,-7,9223372036854775807,1.0]");
    assert_eq!(value(text, "18446744073709551615"), "1.8446744073709552e+19");
    assert_eq!(value("fn f(conn, msg) { [msg, msg.a] }", r#"{"a":1,"a":2}"#), r#"[{"a":2},2]"#);
}

#[test]
fn constants_and_imports_reach_functions() {
    let texts = [
        (
            "p",
            "import \"lib\" as lib;\nconst LIMIT = 2 + 1;\nconst NAMES = #{ a: [\"x\"] };\nfn f(conn, msg) { [LIMIT, NAMES.a[0], lib::twice(msg.n), local(LIMIT)] }\nfn local(LIMIT) { LIMIT * 10 }",
        ),
        (
            "lib",
            "import \"deeper\" as deeper;\nconst FACTOR = 2;\nfn twice(n) { times(n, FACTOR) }\nfn times(n, m) { deeper::same(n) * m }",
        ),
        ("deeper", "fn same(n) { n }"),
    ];
    let (scripts, diagnostics) = Scripts::build(&plugins(&texts), &[used("f", Role::Handler)], &[], None);
    assert_eq!(lines(&diagnostics), Vec::<String>::new());
    for _ in 0..2 {
        assert_eq!(message(&scripts, "f", r#"{"n":4}"#).unwrap().value, Some(json(r#"[3,"x",8,30]"#)));
    }
    let report = scripts.report();
    assert_eq!(
        report.iter().map(|r| r.functions.join(" ")).collect::<Vec<_>>(),
        ["same(n)", "times(n, m) twice(n)", "f(conn, msg) local(LIMIT)"]
    );
    // The hash covers what is imported.
    let mut changed = texts;
    changed[2].1 = "fn same(n) { n + 0 }";
    let (after, _) = Scripts::build(&plugins(&changed), &[], &[], None);
    assert!(report.iter().zip(after.report()).all(|(before, after)| before.hash != after.hash && before.hash.len() == 64));
}

#[test]
fn conditions_and_rendering_change_nothing() {
    let text = "fn f(event, sub, conn) { conn.send(1); }\nfn g(event, sub) { [event.type, event.data.text, sub] }\nfn t(conn, msg) { conn.state.x = 1; true }\nfn u(msg) { 5 }";
    let uses = [used("f", Role::Deliver), used("g", Role::Deliver), used("t", Role::Validate), used("u", Role::Validate)];
    let (scripts, diagnostics) =
        Scripts::build(&plugins(&[("p", text)]), &uses, &[expression("e", "publish(\"x\", #{ type: \"t\" })", &["msg"])], None);
    assert_eq!(lines(&diagnostics), Vec::<String>::new());
    let (event, msg) = (event("x", 1, r#"{"text":"hi"}"#), json("{}"));
    let sub = SubView { channel: ChannelName::parse("x").unwrap(), key: "k".into(), meta: Some(json("[1]")), positioned: false };
    let (world, conn): (Arc<dyn World>, _) = (Arc::new(TwoClients), conn());
    let call = |arguments| Call { now: at(0), conn: Some(&conn), arguments, world: &world, trial: false };
    let deliver = || call(Arguments::Deliver { event: &event, sub: &sub });
    let about = || call(Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None });
    assert_eq!(scripts.call(&f("g"), deliver()).unwrap().value, Some(json(r#"["greeting","hi",{"channel":"x","key":"k","meta":[1]}]"#)));
    let failed = |outcome: Result<(), ScriptError>| outcome.unwrap_err().to_string();
    assert!(
        failed(scripts.call(&f("f"), deliver()).map(drop)).contains("send: conditions, `validate` and `deliver` may not change anything")
    );
    assert!(failed(scripts.test(&f("t"), about()).map(drop)).contains("conn.state: conditions"));
    assert!(failed(scripts.test(&f("e"), about()).map(drop)).contains("publish: conditions"));
    assert!(failed(scripts.test(&f("u"), about()).map(drop)).contains("must be true or false, is a number"));
}

#[test]
fn without_a_connection_conn_is_missing() {
    let scripts = one("fn f(conn, msg) { [conn == (), msg] }");
    let (msg, world): (_, Arc<dyn World>) = (json("1"), Arc::new(TwoClients));
    let arguments = Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None };
    let returned = scripts.call(&f("f"), Call { now: at(0), conn: None, arguments, world: &world, trial: false }).unwrap();
    assert_eq!(returned.value, Some(json("[true,1]")));
}

#[test]
fn a_message_too_large_for_scripts_is_the_senders_fault() {
    let scripts = one("fn f(msg) { 1 }");
    let big = format!("[{}0]", "0,".repeat(30_000));
    for text in [big, format!("\"{}\"", "x".repeat(1 << 20)), "\"\\ud800\"".to_owned(), "1e999".to_owned()] {
        assert!(matches!(message(&scripts, "f", &text), Err(ScriptError::NotForScripts(_))));
    }
    assert_eq!(scripts.report()[0].failures, 0);
}
