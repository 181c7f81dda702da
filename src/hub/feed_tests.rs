//! Followers get what matches in order. Neither many followers nor one that does not keep up costs anybody else anything.

use std::task::{Context, Waker};

use bytestring::ByteString;
use proptest::prelude::*;
use uuid::Uuid;

use super::handover::HANDED_BYTES_MAX;
use super::*;
use crate::model::event::NewEvent;
use crate::model::{ChannelName, Json};

fn event(channel: &str, kind: &str, seq: u64) -> Arc<Event> {
    let new = NewEvent {
        id: Uuid::now_v7(),
        kind: kind.to_owned().into(),
        data: Json::null(),
        time_ms: 0,
        origin: Arc::default(),
        metadata: None,
    };
    Arc::new(Event { new, channel: ChannelName::parse(channel), offset: seq, epoch: 1, seq })
}

/// An event that no log keeps, the nth of its channel.
fn passing(channel: &str, nth: u64) -> Arc<Event> {
    Arc::new(Event { seq: 0, ..(*event(channel, "x", nth)).clone() })
}

/// An event with a type of this size.
fn large(channel: &str, seq: u64, kind: &ByteString) -> Arc<Event> {
    let mut event = (*event(channel, "x", seq)).clone();
    event.new.kind = kind.clone();
    Arc::new(event)
}

fn bytes(count: usize) -> ByteString {
    "x".repeat(count).into()
}

fn of(channels: &[&str], kind: Option<&str>) -> Filter {
    Filter { channels: channels.iter().map(|name| (*name).into()).collect(), kind: kind.map(Into::into), ..Filter::default() }
}

/// Positions of what is stored, negative if it is only counted; 0 for what no log keeps.
fn seen(fed: &Fed) -> Vec<i64> {
    let place = |item: &Item| match item {
        Item::Stored(told) => told.event.seq as i64,
        Item::Counted(seq) => -(*seq as i64),
        Item::Passing(_) => 0,
    };
    fed.items.iter().map(place).collect()
}

#[tokio::test]
async fn each_follower_gets_its_channels_and_knows_of_what_it_does_not_want() {
    let feed = Arc::new(Feed::default());
    let all = [of(&[], None), of(&["a"], None), of(&["a", "a", "b"], Some("x")), of(&["r:*"], None)];
    let following: Vec<Following> = all.into_iter().map(|filter| feed.follow(filter, 1 << 20)).collect();
    following.iter().for_each(Following::feed_me);
    feed.committed([event("a", "x", 1), event("b", "y", 2), event("r:1", "x", 3)].iter());
    feed.passing(&event("a", "y", 0));
    feed.passing(&event("", "x", 0));
    feed.feed_followers().await;
    let found: Vec<Vec<i64>> = following.iter().map(|one| seen(&one.take())).collect();
    assert_eq!(found, [vec![1, 2, 3, 0, 0], vec![1, 0], vec![1, -2], vec![3]]);
    assert_eq!(feed.len(), 4);
    drop(following);
    assert!(feed.is_empty() && feed.followers.lock().by_channel.is_empty() && feed.followers.lock().others.is_empty());
    feed.committed([event("a", "x", 4)].iter());
    feed.passing(&event("a", "x", 0));
    assert!(feed.handover.take().events.is_empty(), "nobody is there");
}

#[tokio::test]
async fn nothing_committed_is_fed_before_it_is_asked_for() {
    let feed = Arc::new(Feed::default());
    let one = feed.follow(of(&[], None), 1 << 20);
    feed.committed([event("a", "x", 1)].iter());
    feed.passing(&event("a", "x", 0));
    feed.feed_followers().await;
    let fed = one.take();
    assert_eq!((seen(&fed), fed.keeps_up), (vec![0], false));
    one.feed_me();
    feed.committed([event("a", "x", 2)].iter());
    feed.feed_followers().await;
    let fed = one.take();
    assert_eq!((seen(&fed), fed.keeps_up), (vec![2], true));
}

#[tokio::test]
async fn one_that_does_not_keep_up_is_sent_back_to_the_log() {
    let feed = Arc::new(Feed::default());
    let (slow, fast) = (feed.follow(of(&[], None), 1000), feed.follow(of(&[], None), 1 << 20));
    slow.feed_me();
    fast.feed_me();
    feed.passing(&event("a", "x", 0));
    for seq in 1..=20 {
        feed.committed([event("a", "x", seq)].iter());
    }
    for _ in 0..20 {
        feed.passing(&event("a", "x", 0));
    }
    feed.feed_followers().await;
    assert!(slow.follower.queue.lock().bytes <= 1000);
    let fed = slow.take();
    assert!(!fed.keeps_up && fed.items.iter().all(|item| matches!(item, Item::Passing(_))), "{fed:?}");
    assert_eq!(fed.items.len() as u64 + fed.dropped, 21);
    assert_eq!(fast.take().items.len(), 41);
    slow.feed_me();
    feed.committed([event("a", "x", 21)].iter());
    feed.feed_followers().await;
    assert_eq!(seen(&slow.take()), [21]);
}

