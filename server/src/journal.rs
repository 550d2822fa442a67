//! One line an event, to stderr.

use std::fmt::Arguments;
use std::io::Write as _;

use crate::clock::Moment;

/// Where the server writes what happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    /// One line an event.
    Stderr,
    /// Nothing is written.
    Silent,
}

impl Journal {
    /// Writes one line. What peers said must come through `{:?}`, so that it cannot forge lines.
    pub(crate) fn note(self, event: Arguments<'_>) {
        if self == Self::Stderr {
            // A closed stderr is no reason to stop serving.
            let _ = writeln!(std::io::stderr().lock(), "{} {event}", Moment::now());
        }
    }
}
