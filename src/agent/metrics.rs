//! When the workload's figures are taken, and how they are reported: as attributes of its health.

use core::time::Duration;

use chiton_proto::{AnyValue, KeyValue, any_value::Value};

use crate::clock::{Mono, Now};

/// What was measured of a workload; [`None`]: not asked for, or not to be had.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Cores in use, the mean since the last time.
    pub cpu_usage: Option<f64>,
    /// Resident bytes.
    pub memory_usage: Option<u64>,
    /// Goroutines.
    pub goroutines: Option<u64>,
    /// Spans received a second, the mean since the last time.
    pub spans_rate: Option<f64>,
    /// Seconds that a request of its took, the mean since the last time.
    pub export_latency: Option<f64>,
}

impl Figures {
    /// Attributes of these names.
    #[must_use]
    pub fn attributes(&self) -> Vec<KeyValue> {
        let whole = |number: u64| Value::IntValue(i64::try_from(number).unwrap_or(i64::MAX));
        let real = |number: f64| Value::DoubleValue((number * 1e6).round() / 1e6);
        [
            ("cpu_usage", self.cpu_usage.map(real)),
            ("memory_usage", self.memory_usage.map(whole)),
            ("goroutines", self.goroutines.map(whole)),
            ("spans_rate", self.spans_rate.map(real)),
            ("export_latency", self.export_latency.map(real)),
        ]
        .into_iter()
        .filter_map(|(name, value)| {
            let value = Some(AnyValue { value: Some(value?) });
            Some(KeyValue { key: name.to_owned(), value })
        })
        .collect()
    }
}

/// The clock of the measurements: nothing else makes a figure change, so nothing else makes one be reported.
#[derive(Clone, Copy, Debug, Default)]
pub struct Measuring {
    next: Option<Mono>,
    round: u64,
}

impl Measuring {
    /// Another process runs, or other figures are wanted: what is under way is about something else. `interval`:
    /// [`None`] where nothing is to be measured.
    pub fn begin(&mut self, interval: Option<Duration>, now: Now) {
        self.round = self.round.wrapping_add(1);
        self.next = interval.map(|interval| now.mono.after(interval));
    }

    /// When the next one is due.
    #[must_use]
    pub const fn deadline(&self) -> Option<Mono> {
        self.next
    }

    /// The round that is due by now.
    pub fn due(&mut self, interval: Option<Duration>, now: Now) -> Option<u64> {
        if self.next? > now.mono {
            return None;
        }
        self.begin(interval, now);
        Some(self.round)
    }

    /// Whether these figures are the ones that were asked for last.
    #[must_use]
    pub const fn awaits(&self, round: u64) -> bool {
        self.round == round
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now { mono: Mono(Duration::from_secs(seconds)), ..Now::default() }
    }

    #[test]
    fn what_is_not_known_is_left_out_and_not_zero() {
        let figures =
            Figures { cpu_usage: Some(0.123_456_789), memory_usage: Some(7), ..Figures::default() };
        let value = |value| Some(AnyValue { value: Some(value) });
        let expected = [
            KeyValue { key: "cpu_usage".to_owned(), value: value(Value::DoubleValue(0.123_457)) },
            KeyValue { key: "memory_usage".to_owned(), value: value(Value::IntValue(7)) },
        ];
        assert_eq!(figures.attributes(), expected);
        assert!(Figures::default().attributes().is_empty());
    }

    #[test]
    fn an_interval_that_was_slept_through_is_not_made_up_for() {
        let interval = Some(Duration::from_secs(300));
        let mut measuring = Measuring::default();
        assert_eq!(measuring.due(interval, at(1_000)), None, "nothing has begun");
        measuring.begin(interval, at(0));
        assert_eq!(measuring.due(interval, at(299)), None);
        let first = measuring.due(interval, at(3_000));
        assert!(first.is_some_and(|round| measuring.awaits(round)));
        assert_eq!(measuring.due(interval, at(3_299)), None);
        measuring.begin(interval, at(3_299));
        assert!(first.is_some_and(|round| !measuring.awaits(round)), "of a process that is gone");
        measuring.begin(None, at(4_000));
        assert_eq!((measuring.deadline(), measuring.due(None, at(9_000))), (None, None));
    }
}
