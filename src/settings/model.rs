//! The validated settings: what the rest of Chiton reads. Every value here has passed its check.
//!
//! The keys, their defaults and their meaning are PRODUCT.md §3's; a field has the key's name.

use core::time::Duration;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub use crate::credentials::KeyKind;
use crate::secret::Secret;

/// All of `chiton.yaml`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `opamp.server`.
    pub server: Server,
    /// `opamp.agent`.
    pub agent: Agent,
    /// `opamp.capabilities`.
    pub capabilities: Capabilities,
    /// `opamp.health`.
    pub health: Health,
    /// `opamp.workload`; absent: files are placed and health says "no workload".
    pub workload: Option<Workload>,
    /// `opamp.local_config_path`: lies beneath the remote config, or alone until one arrives.
    pub local_config_path: Option<PathBuf>,
    /// `opamp.remote_config`.
    pub remote_config: RemoteConfig,
    /// `opamp.effective_config.redact`: patterns with `*`, matched without regard to case.
    pub redact: Vec<String>,
    /// `opamp.packages_dir`, `{state_dir}` already put in.
    pub packages_dir: PathBuf,
    /// `opamp.packages`.
    pub packages: Packages,
    /// `opamp.state_dir`, absolute.
    pub state_dir: PathBuf,
    /// `opamp.status_socket`, absolute.
    pub status_socket: PathBuf,
    /// `opamp.credentials`.
    pub credentials: Credentials,
    /// `opamp.sandbox`.
    pub sandbox: Sandbox,
    /// `opamp.log`.
    pub log: Log,
}

/// `opamp.server`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// The one address to connect to.
    pub endpoint: Endpoint,
    /// Sent with the upgrade or with every POST. A name may come several times.
    pub headers: Vec<(String, Secret<String>)>,
    /// `tls`.
    pub tls: Tls,
    /// `proxy`.
    pub proxy: Option<Proxy>,
    /// Time between heartbeats, counted from the last message of any kind. 1 s to 24 h, or zero: off.
    pub heartbeat_interval: Duration,
    /// Time between polls over plain HTTP when idle. 1 s to 24 h.
    pub poll_interval: Duration,
    /// Back-off between connection attempts: exponential with full jitter.
    pub reconnect: Backoff,
    /// `timeouts`.
    pub timeouts: Timeouts,
    /// Largest message each way, bytes, after decompression.
    pub max_message_size: usize,
    /// Host patterns that redirects, offers and downloads may name.
    pub allow_endpoints: Vec<String>,
    /// Why no connection can be tried: a variable or a file that the settings name is missing.
    pub unusable: Option<String>,
}

/// A parsed endpoint URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which transport, and whether over TLS.
    pub scheme: Scheme,
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port; where the URL names none, the scheme's own: 80 or 443.
    pub port: u16,
    /// Path and query, starting with `/`; `/v1/opamp` where the URL has none (opamp-spec L330).
    pub path: String,
}

/// The scheme of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// WebSocket without TLS.
    Ws,
    /// WebSocket over TLS.
    Wss,
    /// Plain HTTP without TLS.
    Http,
    /// Plain HTTP over TLS.
    Https,
}

/// `opamp.server.tls`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// PEM bundle of trust roots; absent: the system's.
    pub ca_file: Option<PathBuf>,
    /// Client certificate and its key, PEM: both or neither.
    pub client: Option<ClientCertificate>,
    /// The system's roots beside `ca_file`.
    pub include_system_ca_certs_pool: bool,
    /// Lowest version to speak.
    pub min_version: TlsVersion,
    /// Highest version to speak.
    pub max_version: TlsVersion,
    /// SHA-256 of SubjectPublicKeyInfo; any match in the chain; empty: no pinning.
    pub pinned_spki_sha256: Vec<[u8; 32]>,
    /// No verification at all; warned about at each connect.
    pub insecure_skip_verify: bool,
    /// Names as IANA writes them, from offers only; empty: all that rustls has.
    pub cipher_suites: Vec<String>,
    /// `enroll`: asks the server to sign a certificate for a key that is made here.
    pub enroll: Option<Enroll>,
    /// So long before its end a certificate that the server gave is renewed.
    pub renew_before: Duration,
}

