//! The session: one connection to one server, what was said on it and what is due to be said.
//!
//! It knows reports only as [`Facets`]; what is in them is asked of [`Reportable`] when one is composed. The same
//! rules serve both transports: over plain HTTP a *link* is a series of polls that succeed, one at a time.

use core::time::Duration;

use bytes::Bytes;
use chiton_proto::{
    AgentDescription, AgentDisconnect, AgentToServer, AgentToServerFlags, CertificateRequest,
    ComponentHealth, ConnectionSettingsRequest, ConnectionSettingsStatus,
    OpAmpConnectionSettingsRequest, PackageStatuses, RemoteConfigStatus, ServerCapabilities,
    ServerErrorResponse, ServerErrorResponseType, ServerToAgent, ServerToAgentFlags,
    server_error_response::Details,
};

use super::backoff::{self, Jitter};
use super::cut;
use super::report::{Facets, Ledger};
use super::uid::Uid;
use crate::clock::{Mono, Now};
use crate::settings::{Backoff, Connection, Timeouts};

/// A connection that lived so long may be replaced at once when it drops, and ends a series of failures.
const SETTLED_AFTER: Duration = Duration::from_secs(60);
/// Between WebSocket pings while heartbeats are off.
const PING_WITHOUT_HEARTBEATS: Duration = Duration::from_secs(300);

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
    /// Keep a uid that the server gave; the answer is [`Session::uid_kept`].
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

/// The state of the session.
#[derive(Clone, Debug)]
pub struct Session {
    rules: Rules,
    uid: Uid,
    /// The uid before the last change: replies in flight carry it.
    previous_uid: Option<Uid>,
    sequence: u64,
    ledger: Ledger,
    /// Too large for the server, as they are: not sent until they change.
    too_large: Facets,
    link: Link,
    link_number: u64,
    failures: u32,
    jitter: Jitter,
    wants_uid: bool,
    ignored: u64,
    stopping: bool,
    /// The server asked for the wait that is under way.
    throttled: bool,
    last_error: Option<String>,
    news: Vec<News>,
}

#[derive(Clone, Debug)]
enum Link {
    /// Not started, or ended for good.
    Idle,
    Waiting {
        until: Mono,
    },
    Connecting,
    Up(Up),
    /// Goodbye was said; when the transport is done: wait until then.
    Closing {
        then: Mono,
    },
}

#[derive(Clone, Debug)]
struct Up {
    since: Mono,
    /// [`None`]: nothing yet, so the first report is due.
    last_sent: Option<Mono>,
    last_heard: Mono,
    /// Since when a message of ours is unanswered.
    unanswered: Option<Mono>,
    pinged: Option<Mono>,
    /// A valid ServerToAgent has come.
    proven: bool,
    /// What was in the last message sent.
    sent: Facets,
    /// That was a full report.
    sent_full: bool,
    /// A full report waits for the next heartbeat.
    full_at_heartbeat: bool,
    uid_changed: bool,
    server_capabilities: u64,
    /// A request for a certificate went out.
    requested: bool,
    /// Nothing has come since.
    request_open: bool,
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

impl Session {
    /// A session that has not begun. `seed` feeds the jitter.
    #[must_use]
    pub const fn new(rules: Rules, uid: Uid, seed: u64) -> Self {
        Self {
            wants_uid: rules.request_uid,
            rules,
            uid,
            previous_uid: None,
            sequence: 0,
            ledger: Ledger::full(),
            too_large: Facets::NONE,
            link: Link::Idle,
            link_number: 0,
            failures: 0,
            jitter: Jitter::new(seed),
            ignored: 0,
            stopping: false,
            throttled: false,
            last_error: None,
            news: Vec::new(),
        }
    }

    /// Opens the first link.
    pub fn start(&mut self, out: &mut Vec<Order>) {
        if matches!(self.link, Link::Idle) && !self.stopping {
            self.connect(out);
        }
    }

