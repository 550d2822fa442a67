//! TLS as the settings ask for it: roots, client certificate, versions, and the clock that judges certificates.

use core::time::Duration;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use futures_rustls::TlsConnector;
use futures_rustls::client::TlsStream;
use futures_rustls::pki_types::pem::PemObject as _;
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
    AlertDescription, CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, Error,
    InvalidMessage, OtherError, PeerMisbehaved, RootCertStore, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
};
use smol::io::{AsyncRead, AsyncWrite};

use super::pins::{Pinned, Unpinned, Untrusted};
use crate::agent::session::{LinkError, LinkErrorKind};
use crate::clock::{self, Wall};
use crate::credentials::Judged;
pub use crate::credentials::certificate::from_pem as certificates;
use crate::credentials::judge::describe;
use crate::settings::{Tls, TlsVersion};
use crate::sha256::Sha256;

/// Largest PEM file that is read.
pub const MAX_PEM: u64 = 1 << 20;

/// TLS sessions that are kept for resumption: rustls keeps eight tickets a server, so two servers (a proxy is one).
const SESSIONS: usize = 16;

/// What rustls has with ring, by the names of IANA. Its own table of names costs 6 KB, for suites that nobody speaks.
const SUITES: [(CipherSuite, &str); 9] = [
    (CipherSuite::TLS13_AES_128_GCM_SHA256, "TLS_AES_128_GCM_SHA256"),
    (CipherSuite::TLS13_AES_256_GCM_SHA384, "TLS_AES_256_GCM_SHA384"),
    (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, "TLS_CHACHA20_POLY1305_SHA256"),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    ),
    (
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    (CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    (
        CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
        "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    ),
];

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
    /// Each connection is agreed upon anew.
    forgets: bool,
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
    /// For a candidate: no session is resumed, so that its own certificate is what the server judges, each time.
    #[must_use]
    pub const fn without_resumption() -> Self {
        Self { made: None, forgets: true }
    }

    /// A connector for these settings. Reads the files: call it through `pool`.
    ///
    /// # Errors
    /// One line: which file, what is wrong with it.
    pub fn connector(&mut self, tls: &Tls, peer: Peer) -> Result<TlsConnector, String> {
        let files = Files::read(tls)?;
        let digest = files.digest();
        let made = match self.made.take() {
            Some(made) if made.of == digest => made,
            _ => configure(tls, &files, digest, self.forgets)?,
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

/// Whether a connector can be made: the roots are some, the key fits the certificate, versions and suites leave
/// something. Reads the files: call it through `pool`.
///
/// # Errors
/// One line: which file, what is wrong with it.
pub fn check(tls: &Tls) -> Result<(), String> {
    configure(tls, &Files::read(tls)?, [0; 32], true).map(drop)
}

/// What the first certificate of a file says of itself. Reads it: call it through `pool`.
///
/// # Errors
/// One line: the file, what is wrong with it.
pub fn certificate(file: &Path) -> Result<Judged, String> {
    describe(&read(file)?).map_err(|error| format!("{}: {error}", file.display()))
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

fn configure(tls: &Tls, files: &Files, of: [u8; 32], forgets: bool) -> Result<Made, String> {
    let provider = Arc::new(provider(tls)?);
    let algorithms = provider.signature_verification_algorithms;
    let trusted = match tls.insecure_skip_verify {
        true => RootCertStore::empty(),
        false => roots(tls, files)?,
    };
    let trusted = Arc::new(trusted);
    let inner: Arc<dyn ServerCertVerifier> = Arc::new(Normal {
        roots: (!tls.insecure_skip_verify).then(|| Arc::clone(&trusted)),
        algorithms,
    });
    let normal: Arc<dyn ServerCertVerifier> = match tls.insecure_skip_verify {
        true => inner,
        false => Arc::new(Pinned::new(inner, &[], &trusted, algorithms)),
    };
    let with = |verifier: &Arc<dyn ServerCertVerifier>, certificate: bool| {
        let mut config = client_config(tls, files, &provider, verifier, certificate)?;
        config.resumption = match forgets {
            true => Resumption::disabled(),
            false => Resumption::in_memory_sessions(SESSIONS),
        };
        Ok::<_, String>(Arc::new(config))
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
    Ok(match (&files.client, &tls.client) {
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
    })
}

/// What rustls can do, less what an offer's list of cipher suites leaves out.
fn provider(tls: &Tls) -> Result<CryptoProvider, String> {
    let mut provider = ring::default_provider();
    let of = |suite: &SupportedCipherSuite| match suite {
        SupportedCipherSuite::Tls12(_) => TlsVersion::V12,
        SupportedCipherSuite::Tls13(_) => TlsVersion::V13,
    };
    let versions = tls.min_version..=tls.max_version;
    provider.cipher_suites.retain(|suite| versions.contains(&of(suite)));
    if tls.cipher_suites.is_empty() {
        return Ok(provider);
    }
    let known: Vec<_> = provider.cipher_suites.iter().map(iana).collect();
    provider.cipher_suites.retain(|suite| tls.cipher_suites.iter().any(|name| name == iana(suite)));
    if provider.cipher_suites.is_empty() {
        return Err(format!(
            "cipher_suites: none of them is known; known are {}",
            known.join(", ")
        ));
    }
    Ok(provider)
}

/// A suite's name as IANA has it.
fn iana(suite: &SupportedCipherSuite) -> &'static str {
    let named = SUITES.iter().find(|(known, _)| *known == suite.suite());
    named.map_or("", |(_, name)| name)
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

/// The handshake.
///
/// # Errors
/// One line in words that a person can act on, and whether it is a refusal.
pub async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    connector: &TlsConnector,
    host: &str,
    stream: S,
) -> Result<TlsStream<S>, LinkError> {
    let failed = |text| LinkError { text, kind: LinkErrorKind::Failed };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| failed(format!("{host:?} is not a host name")))?;
    connector.connect(name, stream).await.map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => failed(
            "the connection was closed within the handshake: is there TLS on that port?".to_owned(),
        ),
        _ => failure(&error),
    })
}

/// A failure in words, and whether it means that one end does not accept the other.
pub(super) fn failure(error: &std::io::Error) -> LinkError {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let refused = match tls {
        Some(Error::AlertReceived(alert)) => {
            !matches!(alert, AlertDescription::InternalError | AlertDescription::UserCanceled)
        }
        Some(
            Error::InvalidCertificate(_)
            | Error::NoCertificatesPresented
            | Error::PeerIncompatible(_)
            | Error::PeerMisbehaved(_),
        ) => true,
        _ => false,
    };
    let kind = if refused { LinkErrorKind::Refused } else { LinkErrorKind::Failed };
    LinkError { text: explain(error), kind }
}

/// A TLS failure in words.
pub(super) fn explain(error: &std::io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) else {
        return error.to_string();
    };
    let day = |time: &UnixTime| clock::date(Wall(Duration::from_secs(time.as_secs())));
    match tls {
        Error::InvalidCertificate(why) => match why {
            CertificateError::ExpiredContext { time, not_after } => format!(
                "the server's certificate has expired on {}, or our clock ({}) is wrong",
                day(not_after),
                day(time)
            ),
            CertificateError::NotValidYetContext { time, not_before } => format!(
                "the server's certificate is not valid yet, before {}, or our clock ({}) is wrong",
                day(not_before),
                day(time)
            ),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                format!("the server's certificate is for another name: {tls}")
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                "the server's certificate is not for servers: its extended key usage lacks serverAuth"
                    .to_owned()
            }
            CertificateError::BadSignature => {
                "the server's certificate was not signed by the trusted CA that it names (bad signature): is there \
                 another CA of that name?"
                    .to_owned()
            }
            CertificateError::Other(OtherError(why)) if why.is::<Unpinned>() || why.is::<Untrusted>() => {
                why.to_string()
            }
            _ => format!("the server's certificate is not acceptable: {tls}"),
        },
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            format!(
                "what answers there does not speak TLS ({tls}): is it ws:// or http://, or another service?"
            )
        }
        Error::AlertReceived(alert) => {
            format!("the server refused our side of TLS (alert {alert:?}): {}", advice(*alert))
        }
        Error::PeerIncompatible(_)
        | Error::PeerMisbehaved(PeerMisbehaved::SelectedUnofferedCipherSuite) => {
            format!("the server's TLS is too old or too weak: {tls}; {WANTED}")
        }
        _ => tls.to_string(),
    }
}

