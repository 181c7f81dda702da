//! Followers get what they want in order, and one that does not keep up costs nobody anything.

use uuid::Uuid;

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

fn of(channels: &[&str], kind: Option<&str>) -> Filter {
    Filter { channels: channels.iter().map(|name| (*name).into()).collect(), kind: kind.map(Into::into), ..Filter::default() }
}

/// Places of what is stored, negative where it is only counted; 0 for what passes.
fn seen(fed: &Fed) -> Vec<i64> {
    let place = |item: &Item| match item {
        Item::Stored(event) => event.seq as i64,
        Item::Counted(seq) => -(*seq as i64),
        Item::Passing(_) => 0,
    };
    fed.items.iter().map(place).collect()
}

#[test]
fn each_follower_gets_its_channels_and_knows_of_what_it_does_not_want() {
    let feed = Arc::new(Feed::default());
    let all = [of(&[], None), of(&["a"], None), of(&["a", "a", "b"], Some("x")), of(&["r:*"], None)];
    let following: Vec<Following> = all.into_iter().map(|filter| feed.follow(filter, 1 << 20)).collect();
    following.iter().for_each(Following::feed_me);
    feed.committed([event("a", "x", 1), event("b", "y", 2), event("r:1", "x", 3)].iter());
    feed.passing(&event("a", "y", 0));
    feed.passing(&event("", "x", 0));
    let found: Vec<Vec<i64>> = following.iter().map(|one| seen(&one.take())).collect();
    assert_eq!(found, [vec![1, 2, 3, 0, 0], vec![1, 0], vec![1, -2], vec![3]]);
    assert_eq!(feed.len(), 4);
    drop(following);
    assert!(feed.is_empty() && feed.followers.read().by_channel.is_empty() && feed.followers.read().others.is_empty());
}

#[test]
fn nothing_committed_is_fed_before_it_is_asked_for() {
    let feed = Arc::new(Feed::default());
    let one = feed.follow(of(&[], None), 1 << 20);
    feed.committed([event("a", "x", 1)].iter());
    feed.passing(&event("a", "x", 0));
    let fed = one.take();
    assert_eq!((seen(&fed), fed.keeps_up), (vec![0], false));
    one.feed_me();
    feed.committed([event("a", "x", 2)].iter());
    let fed = one.take();
    assert_eq!((seen(&fed), fed.keeps_up), (vec![2], true));
}

#[test]
fn one_that_does_not_keep_up_is_sent_back_to_the_log() {
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
    assert!(slow.follower.queue.lock().bytes <= 1000);
    let fed = slow.take();
    assert!(!fed.keeps_up && fed.items.iter().all(|item| matches!(item, Item::Passing(_))), "{fed:?}");
    assert_eq!(fed.items.len() as u64 + fed.dropped, 21);
    assert_eq!(fast.take().items.len(), 41);
    slow.feed_me();
    feed.committed([event("a", "x", 21)].iter());
    assert_eq!(seen(&slow.take()), [21]);
}

#[test]
fn one_event_larger_than_the_bound_still_comes() {
    let feed = Arc::new(Feed::default());
    let one = feed.follow(of(&[], None), 1);
    one.feed_me();
    feed.committed([event("a", "x", 1)].iter());
    assert_eq!(seen(&one.take()), [1]);
}

#[tokio::test]
async fn a_follower_is_woken() {
    let feed = Arc::new(Feed::default());
    let one = feed.follow(of(&["a"], None), 1000);
    one.feed_me();
    let woken = one.woken();
    feed.committed([event("a", "x", 1)].iter());
    woken.await;
    assert_eq!(one.take().items.len(), 1);
}
