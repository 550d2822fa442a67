//! Packages: what is offered, what of it is missing, what became of it.
//!
//! An offer is compared (opamp-spec L2718), approved before a byte is fetched ([`policy`]), obtained one file at a
//! time, and then handed to the one life cycle ([`super::rollout`]) as a candidate: [`Plan`]. The newest offer wins.

pub mod policy;
pub mod set;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use chiton_proto::{
    DownloadableFile, PackageAvailable, PackageDownloadDetails, PackageStatus, PackageStatusEnum,
    PackageStatuses, PackagesAvailable,
};

use self::policy::{Known, Policy, Warrant};
use self::set::{Member, Plan, Running};
use super::called::{called, given};
use super::cut;
use super::rollout::{Digest, PackageFailure, Packaged, PackagesOutcome, Rollout};
use crate::clock::{self, Mono, Now};
use crate::secret::Secret;

/// Between two reports of how far a download is.
pub const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// An offer that failed for the network's sake is tried again when it comes again, not before so long.
pub const TRANSIENT_PAUSE: Duration = Duration::from_secs(60);
/// The pause doubles with each failure in a row, up to this.
pub const MAX_TRANSIENT_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// Offers for which fetching begins within an hour.
pub const OFFERS_AN_HOUR: usize = 30;
const HOUR: Duration = Duration::from_secs(3600);
/// Bytes of a download_url.
pub const MAX_URL: usize = 8192;

/// A file that is to be here: fetched, verified, unpacked, unless it is already.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// To be given back.
    pub round: u64,
    /// What it is, and that it may be used.
    pub warrant: Warrant,
    /// `download_url`.
    pub url: String,
    /// `headers` of the offer.
    pub headers: Vec<(String, Secret<String>)>,
}

/// Why a file could not be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unobtained {
    /// What, where, why.
    pub text: String,
    /// The network's fault or the disk's: the same offer is worth another try.
    pub transient: bool,
}

/// What an offer came to at once.
#[derive(Clone, Debug, PartialEq)]
pub enum Taken {
    /// Nothing new.
    Ignored,
    /// Files are being obtained: [`Packages::obtained`] tells the end.
    Working,
    /// Everything is here.
    Ready(Plan),
    /// It has its outcome.
    Concluded(PackagesOutcome),
}

/// The packages of one workload.
#[derive(Clone, Debug)]
pub struct Packages {
    policy: Policy,
    /// What the running generation has.
    running: Vec<Member>,
    has_config: bool,
    /// What is committed.
    installed: Vec<Member>,
    sync: Option<Sync>,
    /// Counts what is asked for, so that late answers are known.
    round: u64,
    /// What was handed to the life cycle last.
    handed: Option<Plan>,
    /// When an offer last failed for the network's sake.
    transient_at: Option<Mono>,
    /// How often in a row that was.
    transients: u32,
    /// When fetching began, within the last hour.
    begun: Vec<Mono>,
    /// Packages of the device's maker.
    local: Vec<String>,
}

/// An offer whose files are being obtained.
#[derive(Clone, Debug)]
struct Sync {
    plan: Plan,
    wanted: VecDeque<Wanted>,
    progress: Progress,
}

/// How far the download under way is.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Bytes at a time, as last shown.
    shown: Option<(u64, Mono)>,
    percent: f64,
    rate: f64,
    /// All bytes are here.
    complete: bool,
}

impl Packages {
    /// `running` is what the disk has.
    #[must_use]
    pub fn new(policy: Policy, running: Running) -> Self {
        Self {
            policy,
            running: running.members,
            has_config: running.has_config,
            installed: Vec::new(),
            sync: None,
            round: 0,
            handed: None,
            transient_at: None,
            transients: 0,
            begun: Vec::new(),
            local: running.local,
        }
    }

    /// Goes on by another policy.
    ///
    /// True: what is being fetched was approved by the old one, and is given up. It has no outcome: the server offers
    /// it again.
    pub fn govern(&mut self, policy: Policy) -> bool {
        let other = self.policy != policy;
        self.policy = policy;
        if other {
            self.sync = None;
            self.handed = None;
        }
        other
    }

