//! What happens to senders whose script calls exceed their budgets and to the functions they call, and what a plugin leaks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::engine::{LOG_LINES_PER_SECOND_MAX, PAUSE_MIN, SENDER_TRIP_EVERY, SENDER_TRIPS_MAX, TRIPS_MAX};
use super::super::{Arguments, Call, Returned, ScriptError, Scripts, Sender, World};
use super::{TwoClients, conn, expression, f, json, message, one, plugins, used};
use crate::config::plan::Role;
use crate::model::{ConnView, Event, Json, Now};

const TEXT: &str = "fn f(msg) { if msg.hang { let n = 0; loop { n += 1; } } if msg.no { throw \"no\"; } if msg.bug { msg.x.y } }
fn g(msg) { 7 }";
const HANG: &str = r#"{"hang":true,"no":false,"bug":false}"#;
const NO: &str = r#"{"hang":false,"no":true,"bug":false}"#;
const BUG: &str = r#"{"hang":false,"no":false,"bug":true}"#;
const WELL: &str = r#"{"hang":false,"no":false,"bug":false}"#;

/// Scripts called as the router does it, at times the tests make.
struct Router {
    scripts: Arc<Scripts>,
    start: Instant,
    after: Duration,
}

fn router(text: &str) -> Router {
    let uses = [used("f", Role::Handler), used("g", Role::Handler)];
    let (scripts, diagnostics) = Scripts::build(&plugins(&[("p", text)]), &uses, &[expression("e", "f(msg) == ()", &["msg"])], None);
    assert_eq!(super::lines(&diagnostics), Vec::<String>::new());
    Router { scripts, start: Instant::now(), after: Duration::ZERO }
}

/// The connection number `n`, of a user of its own.
fn client(n: usize) -> Arc<ConnView> {
    Arc::new(ConnView { id: format!("c{n}").into(), user: Some(format!("u{n}").into()), ..(*conn()).clone() })
}

impl Router {
    fn now(&self) -> Now {
        Now { wall_ms: 1_704_067_200_000, instant: self.start + self.after }
    }

    fn called(&self, function: &str, from: &Arc<ConnView>, msg: &str, trial: bool) -> Result<Returned, ScriptError> {
        let (msg, world): (_, Arc<dyn World>) = (json(msg), Arc::new(TwoClients));
        let arguments = Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None };
        self.scripts.call(&f(function), Call { now: self.now(), conn: Some(from), arguments, world: &world, trial })
    }

    fn call(&self, function: &str, from: &Arc<ConnView>, msg: &str) -> Result<Returned, ScriptError> {
        let outcome = self.called(function, from, msg, false);
        if let Err(ScriptError::Tripped { function, why }) = &outcome {
            self.scripts.charge(&Sender::of_connection(from), self.now());
            self.scripts.tripped(function, why, &Sender::of_connection(from), self.now());
        }
        outcome
    }

    fn trip(&self, from: usize) {
        let outcome = self.call("f", &client(from), HANG);
        assert!(matches!(&outcome, Err(ScriptError::Tripped { .. })), "{outcome:?}");
    }

    fn is_served(&self, from: usize) -> bool {
        self.call("f", &client(from), WELL).is_ok()
    }

    fn is_out(&self) -> bool {
        !self.scripts.report()[0].out.is_empty()
    }

    /// Ten trips in a row by three senders.
    fn take_out(&self) {
        (0..TRIPS_MAX as usize).for_each(|n| self.trip(n % 3));
        assert!(self.is_out());
    }
}

#[test]
fn one_sender_pays_itself_and_takes_nothing_out() {
    let mut router = router(TEXT);
    for round in 0..4 {
        for _ in 0..if round == 0 { SENDER_TRIPS_MAX } else { 1 } {
            router.trip(1);
        }
        let retry_after = SENDER_TRIP_EVERY;
        assert_eq!(router.call("f", &client(1), WELL), Err(ScriptError::Spent { retry_after }));
        assert_eq!(router.call("g", &client(1), WELL), Err(ScriptError::Spent { retry_after }));
        assert!(!router.is_out());
        router.after += SENDER_TRIP_EVERY;
    }
    // Nobody else noticed, and it is served again when it does better.
    assert!(router.is_served(2) && router.is_served(1));
    assert_eq!(router.scripts.report()[0].failures, u64::from(SENDER_TRIPS_MAX) + 3);
    // Its other connections pay with it.
    let other = Arc::new(ConnView { id: "another".into(), ..(*client(1)).clone() });
    router.trip(1);
    assert!(matches!(router.call("f", &other, WELL), Err(ScriptError::Spent { .. })));
}