/// `opamp.server.tls.enroll`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enroll {
    /// Common name of the request, `{instance_uid}` not yet put in.
    pub common_name: String,
    /// Kind of the key.
    pub key: KeyKind,
}

/// Files of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Chain, leaf first.
    pub cert_file: PathBuf,
    /// PKCS#8, SEC1 or PKCS#1 key.
    pub key_file: PathBuf,
}

/// A TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// `opamp.server.proxy`.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxy {
    /// `http://host:port` or `https`, user info allowed: hence secret.
    pub url: Secret<String>,
    /// Headers of the CONNECT request.
    pub connect_headers: Vec<(String, Secret<String>)>,
    /// Hosts that are reached directly.
    pub no_proxy: Vec<String>,
}

/// An exponential back-off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    /// The first upper bound.
    pub initial: Duration,
    /// The last upper bound.
    pub max: Duration,
}

/// `opamp.server.timeouts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Name lookup and TCP connect, each address.
    pub connect: Duration,
    /// TLS handshake, and the HTTP upgrade after it.
    pub tls: Duration,
    /// Silence after a message of ours before a ping is sent.
    pub answer: Duration,
    /// Silence after a ping before the connection is given up.
    pub pong: Duration,
}

/// `opamp.agent`.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Where the instance uid comes from.
    pub instance_id: InstanceId,
    /// `service.name`.
    pub service_name: String,
    /// `service.version`; empty: Chiton's own.
    pub service_version: String,
    /// `description.identifying_attributes`.
    pub identifying_attributes: BTreeMap<String, String>,
    /// `description.non_identifying_attributes` with `labels` over them.
    pub non_identifying_attributes: BTreeMap<String, String>,
    /// Ask the server for a uid until it gives one (opamp-spec L635).
    pub request_instance_uid: bool,
}

/// `opamp.agent.instance_id`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstanceId {
    /// Made once, kept, bound to the hardware.
    Auto,
    /// Given as a UUID.
    Uuid([u8; 16]),
    /// Any other text: UUIDv5 of it and the machine-id.
    Text(String),
}

/// `opamp.capabilities`, as the user set them; what is usable is decided in `agent::capabilities`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "OpAMP's capabilities are a set of independent bits"
)]
#[expect(missing_docs, reason = "each is OpAMP's capability of that name")]
pub struct Capabilities {
    pub accepts_remote_config: bool,
    pub accepts_packages: bool,
    pub accepts_opamp_connection_settings: bool,
    pub accepts_other_connection_settings: bool,
    pub accepts_restart_command: bool,
    pub reports_status: bool,
    pub reports_effective_config: bool,
    pub reports_package_statuses: bool,
    pub reports_own_traces: bool,
    pub reports_own_metrics: bool,
    pub reports_own_logs: bool,
    pub reports_health: bool,
    pub reports_remote_config: bool,
    pub reports_heartbeat: bool,
    pub reports_available_components: bool,
    pub reports_connection_settings_status: bool,
}

/// `opamp.health`.
#[derive(Clone, Debug, PartialEq)]
pub struct Health {
    /// Time between runs of the checks outside a gate. 100 ms to 24 h.
    pub check_interval: Duration,
    /// A check that passes is reported as failed after so many failures in a row.
    pub unhealthy_after: u32,
    /// A check that is reported as failed is reported as passed after so many passes in a row.
    pub healthy_after: u32,
    /// Time between reports of `metrics`.
    pub metrics_interval: Duration,
    /// Attributes to report.
    pub metrics: Vec<String>,
    /// The Collector's Prometheus endpoint, for the metrics that only it knows.
    pub scrape: Option<HttpTarget>,
    /// All must pass; process-alive is always one of them.
    pub checks: Vec<Check>,
}

