//! `chiton.yaml`: read, merged, expanded, validated, and shown again.
//!
//! Three stages: what the files say (`document`), what they say together (`sources`), and what is valid
//! ([`Settings`], made by `validate`). All problems of one load are found at once; each has file, line and key.
//!
//! What the connection alone needs (`opamp.server`, `opamp.agent`) may wait for a variable or a file: such problems are
//! *deferred*, the settings are good, and [`Server::unusable`] says why there is no connection yet.

mod changes;
mod document;
pub mod endpoint;
mod environment;
mod model;
mod notes;
mod problem;
mod render;
mod salvage;
mod sources;
mod units;
mod validate;
mod walker;

use std::path::Path;

use serde_yaml::Value;

pub use changes::{Changes, Connection, connection_of, take};
pub use document::{MAX_DEPTH, MAX_MARKS, MAX_SETTINGS_FILE, MAX_VALUE_TEXT, MAX_VALUES};
pub use environment::{Environment, MAX_EXPANDED, MAX_FILE, Process};
pub use model::*;
pub use problem::{Key, MAX_PROBLEMS, Problem, Step};
pub use render::render;
pub use salvage::salvage;
pub use sources::{MAX_CONF_D, Sources};
pub(crate) use units::duration;
pub use units::{Bytes, Long};
pub use validate::{DEFAULT_SOCKET, DEFAULT_STATE_DIR, MAX_HEADERS, check_header, proxy_url};

/// Settings that can be run.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Why the connection cannot be tried yet: see [`Server::unusable`].
    pub deferred: Vec<Problem>,
    /// What is worth a word, one line each: risks, and keys that are not in force yet.
    pub notes: Vec<String>,
    /// Environment variables that hold secrets of the connection: not for the workload to see.
    pub secrets_from: Vec<String>,
    /// Where each key stands.
    pub sources: Sources,
    /// All files together, nothing expanded: what [`from_text`] reads again.
    pub unexpanded: String,
}

/// Loads the settings: the main file, with `conf.d/*.yaml` beside it merged over it.
///
/// # Errors
/// All problems, the deferred ones among them, when at least one is not deferred.
pub fn load(file: &Path, environment: &dyn Environment) -> Result<Loaded, Vec<Problem>> {
    let (sources, merged) = Sources::read(file)?;
    finish(sources, &merged, environment)
}

/// Loads settings that were kept as [`Loaded::unexpanded`]; `name` stands for the file in problems.
///
/// # Errors
/// As [`load`].
pub fn from_text(
    text: &str,
    name: &str,
    environment: &dyn Environment,
) -> Result<Loaded, Vec<Problem>> {
    let (sources, merged) = Sources::of_text(text, name)?;
    finish(sources, &merged, environment)
}

fn finish(
    sources: Sources,
    merged: &Value,
    environment: &dyn Environment,
) -> Result<Loaded, Vec<Problem>> {
    let found = validate::validate(merged, environment);
    let mut problems: Vec<Problem> = found
        .problems
        .into_iter()
        .map(|draft| sources.problem(&draft.key, draft.text, draft.deferred))
        .collect();
    problems.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    if found.uncounted > 0 {
        let text = format!("{} more problems; solve these first", found.uncounted);
        problems.push(sources.problem(&Key::default(), text, false));
    }
    if problems.iter().any(|problem| !problem.deferred) {
        return Err(problems);
    }
    let notes = notes::notes(&found.settings, &found.set)
        .into_iter()
        .map(|(key, text)| sources.problem(&key, text, false).to_string())
        .collect();
    let secret = [Key::of("opamp.server.headers"), Key::of("opamp.server.proxy")];
    let mut secrets_from: Vec<String> = found
        .variables
        .into_iter()
        .filter(|(key, name)| secret.iter().any(|of| key.lies_in(of)) && name != "HOSTNAME")
        .map(|(_, name)| name)
        .collect();
    secrets_from.sort();
    secrets_from.dedup();
    let unexpanded = serde_yaml::to_string(merged).map_err(|error| {
        vec![sources.problem(&Key::default(), format!("cannot be written again: {error}"), false)]
    })?;
    Ok(Loaded {
        settings: found.settings,
        deferred: problems,
        notes,
        secrets_from,
        sources,
        unexpanded,
    })
}

#[cfg(test)]
mod tests;
