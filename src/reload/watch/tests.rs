//! Every way in which files change, in a real folder; and which changes count as one.

use std::fs;
use std::os::unix::fs::symlink;

use notify::event::{Flag, ModifyKind};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::*;
use crate::config::load;

/// The time allowed for anything that must happen.
const SOON: Duration = Duration::from_secs(20);

const TEXT: &str = "version: 1\nchannels: { a: {} }\n";

/// A folder with a configuration that is watched.
struct Rig {
    folder: TempDir,
    path: PathBuf,
    watcher: Watcher,
}

impl Rig {
    /// Files as they are when watching begins. The routes file is `conf/routes.yaml`.
    async fn new(prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let path = folder.path().join("conf/routes.yaml");
        let mut rig = Self { folder, path, watcher: Watcher::default() };
        rig.follow().await;
        rig
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Loads and watches. Signals of earlier events are removed, so that only new ones are seen.
    async fn follow(&mut self) {
        self.watcher.follow(load(&self.path, &|_| None).inputs).await.unwrap();
        assert!(!self.watcher.stirred, "nothing changes meanwhile");
        settle(&mut self.watcher.signals).await;
    }

    /// Makes a change that must be seen, then watches again.
    async fn seen(&mut self, what: &str, act: impl FnOnce(&Path)) {
        act(self.folder.path());
        timeout(SOON, self.watcher.changed()).await.unwrap_or_else(|_| panic!("{what}: not seen"));
        self.follow().await;
    }
}

fn plain(folder: &Path) {
    fs::create_dir(folder.join("conf")).unwrap();
    fs::write(folder.join("conf/routes.yaml"), TEXT).unwrap();
}

fn text(n: usize) -> String {
    format!("{TEXT}# {n}\n")
}

fn rename_over(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[tokio::test]
async fn a_file_that_is_written_in_place_or_renamed_over() {
    let mut rig = Rig::new(plain).await;
    let path = rig.path.clone();
    rig.seen("written half", |_| fs::write(&path, "version: 1\nchan").unwrap()).await;
    rig.seen("written whole", |_| fs::write(&path, text(1)).unwrap()).await;
    for n in 2..4 {
        rig.seen("renamed over", |_| rename_over(&path, &text(n))).await;
    }
    rig.seen("removed", |_| fs::remove_file(&path).unwrap()).await;
    rig.seen("back", |_| fs::write(&path, text(4)).unwrap()).await;
}

#[tokio::test]
async fn a_link_in_the_middle_that_is_swapped() {
    // As Kubernetes mounts a ConfigMap.
    let generation = |folder: &Path, n: usize| {
        let real = folder.join(format!("conf/..{n}"));
        fs::create_dir_all(real.join("plugins")).unwrap();
        fs::write(real.join("routes.yaml"), text(n)).unwrap();
        symlink(format!("..{n}"), folder.join("conf/..data_tmp")).unwrap();
        fs::rename(folder.join("conf/..data_tmp"), folder.join("conf/..data")).unwrap();
    };
    let mut rig = Rig::new(|folder| {
        fs::create_dir(folder.join("conf")).unwrap();
        generation(folder, 1);
        symlink("..data/routes.yaml", folder.join("conf/routes.yaml")).unwrap();
        symlink("..data/plugins", folder.join("conf/plugins")).unwrap();
    })
    .await;
    for n in 2..5 {
        rig.seen("swapped", |folder| {
            generation(folder, n);
            fs::remove_dir_all(folder.join(format!("conf/..{}", n - 1))).unwrap();
        })
        .await;
    }
    rig.seen("written where the links lead", |folder| fs::write(folder.join("conf/..4/routes.yaml"), text(9)).unwrap()).await;
    rig.seen("a plugin where the links lead", |folder| fs::write(folder.join("conf/..4/plugins/a.rhai"), "").unwrap()).await;
}

#[tokio::test]
async fn links_to_files_and_folders_elsewhere() {
    let mut rig = Rig::new(|folder| {
        fs::create_dir_all(folder.join("real/deep")).unwrap();
        fs::write(folder.join("real/deep/r.yaml"), TEXT).unwrap();
        symlink("real", folder.join("conf")).unwrap();
        symlink(folder.join("conf/../real/deep/r.yaml"), folder.join("real/routes.yaml")).unwrap();
    })
    .await;
    rig.seen("the file itself", |folder| fs::write(folder.join("real/deep/r.yaml"), text(1)).unwrap()).await;
    rig.seen("the folder's link", |folder| {
        fs::create_dir(folder.join("other")).unwrap();
        fs::write(folder.join("other/routes.yaml"), text(2)).unwrap();
        fs::remove_file(folder.join("conf")).unwrap();
        symlink("other", folder.join("conf")).unwrap();
    })
    .await;
    rig.seen("where it leads now", |folder| fs::write(folder.join("other/routes.yaml"), text(3)).unwrap()).await;
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_back() {
    let mut rig = Rig::new(plain).await;
    rig.seen("gone", |folder| fs::remove_dir_all(folder.join("conf")).unwrap()).await;
    rig.seen("back", |folder| {
        plain(folder);
        fs::write(folder.join("conf/routes.yaml"), text(1)).unwrap();
    })
    .await;
    rig.seen("moved away, another in its place", |folder| {
        fs::rename(folder.join("conf"), folder.join("old")).unwrap();
        plain(folder);
    })
    .await;
    let path = rig.path.clone();
    // The content is the same, so nothing has changed, but the watched folder is gone.
    fs::remove_dir_all(rig.at("conf")).unwrap();
    plain(rig.folder.path());
    let silent = timeout(UNREST_MAX * 2, rig.watcher.changed()).await;
    assert!(silent.is_err(), "nothing is different");
    rig.seen("written", |_| fs::write(&path, text(2)).unwrap()).await;
}

#[tokio::test]
async fn files_that_are_added_later() {
    let mut rig = Rig::new(|folder| {
        plain(folder);
        fs::write(folder.join("conf/routes.yaml"), "version: 1\ninclude: parts/more.yaml\n").unwrap();
    })
    .await;
    rig.seen("an included file", |folder| {
        fs::create_dir(folder.join("conf/parts")).unwrap();
        fs::write(folder.join("conf/parts/more.yaml"), "channels: { b: {} }\n").unwrap();
    })
    .await;
    rig.seen("its change", |folder| fs::write(folder.join("conf/parts/more.yaml"), "channels: { c: {} }\n").unwrap()).await;
    rig.seen("the folder of plugins", |folder| fs::create_dir(folder.join("conf/plugins")).unwrap()).await;
    rig.seen("a plugin", |folder| fs::write(folder.join("conf/plugins/a.rhai"), "fn a() {}").unwrap()).await;
    rig.seen("another text", |folder| rename_over(&folder.join("conf/plugins/a.rhai"), "fn b() {}")).await;
    rig.seen("a plugin that goes", |folder| fs::remove_file(folder.join("conf/plugins/a.rhai")).unwrap()).await;
}

#[tokio::test]
async fn what_changes_between_reading_and_watching_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    plain(folder.path());
    let path = folder.path().join("conf/routes.yaml");
    let inputs = load(&path, &|_| None).inputs;
    fs::write(&path, text(1)).unwrap();
    let mut watcher = Watcher::default();
    watcher.follow(inputs).await.unwrap();
    timeout(SOON, watcher.changed()).await.expect("it is seen");
}

#[tokio::test]
async fn waiting_can_be_given_up_and_begun_again() {
    let mut rig = Rig::new(plain).await;
    fs::write(&rig.path, text(1)).unwrap();
    let begun = Instant::now();
    while timeout(QUIET / 20, rig.watcher.changed()).await.is_err() && !rig.watcher.stirred {
        assert!(begun.elapsed() < SOON);
    }
    timeout(SOON, rig.watcher.changed()).await.expect("it is still known");
}

#[tokio::test]
async fn what_is_read_or_is_nobodys_business_wakes_nobody() {
    let rig = Rig::new(plain).await;
    let trail = Trail::of(&load(&rig.path, &|_| None).inputs);
    let (conf, names) = (rig.at("conf").canonicalize().unwrap(), &trail.names);
    let plugins = conf.join("plugins");
    assert_eq!(trail.plugins.as_deref(), Some(&*plugins));
    let event = |kind, name: &str| Event::new(kind).add_path(conf.join(name));
    let concerns = |event: &Event| super::concerns(event, names, Some(&plugins));
    let changed = EventKind::Modify(ModifyKind::Any);
    let opened = EventKind::Access(AccessKind::Open(AccessMode::Any));
    let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
    for (told, kind, name) in [
        (true, changed, "routes.yaml"),
        (true, written, "routes.yaml"),
        (false, opened, "routes.yaml"),
        (false, changed, "t.db-wal"),
        (true, changed, "plugins"),
        (true, changed, "plugins/a.rhai"),
        (false, opened, "plugins/a.rhai"),
        (false, changed, "plugins/a.rhai~"),
        (false, changed, "other/a.rhai"),
    ] {
        assert_eq!(concerns(&event(kind, name)), told, "{name} {kind:?}");
    }
    assert!(concerns(&Event::new(EventKind::Other).set_flag(Flag::Rescan)), "the system's queue was full");
}

#[tokio::test(start_paused = true)]
async fn changes_that_follow_closely_are_one_but_not_without_end() {
    let (signal, mut signals) = channel(1);
    let begun = Instant::now();
    settle(&mut signals).await;
    assert_eq!(begun.elapsed(), QUIET);
    // A few signals, then none.
    let few = tokio::spawn({
        let signal = signal.clone();
        async move {
            for _ in 0..3 {
                sleep(QUIET - Duration::from_millis(10)).await;
                signal.send(()).await.unwrap();
            }
        }
    });
    let begun = Instant::now();
    settle(&mut signals).await;
    assert_eq!(begun.elapsed(), (QUIET - Duration::from_millis(10)) * 3 + QUIET);
    few.await.unwrap();
    // Signals without a pause, faster than anybody looks.
    let many = tokio::spawn(async move { while signal.send(()).await.is_ok() {} });
    let begun = Instant::now();
    let until = begun + UNREST_MAX;
    tokio::spawn(async move { tokio::time::advance(until - begun).await });
    settle(&mut signals).await;
    assert_eq!(begun.elapsed(), UNREST_MAX);
    many.abort();
}
