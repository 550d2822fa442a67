//! One agent, its disk, its way to the server; everything that can happen to it, and what must hold.

use core::fmt;
use core::hash::{Hash, Hasher};
use core::time::Duration;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::DefaultHasher;
use std::sync::LazyLock;

use bytes::Bytes;
use chiton::agent::connection::memory::Memory;
use chiton::agent::connection::overlay::Candidate;
use chiton::agent::connection::{KEPT, MAX_ATTEMPTS, Way};
use chiton::agent::packages::set::Running;
use chiton::agent::rollout::{self, Digest, Outcome};
use chiton::agent::session::{LinkError, LinkErrorKind, Outgoing};
use chiton::agent::uid::Uid;
use chiton::agent::{Action, Agent, Config, Event, Host};
use chiton::clock::{Mono, Now, Wall};
use chiton::settings;
use chiton::signature::Keyring;
use chiton_proto::{
    ConnectionSettingsStatus, ConnectionSettingsStatuses as Status, Message, ServerToAgent,
};

use super::device::{Disk, Flaw, LAST, OWN, Offer, Pass, pass_of};

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
/// 2038, a while before.
const BEGINNING: u64 = 1 << 31;
/// The disk and the network take no longer.
const SLOW: Duration = Duration::from_secs(60);
/// More ticks than this at one instant, with nothing else, are a loop.
const AT_ONCE: u32 = 4;
/// More steps than this without an end are none.
const LOOP: u32 = 10_000;
/// As soon as something is accepted the agent finds it within so many attempts.
const ALTERNATIONS: u32 = 12;
/// After so many attempts most of what came before makes no difference.
const MERGE: u32 = 4;
/// And within this: the longest wait between two of them, and a trial that hangs, a few times. After a day of refusals
/// there are three ways in turn.
const SOON: Duration = Duration::from_secs(12 * 3600);

/// Names of what must hold.
pub(crate) const FILES: &str = "the files of what is committed are there";
pub(crate) const PROVEN: &str = "only what a server answered on is committed";
pub(crate) const ON_RECORD: &str = "what is tried is on record";
pub(crate) const FAILED: &str = "what failed is never tried again";
pub(crate) const COUNTED: &str = "attempts are counted";
pub(crate) const APPLIED: &str = "applied is on record";
pub(crate) const AWAKE: &str = "it never sleeps for ever";
pub(crate) const NO_LOOP: &str = "no busy loop";
pub(crate) const REACHES: &str = "as soon as something is accepted it is connected";
pub(crate) const TOLD: &str = "each offer has an outcome";
pub(crate) const OUTAGE: &str = "an outage in a trial costs nothing else";
pub(crate) const ALL: [&str; 11] =
    [FILES, PROVEN, ON_RECORD, FAILED, COUNTED, APPLIED, AWAKE, NO_LOOP, REACHES, TOLD, OUTAGE];

static CONFIG: LazyLock<Config> = LazyLock::new(|| {
    let text = "
opamp:
  server:
    endpoint: wss://server/v1/opamp
    headers: { Authorization: '0' }
    heartbeat_interval: 24h
    reconnect: { initial: 5s, max: 3h }
    timeouts: { connect: 30s, tls: 30s, answer: 10s, pong: 10s }
  capabilities: { accepts_opamp_connection_settings: true }
  state_dir: /var/lib/chiton
";
    let none: BTreeMap<&str, &str> = BTreeMap::new();
    let settings = settings::from_text(text, "chiton.yaml", &none).unwrap().settings;
    Config::new(&settings, Host::default(), Keyring::new(Vec::new(), 1, &[]))
});

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(crate) struct Budgets {
    pub(crate) offers: u8,
    /// Crashes and orderly stops.
    pub(crate) restarts: u8,
    /// The disk refuses, or takes its time.
    pub(crate) faults: u8,
    /// The server changes its mind, or the network does.
    pub(crate) changes: u8,
    /// An hour, a day.
    pub(crate) passes: u8,
}

