//! The connection that offers make: the life cycle of `rollout`, for what leads to the server.
//!
//! ```text
//! offer ─▶ Staging ─▶ Writing(Arm) ─▶ Announcing ─▶ Trying ─▶ Writing(Commit) ─▶ Idle: APPLIED
//!             │ refused                                │  ▲
//!             ▼                                        ▼  │ it had failed too
//!        Writing(Note) ─▶ Idle: FAILED              Returned ─▶ Writing(Condemn) ─▶ Idle: FAILED
//! ```
//!
//! What proves a candidate is a server's answer there, and what condemns it is a server's answer on the old way after
//! the new one failed: as long as neither answers, nothing is judged, and both are tried in turn.

pub mod enrol;
mod fallback;
pub mod memory;
pub mod offer;
pub mod overlay;
mod shown;
mod taking;
#[cfg(test)]
mod tests;
mod trial;
mod types;

use core::time::Duration;

use bytes::Bytes;
use chiton_proto::ConnectionSettingsOffers;

use self::memory::{Attempt, Memory};
use self::overlay::Overlay;
pub use self::types::{Found, Order, Rules, Way};
use super::rollout::Outcome;
use super::session::Tone;
use crate::clock::{Mono, Now};
use crate::settings::Server;

/// Below the state directory: the generations and the record.
pub const DIRECTORY: &str = "connection";
/// A candidate has so long to be answered.
pub const TRIAL: Duration = Duration::from_secs(20);
/// The report that it is tried may take so long before the connection is left.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// Trials that end with the death of Chiton.
pub const MAX_ATTEMPTS: u32 = 3;
/// A candidate is kept so long while no server can be reached on either way.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);
/// After so long without a server that takes what is committed, the settings' own are tried too.
pub const FALLBACK: Duration = Duration::from_secs(24 * 3600);
/// Such a time is written down when it has come to this: a short one is worth no write.
const NOTED_AFTER: Duration = Duration::from_secs(3600);
/// Offers that are taken up at once: a server that has another one in each answer does not wear out the flash.
pub const OFFERS_AT_ONCE: u32 = 2000;
/// One more may come after each so long.
pub const OFFER_EVERY: Duration = Duration::from_secs(30);
/// The same as long as nothing was taken since the start: the agent may never live for an hour.
const NOTED_AT_START: Duration = Duration::from_secs(60);
/// On the settings' own instead of what is committed, that is tried again after so long.
const LOOK_BACK: Duration = Duration::from_secs(3600);
/// After a disk that refused.
const DISK_PAUSE: Duration = Duration::from_secs(60);

/// Why the record is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// A trial begins, or goes on after a crash.
    Arm,
    /// The candidate has worked.
    Commit,
    /// Only the heartbeat has changed: no trial.
    Beat,
    /// It has failed.
    Condemn,
    /// Neither way answers: the starts before this one were not the candidate's doing.
    Recount,
    /// Something to keep, no more.
    Note,
}

#[derive(Clone, Debug)]
enum Phase {
    Idle,
    /// The candidate is being placed.
    Staging {
        hash: Bytes,
        overlay: Box<Overlay>,
        /// It needs no trial.
        quiet: bool,
    },
    /// `next` is being written, or will be at `again`.
    Writing {
        why: Why,
        next: Box<Memory>,
        again: Option<Mono>,
    },
    /// The old connection is to hear of it first (opamp-spec L1736).
    Announcing {
        until: Mono,
    },
    /// The candidate is the way.
    Trying {
        /// Since its first attempt to connect.
        since: Option<Mono>,
        /// Why the last attempt failed.
        error: Option<String>,
        /// Old and new in turn: one attempt each.
        in_turn: bool,
    },
    /// The old is the way again.
    Returned {
        reason: String,
        /// It has failed too: that says that the candidate was not to blame.
        failed_too: bool,
    },
}

/// The whole of it.
#[derive(Clone, Debug)]
pub struct Connections {
    rules: Rules,
    memory: Memory,
    committed: Overlay,
    candidate: Option<Overlay>,
    volatile: Option<&'static str>,
    unreadable: bool,
    phase: Phase,
    way: Way,
    /// That which leads back from a candidate.
    old: Way,
    /// The newest offer that came while another was under way.
    waiting: Option<Box<ConnectionSettingsOffers>>,
    /// The disk refused this offer, and why: it may come again then.
    unplaced: Option<(Bytes, String, Mono)>,
    /// Since when no server has taken what is committed.
    untaken: Option<Mono>,
    /// When the trial under way began in this process, which is counted then.
    began: Option<Mono>,
    /// Offers that may still be taken up, as counted then.
    allowance: (u32, Mono),
    /// What is committed was taken since the start.
    taken: bool,
    /// On the settings' own instead of what is committed: when that is looked at again.
    look_back: Option<Mono>,
}

impl Connections {
    /// As the store has it.
    #[must_use]
    pub fn new(rules: Rules, found: Found) -> Self {
        let way = if found.memory.committed.is_some() { Way::Committed } else { Way::Own };
        Self {
            rules,
            memory: found.memory,
            committed: found.committed.unwrap_or_default(),
            candidate: found.candidate,
            volatile: found.volatile,
            unreadable: found.unreadable,
            phase: Phase::Idle,
            way,
            old: way,
            waiting: None,
            unplaced: None,
            untaken: None,
            began: None,
            allowance: (OFFERS_AT_ONCE, Mono::default()),
            taken: false,
            look_back: None,
        }
    }

