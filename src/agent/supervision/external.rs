//! A workload that the init system owns: watched, and asked to change; never started or ended by us.
//!
//! ```text
//!              ask ──▶ executor ──▶ told ──▶ a main process runs ──▶ answer: done
//!                                    │ failed      │ none in time (after a restart: none but the old one)
//!                                    └─────────────┴──────────────▶ answer: why not
//! ```
//!
//! While something is asked, processes may go and come. At any other time the end of the main process, or another one
//! in its place, is a crash.

use core::time::Duration;

use super::{Order, State, Supervision};
use crate::clock::{Mono, Now, Wall};
use crate::settings::Apply;

/// One process: a pid that was given out again later is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// When it began, in the kernel's clock ticks since boot.
    pub start: u64,
}

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Stop and start: the main process is to be another one afterwards.
    Restart,
    /// Read the configuration again.
    Reload,
    /// The command of `apply`.
    Apply,
}

/// What an observation comes to, for the rest of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// It died or was replaced, and nobody here asked for that: how.
    pub crash: Option<String>,
    /// What was asked is done, or is not.
    pub answer: Option<Result<(), String>>,
}

/// What there is to know about a workload of the init system's.
#[derive(Clone, Debug)]
pub(super) struct External {
    /// There is a way to restart it.
    restarts: bool,
    /// How long its main process may take to appear.
    patience: Duration,
    main: Option<(Process, Now)>,
    asked: Option<Asked>,
}

/// What is being asked.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// [`None`]: there is no way to ask while nothing runs; the init system's own start is waited for.
    ask: Option<Ask>,
    /// What was the main process before; known once the executor has answered.
    before: Option<Process>,
    /// Since then: until when a main process is waited for.
    until: Option<Mono>,
    /// For the wait alone: since when. An older process has not read what is in place now.
    since: Mono,
    /// To be asked when the executor has answered.
    next: Option<Ask>,
}

impl Supervision {
    /// A workload that the init system owns.
    #[must_use]
    pub fn external(restarts: bool, patience: Duration) -> Self {
        let external = External { restarts, patience, main: None, asked: None };
        Self { external: Some(external), ..Self::new(crate::settings::Backoff::default()) }
    }

    /// Whether the init system owns it.
    #[must_use]
    pub const fn is_external(&self) -> bool {
        self.external.is_some()
    }

    /// Makes it read what has just become the running generation.
    pub fn apply(&mut self, apply: &Apply, now: Now, out: &mut Vec<Order>) {
        let Some(external) = &mut self.external else { return };
        let runs = external.main.is_some();
        let ask = match apply {
            Apply::Reload if runs => Ask::Reload,
            Apply::Command(_) if runs => Ask::Apply,
            _ if external.restarts => Ask::Restart,
            Apply::Command(_) => Ask::Apply,
            Apply::Restart | Apply::Reload => {
                let until = Some(now.mono.after(external.patience));
                external.asked = Some(Asked { until, since: now.mono, ..Asked::new(None) });
                self.rest();
                return;
            }
        };
        self.ask(ask, out);
    }

    /// Asks for a restart, where there is a way.
    pub(super) fn ask_restart(&mut self, out: &mut Vec<Order>) {
        if self.external.as_ref().is_some_and(|external| external.restarts) {
            self.ask(Ask::Restart, out);
        }
    }

    fn ask(&mut self, ask: Ask, out: &mut Vec<Order>) {
        let Some(external) = &mut self.external else { return };
        match &mut external.asked {
            // One at a time. A restart does what the others do.
            Some(asked) if asked.until.is_none() => {
                if asked.next != Some(Ask::Restart) {
                    asked.next = Some(ask);
                }
            }
            _ => {
                external.asked = Some(Asked::new(Some(ask)));
                out.push(Order::Ask(ask));
            }
        }
        self.rest();
    }

