//! How a process ended, and how we hear of it: by pidfd, on older kernels by SIGCHLD.

use core::cell::RefCell;
use core::fmt;
use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, kill_process_group,
    pidfd_open, waitid, waitpid,
};
use signal_hook::SigId;
use signal_hook::low_level::{pipe, signal_name, unregister};

use crate::reactor::Io;

thread_local! {
    /// Killed but not yet collected: children whose owner has let go of them.
    static BURIED: RefCell<BTreeSet<i32>> = const { RefCell::new(BTreeSet::new()) };
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// By itself or by a signal.
    pub kind: ExitKind,
    /// The kernel wrote a core dump.
    pub core_dumped: bool,
}

/// By itself or by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// It ended itself with this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It has ended, but something else in our process collected its status.
    Lost,
}

impl Exit {
    /// Ended itself with status 0.
    #[must_use]
    pub fn success(self) -> bool {
        self.kind == ExitKind::Code(0)
    }

    fn of(status: &WaitIdStatus) -> Self {
        let code = status.exit_status().map(ExitKind::Code);
        let kind = code.or_else(|| status.terminating_signal().map(ExitKind::Signal));
        Self { kind: kind.unwrap_or(ExitKind::Lost), core_dumped: status.dumped() }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ExitKind::Code(code) => write!(f, "exited with status {code}")?,
            ExitKind::Signal(number) => {
                write!(f, "killed by signal {number}")?;
                if let Some(name) = signal_name(number) {
                    write!(f, " ({name})")?;
                }
            }
            ExitKind::Lost => f.write_str("ended, its exit status was lost")?,
        }
        if self.core_dumped { f.write_str(", core dumped") } else { Ok(()) }
    }
}

/// How to hear of an end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notice {
    /// By pidfd where the kernel has them (Linux 5.3), else by SIGCHLD.
    #[default]
    Best,
    /// By SIGCHLD, as on an older kernel.
    Sigchld,
}

/// Watches one child of ours.
pub(super) struct Watch {
    pid: Pid,
    source: Source,
}

enum Source {
    Pidfd(Io<OwnedFd>),
    Sigchld { woken: Io<UnixStream>, registration: SigId },
}

impl Watch {
    pub(super) fn new(pid: Pid, notice: Notice) -> io::Result<Self> {
        let pidfd = match notice {
            Notice::Best => pidfd_open(pid, PidfdFlags::empty()),
            Notice::Sigchld => Err(Errno::NOSYS),
        };
        let source = match pidfd {
            Ok(pidfd) => Source::Pidfd(Io::new(pidfd)?),
            // Too old a kernel, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => {
                let (ours, handlers) = UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                let woken = Io::new(ours)?;
                let registration = pipe::register(Signal::CHILD.as_raw(), handlers)?;
                Source::Sigchld { woken, registration }
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { pid, source })
    }

    /// Waits for the end, kills what is left of the group, and only then collects the status: until then the
    /// number of the group cannot pass to another process.
    pub(super) async fn ended(&self) -> Exit {
        let polled = match &self.source {
            Source::Pidfd(pidfd) => pidfd.when_readable(|_| peek(self.pid)).await,
            Source::Sigchld { woken, .. } => {
                // Registered before this first look, so that no end falls between.
                woken
                    .when_readable(|mut stream| {
                        let mut seen = [0; 64];
                        while matches!(stream.read(&mut seen), Ok(1..)) {}
                        peek(self.pid)
                    })
                    .await
            }
        };
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
        polled.unwrap_or(Exit { kind: ExitKind::Lost, core_dumped: false })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Source::Sigchld { registration, .. } = &self.source {
            unregister(*registration);
        }
    }
}

/// The end of a child, left to be collected.
fn peek(pid: Pid) -> io::Result<Exit> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(pid), options)? {
        Some(status) => Ok(Exit::of(&status)),
        None => Err(io::ErrorKind::WouldBlock.into()),
    }
}

/// Kills a group whose owner does not wait for it, and notes its leader for [`collect`].
pub(super) fn bury(leader: Pid) {
    let _ = kill_process_group(leader, Signal::KILL);
    BURIED.with_borrow_mut(|buried| buried.insert(leader.as_raw_pid()));
    collect();
}

/// Collects killed children that nobody waits for. Done at each start too; never blocks.
pub fn collect() {
    BURIED.with_borrow_mut(|buried| {
        buried.retain(|pid| {
            let Some(pid) = Pid::from_raw(*pid) else { return false };
            matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None) | Err(Errno::INTR))
        });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_reads_as_a_person_would_say_it() {
        let exit = |kind, core_dumped| Exit { kind, core_dumped }.to_string();
        assert_eq!(exit(ExitKind::Code(1), false), "exited with status 1");
        assert_eq!(exit(ExitKind::Signal(9), false), "killed by signal 9 (SIGKILL)");
        assert_eq!(exit(ExitKind::Signal(11), true), "killed by signal 11 (SIGSEGV), core dumped");
        assert_eq!(exit(ExitKind::Signal(40), false), "killed by signal 40");
    }
}