/// What is walked.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) offers: Vec<Offer>,
    /// What the server may come to accept.
    pub(crate) minds: Vec<BTreeSet<Pass>>,
    /// Who is refused hears of it after the handshake, as with TLS 1.3.
    pub(crate) late: bool,
    /// Something is committed already.
    pub(crate) rotated: bool,
    pub(crate) budgets: Budgets,
    /// Each state is run forward, too.
    pub(crate) forward: bool,
    pub(crate) flaw: Option<Flaw>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    Fine,
    /// Nothing can be reached, and one knows at once.
    Down,
    /// Nothing answers, and nobody says so.
    Hangs,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// The oldest job of the disk is done.
    Do,
    /// The disk refuses it.
    Refuse,
    /// What is under way on the network comes.
    Net,
    /// Time moves to the agent's deadline.
    Wait,
    Accept(BTreeSet<Pass>),
    Network(Network),
    Offer(usize),
    /// The process is gone, and starts again. The oldest job was done, or not.
    Crash {
        done: bool,
    },
    /// An orderly end, and a start.
    Restart,
    /// Time passes, and all goes its way.
    Pass(Duration),
}

#[derive(Clone, Debug)]
enum Job {
    Stage(Box<Candidate>, Vec<Digest>),
    Remember(Box<Memory>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Net {
    None,
    Connecting { link: u64, pass: Pass },
    Up { link: u64, pass: Pass, asked: bool, proven: bool },
    Closing { link: u64 },
}

#[derive(Clone)]
pub(crate) struct World {
    agent: Agent,
    seed: u64,
    pub(crate) disk: Disk,
    jobs: VecDeque<Job>,
    pub(crate) now: Now,
    net: Net,
    pub(crate) accepts: BTreeSet<Pass>,
    pub(crate) network: Network,
    /// The disk refuses all.
    pub(crate) refuses: bool,
    /// It did, or the server could not be reached.
    pub(crate) was_refused: bool,
    late: bool,
    flaw: Option<Flaw>,
    exited: bool,
    left: Budgets,
    /// What the server wants.
    pub(crate) wanted: Option<Offer>,
    /// What it was told of that.
    pub(crate) heard: Option<(Bytes, Status)>,
    /// On its way.
    sent: Vec<(Bytes, Status)>,
    // What is watched.
    /// What a server answered on.
    answered: BTreeSet<Pass>,
    failed: BTreeSet<Digest>,
    /// What this process tried, since it last found that nothing can be reached either way.
    tried: Option<Digest>,
    /// The last two attempts failed: on the candidate, and on another way.
    down: (bool, bool),
    /// Processes that ended without order after they had tried this.
    tries: BTreeMap<Digest, u32>,
    at_once: u32,
    pub(crate) broken: BTreeSet<&'static str>,
    // What is counted.
    pub(crate) attempts: BTreeMap<Pass, u32>,
    pub(crate) events: u64,
    /// Every status that the server was told.
    pub(crate) statuses: BTreeSet<(Bytes, i32)>,
    pub(crate) verbose: bool,
    /// The digest of [`World::key`], when it was last asked for.
    known_as: u64,
}

thread_local! {
    /// States from which it ends well; a walk has a thread of its own.
    static KNOWN: RefCell<BTreeSet<u64>> = RefCell::default();
}

/// Up to how long ago, or from now, something is: nobody asks more exactly.
fn about(duration: Duration) -> u8 {
    let bounds = [Duration::ZERO, SECOND * 5, SECOND * 20, SECOND * 60, HOUR, DAY];
    let above = bounds.into_iter().filter(|bound| duration > *bound).count();
    u8::try_from(above).unwrap()
}

/// By its text: what the life cycle keeps to itself is part of the state, times only about.
impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.known_as);
        self.left.hash(state);
        format!("{:?} {:?} {:?} {:?}", self.answered, self.failed, self.tries, self.broken)
            .hash(state);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let hash = |world: &Self| {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        hash(self) == hash(other)
    }
}

