//! TLS as the settings ask for it: roots, client certificate, versions, and the clock that judges certificates.

use core::time::Duration;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use futures_rustls::pki_types::pem::PemObject;
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::client::{
    Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use futures_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use futures_rustls::rustls::server::ParsedCertificate;
use futures_rustls::rustls::time_provider::TimeProvider;
use futures_rustls::rustls::version::{TLS12, TLS13};
use futures_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, InvalidMessage, OtherError,
    RootCertStore, SignatureScheme, SupportedProtocolVersion,
};
use smol::io::{AsyncRead, AsyncWrite};

use super::pins::{Pinned, Unpinned};
use crate::clock;
use crate::settings::{Tls, TlsVersion};
use crate::sha256::Sha256;

/// Largest PEM file that is read.
pub const MAX_PEM: u64 = 1 << 20;

/// TLS sessions that are kept for resumption: rustls keeps eight tickets a server, so two servers (a proxy is one).
const SESSIONS: usize = 16;

/// Who is at the other end: what it must prove, and what it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// The server of the settings: pins, client certificate.
    Server,
    /// Where a redirect led: pins, and no client certificate.
    Stranger,
    /// Another host, where packages come from: no pins, they are the server's; no client certificate.
    Foreign,
    /// A proxy: no pins, they are the server's; the client certificate (opamp-spec L2342).
    Proxy,
}

/// Makes connectors, and keeps the last ones: while the files stay the same, sessions resume.
#[derive(Default)]
pub struct Factory {
    made: Option<Made>,
}

/// One configuration each, with sessions of its own: what was agreed with a certificate is not resumed without it.
#[derive(Clone)]
struct Made {
    of: [u8; 32],
    server: Arc<ClientConfig>,
    stranger: Arc<ClientConfig>,
    foreign: Arc<ClientConfig>,
    proxy: Arc<ClientConfig>,
}

/// The files that a connector is made of, as they are on disk now.
struct Files {
    roots: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Factory {
    /// A connector for these settings. Reads the files: call it through `pool`.
    ///
    /// # Errors
    /// One line: which file, what is wrong with it.
    pub fn connector(&mut self, tls: &Tls, peer: Peer) -> Result<TlsConnector, String> {
        let files = Files::read(tls)?;
        let digest = files.digest();
        let made = match self.made.take() {
            Some(made) if made.of == digest => made,
            _ => configure(tls, &files, digest)?,
        };
        let made = self.made.insert(made);
        Ok(TlsConnector::from(Arc::clone(match peer {
            Peer::Server => &made.server,
            Peer::Stranger => &made.stranger,
            Peer::Foreign => &made.foreign,
            Peer::Proxy => &made.proxy,
        })))
    }
}

impl Files {
    fn read(tls: &Tls) -> Result<Self, String> {
        let roots = tls.ca_file.as_deref().map(read).transpose()?;
        let client = match &tls.client {
            Some(client) => Some((read(&client.cert_file)?, read(&client.key_file)?)),
            None => None,
        };
        Ok(Self { roots, client })
    }

