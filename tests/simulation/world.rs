//! The world around one core: carries out its actions, brings it events, and watches it.

use core::fmt;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use bytes::Bytes;
use chiton::agent::health::CheckResult;
use chiton::agent::metrics::Figures;
use chiton::agent::packages::set::Running;
use chiton::agent::rollout::{Digest, Generation, Memory, Outcome, Staged};
use chiton::agent::session::{LinkError, LinkErrorKind, Outgoing};
use chiton::agent::uid::Uid;
use chiton::agent::{Action, Agent, Config, Event, Host, capabilities};
use chiton::clock::{Mono, Now, Wall};
use chiton::settings::{
    Allow, Apply, Backoff, Capabilities, Check, CheckKind, CrashLoop, Credentials, Endpoint,
    Health, InstanceId, Layout, Level, Log, LogFormat, LogTo, Owner, Packages, RemoteConfig,
    Rollback, Sandbox, Scheme, Server, Settings, SignatureForm, Timeouts, Tls, TlsVersion,
    Workload,
};
use chiton::signature::Keyring;
use chiton_proto::{
    AgentConfigMap, AgentIdentification, CommandType, Message, RemoteConfigStatuses, ServerToAgent,
    ServerToAgentCommand, any_value::Value,
};

use super::random::Random;
use super::server::{FULL_STATE, Kind, Mood, Offer, Server as Model, View, kind_of};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
const CRASH: &str = "exited with status 1";
/// More events than this at one instant are a loop.
const AT_ONCE: u32 = 64;

/// How hard a world is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Profile {
    pub(crate) verbose: bool,
    /// How long faults are made.
    pub(crate) faults_for: Duration,
    /// Between two faults, on average.
    pub(crate) mishap: Duration,
    /// Of all mishaps, so many in a hundred are offers.
    pub(crate) offers: u64,
    pub(crate) heartbeat: Duration,
}

impl Profile {
    pub(crate) fn month(seed: u64) -> Self {
        // A few seeds have the heartbeat that devices have; the rest a slower one, to be affordable.
        let heartbeat = match seed % 500 {
            0 => 30 * SECOND,
            1..20 => 20 * MINUTE,
            _ => HOUR,
        };
        let faults_for = DAY * 30 - DAY / 2;
        Self { verbose: false, faults_for, mishap: 5 * HOUR, offers: 25, heartbeat }
    }

    pub(crate) fn stormy() -> Self {
        let (faults_for, mishap) = (DAY, 5 * MINUTE);
        Self { verbose: false, faults_for, mishap, offers: 15, heartbeat: 5 * MINUTE }
    }

    pub(crate) fn offers() -> Self {
        let (faults_for, mishap) = (DAY, 5 * MINUTE);
        Self { verbose: false, faults_for, mishap, offers: 70, heartbeat: 5 * MINUTE }
    }
}

/// What was simulated.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    time: Duration,
    events: u64,
    sent: u64,
    received: u64,
    links: u64,
    mishaps: u64,
    offers: u64,
    applied: u64,
    rollbacks: u64,
    processes: u64,
    comparisons: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.time += other.time;
        self.events += other.events;
        self.sent += other.sent;
        self.received += other.received;
        self.links += other.links;
        self.mishaps += other.mishaps;
        self.offers += other.offers;
        self.applied += other.applied;
        self.rollbacks += other.rollbacks;
        self.processes += other.processes;
        self.comparisons += other.comparisons;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} days, {} events, {} messages up, {} down, {} links, {} mishaps, {} offers, \
             {} applied, {} rollbacks, {} processes, {} comparisons of server and agent",
            self.time.as_secs() / DAY.as_secs(),
            self.events,
            self.sent,
            self.received,
            self.links,
            self.mishaps,
            self.offers,
            self.applied,
            self.rollbacks,
            self.processes,
            self.comparisons
        )
    }
}

/// What happens later.
#[derive(Clone, Debug)]
enum Later {
    /// For the core.
    Core(Event),
    /// A message of the server reaches link `link`.
    Down {
        link: u64,
        message: Box<ServerToAgent>,
        foreign: bool,
    },
    /// A message of the agent reaches the server.
    Up {
        link: u64,
        outgoing: Box<Outgoing>,
        effective: Option<String>,
    },
    /// An answer over plain HTTP that is of no use: no message, or for another.
    Garbled {
        link: u64,
    },
    /// A ping reaches the server.
    Ping {
        link: u64,
    },
    /// The disk finishes its oldest job.
    Disk,
    /// The workload's process ends.
    Dies {
        pid: u32,
        text: &'static str,
    },
    /// A round of checks ends.
    Checks {
        round: u64,
    },
    Mishap,
}

#[derive(Clone, Debug)]
enum Job {
    KeepUid(Uid),
    Stage(Option<AgentConfigMap>, Vec<Digest>, bool),
    Arm(Memory),
    Activate(Option<Generation>),
    Remember(Memory),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    None,
    Connecting,
    Up,
    /// Close was asked for.
    Closing,
}

/// What survives a power cut.
#[derive(Clone, Debug)]
struct Disk {
    uid: Uid,
    /// A server gave it.
    given: bool,
    memory: Memory,
    generations: BTreeMap<u64, (Digest, String)>,
    next: u64,
}

/// Bytes that are no message.
const NONSENSE: &[u8] = b"\x0a\xff\xff\xff";

pub(crate) struct World {
    profile: Profile,
    random: Random,
    /// Time since the start of the world; the core's monotonic clock too.
    now: Duration,
    wall_offset: Duration,
    queue: BTreeMap<(Duration, u64), Later>,
    ticket: u64,
    tally: Tally,

    agent: Agent,
    config: Config,
    http: bool,
    /// The contents of the local file.
    local: Option<Kind>,
    /// It could be written, in this process.
    local_placed: bool,
    capabilities: u64,

    disk: Disk,
    jobs: VecDeque<Job>,
    disk_free_at: Duration,
    disk_fails: u32,
    running: Option<Generation>,

    process: Option<u32>,
    /// What the process has read.
    loaded: String,
    pids: u32,
    stopping: bool,

    server: Model,
    offers: u64,
    moods: VecDeque<Mood>,
    /// The next answer over plain HTTP is of no use.
    garbles: bool,
    net: Net,
    link: u64,
    /// Neither side hears the other, nobody knows.
    deaf: bool,
    /// The server answers pings only.
    mute_until: Duration,
    /// Answers come late, twice, in disorder.
    chaos_until: Duration,
    outage_until: Duration,
    throttles: u32,
    sick_until: Duration,
    in_flight: u32,
    calm: bool,

