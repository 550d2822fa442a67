//! When the workload is started, stopped and started again.

mod external;

use core::time::Duration;

use self::external::External;
use super::backoff;
use crate::clock::{Mono, Now};
use crate::settings::Backoff;

pub use self::external::{Ask, News, Process};

/// What is to be done to the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Start it; the answer is [`Supervision::started`] or [`Supervision::start_failed`].
    Start,
    /// SIGTERM, then SIGKILL; the answer is [`Supervision::exited`].
    Stop,
    /// Ask the init system, or the process that it owns; the answer is [`Supervision::told`].
    Ask(Ask),
}

/// The state of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not to run.
    Stopped,
    /// Being started.
    Starting,
    /// Runs.
    Running {
        /// Its process id.
        pid: u32,
        /// Since when.
        since: Now,
    },
    /// Being stopped.
    Stopping {
        /// Start it again afterwards.
        again: bool,
    },
    /// It died, or could not be started; the next start is then.
    Waiting {
        /// The next start.
        until: Mono,
    },
}

/// How the end of a process concerns the rest of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// We asked for it.
    Asked,
    /// It died by itself.
    Crash,
}

/// Keeps one workload as it should be.
#[derive(Clone, Debug)]
pub struct Supervision {
    restart: Backoff,
    state: State,
    /// Crashes in a row; a run of `restart.max` ends the row.
    crashes: u32,
    /// All restarts after a crash since Chiton started.
    restarts: u64,
    last_error: Option<String>,
    /// Where the init system owns the process; the rest follows from it then.
    external: Option<External>,
}

impl Supervision {
    /// A workload that is not to run yet.
    #[must_use]
    pub const fn new(restart: Backoff) -> Self {
        Self {
            restart,
            state: State::Stopped,
            crashes: 0,
            restarts: 0,
            last_error: None,
            external: None,
        }
    }

    /// How it is.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Whether a process runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Whether no process of ours exists.
    #[must_use]
    pub const fn is_down(&self) -> bool {
        self.is_external() || matches!(self.state, State::Stopped | State::Waiting { .. })
    }

