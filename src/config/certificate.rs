//! Reads a certificate and its key from PEM files, or explains what is wrong with them. Used at load, and again when the files
//! change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys};

use super::files;

/// The largest of these files. A chain of ten certificates has some 20 KiB.
const BYTES_MAX: usize = 256 << 10;

/// Which of the two files is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// `cert`
    Certificate,
    /// `key`
    Key,
}

/// Why a pair cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidCertificate {
    /// The file at fault.
    pub which: Which,
    /// Names the file and what is wrong.
    pub why: String,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

/// What is in the files of a pair.
pub type Read = Result<Arc<CertifiedKey>, InvalidCertificate>;

/// Reads a certificate and a key that belong together.
pub fn read(cert_file: &Path, key_file: &Path) -> Read {
    let chain = chain(cert_file)?;
    let is_old = chain.first().is_some_and(|first| is_version_1(first).unwrap_or(false));
    let pair = CertifiedKey::from_der(chain, key(key_file)?, &ring::default_provider());
    pair.map(Arc::new).map_err(|error| match error {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => InvalidCertificate {
            which: Which::Key,
            why: format!("the key in {} does not belong to the certificate in {}", key_file.display(), cert_file.display()),
            hint: Some("the first certificate in `cert` must be the one for this key; those of its issuers follow"),
        },
        rustls::Error::InvalidCertificate(_) if is_old => InvalidCertificate {
            which: Which::Certificate,
            why: format!("the first certificate in {} is of version 1 of X.509, which clients do not accept for TLS", cert_file.display()),
            hint: Some(
                "make one of version 3 with the host in its `subjectAltName`: `openssl req -x509 … -addext subjectAltName=DNS:HOST`",
            ),
        },
        rustls::Error::InvalidCertificate(why) => InvalidCertificate {
            which: Which::Certificate,
            why: format!("the first certificate in {} cannot be used: {}", cert_file.display(), reason(&why)),
            hint: None,
        },
        other => InvalidCertificate {
            which: Which::Key,
            why: format!("the key in {} cannot be used: {other}", key_file.display()),
            hint: Some("supported are RSA of at least 2048 bits, ECDSA on P-256 or P-384, and Ed25519"),
        },
    })
}

/// The earliest expiry of these certificates, since the Unix epoch. None if none of them can be read.
pub fn expires(pair: &CertifiedKey) -> Option<Duration> {
    pair.cert.iter().filter_map(|certificate| not_after(certificate).ok()).min()
}

/// The fields of a certificate, without its signature.
fn to_be_signed(certificate: &[u8]) -> der::Result<&[u8]> {
    let whole = AnyRef::from_der(certificate)?;
    let signed: AnyRef<'_> = SliceReader::new(whole.value())?.decode()?;
    Ok(signed.value())
}

/// Whether a certificate says no version, which means the first.
fn is_version_1(certificate: &[u8]) -> der::Result<bool> {
    Ok(!SliceReader::new(to_be_signed(certificate)?)?.peek_tag()?.is_context_specific())
}

/// The end of `validity` (RFC 5280, section 4.1).
fn not_after(certificate: &[u8]) -> der::Result<Duration> {
    let mut fields = SliceReader::new(to_be_signed(certificate)?)?;
    // The version, where it is said; the serial number, the algorithm, the issuer.
    let before = if fields.peek_tag()?.is_context_specific() { 4 } else { 3 };
    for _ in 0..before {
        fields.decode::<AnyRef<'_>>()?;
    }
    let validity: AnyRef<'_> = fields.decode()?;
    let mut validity = SliceReader::new(validity.value())?;
    validity.decode::<AnyRef<'_>>()?;
    match validity.peek_tag()? {
        Tag::UtcTime => Ok(validity.decode::<UtcTime>()?.to_unix_duration()),
        _ => Ok(validity.decode::<GeneralizedTime>()?.to_unix_duration()),
    }
}

fn reason(why: &CertificateError) -> String {
    if *why == CertificateError::BadEncoding { "it is not valid X.509".into() } else { why.to_string() }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, InvalidCertificate> {
    let invalid = |why: String, hint| InvalidCertificate { which: Which::Certificate, why: format!("{}: {why}", path.display()), hint };
    let text = text(path).map_err(|error| invalid(error.to_string(), readable(&error)))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let chain = chain.map_err(|error| invalid(format!("it is not valid PEM: {}", broken(&error)), None))?;
    if chain.is_empty() {
        let hint = "`cert` must name a PEM file with `-----BEGIN CERTIFICATE-----`, the server's own certificate first";
        return Err(invalid("it contains no certificate".into(), Some(hint)));
    }
    Ok(chain)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, InvalidCertificate> {
    let invalid = |why: String, hint| InvalidCertificate { which: Which::Key, why: format!("{}: {why}", path.display()), hint };
    let text = text(path).map_err(|error| invalid(error.to_string(), readable(&error)))?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
        pem::Error::NoItemsFound if text.contains("BEGIN ENCRYPTED PRIVATE KEY") => {
            invalid("its private key is encrypted".into(), Some("decrypt it: `openssl pkey -in KEY -out PLAIN`"))
        }
        pem::Error::NoItemsFound => {
            invalid("it contains no private key".into(), Some("`key` must name a PEM file with `-----BEGIN PRIVATE KEY-----`"))
        }
        other => invalid(format!("it is not valid PEM: {}", broken(&other)), None),
    })
}

fn text(path: &Path) -> Result<String, files::Error> {
    // Before it is opened: opening a pipe waits.
    if !std::fs::metadata(path)?.is_file() {
        return Err(files::Error::NotAFile);
    }
    files::read(path, BYTES_MAX)
}

fn readable(error: &files::Error) -> Option<&'static str> {
    matches!(error, files::Error::Io(_))
        .then_some("paths are relative to the folder of the routes file that contains them; the server must be allowed to read them")
}

/// What is wrong, without the bytes, because they may belong to a key.
fn broken(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end",
        pem::Error::IllegalSectionStart { .. } => "a line that begins a section is broken",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it cannot be read",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};

    use super::*;

    fn made(year: i32) -> Vec<u8> {
        let mut params = CertificateParams::new(["localhost".into()]).unwrap();
        params.not_after = date_time_ymd(year, 2, 3);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_of_a_certificate_is_found_in_both_forms_it_may_have() {
        // From 2050 on RFC 5280 wants the other one.
        for (year, seconds) in [(2031, 1_927_843_200), (2061, 2_874_614_400)] {
            assert_eq!(not_after(&made(year)), Ok(Duration::from_secs(seconds)), "{year}");
        }
    }

    proptest! {
        #[test]
        fn what_is_broken_never_panics(at in 0usize..200, byte: u8, length in 0usize..400) {
            let mut bytes = made(2031);
            bytes[at] = byte;
            bytes.truncate(length);
            not_after(&bytes).ok();
        }
    }
}