    /// The names in the running set.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.running.iter().map(|member| member.name.as_str())
    }

    /// This is what the generation that runs has.
    pub fn run(&mut self, running: Running) {
        self.running = running.members;
        self.has_config = running.has_config;
        self.local = running.local;
    }

    /// The running generation has a main configuration file.
    #[must_use]
    pub const fn has_config(&self) -> bool {
        self.has_config
    }

    /// What runs is what is committed, and perhaps by new names.
    pub fn settle(&mut self, memory: &Packaged) {
        if let Some(plan) = &self.handed
            && memory.installed.as_ref() == Some(&plan.hash)
        {
            for member in &mut self.running {
                if let Some(planned) = plan.members.iter().find(|it| it.is_like(member)) {
                    member.clone_from(planned);
                }
            }
            self.handed = None;
        }
        if self.installed != self.running {
            self.installed.clone_from(&self.running);
        }
    }

    /// An offer; the workload cannot run without the `needed` packages. `orders` are the files to obtain.
    pub fn offered(
        &mut self,
        offer: &PackagesAvailable,
        needed: &[String],
        rollout: &Rollout,
        now: Now,
        orders: &mut Vec<Wanted>,
    ) -> Taken {
        let hash = known_by(offer);
        let memory = &rollout.memory().packages;
        if self.sync.as_ref().is_some_and(|sync| sync.plan.hash == hash) {
            return Taken::Working;
        }
        if self.knows(&hash, rollout, now) && !self.lacks(offer, &hash, memory) {
            return Taken::Ignored;
        }
        // The newest wins.
        self.sync = None;
        let outcome = |error: String, failed| {
            let outcome = PackagesOutcome { hash: hash.clone(), error, failed, transient: false };
            Taken::Concluded(outcome)
        };
        if offer.packages.is_empty() && !self.policy.allows_empty() {
            if self.offered_members().next().is_none() {
                return outcome(String::new(), Vec::new());
            }
            let text = "an empty offer would remove all packages: set opamp.packages.allow_empty if that is wanted";
            return outcome(text.to_owned(), Vec::new());
        }
        let seconds = clock::trusted_wall(now.wall, memory.seen).0.as_secs();
        let known = Known { installed: &self.installed, floors: &memory.floors, now: seconds };
        let approved = match approve(&self.policy, offer, &known) {
            Ok(approved) => approved,
            Err(failed) => return outcome(String::new(), failed),
        };
        let plan = self.plan(hash.clone(), &approved);
        let installed: Vec<&Member> = self.offered_members().collect();
        if installed.iter().copied().eq(&plan.members) {
            if rollout.plan().is_some() {
                // Back to what is installed, in place of what is under way.
                return self.ready(plan);
            }
            return outcome(String::new(), Vec::new());
        }
        let lacking = needed.iter().find(|name| {
            let has = |members: &[Member]| members.iter().any(|member| member.name == **name);
            has(&self.running) && !has(&plan.members) && !self.local.contains(name)
        });
        if let Some(name) = lacking.filter(|_| !offer.packages.is_empty()) {
            let text = format!(
                "it has no package {name}, which opamp.workload.command names: the workload could not run"
            );
            return outcome(text, Vec::new());
        }
        self.begun.retain(|at| now.mono.since(*at) < HOUR);
        if self.begun.len() >= OFFERS_AN_HOUR {
            let text = format!(
                "offers of packages come too often: {OFFERS_AN_HOUR} an hour are begun with"
            );
            self.transient_at = Some(now.mono);
            let transient = PackagesOutcome {
                hash: hash.clone(),
                error: text,
                failed: Vec::new(),
                transient: true,
            };
            return Taken::Concluded(transient);
        }
        let mut wanted = VecDeque::new();
        for (warrant, file) in approved {
            if !plan.changed.contains(&warrant.member().name) {
                continue;
            }
            let headers = file.headers.into_iter().flat_map(|headers| headers.headers);
            self.round = self.round.wrapping_add(1);
            wanted.push_back(Wanted {
                round: self.round,
                warrant,
                url: file.download_url,
                headers: headers.map(|it| (it.key, Secret::new(it.value))).collect(),
            });
        }
        let Some(first) = wanted.front().cloned() else { return self.ready(plan) };
        orders.push(first);
        self.begun.push(now.mono);
        self.sync = Some(Sync { plan, wanted, progress: Progress::default() });
        Taken::Working
    }

    /// An offer whose configuration is refused, which refuses all of it.
    pub fn refused(
        &mut self,
        offer: &PackagesAvailable,
        why: &str,
        rollout: &Rollout,
        now: Now,
    ) -> Taken {
        let hash = known_by(offer);
        if self.knows(&hash, rollout, now) {
            return Taken::Ignored;
        }
        self.sync = None;
        let text = format!("not installed: the configuration offered with it is refused: {why}");
        let mut offered: Vec<_> = offer.packages.iter().collect();
        offered.sort_by_key(|(name, _)| *name);
        let failed =
            offered.iter().map(|(name, package)| failure(name, package, cut(text.clone())));
        let failed: Vec<PackageFailure> = failed.collect();
        let error = if failed.is_empty() { cut(text.clone()) } else { String::new() };
        Taken::Concluded(PackagesOutcome { hash, error, failed, transient: false })
    }

    /// Whether packages with this hash have their outcome, or are on their way to it.
    fn knows(&self, hash: &Bytes, rollout: &Rollout, now: Now) -> bool {
        let memory = &rollout.memory().packages;
        let concluding = rollout.concluding().map(|outcome| &outcome.hash);
        if self.sync.is_some() {
            return false;
        }
        // What is under way is newer than what has its outcome.
        match rollout.plan().map(|plan| &plan.hash).or(concluding) {
            Some(newest) => newest == hash,
            None => memory.received.as_ref() == Some(hash) && !self.tries_again(memory, now),
        }
    }

    /// Whether an offer that failed may be tried again.
    fn tries_again(&self, memory: &Packaged, now: Now) -> bool {
        memory.transient
            && memory.installed.is_none()
            && self.transient_at.is_none_or(|at| at.after(self.transient_pause()) <= now.mono)
    }

    /// Whether an offer was installed, and something of it is not there any more.
    fn lacks(&self, offer: &PackagesAvailable, hash: &Bytes, memory: &Packaged) -> bool {
        let there = |name: &String| self.installed.iter().any(|it| it.offered_name() == name);
        memory.installed.as_ref() == Some(hash) && !offer.packages.keys().all(there)
    }

    /// Doubles with each failure in a row.
    fn transient_pause(&self) -> Duration {
        let doubled = 1_u32.checked_shl(self.transients.saturating_sub(1)).unwrap_or(u32::MAX);
        TRANSIENT_PAUSE.saturating_mul(doubled).min(MAX_TRANSIENT_PAUSE)
    }

    fn offered_members(&self) -> impl Iterator<Item = &Member> {
        self.installed.iter().filter(|member| !member.local)
    }

    fn plan(&self, hash: Bytes, approved: &[(Warrant, DownloadableFile)]) -> Plan {
        let mut members: Vec<Member> =
            approved.iter().map(|(warrant, _)| warrant.member().clone()).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let changed = members
            .iter()
            .filter(|member| !self.installed.iter().any(|installed| installed.is_like(member)))
            .map(|member| member.name.clone())
            .collect();
        Plan { hash, members, changed }
    }

    fn ready(&mut self, plan: Plan) -> Taken {
        self.handed = Some(plan.clone());
        Taken::Ready(plan)
    }

    /// Bytes of the file under way have arrived. True: the server is to be told.
    pub fn progressed(&mut self, round: u64, had: u64, total: Option<u64>, now: Now) -> bool {
        let Some(sync) = self.sync.as_mut().filter(|sync| sync.awaits(round)) else { return false };
        let progress = &mut sync.progress;
        let complete = total == Some(had);
        let newly = complete && !progress.complete;
        let since = progress.shown.map(|(_, at)| now.mono.since(at));
        if !newly && since.is_some_and(|since| since < PROGRESS_INTERVAL) {
            return false;
        }
        let before = progress.shown.map_or(had, |(bytes, _)| bytes);
        let seconds = since.unwrap_or_default().as_secs_f64();
        if seconds > 0.0 {
            progress.rate = float(had.saturating_sub(before)) / seconds;
        }
        if let Some(total) = total.filter(|total| *total > 0) {
            progress.percent = (float(had) * 100.0 / float(total)).min(100.0);
        }
        progress.complete = complete;
        progress.shown = Some((had, now.mono));
        true
    }

    /// The file under way is here, or cannot be had.
    pub fn obtained(
        &mut self,
        round: u64,
        result: Result<(), Unobtained>,
        now: Now,
        orders: &mut Vec<Wanted>,
    ) -> Taken {
        let Some(sync) = self.sync.as_mut().filter(|sync| sync.awaits(round)) else {
            return Taken::Ignored;
        };
        if let Err(error) = result {
            self.transient_at = error.transient.then_some(now.mono);
            self.transients = if error.transient { self.transients.saturating_add(1) } else { 0 };
            return Taken::Concluded(self.give_up(&error));
        }
        self.transients = 0;
        sync.wanted.pop_front();
        sync.progress = Progress::default();
        if let Some(next) = sync.wanted.front().cloned() {
            orders.push(next);
            return Taken::Working;
        }
        match self.sync.take() {
            Some(sync) => self.ready(sync.plan),
            None => Taken::Ignored,
        }
    }

    /// One file cannot be had: nothing of the set is installed.
    fn give_up(&mut self, error: &Unobtained) -> PackagesOutcome {
        let sync = self.sync.take();
        let culprit = sync.as_ref().and_then(|sync| sync.wanted.front());
        let culprit = culprit.map(|wanted| wanted.warrant.member().name.clone());
        let plan = sync.map(|sync| sync.plan).unwrap_or_default();
        let changed = plan.members.iter().filter(|member| plan.changed.contains(&member.name));
        let failed = changed.map(|member| PackageFailure {
            name: member.offered_name().to_owned(),
            version: member.version.clone(),
            hash: member.hash.clone(),
            error: match &culprit {
                Some(name) if *name != member.name => with_others(name),
                _ => cut(error.text.clone()),
            },
        });
        let failed = failed.collect();
        PackagesOutcome {
            hash: plan.hash,
            error: String::new(),
            failed,
            transient: error.transient,
        }
    }

    /// What an offer came to, for the log.
    #[must_use]
    pub fn says(&self, taken: &Taken) -> Option<String> {
        let named = |member: &Member| format!("{} {}", member.name, member.version);
        match taken {
            Taken::Ignored => None,
            Taken::Working => {
                let next = self.sync.as_ref()?.wanted.front()?;
                Some(format!("obtaining package {}", named(next.warrant.member())))
            }
            Taken::Ready(plan) => {
                let all: Vec<String> = plan.members.iter().map(named).collect();
                Some(format!("the packages to install are there: {}", all.join(", ")))
            }
            Taken::Concluded(outcome) => {
                let first = outcome.failed.iter().find(|it| !it.error.starts_with(OTHERS));
                let first = first.map(|it| format!("{} {}: {}", it.name, it.version, it.error));
                let error = Some(&outcome.error).filter(|error| !error.is_empty()).cloned();
                let why = first.or(error)?;
                Some(cut(format!("the offered packages are not installed: {why}")))
            }
        }
    }

    /// SHA-256 of the files that are still to come.
    #[must_use]
    pub fn awaited(&self) -> Vec<Digest> {
        let wanted = self.sync.iter().flat_map(|sync| &sync.wanted);
        wanted.map(|wanted| wanted.warrant.member().sha256).collect()
    }

    /// PackageStatuses as they stand (opamp-spec L1469 to L1594).
    #[must_use]
    pub fn statuses(&self, rollout: &Rollout) -> PackageStatuses {
        let memory = &rollout.memory().packages;
        let mut statuses: BTreeMap<String, PackageStatus> = self
            .offered_members()
            .map(|member| {
                let name = member.offered_name().to_owned();
                let mut status = of(member, PackageStatusEnum::Installed);
                status.agent_has_version.clone_from(&member.version);
                status.agent_has_hash = member.hash.clone();
                (name, status)
            })
            .collect();
        let mut put = |new: PackageStatus| {
            let had = statuses.remove(&new.name).unwrap_or_default();
            let PackageStatus { agent_has_version, agent_has_hash, .. } = had;
            let status = PackageStatus { agent_has_version, agent_has_hash, ..new };
            statuses.insert(status.name.clone(), status);
        };
        let under_way = self.sync.as_ref().map(|sync| &sync.plan).or_else(|| rollout.plan());
        let concluding = rollout.concluding();
        if let Some(plan) = under_way {
            for member in plan.members.iter().filter(|it| plan.changed.contains(&it.name)) {
                put(match &self.sync {
                    Some(sync) => sync.status(member),
                    None => of(member, PackageStatusEnum::Installing),
                });
            }
        } else {
            // An outcome is on the disk before it is told: until then no older one is told in its place.
            let (failed, status) = match concluding {
                Some(outcome) => (&outcome.failed, PackageStatusEnum::InstallPending),
                None => (&memory.failed, PackageStatusEnum::InstallFailed),
            };
            for failure in failed {
                let told = status == PackageStatusEnum::InstallFailed;
                put(PackageStatus {
                    name: failure.name.clone(),
                    server_offered_version: failure.version.clone(),
                    server_offered_hash: failure.hash.clone(),
                    status: status.into(),
                    error_message: if told { failure.error.clone() } else { String::new() },
                    ..PackageStatus::default()
                });
            }
        }
        let hash = concluding.map(|outcome| &outcome.hash);
        let received = under_way.map(|plan| &plan.hash).or(hash).or(memory.received.as_ref());
        let error = concluding.map_or(&memory.error, |outcome| &outcome.error);
        PackageStatuses {
            packages: statuses.into_iter().collect(),
            server_provided_all_packages_hash: received.map(given).unwrap_or_default(),
            error_message: if under_way.is_none() { error.clone() } else { String::new() },
        }
    }

    /// The member whose manifest expired first: the server may be holding back what is newer. And when that will
    /// be looked at again: the next one expires.
    #[must_use]
    pub fn stale(&self, memory: &Packaged, now: Now) -> (Option<&Member>, Option<Mono>) {
        let trusted = clock::trusted_wall(now.wall, memory.seen);
        let expire = self.installed.iter().filter(|member| member.expires_at != 0);
        let (stale, fresh): (Vec<_>, Vec<_>) =
            expire.partition(|member| member.expires_at <= trusted.0.as_secs());
        let next = fresh.iter().map(|member| Duration::from_secs(member.expires_at)).min();
        // A clock that is behind what was signed tells nothing: every event looks.
        let next = next.filter(|_| trusted == now.wall);
        let next = next.map(|at| now.mono.after(at.saturating_sub(now.wall.0)));
        (stale.into_iter().min_by_key(|member| member.expires_at), next)
    }
}

