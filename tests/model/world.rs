//! One device: the life cycle, its disk and its workload; everything that can happen to it, and what must hold.

use core::hash::{Hash, Hasher};
use core::mem::discriminant;
use core::time::Duration;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::DefaultHasher;

use chiton::agent::health::CheckResult;
use chiton::agent::rollout::{
    Digest, Generation, Memory, Offer, Order, Outcome, Rollout, Rules, Verdict,
};
use chiton::clock::{Mono, Now, Wall};
use chiton::settings::{Allow, Apply, CrashLoop, Layout, RemoteConfig, Rollback};
use chiton_proto::RemoteConfigStatuses;

use super::device::{Disk, Flaw, Kind, Room};

const ATTEMPTS: u32 = 2;
const CHECK: &str = "tcp localhost:13133";
const CRASH: &str = "exited with status 1";
/// More steps than this without an end are a loop.
const LOOP: usize = 400;

/// How often each thing may go wrong.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Budgets {
    pub(crate) offers: u8,
    /// Stops, kills and power cuts of Chiton.
    pub(crate) restarts: u8,
    /// A full disk, a command that fails, a check that hangs.
    pub(crate) faults: u8,
    /// Of the workload, whatever it runs with.
    pub(crate) crashes: u8,
}

thread_local! {
    /// States from which it ends well; a walk has a thread of its own.
    static ENDED_WELL: RefCell<BTreeSet<u64>> = RefCell::default();
}

/// What is walked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) offers: &'static [Kind],
    /// Whether there is a local file.
    pub(crate) local: bool,
    pub(crate) validates: bool,
    /// Whether trials are kept apart by `min_interval`.
    pub(crate) paced: bool,
    pub(crate) budgets: Budgets,
    pub(crate) flaw: Option<Flaw>,
}

impl Plan {
    fn rules(&self) -> Rules {
        Rules::new(
            &RemoteConfig {
                main_file: String::new(),
                layout: Layout::Files,
                validate: if self.validates { vec!["collector".to_owned()] } else { Vec::new() },
                apply: Apply::Restart,
                rollback: Rollback {
                    window: Duration::from_secs(30),
                    interval: Duration::from_secs(10),
                    successes: 1,
                    attempts: ATTEMPTS,
                    crash_loop: CrashLoop { crashes: 1, within: Duration::from_secs(600) },
                },
                min_interval: Duration::from_secs(if self.paced { 90 } else { 0 }),
                allow: Allow {
                    files: Vec::new(),
                    max_files: 32,
                    max_size: 1 << 20,
                    max_merge: 1 << 17,
                },
                history: 5,
                require_signature: false,
            },
            false,
        )
    }
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// The oldest order is carried out.
    Do,
    /// It fails.
    Fail,
    /// The workload, which is down, starts.
    Start,
    /// It dies, and is started again.
    Crash,
    /// Time moves to the life cycle's deadline.
    Wait,
    Offer(Kind),
    /// An orderly stop begins.
    Stop,
    /// Chiton is gone, and starts again. The oldest order was carried out, or not.
    Kill {
        done: bool,
    },
    /// The orderly stop has ended, and Chiton starts again.
    Restart,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    rollout: Rollout,
    disk: Disk,
    /// What is to be done, the oldest first.
    orders: VecDeque<Order>,
    /// What the workload has read; [`None`]: it is down.
    process: Option<Option<Generation>>,
    now: Now,
    stopping: bool,
    /// What the server wants.
    wanted: Option<Kind>,
    /// This process of Chiton has been told so.
    heard: bool,
    left: Budgets,
    // What is watched.
    /// The way back could not be taken yet.
    astray: bool,
    /// Contents that were written down as failed.
    failed: BTreeSet<Digest>,
    ran_what_failed: bool,
    /// Something was committed once, and nothing was against it.
    had: bool,
    /// A recovery did not end with what is committed.
    neither: bool,
    /// Trials of a candidate that were not stopped in an orderly way.
    tries: BTreeMap<u64, u32>,
}

/// By its text: what the life cycle keeps to itself is part of the state.
impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(format!("{self:?}").as_bytes());
    }
}

impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

impl World {
    pub(crate) fn new(plan: &Plan) -> Self {
        let now = Now { mono: Mono::default(), wall: Wall(Duration::from_secs(1 << 31)) };
        let disk = Disk::default();
        let mut world = Self {
            rollout: Rollout::new(plan.rules(), disk.record.clone(), now),
            disk,
            orders: VecDeque::new(),
            process: None,
            now,
            stopping: false,
            wanted: None,
            heard: false,
            left: plan.budgets,
            astray: false,
            failed: BTreeSet::new(),
            ran_what_failed: false,
            had: false,
            neither: false,
            tries: BTreeMap::new(),
        };
        world.boot(plan);
        world
    }

