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

use core::time::Duration;
use std::collections::VecDeque;
use std::path::PathBuf;

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentRemoteConfig, RemoteConfigStatus, RemoteConfigStatuses};

use super::called::{called, given};
use super::cut;
use super::health::{CheckResult, Pass};
use super::packages::set::Plan;
use crate::clock::{Mono, Now};
use crate::settings::{RemoteConfig, Rollback};

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

/// Where a candidate's configuration comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// The local file alone.
    Local,
    /// These objects, over the local file.
    Offer(AgentConfigMap),
    /// What is committed.
    Keep,
}

/// What is to become a generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its configuration.
    pub config: Source,
    /// Its packages; [`None`]: those that are committed.
    pub packages: Option<Plan>,
    /// What is committed: what a candidate keeps, it keeps of this, whatever runs.
    pub base: Option<Generation>,
}

impl Candidate {
    /// The objects that are offered.
    #[must_use]
    pub const fn offer(&self) -> Option<&AgentConfigMap> {
        match &self.config {
            Source::Offer(objects) => Some(objects),
            Source::Local | Source::Keep => None,
        }
    }
}

/// A word of the packages' part: an offer of packages has its outcome without a trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackagesOutcome {
    /// `all_packages_hash` of the offer.
    pub hash: Bytes,
    /// What was wrong with it as a whole.
    pub error: String,
    /// What is not installed; with no error and none of these, all is as offered.
    pub failed: Vec<PackageFailure>,
    /// The same offer is worth another try.
    pub transient: bool,
}

/// A configuration that is offered, and what its signature came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    hash: Bytes,
    objects: AgentConfigMap,
    seal: Option<Seal>,
    verdict: Verdict,
}

/// Whether an offered configuration may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    #[default]
    Good,
    /// Only if its contents are those that are committed: else it is refused for this.
    Unless(String),
    /// It may not, for this.
    Bad(String),
}

impl Offer {
    /// One whose signature was looked at.
    #[must_use]
    pub fn new(offer: AgentRemoteConfig, seal: Option<Seal>, verdict: Verdict) -> Self {
        let hash = known_by(&offer);
        Self { hash, objects: offer.config.unwrap_or_default(), seal, verdict }
    }

