//! `opamp.server.tls.pinned_spki_sha256`: the server's key, or that of a CA which signed it, must be a known one.
//!
//! A certificate is public: anyone may append a pinned one to a chain of his own. So a pinned key counts only where
//! it is the leaf's, or where a chain of signatures leads from the leaf to it.

use core::fmt;
use std::sync::Arc;

use futures_rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use futures_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use futures_rustls::rustls::client::verify_server_cert_signed_by_trust_anchor;
use futures_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
use futures_rustls::rustls::server::ParsedCertificate;
use futures_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

use super::websocket::base64;
use crate::credentials::certificate::Certificate;
use crate::credentials::judge::MAX_CHAIN;

use crate::sha256::Sha256;

/// The normal checks, told in words, then the pins, where there are any.
#[derive(Debug)]
pub(super) struct Pinned {
    inner: Arc<dyn ServerCertVerifier>,
    pins: Vec<[u8; 32]>,
    /// Trust roots whose keys are pinned: a server need not send its root.
    roots: RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    pub(super) fn new(
        inner: Arc<dyn ServerCertVerifier>,
        pins: &[[u8; 32]],
        roots: &RootCertStore,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        let known = |root: &&TrustAnchor<'static>| pins.contains(&digest_of(root));
        let roots = roots.roots.iter().filter(known).cloned().collect();
        Self { inner, pins: pins.to_vec(), roots, algorithms }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let leaf = ParsedCertificate::try_from(end_entity)?;
        let own = Sha256::digest(leaf.subject_public_key_info());
        if self.pins.contains(&own) {
            return Ok(());
        }
        let mut sent = RootCertStore::empty();
        sent.add_parsable_certificates(intermediates.iter().cloned());
        sent.roots.retain(|anchor| self.pins.contains(&digest_of(anchor)));
        sent.roots.extend(self.roots.roots.iter().cloned());
        let all = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&leaf, &sent, intermediates, now, all).map_err(
            |_| {
                let error = OtherError(Arc::new(Unpinned { own }));
                Error::InvalidCertificate(CertificateError::Other(error))
            },
        )
    }
}

/// SHA-256 of the SubjectPublicKeyInfo. An anchor has its content only: the SEQUENCE goes around it again.
fn digest_of(anchor: &TrustAnchor<'_>) -> [u8; 32] {
    let content = anchor.subject_public_key_info.as_ref();
    let [high, low] = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let header: &[u8] = match (high, low) {
        (0, 0..0x80) => &[0x30, low],
        (0, _) => &[0x30, 0x81, low],
        _ => &[0x30, 0x82, high, low],
    };
    let mut hash = Sha256::new();
    hash.update(header);
    hash.update(content);
    hash.finalize()
}

/// No pinned key in the chain.
#[derive(Debug)]
pub(super) struct Unpinned {
    own: [u8; 32],
}

impl fmt::Display for Unpinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no key of opamp.server.tls.pinned_spki_sha256 stands behind the server's certificate, whose own is {}: \
             somebody is in between, or the server has new keys and the pins must follow",
            base64(&self.own)
        )
    }
}

impl core::error::Error for Unpinned {}

/// Nobody that is trusted stands behind a chain: in words, why.
#[derive(Debug)]
pub(super) struct Untrusted(String);

