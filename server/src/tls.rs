//! The OpAMP listener's TLS, from PEM files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::client::danger::HandshakeSignatureValid;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use crate::authority::Authority;
use crate::config::{ClientAuth, TlsFiles};

/// What is wrong with which file.
#[derive(Debug)]
pub struct TlsError {
    file: PathBuf,
    why: String,
}

impl fmt::Display for TlsError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.file.display(), self.why)
    }
}

impl std::error::Error for TlsError {}

/// Reads the files.
pub(crate) fn acceptor(
    files: &TlsFiles,
    client_auth: ClientAuth,
    authority: Option<&Arc<Authority>>,
) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(&files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| fault(&files.key, error))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault(&files.cert, error))?;
    let builder = match client_verifier(files, client_auth, authority, provider)? {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config =
        builder.with_single_cert(chain, key).map_err(|error| fault(&files.key, error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A resumed session would not look at the client's certificate again: it may be revoked or have expired.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What agents must show, if anything.
fn client_verifier(
    files: &TlsFiles,
    client_auth: ClientAuth,
    authority: Option<&Arc<Authority>>,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    let place = files.client_ca.as_ref().unwrap_or(&files.cert);
    let mut roots = RootCertStore::empty();
    if let Some(file) = &files.client_ca {
        for authority in certificates(file)? {
            roots.add(authority).map_err(|error| fault(file, error))?;
        }
    }
    if let Some(authority) = authority {
        roots.add(authority.der().clone()).map_err(|error| fault(place, error))?;
    }
    if roots.is_empty() {
        return Ok(None);
    }
    let required = match client_auth {
        ClientAuth::Default => files.client_ca.is_some(),
        ClientAuth::Optional => false,
        ClientAuth::Required => true,
    };
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    let verifier = builder.build().map_err(|error| fault(place, error))?;
    Ok(Some(match authority {
        None => verifier,
        Some(authority) => Arc::new(NotRevoked { verifier, authority: Arc::clone(authority) }),
    }))
}

/// Lets in whom `verifier` lets in, but for certificates that the authority took back.
#[derive(Debug)]
struct NotRevoked {
    verifier: Arc<dyn ClientCertVerifier>,
    authority: Arc<Authority>,
}

impl ClientCertVerifier for NotRevoked {
    fn offer_client_auth(&self) -> bool {
        self.verifier.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.verifier.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        match self.authority.identify(end_entity) {
            Some(identity) if self.authority.is_revoked(identity.serial) => {
                Err(Error::InvalidCertificate(CertificateError::Revoked))
            }
            _ => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(file).map_err(|error| fault(file, error))?;
    let all = read.collect::<Result<Vec<_>, _>>().map_err(|error| fault(file, error))?;
    if all.is_empty() {
        return Err(fault(file, "it holds no certificate in PEM form"));
    }
    Ok(all)
}

/// What is wrong with this file.
pub(crate) fn fault(file: &Path, why: impl fmt::Display) -> TlsError {
    TlsError { file: file.to_owned(), why: why.to_string() }
}
