//! A workload that the init system owns: what is seen of it becomes events, what is asked of it a command or SIGHUP.

use core::time::Duration;
use std::rc::Rc;

use smol::Task;

use super::commands::{COMMAND_TIMEOUT, outcome};
use super::{Input, Runtime};
use crate::agent::Event;
use crate::agent::session::Tone;
use crate::agent::supervision::{Ask, Process};
use crate::reactor::Timer;
use crate::settings::{Apply, External as Rules, ExternalBy, Owner, Settings};
use crate::workload::command;
use crate::workload::external::{self, Finder};
use crate::workload::usage::Target;

/// While nothing runs, the next look is so far off, then twice that, and so on…
const FIRST_LOOK: Duration = Duration::from_millis(25);
/// …up to this, or `check_interval` where that is shorter.
const LAST_LOOK: Duration = Duration::from_secs(10);

/// The eyes on it.
pub(super) struct External {
    rules: Rules,
    finder: Finder,
    /// As last seen, or why there is none; [`None`] before the first look.
    seen: Option<Result<Process, String>>,
    /// Until the next look while nothing runs.
    pause: Duration,
    check_interval: Duration,
    /// Says when to look again. Dropped, it watches no more.
    watch: Option<Task<()>>,
}

impl External {
    /// For these settings, where the init system owns the workload.
    pub(super) fn new(settings: &Settings) -> Option<Self> {
        let Owner::External(rules) = &settings.workload.as_ref()?.owner else { return None };
        Some(Self {
            rules: rules.clone(),
            finder: Finder::new(rules.by.clone()),
            seen: None,
            pause: FIRST_LOOK,
            check_interval: settings.health.check_interval,
            watch: None,
        })
    }

    /// Whose use is its use.
    pub(super) fn target(&self) -> Option<Target> {
        let process = self.main()?;
        self.finder.cgroup().map(Target::Cgroup).or_else(|| Target::of(process.pid))
    }

    fn main(&self) -> Option<Process> {
        self.seen.as_ref()?.as_ref().ok().copied()
    }

    /// The commands that ask for something, the last one deciding; none: SIGHUP.
    fn commands(&self, ask: Ask, apply: &Apply) -> Vec<Vec<String>> {
        let systemctl = |verb: &str, unit: &str| {
            ["systemctl", verb, unit].into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        match (ask, &self.rules.by, apply) {
            (Ask::Restart, ExternalBy::Unit(unit), _) if self.rules.restart.is_empty() => {
                // A unit that crashed too often is not started again before that is forgiven, and the way back must
                // never be refused.
                vec![systemctl("reset-failed", unit), systemctl("restart", unit)]
            }
            (Ask::Restart, ..) => vec![self.rules.restart.clone()],
            (Ask::Reload, ExternalBy::Unit(unit), _) if self.rules.reload.is_empty() => {
                vec![systemctl("reload", unit)]
            }
            (Ask::Reload, ..) if self.rules.reload.is_empty() => Vec::new(),
            (Ask::Reload, ..) => vec![self.rules.reload.clone()],
            (Ask::Apply, _, Apply::Command(words)) => vec![words.clone()],
            (Ask::Apply, ..) => Vec::new(),
        }
    }
}

impl Runtime<'_> {
    /// Looks for the main process, and tells what has changed since the last look.
    pub(super) fn look(&mut self) {
        let Some(external) = &mut self.external else { return };
        let found = external.finder.find();
        let changed = external.seen.as_ref() != Some(&found);
        if changed || external.watch.as_ref().is_none_or(Task::is_finished) {
            let inbox = Rc::clone(&self.inbox);
            let (pause, check_interval) = (external.pause, external.check_interval);
            let target = found.clone().ok();
            external.pause = match target {
                Some(_) => FIRST_LOOK,
                None => pause.saturating_mul(2).min(LAST_LOOK).min(check_interval),
            };
            let watching = async move {
                match target {
                    Some(process) => external::ended(process, check_interval).await,
                    None => Timer::after(pause).await,
                }
                inbox.input(Input::Look).await;
            };
            external.watch = Some(self.executor.spawn(watching));
        }
        if !changed {
            return;
        }
        external.seen = Some(found.clone());
        match found {
            Ok(process) => {
                self.say(Tone::Info, &format!("the workload's main process is {}", process.pid));
                let age = external::age(process);
                self.measure_from_here();
                self.aftermath.push_back(Event::WorkloadSeen { process, age });
            }
            Err(why) => {
                self.say(Tone::Info, &format!("the workload does not run: {why}"));
                self.aftermath.push_back(Event::WorkloadGone(why));
            }
        }
    }

    /// Asks it, or the init system.
    pub(super) fn ask(&mut self, ask: Ask) {
        // What is to be changed is what runs now.
        self.look();
        let Some(external) = &self.external else { return };
        let before = external.main();
        let commands = external.commands(ask, &self.settings.remote_config.apply);
        if commands.is_empty() {
            let result = match before {
                Some(process) => {
                    external::hang_up(process).map_err(|error| format!("SIGHUP: {error}"))
                }
                None => Err("it does not run, so it cannot reload".to_owned()),
            };
            return self.aftermath.push_back(Event::WorkloadTold { before, result });
        }
        let specs: Vec<_> = commands.iter().map(|words| self.running_spec(words)).collect();
        let inbox = Rc::clone(&self.inbox);
        let asking = async move {
            let mut result = Ok(());
            for spec in specs {
                result = match spec {
                    Ok(spec) => outcome(&spec, &command::run(&spec, COMMAND_TIMEOUT).await),
                    Err(error) => Err(error),
                };
            }
            inbox.input(Input::Told(before, result)).await;
        };
        self.executor.spawn(asking).detach();
    }

    /// It has been asked: what has changed by now comes before the answer.
    pub(super) fn told(&mut self, before: Option<Process>, result: Result<(), String>) {
        if let Some(external) = &mut self.external {
            external.pause = FIRST_LOOK;
            external.watch = None;
        }
        self.look();
        self.aftermath.push_back(Event::WorkloadTold { before, result });
    }
}
