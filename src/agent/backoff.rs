//! Waiting before trying again.

use core::time::Duration;

use crate::settings::Backoff;

/// Pseudo-random numbers for jitter: a seed from outside, then splitmix64. Nothing secret hangs on it.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// Starts from a seed; the same seed gives the same waits.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.0;
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A duration from zero to `most`, evenly spread, in microseconds.
    pub fn up_to(&mut self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        let product = u128::from(self.next()).wrapping_mul(u128::from(most).saturating_add(1));
        Duration::from_micros(u64::try_from(product >> 64).unwrap_or(most))
    }
}

/// The upper bound of the wait before attempt `attempt` (0 is the first): `initial` doubled each time, at most
/// `max`.
#[must_use]
pub fn bound(backoff: Backoff, attempt: u32) -> Duration {
    let factor = 1_u32.checked_shl(attempt).unwrap_or(u32::MAX);
    backoff.initial.saturating_mul(factor).min(backoff.max)
}

/// Full jitter (opamp-spec L3372): anything from zero to the bound, so that a fleet does not return as one.
#[must_use]
pub fn full_jitter(backoff: Backoff, attempt: u32, jitter: &mut Jitter) -> Duration {
    jitter.up_to(bound(backoff, attempt))
}

/// The least wait after a server said that it is overloaded (opamp-spec L3552).
pub const THROTTLED_AT_LEAST: Duration = Duration::from_secs(30);
/// The longest wait that a server can impose: a larger one is a mistake or malice.
pub const THROTTLED_AT_MOST: Duration = Duration::from_secs(3600);

/// The wait after 429, 503 or UNAVAILABLE: at least what the server asked for and 30 s, a quarter more by
/// chance so that those who were told the same do not return together, at most an hour.
#[must_use]
pub fn throttled(asked: Option<Duration>, jitter: &mut Jitter) -> Duration {
    let least = asked.unwrap_or_default().max(THROTTLED_AT_LEAST).min(THROTTLED_AT_MOST);
    let spread = least.checked_div(4).unwrap_or_default();
    least.saturating_add(jitter.up_to(spread)).min(THROTTLED_AT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff =
        Backoff { initial: Duration::from_secs(5), max: Duration::from_secs(60) };

    #[test]
    fn the_bound_doubles_up_to_the_maximum() {
        let bounds: Vec<u64> = (0..6).map(|attempt| bound(BACKOFF, attempt).as_secs()).collect();
        assert_eq!(bounds, [5, 10, 20, 40, 60, 60]);
        assert_eq!(bound(BACKOFF, u32::MAX), BACKOFF.max);
    }

    #[test]
    fn full_jitter_fills_the_whole_range() {
        let mut jitter = Jitter::new(1);
        let waits: Vec<Duration> =
            (0..1000).map(|_| full_jitter(BACKOFF, 0, &mut jitter)).collect();
        assert!(waits.iter().all(|wait| *wait <= BACKOFF.initial));
        assert!(waits.iter().any(|wait| *wait < Duration::from_millis(100)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_millis(4900)));
    }

    #[test]
    fn throttling_jitters_upward_only_and_within_its_bounds() {
        let mut jitter = Jitter::new(2);
        for (asked, low, high) in
            [(None, 30, 38), (Some(0), 30, 38), (Some(100), 100, 125), (Some(u64::MAX), 3600, 3600)]
        {
            for _ in 0..100 {
                let wait = throttled(asked.map(Duration::from_secs), &mut jitter);
                assert!(
                    wait >= Duration::from_secs(low) && wait <= Duration::from_secs(high),
                    "{wait:?}"
                );
            }
        }
    }
}