/// What a server must speak.
const WANTED: &str =
    "it must speak TLS 1.2 or 1.3 with a cipher suite of today, as opamp.server.tls allows";

/// What a person should look at when a server ends TLS with such an alert.
const fn advice(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::CertificateRequired => {
            "it demands a client certificate: opamp.server.tls.cert_file and key_file"
        }
        A::CertificateExpired => "our client certificate has expired, or its clock is wrong",
        A::CertificateRevoked => "our client certificate was revoked",
        A::UnknownCA => "it does not know the CA of our client certificate",
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateUnknown
        | A::DecryptError
        | A::AccessDenied => {
            "it does not accept our client certificate, or wants one and we have none"
        }
        A::ProtocolVersion => {
            "it speaks no version of TLS that we do; it must speak TLS 1.2 or 1.3, as opamp.server.tls allows"
        }
        A::HandshakeFailure | A::InsufficientSecurity => {
            "no cipher suite or kind of key in common, or it demands a client certificate and we have none"
        }
        A::UnrecognisedName => "it does not know the name in opamp.server.endpoint",
        _ => "does it want a client certificate?",
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// As an offer would have it: a root, and what else `change` says.
    fn tls(directory: &Path, change: impl FnOnce(&mut Tls)) -> Tls {
        let made = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        std::fs::write(directory.join("ca.pem"), made.cert.pem()).unwrap();
        std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        let mut tls = Tls {
            ca_file: Some(directory.join("ca.pem")),
            client: None,
            include_system_ca_certs_pool: false,
            min_version: TlsVersion::V12,
            max_version: TlsVersion::V13,
            pinned_spki_sha256: Vec::new(),
            insecure_skip_verify: false,
            cipher_suites: Vec::new(),
            enroll: None,
            renew_before: Duration::ZERO,
        };
        change(&mut tls);
        tls
    }

    #[test]
    fn suites_are_chosen_by_their_iana_names() {
        let directory = tempfile::tempdir().unwrap();
        let suites = |names: &[&str], min, max| {
            let tls = tls(directory.path(), |tls| {
                tls.cipher_suites = names.iter().map(|name| (*name).to_owned()).collect();
                (tls.min_version, tls.max_version) = (min, max);
            });
            check(&tls)?;
            let provider = provider(&tls)?;
            Ok::<_, String>(provider.cipher_suites.iter().map(iana).collect::<Vec<_>>())
        };
        let (old, new) = (TlsVersion::V12, TlsVersion::V13);
        assert_eq!(suites(&[], old, new).unwrap().len(), 9);
        assert_eq!(suites(&[], new, new).unwrap().len(), 3);
        for suite in ring::default_provider().cipher_suites {
            let own = suite.suite().as_str().unwrap().replacen("TLS13_", "TLS_", 1);
            assert_eq!(iana(&suite), own);
        }
        let some = [
            "TLS_CHACHA20_POLY1305_SHA256",
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "TLS_RSA_WITH_RC4_128_SHA",
        ];
        let taken = suites(&some, old, new).unwrap();
        assert_eq!(taken, [some[0], some[1]]);
        assert_eq!(suites(&some, new, new).unwrap(), [some[0]]);
        assert_eq!(suites(&some, old, old).unwrap(), [some[1]]);
        for names in [&some[2..], &["TLS13_AES_128_GCM_SHA256"], &[""]] {
            let why = suites(names, old, new).unwrap_err();
            assert!(
                why.contains("cipher_suites") && why.contains("TLS_AES_128_GCM_SHA256"),
                "{why}"
            );
        }
        // Known, but not of the versions that are spoken.
        let why = suites(&some[..1], old, old).unwrap_err();
        assert!(why.contains("known are TLS_ECDHE") && !why.contains(some[0]), "{why}");
    }

    #[test]
    fn who_refuses_is_told_from_who_is_not_reached() {
        let tls = |error: Error| failure(&std::io::Error::new(ErrorKind::InvalidData, error)).kind;
        let alert = |alert| tls(Error::AlertReceived(alert));
        for refused in [
            alert(AlertDescription::CertificateRequired),
            alert(AlertDescription::HandshakeFailure),
            alert(AlertDescription::UnknownCA),
            alert(AlertDescription::ProtocolVersion),
            tls(CertificateError::UnknownIssuer.into()),
            tls(PeerMisbehaved::SelectedUnofferedCipherSuite.into()),
        ] {
            assert_eq!(refused, LinkErrorKind::Refused);
        }
        for failed in [
            alert(AlertDescription::InternalError),
            // A captive portal, a web server.
            tls(InvalidMessage::InvalidContentType.into()),
            failure(&ErrorKind::ConnectionReset.into()).kind,
            failure(&ErrorKind::UnexpectedEof.into()).kind,
            failure(&ErrorKind::TimedOut.into()).kind,
        ] {
            assert_eq!(failed, LinkErrorKind::Failed);
        }
    }

    #[test]
    fn what_no_connection_can_be_made_of_is_found_before() {
        type Change<'c> = &'c dyn Fn(&mut Tls);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let with = |change: Change<'_>| check(&tls(directory.path(), change));
        let client = |cert: &str, key: &str| {
            Some(crate::settings::ClientCertificate { cert_file: at(cert), key_file: at(key) })
        };
        assert_eq!(with(&|_| {}), Ok(()));
        assert_eq!(with(&|tls| tls.client = client("ca.pem", "key.pem")), Ok(()));
        let other = rcgen::KeyPair::generate().unwrap();
        std::fs::write(at("other.pem"), other.serialize_pem()).unwrap();
        std::fs::write(at("empty.pem"), "").unwrap();
        let cases: [(Change<'_>, &str); 6] = [
            (&|tls| tls.ca_file = Some(at("absent.pem")), "absent.pem"),
            (&|tls| tls.ca_file = Some(at("empty.pem")), "no certificate"),
            (&|tls| tls.client = client("ca.pem", "other.pem"), "other.pem"),
            (&|tls| tls.client = client("ca.pem", "empty.pem"), "empty.pem"),
            (&|tls| tls.client = client("empty.pem", "key.pem"), "no certificate"),
            (&|tls| tls.min_version = TlsVersion::V13, ""),
        ];
        for (change, word) in cases {
            let found = with(change);
            assert!(found.is_ok() == word.is_empty(), "{word}: {found:?}");
            assert!(found.err().unwrap_or_default().contains(word), "{word}");
        }
        let backwards = |tls: &mut Tls| {
            (tls.min_version, tls.max_version) = (TlsVersion::V13, TlsVersion::V12);
        };
        assert!(with(&backwards).is_err());
    }
}