impl World {
    pub(crate) fn new(plan: &Plan, seed: u64) -> Self {
        let now = Now { mono: Mono::default(), wall: Wall(Duration::from_secs(BEGINNING)) };
        let mut world = Self {
            agent: Self::agent(&Disk::default(), seed, now),
            seed,
            disk: Disk::default(),
            jobs: VecDeque::new(),
            now,
            net: Net::None,
            accepts: [OWN].into(),
            network: Network::Fine,
            refuses: false,
            was_refused: false,
            late: plan.late,
            flaw: None,
            exited: false,
            left: Budgets::default(),
            wanted: None,
            heard: None,
            sent: Vec::new(),
            answered: BTreeSet::new(),
            failed: BTreeSet::new(),
            tried: None,
            down: (false, false),
            tries: BTreeMap::new(),
            at_once: 0,
            broken: BTreeSet::new(),
            attempts: BTreeMap::new(),
            events: 0,
            statuses: BTreeSet::new(),
            verbose: false,
            known_as: 0,
        };
        world.boot();
        world.calm();
        if plan.rotated {
            world.accepts = [OWN, 7].into();
            world.offer(&Offer::new(7, 7));
            world.calm();
        }
        if let Some(first) = plan.minds.first() {
            world.accepts.clone_from(first);
        }
        world.flaw = plan.flaw;
        world.left = plan.budgets;
        world.know();
        world
    }

    fn agent(disk: &Disk, seed: u64, now: Now) -> Agent {
        let (memory, running) = (rollout::Memory::default(), Running::default());
        Agent::new(CONFIG.clone(), memory, running, seed, now).with_connection(disk.found())
    }

    /// The agent starts.
    fn boot(&mut self) {
        self.say(|| "START".to_owned());
        self.disk.restart();
        self.jobs.clear();
        self.net = Net::None;
        self.exited = false;
        self.tried = None;
        self.down = (false, false);
        self.at_once = 0;
        self.agent = Self::agent(&self.disk, self.seed ^ self.events, self.now);
        let mut actions = Vec::new();
        self.agent.boot(self.now, &mut actions);
        self.carry_out(actions);
        let uid = Uid::from_slice(&[7; 16]).unwrap();
        let mut actions = Vec::new();
        self.agent.connect(uid, false, self.now, &mut actions);
        self.carry_out(actions);
        self.watch();
    }

