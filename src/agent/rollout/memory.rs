//! What must outlive a power cut: one small record.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::agent::packages::set::Plan;
use crate::clock::Wall;

/// Contents that failed and are remembered, newest first.
pub const MAX_FAILED: usize = 16;
/// Package names whose counter's floor is kept; beyond, new names are refused.
pub const MAX_FLOORS: usize = 256;
/// Among the floors: that of the remote configuration. No package can have this name.
pub const CONFIG_FLOOR: &str = "/config";

/// SHA-256 over the contents of a placed set.
pub type Digest = [u8; 32];

/// One complete set of config files, and of packages, under the state directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number: rises, never reused.
    pub number: u64,
    /// What is in it.
    pub digest: Digest,
    /// Whether an offered configuration is part of it, or the local file alone.
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

/// What a configuration's signed manifest says of its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seal {
    /// May never fall.
    pub counter: u64,
    /// When it was signed, Unix seconds.
    pub issued_at: u64,
}

/// What an offer consists of: a configuration, packages, or both. They share one fate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The hash of the offered configuration.
    pub config: Option<Bytes>,
    /// What its signature says, where it has one.
    pub seal: Option<Seal>,
    /// The offered packages.
    pub packages: Option<Plan>,
}

impl Parts {
    /// The hash by which a person would name the offer.
    #[must_use]
    pub fn hash(&self) -> Bytes {
        let packages = self.packages.as_ref().map(|plan| &plan.hash);
        self.config.as_ref().or(packages).cloned().unwrap_or_default()
    }

    /// Whether `other` has all the parts that this has: it can take its place.
    #[must_use]
    pub const fn covered_by(&self, other: &Self) -> bool {
        (self.config.is_none() || other.config.is_some())
            && (self.packages.is_none() || other.packages.is_some())
    }
}

/// A trial that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The candidate.
    pub generation: Generation,
    /// What was offered.
    pub parts: Parts,
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

/// An offered package that is not installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackageFailure {
    /// Its name as offered.
    pub name: String,
    /// As offered.
    pub version: String,
    /// As offered.
    pub hash: Bytes,
    /// Why.
    pub error: String,
}

/// The lowest counters that are accepted, by package name and [`CONFIG_FLOOR`]. They never fall.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Floors {
    /// Those that are known.
    pub known: BTreeMap<String, u64>,
    /// The record was lost or broken once: a name that is not among the known ones may have had any.
    pub lost: bool,
}

/// What is remembered about packages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packaged {
    /// `all_packages_hash` of the last offer whose outcome is known.
    pub received: Option<Bytes>,
    /// The same of what is installed; [`None`] where the last offer failed.
    pub installed: Option<Bytes>,
    /// What was wrong with the offer as a whole.
    pub error: String,
    /// What of it is not installed.
    pub failed: Vec<PackageFailure>,
    /// The same offer is worth another try.
    pub transient: bool,
    /// Rise with each commit.
    pub floors: Floors,
    /// The latest issue time of a committed manifest, Unix seconds: no clock of ours may be before it.
    pub seen: u64,
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
    /// What `committed` was offered as; [`None`]: it was not.
    pub committed_as: Option<Parts>,
    /// The trial that is under way; found at the start, it was interrupted.
    pub trial: Option<Attempt>,
    /// The hash of the last configuration whose outcome is known.
    pub received: Option<Bytes>,
    /// Its outcome.
    pub outcome: Outcome,
    /// Contents that failed, newest first, at most [`MAX_FAILED`].
    pub failed: VecDeque<Failed>,
    /// About packages.
    pub packages: Packaged,
}

/// What is remembered of contents that failed.
#[must_use]
pub fn failure_in<'a>(failed: &'a VecDeque<Failed>, digest: &Digest) -> Option<&'a Failed> {
    failed.iter().find(|failed| failed.digest == *digest)
}

/// Remembers that contents failed: the newest first, at most [`MAX_FAILED`].
pub fn remember_failure_in(
    failed: &mut VecDeque<Failed>,
    digest: Digest,
    reason: &str,
    hash: &Bytes,
) {
    failed.retain(|failed| failed.digest != digest);
    failed.push_front(Failed { digest, reason: reason.to_owned(), hash: hash.clone() });
    failed.truncate(MAX_FAILED);
}

impl Memory {
    pub(super) fn failure(&self, digest: &Digest) -> Option<&Failed> {
        failure_in(&self.failed, digest)
    }

    pub(super) fn remember_failure(&mut self, digest: Digest, reason: &str, hash: &Bytes) {
        remember_failure_in(&mut self.failed, digest, reason, hash);
    }

    /// An offer was refused, or failed.
    pub(super) fn fails(&mut self, parts: &Parts, reason: &str) {
        if let Some(hash) = &parts.config {
            self.received = Some(hash.clone());
            self.outcome = Outcome::Failed(reason.to_owned());
        }
        if let Some(plan) = &parts.packages {
            self.packages.received = Some(plan.hash.clone());
            self.packages.installed = None;
            self.packages.error.clear();
            self.packages.transient = false;
            let changed = plan.members.iter().filter(|it| plan.changed.contains(&it.name));
            self.packages.failed = changed
                .map(|member| PackageFailure {
                    name: member.offered_name().to_owned(),
                    version: member.version.clone(),
                    hash: member.hash.clone(),
                    error: reason.to_owned(),
                })
                .collect();
        }
    }

    /// An offer was committed, and is undone. What was received since then stays the last received.
    pub(super) fn undo(&mut self, parts: &Parts, reason: &str) {
        let received = self.received.clone().or_else(|| parts.config.clone());
        let since = self.packages.received.clone();
        let packages = parts.packages.as_ref();
        if packages.is_none_or(|plan| since.as_ref() == Some(&plan.hash)) {
            self.fails(parts, reason);
        } else {
            self.packages.installed = None;
            self.fails(&Parts { packages: None, ..parts.clone() }, reason);
        }
        if parts.config.is_some() {
            self.received = received;
        }
    }

    /// An offer runs.
    pub(super) fn succeeds(&mut self, parts: &Parts) {
        if let Some(hash) = &parts.config {
            self.received = Some(hash.clone());
            self.outcome = Outcome::Applied;
        }
        if let Some(seal) = &parts.seal {
            self.packages.seen = self.packages.seen.max(seal.issued_at);
            let floor = self.packages.floors.known.entry(CONFIG_FLOOR.to_owned()).or_default();
            *floor = seal.counter.max(*floor);
        }
        if let Some(plan) = &parts.packages {
            self.packages.installs(plan);
        }
    }
}

impl Packaged {
    /// A plan is committed: the floors rise.
    fn installs(&mut self, plan: &Plan) {
        self.received = Some(plan.hash.clone());
        self.installed = Some(plan.hash.clone());
        self.error.clear();
        self.failed.clear();
        for member in plan.members.iter().filter(|member| member.counter > 0) {
            self.seen = self.seen.max(member.issued_at);
            let floors = &mut self.floors.known;
            if floors.len() < MAX_FLOORS || floors.contains_key(&member.name) {
                let floor = floors.entry(member.name.clone()).or_default();
                *floor = member.counter.max(*floor);
            }
        }
    }
}
