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

impl External {
    /// Waits for nothing more.
    pub(super) fn forget(&mut self) {
        self.asked = None;
    }
}

impl Asked {
    fn new(ask: Option<Ask>) -> Self {
        Self { ask, before: None, until: None, since: Mono::default(), next: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);
    const A: Process = Process { pid: 7, start: 100 };
    const B: Process = Process { pid: 8, start: 200 };
    /// The number of the first, given out again.
    const C: Process = Process { pid: 7, start: 300 };

    fn at(seconds: u64) -> Now {
        Now { mono: Mono(Duration::from_secs(seconds)), wall: Wall(Duration::from_secs(seconds)) }
    }

    /// The one that runs, with the orders it was given.
    struct World(Supervision, Vec<Order>);

    impl World {
        fn new(restarts: bool) -> Self {
            let mut world = Self(Supervision::external(restarts, PATIENCE), Vec::new());
            assert_eq!(world.seen(A, 10), News::default());
            world
        }

        fn seen(&mut self, process: Process, seconds: u64) -> News {
            self.0.seen(process, Duration::ZERO, at(seconds), &mut self.1)
        }

        fn told(&mut self, before: Option<Process>, seconds: u64) -> News {
            self.0.told(before, Ok(()), at(seconds), &mut self.1)
        }

        fn overdue(&mut self, seconds: u64) -> News {
            self.0.overdue(at(seconds), &mut self.1)
        }

        fn asked(&mut self) -> Vec<Order> {
            core::mem::take(&mut self.1)
        }
    }

    fn done() -> News {
        News { crash: None, answer: Some(Ok(())) }
    }

    #[test]
    fn what_nobody_asked_for_is_a_crash_and_what_was_asked_for_is_not() {
        let mut world = World::new(true);
        let crash = world.seen(B, 11).crash.unwrap_or_default();
        assert!(crash.contains('7') && crash.contains('8'), "{crash}");
        let crash = world.0.gone("no such process".to_owned()).crash.unwrap_or_default();
        assert!(crash.contains("process 8: no such process"), "{crash}");
        assert_eq!(world.0.gone("still none".to_owned()), News::default(), "told once");
        assert_eq!(world.0.last_error(), Some("still none"));
        assert_eq!(world.seen(C, 12), News::default());
        assert_eq!((world.0.last_error(), world.0.restarts()), (None, 2));

        world.0.restart(&mut world.1);
        assert_eq!(world.0.gone("asked to".to_owned()), News::default());
        assert_eq!(world.seen(B, 13), News::default(), "the command is not over");
        assert_eq!(world.told(Some(C), 14), done());
        assert_eq!((world.asked(), world.0.restarts()), (vec![Order::Ask(Ask::Restart)], 2));
        assert!(world.0.is_running());
    }

    #[test]
    fn a_restart_is_done_when_another_process_runs_and_not_before() {
        let mut world = World::new(true);
        world.0.restart(&mut world.1);
        assert_eq!(world.told(Some(A), 20), News::default());
        assert!(!world.0.is_running());
        assert_eq!(world.0.gone("ended".to_owned()), News::default());
        assert_eq!(world.overdue(79), News::default());
        assert_eq!(world.seen(C, 79), done(), "the same number, another process");
        assert_eq!(world.0.deadline(), None);

        world.0.restart(&mut world.1);
        assert_eq!(world.told(Some(C), 100), News::default());
        assert_eq!(world.0.deadline(), Some(at(160).mono));
        let answer = world.overdue(160).answer;
        assert!(answer.is_some_and(|done| done.is_err_and(|why| why.contains("still is 7"))));
        assert!(world.0.is_running(), "as before");
        assert_eq!(world.0.deadline(), None);
    }

    #[test]
    fn one_thing_is_asked_at_a_time_and_answered_once() {
        let mut world = World::new(true);
        world.0.restart(&mut world.1);
        world.0.apply(&Apply::Reload, at(20), &mut world.1);
        world.0.restart(&mut world.1);
        world.0.apply(&Apply::Reload, at(20), &mut world.1);
        assert_eq!(world.asked(), [Order::Ask(Ask::Restart)]);
        let failed = world.0.told(Some(A), Err("no".to_owned()), at(21), &mut world.1);
        assert_eq!(failed, News::default(), "the second try answers for both");
        assert_eq!(world.asked(), [Order::Ask(Ask::Restart)]);
        world.seen(B, 22);
        assert_eq!(world.told(Some(A), 22), done());
        assert_eq!(world.told(Some(A), 23), News::default(), "twice");
        assert_eq!(world.asked(), []);
    }

    #[test]
    fn a_reload_leaves_it_running_and_may_bring_another_process() {
        let mut world = World::new(false);
        world.0.apply(&Apply::Reload, at(20), &mut world.1);
        assert_eq!(world.asked(), [Order::Ask(Ask::Reload)]);
        assert!(world.0.is_running());
        assert_eq!(world.told(Some(A), 20), done());
        let command = Apply::Command(vec!["x".to_owned()]);
        world.0.apply(&command, at(30), &mut world.1);
        assert_eq!(world.asked(), [Order::Ask(Ask::Apply)]);
        assert_eq!(world.0.gone("ended".to_owned()), News::default());
        assert_eq!(world.told(Some(A), 31), News::default());
        assert_eq!(world.seen(B, 32), done());
        assert!(world.seen(C, 33).crash.is_some(), "after it, as ever");
    }

    #[test]
    fn one_that_is_down_and_cannot_be_started_is_waited_for() {
        let mut world = World::new(false);
        world.0.gone("ended".to_owned());
        world.0.apply(&Apply::Reload, at(20), &mut world.1);
        assert_eq!(world.asked(), []);
        assert_eq!(world.seen(B, 25), done());
        world.0.gone("ended".to_owned());
        world.0.apply(&Apply::Reload, at(30), &mut world.1);
        let answer = world.overdue(90).answer;
        assert!(answer.is_some_and(|done| done.is_err_and(|why| why.contains("ended"))));
        // It was there before what it is to read.
        world.0.apply(&Apply::Reload, at(100), &mut world.1);
        let old = Duration::from_secs(2);
        let news = world.0.seen(C, old, at(101), &mut world.1);
        assert_eq!((news, world.asked()), (News::default(), vec![Order::Ask(Ask::Reload)]));
        assert_eq!(world.told(Some(C), 102), done());
    }

    #[test]
    fn it_is_never_started_or_ended() {
        let mut world = World::new(false);
        world.0.stop(&mut world.1);
        assert!(world.0.is_running() && world.0.is_down(), "nothing of ours");
        world.0.restart(&mut world.1);
        world.0.gone("ended".to_owned());
        world.0.ensure(&mut world.1);
        world.0.tick(at(1000), &mut world.1);
        assert_eq!(world.asked(), []);
        // What was under way does not hold up the end.
        let mut world = World::new(true);
        world.0.restart(&mut world.1);
        world.told(Some(A), 20);
        world.0.stop(&mut world.1);
        assert_eq!(world.0.deadline(), None);
        assert_eq!(world.seen(B, 21).answer, None);
    }
}
