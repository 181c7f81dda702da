//! Which servers `tramline plan` sends its token to, and what went wrong where a server is not one of them. Knows nothing of what
//! is asked.

use std::io;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Why there is no TLS connection.
pub(super) fn explain(error: &io::Error) -> String {
    use CertificateError::{Expired, ExpiredContext, NotValidForName, NotValidForNameContext};
    let why = match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidMessage(_)) => "the server does not speak TLS at this address; without TLS the address begins with `http://`",
        Some(Error::InvalidCertificate(Expired | ExpiredContext { .. })) => "the server's certificate has expired",
        Some(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {
            "the server's certificate is for another name, and it is not the one that the routes file names"
        }
        Some(Error::InvalidCertificate(_)) => {
            "the server's certificate is not trusted: it is neither the one that the routes file names nor one from a public authority; \
             name the routes file that the server runs with by `--config`"
        }
        Some(Error::AlertReceived(_)) => "the server refused the handshake",
        Some(other) => return format!("no TLS connection: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "the server closed the connection during the handshake",
        None => return format!("no TLS connection: {error}"),
    };
    format!("no TLS connection: {why}")
}

/// Trusts the certificate that the routes file names, whatever its name, and otherwise those of public authorities.
pub(super) fn trusting(pinned: Option<CertificateDer<'static>>) -> Result<ClientConfig, String> {
    let failed = |error: &dyn std::fmt::Display| format!("cannot use TLS: {error}");
    let provider = Arc::new(ring::default_provider());
    let roots = Arc::new(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() });
    let public = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().map_err(|error| failed(&error))?;
    let versions =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().map_err(|error| failed(&error))?;
    let verifier = Arc::new(Known { pinned, public, provider });
    Ok(versions.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

#[derive(Debug)]
struct Known {
    pinned: Option<CertificateDer<'static>>,
    public: Arc<WebPkiServerVerifier>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Exactly this certificate. Its signature below shows that the other side has the key.
        if self.pinned.as_ref().is_some_and(|pinned| pinned == end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        self.public.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