#[tokio::test]
async fn one_event_larger_than_the_bound_still_comes() {
    let feed = Arc::new(Feed::default());
    let one = feed.follow(of(&[], None), 1);
    one.feed_me();
    feed.committed([large("a", 1, &bytes(HANDED_BYTES_MAX))].iter());
    feed.feed_followers().await;
    assert_eq!(seen(&one.take()), [1]);
}

#[tokio::test]
async fn a_follower_is_woken() {
    let feed = Arc::new(Feed::default());
    let running = tokio::spawn({
        let feed = feed.clone();
        async move { feed.run().await }
    });
    let one = feed.follow(of(&["a"], None), 1000);
    one.feed_me();
    for seq in 1..=3 {
        feed.committed([event("a", "x", seq)].iter());
        one.woken().await;
        assert_eq!(seen(&one.take()), [seq as i64]);
    }
    running.abort();
}

#[tokio::test]
async fn what_is_written_of_an_event_is_written_once() {
    let feed = Arc::new(Feed::default());
    let both = [feed.follow(of(&["a"], None), 1000), feed.follow(of(&[], None), 1000)];
    let mut broken = (*event("a", "x", 0)).clone();
    broken.new.data = Json::parse("{\"n\":\n1}".into()).unwrap();
    feed.passing(&Arc::new(broken));
    feed.feed_followers().await;
    let lines = both.each_ref().map(|one| match one.take().items.pop_front() {
        Some(Item::Passing(told)) => (told.line().as_ptr(), told.line().to_owned()),
        other => panic!("{other:?}"),
    });
    assert_eq!(lines[0], lines[1]);
    assert!(lines[0].1.ends_with("\"data\":{\"n\": 1}}"), "{}", lines[0].1);
}

#[tokio::test]
async fn where_the_hand_over_is_full_all_read_the_log_and_what_no_log_keeps_is_counted() {
    let feed = Arc::new(Feed::default());
    let one = feed.follow(of(&["a"], None), usize::MAX);
    let (other, glob) = (feed.follow(of(&["b"], None), usize::MAX), feed.follow(of(&["a*"], None), usize::MAX));
    let all = [&one, &other, &glob];
    all.into_iter().for_each(Following::feed_me);
    let kind = bytes(1 << 20);
    let mib = |seq| large("a", seq, &kind);
    feed.passing(&passing("a", 1));
    for seq in 1..=20 {
        feed.committed([mib(seq)].iter());
    }
    // Committed events are removed from it, so there is room for some events that no log keeps, but not for all.
    for _ in 0..10 {
        feed.passing(&mib(0));
    }
    let late = feed.follow(of(&["a"], None), usize::MAX);
    feed.committed([event("b", "x", 21)].iter());
    feed.feed_followers().await;
    let found = all.map(|one| {
        let fed = one.take();
        (fed.items.iter().all(|item| matches!(item, Item::Passing(_))), fed.items.len(), fed.dropped, fed.keeps_up)
    });
    assert_eq!(found, [(true, 8, 3, false), (true, 0, 0, false), (true, 8, 3, false)]);
    let fed = late.take();
    assert_eq!((fed.items.len(), fed.dropped), (0, 0), "it came behind all that");
    all.into_iter().for_each(Following::feed_me);
    feed.committed([event("a", "x", 22), event("b", "x", 23)].iter());
    feed.passing(&passing("a", 30));
    feed.feed_followers().await;
    assert_eq!(all.map(|one| seen(&one.take())), [vec![22, 0], vec![23], vec![22, 0]]);
}

