//! How fast a download may be, and how slow. Time is an argument.

use core::time::Duration;

use crate::clock::Mono;

/// A bandwidth is held by sleeping so long at least: a few wake-ups a second, whatever the rate.
const SLICE: Duration = Duration::from_millis(250);
const NANOS: u128 = 1_000_000_000;

/// Holds a rate on average: what came too early is slept off.
#[derive(Debug)]
pub(super) struct Brake {
    /// Bytes a second; 0: unlimited.
    rate: u64,
    /// When what has come would have come at that rate.
    due: Mono,
}

impl Brake {
    pub(super) const fn new(rate: u64, now: Mono) -> Self {
        Self { rate, due: now }
    }

    /// Bytes to read at once: what comes in a slice.
    pub(super) fn most(&self) -> usize {
        if self.rate == 0 {
            return usize::MAX;
        }
        let slice = bytes_in(SLICE, self.rate).max(1);
        usize::try_from(slice).unwrap_or(usize::MAX)
    }

    /// So many came: how long to sleep before the next ones.
    pub(super) fn took(&mut self, bytes: u64, now: Mono) -> Option<Duration> {
        if self.rate == 0 {
            return None;
        }
        // What was not used before is not made up for.
        self.due = self.due.max(now).after(time_of(bytes, self.rate));
        let ahead = self.due.since(now);
        (ahead >= SLICE).then_some(ahead)
    }
}

/// The slowest that is put up with: so many bytes in each window.
#[derive(Debug)]
pub(super) struct Window {
    length: Duration,
    least: u64,
    start: Mono,
    came: u64,
}

impl Window {
    /// `least` bytes a second over each `length`.
    pub(super) fn new(least: u64, length: Duration, now: Mono) -> Self {
        Self { length, least: bytes_in(length, least), start: now, came: 0 }
    }

    /// How long the window is still open.
    pub(super) fn left(&self, now: Mono) -> Duration {
        self.length.saturating_sub(now.since(self.start))
    }

    /// So many came. At its end: false where too few did, and else the next one begins.
    pub(super) fn came(&mut self, bytes: u64, now: Mono) -> bool {
        self.came = self.came.saturating_add(bytes);
        if self.left(now) > Duration::ZERO {
            return true;
        }
        let enough = self.came >= self.least;
        (self.start, self.came) = (now, 0);
        enough
    }

    /// So long it was not the peer that we waited for.
    pub(super) fn pause(&mut self, since: Mono, now: Mono) {
        self.start = self.start.after(now.since(since));
    }
}

fn bytes_in(time: Duration, rate: u64) -> u64 {
    let bytes = time.as_nanos().saturating_mul(u128::from(rate)).checked_div(NANOS);
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(u64::MAX)
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes).saturating_mul(NANOS).checked_div(u128::from(rate));
    let nanos = nanos.and_then(|nanos| u64::try_from(nanos).ok());
    nanos.map_or(Duration::MAX, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Mono {
        Mono(Duration::from_millis(millis))
    }

    #[test]
    fn a_rate_is_held_on_average_with_few_sleeps() {
        for rate in [100_u64, 10_000, 50_000_000] {
            let mut now = at(0);
            let mut brake = Brake::new(rate, now);
            let (mut bytes, mut sleeps) = (0_u64, 0_u64);
            while bytes < rate * 10 {
                let part = brake.most().min(131_072) as u64;
                bytes += part;
                if let Some(sleep) = brake.took(part, now) {
                    sleeps += 1;
                    now = now.after(sleep);
                }
            }
            assert!((Duration::from_secs(9)..=Duration::from_secs(11)).contains(&now.0), "{now:?}");
            assert!(sleeps <= 42, "{rate}: {sleeps} sleeps in ten seconds");
        }
    }

    #[test]
    fn what_was_not_used_is_not_made_up_for() {
        let mut brake = Brake::new(1000, at(0));
        assert_eq!(brake.took(250, at(60_000)), Some(Duration::from_millis(250)));
        assert_eq!(brake.took(100, at(60_250)), None);
        assert_eq!(Brake::new(0, at(0)).took(u64::MAX, at(0)), None);
    }

    #[test]
    fn too_few_bytes_in_a_window_are_noticed_at_its_end() {
        let mut window = Window::new(1024, Duration::from_secs(30), at(0));
        assert!(window.came(30 * 1024 - 1, at(29_999)));
        assert_eq!(window.left(at(29_999)), Duration::from_millis(1));
        assert!(window.came(1, at(30_000)));
        assert!(window.came(1, at(59_999)));
        assert!(!window.came(1, at(60_000)));
    }

    #[test]
    fn our_own_pauses_do_not_count() {
        let mut window = Window::new(1024, Duration::from_secs(30), at(0));
        window.pause(at(1_000), at(100_000));
        assert_eq!(window.left(at(100_000)), Duration::from_secs(29));
        assert!(window.came(0, at(128_999)));
        assert!(!window.came(0, at(129_000)));
    }
}
