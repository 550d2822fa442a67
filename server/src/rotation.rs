//! New certificates for many agents, a few at a time. No I/O, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;
use crate::credentials::{Digest, Outcome};
use crate::uid::InstanceUid;

/// Rotations that are kept; the oldest is forgotten.
pub(crate) const MAX_ROTATIONS: usize = 16;
/// Agents at a time.
pub(crate) const MAX_CONCURRENCY: u32 = 1000;
/// Further tries for one agent.
pub(crate) const MAX_RETRIES: u32 = 20;
/// Longest time for one try, seconds.
pub(crate) const MAX_TIMEOUT: u32 = 86_400;

/// What was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) target: String,
    /// Agents at a time between offered and an answer.
    pub(crate) concurrency: u32,
    /// Further tries after the first, each with a fresh certificate.
    pub(crate) retries: u32,
    /// Seconds that an agent may take.
    pub(crate) timeout_seconds: u32,
    pub(crate) created: Moment,
    pub(crate) ended: Option<Moment>,
    pub(crate) cancelled: bool,
}

/// How far an agent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// Its turn has not come, or it is not connected.
    Waiting,
    Offered,
    Applied,
    Failed,
}

/// One agent's part.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) state: State,
    pub(crate) tries: u32,
    /// When the last try began.
    pub(crate) since: Moment,
    /// Of the last offer.
    pub(crate) hash: Option<Digest>,
    /// Why the last try failed.
    pub(crate) error: String,
}

/// A rotation.
#[derive(Clone, Debug)]
pub(crate) struct Rotation {
    pub(crate) id: u64,
    pub(crate) plan: Plan,
    members: BTreeMap<InstanceUid, Member>,
    /// Members whose turn is to come, those with fewer tries first.
    queue: BTreeSet<(u32, InstanceUid)>,
    offered: BTreeSet<InstanceUid>,
    dirty: BTreeSet<InstanceUid>,
    /// The plan is not on record as it is.
    altered: bool,
}

impl Rotation {
    /// A new one: everybody waits.
    pub(crate) fn new(id: u64, plan: Plan, agents: Vec<InstanceUid>) -> Self {
        let waiting = Member {
            state: State::Waiting,
            tries: 0,
            since: plan.created,
            hash: None,
            error: String::new(),
        };
        let members = agents.into_iter().map(|uid| (uid, waiting.clone())).collect();
        let mut new = Self::restored(id, plan, members);
        new.altered = true;
        new.dirty = new.members.keys().copied().collect();
        new
    }

    /// From what the store kept.
    pub(crate) fn restored(id: u64, plan: Plan, members: BTreeMap<InstanceUid, Member>) -> Self {
        let of = |wanted| members.iter().filter(move |(_, member)| member.state == wanted);
        let queue = of(State::Waiting).map(|(uid, member)| (member.tries, *uid)).collect();
        let offered = of(State::Offered).map(|(uid, _)| *uid).collect();
        Self { id, plan, queue, offered, members, dirty: BTreeSet::new(), altered: false }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.plan.ended.is_none()
    }

    pub(crate) fn members(&self) -> &BTreeMap<InstanceUid, Member> {
        &self.members
    }

    /// Whether there is something to write down.
    pub(crate) fn is_changed(&self) -> bool {
        self.altered || !self.dirty.is_empty()
    }

