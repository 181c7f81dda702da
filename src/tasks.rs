//! Tasks and threads that must not end: each has a name, and the engine learns of one that ends.

use std::sync::Arc;

use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Scripts run on threads, and their nesting needs more than the usual 2 MiB.
pub const STACK_BYTES: usize = 16 << 20;

/// How much nicer a thread is that takes much of a CPU: it gets a third of what another gets that wants it, too (`sched(7)`).
#[cfg(target_os = "linux")]
const STEP_BACK: i32 = 5;

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

    /// Starts a thread for work that takes much of a CPU. Threads that read and write sockets go first. If it ends, even by a panic,
    /// the end is reported under this name. `stop` must make the work end.
    pub fn spawn_thread(
        &self,
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
        stop: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<()> {
        let (running, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(move || {
            let _running = running;
            step_back();
            work();
        })?;
        let stop = OnDrop(Some(stop));
        self.spawn(name, async move {
            let _stop = stop;
            ended.await.ok();
        });
        Ok(())
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

/// Gives this thread a lower priority than the others. Where that is not possible it has the same.
fn step_back() {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{getpriority_process, setpriority_process};
        let this = Some(rustix::thread::gettid());
        getpriority_process(this).and_then(|nice| setpriority_process(this, nice + STEP_BACK)).ok();
    }
}

/// Calls a function when it is dropped.
struct OnDrop<F: FnOnce()>(Option<F>);

impl<F: FnOnce()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        if let Some(call) = self.0.take() {
            call();
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
