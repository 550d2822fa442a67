//! `chiton run`.

use std::io::{self, Write};
use std::path::Path;

use rustix::process::Signal;

use super::{BAD_SETTINGS, FAILED, OK, complain};
use crate::log::Log;
use crate::settings::{self, Level, LogTo};
use crate::{clock, runtime, sys};

pub(super) fn run(config: &Path) -> u8 {
    // An inherited "ignore" would lose the exit status of every child.
    sys::default_action(Signal::CHILD);
    let loaded = match settings::load(config, &settings::Process) {
        Ok(loaded) => loaded,
        Err(problems) => {
            for problem in problems {
                let _ = writeln!(io::stderr().lock(), "{problem}");
            }
            return BAD_SETTINGS;
        }
    };
    let to = loaded.settings.log.to;
    let journald = to != LogTo::Stderr && std::env::var_os("JOURNAL_STREAM").is_some();
    let log = Log::new(loaded.settings.log, journald);
    #[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
    let now = clock::now().wall;
    for note in &loaded.notes {
        log.write(Level::Warn, note, now);
    }
    match runtime::run(loaded, log) {
        Ok(()) => OK,
        Err(runtime::Fatal(error)) => {
            complain(&error);
            FAILED
        }
    }
}
