//! The pure core: events in, actions out. No I/O, no clock, no randomness of its own.
//!
//! [`Agent::handle`] is the whole of it: the runtime feeds it what happened and when, carries out the actions in
//! their order, and calls again at [`Agent::deadline`]. Nothing here is global: several agents can live side by
//! side.

pub mod backoff;
pub mod bounds;
mod called;
pub mod capabilities;
pub mod configset;
mod connecting;
pub mod connection;
pub mod degrade;
mod govern;
pub mod health;
pub mod identity;
pub mod merge;
pub mod metrics;
mod pace;
pub mod packages;
pub mod redact;
pub mod report;
pub mod rollout;
pub mod sealed;
pub mod session;
pub mod supervision;
pub mod uid;

use core::time::Duration;
use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use chiton_proto::{
    AgentCapabilities, AgentDescription, AgentRemoteConfig, AnyValue, CommandType, ComponentHealth,
    ConnectionSettingsStatus, KeyValue, Message, PackageStatuses, RemoteConfigStatus,
    ServerToAgent, any_value,
};

use self::bounds::Bounds;
use self::connection::enrol::Enrolment;
use self::connection::{Connections, Found, Way};
use self::degrade::Degrading;
pub use self::govern::{RESTART_INTERVAL, Reread};
use self::health::{CheckResult, Health, Rounds};
use self::metrics::{Figures, Measuring};
use self::packages::policy::{self, Device, Policy};
use self::packages::set::Running;
use self::packages::{Packages, Taken, Unobtained, Wanted};
use self::report::Facets;
use self::rollout::{Candidate, Digest, Generation, Memory, Offer, Packaged, Rollout, Staged};
use self::sealed::Seals;
use self::session::{LinkError, LinkState, Outgoing, Reportable, Session, Tone, Verdict};
use self::supervision::{Ask, End, News, Process, State, Supervision};
use self::uid::Uid;
use crate::clock::{self, Mono, Now, Wall};
use crate::credentials::Judged;
use crate::settings::{Apply, DegradeAction, KeyKind, Owner, Settings};
use crate::signature::Keyring;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The deadline has come, or it is simply later than before.
    Tick,
    /// Link `link` is up.
    LinkUp {
        /// Its number.
        link: u64,
    },
    /// Link `link` could not be opened, was lost, or was closed as asked.
    LinkDown {
        /// Its number.
        link: u64,
        /// Why, unless it was asked for.
        error: Option<LinkError>,
    },
    /// One message came, without its transport's header.
    Received {
        /// On which link.
        link: u64,
        /// The protobuf bytes.
        bytes: Bytes,
    },
    /// Over plain HTTP: the last message is too large, for the server or for ourselves.
    Refused {
        /// On which link.
        link: u64,
        /// What, on what, why.
        text: String,
    },
    /// A WebSocket pong came.
    Pong {
        /// On which link.
        link: u64,
    },
    /// Answers [`Action::KeepUid`].
    UidKept {
        /// The uid that was to be kept.
        uid: Uid,
        /// Why it could not be.
        error: Option<String>,
    },
    /// Answers [`Action::Stage`].
    Staged(Staged),
    /// Answers [`Action::StageConnection`].
    ConnectionStaged(connection::overlay::Staged),
    /// Answers [`Action::RememberConnection`].
    ConnectionRemembered(Result<(), String>),
    /// The client certificate in use, if there is one that can be read. Answers [`Action::UseCredentials`].
    Certificate(Option<Judged>),
    /// Answers [`Action::MakeRequest`].
    RequestMade {
        /// For whom.
        common_name: String,
        /// The request, PEM.
        result: Result<Bytes, String>,
    },
    /// Answers [`Action::Validate`].
    Validated(Result<(), String>),
    /// Answers [`Action::Arm`].
    Armed(Result<(), String>),
    /// Answers [`Action::Substitute`].
    Substituted(Result<(), String>),
    /// Answers [`Action::Activate`]: with what runs now.
    Activated(Result<Running, String>),
    /// Bytes of what [`Action::Obtain`] asked for have arrived.
    Progress {
        /// The round it belongs to.
        round: u64,
        /// Bytes that are here.
        had: u64,
        /// Bytes there are, where that is known.
        total: Option<u64>,
    },
    /// Answers [`Action::Obtain`].
    Obtained {
        /// The round it belongs to.
        round: u64,
        /// Whether it is here: verified and unpacked.
        result: Result<(), Unobtained>,
    },
    /// Answers [`Action::Remember`].
    Remembered(Result<(), String>),
    /// Answers [`Action::Reload`] and [`Action::RunApply`].
    Reloaded(Result<(), String>),
    /// Answers [`Action::StartWorkload`].
    WorkloadStarted {
        /// Its process id.
        pid: u32,
    },
    /// Answers [`Action::StartWorkload`] too.
    WorkloadNotStarted(String),
    /// The workload's process is gone; says how, with its last words.
    WorkloadExited(String),
    /// The main process of an external workload is this one.
    WorkloadSeen {
        /// Which.
        process: Process,
        /// How old it is.
        age: Duration,
    },
    /// An external workload has no main process; says how one knows.
    WorkloadGone(String),
    /// Answers [`Action::Ask`].
    WorkloadTold {
        /// The main process just before.
        before: Option<Process>,
        /// Whether it could be asked.
        result: Result<(), String>,
    },
    /// The workload was to stop and is still there long after SIGKILL; [`Event::WorkloadExited`] may yet come.
    WorkloadStuck(String),
    /// Answers [`Action::Check`].
    Checked {
        /// The round it belongs to.
        round: u64,
        /// One result a check; empty where there is none to run.
        results: Vec<CheckResult>,
    },
    /// Answers [`Action::Measure`].
    Measured {
        /// The round it belongs to.
        round: u64,
        /// What could be measured.
        figures: Figures,
    },
    /// The settings were read again: what is in force now, or why they are bad and nothing has changed.
    Settings(Result<Box<Reread>, String>),
    /// SIGTERM or SIGINT.
    Shutdown,
}

