//! `opamp.remote_config`.

use core::time::Duration;

use super::super::model::{Allow, CrashLoop, Layout, RemoteConfig, Rollback};
use super::super::problem::shorten;
use super::super::units::{Long, Span};
use super::super::walker::{Section, Wants};
use super::common::{DAY, MILLIS, MINUTE, SECOND, SHORTEST, apply};

/// Bytes of a whole set that may be allowed.
const SET_SIZE: core::ops::RangeInclusive<u64> = 1..=(16 << 20);
/// Bytes that may be merged: merging costs about thirty times that in memory.
const MERGE_SIZE: core::ops::RangeInclusive<u64> = 1..=(4 << 20);

pub(super) fn remote_config(section: &mut Section<'_, '_, '_>) -> RemoteConfig {
    RemoteConfig {
        main_file: section
            .parsed("main_file", Wants::Text("a file name"), main_file)
            .unwrap_or_default(),
        layout: section.word(
            "layout",
            &[("files", Layout::Files), ("merge", Layout::Merge)],
            Layout::Files,
        ),
        validate: section.command("validate").unwrap_or_default(),
        apply: apply(section),
        rollback: section.within("rollback", rollback),
        min_interval: section.duration(
            "min_interval",
            Span::new(MILLIS, DAY).or_zero("none"),
            MINUTE,
        ),
        allow: section.within("allow", allow),
        history: section.number("history", 1..=100, 5),
        require_signature: section.truth("require_signature", false),
    }
}

/// A name below the generation's directory, or empty.
fn main_file(name: &str) -> Result<String, String> {
    /// Bytes of a name with its directories.
    const MAX_NAME: usize = 255;
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    let bad =
        name.len() > MAX_NAME || name.chars().any(char::is_control) || name.split('/').any(odd);
    if bad && !name.is_empty() {
        return Err(format!(
            "{:?} is not allowed; allowed is a relative name such as config.yaml, without . and .., up to \
             {MAX_NAME} bytes",
            shorten(name)
        ));
    }
    Ok(name.to_owned())
}

fn rollback(section: &mut Section<'_, '_, '_>) -> Rollback {
    let window = section.duration("window", Span::new(SHORTEST, DAY), MINUTE);
    let interval =
        section.duration("interval", Span::new(SHORTEST, MINUTE.saturating_mul(60)), SECOND);
    let successes = section.number("successes", 1..=1000_u32, 5);
    let attempts = section.number("attempts", 1..=100, 3);
    // The first check comes at once.
    let needed: Duration = interval.saturating_mul(successes.saturating_sub(1));
    if needed > window {
        section.report(
            "window",
            format!(
                "{} is too short for {successes} checks {} apart; allowed is {} or longer",
                Long(window),
                Long(interval),
                Long(needed)
            ),
        );
    }
    let crash_loop = section.within("crash_loop", |own| CrashLoop {
        crashes: own.number("crashes", 1..=1000, 5),
        within: own.duration("within", Span::new(SECOND, DAY), MINUTE.saturating_mul(10)),
    });
    Rollback { window, interval, successes, attempts, crash_loop }
}

fn allow(section: &mut Section<'_, '_, '_>) -> Allow {
    let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
    Allow {
        files: section.texts("files").unwrap_or_else(|| vec!["*".to_owned()]),
        max_files: section.number("max_files", 1..=1024, 32),
        max_size: bytes(section.size("max_size", &SET_SIZE, 1 << 20)),
        max_merge: bytes(section.size("max_merge", &MERGE_SIZE, 128 << 10)),
    }
}
