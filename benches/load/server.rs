//! The servers: how each is started, where it says it listens, and that none outlives its run.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::clients::Address;
use super::dialect::Dialect;
use super::floor;
use super::machine::{Pins, run};

/// How long a server may take until it listens.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);

/// What a server says on standard error, in its folder: it is shown if the server does not start.
const ERRORS: &str = "errors";

/// The folder of the other servers and of the routes file.
const BENCHES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches");

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Floor,
    Tramline,
    Bun,
    Ws,
    #[value(name = "socket.io")]
    SocketIo,
}

impl Kind {
    /// In the order of the table's columns.
    pub const ALL: [Self; 5] = [Self::Floor, Self::Tramline, Self::Bun, Self::Ws, Self::SocketIo];

    pub fn dialect(self) -> Dialect {
        if self == Self::SocketIo { Dialect::SocketIo } else { Dialect::Json }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Floor => "floor",
            Self::Tramline => "Tramline",
            Self::Bun => "bun",
            Self::Ws => "ws",
            Self::SocketIo => "socket.io",
        })
    }
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Programs {
    pub tramline: PathBuf,
    /// A program that is the floor with `--floor`; without one the floor is a thread of this process.
    pub floor: Option<PathBuf>,
    /// Which CPU a server is kept on.
    pub pins: Option<Pins>,
}

impl Programs {
    /// The name and version of a server, nothing of the floor; or why it cannot be run.
    pub fn version(&self, kind: Kind) -> Result<Option<String>> {
        let version = match kind {
            Kind::Floor => return Ok(None),
            Kind::Tramline => run(&[&self.tramline.to_string_lossy(), "--version"]).map(|version| version.replace("tramline", "Tramline")),
            Kind::Bun => Ok(format!("bun {}", run(&[&bun().to_string_lossy(), "--version"])?)),
            Kind::Ws => package("ws"),
            Kind::SocketIo => package("socket.io"),
        };
        version.map(Some)
    }

    /// Starts a server, with a log on disk if a case is about one.
    pub fn start(&self, kind: Kind, with_log: bool) -> Result<Running> {
        let folder = tempfile::tempdir()?;
        let peer = |name: &str| format!("{BENCHES}/peers/{name}");
        let (program, arguments) = match kind {
            Kind::Floor => match &self.floor {
                Some(program) => (program.clone(), vec!["--floor".to_owned()]),
                None => return Running::thread(folder),
            },
            Kind::Tramline => (self.tramline.clone(), ["serve", "--config", &format!("{BENCHES}/routes.yaml")].map(str::to_owned).to_vec()),
            Kind::Bun => (bun(), vec![peer("bun.ts")]),
            Kind::Ws => ("node".into(), vec![peer("ws.js")]),
            Kind::SocketIo => ("node".into(), vec![peer("socketio.js")]),
        };
        let mut command = match self.pins {
            Some(pins) => {
                let mut command = Command::new("taskset");
                command.args(["--cpu-list", &pins.server.to_string()]).arg(&program);
                command
            }
            None => Command::new(&program),
        };
        command.args(arguments).env("NODE_ENV", "production").env_remove("RUST_LOG");
        if with_log {
            command.env("BENCH_STORE", format!("sqlite://{}", folder.path().join("bench.db").display()));
        }
        let errors = File::create(folder.path().join(ERRORS))?;
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
        let child = child.with_context(|| format!("{} does not start", program.display()))?;
        Running::child(child, folder)
    }
}

fn bun() -> PathBuf {
    Path::new(BENCHES).join("peers/node_modules/.bin/bun")
}

/// A package's name and version, as installed, and that of Node.js.
fn package(name: &str) -> Result<String> {
    let file = format!("{BENCHES}/peers/node_modules/{name}/package.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("no {file}; `make bench` installs it"))?;
    let package: serde_json::Value = serde_json::from_str(&text)?;
    let version = package["version"].as_str().with_context(|| format!("no version in {file}"))?;
    Ok(format!("{name} {version} on Node.js {}", run(&["node", "--version"])?.trim_start_matches('v')))
}

/// A server that listens. It ends with this value, and its log goes with it.
pub struct Running {
    pub address: Address,
    pub pid: u32,
    _process: Option<Process>,
    _folder: TempDir,
}

impl Running {
    /// The floor as a thread. It goes with this process.
    fn thread(folder: TempDir) -> Result<Self> {
        let listener = floor::listen()?;
        let address = Address::parse(&floor::url(&listener)?)?;
        std::thread::spawn(move || floor::serve(listener));
        Ok(Self { address, pid: std::process::id(), _process: None, _folder: folder })
    }

    /// Waits until a server has said where it listens.
    fn child(child: Child, folder: TempDir) -> Result<Self> {
        let mut process = Process(child);
        let (output, (says, said)) = (process.0.stdout.take(), channel());
        // Reads on to the end: a server that prints more must not wait for it.
        std::thread::spawn(move || {
            for line in output.into_iter().flat_map(|output| BufReader::new(output).lines()).map_while(Result::ok) {
                if let Some(at) = line.find("ws://") {
                    let _nobody_waits = says.send(line[at..].trim().to_owned());
                }
            }
        });
        match said.recv_timeout(LISTENS_WITHIN) {
            Ok(url) => Ok(Self { address: Address::parse(&url)?, pid: process.0.id(), _process: Some(process), _folder: folder }),
            Err(_) => {
                let ended = process.0.try_wait()?.map_or_else(String::new, |status| format!(" before it ended with {status}"));
                let errors = std::fs::read_to_string(folder.path().join(ERRORS)).unwrap_or_default();
                bail!("it did not say where it listens{ended}: {}", errors.trim())
            }
        }
    }
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}
