//! Health as OpAMP carries it: a tree of components, each with a status and a last error.

use std::collections::BTreeMap;

use chiton_proto::ComponentHealth;

use super::supervision::{State, Supervision};
use crate::clock::Now;

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckResult {
    /// Its kind and target, as it is reported.
    pub name: String,
    /// Why it failed.
    pub failure: Option<String>,
}

/// What health is made of.
#[derive(Clone, Debug)]
pub struct Health {
    /// When Chiton started.
    started: Now,
    /// There are checks: without a result of theirs nobody knows that the workload is well.
    has_checks: bool,
    /// The last results.
    checks: Vec<CheckResult>,
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
        Self { started: now, has_checks, checks: Vec::new(), status: (String::new(), now) }
    }

    /// Whether something beside the process being alive is checked from now on.
    pub fn expect(&mut self, has_checks: bool) {
        self.has_checks = has_checks;
        if !has_checks {
            self.checks.clear();
        }
    }

    /// Takes new results.
    pub fn checked(&mut self, results: Vec<CheckResult>) {
        self.checks = results;
    }

    /// Forgets results: the process they were about is gone.
    pub fn clear(&mut self) {
        self.checks.clear();
    }

    /// The checks that fail now.
    pub fn failing(&self) -> impl Iterator<Item = &CheckResult> {
        self.checks.iter().filter(|check| check.failure.is_some())
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
        let last_error = if let Some(check) = self.failing().next().filter(|_| running.is_some()) {
            format!("check {} failed: {}", check.name, check.failure.as_deref().unwrap_or_default())
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
        };
        for check in core::iter::once(&alive).chain(&self.checks) {
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
            attributes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use core::time::Duration;

    use super::*;
    use crate::clock::{Mono, Wall};
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
        health.checked(vec![CheckResult { name: "http x".to_owned(), failure: None }]);
        let tree = health.tree(Some(&supervision), false);
        assert!(tree.healthy && tree.last_error.is_empty());

        health.checked(vec![CheckResult {
            name: "http x".to_owned(),
            failure: Some("refused".to_owned()),
        }]);
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
