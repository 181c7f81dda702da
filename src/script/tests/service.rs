//! The rule that takes a plugin out of service, what brings it back, and what a plugin leaves behind.

use super::super::engine::TRIPS_MAX;
use super::super::{PluginState, ScriptError};
use super::{message, one};

const TEXT: &str = "fn f(msg) { if msg.hang { let n = 0; loop { n += 1; } } if msg.no { throw \"no\"; } if msg.bug { msg.x.y } }";

fn trip(scripts: &super::Scripts) -> ScriptError {
    message(scripts, "f", r#"{"hang":true,"no":false,"bug":false}"#).unwrap_err()
}

fn well(scripts: &super::Scripts) -> bool {
    message(scripts, "f", r#"{"hang":false,"no":false,"bug":false}"#).is_ok()
}

#[test]
fn trips_in_a_row_take_a_plugin_out_until_it_is_loaded_anew() {
    let scripts = one(TEXT);
    for _ in 0..TRIPS_MAX {
        assert!(matches!(trip(&scripts), ScriptError::Failed(_)));
    }
    let ScriptError::OutOfService(why) = trip(&scripts) else { panic!("still in service") };
    assert!(why.contains("plugin `p` is out of service: plugins/p.rhai:1:1 in fn f: "), "{why}");
    assert!(!well(&scripts));
    let report = &scripts.report()[0];
    assert_eq!(report.calls, u64::from(TRIPS_MAX));
    assert!(matches!(&report.state, PluginState::OutOfService { since_ms: 1_704_067_200_000, why } if why.contains("in fn f: ")));
    assert!(report.last_error.as_ref().is_some_and(|(why, when)| why.contains("in fn f") && *when == 1_704_067_200_000));
    // Every thread sees it; a new loading does not.
    assert!(std::thread::scope(|s| s.spawn(|| !well(&scripts)).join().unwrap()));
    assert!(well(&one(TEXT)));
}

#[test]
fn only_trips_in_a_row_count() {
    let scripts = one(TEXT);
    for _ in 0..3 {
        for _ in 1..TRIPS_MAX {
            trip(&scripts);
        }
        assert!(well(&scripts));
    }
    for _ in 0..3 * TRIPS_MAX {
        assert!(matches!(message(&scripts, "f", r#"{"hang":false,"no":true,"bug":false}"#), Err(ScriptError::Thrown { .. })));
        assert!(matches!(message(&scripts, "f", r#"{"hang":false,"no":false,"bug":true}"#), Err(ScriptError::Failed(_))));
    }
    assert!(well(&scripts));
    let report = &scripts.report()[0];
    assert_eq!((report.failures, &report.state), (3 * u64::from(2 * TRIPS_MAX - 1), &PluginState::InService));
}

#[test]
fn closures_that_hold_themselves_end_the_plugin_before_they_fill_the_memory() {
    let scripts = one("fn f(msg) { let m = #{}; let text = \"\"; text.pad(200000, \"x\"); m.text = text; let g = || m; m.g = g; 1 }");
    let outcome = (0..1000).find_map(|_| message(&scripts, "f", "{}").err());
    assert!(matches!(&outcome, Some(ScriptError::OutOfService(why)) if why.contains("leave memory behind")), "{outcome:?}");
}

#[test]
fn ordinary_calls_leave_nothing_behind() {
    let text = r#"fn f(conn, msg) {
        conn.state.n = msg.n; conn.user = "someone with a long name"; conn.session = ();
        publish("room", #{ type: "said", data: msg, metadata: [1] }, #{ except: "someone with a long name" });
        send_to("someone with a long name", #{ type: "said with a long name", data: msg });
        conn.join("room", #{ key: "long enough to be on the heap", meta: #{ a: 1 } });
        let n = 3; let g = |x| x + n; log::info(msg);
        [msg.list.map(g), regex::find("[a-z]+", msg.text), members("x")]
    }"#;
    let scripts = one(text);
    let msg = r#"{"n":5,"list":[1,2,3],"text":"some text that is long enough to be on the heap"}"#;
    // The first calls on a thread set things up; what a function call means is kept once it was looked for twice.
    for _ in 0..3 {
        drop(message(&scripts, "f", msg).unwrap());
    }
    let first = scripts.leaked("p");
    assert!(first < 10_000);
    let before = crate::telemetry::memory::thread_live_bytes();
    for _ in 0..200 {
        drop(message(&scripts, "f", msg).unwrap());
    }
    assert_eq!(crate::telemetry::memory::thread_live_bytes(), before);
    assert_eq!(scripts.leaked("p"), first);
}

#[test]
fn what_a_message_keeps_of_being_asked_for_its_data_is_not_the_scripts() {
    struct Lazy(std::cell::OnceCell<crate::model::Json>);
    impl crate::script::HasData for Lazy {
        fn data(&self) -> Option<&crate::model::Json> {
            Some(self.0.get_or_init(|| super::json(&format!("{{\"n\":1,\"text\":\"{}\"}}", "x".repeat(10_000)))))
        }
    }
    let source = super::expression("e", "data.n == 1", &["data"]);
    let (scripts, _) = super::Scripts::build(&super::plugins(&[]), &[], &[source]);
    let world: std::sync::Arc<dyn super::World> = std::sync::Arc::new(super::TwoClients);
    for _ in 0..10 {
        let message = Lazy(std::cell::OnceCell::new());
        let arguments = super::Arguments::Message { msg: None, index: None, kind: None, data: Some(&message) };
        assert_eq!(scripts.test(&super::f("e"), super::Call { now: super::at(0), conn: None, arguments, world: &world }), Ok(true));
    }
    let left = scripts.leaked("p");
    assert!(left < 10_000, "{left}");
}

#[test]
fn log_lines_over_the_limit_are_counted() {
    let scripts = one("fn f(msg) { for i in 0..100 { log::info(i); } }");
    message(&scripts, "f", "{}").unwrap();
    assert_eq!(scripts.report()[0].log_lines_dropped, 80);
}

#[test]
fn a_panic_ends_its_own_call_only() {
    // A world that panics stands for any native function that does.
    struct Panics;
    impl super::World for Panics {
        fn members(&self, _: &str) -> Vec<crate::model::Json> {
            panic!("on purpose")
        }
        fn history(&self, _: &str, _: usize) -> Vec<std::sync::Arc<crate::model::Event>> {
            Vec::new()
        }
        fn connections(&self, _: &str) -> Vec<crate::model::Json> {
            Vec::new()
        }
        fn statistics(&self, _: &str) -> Option<crate::model::Json> {
            None
        }
    }
    let scripts = one("fn f(msg) { if msg.bad { members(\"x\") } else { 1 } }");
    let world: std::sync::Arc<dyn super::World> = std::sync::Arc::new(Panics);
    let msg = super::json(r#"{"bad":true}"#);
    let arguments = super::Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None };
    let call = || super::Call { now: super::at(0), conn: None, arguments, world: &world };
    assert!(matches!(scripts.call(&super::f("f"), call()), Err(ScriptError::Failed(why)) if why.contains("panicked")));
    assert!(message(&scripts, "f", r#"{"bad":false}"#).is_ok());
    for n in 0..=TRIPS_MAX {
        let error = scripts.call(&super::f("f"), call()).unwrap_err();
        assert_eq!(matches!(error, ScriptError::OutOfService(_)), n == TRIPS_MAX, "{error}");
    }
}

#[test]
fn loadings_live_beside_each_other_on_one_thread() {
    let (old, new) = (one("fn f(msg) { 1 }"), one("fn f(msg) { 2 }"));
    let third = one("fn f(msg) { 3 }");
    for _ in 0..3 {
        for (scripts, wanted) in [(&old, "1"), (&new, "2"), (&third, "3")] {
            assert_eq!(message(scripts, "f", "{}").unwrap().value, Some(super::json(wanted)));
        }
    }
}