/// Something to be done. Actions are carried out in their order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Open a link, by [`Agent::server`]. → [`Event::LinkUp`], [`Event::LinkDown`]
    Connect {
        /// Its number.
        link: u64,
    },
    /// Send one message on the link.
    Send(Box<Outgoing>),
    /// Send a WebSocket ping. → [`Event::Pong`]
    Ping,
    /// Close the link in order, after everything that was sent. → [`Event::LinkDown`]
    Close,
    /// Drop the link at once; no event follows.
    Abort,
    /// Write a new uid down. → [`Event::UidKept`]
    KeepUid(Uid),
    /// Place connection settings as a new generation. → [`Event::ConnectionStaged`]
    StageConnection {
        /// What is to be placed.
        candidate: Box<connection::overlay::Candidate>,
        /// Contents that need not be written.
        known: Vec<Digest>,
    },
    /// Write the record of the connection. → [`Event::ConnectionRemembered`]
    RememberConnection(Box<connection::memory::Memory>),
    /// Other credentials are in force: they are read, and placed for others. → [`Event::Certificate`]
    UseCredentials,
    /// Make a key and a request for a certificate, or find the pending one. → [`Event::RequestMade`]
    MakeRequest {
        /// Of the subject.
        common_name: String,
        /// Of the key.
        key: KeyKind,
    },
    /// Place a set as a new generation. → [`Event::Staged`]
    Stage {
        /// What is to be placed.
        candidate: Candidate,
        /// Contents that need not be written.
        known: Vec<Digest>,
        /// False: only say what it would be.
        write: bool,
    },
    /// Write the way back and that a trial begins. → [`Event::Armed`]
    Arm {
        /// The record during the trial.
        memory: Box<Memory>,
        /// The record after going back, for a disk that is full by then.
        after_going_back: Box<Memory>,
    },
    /// Dry run of a generation. → [`Event::Validated`]
    Validate {
        /// Which.
        generation: Generation,
        /// Its packages are new: they are labelled and tried too.
        packages: bool,
        /// Its configuration is new.
        config: bool,
    },
    /// Have a file of a package here; drop what was asked for before. → [`Event::Obtained`]
    Obtain(Box<Wanted>),
    /// Another offer of packages: drop what was asked for, and what has arrived of files that it does not have.
    Prepare {
        /// SHA-256 of the files that it has.
        keep: Vec<Digest>,
    },
    /// Place this file of the device's own and run with it. → [`Event::Substituted`]
    Substitute(PathBuf),
    /// Swap the running generation. → [`Event::Activated`]
    Activate(Option<Generation>),
    /// Write the life cycle's record. → [`Event::Remembered`]
    Remember(Box<Memory>),
    /// → [`Event::WorkloadStarted`], [`Event::WorkloadNotStarted`]
    StartWorkload,
    /// SIGTERM, then SIGKILL. → [`Event::WorkloadExited`]
    StopWorkload,
    /// SIGHUP. → [`Event::Reloaded`]
    Reload,
    /// The command of `apply`. → [`Event::Reloaded`]
    RunApply,
    /// Ask an external workload, or the init system that owns it. → [`Event::WorkloadTold`]
    Ask(Ask),
    /// Run all checks once. → [`Event::Checked`]
    Check {
        /// To be given back.
        round: u64,
    },
    /// Measure what the workload uses and does. → [`Event::Measured`]
    Measure {
        /// To be given back.
        round: u64,
    },
    /// Write a line to the log.
    Log(Tone, String),
    /// All is done: end the process.
    Exit,
}

/// What the core takes from the settings and the host.
#[derive(Clone, Debug)]
pub struct Config {
    /// OpAMP's capability bits, as they are usable.
    capabilities: u64,
    /// Heartbeats are sent.
    beats: bool,
    /// A uid is asked for.
    request_uid: bool,
    connection: connection::Rules,
    rollout: rollout::Rules,
    /// The first check after a start comes no later than this.
    first_check: Duration,
    apply: Apply,
    apply_packages: Apply,
    packages: Policy,
    seals: Seals,
    /// As it is before anything has happened.
    workload: Option<Supervision>,
    degrading: Degrading,
    /// The command names `{config_file}` or `{config_dir}`: without a configuration it is not started.
    needs_config: bool,
    /// The command names these packages: without them it is not started.
    needs_packages: Vec<String>,
    /// There is something to check beside the process being alive.
    has_checks: bool,
    check_interval: Duration,
    rounds: Rounds,
    /// Between measurements of these figures; [`None`]: nothing is measured.
    metrics: Option<(Duration, Vec<String>)>,
    attributes: Attributes,
    bounds: Bounds,
}

/// Facts about the host that are reported.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// `host.name`.
    pub name: String,
    /// `os.version`.
    pub os_version: String,
    /// `host.arch`, in OpenTelemetry's words.
    pub arch: &'static str,
}

/// AgentDescription without the uid.
#[derive(Clone, Debug, PartialEq)]
struct Attributes {
    identifying: BTreeMap<String, String>,
    non_identifying: BTreeMap<String, String>,
}

impl Config {
    /// Picks what the core needs.
    #[must_use]
    pub fn new(settings: &Settings, host: Host, keyring: Keyring) -> Self {
        let server = &settings.server;
        let remote = &settings.remote_config;
        let needs_config =
            settings.workload.as_ref().is_some_and(|workload| match &workload.owner {
                Owner::Chiton { command } => command.iter().any(|word| word.contains("{config_")),
                Owner::External(_) => false,
            });
        let attributes = Attributes::new(settings, host);
        let seals = Seals::new(settings, keyring.clone(), attributes.device());
        let policy = Policy::new(keyring, settings.packages.clone(), attributes.device());
        Self {
            capabilities: capabilities::usable(settings, seals.is_usable(), policy.is_usable()),
            beats: settings.capabilities.reports_heartbeat,
            request_uid: settings.agent.request_instance_uid,
            connection: connection::Rules {
                own: server.clone(),
                directory: settings.state_dir.join(connection::DIRECTORY),
                accepts: settings.capabilities.accepts_opamp_connection_settings,
                enroll: server.tls.enroll.clone(),
                renew_before: server.tls.renew_before,
            },
            rollout: rollout::Rules::new(
                remote,
                !settings.packages.verify.is_empty() || !settings.packages.after_install.is_empty(),
            ),
            first_check: settings.health.check_interval.min(remote.rollback.interval),
            apply: remote.apply.clone(),
            apply_packages: settings.packages.apply.clone(),
            packages: policy,
            seals,
            workload: settings.workload.as_ref().map(|workload| match &workload.owner {
                Owner::Chiton { .. } => Supervision::new(workload.restart),
                Owner::External(_) => {
                    Supervision::external(workload.restarts(), remote.rollback.window)
                }
            }),
            degrading: Degrading::new(
                settings.workload.as_ref().map_or(&[][..], |workload| &workload.degrade),
                remote.rollback.crash_loop,
            ),
            needs_config,
            needs_packages: needed_packages(settings),
            has_checks: settings
                .health
                .checks
                .iter()
                .any(|check| !check.kind.is_limit() || settings.workload.is_some()),
            check_interval: settings.health.check_interval,
            rounds: Rounds {
                unhealthy_after: settings.health.unhealthy_after,
                healthy_after: settings.health.healthy_after,
            },
            metrics: measured(settings),
            attributes,
            bounds: Bounds { max_message: server.max_message_size, ..Bounds::default() },
        }
    }
}

