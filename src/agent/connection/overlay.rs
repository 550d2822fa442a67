//! What a server's offers change of the settings' own connection. One overlay is whole: it says all that was ever
//! offered and is in force, and is laid over the settings as they are now.

use core::time::Duration;

use bytes::Bytes;

use super::memory::Generation;
use crate::agent::rollout::Digest;
use crate::secret::Secret;
use crate::settings::{Endpoint, TlsVersion};

/// What differs from the settings. Key and certificates lie beside it, in files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overlay {
    /// `destination_endpoint`.
    pub endpoint: Option<Endpoint>,
    /// `headers`: all of them.
    pub headers: Option<Vec<(String, Secret<String>)>>,
    /// `certificate`: [`CERTIFICATE`] and [`KEY`] are there.
    pub certificate: bool,
    /// `tls`.
    pub tls: Option<Tls>,
    /// `proxy`.
    pub proxy: Option<Proxy>,
    /// `heartbeat_interval_seconds`; zero: off.
    pub heartbeat: Option<Duration>,
    /// What the settings said when this was offered: a part that they say otherwise by now no longer counts.
    pub over: Own,
}

/// TLSConnectionSettings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// `ca_pem_contents`: [`TRUST`] is there.
    pub trust: bool,
    /// The system's roots beside it.
    pub include_system_ca_certs_pool: bool,
    /// Allowed only where the settings allow it.
    pub insecure_skip_verify: bool,
    /// Lowest version to speak.
    pub min_version: TlsVersion,
    /// Highest version to speak.
    pub max_version: TlsVersion,
    /// Names as IANA writes them; empty: all that rustls has.
    pub cipher_suites: Vec<String>,
}

/// ProxyConnectionSettings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// `url`.
    pub url: Secret<String>,
    /// `connect_headers`.
    pub connect_headers: Vec<(String, Secret<String>)>,
}

/// Digests of the settings' own parts of the connection, the first eight bytes each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// `endpoint`.
    pub endpoint: u64,
    /// `headers`.
    pub headers: u64,
    /// `tls.cert_file` and `key_file`.
    pub certificate: u64,
    /// The rest of `tls`.
    pub tls: u64,
    /// `proxy`.
    pub proxy: u64,
    /// `heartbeat_interval`.
    pub heartbeat: u64,
}

/// The client's chain, leaf first, PEM.
pub const CERTIFICATE: &str = "cert.pem";
/// Its key, PEM.
pub const KEY: &str = "key.pem";
/// Trust roots, PEM.
pub const TRUST: &str = "ca.pem";

/// The files that an offer brings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Material {
    /// `certificate.cert`: PEM.
    pub certificate: Option<Bytes>,
    /// `certificate.private_key`: PEM. Without it the certificate must be for the key of the pending request.
    pub private_key: Option<Secret<Bytes>>,
    /// `certificate.ca_cert`: PEM. Never a trust root: it only checks who issued the certificate (opamp.proto P502).
    pub issuer: Option<Bytes>,
    /// `tls.ca_pem_contents`.
    pub trust: Option<Bytes>,
}

/// What is to be placed as a new generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// All of it, what was offered before included.
    pub overlay: Overlay,
    /// The files that are new.
    pub material: Material,
    /// Where the other files are taken from.
    pub base: Option<Generation>,
}

/// What became of a candidate.
#[derive(Clone, Debug, PartialEq)]
pub enum Staged {
    /// It lies there, durable, and what could be checked without a connection is good.
    Ready(Generation),
    /// These contents were named as known: nothing was written.
    Known(Digest),
    /// It is not acceptable: says why.
    Refused(String),
    /// The disk refused: says why.
    Failed(String),
}