    fn digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        let (cert, key) = self.client.as_ref().map(|(cert, key)| (cert, key)).unzip();
        for file in [self.roots.as_ref(), cert, key].into_iter().flatten() {
            hasher.update(u64::try_from(file.len()).unwrap_or(u64::MAX).to_be_bytes());
            hasher.update(file);
        }
        hasher.finalize()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let describe = |error: std::io::Error| format!("{}: {error}", path.display());
    let size = std::fs::metadata(path).map_err(describe)?.len();
    if size > MAX_PEM {
        return Err(format!("{}: {size} bytes, more than {MAX_PEM}", path.display()));
    }
    std::fs::read(path).map_err(describe)
}

fn configure(tls: &Tls, files: &Files, of: [u8; 32]) -> Result<Made, String> {
    let provider = Arc::new(ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let trusted = match tls.insecure_skip_verify {
        true => RootCertStore::empty(),
        false => roots(tls, files)?,
    };
    let trusted = Arc::new(trusted);
    let normal: Arc<dyn ServerCertVerifier> = Arc::new(Normal {
        roots: (!tls.insecure_skip_verify).then(|| Arc::clone(&trusted)),
        algorithms,
    });
    let with = |verifier: &Arc<dyn ServerCertVerifier>, certificate: bool| {
        client_config(tls, files, &provider, verifier, certificate).map(Arc::new)
    };
    if tls.pinned_spki_sha256.is_empty() {
        let server = with(&normal, true)?;
        let stranger = with(&normal, false)?;
        let (proxy, foreign) = (Arc::clone(&server), Arc::clone(&stranger));
        return Ok(Made { of, server, stranger, foreign, proxy });
    }
    let pinned = Pinned::new(Arc::clone(&normal), &tls.pinned_spki_sha256, &trusted, algorithms);
    let pinned: Arc<dyn ServerCertVerifier> = Arc::new(pinned);
    let (server, stranger) = (with(&pinned, true)?, with(&pinned, false)?);
    let (foreign, proxy) = (with(&normal, false)?, with(&normal, true)?);
    Ok(Made { of, server, stranger, foreign, proxy })
}

fn client_config(
    tls: &Tls,
    files: &Files,
    provider: &Arc<CryptoProvider>,
    verifier: &Arc<dyn ServerCertVerifier>,
    certificate: bool,
) -> Result<ClientConfig, String> {
    let all: [(TlsVersion, &'static SupportedProtocolVersion); 2] =
        [(TlsVersion::V12, &TLS12), (TlsVersion::V13, &TLS13)];
    let versions: Vec<_> = all
        .into_iter()
        .filter(|(version, _)| (tls.min_version..=tls.max_version).contains(version))
        .map(|(_, supported)| supported)
        .collect();
    let builder = ClientConfig::builder_with_details(Arc::clone(provider), Arc::new(Clock))
        .with_protocol_versions(&versions)
        .map_err(|error| format!("TLS versions: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier));
    let mut config = match (&files.client, &tls.client) {
        (Some((cert, key)), Some(paths)) if certificate => {
            let cert_file = paths.cert_file.display();
            let key_file = paths.key_file.display();
            let chain = certificates(cert).map_err(|error| format!("{cert_file}: {error}"))?;
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|error| format!("{key_file}: {error}"))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("{key_file}: the key of {cert_file}: {error}"))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

fn roots(tls: &Tls, files: &Files) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if let (Some(pem), Some(path)) = (&files.roots, &tls.ca_file) {
        let path = path.display();
        for certificate in certificates(pem).map_err(|error| format!("{path}: {error}"))? {
            roots.add(certificate).map_err(|error| format!("{path}: {error}"))?;
        }
    }
    if tls.ca_file.is_none() || tls.include_system_ca_certs_pool {
        // Single broken files of the system's store do not matter while something is left.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(
            "no trust roots: set opamp.server.tls.ca_file, or install ca-certificates".to_owned()
        );
    }
    Ok(roots)
}

/// All certificates of a PEM file; an empty file is an error.
///
/// # Errors
/// What is wrong with it.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// The handshake.
///
/// # Errors
/// One line in words that a person can act on.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    connector: &TlsConnector,
    host: &str,
    stream: S,
) -> Result<TlsStream<S>, String> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host:?} is not a host name"))?;
    connector.connect(name, stream).await.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => {
            "the connection was closed within the handshake: is there TLS on that port?".to_owned()
        }
        _ => explain(&error),
    })
}

/// A TLS failure in words.
pub(super) fn explain(error: &std::io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return error.to_string();
    };
    match tls {
        Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer => {
                "the server's certificate is not signed by a trusted CA (unknown issuer)".to_owned()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired, or our clock is wrong".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not valid yet, or our clock is wrong".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the server's certificate is for another name: {tls}")
            }
            CertificateError::Other(OtherError(why)) if why.is::<Unpinned>() => why.to_string(),
            _ => format!("the server's certificate is not acceptable: {tls}"),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            format!(
                "what answers there does not speak TLS ({tls}): is it ws:// or http://, or another service?"
            )
        }
        Error::AlertReceived(alert) => {
            format!(
                "the server refused our side of TLS (alert {alert:?}): does it want a client certificate?"
            )
        }
        _ => tls.to_string(),
    }
}

/// The clock of promise 10: a dead system clock does not make every certificate "not valid yet".
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    #[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
    fn current_time(&self) -> Option<UnixTime> {
        let now = clock::trusted(clock::now().wall);
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now.0.as_secs())))
    }
}

/// The normal checks. Not rustls' own verifier: it brings revocation lists, 16 KB that we never hand it.
#[derive(Debug)]
struct Normal {
    /// [`None`]: `insecure_skip_verify`, any certificate will do, but the peer must hold its key.
    roots: Option<Arc<RootCertStore>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Normal {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(roots) = &self.roots {
            let leaf = ParsedCertificate::try_from(end_entity)?;
            let all = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&leaf, roots, intermediates, now, all)?;
            verify_server_name(&leaf, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
