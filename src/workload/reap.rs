//! How a process ended, and how we hear of it: by pidfd, on older kernels by SIGCHLD.

use core::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, WaitOptions, pidfd_open, waitid,
    waitpid,
};
use signal_hook::SigId;
use signal_hook::low_level::{pipe, signal_name, unregister};

use super::family::{self, Ended};
use crate::reactor::Io;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// By itself or by a signal.
    pub kind: ExitKind,
    /// The kernel wrote a core dump.
    pub core_dumped: bool,
    /// What outlived it and had to be ended.
    pub others: Ended,
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
        let kind = kind.unwrap_or(ExitKind::Lost);
        Self { kind, core_dumped: status.dumped(), others: Ended::default() }
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
        if self.core_dumped {
            f.write_str(", core dumped")?;
        }
        match self.others {
            Ended { found: 0, .. } => Ok(()),
            Ended { found, left: 0 } => write!(f, ", left {found} other process(es), now killed"),
            Ended { found, left } => {
                write!(f, ", left {found} other process(es), {left} of which SIGKILL does not end")
            }
        }
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
    Sigchld(Sigchld),
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
            Err(Errno::NOSYS | Errno::INVAL | Errno::PERM) => Source::Sigchld(Sigchld::new()?),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { pid, source })
    }

    /// Waits for the end and leaves the status to be collected: until then its number and its group's are its own.
    pub(super) async fn ended(&self) -> Exit {
        let polled = match &self.source {
            Source::Pidfd(pidfd) => pidfd.when_readable(|_| peek(self.pid)).await,
            Source::Sigchld(sigchld) => {
                // Registered before this first look, so that no end falls between.
                sigchld.when_woken(|| peek(self.pid)).await
            }
        };
        let lost = Exit { kind: ExitKind::Lost, core_dumped: false, others: Ended::default() };
        polled.unwrap_or(lost)
    }

    /// Takes the status of what has ended.
    pub(super) fn collect(&self) {
        let _ = waitpid(Some(self.pid), WaitOptions::NOHANG);
    }
}

/// Wakes at each SIGCHLD.
struct Sigchld {
    woken: Io<UnixStream>,
    registration: SigId,
}

impl Sigchld {
    fn new() -> io::Result<Self> {
        let (ours, handlers) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let woken = Io::new(ours)?;
        let registration = pipe::register(Signal::CHILD.as_raw(), handlers)?;
        Ok(Self { woken, registration })
    }

    async fn when_woken<T>(&self, mut look: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        let look = |mut stream: &UnixStream| {
            let mut seen = [0; 64];
            while matches!(stream.read(&mut seen), Ok(1..)) {}
            look()
        };
        self.woken.when_readable(look).await
    }
}

impl Drop for Sigchld {
    fn drop(&mut self) {
        unregister(self.registration);
    }
}

/// Collects what nobody else does, whenever a child ends, for as long as it is polled.
///
/// # Errors
/// When SIGCHLD cannot be heard.
pub async fn collect_orphans() -> io::Result<()> {
    let collect = || -> io::Result<()> {
        family::collect();
        Err(io::ErrorKind::WouldBlock.into())
    };
    Sigchld::new()?.when_woken(collect).await
}

/// The end of a child, left to be collected.
fn peek(pid: Pid) -> io::Result<Exit> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(pid), options)? {
        Some(status) => Ok(Exit::of(&status)),
        None => Err(io::ErrorKind::WouldBlock.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_reads_as_a_person_would_say_it() {
        let others = Ended::default();
        let exit = |kind, core_dumped| Exit { kind, core_dumped, others }.to_string();
        assert_eq!(exit(ExitKind::Code(1), false), "exited with status 1");
        assert_eq!(exit(ExitKind::Signal(9), false), "killed by signal 9 (SIGKILL)");
        assert_eq!(exit(ExitKind::Signal(11), true), "killed by signal 11 (SIGSEGV), core dumped");
        assert_eq!(exit(ExitKind::Signal(40), false), "killed by signal 40");
        let left = |found, left| {
            let others = Ended { found, left };
            Exit { kind: ExitKind::Code(0), core_dumped: false, others }.to_string()
        };
        assert_eq!(left(2, 0), "exited with status 0, left 2 other process(es), now killed");
        assert!(left(2, 1).ends_with("1 of which SIGKILL does not end"));
    }
}
