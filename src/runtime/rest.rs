//! When the pages of code that has run are given back: once a burst of work is over, and now and then at a server's
//! answer, after which nothing happens for a while. Not at each: what a heartbeat runs lies together (`cross/hot`), and to
//! map it again each time is a quarter of the processor time at rest.

use core::time::Duration;

use crate::clock::Mono;
use crate::sys;

/// Without an event for so long, a burst is over.
const QUIET: Duration = Duration::from_secs(1);
/// Between two times at answers.
const INTERVAL: Duration = Duration::from_secs(600);
/// Where nobody answers, whatever happens next serves: with no server there are events too.
const LONG: Duration = Duration::from_secs(1200);
/// More events than this are a burst: its end is worth a wake-up of its own. A heartbeat is two.
const BURST: u32 = 8;

/// What has happened since.
#[derive(Debug)]
pub(super) struct Rest {
    last: Mono,
    busy: u32,
    seen: Mono,
}

impl Rest {
    /// From now on.
    pub(super) fn new(now: Mono) -> Self {
        Self { last: now, busy: 0, seen: now }
    }

    /// Something happened.
    pub(super) fn disturbed(&mut self, now: Mono) {
        // A few events and then quiet are no burst.
        if self.deadline().is_none() && now.since(self.seen) >= QUIET {
            self.busy = 0;
        }
        self.busy = self.busy.saturating_add(1);
        self.seen = now;
    }

    /// A link came up: one event, and a handshake behind it, of which nothing runs again for a long time.
    pub(super) fn connected(&mut self, now: Mono) {
        self.busy = BURST.saturating_add(1);
        self.seen = now;
    }

    /// When the burst is over, if there is one.
    pub(super) fn deadline(&self) -> Option<Mono> {
        (self.busy > BURST).then(|| self.seen.after(QUIET))
    }

    /// After an event: `answered` where it was the server's.
    pub(super) fn settle(&mut self, answered: bool, now: Mono) {
        let since = now.since(self.last);
        let due = match self.deadline() {
            Some(end) => end <= now || since >= LONG,
            None => since >= if answered { INTERVAL } else { LONG },
        };
        if due {
            sys::give_back_code();
            *self = Self::new(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_costs_no_wake_up_and_a_burst_costs_one() {
        let at = |millis| Mono(Duration::from_millis(millis));
        let mut rest = Rest::new(at(0));
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

    #[test]
    fn what_ran_once_is_given_back_whoever_answers() {
        let at = |seconds| Mono(Duration::from_secs(seconds));
        let mut rest = Rest::new(at(0));
        rest.connected(at(5));
        assert_eq!(rest.deadline(), Some(at(6)), "a handshake is a burst");
        rest.settle(true, at(5));
        assert_eq!(rest.deadline(), Some(at(6)), "an answer in the middle of it does not end it");
        rest.settle(false, at(6));
        assert_eq!((rest.deadline(), rest.last), (None, at(6)));
        for (seconds, answered, last) in
            [(30, true, 6), (606, true, 606), (1_300, false, 606), (1_806, false, 1_806)]
        {
            rest.disturbed(at(seconds));
            rest.settle(answered, at(seconds));
            assert_eq!(rest.last, at(last), "{seconds} {answered}");
        }
        // Without a quiet second, too.
        for tenth in 0..20_000 {
            let now = Mono(Duration::from_millis(1_900_000 + 100 * tenth));
            rest.disturbed(now);
            rest.settle(false, now);
        }
        assert!(rest.last > at(3_000), "{rest:?}");
    }
}