    /// Chiton starts.
    fn boot(&mut self, plan: &Plan) {
        self.disk.recover(plan.flaw);
        self.neither |= self.disk.link != self.disk.record.committed;
        self.orders.clear();
        self.process = None;
        self.stopping = false;
        self.heard = false;
        self.astray = false;
        self.now.mono = Mono::default();
        self.rollout = Rollout::new(plan.rules(), self.disk.record.clone(), self.now);
        self.on(Rollout::boot);
        self.settle();
    }

    /// Hands an event to the life cycle, and its orders on.
    fn on<T>(&mut self, act: impl FnOnce(&mut Rollout, &mut Vec<Order>) -> T) {
        let mut out = Vec::new();
        act(&mut self.rollout, &mut out);
        if out.contains(&Order::Apply) {
            let sick = self.kind() == Some(Kind::Sick);
            self.rollout.sick(sick.then(|| CHECK.to_owned()).into_iter().collect());
        }
        self.orders.extend(out.into_iter().filter(|order| !matches!(order, Order::Say(_))));
    }

    /// What the core does after every event.
    fn settle(&mut self) {
        let now = self.now;
        if !self.stopping {
            self.on(|rollout, out| rollout.tick(now, out));
            if self.process.is_some() || self.disk.link.is_none() {
                self.on(|rollout, out| rollout.workload_is_up(now, out));
            }
        }
        // Taken back before it was told, a first commit leaves nothing again.
        self.had |= self.rollout.is_idle()
            && self.rollout.memory().committed.is_some()
            && self.disk.record.committed.is_some();
    }

    fn kind(&self) -> Option<Kind> {
        self.process.flatten().map(|generation| Kind::of(&generation.digest))
    }

    /// Whether the workload is to be started: nothing is under way that will.
    fn starts(&self) -> bool {
        self.process.is_none()
            && !self.stopping
            && self.rollout.is_idle()
            && self.disk.link.is_some()
    }

    /// Time moves when nothing else can, or while a check hangs.
    fn waits(&self) -> bool {
        let hangs = matches!(self.orders.front(), Some(Order::Check)) && self.left.faults > 0;
        !self.stopping
            && !self.starts()
            && (self.orders.is_empty() || hangs)
            && self.rollout.deadline().is_some()
    }

    pub(crate) fn acts(&self, plan: &Plan, acts: &mut Vec<Act>) {
        if let Some(order) = self.orders.front() {
            acts.push(Act::Do);
            let fails = !matches!(order, Order::Check | Order::Validate(_));
            if fails && self.left.faults > 0 {
                acts.push(Act::Fail);
            }
        } else if self.stopping {
            acts.push(Act::Restart);
        }
        if self.starts() {
            acts.push(Act::Start);
        }
        if self.waits() {
            acts.push(Act::Wait);
        }
        if self.process.is_some() && !self.stopping && self.left.crashes > 0 {
            acts.push(Act::Crash);
        }
        if !self.stopping && self.left.offers > 0 {
            acts.extend(plan.offers.iter().map(|kind| Act::Offer(*kind)));
        }
        if self.left.restarts > 0 {
            if !self.stopping {
                acts.push(Act::Stop);
            }
            acts.push(Act::Kill { done: false });
            if !self.orders.is_empty() {
                acts.push(Act::Kill { done: true });
            }
        }
    }

    /// Whatever the budgets.
    pub(crate) fn act_freely(&mut self, plan: &Plan, act: Act) {
        self.left = Budgets { offers: 9, restarts: 9, faults: 9, crashes: 9 };
        self.act(plan, act);
    }

    pub(crate) fn act(&mut self, plan: &Plan, act: Act) {
        let now = self.now;
        match act {
            Act::Do => self.carry_out(plan, Room::Enough),
            Act::Fail => {
                self.left.faults -= 1;
                self.carry_out(plan, Room::None);
            }
            Act::Start => self.process = Some(self.disk.link),
            Act::Crash => {
                self.left.crashes -= 1;
                self.crash();
            }
            Act::Wait => {
                if !self.orders.is_empty() {
                    self.left.faults -= 1;
                }
                self.now.mono = self.rollout.deadline().unwrap_or(now.mono).max(now.mono);
            }
            Act::Offer(kind) => {
                self.left.offers -= 1;
                self.offer(kind);
            }
            Act::Stop => {
                self.left.restarts -= 1;
                self.stopping = true;
                self.on(Rollout::stop);
            }
            Act::Kill { done } => {
                self.left.restarts -= 1;
                if done {
                    self.carry_out(plan, Room::Enough);
                }
                self.boot(plan);
            }
            Act::Restart => self.boot(plan),
        }
        self.settle();
    }

