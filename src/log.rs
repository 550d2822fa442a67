//! The log: one line an event, to stderr.
//!
//! Under systemd (JOURNAL_STREAM is set) a line begins with its priority as journald understands it and has no
//! time of its own; elsewhere it begins with the time in UTC.

use std::io::{self, Write};

use crate::clock::Wall;
use crate::json::Json;
use crate::settings::{Level, Log as Settings, LogFormat};

/// Longest line, bytes: what a server or a workload says may be long.
const MAX_LINE: usize = 4096;

/// Writes lines.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    level: Level,
    format: LogFormat,
    journald: bool,
}

impl Log {
    /// A log as the settings ask for it. `journald`: stderr is connected to the journal.
    #[must_use]
    pub const fn new(settings: Settings, journald: bool) -> Self {
        Self { level: settings.level, format: settings.format, journald }
    }

    /// Writes one line; one that cannot be written is lost, for there is nowhere to say so.
    pub fn write(&self, level: Level, text: &str, now: Wall) {
        if level <= self.level {
            let _ = io::stderr().lock().write_all(self.line(level, text, now).as_bytes());
        }
    }

    fn line(&self, level: Level, text: &str, now: Wall) -> String {
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let end =
            text.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_LINE).unwrap_or(text.len());
        let text = text.get(..end).unwrap_or_default();
        let (priority, word) = match level {
            Level::Error => (3, "ERROR"),
            Level::Warn => (4, "WARN"),
            Level::Info => (6, "INFO"),
            Level::Debug => (7, "DEBUG"),
        };
        let prefix = if self.journald { format!("<{priority}>") } else { String::new() };
        match self.format {
            LogFormat::Text if self.journald => format!("{prefix}{text}\n"),
            LogFormat::Text => format!("{} {word:5} {text}\n", rfc3339(now)),
            LogFormat::Json => {
                let line = Json::object([
                    ("time", Json::text(rfc3339(now))),
                    ("level", Json::text(word.to_ascii_lowercase())),
                    ("message", Json::text(text)),
                ]);
                format!("{prefix}{line}\n")
            }
        }
    }
}

/// RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn rfc3339(time: Wall) -> String {
    let seconds = time.0.as_secs();
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date_of(days);
    let (hour, minute, second) =
        (rest.div_euclid(3600), rest.div_euclid(60).rem_euclid(60), rest.rem_euclid(60));
    let millis = time.0.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
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

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::settings::LogTo;

    const AT: Wall = Wall(Duration::from_millis(951_782_399_007)); // the last second of 28 February 2000

    #[test]
    fn dates_around_leap_days_and_ends_of_centuries() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
        ] {
            assert_eq!(rfc3339(Wall(Duration::from_secs(seconds))), text);
        }
    }

    #[test]
    fn one_line_an_event_whatever_a_peer_says() {
        let log = |format, journald| {
            Log::new(Settings { level: Level::Info, format, to: LogTo::Auto }, journald)
        };
        let text = "first\nsecond\u{1b}[31m";
        assert_eq!(
            log(LogFormat::Text, false).line(Level::Warn, text, AT),
            "2000-02-28T23:59:59.007Z WARN  first second [31m\n"
        );
        assert_eq!(
            log(LogFormat::Text, true).line(Level::Error, text, AT),
            "<3>first second [31m\n"
        );
        assert_eq!(
            log(LogFormat::Json, false).line(Level::Info, "a \"b\"", AT),
            "{\"time\":\"2000-02-28T23:59:59.007Z\",\"level\":\"info\",\"message\":\"a \\\"b\\\"\"}\n"
        );
        let long = "x".repeat(100_000);
        assert!(log(LogFormat::Text, false).line(Level::Info, &long, AT).len() < MAX_LINE + 64);
    }
}