    /// Whether the init system has been asked for something and has not answered yet.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked_until().is_some()
    }

    /// Why it last died or did not start; [`None`] while nothing is wrong.
    #[must_use]
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Restarts after crashes since Chiton started.
    #[must_use]
    pub const fn restarts(&self) -> u64 {
        self.restarts
    }

    /// It should run: starts it unless it does.
    pub fn ensure(&mut self, out: &mut Vec<Order>) {
        if self.is_external() {
            return; // the init system sees to it
        }
        match &mut self.state {
            State::Stopped | State::Waiting { .. } => self.start(out),
            State::Stopping { again } => *again = true,
            State::Starting | State::Running { .. } => {}
        }
    }

    /// It should run afresh: with a new configuration, or because the server says so.
    pub fn restart(&mut self, out: &mut Vec<Order>) {
        if self.is_external() {
            return self.ask_restart(out);
        }
        self.crashes = 0;
        match &mut self.state {
            State::Running { .. } | State::Starting => {
                self.state = State::Stopping { again: true };
                out.push(Order::Stop);
            }
            State::Stopping { again } => *again = true,
            State::Stopped | State::Waiting { .. } => self.start(out),
        }
    }

    /// It should not run.
    pub fn stop(&mut self, out: &mut Vec<Order>) {
        if let Some(external) = &mut self.external {
            return external.forget(); // it outlives us
        }
        match &mut self.state {
            State::Running { .. } | State::Starting => {
                self.state = State::Stopping { again: false };
                out.push(Order::Stop);
            }
            State::Stopping { again } => *again = false,
            State::Stopped | State::Waiting { .. } => self.state = State::Stopped,
        }
    }

    /// It runs.
    pub fn started(&mut self, pid: u32, now: Now) {
        if self.state == State::Starting {
            self.state = State::Running { pid, since: now };
        }
    }

    /// It could not be started.
    pub fn start_failed(&mut self, error: String, now: Now) {
        self.last_error = Some(error);
        self.state = match self.state {
            State::Stopping { again: false } => State::Stopped,
            _ => self.back_off(now),
        };
    }

    /// It is gone. `text` says how, with its last words.
    pub fn exited(&mut self, text: String, now: Now, out: &mut Vec<Order>) -> End {
        match self.state {
            State::Stopping { again } => {
                self.last_error = None;
                self.state = State::Stopped;
                if again {
                    self.start(out);
                }
                End::Asked
            }
            State::Running { since, .. } => {
                if now.mono.since(since.mono) >= self.restart.max {
                    self.crashes = 0;
                }
                self.last_error = Some(text);
                self.state = self.back_off(now);
                End::Crash
            }
            State::Stopped | State::Starting | State::Waiting { .. } => {
                self.last_error = Some(text);
                self.state = self.back_off(now);
                End::Crash
            }
        }
    }

    /// It does not stop. `text` says why.
    pub fn stuck(&mut self, text: String) {
        if matches!(self.state, State::Stopping { .. }) {
            self.last_error = Some(text);
        }
    }

    /// It has proven itself: what went wrong before is history.
    pub fn proven(&mut self) {
        self.last_error = None;
    }

    /// When [`Supervision::tick`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Mono> {
        match self.state {
            State::Waiting { until } => Some(until),
            _ => self.asked_until(),
        }
    }

    /// Starts it again when its time has come.
    pub fn tick(&mut self, now: Now, out: &mut Vec<Order>) {
        if let State::Waiting { until } = self.state
            && until <= now.mono
        {
            self.restarts = self.restarts.saturating_add(1);
            self.start(out);
        }
    }

    /// How long until the next start.
    #[must_use]
    pub fn waits(&self, now: Now) -> Option<Duration> {
        match self.state {
            State::Waiting { until } => Some(until.since(now.mono)),
            _ => None,
        }
    }

    fn start(&mut self, out: &mut Vec<Order>) {
        self.state = State::Starting;
        out.push(Order::Start);
    }

    fn back_off(&mut self, now: Now) -> State {
        let wait = backoff::bound(self.restart, self.crashes);
        self.crashes = self.crashes.saturating_add(1);
        State::Waiting { until: now.mono.after(wait) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTART: Backoff =
        Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(60) };

    fn at(seconds: u64) -> Now {
        Now { mono: Mono(Duration::from_secs(seconds)), ..Now::default() }
    }

    #[test]
    fn crashes_back_off_and_a_long_run_forgives() {
        let mut supervision = Supervision::new(RESTART);
        let mut out = Vec::new();
        supervision.ensure(&mut out);
        let mut time = 0;
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            supervision.started(7, at(time));
            assert_eq!(supervision.exited("exited".to_owned(), at(time), &mut out), End::Crash);
            assert_eq!(supervision.waits(at(time)), Some(Duration::from_secs(wait)));
            supervision.tick(at(time + wait - 1), &mut out);
            assert!(!matches!(supervision.state(), State::Starting), "started early");
            time += wait;
            supervision.tick(at(time), &mut out);
            assert_eq!(supervision.state(), &State::Starting);
        }
        supervision.started(7, at(time));
        supervision.exited("exited".to_owned(), at(time + 60), &mut out);
        assert_eq!(supervision.waits(at(time + 60)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_restart_stops_first_and_a_stop_wins_over_it() {
        let mut supervision = Supervision::new(RESTART);
        let mut out = Vec::new();
        supervision.ensure(&mut out);
        supervision.started(7, at(0));
        supervision.restart(&mut out);
        supervision.restart(&mut out);
        assert_eq!(out, [Order::Start, Order::Stop], "one stop for two requests");
        assert_eq!(supervision.exited("killed".to_owned(), at(1), &mut out), End::Asked);
        assert_eq!(out.last(), Some(&Order::Start));
        supervision.started(8, at(1));
        supervision.restart(&mut out);
        supervision.stop(&mut out);
        supervision.exited("killed".to_owned(), at(2), &mut out);
        assert_eq!(supervision.state(), &State::Stopped);
    }
}