    fn offer(&mut self, kind: Kind) {
        let now = self.now;
        self.wanted = Some(kind);
        self.heard = true;
        let offer = Offer::new(kind.offer(), None, Verdict::Good);
        self.on(|rollout, out| rollout.offered(offer, now, out));
    }

    fn crash(&mut self) {
        let now = self.now;
        self.process = Some(self.disk.link);
        self.on(|rollout, out| rollout.crashed(CRASH, now, out));
    }

    fn carry_out(&mut self, plan: &Plan, room: Room) {
        let Some(order) = self.orders.pop_front() else { return };
        let now = self.now;
        let done = if room == Room::Enough { Ok(()) } else { Err("it failed".to_owned()) };
        match order {
            Order::Stage { candidate, known, write } => {
                let staged = self.disk.stage(candidate.offer(), plan.local, &known, write, room);
                self.on(|rollout, out| rollout.staged(staged, now, out));
            }
            Order::Validate(generation) => {
                let result = match Kind::of(&generation.digest) {
                    Kind::Invalid => Err("invalid".to_owned()),
                    _ => Ok(()),
                };
                self.on(|rollout, out| rollout.validated(result, now, out));
            }
            Order::Arm { memory, after_going_back } => {
                let result = self.disk.arm(&memory, &after_going_back, room, plan.flaw);
                self.on(|rollout, out| rollout.armed(result, now, out));
            }
            Order::Activate(generation) => {
                let result = self.disk.activate(generation, room);
                self.astray = result.is_err() && self.rollout.goes_back().is_some();
                if result.is_ok() {
                    self.activated(generation);
                }
                self.on(|rollout, out| rollout.activated(result, out));
            }
            // Once it stops, nothing starts again, and nobody answers.
            Order::Apply if self.stopping => {}
            Order::Apply => {
                self.process = Some(self.disk.link);
                self.on(|rollout, out| rollout.applied(done, now, out));
            }
            Order::Check => match self.kind() {
                Some(Kind::Bad) => self.crash(),
                kind => {
                    let failure = (kind == Some(Kind::Sick)).then(|| "refused".to_owned());
                    let results =
                        [CheckResult { name: CHECK.to_owned(), failure, ..CheckResult::default() }];
                    self.on(|rollout, out| rollout.checked(&results, now, out));
                }
            },
            Order::Remember(memory) => {
                let result = self.disk.remember(&memory, room, plan.flaw);
                if result.is_ok() {
                    self.failed.extend(memory.failed.iter().map(|failed| failed.digest));
                }
                if let (true, Ok(()), Some(trial)) = (self.stopping, &result, &memory.trial) {
                    let tries = self.tries.entry(trial.generation.number).or_default();
                    *tries = trial.number.min(*tries);
                }
                self.on(|rollout, out| rollout.remembered(result, now, out));
            }
            Order::Substitute(_) | Order::Say(_) => {}
        }
    }

    /// Watches what is made to run.
    fn activated(&mut self, generation: Option<Generation>) {
        let Some(generation) = generation else { return };
        if generation.remote && self.disk.record.committed != Some(generation) {
            *self.tries.entry(generation.number).or_default() += 1;
            self.ran_what_failed |= self.failed.contains(&generation.digest);
        }
    }

    /// What was committed once has a successor at most, and a start finds it.
    pub(crate) fn never_neither(&self) -> bool {
        let lost = self.had && self.disk.record.committed.is_none();
        !lost && !self.neither
    }

    /// What runs is committed, or on trial and on record as such, or about to be taken back: now, or, while the disk
    /// is full, at every pause.
    pub(crate) fn is_on_record(&self) -> bool {
        let record = &self.disk.record;
        let goes_back = self
            .orders
            .iter()
            .any(|order| matches!(order, Order::Activate(back) if *back == record.committed));
        self.disk.link == record.committed
            || self.astray
            || self.disk.link.is_some_and(|link| !link.remote)
            || self.disk.link == record.trial.as_ref().map(|trial| trial.generation)
            || goes_back
    }

    pub(crate) const fn ran_what_failed(&self) -> bool {
        self.ran_what_failed
    }

    pub(crate) fn candidates(&self) -> usize {
        let touches = |order: &&Order| {
            matches!(
                order,
                Order::Stage { .. }
                    | Order::Validate(_)
                    | Order::Arm { .. }
                    | Order::Activate(_)
                    | Order::Apply
            )
        };
        self.orders.iter().filter(touches).count()
    }

