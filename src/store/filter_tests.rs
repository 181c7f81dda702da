//! The answers of the database match the meaning of a filter, on both databases, and each filter uses the index that is meant
//! for it.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;
use crate::model::event::Origin;
use crate::model::{Event, Json};
use crate::store::scan::Budget;
use crate::store::tests::{Base, Rig, event, on_both};
use crate::store::{HistoryQuery, Order};

/// The time of the first event.
const BEGIN_MS: i64 = 1_700_000_000_000;

const NAMES: [&str; 5] = ["a", "room:a", "room:b", "rooms", "ü:x"];

fn maybe<T: Clone + std::fmt::Debug + 'static>(values: &'static [T]) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(0.3, proptest::sample::select(values))
}

fn word(values: &'static [&'static str]) -> impl Strategy<Value = Option<Box<str>>> {
    maybe(values).prop_map(|value| value.map(Into::into))
}

const DATA: [&str; 12] = [
    r#"{"a":{"b":["x",1]},"s":"One"}"#,
    r#"{"a":{"b":["\u0078",1.0]},"s":"one"}"#,
    r#"{"a":1,"a":2}"#,
    r#"{ "a" : true , "s" : "tRue" }"#,
    r#"{"a":"true","s":null}"#,
    "[1,\"x\",[\"y\"]]",
    "\"plain ÜBER text\"",
    "42",
    "null",
    r#"{"s":"ü\u0000 \"quoted\"","a":"1"}"#,
    r#"{"s":"","a":{}}"#,
    "{\n\"s\": \"100%_[x]?\" }",
];

const CONDITIONS: [(&[&str], &str); 16] = [
    (&["a", "b", "0"], "x"),
    (&["a", "b", "1"], "1"),
    (&["a", "b", "1"], "1.0"),
    (&["a"], "2"),
    (&["a"], "1"),
    (&["a"], "true"),
    (&["s"], "null"),
    (&["s"], "one"),
    (&["s"], ""),
    (&["s"], "100%_[x]?"),
    (&["1"], "x"),
    (&["2", "0"], "y"),
    (&["0"], "1"),
    (&["a"], "{}"),
    (&["s"], "\""),
    (&["nothing"], "x"),
];

fn filters() -> impl Strategy<Value = Filter> {
    let channels = proptest::collection::vec(
        proptest::sample::select(&["a", "room:a", "rooms", "nowhere", "room:*", "*", "*:b", "r*m*", "nowhere*", "ü*", "x:%", "r?om*"][..]),
        0..3,
    );
    let text = word(&["one", "ONE", "über", "Über", "\"s\":", "%", "_", "\\u0000", "[x]", "nothing of it", "1"]);
    let data = proptest::collection::vec(proptest::sample::select(&CONDITIONS[..]), 0..2);
    let moment = |text: &'static str| {
        proptest::option::weighted(0.3, -70_000i64..400_000)
            .prop_map(move |at| at.map(|at| Moment { ms: BEGIN_MS + at, said: text.into() }))
    };
    let who =
        (word(&["x", "y", "none"]), word(&["ann", "bob", "ANN"]), word(&["s1", "s2"]), word(&["c1", "c2", "c3"]), word(&["api", "board"]));
    (channels, who, moment("since"), moment("until"), text, data).prop_map(
        |(channels, (kind, user, session, client, source), since, until, text, data)| Filter {
            channels: channels.into_iter().map(Into::into).collect(),
            kind,
            user,
            session,
            client,
            source,
            since,
            until,
            text: text.and_then(|text| Needle::new(&text)),
            data: data
                .into_iter()
                .map(|(path, value)| DataIs { path: path.iter().map(|key| (*key).into()).collect(), value: value.into() })
                .collect(),
        },
    )
}

type Who = (Option<&'static str>, Option<&'static str>, Option<&'static str>, &'static str);