#[test]
fn different_senders_take_a_function_out_and_it_comes_back_by_itself() {
    let mut router = router(TEXT);
    router.take_out();
    let ScriptError::OutOfService(why) = router.call("f", &client(9), WELL).unwrap_err() else { panic!("still in service") };
    assert!(why.starts_with("`f` of plugin `p` is out of service: plugins/p.rhai:1:"), "{why}");
    let report = &router.scripts.report()[0];
    assert_eq!((report.out[0].function.as_str(), report.out[0].since_ms), ("f", 1_704_067_200_000));
    assert!(report.last_error.as_ref().is_some_and(|(why, when)| why.contains("in fn f") && *when == 1_704_067_200_000));
    // The plugin's other functions are served, and so are expressions that call this one. Every thread sees the same.
    assert!(router.call("g", &client(9), WELL).is_ok());
    assert!(router.call("e", &client(9), WELL).is_ok());
    assert!(std::thread::scope(|s| s.spawn(|| !router.is_served(9)).join().unwrap()));

    // One call is tried after a pause, which doubles each time that one fails, up to a bound.
    for (n, pause_s) in [1, 2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
        router.after += Duration::from_secs(pause_s) - Duration::from_nanos(1);
        assert!(!router.is_served(9), "{pause_s}");
        router.after += Duration::from_nanos(1);
        router.trip(20 + n);
        assert!(!router.is_served(9), "{pause_s}");
    }
    router.after += Duration::from_secs(60);
    assert!(router.called("f", &client(9), WELL, true).is_err(), "nothing is tried for show");
    assert!(router.is_served(9) && !router.is_out());
    // It begins anew: it takes ten trips again, and the first pause is short.
    router.after += SENDER_TRIP_EVERY * 10;
    router.take_out();
    router.after += PAUSE_MIN;
    assert!(router.is_served(9));
}

#[test]
fn while_one_call_is_tried_all_others_wait() {
    let mut router = router(TEXT);
    router.take_out();
    router.after += PAUSE_MIN;
    // Nobody hears how this one ends.
    assert!(matches!(router.called("f", &client(7), HANG, false), Err(ScriptError::Tripped { .. })));
    assert!(!router.is_served(9));
    router.after += PAUSE_MIN;
    assert!(router.is_served(9));
}

#[test]
fn only_trips_in_a_row_count() {
    let mut router = router(TEXT);
    for round in 0..3 {
        (1..TRIPS_MAX as usize).for_each(|n| router.trip(round * 10 + n));
        assert!(router.is_served(99));
    }
    router.after += SENDER_TRIP_EVERY;
    for n in 0..3 * TRIPS_MAX as usize {
        assert!(matches!(router.call("f", &client(n), NO), Err(ScriptError::Thrown { .. })));
        assert!(matches!(router.call("f", &client(n), BUG), Err(ScriptError::Failed(_))));
    }
    assert!(router.is_served(99));
    let report = &router.scripts.report()[0];
    assert_eq!((report.failures, report.out.len()), (3 * u64::from(2 * TRIPS_MAX - 1), 0));
}

#[test]
fn an_expression_of_the_routes_file_is_never_taken_out() {
    let router = router(TEXT);
    for n in 0..3 * TRIPS_MAX as usize {
        assert!(matches!(router.call("e", &client(n), HANG), Err(ScriptError::Tripped { .. })));
    }
    assert!(router.call("e", &client(99), WELL).is_ok());
    assert!(router.is_served(99));
}

