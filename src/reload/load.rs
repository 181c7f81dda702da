//! Reads a whole configuration. If it changed while it was read, it is read again. If something is wrong with it, it is read
//! again a little later, because an editor or a copy may be halfway through. What is built from it is the caller's business.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::config::diagnostic::{self, Diagnostic};
use crate::config::{Inputs, Loaded};
use crate::tasks::STACK_BYTES;
use crate::telemetry::memory;

/// How often files that change while they are read are read.
const READS_MAX: usize = 5;
/// The pause before they are read again.
const READ_AGAIN: Duration = Duration::from_millis(50);
/// A configuration with faults is read again after this, if its files have changed by then.
pub(super) const FAULT_PAUSE: Duration = Duration::from_millis(300);
/// Reading and checking must be done after this, or the next reload would wait for a disk or a pipe that may never answer.
pub const LOAD_WITHIN: Duration = Duration::from_secs(30);

/// A configuration without faults.
#[derive(Debug)]
pub struct Fresh<T> {
    /// What was built from it.
    pub built: T,
    /// The files it was read from.
    pub inputs: Inputs,
}

/// Why there is no usable configuration.
#[derive(Debug)]
pub enum Unusable {
    /// It has faults.
    Invalid {
        /// All of them, one after the other, as people read them.
        diagnostics: String,
        /// How many different faults.
        count: usize,
        /// The files it was read from, and those that should have been there.
        inputs: Inputs,
    },
    /// It changed every time it was read.
    Unstable {
        /// A file that changed.
        file: String,
        /// The files it was read from.
        inputs: Inputs,
    },
    /// It could not be read and checked in time.
    TooSlow,
    /// Loading it ended in a panic; the log has the details.
    Panicked,
}

impl Unusable {
    /// The files to watch for the next try.
    pub fn inputs(&self) -> Option<&Inputs> {
        match self {
            Self::Invalid { inputs, .. } | Self::Unstable { inputs, .. } => Some(inputs),
            Self::TooSlow | Self::Panicked => None,
        }
    }
}

/// Reads a configuration with `read` and builds with `build`, both on a thread that may block and has a stack large enough for
/// scripts.
pub async fn load<T: Send + 'static>(
    read: impl Fn() -> Loaded + Send + Sync + 'static,
    build: impl Fn(Loaded) -> Result<T, Vec<Diagnostic>> + Send + Sync + 'static,
) -> Result<Fresh<T>, Unusable> {
    let attempt = Arc::new(move || attempt(&read, &build));
    let refused = match stable(&attempt).await {
        Err(refused @ Unusable::Invalid { .. }) => refused,
        other => return other,
    };
    sleep(FAULT_PAUSE).await;
    let Unusable::Invalid { diagnostics, count, inputs } = refused else { return Err(refused) };
    let (same, inputs) = on_a_thread(move || (inputs.changed().is_none(), inputs)).await?;
    if same { Err(Unusable::Invalid { diagnostics, count, inputs }) } else { stable(&attempt).await }
}

/// Tries until the files no longer change.
async fn stable<T: Send + 'static>(
    attempt: &Arc<impl Fn() -> Result<Fresh<T>, Unusable> + Send + Sync + 'static>,
) -> Result<Fresh<T>, Unusable> {
    let mut reads = 1;
    loop {
        let attempt = attempt.clone();
        match on_a_thread(move || attempt()).await? {
            Err(Unusable::Unstable { .. }) if reads < READS_MAX => reads += 1,
            other => return other,
        }
        sleep(READ_AGAIN).await;
    }
}

fn attempt<T>(read: &impl Fn() -> Loaded, build: &impl Fn(Loaded) -> Result<T, Vec<Diagnostic>>) -> Result<Fresh<T>, Unusable> {
    let loaded = read();
    let (inputs, files) = (loaded.inputs.clone(), loaded.files.clone());
    if let Some(file) = inputs.changed() {
        let file = file.display().to_string();
        return Err(Unusable::Unstable { file, inputs });
    }
    match build(loaded) {
        Ok(built) => Ok(Fresh { built, inputs }),
        Err(found) => {
            let (diagnostics, count) = (diagnostic::render(&found, &files), diagnostic::distinct(&found));
            Err(Unusable::Invalid { diagnostics, count, inputs })
        }
    }
}

