//! Tasks that must not end: each has a name, and the engine learns of one that ends.

use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many reports of ends can wait to be read. Only the first matters.
const ENDS_MAX: usize = 16;

/// Starts tasks that must not end.
#[derive(Clone)]
pub struct Core {
    ended: Sender<Arc<str>>,
    tasks: TaskTracker,
    /// Once this fires they may end.
    stopping: CancellationToken,
    abort: CancellationToken,
    #[cfg(debug_assertions)]
    broken: tokio::sync::watch::Sender<Option<Arc<str>>>,
}

/// Reports which task has ended although it must not.
pub struct Ends(Receiver<Arc<str>>);

impl Core {
    /// Nothing runs yet. Once `stopping` fires, ends are no longer reported.
    pub fn new(stopping: CancellationToken) -> (Self, Ends) {
        let (ended, ends) = channel(ENDS_MAX);
        let core = Self {
            ended,
            tasks: TaskTracker::new(),
            stopping,
            abort: CancellationToken::new(),
            #[cfg(debug_assertions)]
            broken: tokio::sync::watch::channel(None).0,
        };
        (core, Ends(ends))
    }

    /// Starts a task. If it ends, even by a panic, the end is reported under this name.
    pub fn spawn(&self, name: impl Into<Arc<str>>, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
        self.spawn_until(name, self.stopping.clone(), task)
    }

    /// Starts a task that may end once `stop` fires or everything stops.
    pub fn spawn_until(
        &self,
        name: impl Into<Arc<str>>,
        stop: CancellationToken,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> tokio::task::JoinHandle<()> {
        let told = Told { name: name.into(), ended: self.ended.clone(), stopping: [self.stopping.clone(), stop] };
        #[cfg(debug_assertions)]
        let task = breakable(told.name.clone(), self.broken.subscribe(), task);
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            let _told = told;
            tokio::select! {
                () = task => {}
                () = abort.cancelled() => {}
            }
        })
    }

    /// Aborts all that are left.
    pub fn abort(&self) {
        self.abort.cancel();
    }

    /// Makes a task panic, to test what happens to everything else. Only in debug builds.
    #[cfg(debug_assertions)]
    pub fn break_down(&self, name: &str) {
        self.broken.send_replace(Some(name.into()));
    }
}

impl Ends {
    /// The name of the next task that ends; never resolves if all is well.
    pub async fn next(&mut self) -> Arc<str> {
        match self.0.recv().await {
            Some(name) => name,
            None => std::future::pending().await,
        }
    }
}

struct Told {
    name: Arc<str>,
    ended: Sender<Arc<str>>,
    stopping: [CancellationToken; 2],
}

impl Drop for Told {
    fn drop(&mut self) {
        if !self.stopping.iter().any(CancellationToken::is_cancelled) {
            // If it is full, other tasks have ended before, and only the first matters.
            self.ended.try_send(self.name.clone()).ok();
        }
    }
}

#[cfg(debug_assertions)]
async fn breakable(name: Arc<str>, mut broken: tokio::sync::watch::Receiver<Option<Arc<str>>>, task: impl Future<Output = ()>) {
    let told = async {
        if broken.wait_for(|broken| broken.as_deref() == Some(&*name)).await.is_err() {
            // Every sender is gone, so nothing more can end.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        () = told => panic!("{name} was told to break down"),
        () = task => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_told_by_name_however_it_comes() {
        let stopping = CancellationToken::new();
        let (core, mut ends) = Core::new(stopping.clone());
        core.spawn("returns", async {});
        assert_eq!(&*ends.next().await, "returns");
        core.spawn("panics", std::future::pending());
        core.break_down("panics");
        assert_eq!(&*ends.next().await, "panics");
        core.spawn("is aborted", std::future::pending()).abort();
        assert_eq!(&*ends.next().await, "is aborted");
        stopping.cancel();
        core.spawn("may end", async {}).await.unwrap();
        assert!(ends.0.try_recv().is_err());
    }
}
