//! The one life cycle: candidate → trial → committed, or rolled back.
//!
//! ```text
//!  offer ──▶ Staging ──▶ Validating ──▶ Activating ──▶ Applying ──▶ Trial ──▶ Committing ──▶ Idle: APPLIED
//!               │             │              │             │          │           │
//!               │ refused     │ refused      └─────────────┴────┬─────┴───────────┘
//!               ▼             ▼                                 ▼
//!           Idle: FAILED  Idle: FAILED                     RollingBack ──▶ Idle: FAILED
//! ```
//!
//! A candidate is staged beside what runs and validated before anything is touched. From `Activating` on the way
//! back is the committed generation. The states are in memory; what must outlive a power cut is [`Memory`].

use std::collections::VecDeque;

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentRemoteConfig, RemoteConfigStatus, RemoteConfigStatuses};

use super::health::CheckResult;
use crate::clock::{Mono, Now};
use crate::settings::Rollback;

/// Contents that failed and are remembered, newest first.
pub const MAX_FAILED: usize = 16;
/// Bytes of a reason that is reported and kept.
pub const MAX_REASON: usize = 2048;

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

    fn remember_failure(&mut self, digest: Digest, reason: &str) {
        self.failed.retain(|failed| failed.digest != digest);
        self.failed.push_front(Failed { digest, reason: reason.to_owned() });
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
    },
    /// Dry run. → [`Rollout::validated`]
    Validate(Generation),
    /// Make it the running generation; [`None`]: none. → [`Rollout::activated`]
    Activate(Option<Generation>),
    /// Make the workload read it. → [`Rollout::applied`]
    Apply,
    /// Run the checks of the gate. → [`Rollout::checked`]
    Check,
    /// Write this down. → [`Rollout::remembered`]
    Remember(Memory),
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
    /// Its contents are refused: why.
    Refused(String),
    /// It could not be written: why.
    Failed(String),
    /// No offer, and no local file is named: there is nothing to place.
    Nothing,
}