/// The packages that the workload's command names.
fn needed_packages(settings: &Settings) -> Vec<String> {
    let words = settings.workload.as_ref().map(|workload| match &workload.owner {
        Owner::Chiton { command } => command.as_slice(),
        Owner::External(_) => &[],
    });
    let after =
        words.unwrap_or_default().iter().flat_map(|word| word.split("{package_dir:").skip(1));
    after.filter_map(|rest| rest.split_once('}')).map(|(name, _)| name.to_owned()).collect()
}

/// What is measured of the workload, and how often.
fn measured(settings: &Settings) -> Option<(Duration, Vec<String>)> {
    let health = &settings.health;
    let mut wanted = health.metrics.clone();
    wanted.retain(|name| {
        health.scrape.is_some() || matches!(name.as_str(), "cpu_usage" | "memory_usage")
    });
    let told = settings.capabilities.reports_health && settings.workload.is_some();
    (told && !wanted.is_empty()).then_some((health.metrics_interval, wanted))
}

impl Attributes {
    fn new(settings: &Settings, host: Host) -> Self {
        let agent = &settings.agent;
        let version = match agent.service_version.as_str() {
            "" => env!("CARGO_PKG_VERSION"),
            version => version,
        };
        let mut identifying = BTreeMap::from([
            ("service.name".to_owned(), agent.service_name.clone()),
            ("service.version".to_owned(), version.to_owned()),
        ]);
        let mut non_identifying = BTreeMap::from([
            ("os.type".to_owned(), "linux".to_owned()),
            ("os.version".to_owned(), host.os_version),
            ("host.name".to_owned(), host.name),
            ("host.arch".to_owned(), host.arch.to_owned()),
        ]);
        // What the user says wins over what we found.
        identifying.extend(agent.identifying_attributes.clone());
        non_identifying.extend(agent.non_identifying_attributes.clone());
        Self { identifying, non_identifying }
    }

    /// What a manifest's target is compared with.
    fn device(&self) -> Device {
        let all = self.identifying.iter().chain(&self.non_identifying);
        Device {
            platforms: policy::platforms(),
            attributes: all.map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }

    fn describe(&self, uid: Uid) -> AgentDescription {
        fn list(attributes: &BTreeMap<String, String>) -> Vec<KeyValue> {
            attributes.iter().map(|(key, value)| string(key, value)).collect()
        }
        let mut identifying = list(&self.identifying);
        if !self.identifying.contains_key("service.instance.id") {
            identifying.push(string("service.instance.id", &uid.to_string()));
        }
        AgentDescription {
            identifying_attributes: identifying,
            non_identifying_attributes: list(&self.non_identifying),
        }
    }
}

fn string(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }),
    }
}

/// The core of one agent.
#[derive(Clone, Debug)]
pub struct Agent {
    /// [`None`] until the uid is known.
    session: Option<Session>,
    seed: u64,
    /// All but the session: what reports are made of.
    state: Managed,
    /// As it was when it was last compared.
    health: ComponentHealth,
    /// As they were when they were last compared.
    packages: PackageStatuses,
    /// As it was when it was last compared.
    connection_status: ConnectionSettingsStatus,
    enrolment: Enrolment,
    shutting_down: bool,
    check_round: u64,
    next_check: Option<Mono>,
    checking: bool,
    measuring: Measuring,
    /// When the server last had its wish for a restart.
    restarted: Option<Mono>,
    /// The server wants a restart, and a trial is under way.
    restart_due: bool,
    /// When the next manifest of an installed package expires.
    expires: Option<Mono>,
}

/// What is managed, and reported.
#[derive(Clone, Debug)]
struct Managed {
    config: Config,
    rollout: Rollout,
    packages: Packages,
    connections: Connections,
    workload: Option<Supervision>,
    degrading: Degrading,
    /// What was last done by the device's own rules, and when.
    degraded: Option<(String, Now)>,
    health: Health,
    /// An interrupted change was undone on the disk, and a workload that lived on has not been told.
    stale: bool,
    /// What is wrong with chiton.yaml, while older settings are in force, and since when.
    bad_settings: Option<(String, Now)>,
    /// The installed package whose manifest expired first, and when, seconds since 1970.
    stale_package: Option<(String, u64)>,
}

impl Reportable for Managed {
    fn description(&self, uid: Uid) -> AgentDescription {
        self.config.attributes.describe(uid)
    }

    fn health(&self) -> ComponentHealth {
        let mut tree = self.health.tree(self.workload.as_ref(), self.waits_for_config());
        if let Some((error, since)) = &self.bad_settings {
            let status = "the last good settings are in force";
            ill(&mut tree, "settings", status, error.clone(), since.wall);
        }
        if let Some((name, since)) = &self.stale_package {
            let error = format!(
                "the manifest of package {name:?} has expired, and no newer one was offered: sign it anew; or the server \
                 holds it back"
            );
            ill(&mut tree, "packages", "stale", error, Wall(Duration::from_secs(*since)));
        }
        if let Some((text, at)) = &self.degraded {
            let done = ComponentHealth {
                healthy: true,
                status: text.clone(),
                status_time_unix_nano: at.wall.unix_nanos(),
                ..ComponentHealth::default()
            };
            tree.component_health_map.insert("degrade".to_owned(), done);
        }
        tree
    }

    fn remote_config_status(&self) -> RemoteConfigStatus {
        self.rollout.status()
    }

    fn package_statuses(&self) -> PackageStatuses {
        self.packages.statuses(&self.rollout)
    }

    fn connection_status(&self) -> ConnectionSettingsStatus {
        self.connections.status()
    }
}

/// Adds a component that is unhealthy, and so is the whole.
fn ill(tree: &mut ComponentHealth, name: &str, status: &str, error: String, since: Wall) {
    let component = ComponentHealth {
        healthy: false,
        last_error: error,
        status: status.to_owned(),
        status_time_unix_nano: since.unix_nanos(),
        ..ComponentHealth::default()
    };
    if tree.healthy {
        tree.healthy = false;
        tree.last_error.clone_from(&component.last_error);
    }
    tree.component_health_map.insert(name.to_owned(), component);
}

impl Managed {
    /// Whether the workload's command names what is not there yet.
    fn waits_for_config(&self) -> bool {
        let placed = self.rollout.memory().committed.is_some() && self.packages.has_config();
        (self.config.needs_config && !placed) || self.waits_for_package().is_some()
    }

    /// How the workload is made to use what is new.
    fn apply(&self) -> &Apply {
        let Config { apply, apply_packages, .. } = &self.config;
        match (self.rollout.changes_packages(), self.rollout.changes_config()) {
            (true, false) => apply_packages,
            // Together: a restart serves both, and so does nothing less.
            (true, true) if apply != apply_packages => &Apply::Restart,
            _ => apply,
        }
    }