    /// Its main process is this one, `age` old.
    pub fn seen(
        &mut self,
        process: Process,
        age: Duration,
        now: Now,
        out: &mut Vec<Order>,
    ) -> News {
        let Some(external) = &mut self.external else { return News::default() };
        let since = Now {
            mono: Mono(now.mono.0.saturating_sub(age)),
            wall: Wall(now.wall.0.saturating_sub(age)),
        };
        let before = external.main.replace((process, since)).map(|(before, _)| before);
        if external.asked.is_some() {
            return News { crash: None, answer: self.judge(out) };
        }
        let crash = before.filter(|before| *before != process).map(|before| {
            self.crashes = self.crashes.saturating_add(1);
            format!("has a new main process, {}, in place of {}", process.pid, before.pid)
        });
        if core::mem::take(&mut self.crashes) > 0 {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.rest();
        News { crash, answer: None }
    }

    /// It has no main process. `why` says how one knows.
    pub fn gone(&mut self, why: String) -> News {
        let Some(external) = &mut self.external else { return News::default() };
        let before = external.main.take();
        let crash = before.filter(|_| external.asked.is_none()).map(|(before, _)| {
            self.crashes = self.crashes.saturating_add(1);
            format!("has lost its main process {}: {why}", before.pid)
        });
        self.last_error = Some(why);
        self.rest();
        News { crash, answer: None }
    }

    /// The executor has asked. `before` was the main process then.
    pub fn told(
        &mut self,
        before: Option<Process>,
        result: Result<(), String>,
        now: Now,
        out: &mut Vec<Order>,
    ) -> News {
        let Some(external) = &mut self.external else { return News::default() };
        let until = now.mono.after(external.patience);
        let Some(asked) = external.asked.as_mut().filter(|asked| asked.until.is_none()) else {
            return News::default();
        };
        (asked.before, asked.until) = (before, Some(until));
        let answer = match result {
            Ok(()) => self.judge(out),
            Err(error) => self.finish(Err(error), out),
        };
        News { crash: None, answer }
    }

    /// Gives up on a main process that does not appear.
    pub fn overdue(&mut self, now: Now, out: &mut Vec<Order>) -> News {
        let Some(external) = &self.external else { return News::default() };
        if self.asked_until().is_none_or(|until| until > now.mono) {
            return News::default();
        }
        let patience = external.patience;
        let why = self.last_error.as_deref().unwrap_or_default();
        let text = match external.main {
            Some((main, _)) => format!(
                "the workload was to be restarted, and its main process still is {} after {patience:?}",
                main.pid
            ),
            None => format!("the workload does not run after {patience:?}: {why}"),
        };
        News { crash: None, answer: self.finish(Err(text), out) }
    }

    /// Until when a main process is waited for.
    pub(super) fn asked_until(&self) -> Option<Mono> {
        self.external.as_ref()?.asked?.until
    }

    /// Whether what was asked, and told, has come about.
    fn judge(&mut self, out: &mut Vec<Order>) -> Option<Result<(), String>> {
        self.rest();
        let external = self.external.as_mut()?;
        let asked = external.asked.as_mut().filter(|asked| asked.until.is_some())?;
        let (main, since) = external.main?;
        match asked.ask {
            Some(Ask::Restart) if asked.before == Some(main) => None,
            // It began before what it is to read was in place.
            None if since.mono < asked.since => {
                *asked = Asked::new(Some(Ask::Reload));
                out.push(Order::Ask(Ask::Reload));
                None
            }
            _ => self.finish(Ok(()), out),
        }
    }

    fn finish(
        &mut self,
        result: Result<(), String>,
        out: &mut Vec<Order>,
    ) -> Option<Result<(), String>> {
        let asked = self.external.as_mut()?.asked.take();
        self.rest();
        match asked?.next {
            // Its outcome is the answer to both.
            Some(next) => {
                self.ask(next, out);
                None
            }
            None => Some(result),
        }
    }

    /// The state as it follows from what is known.
    fn rest(&mut self) {
        let Some(external) = &self.external else { return };
        let restarting =
            external.asked.is_some_and(|asked| matches!(asked.ask, Some(Ask::Restart)));
        self.state = match external.main {
            Some(_) if restarting => State::Stopping { again: true },
            Some((main, since)) => State::Running { pid: main.pid, since },
            None if external.asked.is_some() => State::Starting,
            None => State::Stopped,
        };
        if self.is_running() {
            self.last_error = None;
        }
    }
}

impl Asked {
    fn new(ask: Option<Ask>) -> Self {
        Self { ask, before: None, until: None, since: Mono::default(), next: None }
    }
}
