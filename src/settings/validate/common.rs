//! What several sections have in common.

use core::time::Duration;

use super::super::model::{Apply, Backoff};
use super::super::units::Span;
use super::super::walker::{Section, Wants};

pub(super) const MILLIS: Duration = Duration::from_millis(1);
/// The shortest time-out, wait or pause: shorter is a typing error.
pub(super) const SHORTEST: Duration = Duration::from_millis(10);
/// The shortest time between heartbeats or polls.
pub(super) const BEAT: Duration = Duration::from_millis(100);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
pub(super) const HOUR: Duration = Duration::from_secs(3600);
pub(super) const DAY: Duration = Duration::from_secs(86_400);

/// A back-off: `initial` up to an hour, `max` from there up to a day.
pub(super) fn backoff(
    section: &mut Section<'_, '_, '_>,
    initial: Duration,
    max: Duration,
) -> Backoff {
    let span = |longest| Span::new(SHORTEST, longest);
    let initial = section.duration("initial", span(HOUR), initial);
    let given = section.optional_duration("max", span(DAY));
    match given {
        Some(max) if max < initial => {
            section.report("max", "is shorter than initial; allowed is initial or longer");
            Backoff { initial, max: initial }
        }
        given => Backoff { initial, max: given.unwrap_or(max).max(initial) },
    }
}

/// `restart`, `reload` or a command.
pub(super) fn apply(section: &mut Section<'_, '_, '_>) -> Apply {
    const ALLOWED: &str = "restart, reload (SIGHUP), or a command as a list such as [/usr/bin/systemctl, reload, otelcol]";
    if section.is_scalar("apply") {
        return section
            .parsed("apply", Wants::Any(ALLOWED), |word| match word {
                "restart" => Ok(Apply::Restart),
                "reload" => Ok(Apply::Reload),
                _ => Err(format!("is neither of the known words; allowed is {ALLOWED}")),
            })
            .unwrap_or(Apply::Restart);
    }
    match section.command("apply") {
        None => Apply::Restart,
        Some(command) if command.is_empty() => {
            section.report("apply", format!("is an empty list; allowed is {ALLOWED}"));
            Apply::Restart
        }
        Some(command) => Apply::Command(command),
    }
}
