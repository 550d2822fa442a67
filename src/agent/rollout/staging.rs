//! A candidate on its way to the disk, and a disk that refuses it.

use super::super::cut;
use super::{
    Candidate, Current, DISK_PAUSE, Order, Outcome, Phase, Rollout, Source, Staged, Waiting,
};
use crate::clock::{Mono, Now};

impl Rollout {
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
    pub(super) fn staged_local(&mut self, staged: Staged, out: &mut Vec<Order>) -> bool {
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
    pub(super) fn disk_refused(&mut self, reason: String, now: Now) -> bool {
        self.put_off(now.mono.after(DISK_PAUSE), Some(cut(reason)));
        true
    }

    pub(super) fn put_off(&mut self, from: Mono, refused: Option<String>) {
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

    pub(super) fn stage(&mut self, write: bool, out: &mut Vec<Order>) {
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
}
