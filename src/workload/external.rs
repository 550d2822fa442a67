//! The main process of a workload that the init system owns: found, watched, sent SIGHUP.
//!
//! `/proc` and `/sys` never make one wait, so a look is taken on the main thread. A pid alone names nobody for long:
//! with its start time ([`Process`]) it does.

use core::time::Duration;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::param::clock_ticks_per_second;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::agent::supervision::Process;
use crate::clock;
use crate::reactor::{Io, Timer};
use crate::settings::ExternalBy;

/// Bytes read of a pid file.
const MAX_PID_FILE: u64 = 64;
/// Bytes read of `cgroup.procs`.
const MAX_PROCS: u64 = 64 * 1024;
/// Processes of a cgroup that are looked at; the main one is among the first.
const MAX_MEMBERS: usize = 256;
/// Slices that are searched for a unit, and how deep they may lie in one another.
const MAX_SLICES: usize = 256;
const MAX_SLICE_DEPTH: usize = 5;
/// Bytes read of one `/proc/PID/stat`: 52 numbers and a name of 64 bytes at most.
const MAX_STAT: u64 = 2048;
/// The first process: the init system itself, never its workload.
const INIT: u32 = 1;
/// Where the unified hierarchy is, alone or beside older ones, and systemd's own among those.
const HIERARCHIES: [&str; 3] = ["sys/fs/cgroup", "sys/fs/cgroup/unified", "sys/fs/cgroup/systemd"];

/// Finds one workload's main process, as often as it is asked.
#[derive(Debug)]
pub struct Finder {
    by: ExternalBy,
    /// `/`, but in tests.
    root: PathBuf,
    /// A pid file as it last named a process that ran: as long as it stays the same it can mean that process only.
    pinned: Option<(Mark, Process)>,
}

/// Tells a version of a pid file from any other.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    inode: (u64, u64),
    changed: (i64, i64),
    pid: u32,
}

impl Finder {
    /// For a workload that is found so.
    #[must_use]
    pub fn new(by: ExternalBy) -> Self {
        Self { by, root: PathBuf::from("/"), pinned: None }
    }

    /// The main process as it is now.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find(&mut self) -> Result<Process, String> {
        match &self.by {
            ExternalBy::PidFile(file) => {
                let file = file.clone();
                self.by_pid_file(&file).map_err(|why| format!("pid_file {}: {why}", file.display()))
            }
            ExternalBy::Cgroup(directory) => {
                oldest(directory).map_err(|why| format!("cgroup {}: {why}", directory.display()))
            }
            ExternalBy::Unit(unit) => {
                let directory = unit_directory(&self.root, unit)
                    .ok_or_else(|| format!("unit {unit}: it has no cgroup, so it does not run"))?;
                oldest(&directory)
                    .map_err(|why| format!("unit {unit}: {}: {why}", directory.display()))
            }
        }
    }

    /// The cgroup that is the workload's alone, where there is one.
    #[must_use]
    pub fn cgroup(&self) -> Option<PathBuf> {
        match &self.by {
            ExternalBy::PidFile(_) => None,
            ExternalBy::Cgroup(directory) => Some(directory.clone()),
            ExternalBy::Unit(unit) => unit_directory(&self.root, unit),
        }
    }

    fn by_pid_file(&mut self, file: &Path) -> Result<Process, String> {
        let named = self.named(file);
        match &self.pinned {
            // It writes its file anew, or has removed it on the way down: as long as it lives, it is the one.
            Some((_, process)) if named.is_err() && alive(process.pid) == Ok(*process) => {
                Ok(*process)
            }
            _ => named,
        }
    }

    /// What the file says.
    fn named(&mut self, file: &Path) -> Result<Process, String> {
        let mark = Mark::of(file)?;
        let pid = mark.pid;
        let found = alive(pid).map_err(|error| format!("names process {pid}: {error}"))?;
        match &self.pinned {
            Some((seen, process)) if *seen == mark && *process != found => Err(format!(
                "names process {pid}, which has ended; that number is another process's now (a stale file)"
            )),
            _ => {
                self.pinned = Some((mark, found));
                Ok(found)
            }
        }
    }
}

