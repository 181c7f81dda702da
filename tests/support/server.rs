//! A server in a folder of its own, on ports the system chooses: the real binary, or the engine in the test's own process.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::Connection;
use tempfile::TempDir;

use super::backend::Database;
use super::embedded::Embedded;
use super::{Answer, Backend, Client, SOON, request};

/// What comes before a test's own channels, protocols and sources.
const HEAD: &str = "version: 1\napi: { listen: \"localhost:0\", token: \"${API_TOKEN:-}\", origins: \"${API_ORIGINS:-}\" }\n";

/// Where a test's server keeps its log, unless the test says otherwise.
const STORE: &str = "\"${DATABASE_URL:-sqlite://t.db}\"";

/// Addresses that the shipped file serves apart; workspace and agent share one, as they do by default.
const SHIPPED: [(&str, &str); 9] = [
    ("API_PORT", "0"),
    ("WORKSPACE_HOST", "127.0.0.1"),
    ("WORKSPACE_PORT", "0"),
    ("AGENT_HOST", "127.0.0.1"),
    ("AGENT_PORT", "0"),
    ("CANVAS_HOST", "127.0.0.2"),
    ("CANVAS_PORT", "0"),
    ("DATABASE_URL", "sqlite://t.db"),
    ("RUST_LOG", "info,tramline=debug"),
];

/// A folder with a configuration, not yet running. Starting it again goes on with the same database.
#[derive(Clone)]
pub struct Setup {
    folder: Arc<TempDir>,
    env: Vec<(String, String)>,
    /// What starts it, where that is not the test itself.
    within: Vec<String>,
    database: Option<Arc<Database>>,
}

