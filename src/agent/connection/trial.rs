//! A trial: announced, tried, and judged by what the session learns on the new way and on the old.

use core::time::Duration;

use super::memory::Memory;
use super::{Connections, DISK_PAUSE, KEPT, LOOK_BACK, NOTED_AFTER, Order, Phase, TRIAL, Way, Why};
use crate::agent::cut;
use crate::agent::rollout::{self, Outcome};
use crate::agent::session::{LinkError, LinkErrorKind, News, Tone};
use crate::clock::{self, Now};

impl Connections {
    /// The old connection has heard what there was to hear, or there is none.
    pub fn announced(&mut self, out: &mut Vec<Order>) {
        if matches!(self.phase, Phase::Announcing { .. }) {
            self.attempt(false, true, out);
        }
    }

    /// Whether something is to be told before the connection is left.
    #[must_use]
    pub const fn announces(&self) -> bool {
        matches!(self.phase, Phase::Announcing { .. })
    }

    /// An attempt to connect begins.
    pub fn connecting(&mut self, now: Now) {
        if let Phase::Trying { since, .. } = &mut self.phase {
            since.get_or_insert(now.mono);
        }
    }

    /// What the session has learnt.
    pub fn news(&mut self, news: &News, now: Now, out: &mut Vec<Order>) {
        match news {
            News::Proven => self.answered(now, out),
            News::Failed(error) => self.failed(error, now, out),
            News::RequestRefused(_) => {}
        }
    }

    fn answered(&mut self, now: Now, out: &mut Vec<Order>) {
        if self.is_fallback() {
            // It may have been the network all the time.
            self.look_back.get_or_insert(now.mono.after(LOOK_BACK));
        }
        if self.way == Way::Committed {
            self.untaken = None;
            self.taken = true;
        }
        match &self.phase {
            Phase::Trying { .. } => {
                let Some(trial) = self.memory.trial.clone() else { return };
                let mut next = self.memory.clone();
                next.trial = None;
                next.committed = Some(trial.generation);
                next.received = Some(trial.hash);
                next.outcome = Outcome::Applied;
                next.refused_since = None;
                self.write(Why::Commit, next, out);
            }
            Phase::Returned { failed_too: true, .. } => self.attempt(false, true, out),
            Phase::Returned { reason, .. } => {
                let reason = reason.clone();
                self.condemn(reason, out);
            }
            Phase::Idle if self.way == Way::Committed && self.memory.refused_since.is_some() => {
                let next = Memory { refused_since: None, ..self.memory.clone() };
                self.write(Why::Note, next, out);
            }
            _ => {}
        }
    }

    fn failed(&mut self, error: &LinkError, now: Now, out: &mut Vec<Order>) {
        self.count_refusal(now, out);
        if matches!(self.phase, Phase::Writing { why: Why::Commit, again: Some(_), .. }) {
            // It worked, but a commit that cannot be written binds nobody: the trial goes on.
            self.phase = Phase::Trying { since: Some(now.mono), error: None, in_turn: false };
        }
        match &mut self.phase {
            Phase::Trying { since, error: last, in_turn } => {
                let over = since.is_none_or(|since| now.mono.since(since) >= TRIAL);
                if *in_turn || over || error.kind != LinkErrorKind::Failed {
                    let (in_turn, reason) = (*in_turn, error.text.clone());
                    // A server that asks for time says nothing about the candidate.
                    let throttled = matches!(error.kind, LinkErrorKind::Throttled(_));
                    self.go_back(reason, in_turn || throttled, !in_turn, out);
                } else {
                    *last = Some(error.text.clone());
                }
            }
            Phase::Returned { failed_too, reason } => {
                *failed_too = true;
                let reason = reason.clone();
                if self.is_over(now) {
                    let hours = KEPT.as_secs() / 3600;
                    let text = format!(
                        "no server answered for {hours} h, with it or without it: {reason}"
                    );
                    return self.condemn(text, out);
                }
                if self.falls_back(now) {
                    self.old = match self.old {
                        Way::Own if self.memory.committed.is_some() => Way::Committed,
                        _ => Way::Own,
                    };
                }
                self.try_in_turn(out);
            }
            // A disk that refuses must not keep the agent from a way that works.
            Phase::Idle | Phase::Writing { again: Some(_), .. } => {
                self.give_up_beat(now);
                match self.way {
                    Way::Committed if self.falls_back(now) => self.go(Way::Own, false, out),
                    Way::Own if self.memory.committed.is_some() => {
                        self.go(Way::Committed, false, out);
                    }
                    _ => {}
                }
                self.old = self.way;
            }
            _ => {}
        }
    }

    /// A new interval that cannot be kept is not worth more than the connection.
    fn give_up_beat(&mut self, now: Now) {
        if let Phase::Writing { why: Why::Beat, next, .. } = &self.phase {
            let hash = next.received.clone().unwrap_or_default();
            let reason = "the state directory did not take it".to_owned();
            self.unplaced = Some((hash, reason, now.mono.after(DISK_PAUSE)));
            self.candidate = None;
            self.phase = Phase::Idle;
        }
    }

    /// Whether a candidate that nobody could judge has been kept long enough.
    fn is_over(&self, now: Now) -> bool {
        let here = self.began.map_or(Duration::ZERO, |began| now.mono.since(began));
        let since = self.memory.trial.as_ref().map_or(0, |trial| trial.since);
        let all = clock::trusted_wall(now.wall, 0).0.as_secs().saturating_sub(since);
        // The clock alone is no witness: it may have jumped.
        here >= KEPT || (all >= KEPT.as_secs() && here >= NOTED_AFTER)
    }

    /// The candidate is the way.
    pub(super) fn attempt(&mut self, in_turn: bool, at_once: bool, out: &mut Vec<Order>) {
        self.phase = Phase::Trying { since: None, error: None, in_turn };
        self.go(Way::Candidate, at_once, out);
    }

    /// Neither way answers: one attempt each from now on. That the agent was cut off before, and how often, tells nothing
    /// about the candidate then.
    fn try_in_turn(&mut self, out: &mut Vec<Order>) {
        let mut next = self.memory.clone();
        match &mut next.trial {
            Some(trial) if trial.number > 1 => {
                trial.number = 1;
                self.write(Why::Recount, next, out);
            }
            _ => self.attempt(true, false, out),
        }
    }

    pub(super) fn go_back(
        &mut self,
        reason: String,
        failed_too: bool,
        at_once: bool,
        out: &mut Vec<Order>,
    ) {
        let text = format!("the offered connection does not work, the old one is tried: {reason}");
        out.push(Order::Say(Tone::Warning, text));
        self.phase = Phase::Returned { reason: cut(reason), failed_too };
        self.go(self.old, at_once, out);
    }

    pub(super) fn condemn(&mut self, reason: String, out: &mut Vec<Order>) {
        self.conclude(reason, true, out);
    }

    /// It has failed; `remembered`: its contents are not tried again.
    pub(super) fn conclude(&mut self, reason: String, remembered: bool, out: &mut Vec<Order>) {
        let Some(trial) = self.memory.trial.clone() else { return };
        out.push(Order::Say(
            Tone::Warning,
            format!("offered connection settings failed: {reason}"),
        ));
        let mut next = self.memory.clone();
        next.trial = None;
        if remembered {
            let digest = trial.generation.digest;
            rollout::remember_failure_in(&mut next.failed, digest, &reason, &trial.hash);
        }
        next.received = Some(trial.hash);
        next.outcome = Outcome::Failed(reason);
        self.write(Why::Condemn, next, out);
    }
}
