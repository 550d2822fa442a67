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

use core::time::Duration;
use std::collections::VecDeque;

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentRemoteConfig, RemoteConfigStatus, RemoteConfigStatuses};

use super::cut;
use super::health::CheckResult;
use crate::clock::{Mono, Now, Wall};
use crate::settings::{RemoteConfig, Rollback};

/// Contents that failed and are remembered, newest first.
pub const MAX_FAILED: usize = 16;

/// Trials an hour, whoever asks for them: beyond, the newest offer waits.
pub const TRIALS_AN_HOUR: usize = 12;
const HOUR: Duration = Duration::from_secs(3600);
/// What the disk refused is tried again after so long.
pub const DISK_PAUSE: Duration = Duration::from_secs(60);

/// SHA-256 over the contents of a placed set.
pub type Digest = [u8; 32];

/// One complete set of config files under the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number: rises, never reused.
    pub number: u64,
    /// What is in it.
    pub digest: Digest,
    /// Whether an offer is part of it, or the local file alone.
    pub remote: bool,
}

/// Contents that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// What was in it.
    pub digest: Digest,
    /// Why it failed.
    pub reason: String,
    /// The hash that it was offered with.
    pub hash: Bytes,
}

/// A trial that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The candidate.
    pub generation: Generation,
    /// The hash that it was offered with.
    pub hash: Bytes,
    /// The how-many-eth trial of it this is; 1 is the first.
    pub number: u32,
}

/// What became of the last offer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing has been offered.
    #[default]
    Unset,
    /// It runs.
    Applied,
    /// It was refused or failed.
    Failed(String),
}

/// What is kept on disk about the life cycle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What runs by right.
    pub committed: Option<Generation>,
    /// What ran by right before it: where a late rollback leads.
    pub previous: Option<Generation>,
    /// When `committed` was.
    pub committed_at: Wall,
    /// The trial that is under way; found at the start, it was interrupted.
    pub trial: Option<Attempt>,
    /// The hash of the last offer whose outcome is known.
    pub received: Option<Bytes>,
    /// Its outcome.
    pub outcome: Outcome,
    /// Contents that failed, newest first, at most [`MAX_FAILED`].
    pub failed: VecDeque<Failed>,
}

impl Memory {
    fn failure(&self, digest: &Digest) -> Option<&Failed> {
        self.failed.iter().find(|failed| failed.digest == *digest)
    }

    fn remember_failure(&mut self, digest: Digest, reason: &str, hash: &Bytes) {
        self.failed.retain(|failed| failed.digest != digest);
        self.failed.push_front(Failed { digest, reason: reason.to_owned(), hash: hash.clone() });
        self.failed.truncate(MAX_FAILED);
    }
}

/// What the life cycle wants done. Each but [`Order::Say`] is answered by the method that it names.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Place the set of an offer ([`None`]: the local file alone) as a new generation, unless its contents are
    /// `known`. → [`Rollout::staged`]
    Stage {
        /// The offered objects.
        offer: Option<AgentConfigMap>,
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
    validates: bool,
}

impl Rules {
    /// Picks them from the settings.
    #[must_use]
    pub fn new(settings: &RemoteConfig) -> Self {
        Self {
            rollback: settings.rollback,
            min_interval: settings.min_interval,
            validates: !settings.validate.is_empty(),
        }
    }
}

/// The offer under way.
#[derive(Clone, Debug)]
struct Current {
    hash: Bytes,
    /// Kept until it is staged: what the disk refuses is tried again.
    offer: Option<AgentConfigMap>,
}

