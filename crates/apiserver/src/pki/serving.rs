//! The server side of TLS: a certificate that renews itself, and clients whose certificates are
//! looked at later.

use super::{Pki, PkiError, RENEW_BEFORE, not_after};
use jiff::Timestamp;
use parking_lot::RwLock;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName as TlsName, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::sync::Arc;

/// A serving certificate that is replaced before it ends, without a restart.
pub(super) struct Serving {
    pki: Arc<Pki>,
    sans: Vec<String>,
    current: RwLock<(Arc<CertifiedKey>, Timestamp)>,
}

impl Serving {
    pub fn new(pki: Arc<Pki>, sans: Vec<String>) -> Result<Self, PkiError> {
        let current = Self::load(&pki, &sans)?;
        Ok(Serving { pki, sans, current: RwLock::new(current) })
    }

    fn load(pki: &Pki, sans: &[String]) -> Result<(Arc<CertifiedKey>, Timestamp), PkiError> {
        let pair = pki.serving("apiserver", "kube-apiserver", &[], sans)?;
        let key = pki.certified(&pair)?;
        let end = key.cert.first().and_then(|der| not_after(der)).unwrap_or(Timestamp::MAX);
        Ok((Arc::new(key), end - RENEW_BEFORE))
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let (key, renew_at) = self.current.read().clone();
        if self.pki.clock.now() < renew_at {
            return Some(key);
        }
        match Self::load(&self.pki, &self.sans) {
            Ok(fresh) => {
                *self.current.write() = fresh.clone();
                Some(fresh.0)
            }
            // The old one still has days left; the next connection tries again.
            Err(error) => {
                tracing::error!(%error, "serving certificate not renewed");
                Some(key)
            }
        }
    }
}

impl std::fmt::Debug for Serving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serving").field("sans", &self.sans).finish()
    }
}

/// Asks for a client certificate and checks only that the client holds its key.
#[derive(Debug)]
pub(super) struct AskOnly(pub Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AskOnly {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[TlsName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