#[derive(Clone, Debug)]
enum Phase {
    Idle,
    Staging,
    Validating(Generation),
    Activating(Generation),
    Applying(Generation),
    Trial(Generation, Gate),
    /// With what becomes [`Memory`] when it is durable.
    Committing(Generation, Box<Memory>),
    RollingBack {
        digest: Digest,
        reason: String,
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

/// The life cycle of the remote configuration.
#[derive(Clone, Debug)]
pub struct Rollout {
    rules: Rollback,
    memory: Memory,
    phase: Phase,
    /// The offer under way: its hash, as received.
    current: Option<Bytes>,
    /// The newest offer that came meanwhile.
    waiting: Option<AgentRemoteConfig>,
    /// Checks that failed before the trial, while the workload ran: they do not fail it.
    sick: Vec<String>,
}

impl Rollout {
    /// Goes on from what is on disk.
    #[must_use]
    pub const fn new(rules: Rollback, memory: Memory) -> Self {
        Self { rules, memory, phase: Phase::Idle, current: None, waiting: None, sick: Vec::new() }
    }

    /// Goes on by other rules.
    pub const fn govern(&mut self, rules: Rollback) {
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
            Phase::Idle => "idle",
            Phase::Staging => "staging",
            Phase::Validating(_) => "validating",
            Phase::Activating(_) => "activating",
            Phase::Applying(_) => "applying",
            Phase::Trial(..) => "trial",
            Phase::Committing(..) => "committing",
            Phase::RollingBack { .. } => "rolling back",
        }
    }

    /// RemoteConfigStatus as it stands.
    #[must_use]
    pub fn status(&self) -> RemoteConfigStatus {
        let newest =
            self.waiting.as_ref().map(|offer| &offer.config_hash).or(self.current.as_ref());
        if let Some(hash) = newest {
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

    /// The start of the agent: the local file is staged unless a remote configuration is committed.
    pub fn boot(&mut self, out: &mut Vec<Order>) {
        if self.memory.committed.is_none_or(|committed| !committed.remote) {
            self.stage(None, out);
        }
    }

    /// An offer. `sick` names the checks that fail now although the workload runs. True: the status changed.
    pub fn offered(&mut self, offer: AgentRemoteConfig, out: &mut Vec<Order>) -> bool {
        let hash = &offer.config_hash;
        let newest =
            self.waiting.as_ref().map(|offer| &offer.config_hash).or(self.current.as_ref());
        let known = newest.or(self.memory.received.as_ref());
        if !hash.is_empty() && known == Some(hash) {
            return false; // as last received: nothing, no report
        }
        if !matches!(self.phase, Phase::Idle) {
            self.waiting = Some(offer);
            return true;
        }
        self.current = Some(offer.config_hash);
        self.stage(Some(offer.config.unwrap_or_default()), out);
        true
    }

    /// Whether the staging under way is that of the local file, at the start.
    #[must_use]
    pub const fn stages_local(&self) -> bool {
        matches!(self.phase, Phase::Staging) && self.current.is_none()
    }

    /// The answer to [`Order::Stage`]. True: the status changed.
    pub fn staged(&mut self, staged: Staged, validates: bool, out: &mut Vec<Order>) -> bool {
        if !matches!(self.phase, Phase::Staging) {
            return false;
        }
        match staged {
            Staged::New(generation) if validates && self.current.is_some() => {
                self.phase = Phase::Validating(generation);
                out.push(Order::Validate(generation));
                false
            }
            Staged::New(generation) => {
                self.activate(generation, out);
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
            Staged::Refused(reason) | Staged::Failed(reason) => {
                self.settle(Outcome::Failed(shorten(reason, MAX_REASON)), out)
            }
            Staged::Nothing => self.settle(Outcome::Unset, out),
        }
    }

    /// The answer to [`Order::Validate`].
    pub fn validated(&mut self, result: Result<(), String>, out: &mut Vec<Order>) -> bool {
        let Phase::Validating(generation) = self.phase else { return false };
        match result {
            Ok(()) => {
                self.activate(generation, out);
                false
            }
            Err(reason) => {
                let reason = shorten(reason, MAX_REASON);
                self.memory.remember_failure(generation.digest, &reason);
                self.settle(Outcome::Failed(reason), out)
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
                    false
                }
                // Nothing was swapped, or it is not known whether: swap back, which is harmless.
                Err(reason) => self.roll_back(generation.digest, reason, out),
            },
            Phase::RollingBack { digest, reason, applying: false } => {
                if let Err(error) = result {
                    out.push(Order::Say(format!(
                        "going back to the committed generation failed: {error}"
                    )));
                }
                self.phase = Phase::RollingBack { digest, reason, applying: true };
                out.push(Order::Apply);
                false
            }
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// The answer to [`Order::Apply`]: the workload was started, reloaded, or told; or not.
    pub fn applied(&mut self, result: Result<(), String>, now: Now, out: &mut Vec<Order>) -> bool {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Applying(generation) => match result {
                // The local file alone at the start is the last resort: there is nothing to go back to.
                Ok(()) if self.current.is_none() => {
                    self.commit(generation, out);
                    false
                }
                Err(reason) if self.current.is_none() => {
                    out.push(Order::Say(format!("the local configuration: {reason}")));
                    self.commit(generation, out);
                    false
                }
                Ok(()) => {
                    let gate = Gate {
                        ends: now.mono.after(self.rules.window),
                        next: now.mono.after(self.rules.interval),
                        checking: false,
                        in_a_row: 0,
                        passed: Vec::new(),
                        last_failure: None,
                    };
                    self.phase = Phase::Trial(generation, gate);
                    false
                }
                Err(reason) => self.roll_back(generation.digest, reason, out),
            },
            Phase::RollingBack { digest, reason, applying: true } => {
                if let Err(error) = result {
                    out.push(Order::Say(format!("the workload after going back: {error}")));
                }
                // The local file is tried again at the next start, whatever kept it from running.
                if self.current.is_some() {
                    self.memory.remember_failure(digest, &reason);
                }
                self.settle(Outcome::Failed(reason), out)
            }
            other => {
                self.phase = other;
                false
            }
        }
    }

    /// Whether an apply is awaited: the workload's next start or failure to start answers it.
    #[must_use]
    pub const fn applies(&self) -> bool {
        matches!(self.phase, Phase::Applying(_) | Phase::RollingBack { applying: true, .. })
    }

    /// Whether the apply that is awaited is that of the way back.
    #[must_use]
    pub const fn goes_back(&self) -> bool {
        matches!(self.phase, Phase::RollingBack { .. })
    }

    /// The answer to [`Order::Check`].
    pub fn checked(&mut self, results: &[CheckResult], now: Now, out: &mut Vec<Order>) -> bool {
        let Phase::Trial(generation, gate) = &mut self.phase else { return false };
        let generation = *generation;
        if !core::mem::take(&mut gate.checking) {
            return false;
        }
        gate.next = now.mono.after(self.rules.interval);
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
                        return self.roll_back(generation.digest, text, out);
                    }
                    failure.get_or_insert(text);
                }
            }
        }
        gate.in_a_row = if failure.is_none() { gate.in_a_row.saturating_add(1) } else { 0 };
        gate.last_failure = failure;
        if gate.in_a_row >= self.rules.successes {
            self.commit(generation, out);
        }
        false
    }

    /// The checks could not be judged, since no process ran: they are asked for again.
    pub fn unchecked(&mut self, now: Now) {
        if let Phase::Trial(_, gate) = &mut self.phase
            && core::mem::take(&mut gate.checking)
        {
            gate.next = now.mono.after(self.rules.interval);
            gate.in_a_row = 0;
        }
    }