#[test]
fn who_published_an_event_pays_for_it_and_not_who_gets_it() {
    let text = "fn f(event) { let data = event.data; if data.hang { loop { } } 1 }";
    let (scripts, _) = Scripts::build(&plugins(&[("p", text)]), &[used("f", Role::Deliver)], &[], None);
    let (world, now): (Arc<dyn World>, _) = (Arc::new(TwoClients), super::at(0));
    let sub = crate::model::SubView { channel: crate::model::ChannelName::direct(), key: "".into(), meta: None, positioned: false };
    let deliver = |from: &str, data: &str| {
        let mut event = super::event("room", 1, data);
        event.new.origin = Arc::new(crate::model::Origin { client: Some(from.into()), ..(*event.new.origin).clone() });
        let arguments = Arguments::Deliver { event: &event, sub: &sub };
        let outcome = scripts.call(&f("f"), Call { now, conn: Some(&conn()), arguments, world: &world, trial: false });
        if matches!(outcome, Err(ScriptError::Tripped { .. })) {
            scripts.charge(&Sender::of_event(&event.new.origin), now);
        }
        outcome
    };
    let large = deliver("spender", &format!("[{}0]", "0,".repeat(20_000)));
    assert!(
        matches!(&large, Err(ScriptError::NotForScripts(why)) if why.starts_with("the event cannot be given to a script")),
        "{large:?}"
    );
    for _ in 0..SENDER_TRIPS_MAX {
        assert!(matches!(deliver("spender", r#"{"hang":true}"#), Err(ScriptError::Tripped { .. })));
    }
    assert!(matches!(deliver("spender", r#"{"hang":true}"#), Err(ScriptError::Spent { .. })));
    assert!(deliver("other", r#"{"hang":false}"#).is_ok());
}

#[test]
fn a_message_that_is_too_large_for_a_script_is_its_senders_fault() {
    let scripts = one("fn f(msg) { for x in msg { x } 1 }");
    // As values these objects take far more memory than as text.
    let objects: Vec<String> = (0..65_000).map(|n| format!("\"{n}\":{{\"\":1}}")).collect();
    for (msg, bound) in [
        (format!("[{}0]", "0,".repeat(20_000)), "more than the 20000 array items"),
        (format!("\"{}\"", "x".repeat(1 << 20)), "larger than the 1024 KiB"),
        (format!("{{{}}}", objects.join(",")), "more than the 16 MiB of memory"),
    ] {
        let outcome = message(&scripts, "f", &msg);
        assert!(matches!(&outcome, Err(ScriptError::NotForScripts(why)) if why.contains(bound)), "{bound}: {outcome:?}");
    }
    assert_eq!((scripts.report()[0].failures, scripts.report()[0].out.len()), (0, 0));
}

#[test]
fn a_busy_machine_fails_no_honest_call() {
    let scripts = one("fn f(msg) { let n = 0; for i in 0..2500 { n += i; } n }");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..16 * std::thread::available_parallelism().map_or(2, std::num::NonZero::get) {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let began = Instant::now();
        let mut longest = Duration::ZERO;
        let mut failed = None;
        // Until the machine has kept a call waiting for longer than it may compute.
        while failed.is_none() && longest < Duration::from_millis(60) && began.elapsed() < Duration::from_secs(20) {
            let call = Instant::now();
            failed = message(&scripts, "f", "{}").err();
            longest = longest.max(call.elapsed());
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(failed, None, "{longest:?}");
    });
}

#[test]
fn a_plugin_that_changes_begins_in_service_and_one_that_does_not_goes_on() {
    let before = router(TEXT);
    before.take_out();
    let uses = [used("f", Role::Handler)];
    let build = |text: &str| Scripts::build(&plugins(&[("p", text)]), &uses, &[], Some(&before.scripts)).0;
    let (same, changed) = (build(TEXT), build(&format!("{TEXT}\n")));
    assert!(matches!(message(&same, "f", WELL), Err(ScriptError::OutOfService(_))));
    assert!(message(&changed, "f", WELL).is_ok());
    assert!(!same.report()[0].out.is_empty() && changed.report()[0].out.is_empty());
    // Counters continue, and what senders have spent still counts.
    assert_eq!((changed.report()[0].calls, changed.report()[0].failures), (u64::from(TRIPS_MAX) + 1, u64::from(TRIPS_MAX)));
    (0..2).for_each(|_| before.scripts.charge(&Sender::of_connection(&client(0)), before.now()));
    let after = Router { scripts: changed, ..before };
    assert!(matches!(after.call("f", &client(0), WELL), Err(ScriptError::Spent { .. })));
}

#[test]
fn a_trial_leaves_no_trace() {
    let router = router("fn f(msg) { for i in 0..100 { log::info(i); } if msg.hang { loop { } } }\nfn g(msg) { 1 }");
    assert!(router.called("f", &client(1), WELL, true).is_ok());
    assert!(matches!(router.called("f", &client(1), HANG, true), Err(ScriptError::Tripped { .. })));
    let report = &router.scripts.report()[0];
    assert_eq!((report.calls, report.failures, report.log_lines_dropped, &report.last_error), (0, 0, 0, &None));
}

#[test]
fn closures_that_hold_themselves_end_the_function_before_they_fill_the_memory() {
    let text =
        "fn f(msg) { let m = #{}; let text = \"\"; text.pad(200000, \"x\"); m.text = text; let g = || m; m.g = g; 1 }\nfn g(msg) { 1 }";
    let mut router = router(text);
    let mut until_out = || {
        let served = (0..1000).take_while(|_| router.is_served(1)).count();
        let outcome = router.call("f", &client(1), WELL);
        assert!(matches!(&outcome, Err(ScriptError::OutOfService(why)) if why.contains("leave memory behind")), "{outcome:?}");
        assert!(router.call("g", &client(1), WELL).is_ok());
        router.after += Duration::from_secs(60);
        served
    };
    assert!(until_out() > 10);
    // From then on no call may leave more.
    assert_eq!((until_out(), until_out()), (1, 1));
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
    let first = scripts.leaked(&f("f"));
    assert!(first < 10_000);
    let before = crate::telemetry::memory::thread_live_bytes();
    for _ in 0..200 {
        drop(message(&scripts, "f", msg).unwrap());
    }
    assert_eq!(crate::telemetry::memory::thread_live_bytes(), before);
    assert_eq!(scripts.leaked(&f("f")), first);
}

#[test]
fn what_a_message_keeps_of_being_asked_for_its_data_is_not_the_scripts() {
    struct Lazy(std::cell::OnceCell<Json>);
    impl crate::script::HasData for Lazy {
        fn data(&self) -> Option<&Json> {
            Some(self.0.get_or_init(|| json(&format!("{{\"n\":1,\"text\":\"{}\"}}", "x".repeat(10_000)))))
        }
    }
    let source = expression("e", "data.n == 1", &["data"]);
    let (scripts, _) = Scripts::build(&plugins(&[]), &[], &[source], None);
    let world: Arc<dyn World> = Arc::new(TwoClients);
    for _ in 0..10 {
        let message = Lazy(std::cell::OnceCell::new());
        let arguments = Arguments::Message { msg: None, index: None, kind: None, data: Some(&message) };
        assert_eq!(scripts.test(&f("e"), Call { now: super::at(0), conn: None, arguments, world: &world, trial: false }), Ok(true));
    }
    let left = scripts.leaked(&f("e"));
    assert!(left < 10_000, "{left}");
}

#[test]
fn log_lines_over_the_limit_are_counted() {
    let scripts = one("fn f(msg) { for i in 0..100 { log::info(i); } }");
    message(&scripts, "f", "{}").unwrap();
    assert_eq!(scripts.report()[0].log_lines_dropped, 100 - u64::from(LOG_LINES_PER_SECOND_MAX));
}

#[test]
fn a_panic_ends_its_own_call_only() {
    // A world that panics does what any native function that panics would do.
    struct Panics;
    impl World for Panics {
        fn members(&self, _: &str) -> Vec<Json> {
            panic!("on purpose")
        }
        fn history(&self, _: &str, _: usize) -> Vec<Arc<Event>> {
            Vec::new()
        }
        fn connections(&self, _: &str) -> Vec<Json> {
            Vec::new()
        }
        fn statistics(&self, _: &str, _: crate::model::Now) -> Option<Json> {
            None
        }
    }
    let scripts = one("fn f(msg) { if msg.bad { members(\"x\") } else { 1 } }");
    let world: Arc<dyn World> = Arc::new(Panics);
    let msg = json(r#"{"bad":true}"#);
    let arguments = Arguments::Message { msg: Some(&msg), index: None, kind: None, data: None };
    for _ in 0..3 {
        let call = Call { now: super::at(0), conn: None, arguments, world: &world, trial: false };
        let outcome = scripts.call(&f("f"), call);
        assert!(matches!(&outcome, Err(ScriptError::Tripped { why, .. }) if why.contains("panicked")), "{outcome:?}");
        assert!(message(&scripts, "f", r#"{"bad":false}"#).is_ok());
    }
}

#[test]
fn loadings_live_beside_each_other_on_one_thread() {
    let (old, new) = (one("fn f(msg) { 1 }"), one("fn f(msg) { 2 }"));
    let third = one("fn f(msg) { 3 }");
    for _ in 0..3 {
        for (scripts, wanted) in [(&old, "1"), (&new, "2"), (&third, "3")] {
            assert_eq!(message(scripts, "f", "{}").unwrap().value, Some(json(wanted)));
        }
    }
}