/// One of `opamp.health.checks`.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What is done.
    pub kind: CheckKind,
    /// How long it may take.
    pub timeout: Duration,
}

/// The kinds of check.
#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    /// GET answers 2xx.
    Http(HttpTarget),
    /// A TCP connection succeeds: `host:port`.
    Tcp {
        /// Host name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// A program ends with 0.
    Exec(Vec<String>),
    /// Resident memory of the workload's processes stays at or below so many bytes.
    MemoryMax(u64),
    /// CPU use of the workload's processes stays at or below so many cores.
    CpuMax(f64),
}

impl CheckKind {
    /// Whether it is about what the workload's processes use.
    #[must_use]
    pub const fn is_limit(&self) -> bool {
        matches!(self, Self::MemoryMax(_) | Self::CpuMax(_))
    }
}

/// An `http://` URL to check. TLS is not spoken to a local check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpTarget {
    /// Host name or address, IPv6 without brackets.
    pub host: String,
    /// Port, 80 where the URL has none.
    pub port: u16,
    /// Path and query, at least `/`.
    pub path: String,
}

/// `opamp.workload`.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Who owns the process.
    pub owner: Owner,
    /// Added to the environment.
    pub env: BTreeMap<String, String>,
    /// Run as this user, when started as root.
    pub user: Option<String>,
    /// Capabilities kept for the workload (`cap_net_bind_service` …).
    pub ambient_capabilities: Vec<String>,
    /// −1000 to 1000.
    pub oom_score_adj: Option<i16>,
    /// SIGTERM to SIGKILL.
    pub stop_timeout: Duration,
    /// Back-off after a crash.
    pub restart: Backoff,
    /// What is done where it takes too much, or crashes again and again.
    pub degrade: Vec<Degrade>,
}

/// One of `opamp.workload.degrade`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Degrade {
    /// What must have happened.
    pub when: DegradeWhen,
    /// What is done then.
    pub action: DegradeAction,
    /// So long it is not done again.
    pub cooldown: Duration,
}

/// `when` of [`Degrade`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DegradeWhen {
    /// The check `memory_max` fails.
    MemoryMax,
    /// The check `cpu_max` fails.
    CpuMax,
    /// It crashes again and again.
    CrashLoop,
}

/// `do` of [`Degrade`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DegradeAction {
    /// Stop and start.
    Restart,
    /// Run with this configuration instead.
    Use(PathBuf),
}

impl Workload {
    /// Whether it can be restarted when the server says so.
    #[must_use]
    pub fn restarts(&self) -> bool {
        match &self.owner {
            Owner::Chiton { .. } => true,
            Owner::External(external) => external.restarts(),
        }
    }
}

/// Who starts and stops the workload.
#[derive(Clone, Debug, PartialEq)]
pub enum Owner {
    /// Chiton does: the command, its placeholders not yet put in.
    Chiton {
        /// Program and arguments.
        command: Vec<String>,
    },
    /// The init system does.
    External(External),
}

/// `opamp.workload.external`.
#[derive(Clone, Debug, PartialEq)]
pub struct External {
    /// How its processes are found.
    pub by: ExternalBy,
    /// Command that makes it re-read its configuration.
    pub reload: Vec<String>,
    /// Command that restarts it.
    pub restart: Vec<String>,
}

impl External {
    /// Whether there is a way to restart it.
    #[must_use]
    pub fn restarts(&self) -> bool {
        matches!(self.by, ExternalBy::Unit(_)) || !self.restart.is_empty()
    }
}

/// How an external workload is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalBy {
    /// A systemd unit.
    Unit(String),
    /// A file with its pid.
    PidFile(PathBuf),
    /// A cgroup directory.
    Cgroup(PathBuf),
}