    pub(crate) fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("{:>14.3} {}", self.now.mono.0.as_secs_f64(), text());
        }
    }

    fn handle(&mut self, event: Event) {
        if self.exited {
            return;
        }
        self.events += 1;
        self.say(|| format!("{event:?}"));
        let tick = matches!(event, Event::Tick);
        let mut actions = Vec::new();
        self.agent.handle(event, self.now, &mut actions);
        let stuck = tick && self.agent.deadline().is_some_and(|at| at <= self.now.mono);
        self.at_once = if stuck { self.at_once + 1 } else { 0 };
        self.carry_out(actions);
        self.watch();
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            self.say(|| {
                let mut text = format!("    {action:?}");
                text.truncate(text.floor_char_boundary(220));
                text
            });
            match action {
                Action::Connect { link } => self.connect(link),
                Action::Send(outgoing) => self.send(&outgoing),
                Action::Ping => self.ask(),
                Action::Close => {
                    if let Net::Up { link, .. } = self.net {
                        self.net = Net::Closing { link };
                    }
                }
                Action::Abort => self.net = Net::None,
                Action::StageConnection { candidate, known } => {
                    self.jobs.push_back(Job::Stage(candidate, known));
                }
                Action::RememberConnection(memory) => self.jobs.push_back(Job::Remember(memory)),
                Action::Exit => self.exited = true,
                _ => {}
            }
        }
    }

    const fn ask(&mut self) {
        if let Net::Up { asked, .. } = &mut self.net {
            *asked = true;
        }
    }

    /// What was sent reaches the server.
    fn hear(&mut self) {
        for (hash, status) in core::mem::take(&mut self.sent) {
            self.statuses.insert((hash.clone(), status.into()));
            self.heard = Some((hash, status));
        }
    }

    fn connect(&mut self, link: u64) {
        let (server, way) = self.agent.server();
        let pass = pass_of(&server);
        self.net = Net::Connecting { link, pass };
        self.sent.clear();
        *self.attempts.entry(pass).or_default() += 1;
        let record = &self.disk.record;
        match way {
            Way::Own => self.must(FILES, pass == OWN),
            Way::Committed => {
                let there = record.committed.and_then(|committed| self.disk.pass(committed));
                self.must(FILES, there == Some(pass));
            }
            Way::Candidate => {
                let trial = record.trial.as_ref().map(|trial| trial.generation);
                let there = trial.and_then(|trial| self.disk.pass(trial));
                let digest = trial.map(|trial| trial.digest);
                self.must(ON_RECORD, there == Some(pass));
                self.must(FAILED, digest.is_none_or(|digest| !self.failed.contains(&digest)));
                self.tried = digest;
            }
        }
    }

    fn send(&mut self, outgoing: &Outgoing) {
        if outgoing.message.agent_disconnect.is_some() {
            return;
        }
        self.ask();
        if let Some(status) = &outgoing.message.connection_settings_status {
            self.must(APPLIED, self.is_true(status));
            self.say(|| format!("    told {status:?}"));
            self.sent.push((status.last_connection_settings_hash.clone(), status.status()));
        }
    }

    /// APPLIED is said only where the record says so.
    fn is_true(&self, status: &ConnectionSettingsStatus) -> bool {
        let Disk { record, .. } = &self.disk;
        let of_it = record.received.as_ref() == Some(&status.last_connection_settings_hash);
        status.status() != Status::Applied || (of_it && record.outcome == Outcome::Applied)
    }

    fn must(&mut self, name: &'static str, holds: bool) {
        if !holds {
            self.say(|| format!("NOT HELD: {name}"));
            self.broken.insert(name);
        }
    }

    /// What must hold after every event.
    fn watch(&mut self) {
        let status = self.agent.connections().status();
        self.must(APPLIED, self.is_true(&status));
        let committed = [self.disk.record.committed, self.agent.connections().committed()];
        let there = committed.into_iter().flatten().all(|committed| self.disk.has(committed));
        // What is being replaced is known to the agent a moment longer.
        let there = there || self.disk.record.committed.is_some_and(|it| self.disk.has(it));
        self.must(FILES, there || self.disk.record.committed.is_none());
        let deadline = self.agent.deadline();
        let waits = self.net == Net::None && self.jobs.is_empty() && !self.exited;
        self.must(AWAKE, !waits || deadline.is_some());
        self.must(NO_LOOP, self.at_once <= AT_ONCE);
    }

    // What comes of jobs, of the network, of time.

    fn job(&mut self, refuses: bool) -> Option<Event> {
        self.was_refused |= refuses;
        Some(match self.jobs.pop_front()? {
            Job::Stage(candidate, known) => {
                let staged = self.disk.stage(&candidate, &known, refuses, self.flaw);
                if self.flaw == Some(Flaw::SwallowsAnswers) {
                    return None;
                }
                Event::ConnectionStaged(staged)
            }
            Job::Remember(memory) => {
                let before = self.disk.record.committed;
                let result = self.disk.remember(&memory, refuses, self.flaw);
                let committed = self.disk.record.committed;
                let pass = committed.and_then(|committed| self.disk.pass(committed));
                let proven = pass.is_none_or(|pass| self.answered.contains(&pass));
                self.must(PROVEN, committed == before || proven);
                if result.is_ok() {
                    self.failed.extend(memory.failed.iter().map(|failed| failed.digest));
                }
                Event::ConnectionRemembered(result)
            }
        })
    }

    fn carry_out_job(&mut self, refuses: bool) {
        if let Some(event) = self.job(refuses) {
            self.handle(event);
        }
    }

    /// Whether something comes of the network.
    fn net_comes(&self) -> bool {
        match self.net {
            Net::None => false,
            Net::Connecting { .. } => self.network != Network::Hangs,
            Net::Up { pass, asked, .. } => match self.network {
                Network::Fine => asked || !self.accepts.contains(&pass),
                Network::Down => asked || !self.is_stranger(pass),
                Network::Hangs => false,
            },
            Net::Closing { .. } => true,
        }
    }

    fn is_stranger(&self, pass: Pass) -> bool {
        self.flaw == Some(Flaw::Stranger) && self.network == Network::Down && pass == OWN
    }

    fn net(&mut self) {
        let down = |link, kind| {
            let text = "it does not work".to_owned();
            Event::LinkDown { link, error: Some(LinkError { text, kind }) }
        };
        match self.net {
            Net::None => {}
            Net::Connecting { link, pass } => {
                let stranger = self.is_stranger(pass);
                let fine = self.network == Network::Fine || stranger;
                let taken = self.late || stranger || self.accepts.contains(&pass);
                if fine && taken {
                    self.net = Net::Up { link, pass, asked: false, proven: false };
                    self.handle(Event::LinkUp { link });
                } else {
                    self.down(down(
                        link,
                        if fine { LinkErrorKind::Refused } else { LinkErrorKind::Failed },
                    ));
                }
            }
            Net::Up { link, pass, .. } => {
                let stranger = self.is_stranger(pass);
                if stranger || self.network == Network::Fine && self.accepts.contains(&pass) {
                    self.net = Net::Up { link, pass, asked: false, proven: true };
                    self.answered.insert(pass);
                    self.down = (false, false);
                    self.hear();
                    self.reply(link, None);
                } else {
                    self.down(down(link, LinkErrorKind::Failed));
                }
            }
            Net::Closing { link } => {
                if self.network == Network::Fine {
                    self.hear();
                }
                self.net = Net::None;
                self.handle(Event::LinkDown { link, error: None });
            }
        }
    }

    fn down(&mut self, event: Event) {
        if self.flaw == Some(Flaw::NeverDown) {
            return;
        }
        self.net = Net::None;
        match self.agent.server().1 {
            Way::Candidate => self.down.0 = true,
            _ => self.down.1 = true,
        }
        if let ((true, true), Some(tried)) = (self.down, self.tried) {
            self.tries.remove(&tried);
        }
        self.handle(event);
    }

    /// A message of the server; what it wants comes with it until it has heard of it.
    fn reply(&mut self, link: u64, offer: Option<&Offer>) {
        let missing = self
            .wanted
            .as_ref()
            .filter(|wanted| self.heard.as_ref().is_some_and(|(hash, _)| *hash != wanted.hash));
        let message = ServerToAgent {
            connection_settings: offer.or(missing).map(Offer::message),
            ..ServerToAgent::default()
        };
        self.handle(Event::Received { link, bytes: message.encode_to_vec().into() });
    }

    pub(crate) fn offer(&mut self, offer: &Offer) {
        self.say(|| format!("OFFER {offer:?}"));
        self.wanted = Some(offer.clone());
        if let (Net::Up { link, proven: true, .. }, Network::Fine) = (self.net, self.network) {
            self.hear();
            self.reply(link, Some(offer));
        }
    }

    fn wait(&mut self) {
        let Some(at) = self.agent.deadline() else { return };
        self.sleep(at.since(self.now.mono));
        if self.flaw != Some(Flaw::NoTimer) {
            self.handle(Event::Tick);
        } else {
            self.at_once += 1;
            self.watch();
        }
    }

    pub(crate) fn sleep(&mut self, time: Duration) {
        self.now.mono = self.now.mono.after(time);
        self.now.wall = Wall(self.now.wall.0 + time);
    }

    /// Until the candidate is tried.
    pub(crate) fn until_tried(&mut self) {
        self.tried = None;
        for _ in 0..LOOP {
            if self.tried.is_some() || !self.step(Mono(Duration::MAX)) {
                return;
            }
        }
    }

    pub(crate) const fn connects_to(&self) -> Option<Pass> {
        match self.net {
            Net::Connecting { pass, .. } | Net::Up { pass, .. } => Some(pass),
            _ => None,
        }
    }

    fn crash(&mut self, done: bool) {
        if done {
            let refuses = self.refuses;
            let _ = self.job(refuses);
        }
        if let Some(tried) = self.tried {
            let tries = self.tries.entry(tried).or_default();
            *tries += 1;
            let most = *tries <= MAX_ATTEMPTS;
            self.must(COUNTED, most);
        }
        self.boot();
    }

    fn restart(&mut self) {
        self.handle(Event::Shutdown);
        for _ in 0..LOOP {
            if !self.jobs.is_empty() {
                self.carry_out_job(self.refuses);
            } else if self.exited {
                break;
            } else {
                self.net();
            }
        }
        self.boot();
    }

    /// One step, if any is due until then.
    pub(crate) fn step(&mut self, until: Mono) -> bool {
        if !self.jobs.is_empty() {
            self.carry_out_job(self.refuses);
        } else if self.net_comes() {
            self.net();
        } else if self.agent.deadline().is_some_and(|at| at <= until) {
            self.wait();
        } else {
            return false;
        }
        true
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.now.mono.after(time);
        while self.broken.is_empty() && self.step(end) {}
        self.sleep(end.since(self.now.mono));
        self.handle(Event::Tick);
    }

    fn is_idle(&self) -> bool {
        self.jobs.is_empty() && self.agent.connections().phase() == "idle"
    }

    /// Connected, and by what is accepted.
    pub(crate) fn is_connected(&self) -> bool {
        matches!(self.net, Net::Up { pass, proven: true, .. } if self.accepts.contains(&pass))
    }

    /// Connected, and all is said.
    pub(crate) fn is_calm(&self) -> bool {
        let told = self.wanted.is_none() || self.has_outcome();
        self.is_connected() && self.is_idle() && !self.net_comes() && told
    }

    /// What the server wants has an outcome, and the server knows.
    fn has_outcome(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| {
            self.heard.as_ref().is_some_and(|(hash, status)| {
                *hash == wanted.hash && matches!(status, Status::Applied | Status::Failed)
            })
        })
    }

    fn calm(&mut self) {
        for _ in 0..LOOP {
            if self.is_calm() || !self.step(Mono(Duration::MAX)) {
                return;
            }
        }
    }

    // The walk.

    pub(crate) fn acts(&self, plan: &Plan, acts: &mut Vec<Act>) {
        let Budgets { offers, restarts, faults, changes, passes } = self.left;
        if !self.jobs.is_empty() {
            acts.push(Act::Do);
            if faults > 0 {
                acts.push(Act::Refuse);
            }
        }
        if self.net_comes() {
            acts.push(Act::Net);
        }
        let busy = !self.jobs.is_empty() || self.net_comes();
        // What is slow is slow for a while only.
        let next = self.agent.deadline().map(|at| at.since(self.now.mono));
        if !self.is_calm() && next.is_some_and(|next| !busy || faults > 0 && next <= SLOW) {
            acts.push(Act::Wait);
        }
        if changes > 0 {
            let others = plan.minds.iter().filter(|mind| **mind != self.accepts);
            acts.extend(others.map(|mind| Act::Accept(mind.clone())));
            let states = [Network::Fine, Network::Down, Network::Hangs];
            let others = states.into_iter().filter(|other| *other != self.network);
            acts.extend(others.map(Act::Network));
        }
        let talks =
            self.network == Network::Fine && matches!(self.net, Net::Up { proven: true, .. });
        if offers > 0 && talks {
            acts.extend((0..plan.offers.len()).map(Act::Offer));
        }
        if restarts > 0 {
            acts.push(Act::Crash { done: false });
            if !self.jobs.is_empty() {
                acts.push(Act::Crash { done: true });
            }
            acts.push(Act::Restart);
        }
        if passes > 0 {
            acts.extend([HOUR, DAY].map(Act::Pass));
        }
    }

    pub(crate) fn act(&mut self, plan: &Plan, act: &Act) {
        match act {
            Act::Do => self.carry_out_job(false),
            Act::Refuse => {
                self.left.faults -= 1;
                self.carry_out_job(true);
            }
            Act::Net => self.net(),
            Act::Wait => {
                if !self.jobs.is_empty() || self.net_comes() {
                    self.left.faults -= 1;
                }
                self.wait();
            }
            Act::Accept(mind) => {
                self.left.changes -= 1;
                self.accepts.clone_from(mind);
            }
            Act::Network(network) => {
                self.left.changes -= 1;
                self.network = *network;
            }
            Act::Offer(which) => {
                self.left.offers -= 1;
                if let Some(offer) = plan.offers.get(*which) {
                    self.offer(offer);
                }
            }
            Act::Crash { done } => {
                self.left.restarts -= 1;
                self.crash(*done);
            }
            Act::Restart => {
                self.left.restarts -= 1;
                self.restart();
            }
            Act::Pass(time) => {
                self.left.passes -= 1;
                self.pass(*time);
            }
        }
    }

    /// Whatever the budgets.
    pub(crate) fn act_freely(&mut self, plan: &Plan, act: &Act) {
        self.left = Budgets { offers: 9, restarts: 9, faults: 9, changes: 9, passes: 9 };
        self.act(plan, act);
    }

    /// To be called when a step of the walk is done.
    pub(crate) fn know(&mut self) {
        let mut hasher = DefaultHasher::new();
        self.key().hash(&mut hasher);
        self.known_as = hasher.finish();
    }

    /// All that the life cycle knows, times only about.
    fn key(&self) -> String {
        let connections = format!("{:?}", self.agent.connections());
        let (_, connections) = connections.split_once("memory: Memory").unwrap();
        // Nobody here offers that often.
        let (before, rest) = connections.split_once("allowance: (").unwrap();
        let (_, after) = rest.split_once("))").unwrap();
        let until = self.agent.deadline().map(|at| about(at.since(self.now.mono)));
        // Numbers of links tell nothing.
        let net = match self.net {
            Net::Connecting { pass, .. } => Net::Connecting { link: 0, pass },
            Net::Up { pass, asked, proven, .. } => Net::Up { link: 0, pass, asked, proven },
            Net::Closing { .. } => Net::Closing { link: 0 },
            Net::None => Net::None,
        };
        let text = format!(
            "{before}{after} {:?} {:?} {:?} {net:?} {:?} {:?} {} {:?} {:?} {:?} {:?} {:?}",
            self.disk.record,
            self.disk.generations.keys(),
            self.jobs,
            self.accepts,
            self.network,
            self.refuses,
            self.wanted,
            (&self.heard, &self.sent, self.at_once),
            self.tried,
            self.agent.link_state(),
            until,
        );
        self.without_times(&text)
    }

    fn without_times(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("Mono(") {
            self.without_seconds(before, &mut out);
            let Some((time, after)) = after.split_once(')') else { break };
            let at = parse(time);
            let now = self.now.mono.0;
            let class = if at > now { about(at - now) + 10 } else { about(now - at) };
            out.push_str(&format!("T{class}"));
            rest = after;
        }
        self.without_seconds(rest, &mut out);
        out
    }

    /// The same of seconds since 1970.
    fn without_seconds(&self, text: &str, out: &mut String) {
        let mut rest = text;
        while let Some(at) = rest.find("since: ") {
            let (before, after) = rest.split_at(at);
            out.push_str(before);
            let after = after.trim_start_matches("since: ").trim_start_matches("Some(");
            let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let (number, after) = after.split_at(digits);
            if let Ok(seconds) = number.parse::<u64>() {
                let ago = self.now.wall.0.as_secs().saturating_sub(seconds);
                out.push_str(&format!("S{}", about(Duration::from_secs(ago))));
            }
            rest = after;
        }
        out.push_str(rest);
    }

    // What comes of it, once nothing changes any more.

    /// What is committed, or about to be, or the settings' own.
    fn old(&self) -> Pass {
        let trial = self.disk.record.trial.as_ref().filter(|_| self.is("why: Commit"));
        let tried = trial.and_then(|trial| self.disk.pass(trial.generation));
        tried.unwrap_or_else(|| self.committed())
    }

    fn committed(&self) -> Pass {
        let committed = self.agent.connections().committed();
        committed.and_then(|committed| self.disk.pass(committed)).unwrap_or(OWN)
    }

    /// What is on trial, unless that is over.
    fn new_one(&self) -> Option<Pass> {
        let trial = self.disk.record.trial.as_ref()?;
        let age = self.now.wall.0.as_secs().saturating_sub(trial.since);
        if Duration::from_secs(age) + SOON + HOUR >= KEPT {
            return None;
        }
        self.disk.pass(trial.generation).filter(|_| !self.is("why: Condemn"))
    }

    fn is(&self, detail: &str) -> bool {
        let connections = self.agent.connections();
        connections.phase() == "writing" && format!("{connections:?}").contains(detail)
    }

    /// From now on these are accepted: the agent is connected by one of them in good time.
    fn reaches(
        &self,
        accepts: &[Pass],
        refuses: bool,
        within: (u32, Duration),
    ) -> Result<Self, (&'static str, String)> {
        let mut world = self.clone();
        world.accepts = accepts.iter().copied().collect();
        world.network = Network::Fine;
        world.refuses = refuses;
        world.attempts.clear();
        let (attempts, time) = within;
        let end = world.now.mono.after(time);
        let (mut known, mut steps) = (None, 0);
        while if refuses { !world.is_connected() } else { !world.is_calm() } {
            let all: u32 = world.attempts.values().sum();
            // Long ways flow together.
            if time > DAY && all >= MERGE && known.is_none() {
                world.know();
                known = Some(world.known_as);
                if KNOWN.with_borrow(|all| all.contains(&world.known_as)) {
                    return Ok(world);
                }
            }
            steps += 1;
            let goes_on = all <= attempts && steps <= LOOP && world.broken.is_empty();
            if !goes_on || !world.step(end) {
                let broken = world.broken.first().copied();
                let name = if world.is_connected() { TOLD } else { REACHES };
                let text = format!(
                    "with {accepts:?} accepted, disk full {refuses}: {} after {:?}",
                    world.tell(),
                    world.attempts,
                );
                return Err((broken.unwrap_or(name), text));
            }
        }
        KNOWN.with_borrow_mut(|all| all.extend(known));
        Ok(world)
    }

    /// What must hold of the future. The first that does not, and how.
    pub(crate) fn ends_well(&self) -> Result<(), (&'static str, String)> {
        let key = self.known_as;
        if KNOWN.with_borrow(|known| known.contains(&key)) || !self.broken.is_empty() {
            return Ok(());
        }
        let soon = (ALTERNATIONS, SOON);
        let in_a_day = (100, DAY * 2);
        let (old, new) = (self.old(), self.new_one());
        let with_old = self.reaches(&[old], false, soon)?;
        self.reaches(&[old], true, soon)?;
        // What cannot be committed must not bind.
        self.reaches(&[self.committed()], true, soon)?;
        if old != OWN {
            self.reaches(&[OWN], false, in_a_day)?;
            self.reaches(&[OWN], true, in_a_day)?;
        }
        if let Some(new) = new {
            let it = self.reaches(&[new], false, soon)?;
            let both = self.reaches(&[old, new], false, soon)?;
            // With a full disk no trial is resumed after a start: its attempts could not be counted.
            if !self.is("why: Arm") {
                self.reaches(&[new], true, soon)?;
            }
            for (ends, on) in [(it, vec![new]), (both, vec![old, new])] {
                if !on.contains(&ends.old()) {
                    return Err((REACHES, format!("ends on {}: {}", ends.old(), ends.tell())));
                }
            }
            let mut later = self.clone();
            later.network = Network::Down;
            later.pass(HOUR);
            for accepts in [&[old][..], &[new], &[old, new]] {
                later.reaches(accepts, false, soon).map_err(|(_, why)| (OUTAGE, why))?;
            }
        }
        // And what the server wants next is done.
        let mut last = with_old;
        last.offer(&Offer::new(99, LAST));
        let last = last.reaches(&[old, LAST], false, soon)?;
        if last.old() != LAST {
            return Err((TOLD, format!("the next offer was not taken: {}", last.tell())));
        }
        KNOWN.with_borrow_mut(|known| known.insert(key));
        Ok(())
    }

    /// What a reader of a failure needs.
    pub(crate) fn tell(&self) -> String {
        let record = &self.disk.record;
        let number = |generation: chiton::agent::connection::memory::Generation| {
            (generation.number, self.disk.pass(generation))
        };
        format!(
            "{} by {:?}, {:?}; committed {:?}, trial {:?}, {:?} of {:?}; wanted {:?}, heard {:?}; accepts {:?}, {:?}; \
             {} jobs, at {:?}, next {:?}, broken {:?}",
            self.agent.connections().phase(),
            self.agent.connections().way(),
            self.net,
            record.committed.map(number),
            record.trial.as_ref().map(|trial| (trial.number, number(trial.generation))),
            record.outcome,
            record.received,
            self.wanted.as_ref().map(|wanted| (&wanted.hash, wanted.pass)),
            self.heard,
            self.accepts,
            self.network,
            self.jobs.len(),
            self.now.mono,
            self.agent.deadline(),
            self.broken,
        )
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tell())
    }
}

/// A duration's own text.
fn parse(text: &str) -> Duration {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number: f64 = text.trim_end_matches(unit).parse().unwrap_or_default();
    let seconds = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        _ => 1e-9,
    };
    Duration::from_secs_f64(number * seconds)
}
