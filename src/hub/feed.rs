//! Events for those who follow the whole log rather than one channel: committed events in the order of the log, and events that
//! no log keeps in the order of their channel. Without followers it costs one look at a number.
//!
//! The log's writer and publishers only hand events over. One task passes them to the followers in small pieces, without any
//! lock that a writer or publisher ever waits for. A follower's queue is bounded by bytes, like the handover. If a follower does
//! not keep up, its queue is dropped and it learns that: it continues by reading the log from its position, and asks to be fed
//! again when it is near the end. If the task does not keep up, this happens to all followers.
//!
//! Knows no database and no HTTP.

mod handover;

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::yield_now;

use crate::model::json::one_line;
use crate::model::pattern::Glob;
use crate::model::{ChannelName, Event};
use crate::store::Filter;
use handover::Handover;

/// The cost of an event that is only counted.
const COUNTED_BYTES: usize = 16;
/// After this many counted events a follower is woken even if none of them is for it.
const COUNTED_WAKE: usize = 1024;
/// Events of one channel that each of its followers gets in one go.
const RUN: usize = 16;
/// Followers that get events before other tasks get their turn.
const TURN: usize = 256;

/// All followers.
#[derive(Debug, Default)]
pub struct Feed {
    open: AtomicUsize,
    next: AtomicU64,
    handover: Handover,
    // Protects who follows what. Held to add or remove a follower, or while the feeding task copies a pointer.
    followers: Mutex<Followers>,
}

#[derive(Debug, Default)]
struct Followers {
    /// Followers whose filter names channels without globs, under each name.
    by_channel: HashMap<Box<str>, List>,
    others: List,
}

/// Copied if it changes while the feeding task goes through it.
type List = Arc<Vec<Arc<Follower>>>;

#[derive(Debug)]
struct Follower {
    key: u64,
    /// The number of the first event that was handed over after it came.
    from: u64,
    filter: Filter,
    bytes_max: usize,
    // Protects the queue. Held for a push, or while it is taken.
    queue: Mutex<FollowerQueue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct FollowerQueue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Whether it gets committed events; otherwise it reads the log.
    fed: bool,
    /// Events that no log keeps and that had no room.
    dropped: u64,
}

/// What a follower gets.
#[derive(Clone, Debug)]
pub enum Item {
    /// A committed event that matches its filter.
    Stored(Arc<SharedEvent>),
    /// A committed event of its channels that does not match its filter: its position in the log.
    Counted(u64),
    /// An event that no log keeps.
    Passing(Arc<SharedEvent>),
}

/// An event, shared by all its followers.
#[derive(Debug)]
pub struct SharedEvent {
    /// The event.
    pub event: Arc<Event>,
    number: u64,
    line: OnceLock<Box<str>>,
}

/// What came since the last call.
#[derive(Debug, Default)]
pub struct Fed {
    /// In order.
    pub items: VecDeque<Item>,
    /// Whether all following committed events will be fed too. If not, they must be read from the log.
    pub keeps_up: bool,
    /// Events that no log keeps and that were dropped. If the server had no time for a channel's followers, all events of the
    /// channel are counted, whether they match or not.
    pub dropped: u64,
}

/// A follower's own end. Dropping it ends it.
#[derive(Debug)]
pub struct Following {
    feed: Arc<Feed>,
    follower: Arc<Follower>,
}

impl Feed {
    /// Follows what matches a filter. At most `bytes_max` may wait, or one event if that is larger. At first only events that no
    /// log keeps are fed, until [`Following::feed_me`] is called.
    pub fn follow(self: &Arc<Self>, filter: Filter, bytes_max: usize) -> Following {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let from = self.handover.next();
        let follower = Arc::new(Follower { key, from, filter, bytes_max, queue: Mutex::default(), wake: Notify::new() });
        self.followers.lock().add(&follower);
        self.open.fetch_add(1, Ordering::SeqCst);
        Following { feed: self.clone(), follower }
    }

    /// The number of followers.
    pub fn len(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether there are no followers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands over events that were committed, in the order of the log. Must be called after their commit, and never
    /// concurrently.
    pub fn committed<'e>(&self, events: impl Iterator<Item = &'e Arc<Event>>) {
        if self.open.load(Ordering::SeqCst) == 0 {
            return;
        }
        let events: Vec<_> = events.cloned().collect();
        if !events.is_empty() {
            self.handover.committed(events);
        }
    }

