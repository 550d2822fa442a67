//! What the server is told at its start, and its named bounds.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use axum::http::Uri;

use crate::journal::Journal;

/// Where OpAMP is spoken by default.
const OPAMP_PORT: u16 = 4320;
/// Where REST is spoken by default.
const REST_PORT: u16 = 4321;

/// Bytes of a public URL.
const MAX_PUBLIC_URL: usize = 512;

/// Everything [`Server::start`](crate::Server::start) needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where agents connect. Port 0 takes a free one.
    pub opamp: SocketAddr,
    /// Where REST and the page are served. Port 0 takes a free one.
    pub rest: SocketAddr,
    /// Whether `rest` may be an address that other machines reach.
    pub rest_exposure: RestExposure,
    /// Where state is kept.
    pub database: Database,
    /// TLS for agents; `None` speaks plain text.
    pub tls: Option<TlsFiles>,
    /// What certificates agents are asked for, where `tls` is given.
    pub client_auth: ClientAuth,
    /// The authority that makes certificates for agents; `None`: this server makes none.
    pub authority: Option<AuthorityConfig>,
    /// How agents reach this server, such as `https://fleet.example.com:4320`, for the URLs of packages. `None` uses
    /// what each agent asked for: the Host header, and https where `tls` is given.
    pub public_url: Option<String>,
    /// Where the server writes what happens.
    pub journal: Journal,
    /// Bounds that an operator may want to change.
    pub limits: Limits,
}

impl Default for Config {
    /// OpAMP on every address, REST on loopback, state in memory, no TLS.
    fn default() -> Self {
        Self {
            opamp: SocketAddr::from((Ipv4Addr::UNSPECIFIED, OPAMP_PORT)),
            rest: SocketAddr::from((Ipv4Addr::LOCALHOST, REST_PORT)),
            rest_exposure: RestExposure::LoopbackOnly,
            database: Database::Memory,
            tls: None,
            client_auth: ClientAuth::Default,
            authority: None,
            public_url: None,
            journal: Journal::Stderr,
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Whether a text can stand before the path of a package's URL.
    ///
    /// # Errors
    /// What is wrong with it, for the person who wrote it.
    pub fn check_public_url(url: &str) -> Result<(), String> {
        let wrong = || {
            format!(
                "{url:?}: it must be http:// or https:// with a host, and no query, such as https://fleet.example.com:4320"
            )
        };
        let parsed: Uri = url.parse().map_err(|_| wrong())?;
        let scheme = matches!(parsed.scheme_str(), Some("http" | "https"));
        let host =
            parsed.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'));
        if scheme && host && parsed.query().is_none() && url.len() <= MAX_PUBLIC_URL {
            Ok(())
        } else {
            Err(wrong())
        }
    }
}

/// Who may reach REST. It has no authentication yet, so this is its only guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestExposure {
    /// The address must be a loopback one, and requests must name the server by a loopback name.
    LoopbackOnly,
    /// Any address and any name: whoever reaches the port can push configs.
    AnyAddress,
}

/// Where state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// Nowhere: it ends with the server.
    Memory,
    /// In this SQLite file, made when absent.
    File(PathBuf),
}

/// The PEM files of the OpAMP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate chain, leaf first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// When given, agents must present a certificate from one of these authorities.
    pub client_ca: Option<PathBuf>,
}

/// Whether agents must show a certificate. One that is shown must be good, whatever is said here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Required where [`TlsFiles::client_ca`] is given; else optional where there is an authority; else not asked for.
    Default,
    /// They may come without one: how a new agent asks for its first.
    Optional,
    /// They may not.
    Required,
}

/// The certificate authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityConfig {
    /// Where it is.
    pub files: AuthorityFiles,
    /// Who approves requests.
    pub approval: Approval,
    /// How long certificates are valid.
    pub lifetime: Duration,
    /// The common name that a request must have, with `{instance_uid}` in it.
    pub common_name: String,
}

impl AuthorityConfig {
    /// An authority in this directory: a person approves, certificates are valid for 90 days, the name is the uid.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self {
            files: AuthorityFiles::Directory(directory),
            approval: Approval::Manual,
            lifetime: Duration::from_secs(90 * 86_400),
            common_name: "{instance_uid}".to_owned(),
        }
    }
}

/// Where the authority's certificate and key are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthorityFiles {
    /// `ca.pem` and `ca.key` in this directory, made once.
    Directory(PathBuf),
    /// These PEM files.
    Given {
        /// Its certificate.
        cert: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// Who approves requests for certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    /// The server, where the request is right: whoever reaches it is believed to be the agent that it says it is.
    Auto,
    /// A person, by REST or on the page.
    Manual,
}

/// Bounds with their defaults.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest OpAMP message, each way, after decompression: 4 MiB.
    pub max_message_size: usize,
    /// Agents known at once: 10,000. One that was not seen for an hour makes room for a new one.
    pub max_agents: usize,
    /// Largest sum of names and bodies in one config: 1 MiB.
    pub max_config_size: usize,
    /// Files in one config: 32.
    pub max_config_files: usize,
    /// Largest file of a package: 2 GiB.
    pub max_package_size: u64,
    /// Files of packages that arrive at once: 8. Who brings one more is told to come back.
    pub max_uploads: usize,
    /// Files of packages that are sent at once: 256. Who asks for one more is told to come back.
    pub max_downloads: usize,
    /// How long an older connection may take to prove that it lives when a second one claims its uid: 3 s.
    pub duplicate_probe: Duration,
    /// An agent that was not heard of for so long is shown as stale: 90 s, three heartbeats.
    pub stale_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message_size: 4 << 20,
            max_agents: 10_000,
            max_config_size: 1 << 20,
            max_config_files: 32,
            max_package_size: 2 << 30,
            max_uploads: 8,
            max_downloads: 256,
            duplicate_probe: Duration::from_secs(3),
            stale_after: Duration::from_secs(90),
        }
    }
}
