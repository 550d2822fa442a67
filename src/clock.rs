//! Time as values. The core is given a [`Now`]; only the edge calls [`now`] (clippy sees to it).

use core::time::Duration;
use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};

/// A point on the monotonic clock: time since an arbitrary start. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mono(pub Duration);

impl Mono {
    /// The point `later` after this one; saturates at the end of time.
    #[must_use]
    pub const fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(later))
    }

    /// Time since `earlier`; zero if `earlier` is in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// A point on the wall clock: time since 1970 in UTC. May be wrong, may step (promise 10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wall(pub Duration);

impl Wall {
    /// Nanoseconds since 1970, as OpAMP carries them; saturates in the year 2554.
    #[must_use]
    pub fn unix_nanos(self) -> u64 {
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For intervals.
    pub mono: Mono,
    /// For what is shown, and for certificates through [`trusted_wall`].
    pub wall: Wall,
}

/// When this binary was built, seconds since 1970: no honest clock shows an earlier time.
pub const BUILD_TIME: u64 = parse_seconds(env!("CHITON_BUILD_TIME"));

/// The time to judge certificates and expiry by (promise 10): a dead clock shows 1970, and then the build
/// time or a later signed time (`floor`, seconds) is nearer to the truth.
#[must_use]
pub fn trusted_wall(wall: Wall, floor: u64) -> Wall {
    wall.max(Wall(Duration::from_secs(BUILD_TIME.max(floor))))
}

/// The latest time that a trusted key has signed for what was installed, seconds since 1970.
static FLOOR: Mutex<u64> = Mutex::new(0);

/// Something was signed at that time, seconds since 1970: it is later now.
pub fn raise_floor(seconds: u64) {
    let mut floor = FLOOR.lock().unwrap_or_else(PoisonError::into_inner);
    *floor = seconds.max(*floor);
}

/// As [`trusted_wall`], by all that was signed.
#[must_use]
pub fn trusted(wall: Wall) -> Wall {
    let floor = *FLOOR.lock().unwrap_or_else(PoisonError::into_inner);
    trusted_wall(wall, floor)
}

/// The date in UTC: `2031-01-31`.
#[must_use]
pub fn date(time: Wall) -> String {
    let (year, month, day) = date_of(time.0.as_secs().div_euclid(86_400));
    format!("{year:04}-{month:02}-{day:02}")
}

/// The Gregorian date so many days after 1970, by years that begin in March.
#[expect(
    clippy::arithmetic_side_effects,
    reason = "u64 seconds are at most 2.1e14 days: nothing overflows"
)]
const fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Reads both clocks.
#[must_use]
pub fn now() -> Now {
    Now { mono: Mono(read(ClockId::Monotonic)), wall: Wall(read(ClockId::Realtime)) }
}

/// Time since the kernel started, sleep included: what `/proc` counts a process's start by.
#[must_use]
pub fn since_boot() -> Duration {
    read(ClockId::Boottime)
}

fn read(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    // A clock before 1970 is as wrong as one at 1970.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0).min(999_999_999))
}

#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "evaluated by the compiler: a bad build time fails the build"
)]
const fn parse_seconds(text: &str) -> u64 {
    let digits = text.as_bytes();
    let mut value = 0;
    let mut i = 0;
    while i < digits.len() {
        assert!(digits[i].is_ascii_digit(), "CHITON_BUILD_TIME is not a number of seconds");
        value = value * 10 + (digits[i] - b'0') as u64;
        i += 1;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_clock_is_lifted_to_the_build_time_and_to_signed_times() {
        let dead = Wall(Duration::ZERO);
        assert_eq!(trusted_wall(dead, 0), Wall(Duration::from_secs(BUILD_TIME)));
        assert_eq!(trusted_wall(dead, BUILD_TIME + 5), Wall(Duration::from_secs(BUILD_TIME + 5)));
        let after_2038 = Wall(Duration::from_secs(1 << 32));
        assert_eq!(trusted_wall(after_2038, 0), after_2038);
    }

    #[test]
    fn monotonic_differences_saturate() {
        let early = Mono(Duration::from_secs(1));
        let late = Mono(Duration::from_secs(3));
        assert_eq!(late.since(early), Duration::from_secs(2));
        assert_eq!(early.since(late), Duration::ZERO);
        assert_eq!(Mono(Duration::MAX).after(Duration::from_secs(1)), Mono(Duration::MAX));
    }
}
