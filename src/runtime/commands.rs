//! Commands: what they are run as and on, the dry runs of a candidate, and what one came to.

use core::time::Duration;
use std::rc::Rc;

use super::Runtime;
use crate::agent::Event;
use crate::agent::rollout::Generation;
use crate::settings::{Apply, Packages};
use crate::workload::command::{self, CommandOutcome};
use crate::workload::family::Kind;
use crate::workload::placeholders::{self, Places};
use crate::workload::spawn::Spec;

/// A dry run or an apply command may take so long.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

impl Runtime<'_> {
    /// The dry runs of a candidate, one after the other; the first that fails ends them.
    pub(super) fn validate(&mut self, generation: Generation, packages: bool, config: bool) {
        let settings = Rc::clone(&self.settings);
        let specs = self.store.candidate(generation).and_then(|candidate| {
            let places = Places {
                config_dir: candidate.config_dir,
                config_file: candidate.config_file,
                package_dirs: candidate.package_dirs,
                packages_dir: self.settings.packages_dir.clone(),
            };
            let Packages { verify, after_install, .. } = &settings.packages;
            let validate = &settings.remote_config.validate;
            let mut specs = Vec::new();
            // What the new files need is done as ourselves: labels and capabilities are root's business.
            if packages && !after_install.is_empty() {
                let spec = self.spec(after_install, &places)?;
                specs.push(Spec { kind: Kind::Probe, user: None, ..spec });
            }
            for (words, wanted) in [(verify, packages), (validate, config || packages)] {
                // There is nothing yet that it could be run on.
                let lacks = places.config_file.is_none()
                    && words.iter().any(|word| word.contains("{config_file}"));
                if wanted && !words.is_empty() && !lacks {
                    specs.push(Spec { kind: Kind::Probe, ..self.spec(words, &places)? });
                }
            }
            Ok(specs)
        });
        let inbox = Rc::clone(&self.inbox);
        let running = async move {
            let mut result = specs.as_ref().map(|_| ()).map_err(Clone::clone);
            for spec in specs.into_iter().flatten() {
                if result.is_ok() {
                    result = outcome(&spec, &command::run(&spec, COMMAND_TIMEOUT).await);
                }
            }
            inbox.put(Event::Validated(result)).await;
        };
        self.executor.spawn(running).detach();
    }

    pub(super) fn run_apply(&mut self) {
        let Apply::Command(words) = self.agent.apply_by() else { return };
        let spec = self.running_spec(&words.clone());
        self.run_command(spec, Event::Reloaded);
    }

    /// Runs a command to its end and makes its outcome an event.
    fn run_command(&mut self, spec: Result<Spec, String>, event: fn(Result<(), String>) -> Event) {
        let inbox = Rc::clone(&self.inbox);
        let running = async move {
            let result = match spec {
                Ok(spec) => outcome(&spec, &command::run(&spec, COMMAND_TIMEOUT).await),
                Err(error) => Err(error),
            };
            inbox.put(event(result)).await;
        };
        self.executor.spawn(running).detach();
    }

    pub(super) fn running_spec(&self, words: &[String]) -> Result<Spec, String> {
        self.spec(words, &self.places())
    }

    /// What the placeholders stand for now.
    fn places(&self) -> Places {
        let names = self.agent.package_names();
        Places {
            config_dir: self.store.config_dir(),
            config_file: self.store.config_file(),
            packages_dir: self.settings.packages_dir.clone(),
            package_dirs: names
                .map(|name| (name.to_owned(), self.store.package_dir(None, name)))
                .collect(),
        }
    }

    fn spec(&self, words: &[String], places: &Places) -> Result<Spec, String> {
        let workload = self.settings.workload.as_ref();
        let env = workload.map(|workload| workload.env.iter()).into_iter().flatten();
        Ok(Spec {
            argv: placeholders::fill(words, places).map_err(|error| error.to_string())?,
            kind: Kind::default(),
            env: env.map(|(name, value)| (name.into(), value.into())).collect(),
            withhold: self.withhold.clone(),
            cwd: None,
            bound: false,
            user: self.identity.clone()?,
            oom_score_adj: workload.and_then(|workload| workload.oom_score_adj),
            ambient_capabilities: workload
                .map_or_else(Vec::new, |workload| workload.ambient_capabilities.clone()),
        })
    }
}

/// What a command came to, with its name.
pub(super) fn outcome(spec: &Spec, outcome: &CommandOutcome) -> Result<(), String> {
    if outcome.success() {
        return Ok(());
    }
    let program = spec.argv.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    Err(format!("{program} {outcome}"))
}
