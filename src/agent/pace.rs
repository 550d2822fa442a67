//! Timers that can wait a little are due together: one wake-up instead of two.

use core::time::Duration;

use crate::clock::Mono;

/// When what is done each `interval` is due next: a quarter sooner or later at most, towards a `beat`, which is due then
/// and each `period` after.
#[must_use]
pub(super) fn in_step(now: Mono, interval: Duration, beat: Option<(Mono, Duration)>) -> Mono {
    let plain = now.after(interval);
    let Some((beat, period)) = beat.filter(|(_, period)| !period.is_zero()) else { return plain };
    let wanted = if plain <= beat {
        // So many rounds until then, all of the same length.
        let left = beat.since(now);
        left.checked_div(nearest(left, interval)).map(|step| now.after(step))
    } else {
        let beats = nearest(plain.since(beat), period);
        Some(beat.after(period.saturating_mul(beats)))
    };
    let spare = interval.checked_div(4).unwrap_or_default();
    wanted.unwrap_or(plain).clamp(Mono(plain.0.saturating_sub(spare)), plain.after(spare))
}

/// How many of `part` come nearest to `whole`.
fn nearest(whole: Duration, part: Duration) -> u32 {
    let half = part.checked_div(2).unwrap_or_default();
    let count = whole.saturating_add(half).as_nanos().checked_div(part.as_nanos());
    count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, reason = "tests")]

    use super::*;

    fn at(millis: u64) -> Mono {
        Mono(Duration::from_millis(millis))
    }

    /// Rounds at the end that fall on no beat.
    fn alone(interval: u64, first_beat: u64, period: u64) -> usize {
        let interval = Duration::from_millis(interval);
        let period = Duration::from_millis(period);
        let mut beat = at(first_beat);
        let (mut round, mut alone) = (at(0), 0);
        for _ in 0..40 {
            // A round takes 3 ms; beats that have passed by then are followed by the next.
            let now = round.after(Duration::from_millis(3));
            while beat <= now {
                beat = beat.after(period);
            }
            round = in_step(now, interval, Some((beat, period)));
            let since = round.since(at(first_beat)).as_nanos();
            let met = round >= at(first_beat) && since.is_multiple_of(period.as_nanos());
            alone = if met { 0 } else { alone + 1 };
        }
        alone
    }

    #[test]
    fn rounds_meet_the_beat_wherever_they_began() {
        for first_beat in (1..30_000).step_by(777) {
            assert!(alone(10_000, first_beat, 30_000) < 3, "10 s, {first_beat}");
            assert_eq!(alone(30_000, first_beat, 30_000), 0, "30 s, {first_beat}");
            assert_eq!(alone(60_000, first_beat, 30_000), 0, "60 s, {first_beat}");
        }
    }

    #[test]
    fn no_round_is_more_than_a_quarter_early_or_late() {
        for interval in [10, 1_000, 7_000, 10_000, 45_000, 3_600_000] {
            for beat in (1..90_000).step_by(991) {
                let interval = Duration::from_millis(interval);
                let next = in_step(at(5), interval, Some((at(beat), Duration::from_secs(30))));
                let took = next.since(at(5));
                assert!(
                    took >= interval * 3 / 4 && took <= interval * 5 / 4,
                    "{interval:?} {beat}"
                );
            }
        }
    }

    #[test]
    fn without_a_beat_nothing_moves() {
        let second = Duration::from_secs(1);
        assert_eq!(in_step(at(7), second, None), at(1_007));
        assert_eq!(in_step(at(7), second, Some((at(0), Duration::ZERO))), at(1_007));
        assert_eq!(in_step(at(7), Duration::ZERO, Some((at(9), second))), at(7));
    }
}
