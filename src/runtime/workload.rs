//! A workload of our own: started, stopped, reloaded and checked.

use core::time::Duration;
use std::rc::Rc;

use super::Runtime;
use crate::agent::Event;
use crate::agent::session::Tone;
use crate::settings::{CheckKind, Owner, Sandbox};
use crate::workload::check;
use crate::workload::family::Kind;
use crate::workload::reap::{Exit, ExitKind};
use crate::workload::spawn::{Child, Spec};

impl Runtime<'_> {
    pub(super) fn start_workload(&mut self) {
        let Some(workload) = &self.settings.workload else { return };
        let Owner::Chiton { command } = &workload.owner else { return };
        let bound = self.settings.sandbox == Sandbox::On;
        let child = self
            .running_spec(command)
            .map(|spec| Spec { kind: Kind::Workload, bound, ..spec })
            .and_then(|spec| Child::spawn(&spec).map_err(|error| error.to_string()));
        match child {
            Ok(child) => {
                let child = Rc::new(child);
                let pid = u32::try_from(child.pid()).unwrap_or_default();
                self.say(Tone::Info, &format!("the workload runs as process {pid}"));
                self.aftermath.push_back(Event::WorkloadStarted { pid });
                let inbox = Rc::clone(&self.inbox);
                let watched = Rc::clone(&child);
                let watching = async move {
                    let exit = watched.wait().await;
                    let text = format!("{exit}{}", advice(exit));
                    let text = with_output(&text, &watched.output_tail());
                    inbox.put(Event::WorkloadExited(text)).await;
                };
                self.executor.spawn(watching).detach();
                self.child = Some(child);
                self.measure_from_the_start();
            }
            Err(error) => {
                let text = format!("the workload could not be started: {error}");
                self.aftermath.push_back(Event::WorkloadNotStarted(text));
            }
        }
    }

    pub(super) fn stop_workload(&mut self) {
        let Some(child) = self.child.take() else { return };
        let timeout = self
            .settings
            .workload
            .as_ref()
            .map_or(Duration::ZERO, |workload| workload.stop_timeout);
        let inbox = Rc::clone(&self.inbox);
        // The task that watches it reports the end.
        let stopping = async move {
            if let Err(still) = child.stop(timeout).await {
                inbox.put(Event::WorkloadStuck(still.to_string())).await;
            }
        };
        self.executor.spawn(stopping).detach();
    }

    pub(super) fn reload(&mut self) {
        let result = match &self.child {
            Some(child) => child.reload().map_err(|error| error.to_string()),
            None => Err("the workload does not run".to_owned()),
        };
        self.aftermath.push_back(Event::Reloaded(result));
    }

    pub(super) fn check(&mut self, round: u64) {
        // Being alive is part of every round.
        self.look();
        let settings = Rc::clone(&self.settings);
        let inbox = Rc::clone(&self.inbox);
        if settings.health.checks.is_empty() {
            self.aftermath.push_back(Event::Checked { round, results: Vec::new() });
            return;
        }
        let checks = &settings.health.checks;
        let limits = checks.iter().any(|check| check.kind.is_limit());
        let load = if limits { self.load() } else { None };
        // A check program runs as the workload does.
        let programs = checks.iter().filter_map(|check| match &check.kind {
            CheckKind::Exec(words) => Some(self.running_spec(words)),
            _ => None,
        });
        let programs = programs.collect();
        let checking = async move {
            let results = check::run_all(&settings.health.checks, programs, load.as_ref()).await;
            inbox.put(Event::Checked { round, results }).await;
        };
        self.executor.spawn(checking).detach();
    }
}

/// What to do about an end that looks like that of a daemon's parent.
const fn advice(exit: Exit) -> &'static str {
    match exit {
        Exit { kind: ExitKind::Code(0), others, .. } if others.found > 0 => {
            "; it forked into the background: run it in the foreground, or set external: { pid_file: … }"
        }
        _ => "",
    }
}

/// A text with what a program said last.
fn with_output(text: &str, output: &str) -> String {
    match output.trim() {
        "" => text.to_owned(),
        output => format!("{text}: {output}"),
    }
}
