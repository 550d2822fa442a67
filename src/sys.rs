//! The few things that the language cannot check: the only module with `unsafe`, each block with its reason.
#![expect(unsafe_code, reason = "the one place for it: each block says why it is sound")]

use core::ffi::{CStr, c_int};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, madvise};
use rustix::process::{DumpableBehavior, Gid, Pid, Signal, Uid};
use rustix::thread::CapabilitySet;

/// Files are created with the permissions that their creator asks for, less these.
const UMASK: Mode = Mode::WGRP.union(Mode::WOTH);
/// Classic signals are 1 to 31; the real-time ones after them are never ignored by convention.
const LAST_CLASSIC_SIGNAL: c_int = 31;
/// `SIG_DFL`.
const DEFAULT_ACTION: usize = 0;
/// Linux's error numbers stay below this; what is above says which step failed ([`Step`]).
const ERRNO_SPACE: i32 = 4096;

unsafe extern "C" {
    /// `signal(2)` of the C library that std links.
    fn signal(number: c_int, action: usize) -> usize;
    /// `getpgid(2)`.
    fn getpgid(pid: c_int) -> c_int;
}

/// The group of a process; 0 for a kernel thread, which rustix's `getpgid` takes for impossible. [`None`]: it is gone.
#[must_use]
pub fn group_of(pid: i32) -> Option<i32> {
    // SAFETY: numbers go in, a number comes out; a bad one is refused with -1.
    let group = unsafe { getpgid(pid) };
    (group >= 0).then_some(group)
}

/// Gives a signal its default action, whatever our parent made of it. An ignored SIGCHLD would lose the exit
/// status of every child; call it for that one before the first child.
pub fn default_action(number: Signal) {
    reset(number.as_raw());
}

fn reset(number: c_int) {
    // SAFETY: SIG_DFL installs no code of ours; a bad number is refused with EINVAL.
    unsafe {
        signal(number, DEFAULT_ACTION);
    }
}

/// Gives the pages of our own code back to the page cache: what ran once, such as a handshake or a parser, is not
/// resident at rest. What runs again is mapped again, at the price of a minor fault.
pub fn give_back_code() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let Some(line) = maps.lines().find(|line| line.contains(" r-xp ") && line.contains('/')) else {
        return;
    };
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    let Some((Ok(start), Ok(end))) =
        range.map(|(a, b)| (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16)))
    else {
        return;
    };
    // SAFETY: the range is one mapping of a file, never written to (r-x): what is dropped is read again from
    // the file when it is next run, by this very call's own return too.
    let _ = unsafe {
        madvise(
            core::ptr::with_exposed_provenance_mut(start),
            end.saturating_sub(start),
            Advice::LinuxDontNeed,
        )
    };
}

/// What a child does to itself between fork and exec, after std has set its descriptors, directory and group.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// Become this user.
    pub(crate) user: Option<User>,
    /// Decimal text for `/proc/self/oom_score_adj`.
    pub(crate) oom_score_adj: Option<String>,
    /// Capabilities that survive the change of user and the exec.
    pub(crate) ambient: Option<CapabilitySet>,
}

/// Numbers of a user.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// The step at which a start failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Pipes, fork, directory or exec: the error number says which.
    Start,
    /// Writing `oom_score_adj`.
    OomScore,
    /// Becoming the user.
    User,
    /// Keeping capabilities.
    Capabilities,
    /// Binding its life to ours.
    DeathSignal,
}

impl Step {
    const ALL: [Self; 5] =
        [Self::Start, Self::OomScore, Self::User, Self::Capabilities, Self::DeathSignal];

    /// std carries one number from the child to us: the step rides above the error number.
    const fn mark(self, error: Errno) -> i32 {
        (self as i32).saturating_mul(ERRNO_SPACE).saturating_add(error.raw_os_error())
    }

    fn unmark(error: io::Error) -> (Self, io::Error) {
        let Some(raw) = error.raw_os_error() else { return (Self::Start, error) };
        let step = raw.checked_div(ERRNO_SPACE).and_then(|step| usize::try_from(step).ok());
        let step = step.and_then(|step| Self::ALL.get(step)).copied().unwrap_or(Self::Start);
        let errno = raw.checked_rem(ERRNO_SPACE).unwrap_or(raw);
        (step, io::Error::from_raw_os_error(errno))
    }
}

/// Starts a command whose child prepares itself by `setup`.
pub(crate) fn spawn(command: &mut Command, setup: Setup) -> Result<Child, (Step, io::Error)> {
    let parent = rustix::process::getpid();
    let prepare = move || {
        prepare(&setup, parent)
            .map_err(|(step, error)| io::Error::from_raw_os_error(step.mark(error)))
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed. `prepare` makes system calls on values
    // that exist already: it takes no lock, allocates and frees nothing, and cannot panic.
    unsafe {
        command.pre_exec(prepare);
    }
    command.spawn().map_err(Step::unmark)
}

/// In the child. No allocation, no locks: see [`spawn`].
fn prepare(setup: &Setup, parent: Pid) -> Result<(), (Step, Errno)> {
    // Handlers go at exec by themselves; what our parent ignored (nohup) would stay ignored in the workload.
    for number in 1..=LAST_CLASSIC_SIGNAL {
        reset(number);
    }
    rustix::process::umask(UMASK);
    if let Some(score) = &setup.oom_score_adj {
        write_score(score).map_err(|error| (Step::OomScore, error))?;
    }
    if setup.ambient.is_some() {
        let keep = rustix::thread::set_keep_capabilities(true);
        keep.map_err(|error| (Step::Capabilities, error))?;
    }
    if let Some(user) = &setup.user {
        become_user(user).map_err(|error| (Step::User, error))?;
    }
    if let Some(kept) = setup.ambient {
        keep_capabilities(kept).map_err(|error| (Step::Capabilities, error))?;
    }
    // After the change of user, which clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|error| (Step::DeathSignal, error))?;
    // We may have died before that call; then nobody would ever send it.
    if rustix::process::getppid() == Some(parent) {
        Ok(())
    } else {
        Err((Step::DeathSignal, Errno::SRCH))
    }
}

fn write_score(score: &str) -> Result<(), Errno> {
    const PATH: &CStr = c"/proc/self/oom_score_adj";
    // It is root's while we may not be looked into, which the child of a fork is for itself.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let file = rustix::fs::open(PATH, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, score.as_bytes())?;
    Ok(())
}

/// The child has one thread: what changes the thread changes the process.
fn become_user(user: &User) -> Result<(), Errno> {
    rustix::thread::set_thread_groups(&user.groups)?;
    rustix::thread::set_thread_res_gid(user.gid, user.gid, user.gid)?;
    rustix::thread::set_thread_res_uid(user.uid, user.uid, user.uid)
}

fn keep_capabilities(kept: CapabilitySet) -> Result<(), Errno> {
    let mut sets = rustix::thread::capabilities(None)?;
    if !sets.permitted.contains(kept) {
        return Err(Errno::PERM);
    }
    sets.inheritable = kept;
    sets.effective = kept;
    sets.permitted = kept;
    rustix::thread::set_capabilities(None, sets)?;
    for one in kept.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_and_its_error_number_survive_the_pipe() {
        for step in Step::ALL {
            let marked = io::Error::from_raw_os_error(step.mark(Errno::PERM));
            let (got, error) = Step::unmark(marked);
            assert_eq!(got, step);
            assert_eq!(error.raw_os_error(), Some(Errno::PERM.raw_os_error()));
        }
    }
}
