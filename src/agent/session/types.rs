//! What a session goes by, what it wants done, and what it tells.

use core::time::Duration;

use chiton_proto::{
    AgentDescription, AgentToServer, ComponentHealth, ConnectionSettingsStatus, PackageStatuses,
    RemoteConfigStatus,
};

use crate::agent::uid::Uid;
use crate::clock::Mono;
use crate::settings::{Backoff, Timeouts};

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Either side speaks when it wants.
    WebSocket,
    /// The agent asks, the server answers; one request at a time (opamp-spec L539).
    Http,
}

/// What governs a session.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What an error of the link is about.
    pub endpoint: String,
    /// The transport of the endpoint.
    pub wire: Wire,
    /// Time between heartbeats; [`None`]: off.
    pub heartbeat: Option<Duration>,
    /// Time between polls over plain HTTP.
    pub poll: Duration,
    /// Named time-outs.
    pub timeouts: Timeouts,
    /// Between attempts to connect.
    pub reconnect: Backoff,
    /// OpAMP's capability bits, as they are usable.
    pub capabilities: u64,
    /// Ask for a uid until the server gives one (opamp-spec L635).
    pub request_uid: bool,
}

/// Why a link failed or was lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkError {
    /// What, on what, why: one line.
    pub text: String,
    /// Whose doing it was.
    pub kind: LinkErrorKind,
}

/// Whose doing it was, as far as it matters for trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkErrorKind {
    /// Network, name, time: try again with back-off.
    Failed,
    /// Somebody answered, and did not take us, or we not them: certificates, 401, 403. Try again with back-off.
    Refused,
    /// The server asked for time: 429, 503 (opamp-spec L3539), with what Retry-After said.
    Throttled(Option<Duration>),
    /// The peer broke the protocol and we dropped it: never reconnect at once.
    Fault,
}

/// The values that a report is made of.
pub trait Reportable {
    /// Who we are.
    fn description(&self, uid: Uid) -> AgentDescription;
    /// How we are.
    fn health(&self) -> ComponentHealth;
    /// What became of the last remote config.
    fn remote_config_status(&self) -> RemoteConfigStatus;
    /// What became of the packages.
    fn package_statuses(&self) -> PackageStatuses;
    /// What became of the last connection settings.
    fn connection_status(&self) -> ConnectionSettingsStatus;
}

/// What the session has learnt about the way that it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// A server answered there: it takes us.
    Proven,
    /// An attempt failed, or the connection was lost.
    Failed(LinkError),
    /// The server refused the request for a certificate.
    RequestRefused(String),
}

/// What the session wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Open link number `link`.
    Connect {
        /// Events of another number are stale.
        link: u64,
    },
    /// Send one message.
    Send(Box<Outgoing>),
    /// Send a WebSocket ping.
    Ping,
    /// Close in order: everything sent before goes out first.
    Close,
    /// Drop the link without ceremony.
    Abort,
    /// Keep a uid that the server gave; the answer is [`uid_kept`](super::Session::uid_kept).
    KeepUid(Uid),
    /// Tell the log.
    Say(Tone, String),
}

/// How loud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// Something to act on.
    Warning,
    /// The same, said for a message of the peer: it may send many.
    Peer,
    /// Good to know.
    Info,
    /// For those who look closely.
    Debug,
}

/// One message to the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    /// All of it but the effective config.
    pub message: AgentToServer,
    /// Put the effective config in: it may be large, so it is read when it is sent and not kept in memory.
    pub effective_config: bool,
}

/// What is left of a received message when the session has taken its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// For us: the offers in it count.
    Process,
    /// A command: every other field is to be ignored (opamp-spec L1011).
    CommandOnly,
    /// Not for us, or on a link that is gone.
    Ignore,
}

/// The connection as `chiton status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Not wanted.
    Idle,
    /// Waiting for the next attempt.
    Waiting,
    /// An attempt is under way.
    Connecting,
    /// Up since then.
    Up(Mono),
    /// Being closed.
    Closing,
}
