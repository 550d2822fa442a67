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
pub mod memory;
pub mod offer;
pub mod overlay;

use core::time::Duration;
use std::path::PathBuf;

use bytes::Bytes;
use chiton_proto::{
    ConnectionSettingsOffers, ConnectionSettingsStatus, ConnectionSettingsStatuses,
};

use self::memory::{Attempt, Generation, Memory};
use self::offer::{Bench, Offered};
use self::overlay::{Candidate, Material, Overlay, Staged};
use super::cut;
use super::rollout::{self, Digest, Outcome};
use super::session::{LinkError, LinkErrorKind, News, Tone};
use crate::clock::{self, Mono, Now};
use crate::settings::{Connection, Enroll, Server, connection_of};

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

/// What governs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The settings' own connection.
    pub own: Server,
    /// Where the generations are.
    pub directory: PathBuf,
    /// Offers are accepted.
    pub accepts: bool,
    /// Ask for a certificate.
    pub enroll: Option<Enroll>,
    /// So long before its end it is renewed.
    pub renew_before: Duration,
}

/// What the store has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The record.
    pub memory: Memory,
    /// What is in the committed generation.
    pub committed: Option<Overlay>,
    /// What is in the candidate; [`None`] though there is a trial: it was lost.
    pub candidate: Option<Overlay>,
    /// Why the state directory does not outlive the next start, if so.
    pub volatile: Option<&'static str>,
    /// What is there could not be read, and may be good: nothing is taken in its place.
    pub unreadable: bool,
}

