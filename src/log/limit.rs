//! A limit for what a peer makes us say: a flood of bad frames must not become a flood of lines.
//!
//! No timer: what was left out is told with the next thing that happens after the window, which at rest is a heartbeat.

use core::time::Duration;

use crate::clock::Mono;

/// Lines of one kind in one [`WINDOW`].
pub const BURST: u32 = 5;
/// How long the lines of a burst are counted.
pub const WINDOW: Duration = Duration::from_secs(60);
/// Kinds that are counted at once; the oldest makes room.
pub const MAX_KINDS: usize = 8;
/// Characters that tell the kind of a line: its beginning is in our own words.
const KIND: usize = 24;

/// Counts lines by kind.
#[derive(Debug, Default)]
pub struct Limiter {
    kinds: Vec<Kind>,
}

#[derive(Debug)]
struct Kind {
    name: String,
    since: Mono,
    said: u32,
    left_out: u64,
}

impl Limiter {
    /// Whether a line is to be said. Whatever [`Limiter::owed`] has to tell comes first.
    pub fn allows(&mut self, text: &str, now: Mono) -> bool {
        let name: String = text.chars().take(KIND).collect();
        if let Some(kind) = self.kinds.iter_mut().find(|kind| kind.name == name) {
            if kind.said < BURST {
                kind.said = kind.said.saturating_add(1);
                return true;
            }
            kind.left_out = kind.left_out.saturating_add(1);
            return false;
        }
        if self.kinds.len() >= MAX_KINDS {
            self.kinds.remove(0);
        }
        self.kinds.push(Kind { name, since: now, said: 1, left_out: 0 });
        true
    }

    /// A line about what was left out in a window that is over; to be asked until there is none.
    pub fn owed(&mut self, now: Mono) -> Option<String> {
        loop {
            // In the order of their beginnings.
            let first = self.kinds.first().filter(|kind| now.since(kind.since) >= WINDOW)?;
            let line = (first.left_out > 0).then(|| {
                format!("{} more lines like this were left out: {}…", first.left_out, first.name)
            });
            self.kinds.remove(0);
            if line.is_some() {
                return line;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Mono {
        Mono(Duration::from_secs(seconds))
    }

    #[test]
    fn a_burst_is_said_and_the_rest_counted() {
        let mut limiter = Limiter::default();
        let said = (0..1000)
            .filter(|n| limiter.allows(&format!("ignored a malformed message: {n}"), at(1)))
            .count();
        assert_eq!(said, 5);
        assert!(limiter.allows("ignored something else", at(2)), "another kind");
        assert_eq!(limiter.owed(at(60)), None, "the window is not over");
        let owed = limiter.owed(at(61));
        assert_eq!(
            owed.as_deref(),
            Some("995 more lines like this were left out: ignored a malformed mess…")
        );
        assert_eq!(limiter.owed(at(62)), None, "told once, and nothing was left out of the other");
        assert!(limiter.allows("ignored a malformed message", at(62)), "a new window");
    }

    #[test]
    fn kinds_are_bounded() {
        let mut limiter = Limiter::default();
        for n in 0..10_000 {
            assert!(limiter.allows(&format!("kind {n}"), at(0)));
        }
        assert_eq!(limiter.kinds.len(), MAX_KINDS);
    }
}
