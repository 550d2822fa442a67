//! When the pages of code that has run are given back: once a burst of work is over, and now and then at a server's
//! answer, after which nothing happens for a while. Not at each: what a heartbeat runs lies together (`cross/hot`), and to
//! map it again costs more than the heartbeat.

use core::time::Duration;

use crate::clock::Mono;
use crate::sys;

/// Without an event for so long, a burst is over.
const QUIET: Duration = Duration::from_secs(1);
/// Between two times at answers.
const INTERVAL: Duration = Duration::from_secs(600);
/// More events than this are a burst: its end is worth a wake-up of its own. A heartbeat is two.
const BURST: u32 = 8;

/// What has happened since.
#[derive(Debug, Default)]
pub(super) struct Rest {
    last: Mono,
    busy: u32,
    seen: Mono,
}

impl Rest {
    /// Something happened.
    pub(super) fn disturbed(&mut self, now: Mono) {
        // A few events and then quiet are no burst.
        if self.deadline().is_none() && now.since(self.seen) >= QUIET {
            self.busy = 0;
        }
        self.busy = self.busy.saturating_add(1);
        self.seen = now;
    }

    /// When the burst is over, if there is one.
    pub(super) fn deadline(&self) -> Option<Mono> {
        (self.busy > BURST).then(|| self.seen.after(QUIET))
    }

    /// After an event: `answered` where it was the server's.
    pub(super) fn settle(&mut self, answered: bool, now: Mono) {
        let quiet = self.deadline().is_some_and(|at| at <= now);
        if quiet || (answered && now.since(self.last) >= INTERVAL) {
            sys::give_back_code();
            *self = Self { last: now, busy: 0, seen: now };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_costs_no_wake_up_and_a_burst_costs_one() {
        let at = |millis| Mono(Duration::from_millis(millis));
        let mut rest = Rest::default();
        for beat in 1..100 {
            let now = at(30_000 * beat);
            rest.disturbed(now);
            rest.disturbed(now);
            assert_eq!(rest.deadline(), None);
            rest.settle(true, now);
        }
        for event in 0..20 {
            rest.disturbed(at(3_000_000 + event));
        }
        assert_eq!(rest.deadline(), Some(at(3_001_019)));
        // What comes late does not hide the burst before it.
        rest.disturbed(at(3_003_000));
        assert_eq!(rest.deadline(), Some(at(3_004_000)));
        rest.settle(false, at(3_004_000));
        assert_eq!(rest.deadline(), None);
    }
}
