//! The workload and the core: started, made to read what is new, checked, helped.

use core::time::Duration;

use super::health::CheckResult;
use super::session::{Session, Tone};
use super::supervision::{self, End, News, State, Supervision};
use super::{Action, Agent, cut, pace};
use crate::clock::Now;
use crate::settings::{Apply, DegradeAction};

impl Agent {
    pub(super) fn ensure_workload(&mut self, actions: &mut Vec<Action>) {
        if self.shutting_down {
            return;
        }
        self.on_workload(actions, Supervision::ensure);
    }

    /// Makes the workload read what has just become the running generation.
    pub(super) fn apply(&mut self, now: Now, actions: &mut Vec<Action>) {
        if self.shutting_down {
            return; // nothing starts again; the next start of Chiton begins from what is committed
        }
        let running = self.state.workload.as_ref().is_some_and(Supervision::is_running);
        let sick = if running { self.state.health.sick() } else { Vec::new() };
        self.state.rollout.sick(sick);
        if let Some(workload) = &mut self.state.workload
            && workload.is_external()
        {
            let apply = self.state.apply().clone();
            return self.on_workload(actions, |workload, out| workload.apply(&apply, now, out));
        }
        let back_to = self.state.rollout.goes_back();
        let back_to_nothing = self.state.waits_for_package().is_some()
            || self.state.config.needs_config
                && back_to.is_some_and(|memory| memory.committed.is_none());
        // The workload cannot run yet: what is placed is one step towards it, and cannot be judged.
        let lacks_package = self.state.waits_for_package().is_some();
        let empty = self.state.rollout.plan().is_some_and(|plan| plan.members.is_empty());
        if back_to.is_none() && lacks_package && !empty && running {
            // Not seen before it was placed; what runs goes on.
            let name = self.state.waits_for_package().unwrap_or_default().to_owned();
            let text = format!("it has no package {name}, which opamp.workload.command names");
            return self.applied(Err(text), now, actions);
        }
        let unjudged = back_to.is_none()
            && (lacks_package
                || self.state.config.needs_config && !self.state.packages.has_config());
        match self.state.apply() {
            _ if unjudged => {
                if lacks_package {
                    self.on_workload(actions, Supervision::stop);
                }
                self.on_rollout(now, actions, |rollout, out| {
                    rollout.placed(now, out);
                    false
                });
            }
            _ if self.state.workload.is_none() => self.applied(Ok(()), now, actions),
            _ if back_to_nothing => {
                self.on_workload(actions, Supervision::stop);
                self.applied(Ok(()), now, actions);
            }
            Apply::Reload if running => actions.push(Action::Reload),
            Apply::Command(_) if running => actions.push(Action::RunApply),
            Apply::Restart | Apply::Reload | Apply::Command(_) => {
                self.on_workload(actions, Supervision::restart);
            }
        }
    }

    /// The workload took a new configuration, or could not.
    pub(super) fn applied(
        &mut self,
        result: Result<(), String>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if self.state.rollout.applies() {
            self.on_rollout(now, actions, |rollout, out| rollout.applied(result, now, out));
        }
    }

    /// Another process than before is the workload.
    pub(super) fn began(&mut self, now: Now) {
        self.state.health.clear();
        self.measuring.begin(self.metrics_interval(), now);
        self.check_soon(now);
    }

    pub(super) fn workload_exited(&mut self, text: &str, now: Now, actions: &mut Vec<Action>) {
        let mut end = End::Asked;
        self.state.health.clear();
        let said = text.to_owned();
        self.on_workload(actions, |workload, out| end = workload.exited(said, now, out));
        if end == End::Crash {
            let wait = self.state.workload.as_ref().and_then(|workload| workload.waits(now));
            let again =
                wait.map(|wait| format!("; starting it again in {wait:?}")).unwrap_or_default();
            actions.push(Action::Log(Tone::Warning, format!("the workload {text}{again}")));
            self.on_rollout(now, actions, |rollout, out| rollout.crashed(text, now, out));
            // A configuration that was committed a short while ago goes back instead.
            if self.state.rollout.is_idle()
                && let Some((action, why)) = self.state.degrading.crashed(text, now)
            {
                self.degrade(action, &why, now, actions);
            }
        }
    }

