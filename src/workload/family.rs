//! All that came out of one start: the process, its group, and what left the group (setsid, double fork).
//!
//! What our children orphan comes to us (`PR_SET_CHILD_SUBREAPER`): nothing that they start leaves the tree below us.
//! [`MARK`] in its environment tells whose an orphan is, and what is left of a Chiton that was killed.

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};

use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper,
    waitpid,
};

use crate::clock::{self, Mono};
use crate::reactor::Timer;

/// In the environment of whatever has to end with us: `STATE_DIR.OUR_PID.NUMBER`.
pub const MARK: &str = "CHITON_CHILD";
/// How long SIGKILL may take. What lives on then waits in the kernel, or may not be killed by us.
pub const KILL_PATIENCE: Duration = Duration::from_secs(3);

/// Processes of the system that are looked at.
const MAX_PROCESSES: usize = 65_536;
/// Bytes read of `/proc/PID/stat`: the name has 64 at most, three numbers follow.
const MAX_STAT: u64 = 512;
/// Bytes read of a list of children, and of an environment to find [`MARK`] in.
const MAX_CHILDREN: u64 = 1 << 20;
const MAX_ENVIRON: u64 = 128 * 1024;
/// Looking whether what was told to end has ended: soon, then less and less often.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(50);

/// What a child is for, and with it what becomes of processes that leave its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Acts on the system (`apply`, `restart`): what it starts in a session of its own is init's and lives on.
    #[default]
    Act,
    /// A check or a dry run: all that it started ends with it.
    Probe,
    /// The same; orphans that tell nothing of where they come from are taken to be its.
    Workload,
}

#[derive(Default)]
struct Registry {
    adopts: bool,
    /// Names our state directory, whichever Chiton runs on it.
    key: Option<String>,
    /// Children that were ever started.
    made: u64,
    /// Those of them that live and are [`Kind::Act`].
    acting: u32,
    /// There were such: an orphan may have become init's.
    acted: bool,
    /// Children whose status their owner collects.
    children: BTreeMap<i32, (Kind, String)>,
}

thread_local! {
    static REGISTRY: RefCell<Registry> = RefCell::default();
}

/// Makes us the parent of what our children orphan. `key` names our state directory. Then call [`collect`] at each
/// SIGCHLD.
///
/// # Errors
/// When we could not see them: without `/proc` they are left to init.
pub fn adopt(key: Option<String>) -> io::Result<()> {
    children()?;
    set_child_subreaper(Some(getpid()))?;
    REGISTRY.with_borrow_mut(|registry| {
        registry.adopts = true;
        registry.key = key;
    });
    Ok(())
}

/// Collects the ended children that nobody else does: orphans, and those whose owner has let go of them. Never waits.
pub fn collect() {
    for child in children().unwrap_or_default() {
        let owned = REGISTRY.with_borrow(|registry| registry.children.contains_key(&child));
        if let Some(child) = Pid::from_raw(child).filter(|_| !owned) {
            let _ = waitpid(Some(child), WaitOptions::NOHANG);
        }
    }
}

/// How processes were ended that should not be there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// So many were found.
    pub found: usize,
    /// So many are still there after [`KILL_PATIENCE`].
    pub left: usize,
}

/// Ends what is left of a Chiton that was killed while it ran on our state directory.
pub async fn end_leftovers() -> Ended {
    let Some(key) = REGISTRY.with_borrow(|registry| registry.key.clone()) else {
        return Ended::default();
    };
    let (prefix, me) = (format!("{key}."), getpid().as_raw_pid());
    // A zombie has no environment any more.
    let is_left =
        |pid: &i32| *pid != me && mark(*pid).is_some_and(|mark| mark.starts_with(&prefix));
    kill(|| {
        let all = pids().into_iter().flatten().filter(is_left);
        all.filter_map(Pid::from_raw).collect()
    })
    .await
}

/// Ends everything below us, but what a command starts that acts on the system.
pub async fn end_all() -> Ended {
    let children = REGISTRY.with_borrow(|registry| registry.children.clone());
    for leader in children.keys() {
        kill_group(*leader);
    }
    let acts = |process: &Process| matches!(children.get(&process.pid), Some((Kind::Act, _)));
    let ended = kill(|| living(|process, table| top(process, table).is_some_and(|top| !acts(top))));
    let ended = ended.await;
    collect();
    ended
}

/// One child with all that came out of it.
pub(super) struct Family {
    kind: Kind,
    mark: String,
    leader: Cell<Option<Pid>>,
}

