//! Which connections have something to write, and the tasks that write it: one for each of the runtime's threads, each with a
//! list that its thread adds to. What a round of ready tasks publishes is written after them, with one call for each connection.
//!
//! Writing only moves what waits in an outbox to its socket: anyone may do it, at any time, even twice.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::yield_now;

use super::Connection;
use super::members::{self, PIECE, Piece};

/// The lists of all threads.
#[derive(Debug)]
pub struct Flush {
    lists: Box<[List]>,
}

#[derive(Debug, Default)]
struct List {
    // Protects who must be written to. Held for a push, or while it is taken.
    dirty: Mutex<Vec<Dirty>>,
    added: Notify,
}

#[derive(Debug)]
enum Dirty {
    One(Arc<Connection>),
    Members(Piece),
}

thread_local! {
    /// The list this thread adds to.
    static LIST: Cell<usize> = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Cell::new(NEXT.fetch_add(1, Relaxed))
    };
}

impl Flush {
    /// Lists for this many threads.
    pub fn new(threads: usize) -> Self {
        Self { lists: (0..threads.max(1)).map(|_| List::default()).collect() }
    }

    /// How many tasks there must be.
    pub fn tasks(&self) -> usize {
        self.lists.len()
    }

    /// A connection has something to write.
    pub fn one(&self, connection: &Arc<Connection>) {
        if connection.outbox.list() {
            self.add(0, Dirty::One(connection.clone()));
        }
    }

    /// Members have something to write. `nth`: the index of the piece in its channel; the pieces of a large channel are shared
    /// among the tasks.
    pub(super) fn members(&self, nth: usize, piece: &Piece) {
        self.add(nth, Dirty::Members(piece.clone()));
    }

    fn add(&self, nth: usize, dirty: Dirty) {
        let list = &self.lists[LIST.get().wrapping_add(nth) % self.lists.len()];
        let mut all = list.dirty.lock();
        all.push(dirty);
        let first = all.len() == 1;
        drop(all);
        if first {
            list.added.notify_one();
        }
    }

    /// Writes what all lists hold, as long as it is polled.
    #[cfg(test)]
    pub(crate) async fn run_all(&self) {
        futures_util::future::join_all((0..self.tasks()).map(|nth| self.run(nth))).await;
    }

    /// Writes what one list holds, as long as it is polled.
    pub async fn run(&self, nth: usize) {
        let Some(list) = self.lists.get(nth) else { return };
        let mut taken = Vec::new();
        loop {
            list.added.notified().await;
            // Other ready tasks come first: what they publish goes out with the same writes.
            yield_now().await;
            std::mem::swap(&mut taken, &mut *list.dirty.lock());
            let mut written = 0;
            for dirty in taken.drain(..) {
                match dirty {
                    Dirty::One(connection) => {
                        connection.outbox.flush();
                        written += 1;
                    }
                    Dirty::Members(piece) => {
                        members::ahead(&piece).for_each(|member| member.connection.outbox.flush());
                        written += piece.len();
                    }
                }
                if written >= PIECE {
                    written = 0;
                    yield_now().await;
                }
            }
        }
    }
}