    /// What is seen of an external workload, and what it answers.
    pub(super) fn on_external(
        &mut self,
        now: Now,
        actions: &mut Vec<Action>,
        act: impl FnOnce(&mut Supervision, &mut Vec<supervision::Order>) -> News,
    ) {
        let state = |agent: &Self| agent.state.workload.as_ref().map(|it| it.state().clone());
        let before = state(self);
        let mut news = News::default();
        self.on_workload(actions, |workload, out| news = act(workload, out));
        if state(self) != before {
            self.began(now);
        }
        if let Some(text) = news.crash {
            actions.push(Action::Log(Tone::Warning, format!("the workload {text}")));
            self.on_rollout(now, actions, |rollout, out| rollout.crashed(&text, now, out));
        }
        if let Some(result) = news.answer {
            if let Err(error) = &result {
                actions.push(Action::Log(Tone::Warning, error.clone()));
            }
            self.applied(result, now, actions);
        }
    }

    /// The process that runs.
    pub(super) fn pid(&self) -> Option<u32> {
        match self.state.workload.as_ref()?.state() {
            State::Running { pid, .. } => Some(*pid),
            _ => None,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.state.workload.as_ref().is_some_and(Supervision::is_running)
    }

    pub(super) fn metrics_interval(&self) -> Option<Duration> {
        self.state.config.metrics.as_ref().map(|(interval, _)| *interval)
    }

    /// Does what the device's own rules say, and says so.
    pub(super) fn degrade(
        &mut self,
        action: DegradeAction,
        why: &str,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let done = match action {
            DegradeAction::Restart => {
                self.on_workload(actions, Supervision::restart);
                "restarted".to_owned()
            }
            DegradeAction::Use(file) => {
                let done = format!("runs with {}", file.display());
                self.on_rollout(now, actions, |rollout, out| {
                    rollout.substitute(file, out);
                    false
                });
                done
            }
        };
        let text = cut(format!("{done}: {why}"));
        actions.push(Action::Log(Tone::Warning, format!("degrade: {text}")));
        self.state.degraded = Some((text, now));
    }

    /// Whether the checks run at their own interval: there are some, they have a process, and no gate runs them.
    pub(super) fn checks_run(&self) -> bool {
        let running = self.state.workload.as_ref().is_none_or(Supervision::is_running);
        self.state.config.has_checks && running && !self.checking && !self.state.rollout.is_trial()
    }

    pub(super) fn check(&mut self, actions: &mut Vec<Action>) {
        self.check_round = self.check_round.wrapping_add(1);
        self.checking = true;
        actions.push(Action::Check { round: self.check_round });
    }

    /// The results that are known, or under way, are about something else.
    pub(super) fn check_soon(&mut self, now: Now) {
        // Soon, so that a restart does not look ill for a whole interval; then at leisure.
        self.next_check = Some(now.mono.after(self.state.config.first_check));
        self.check_round = self.check_round.wrapping_add(1);
        self.checking = false;
        self.state.rollout.unchecked(now);
    }

    pub(super) fn checked(
        &mut self,
        round: u64,
        results: Vec<CheckResult>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if round != self.check_round {
            return;
        }
        self.checking = false;
        let beat = self.session.as_ref().and_then(Session::beat);
        self.next_check = Some(pace::in_step(now.mono, self.state.config.check_interval, beat));
        let running = self.state.workload.as_ref().is_none_or(Supervision::is_running);
        if !running {
            // They say nothing about the candidate: a restart is under way. The gate asks again.
            self.state.rollout.unchecked(now);
            return;
        }
        self.on_rollout(now, actions, |rollout, out| {
            rollout.checked(&results, now, out);
            false
        });
        if results.iter().all(|check| check.failure.is_none())
            && let Some(workload) = &mut self.state.workload
        {
            workload.proven();
        }
        self.state.health.checked(results, self.state.config.rounds, now);
        if self.state.rollout.is_idle()
            && let Some((action, why)) =
                self.state.degrading.checked(self.state.health.reported(), now)
        {
            self.degrade(action, &why, now, actions);
        }
    }
}
