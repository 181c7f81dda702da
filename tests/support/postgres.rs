//! A PostgreSQL of a test's own, which it can stop and start, and short questions to any.

use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

/// Runs statements. A thread of its own waits for them, so that it can be called while something is dropped.
pub fn execute(url: &str, statements: &str) {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut db = PgConnection::connect(url).await.unwrap();
            db.execute(sqlx::AssertSqlSafe(statements.to_owned())).await.unwrap();
        });
    };
    std::thread::scope(|threads| threads.spawn(run).join()).unwrap();
}

/// A cluster in a folder of its own, on a port of its own, loopback only.
pub struct Postgres {
    folder: TempDir,
    port: u16,
    /// Who runs it: PostgreSQL refuses to be root's.
    user: Option<(u32, u32)>,
}

impl Postgres {
    /// Makes one and starts it.
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let user = root.then(|| ids("postgres").or_else(|| ids("nobody")).expect("a user who is not root"));
        if let Some((uid, gid)) = user {
            chown(folder.path(), Some(uid), Some(gid)).unwrap();
        }
        // Free now, and nobody else is given it soon.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let postgres = Self { folder, port, user };
        let data = postgres.data();
        postgres.run("initdb", &["-D", &data, "-U", "tramline", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]);
        postgres.resume();
        postgres
    }

    /// The address of its database.
    pub fn url(&self) -> String {
        format!("postgres://tramline@127.0.0.1:{}/postgres", self.port)
    }

    /// Ends it without warning: connections break, nothing is tidied up.
    pub fn stop(&self) {
        self.run("pg_ctl", &["stop", "-D", &self.data(), "-m", "immediate", "-w", "-s"]);
    }

    /// Starts it again with the same data, and waits until it answers.
    pub fn resume(&self) {
        let options = format!("-p {} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''", self.port);
        self.run("pg_ctl", &["start", "-D", &self.data(), "-w", "-s", "-l", &format!("{}/log", self.data()), "-o", &options]);
    }

    fn data(&self) -> String {
        self.folder.path().join("data").to_str().unwrap().to_owned()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(binaries().join(program));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        assert!(command.status().unwrap().success(), "{program} {arguments:?}");
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if Path::new(&self.data()).join("postmaster.pid").exists() {
            self.stop();
        }
    }
}

/// Where Debian puts what `PATH` does not find; the newest version there is.
fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let newest = versions.filter(|bin| bin.join("initdb").exists()).max();
    newest
        .or_else(|| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).find(|bin| bin.join("initdb").exists())
        })
        .expect("PostgreSQL is installed")
}

/// User and group of a name.
fn ids(name: &str) -> Option<(u32, u32)> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let mut fields = users.lines().map(|line| line.split(':')).find(|line| line.clone().next() == Some(name))?.skip(2);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
