//! The log: one line an event, to stderr, to the journal or to syslog (`log.to`).
//!
//! journald and syslogd note time and priority themselves: a line of text has neither there. Elsewhere it begins with
//! the time in UTC and the level.

pub mod limit;
mod sink;

use core::cell::RefCell;

use self::sink::Sink;
use crate::clock::{Wall, date};
use crate::json::Json;
use crate::settings::{Level, Log as Settings, LogFormat};

/// Longest line, bytes: what a server or a workload says may be long.
const MAX_LINE: usize = 4096;

/// Writes lines.
#[derive(Debug)]
pub struct Log {
    settings: Settings,
    sink: RefCell<Sink>,
}

impl Log {
    /// A log as the settings ask for it.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, sink: RefCell::new(Sink::open(settings.to)) }
    }

    /// Goes on as other settings ask for it.
    pub fn govern(&mut self, settings: Settings) {
        if self.settings.to != settings.to {
            self.sink = RefCell::new(Sink::open(settings.to));
        }
        self.settings = settings;
    }

    /// Writes one line; where syslog or the journal do not take it, to stderr.
    pub fn write(&self, level: Level, text: &str, now: Wall) {
        if level > self.settings.level {
            return;
        }
        let mut sink = self.sink.borrow_mut();
        let daemon = sink.is_log_daemon();
        let Err(why) = sink.put(level, &self.line(level, text, daemon, now)) else { return };
        let mut stderr = Sink::Stderr { journal: false };
        if let Some(why) = why {
            let _ = stderr.put(Level::Warn, &self.line(Level::Warn, &why, false, now));
        }
        let _ = stderr.put(level, &self.line(level, text, false, now));
    }

    fn line(&self, level: Level, text: &str, daemon: bool, now: Wall) -> String {
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let end =
            text.char_indices().map(|(at, _)| at).find(|at| *at >= MAX_LINE).unwrap_or(text.len());
        let text = text.get(..end).unwrap_or_default();
        let word = match level {
            Level::Error => "ERROR",
            Level::Warn => "WARN",
            Level::Info => "INFO",
            Level::Debug => "DEBUG",
        };
        match self.settings.format {
            LogFormat::Text if daemon => text.to_owned(),
            LogFormat::Text => format!("{} {word:5} {text}", rfc3339(now)),
            LogFormat::Json => Json::object([
                ("time", Json::text(rfc3339(now))),
                ("level", Json::text(word.to_ascii_lowercase())),
                ("message", Json::text(text)),
            ])
            .to_string(),
        }
    }
}

/// RFC 3339 in UTC, to the millisecond.
#[must_use]
pub fn rfc3339(time: Wall) -> String {
    let seconds = time.0.as_secs();
    let rest = seconds.rem_euclid(86_400);
    let (hour, minute, second) =
        (rest.div_euclid(3600), rest.div_euclid(60).rem_euclid(60), rest.rem_euclid(60));
    let millis = time.0.subsec_millis();
    format!("{}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z", date(time))
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
        let log = |format| Log::new(Settings { level: Level::Info, format, to: LogTo::Stderr });
        let text = "first\nsecond\u{1b}[31m";
        assert_eq!(
            log(LogFormat::Text).line(Level::Warn, text, false, AT),
            "2000-02-28T23:59:59.007Z WARN  first second [31m"
        );
        assert_eq!(log(LogFormat::Text).line(Level::Error, text, true, AT), "first second [31m");
        assert_eq!(
            log(LogFormat::Json).line(Level::Info, "a \"b\"", false, AT),
            "{\"time\":\"2000-02-28T23:59:59.007Z\",\"level\":\"info\",\"message\":\"a \\\"b\\\"\"}"
        );
        let long = "x".repeat(100_000);
        assert!(log(LogFormat::Text).line(Level::Info, &long, false, AT).len() < MAX_LINE + 64);
    }
}