    /// A package that the workload's command names and that does not run.
    fn waits_for_package(&self) -> Option<&str> {
        let needed = self.config.needs_packages.iter();
        needed.map(String::as_str).find(|name| !self.packages.names().any(|it| it == *name))
    }

    /// Whether what is committed runs as well as it can: seen well, or not in its time, or it died.
    fn committed_runs(&self, now: Now) -> bool {
        let Some(workload) = &self.workload else { return true };
        let runs = match workload.state() {
            _ if workload.is_asked() || self.stale => false,
            State::Running { .. } => {
                self.health.is_well() || self.repeats_by().is_none_or(|by| by <= now.mono)
            }
            State::Waiting { .. } => true,
            _ => false,
        };
        runs || self.waits_for_config()
    }

    /// When an interrupted trial is repeated though what is committed was not seen well.
    fn repeats_by(&self) -> Option<Mono> {
        let workload = self.workload.as_ref()?;
        match workload.state() {
            State::Running { since, .. } if !workload.is_asked() && !self.stale => {
                self.rollout.repeats_by(since.mono, self.config.has_checks)
            }
            _ => None,
        }
    }
}

/// A view of the agent for `chiton status`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The instance uid, once it is known.
    pub uid: Option<Uid>,
    /// The connection.
    pub link: LinkState,
    /// Why it last failed.
    pub link_error: Option<String>,
    /// The bits that are sent.
    pub capabilities: u64,
    /// The tree.
    pub health: ComponentHealth,
    /// RemoteConfigStatus.
    pub remote_config: RemoteConfigStatus,
    /// The phase of the life cycle.
    pub phase: &'static str,
    /// What runs by right.
    pub committed: Option<Generation>,
    /// PackageStatuses.
    pub packages: PackageStatuses,
    /// The connection that is gone by.
    pub way: Way,
    /// Its endpoint.
    pub endpoint: String,
    /// The phase of its life cycle.
    pub connection_phase: &'static str,
    /// ConnectionSettingsStatus.
    pub connection_settings: ConnectionSettingsStatus,
    /// The client certificate in use.
    pub certificate: Option<Judged>,
    /// The workload's process.
    pub pid: Option<u32>,
    /// Restarts of the workload after crashes.
    pub restarts: u64,
}

impl Agent {
    /// An agent that has not begun: `memory` is what the store has, `seed` feeds the jitter.
    #[must_use]
    pub fn new(config: Config, memory: Memory, running: Running, seed: u64, now: Now) -> Self {
        Self {
            session: None,
            seed,
            state: Managed {
                rollout: Rollout::new(config.rollout, memory, now),
                packages: Packages::new(config.packages.clone(), running),
                connections: Connections::new(config.connection.clone(), Found::default()),
                workload: config.workload.clone(),
                degrading: config.degrading.clone(),
                degraded: None,
                health: Health::new(config.has_checks, now),
                stale: false,
                bad_settings: None,
                stale_package: None,
                config,
            },
            health: ComponentHealth::default(),
            packages: PackageStatuses::default(),
            connection_status: ConnectionSettingsStatus::default(),
            enrolment: Enrolment::new(seed),
            shutting_down: false,
            check_round: 0,
            next_check: None,
            checking: false,
            measuring: Measuring::default(),
            restarted: None,
            restart_due: false,
            expires: None,
        }
    }

    /// Begins: the workload first, the connection when [`Agent::connect`] says so.
    pub fn boot(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut orders = Vec::new();
        self.state.rollout.boot(&mut orders);
        self.carry_out_rollout(orders, now, actions);
        if self.state.rollout.is_idle() {
            self.ensure_workload(actions);
        }
        self.on_connections(actions, now, Connections::boot);
        actions.push(Action::UseCredentials);
        self.settle(now, actions);
    }

    /// Says before [`Agent::boot`] that what is committed could not be made to run: that is tried again.
    pub fn astray(&mut self, now: Now) {
        self.state.rollout.is_astray(now);
    }

    /// Says before [`Agent::boot`] that an interrupted change was undone: [`Agent::went_back`] follows.
    pub const fn undone(&mut self) {
        self.state.stale = true;
    }

    /// The disk went back to the committed generation: an external workload that runs has read what was undone.
    pub fn went_back(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.state.stale = false;
        let workload = self.state.workload.as_ref();
        if workload.is_some_and(|workload| workload.is_external() && workload.is_running()) {
            let text = "an interrupted change was undone: the workload is told to read the committed configuration";
            actions.push(Action::Log(Tone::Info, text.to_owned()));
            self.apply(now, actions);
        }
    }

    /// Opens the session: the uid is known and the credentials can be read. `given`: a server gave it.
    pub fn connect(&mut self, uid: Uid, given: bool, now: Now, actions: &mut Vec<Action>) {
        if self.session.is_none() && !self.shutting_down {
            let mut rules = self.session_rules();
            rules.request_uid &= !given;
            self.session = Some(Session::new(rules, uid, self.seed));
            self.on_session(actions, Session::start);
        }
        self.settle(now, actions);
    }

