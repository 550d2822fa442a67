//! Certificates of every kind, and TLS servers with them.

use std::fs;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use super::Home;

/// A CA.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(Self::params(name), key).unwrap() }
    }

    /// One below this.
    pub(crate) fn below(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> Self {
        let (mut params, key) = (Self::params(name), KeyPair::generate().unwrap());
        change(&mut params);
        Self { issuer: CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap() }
    }

    fn params(name: &str) -> CertificateParams {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub(crate) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    /// A certificate and its key, PEM.
    pub(crate) fn issue(
        &self,
        name: &str,
        change: impl Fn(&mut CertificateParams),
    ) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        (self.sign(&params, &key), key.serialize_pem())
    }

    /// A certificate for this key, PEM.
    pub(crate) fn sign(&self, params: &CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// A certificate for the key of this request (PEM).
    pub(crate) fn certify(&self, csr: &[u8], change: impl Fn(&mut CertificateParams)) -> String {
        let csr = core::str::from_utf8(csr).unwrap();
        let mut csr = rcgen::CertificateSigningRequestParams::from_pem(csr).unwrap();
        change(&mut csr.params);
        csr.signed_by(&self.issuer).unwrap().pem()
    }

    /// A server with such a certificate, which demands one of these clients.
    pub(crate) fn serve(
        &self,
        name: &str,
        change: impl Fn(&mut CertificateParams),
        clients: Option<&Self>,
    ) -> Arc<ServerConfig> {
        self.server(name, change, clients, false)
    }

    /// A server that asks for a client certificate and takes no for an answer.
    pub(crate) fn serve_curious(&self, name: &str, clients: &Self) -> Arc<ServerConfig> {
        self.server(name, |_| {}, Some(clients), true)
    }

    fn server(
        &self,
        name: &str,
        change: impl Fn(&mut CertificateParams),
        clients: Option<&Self>,
        optional: bool,
    ) -> Arc<ServerConfig> {
        let (cert, key) = self.issue(name, change);
        let builder = ServerConfig::builder();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots
                    .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
                    .unwrap();
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots));
                let verifier = if optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        Arc::new(builder.with_single_cert(chain, key).unwrap())
    }
}

/// Writes bootstrap files and the settings that name them: `ca.pem`, `cert.pem`, `key.pem`.
pub(crate) fn bootstrap(home: &Home, trust: &Authority, client: Option<(&str, &str)>) -> String {
    bootstrap_with(home, trust, client, "")
}

/// The same, with more keys of `tls` (each after a comma).
pub(crate) fn bootstrap_with(
    home: &Home,
    trust: &Authority,
    client: Option<(&str, &str)>,
    more: &str,
) -> String {
    let place = |name: &str, pem: &str| {
        fs::write(home.path(name), pem).unwrap();
        home.path(name).display().to_string()
    };
    let ca = place("ca.pem", &trust.pem());
    match client {
        None => format!("tls: {{ ca_file: {ca}{more} }}"),
        Some((cert, key)) => {
            let (cert, key) = (place("cert.pem", cert), place("key.pem", key));
            format!("tls: {{ ca_file: {ca}, cert_file: {cert}, key_file: {key}{more} }}")
        }
    }
}