/// An offer that is not taken up yet.
#[derive(Clone, Debug)]
struct Waiting {
    hash: Bytes,
    offer: Option<AgentConfigMap>,
    /// Not before this.
    from: Mono,
    /// Why the disk refused it: what the status says. Else: APPLYING. It is no outcome, and not on record: after a
    /// restart the offer counts as new.
    refused: Option<String>,
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
    /// The trial found at the start: it is repeated when what is committed runs, not before this.
    interrupted: Option<(Attempt, Mono)>,
    /// When trials began, the last first; at most [`TRIALS_AN_HOUR`].
    trials: VecDeque<Mono>,
    /// Crashes since the commit, as long as they count; [`None`]: they do not.
    fresh: Option<Fresh>,
    /// The record could not be written; when it is tried again.
    unwritten: Option<Mono>,
    /// The way back could not be taken; when it is tried again.
    astray: Option<Mono>,
    /// Checks that failed before the trial, while the workload ran: they do not fail it.
    sick: Vec<String>,
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
            trials: VecDeque::new(),
            fresh: None,
            unwritten: None,
            astray: None,
            sick: Vec::new(),
        };
        let age = now.wall.0.checked_sub(rollout.memory.committed_at.0);
        let within = rules.rollback.crash_loop.within;
        if let Some(left) = age.and_then(|age| within.checked_sub(age)) {
            rollout.watch_commit(now.mono.after(left));
        }
        rollout
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
            Phase::Condemning(_) | Phase::Returning { .. } => "rolling back",
        }
    }

    /// RemoteConfigStatus as it stands.
    #[must_use]
    pub fn status(&self) -> RemoteConfigStatus {
        // opamp-spec L1395: the hash is that of the last offer received, also while it waits.
        if let Some(Waiting { hash, refused: Some(reason), .. }) = &self.waiting {
            return RemoteConfigStatus {
                last_remote_config_hash: hash.clone(),
                status: RemoteConfigStatuses::Failed.into(),
                error_message: reason.clone(),
            };
        }
        let waiting = self.waiting.as_ref().map(|waiting| &waiting.hash);
        let applying = waiting
            .or(self.current.as_ref().map(|current| &current.hash))
            .or(self.interrupted.as_ref().map(|(trial, _)| &trial.hash));
        if let Some(hash) = applying {
            return RemoteConfigStatus {
                last_remote_config_hash: hash.clone(),
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
            last_remote_config_hash: self.memory.received.clone().unwrap_or_default(),
            status: status.into(),
            error_message: error.to_owned(),
        }
    }

    /// The start of the agent: the local file is staged unless a remote configuration is committed. A trial that
    /// was interrupted is repeated when [`Rollout::workload_is_up`], or given up. True: the status changed.
    pub fn boot(&mut self, out: &mut Vec<Order>) {
        if let Some(trial) = self.memory.trial.take() {
            if trial.number < self.rules.rollback.attempts {
                self.interrupted = Some((trial, Mono::default()));
            } else {
                let reason =
                    format!("its trial was interrupted {} times, and is given up", trial.number);
                out.push(Order::Say(reason.clone()));
                self.memory.remember_failure(trial.generation.digest, &reason, &trial.hash);
                self.memory.received = Some(trial.hash);
                self.memory.outcome = Outcome::Failed(reason);
                self.unwritten = Some(Mono::default());
            }
        }
        if self.memory.committed.is_none_or(|committed| !committed.remote) {
            self.stage(None, true, out);
        }
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
        self.current = Some(Current { hash: trial.hash.clone(), offer: None });
        self.arm(trial.generation, trial.number.saturating_add(1), now, out);
    }

    /// An offer. True: the status changed.
    pub fn offered(&mut self, offer: AgentRemoteConfig, now: Now, out: &mut Vec<Order>) -> bool {
        let hash = &offer.config_hash;
        let newest = self.waiting.as_ref().map(|waiting| &waiting.hash);
        let newest = newest.or(self.current.as_ref().map(|current| &current.hash));
        let newest = newest.or(self.interrupted.as_ref().map(|(trial, _)| &trial.hash));
        if !hash.is_empty() && newest.or(self.memory.received.as_ref()) == Some(hash) {
            return false; // as last received: nothing, no report
        }
        self.waiting = Some(Waiting {
            // A copy: the offer's bytes are parts of the whole message, which they would keep in memory.
            hash: Bytes::copy_from_slice(hash),
            offer: offer.config,
            from: Mono::default(),
            refused: None,
        });
        self.interrupted = None;
        match &self.phase {
            Phase::Idle => self.take_up(now, out),
            Phase::Trial(generation, _) => {
                let generation = *generation;
                self.end_trial(generation, Fault::Superseded, out);
            }
            _ => {}
        }
        true
    }

    /// Begins with the offer that waits, if its time has come.
    fn take_up(&mut self, now: Now, out: &mut Vec<Order>) {
        if self.waiting.as_ref().is_none_or(|waiting| waiting.from > now.mono) {
            return;
        }
        let Some(waiting) = self.waiting.take() else { return };
        let write = self.next_trial().is_none_or(|from| from <= now.mono);
        let offer = waiting.offer.unwrap_or_default();
        self.current = Some(Current { hash: waiting.hash, offer: Some(offer.clone()) });
        self.stage(Some(offer), write, out);
    }

    /// When the next trial may begin: `min_interval` after the last, [`TRIALS_AN_HOUR`] at most.
    fn next_trial(&self) -> Option<Mono> {
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
            _ if self.waiting.is_some() => self.superseded(out),
            Staged::New(generation) if self.rules.validates => {
                self.phase = Phase::Validating(generation);
                out.push(Order::Validate(generation));
                false
            }
            Staged::New(generation) => {
                self.arm(generation, 1, now, out);
                false
            }
            Staged::Known(digest) if self.memory.committed.is_some_and(|c| c.digest == digest) => {
                self.settle(Outcome::Applied, out)
            }
            Staged::Known(digest) => {
                let reason = self.memory.failure(&digest).map_or_else(
                    || "these contents failed before".to_owned(),
                    |failed| failed.reason.clone(),
                );
                self.settle(Outcome::Failed(reason), out)
            }
            Staged::Deferred => {
                let from = self.next_trial().unwrap_or(now.mono);
                self.put_off(from, None);
                false
            }
            Staged::Nothing => self.settle(Outcome::Failed("empty config".to_owned()), out),
            Staged::Refused(reason) => self.settle(Outcome::Failed(cut(reason)), out),
            Staged::Failed(reason) => self.disk_refused(reason, now),
        }
    }

    /// The local file at the start: nothing is reported, nothing stands in its way.
    fn staged_local(&mut self, staged: Staged, out: &mut Vec<Order>) -> bool {
        self.phase = Phase::Idle;
        match staged {
            Staged::New(generation) => self.activate(generation, out),
            Staged::Refused(reason) | Staged::Failed(reason) => {
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
        if let Some(Current { hash, offer }) = self.current.take() {
            self.waiting = Some(Waiting { hash, offer, from, refused });
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
            _ if self.waiting.is_some() => self.superseded(out),
            Ok(()) => {
                self.arm(generation, 1, now, out);
                false
            }
            Err(reason) => {
                let reason = cut(reason);
                self.memory.remember_failure(generation.digest, &reason, &self.hash());
                self.settle(Outcome::Failed(reason), out)
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
                Err(_) if self.waiting.is_some() => self.superseded(out),
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
                if result.is_err() && self.current.is_none() {
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
                    _ if self.waiting.is_some() => {
                        self.end_trial(generation, Fault::Superseded, out);
                    }
                    Ok(()) => self.begin_trial(generation, now),
                    Err(reason) => self.end_trial(generation, Fault::Failed(reason), out),
                }
                false
            }
            Phase::Returning { memory, applying: true } => {
                if let Err(error) = result {
                    out.push(Order::Say(format!("the workload after going back: {error}")));
                }
                self.memory = *memory;
                self.current = None;
                self.astray = self.astray.map(|_| now.mono.after(DISK_PAUSE));
                true
            }
            other => {
                self.phase = other;
                false
            }
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

    /// Whether an apply is awaited: the workload's next start or failure to start answers it.
    #[must_use]
    pub const fn applies(&self) -> bool {
        matches!(self.phase, Phase::Applying(_) | Phase::Returning { applying: true, .. })
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

    /// The workload died by itself.
    pub fn crashed(&mut self, text: &str, now: Now, out: &mut Vec<Order>) {
        match &self.phase {
            // The local file alone has nothing to go back to: it is started again.
            Phase::Committing(..) if self.current.is_none() => {}
            Phase::Trial(generation, _) | Phase::Committing(generation, _) => {
                let generation = *generation;
                self.end_trial(generation, Fault::Failed(format!("the workload {text}")), out);
            }
            Phase::Idle => self.crashed_late(text, now, out),
            _ => {}
        }
    }

    /// Counts crashes of what was committed a short while ago; too many, and it goes back, once.
    fn crashed_late(&mut self, text: &str, now: Now, out: &mut Vec<Order>) {
        let limit = self.rules.rollback.crash_loop.crashes;
        let Some(fresh) = &mut self.fresh else { return };
        if now.mono > fresh.until {
            self.fresh = None;
            return;
        }
        fresh.crashes = fresh.crashes.saturating_add(1);
        if fresh.crashes < limit.max(1) {
            return;
        }
        self.fresh = None;
        let Some(condemned) = self.memory.committed else { return };
        let reason =
            cut(format!("it was committed, and then the workload crashed {limit} times: {text}"));
        out.push(Order::Say(format!("rolling back: {reason}")));
        let hash = self.memory.received.clone().unwrap_or_default();
        let mut memory = self.memory.clone();
        memory.remember_failure(condemned.digest, &reason, &hash);
        memory.committed = memory.previous.take();
        memory.outcome = Outcome::Failed(reason);
        // No ping-pong: what is gone back to has nothing behind it.
        self.current = Some(Current { hash, offer: None });
        self.condemn(memory, out);
    }

    fn watch_commit(&mut self, until: Mono) {
        let back = self.memory.previous.is_some()
            && self.memory.committed.is_some_and(|generation| generation.remote);
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
                if let (Err(reason), true) = (result, generation.remote) {
                    let text = format!("the commit could not be written: {reason}");
                    self.end_trial(generation, Fault::Failed(text), out);
                    return false;
                }
                // The local file runs all the same.
                self.astray = None;
                self.memory = *memory;
                self.current = None;
                self.watch_commit(now.mono.after(self.rules.rollback.crash_loop.within));
                true
            }
            Phase::Settling(memory) => {
                self.memory = *memory;
                self.current = None;
                true
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
                let waiting = self.waiting.as_ref().map(|waiting| waiting.from);
                let interrupted = self.interrupted.as_ref().map(|(_, from)| *from);
                let interrupted = interrupted.filter(|from| *from > Mono::default());
                [waiting, self.unwritten, self.astray, interrupted].into_iter().flatten().min()
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

    /// Forgets what failed, so that the next offer of it is tried: all, or what was offered with this hash. False:
    /// nothing was remembered of it.
    pub fn forget(&mut self, hash: Option<&[u8]>, out: &mut Vec<Order>) -> bool {
        let before = self.memory.failed.len();
        self.memory.failed.retain(|failed| hash.is_some_and(|hash| failed.hash != hash));
        let told = self.memory.received.as_deref();
        let failed = matches!(self.memory.outcome, Outcome::Failed(_))
            && hash.is_none_or(|hash| told == Some(hash));
        if failed {
            // The same hash counts as new when it comes again.
            self.memory.received = None;
            self.memory.outcome = Outcome::Unset;
        }
        let changed = failed || self.memory.failed.len() != before;
        if changed && self.is_idle() {
            self.phase = Phase::Settling(Box::new(self.memory.clone()));
            self.current = None;
            out.push(Order::Remember(Box::new(self.memory.clone())));
        }
        changed
    }

    /// Whether what is under way came from the disk, not from the server.
    fn repeats(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.offer.is_none())
    }

    fn hash(&self) -> Bytes {
        self.current.as_ref().map(|current| current.hash.clone()).unwrap_or_default()
    }

    fn stage(&mut self, offer: Option<AgentConfigMap>, write: bool, out: &mut Vec<Order>) {
        self.phase = Phase::Staging;
        let committed = self.memory.committed.iter().map(|generation| generation.digest);
        let known =
            committed.chain(self.memory.failed.iter().map(|failed| failed.digest)).collect();
        out.push(Order::Stage { offer, known, write });
    }

    fn arm(&mut self, generation: Generation, number: u32, now: Now, out: &mut Vec<Order>) {
        self.trials.push_front(now.mono);
        self.trials.truncate(TRIALS_AN_HOUR);
        let hash = self.hash();
        let mut memory = Box::new(self.memory.clone());
        memory.trial = Some(Attempt { generation, hash: hash.clone(), number });
        let mut back = Box::new(self.memory.clone());
        let reason = "its trial failed; the disk was too full to write down why";
        back.trial = None;
        back.remember_failure(generation.digest, reason, &hash);
        back.received = Some(hash);
        back.outcome = Outcome::Failed(reason.to_owned());
        self.phase = Phase::Arming(generation, memory.clone());
        out.push(Order::Arm { memory, after_going_back: back });
    }

    fn activate(&mut self, generation: Generation, out: &mut Vec<Order>) {
        if let Some(current) = &mut self.current {
            current.offer = None; // it is on the disk
        }
        self.phase = Phase::Activating(generation);
        out.push(Order::Activate(Some(generation)));
    }

    fn commit(&mut self, generation: Generation, now: Now, out: &mut Vec<Order>) {
        let mut memory = self.memory.clone();
        memory.previous = memory.committed.filter(|_| generation.remote);
        memory.committed = Some(generation);
        memory.committed_at = now.wall;
        memory.trial = None;
        memory.failed.retain(|failed| failed.digest != generation.digest);
        if let Some(current) = &self.current {
            memory.received = Some(current.hash.clone());
            memory.outcome = Outcome::Applied;
        }
        let memory = Box::new(memory);
        self.phase = Phase::Committing(generation, memory.clone());
        out.push(Order::Remember(memory));
    }

    /// A trial ends without a commit: that is written down, and then the way back is taken.
    fn end_trial(&mut self, generation: Generation, fault: Fault, out: &mut Vec<Order>) {
        let hash = self.hash();
        let mut memory = self.memory.clone();
        memory.trial = None;
        let reason = match fault {
            Fault::Failed(reason) => {
                let reason = cut(reason);
                memory.remember_failure(generation.digest, &reason, &hash);
                memory.received = Some(hash);
                memory.outcome = Outcome::Failed(reason.clone());
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
    fn settle(&mut self, outcome: Outcome, out: &mut Vec<Order>) -> bool {
        let mut memory = self.memory.clone();
        memory.received = Some(self.hash());
        memory.outcome = outcome;
        self.write_down(memory, out)
    }

    fn write_down(&mut self, memory: Memory, out: &mut Vec<Order>) -> bool {
        let memory = Box::new(memory);
        self.phase = Phase::Settling(memory.clone());
        out.push(Order::Remember(memory));
        false
    }

    /// Whether nothing is under way.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }
}

const SUPERSEDED: &str = "a newer offer came before it was committed";
