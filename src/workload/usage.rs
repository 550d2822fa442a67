//! What the processes of a group use, from `/proc`.

use core::time::Duration;
use std::fs::{self, File};
use std::io::{self, Read};

use rustix::param::{clock_ticks_per_second, page_size};

/// Bytes read of one `/proc/PID/stat`: 52 numbers and a name of 64 bytes at most.
const MAX_STAT: u64 = 2048;

/// What a process group uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processes in the group.
    pub processes: u32,
    /// Their resident memory; pages that they share count once for each.
    pub rss_bytes: u64,
    /// CPU time that they have used since each began. Falls when one ends.
    pub cpu: Duration,
}

/// Sums up a process group. Processes that come or go meanwhile may be missed.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of_group(pgid: i32) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut ticks: u64 = 0;
    let mut pages: u64 = 0;
    let mut text = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        text.clear();
        // Gone since it was listed: it uses nothing.
        let Ok(file) = File::open(entry.path().join("stat")) else { continue };
        if file.take(MAX_STAT).read_to_end(&mut text).is_err() {
            continue;
        }
        if let Some(stat) = Stat::parse(&text).filter(|stat| stat.pgid == pgid) {
            usage.processes = usage.processes.saturating_add(1);
            ticks = ticks.saturating_add(stat.ticks);
            pages = pages.saturating_add(stat.pages);
        }
    }
    let page = u64::try_from(page_size()).unwrap_or(u64::MAX);
    usage.rss_bytes = pages.saturating_mul(page);
    let millis = ticks.saturating_mul(1000).checked_div(clock_ticks_per_second()).unwrap_or(0);
    usage.cpu = Duration::from_millis(millis);
    Ok(usage)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pgid: i32,
    ticks: u64,
    pages: u64,
}

impl Stat {
    /// `pid (name) state ppid pgrp … utime stime … rss …`; the name may hold spaces and brackets.
    fn parse(text: &[u8]) -> Option<Self> {
        let name_end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = core::str::from_utf8(text.get(name_end.checked_add(1)?..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let pgid = fields.nth(2)?.parse().ok()?;
        let user: u64 = fields.nth(8)?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        let pages: i64 = fields.nth(8)?.parse().ok()?;
        let pages = u64::try_from(pages).unwrap_or(0);
        Some(Self { pgid, ticks: user.saturating_add(system), pages })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = b"42 (a) S 1 (b) S 1 40 40 0 -1 4194304 1 2 3 4 11 22 5 6 20 0 1 0 99 1000000 77 18446744073709551615\n";
        assert_eq!(Stat::parse(text), Some(Stat { pgid: 40, ticks: 33, pages: 77 }));
        assert_eq!(Stat::parse(b"42 (a S 1"), None);
        assert_eq!(Stat::parse(b"42 (a) S 1"), None);
    }
}