    /// Hands over an event that no log keeps and that was delivered. Must be called while its channel is locked, which keeps the
    /// order.
    pub fn passing(&self, event: &Arc<Event>) {
        if self.open.load(Ordering::SeqCst) > 0 {
            self.handover.passing(event);
        }
    }

    /// Passes events to the followers, as long as it is polled. There is one such task.
    pub async fn run(&self) {
        loop {
            self.handover.woken().await;
            self.feed_followers().await;
        }
    }

    /// Passes what was handed over to the followers.
    async fn feed_followers(&self) {
        let left = self.handover.take();
        let mut fed = 0;
        if left.lost {
            let lists = self.followers.lock().lists();
            for follower in lists.iter().flat_map(|list| list.iter()) {
                follower.send_back();
                turn(&mut fed).await;
            }
        }
        for run in left.events.chunk_by(|(_, a), (_, b)| a.channel == b.channel).flat_map(|same| same.chunks(RUN)) {
            let run: Vec<Arc<SharedEvent>> = run.iter().map(|(number, event)| SharedEvent::new(*number, event)).collect();
            let channel = run[0].event.channel.as_ref();
            self.each(channel, &mut fed, |follower| follower.feed(&run)).await;
        }
        for (channel, dropped) in &left.dropped {
            self.each(channel.as_ref(), &mut fed, |follower| follower.dropped(dropped.count, dropped.last)).await;
        }
    }

    /// Calls `feed` for the followers of a channel. `None`: for events without a channel.
    async fn each(&self, channel: Option<&ChannelName>, fed: &mut usize, feed: impl Fn(&Follower)) {
        turn(fed).await;
        let channel = channel.map(ChannelName::as_str);
        let (named, others) = self.followers.lock().of(channel);
        let others = others.iter().filter(|follower| follower.filter.takes_channel(channel));
        for follower in named.iter().flat_map(|list| list.iter()).chain(others) {
            // A bug that one follower runs into must not keep the others from getting their events.
            if catch_unwind(AssertUnwindSafe(|| feed(follower))).is_err() {
                tracing::error!(?channel, "a follower of the log missed an event, because of a bug in Tramline");
                follower.send_back();
            }
            turn(fed).await;
        }
    }
}

/// Lets other tasks have their turn every now and then.
async fn turn(fed: &mut usize) {
    *fed += 1;
    if fed.is_multiple_of(TURN) {
        yield_now().await;
    }
}

impl Followers {
    fn add(&mut self, follower: &Arc<Follower>) {
        let add = |list: &mut List| Arc::make_mut(list).push(follower.clone());
        match follower.names() {
            Some(names) => names.for_each(|name| add(self.by_channel.entry(name.into()).or_default())),
            None => add(&mut self.others),
        }
    }

    fn remove(&mut self, follower: &Follower) {
        let remove = |list: &mut List| Arc::make_mut(list).retain(|other| other.key != follower.key);
        let Some(names) = follower.names() else { return remove(&mut self.others) };
        for name in names {
            if let Some(list) = self.by_channel.get_mut(name) {
                remove(list);
                if list.is_empty() {
                    self.by_channel.remove(name);
                }
            }
        }
    }

    /// The followers that name a channel, and those that may follow it too.
    fn of(&self, channel: Option<&str>) -> (Option<List>, List) {
        (channel.and_then(|name| self.by_channel.get(name)).cloned(), self.others.clone())
    }

    /// All of them. A follower that names several channels is in several lists.
    fn lists(&self) -> Vec<List> {
        self.by_channel.values().chain([&self.others]).cloned().collect()
    }
}

impl Follower {
    /// The channels it names, if it names all of them.
    fn names(&self) -> Option<impl Iterator<Item = &str>> {
        let channels = &self.filter.channels;
        let exact = !channels.is_empty() && !channels.iter().any(|name| Glob::is_glob(name));
        // A name that is given twice counts once.
        let first = |at: usize| !channels[..at].contains(&channels[at]);
        exact.then(|| (0..channels.len()).filter(move |at| first(*at)).map(|at| &*channels[at]))
    }

