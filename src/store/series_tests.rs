//! Sums over minutes, hours and days.

use super::*;
use crate::store::Point;
use crate::store::tests::{Base, Rig, on_both};

/// The beginning of a day in the future, so that retention leaves it alone.
const DAY_S: i64 = 47_482 * 86_400;

fn point(name: &str, minute_s: i64, delta: u64) -> Point {
    Point { kind: "route", name: name.into(), metric: "calls", minute_s, delta }
}

async fn points(rig: &Rig, kind: Option<&str>, from: i64, to: i64, step: i64) -> Vec<(String, Vec<(i64, u64)>)> {
    let series = rig.store.series(kind, DAY_S + from, DAY_S + to, step).await.unwrap();
    series.into_iter().map(|one| (one.name, one.points.into_iter().map(|(at, sum)| (at - DAY_S, sum)).collect())).collect()
}

on_both! {
    async fn minutes_are_summed_into_steps(base) {
        let rig = Rig::of(base).await;
        rig.store.append_points(vec![point("a", DAY_S, 1), point("a", DAY_S + 60, 2), point("a", DAY_S + 300, 4), point("b", DAY_S + 60, 8)]);
        let written = async || rig.store.series(None, 0, i64::MAX, i64::MAX / 2).await.unwrap().iter().map(|one| one.points[0].1).sum::<u64>();
        while written().await < 15 {
            tokio::task::yield_now().await;
        }
        let a = |all: &[(i64, u64)]| ("a".to_owned(), all.to_vec());
        let b = |all: &[(i64, u64)]| ("b".to_owned(), all.to_vec());
        assert_eq!(points(&rig, None, 0, 600, 60).await, [a(&[(0, 1), (60, 2), (300, 4)]), b(&[(60, 8)])]);
        assert_eq!(points(&rig, Some("route"), 0, 600, 300).await, [a(&[(0, 3), (300, 4)]), b(&[(0, 8)])]);
        assert_eq!(points(&rig, None, 60, 300, 60).await, [a(&[(60, 2)]), b(&[(60, 8)])]);
        assert_eq!(points(&rig, Some("protocol"), 0, 600, 60).await, []);
        for (from, to, step) in [(0, 600, 0), (0, i64::MAX, 60), (0, 600, -60)] {
            assert!(matches!(rig.store.series(None, from, to, step).await, Err(StoreError::Limit)), "{from} {to} {step}");
        }
        rig.stop().await;
    }

    async fn minutes_hours_and_days_are_one_series(base) {
        let rig = Rig::of(base).await;
        let mut db = base.stranger().await;
        db.run("INSERT INTO series (kind, name, metric, total) VALUES ('route', 'a', 'calls', 0)").await;
        for (step, at, value) in [(86_400, 0, 1000), (3600, 86_400, 10), (3600, 90_000, 20), (60, 93_600, 3), (60, 93_660, 4), (60, 97_200, 5)] {
            db.run(&format!("INSERT INTO points (step, at, series, value) SELECT {step}, {}, id, {value} FROM series", DAY_S + at)).await;
        }
        let one = |all: &[(i64, u64)]| vec![("a".to_owned(), all.to_vec())];
        assert_eq!(points(&rig, None, 0, 200_000, 3600).await, one(&[(0, 1000), (86_400, 10), (90_000, 20), (93_600, 7), (97_200, 5)]));
        assert_eq!(points(&rig, None, 0, 200_000, 86_400).await, one(&[(0, 1000), (86_400, 42)]));
        rig.stop().await;
    }
}
