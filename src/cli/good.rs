//! Settings to go by when the file has turned bad: the last good ones.

use std::path::{Path, PathBuf};

use crate::settings::{
    self, DEFAULT_STATE_DIR, Key, Loaded, Problem, Process, Settings, from_text, salvage,
};
use crate::store;

/// systemd's name for the directories of `StateDirectory=`, with colons between them.
const STATE_DIRECTORY: &str = "STATE_DIRECTORY";

/// Settings that can be run.
pub(super) struct Good {
    pub(super) loaded: Loaded,
    /// What is wrong with the file, where these are the last good ones instead.
    pub(super) bad: Vec<Problem>,
}

/// The settings of the file, else the last ones of that file that were good.
///
/// # Errors
/// What is wrong with the file, where there are no such.
pub(super) fn settings(file: &Path) -> Result<Good, Vec<Problem>> {
    let mut problems = match settings::load(file, &Process) {
        Ok(loaded) => return Ok(Good { loaded, bad: Vec::new() }),
        Err(problems) => problems,
    };
    for directory in state_directories(file) {
        let kept = directory.join("settings").display().to_string();
        match store::last_good(&directory, &absolute(file)) {
            Ok(None) => {}
            Ok(Some(text)) => match from_text(&text, &kept, &Process) {
                Ok(loaded) => return Ok(Good { loaded, bad: problems }),
                Err(more) => problems.extend(more),
            },
            Err(text) => problems.push(Problem {
                file: kept,
                line: 1,
                key: Key::default(),
                text,
                deferred: false,
            }),
        }
    }
    Err(problems)
}

/// The status socket of the agent that runs by this file, also when that has turned bad.
pub(super) fn status_socket(file: &Path) -> Option<PathBuf> {
    match settings(file) {
        Ok(Good { loaded: Loaded { settings: Settings { status_socket, .. }, .. }, .. }) => {
            Some(status_socket)
        }
        Err(_) => salvage(file, "status_socket", &Process),
    }
}

/// Where the state may be: the bad file may name it still; systemd may; it is where it is by default.
fn state_directories(file: &Path) -> impl Iterator<Item = PathBuf> {
    let named = salvage(file, "state_dir", &Process);
    let given = std::env::var(STATE_DIRECTORY).unwrap_or_default();
    let given: Vec<PathBuf> =
        given.split(':').filter(|path| path.starts_with('/')).map(PathBuf::from).collect();
    named.into_iter().chain(given).chain([PathBuf::from(DEFAULT_STATE_DIR)])
}

/// The name by which settings are kept, whatever the directory we are in.
pub(super) fn absolute(file: &Path) -> PathBuf {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned())
}
