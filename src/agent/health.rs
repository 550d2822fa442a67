//! Health as OpAMP carries it: a tree of components, each with a status and a last error.

use core::time::Duration;
use std::collections::BTreeMap;

use chiton_proto::{ComponentHealth, KeyValue};

use super::cut;
use super::supervision::{State, Supervision};
use crate::clock::{Mono, Now};

/// While a check goes on failing, other words for it (another figure, another line of output) are reported no sooner.
const REWORDED_AFTER: Duration = Duration::from_secs(60);

/// The outcome of one check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckResult {
    /// Its kind and target, as it is reported.
    pub name: String,
    /// Why it failed.
    pub failure: Option<String>,
    /// What a pass is worth.
    pub pass: Pass,
}

/// What a pass is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pass {
    /// It passed.
    #[default]
    Clear,
    /// It passed, so close to its limit that one that had failed is not well yet.
    Near,
    /// It takes a second figure to say anything.
    Unmeasured,
}

/// Rounds in a row before another outcome is reported.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    /// Of failures.
    pub unhealthy_after: u32,
    /// Of passes.
    pub healthy_after: u32,
}

/// One check: what is reported of it, and what speaks against that.
#[derive(Clone, Debug)]
struct Judged {
    reported: CheckResult,
    /// The last round failed.
    failed: bool,
    /// Rounds in a row with another outcome.
    against: u32,
    /// When its failure was put into these words.
    worded: Mono,
}

impl Judged {
    fn new(result: CheckResult, before: Option<&Self>, rounds: Rounds, now: Mono) -> Self {
        let failure = result.failure.map(cut);
        let fresh = Self {
            failed: failure.is_some(),
            reported: CheckResult { failure, ..result },
            against: 0,
            worded: now,
        };
        // What has no past is taken as it is.
        let Some(before) = before else { return fresh };
        let (was, is) = (before.reported.failure.is_some(), fresh.failed);
        let against = match (was, is) {
            (true, false) if fresh.reported.pass == Pass::Near => 0,
            (true, true) | (false, false) => 0,
            _ => before.against.saturating_add(1),
        };
        let needed = if was { rounds.healthy_after } else { rounds.unhealthy_after };
        let reworded = was && is && now.since(before.worded) >= REWORDED_AFTER;
        if reworded || (was, is) == (false, false) || against >= needed {
            return fresh;
        }
        Self { failed: is, against, ..before.clone() }
    }
}

/// What health is made of.
#[derive(Clone, Debug)]
pub struct Health {
    /// When Chiton started.
    started: Now,
    /// There are checks: without a result of theirs nobody knows that the workload is well.
    has_checks: bool,
    /// The checks as they are reported.
    checks: Vec<Judged>,
    /// The figures last measured.
    attributes: Vec<KeyValue>,
    /// The status as last reported, and since when it holds.
    status: (String, Now),
}

/// Where the workload stands, in a word or two.
fn describe(workload: Option<&Supervision>, waits_for_config: bool) -> &'static str {
    match workload.map(Supervision::state) {
        None => "no workload",
        Some(State::Running { .. }) => "running",
        Some(State::Starting) => "starting",
        Some(State::Stopping { again: true } | State::Waiting { .. }) => "restarting",
        Some(State::Stopping { again: false }) => "stopping",
        Some(State::Stopped) if waits_for_config => "waiting for a configuration",
        Some(State::Stopped) => "stopped",
    }
}

impl Health {
    /// Nothing known yet. `has_checks`: something beside the process being alive will be checked.
    #[must_use]
    pub fn new(has_checks: bool, now: Now) -> Self {
        Self {
            started: now,
            has_checks,
            checks: Vec::new(),
            attributes: Vec::new(),
            status: (String::new(), now),
        }
    }

    /// Whether something beside the process being alive is checked from now on.
    pub fn expect(&mut self, has_checks: bool) {
        self.has_checks = has_checks;
        if !has_checks {
            self.checks.clear();
        }
    }

    /// Takes the results of a round.
    pub fn checked(&mut self, results: Vec<CheckResult>, rounds: Rounds, now: Now) {
        let before = core::mem::take(&mut self.checks);
        let judge = |result: CheckResult| {
            let before = before.iter().find(|check| check.reported.name == result.name);
            Judged::new(result, before, rounds, now.mono)
        };
        self.checks = results.into_iter().map(judge).collect();
    }

    /// Takes new figures.
    pub fn measured(&mut self, attributes: Vec<KeyValue>) {
        self.attributes = attributes;
    }

    /// Forgets results and figures: the process they were about is gone.
    pub fn clear(&mut self) {
        self.checks.clear();
        self.attributes.clear();
    }

    /// The checks as they are reported.
    pub fn reported(&self) -> impl Iterator<Item = &CheckResult> {
        self.checks.iter().map(|check| &check.reported)
    }

