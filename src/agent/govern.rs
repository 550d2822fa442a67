//! What comes from outside the life cycle: other settings, and the server's wish for a restart.

use core::time::Duration;

use super::report::Facets;
use super::session::Tone;
use super::{Action, Agent, Config};
use crate::clock::Now;

/// Between restarts that the server asks for: a flood of commands is no way to keep a workload down.
pub const RESTART_INTERVAL: Duration = Duration::from_secs(10);

/// Settings that are in force from now on.
#[derive(Clone, Debug)]
pub struct Reread {
    /// What the core takes from them.
    pub config: Config,
    /// The effective config is reported otherwise.
    pub redaction: bool,
    /// There are other checks, or they run at another interval.
    pub checks: bool,
}

impl Agent {
    /// The server wants the workload restarted. During a trial it waits for the end of that: a candidate is not to
    /// fail, or to have its window used up, for a restart that has nothing to do with it.
    pub(super) fn restart(&mut self, now: Now, actions: &mut Vec<Action>) {
        let mut ignored = |why: String| {
            actions.push(Action::Log(Tone::Peer, format!("ignored a command to restart: {why}")));
        };
        if self.shutting_down {
            return;
        }
        if self.restarted.is_some_and(|at| now.mono.since(at) < RESTART_INTERVAL) {
            return ignored(format!("another came within the last {RESTART_INTERVAL:?}"));
        }
        if self.state.waits_for_config() {
            return ignored("the workload waits for a configuration".to_owned());
        }
        self.restarted = Some(now.mono);
        self.restart_due = true;
        let text = if self.state.rollout.leaves_workload_alone() {
            "restarting the workload: the server asks for it"
        } else {
            "the server asks for a restart of the workload: it is done after the trial, unless that restarts it"
        };
        actions.push(Action::Log(Tone::Info, text.to_owned()));
    }

    /// Other settings are in force.
    pub(super) fn govern(&mut self, read: Reread, now: Now, actions: &mut Vec<Action>) {
        let Reread { config, redaction, checks } = read;
        self.state.bad_settings = None;
        let before = core::mem::replace(&mut self.state.config, config);
        self.state.rollout.govern(self.state.config.rollout);
        if self.state.packages.govern(self.state.config.packages.clone()) {
            self.state.rollout.forsake_packages();
            self.state.rollout.release();
            actions.push(Action::Prepare { keep: Vec::new() });
        }
        if self.state.config.attributes != before.attributes {
            self.changed(Facets::DESCRIPTION);
        }
        if redaction {
            self.changed(Facets::EFFECTIVE_CONFIG);
        }
        if checks {
            self.state.health.expect(self.state.config.has_checks);
            self.check_soon(now);
        }
        if self.state.config.metrics != before.metrics {
            self.state.health.measured(Vec::new());
            self.measuring.begin(self.metrics_interval(), now);
        }
        self.govern_connection(now, actions);
    }
}