    /// The workload died by itself. True: the status changed.
    pub fn crashed(&mut self, text: &str, out: &mut Vec<Order>) -> bool {
        match &self.phase {
            // The local file alone has nothing to go back to: it is started again.
            Phase::Committing(..) if self.current.is_none() => false,
            Phase::Trial(generation, _) | Phase::Committing(generation, _) => {
                let digest = generation.digest;
                self.roll_back(digest, format!("the workload {text}"), out)
            }
            _ => false,
        }
    }

    /// The answer to [`Order::Remember`]. True: the status changed.
    pub fn remembered(&mut self, result: Result<(), String>, out: &mut Vec<Order>) -> bool {
        match core::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Committing(generation, memory) => {
                match result {
                    Err(reason) if generation.remote => {
                        let text = format!("the commit could not be written: {reason}");
                        return self.roll_back(generation.digest, text, out);
                    }
                    // The local file runs all the same.
                    Err(reason) => out.push(unwritten(&reason)),
                    Ok(()) => self.memory = *memory,
                }
                self.current = None;
                self.go_on(out);
                true
            }
            other => {
                self.phase = other;
                if let Err(reason) = result {
                    out.push(unwritten(&reason));
                }
                false
            }
        }
    }

    /// When [`Rollout::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        match &self.phase {
            Phase::Trial(_, gate) if gate.checking => Some(gate.ends),
            Phase::Trial(_, gate) => Some(gate.next.min(gate.ends)),
            _ => None,
        }
    }

    /// Starts the next round of checks, or ends a trial whose window is over.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Order>) -> bool {
        let Phase::Trial(generation, gate) = &mut self.phase else { return false };
        if gate.ends <= now.mono {
            let digest = generation.digest;
            let reason =
                gate.last_failure.clone().unwrap_or_else(|| "its checks did not finish".to_owned());
            let text = format!("not healthy within {:?}: {reason}", self.rules.window);
            return self.roll_back(digest, text, out);
        }
        if gate.next <= now.mono && !gate.checking {
            gate.checking = true;
            out.push(Order::Check);
        }
        false
    }

    /// Names the checks that fail while the workload runs, before a trial begins.
    pub fn sick(&mut self, checks: Vec<String>) {
        self.sick = checks;
    }

    fn stage(&mut self, offer: Option<AgentConfigMap>, out: &mut Vec<Order>) {
        self.phase = Phase::Staging;
        let committed = self.memory.committed.iter().map(|generation| generation.digest);
        let known =
            committed.chain(self.memory.failed.iter().map(|failed| failed.digest)).collect();
        out.push(Order::Stage { offer, known });
    }

    fn activate(&mut self, generation: Generation, out: &mut Vec<Order>) {
        self.phase = Phase::Activating(generation);
        out.push(Order::Activate(Some(generation)));
    }

    fn commit(&mut self, generation: Generation, out: &mut Vec<Order>) {
        let mut memory = self.memory.clone();
        memory.committed = Some(generation);
        memory.failed.retain(|failed| failed.digest != generation.digest);
        if let Some(hash) = &self.current {
            memory.received = Some(hash.clone());
            memory.outcome = Outcome::Applied;
        }
        self.phase = Phase::Committing(generation, Box::new(memory.clone()));
        out.push(Order::Remember(memory));
    }

    fn roll_back(&mut self, digest: Digest, reason: String, out: &mut Vec<Order>) -> bool {
        let reason = shorten(reason, MAX_REASON);
        out.push(Order::Say(format!("rolling back: {reason}")));
        self.phase = Phase::RollingBack { digest, reason, applying: false };
        out.push(Order::Activate(self.memory.committed));
        false
    }

    /// An offer has its outcome.
    fn settle(&mut self, outcome: Outcome, out: &mut Vec<Order>) -> bool {
        self.phase = Phase::Idle;
        let Some(hash) = self.current.take() else {
            // The local file at the start: known (it runs already) or not to be had.
            if let Outcome::Failed(reason) = outcome {
                out.push(Order::Say(format!("no local configuration is in force: {reason}")));
            }
            self.go_on(out);
            return true;
        };
        self.memory.received = Some(hash);
        self.memory.outcome = outcome;
        out.push(Order::Remember(self.memory.clone()));
        self.go_on(out);
        true
    }

    /// Takes up the newest offer that came meanwhile.
    fn go_on(&mut self, out: &mut Vec<Order>) {
        if let Some(offer) = self.waiting.take() {
            self.offered(offer, out);
        }
    }

    /// Whether the workload is what is committed and stays so for now: a restart of it disturbs nothing.
    #[must_use]
    pub const fn leaves_workload_alone(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Staging | Phase::Validating(_))
    }

    /// Whether the local file at the start has been dealt with, or a remote configuration runs.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }
}

fn unwritten(reason: &str) -> Order {
    Order::Say(format!("the record could not be written: {reason}"))
}

/// Cuts a reason to its bound, at a character.
pub(super) fn shorten(mut reason: String, most: usize) -> String {
    if reason.len() > most {
        let mut end = most;
        while !reason.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        reason.truncate(end);
        reason.push('…');
    }
    reason
}
