//! When the pages of code that has run are given back: once a burst of work is over, and now and then at a server's
//! answer, after which nothing happens for a while.

use core::time::Duration;

use crate::clock::Mono;
use crate::sys;

/// Between two times.
const INTERVAL: Duration = Duration::from_secs(1);
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
        self.busy = self.busy.saturating_add(1);
        self.seen = now;
    }

    /// When the burst is over, if there is one.
    pub(super) fn deadline(&self) -> Option<Mono> {
        (self.busy > BURST).then(|| self.seen.after(INTERVAL))
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
        rest.settle(false, at(3_001_019));
        assert_eq!(rest.deadline(), None);
    }
}
