//! The open listeners: those of the configuration, and that of the REST interface. What a new configuration needs is bound and
//! read before it is installed, so that nothing can fail afterwards; then new listeners are served and removed ones end.

use std::collections::{BTreeMap, HashSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::plan::{Listen, TlsPlan};
use crate::http::api::{Api, ApiRoutes};
use crate::http::certificate;
use crate::http::listen::{Bound, HANDSHAKES_MAX, ListenerOptions, Waited, bind, serve};
use crate::http::routes::Routes;
use crate::http::upgrade::Upgrader;
use crate::live::Live;
use crate::routing::listeners::ListenerKey;
use crate::runtime::Runtime;
use crate::tasks::Core;
use crate::telemetry::metrics::SocketMetrics;

/// What a listener is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Protocols and sources.
    Serving(ListenerKey),
    /// The REST interface.
    Api(Listen),
}

impl Name {
    fn listen(&self) -> &Listen {
        match self {
            Name::Serving(key) => &key.listen,
            Name::Api(listen) => listen,
        }
    }
}

/// What to do if another program has an address.
const TAKEN: &str = "; another program listens there: end it, or use another port";

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CannotListen {
    /// The system does not give the address.
    #[error("cannot listen on {listen}: {error}{}", if error.kind() == ErrorKind::AddrInUse { TAKEN } else { "" })]
    Bind {
        /// The address.
        listen: Listen,
        /// Why.
        error: std::io::Error,
    },
    /// One of the server's own listeners is in the way.
    #[error("cannot listen on {listen}: this server's own listener on {other}, for {user}, has that port; {hint}")]
    Own {
        /// The address.
        listen: Listen,
        /// That of the other.
        other: Listen,
        /// What the other one serves.
        user: String,
        /// What to do.
        hint: &'static str,
    },
    /// No TLS handshakes can be made.
    #[error("cannot serve TLS on {listen}: {error}")]
    Tls {
        /// The address.
        listen: Listen,
        /// Why.
        error: rustls::Error,
    },
}

/// What is ready to be served.
#[derive(Default)]
pub struct Prepared {
    new: Vec<(Name, Bound)>,
    /// The TLS of every listener that is new or whose TLS has changed.
    tls: BTreeMap<Name, Option<Secured>>,
}

/// A listener's TLS.
struct Secured {
    plan: TlsPlan,
    handshakes: Arc<ServerConfig>,
}

/// A listener that is open.
struct Open {
    address: SocketAddr,
    sockets: Vec<Arc<TcpListener>>,
    tls: Option<TlsPlan>,
    options: Arc<ArcSwap<ListenerOptions>>,
    stop: CancellationToken,
}

impl Open {
    /// Connections that are open keep what they have.
    fn secure(&mut self, secured: Option<Secured>) {
        let (plan, handshakes) = secured.map(|secured| (secured.plan, secured.handshakes)).unzip();
        self.tls = plan;
        self.options.store(Arc::new(ListenerOptions { tls: handshakes, ..(**self.options.load()).clone() }));
    }
}

/// See the module.
pub struct Listeners {
    upgrader: Upgrader,
    live: Arc<Live>,
    api: Arc<Api>,
    metrics: Arc<SocketMetrics>,
    core: Core,
    tasks: TaskTracker,
    waited: Arc<Waited>,
    stop: CancellationToken,
    // Protects the set of open listeners. Held for a change or a look-up.
    open: Mutex<BTreeMap<Name, Open>>,
}

impl Listeners {
    /// Gives up every address. The tasks that accept have been stopped before.
    pub fn close(&self) {
        self.open.lock().clear();
    }

    /// The requests that a stop waits for.
    pub fn waited(&self) -> Vec<String> {
        self.waited.names()
    }

    /// No listener is open yet.
    pub fn new(live: Arc<Live>, upgrader: Upgrader, api: Arc<Api>, core: Core) -> Self {
        let metrics = live.metrics.sockets();
        let (tasks, stop) = (upgrader.tasks.clone(), upgrader.stop.clone());
        Self { live, upgrader, api, metrics, core, tasks, waited: Arc::default(), stop, open: Mutex::default() }
    }