impl Family {
    /// Before the start.
    pub(super) fn new(kind: Kind) -> Self {
        let mark = REGISTRY.with_borrow_mut(|registry| {
            registry.made = registry.made.wrapping_add(1);
            if kind == Kind::Act {
                registry.acting = registry.acting.saturating_add(1);
                registry.acted = true;
                registry.let_go();
            }
            let key = registry.key.as_deref().unwrap_or("-");
            format!("{key}.{}.{}", getpid().as_raw_pid(), registry.made)
        });
        Self { kind, mark, leader: Cell::new(None) }
    }

    /// What stands in its environment.
    pub(super) fn mark(&self) -> Option<(&'static str, &str)> {
        (self.kind != Kind::Act).then_some((MARK, self.mark.as_str()))
    }

    /// It has started.
    pub(super) fn born(&self, leader: Pid) {
        self.leader.set(Some(leader));
        REGISTRY.with_borrow_mut(|registry| {
            registry.children.insert(leader.as_raw_pid(), (self.kind, self.mark.clone()));
        });
    }

    /// Its status was collected: the numbers of its process and group may become another's.
    pub(super) fn buried(&self) {
        if let Some(leader) = self.leader.take() {
            REGISTRY.with_borrow_mut(|registry| registry.children.remove(&leader.as_raw_pid()));
        }
    }

