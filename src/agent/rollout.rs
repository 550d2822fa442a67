//! The one life cycle: candidate → trial → committed, or rolled back.
//!
//! ```text
//!  offer ─▶ Staging ─▶ Validating ─▶ Arming ─▶ Activating ─▶ Applying ─▶ Trial ─▶ Committing ─▶ Idle: APPLIED
//!              │           │           │           │            │          │          │
//!              │ refused   │           │           └────────────┴────┬─────┴──────────┘
//!              ▼           ▼           ▼                             ▼
//!           Settling ◀─────┴───────────┘                        Condemning ─▶ Returning ─▶ Idle: FAILED
//!              └─▶ Idle: FAILED
//! ```
//!
//! A candidate is staged beside what runs and validated before anything is touched. `Arming` makes the way back and
//! the record "trial, attempt n" durable; from there the way back is the committed generation. What failed is
//! written down (`Condemning`) before the way back is taken (`Returning`), and an outcome is durable before it is
//! reported. The states are in memory; what must outlive a power cut is [`Memory`].

mod memory;
mod offer;
mod staging;
mod trial;

use core::time::Duration;
use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, RemoteConfigStatus, RemoteConfigStatuses};

use super::called::given;
use super::packages::set::Plan;
use crate::clock::{Mono, Now};
use crate::settings::{RemoteConfig, Rollback};

pub(super) use self::offer::known_by;
pub use self::offer::{Candidate, Offer, PackagesOutcome, Source, Verdict};
pub use memory::{
    Attempt, CONFIG_FLOOR, Digest, Failed, Floors, Generation, MAX_FAILED, MAX_FLOORS, Memory,
    Outcome, PackageFailure, Packaged, Parts, Seal, failure_in, remember_failure_in,
};

/// Trials an hour, whoever asks for them: beyond, the newest offer waits. Where `min_interval` is 0 nothing is paced, by
/// the operator's word: neither trials nor outcomes.
pub const TRIALS_AN_HOUR: usize = 12;
const HOUR: Duration = Duration::from_secs(3600);
/// Offers an hour that get an outcome, each of which is written down: beyond, the newest waits. A server that calls the
/// same thing by another name in each answer must not wear the flash out.
pub const OUTCOMES_AN_HOUR: usize = 120;
/// What the disk refused is tried again after so long.
pub const DISK_PAUSE: Duration = Duration::from_secs(60);

/// What the life cycle wants done. Each but [`Order::Say`] is answered by the method that it names.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Place a candidate as a new generation, unless its contents are `known`. → [`Rollout::staged`]
    Stage {
        /// What is to be placed.
        candidate: Candidate,
        /// Contents that need not be written.
        known: Vec<Digest>,
        /// False: only say what it would be.
        write: bool,
    },
    /// Dry run. → [`Rollout::validated`]
    Validate(Generation),
    /// Write the way back, and that a trial begins. → [`Rollout::armed`]
    Arm {
        /// The record during the trial.
        memory: Box<Memory>,
        /// The record after going back, for a disk that is full by then.
        after_going_back: Box<Memory>,
    },
    /// Place this file of the device's own and make it the running generation. → [`Rollout::substituted`]
    Substitute(PathBuf),
    /// Make it the running generation; [`None`]: none. → [`Rollout::activated`]
    Activate(Option<Generation>),
    /// Make the workload read it. → [`Rollout::applied`]
    Apply,
    /// Run the checks of the gate. → [`Rollout::checked`]
    Check,
    /// Write this down. → [`Rollout::remembered`]
    Remember(Box<Memory>),
    /// For the log.
    Say(String),
}

/// What staging came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Staged {
    /// Written.
    New(Generation),
    /// The contents were among the known ones; nothing was written.
    Known(Digest),
    /// The contents are not known; nothing was written, as asked.
    Deferred,
    /// There is no local file.
    Nothing,
    /// Its contents are refused: why.
    Refused(String),
    /// Packages that had been obtained are gone: why. The same offer is worth another try.
    Lacking(String),
    /// It could not be written: why.
    Failed(String),
}

