//! Who is at the other end: certificates that vouch for the host, or the host's own public key, by
//! its digest.
//!
//! A crashed machine may have lost its clock. A certificate that is refused for the time alone is
//! looked at again at a time at which it is good, and that is told; whoever holds its key is who
//! was meant all the same.

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, server,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsConnector;

use base::facts::Remote;
use base::lock::lock;

/// Times at which a chain is looked at: each certificate in it may move the time once, and chains
/// are short.
const TIMES: usize = 8;

/// Why nobody at the other end can be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrustError {
    /// The loader recorded neither.
    #[error("neither roots nor pins are known: nobody knows who takes the dump")]
    Nobody,
    /// What vouches for the host cannot be read.
    #[error("the certificates that vouch for the host")]
    Roots(#[source] pem::Error),
    /// The same, in more depth.
    #[error("a certificate that vouches for the host")]
    Root(#[source] Error),
    /// rustls does not take the roots.
    #[error("the certificates that vouch for the host are of no use")]
    Verifier(#[from] server::VerifierBuilderError),
    /// A pin is no digest.
    #[error("pin {0:?} is no digest")]
    Pin(String),
    /// What we show cannot be read.
    #[error("the certificate that we show")]
    Certificate(#[source] pem::Error),
    /// Nor its key. The source says where, not what.
    #[error("the key of the certificate that we show")]
    Key(#[source] pem::Error),
    /// rustls does not take it.
    #[error("the certificate that we show is of no use")]
    Identity(#[source] Error),
    /// No version of TLS is left.
    #[error("configuring TLS")]
    Versions(#[source] Error),
    /// The host of the URL cannot stand in a certificate.
    #[error("host {0} is no name for TLS")]
    Name(String, #[source] InvalidDnsNameError),
}

/// How connections are secured, and to whom.
pub(super) struct Trust {
    pub(super) connector: TlsConnector,
    pub(super) name: ServerName<'static>,
    verifier: Arc<Verifier>,
}

impl Trust {
    /// Of the roots and the client certificate that the loader recorded, and the configured pins.
    pub(super) fn new(host: &str, remote: &Remote, pins: &[String]) -> Result<Self, TrustError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(Verifier::new(&remote.roots, pins, &provider)?);
        let builder = ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().map_err(TrustError::Versions)?;
        let trusting: Arc<dyn ServerCertVerifier> = Arc::<Verifier>::clone(&verifier);
        let builder = builder.dangerous().with_custom_certificate_verifier(trusting);
        let mut config = if remote.client_cert.is_empty() {
            builder.with_no_client_auth()
        } else {
            let chain = certificates(&remote.client_cert).map_err(TrustError::Certificate)?;
            let key = PrivateKeyDer::from_pem_slice(remote.client_key.expose().as_bytes());
            let key = key.map_err(TrustError::Key)?;
            builder.with_client_auth_cert(chain, key).map_err(TrustError::Identity)?
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|error| TrustError::Name(host.to_owned(), error))?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name, verifier })
    }

    /// What was wrong with the clock, or with certificates at this time.
    pub(super) fn remark(&self) -> Option<String> {
        lock(&self.verifier.remark).clone()
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect()
}

/// Verifies that the host is who was meant.
#[derive(Debug)]
struct Verifier {
    roots: Option<Arc<WebPkiServerVerifier>>,
    pins: Vec<[u8; 32]>,
    provider: Arc<CryptoProvider>,
    remark: Mutex<Option<String>>,
}

impl Verifier {
    fn new(roots: &str, pins: &[String], provider: &Arc<CryptoProvider>) -> Result<Self, TrustError> {
        let mut store = RootCertStore::empty();
        for root in certificates(roots).map_err(TrustError::Roots)? {
            store.add(root).map_err(TrustError::Root)?;
        }
        let pins = pins.iter().map(|pin| digest(pin).ok_or_else(|| TrustError::Pin(pin.clone())));
        let pins: Vec<_> = pins.collect::<Result<_, _>>()?;
        if store.is_empty() && pins.is_empty() {
            return Err(TrustError::Nobody);
        }
        let roots = if store.is_empty() { None } else { Some(verifier_of(store, provider)?) };
        Ok(Self { roots, pins, provider: Arc::clone(provider), remark: Mutex::new(None) })
    }

    /// Tells once that the time is wrong.
    fn note(&self, error: &Error) {
        let mut remark = lock(&self.remark);
        if remark.is_none() {
            let text =
                format!("the clock or the host's certificate is wrong, and the host was trusted: {error}");
            log::warn!("{text}");
            *remark = Some(text);
        }
    }

    /// With pins alone nobody needs the certificate's dates; but they may tell of a wrong clock. A
    /// certificate that stands for itself is refused in many ways, and for its dates before all
    /// others.
    fn look_at_dates(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) {
        let mut store = RootCertStore::empty();
        if store.add(certificate.clone().into_owned()).is_err() {
            return;
        }
        let Ok(verifier) = verifier_of(store, &self.provider) else { return };
        if let Err(error) = verifier.verify_server_cert(certificate, &[], name, &[], now)
            && good_at(&error).is_some()
        {
            self.note(&error);
        }
    }
}

fn verifier_of(
    store: RootCertStore,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, server::VerifierBuilderError> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider)).build()
}

/// `sha256/BASE64`
fn digest(pin: &str) -> Option<[u8; 32]> {
    STANDARD.decode(pin.strip_prefix("sha256/")?).ok()?.try_into().ok()
}

/// At what time a certificate was good, or will be, that is refused for the time alone.
fn good_at(error: &Error) -> Option<UnixTime> {
    match error {
        Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. }) => Some(*not_after),
        Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. }) => {
            Some(*not_before)
        }
        _ => None,
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.pins.is_empty() {
            let key = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
            let key: [u8; 32] = Sha256::digest(key.as_ref()).into();
            if !self.pins.contains(&key) {
                return Err(Error::General(format!(
                    "the host has another key: sha256/{}",
                    STANDARD.encode(key)
                )));
            }
        }
        let Some(roots) = &self.roots else {
            self.look_at_dates(end_entity, name, now);
            return Ok(ServerCertVerified::assertion());
        };
        let verify = |at| roots.verify_server_cert(end_entity, intermediates, name, ocsp, at);
        let first = match verify(now) {
            Ok(verified) => return Ok(verified),
            Err(error) => error,
        };
        let mut at = good_at(&first);
        for _ in 0..TIMES {
            let Some(time) = at else { break };
            match verify(time) {
                Ok(verified) => {
                    self.note(&first);
                    return Ok(verified);
                }
                Err(error) if good_at(&error).is_none() => return Err(error),
                Err(error) => at = good_at(&error),
            }
        }
        Err(first)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_roots_and_pins_nobody_is_trusted() {
        let trust = |roots: &str, pins: &[&str]| {
            let remote = Remote { roots: roots.into(), ..Remote::default() };
            let pins: Vec<_> = pins.iter().map(|&pin| pin.to_owned()).collect();
            Trust::new("collector", &remote, &pins).map(drop)
        };
        assert!(matches!(trust("", &[]), Err(TrustError::Nobody)));
        assert!(matches!(trust("no certificate", &[]), Err(TrustError::Nobody)), "a file without any");
        let torn = "-----BEGIN CERTIFICATE-----\nMIIB\n";
        assert!(matches!(trust(torn, &[]), Err(TrustError::Roots(_))));
        let wrong = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
        assert!(matches!(trust(wrong, &[]), Err(TrustError::Root(_))));
        assert!(matches!(trust("", &["sha256/AAAA"]), Err(TrustError::Pin(_))));
        let pin = format!("sha256/{}", STANDARD.encode([7; 32]));
        assert!(trust("", &[&pin]).is_ok());
        assert_eq!(digest(&pin), Some([7; 32]));
    }
}