    // What is watched.
    next_sequence: u64,
    uid: Uid,
    /// A server had given it before the agent started.
    given: bool,
    uid_text: String,
    last_sent: Option<Duration>,
    said_goodbye: bool,
    asked_http: bool,
    not_before: Duration,
    /// Hashes that may stand in a status: the last received one, or one that came for another uid of ours.
    hashes: Vec<Bytes>,
    /// Something beside its contents speaks against the candidate.
    blamed: bool,
    /// The newest of the contents that failed.
    failed: Option<Digest>,
    staging: u32,
    activating: u32,
    at_once: u32,
    ending: bool,
    exited: bool,
    day: u64,
    sent_today: u64,
    links_today: u64,
    causes_today: u64,
}

const INITIAL: Duration = Duration::from_secs(5);
const RECONNECT_MAX: Duration = Duration::from_secs(300);
const ANSWER: Duration = Duration::from_secs(10);
const PONG: Duration = Duration::from_secs(10);
const ATTEMPTS: u32 = 2;

fn settings(profile: Profile, random: &mut Random, http: bool, apply: &Apply) -> Settings {
    let kind = CheckKind::Tcp { host: "localhost".to_owned(), port: 13133 };
    Settings {
        server: Server {
            endpoint: Endpoint {
                scheme: if http { Scheme::Https } else { Scheme::Wss },
                host: "server".to_owned(),
                port: 443,
                path: "/v1/opamp".to_owned(),
            },
            headers: Vec::new(),
            tls: Tls {
                ca_file: None,
                client: None,
                include_system_ca_certs_pool: true,
                min_version: TlsVersion::V12,
                max_version: TlsVersion::V13,
                pinned_spki_sha256: Vec::new(),
                insecure_skip_verify: false,
                cipher_suites: Vec::new(),
                enroll: None,
                renew_before: 720 * HOUR,
            },
            proxy: None,
            heartbeat_interval: profile.heartbeat,
            poll_interval: profile.heartbeat,
            reconnect: Backoff { initial: INITIAL, max: RECONNECT_MAX },
            timeouts: Timeouts { connect: ANSWER, tls: ANSWER, answer: ANSWER, pong: PONG },
            max_message_size: 4 << 20,
            allow_endpoints: Vec::new(),
            unusable: None,
        },
        agent: chiton::settings::Agent {
            instance_id: InstanceId::Auto,
            service_name: "gateway".to_owned(),
            service_version: "1".to_owned(),
            identifying_attributes: BTreeMap::new(),
            non_identifying_attributes: BTreeMap::new(),
            request_instance_uid: random.percent(30),
        },
        capabilities: Capabilities {
            accepts_remote_config: true,
            accepts_packages: false,
            accepts_opamp_connection_settings: false,
            accepts_other_connection_settings: false,
            accepts_restart_command: true,
            reports_status: true,
            reports_effective_config: true,
            reports_package_statuses: false,
            reports_own_traces: false,
            reports_own_metrics: false,
            reports_own_logs: false,
            reports_health: true,
            reports_remote_config: true,
            reports_heartbeat: true,
            reports_available_components: false,
            reports_connection_settings_status: false,
        },
        health: Health {
            check_interval: 2 * HOUR,
            unhealthy_after: 1,
            healthy_after: 1,
            metrics_interval: HOUR,
            metrics: Vec::new(),
            scrape: None,
            checks: vec![Check { kind, timeout: 5 * SECOND }],
        },
        workload: Some(Workload {
            owner: Owner::Chiton {
                command: vec!["collector".to_owned(), "--config={config_file}".to_owned()],
            },
            env: BTreeMap::new(),
            user: None,
            ambient_capabilities: Vec::new(),
            oom_score_adj: None,
            degrade: Vec::new(),
            stop_timeout: 10 * SECOND,
            restart: Backoff { initial: SECOND, max: 10 * MINUTE },
        }),
        local_config_path: None,
        credentials: Credentials { export: None, on_change: Vec::new() },
        remote_config: RemoteConfig {
            main_file: String::new(),
            layout: Layout::Merge,
            validate: if random.percent(50) { vec!["collector".to_owned()] } else { Vec::new() },
            apply: apply.clone(),
            rollback: Rollback {
                window: 30 * SECOND,
                interval: 2 * SECOND,
                successes: 3,
                attempts: ATTEMPTS,
                crash_loop: CrashLoop { crashes: 3, within: 5 * MINUTE },
            },
            min_interval: Duration::ZERO,
            allow: Allow {
                files: vec!["*".to_owned()],
                max_files: 32,
                max_size: 1 << 20,
                max_merge: 1 << 20,
            },
            history: 3,
            require_signature: false,
        },
        redact: Vec::new(),
        packages_dir: PathBuf::from("/var/lib/chiton/packages"),
        packages: Packages {
            trusted_keys: Vec::new(),
            threshold: 1,
            revoked_keys: Vec::new(),
            require_signature: true,
            signature: SignatureForm::Manifest,
            min_counter: BTreeMap::new(),
            max_size: 1,
            bandwidth: 0,
            apply: Apply::Restart,
            verify: Vec::new(),
            after_install: Vec::new(),
            allow_empty: false,
        },
        state_dir: PathBuf::from("/var/lib/chiton"),
        status_socket: PathBuf::from("/run/chiton.sock"),
        sandbox: Sandbox::Auto,
        log: Log { level: Level::Info, format: LogFormat::Text, to: LogTo::Stderr },
    }
}