#[derive(Clone, Debug)]
enum Phase {
    Idle,
    Staging,
    Validating(Generation),
    /// With what becomes [`Memory`] when it is durable, here and below.
    Arming(Generation, Box<Memory>),
    Activating(Generation),
    Applying(Generation),
    Trial(Generation, Gate),
    Committing(Generation, Box<Memory>),
    /// Nothing was touched; the outcome is being written.
    Settling(Box<Memory>),
    /// The trial failed; that is being written.
    Condemning(Box<Memory>),
    /// On the way to a configuration of the device's own, which nobody judges.
    Substituting {
        applying: bool,
    },
    /// On the way back to what `memory` says is committed.
    Returning {
        memory: Box<Memory>,
        applying: bool,
    },
}

/// The health gate of one trial.
#[derive(Clone, Debug)]
struct Gate {
    ends: Mono,
    next: Mono,
    checking: bool,
    in_a_row: u32,
    /// Checks that have passed in this trial: one that passed and fails again fails the trial.
    passed: Vec<String>,
    last_failure: Option<String>,
}

/// What governs the life cycle.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    rollback: Rollback,
    min_interval: Duration,
    /// There is a dry run for configurations, and for packages.
    validates: bool,
    verifies: bool,
}

impl Rules {
    /// Picks them from the settings; `verifies`: packages have a dry run.
    #[must_use]
    pub const fn new(settings: &RemoteConfig, verifies: bool) -> Self {
        Self {
            rollback: settings.rollback,
            min_interval: settings.min_interval,
            validates: !settings.validate.is_empty(),
            verifies,
        }
    }

    const fn validates(&self, packages: bool) -> bool {
        self.validates || (self.verifies && packages)
    }
}

/// The offer under way.
#[derive(Clone, Debug, Default)]
struct Current {
    parts: Parts,
    /// The offered objects, until they are staged: what the disk refuses is tried again.
    objects: Option<AgentConfigMap>,
    /// It came from the disk, not from the server.
    repeats: bool,
    /// Why it is refused unless it is what is committed.
    unless: Option<String>,
}

/// An offer that is not taken up yet.
#[derive(Clone, Debug)]
struct Waiting {
    parts: Parts,
    objects: Option<AgentConfigMap>,
    /// Not before this.
    from: Mono,
    /// Its packages are not there yet.
    held: bool,
    /// Why the disk refused it: what the status says. Else: APPLYING. It is no outcome, and not on record: after a
    /// restart the offer counts as new.
    refused: Option<String>,
    /// As [`Current::unless`].
    unless: Option<String>,
}

/// Why a trial ends badly.
enum Fault {
    /// The candidate's fault: it is remembered.
    Failed(String),
    /// A newer offer came.
    Superseded,
}

/// The life cycle of the remote configuration.
#[derive(Clone, Debug)]
pub struct Rollout {
    rules: Rules,
    memory: Memory,
    phase: Phase,
    /// [`None`] while the local file alone is placed at the start.
    current: Option<Current>,
    /// The newest offer that came meanwhile.
    waiting: Option<Waiting>,
    /// A newer configuration that is refused unseen, and why, to be written down when nothing else is: it takes no
    /// other's place.
    rejected: Option<(Bytes, String)>,
    /// The trial found at the start: it is repeated when what is committed runs, not before this.
    interrupted: Option<(Attempt, Mono)>,
    /// When trials began, the last first; at most [`TRIALS_AN_HOUR`].
    trials: VecDeque<Mono>,
    /// When offers were taken up, the last first; at most [`OUTCOMES_AN_HOUR`].
    outcomes: VecDeque<Mono>,
    /// Crashes since the commit, as long as they count; [`None`]: they do not.
    fresh: Option<Fresh>,
    /// The record could not be written; when it is tried again.
    unwritten: Option<Mono>,
    /// The way back could not be taken; when it is tried again.
    astray: Option<Mono>,
    /// Checks that failed before the trial, while the workload ran: they do not fail it.
    sick: Vec<String>,
    /// What is committed does not run: a configuration of the device's own does.
    substituted: bool,
    /// Packages that have their outcome, to be written down when nothing else is.
    concluded: Option<(Parts, PackagesOutcome)>,
}

/// A commit that crashes can still undo.
#[derive(Clone, Copy, Debug)]
struct Fresh {
    until: Mono,
    crashes: u32,
}