impl Setup {
    /// The routes file and plugins of this repository.
    pub fn shipped() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut setup = Self::empty();
        for (name, value) in SHIPPED {
            setup = setup.env(name, value);
        }
        setup = setup.file("routes.yaml", &std::fs::read_to_string(root.join("routes.yaml")).unwrap());
        for plugin in std::fs::read_dir(root.join("plugins")).unwrap() {
            let path = plugin.unwrap().path();
            let name = format!("plugins/{}", path.file_name().unwrap().to_str().unwrap());
            setup = setup.file(&name, &std::fs::read_to_string(path).unwrap());
        }
        setup
    }

    /// A test's own channels, protocols and sources.
    pub fn own(yaml: &str) -> Self {
        Self::stored(STORE, yaml)
    }

    /// The same with a `store:` of its own, as it stands in the file.
    pub fn stored(store: &str, yaml: &str) -> Self {
        Self::empty().file("routes.yaml", &format!("{HEAD}store: {store}\n{yaml}"))
    }

    fn empty() -> Self {
        Self { folder: Arc::new(TempDir::new().unwrap()), env: Vec::new(), within: Vec::new(), database: None }
    }

    /// The database its log is in, where the routes file asks for `DATABASE_URL`.
    pub fn backend(mut self, backend: Backend) -> Self {
        match backend {
            Backend::Sqlite => self,
            Backend::Postgres => {
                let database = Database::create();
                let url = database.url();
                self.database = Some(database);
                self.env("DATABASE_URL", &url)
            }
        }
    }

    /// One more file.
    pub fn file(self, name: &str, text: &str) -> Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// One more plugin.
    pub fn plugin(self, name: &str, text: &str) -> Self {
        self.file(&format!("plugins/{name}.rhai"), text)
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// A command that prepares something and then becomes the server, which stands behind it.
    pub fn within(mut self, command: &[&str]) -> Self {
        self.within = command.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The address of its PostgreSQL database.
    pub fn database_url(&self) -> String {
        self.database.as_ref().expect("a database of its own").url()
    }

    /// A path in its folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the binary and waits until it is ready.
    pub fn start(self) -> Server {
        let mut process = self.spawn();
        let mut urls = HashMap::<String, Vec<String>>::new();
        loop {
            let line = process.log.next().unwrap_or_else(|| panic!("it does not start: {:#?}", process.said));
            match line["message"].as_str() {
                Some("serving") => {
                    let url = line["url"].as_str().unwrap();
                    urls.entry(line["name"].as_str().unwrap().into()).or_default().push(url.into());
                }
                Some("ready") => return Server { running: Running::Process(process), setup: self, urls },
                _ => process.said.push(line),
            }
        }
    }

    /// Starts the engine in this process and waits until it serves. It has no log and hears no signals, and cannot be killed.
    pub fn embed(self) -> Server {
        let (embedded, served) = Embedded::start(self.path("routes.yaml"), self.env.clone());
        let mut urls = HashMap::<String, Vec<String>>::new();
        for (name, url) in served {
            urls.entry(name.to_string()).or_default().push(url);
        }
        Server { running: Running::Embedded(embedded), setup: self, urls }
    }

    /// Starts it and waits until it has ended by itself.
    pub fn start_in_vain(self) -> Ended {
        let process = self.spawn();
        process.wait(self)
    }

    fn spawn(&self) -> Process {
        let mut words = self.within.iter().map(String::as_str).chain([env!("CARGO_BIN_EXE_tramline"), "--log", "json"]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
            .current_dir(self.folder.path())
            .env_remove("RUST_LOG")
            .env_remove("DATABASE_URL")
            .envs(self.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Log::read(child.stderr.take().unwrap());
        Process { child, log, said: Vec::new() }
    }
}

/// A server that runs. Ended when dropped.
pub struct Server {
    running: Running,
    setup: Setup,
    urls: HashMap<String, Vec<String>>,
}

enum Running {
    Process(Process),
    Embedded(Embedded),
}

/// The running binary. Killed when dropped.
struct Process {
    child: Child,
    log: Log,
    /// What it logged before it was ready.
    said: Vec<Value>,
}

impl Process {
    fn wait(mut self, setup: Setup) -> Ended {
        let mut log = std::mem::take(&mut self.said);
        log.extend(self.log.rest());
        Ended { code: self.child.wait().unwrap().code(), log, setup }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already ended: then there is nothing to kill.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// How a server ended.
pub struct Ended {
    /// The exit code.
    pub code: Option<i32>,
    /// Everything it logged that nobody waited for.
    pub log: Vec<Value>,
    /// To start it again.
    pub setup: Setup,
}

impl Server {
    /// The shipped configuration, run by the engine in this process.
    pub fn shipped() -> Self {
        Setup::shipped().embed()
    }

    fn process(&self) -> &Process {
        match &self.running {
            Running::Process(process) => process,
            Running::Embedded(_) => panic!("the engine runs in this process: start the binary instead"),
        }
    }

    /// The first address announced under a name: `ws://…` of a protocol, `http://…` of `api`.
    pub fn url(&self, name: &str) -> &str {
        let url = &self.urls.get(name).unwrap_or_else(|| panic!("nothing is served under `{name}`"))[0];
        url.rsplit_once(' ').map_or(url, |(_, url)| url)
    }

    /// The address of an HTTP path beside a protocol or source.
    pub fn http(&self, name: &str, path: &str) -> String {
        let authority = self.url(name).split('/').nth(2).unwrap();
        format!("http://{authority}{path}")
    }

    /// A client of a protocol.
    pub async fn client(&self, protocol: &str) -> Client {
        Client::connect(self.url(protocol)).await
    }

    /// Several, one after the other.
    pub async fn clients<const N: usize>(&self, protocol: &str) -> [Client; N] {
        let mut clients = Vec::new();
        for _ in 0..N {
            clients.push(self.client(protocol).await);
        }
        clients.try_into().unwrap_or_else(|_| unreachable!())
    }

    /// `GET` from the REST interface.
    pub async fn get(&self, path: &str) -> Answer {
        request("GET", &self.http("api", path), &[], None).await
    }

    /// `POST` of JSON to the REST interface.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        request("POST", &self.http("api", path), &[("content-type", "application/json")], Some(&body.to_string())).await
    }

    /// Publishes something that must be accepted; gives the answer's JSON.
    pub async fn publish(&self, body: &Value) -> Value {
        let answer = self.post("/api/publish", body).await;
        assert_eq!(answer.status, 202, "{body} {answer:?}");
        answer.json()
    }

    /// Puts an event on an HTTP source, which must accept it.
    pub async fn emit(&self, source: &str, path: &str, body: &Value) -> Value {
        let headers = [("content-type", "application/json")];
        let answer = request("POST", &self.http(source, path), &headers, Some(&body.to_string())).await;
        assert_eq!(answer.status, 202, "{body} {answer:?}");
        answer.json()
    }

    /// The next line of the log with this message.
    pub fn logged(&self, message: &str) -> Value {
        self.logged_when(|line| line["message"] == message)
    }

    /// The next line of the log for which this holds.
    pub fn logged_when(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + SOON;
        let mut lines = std::iter::from_fn(|| self.process().log.next()).take_while(|_| Instant::now() < until);
        lines.find(holds).expect("it is logged soon, and the server runs")
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.process().child.id()
    }

    /// A path in its folder as the server sees it, whatever was mounted for it alone.
    pub fn seen_from_inside(&self, name: &str) -> PathBuf {
        let path = self.setup.path(name);
        Path::new("/proc").join(self.pid().to_string()).join("root").join(path.strip_prefix("/").unwrap())
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// So much time passes for a server in this process. Its timers do not notice.
    pub fn advance(&self, by: Duration) {
        match &self.running {
            Running::Embedded(embedded) => embedded.clock().advance(by),
            Running::Process(_) => panic!("the time of another process cannot be moved"),
        }
    }

    /// Changes its SQLite database from outside, of which it is not told: as another part of it might have done a moment ago.
    pub async fn change_database(&self, sql: &str) {
        let mut db = sqlx::SqliteConnection::connect(&format!("sqlite://{}", self.setup.path("t.db").display())).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut db).await.unwrap();
        db.close().await.unwrap();
    }

    /// Its folder and environment.
    pub fn setup(&self) -> Setup {
        self.setup.clone()
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(self) -> Ended {
        match self.running {
            Running::Process(_) => {
                self.signal("TERM");
                self.wait()
            }
            Running::Embedded(embedded) => {
                let code = if embedded.stop().is_ok() { 0 } else { 1 };
                Ended { code: Some(code), log: Vec::new(), setup: self.setup }
            }
        }
    }

    /// Ends it without warning.
    pub fn kill(self) -> Ended {
        self.signal("KILL");
        self.wait()
    }

    /// Waits until it has ended.
    pub fn wait(self) -> Ended {
        match self.running {
            Running::Process(process) => process.wait(self.setup),
            Running::Embedded(_) => panic!("the engine does not end by itself: start the binary instead"),
        }
    }
}

/// The log, read all the time by a thread so that the server never waits for us.
struct Log(Mutex<Receiver<Value>>);

impl Log {
    fn read(stream: impl std::io::Read + Send + 'static) -> Self {
        let (to, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                // Nobody listens any more, but the pipe must be emptied all the same.
                drop(to.send(line));
            }
        });
        Self(Mutex::new(lines))
    }

    /// The next line, which must come or be the end.
    fn next(&self) -> Option<Value> {
        match self.0.lock().unwrap().recv_timeout(SOON) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("nothing is logged"),
        }
    }

    /// Everything up to the end, which must come.
    fn rest(&self) -> Vec<Value> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