    pub(crate) fn attempts_are_counted(_: &Plan, world: &Self) -> bool {
        world.disk.record.trial.as_ref().is_none_or(|trial| trial.number <= ATTEMPTS)
            && world.tries.values().all(|tries| *tries <= ATTEMPTS)
    }

    /// What the server is told has been applied would run after a power cut, too.
    pub(crate) fn applied_is_durable(&self) -> bool {
        let status = self.rollout.status();
        let applied = status.status() == RemoteConfigStatuses::Applied;
        let told = Kind::hashed(&status.last_remote_config_hash).map(Kind::digest);
        let committed = self.disk.record.committed.map(|generation| generation.digest);
        !applied || told == committed
    }

    /// No more faults: what the server wants is reached, or has failed; and what it wants next is reached.
    pub(crate) fn ends_well(&self, plan: &Plan) -> Result<(), String> {
        let mut world = self.clone();
        world.left = Budgets { offers: 0, restarts: 0, faults: 0, crashes: 0 };
        // What went wrong before does not matter here, and much of it leads to the same.
        world.failed.clear();
        world.tries.clear();
        (world.ran_what_failed, world.had, world.neither) = (false, false, false);
        let mut hasher = DefaultHasher::new();
        world.hash(&mut hasher);
        let key = hasher.finish();
        if ENDED_WELL.with_borrow(|known| known.contains(&key)) {
            return Ok(());
        }
        world.calm(plan)?;
        if let Some(wanted) = world.wanted {
            if !world.heard {
                world.offer(wanted); // as a server does at every connect
                world.settle();
            }
            world.calm(plan)?;
            let failed = |record: &Memory| {
                record.failed.iter().any(|failed| failed.digest == wanted.digest())
            };
            let reached = wanted.is_good() && !failed(&world.disk.record);
            world.told(wanted, reached)?;
        }
        world.offer(Kind::Last);
        world.settle();
        world.calm(plan)?;
        world.told(Kind::Last, true)?;
        ENDED_WELL.with_borrow_mut(|known| known.insert(key));
        Ok(())
    }

    /// Runs until nothing is to be done.
    fn calm(&mut self, plan: &Plan) -> Result<(), String> {
        for _ in 0..LOOP {
            let mut acts = Vec::new();
            self.acts(plan, &mut acts);
            match acts.first() {
                Some(act) => self.act(plan, *act),
                None => return self.is_calm(),
            }
        }
        Err(format!("it has no end: {}", self.tell()))
    }

    fn is_calm(&self) -> Result<(), String> {
        let committed = self.disk.record.committed;
        let runs = committed.is_none() || self.process == Some(committed);
        // Up to the reason: a full disk keeps another.
        let told = |memory: &Memory| {
            let outcome = discriminant(&memory.outcome);
            (memory.committed, memory.trial.clone(), memory.received.clone(), outcome)
        };
        let same = told(self.rollout.memory()) == told(&self.disk.record);
        if self.rollout.is_idle() && self.disk.link == committed && runs && same {
            return Ok(());
        }
        Err(format!("what is committed is not what runs: {}", self.tell()))
    }

    fn told(&self, kind: Kind, reached: bool) -> Result<(), String> {
        let status = self.rollout.status();
        let right =
            if reached { RemoteConfigStatuses::Applied } else { RemoteConfigStatuses::Failed };
        let runs = self.process.flatten().is_some_and(|runs| runs.digest == kind.digest());
        let of_it = status.last_remote_config_hash == kind.hash();
        if of_it && status.status() == right && runs == reached {
            return Ok(());
        }
        Err(format!("{kind:?} was to be {right:?}, not {status:?}: {}", self.tell()))
    }

    /// What a reader of a failure needs.
    pub(crate) fn tell(&self) -> String {
        let kinds =
            |generation: Option<Generation>| generation.map(|it| (it.number, Kind::of(&it.digest)));
        let record = &self.disk.record;
        let outcome = match &record.outcome {
            Outcome::Failed(reason) => reason.as_str(),
            Outcome::Applied => "applied",
            Outcome::Unset => "unset",
        };
        format!(
            "{} with {:?} wanted; link {:?}, committed {:?} (in memory {:?}), trial {:?}, outcome \
             of {:?}: {outcome}; process {:?}, {} orders",
            self.rollout.phase(),
            self.wanted,
            kinds(self.disk.link),
            kinds(record.committed),
            kinds(self.rollout.memory().committed),
            record.trial.as_ref().map(|trial| (trial.number, kinds(Some(trial.generation)))),
            record.received.as_ref().and_then(|hash| Kind::hashed(hash)),
            self.process.map(kinds),
            self.orders.len()
        )
    }
}