impl Mark {
    fn of(path: &Path) -> Result<Self, String> {
        // A FIFO of that name must not make us wait for its writer.
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
        let file = File::options()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(|error| error.to_string())?;
        let facts = file.metadata().map_err(|error| error.to_string())?;
        if !facts.is_file() {
            return Err("is not a file".to_owned());
        }
        let mut bytes = Vec::new();
        let longest = MAX_PID_FILE.saturating_add(1);
        file.take(longest).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        let odd = || {
            let shown: String = text.chars().take(20).collect();
            format!("holds {shown:?}; a process id is a number from 2 up, alone in its file")
        };
        let whole = u64::try_from(bytes.len()).is_ok_and(|length| length <= MAX_PID_FILE);
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let pid = text.parse().ok().filter(|pid: &u32| whole && digits && *pid > INIT);
        let pid = pid.filter(|pid| i32::try_from(*pid).is_ok()).ok_or_else(odd)?;
        if pid == std::process::id() {
            return Err("names Chiton itself".to_owned());
        }
        Ok(Self {
            inode: (facts.dev(), facts.ino()),
            changed: (facts.ctime(), facts.ctime_nsec()),
            pid,
        })
    }
}

/// The process of a cgroup that began first: what the init system started, not what that has forked.
fn oldest(directory: &Path) -> Result<Process, String> {
    let mut text = String::new();
    File::open(directory.join("cgroup.procs"))
        .and_then(|file| file.take(MAX_PROCS).read_to_string(&mut text))
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "no such cgroup, so it does not run".to_owned(),
            _ => error.to_string(),
        })?;
    let pids = text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0);
    let processes = pids.take(MAX_MEMBERS).filter_map(|pid| alive(pid).ok());
    let first = processes.min_by_key(|process| (process.start, process.pid));
    first.ok_or_else(|| "no process is in it".to_owned())
}

/// The cgroup of a unit, in whatever slice it lies.
fn unit_directory(root: &Path, unit: &str) -> Option<PathBuf> {
    let name = if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") };
    let mut left = MAX_SLICES;
    HIERARCHIES.iter().find_map(|hierarchy| {
        let directory = root.join(hierarchy);
        // Nearly all lie here.
        let usual = directory.join("system.slice").join(&name);
        if usual.is_dir() {
            Some(usual)
        } else {
            below(&directory, &name, MAX_SLICE_DEPTH, &mut left)
        }
    })
}

fn below(directory: &Path, name: &str, depth: usize, left: &mut usize) -> Option<PathBuf> {
    let wanted = directory.join(name);
    if wanted.is_dir() {
        return Some(wanted);
    }
    let depth = depth.checked_sub(1)?;
    for entry in fs::read_dir(directory).ok()?.flatten() {
        if !entry.file_name().as_encoded_bytes().ends_with(b".slice") {
            continue;
        }
        *left = left.checked_sub(1)?;
        if let Some(found) = below(&entry.path(), name, depth, left) {
            return Some(found);
        }
    }
    None
}

/// A process that runs; a zombie does not.
fn alive(pid: u32) -> Result<Process, String> {
    let mut text = Vec::new();
    let read = File::open(format!("/proc/{pid}/stat"))
        .and_then(|file| file.take(MAX_STAT).read_to_end(&mut text));
    match read {
        Ok(_) => {}
        // Gone, or gone while it was read.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound
                || Errno::from_io_error(&error) == Some(Errno::SRCH) =>
        {
            return Err("there is no such process (a stale file)".to_owned());
        }
        Err(error) => return Err(error.to_string()),
    }
    let (state, start) = parse_stat(&text).ok_or_else(|| "its stat is unreadable".to_owned())?;
    if matches!(state, b'Z' | b'X' | b'x') {
        return Err("it has ended".to_owned());
    }
    Ok(Process { pid, start })
}

