//! `chiton run`.

use std::io::{self, Write};
use std::path::Path;

use rustix::process::Signal;

use super::good::{self, Good, absolute};
use super::{BAD_SETTINGS, FAILED, OK, complain};
use crate::log::Log;
use crate::runtime::{self, Start};
use crate::settings::Level;
use crate::{clock, confine, sys};

pub(super) fn run(config: &Path) -> u8 {
    // An inherited "ignore" would lose the exit status of every child.
    sys::default_action(Signal::CHILD);
    confine::begin();
    let Good { loaded, bad } = match good::settings(config) {
        Ok(good) => good,
        Err(problems) => {
            for problem in problems {
                let _ = writeln!(io::stderr().lock(), "{problem}");
            }
            return BAD_SETTINGS;
        }
    };
    let log = Log::new(loaded.settings.log);
    #[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
    let now = clock::now().wall;
    for note in &loaded.notes {
        log.write(Level::Warn, note, now);
    }
    match runtime::run(Start { loaded, file: absolute(config), bad, log }) {
        Ok(()) => OK,
        Err(runtime::Fatal(error)) => {
            complain(&error);
            FAILED
        }
    }
}