#[tokio::test]
async fn others_come_and_go_while_followers_are_told() {
    let feed = Arc::new(Feed::default());
    let many = 3 * TURN;
    let mut all: Vec<Following> = (0..many).map(|_| feed.follow(of(&["a"], None), 1 << 20)).collect();
    all.iter().for_each(Following::feed_me);
    feed.committed([event("a", "x", 1)].iter());
    let mut feeding = Box::pin(feed.feed_followers());
    assert!(feeding.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending(), "others have their turn");
    // Neither the writer nor a publisher nor a follower waits for it.
    feed.committed([event("a", "x", 2)].iter());
    feed.passing(&passing("a", 1));
    let late = feed.follow(of(&["a"], None), 1 << 20);
    late.feed_me();
    feed.committed([event("a", "x", 3)].iter());
    all.drain(..10);
    all.drain(many - 20..);
    feeding.await;
    assert_eq!(feed.len(), many - 19);
    feed.feed_followers().await;
    assert!(all.iter().all(|one| seen(&one.take()) == [1, 2, 0, 3]));
    assert_eq!(seen(&late.take()), [3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_follower_has_the_order_of_the_log_and_of_each_channel() {
    const EACH: u64 = 500;
    let feed = Arc::new(Feed::default());
    let running = tokio::spawn({
        let feed = feed.clone();
        async move { feed.run().await }
    });
    let all: Vec<Following> =
        [of(&[], None), of(&["a", "b", "c"], None), of(&["*"], None)].into_iter().map(|filter| feed.follow(filter, usize::MAX)).collect();
    all.iter().for_each(Following::feed_me);
    let publishers = ["a", "b", "c"].map(|channel| {
        let feed = feed.clone();
        std::thread::spawn(move || (1..=EACH).for_each(|nth| feed.passing(&passing(channel, nth))))
    });
    let writer = std::thread::spawn({
        let feed = feed.clone();
        move || (1..=EACH).for_each(|seq| feed.committed([event(["a", "b"][seq as usize % 2], "x", seq)].iter()))
    });
    for one in &all {
        let (mut stored, mut passed) = (Vec::new(), [const { Vec::new() }; 3]);
        while stored.len() + passed.iter().map(Vec::len).sum::<usize>() < 4 * EACH as usize {
            one.woken().await;
            let fed = one.take();
            assert!(fed.keeps_up && fed.dropped == 0);
            for item in fed.items {
                match item {
                    Item::Stored(told) => stored.push(told.event.seq),
                    Item::Passing(told) => {
                        let channel = told.event.channel.as_ref().unwrap().as_str().as_bytes()[0];
                        passed[usize::from(channel - b'a')].push(told.event.offset);
                    }
                    Item::Counted(seq) => panic!("{seq}"),
                }
            }
        }
        for found in passed.iter().chain([&stored]) {
            assert_eq!(*found, (1..=EACH).collect::<Vec<_>>());
        }
    }
    publishers.into_iter().chain([writer]).for_each(|thread| thread.join().unwrap());
    running.abort();
}

/// One step of the property test.
#[derive(Clone, Copy, Debug)]
enum Move {
    /// One commit of this many events, small or large.
    Commit(u64, usize),
    /// The feeding task runs.
    Feed,
    /// The follower continues: it reads some of the log, or takes what it was fed.
    Step,
}

/// A reader that reads the log, asks to be fed, reads the earlier rest, and then is fed, as streams do.
struct Reader {
    following: Following,
    fed: bool,
    live: bool,
    seen: Vec<u64>,
}

impl Reader {
    fn place(&self) -> u64 {
        self.seen.last().copied().unwrap_or(0)
    }

    fn step(&mut self, log: u64) {
        if self.live {
            let fed = self.following.take();
            for item in fed.items {
                if let Item::Stored(told) = item
                    && told.event.seq > self.place()
                {
                    self.seen.push(told.event.seq);
                }
            }
            if !fed.keeps_up {
                (self.live, self.fed) = (false, false);
            }
        } else if self.place() < log {
            self.seen.extend((self.place() + 1..=log).take(3));
        } else if self.fed {
            self.live = true;
        } else {
            self.following.feed_me();
            self.fed = true;
        }
    }
}

proptest! {
    #[test]
    fn who_reads_and_is_fed_misses_nothing_and_gets_nothing_twice(moves in prop::collection::vec(prop_oneof![
        (1..4u64, 0..3usize).prop_map(|(events, size)| Move::Commit(events, size)),
        Just(Move::Feed),
        Just(Move::Step),
    ], 0..80), bytes_max in prop_oneof![Just(600), Just(usize::MAX)]) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let sizes = [1, HANDED_BYTES_MAX / 4, HANDED_BYTES_MAX].map(bytes);
        let feed = Arc::new(Feed::default());
        let mut reader = Reader { following: feed.follow(of(&["a"], None), bytes_max), fed: false, live: false, seen: Vec::new() };
        let mut log = 0;
        // In the end both get their turns, more than they need.
        let rest = [Move::Feed, Move::Step].into_iter().cycle().take(2 * 250);
        for next in moves.into_iter().chain(rest) {
            match next {
                Move::Commit(events, size) => {
                    let commit: Vec<_> = (log + 1..=log + events).map(|seq| large("a", seq, &sizes[size])).collect();
                    log += events;
                    feed.committed(commit.iter());
                }
                Move::Feed => runtime.block_on(feed.feed_followers()),
                Move::Step => reader.step(log),
            }
        }
        prop_assert!(reader.live, "it is fed in the end");
        prop_assert_eq!(reader.seen, (1..=log).collect::<Vec<_>>());
    }
}