impl Sync {
    fn awaits(&self, round: u64) -> bool {
        self.wanted.front().is_some_and(|wanted| wanted.round == round)
    }

    fn status(&self, member: &Member) -> PackageStatus {
        let at = self.wanted.iter().position(|it| it.warrant.member().name == member.name);
        match at {
            None => of(member, PackageStatusEnum::Installing),
            Some(0) if self.progress.complete => of(member, PackageStatusEnum::Installing),
            Some(0) => PackageStatus {
                download_details: Some(PackageDownloadDetails {
                    download_percent: self.progress.percent,
                    download_bytes_per_second: self.progress.rate,
                }),
                ..of(member, PackageStatusEnum::Downloading)
            },
            Some(_) => of(member, PackageStatusEnum::InstallPending),
        }
    }
}

fn of(member: &Member, status: PackageStatusEnum) -> PackageStatus {
    PackageStatus {
        name: member.offered_name().to_owned(),
        server_offered_version: member.version.clone(),
        server_offered_hash: member.hash.clone(),
        status: status.into(),
        ..PackageStatus::default()
    }
}

/// How the reason begins of what is not installed for another package's sake.
const OTHERS: &str = "not installed:";

fn with_others(culprit: &str) -> String {
    format!("{OTHERS} {culprit}, offered with it, failed")
}

