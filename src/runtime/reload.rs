//! chiton.yaml is read again: after SIGHUP, and while a file or variable is missing that the connection needs.
//!
//! What can change while Chiton runs is taken over, the rest is named. A bad file changes nothing.

use core::time::Duration;
use std::rc::Rc;
use std::sync::Arc;

use super::{Input, Runtime, disk, keys, now};
use crate::agent::session::Tone;
use crate::agent::{Config, Event, Reread};
use crate::confine;
use crate::host;
use crate::reactor::within;
use crate::settings::{self, Changes, Key, Level, Loaded, Problem, Process, Settings};

/// The files may lie on a network.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Problems of one file that `chiton status` shows.
const MAX_SHOWN: usize = 16;

/// Why the settings are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// SIGHUP.
    Asked,
    /// Something was missing at the last attempt to connect.
    Missing,
}

impl Runtime<'_> {
    /// SIGHUP.
    pub(super) fn hang_up(&mut self) {
        if self.give_up_at.is_some() {
            return;
        }
        if self.reading.is_some() {
            self.read_again = true;
            return;
        }
        let text = format!("SIGHUP: reading {} again", self.file.display());
        self.say(Tone::Info, &text);
        self.notify.reloading(now().mono);
        self.read_settings(Why::Asked);
    }

    /// Reads them, off the main thread. → [`Input::Settings`]
    pub(super) fn read_settings(&mut self, why: Why) {
        if self.reading.is_some() {
            return;
        }
        self.reading = Some(why);
        let (file, inbox) = (self.file.clone(), Rc::clone(&self.inbox));
        let name = file.display().to_string();
        let reading = async move {
            let load = crate::pool::unblock(move || settings::load(&file, &Process).map(Box::new));
            let read = within(READ_TIMEOUT, load).await.unwrap_or_else(|| {
                let text = format!("cannot be read within {READ_TIMEOUT:?}");
                Err(vec![Problem {
                    file: name,
                    line: 1,
                    key: Key::default(),
                    text,
                    deferred: false,
                }])
            });
            inbox.input(Input::Settings(why, read)).await;
        };
        self.executor.spawn(reading).detach();
    }

    /// They were read.
    pub(super) fn settings_read(&mut self, why: Why, read: Result<Box<Loaded>, Vec<Problem>>) {
        self.reading = None;
        if self.give_up_at.is_some() {
            return;
        }
        match (why, read) {
            (Why::Asked, Ok(loaded)) => self.take_all(*loaded),
            (Why::Asked, Err(problems)) => {
                self.refuse(&problems);
                self.say(
                    Tone::Warning,
                    "nothing was changed: the settings as they were are in force",
                );
            }
            (Why::Missing, Ok(loaded)) => self.take_what_was_missing(*loaded),
            // Nobody asked; SIGHUP or the next start will tell.
            (Why::Missing, Err(_)) => {}
        }
        if core::mem::take(&mut self.read_again) {
            self.hang_up();
        }
    }

    fn take_all(&mut self, loaded: Loaded) {
        let Loaded { settings, deferred, notes, secrets_from, unexpanded, .. } = loaded;
        let (settings, changes) = settings::take(&self.settings, settings);
        self.log.govern(settings.log);
        for note in &notes {
            self.say(Tone::Warning, note);
        }
        if !core::mem::take(&mut self.bad_settings).is_empty() {
            self.say(Tone::Info, "the settings are good again");
        }
        self.deferred = shown(&deferred);
        for problem in &self.deferred {
            self.log.write(Level::Error, problem, now().wall);
        }
        if changes.taken.is_empty() && changes.waiting.is_empty() {
            self.say(Tone::Info, "no setting has changed");
        }
        if !changes.taken.is_empty() {
            self.say(Tone::Info, &format!("in force now: {}", changes.taken.join(", ")));
        }
        if !changes.waiting.is_empty() {
            let keys = changes.waiting.join(", ");
            self.say(Tone::Warning, &format!("needs a restart: {keys}"));
        }
        self.withhold = secrets_from;
        self.keep_settings(unexpanded);
        self.govern(settings, &changes);
    }

    /// The connection's part alone: what else has changed waits for SIGHUP.
    fn take_what_was_missing(&mut self, loaded: Loaded) {
        let read = Settings { server: loaded.settings.server, ..Settings::clone(&self.settings) };
        let (settings, changes) = settings::take(&self.settings, read);
        if settings.server.unusable == self.settings.server.unusable {
            return;
        }
        self.deferred = shown(&loaded.deferred);
        self.withhold = loaded.secrets_from;
        if settings.server.unusable.is_none() {
            self.say(Tone::Info, "what the connection was lacking is there now");
        }
        self.govern(settings, &changes);
    }

    /// Puts settings in force.
    fn govern(&mut self, settings: Settings, changes: &Changes) {
        self.settings = Rc::new(settings);
        if let Some(text) = confine::outgrown(&self.settings) {
            self.say(Tone::Warning, &text);
        }
        self.store = Arc::new(self.store.govern(&self.settings));
        self.links.store.replace(Arc::clone(&self.store));
        self.job(disk::Job::Govern(Arc::clone(&self.store)));
        let (keyring, unreadable) = keys::read(&self.settings.packages);
        for problem in unreadable {
            self.problem(problem);
        }
        let reread = Reread {
            config: Config::new(&self.settings, host::host(), keyring),
            redaction: changes.redaction,
            checks: changes.checks,
        };
        self.handle(Event::Settings(Ok(Box::new(reread))));
        self.refresh_links();
    }

    /// The file is bad: said to the log, to `chiton status` and to the server.
    pub(super) fn refuse(&mut self, problems: &[Problem]) {
        self.bad_settings = shown(problems);
        for problem in problems {
            self.log.write(Level::Error, &problem.to_string(), now().wall);
        }
        let more = problems.len().saturating_sub(1);
        let mut text = problems.first().map(ToString::to_string).unwrap_or_default();
        if more > 0 {
            text.push_str(&format!(" (and {more} more)"));
        }
        self.handle(Event::Settings(Err(text)));
    }

    /// Keeps good settings for the day on which the file is bad.
    pub(super) fn keep_settings(&mut self, text: String) {
        let file = self.file.clone();
        self.job(disk::Job::KeepSettings { file, text });
    }
}

/// The first ones, as lines.
pub(super) fn shown(problems: &[Problem]) -> Vec<String> {
    let mut lines: Vec<String> = problems.iter().take(MAX_SHOWN).map(ToString::to_string).collect();
    if let Some(more) = problems.len().checked_sub(MAX_SHOWN).filter(|more| *more > 0) {
        lines.push(format!("{more} more problems with the settings"));
    }
    lines
}
