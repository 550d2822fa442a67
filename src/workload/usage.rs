//! What the workload's processes use: a process group from `/proc`, or a cgroup.
//!
//! Both are made up by the kernel and never make one wait, so they are read on the main thread. A look at a busy system
//! is cheap: of processes that are not of the group only the group is asked for.

use core::time::Duration;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::param::{clock_ticks_per_second, page_size};

use crate::clock::Mono;
use crate::sys::group_of;

/// Bytes read of one `/proc/PID/stat`: 52 numbers and a name of 64 bytes at most.
const MAX_STAT: u64 = 2048;
/// Bytes read of a file of a cgroup.
const MAX_CGROUP_FILE: u64 = 64 * 1024;
/// Processes of the system that are looked at.
const MAX_PROCESSES: usize = 65_536;
/// CPU time comes in ticks of 10 ms: over less time than this a rate is a guess.
const SHORTEST: Duration = Duration::from_millis(500);

/// Whose use is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A process group.
    Group(i32),
    /// One process.
    Process(i32),
    /// A cgroup with all below it.
    Cgroup(PathBuf),
}

impl Target {
    /// A process that somebody else started: with its group where it leads one, else alone.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0)?;
        let leads = group_of(pid) == Some(pid);
        Some(if leads { Self::Group(pid) } else { Self::Process(pid) })
    }

    /// What it uses now.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn usage(&self) -> io::Result<Usage> {
        match self {
            Self::Group(group) => of_group(*group),
            Self::Process(pid) => Ok(sum(core::iter::once(*pid))),
            Self::Cgroup(directory) => of_cgroup(directory),
        }
    }
}

/// What a workload's processes use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// How many there are.
    pub processes: u32,
    /// Their resident memory; of processes, pages that they share count once for each; of a cgroup, what the kernel
    /// could take back at once (clean files that are not in use) does not count.
    pub rss_bytes: u64,
    /// CPU time that they and the children they have collected have used. Falls when one ends uncollected.
    pub cpu: Duration,
}

/// Turns CPU times into cores.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    of: Option<Target>,
    base: Option<(Mono, Duration)>,
    cores: Option<f64>,
}

impl Meter {
    /// The mean use, in cores, between the last figure (at least [`SHORTEST`] ago) and this one; [`None`] while there
    /// is only one.
    pub fn cores(&mut self, of: &Target, cpu: Duration, now: Mono) -> Option<f64> {
        if self.of.as_ref() != Some(of) {
            *self = Self { of: Some(of.clone()), ..Self::default() };
        }
        let Some((at, before)) = self.base else {
            self.base = Some((now, cpu));
            return None;
        };
        let elapsed = now.since(at);
        if elapsed >= SHORTEST {
            self.base = Some((now, cpu));
            self.cores = Some(cpu.saturating_sub(before).as_secs_f64() / elapsed.as_secs_f64());
        }
        self.cores
    }
}

/// Sums up a process group. Processes that come or go meanwhile may be missed.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn of_group(pgid: i32) -> io::Result<Usage> {
    let pids = fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(MAX_PROCESSES);
    Ok(sum(pids.filter(|pid| group_of(*pid) == Some(pgid))))
}

fn of_cgroup(directory: &Path) -> io::Result<Usage> {
    let processes = read(&directory.join("cgroup.procs"), MAX_CGROUP_FILE)?;
    let processes = String::from_utf8_lossy(&processes);
    let pids = processes.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0);
    let sum = sum(pids);
    // Only the unified hierarchy has these, and memory only where that controller is on.
    let number = |file: &str, key: Option<&str>| -> Option<u64> {
        let text = read(&directory.join(file), MAX_CGROUP_FILE).ok()?;
        let text = core::str::from_utf8(&text).ok()?;
        let number = match key {
            None => text,
            Some(key) => text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?,
        };
        number.trim().parse().ok()
    };
    let current = number("memory.current", None);
    let spare = || number("memory.stat", Some("inactive_file")).unwrap_or(0);
    let cpu = number("cpu.stat", Some("usage_usec"));
    Ok(Usage {
        processes: sum.processes,
        rss_bytes: current.map_or(sum.rss_bytes, |current| current.saturating_sub(spare())),
        cpu: cpu.map_or(sum.cpu, Duration::from_micros),
    })
}