/// State and start time of `pid (name) state … starttime …`; the name may hold spaces and brackets.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let name_end = text.iter().rposition(|byte| *byte == b')')?;
    let rest = core::str::from_utf8(text.get(name_end.checked_add(1)?..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// How old a process is at least: it may have begun at the end of its tick, and must not look older than what it read.
#[must_use]
pub fn age(process: Process) -> Duration {
    let latest = process.start.saturating_add(1);
    let millis = latest.saturating_mul(1000).checked_div(clock_ticks_per_second()).unwrap_or(0);
    clock::since_boot().saturating_sub(Duration::from_millis(millis))
}

/// A descriptor of this very process. [`Errno::SRCH`]: it is gone.
fn open(process: Process) -> Result<OwnedFd, Errno> {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    // Whose number it was when we looked may have ended meanwhile.
    if alive(process.pid) == Ok(process) { Ok(pidfd) } else { Err(Errno::SRCH) }
}

/// Waits for the end of a process. Where the kernel has no pidfd (before Linux 5.3), or a sandbox forbids it, this
/// only waits until it is time to look again.
pub async fn ended(process: Process, look_again: Duration) {
    let watched = open(process).and_then(|pidfd| Io::new(pidfd).map_err(|_| Errno::NOSYS));
    match watched {
        Ok(pidfd) => {
            let over = pidfd.when_readable(|pidfd| {
                let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
                let none = Timespec { tv_sec: 0, tv_nsec: 0 };
                match poll(&mut watched, Some(&none))? {
                    0 => Err(io::ErrorKind::WouldBlock.into()),
                    _ => Ok(()),
                }
            });
            if over.await.is_err() {
                Timer::after(look_again).await;
            }
        }
        Err(Errno::SRCH) => {}
        Err(_) => Timer::after(look_again).await,
    }
}

/// SIGHUP to this very process.
///
/// # Errors
/// When it is gone, or may not be signalled.
pub fn hang_up(process: Process) -> io::Result<()> {
    match open(process) {
        Ok(pidfd) => pidfd_send_signal(pidfd.as_fd(), Signal::HUP)?,
        Err(Errno::SRCH) => return Err(Errno::SRCH.into()),
        // By its number then: between this look and the signal it would have to end, and the number to come round.
        Err(_) => {
            let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
            let pid = pid.filter(|_| alive(process.pid) == Ok(process)).ok_or(Errno::SRCH)?;
            rustix::process::kill_process(pid, Signal::HUP)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn ours() -> Process {
        alive(std::process::id()).unwrap()
    }

    /// A process that ends with its owner.
    struct Other(std::process::Child);

    impl Other {
        fn new() -> Self {
            Self(std::process::Command::new("sleep").arg("1000").spawn().unwrap())
        }

        fn end(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let text = b"42 (a) S 1 (b) Z 1 40 40 0 -1 4194304 1 2 3 4 11 22 5 6 20 0 1 0 99 1000000 77 18446744073709551615\n";
        assert_eq!(parse_stat(text), Some((b'Z', 99)));
        assert_eq!(parse_stat(b"42 (a S 1"), None);
        assert_eq!(parse_stat(b"42 (a) S 1"), None);
    }

    #[test]
    fn a_pid_file_is_believed_only_as_far_as_it_names_a_process() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let find = |content: Option<&str>| {
            let _ = fs::remove_file(&file);
            if let Some(content) = content {
                fs::write(&file, content).unwrap();
            }
            Finder::new(ExternalBy::PidFile(file.clone())).find()
        };
        let other = Other::new();
        let pid = other.0.id();
        assert_eq!(find(Some(&format!(" {pid}\n\n"))).unwrap().pid, pid);
        assert!(find(None).unwrap_err().contains("No such file"));
        let odd = ["", "\n", "abc", "-1", "0", "1", "+7", "12 13", "0x10", "99999999999999999999"];
        for odd in odd.iter().map(ToString::to_string).chain([
            format!("-{pid}"),
            u32::MAX.to_string(),
            " ".repeat(5000) + &pid.to_string(),
            "\u{0}".repeat(5000),
        ]) {
            let why = find(Some(&odd)).unwrap_err();
            assert!(why.contains("a process id is a number"), "{odd:?}: {why}");
        }
        assert!(find(Some("4194305")).unwrap_err().contains("stale"), "above every pid_max");
        let own = std::process::id().to_string();
        assert!(find(Some(&own)).unwrap_err().contains("Chiton itself"));
        let fifo = dir.path().join("fifo");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [dir.path(), &fifo] {
            let why = Finder::new(ExternalBy::PidFile(path.into())).find().unwrap_err();
            assert!(why.contains("not a file"), "{why}");
        }
    }

    #[test]
    fn a_reused_number_in_an_old_file_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let other = Other::new();
        fs::write(&file, other.0.id().to_string()).unwrap();
        let mut finder = Finder::new(ExternalBy::PidFile(file.clone()));
        let process = finder.find().unwrap();
        // As if that number had been another process's when it was seen.
        let (mark, _) = finder.pinned.clone().unwrap();
        finder.pinned = Some((mark, Process { start: process.start - 1, ..process }));
        assert!(finder.find().unwrap_err().contains("stale"));
        assert!(finder.find().is_err(), "it stays so");
        // Written anew it means the process that there is.
        fs::remove_file(&file).unwrap();
        fs::write(&file, other.0.id().to_string()).unwrap();
        assert_eq!(finder.find(), Ok(process));
    }

    #[test]
    fn as_long_as_it_lives_a_file_that_says_nothing_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let (mut first, second) = (Other::new(), Other::new());
        fs::write(&file, first.0.id().to_string()).unwrap();
        let mut finder = Finder::new(ExternalBy::PidFile(file.clone()));
        let process = finder.find().unwrap();
        fs::write(&file, "").unwrap();
        assert_eq!(finder.find(), Ok(process));
        fs::remove_file(&file).unwrap();
        assert_eq!(finder.find(), Ok(process));
        first.end();
        assert!(finder.find().unwrap_err().contains("No such file"));
        fs::write(&file, second.0.id().to_string()).unwrap();
        assert_eq!(finder.find().unwrap().pid, second.0.id());
    }

    #[test]
    fn a_process_that_has_ended_is_gone_also_while_nobody_collects_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut other = Other::new();
        fs::write(&file, other.0.id().to_string()).unwrap();
        let mut finder = Finder::new(ExternalBy::PidFile(file));
        let process = finder.find().unwrap();
        other.0.kill().unwrap();
        crate::reactor::block_on(ended(process, Duration::MAX)).unwrap();
        assert!(finder.find().unwrap_err().contains("it has ended"));
        other.end();
        assert!(finder.find().unwrap_err().contains("stale"));
        assert!(hang_up(process).is_err());
        // At once: it is over already.
        crate::reactor::block_on(ended(process, Duration::MAX)).unwrap();
    }

    #[test]
    fn the_oldest_of_a_cgroup_is_the_main_one() {
        let dir = tempfile::tempdir().unwrap();
        let procs = dir.path().join("cgroup.procs");
        let mut finder = Finder::new(ExternalBy::Cgroup(dir.path().into()));
        assert!(finder.find().unwrap_err().contains("no such cgroup"));
        fs::write(&procs, "").unwrap();
        assert!(finder.find().unwrap_err().contains("no process"));
        let younger = Other::new();
        let mut ended = Other::new();
        ended.end();
        let text = format!("{}\n0\n{}\n{}\n", younger.0.id(), ended.0.id(), std::process::id());
        fs::write(&procs, text).unwrap();
        assert_eq!(finder.find(), Ok(ours()));
    }

    #[test]
    fn a_unit_is_found_in_any_slice_and_hierarchy() {
        for (at, unit) in [
            ("sys/fs/cgroup/system.slice/otelcol.service", "otelcol.service"),
            ("sys/fs/cgroup/systemd/system.slice/otelcol.service", "otelcol"),
            ("sys/fs/cgroup/system.slice/system-otelcol.slice/otelcol@a.service", "otelcol@a"),
            ("sys/fs/cgroup/unified/edge.slice/edge-far.slice/otelcol.service", "otelcol.service"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut finder = Finder::new(ExternalBy::Unit(unit.to_owned()));
            finder.root = dir.path().into();
            let why = finder.find().unwrap_err();
            assert!(why.contains(unit) && why.contains("does not run"), "{why}");
            let directory = dir.path().join(at);
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
            assert_eq!(finder.find(), Ok(ours()), "{at}");
        }
    }

    #[test]
    fn a_process_is_as_old_as_it_is() {
        let other = Other::new();
        let young = age(alive(other.0.id()).unwrap());
        let first = age(Process { pid: 1, start: 0 });
        assert!(young < first, "{young:?} {first:?}");
    }
}