fn digest(body: &str) -> Digest {
    let mut seed = 0xcbf2_9ce4_8422_2325_u64;
    for byte in body.bytes() {
        seed = (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut random = Random::new(seed);
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(&random.bytes16());
    digest[16..].copy_from_slice(&random.bytes16());
    digest
}

impl World {
    pub(crate) fn new(seed: u64, profile: Profile) -> Self {
        let mut random = Random::new(seed);
        let http = random.percent(20);
        let apply = match random.below(3) {
            0 => Apply::Restart,
            1 => Apply::Reload,
            _ => Apply::Command(vec!["reload".to_owned()]),
        };
        let settings = settings(profile, &mut random, http, &apply);
        let config = Config::new(&settings, Host::default(), Keyring::new(Vec::new(), 1, &[]));
        let uid = Uid::from_slice(&random.bytes16()).unwrap();
        let local = match random.below(10) {
            0..4 => Some(Kind::Good),
            4 => Some(Kind::Crashes),
            5 => Some(Kind::NoStart),
            _ => None,
        };
        let disk = Disk {
            uid,
            given: false,
            memory: Memory::default(),
            generations: BTreeMap::new(),
            next: 1,
        };
        let agent = Agent::new(
            config.clone(),
            Memory::default(),
            Running::default(),
            random.next(),
            Now::default(),
        );
        let server =
            Model { capabilities: if random.percent(50) { 7 } else { 0 }, ..Model::default() };
        let mut world = Self {
            profile,
            now: Duration::ZERO,
            wall_offset: Duration::from_secs(random.below(2_000_000_000)),
            queue: BTreeMap::new(),
            ticket: 0,
            tally: Tally::default(),
            agent,
            config,
            http,
            local,
            local_placed: false,
            capabilities: capabilities::usable(&settings, true, false),
            disk,
            jobs: VecDeque::new(),
            disk_free_at: Duration::ZERO,
            disk_fails: 0,
            running: None,
            process: None,
            loaded: String::new(),
            pids: 0,
            stopping: false,
            server,
            offers: 0,
            moods: VecDeque::new(),
            garbles: false,
            net: Net::None,
            link: 0,
            deaf: false,
            mute_until: Duration::ZERO,
            chaos_until: Duration::ZERO,
            outage_until: Duration::ZERO,
            throttles: 0,
            sick_until: Duration::ZERO,
            in_flight: 0,
            calm: false,
            next_sequence: 0,
            uid,
            given: false,
            uid_text: uid.to_string(),
            last_sent: None,
            said_goodbye: false,
            asked_http: false,
            not_before: Duration::ZERO,
            hashes: Vec::new(),
            blamed: false,
            failed: None,
            staging: 0,
            activating: 0,
            at_once: 0,
            ending: false,
            exited: false,
            day: 0,
            sent_today: 0,
            links_today: 0,
            causes_today: 0,
            random,
        };
        world.boot();
        world
    }

    /// The whole life of this world.
    pub(crate) fn run(mut self) -> Tally {
        self.later(Duration::ZERO, Later::Mishap);
        self.advance(self.profile.faults_for);
        self.calm_down();
        self.offer(Kind::Good, true);
        let wanted = self.server.desired.clone().unwrap();
        self.advance(self.now + DAY / 2);
        if self.in_flight > 0 {
            self.advance(self.now + 5 * SECOND); // a heartbeat is on its way
        }
        self.consistent(&wanted);
        self.end();
        self.tally.time = self.now;
        self.tally
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.profile.verbose {
            eprintln!("{:>14.6} {}", self.now.as_secs_f64(), text());
        }
    }

    fn clocks(&self) -> Now {
        Now { mono: Mono(self.now), wall: Wall(self.now + self.wall_offset) }
    }

    fn later(&mut self, wait: Duration, what: Later) {
        self.ticket += 1;
        if matches!(what, Later::Down { .. } | Later::Up { .. } | Later::Garbled { .. }) {
            self.in_flight += 1;
        }
        self.queue.insert((self.now + wait, self.ticket), what);
    }

    fn soon(&mut self) -> Duration {
        self.random.between(Duration::from_millis(1), Duration::from_millis(300))
    }

    // The process of Chiton itself.

    fn boot(&mut self) {
        self.say(|| "CHITON STARTS".to_owned());
        self.tally.processes += 1;
        let seed = self.random.next();
        self.agent = Agent::new(
            self.config.clone(),
            self.disk.memory.clone(),
            has(self.disk.memory.committed),
            seed,
            self.clocks(),
        );
        self.running = self.disk.memory.committed;
        let attempts = self.disk.memory.trial.as_ref().map_or(0, |trial| trial.number);
        self.blamed = attempts >= ATTEMPTS || self.now < self.sick_until;
        self.next_sequence = 0;
        self.uid = self.disk.uid;
        self.uid_text = self.uid.to_string();
        self.net = Net::None;
        self.link = 0;
        self.last_sent = None;
        self.not_before = Duration::ZERO;
        self.exited = false;
        self.ending = false;
        self.local_placed = false;
        self.failed = self.disk.memory.failed.front().map(|failed| failed.digest);
        let memory = &self.disk.memory;
        let tried = memory.trial.as_ref().map(|trial| trial.parts.hash());
        self.hashes = vec![tried.or(memory.received.clone()).unwrap_or_default()];
        let now = self.clocks();
        let mut actions = Vec::new();
        self.agent.boot(now, &mut actions);
        self.carry_out(actions);
        let mut actions = Vec::new();
        self.given = self.disk.given;
        self.agent.connect(self.uid, self.given, now, &mut actions);
        self.carry_out(actions);
        self.watch();
    }

    /// The power goes: nothing of the process is left, of the disk's jobs the oldest may have been done.
    fn power_cut(&mut self) {
        self.say(|| "POWER CUT".to_owned());
        if self.random.percent(50)
            && let Some(job) = self.jobs.pop_front()
        {
            self.disk_fails = 0;
            self.work(job);
        }
        self.forget_process();
    }

    fn forget_process(&mut self) {
        self.jobs.clear();
        self.process = None;
        self.stopping = false;
        self.staging = 0;
        self.activating = 0;
        self.deaf = false;
        self.queue.retain(|_, later| matches!(later, Later::Mishap));
        self.in_flight = 0;
        self.exited = true;
        self.boot();
    }

    // Time.

    fn advance(&mut self, end: Duration) {
        loop {
            let tick = self.agent.deadline().map(|at| at.0.max(self.now));
            let next = self.queue.first_key_value().map(|((at, _), _)| *at);
            let at = [tick, next].into_iter().flatten().min().unwrap_or(end);
            if at > end {
                self.now = end;
                return;
            }
            if at > self.now {
                self.at_once = 0;
                self.now = at;
                self.new_day();
            } else {
                self.at_once += 1;
                assert!(self.at_once < AT_ONCE, "a busy loop: time stands still");
            }
            if next.is_some_and(|next| next <= at) {
                let (_, later) = self.queue.pop_first().unwrap();
                self.happen(later);
            } else {
                self.handle(Event::Tick);
            }
        }
    }

    /// Chatter is bounded by what caused it.
    fn new_day(&mut self) {
        let day = self.now.as_secs() / DAY.as_secs();
        if day == self.day {
            return;
        }
        let heartbeats = DAY.as_secs() / self.profile.heartbeat.as_secs() + 1;
        let most = heartbeats + self.causes_today;
        assert!(self.sent_today <= most, "{} messages in a day, {most} at most", self.sent_today);
        // Full jitter waits half of its bound on average; the first few attempts after each fault are quick.
        let most = 4 * DAY.as_secs() / RECONNECT_MAX.as_secs() + 20 + 8 * self.causes_today;
        assert!(self.links_today <= most, "{} attempts in a day, {most} at most", self.links_today);
        self.day = day;
        self.sent_today = 0;
        self.links_today = 0;
        self.causes_today = 0;
    }

    fn happen(&mut self, later: Later) {
        match later {
            Later::Core(event) => self.handle(event),
            Later::Down { link, message, foreign } => {
                self.in_flight -= 1;
                self.down(link, &message, foreign);
            }
            Later::Up { link, outgoing, effective } => {
                self.in_flight -= 1;
                self.up(link, &outgoing, effective.as_ref());
            }
            Later::Garbled { link } => {
                self.in_flight -= 1;
                if link == self.link && self.net == Net::Up {
                    self.asked_http = false;
                    let bytes = match self.random.percent(50) {
                        true => Bytes::from_static(NONSENSE),
                        false => stranger(&mut self.random).encode_to_vec().into(),
                    };
                    self.handle(Event::Received { link, bytes });
                }
            }
            Later::Ping { link } => {
                if link == self.link && self.net == Net::Up && !self.deaf {
                    let wait = self.soon();
                    self.later(wait, Later::Core(Event::Pong { link }));
                }
            }
            Later::Disk => {
                let job = self.jobs.pop_front().unwrap();
                let event = self.work(job);
                self.handle(event);
            }
            Later::Dies { pid, text } => {
                if self.process == Some(pid) {
                    self.process = None;
                    self.stopping = false;
                    self.handle(Event::WorkloadExited(text.to_owned()));
                }
            }
            Later::Checks { round } => {
                let sick = self.process.is_none()
                    || kind_of(&self.loaded) == Kind::Sick
                    || self.now < self.sick_until;
                let failure = sick.then(|| "connection refused".to_owned());
                let name = "tcp localhost:13133".to_owned();
                let results = vec![CheckResult { name, failure, ..CheckResult::default() }];
                self.handle(Event::Checked { round, results });
            }
            Later::Mishap => {
                if !self.calm {
                    self.mishap();
                    // Seldom alone: what follows at once hits the trial that has just begun.
                    let most =
                        if self.random.percent(25) { 15 * SECOND } else { self.profile.mishap * 2 };
                    let wait = self.random.between(Duration::ZERO, most);
                    self.later(wait, Later::Mishap);
                }
            }
        }
    }

    // Events to the core, actions from it.

    fn handle(&mut self, event: Event) {
        if self.exited {
            return;
        }
        self.tally.events += 1;
        self.say(|| {
            let mut text = format!("event {event:?}");
            text.truncate(text.floor_char_boundary(160));
            text
        });
        let up = matches!(&event, Event::LinkUp { link } if *link == self.link)
            && self.net == Net::Connecting;
        match &event {
            Event::LinkUp { link } if *link == self.link && self.net == Net::Connecting => {
                self.net = Net::Up;
                self.deaf = false;
                self.last_sent = None;
                self.said_goodbye = false;
                self.asked_http = false;
                self.causes_today += 1;
            }
            Event::LinkDown { link, .. } if *link == self.link => self.net = Net::None,
            Event::UidKept { uid, .. } => {
                self.uid = *uid;
                self.uid_text = uid.to_string();
                self.causes_today += 1;
            }
            Event::Staged(_) => self.staging -= 1,
            Event::Activated(_) => self.activating -= 1,
            _ => {}
        }
        if !matches!(event, Event::Tick | Event::Received { .. } | Event::Pong { .. }) {
            self.causes_today += 1;
        }
        let before = self.tally.sent;
        let ticks = matches!(event, Event::Tick);
        let mut actions = Vec::new();
        self.agent.handle(event, self.clocks(), &mut actions);
        if ticks && !actions.is_empty() && !matches!(actions[..], [Action::Send(_)]) {
            self.causes_today += 1; // a trial's end, a restart
        }
        self.carry_out(actions);
        if up {
            assert!(
                self.tally.sent > before,
                "the first report must follow the connection at once"
            );
        }
        self.watch();
    }

    /// What must hold after every event.
    fn watch(&mut self) {
        if self.exited || self.ending {
            return;
        }
        if let (Net::Up, false) = (self.net, self.http) {
            let last = self.last_sent.unwrap();
            assert!(self.now <= last + self.profile.heartbeat, "a heartbeat is late");
        }
        if let Some(at) = self.agent.deadline() {
            assert!(at.0 <= self.now + 10 * DAY, "a deadline beyond reason: {at:?}");
        } else {
            let waits = matches!(self.net, Net::Connecting | Net::Closing)
                || (self.http && self.net == Net::Up);
            assert!(waits, "nothing will ever happen again");
        }
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        let mut aftermath = VecDeque::new();
        let mut sent = 0;
        for action in actions {
            if !matches!(action, Action::Send(_)) {
                self.say(|| {
                    let mut text = format!("    {action:?}");
                    text.truncate(text.floor_char_boundary(200));
                    text
                });
            }
            match action {
                Action::Connect { link } => self.connect(link),
                Action::Send(outgoing) => {
                    sent += 1;
                    assert!(sent <= 2, "more than a report and a goodbye at once");
                    self.send(outgoing);
                }
                Action::Ping => {
                    assert_eq!(self.net, Net::Up, "a ping without a link");
                    let (wait, link) = (self.soon(), self.link);
                    self.later(wait, Later::Ping { link });
                }
                Action::Close => {
                    assert_eq!(self.net, Net::Up, "closed what is not open");
                    assert!(self.said_goodbye, "closed without agent_disconnect");
                    self.net = Net::Closing;
                    let (link, wait) = (self.link, SECOND + self.soon());
                    self.later(wait, Later::Core(Event::LinkDown { link, error: None }));
                }
                Action::Abort => {
                    assert!(self.net == Net::Up || self.net == Net::Connecting);
                    self.net = Net::None;
                }
                Action::KeepUid(uid) => self.job(Job::KeepUid(uid)),
                Action::Arm { memory, after_going_back } => {
                    assert!(after_going_back.trial.is_none(), "a way back into a trial");
                    assert_eq!(after_going_back.committed, memory.committed);
                    self.job(Job::Arm(*memory));
                }
                Action::Stage { candidate, known, write } => {
                    assert_eq!(self.staging, 0, "two candidates at once");
                    self.staging += 1;
                    self.blamed = self.now < self.sick_until || self.disk_fails > 0;
                    self.job(Job::Stage(candidate.offer().cloned(), known, write));
                }
                // No rule here says so, and nothing is signed.
                Action::Substitute(_) | Action::Obtain(_) | Action::Prepare { .. } => {}
                // Connections are offered in tests/connection_model.rs.
                Action::UseCredentials
                | Action::StageConnection { .. }
                | Action::RememberConnection(_)
                | Action::MakeRequest { .. } => {}
                Action::Activate(generation) => {
                    assert_eq!(self.activating, 0, "two swaps at once");
                    self.activating += 1;
                    self.may_run(generation);
                    self.job(Job::Activate(generation));
                }
                Action::Remember(memory) => {
                    self.judged(&memory);
                    self.job(Job::Remember(*memory));
                }
                Action::Validate { generation, .. } => {
                    let body = &self.disk.generations[&generation.number].1;
                    let result = match kind_of(body) {
                        Kind::Invalid => Err("unknown receiver".to_owned()),
                        _ => Ok(()),
                    };
                    let wait = 5 * self.soon();
                    self.later(wait, Later::Core(Event::Validated(result)));
                }
                Action::StartWorkload => aftermath.push_back(self.start_workload()),
                Action::StopWorkload => {
                    if let Some(pid) = self.process {
                        self.stopping = true;
                        let wait = self.random.between(SECOND / 100, 5 * SECOND);
                        self.later(wait, Later::Dies { pid, text: "ended by SIGTERM" });
                    }
                }
                Action::Reload => {
                    let result = self.reload();
                    aftermath.push_back(Event::Reloaded(result));
                }
                Action::RunApply => {
                    let result = self.reload();
                    let wait = 5 * self.soon();
                    self.later(wait, Later::Core(Event::Reloaded(result)));
                }
                Action::Ask(ask) => assert_eq!(Some(ask), None, "asked of a workload that is ours"),
                Action::Check { round } => {
                    let wait = 5 * self.soon();
                    self.later(wait, Later::Checks { round });
                }
                Action::Measure { round } => {
                    let figures = Figures::default();
                    aftermath.push_back(Event::Measured { round, figures });
                }
                Action::Log(_, text) => {
                    if text.contains("rolling back") {
                        self.tally.rollbacks += 1;
                    }
                }
                Action::Exit => self.exited = true,
            }
        }
        // As the runtime does: what is known at once is told at once.
        while let Some(event) = aftermath.pop_front() {
            self.handle(event);
        }
    }

    // The network.

    fn connect(&mut self, link: u64) {
        assert_eq!(self.net, Net::None, "two links at once");
        assert!(link > self.link, "link numbers rise");
        assert!(self.now >= self.not_before, "back earlier than the server asked for");
        self.net = Net::Connecting;
        self.link = link;
        self.tally.links += 1;
        self.links_today += 1;
        let mut wait = self.soon();
        let event = if self.throttles > 0 {
            self.throttles -= 1;
            let asked =
                self.random.percent(70).then(|| Duration::from_secs(self.random.below(200)));
            self.not_before = self.now + wait + asked.unwrap_or_default().max(30 * SECOND);
            let kind = LinkErrorKind::Throttled(asked);
            Event::LinkDown { link, error: Some(LinkError { text: "503".to_owned(), kind }) }
        } else if self.now < self.outage_until {
            if self.random.percent(30) {
                wait = ANSWER;
            }
            failed(link, "connection refused", LinkErrorKind::Failed)
        } else {
            Event::LinkUp { link }
        };
        self.later(wait, Later::Core(event));
    }

    fn send(&mut self, outgoing: Box<Outgoing>) {
        let message = &outgoing.message;
        assert_eq!(self.net, Net::Up, "a message without a link");
        assert!(!self.said_goodbye, "a message after agent_disconnect");
        assert_eq!(message.sequence_num, self.next_sequence, "the sequence has a hole");
        assert_eq!(message.capabilities, self.capabilities, "capabilities are always set");
        assert_eq!(
            message.instance_uid.as_ref(),
            self.uid.as_bytes(),
            "not the uid that is ours by now"
        );
        assert!(!self.given || message.flags == 0, "asks for a uid though one was given");
        let goodbye = message.agent_disconnect.is_some();
        if self.next_sequence == 0 {
            let full = message.agent_description.is_some()
                && message.health.is_some()
                && message.remote_config_status.is_some()
                && outgoing.effective_config;
            assert!(full, "the first report of a process is full");
        }
        if self.http && !goodbye {
            assert!(!self.asked_http, "two requests at once");
            self.asked_http = true;
        }
        if let Some(status) = &message.remote_config_status {
            let hash = &status.last_remote_config_hash;
            assert!(self.hashes.contains(hash), "the status names {hash:?}, not {:?}", self.hashes);
            if status.status() == RemoteConfigStatuses::Failed {
                assert!(!status.error_message.is_empty(), "failed without a reason");
            }
        }
        self.say(|| {
            format!(
                "    send #{} description {} health {} status {:?} effective {} goodbye {goodbye}",
                message.sequence_num,
                message.agent_description.is_some(),
                message.health.is_some(),
                message.remote_config_status.as_ref().map(chiton_proto::RemoteConfigStatus::status),
                outgoing.effective_config,
            )
        });
        self.said_goodbye = goodbye;
        self.next_sequence += 1;
        self.last_sent = Some(self.now);
        self.tally.sent += 1;
        self.sent_today += 1;
        if goodbye {
            self.causes_today += 1;
        }
        // What the edge does: the effective config is read when it is sent.
        let effective = self.running_body();
        // A fixed delay on this way: a WebSocket keeps the order.
        let (link, wait) = (self.link, Duration::from_millis(40));
        self.later(wait, Later::Up { link, outgoing, effective });
    }

    /// A message reaches the server.
    fn up(&mut self, link: u64, outgoing: &Outgoing, effective: Option<&String>) {
        let alive = link == self.link && matches!(self.net, Net::Up | Net::Closing);
        if !alive || self.deaf {
            return;
        }
        if outgoing.message.agent_disconnect.is_some() {
            let uid = outgoing.message.instance_uid.to_vec();
            if let Some(view) = self.server.views.get_mut(&uid)
                && view.last.is_some_and(|last| last + 1 == outgoing.message.sequence_num)
            {
                view.last = Some(outgoing.message.sequence_num);
            }
            return;
        }
        let mood = self.moods.pop_front().unwrap_or(Mood::Fine);
        let reply = self.server.answer(outgoing, effective, mood);
        let garbled = self.http && core::mem::take(&mut self.garbles);
        if (self.now < self.mute_until && !self.http) || garbled {
            if reply.flags & FULL_STATE != 0 || reply.agent_identification.is_some() {
                // It will ask again.
                let uid = outgoing.message.instance_uid.to_vec();
                self.server.views.entry(uid).or_default().needs_full |=
                    reply.flags & FULL_STATE != 0;
            }
            if garbled {
                let wait = self.soon();
                self.later(wait, Later::Garbled { link });
            }
            return;
        }
        let mut wait = self.soon();
        if self.now < self.chaos_until && !self.http {
            if self.random.percent(20) {
                return; // never answered
            }
            wait = self.random.between(Duration::ZERO, 20 * SECOND);
            if self.random.percent(30) {
                let wait = self.random.between(Duration::ZERO, 60 * SECOND);
                self.deliver(wait, link, reply.clone(), false);
            }
        }
        self.deliver(wait, link, reply, false);
    }

    fn deliver(&mut self, wait: Duration, link: u64, message: ServerToAgent, foreign: bool) {
        self.later(wait, Later::Down { link, message: Box::new(message), foreign });
    }

    /// A message of the server reaches the agent.
    fn down(&mut self, link: u64, message: &ServerToAgent, foreign: bool) {
        if self.deaf {
            return;
        }
        let bytes = Bytes::from(message.encode_to_vec());
        let current = link == self.link && self.net == Net::Up;
        let (staging, sent) = (self.staging, self.tally.sent);
        let plain = message.flags == 0
            && message.remote_config.is_none()
            && message.agent_identification.is_none()
            && message.error_response.is_none();
        if current {
            self.tally.received += 1;
            if !foreign {
                self.asked_http = false;
                self.expect(message);
            }
        }
        if !plain {
            self.causes_today += 1;
        }
        self.handle(Event::Received { link, bytes });
        if foreign || !current {
            assert_eq!(self.staging, staging, "took an offer that was not for it");
        }
        if (foreign || !current || plain) && !self.http && self.last_sent != Some(self.now) {
            assert_eq!(self.tally.sent, sent, "talked without a cause");
        }
        self.compare();
    }

    /// Keeps what the agent may say about the offer in this message.
    fn expect(&mut self, message: &ServerToAgent) {
        let mine = message.instance_uid.as_ref() == self.uid.as_bytes();
        if let Some(error) = message.error_response.as_ref().filter(|_| mine)
            && let Some(chiton_proto::server_error_response::Details::RetryInfo(info)) =
                &error.details
        {
            let asked = Duration::from_nanos(info.retry_after_nanoseconds).min(HOUR);
            self.not_before = self.now + asked.max(30 * SECOND);
        }
        if message.command.is_some() {
            return;
        }
        let Some(offer) = &message.remote_config else { return };
        if mine {
            self.hashes.clear();
        }
        self.hashes.push(offer.config_hash.clone());
    }

    /// What the server believes is so, whenever nothing is on its way.
    fn compare(&mut self) {
        let still = self.net == Net::Up
            && self.in_flight == 0
            && !self.deaf
            && !self.exited
            && !(self.http && self.asked_http);
        if !still || !self.agrees() {
            return;
        }
        self.tally.comparisons += 1;
        let view = self.view().unwrap();
        let snapshot = self.agent.snapshot();
        assert_eq!(view.health.as_ref(), Some(&snapshot.health), "the server's health is stale");
        assert_eq!(
            view.status.as_ref(),
            Some(&snapshot.remote_config),
            "the server's status is stale"
        );
        let description = view.description.as_ref().unwrap();
        let told = Some(Value::StringValue(self.uid_text.clone()));
        let told = description.identifying_attributes.iter().any(|attribute| {
            attribute.key == "service.instance.id"
                && attribute.value.as_ref().is_some_and(|value| value.value == told)
        });
        assert!(told, "the description is stale");
        if self.activating == 0 && self.jobs.is_empty() {
            let running = self.running_body().unwrap_or_default();
            assert_eq!(view.effective.as_ref(), Some(&running), "the effective config is stale");
        }
    }

    fn view(&self) -> Option<&View> {
        self.server.views.get(self.uid.as_bytes().as_slice())
    }

    /// Whether the server has taken every message.
    fn agrees(&self) -> bool {
        self.view().is_some_and(|view| {
            view.last.is_some_and(|last| last + 1 == self.next_sequence) && !view.needs_full
        })
    }

    // The disk.

    fn job(&mut self, job: Job) {
        self.jobs.push_back(job);
        let start = self.disk_free_at.max(self.now);
        self.disk_free_at = start + self.soon();
        self.later(self.disk_free_at - self.now, Later::Disk);
    }

    fn work(&mut self, job: Job) -> Event {
        let broken = self.disk_fails > 0;
        self.disk_fails = self.disk_fails.saturating_sub(1);
        let error = || "no space left on device".to_owned();
        let result = if broken { Err(error()) } else { Ok(()) };
        match job {
            Job::KeepUid(uid) => {
                if !broken {
                    self.disk.uid = uid;
                    self.disk.given = true;
                }
                Event::UidKept { uid, error: result.err() }
            }
            Job::Stage(offer, known, write) => {
                Event::Staged(self.stage(offer, &known, write, broken))
            }
            Job::Arm(memory) => {
                if !broken {
                    self.disk.memory = memory;
                }
                Event::Armed(result)
            }
            Job::Activate(generation) => {
                if !broken {
                    self.running = generation;
                }
                Event::Activated(result.map(|()| has(generation)))
            }
            Job::Remember(memory) => {
                if !broken {
                    self.disk.memory = memory;
                }
                Event::Remembered(result)
            }
        }
    }

    fn stage(
        &mut self,
        offer: Option<AgentConfigMap>,
        known: &[Digest],
        write: bool,
        broken: bool,
    ) -> Staged {
        let remote = offer.is_some();
        let body = match offer {
            Some(map) => {
                let body = &map.config_map["main.yaml"].body;
                core::str::from_utf8(body).unwrap().to_owned()
            }
            None => match self.local {
                Some(kind) => format!("{kind:?}#local"),
                None => return Staged::Nothing,
            },
        };
        if kind_of(&body) == Kind::Refused {
            return Staged::Refused("not allowed here".to_owned());
        }
        let digest = digest(&body);
        if known.contains(&digest) {
            return Staged::Known(digest);
        }
        if !write {
            return Staged::Deferred;
        }
        if broken {
            return Staged::Failed("no space left on device".to_owned());
        }
        self.local_placed |= !remote;
        let number = self.disk.next;
        self.disk.next += 1;
        self.disk.generations.insert(number, (digest, body));
        Staged::New(Generation { number, digest, remote })
    }

    /// What is about to become the running generation may do so.
    fn may_run(&self, generation: Option<Generation>) {
        let snapshot = self.agent.snapshot();
        let back = snapshot.phase == "rolling back";
        if back {
            assert_eq!(generation, snapshot.committed, "rolls back to what is not committed");
            return;
        }
        let new = generation.unwrap();
        assert!(self.disk.generations.contains_key(&new.number), "was never staged");
        let newest = self.disk.next - 1;
        let trial = self.disk.memory.trial.as_ref();
        assert!(
            !new.remote || trial.is_some_and(|trial| trial.generation == new),
            "a trial that is not on record"
        );
        let repeated = trial.is_some_and(|trial| trial.generation == new && trial.number > 1);
        assert!(
            new.number == newest || repeated,
            "goes back to an older generation without a rollback"
        );
        let failed = self.disk.memory.failed.iter().any(|failed| failed.digest == new.digest);
        assert!(!failed, "contents that failed run again");
    }

    /// A good configuration fails only if something else went wrong.
    fn judged(&mut self, memory: &Memory) {
        let failed = memory.failed.front().map(|failed| failed.digest);
        if failed == self.failed {
            return;
        }
        self.failed = failed;
        let Some(digest) = failed else { return };
        let mut generations = self.disk.generations.values();
        let (_, body) = generations.find(|(of, _)| *of == digest).unwrap();
        let just = self.blamed || kind_of(body) != Kind::Good;
        assert!(just, "{body} failed, and nothing was wrong: {:?}", memory.failed.front());
    }

    fn running_body(&self) -> Option<String> {
        let number = self.running?.number;
        Some(self.disk.generations[&number].1.clone())
    }

    // The workload.

    fn start_workload(&mut self) -> Event {
        assert!(self.process.is_none(), "two processes at once");
        let body = self.running_body().unwrap_or_default();
        if kind_of(&body) == Kind::NoStart || body.is_empty() {
            return Event::WorkloadNotStarted("no such file".to_owned());
        }
        self.pids += 1;
        self.process = Some(self.pids);
        self.stopping = false;
        self.load(body);
        Event::WorkloadStarted { pid: self.pids }
    }

    fn load(&mut self, body: String) {
        self.loaded = body;
        // What the former contents would have done to this process is not going to happen.
        self.queue.retain(|_, later| !matches!(later, Later::Dies { text: CRASH, .. }));
        let dies = match kind_of(&self.loaded) {
            Kind::Crashes => Duration::ZERO..4 * SECOND,
            Kind::Late => 31 * SECOND..MINUTE,
            _ => return,
        };
        if let Some(pid) = self.process {
            let wait = self.random.between(dies.start, dies.end);
            self.later(wait, Later::Dies { pid, text: CRASH });
        }
    }

    fn reload(&mut self) -> Result<(), String> {
        let body = self.running_body().unwrap_or_default();
        if self.process.is_none() {
            return Err("the workload does not run".to_owned());
        }
        if kind_of(&body) == Kind::NoStart {
            return Err("it refused the configuration".to_owned());
        }
        self.load(body);
        Ok(())
    }

    // What goes wrong.

    fn offer(&mut self, kind: Kind, fresh: bool) {
        self.offers += 1;
        self.tally.offers += 1;
        self.causes_today += 4;
        let content = if fresh { 1_000_000 + self.offers } else { self.random.below(12) };
        let offer = Offer::new(self.offers, content, kind);
        self.say(|| format!("OFFER {} {}", self.offers, offer.body));
        let message = offer.message();
        self.server.desired = Some(offer);
        if self.random.percent(70) {
            self.push(ServerToAgent { remote_config: Some(message), ..ServerToAgent::default() });
        }
    }

    /// The server speaks without being asked.
    fn push(&mut self, message: ServerToAgent) {
        if self.net == Net::Up && !self.http {
            let (wait, link) = (self.soon(), self.link);
            let message =
                ServerToAgent { instance_uid: self.uid.as_bytes().to_vec().into(), ..message };
            self.deliver(wait, link, message, false);
        }
    }

    /// Where there is a configuration, the workload runs or is about to.
    fn looked_after(&self) {
        let snapshot = self.agent.snapshot();
        let status = snapshot.health.status.as_str();
        if snapshot.phase == "idle" && (self.local_placed || snapshot.committed.is_some()) {
            let wanted = matches!(status, "running" | "starting" | "restarting");
            assert!(wanted, "the workload is {status}, and nobody starts it");
        }
    }

    fn mishap(&mut self) {
        self.looked_after();
        self.tally.mishaps += 1;
        self.causes_today += 4;
        if self.random.percent(self.profile.offers) {
            let kind = match self.random.below(11) {
                0..5 => Kind::Good,
                10 => Kind::Late,
                5 => Kind::Crashes,
                6 => Kind::Sick,
                7 => Kind::NoStart,
                8 => Kind::Invalid,
                _ => Kind::Refused,
            };
            let fresh = self.random.percent(40);
            self.offer(kind, fresh);
            return;
        }
        let which = self.random.below(22);
        self.blamed |= matches!(which, 13 | 14 | 16 | 19);
        self.say(|| format!("MISHAP {which}"));
        match which {
            0 | 1 => self.cut("connection reset", LinkErrorKind::Failed),
            2 => self.cut("a text frame", LinkErrorKind::Fault),
            3 => self.deaf = !self.http && self.net == Net::Up,
            4 => {
                self.server.views.clear();
                self.outage_until = self.now + self.random.between(Duration::ZERO, 10 * MINUTE);
                self.cut("the server restarts", LinkErrorKind::Failed);
            }
            5 => {
                self.outage_until = self.now + self.random.between(MINUTE, 3 * HOUR);
                self.cut("no route to host", LinkErrorKind::Failed);
            }
            6 => {
                self.throttles = u32::try_from(1 + self.random.below(4)).unwrap();
                self.cut("overload", LinkErrorKind::Failed);
            }
            7 => {
                let asked = self.random.percent(50).then(|| self.random.below(100_000_000_000));
                self.moods.push_back(Mood::Unavailable(asked));
            }
            8 => self.moods.push_back(Mood::BadRequest),
            9 => self.push(ServerToAgent { flags: FULL_STATE, ..ServerToAgent::default() }),
            10 => self.server.insists = !self.server.insists,
            11 => {
                let uid = match self.random.below(4) {
                    0 => vec![7; 15],
                    1 => self.uid.as_bytes().to_vec(),
                    _ => self.random.bytes16().to_vec(),
                };
                self.server.new_uid = Some(uid);
            }
            12 => self.foreign(),
            13 => {
                if let Some(pid) = self.process {
                    self.later(Duration::ZERO, Later::Dies { pid, text: "killed by SIGKILL" });
                }
            }
            14 => self.sick_until = self.now + self.random.between(SECOND, HOUR),
            15 => {
                let command = Some(ServerToAgentCommand { r#type: CommandType::Restart.into() });
                let remote_config = Some(Offer::new(u64::MAX, 0, Kind::Good).message());
                self.push(ServerToAgent { command, remote_config, ..ServerToAgent::default() });
            }
            16 => self.power_cut(),
            17 => self.shut_down(),
            18 => self.chaos_until = self.now + self.random.between(MINUTE, HOUR),
            19 => self.disk_fails = u32::try_from(1 + self.random.below(3)).unwrap(),
            20 => self.mute_until = self.now + self.random.between(MINUTE, 2 * HOUR),
            _ => self.nonsense(),
        }
    }

    fn cut(&mut self, text: &str, kind: LinkErrorKind) {
        if self.net == Net::Up {
            let link = self.link;
            self.handle(failed(link, text, kind));
        }
    }

    fn foreign(&mut self) {
        self.garbles = self.http;
        if self.net == Net::Up && !self.http {
            let message = stranger(&mut self.random);
            let (wait, link) = (self.soon(), self.link);
            self.deliver(wait, link, message, true);
        }
    }

    /// Bytes that are no message, and events of links that are gone.
    fn nonsense(&mut self) {
        let gone = self.link.wrapping_sub(1);
        let bytes = Bytes::from_static(NONSENSE);
        let sent = self.tally.sent;
        if self.http {
            self.garbles = true;
        } else {
            self.handle(Event::Received { link: self.link, bytes: bytes.clone() });
        }
        self.handle(Event::Received { link: gone, bytes });
        self.handle(Event::Pong { link: gone });
        self.handle(Event::LinkUp { link: gone });
        self.handle(failed(gone, "late", LinkErrorKind::Failed));
        self.handle(Event::Checked { round: 0, results: Vec::new() });
        if self.last_sent != Some(self.now) {
            assert_eq!(self.tally.sent, sent, "answered nonsense");
        }
    }

    fn shut_down(&mut self) {
        self.end();
        self.forget_process();
    }

    /// An orderly end: a goodbye if there is a link, and an end in good time.
    fn end(&mut self) {
        let was_up = self.net == Net::Up;
        let sent = self.tally.sent;
        self.ending = true;
        self.handle(Event::Shutdown);
        if was_up {
            assert!(self.said_goodbye && self.tally.sent > sent, "left without agent_disconnect");
        }
        let end = self.now + MINUTE;
        while !self.exited {
            let (at, _) = *self.queue.first_key_value().unwrap().0;
            assert!(at <= end, "the orderly end takes too long");
            self.now = at;
            let (_, later) = self.queue.pop_first().unwrap();
            if !matches!(later, Later::Mishap) {
                self.happen(later);
            }
        }
        assert!(self.process.is_none(), "left its workload behind");
    }

    fn calm_down(&mut self) {
        self.say(|| "CALM".to_owned());
        self.calm = true;
        self.deaf = false;
        self.disk_fails = 0;
        self.throttles = 0;
        self.moods.clear();
        self.garbles = false;
        self.server.insists = false;
        self.server.new_uid = None;
        for until in [
            &mut self.outage_until,
            &mut self.mute_until,
            &mut self.chaos_until,
            &mut self.sick_until,
        ] {
            *until = self.now;
        }
    }

    /// After half a calm day.
    fn consistent(&mut self, wanted: &Offer) {
        assert_eq!(self.net, Net::Up, "not connected");
        assert!(self.agrees(), "the server still misses something: {:?}", self.view());
        let snapshot = self.agent.snapshot();
        assert_eq!(snapshot.phase, "idle");
        let status = &snapshot.remote_config;
        assert_eq!(status.last_remote_config_hash, wanted.hash, "not the newest offer");
        assert_eq!(status.status(), RemoteConfigStatuses::Applied, "{}", status.error_message);
        assert_eq!(self.running_body().as_ref(), Some(&wanted.body));
        assert_eq!(self.loaded, wanted.body, "the workload runs something else");
        assert!(self.process.is_some(), "the workload does not run");
        assert_eq!(self.disk.memory.outcome, Outcome::Applied);
        assert_eq!(self.disk.memory.committed, self.running);
        assert!(snapshot.health.healthy, "unhealthy: {:?}", snapshot.health);
        let view = self.view().unwrap();
        assert_eq!(view.health.as_ref(), Some(&snapshot.health));
        assert_eq!(view.status.as_ref(), Some(status));
        assert_eq!(view.effective.as_ref(), Some(&wanted.body));
        self.tally.applied += 1;
    }
}

/// A message for another agent.
fn stranger(random: &mut Random) -> ServerToAgent {
    ServerToAgent {
        instance_uid: random.bytes16().to_vec().into(),
        flags: FULL_STATE,
        remote_config: Some(Offer::new(u64::MAX, 1, Kind::Good).message()),
        agent_identification: None::<AgentIdentification>,
        ..ServerToAgent::default()
    }
}

fn failed(link: u64, text: &str, kind: LinkErrorKind) -> Event {
    Event::LinkDown { link, error: Some(LinkError { text: text.to_owned(), kind }) }
}

/// What a generation has.
fn has(generation: Option<Generation>) -> Running {
    Running { has_config: generation.is_some(), ..Running::default() }
}
