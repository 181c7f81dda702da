//! The open listeners: those of the configuration, and that of the REST interface. What a new configuration needs is bound and
//! read before it is installed, so that nothing can fail afterwards; then new listeners are served and removed ones end.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::plan::{Listen, TlsPlan};
use crate::http::api::{Api, ApiRoutes};
use crate::http::certificate::Certificate;
use crate::http::listen::{Bound, HANDSHAKES_MAX, ListenerOptions, bind, serve};
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

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.listen().fmt(f)
    }
}

/// Why a listener cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CannotListen {
    /// The system does not give the address.
    #[error("cannot listen on {listen}: {error}")]
    Bind {
        /// The address.
        listen: Listen,
        /// Why.
        error: std::io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("cannot serve TLS on {listen}: {why}")]
    Tls {
        /// The address.
        listen: Listen,
        /// Why.
        why: String,
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
    certificate: Certificate,
    handshakes: Arc<ServerConfig>,
}

/// A listener that is open.
struct Open {
    address: SocketAddr,
    sockets: Vec<Arc<TcpListener>>,
    tls: Option<TlsPlan>,
    options: Arc<ArcSwap<ListenerOptions>>,
    stop: CancellationToken,
    /// Ends the watch over its certificate.
    unwatch: CancellationToken,
}

/// See the module.
pub struct Listeners {
    upgrader: Upgrader,
    live: Arc<Live>,
    api: Arc<Api>,
    metrics: Arc<SocketMetrics>,
    core: Core,
    tasks: TaskTracker,
    stop: CancellationToken,
    // Protects the set of open listeners. Held for a change or a look-up.
    open: Mutex<BTreeMap<Name, Open>>,
}

impl Listeners {
    /// None is open.
    pub fn new(live: Arc<Live>, upgrader: Upgrader, api: Arc<Api>, core: Core) -> Self {
        let metrics = live.metrics.sockets();
        let (tasks, stop) = (upgrader.tasks.clone(), upgrader.stop.clone());
        Self { live, upgrader, api, metrics, core, tasks, stop, open: Mutex::default() }
    }

    /// Binds new listeners, or takes over the sockets of those that end, and reads new or changed certificates. Nothing is changed
    /// yet.
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
            let listen = name.listen().clone();
            let secured = tls.map(secure).transpose().map_err(|why| CannotListen::Tls { listen: listen.clone(), why })?;
            if !is_open {
                let bound = bind(&listen, &ending).await.map_err(|error| CannotListen::Bind { listen, error })?;
                prepared.new.push((name.clone(), bound));
            }
            prepared.tls.insert(name, secured);
        }
        Ok(prepared)
    }

    /// Serves new listeners, applies changed TLS, and ends removed listeners. Gives the addresses that are served
    /// no more.
    pub fn apply(&self, runtime: &Runtime, mut prepared: Prepared) -> Vec<String> {
        let mut open = self.open.lock();
        let wanted: Vec<Name> = wanted(runtime).map(|(name, _)| name).collect();
        let mut ended = Vec::new();
        open.retain(|name, listener| {
            let stays = wanted.contains(name);
            if !stays {
                listener.stop.cancel();
                listener.unwatch.cancel();
                ended.push(name.to_string());
            }
            stays
        });
        for listener in open.values() {
            let options = listener.options.load();
            if options.per_address != runtime.plan.sockets_per_address {
                listener.options.store(Arc::new(ListenerOptions { per_address: runtime.plan.sockets_per_address, ..(**options).clone() }));
            }
        }
        for (name, listener) in open.iter_mut() {
            if let Some(secured) = prepared.tls.remove(name) {
                listener.unwatch.cancel();
                listener.tls = secured.as_ref().map(|secured| secured.plan.clone());
                let tls = secured.as_ref().map(|secured| secured.handshakes.clone());
                listener.options.store(Arc::new(ListenerOptions { tls, ..(**listener.options.load()).clone() }));
                listener.unwatch = self.watch(secured);
            }
        }
        for (name, bound) in prepared.new {
            let secured = prepared.tls.remove(&name).flatten();
            let listener = self.begin(&name, bound, secured, runtime.plan.sockets_per_address);
            open.insert(name, listener);
        }
        ended
    }

    fn begin(&self, name: &Name, bound: Bound, secured: Option<Secured>, per_address: Option<usize>) -> Open {
        let options = ListenerOptions {
            tls: secured.as_ref().map(|secured| secured.handshakes.clone()),
            per_address,
            handshakes: HANDSHAKES_MAX,
            metrics: self.metrics.clone(),
        };
        let options = Arc::new(ArcSwap::from_pointee(options));
        let (address, sockets, stop) = (bound.address, bound.sockets.clone(), self.stop.child_token());
        match name {
            Name::Serving(key) => {
                let routes = Routes::new(self.live.clone(), self.upgrader.clone(), key.clone());
                serve(bound, options.clone(), &Arc::new(routes), &self.core, &self.tasks, &stop);
            }
            Name::Api(listen) => {
                let routes = ApiRoutes::new(self.api.clone(), listen);
                serve(bound, options.clone(), &Arc::new(routes), &self.core, &self.tasks, &stop);
            }
        }
        let tls = secured.as_ref().map(|secured| secured.plan.clone());
        Open { address, sockets, tls, options, stop, unwatch: self.watch(secured) }
    }

    /// Watches a certificate until the returned token fires.
    fn watch(&self, secured: Option<Secured>) -> CancellationToken {
        let unwatch = self.stop.child_token();
        if let Some(secured) = secured {
            secured.certificate.warn();
            self.tasks.spawn(secured.certificate.watch(self.metrics.clone(), unwatch.clone()));
        }
        unwatch
    }

    /// The addresses that would be served no more.
    pub fn would_end(&self, runtime: &Runtime) -> Vec<String> {
        let wanted: Vec<Name> = wanted(runtime).map(|(name, _)| name).collect();
        self.open.lock().keys().filter(|name| !wanted.contains(name)).map(ToString::to_string).collect()
    }

    /// The sockets of those.
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

fn secure(plan: &TlsPlan) -> Result<Secured, String> {
    let certificate = Certificate::read(plan.clone()).map_err(|error| error.to_string())?;
    let handshakes = certificate.handshakes().map_err(|error| error.to_string())?;
    Ok(Secured { plan: plan.clone(), certificate, handshakes })
}