    /// Says goodbye and ends for good. Over when [`Session::is_over`].
    pub fn stop(&mut self, now: Now, out: &mut Vec<Order>) {
        self.stopping = true;
        match self.link {
            Link::Up(_) => self.close(now.mono, out),
            Link::Closing { .. } => {}
            Link::Connecting => {
                out.push(Order::Abort);
                self.link = Link::Idle;
            }
            Link::Idle | Link::Waiting { .. } => self.link = Link::Idle,
        }
    }

    /// Goes on by other rules, over a new connection where the settings of the old one have changed.
    pub fn govern(&mut self, rules: Rules, connection: Connection, now: Now, out: &mut Vec<Order>) {
        if rules.capabilities != self.rules.capabilities {
            self.ledger.changed(Facets::ALL);
        }
        self.rules = rules;
        match connection {
            Connection::Kept => return,
            Connection::Renewed => {}
            Connection::Moved => {
                self.ledger = Ledger::full();
                self.throttled = false;
            }
        }
        self.failures = 0;
        match &self.link {
            Link::Up(_) => self.close(now.mono, out),
            Link::Connecting => {
                out.push(Order::Abort);
                self.wait(now.mono);
            }
            Link::Waiting { .. } if !self.throttled => self.wait(now.mono),
            Link::Closing { .. } if !self.throttled => {
                self.link = Link::Closing { then: now.mono };
            }
            Link::Waiting { .. } | Link::Closing { .. } | Link::Idle => {}
        }
    }

    /// The next attempts go another way: a server there has heard nothing of us yet. At once, over an orderly end of
    /// what is open; or, where nothing is open, when the next attempt is due anyway.
    pub fn travel(&mut self, rules: Rules, at_once: bool, now: Now, out: &mut Vec<Order>) {
        // A server that asked for time is given it; another one did not ask.
        let connection = match rules.endpoint == self.rules.endpoint {
            true => Connection::Renewed,
            false => Connection::Moved,
        };
        self.ledger = Ledger::full();
        // What is open goes the old way: its answers must not count for the new one.
        if at_once || self.is_connecting() {
            return self.govern(rules, connection, now, out);
        }
        self.rules = rules;
    }

    /// What was learnt since this was last asked.
    pub fn take_news(&mut self) -> Vec<News> {
        core::mem::take(&mut self.news)
    }

    /// Whether the server has been told of these, as far as it can be.
    #[must_use]
    pub fn has_told(&self, facets: Facets) -> bool {
        match &self.link {
            Link::Up(up) => {
                let allowed = Facets::allowed(self.rules.capabilities, up.server_capabilities);
                let waits = self.is_http() && up.unanswered.is_some();
                self.ledger.due(allowed.without(self.too_large).and(facets)).is_empty() && !waits
            }
            _ => true,
        }
    }

    /// Whether an attempt to connect is under way, or its first answer is awaited.
    #[must_use]
    pub fn is_connecting(&self) -> bool {
        matches!(&self.link, Link::Connecting | Link::Up(_))
    }

    /// Whether a server has answered on this connection.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        matches!(&self.link, Link::Up(up) if up.proven)
    }

    /// Whether a request for a certificate can go out: once a connection, to a server that takes it, and alone.
    #[must_use]
    pub fn can_request(&self) -> bool {
        let Link::Up(up) = &self.link else { return false };
        let takes = up.server_capabilities == 0
            || up.server_capabilities
                & flag_of(ServerCapabilities::AcceptsConnectionSettingsRequest)
                != 0;
        let busy = self.is_http() && up.unanswered.is_some();
        up.proven && takes && !up.requested && !busy
    }

    /// Sends one, in a message of its own: a server that refuses it refuses the whole message (opamp-spec L1876).
    pub fn request(&mut self, csr: Bytes, now: Now, out: &mut Vec<Order>) {
        let message = AgentToServer {
            connection_settings_request: Some(ConnectionSettingsRequest {
                opamp: Some(OpAmpConnectionSettingsRequest {
                    certificate_request: Some(CertificateRequest { csr }),
                }),
            }),
            ..self.bare()
        };
        if let Link::Up(up) = &mut self.link {
            up.requested = true;
            up.request_open = true;
            up.last_sent = Some(now.mono);
            up.unanswered.get_or_insert(now.mono);
            up.sent = Facets::NONE;
            up.sent_full = false;
        }
        out.push(Order::Send(Box::new(Outgoing { message, effective_config: false })));
    }