    /// The names of the checks that are reported as failed, or failed in the last round.
    pub fn sick(&self) -> Vec<String> {
        let sick = self.checks.iter().filter(|it| it.failed || it.reported.failure.is_some());
        sick.map(|check| check.reported.name.clone()).collect()
    }

    /// The first check that is reported as failed, with the reason.
    fn failing(&self) -> Option<(&str, &str)> {
        self.reported().find_map(|check| Some((check.name.as_str(), check.failure.as_deref()?)))
    }

    /// Whether there are results, and all are good.
    #[must_use]
    pub fn is_well(&self) -> bool {
        !self.checks.is_empty() && self.sick().is_empty()
    }

    /// Notes the time at which the status changes.
    pub fn note(&mut self, workload: Option<&Supervision>, waits_for_config: bool, now: Now) {
        let status = describe(workload, waits_for_config);
        if self.status.0 != status {
            self.status = (status.to_owned(), now);
        }
    }

    /// The tree: the agent as OpAMP sees it, in it the workload with its checks, and Chiton itself.
    #[must_use]
    pub fn tree(&self, workload: Option<&Supervision>, waits_for_config: bool) -> ComponentHealth {
        let mut children = BTreeMap::new();
        let chiton = ComponentHealth {
            healthy: true,
            start_time_unix_nano: self.started.wall.unix_nanos(),
            status: "running".to_owned(),
            status_time_unix_nano: self.started.wall.unix_nanos(),
            ..ComponentHealth::default()
        };
        children.insert("chiton".to_owned(), chiton);
        let Some(supervision) = workload else {
            return ComponentHealth {
                healthy: true,
                status: describe(None, false).to_owned(),
                status_time_unix_nano: self.status.1.wall.unix_nanos(),
                component_health_map: children,
                ..ComponentHealth::default()
            };
        };
        let workload = self.workload(supervision, waits_for_config);
        let root = ComponentHealth {
            healthy: workload.healthy,
            start_time_unix_nano: workload.start_time_unix_nano,
            last_error: workload.last_error.clone(),
            status: workload.status.clone(),
            status_time_unix_nano: workload.status_time_unix_nano,
            component_health_map: BTreeMap::new(),
            attributes: Vec::new(),
        };
        children.insert("workload".to_owned(), workload);
        ComponentHealth { component_health_map: children, ..root }
    }

    fn workload(&self, supervision: &Supervision, waits_for_config: bool) -> ComponentHealth {
        let running = match supervision.state() {
            State::Running { since, .. } => Some(*since),
            _ => None,
        };
        // opamp-spec L1323: 0 while it does not run.
        let start_time = running.map_or(0, |since| since.wall.unix_nanos());
        let last_error = if let Some((name, why)) = self.failing().filter(|_| running.is_some()) {
            format!("check {name} failed: {why}")
        } else if running.is_some() && self.has_checks && self.checks.is_empty() {
            "it has started; its checks have not run yet".to_owned()
        } else if running.is_some() {
            String::new()
        } else if let Some(error) = supervision.last_error() {
            error.to_owned()
        } else if waits_for_config {
            "no configuration has arrived yet, and there is no local_config_path".to_owned()
        } else {
            describe(Some(supervision), false).to_owned()
        };
        let mut checks = BTreeMap::new();
        let alive = CheckResult {
            name: "process-alive".to_owned(),
            failure: running.is_none().then(|| last_error.clone()),
            pass: Pass::Clear,
        };
        for check in core::iter::once(&alive).chain(self.reported()) {
            let health = ComponentHealth {
                healthy: check.failure.is_none(),
                start_time_unix_nano: start_time,
                last_error: check.failure.clone().unwrap_or_default(),
                status: if check.failure.is_none() { "passed" } else { "failed" }.to_owned(),
                ..ComponentHealth::default()
            };
            checks.insert(check.name.clone(), health);
        }
        ComponentHealth {
            healthy: last_error.is_empty(),
            start_time_unix_nano: start_time,
            last_error,
            status: self.status.0.clone(),
            status_time_unix_nano: self.status.1.wall.unix_nanos(),
            component_health_map: checks,
            attributes: self.attributes.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::clock::Wall;
    use crate::settings::Backoff;

    fn at(seconds: u64) -> Now {
        Now {
            mono: Mono(Duration::from_secs(seconds)),
            wall: Wall(Duration::from_secs(seconds.saturating_add(1_000))),
        }
    }

    fn supervision() -> Supervision {
        Supervision::new(Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) })
    }

    const ONCE: Rounds = Rounds { unhealthy_after: 1, healthy_after: 1 };

    fn result(name: &str, failure: Option<&str>) -> CheckResult {
        let failure = failure.map(str::to_owned);
        CheckResult { name: name.to_owned(), failure, pass: Pass::Clear }
    }