    /// Binds new listeners, or takes over the sockets of those that end, and makes ready what new or changed certificates need.
    /// Nothing is changed yet.
    pub async fn prepare(&self, runtime: &Runtime) -> Result<Prepared, CannotListen> {
        let mut prepared = Prepared::default();
        let ending = self.ending(runtime);
        for (name, tls) in wanted(runtime) {
            let (is_open, is_same) = {
                let open = self.open.lock();
                let known = open.get(&name);
                (known.is_some(), known.is_some_and(|known| known.tls.as_ref() == tls))
            };
            if is_same {
                continue;
            }
            let listen = name.listen();
            let secured = tls.map(secure).transpose().map_err(|error| CannotListen::Tls { listen: listen.clone(), error })?;
            if !is_open {
                let bound = bind(listen, &ending).await.map_err(|error| self.cannot_bind(listen, error, runtime))?;
                prepared.new.push((name.clone(), bound));
            }
            prepared.tls.insert(name, secured);
        }
        Ok(prepared)
    }

    /// Why an address cannot be bound: one of the server's own listeners may have it.
    fn cannot_bind(&self, listen: &Listen, error: std::io::Error, next: &Runtime) -> CannotListen {
        let is_in_the_way = |(name, open): (&Name, &Open)| {
            let other = Listen { port: open.address.port(), ..name.listen().clone() };
            other.overlaps(listen).then(|| (name.clone(), other))
        };
        let found = if error.kind() == ErrorKind::AddrInUse { self.open.lock().iter().find_map(is_in_the_way) } else { None };
        let Some((name, other)) = found else { return CannotListen::Bind { listen: listen.clone(), error } };
        own_in_the_way(listen, &name, other, &self.live.current().runtime, next)
    }

    /// Serves new listeners, applies changed TLS, and ends removed listeners.
    pub fn apply(&self, runtime: &Runtime, mut prepared: Prepared) {
        let mut open = self.open.lock();
        let wanted: Vec<Name> = wanted(runtime).map(|(name, _)| name).collect();
        open.retain(|name, listener| {
            let stays = wanted.contains(name);
            if !stays {
                listener.stop.cancel();
            }
            stays
        });
        for listener in open.values() {
            let options = listener.options.load();
            if options.per_address != runtime.plan.sockets_per_address {
                listener.options.store(Arc::new(ListenerOptions { per_address: runtime.plan.sockets_per_address, ..(**options).clone() }));
            }
        }
        let (mut renewed, mut secured): (Vec<TlsPlan>, Vec<TlsPlan>) = Default::default();
        for (name, listener) in open.iter_mut() {
            if let Some(tls) = prepared.tls.remove(name) {
                let before = listener.tls.take();
                listener.secure(tls);
                let is_renewed = before.zip(listener.tls.as_ref()).is_some_and(|(before, now)| before.is_from_files_of(now));
                renewed.extend(listener.tls.clone().filter(|_| is_renewed));
                secured.extend(listener.tls.clone());
            }
        }
        for (name, bound) in prepared.new {
            let tls = prepared.tls.remove(&name).flatten();
            secured.extend(tls.as_ref().map(|tls| tls.plan.clone()));
            let listener = self.begin(&name, bound, tls, runtime.plan.sockets_per_address);
            open.insert(name, listener);
        }
        self.metrics.certificates_read.add(once(renewed).len() as u64);
        once(secured).iter().for_each(certificate::warn);
    }

    fn begin(&self, name: &Name, bound: Bound, secured: Option<Secured>, per_address: Option<usize>) -> Open {
        let options = ListenerOptions { tls: None, per_address, handshakes: HANDSHAKES_MAX, metrics: self.metrics.clone() };
        let options = Arc::new(ArcSwap::from_pointee(options));
        let (address, sockets, stop) = (bound.address, bound.sockets.clone(), self.stop.child_token());
        let mut open = Open { address, sockets, tls: None, options: options.clone(), stop: stop.clone() };
        open.secure(secured);
        match name {
            Name::Serving(key) => {
                let routes = Routes::new(self.live.clone(), self.upgrader.clone(), key.clone());
                serve(bound, options, &Arc::new(routes), &self.core, &self.tasks, &self.waited, &stop);
            }
            Name::Api(listen) => {
                let routes = ApiRoutes::new(self.api.clone(), listen);
                serve(bound, options, &Arc::new(routes), &self.core, &self.tasks, &self.waited, &stop);
            }
        }
        open
    }