    /// Signals its group and whatever has left it.
    pub(super) fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(leader) = self.leader.get() else { return Ok(()) };
        let done = kill_process_group(leader, signal);
        if self.kind != Kind::Act {
            let left = |process: &Process| process.group != leader.as_raw_pid();
            for other in living(|process, table| left(process) && self.has(process, table)) {
                let _ = kill_process(other, signal);
            }
        }
        match done {
            // Ended, not yet collected.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Those who live, beside the leader.
    pub(super) fn others(&self) -> Vec<Pid> {
        // The common case at the end of a check: all our children are somebody's, so nobody was left behind.
        let none = REGISTRY.with_borrow(|registry| {
            let known = |child: &i32| registry.children.contains_key(child);
            let quick = registry.adopts && self.kind == Kind::Probe;
            quick && children().is_ok_and(|children| children.iter().all(known))
        });
        if none { Vec::new() } else { living(|process, table| self.has(process, table)) }
    }

    fn has(&self, process: &Process, table: &Table) -> bool {
        let leader = self.leader.get().map_or(0, Pid::as_raw_pid);
        if process.pid == leader || leader == 0 {
            return false;
        }
        if process.group == leader || self.kind == Kind::Act {
            return process.group == leader;
        }
        let Some(top) = top(process, table) else {
            // It may have left while orphans were let go.
            return self.kind == Kind::Workload
                && REGISTRY.with_borrow(|registry| registry.acted)
                && mark(process.pid).is_some_and(|mark| mark == self.mark);
        };
        if top.pid == leader || top.group == leader {
            return true;
        }
        REGISTRY.with_borrow(|registry| {
            let known = |pid| registry.children.contains_key(&pid);
            if known(top.pid) || known(top.group) {
                return false;
            }
            match mark(top.pid) {
                Some(mark) if mark == self.mark => true,
                Some(mark) if registry.children.values().any(|(_, other)| *other == mark) => false,
                _ => self.kind == Kind::Workload,
            }
        })
    }

    /// After the leader's end: lets the others end by themselves until `grace`, then kills them. Who was `asked` to end,
    /// or is about to, was not left behind.
    pub(super) async fn end(&self, asked: &Cell<bool>, grace: &Cell<Option<Mono>>) -> Ended {
        let mut found = self.others().len();
        if found > 0 && !asked.get() {
            Timer::after(LAST_LOOK).await;
            found = self.others().len();
        }
        let mut pause = FIRST_LOOK;
        while found > 0 && grace.get().is_some_and(|until| now() < until) {
            look_again(&mut pause).await;
            found = self.others().len();
        }
        if let Some(leader) = self.leader.get() {
            kill_group(leader.as_raw_pid());
        }
        let left = if found > 0 { kill(|| self.others()).await.left } else { 0 };
        Ended { found: if asked.get() { left } else { found }, left }
    }
}

impl Drop for Family {
    fn drop(&mut self) {
        REGISTRY.with_borrow_mut(|registry| {
            if let Some(leader) = self.leader.get() {
                registry.children.remove(&leader.as_raw_pid());
            }
            if self.kind == Kind::Act {
                registry.acting = registry.acting.saturating_sub(1);
                registry.let_go();
            }
        });
    }
}

impl Registry {
    /// While a command acts on the system, orphans are init's.
    fn let_go(&self) {
        if self.adopts {
            let _ = set_child_subreaper((self.acting == 0).then(getpid));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
fn now() -> Mono {
    clock::now().mono
}

async fn look_again(pause: &mut Duration) {
    Timer::after(*pause).await;
    *pause = pause.saturating_mul(2).min(LAST_LOOK);
}

fn kill_group(leader: i32) {
    if let Some(leader) = Pid::from_raw(leader) {
        let _ = kill_process_group(leader, Signal::KILL);
    }
}

/// Kills what `find` finds until it finds nothing: who forks faster than we look is found again.
async fn kill(find: impl Fn() -> Vec<Pid>) -> Ended {
    let until = now().after(KILL_PATIENCE);
    let mut pause = FIRST_LOOK;
    let mut living = find();
    let found = living.len();
    while !living.is_empty() && now() < until {
        for process in living {
            let _ = kill_process(process, Signal::KILL);
        }
        look_again(&mut pause).await;
        living = find();
    }
    Ended { found, left: living.len() }
}

type Table = BTreeMap<i32, Process>;

struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    lives: bool,
}

impl Process {
    /// `pid (name) state ppid pgrp …`; the name may hold spaces and brackets.
    fn parse(pid: i32, stat: &[u8]) -> Option<Self> {
        let name_end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = core::str::from_utf8(stat.get(name_end.checked_add(1)?..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        let lives = !matches!(fields.next()?, "Z" | "X" | "x");
        let parent = fields.next()?.parse().ok()?;
        let group = fields.next()?.parse().ok()?;
        Some(Self { pid, parent, group, lives })
    }
}

/// All that can be seen.
fn pids() -> io::Result<impl Iterator<Item = i32>> {
    let entries = fs::read_dir("/proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.take(MAX_PROCESSES))
}

fn table() -> io::Result<Table> {
    // Gone since it was listed: it is nobody's.
    let look = |pid| {
        let stat = read(&format!("/proc/{pid}/stat"), MAX_STAT).ok()?;
        Some((pid, Process::parse(pid, &stat)?))
    };
    Ok(pids()?.filter_map(look).collect())
}

fn living(fits: impl Fn(&Process, &Table) -> bool) -> Vec<Pid> {
    let table = table().unwrap_or_default();
    let found = table.values().filter(|process| process.lives && fits(process, &table));
    found.filter_map(|process| Pid::from_raw(process.pid)).collect()
}

/// The child of ours that a process is or descends from.
fn top<'t>(process: &'t Process, table: &'t Table) -> Option<&'t Process> {
    let me = getpid().as_raw_pid();
    let mut at = process;
    for _ in 0..table.len() {
        if at.parent == me {
            return Some(at);
        }
        at = table.get(&at.parent)?;
    }
    None
}

/// Our children, the ended ones too.
fn children() -> io::Result<Vec<i32>> {
    // Only there where the kernel has CONFIG_PROC_CHILDREN.
    let Ok(text) = read("/proc/thread-self/children", MAX_CHILDREN) else {
        let me = getpid().as_raw_pid();
        let table = table()?.into_values();
        return Ok(table.filter(|process| process.parent == me).map(|child| child.pid).collect());
    };
    let text = String::from_utf8_lossy(&text);
    Ok(text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect())
}

/// What [`MARK`] says in a process's environment; [`None`] too where it may not be read.
fn mark(pid: i32) -> Option<String> {
    let environ = read(&format!("/proc/{pid}/environ"), MAX_ENVIRON).ok()?;
    environ.split(|byte| *byte == 0).find_map(|variable| {
        let value = variable.strip_prefix(MARK.as_bytes())?.strip_prefix(b"=")?;
        String::from_utf8(value.to_vec()).ok()
    })
}

fn read(path: &str, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let process = Process::parse(42, b"42 (a) S 1 (b) S 7 40 40 0 -1").unwrap();
        assert_eq!((process.parent, process.group, process.lives), (7, 40, true));
        assert!(!Process::parse(42, b"42 (a) Z 7 40 40").unwrap().lives);
        assert!(Process::parse(42, b"42 (a").is_none());
        assert!(Process::parse(42, b"42 (a) S").is_none());
    }

    #[test]
    fn we_see_ourselves_and_whose_child_we_are() {
        let me = getpid().as_raw_pid();
        let table = table().unwrap();
        assert!(table.get(&me).unwrap().lives);
        // A circle would be a kernel's bug; a foreign tree ends at its root.
        assert!(top(table.get(&1).unwrap(), &table).is_none());
    }
}