    /// Takes one event.
    pub fn handle(&mut self, event: Event, now: Now, actions: &mut Vec<Action>) {
        match event {
            Event::Tick => {}
            Event::LinkUp { link } => {
                self.on_session(actions, |session, out| session.link_up(link, now, out));
                // Another program may have renewed the settings' own since it was read. A candidate's is not in use.
                let connections = &self.state.connections;
                let enrols = self.state.config.connection.enroll.is_some();
                if connections.way() != Way::Candidate
                    && (enrols || connections.server().tls.client.is_some())
                {
                    actions.push(Action::UseCredentials);
                }
            }
            Event::LinkDown { link, error } => {
                self.on_session(actions, |session, out| session.link_down(link, error, now, out));
            }
            Event::Received { link, bytes } => self.received(link, &bytes, now, actions),
            Event::Refused { link, text } => {
                self.on_session(actions, |session, out| session.refused(link, text, now, out));
            }
            Event::Pong { link } => self.on_session(actions, |session, _| session.pong(link, now)),
            Event::UidKept { uid, error } => {
                self.on_session(actions, |session, out| {
                    session.uid_kept(uid, error.as_deref(), out);
                });
            }
            Event::Staged(staged) => {
                let unwritten = matches!(staged, Staged::Failed(_));
                // At the start the workload waits for the local file only while that is to be activated: an offer
                // that came meanwhile must not keep it waiting.
                let starts = self.state.rollout.stages_local() && !matches!(staged, Staged::New(_));
                self.on_rollout(now, actions, |rollout, out| rollout.staged(staged, now, out));
                if (starts || self.state.rollout.is_idle())
                    && (unwritten || !self.state.waits_for_config())
                {
                    self.ensure_workload(actions);
                }
            }
            Event::ConnectionStaged(staged) => self.connection_staged(staged, now, actions),
            Event::ConnectionRemembered(result) => {
                self.on_connections(actions, now, |it, out| it.remembered(result, now, out));
            }
            Event::Certificate(facts) => self.certificate_read(facts),
            Event::RequestMade { common_name, result } => {
                self.request_made(common_name, result, now, actions);
            }
            Event::Validated(result) => {
                self.on_rollout(now, actions, |rollout, out| rollout.validated(result, now, out));
            }
            Event::Armed(result) => {
                self.on_rollout(now, actions, |rollout, out| rollout.armed(result, now, out));
            }
            Event::Substituted(result) => {
                self.on_rollout(now, actions, |rollout, out| rollout.substituted(result, out));
                self.changed(Facets::EFFECTIVE_CONFIG);
            }
            Event::Activated(result) => {
                let result = result.map(|running| self.state.packages.run(running));
                self.on_rollout(now, actions, |rollout, out| rollout.activated(result, out));
                self.changed(Facets::EFFECTIVE_CONFIG);
            }
            Event::Progress { round, had, total } => {
                self.state.packages.progressed(round, had, total, now);
            }
            Event::Obtained { round, result } => {
                let mut orders = Vec::new();
                let taken = self.state.packages.obtained(round, result, now, &mut orders);
                self.obtain(orders, actions);
                self.on_packages(taken, None, now, actions);
            }
            Event::Remembered(result) => {
                self.on_rollout(now, actions, |rollout, out| rollout.remembered(result, now, out));
            }
            Event::Reloaded(result) => self.applied(result, now, actions),
            Event::WorkloadStarted { pid } => {
                if let Some(workload) = &mut self.state.workload {
                    workload.started(pid, now);
                }
                self.began(now);
                self.restart_due = false;
                self.applied(Ok(()), now, actions);
            }
            Event::WorkloadNotStarted(error) => {
                if let Some(workload) = &mut self.state.workload {
                    workload.start_failed(error.clone(), now);
                }
                actions.push(Action::Log(Tone::Warning, error.clone()));
                self.applied(Err(error), now, actions);
            }
            Event::WorkloadStuck(text) => {
                if let Some(workload) = &mut self.state.workload {
                    workload.stuck(text.clone());
                }
                actions.push(Action::Log(Tone::Warning, format!("the workload: {text}")));
            }
            Event::WorkloadExited(text) => self.workload_exited(&text, now, actions),
            Event::WorkloadSeen { process, age } => {
                self.on_external(now, actions, |workload, out| {
                    workload.seen(process, age, now, out)
                });
            }
            Event::WorkloadGone(why) => {
                self.on_external(now, actions, |workload, _| workload.gone(why));
            }
            Event::WorkloadTold { before, result } => {
                self.on_external(now, actions, |workload, out| {
                    workload.told(before, result, now, out)
                });
            }
            Event::Checked { round, results } => self.checked(round, results, now, actions),
            Event::Measured { round, figures } if self.measuring.awaits(round) => {
                self.state.health.measured(figures.attributes());
            }
            Event::Measured { .. } => {}
            Event::Settings(Ok(read)) => self.govern(*read, now, actions),
            Event::Settings(Err(error)) => {
                let error = cut(error);
                let before = self.state.bad_settings.take().filter(|(old, _)| *old == error);
                let since = before.map_or(now, |(_, since)| since);
                self.state.bad_settings = Some((error, since));
            }
            Event::Shutdown => self.shut_down(now, actions),
        }
        self.settle(now, actions);
    }

    /// Forgets contents that failed, so that the next offer of them is tried: all, or what was offered with this
    /// hash (as `chiton status` shows it, or as it is). How many were remembered.
    pub fn retry(&mut self, hash: Option<&str>, now: Now, actions: &mut Vec<Action>) -> u64 {
        let hash = hash.map(|text| from_hex(text).unwrap_or_else(|| text.as_bytes().to_vec()));
        let mut forgotten = 0;
        self.on_rollout(now, actions, |rollout, out| {
            forgotten = rollout.forget(hash.as_deref(), out);
            forgotten > 0
        });
        self.on_connections(actions, now, |it, out| {
            forgotten = forgotten.saturating_add(it.forget(hash.as_deref(), out));
        });
        if forgotten > 0 {
            let text = format!("forgot {forgotten} failure(s): the next offer is tried again");
            actions.push(Action::Log(Tone::Info, text));
        }
        self.settle(now, actions);
        forgotten
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        let starts = !self.state.rollout.is_swapping();
        let workload = self.state.workload.as_ref().filter(|_| starts);
        let workload = workload.and_then(Supervision::deadline);
        let check = self.next_check.filter(|_| self.checks_run());
        let session = self.session.as_ref().and_then(Session::deadline);
        let measure = self.measuring.deadline().filter(|_| self.is_running());
        let repeat = self.state.repeats_by().filter(|_| !self.shutting_down);
        let rollout = self.state.rollout.deadline().filter(|_| !self.shutting_down);
        let expires = self.expires.filter(|_| !self.shutting_down);
        let connection = self.state.connections.deadline().filter(|_| !self.shutting_down);
        let proven = self.session.as_ref().is_some_and(Session::is_proven);
        let asks = proven && self.state.connections.is_idle() && !self.shutting_down;
        let enrol = self.enrolment.deadline().filter(|_| asks);
        [session, rollout, workload, check, measure, repeat, expires, connection, enrol]
            .into_iter()
            .flatten()
            .min()
    }

    /// How the connection is.
    #[must_use]
    pub fn link_state(&self) -> LinkState {
        self.session.as_ref().map_or(LinkState::Idle, Session::link_state)
    }

