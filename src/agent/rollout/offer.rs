//! What was offered, and when it is taken up.

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentRemoteConfig};

use super::super::called::called;
use super::super::cut;
use super::super::packages::set::Plan;
use super::{
    Current, Fault, Generation, HOUR, OUTCOMES_AN_HOUR, Order, Outcome, PackageFailure, Parts,
    Phase, Rollout, Seal, TRIALS_AN_HOUR, Waiting,
};
use crate::clock::{Mono, Now};

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

impl Rollout {
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
    pub(super) fn receive(&mut self, offer: Offer, with_packages: bool) -> bool {
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
    pub(super) fn replace_interrupted(&mut self) {
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
    pub(super) fn conclude(
        &mut self,
        parts: &Parts,
        outcome: PackagesOutcome,
        out: &mut Vec<Order>,
    ) {
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
    pub(super) fn hurry(&mut self, now: Now, out: &mut Vec<Order>) {
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
    pub(super) fn is_overtaken(&self) -> bool {
        self.waiting.as_ref().is_some_and(|waiting| {
            let current = self.current.as_ref();
            // What is likely to be refused ends no trial.
            !waiting.held
                && waiting.unless.is_none()
                && current.is_some_and(|current| current.parts.covered_by(&waiting.parts))
        })
    }

    /// Begins with the offer that waits, if its time has come.
    pub(super) fn take_up(&mut self, now: Now, out: &mut Vec<Order>) {
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
    pub(super) fn next_outcome(&self) -> Option<Mono> {
        let oldest = self.outcomes.get(OUTCOMES_AN_HOUR.saturating_sub(1));
        let oldest = oldest.filter(|_| self.is_paced());
        oldest.map(|oldest| oldest.after(HOUR))
    }

    const fn is_paced(&self) -> bool {
        !self.rules.min_interval.is_zero()
    }

    pub(super) fn takes_up(&mut self, now: Now) {
        self.outcomes.push_front(now.mono);
        self.outcomes.truncate(OUTCOMES_AN_HOUR);
    }

    /// When the next trial may begin: `min_interval` after the last, [`TRIALS_AN_HOUR`] at most.
    pub(super) fn next_trial(&self) -> Option<Mono> {
        if !self.is_paced() {
            return None;
        }
        let paced = self.trials.front().map(|last| last.after(self.rules.min_interval));
        let oldest = self.trials.get(TRIALS_AN_HOUR.saturating_sub(1));
        paced.max(oldest.map(|oldest| oldest.after(HOUR)))
    }

    /// Nothing was touched, and what is given up has no outcome: it may be offered again.
    pub(super) fn superseded(&mut self, out: &mut Vec<Order>) -> bool {
        self.write_down(self.memory.clone(), out)
    }
}

/// The hash that an offered configuration is known by.
pub(in crate::agent) fn known_by(offer: &AgentRemoteConfig) -> Bytes {
    let objects = offer.config.iter().flat_map(|config| &config.config_map);
    let objects: std::collections::BTreeMap<_, _> = objects.collect();
    let parts = objects
        .into_iter()
        .flat_map(|(name, object)| [name.as_bytes(), object.content_type.as_bytes(), &object.body]);
    called(&offer.config_hash, parts)
}