    /// A trial that was interrupted goes on, counted; too often, and it has failed.
    pub fn boot(&mut self, out: &mut Vec<Order>) {
        let Some(trial) = self.memory.trial.clone() else { return };
        if self.candidate.is_none() {
            let text = "the candidate was lost from the state directory";
            return self.condemn(text.to_owned(), out);
        }
        if trial.number >= MAX_ATTEMPTS {
            let text = format!("its trial was interrupted {MAX_ATTEMPTS} times");
            return self.condemn(text, out);
        }
        let number = trial.number.saturating_add(1);
        let next = Memory { trial: Some(Attempt { number, ..trial }), ..self.memory.clone() };
        self.write(Why::Arm, next, out);
    }

    /// Other settings are in force.
    pub fn govern(&mut self, rules: Rules, out: &mut Vec<Order>) {
        let before = core::mem::replace(&mut self.rules, rules);
        let of = |own: &Server| {
            let candidate = self.candidate.as_ref()?;
            Some(candidate.still_over(&overlay::Own::of(own), own))
        };
        let tried = matches!(
            self.phase,
            Phase::Announcing { .. } | Phase::Trying { .. } | Phase::Returned { .. }
        );
        if tried && of(&before.own) != of(&self.rules.own) {
            // What would be tried from here on is not what was offered.
            let text = "the settings of the connection were changed during its trial";
            self.conclude(text.to_owned(), false, out);
        }
    }

    /// Answers [`Order::Remember`].
    pub fn remembered(&mut self, result: Result<(), String>, now: Now, out: &mut Vec<Order>) {
        let Phase::Writing { why, next, again: None } =
            core::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        if let Err(error) = result {
            let text = format!("the state of the connection was not kept: {error}");
            out.push(Order::Say(Tone::Warning, text));
            if why == Why::Recount {
                return self.attempt(true, false, out); // only a better count was lost
            }
            let again = Some(now.mono.after(DISK_PAUSE));
            self.phase = Phase::Writing { why, next, again };
            return;
        }
        let was = self.memory.committed;
        self.memory = *next;
        match why {
            Why::Arm => {
                self.began = Some(now.mono);
                self.phase = Phase::Announcing { until: now.mono.after(ANNOUNCE) };
                return;
            }
            Why::Commit | Why::Beat => {
                self.committed = self.candidate.take().unwrap_or_default();
                self.way = Way::Committed;
                self.old = self.way;
                if why == Why::Commit {
                    // An interval proves nothing.
                    self.untaken = None;
                    self.taken = true;
                }
                self.began = None;
                out.push(if why == Why::Beat { Order::Beat } else { Order::Committed });
            }
            Why::Condemn => {
                self.candidate = None;
                self.began = None;
                if self.way == Way::Candidate {
                    self.go(self.old, true, out);
                }
            }
            Why::Recount => return self.attempt(true, false, out),
            Why::Note => {}
        }
        debug_assert!(why != Why::Note || was == self.memory.committed, "a note commits nothing");
        self.next(now, out);
    }

    /// When [`Connections::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        match &self.phase {
            Phase::Writing { again, .. } => *again,
            Phase::Idle => self.look_back.filter(|_| self.is_fallback()),
            Phase::Announcing { until } => Some(*until),
            Phase::Trying { since: Some(since), in_turn: false, .. } => Some(since.after(TRIAL)),
            _ => None,
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Order>) {
        if self.deadline().is_none_or(|at| at > now.mono) {
            return;
        }
        match &mut self.phase {
            Phase::Writing { next, again, .. } => {
                *again = None;
                let next = next.clone();
                out.push(Order::Remember(next));
            }
            Phase::Idle => {
                self.look_back = None;
                self.go(Way::Committed, true, out);
            }
            Phase::Announcing { .. } => self.attempt(false, true, out),
            Phase::Trying { error, .. } => {
                let text = format!("no server answered within {TRIAL:?}");
                let reason = match error {
                    Some(error) => format!("{text}: {error}"),
                    None => format!("{}: {text}", self.server().endpoint),
                };
                self.go_back(reason, false, true, out);
            }
            _ => {}
        }
    }

    /// An orderly end does not count as an attempt.
    pub fn stop(&mut self, out: &mut Vec<Order>) {
        // What is being written is written, and is right without this.
        if matches!(self.phase, Phase::Writing { again: None, .. }) {
            return;
        }
        // This process counts from the moment that it is on record.
        let (Some(trial), Some(_)) = (&mut self.memory.trial, self.began) else { return };
        trial.number = trial.number.saturating_sub(1);
        self.phase = Phase::Idle;
        out.push(Order::Remember(Box::new(self.memory.clone())));
    }

    /// Forgets what failed: all, or what was offered with this hash. How many.
    pub fn forget(&mut self, hash: Option<&[u8]>, out: &mut Vec<Order>) -> u64 {
        if !matches!(self.phase, Phase::Idle) {
            return 0;
        }
        let meant = |other: &[u8]| hash.is_none_or(|hash| hash == other);
        let mut next = self.memory.clone();
        next.failed.retain(|failed| !meant(&failed.hash));
        let mut forgotten = self.memory.failed.len().saturating_sub(next.failed.len());
        let told = next.received.as_deref().unwrap_or_default();
        if matches!(next.outcome, Outcome::Failed(_)) && meant(told) {
            next.received = None;
            next.outcome = Outcome::Unset;
            forgotten = forgotten.max(1);
        }
        if forgotten > 0 {
            self.write(Why::Note, next, out);
        }
        u64::try_from(forgotten).unwrap_or(u64::MAX)
    }

    fn go(&mut self, way: Way, at_once: bool, out: &mut Vec<Order>) {
        self.way = way;
        out.push(Order::Travel { at_once });
    }

    fn write(&mut self, why: Why, next: Memory, out: &mut Vec<Order>) {
        out.push(Order::Remember(Box::new(next.clone())));
        self.phase = Phase::Writing { why, next: Box::new(next), again: None };
    }
}
