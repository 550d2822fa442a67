//! A trial: armed, activated, judged, and committed or taken back.

use std::path::PathBuf;

use super::super::cut;
use super::super::health::{CheckResult, Pass};
use super::{
    Attempt, Current, DISK_PAUSE, Fault, Fresh, Gate, Generation, Order, Outcome, Phase, Rollout,
    SUPERSEDED, TRIALS_AN_HOUR,
};
use crate::clock::{Mono, Now};

impl Rollout {
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

    pub(super) fn begin_trial(&mut self, generation: Generation, now: Now) {
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
    pub(super) fn crashed_late(&mut self, text: &str, now: Now, out: &mut Vec<Order>) -> bool {
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

    pub(super) fn watch_commit(&mut self, until: Mono) {
        let back = self.memory.previous.is_some() && self.memory.committed_as.is_some();
        self.fresh = back.then_some(Fresh { until, crashes: 0 });
    }

    pub(super) fn arm(
        &mut self,
        generation: Generation,
        number: u32,
        now: Now,
        out: &mut Vec<Order>,
    ) {
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

    pub(super) fn activate(&mut self, generation: Generation, out: &mut Vec<Order>) {
        if let Some(current) = &mut self.current {
            current.objects = None; // it is on the disk
        }
        self.phase = Phase::Activating(generation);
        out.push(Order::Activate(Some(generation)));
    }

    pub(super) fn commit(&mut self, generation: Generation, now: Now, out: &mut Vec<Order>) {
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
    pub(super) fn end_trial(&mut self, generation: Generation, fault: Fault, out: &mut Vec<Order>) {
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

    /// Names the checks that fail while the workload runs, before a trial begins.
    pub fn sick(&mut self, checks: Vec<String>) {
        self.sick = checks;
    }
}
