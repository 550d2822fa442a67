//! `chiton recover`: what `run` does to the disk at start, and nothing else.

use std::path::Path;

use super::{FAILED, complain, good, print};
use crate::confine;
use crate::store::Store;

pub(super) fn run(config: &Path) -> u8 {
    confine::begin();
    // As `run` does: a file that has turned bad must not keep a healthy workload down.
    let loaded = match good::settings(config) {
        Ok(good) => {
            for problem in good.bad {
                complain(&problem.to_string());
            }
            good.loaded
        }
        Err(problems) => {
            for problem in problems {
                complain(&problem.to_string());
            }
            return FAILED;
        }
    };
    let root = &loaded.settings.state_dir;
    if !root.exists() {
        return print(&format!("{}: nothing is kept there yet\n", root.display()));
    }
    // Nothing is placed here, so it does not matter for whom.
    let store = Store::new(&loaded.settings, None);
    let _lock = match store.prepare() {
        Ok(lock) => lock,
        Err(error) => {
            complain(&error);
            return FAILED;
        }
    };
    let before = store.running();
    let recovered = store.recover();
    let after = store.running();
    for problem in &recovered.problems {
        complain(problem);
    }
    if !recovered.problems.is_empty() {
        return FAILED;
    }
    let name = |generation: Option<u64>| match generation {
        Some(number) => format!("generation {number}"),
        None => "no generation".to_owned(),
    };
    let done = if before == after {
        format!("nothing was interrupted; {} is in place", name(after))
    } else {
        format!("an interrupted change is undone: {} is in place of {}", name(after), name(before))
    };
    print(&format!("{}: {done}\n", root.display()))
}