    /// Events of its channels happened, in this order.
    fn feed(&self, run: &[Arc<SharedEvent>]) {
        let mut wake = false;
        for shared in run.iter().filter(|shared| shared.number >= self.from) {
            let meant = self.filter.matches_within(&shared.event);
            let mut queue = self.queue.lock();
            wake |= match (passes(&shared.event), meant) {
                (true, true) => queue.passing(shared, self.bytes_max),
                (true, false) => false,
                (false, meant) => queue.stored(shared, meant, self.bytes_max),
            };
        }
        if wake {
            self.wake.notify_one();
        }
    }

    /// Events that no log keeps were dropped because nobody had time for them; `last`: the number of the last one.
    fn dropped(&self, count: u64, last: u64) {
        if last >= self.from {
            self.queue.lock().dropped += count;
            self.wake.notify_one();
        }
    }

    /// Makes it continue by reading the log.
    fn send_back(&self) {
        let mut queue = self.queue.lock();
        if queue.fed {
            queue.stop_feeding();
            drop(queue);
            self.wake.notify_one();
        }
    }
}

impl FollowerQueue {
    /// Returns whether its owner must be woken.
    fn stored(&mut self, shared: &Arc<SharedEvent>, meant: bool, bytes_max: usize) -> bool {
        if !self.fed {
            return false;
        }
        let item = if meant { Item::Stored(shared.clone()) } else { Item::Counted(shared.event.seq) };
        if !self.has_room(&item, bytes_max) {
            self.stop_feeding();
            return true;
        }
        self.push(item);
        meant || self.items.len().is_multiple_of(COUNTED_WAKE)
    }

    fn passing(&mut self, shared: &Arc<SharedEvent>, bytes_max: usize) -> bool {
        let item = Item::Passing(shared.clone());
        if self.has_room(&item, bytes_max) {
            self.push(item);
        } else {
            self.dropped += 1;
        }
        true
    }

    fn has_room(&self, item: &Item, bytes_max: usize) -> bool {
        self.bytes == 0 || self.bytes + item.cost_bytes() <= bytes_max
    }

    fn push(&mut self, item: Item) {
        self.bytes += item.cost_bytes();
        self.items.push_back(item);
    }

    /// Committed events will be read from the log; the rest stays.
    fn stop_feeding(&mut self) {
        self.fed = false;
        self.items.retain(|item| matches!(item, Item::Passing(_)));
        self.items.shrink_to_fit();
        self.bytes = self.items.iter().map(Item::cost_bytes).sum();
    }
}

impl Item {
    fn cost_bytes(&self) -> usize {
        match self {
            Item::Stored(shared) | Item::Passing(shared) => shared.event.cost_bytes(),
            Item::Counted(_) => COUNTED_BYTES,
        }
    }
}

impl SharedEvent {
    fn new(number: u64, event: &Arc<Event>) -> Arc<Self> {
        Arc::new(Self { event: event.clone(), number, line: OnceLock::new() })
    }

    /// The event as REST shows it, on one line. Written at the first call.
    pub fn line(&self) -> &str {
        self.line.get_or_init(|| one_line(&self.event.to_json()).into())
    }
}

/// Whether no log keeps an event.
fn passes(event: &Event) -> bool {
    event.seq == 0
}

impl Following {
    /// Feeds committed events from now on. Earlier ones are in the log by now; some of them may be fed as well.
    pub fn feed_me(&self) {
        self.follower.queue.lock().fed = true;
    }

    /// Feeds committed events no more, and forgets those that wait: they will be read from the log.
    pub fn read_on(&self) {
        self.follower.queue.lock().stop_feeding();
    }

    /// What came since the last call, without waiting.
    pub fn take(&self) -> Fed {
        let mut queue = self.follower.queue.lock();
        queue.bytes = 0;
        Fed { items: std::mem::take(&mut queue.items), keeps_up: queue.fed, dropped: std::mem::take(&mut queue.dropped) }
    }

    /// Resolves when there may be something to take.
    pub async fn woken(&self) {
        self.follower.wake.notified().await;
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.feed.open.fetch_sub(1, Ordering::SeqCst);
        self.feed.followers.lock().remove(&self.follower);
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