impl Rollout {
    /// Goes on from what is on disk.
    #[must_use]
    pub fn new(rules: Rules, memory: Memory, now: Now) -> Self {
        let mut rollout = Self {
            rules,
            interrupted: None,
            memory,
            phase: Phase::Idle,
            current: None,
            waiting: None,
            rejected: None,
            trials: VecDeque::new(),
            outcomes: VecDeque::new(),
            fresh: None,
            unwritten: None,
            astray: None,
            sick: Vec::new(),
            substituted: false,
            concluded: None,
        };
        let age = now.wall.0.checked_sub(rollout.memory.committed_at.0);
        let within = rules.rollback.crash_loop.within;
        if let Some(left) = age.and_then(|age| within.checked_sub(age)) {
            rollout.watch_commit(now.mono.after(left));
        }
        rollout
    }

    /// Goes on by other rules.
    pub const fn govern(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// What is on disk, or will be.
    #[must_use]
    pub const fn memory(&self) -> &Memory {
        &self.memory
    }

    /// The phase in a word, for `chiton status`.
    #[must_use]
    pub const fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Idle if self.interrupted.is_some() => "interrupted",
            Phase::Idle if self.waiting.is_some() => "waiting",
            Phase::Idle => "idle",
            Phase::Staging => "staging",
            Phase::Validating(_) => "validating",
            Phase::Arming(..) => "arming",
            Phase::Activating(_) => "activating",
            Phase::Applying(_) => "applying",
            Phase::Trial(..) => "trial",
            Phase::Committing(..) => "committing",
            Phase::Settling(_) => "settling",
            Phase::Substituting { .. } => "degrading",
            Phase::Condemning(_) | Phase::Returning { .. } => "rolling back",
        }
    }

    /// RemoteConfigStatus as it stands.
    #[must_use]
    pub fn status(&self) -> RemoteConfigStatus {
        // opamp-spec L1395: the hash is that of the last offer received, also while it waits.
        let refused = self
            .waiting
            .as_ref()
            .and_then(|waiting| Some((waiting.parts.config.as_ref()?, waiting.refused.as_ref()?)));
        let rejected = self.rejected.as_ref().map(|(hash, reason)| (hash, reason));
        if let Some((hash, reason)) = rejected.or(refused) {
            return RemoteConfigStatus {
                last_remote_config_hash: given(hash),
                status: RemoteConfigStatuses::Failed.into(),
                error_message: reason.clone(),
            };
        }
        if let Some(hash) = self.newest() {
            return RemoteConfigStatus {
                last_remote_config_hash: given(hash),
                status: RemoteConfigStatuses::Applying.into(),
                error_message: String::new(),
            };
        }
        let (status, error) = match &self.memory.outcome {
            Outcome::Unset => (RemoteConfigStatuses::Unset, ""),
            Outcome::Applied => (RemoteConfigStatuses::Applied, ""),
            Outcome::Failed(reason) => (RemoteConfigStatuses::Failed, reason.as_str()),
        };
        RemoteConfigStatus {
            last_remote_config_hash: self.memory.received.as_ref().map(given).unwrap_or_default(),
            status: status.into(),
            error_message: error.to_owned(),
        }
    }

    /// The start of the agent: the local file is staged unless a remote configuration is committed. A trial that
    /// was interrupted is repeated when [`Rollout::workload_is_up`], or given up. True: the status changed.
    pub fn boot(&mut self, out: &mut Vec<Order>) {
        if let Some(trial) = self.memory.trial.clone() {
            if trial.number < self.rules.rollback.attempts {
                // It stays on record, and on the disk, until it is repeated, given up or replaced.
                self.interrupted = Some((trial, Mono::default()));
            } else {
                self.memory.trial = None;
                let reason =
                    format!("its trial was interrupted {} times, and is given up", trial.number);
                out.push(Order::Say(reason.clone()));
                self.memory.remember_failure(trial.generation.digest, &reason, &trial.parts.hash());
                self.memory.fails(&trial.parts, &reason);
                self.unwritten = Some(Mono::default());
            }
        }
        if self.memory.committed.is_none_or(|committed| !committed.remote) {
            self.stage(true, out);
        }
    }

    /// What is committed could not be made to run at the start: it is tried again.
    pub fn is_astray(&mut self, now: Now) {
        self.astray = Some(now.mono.after(DISK_PAUSE));
    }

    /// The hash of the newest configuration that has no outcome yet.
    fn newest(&self) -> Option<&Bytes> {
        let rejected = self.rejected.as_ref().map(|(hash, _)| hash);
        let waiting = self.waiting.as_ref().and_then(|waiting| waiting.parts.config.as_ref());
        let concluded = self.concluded.as_ref().and_then(|(parts, _)| parts.config.as_ref());
        rejected
            .or(waiting)
            .or(self.current.as_ref().and_then(|current| current.parts.config.as_ref()))
            .or(concluded)
            .or(self.interrupted.as_ref().and_then(|(trial, _)| trial.parts.config.as_ref()))
    }

    /// When an interrupted trial waits no longer for what is committed, which runs since then, to prove itself: with
    /// checks that takes them, without any a moment. [`None`]: nothing waits for that.
    #[must_use]
    pub fn repeats_by(&self, since: Mono, has_checks: bool) -> Option<Mono> {
        let (_, from) = self.interrupted.as_ref().filter(|_| self.is_idle())?;
        let rollback = &self.rules.rollback;
        let wait = if has_checks { rollback.window } else { rollback.interval };
        Some(since.after(wait).max(*from))
    }

    /// What is committed runs, or cannot: an interrupted trial may be repeated.
    pub fn workload_is_up(&mut self, now: Now, out: &mut Vec<Order>) {
        if !self.is_idle() {
            return;
        }
        let Some((trial, _)) = self.interrupted.take_if(|(_, from)| *from <= now.mono) else {
            return;
        };
        out.push(Order::Say(format!(
            "repeating the trial of generation {}, which was interrupted",
            trial.generation.number
        )));
        self.current =
            Some(Current { parts: trial.parts.clone(), repeats: true, ..Current::default() });
        self.arm(trial.generation, trial.number.saturating_add(1), now, out);
    }

    /// Whether the staging under way is that of the local file, at the start.
    #[must_use]
    pub const fn stages_local(&self) -> bool {
        matches!(self.phase, Phase::Staging) && self.current.is_none()
    }

    /// Whether an apply is awaited: the workload's next start or failure to start answers it.
    #[must_use]
    pub const fn applies(&self) -> bool {
        matches!(
            self.phase,
            Phase::Applying(_)
                | Phase::Substituting { applying: true }
                | Phase::Returning { applying: true, .. }
        )
    }

    /// What runs by right once the way back has been gone; [`None`]: we are not on it.
    #[must_use]
    pub const fn goes_back(&self) -> Option<&Memory> {
        match &self.phase {
            Phase::Returning { memory, .. } => Some(memory),
            _ => None,
        }
    }

    /// The answer to [`Order::Remember`]. True: the status changed.
    pub fn remembered(
        &mut self,
        result: Result<(), String>,
        now: Now,
        out: &mut Vec<Order>,
    ) -> bool {
        let failed = result.as_ref().err().cloned();
        let changed = match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Committing(generation, memory) => {
                if let (Err(reason), true) = (result, self.current.is_some()) {
                    let text = format!("the commit could not be written: {reason}");
                    self.end_trial(generation, Fault::Failed(text), out);
                    return false;
                }
                // The local file runs all the same.
                self.astray = None;
                self.memory = *memory;
                self.current = None;
                self.substituted = false;
                self.watch_commit(now.mono.after(self.rules.rollback.crash_loop.within));
                true
            }
            Phase::Settling(memory) => {
                self.memory = *memory;
                self.current = None;
                let received = self.memory.received.as_ref();
                // It was told at once: whoever looks at it again comes to the same.
                self.rejected.take_if(|(hash, _)| received == Some(hash)).is_none()
            }
            Phase::Condemning(memory) => {
                out.push(Order::Activate(memory.committed));
                self.phase = Phase::Returning { memory, applying: false };
                false
            }
            other => {
                self.phase = other;
                false
            }
        };
        self.unwritten = failed.as_ref().map(|_| now.mono.after(DISK_PAUSE));
        if let Some(reason) = failed {
            out.push(Order::Say(format!("the record could not be written: {reason}")));
        }
        changed
    }

    /// When [`Rollout::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        match &self.phase {
            Phase::Trial(_, gate) if gate.checking => Some(gate.ends),
            Phase::Trial(_, gate) => Some(gate.next.min(gate.ends)),
            Phase::Idle => {
                let waiting = self.waiting.as_ref().filter(|waiting| !waiting.held);
                let waiting = waiting.map(|waiting| waiting.from);
                let interrupted = self.interrupted.as_ref().map(|(_, from)| *from);
                let interrupted = interrupted.filter(|from| *from > Mono::default());
                let from = self.next_outcome().unwrap_or_default();
                let concluded = self.concluded.as_ref().map(|_| from);
                let rejected = self.rejected.as_ref().map(|_| from);
                [waiting, self.unwritten, self.astray, interrupted, concluded, rejected]
                    .into_iter()
                    .flatten()
                    .min()
            }
            _ => None,
        }
    }

    /// Whether a gate watches the workload now.
    #[must_use]
    pub const fn is_trial(&self) -> bool {
        matches!(self.phase, Phase::Trial(..))
    }

    /// Starts the next round of checks, ends a trial whose window is over, takes up what waits. True: the status
    /// changed.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Order>) -> bool {
        match &mut self.phase {
            Phase::Trial(generation, gate) if gate.ends <= now.mono => {
                let generation = *generation;
                let reason = gate
                    .last_failure
                    .clone()
                    .unwrap_or_else(|| "its checks did not finish".to_owned());
                let window = self.rules.rollback.window;
                let text = format!("not healthy within {window:?}: {reason}");
                self.end_trial(generation, Fault::Failed(text), out);
                false
            }
            Phase::Trial(_, gate) if gate.next <= now.mono && !gate.checking => {
                gate.checking = true;
                out.push(Order::Check);
                false
            }
            Phase::Idle => {
                if self.unwritten.is_some_and(|at| at <= now.mono) {
                    self.unwritten = None;
                    self.phase = Phase::Settling(Box::new(self.memory.clone()));
                    out.push(Order::Remember(Box::new(self.memory.clone())));
                    return false;
                }
                if self.astray.is_some_and(|at| at <= now.mono) {
                    self.astray = Some(now.mono.after(DISK_PAUSE));
                    let memory = Box::new(self.memory.clone());
                    out.push(Order::Activate(memory.committed));
                    self.phase = Phase::Returning { memory, applying: false };
                    return false;
                }
                let writes = self.next_outcome().is_none_or(|from| from <= now.mono);
                if let Some((parts, outcome)) = self.concluded.take_if(|_| writes) {
                    self.takes_up(now);
                    self.conclude(&parts, outcome, out);
                    return false;
                }
                if let Some((hash, reason)) = self.rejected.clone().filter(|_| writes) {
                    self.takes_up(now);
                    let parts = Parts { config: Some(hash), ..Parts::default() };
                    self.current = Some(Current { parts, ..Current::default() });
                    return self.settle(&Outcome::Failed(reason), out);
                }
                // Its time has come: from here on it waits for the workload only.
                if let Some((_, from)) = &mut self.interrupted
                    && *from <= now.mono
                {
                    *from = Mono::default();
                }
                let refused =
                    self.waiting.as_ref().is_some_and(|waiting| waiting.refused.is_some());
                self.take_up(now, out);
                refused && self.waiting.is_none()
            }
            _ => false,
        }
    }

    /// An orderly stop, the last call: a trial under way is not judged, and its attempt does not count.
    pub fn stop(&mut self, out: &mut Vec<Order>) {
        let memory = match &self.phase {
            Phase::Arming(_, memory) => memory,
            Phase::Activating(_) | Phase::Applying(_) | Phase::Trial(..) => &self.memory,
            _ => return,
        };
        let mut memory = Memory::clone(memory);
        self.phase = Phase::Idle;
        if let Some(trial) = &mut memory.trial {
            trial.number = trial.number.saturating_sub(1);
            out.push(Order::Remember(Box::new(memory)));
        }
    }

    /// Forgets what failed, so that the next offer of it is tried: all, or what was offered with this hash. How much
    /// that was.
    pub fn forget(&mut self, hash: Option<&[u8]>, out: &mut Vec<Order>) -> u64 {
        let before = self.memory.failed.len();
        self.memory.failed.retain(|failed| hash.is_some_and(|hash| failed.hash != hash));
        let mut forgotten = before.saturating_sub(self.memory.failed.len());
        let told = self.memory.received.as_deref();
        if matches!(self.memory.outcome, Outcome::Failed(_))
            && hash.is_none_or(|hash| told == Some(hash))
        {
            // The same hash counts as new when it comes again.
            self.memory.received = None;
            self.memory.outcome = Outcome::Unset;
            forgotten = forgotten.max(1);
        }
        let packages = &mut self.memory.packages;
        let failed = !packages.failed.is_empty() || !packages.error.is_empty();
        if failed && hash.is_none_or(|hash| packages.received.as_deref() == Some(hash)) {
            packages.received = None;
            packages.failed.clear();
            packages.error.clear();
            forgotten = forgotten.max(1);
        }
        if forgotten > 0 && self.is_idle() {
            let memory = Box::new(self.memory.clone());
            self.phase = Phase::Settling(memory.clone());
            out.push(Order::Remember(memory));
        }
        u64::try_from(forgotten).unwrap_or(u64::MAX)
    }

    /// Whether what is under way came from the disk, not from the server.
    fn repeats(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.repeats)
    }

    /// Why what is under way is refused unless it is what is committed.
    fn unless(&self) -> Option<String> {
        self.current.as_ref().and_then(|current| current.unless.clone())
    }

    fn parts(&self) -> Parts {
        self.current.as_ref().map(|current| current.parts.clone()).unwrap_or_default()
    }

    /// The packages of the candidate, while there is one.
    #[must_use]
    pub fn plan(&self) -> Option<&Plan> {
        let waiting = self.waiting.as_ref().and_then(|waiting| waiting.parts.packages.as_ref());
        let interrupted = self.interrupted.as_ref();
        waiting
            .or(self.current.as_ref().and_then(|current| current.parts.packages.as_ref()))
            .or(interrupted.and_then(|(trial, _)| trial.parts.packages.as_ref()))
    }

    /// `all_packages_hash` of an outcome that is not written down yet.
    #[must_use]
    pub fn concluding(&self) -> Option<&PackagesOutcome> {
        self.concluded.as_ref().map(|(_, outcome)| outcome)
    }

    /// Whether what is under way changes the packages.
    #[must_use]
    pub fn changes_packages(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.parts.packages.is_some())
    }

    /// Whether what is under way changes the configuration.
    #[must_use]
    pub fn changes_config(&self) -> bool {
        self.current.as_ref().is_none_or(|current| current.parts.config.is_some())
    }

    fn condemn(&mut self, memory: Memory, out: &mut Vec<Order>) {
        let memory = Box::new(memory);
        self.phase = Phase::Condemning(memory.clone());
        out.push(Order::Remember(memory));
    }

    /// An offer has its outcome, and nothing was touched.
    fn settle(&mut self, outcome: &Outcome, out: &mut Vec<Order>) -> bool {
        let mut memory = self.memory.clone();
        match outcome {
            Outcome::Failed(reason) => memory.fails(&self.parts(), reason),
            Outcome::Applied => memory.succeeds(&self.parts()),
            Outcome::Unset => {}
        }
        self.write_down(memory, out)
    }

    fn write_down(&mut self, memory: Memory, out: &mut Vec<Order>) -> bool {
        let memory = Box::new(memory);
        self.phase = Phase::Settling(memory.clone());
        out.push(Order::Remember(memory));
        false
    }

    /// Whether the workload is what is committed and stays so for now: a restart of it disturbs nothing.
    #[must_use]
    pub const fn leaves_workload_alone(&self) -> bool {
        matches!(
            self.phase,
            Phase::Idle | Phase::Staging | Phase::Validating(_) | Phase::Settling(_)
        )
    }

    /// Whether what the workload would read is being exchanged, or is about to be: nothing may be started in between,
    /// it could see a mix.
    #[must_use]
    pub const fn is_swapping(&self) -> bool {
        matches!(
            self.phase,
            Phase::Activating(_)
                | Phase::Condemning(_)
                | Phase::Returning { applying: false, .. }
                | Phase::Substituting { applying: false }
        )
    }

    /// Whether nothing is under way.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }
}

const SUPERSEDED: &str = "a newer offer came before it was committed";