    /// What every message carries.
    fn bare(&mut self) -> AgentToServer {
        let sequence_num = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        AgentToServer {
            instance_uid: self.uid.as_bytes().to_vec().into(),
            sequence_num,
            capabilities: self.rules.capabilities,
            ..AgentToServer::default()
        }
    }

    /// Whether it has ended after [`Session::stop`].
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.stopping && matches!(self.link, Link::Idle)
    }

    /// Something to report changed.
    pub fn changed(&mut self, facets: Facets) {
        self.ledger.changed(facets);
        self.too_large = self.too_large.without(facets);
    }

    /// The uid in use.
    #[must_use]
    pub const fn uid(&self) -> Uid {
        self.uid
    }

    /// How the connection is.
    #[must_use]
    pub fn link_state(&self) -> LinkState {
        match &self.link {
            Link::Idle => LinkState::Idle,
            Link::Waiting { .. } => LinkState::Waiting,
            Link::Connecting => LinkState::Connecting,
            // Over plain HTTP a TCP connection says nothing yet about who answers there.
            Link::Up(up) if self.is_http() && !up.proven => LinkState::Connecting,
            Link::Up(up) => LinkState::Up(up.since),
            Link::Closing { .. } => LinkState::Closing,
        }
    }

    /// Why the connection last failed; [`None`] once a server has answered since.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// The sequence number that the next message will carry.
    #[must_use]
    pub const fn next_sequence(&self) -> u64 {
        self.sequence
    }

    /// Link `number` is up.
    pub fn link_up(&mut self, number: u64, now: Now, out: &mut Vec<Order>) {
        if number != self.link_number || !matches!(self.link, Link::Connecting) {
            return;
        }
        if !self.is_http() {
            out.push(connected());
        }
        self.link = Link::Up(Up {
            since: now.mono,
            last_sent: None,
            last_heard: now.mono,
            unanswered: None,
            pinged: None,
            proven: false,
            sent: Facets::NONE,
            sent_full: false,
            full_at_heartbeat: false,
            uid_changed: false,
            server_capabilities: 0,
            requested: false,
            request_open: false,
        });
    }

    /// Link `number` could not be opened, was lost, or has finished closing.
    pub fn link_down(
        &mut self,
        number: u64,
        error: Option<LinkError>,
        now: Now,
        out: &mut Vec<Order>,
    ) {
        if number != self.link_number {
            return;
        }
        match core::mem::replace(&mut self.link, Link::Idle) {
            Link::Closing { then } => self.wait(then),
            Link::Up(up) => {
                let error = error.unwrap_or_else(|| LinkError {
                    text: "the server closed the connection".to_owned(),
                    kind: LinkErrorKind::Failed,
                });
                self.lost(&up, error, now, out);
            }
            Link::Connecting => {
                let error = error.unwrap_or_else(|| LinkError {
                    text: "the attempt to connect ended without a reason".to_owned(),
                    kind: LinkErrorKind::Failed,
                });
                let wait = self.next_wait(error.kind);
                self.fail(error, now.mono.after(wait), wait, out);
            }
            other @ (Link::Idle | Link::Waiting { .. }) => self.link = other,
        }
    }

    /// A pong came: the link is alive, whether or not the server answers messages.
    pub fn pong(&mut self, number: u64, now: Now) {
        if let (true, Link::Up(up)) = (number == self.link_number, &mut self.link) {
            up.last_heard = now.mono;
            up.pinged = None;
            up.unanswered = None;
            // Some servers never answer.
            if up.last_sent.is_some() {
                self.news.push(News::Proven);
            }
        }
    }

    /// A decoded message came. Takes the parts that concern the session itself.
    pub fn message(
        &mut self,
        number: u64,
        message: &ServerToAgent,
        now: Now,
        out: &mut Vec<Order>,
    ) -> Verdict {
        if number != self.link_number || !matches!(self.link, Link::Up(_)) {
            return Verdict::Ignore;
        }
        // opamp-spec L1011: beside a command every other field is ignored.
        let identification =
            message.agent_identification.as_ref().filter(|_| message.command.is_none());
        let offered =
            identification.map(|identification| Uid::from_slice(&identification.new_instance_uid));
        if !self.addressed_to_us(message, offered.flatten()) {
            self.ignored = self.ignored.saturating_add(1);
            if self.ignored.is_power_of_two() {
                let text =
                    format!("ignored a message for another instance uid ({} so far)", self.ignored);
                out.push(Order::Say(Tone::Peer, text));
            }
            self.unusable(number);
            return Verdict::Ignore;
        }
        if message.instance_uid.as_ref() == self.uid.as_bytes() {
            self.previous_uid = None;
        }
        let http = self.is_http();
        let answered_full = match &mut self.link {
            Link::Up(up) => {
                if http && !up.proven {
                    out.push(connected());
                }
                let answered = up.unanswered.take().is_some();
                up.pinged = None;
                up.last_heard = now.mono;
                up.proven = true;
                if message.capabilities != 0 {
                    up.server_capabilities = message.capabilities;
                }
                answered && up.sent_full
            }
            _ => false,
        };
        self.last_error = None;
        if message.command.is_some() {
            self.ledger.acknowledged();
            self.news.push(News::Proven);
            return Verdict::CommandOnly;
        }
        let asked = match &mut self.link {
            Link::Up(up) => core::mem::take(&mut up.request_open),
            _ => false,
        };
        if let Some(error) = message.error_response.as_ref().filter(|_| asked)
            && error.r#type() == ServerErrorResponseType::BadRequest
        {
            if let Link::Up(up) = &mut self.link {
                up.requested = false;
            }
            self.news.push(News::RequestRefused(cut(error.error_message.clone())));
        }
        let unavailable =
            message.error_response.as_ref().is_some_and(|error| self.told_off(error, now, out));
        if !unavailable {
            self.ledger.acknowledged();
            // Any web server can answer a POST with nothing at all, which is an empty message.
            if !http || *message != ServerToAgent::default() {
                self.news.push(News::Proven);
            }
        }
        if message.flags & flag(ServerToAgentFlags::ReportFullState) != 0 {
            self.full_state_wanted(answered_full);
        }
        if let Some(offered) = offered {
            self.uid_offered(offered, out);
        }
        Verdict::Process
    }

    /// What came on link `number` is of no use. Over plain HTTP it was the answer nevertheless: no other will come,
    /// so the next request is due at its time.
    pub fn unusable(&mut self, number: u64) {
        let http = self.is_http();
        if let (true, true, Link::Up(up)) = (http, number == self.link_number, &mut self.link) {
            up.unanswered = None;
        }
    }

    /// Over plain HTTP: the last message is too large for the server (413) or for ourselves, and must not go again as
    /// it is (opamp-spec L573). The effective config is left out first, else all that was in it, until they change.
    pub fn refused(&mut self, number: u64, text: String, now: Now, out: &mut Vec<Order>) {
        let Link::Up(up) = &mut self.link else { return };
        if number != self.link_number {
            return;
        }
        up.unanswered = None;
        let sent = up.sent;
        if sent.is_empty() {
            // It cannot be said with less.
            out.push(Order::Abort);
            if let Link::Up(up) = core::mem::replace(&mut self.link, Link::Idle) {
                self.lost(&up, LinkError { text, kind: LinkErrorKind::Fault }, now, out);
            }
            return;
        }
        let (large, name) = if sent.contains(Facets::EFFECTIVE_CONFIG) {
            (Facets::EFFECTIVE_CONFIG, "the effective config")
        } else {
            (sent, "what was in it")
        };
        self.too_large |= large;
        self.ledger.returned();
        let told = format!("{text}; {name} is not sent again until it changes");
        out.push(Order::Say(Tone::Warning, told));
        self.last_error = Some(text);
    }

    /// The offered uid was written (or not: `error`); it is ours from now on either way (opamp-spec L891).
    pub fn uid_kept(&mut self, uid: Uid, error: Option<&str>, out: &mut Vec<Order>) {
        if let Some(error) = error {
            let text = format!("instance uid {uid} is in use but could not be kept: {error}");
            out.push(Order::Say(Tone::Warning, text));
        }
        if uid == self.uid {
            return;
        }
        out.push(Order::Say(Tone::Info, format!("instance uid is now {uid}")));
        self.previous_uid = Some(core::mem::replace(&mut self.uid, uid));
        self.wants_uid = false;
        self.ledger.changed(Facets::ALL);
    }

    /// When [`Session::tick`] has something to do next.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        match &self.link {
            Link::Waiting { until } => Some(*until),
            Link::Up(up) => {
                [self.heartbeat_at(up), self.watchdog_at(up)].into_iter().flatten().min()
            }
            Link::Idle | Link::Connecting | Link::Closing { .. } => None,
        }
    }

    /// Does what is due by now, except reports: those are [`Session::flush`]'s.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Order>) {
        match &self.link {
            Link::Waiting { until } if *until <= now.mono => self.connect(out),
            Link::Up(up) if self.watchdog_at(up).is_some_and(|at| at <= now.mono) => {
                if up.pinged.is_some() {
                    let text = format!(
                        "{}: no answer for {:?} and no pong for {:?}: the connection is dead",
                        self.rules.endpoint, self.rules.timeouts.answer, self.rules.timeouts.pong
                    );
                    out.push(Order::Abort);
                    let Link::Up(up) = core::mem::replace(&mut self.link, Link::Idle) else {
                        return;
                    };
                    self.lost(&up, LinkError { text, kind: LinkErrorKind::Failed }, now, out);
                } else {
                    out.push(Order::Ping);
                    if let Link::Up(up) = &mut self.link {
                        up.pinged = Some(now.mono);
                    }
                }
            }
            _ => {}
        }
    }

    /// Sends a report if one is due: the first on a link, a change, or a heartbeat.
    pub fn flush(&mut self, from: &impl Reportable, now: Now, out: &mut Vec<Order>) {
        let Link::Up(up) = &self.link else { return };
        if self.is_http() && up.unanswered.is_some() {
            return; // opamp-spec L539: one request at a time
        }
        let heartbeat = self.heartbeat_at(up).is_some_and(|at| at <= now.mono);
        if heartbeat && up.full_at_heartbeat {
            self.ledger.changed(Facets::ALL);
        }
        let allowed = Facets::allowed(self.rules.capabilities, up.server_capabilities)
            .without(self.too_large);
        let facets = self.ledger.due(allowed);
        if facets.is_empty() && up.last_sent.is_some() && !heartbeat {
            return;
        }
        let full = facets == allowed;
        let message = self.compose(facets, from);
        out.push(Order::Send(Box::new(Outgoing {
            message,
            effective_config: facets.contains(Facets::EFFECTIVE_CONFIG),
        })));
        self.ledger.sent(facets);
        if let Link::Up(up) = &mut self.link {
            up.last_sent = Some(now.mono);
            up.unanswered.get_or_insert(now.mono);
            up.sent = facets;
            up.sent_full = full;
            if full {
                up.full_at_heartbeat = false;
            }
        }
    }

    /// One message: what every message carries, and these sub-messages.
    fn compose(&mut self, facets: Facets, from: &impl Reportable) -> AgentToServer {
        let flags =
            if self.wants_uid { from_flag(AgentToServerFlags::RequestInstanceUid) } else { 0 };
        AgentToServer {
            flags,
            agent_description: facets
                .contains(Facets::DESCRIPTION)
                .then(|| from.description(self.uid)),
            health: facets.contains(Facets::HEALTH).then(|| from.health()),
            remote_config_status: facets
                .contains(Facets::REMOTE_CONFIG_STATUS)
                .then(|| from.remote_config_status()),
            package_statuses: facets
                .contains(Facets::PACKAGE_STATUSES)
                .then(|| from.package_statuses()),
            connection_settings_status: facets
                .contains(Facets::CONNECTION_STATUS)
                .then(|| from.connection_status()),
            ..self.bare()
        }
    }

    /// Whether a message is for us: our uid, none, the one we just gave up, or the one it gives us.
    fn addressed_to_us(&self, message: &ServerToAgent, offered: Option<Uid>) -> bool {
        let to = message.instance_uid.as_ref();
        to.is_empty()
            || to == self.uid.as_bytes()
            || self.previous_uid.is_some_and(|uid| to == uid.as_bytes())
            || offered.is_some_and(|uid| to == uid.as_bytes())
    }

    /// The server's error_response. True: it is unavailable, and the link is being closed.
    fn told_off(&mut self, error: &ServerErrorResponse, now: Now, out: &mut Vec<Order>) -> bool {
        let text = cut(error.error_message.clone());
        if error.r#type() != ServerErrorResponseType::Unavailable {
            // Not sent again (opamp-spec L3471, P654): it would be refused again.
            out.push(Order::Say(Tone::Peer, format!("the server refused a report: {text}")));
            self.last_error = Some(format!("the server refused a report: {text}"));
            return false;
        }
        let asked = error.details.as_ref().map(|details| match details {
            Details::RetryInfo(info) => Duration::from_nanos(info.retry_after_nanoseconds),
        });
        let wait = backoff::throttled(asked, &mut self.jitter);
        self.throttled = true;
        self.last_error = Some(format!("the server is unavailable: {text}"));
        let text = format!("the server is unavailable ({text}); trying again in {wait:.1?}");
        out.push(Order::Say(Tone::Warning, text));
        self.news.push(News::Failed(LinkError {
            text: self.last_error.clone().unwrap_or_default(),
            kind: LinkErrorKind::Throttled(asked),
        }));
        let then = now.mono.after(wait);
        if self.is_http() {
            // Nothing is open that would want a goodbye, and a request less is what the server needs.
            out.push(Order::Abort);
            self.ledger.returned();
            self.wait(then);
        } else {
            self.close(then, out);
        }
        true
    }

    /// ReportFullState. In answer to a full report it waits for the next heartbeat: a server that always asks
    /// must not make us talk for ever.
    fn full_state_wanted(&mut self, answered_full: bool) {
        match &mut self.link {
            Link::Up(up) if answered_full => up.full_at_heartbeat = true,
            _ => self.ledger.changed(Facets::ALL),
        }
    }

    fn uid_offered(&mut self, offered: Option<Uid>, out: &mut Vec<Order>) {
        let Link::Up(up) = &mut self.link else { return };
        let Some(uid) = offered else {
            let text = "ignored a new instance uid that is not 16 bytes, or all zero";
            out.push(Order::Say(Tone::Peer, text.to_owned()));
            return;
        };
        if uid == self.uid {
            // Ours is as good as one of its own: that is kept too.
            if core::mem::take(&mut self.wants_uid) {
                out.push(Order::KeepUid(uid));
            }
        } else if up.uid_changed {
            let text = format!("ignored a second new instance uid ({uid}) on one connection");
            out.push(Order::Say(Tone::Peer, text));
        } else {
            up.uid_changed = true;
            out.push(Order::KeepUid(uid));
        }
    }

    fn is_http(&self) -> bool {
        self.rules.wire == Wire::Http
    }

    fn connect(&mut self, out: &mut Vec<Order>) {
        self.link_number = self.link_number.wrapping_add(1);
        self.link = Link::Connecting;
        self.throttled = false;
        out.push(Order::Connect { link: self.link_number });
    }

    /// Says goodbye (opamp-spec L765: in the last message) and closes; afterwards waits until `then`.
    fn close(&mut self, then: Mono, out: &mut Vec<Order>) {
        let message = AgentToServer { agent_disconnect: Some(AgentDisconnect {}), ..self.bare() };
        out.push(Order::Send(Box::new(Outgoing { message, effective_config: false })));
        out.push(Order::Close);
        self.ledger.returned();
        self.link = Link::Closing { then };
    }

    fn lost(&mut self, up: &Up, error: LinkError, now: Now, out: &mut Vec<Order>) {
        self.ledger.returned();
        let settled = now.mono.since(up.since) >= SETTLED_AFTER;
        if settled && up.proven {
            self.failures = 0;
        }
        // opamp-spec L3416: reconnect at once, but never in a loop.
        let wait = match error.kind {
            LinkErrorKind::Failed | LinkErrorKind::Refused if settled => Duration::ZERO,
            kind => self.next_wait(kind),
        };
        self.fail(error, now.mono.after(wait), wait, out);
    }

    fn next_wait(&mut self, kind: LinkErrorKind) -> Duration {
        if let LinkErrorKind::Throttled(asked) = kind {
            self.throttled = true;
            return backoff::throttled(asked, &mut self.jitter);
        }
        let attempt = self.failures;
        self.failures = self.failures.saturating_add(1);
        backoff::full_jitter(self.rules.reconnect, attempt, &mut self.jitter)
    }

    fn fail(&mut self, error: LinkError, until: Mono, wait: Duration, out: &mut Vec<Order>) {
        let text = &error.text;
        out.push(Order::Say(Tone::Warning, format!("{text}; trying again in {wait:.1?}")));
        self.last_error = Some(text.clone());
        self.news.push(News::Failed(error));
        self.wait(until);
    }

    const fn wait(&mut self, until: Mono) {
        self.link = if self.stopping { Link::Idle } else { Link::Waiting { until } };
    }

    /// When the next heartbeat or poll is due, counted from the last message of any kind (opamp-spec L2110).
    fn heartbeat_at(&self, up: &Up) -> Option<Mono> {
        let interval = match self.rules.wire {
            Wire::WebSocket => self.rules.heartbeat?,
            Wire::Http if up.unanswered.is_some() => return None,
            Wire::Http => self.rules.poll,
        };
        Some(up.last_sent?.after(interval))
    }

    /// When the next heartbeat or poll is due, and how far apart they are.
    #[must_use]
    pub fn beat(&self) -> Option<(Mono, Duration)> {
        let Link::Up(up) = &self.link else { return None };
        let period = match self.rules.wire {
            Wire::WebSocket => self.rules.heartbeat?,
            Wire::Http => self.rules.poll,
        };
        Some((self.heartbeat_at(up)?, period))
    }

    /// When the silence on the link becomes suspicious, or is taken for death. Plain HTTP has time-outs of its
    /// own on each request.
    fn watchdog_at(&self, up: &Up) -> Option<Mono> {
        if self.is_http() {
            return None;
        }
        if let Some(pinged) = up.pinged {
            return Some(pinged.after(self.rules.timeouts.pong));
        }
        if let Some(unanswered) = up.unanswered {
            return Some(unanswered.after(self.rules.timeouts.answer));
        }
        let idle = up.last_sent.map_or(up.last_heard, |sent| sent.max(up.last_heard));
        self.rules.heartbeat.is_none().then(|| idle.after(PING_WITHOUT_HEARTBEATS))
    }
}

fn connected() -> Order {
    Order::Say(Tone::Info, "connected to the OpAMP server".to_owned())
}

#[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
const fn flag(bit: ServerToAgentFlags) -> u64 {
    bit as i32 as u64
}

#[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
const fn flag_of(bit: ServerCapabilities) -> u64 {
    bit as i32 as u64
}

#[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
const fn from_flag(bit: AgentToServerFlags) -> u64 {
    bit as i32 as u64
}
