//! The certificate of a listener: in use from the start, and replaced when its files change. Handshakes use the current one.
//!
//! The files are looked at once a second rather than watched: that costs two calls a second, sees through links however they
//! are swapped, and works on every file system.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

use crate::config::certificate::{self, InvalidCertificate};
use crate::config::plan::TlsPlan;
use crate::model::{Now, clock};
use crate::telemetry::metrics::SocketMetrics;

/// How often the files are looked at. A change is read once it has held still for as long.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long before a certificate expires the log says so.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// How often it says so.
const WARN_EVERY: Duration = Duration::from_secs(24 * 3600);

/// A certificate in use.
#[derive(Debug)]
pub struct Certificate {
    plan: TlsPlan,
    /// The state of its files when they were last read or checked.
    seen: Seen,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

/// What distinguishes two states of the files, permissions included.
type Seen = [Option<(u64, u64, u64, i64, i64)>; 2];

fn look(plan: &TlsPlan) -> Seen {
    [&plan.cert, &plan.key].map(|path| {
        let file = std::fs::metadata(path).ok()?;
        Some((file.dev(), file.ino(), file.size(), file.ctime(), file.ctime_nsec()))
    })
}

impl Certificate {
    /// Reads a pair.
    pub fn read(plan: TlsPlan) -> Result<Self, InvalidCertificate> {
        let seen = look(&plan);
        let pair = certificate::read(&plan)?;
        Ok(Self { plan, seen, current: Arc::new(Current(RwLock::new(Arc::new(pair)))) })
    }

    /// The configuration of handshakes: TLS 1.2 and 1.3, only HTTP/1.1. Clients that come back may resume what was agreed
    /// before, by a ticket that costs the server no memory.
    pub fn handshakes(&self) -> Result<Arc<ServerConfig>, rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = versions.with_no_client_auth().with_cert_resolver(self.current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.ticketer = ring::Ticketer::new()?;
        Ok(Arc::new(config))
    }

    /// Logs if the certificate in use expires soon, or has expired.
    pub fn warn(&self) {
        let Some(expires) = certificate::expires(&self.current.0.read()) else { return };
        let expires_ms = i64::try_from(expires.as_millis()).unwrap_or(i64::MAX);
        let left_ms = expires_ms.saturating_sub(Now::read().wall_ms);
        let (cert, at) = (self.plan.cert.display(), clock::iso(expires_ms));
        if left_ms <= 0 {
            tracing::error!(%cert, %at, "a certificate has expired: clients refuse it");
        } else if left_ms.unsigned_abs() < WARN_BEFORE.as_millis() as u64 {
            tracing::warn!(%cert, %at, "a certificate expires soon");
        }
    }

    /// Takes changed files into use until `stop` fires. Files that are not valid are logged and change nothing.
    pub async fn watch(mut self, metrics: Arc<SocketMetrics>, stop: CancellationToken) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut days = interval_at(Instant::now() + WARN_EVERY, WARN_EVERY);
        let mut before = self.seen;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = days.tick() => {
                    self.warn();
                    continue;
                }
                _ = ticks.tick() => {}
            }
            let plan = self.plan.clone();
            let in_use = self.seen;
            // On a thread that may block: the files may be on a slow disk.
            let looked = tokio::task::spawn_blocking(move || {
                let now = look(&plan);
                // Both files, each complete: a file that is still being written is not used.
                (now, (now != in_use && now == before).then(|| certificate::read(&plan)))
            });
            let Ok((now, read)) = looked.await else { continue };
            before = now;
            let Some(read) = read else { continue };
            self.seen = now;
            let (cert, key) = (self.plan.cert.display(), self.plan.key.display());
            match read {
                Ok(pair) => {
                    *self.current.0.write() = Arc::new(pair);
                    metrics.certificates_read.inc();
                    tracing::info!(%cert, %key, "a changed certificate is in use");
                    days.reset_immediately();
                }
                Err(error) => {
                    metrics.certificates_invalid.inc();
                    tracing::error!(%cert, %key, %error, hint = error.hint, "a changed certificate cannot be used: the one before stays in use");
                }
            }
        }
    }
}