/// Which connection is gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The settings' own.
    Own,
    /// The committed generation.
    Committed,
    /// The candidate.
    Candidate,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Place a candidate. → [`Connections::staged`]
    Stage(Box<Candidate>, Vec<Digest>),
    /// Write the record. → [`Connections::remembered`]
    Remember(Box<Memory>),
    /// The session goes by [`Connections::server`] from now on; at once, or with its next attempt.
    Travel {
        /// Now.
        at_once: bool,
    },
    /// The interval of heartbeats has changed, no more.
    Beat,
    /// Other credentials are committed.
    Committed,
    /// Tell the log.
    Say(Tone, String),
}

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

    /// The connection to go by.
    #[must_use]
    pub fn server(&self) -> Server {
        let own = &self.rules.own;
        let laid = |overlay: &Overlay, generation: Option<Generation>| match generation {
            Some(_) => overlay.lay_over(own, &self.files_of(generation)),
            None => own.clone(),
        };
        match (self.way, &self.candidate) {
            (Way::Candidate, Some(overlay)) => laid(overlay, self.candidate_generation()),
            (Way::Committed, _) => laid(&self.committed, self.memory.committed),
            _ => own.clone(),
        }
    }

    /// Where the files of a generation are.
    fn files_of(&self, generation: Option<Generation>) -> PathBuf {
        let number = generation.map_or(0, |generation| generation.number);
        self.rules.directory.join(number.to_string())
    }

    /// Which connection that is.
    #[must_use]
    pub const fn way(&self) -> Way {
        self.way
    }

    /// What is committed, for what others use of it; [`None`]: the settings' own.
    #[must_use]
    pub const fn committed(&self) -> Option<Generation> {
        self.memory.committed
    }

    /// Whether the certificate in use came with an offer.
    #[must_use]
    pub const fn certificate_was_offered(&self) -> bool {
        matches!(self.way, Way::Committed) && self.committed.certificate
    }

    /// Why certificates are not accepted, though they would be.
    #[must_use]
    pub const fn volatile(&self) -> Option<&'static str> {
        self.volatile
    }

    /// Whether no offer is under way.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// What `chiton status` calls it.
    #[must_use]
    pub const fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Idle => "idle",
            Phase::Staging { .. } => "staging",
            Phase::Writing { .. } => "writing",
            Phase::Announcing { .. } => "announcing",
            Phase::Trying { .. } => "trying",
            Phase::Returned { .. } => "returned",
        }
    }

    /// ConnectionSettingsStatus.
    #[must_use]
    pub fn status(&self) -> ConnectionSettingsStatus {
        let of = |hash: &Bytes, status: ConnectionSettingsStatuses, error: &str| {
            ConnectionSettingsStatus {
                last_connection_settings_hash: hash.clone(),
                status: status.into(),
                error_message: error.to_owned(),
            }
        };
        // What is being placed may turn out to be known: a server that offers it in each answer would hear of it, and
        // answer, for ever.
        let placed = !matches!(self.phase, Phase::Staging { .. });
        if let Some(hash) = self.under_way().filter(|_| placed) {
            return of(hash, ConnectionSettingsStatuses::Applying, "");
        }
        if let Some((hash, reason, _)) = &self.unplaced {
            return of(hash, ConnectionSettingsStatuses::Failed, reason);
        }
        let received = self.memory.received.clone().unwrap_or_default();
        match &self.memory.outcome {
            Outcome::Unset => of(&received, ConnectionSettingsStatuses::Unset, ""),
            Outcome::Applied => of(&received, ConnectionSettingsStatuses::Applied, ""),
            Outcome::Failed(reason) => of(&received, ConnectionSettingsStatuses::Failed, reason),
        }
    }

    /// The hash of the offer that is under way.
    fn under_way(&self) -> Option<&Bytes> {
        let trial = |memory: &'_ Memory| memory.trial.is_some();
        match &self.phase {
            Phase::Staging { hash, .. } => Some(hash),
            Phase::Writing { why: Why::Beat | Why::Commit | Why::Condemn, next, .. } => {
                next.received.as_ref()
            }
            Phase::Writing { next, .. } if trial(next) => {
                next.trial.as_ref().map(|trial| &trial.hash)
            }
            _ => self.memory.trial.as_ref().map(|trial| &trial.hash),
        }
    }

    fn candidate_generation(&self) -> Option<Generation> {
        let memory = match &self.phase {
            // What was tried is what is being committed.
            Phase::Writing { why: Why::Commit, next, .. } => return next.committed,
            _ => &self.memory,
        };
        memory.trial.as_ref().map(|trial| trial.generation)
    }

    /// An offer came.
    pub fn offered(&mut self, offers: ConnectionSettingsOffers, now: Now, out: &mut Vec<Order>) {
        let others = offers.own_metrics.is_some()
            || offers.own_traces.is_some()
            || offers.own_logs.is_some()
            || !offers.other_connections.is_empty();
        if offers.opamp.is_none() && others {
            let text = "ignored offered connections that are none of OpAMP: not accepted";
            out.push(Order::Say(Tone::Peer, text.to_owned()));
            return;
        }
        if self.unreadable {
            let text = "ignored offered connection settings: those in the state directory could not be read at the start";
            return out.push(Order::Say(Tone::Peer, text.to_owned()));
        }
        let hash = &offers.hash;
        if let Some((refused, _, until)) = &self.unplaced
            && refused == hash
            && now.mono < *until
        {
            return;
        }
        let known = |other: Option<&Bytes>| !hash.is_empty() && other == Some(hash);
        if known(self.under_way()) || self.is_idle() {
            // This one is newer.
            self.waiting = None;
        }
        if known(self.under_way()) {
            // Nothing new.
        } else if !matches!(self.phase, Phase::Idle) {
            self.waiting = Some(Box::new(offers));
        } else if known(self.memory.received.as_ref()) && !self.is_fallback() {
            self.unplaced = None;
        } else {
            self.begin(&offers, now, out);
        }
    }

    /// Whether one more offer may be taken up.
    fn allows(&mut self, now: Now) -> bool {
        let (left, counted) = self.allowance;
        let steps =
            now.mono.since(counted).as_secs().checked_div(OFFER_EVERY.as_secs()).unwrap_or(0);
        let steps = u32::try_from(steps).unwrap_or(u32::MAX);
        let left = left.saturating_add(steps).min(OFFERS_AT_ONCE);
        let counted = counted.after(OFFER_EVERY.saturating_mul(steps));
        self.allowance = (left.saturating_sub(1), counted);
        left > 0
    }

    fn begin(&mut self, offers: &ConnectionSettingsOffers, now: Now, out: &mut Vec<Order>) {
        if !self.allows(now) {
            let text = format!(
                "ignored offered connection settings: they come too often, {OFFERS_AT_ONCE} at once and one each {OFFER_EVERY:?}"
            );
            // No report: it would only be answered with the next.
            return out.push(Order::Say(Tone::Peer, text));
        }
        self.unplaced = None;
        self.old = self.way;
        let hash = offers.hash.clone();
        // Over the settings' own, after what is committed was refused for long, an offer begins anew.
        let base = match self.way {
            Way::Own => None,
            Way::Committed | Way::Candidate => self.memory.committed,
        };
        let none = Overlay::default();
        let below = if base.is_some() { &self.committed } else { &none };
        let bench = Bench { own: &self.rules.own, base: below, volatile: self.volatile };
        let taken = match &offers.opamp {
            Some(opamp) => bench.take(opamp),
            None => Ok(Offered { overlay: below.clone(), material: Material::default() }),
        };
        let Offered { overlay, material } = match taken {
            Ok(offered) => offered,
            Err(reason) => return self.note(hash, Outcome::Failed(cut(reason)), now, out),
        };
        let now_in_use = self.server();
        let laid = overlay.lay_over(&self.rules.own, &self.files_of(base));
        let same_files = material == Material::default();
        if same_files && laid == now_in_use {
            return self.note(hash, Outcome::Applied, now, out);
        }
        let quiet = same_files && connection_of(&now_in_use, &laid) == Connection::Kept;
        let in_use = base.iter();
        let known = in_use.map(|generation| generation.digest);
        let known = known.chain(self.memory.failed.iter().map(|failed| failed.digest)).collect();
        let candidate = Candidate { overlay: overlay.clone(), material, base };
        self.phase = Phase::Staging { hash, overlay: Box::new(overlay), quiet };
        out.push(Order::Stage(Box::new(candidate), known));
    }

    /// Answers [`Order::Stage`].
    pub fn staged(&mut self, staged: Staged, now: Now, out: &mut Vec<Order>) {
        let Phase::Staging { hash, overlay, quiet } =
            core::mem::replace(&mut self.phase, Phase::Idle)
        else {
            return;
        };
        match staged {
            Staged::Ready(generation) if quiet => {
                self.candidate = Some(*overlay);
                let mut next = self.memory.clone();
                next.committed = Some(generation);
                next.received = Some(hash);
                next.outcome = Outcome::Applied;
                self.write(Why::Beat, next, out);
            }
            Staged::Ready(generation) => {
                self.candidate = Some(*overlay);
                let since = clock::trusted_wall(now.wall, 0).0.as_secs();
                let trial = Some(Attempt { generation, hash, number: 1, since });
                let next = Memory { trial, ..self.memory.clone() };
                self.write(Why::Arm, next, out);
            }
            Staged::Known(digest) => {
                let failed = rollout::failure_in(&self.memory.failed, &digest);
                let outcome = match failed {
                    Some(failed) => Outcome::Failed(failed.reason.clone()),
                    None => Outcome::Applied,
                };
                self.note(hash, outcome, now, out);
            }
            Staged::Refused(reason) => {
                self.note(hash, Outcome::Failed(cut(reason)), now, out);
            }
            Staged::Failed(reason) => {
                let text = format!("offered connection settings were not kept: {reason}");
                out.push(Order::Say(Tone::Warning, text));
                self.unplaced = Some((hash, cut(reason), now.mono.after(DISK_PAUSE)));
                self.next(now, out);
            }
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

    /// Whether the settings' own stand in for what is committed.
    fn is_fallback(&self) -> bool {
        self.way == Way::Own && self.memory.committed.is_some()
    }

    /// Whether a candidate that nobody could judge has been kept long enough.
    fn is_over(&self, now: Now) -> bool {
        let here = self.began.map_or(Duration::ZERO, |began| now.mono.since(began));
        let since = self.memory.trial.as_ref().map_or(0, |trial| trial.since);
        let all = clock::trusted_wall(now.wall, 0).0.as_secs().saturating_sub(since);
        // The clock alone is no witness: it may have jumped.
        here >= KEPT || (all >= KEPT.as_secs() && here >= NOTED_AFTER)
    }

    /// What is committed was not taken once more.
    fn count_refusal(&mut self, now: Now, out: &mut Vec<Order>) {
        if self.way != Way::Committed {
            return;
        }
        let since = *self.untaken.get_or_insert(now.mono);
        let long = now.mono.since(since);
        let noted_after = if self.taken { NOTED_AFTER } else { NOTED_AT_START };
        if long >= noted_after
            && self.memory.refused_since.is_none()
            && matches!(self.phase, Phase::Idle)
        {
            let wall = clock::trusted_wall(now.wall, 0).0.saturating_sub(long).as_secs();
            let next = Memory { refused_since: Some(wall), ..self.memory.clone() };
            self.write(Why::Note, next, out);
        }
    }

    fn falls_back(&self, now: Now) -> bool {
        let here = self.untaken.map_or(Duration::ZERO, |since| now.mono.since(since));
        let wall = clock::trusted_wall(now.wall, 0).0.as_secs();
        let noted = self.memory.refused_since.map_or(0, |since| wall.saturating_sub(since));
        here >= FALLBACK || noted >= FALLBACK.as_secs()
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

    /// The candidate is the way.
    fn attempt(&mut self, in_turn: bool, at_once: bool, out: &mut Vec<Order>) {
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

    fn go_back(&mut self, reason: String, failed_too: bool, at_once: bool, out: &mut Vec<Order>) {
        let text = format!("the offered connection does not work, the old one is tried: {reason}");
        out.push(Order::Say(Tone::Warning, text));
        self.phase = Phase::Returned { reason: cut(reason), failed_too };
        self.go(self.old, at_once, out);
    }

    fn go(&mut self, way: Way, at_once: bool, out: &mut Vec<Order>) {
        self.way = way;
        out.push(Order::Travel { at_once });
    }

    fn condemn(&mut self, reason: String, out: &mut Vec<Order>) {
        self.conclude(reason, true, out);
    }

    /// It has failed; `remembered`: its contents are not tried again.
    fn conclude(&mut self, reason: String, remembered: bool, out: &mut Vec<Order>) {
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

    /// An outcome without a trial.
    fn note(&mut self, hash: Bytes, outcome: Outcome, now: Now, out: &mut Vec<Order>) {
        if let Outcome::Failed(reason) = &outcome {
            let text = format!("refused offered connection settings: {reason}");
            out.push(Order::Say(Tone::Peer, text));
        }
        if self.memory.received.as_ref() == Some(&hash) && self.memory.outcome == outcome {
            self.phase = Phase::Idle;
            return self.next(now, out);
        }
        let next = Memory { received: Some(hash), outcome, ..self.memory.clone() };
        self.write(Why::Note, next, out);
    }

    fn write(&mut self, why: Why, next: Memory, out: &mut Vec<Order>) {
        out.push(Order::Remember(Box::new(next.clone())));
        self.phase = Phase::Writing { why, next: Box::new(next), again: None };
    }

    /// Whatever came meanwhile.
    fn next(&mut self, now: Now, out: &mut Vec<Order>) {
        if let Some(offers) = self.waiting.take() {
            self.offered(*offers, now, out);
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use chiton_proto::OpAmpConnectionSettings;

    use super::*;
    use crate::clock::Wall;
    use crate::settings;

    fn rules() -> Rules {
        let text = "opamp: { server: { endpoint: wss://a } }";
        let environment = BTreeMap::<&str, &str>::new();
        let own = settings::from_text(text, "test", &environment).unwrap().settings.server;
        let renew_before = Duration::ZERO;
        Rules { own, directory: PathBuf::from("/s"), accepts: true, enroll: None, renew_before }
    }

    #[test]
    fn a_server_with_another_offer_in_each_answer_does_not_wear_out_the_flash() {
        let mut connections = Connections::new(rules(), Found::default());
        let at = |seconds| Now {
            mono: Mono(Duration::from_secs(seconds)),
            wall: Wall(Duration::from_secs(seconds)),
        };
        let mut writes = 0;
        let mut offer = |number: u32, now: Now| {
            let mut orders = Vec::new();
            let offers = ConnectionSettingsOffers {
                hash: number.to_be_bytes().to_vec().into(),
                opamp: Some(OpAmpConnectionSettings {
                    destination_endpoint: format!("wss://other{number}"),
                    ..OpAmpConnectionSettings::default()
                }),
                ..ConnectionSettingsOffers::default()
            };
            connections.offered(offers, now, &mut orders);
            if orders.iter().any(|order| matches!(order, Order::Remember(_))) {
                writes += 1;
                connections.remembered(Ok(()), now, &mut orders);
            }
            writes
        };
        for number in 0..OFFERS_AT_ONCE + 100 {
            offer(number, at(999_990));
        }
        assert_eq!(offer(5_000, at(1_000_019)), OFFERS_AT_ONCE);
        assert_eq!(offer(5_001, at(1_000_020)), OFFERS_AT_ONCE + 1);
        assert_eq!(offer(5_002, at(1_000_021)), OFFERS_AT_ONCE + 1);
        assert_eq!(offer(5_003, at(1_000_080)), OFFERS_AT_ONCE + 2);
    }
}
