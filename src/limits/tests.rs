//! How the limiters let through and refuse, in a time that the tests make.

use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn rate(count: u32, per: Duration, burst: u32) -> Rate {
    Rate { count: NonZeroU32::new(count).unwrap(), per, burst: NonZeroU32::new(burst).unwrap() }
}

struct Clock(Now);

impl Clock {
    fn new() -> Self {
        Self(Now { wall_ms: 0, instant: Instant::now() + Duration::from_secs(1_000_000) })
    }

    fn after(&self, wait: Duration) -> Now {
        Now { wall_ms: 0, instant: self.0.instant + wait }
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_hundred_a_minute() {
    let clock = Clock::new();
    let limiter = Limiter::new(&rate(100, MINUTE, 100), clock.0);
    for i in 0..100 {
        assert_eq!(limiter.check(clock.0), LimitVerdict::Pass, "{i}");
    }
    let retry_after = Duration::from_millis(600);
    for i in 100..1000 {
        assert_eq!(limiter.check(clock.0), LimitVerdict::Over { retry_after }, "{i}");
    }
    assert_eq!(limiter.check(clock.0), LimitVerdict::Flooding);
    assert_eq!(limiter.check(clock.after(retry_after)), LimitVerdict::Pass);
}

#[test]
fn a_burst_above_the_rate_is_let_through_once() {
    let clock = Clock::new();
    let limiter = Limiter::new(&rate(20, Duration::from_secs(1), 40), clock.0);
    let passed = |at: Now| (0..100).filter(|_| limiter.check(at) == LimitVerdict::Pass).count();
    assert_eq!(passed(clock.0), 40);
    assert_eq!(passed(clock.after(Duration::from_secs(1))), 20);
}

#[test]
fn no_rate_is_too_large_or_too_small() {
    let clock = Clock::new();
    for per in [Duration::from_nanos(1), Duration::from_secs(1), Duration::MAX] {
        for count in [1, u32::MAX] {
            for burst in [1, u32::MAX] {
                let limiter = Limiter::new(&rate(count, per, burst), clock.0);
                assert_eq!(limiter.check(clock.0), LimitVerdict::Pass, "{count}/{per:?} burst {burst}");
                let _ = limiter.check(clock.after(MINUTE));
            }
        }
    }
}

#[test]
fn keys_do_not_disturb_each_other_and_new_ones_share_when_it_is_full() {
    let clock = Clock::new();
    let limiter = KeyedLimiter::new(&rate(2, MINUTE, 2), 3, clock.0);
    for key in ["a", "b", "c"] {
        assert_eq!(limiter.check(key, clock.0), LimitVerdict::Pass);
    }
    assert_eq!(limiter.check("d", clock.0), LimitVerdict::Pass);
    assert_eq!(limiter.check("e", clock.0), LimitVerdict::Pass);
    assert!(matches!(limiter.check("f", clock.0), LimitVerdict::Over { .. }));
    assert_eq!(limiter.check("a", clock.0), LimitVerdict::Pass);
    assert!(matches!(limiter.check("a", clock.0), LimitVerdict::Over { .. }));
    assert_eq!(limiter.len(), 3);

    // "a" is full again after a minute, "b" and "c" after half of one.
    limiter.sweep(clock.after(MINUTE / 3));
    assert_eq!(limiter.len(), 3);
    limiter.sweep(clock.after(MINUTE));
    assert!(limiter.is_empty());
    assert_eq!(limiter.check("f", clock.after(MINUTE)), LimitVerdict::Pass);
    assert_eq!(limiter.len(), 1);
}

proptest! {
    /// In any stretch of time no more pass than the bucket holds and gains; who waits as told is let through.
    #[test]
    fn no_window_lets_more_through(
        count in 1u32..50, per_ms in 100u64..5_000, burst in 1u32..50, gaps_us in prop::collection::vec(0u64..50_000, 1..300),
    ) {
        let rate = rate(count, Duration::from_millis(per_ms), burst);
        let clock = Clock::new();
        let limiter = Limiter::new(&rate, clock.0);
        let (mut at, mut passed, mut calm) = (Duration::ZERO, Vec::new(), true);
        for gap in gaps_us {
            at += Duration::from_micros(gap);
            match limiter.check(clock.after(at)) {
                LimitVerdict::Pass => passed.push(at),
                LimitVerdict::Over { retry_after } => {
                    prop_assert!(retry_after <= interval(&rate, 1) + Duration::from_nanos(1));
                    at += retry_after;
                    if limiter.check(clock.after(at)) == LimitVerdict::Pass { passed.push(at) } else { calm = false }
                }
                LimitVerdict::Flooding => calm = false,
            }
        }
        prop_assert!(calm);
        for (i, from) in passed.iter().enumerate() {
            for (j, to) in passed.iter().enumerate().skip(i) {
                let gained = (*to - *from).as_nanos() / interval(&rate, 1).as_nanos();
                prop_assert!((j - i) as u128 <= u128::from(burst) + gained);
            }
        }
    }

    /// Sweeping changes no verdict: a swept limiter and one that never forgets agree.
    #[test]
    fn sweeping_changes_no_verdict(steps in prop::collection::vec((0u8..4, 0u64..3_000, any::<bool>()), 1..200)) {
        let rate = rate(3, Duration::from_secs(3), 5);
        let clock = Clock::new();
        let (swept, kept) = (KeyedLimiter::new(&rate, 100, clock.0), KeyedLimiter::new(&rate, 100, clock.0));
        let mut at = Duration::ZERO;
        for (key, gap, sweep) in steps {
            at += Duration::from_millis(gap);
            let now = clock.after(at);
            if sweep { swept.sweep(now); }
            let key = key.to_string();
            prop_assert_eq!(swept.check(&key, now), kept.check(&key, now));
        }
    }

    #[test]
    fn time_that_steps_back_does_no_harm(steps in prop::collection::vec(0u64..100_000, 1..100)) {
        let clock = Clock::new();
        let limiter = Limiter::new(&rate(5, Duration::from_secs(1), 5), clock.after(Duration::from_secs(50)));
        for step in steps {
            let _ = limiter.check(clock.after(Duration::from_millis(step)));
        }
    }
}