/// Channel, type, who, data, and how far the clock moved since the previous event: mostly forwards.
fn events() -> impl Strategy<Value = Vec<(usize, &'static str, Who, &'static str, i64)>> {
    let who = (
        maybe(&["ann", "bob"]),
        maybe(&["s1", "s2"]),
        maybe(&["c1", "c2", "c3"]),
        proptest::sample::select(&["api", "board", "timer"][..]),
    );
    let kind = proptest::sample::select(&["x", "y", "z"][..]);
    proptest::collection::vec((0..NAMES.len(), kind, who, proptest::sample::select(&DATA[..]), -3000i64..6000), 100..300)
}

fn generate<T: std::fmt::Debug>(runner: &mut TestRunner, strategy: &impl Strategy<Value = T>) -> T {
    strategy.new_tree(runner).unwrap().current()
}

/// Writes random events and returns them as they are in the log, oldest first.
async fn fill(rig: &Rig, runner: &mut TestRunner) -> Vec<Event> {
    let (mut clock, mut tops) = (BEGIN_MS, [0u64; NAMES.len()]);
    let made = generate(runner, &events()).into_iter().map(|(channel, kind, (user, session, client, source), data, passed)| {
        clock += passed;
        tops[channel] += 1;
        let mut event = event(NAMES[channel], tops[channel], 1, kind);
        let origin = Origin {
            source: source.into(),
            client: client.map(Into::into),
            user: user.map(Into::into),
            session: session.map(Into::into),
            address: None,
        };
        event.new.origin = Arc::new(origin);
        event.new.data = Json::parse(data.into()).unwrap();
        event.new.time_ms = clock;
        event
    });
    let made: Vec<Event> = made.collect();
    rig.write(made.clone()).await;
    made
}

/// Everything that the database returns for a filter, page by page.
async fn asked(rig: &Rig, filter: &Filter, order: Order, budget: Budget) -> Vec<String> {
    let mut query = HistoryQuery { filter: filter.clone(), order, limit: 7, cursor: None };
    let mut found = Vec::new();
    loop {
        let page = crate::store::history::page(&rig.store.shared.readers(), &query, budget).await.unwrap();
        found.extend(page.events);
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return found,
        }
    }
}

on_both! {
    async fn the_database_answers_what_a_filter_means(base) {
        let rig = Rig::of(base).await;
        let mut runner = TestRunner::deterministic();
        let events = fill(&rig, &mut runner).await;
        let mut hits = 0;
        for n in 0..if base.is_postgres() { 250 } else { 600 } {
            let filter = generate(&mut runner, &filters());
            let (order, first) = [(Order::Ascending, 2000), (Order::Descending, 2000), (Order::Descending, 5), (Order::Ascending, 5)][n % 4];
            let mut meant: Vec<String> = events.iter().filter(|event| filter.matches(event)).map(Event::to_json).collect();
            if order == Order::Descending {
                meant.reverse();
            }
            hits += usize::from(!meant.is_empty());
            let budget = Budget { rows: first * 4, first, time: Duration::from_secs(10) };
            assert_eq!(asked(&rig, &filter, order, budget).await, meant, "{filter:?}");
        }
        assert!(hits > 60, "only {hits} filters found anything");
        rig.stop().await;
    }

    async fn an_export_gives_what_pages_give(base) {
        let rig = Rig::of(base).await;
        let mut runner = TestRunner::deterministic();
        let events = fill(&rig, &mut runner).await;
        let filter = Filter { channels: vec!["room:*".into()], ..Filter::default() };
        let meant: Vec<String> = events.iter().filter(|event| filter.matches(event)).map(Event::to_json).collect();
        for (limit, most) in [(None, meant.len()), (Some(10), 10), (Some(100_000), meant.len())] {
            let mut export = rig.store.export(&filter, Order::Ascending, None, limit).await.unwrap();
            let mut found = Vec::new();
            while let Some(events) = export.next().await.unwrap() {
                found.extend(events);
            }
            assert_eq!(found, meant[..most]);
        }
        rig.stop().await;
    }
}
