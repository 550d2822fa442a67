//! The pure core: events in, actions out. No I/O, no clock, no randomness of its own.
//!
//! [`Agent::handle`] is the whole of it: the runtime feeds it what happened and when, carries out the actions in
//! their order, and calls again at [`Agent::deadline`]. Nothing here is global: several agents can live side by
//! side.

pub mod backoff;
pub mod bounds;
mod called;
pub mod capabilities;
mod config;
pub mod configset;
mod connecting;
pub mod connection;
pub mod degrade;
mod event;
mod govern;
pub mod health;
pub mod identity;
mod managed;
pub mod merge;
pub mod metrics;
mod offering;
mod pace;
pub mod packages;
pub mod redact;
pub mod report;
pub mod rollout;
pub mod sealed;
pub mod session;
mod supervising;
pub mod supervision;
pub mod uid;

use chiton_proto::{
    AgentCapabilities, ComponentHealth, ConnectionSettingsStatus, PackageStatuses,
    RemoteConfigStatus,
};

pub use self::config::{Config, Host};
use self::connection::enrol::Enrolment;
use self::connection::{Connections, Found, Way};
pub use self::event::{Action, Event};
pub use self::govern::{RESTART_INTERVAL, Reread};
use self::health::Health;
use self::managed::Managed;
use self::metrics::Measuring;
use self::packages::Packages;
use self::packages::set::Running;
use self::report::Facets;
use self::rollout::{Generation, Memory, Rollout, Staged};
use self::session::{LinkState, Reportable, Session, Tone};
use self::supervision::{State, Supervision};
use self::uid::Uid;
use crate::clock::{Mono, Now};
use crate::credentials::Judged;
use crate::settings::Apply;

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