/// Runs work that may block and needs a large stack. A thread that does not end in time is abandoned.
pub(super) async fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unusable> {
    let (done, result) = sync_channel(1);
    // If nobody waits any more, nobody needs the result.
    let run = move || {
        drop(done.send(work()));
        memory::thread_ends();
    };
    Builder::new().name("load".into()).stack_size(STACK_BYTES).spawn(run).map_err(|_| Unusable::Panicked)?;
    match spawn_blocking(move || result.recv_timeout(LOAD_WITHIN)).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(RecvTimeoutError::Timeout)) => Err(Unusable::TooSlow),
        Ok(Err(RecvTimeoutError::Disconnected)) | Err(_) => Err(Unusable::Panicked),
    }
}

/// Reads a routes file with the environment of this process.
pub fn from_disk(path: &Path) -> impl Fn() -> Loaded + Send + Sync + 'static {
    let path = path.to_owned();
    move || crate::config::load(&path, &|name| std::env::var(name).ok())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tempfile::TempDir;

    use super::*;
    use crate::config::Outline;

    const VALID: &str = "version: 1\nchannels: { a: {} }\n";

    fn folder(text: &str) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("routes.yaml"), text).unwrap();
        folder
    }

    fn outline(loaded: Loaded) -> Result<Outline, Vec<Diagnostic>> {
        crate::reload::reloader::build(loaded, None).map(|(_, outline)| outline)
    }

    /// Loads, and calls `after` each time the files have been read.
    async fn loaded(folder: &TempDir, after: impl Fn(usize, &Path) + Send + Sync + 'static) -> (Result<Fresh<Outline>, Unusable>, usize) {
        let path = folder.path().join("routes.yaml");
        let reads = Arc::new(AtomicUsize::new(0));
        let count = reads.clone();
        let disk = from_disk(&path);
        let read = move || {
            let loaded = disk();
            after(count.fetch_add(1, Ordering::SeqCst) + 1, &path);
            loaded
        };
        let result = load(read, outline).await;
        (result, reads.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn what_is_valid_is_read_once() {
        let place = folder(VALID);
        let (result, reads) = loaded(&place, |_, _| {}).await;
        assert!(result.unwrap().inputs.changed().is_none());
        assert_eq!(reads, 1);
    }

    #[tokio::test]
    async fn what_changes_while_it_is_read_is_read_again() {
        let text = |n: usize| format!("version: 1\nchannels: {{ c{n}: {{}} }}\n");
        let change = move |n: usize, path: &Path| {
            if n < 3 {
                fs::write(path, text(n)).unwrap();
            }
        };
        let (result, reads) = loaded(&folder(VALID), change).await;
        assert_eq!(reads, 3);
        let (last, _) = loaded(&folder(&text(2)), |_, _| {}).await;
        assert_eq!(result.unwrap().built, last.unwrap().built);
    }

    #[tokio::test]
    async fn what_never_holds_still_is_given_up() {
        let change = |n: usize, path: &Path| fs::write(path, format!("version: 1\n# {n}\n")).unwrap();
        let (result, reads) = loaded(&folder(VALID), change).await;
        assert_eq!(reads, READS_MAX);
        let Unusable::Unstable { file, inputs } = result.unwrap_err() else { panic!("it held still") };
        assert!(file.ends_with("routes.yaml") && inputs.changed().is_some(), "{file}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fault_that_is_gone_was_never_one() {
        // The plugin is complete only after the file has been read.
        let place = folder(&format!(
            "{VALID}protocols: {{ p: {{ listen: localhost:1/, codec: json, type: /type, validate: v, messages: {{ m: {{ reply: 1 }} }} }} }}\n"
        ));
        fs::create_dir(place.path().join("plugins")).unwrap();
        fs::write(place.path().join("plugins/p.rhai"), "fn v(msg) { tr").unwrap();
        let (refused, reads) = loaded(&place, |_, _| {}).await;
        let Unusable::Invalid { diagnostics, count, .. } = refused.unwrap_err() else { panic!("it is valid") };
        assert!(diagnostics.contains("plugins/p.rhai:1:") && count == 1, "{diagnostics}");
        assert_eq!(reads, 1, "what did not change is not read again");
        // Mended by its author, once the first reading is over.
        let (begun, path) = (tokio::time::Instant::now(), place.path().to_owned());
        let build = move |loaded| outline(loaded).inspect_err(|_| fs::write(path.join("plugins/p.rhai"), "fn v(msg) { true }").unwrap());
        let result = load(from_disk(&place.path().join("routes.yaml")), build).await;
        assert!(result.is_ok(), "{result:?}");
        assert!(begun.elapsed() >= FAULT_PAUSE);
    }

    #[tokio::test]
    async fn a_panic_while_building_is_an_answer() {
        let place = folder(VALID);
        let result = load(from_disk(&place.path().join("routes.yaml")), |_| -> Result<(), _> { panic!("a bug") }).await;
        assert!(matches!(result, Err(Unusable::Panicked)));
    }
}