    /// Why it is refused, whatever is in it.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        match &self.verdict {
            Verdict::Bad(reason) => Some(reason),
            Verdict::Good | Verdict::Unless(_) => None,
        }
    }
}

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

    /// A configuration is offered. True: the status changed.
    pub fn offered(&mut self, offer: Offer, now: Now, out: &mut Vec<Order>) -> bool {
        if !self.receive(offer, false) {
            return false;
        }
        self.hurry(now, out);
        true
    }

    /// A configuration is offered together with packages that are not there yet: it waits for
    /// [`Rollout::packages_ready`] or [`Rollout::packages_concluded`], unless it is refused. True: the status changed.
    pub fn held(&mut self, offer: Offer) -> bool {
        let waits = offer.refusal().is_none();
        let received = self.receive(offer, true);
        if let (true, Some(waiting)) = (received && waits, &mut self.waiting) {
            waiting.held = true;
        }
        received
    }

    /// Whether a configuration with this hash is the one received last. With other packages one that failed is
    /// another candidate.
    #[must_use]
    pub fn knows(&self, hash: &Bytes, with_packages: bool) -> bool {
        let applied = self.memory.outcome == Outcome::Applied;
        let received = self.memory.received.as_ref().filter(|_| applied || !with_packages);
        self.newest().or(received) == Some(hash)
    }

    /// Takes an offered configuration down as what waits. False: it is the one received last.
    fn receive(&mut self, offer: Offer, with_packages: bool) -> bool {
        let Offer { hash, objects, seal, verdict } = offer;
        if self.knows(&hash, with_packages) {
            return false; // as last received: nothing, no report
        }
        let unless = match verdict {
            Verdict::Good => None,
            Verdict::Unless(reason) => Some(cut(reason)),
            Verdict::Bad(reason) => {
                self.rejected = Some((hash, cut(reason)));
                return true;
            }
        };
        let packages = self.waiting.take().and_then(|waiting| waiting.parts.packages);
        self.waiting = Some(Waiting {
            parts: Parts { config: Some(hash), seal, packages },
            objects: Some(objects),
            from: Mono::default(),
            held: false,
            refused: None,
            unless,
        });
        self.rejected = None;
        self.replace_interrupted();
        true
    }

    /// What was interrupted is not repeated: something newer is there.
    fn replace_interrupted(&mut self) {
        if self.interrupted.take().is_some() {
            self.memory.trial = None;
        }
    }

    /// Another offer of packages came: those that wait are not tried any more.
    ///
    /// A configuration that waited with them waits for the new ones.
    pub fn forsake_packages(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.held |= waiting.parts.packages.take().is_some();
            if waiting.parts.config.is_none() {
                self.waiting = None;
            }
        }
    }

    /// The packages that a configuration waits for will not come: it is given up without an outcome, and offered
    /// again.
    pub fn release(&mut self) {
        self.waiting.take_if(|waiting| waiting.held);
    }

    /// The offered packages are there: with the configuration that waits for them, if one does, they are a
    /// candidate.
    pub fn packages_ready(&mut self, plan: Plan, now: Now, out: &mut Vec<Order>) {
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            parts: Parts::default(),
            objects: None,
            from: Mono::default(),
            held: false,
            refused: None,
            unless: None,
        });
        waiting.parts.packages = Some(plan);
        waiting.held = false;
        waiting.from = Mono::default();
        self.replace_interrupted();
        self.hurry(now, out);
    }

    /// The offered packages need no trial, or there will be none. A configuration that waits for them shares that:
    /// it goes on alone, or is refused. True: the status changed.
    pub fn packages_concluded(
        &mut self,
        outcome: PackagesOutcome,
        now: Now,
        out: &mut Vec<Order>,
    ) -> bool {
        let failed = !outcome.error.is_empty() || !outcome.failed.is_empty();
        let mut parts = Parts::default();
        if let Some(waiting) = self.waiting.take_if(|waiting| failed && waiting.held) {
            parts.config = waiting.parts.config;
        } else if let Some(waiting) = &mut self.waiting {
            waiting.held = false;
        }
        self.concluded = Some((parts, outcome));
        self.tick(now, out)
    }

    /// Writes down what became of packages without a trial.
    fn conclude(&mut self, parts: &Parts, outcome: PackagesOutcome, out: &mut Vec<Order>) {
        let mut memory = self.memory.clone();
        let failed = !outcome.error.is_empty() || !outcome.failed.is_empty();
        let first = outcome.failed.iter().map(|it| format!("{}: {}", it.name, it.error)).next();
        let why = first.unwrap_or_else(|| outcome.error.clone());
        memory.fails(parts, &cut(format!("the packages offered with it are not installed: {why}")));
        memory.packages.installed = (!failed).then(|| outcome.hash.clone());
        memory.packages.received = Some(outcome.hash);
        memory.packages.error = outcome.error;
        memory.packages.failed = outcome.failed;
        memory.packages.transient = outcome.transient;
        self.write_down(memory, out);
    }

    /// Something waits: it begins now, or ends the trial whose place it takes.
    fn hurry(&mut self, now: Now, out: &mut Vec<Order>) {
        match &self.phase {
            Phase::Idle => self.take_up(now, out),
            Phase::Trial(generation, _) if self.is_overtaken() => {
                let generation = *generation;
                self.end_trial(generation, Fault::Superseded, out);
            }
            _ => {}
        }
    }

    /// Whether what waits takes the place of what is under way.
    fn is_overtaken(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| {
            let current = self.current.as_ref();
            // What is likely to be refused ends no trial.
            !waiting.held
                && waiting.unless.is_none()
                && current.is_some_and(|current| current.parts.covered_by(&waiting.parts))
        })
    }

    /// Begins with the offer that waits, if its time has come.
    fn take_up(&mut self, now: Now, out: &mut Vec<Order>) {
        if self.waiting.as_ref().is_none_or(|it| it.held || it.from > now.mono) {
            return;
        }
        if let Some(from) = self.next_outcome().filter(|from| *from > now.mono) {
            if let Some(waiting) = &mut self.waiting {
                waiting.from = from;
            }
            return;
        }
        let Some(waiting) = self.waiting.take() else { return };
        self.takes_up(now);
        let write = self.next_trial().is_none_or(|from| from <= now.mono);
        let Waiting { parts, objects, unless, .. } = waiting;
        let write = write && unless.is_none();
        self.current = Some(Current { parts, objects, repeats: false, unless });
        self.stage(write, out);
    }

    /// When the next offer may get its outcome.
    fn next_outcome(&self) -> Option<Mono> {
        let oldest = self.outcomes.get(OUTCOMES_AN_HOUR.saturating_sub(1));
        let oldest = oldest.filter(|_| self.is_paced());
        oldest.map(|oldest| oldest.after(HOUR))
    }

    const fn is_paced(&self) -> bool {
        !self.rules.min_interval.is_zero()
    }

    fn takes_up(&mut self, now: Now) {
        self.outcomes.push_front(now.mono);
        self.outcomes.truncate(OUTCOMES_AN_HOUR);
    }

    /// When the next trial may begin: `min_interval` after the last, [`TRIALS_AN_HOUR`] at most.
    fn next_trial(&self) -> Option<Mono> {
        if !self.is_paced() {
            return None;
        }
        let paced = self.trials.front().map(|last| last.after(self.rules.min_interval));
        let oldest = self.trials.get(TRIALS_AN_HOUR.saturating_sub(1));
        paced.max(oldest.map(|oldest| oldest.after(HOUR)))
    }

    /// Whether the staging under way is that of the local file, at the start.
    #[must_use]
    pub const fn stages_local(&self) -> bool {
        matches!(self.phase, Phase::Staging) && self.current.is_none()
    }

    /// The answer to [`Order::Stage`]. True: the status changed.
    pub fn staged(&mut self, staged: Staged, now: Now, out: &mut Vec<Order>) -> bool {
        if !matches!(self.phase, Phase::Staging) {
            return false;
        }
        if self.current.is_none() {
            return self.staged_local(staged, out);
        }
        match staged {
            _ if self.is_overtaken() => self.superseded(out),
            Staged::New(generation) if self.rules.validates(self.changes_packages()) => {
                self.phase = Phase::Validating(generation);
                out.push(Order::Validate(generation));
                false
            }
            Staged::New(generation) => {
                self.arm(generation, 1, now, out);
                false
            }
            Staged::Known(digest) if self.memory.committed.is_some_and(|c| c.digest == digest) => {
                self.settle(&Outcome::Applied, out)
            }
            Staged::Known(_) | Staged::Deferred if self.unless().is_some() => {
                let reason = self.unless().unwrap_or_default();
                self.settle(&Outcome::Failed(reason), out)
            }
            Staged::Known(digest) => {
                let reason = self.memory.failure(&digest).map_or_else(
                    || "these contents failed before".to_owned(),
                    |failed| failed.reason.clone(),
                );
                self.settle(&Outcome::Failed(reason), out)
            }
            Staged::Deferred => {
                let from = self.next_trial().unwrap_or(now.mono);
                self.put_off(from, None);
                false
            }
            Staged::Nothing => self.settle(&Outcome::Failed("empty config".to_owned()), out),
            Staged::Refused(reason) => self.settle(&Outcome::Failed(cut(reason)), out),
            Staged::Lacking(reason) => {
                let mut memory = self.memory.clone();
                memory.fails(&self.parts(), &cut(reason));
                memory.packages.transient = true;
                self.write_down(memory, out)
            }
            Staged::Failed(reason) => self.disk_refused(reason, now),
        }
    }

    /// The local file at the start: nothing is reported, nothing stands in its way.
    fn staged_local(&mut self, staged: Staged, out: &mut Vec<Order>) -> bool {
        self.phase = Phase::Idle;
        match staged {
            Staged::New(generation) => self.activate(generation, out),
            Staged::Refused(reason) | Staged::Failed(reason) | Staged::Lacking(reason) => {
                out.push(Order::Say(format!("no local configuration is in force: {reason}")));
            }
            Staged::Known(_) | Staged::Deferred | Staged::Nothing => {}
        }
        false
    }

    /// The disk's fault, not the offer's: it is reported, and tried again.
    fn disk_refused(&mut self, reason: String, now: Now) -> bool {
        self.put_off(now.mono.after(DISK_PAUSE), Some(cut(reason)));
        true
    }

    fn put_off(&mut self, from: Mono, refused: Option<String>) {
        self.phase = Phase::Idle;
        let Some(current) = self.current.take() else { return };
        match &mut self.waiting {
            // What came meanwhile has not all of its parts.
            Some(waiting) => {
                if waiting.parts.config.is_none() {
                    waiting.parts.config = current.parts.config;
                    waiting.parts.seal = current.parts.seal;
                    waiting.objects = current.objects;
                    waiting.unless = current.unless;
                }
                if waiting.parts.packages.is_none() && !waiting.held {
                    waiting.parts.packages = current.parts.packages;
                }
                waiting.from = from;
            }
            None => {
                let Current { parts, objects, unless, .. } = current;
                let held = false;
                self.waiting = Some(Waiting { parts, objects, from, held, refused, unless });
            }
        }
    }

    /// The answer to [`Order::Validate`].
    pub fn validated(
        &mut self,
        result: Result<(), String>,
        now: Now,
        out: &mut Vec<Order>,
    ) -> bool {
        let Phase::Validating(generation) = self.phase else { return false };
        match result {
            _ if self.is_overtaken() => self.superseded(out),
            Ok(()) => {
                self.arm(generation, 1, now, out);
                false
            }
            Err(reason) => {
                let reason = cut(reason);
                let hash = self.parts().hash();
                self.memory.remember_failure(generation.digest, &reason, &hash);
                self.settle(&Outcome::Failed(reason), out)
            }
        }
    }

    /// The answer to [`Order::Arm`].
    pub fn armed(&mut self, result: Result<(), String>, now: Now, out: &mut Vec<Order>) -> bool {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Arming(generation, memory) => match result {
                Ok(()) => {
                    self.memory = *memory;
                    self.activate(generation, out);
                    false
                }
                Err(_) if self.is_overtaken() => self.superseded(out),
                Err(reason) => {
                    let text = format!("a trial could not be made safe: {reason}");
                    if let (Some(trial), true) = (memory.trial, self.repeats()) {
                        let number = trial.number.saturating_sub(1);
                        let from = now.mono.after(DISK_PAUSE);
                        self.interrupted = Some((Attempt { number, ..trial }, from));
                        self.current = None;
                        out.push(Order::Say(text));
                        return false;
                    }
                    self.disk_refused(text, now)
                }
            },
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// The answer to [`Order::Activate`].
    pub fn activated(&mut self, result: Result<(), String>, out: &mut Vec<Order>) -> bool {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Activating(generation) => match result {
                Ok(()) => {
                    self.phase = Phase::Applying(generation);
                    out.push(Order::Apply);
                }
                Err(reason) if self.current.is_none() => {
                    out.push(Order::Say(format!("the local configuration: {reason}")));
                }
                // Nothing was swapped, or it is not known whether: swap back, which is harmless.
                Err(reason) => self.end_trial(generation, Fault::Failed(reason), out),
            },
            Phase::Returning { memory, applying: false } => {
                // A second attempt that fails changes nothing: no reason to restart what runs.
                if result.is_err() && *memory == self.memory {
                    return false;
                }
                self.astray = result.is_err().then(Mono::default);
                if let Err(error) = result {
                    out.push(Order::Say(format!(
                        "going back to the committed generation failed: {error}"
                    )));
                }
                self.phase = Phase::Returning { memory, applying: true };
                out.push(Order::Apply);
            }
            other => self.phase = other,
        }
        false
    }

    /// The answer to [`Order::Apply`]: the workload was started, reloaded, or told; or not.
    pub fn applied(&mut self, result: Result<(), String>, now: Now, out: &mut Vec<Order>) -> bool {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            // The local file alone at the start is the last resort: there is nothing to go back to.
            Phase::Applying(generation) if self.current.is_none() => {
                if let Err(reason) = result {
                    out.push(Order::Say(format!("the local configuration: {reason}")));
                }
                self.commit(generation, now, out);
                false
            }
            Phase::Applying(generation) => {
                match result {
                    _ if self.is_overtaken() => {
                        self.end_trial(generation, Fault::Superseded, out);
                    }
                    Ok(()) => self.begin_trial(generation, now),
                    Err(reason) => self.end_trial(generation, Fault::Failed(reason), out),
                }
                false
            }
            Phase::Substituting { applying: true } => {
                if let Err(error) = result {
                    out.push(Order::Say(format!("the workload with it: {error}")));
                }
                false
            }
            Phase::Returning { memory, applying: true } => {
                if let Err(error) = result {
                    out.push(Order::Say(format!("the workload after going back: {error}")));
                }
                self.memory = *memory;
                self.current = None;
                self.substituted = false;
                self.astray = self.astray.map(|_| now.mono.after(DISK_PAUSE));
                true
            }
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// The answer to [`Order::Apply`] where there is nothing yet that could run: a part is in place, and the rest is
    /// awaited.
    pub fn placed(&mut self, now: Now, out: &mut Vec<Order>) {
        if let Phase::Applying(generation) = self.phase {
            self.commit(generation, now, out);
        }
    }

    fn begin_trial(&mut self, generation: Generation, now: Now) {
        let gate = Gate {
            ends: now.mono.after(self.rules.rollback.window),
            next: now.mono.after(self.rules.rollback.interval),
            checking: false,
            in_a_row: 0,
            passed: Vec::new(),
            last_failure: None,
        };
        self.phase = Phase::Trial(generation, gate);
    }

    /// Runs with a configuration of the device's own, until an offer is committed or Chiton starts again. Only while
    /// nothing is under way.
    pub fn substitute(&mut self, file: PathBuf, out: &mut Vec<Order>) {
        if self.is_idle() {
            self.phase = Phase::Substituting { applying: false };
            out.push(Order::Substitute(file));
        }
    }

    /// The answer to [`Order::Substitute`]. The status never changes.
    pub fn substituted(&mut self, result: Result<(), String>, out: &mut Vec<Order>) -> bool {
        if !matches!(self.phase, Phase::Substituting { applying: false }) {
            return false;
        }
        match result {
            Ok(()) => {
                self.substituted = true;
                self.phase = Phase::Substituting { applying: true };
                out.push(Order::Apply);
            }
            Err(error) => {
                self.phase = Phase::Idle;
                out.push(Order::Say(format!("degrade: {error}")));
            }
        }
        false
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

    /// The answer to [`Order::Check`].
    pub fn checked(&mut self, results: &[CheckResult], now: Now, out: &mut Vec<Order>) {
        let Phase::Trial(generation, gate) = &mut self.phase else { return };
        let generation = *generation;
        if !core::mem::take(&mut gate.checking) {
            return;
        }
        gate.next = now.mono.after(self.rules.rollback.interval);
        let mut failure = None;
        for check in results {
            match &check.failure {
                // No figure yet: it has not passed, and does not hold the others up.
                None if check.pass == Pass::Unmeasured => {}
                None => {
                    if !gate.passed.contains(&check.name) {
                        gate.passed.push(check.name.clone());
                    }
                }
                Some(_)
                    if self.sick.contains(&check.name) && !gate.passed.contains(&check.name) => {}
                Some(why) => {
                    let text = format!("check {} failed: {why}", check.name);
                    if gate.passed.contains(&check.name) {
                        return self.end_trial(generation, Fault::Failed(text), out);
                    }
                    failure.get_or_insert(text);
                }
            }
        }
        gate.in_a_row = if failure.is_none() { gate.in_a_row.saturating_add(1) } else { 0 };
        gate.last_failure = failure;
        if gate.in_a_row >= self.rules.rollback.successes {
            self.commit(generation, now, out);
        }
    }

    /// The checks could not be judged, since no process ran: they are asked for again.
    pub fn unchecked(&mut self, now: Now) {
        if let Phase::Trial(_, gate) = &mut self.phase
            && core::mem::take(&mut gate.checking)
        {
            gate.next = now.mono.after(self.rules.rollback.interval);
            gate.in_a_row = 0;
        }
    }

    /// The workload died by itself. True: the status changed.
    pub fn crashed(&mut self, text: &str, now: Now, out: &mut Vec<Order>) -> bool {
        match &self.phase {
            // The local file alone has nothing to go back to: it is started again.
            Phase::Committing(..) if self.current.is_none() => false,
            Phase::Trial(generation, _) | Phase::Committing(generation, _) => {
                let generation = *generation;
                self.end_trial(generation, Fault::Failed(format!("the workload {text}")), out);
                false
            }
            Phase::Idle => self.crashed_late(text, now, out),
            _ => false,
        }
    }

    /// Counts crashes of what was committed a short while ago; too many, and it goes back, once.
    fn crashed_late(&mut self, text: &str, now: Now, out: &mut Vec<Order>) -> bool {
        let limit = self.rules.rollback.crash_loop.crashes;
        let Some(fresh) = &mut self.fresh else { return false };
        if now.mono > fresh.until {
            self.fresh = None;
            return false;
        }
        fresh.crashes = fresh.crashes.saturating_add(1);
        if fresh.crashes < limit.max(1) {
            return false;
        }
        self.fresh = None;
        let Some(condemned) = self.memory.committed else { return false };
        let reason =
            cut(format!("it was committed, and then the workload crashed {limit} times: {text}"));
        out.push(Order::Say(format!("rolling back: {reason}")));
        let mut memory = self.memory.clone();
        let parts = memory.committed_as.take().unwrap_or_default();
        memory.remember_failure(condemned.digest, &reason, &parts.hash());
        // No ping-pong: what is gone back to has nothing behind it.
        memory.committed = memory.previous.take();
        memory.undo(&parts, &reason);
        // What was received since then is what the status names.
        let mut parts = parts;
        parts.config = parts.config.and(memory.received.clone());
        self.current = Some(Current { parts, ..Current::default() });
        self.condemn(memory, out);
        true
    }

    fn watch_commit(&mut self, until: Mono) {
        let back = self.memory.previous.is_some() && self.memory.committed_as.is_some();
        self.fresh = back.then_some(Fresh { until, crashes: 0 });
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

    /// Names the checks that fail while the workload runs, before a trial begins.
    pub fn sick(&mut self, checks: Vec<String>) {
        self.sick = checks;
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

    fn stage(&mut self, write: bool, out: &mut Vec<Order>) {
        self.phase = Phase::Staging;
        let committed = self.memory.committed.iter().filter(|_| !self.substituted);
        let committed = committed.map(|generation| generation.digest);
        let known =
            committed.chain(self.memory.failed.iter().map(|failed| failed.digest)).collect();
        let candidate = match &self.current {
            None => {
                Candidate { config: Source::Local, packages: None, base: self.memory.committed }
            }
            Some(current) => Candidate {
                config: match &current.objects {
                    Some(objects) => Source::Offer(objects.clone()),
                    None => Source::Keep,
                },
                packages: current.parts.packages.clone(),
                base: self.memory.committed,
            },
        };
        out.push(Order::Stage { candidate, known, write });
    }

    fn arm(&mut self, generation: Generation, number: u32, now: Now, out: &mut Vec<Order>) {
        self.trials.push_front(now.mono);
        self.trials.truncate(TRIALS_AN_HOUR);
        let parts = self.parts();
        let mut memory = Box::new(self.memory.clone());
        memory.trial = Some(Attempt { generation, parts: parts.clone(), number });
        let mut back = Box::new(self.memory.clone());
        let reason = "its trial failed; the disk was too full to write down why";
        back.trial = None;
        back.remember_failure(generation.digest, reason, &parts.hash());
        back.fails(&parts, reason);
        self.phase = Phase::Arming(generation, memory.clone());
        out.push(Order::Arm { memory, after_going_back: back });
    }

    fn activate(&mut self, generation: Generation, out: &mut Vec<Order>) {
        if let Some(current) = &mut self.current {
            current.objects = None; // it is on the disk
        }
        self.phase = Phase::Activating(generation);
        out.push(Order::Activate(Some(generation)));
    }

    fn commit(&mut self, generation: Generation, now: Now, out: &mut Vec<Order>) {
        let mut memory = self.memory.clone();
        memory.previous = memory.committed.filter(|_| self.current.is_some());
        memory.committed = Some(generation);
        memory.committed_as = self.current.as_ref().map(|current| current.parts.clone());
        memory.committed_at = now.wall;
        memory.trial = self.interrupted.as_ref().map(|(trial, _)| trial.clone());
        memory.failed.retain(|failed| failed.digest != generation.digest);
        if let Some(current) = &self.current {
            memory.succeeds(&current.parts);
        }
        let memory = Box::new(memory);
        self.phase = Phase::Committing(generation, memory.clone());
        out.push(Order::Remember(memory));
    }

    /// A trial ends without a commit: that is written down, and then the way back is taken.
    fn end_trial(&mut self, generation: Generation, fault: Fault, out: &mut Vec<Order>) {
        let parts = self.parts();
        let mut memory = self.memory.clone();
        memory.trial = None;
        let reason = match fault {
            Fault::Failed(reason) => {
                let reason = cut(reason);
                memory.remember_failure(generation.digest, &reason, &parts.hash());
                memory.fails(&parts, &reason);
                reason
            }
            // No outcome: it may be offered again.
            Fault::Superseded => SUPERSEDED.to_owned(),
        };
        out.push(Order::Say(format!("rolling back: {reason}")));
        self.condemn(memory, out);
    }

    fn condemn(&mut self, memory: Memory, out: &mut Vec<Order>) {
        let memory = Box::new(memory);
        self.phase = Phase::Condemning(memory.clone());
        out.push(Order::Remember(memory));
    }

    /// Nothing was touched, and what is given up has no outcome: it may be offered again.
    fn superseded(&mut self, out: &mut Vec<Order>) -> bool {
        self.write_down(self.memory.clone(), out)
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

/// The hash that an offered configuration is known by.
pub(super) fn known_by(offer: &AgentRemoteConfig) -> Bytes {
    let objects = offer.config.iter().flat_map(|config| &config.config_map);
    let objects: std::collections::BTreeMap<_, _> = objects.collect();
    let parts = objects
        .into_iter()
        .flat_map(|(name, object)| [name.as_bytes(), object.content_type.as_bytes(), &object.body]);
    called(&offer.config_hash, parts)
}