/// `opamp.remote_config`.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteConfig {
    /// Name of the main file; empty: by the rules of `agent::configset`.
    pub main_file: String,
    /// `files` (each object is a file) or `merge` (all into the main file).
    pub layout: Layout,
    /// Dry run of the candidate; empty: none.
    pub validate: Vec<String>,
    /// What makes the workload read a new configuration.
    pub apply: Apply,
    /// The health gate.
    pub rollback: Rollback,
    /// Between trials.
    pub min_interval: Duration,
    /// What a set may contain.
    pub allow: Allow,
    /// Generations kept.
    pub history: usize,
    /// Refuse what is not signed.
    pub require_signature: bool,
}

/// `opamp.remote_config.layout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Each object is placed as a file of its name.
    Files,
    /// All objects are merged into the main file, in name order, the empty-named last.
    Merge,
}

/// `apply` of configs and of packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Apply {
    /// Stop and start.
    Restart,
    /// SIGHUP.
    Reload,
    /// A command.
    Command(Vec<String>),
}

/// `opamp.remote_config.rollback`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rollback {
    /// The longest a trial may take to prove itself.
    pub window: Duration,
    /// Between checks inside the window.
    pub interval: Duration,
    /// Checks in a row that commit.
    pub successes: u32,
    /// Trials of one candidate that may be interrupted.
    pub attempts: u32,
    /// Late rollback.
    pub crash_loop: CrashLoop,
}

/// `opamp.remote_config.rollback.crash_loop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashLoop {
    /// So many crashes…
    pub crashes: u32,
    /// …within so long after the commit.
    pub within: Duration,
}

/// `opamp.remote_config.allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Patterns that placed names must match.
    pub files: Vec<String>,
    /// Objects in a set.
    pub max_files: usize,
    /// Bytes of a whole set.
    pub max_size: usize,
    /// Bytes that may be merged (merging costs about 30 times that in memory).
    pub max_merge: usize,
}

/// `opamp.packages`.
#[derive(Clone, Debug, PartialEq)]
pub struct Packages {
    /// PEM files of Ed25519 public keys.
    pub trusted_keys: Vec<PathBuf>,
    /// Signatures needed, by different keys.
    pub threshold: usize,
    /// Key ids (hex) that no longer count.
    pub revoked_keys: Vec<String>,
    /// Refuse what is not signed.
    pub require_signature: bool,
    /// Which forms of signature count.
    pub signature: SignatureForm,
    /// Floors of the anti-rollback counter by package name.
    pub min_counter: BTreeMap<String, u64>,
    /// Largest file, bytes.
    pub max_size: u64,
    /// Bytes a second; 0 is unlimited.
    pub bandwidth: u64,
    /// What makes the workload use a new package.
    pub apply: Apply,
    /// Dry run of a candidate set; empty: none.
    pub verify: Vec<String>,
    /// Run after a set is in place; empty: none.
    pub after_install: Vec<String>,
    /// An empty offer removes all offered packages.
    pub allow_empty: bool,
}

/// `opamp.packages.signature`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureForm {
    /// Signed manifests only.
    Manifest,
    /// Also 64 raw bytes over the file's SHA-256 (no downgrade protection).
    Digest,
}

/// `opamp.credentials`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Directory where the committed credentials are placed for others to use.
    pub export: Option<PathBuf>,
    /// Run after they have changed; empty: nothing.
    pub on_change: Vec<String>,
}

/// `opamp.sandbox`: whether what binds commands of the settings too is put in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Where no command can be hurt by it.
    Auto,
    /// Also where a command might need more.
    On,
    /// Never.
    Off,
}

/// `opamp.log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is written.
    pub level: Level,
    /// How a line looks.
    pub format: LogFormat,
    /// Where lines go.
    pub to: LogTo,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the usual four")]
pub enum Level {
    Error,
    Warn,
    Info,
    Debug,
}

/// `opamp.log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For eyes.
    Text,
    /// One JSON object a line.
    Json,
}

/// `opamp.log.to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTo {
    /// journald under systemd, else stderr.
    Auto,
    /// Always stderr.
    Stderr,
    /// /dev/log.
    Syslog,
    /// journald's socket.
    Journald,
}