fn sum(pids: impl Iterator<Item = i32>) -> Usage {
    let mut processes: u32 = 0;
    let mut ticks: u64 = 0;
    let mut pages: u64 = 0;
    for pid in pids {
        // Gone since it was listed: it uses nothing.
        let Ok(text) = read(Path::new(&format!("/proc/{pid}/stat")), MAX_STAT) else { continue };
        let Some(stat) = Stat::parse(&text) else { continue };
        processes = processes.saturating_add(1);
        ticks = ticks.saturating_add(stat.ticks);
        pages = pages.saturating_add(stat.pages);
    }
    let page = u64::try_from(page_size()).unwrap_or(u64::MAX);
    let millis = ticks.saturating_mul(1000).checked_div(clock_ticks_per_second()).unwrap_or(0);
    Usage { processes, rss_bytes: pages.saturating_mul(page), cpu: Duration::from_millis(millis) }
}

fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    ticks: u64,
    pages: u64,
}

impl Stat {
    /// `pid (name) state … utime stime cutime cstime … rss …`; the name may hold spaces and brackets.
    fn parse(text: &[u8]) -> Option<Self> {
        let name_end = text.iter().rposition(|byte| *byte == b')')?;
        let rest = core::str::from_utf8(text.get(name_end.checked_add(1)?..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let mut ticks = fields.nth(11)?.parse().ok()?;
        for _ in 0..3 {
            // The children's are signed, and were negative in some kernels.
            let more: i64 = fields.next()?.parse().ok()?;
            ticks = u64::saturating_add(ticks, u64::try_from(more).unwrap_or(0));
        }
        let pages: i64 = fields.nth(6)?.parse().ok()?;
        Some(Self { ticks, pages: u64::try_from(pages).unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = b"42 (a) S 1 (b) S 1 40 40 0 -1 4194304 1 2 3 4 11 22 5 6 20 0 1 0 99 1000000 77 18446744073709551615\n";
        assert_eq!(Stat::parse(text), Some(Stat { ticks: 44, pages: 77 }));
        assert_eq!(Stat::parse(b"42 (a S 1"), None);
        assert_eq!(Stat::parse(b"42 (a) S 1"), None);
    }

    #[test]
    fn cores_are_a_difference_over_time_and_never_negative() {
        let at = |millis| Mono(Duration::from_millis(millis));
        let cpu = Duration::from_millis;
        let mut meter = Meter::default();
        let of = Target::Group(7);
        assert_eq!(meter.cores(&of, cpu(5_000), at(1_000)), None, "one figure is none");
        assert_eq!(meter.cores(&of, cpu(5_010), at(1_010)), None, "one tick is no rate");
        assert_eq!(meter.cores(&of, cpu(6_000), at(3_000)), Some(0.5));
        assert_eq!(meter.cores(&of, cpu(6_010), at(3_010)), Some(0.5), "as it was last known");
        assert_eq!(meter.cores(&of, cpu(100), at(4_000)), Some(0.0), "one has ended");
        assert_eq!(meter.cores(&Target::Group(8), cpu(9_000), at(5_000)), None, "another");
    }

    #[test]
    fn a_cgroup_counts_as_a_whole_and_without_what_can_be_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        let target = Target::Cgroup(directory.path().to_owned());
        assert!(target.usage().is_err(), "no cgroup");
        write("cgroup.procs", &format!("0\n{}\n", std::process::id()));
        let own = target.usage().unwrap();
        assert!(own.processes == 1 && own.rss_bytes > 0, "an old hierarchy: {own:?}");
        write("memory.current", "5000000\n");
        write("memory.stat", "anon 1\ninactive_file_x 9\ninactive_file 1000000\n");
        write("cpu.stat", "usage_usec 2500000\nuser_usec 1\n");
        let usage = target.usage().unwrap();
        assert_eq!((usage.rss_bytes, usage.cpu), (4_000_000, Duration::from_millis(2_500)));
    }

    #[test]
    fn we_lead_a_group_or_count_alone() {
        let target = Target::of(std::process::id()).unwrap();
        let usage = target.usage().unwrap();
        assert!(usage.processes >= 1 && usage.rss_bytes > 0, "{target:?} {usage:?}");
        assert_eq!(Target::of(0), None);
    }
}
