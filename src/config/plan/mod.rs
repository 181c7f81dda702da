//! The checked plan: what a routes file says, after it was found to be valid. Data only; names are resolved,
//! templates, patterns and schemas compiled. Scripts are only named here and compiled elsewhere.

mod channel;
mod function;
mod protocol;
mod row;
mod source;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::sign::CertifiedKey;

use crate::model::SourceLocation;

pub use channel::{Audience, ChannelPlan, HistoryPlan, Keep, OnSlow, Promise};
pub use function::{ExpressionUse, FnRef, FunctionUse, PluginSource, Plugins, Role};
pub use protocol::{
    AuthPlan, BatchPlan, DeliverForm, DeliverRow, HeartbeatPlan, HttpRow, IdlePlan, LimitsPlan, ProtocolPlan, Rate, TokenFrom, WhenFull,
};
pub use row::{Join, Publish, RecoverPlan, Reply, Row, SetTarget, Table, Target};
pub use source::{SourceKind, SourcePlan};

/// A whole configuration.
#[derive(Debug)]
pub struct Plan {
    /// Where sessions, statistics and history live.
    pub store: StorePlan,
    /// The REST interface.
    pub api: ApiPlan,
    /// Whether a change of the files takes effect by itself.
    pub reload: bool,
    /// In the order of the file.
    pub channels: Vec<Arc<ChannelPlan>>,
    /// In the order of the file.
    pub protocols: Vec<Arc<ProtocolPlan>>,
    /// In the order of the file.
    pub sources: Vec<Arc<SourcePlan>>,
    /// How long a stop may take before tasks that still run are logged and abandoned.
    pub stop_within: Duration,
    /// Sockets that one address may have at a listener. None: the default, and any number for loopback addresses.
    pub sockets_per_address: Option<usize>,
}

impl Plan {
    /// The certificates of all listeners; those on one address have the same.
    pub fn tls(&self) -> impl Iterator<Item = &TlsPlan> {
        let sources = self.sources.iter().filter_map(|source| match &source.kind {
            SourceKind::Http { tls, .. } => tls.as_ref(),
            SourceKind::Every { .. } => None,
        });
        self.api.tls.iter().chain(self.protocols.iter().filter_map(|protocol| protocol.tls.as_ref())).chain(sources)
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        let of_protocols = self.protocols.iter().flat_map(|p| {
            let timed = p.every.iter().map(|(_, row)| row).chain(p.idle.iter().map(|idle| &idle.row));
            p.open.iter().chain(&p.close).chain(p.messages.all()).chain(timed)
        });
        of_protocols.chain(self.rows_without_connection())
    }

    /// The rows without a connection: those of HTTP requests and of sources.
    pub fn rows_without_connection(&self) -> impl Iterator<Item = &Row> {
        let http = self.protocols.iter().flat_map(|p| &p.http).flat_map(|http| &http.rows);
        http.chain(self.sources.iter().flat_map(|source| source.messages.all()))
    }
}

/// `store:`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePlan {
    /// Which database.
    pub database: DatabasePlan,
    /// How large the database may grow before the oldest events are removed; none: no bound.
    pub size: Option<u64>,
}

/// `store: url`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabasePlan {
    /// `sqlite://path`: a file, made if it is not there. Relative paths start at the folder of the routes file.
    Sqlite(PathBuf),
    /// `sqlite::memory:`: gone with the process.
    Memory,
    /// `postgres://…`. Secret, because it may contain a password.
    Postgres(Secret),
}

impl From<DatabasePlan> for StorePlan {
    fn from(database: DatabasePlan) -> Self {
        Self { database, size: None }
    }
}

/// `api:`
#[derive(Debug)]
pub struct ApiPlan {
    /// Where it listens.
    pub listen: Listen,
    /// None: plain HTTP.
    pub tls: Option<TlsPlan>,
    /// The bearer token every call but health needs. None: open, which needs a loopback address.
    pub token: Option<Secret>,
    /// Allowed origins, besides no origin, the same origin and loopback ones.
    pub origins: Vec<String>,
}

/// A value that never shows in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Arc<str>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// An address to listen on. `localhost` means both loopback addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Listen {
    /// `localhost`, or an IP address without brackets.
    pub host: Arc<str>,
    /// 0: the system chooses.
    pub port: u16,
}

impl Listen {
    /// Whether only this machine can reach it.
    pub fn is_loopback(&self) -> bool {
        &*self.host == "localhost" || self.host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }
}

impl Listen {
    /// Whether two different addresses cannot both be bound.
    pub fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: &IpAddr, b: &IpAddr| a == b || (a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()));
        self.port == other.port && self.port != 0 && self.ips().iter().any(|a| other.ips().iter().any(|b| meet(a, b)))
    }

    /// The addresses that are bound for it.
    pub fn ips(&self) -> Vec<IpAddr> {
        self.host.parse().map_or_else(|_| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], |ip| vec![ip])
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') { write!(f, "[{}]:{}", self.host, self.port) } else { write!(f, "{}:{}", self.host, self.port) }
    }
}

/// `tls:` A listener's certificate and its key, as they were in their files when these were read.
#[derive(Debug, Clone)]
pub struct TlsPlan {
    /// The certificate and those between it and the root, as PEM.
    pub cert: PathBuf,
    /// Its private key, as PEM.
    pub key: PathBuf,
    /// Where both are named.
    pub at: [SourceLocation; 2],
    /// What was in both.
    pub pair: Arc<CertifiedKey>,
}

impl TlsPlan {
    /// Whether the files are the same, whatever is in them.
    pub fn is_from_files_of(&self, other: &Self) -> bool {
        self.cert == other.cert && self.key == other.key
    }
}

/// Keys are not compared: to one certificate belongs one key. Nor is where they are named.
impl PartialEq for TlsPlan {
    fn eq(&self, other: &Self) -> bool {
        self.is_from_files_of(other) && self.pair.cert == other.pair.cert
    }
}

/// A stretch of one line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpan {
    /// Where it begins.
    pub location: SourceLocation,
    /// How many characters it has, at least 1.
    pub len: u32,
}
