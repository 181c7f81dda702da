//! The TLS configuration that belongs to a certificate, and when the certificate expires. Knows neither its files nor when they change.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::certificate;
use crate::config::plan::TlsPlan;
use crate::model::{Now, clock};

/// A certificate that expires within this time is reported.
const WARN_BEFORE: Duration = Duration::from_secs(14 * 24 * 3600);

/// The one certificate for whatever name a client asks for.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// The configuration of handshakes: TLS 1.2 and 1.3, only HTTP/1.1. Clients may resume an earlier session with a
/// ticket, which costs the server no memory.
pub fn handshakes(plan: &TlsPlan) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = versions.with_no_client_auth().with_cert_resolver(Arc::new(Only(plan.pair.clone())));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// A certificate that clients refuse, or will refuse soon.
pub struct Expiry {
    /// Whether clients refuse it already.
    pub is_past: bool,
    /// The end of its validity.
    pub at: String,
}

/// When a certificate expires, if that is soon or past.
pub fn expiry(plan: &TlsPlan) -> Option<Expiry> {
    let expires_ms = i64::try_from(certificate::expires(&plan.pair)?.as_millis()).unwrap_or(i64::MAX);
    let left_ms = expires_ms.saturating_sub(Now::read().wall_ms);
    let is_past = left_ms <= 0;
    (is_past || left_ms.unsigned_abs() < WARN_BEFORE.as_millis() as u64).then(|| Expiry { is_past, at: clock::iso(expires_ms) })
}

/// Logs if a certificate expires soon, or has expired.
pub fn warn(plan: &TlsPlan) {
    let cert = plan.cert.display();
    match expiry(plan) {
        Some(Expiry { is_past: true, at }) => tracing::error!(%cert, %at, "a certificate has expired: clients refuse it"),
        Some(Expiry { is_past: false, at }) => tracing::warn!(%cert, %at, "a certificate expires soon"),
        None => {}
    }
}
