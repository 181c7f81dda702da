//! What happens, for those who follow the whole log rather than one channel: committed events in the order of the log, and
//! events that no log keeps as they pass. With nobody there it costs one look at a number.
//!
//! A follower's queue is bounded by bytes. Where one does not keep up its queue is dropped and it is told so: it goes on by
//! reading the log from where it is, and asks to be fed again when it is near the end. Knows no database and no HTTP.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::model::Event;
use crate::model::pattern::Glob;
use crate::store::Filter;

/// What an event that is only counted weighs.
const COUNTED_BYTES: usize = 16;
/// So many counted events wake a follower although none of them is for it.
const COUNTED_WAKE: usize = 1024;

/// Those who follow.
#[derive(Debug, Default)]
pub struct Feed {
    open: AtomicUsize,
    next: AtomicU64,
    // Protects who follows what. Read for the time of one hand-over; followers' queues are locked inside it.
    followers: RwLock<Followers>,
}

#[derive(Debug, Default)]
struct Followers {
    /// Those whose filter names channels and no globs, under each name.
    by_channel: HashMap<Box<str>, Vec<Arc<Follower>>>,
    others: Vec<Arc<Follower>>,
}

#[derive(Debug)]
struct Follower {
    key: u64,
    filter: Filter,
    bytes_max: usize,
    // Protects the queue. Held for a push, or while it is taken.
    queue: Mutex<Queue>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    /// Whether committed events are wanted: else the follower reads the log.
    fed: bool,
    /// Events that no log keeps and for which there was no room.
    dropped: u64,
}

/// Something that a follower is told.
#[derive(Clone, Debug)]
pub enum Item {
    /// A committed event that its filter means.
    Stored(Arc<Event>),
    /// A committed event of its channels that its filter does not mean; its place in the log.
    Counted(u64),
    /// An event that no log keeps.
    Passing(Arc<Event>),
}

/// What came since it was last asked.
#[derive(Debug, Default)]
pub struct Fed {
    /// In order.
    pub items: VecDeque<Item>,
    /// Whether everything committed that comes next will be fed too. If not, it must be read from the log.
    pub keeps_up: bool,
    /// Events that no log keeps and that were dropped.
    pub dropped: u64,
}

/// A follower's own end. Dropping it ends following.
#[derive(Debug)]
pub struct Following {
    feed: Arc<Feed>,
    follower: Arc<Follower>,
}

impl Feed {
    /// Follows what a filter means, with at most `bytes_max` waiting, or one event where that is larger. At first only events
    /// that no log keeps are fed, until [`Following::feed_me`].
    pub fn follow(self: &Arc<Self>, filter: Filter, bytes_max: usize) -> Following {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let follower = Arc::new(Follower { key, filter, bytes_max, queue: Mutex::default(), wake: Notify::new() });
        let mut followers = self.followers.write();
        match follower.names() {
            Some(names) => names.for_each(|name| followers.by_channel.entry(name.into()).or_default().push(follower.clone())),
            None => followers.others.push(follower.clone()),
        }
        drop(followers);
        self.open.fetch_add(1, Ordering::SeqCst);
        Following { feed: self.clone(), follower }
    }

    /// How many follow.
    pub fn len(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether nobody follows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Events are committed, in the order of the log. To be called after their commit, never beside another such call.
    pub fn committed<'e>(&self, events: impl Iterator<Item = &'e Arc<Event>>) {
        if self.open.load(Ordering::SeqCst) == 0 {
            return;
        }
        let followers = self.followers.read();
        for event in events {
            followers.each(event, |follower| follower.stored(event));
        }
    }

    /// An event that no log keeps was delivered.
    pub fn passing(&self, event: &Arc<Event>) {
        if self.open.load(Ordering::SeqCst) == 0 {
            return;
        }
        self.followers.read().each(event, |follower| follower.passing(event));
    }
}

impl Followers {
    /// Those whose channels an event is of.
    fn each(&self, event: &Event, mut tell: impl FnMut(&Follower)) {
        let channel = event.channel.as_ref().map(|channel| channel.as_str());
        channel.and_then(|name| self.by_channel.get(name)).into_iter().flatten().for_each(|follower| tell(follower));
        self.others.iter().filter(|follower| follower.filter.takes_channel(channel)).for_each(|follower| tell(follower));
    }
}

impl Follower {
    /// The channels it names, where it names all of them.
    fn names(&self) -> Option<impl Iterator<Item = &str>> {
        let channels = &self.filter.channels;
        let exact = !channels.is_empty() && !channels.iter().any(|name| Glob::is_glob(name));
        // One name given twice is one name.
        let first = |at: usize| !channels[..at].contains(&channels[at]);
        exact.then(|| (0..channels.len()).filter(move |at| first(*at)).map(|at| &*channels[at]))
    }

    fn stored(&self, event: &Arc<Event>) {
        let meant = self.filter.matches_within(event);
        let mut queue = self.queue.lock();
        if !queue.fed {
            return;
        }
        let weight = if meant { event.weight() } else { COUNTED_BYTES };
        if queue.bytes > 0 && queue.bytes + weight > self.bytes_max {
            queue.stop_feeding();
            drop(queue);
            self.wake.notify_one();
            return;
        }
        queue.bytes += weight;
        queue.items.push_back(if meant { Item::Stored(event.clone()) } else { Item::Counted(event.seq) });
        let wake = meant || queue.items.len().is_multiple_of(COUNTED_WAKE);
        drop(queue);
        if wake {
            self.wake.notify_one();
        }
    }

    fn passing(&self, event: &Arc<Event>) {
        if !self.filter.matches_within(event) {
            return;
        }
        let mut queue = self.queue.lock();
        if queue.bytes > 0 && queue.bytes + event.weight() > self.bytes_max {
            queue.dropped += 1;
        } else {
            queue.bytes += event.weight();
            queue.items.push_back(Item::Passing(event.clone()));
        }
        drop(queue);
        self.wake.notify_one();
    }
}

impl Queue {
    /// What is committed will be read from the log; the rest stays.
    fn stop_feeding(&mut self) {
        self.fed = false;
        self.items.retain(|item| matches!(item, Item::Passing(_)));
        self.items.shrink_to_fit();
        self.bytes = self.items.iter().map(Item::weight).sum();
    }
}

impl Item {
    fn weight(&self) -> usize {
        match self {
            Item::Stored(event) | Item::Passing(event) => event.weight(),
            Item::Counted(_) => COUNTED_BYTES,
        }
    }
}

impl Following {
    /// Feeds committed events from now on. What was committed before this is in the log by now; some of it may come as well.
    pub fn feed_me(&self) {
        self.follower.queue.lock().fed = true;
    }

    /// What came since, without waiting.
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
        let key = self.follower.key;
        let mut followers = self.feed.followers.write();
        let Some(names) = self.follower.names() else {
            followers.others.retain(|other| other.key != key);
            return;
        };
        for name in names {
            if let Some(all) = followers.by_channel.get_mut(name) {
                all.retain(|other| other.key != key);
                if all.is_empty() {
                    followers.by_channel.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