    /// The certificates in use, each once.
    pub fn certificates(&self) -> Vec<TlsPlan> {
        once(self.open.lock().values().filter_map(|listener| listener.tls.clone()).collect())
    }

    /// Takes a changed certificate into use, at all listeners that have it.
    pub fn renew(&self, renewed: &TlsPlan) -> Result<(), rustls::Error> {
        for listener in self.open.lock().values_mut() {
            if listener.tls.as_ref().is_some_and(|tls| tls.is_from_files_of(renewed)) {
                listener.secure(Some(secure(renewed)?));
            }
        }
        certificate::warn(renewed);
        Ok(())
    }

    /// Logs which certificates expire soon.
    pub fn warn(&self) {
        self.certificates().iter().for_each(certificate::warn);
    }

    /// The sockets of listeners that a configuration does not have.
    fn ending(&self, runtime: &Runtime) -> Vec<Arc<TcpListener>> {
        let wanted: Vec<Name> = wanted(runtime).map(|(name, _)| name).collect();
        let open = self.open.lock();
        open.iter().filter(|(name, _)| !wanted.contains(name)).flat_map(|(_, listener)| listener.sockets.clone()).collect()
    }

    /// The address at which something is served, with the port that the system chose.
    pub fn address(&self, name: &Name) -> Option<SocketAddr> {
        self.open.lock().get(name).map(|listener| listener.address)
    }
}

/// Every listener that a configuration has, with its TLS.
fn wanted(runtime: &Runtime) -> impl Iterator<Item = (Name, Option<&TlsPlan>)> {
    let serving = runtime.listeners.iter().map(|listener| (Name::Serving(listener.key.clone()), listener.tls.as_ref()));
    let api = &runtime.plan.api;
    serving.chain([(Name::Api(api.listen.clone()), api.tls.as_ref())])
}

/// The first listener that a server with one configuration could not open to take over another, as far as the two show it:
/// other programs may have an address too.
pub fn foreseen(before: &Runtime, next: &Runtime) -> Option<CannotListen> {
    let [held, wanted] = [before, next].map(|runtime| wanted(runtime).map(|(name, _)| name).collect::<Vec<_>>());
    let is_handed_over = |ip: &IpAddr, port| {
        held.iter().any(|name| !wanted.contains(name) && name.listen().port == port && name.listen().ips().contains(ip))
    };
    wanted.iter().filter(|name| !held.contains(name)).find_map(|new| {
        let listen = new.listen();
        let alone = listen.ips().into_iter().filter(|ip| !is_handed_over(ip, listen.port));
        let mut alone = alone.map(|ip| Listen { host: ip.to_string().into(), port: listen.port });
        let other = alone.find_map(|one| held.iter().find(|name| name.listen().overlaps(&one)))?;
        Some(own_in_the_way(listen, other, other.listen().clone(), before, next))
    })
}

/// A listener of the server's own has an address that another one needs.
fn own_in_the_way(listen: &Listen, name: &Name, other: Listen, before: &Runtime, next: &Runtime) -> CannotListen {
    let stays = wanted(next).any(|(wanted, _)| wanted == *name);
    let hint = if stays {
        "use another port for one of them"
    } else {
        "an address is handed over only as it is: restart the server, or reload twice, with another port in between"
    };
    CannotListen::Own { listen: listen.clone(), other, user: user(before, name), hint }
}

fn secure(plan: &TlsPlan) -> Result<Secured, rustls::Error> {
    Ok(Secured { plan: plan.clone(), handshakes: certificate::handshakes(plan)? })
}

/// Each certificate once.
fn once(mut plans: Vec<TlsPlan>) -> Vec<TlsPlan> {
    let mut seen = HashSet::new();
    plans.retain(|plan| seen.insert((plan.cert.clone(), plan.key.clone())));
    plans
}

/// What a listener serves: "the protocol `chat`".
fn user(runtime: &Runtime, name: &Name) -> String {
    let Name::Serving(key) = name else { return "the REST interface".into() };
    let listener = runtime.listeners.iter().find(|listener| listener.key == *key);
    let protocol = listener.and_then(|listener| listener.protocols.first()).map(|id| format!("the protocol `{}`", id.name()));
    let source = || listener.and_then(|listener| listener.sources.first()).map(|id| format!("the source `{}`", id.name()));
    protocol.or_else(source).unwrap_or_default()
}