/// The hash that an offer is known by (opamp-spec L2901 asks for one). Where its files lie does not count: a URL may be
/// signed anew each time.
fn known_by(offer: &PackagesAvailable) -> Bytes {
    let packages: BTreeMap<_, _> = offer.packages.iter().collect();
    let kinds: Vec<[u8; 4]> = packages.values().map(|it| it.r#type.to_be_bytes()).collect();
    let parts = packages.iter().zip(&kinds).flat_map(|((name, package), kind)| {
        let file = package.file.as_ref();
        let of_file = |part: fn(&DownloadableFile) -> &Bytes| file.map_or(&[][..], |it| part(it));
        [
            name.as_bytes(),
            package.version.as_bytes(),
            &package.hash,
            of_file(|file| &file.content_hash),
            of_file(|file| &file.signature),
            kind,
        ]
    });
    called(&offer.all_packages_hash, parts)
}

/// Warrants for all, or why each cannot be installed: one bad package and none of the set is.
fn approve(
    policy: &Policy,
    offer: &PackagesAvailable,
    known: &Known<'_>,
) -> Result<Vec<(Warrant, DownloadableFile)>, Vec<PackageFailure>> {
    let mut offered: Vec<(&String, &PackageAvailable)> = offer.packages.iter().collect();
    offered.sort_by_key(|(name, _)| *name);
    let mut approved = Vec::new();
    let mut bound: Vec<(&String, Option<String>)> = Vec::new();
    let mut refused: BTreeMap<&String, String> = BTreeMap::new();
    for (name, package) in &offered {
        let too_long = package.file.as_ref().is_some_and(|file| file.download_url.len() > MAX_URL);
        match policy.approve(name, package, known) {
            _ if too_long => {
                refused.insert(name, format!("its download_url is longer than {MAX_URL} bytes"));
            }
            Ok((warrant, set)) => {
                bound.push((name, set));
                approved.push((warrant, package.file.clone().unwrap_or_default()));
            }
            Err(reason) => {
                refused.insert(name, reason);
            }
        }
    }
    let tops = offered.iter().filter(|(_, package)| package.r#type == 0).count();
    if tops > 1
        && let Some((name, _)) = offered.iter().find(|(name, _)| name.is_empty())
    {
        refused.insert(name, "only the one top-level package may have no name".to_owned());
    }
    // Packages that were released together are installed together.
    if let Some((of, Some(set))) = bound.iter().find(|(_, set)| set.is_some()) {
        for (name, other) in bound.iter().filter(|(_, other)| other.as_ref() != Some(set)) {
            let other = other.as_deref().unwrap_or("none");
            let text = format!(
                "its manifest binds it to the set \"{other}\", and that of {of} to \"{set}\""
            );
            refused.insert(name, text);
        }
    }
    let Some(culprit) = refused.keys().next().map(|name| (*name).clone()) else {
        return Ok(approved);
    };
    let failed = offered.into_iter().map(|(name, package)| {
        let error = refused.remove(name).map_or_else(|| with_others(&culprit), cut);
        failure(name, package, error)
    });
    Err(failed.collect())
}

fn failure(name: &str, package: &PackageAvailable, error: String) -> PackageFailure {
    PackageFailure {
        name: cut_to(name, set::MAX_NAME),
        version: cut_to(&package.version, set::MAX_VERSION),
        hash: Bytes::copy_from_slice(&package.hash),
        error,
    }
}

/// A text from outside, cut to a bound at a character.
fn cut_to(text: &str, most: usize) -> String {
    text.chars()
        .scan(0_usize, |length, letter| {
            *length = length.saturating_add(letter.len_utf8());
            (*length <= most).then_some(letter)
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "for a percentage")]
const fn float(bytes: u64) -> f64 {
    bytes as f64
}