impl Untrusted {
    fn of(end_entity: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Self {
        let sent: Vec<_> =
            intermediates.iter().take(MAX_CHAIN).flat_map(|der| Certificate::parse(der)).collect();
        let Ok(leaf) = Certificate::parse(end_entity) else {
            return Self("the server's certificate is broken".to_owned());
        };
        if leaf.issuer == leaf.subject {
            return Self(
                "the server's certificate is self-signed and not one of the trusted (unknown issuer)".to_owned(),
            );
        }
        let mut last = &leaf;
        for _ in 0..MAX_CHAIN {
            let Some(above) = sent.iter().find(|above| above.subject == last.issuer) else { break };
            last = above;
        }
        let name = last.issuer_name().unwrap_or("?");
        Self(format!(
            "the server's certificate is not signed by a trusted CA (unknown issuer): its chain ends at {name:?}; is \
             opamp.server.tls.ca_file the right one, and does the server send its intermediate certificates?"
        ))
    }
}

impl fmt::Display for Untrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Untrusted {}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        let verified = verified.map_err(|error| match error {
            Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
                let why = OtherError(Arc::new(Untrusted::of(end_entity, intermediates)));
                Error::InvalidCertificate(CertificateError::Other(why))
            }
            error => error,
        })?;
        self.verify(end_entity, intermediates, now)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use core::time::Duration;

    use futures_rustls::rustls::client::WebPkiServerVerifier;
    use futures_rustls::rustls::crypto::ring::default_provider;
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, PublicKeyData as _,
    };

    use super::*;

    type Issuer = CertifiedIssuer<'static, KeyPair>;

    /// A root, an intermediate of it, a leaf of that; and a pinned one that belongs to another chain.
    struct Chain {
        root: Issuer,
        middle: Issuer,
        leaf: CertificateDer<'static>,
        leaf_key: KeyPair,
    }

    fn ca() -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    fn key() -> KeyPair {
        KeyPair::generate().unwrap()
    }

    fn pin(key: &KeyPair) -> [u8; 32] {
        Sha256::digest(key.subject_public_key_info())
    }

    impl Chain {
        fn new() -> Self {
            let named = |name: &str| {
                let mut params = ca();
                params.distinguished_name.push(rcgen::DnType::CommonName, name);
                params
            };
            let root = CertifiedIssuer::self_signed(named("root"), key()).unwrap();
            let middle = CertifiedIssuer::signed_by(named("middle"), key(), &root).unwrap();
            let leaf_key = key();
            let params = CertificateParams::new(vec!["opamp.example".to_owned()]).unwrap();
            let leaf = params.signed_by(&leaf_key, &middle).unwrap().der().clone();
            Self { root, middle, leaf, leaf_key }
        }

        fn verifier(&self, pins: &[[u8; 32]]) -> Pinned {
            let mut roots = RootCertStore::empty();
            roots.add(self.root.der().clone()).unwrap();
            let provider = Arc::new(default_provider());
            let algorithms = provider.signature_verification_algorithms;
            let inner =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots.clone()), provider);
            Pinned::new(inner.build().unwrap(), pins, &roots, algorithms)
        }

        fn verify(
            &self,
            pins: &[[u8; 32]],
            more: &[&CertificateDer<'static>],
        ) -> Result<(), Error> {
            let mut sent = vec![self.middle.der().clone()];
            sent.extend(more.iter().map(|der| (*der).clone()));
            let name = ServerName::try_from("opamp.example").unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
            self.verifier(pins).verify_server_cert(&self.leaf, &sent, &name, &[], now).map(|_| ())
        }
    }

    fn is_unpinned(result: &Result<(), Error>) -> bool {
        matches!(result, Err(Error::InvalidCertificate(CertificateError::Other(why)))
            if why.0.is::<Unpinned>())
    }

    #[test]
    fn a_key_of_the_chain_is_enough_and_the_root_need_not_be_sent() {
        let chain = Chain::new();
        let nobody = [7; 32];
        for key in [&chain.leaf_key, chain.middle.key(), chain.root.key()] {
            assert_eq!(chain.verify(&[nobody, pin(key)], &[]), Ok(()));
        }
        let refused = chain.verify(&[nobody], &[]);
        assert!(is_unpinned(&refused), "{refused:?}");
        let text = super::super::tls::explain(&std::io::Error::other(refused.unwrap_err()));
        assert!(text.contains("pinned_spki_sha256"), "{text}");
        assert!(text.contains(&base64(&pin(&chain.leaf_key))), "{text}");
    }

    /// Anyone has the pinned server's certificate, and may append it to a chain of his own.
    #[test]
    fn a_pinned_certificate_that_signed_nothing_of_it_does_not_count() {
        let (chain, pinned) = (Chain::new(), Chain::new());
        for (key, der) in [
            (&pinned.leaf_key, &pinned.leaf),
            (pinned.middle.key(), pinned.middle.der()),
            (pinned.root.key(), pinned.root.der()),
        ] {
            let refused = chain.verify(&[pin(key)], &[der]);
            assert!(is_unpinned(&refused), "{refused:?}");
        }
    }

    #[test]
    fn pins_do_not_replace_the_normal_checks() {
        let (chain, other) = (Chain::new(), Chain::new());
        let verifier = other.verifier(&[pin(&chain.leaf_key)]);
        let name = ServerName::try_from("opamp.example").unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let sent = [chain.middle.der().clone()];
        let refused = verifier.verify_server_cert(&chain.leaf, &sent, &name, &[], now);
        // The roots have the same names and other keys.
        let wanted = Error::InvalidCertificate(CertificateError::BadSignature);
        assert_eq!(refused.err(), Some(wanted));
    }

    /// The normal checks see them first, but with insecure_skip_verify the pins are all there is.
    #[test]
    fn broken_certificates_are_errors() {
        let chain = Chain::new();
        let verifier = chain.verifier(&[pin(chain.middle.key())]);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let whole = chain.leaf.as_ref();
        for end in 0..whole.len() {
            let cut = CertificateDer::from(whole[..end].to_vec());
            let sent = [chain.middle.der().clone()];
            assert!(verifier.verify(&cut, &sent, now).is_err(), "the leaf cut at {end}");
        }
        let middle = chain.middle.der().as_ref();
        for end in 0..middle.len() {
            let cut = [CertificateDer::from(middle[..end].to_vec())];
            assert!(verifier.verify(&chain.leaf, &cut, now).is_err(), "the CA cut at {end}");
        }
        for at in 0..middle.len() {
            let mut bent = middle.to_vec();
            bent[at] ^= 0x55;
            // Some bits do not matter to a key and its signature; none may cause a panic.
            let _ = verifier.verify(&chain.leaf, &[CertificateDer::from(bent)], now);
        }
    }

    #[test]
    fn keys_of_every_length_get_their_sequence_back() {
        for (content, header) in [
            (0_usize, &[0x30, 0][..]),
            (42, &[0x30, 42]),
            (127, &[0x30, 127]),
            (128, &[0x30, 0x81, 128]),
            (255, &[0x30, 0x81, 255]),
            (256, &[0x30, 0x82, 1, 0]),
            (4000, &[0x30, 0x82, 15, 160]),
        ] {
            let content = vec![7_u8; content];
            let anchor = TrustAnchor {
                subject: Vec::new().into(),
                subject_public_key_info: content.clone().into(),
                name_constraints: None,
            };
            let whole = [header, &content].concat();
            assert_eq!(digest_of(&anchor), Sha256::digest(whole));
        }
    }
}