    /// What changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<(InstanceUid, Member)> {
        self.altered = false;
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().filter_map(|uid| Some((uid, self.members.get(&uid)?.clone()))).collect()
    }

    /// These could not be written down.
    pub(crate) fn not_saved(&mut self, uids: impl Iterator<Item = InstanceUid>) {
        self.altered = true;
        self.dirty.extend(uids);
    }

    /// Whose turn it is, of those who are ready.
    pub(crate) fn next(&self, ready: impl Fn(InstanceUid) -> bool) -> Vec<InstanceUid> {
        let room = usize::try_from(self.plan.concurrency).unwrap_or(usize::MAX);
        let room = if self.is_running() { room.saturating_sub(self.offered.len()) } else { 0 };
        self.queue.iter().map(|(_, uid)| *uid).filter(|uid| ready(*uid)).take(room).collect()
    }

    /// It is offered a certificate, under this hash.
    pub(crate) fn start(&mut self, uid: InstanceUid, hash: Digest, now: Moment) {
        self.set(uid, |member| {
            *member = Member {
                state: State::Offered,
                tries: member.tries.saturating_add(1),
                since: now,
                hash: Some(hash),
                error: String::new(),
            };
        });
    }

    /// What became of an offer; also when it was given up before.
    pub(crate) fn note(&mut self, uid: InstanceUid, hash: Digest, outcome: &Outcome, now: Moment) {
        let Some(member) = self.members.get(&uid).filter(|member| member.hash == Some(hash)) else {
            return;
        };
        match outcome {
            Outcome::Applied if member.state != State::Applied => {
                self.set(uid, |member| {
                    (member.state, member.error) = (State::Applied, String::new());
                });
            }
            Outcome::Failed(why) if member.state == State::Offered => self.fail(uid, why),
            _ => {}
        }
        self.end_if_done(now);
    }

    /// A try failed.
    pub(crate) fn fail(&mut self, uid: InstanceUid, why: &str) {
        let retries = self.plan.retries;
        self.set(uid, |member| {
            member.state = if member.tries > retries { State::Failed } else { State::Waiting };
            why.clone_into(&mut member.error);
        });
    }

    /// No certificate can be made for it.
    pub(crate) fn give_up(&mut self, uid: InstanceUid, why: &str) {
        self.set(uid, |member| (member.state, member.error) = (State::Failed, why.to_owned()));
    }

    /// Fails the tries that took too long.
    pub(crate) fn expire(&mut self, now: Moment) {
        let timeout = Duration::from_secs(self.plan.timeout_seconds.into());
        let late = |uid: &InstanceUid| {
            self.members.get(uid).is_some_and(|member| now.since(member.since) >= timeout)
        };
        let late: Vec<_> = self.offered.iter().copied().filter(late).collect();
        for uid in late {
            self.fail(uid, &format!("no answer within {} s", timeout.as_secs()));
        }
        self.end_if_done(now);
    }

    /// Nobody's turn comes any more.
    pub(crate) fn cancel(&mut self, now: Moment) {
        self.plan.cancelled = true;
        self.altered = true;
        self.plan.ended = Some(now);
    }

    /// How many are how far, and how many were at the first try.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::from([
            ("waiting", 0),
            ("offered", 0),
            ("applied", 0),
            ("failed", 0),
            ("at_first_try", 0),
        ]);
        let mut add = |word| {
            let count = counts.entry(word).or_insert(0_usize);
            *count = count.saturating_add(1);
        };
        for member in self.members.values() {
            match member.state {
                State::Waiting => add("waiting"),
                State::Offered => add("offered"),
                State::Applied => add("applied"),
                State::Failed => add("failed"),
            }
            if member.state == State::Applied && member.tries == 1 {
                add("at_first_try");
            }
        }
        counts
    }

    fn set(&mut self, uid: InstanceUid, change: impl FnOnce(&mut Member)) {
        let Some(member) = self.members.get_mut(&uid) else { return };
        self.queue.remove(&(member.tries, uid));
        self.offered.remove(&uid);
        change(member);
        match member.state {
            State::Waiting => drop(self.queue.insert((member.tries, uid))),
            State::Offered => drop(self.offered.insert(uid)),
            State::Applied | State::Failed => {}
        }
        self.dirty.insert(uid);
    }

    fn end_if_done(&mut self, now: Moment) {
        if self.is_running() && self.queue.is_empty() && self.offered.is_empty() {
            self.plan.ended = Some(now);
            self.altered = true;
        }
    }
}