    /// What is reported after each of these rounds of one check, a second apart.
    fn reported(rounds: Rounds, results: &[(Option<&str>, Pass)]) -> Vec<Option<String>> {
        let mut health = Health::new(true, at(0));
        let round = |(seconds, (failure, pass)): (u64, &(Option<&str>, Pass))| {
            let result = CheckResult { pass: *pass, ..result("a", *failure) };
            health.checked(vec![result], rounds, at(seconds));
            health.reported().next().unwrap().failure.clone()
        };
        (0..).zip(results).map(round).collect()
    }

    #[test]
    fn one_round_that_differs_changes_nothing_and_enough_in_a_row_do() {
        const FAIL: (Option<&str>, Pass) = (Some("x"), Pass::Clear);
        const PASS: (Option<&str>, Pass) = (None, Pass::Clear);
        let rounds = Rounds { unhealthy_after: 2, healthy_after: 3 };
        let told = |results: &[_]| -> Vec<bool> {
            reported(rounds, results).iter().map(Option::is_some).collect()
        };
        assert_eq!(told(&[PASS, FAIL, PASS, FAIL, PASS]), [false; 5]);
        assert_eq!(
            told(&[PASS, FAIL, FAIL, PASS, PASS, FAIL]),
            [false, false, true, true, true, true]
        );
        assert_eq!(told(&[FAIL, PASS, PASS, PASS, FAIL]), [true, true, true, false, false]);
    }

    #[test]
    fn a_figure_at_its_limit_does_not_flap() {
        let over = (Some("over"), Pass::Clear);
        let near = (None, Pass::Near);
        let told = reported(ONCE, &[near, over, near, over, near, (None, Pass::Clear), near]);
        let failed: Vec<bool> = told.iter().map(Option::is_some).collect();
        assert_eq!(failed, [false, true, true, true, true, false, false]);
    }

    #[test]
    fn other_words_for_the_same_failure_are_not_news_for_a_minute() {
        let mut health = Health::new(true, at(0));
        let mut told = |text, seconds| {
            health.checked(vec![result("a", Some(text))], ONCE, at(seconds));
            health.failing().unwrap().1.to_owned()
        };
        assert_eq!(told("301 MiB", 0), "301 MiB");
        assert_eq!(told("302 MiB", 59), "301 MiB");
        assert_eq!(told("303 MiB", 60), "303 MiB");
        assert_eq!(told("304 MiB", 61), "303 MiB");
    }

    #[test]
    fn what_failed_last_is_sick_before_it_is_reported() {
        let mut health = Health::new(true, at(0));
        let rounds = Rounds { unhealthy_after: 2, healthy_after: 2 };
        let round = |health: &mut Health, a, b| {
            health.checked(vec![result("a", a), result("b", b)], rounds, at(1));
            health.sick()
        };
        assert!(round(&mut health, None, None).is_empty());
        assert_eq!(round(&mut health, Some("x"), None), ["a"]);
        assert_eq!(round(&mut health, Some("x"), Some("y")), ["a", "b"]);
        assert_eq!(round(&mut health, None, None), ["a"], "reported still");
        health.clear();
        assert!(health.sick().is_empty());
    }

    #[test]
    fn no_workload_is_healthy_and_has_no_start_time() {
        let mut health = Health::new(false, at(0));
        health.note(None, false, at(0));
        let tree = health.tree(None, false);
        assert!(tree.healthy);
        assert_eq!((tree.status.as_str(), tree.start_time_unix_nano), ("no workload", 0));
    }

    #[test]
    fn start_time_is_there_only_while_it_runs_and_an_error_whenever_it_is_unhealthy() {
        let mut supervision = supervision();
        let mut health = Health::new(true, at(0));
        let mut out = Vec::new();
        supervision.ensure(&mut out);
        supervision.started(9, at(5));
        health.note(Some(&supervision), false, at(5));
        let tree = health.tree(Some(&supervision), false);
        assert!(!tree.healthy, "well before anything was checked");
        assert_eq!(tree.start_time_unix_nano, 1_005_000_000_000);
        health.checked(vec![result("http x", None)], ONCE, at(5));
        let tree = health.tree(Some(&supervision), false);
        assert!(tree.healthy && tree.last_error.is_empty());

        health.checked(vec![result("http x", Some("refused"))], ONCE, at(6));
        let tree = health.tree(Some(&supervision), false);
        assert!(!tree.healthy);
        assert_eq!(tree.last_error, "check http x failed: refused");
        let workload = tree.component_health_map.get("workload").unwrap();
        assert!(!workload.component_health_map.get("http x").unwrap().healthy);
        assert!(workload.component_health_map.get("process-alive").unwrap().healthy);

        supervision.exited("exited with status 1: no such pipeline".to_owned(), at(6), &mut out);
        health.clear();
        let tree = health.tree(Some(&supervision), false);
        assert_eq!(tree.start_time_unix_nano, 0);
        assert_eq!(tree.last_error, "exited with status 1: no such pipeline");
    }
}