    /// Whether the start is over: the workload was started, or could not be, or there is none to start yet.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        match self.state.workload.as_ref().map(Supervision::state) {
            Some(State::Starting) => false,
            Some(State::Stopped) => self.state.rollout.is_idle(),
            _ => true,
        }
    }

    /// The names of the packages that run.
    pub fn package_names(&self) -> impl Iterator<Item = &str> {
        self.state.packages.names()
    }

    /// How the workload is made to use what is under way.
    #[must_use]
    pub fn apply_by(&self) -> &Apply {
        self.state.apply()
    }

    /// A view for people.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let workload = self.state.workload.as_ref();
        Snapshot {
            uid: self.session.as_ref().map(Session::uid),
            link: self.link_state(),
            link_error: self.session.as_ref().and_then(Session::last_error).map(str::to_owned),
            capabilities: self.capabilities(),
            health: self.state.health(),
            remote_config: self.state.remote_config_status(),
            phase: self.state.rollout.phase(),
            committed: self
                .state
                .rollout
                .goes_back()
                .unwrap_or_else(|| self.state.rollout.memory())
                .committed,
            packages: self.state.package_statuses(),
            way: self.state.connections.way(),
            endpoint: self.state.connections.server().endpoint.to_string(),
            connection_phase: self.state.connections.phase(),
            connection_settings: self.state.connections.status(),
            certificate: self.enrolment.certificate().cloned(),
            pid: self.pid(),
            restarts: workload.map_or(0, Supervision::restarts),
        }
    }

    /// A message: counted against the bounds, decoded, and given to whom it concerns.
    fn received(&mut self, link: u64, bytes: &Bytes, now: Now, actions: &mut Vec<Action>) {
        if let Err(error) = bounds::count(bytes, &self.state.config.bounds) {
            actions.push(Action::Log(
                Tone::Peer,
                format!("refused a message from the server: {error}"),
            ));
            self.on_session(actions, |session, _| session.unusable(link));
            return;
        }
        let message = match ServerToAgent::decode(bytes.clone()) {
            Ok(message) => message,
            Err(error) => {
                let text = format!("ignored a malformed message from the server: {error}");
                actions.push(Action::Log(Tone::Peer, text));
                self.on_session(actions, |session, _| session.unusable(link));
                return;
            }
        };
        let mut verdict = Verdict::Ignore;
        self.on_session(actions, |session, out| {
            verdict = session.message(link, &message, now, out);
        });
        match verdict {
            Verdict::Ignore => {}
            Verdict::CommandOnly => self.command(&message, now, actions),
            Verdict::Process => self.offers(message, now, actions),
        }
    }

    fn command(&mut self, message: &ServerToAgent, now: Now, actions: &mut Vec<Action>) {
        let known = message.command.as_ref().map(|command| CommandType::try_from(command.r#type));
        let accepted =
            capabilities::has(self.capabilities(), AgentCapabilities::AcceptsRestartCommand);
        match known {
            Some(Ok(CommandType::Restart)) if accepted => self.restart(now, actions),
            _ => {
                let text = "ignored a command that is unknown or not accepted".to_owned();
                actions.push(Action::Log(Tone::Peer, text));
            }
        }
    }

    /// The results that are known, or under way, are about something else.
    fn check_soon(&mut self, now: Now) {
        // Soon, so that a restart does not look ill for a whole interval; then at leisure.
        self.next_check = Some(now.mono.after(self.state.config.first_check));
        self.check_round = self.check_round.wrapping_add(1);
        self.checking = false;
        self.state.rollout.unchecked(now);
    }

    fn offers(&mut self, message: ServerToAgent, now: Now, actions: &mut Vec<Action>) {
        // opamp-spec L665: what we have no capability for is ignored.
        let accepts = |bit| capabilities::has(self.capabilities(), bit);
        let config_too = accepts(AgentCapabilities::AcceptsRemoteConfig);
        let packages_too = accepts(AgentCapabilities::AcceptsPackages);
        if message.remote_config.is_some() && !config_too {
            let text = "ignored a remote configuration: accepts_remote_config is off, or there is no usable trusted key";
            actions.push(Action::Log(Tone::Peer, text.to_owned()));
        }
        if message.packages_available.is_some() && !packages_too {
            let text =
                "ignored packages: accepts_packages is off, or there is no usable trusted key";
            actions.push(Action::Log(Tone::Peer, text.to_owned()));
        }
        if let Some(offers) = message.connection_settings {
            self.connections_offered(offers, now, actions);
        }
        let packages = message.packages_available.filter(|_| packages_too);
        let rollout = &self.state.rollout;
        let config = message.remote_config.filter(|_| config_too).map(|mut offer| {
            // Before its signature is taken out.
            offer.config_hash = rollout::known_by(&offer);
            offer
        });
        let config = config.filter(|offer| !rollout.knows(&offer.config_hash, packages.is_some()));
        let config = config.map(|offer| self.judge(offer, now));
        let refusal = config.as_ref().and_then(Offer::refusal).map(str::to_owned);
        if let Some(reason) = &refusal {
            let text = format!("refused a remote configuration: {reason}");
            actions.push(Action::Log(Tone::Peer, text));
        }
        let Some(packages) = packages else {
            return self.on_packages(Taken::Ignored, config, now, actions);
        };
        let mut orders = Vec::new();
        let Managed { rollout, packages: own, config: rules, .. } = &mut self.state;
        let taken = match &refusal {
            None => own.offered(&packages, &rules.needs_packages, rollout, now, &mut orders),
            Some(reason) => own.refused(&packages, reason, rollout, now),
        };
        let again = matches!(taken, Taken::Working) && orders.is_empty();
        if !again && taken != Taken::Ignored {
            self.state.rollout.forsake_packages();
            actions.push(Action::Prepare { keep: self.state.packages.awaited() });
        }
        self.obtain(orders, actions);
        self.on_packages(taken, config, now, actions);
    }

    /// What the signature of an offered configuration comes to.
    fn judge(&self, offer: AgentRemoteConfig, now: Now) -> Offer {
        let Packaged { floors, seen, .. } = &self.state.rollout.memory().packages;
        let seconds = clock::trusted_wall(now.wall, *seen).0.as_secs();
        self.state.config.seals.judge(offer, floors, seconds)
    }

    /// What an offer of packages came to, and the configuration that came with it.
    fn on_packages(
        &mut self,
        taken: Taken,
        config: Option<Offer>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Some(text) = self.state.packages.says(&taken) {
            actions.push(Action::Log(Tone::Peer, text));
        }
        self.on_rollout(now, actions, |rollout, out| match (taken, config) {
            (Taken::Ignored, None) | (Taken::Working, None) => false,
            (Taken::Ignored, Some(config)) => rollout.offered(config, now, out),
            (Taken::Working, Some(config)) => rollout.held(config),
            (Taken::Ready(plan), config) => {
                let changed = config.is_some_and(|config| rollout.held(config));
                rollout.packages_ready(plan, now, out);
                changed
            }
            (Taken::Concluded(outcome), config) => {
                let changed = config.is_some_and(|config| rollout.held(config));
                rollout.packages_concluded(outcome, now, out) || changed
            }
        });
    }

    fn obtain(&self, orders: Vec<Wanted>, actions: &mut Vec<Action>) {
        actions.extend(orders.into_iter().map(|wanted| Action::Obtain(Box::new(wanted))));
    }

    /// The workload took a new configuration, or could not.
    fn applied(&mut self, result: Result<(), String>, now: Now, actions: &mut Vec<Action>) {
        if self.state.rollout.applies() {
            self.on_rollout(now, actions, |rollout, out| rollout.applied(result, now, out));
        }
    }

    fn workload_exited(&mut self, text: &str, now: Now, actions: &mut Vec<Action>) {
        let mut end = End::Asked;
        self.state.health.clear();
        let said = text.to_owned();
        self.on_workload(actions, |workload, out| end = workload.exited(said, now, out));
        if end == End::Crash {
            let wait = self.state.workload.as_ref().and_then(|workload| workload.waits(now));
            let again =
                wait.map(|wait| format!("; starting it again in {wait:?}")).unwrap_or_default();
            actions.push(Action::Log(Tone::Warning, format!("the workload {text}{again}")));
            self.on_rollout(now, actions, |rollout, out| rollout.crashed(text, now, out));
            // A configuration that was committed a short while ago goes back instead.
            if self.state.rollout.is_idle()
                && let Some((action, why)) = self.state.degrading.crashed(text, now)
            {
                self.degrade(action, &why, now, actions);
            }
        }
    }

    /// Does what the device's own rules say, and says so.
    fn degrade(&mut self, action: DegradeAction, why: &str, now: Now, actions: &mut Vec<Action>) {
        let done = match action {
            DegradeAction::Restart => {
                self.on_workload(actions, Supervision::restart);
                "restarted".to_owned()
            }
            DegradeAction::Use(file) => {
                let done = format!("runs with {}", file.display());
                self.on_rollout(now, actions, |rollout, out| {
                    rollout.substitute(file, out);
                    false
                });
                done
            }
        };
        let text = cut(format!("{done}: {why}"));
        actions.push(Action::Log(Tone::Warning, format!("degrade: {text}")));
        self.state.degraded = Some((text, now));
    }

    /// Another process than before is the workload.
    fn began(&mut self, now: Now) {
        self.state.health.clear();
        self.measuring.begin(self.metrics_interval(), now);
        self.check_soon(now);
    }

    fn metrics_interval(&self) -> Option<Duration> {
        self.state.config.metrics.as_ref().map(|(interval, _)| *interval)
    }

    fn is_running(&self) -> bool {
        self.state.workload.as_ref().is_some_and(Supervision::is_running)
    }

    /// What is seen of an external workload, and what it answers.
    fn on_external(
        &mut self,
        now: Now,
        actions: &mut Vec<Action>,
        act: impl FnOnce(&mut Supervision, &mut Vec<supervision::Order>) -> News,
    ) {
        let state = |agent: &Self| agent.state.workload.as_ref().map(|it| it.state().clone());
        let before = state(self);
        let mut news = News::default();
        self.on_workload(actions, |workload, out| news = act(workload, out));
        if state(self) != before {
            self.began(now);
        }
        if let Some(text) = news.crash {
            actions.push(Action::Log(Tone::Warning, format!("the workload {text}")));
            self.on_rollout(now, actions, |rollout, out| rollout.crashed(&text, now, out));
        }
        if let Some(result) = news.answer {
            if let Err(error) = &result {
                actions.push(Action::Log(Tone::Warning, error.clone()));
            }
            self.applied(result, now, actions);
        }
    }

    /// The process that runs.
    fn pid(&self) -> Option<u32> {
        match self.state.workload.as_ref()?.state() {
            State::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    fn checked(
        &mut self,
        round: u64,
        results: Vec<CheckResult>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if round != self.check_round {
            return;
        }
        self.checking = false;
        let beat = self.session.as_ref().and_then(Session::beat);
        self.next_check = Some(pace::in_step(now.mono, self.state.config.check_interval, beat));
        let running = self.state.workload.as_ref().is_none_or(Supervision::is_running);
        if !running {
            // They say nothing about the candidate: a restart is under way. The gate asks again.
            self.state.rollout.unchecked(now);
            return;
        }
        self.on_rollout(now, actions, |rollout, out| {
            rollout.checked(&results, now, out);
            false
        });
        if results.iter().all(|check| check.failure.is_none())
            && let Some(workload) = &mut self.state.workload
        {
            workload.proven();
        }
        self.state.health.checked(results, self.state.config.rounds, now);
        if self.state.rollout.is_idle()
            && let Some((action, why)) =
                self.state.degrading.checked(self.state.health.reported(), now)
        {
            self.degrade(action, &why, now, actions);
        }
    }

    fn shut_down(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.shutting_down {
            return;
        }
        self.shutting_down = true;
        self.on_connections(actions, now, Connections::stop);
        self.on_session(actions, |session, out| session.stop(now, out));
        self.on_rollout(now, actions, |rollout, out| {
            rollout.stop(out);
            false
        });
        self.on_workload(actions, Supervision::stop);
    }

    /// After every event: timers that are due, then health, then whatever there is to report.
    fn settle(&mut self, now: Now, actions: &mut Vec<Action>) {
        self.on_session(actions, |session, out| session.tick(now, out));
        if !self.shutting_down {
            self.tend_connection(now, actions);
            if !self.state.rollout.is_swapping() {
                self.on_workload(actions, |workload, out| workload.tick(now, out));
            }
            self.on_external(now, actions, |workload, out| workload.overdue(now, out));
            self.on_rollout(now, actions, |rollout, out| rollout.tick(now, out));
            if self.state.committed_runs(now) {
                self.on_rollout(now, actions, |rollout, out| {
                    rollout.workload_is_up(now, out);
                    false
                });
            }
            if self.restart_due && self.state.rollout.leaves_workload_alone() {
                self.restart_due = false;
                self.on_workload(actions, Supervision::restart);
            }
            if self.checks_run() && self.next_check.is_some_and(|at| at <= now.mono) {
                self.check(actions);
            }
            if self.is_running()
                && let Some(round) = self.measuring.due(self.metrics_interval(), now)
            {
                actions.push(Action::Measure { round });
            }
        }
        if self.state.rollout.leaves_workload_alone() {
            let Managed { packages, rollout, .. } = &mut self.state;
            packages.settle(&rollout.memory().packages);
        }
        let Managed { packages, rollout, .. } = &self.state;
        let (stale, expires) = packages.stale(&rollout.memory().packages, now);
        let stale = stale.map(|member| (member.offered_name().to_owned(), member.expires_at));
        self.state.stale_package = stale;
        self.expires = expires;
        if capabilities::has(self.capabilities(), AgentCapabilities::ReportsPackageStatuses) {
            let packages = self.state.package_statuses();
            if self.packages != packages {
                self.packages = packages;
                self.changed(Facets::PACKAGE_STATUSES);
            }
        }
        self.state.health.note(self.state.workload.as_ref(), self.state.waits_for_config(), now);
        let health = self.state.health();
        if self.health != health {
            self.health = health;
            self.changed(Facets::HEALTH);
        }
        if let Some(session) = &mut self.session {
            let mut orders = Vec::new();
            session.flush(&self.state, now, &mut orders);
            carry_out_session(orders, actions);
        }
        if !self.shutting_down {
            self.leave_or_ask(now, actions);
        }
        let down = self.state.workload.as_ref().is_none_or(Supervision::is_down);
        if self.shutting_down && self.session.as_ref().is_none_or(Session::is_over) && down {
            actions.push(Action::Exit);
        }
    }

    /// Whether the checks run at their own interval: there are some, they have a process, and no gate runs them.
    fn checks_run(&self) -> bool {
        let running = self.state.workload.as_ref().is_none_or(Supervision::is_running);
        self.state.config.has_checks && running && !self.checking && !self.state.rollout.is_trial()
    }

    fn check(&mut self, actions: &mut Vec<Action>) {
        self.check_round = self.check_round.wrapping_add(1);
        self.checking = true;
        actions.push(Action::Check { round: self.check_round });
    }

    fn ensure_workload(&mut self, actions: &mut Vec<Action>) {
        if self.shutting_down {
            return;
        }
        self.on_workload(actions, Supervision::ensure);
    }

    /// Makes the workload read what has just become the running generation.
    fn apply(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.shutting_down {
            return; // nothing starts again; the next start of Chiton begins from what is committed
        }
        let running = self.state.workload.as_ref().is_some_and(Supervision::is_running);
        let sick = if running { self.state.health.sick() } else { Vec::new() };
        self.state.rollout.sick(sick);
        if let Some(workload) = &mut self.state.workload
            && workload.is_external()
        {
            let apply = self.state.apply().clone();
            return self.on_workload(actions, |workload, out| workload.apply(&apply, now, out));
        }
        let back_to = self.state.rollout.goes_back();
        let back_to_nothing = self.state.waits_for_package().is_some()
            || self.state.config.needs_config
                && back_to.is_some_and(|memory| memory.committed.is_none());
        // The workload cannot run yet: what is placed is one step towards it, and cannot be judged.
        let lacks_package = self.state.waits_for_package().is_some();
        let empty = self.state.rollout.plan().is_some_and(|plan| plan.members.is_empty());
        if back_to.is_none() && lacks_package && !empty && running {
            // Not seen before it was placed; what runs goes on.
            let name = self.state.waits_for_package().unwrap_or_default().to_owned();
            let text = format!("it has no package {name}, which opamp.workload.command names");
            return self.applied(Err(text), now, actions);
        }
        let unjudged = back_to.is_none()
            && (lacks_package
                || self.state.config.needs_config && !self.state.packages.has_config());
        match self.state.apply() {
            _ if unjudged => {
                if lacks_package {
                    self.on_workload(actions, Supervision::stop);
                }
                self.on_rollout(now, actions, |rollout, out| {
                    rollout.placed(now, out);
                    false
                });
            }
            _ if self.state.workload.is_none() => self.applied(Ok(()), now, actions),
            _ if back_to_nothing => {
                self.on_workload(actions, Supervision::stop);
                self.applied(Ok(()), now, actions);
            }
            Apply::Reload if running => actions.push(Action::Reload),
            Apply::Command(_) if running => actions.push(Action::RunApply),
            Apply::Restart | Apply::Reload | Apply::Command(_) => {
                self.on_workload(actions, Supervision::restart);
            }
        }
    }

    fn on_session(
        &mut self,
        actions: &mut Vec<Action>,
        act: impl FnOnce(&mut Session, &mut Vec<session::Order>),
    ) {
        let Some(session) = &mut self.session else { return };
        let mut orders = Vec::new();
        act(session, &mut orders);
        carry_out_session(orders, actions);
    }

    fn changed(&mut self, facets: Facets) {
        if let Some(session) = &mut self.session {
            session.changed(facets);
        }
    }

    /// The capability bits that are sent.
    const fn capabilities(&self) -> u64 {
        self.state.config.capabilities
    }

    fn on_workload(
        &mut self,
        actions: &mut Vec<Action>,
        act: impl FnOnce(&mut Supervision, &mut Vec<supervision::Order>),
    ) {
        let Some(workload) = &mut self.state.workload else { return };
        let mut orders = Vec::new();
        act(workload, &mut orders);
        actions.extend(orders.into_iter().map(|order| match order {
            supervision::Order::Start => Action::StartWorkload,
            supervision::Order::Stop => Action::StopWorkload,
            supervision::Order::Ask(ask) => Action::Ask(ask),
        }));
    }

    /// `act` says whether the remote config status changed.
    fn on_rollout(
        &mut self,
        now: Now,
        actions: &mut Vec<Action>,
        act: impl FnOnce(&mut Rollout, &mut Vec<rollout::Order>) -> bool,
    ) {
        let mut orders = Vec::new();
        if act(&mut self.state.rollout, &mut orders) {
            self.changed(Facets::REMOTE_CONFIG_STATUS);
        }
        self.carry_out_rollout(orders, now, actions);
    }

    fn carry_out_rollout(
        &mut self,
        orders: Vec<rollout::Order>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        for order in orders {
            match order {
                rollout::Order::Stage { candidate, known, write } => {
                    actions.push(Action::Stage { candidate, known, write });
                }
                rollout::Order::Arm { memory, after_going_back } => {
                    actions.push(Action::Arm { memory, after_going_back });
                }
                rollout::Order::Validate(generation) => actions.push(Action::Validate {
                    generation,
                    packages: self.state.rollout.changes_packages(),
                    config: self.state.rollout.changes_config(),
                }),
                rollout::Order::Substitute(file) => actions.push(Action::Substitute(file)),
                rollout::Order::Activate(generation) => actions.push(Action::Activate(generation)),
                rollout::Order::Remember(memory) => actions.push(Action::Remember(memory)),
                rollout::Order::Say(text) => actions.push(Action::Log(Tone::Warning, text)),
                rollout::Order::Check => self.check(actions),
                rollout::Order::Apply => self.apply(now, actions),
            }
        }
    }
}

fn carry_out_session(orders: Vec<session::Order>, actions: &mut Vec<Action>) {
    actions.extend(orders.into_iter().map(|order| match order {
        session::Order::Connect { link } => Action::Connect { link },
        session::Order::Send(outgoing) => Action::Send(outgoing),
        session::Order::Ping => Action::Ping,
        session::Order::Close => Action::Close,
        session::Order::Abort => Action::Abort,
        session::Order::KeepUid(uid) => Action::KeepUid(uid),
        session::Order::Say(tone, text) => Action::Log(tone, text),
    }));
}

/// Bytes from pairs of hexadecimal digits.
fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| u8::try_from(digit.to_digit(16)?).ok()).collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Bytes of a text from outside that is kept, logged or reported.
pub const MAX_TEXT: usize = 2048;

/// Cuts such a text to its bound, at a character.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        text.truncate(end);
        text.shrink_to_fit();
        text.push('…');
    }
    text
}
