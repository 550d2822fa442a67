//! Where lines go: stderr, the journal, or syslog. Nothing here waits.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use rustix::fs::fstat;

use crate::settings::{Level, LogTo};

/// syslogd listens there.
const SYSLOG: &str = "/dev/log";
/// journald listens there, in its own format.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// The facility "daemon" (RFC 3164 §4.1.1).
const DAEMON: u8 = 3;
/// Our name in both.
const NAME: &str = "chiton";

/// Where lines go.
#[derive(Debug)]
pub(super) enum Sink {
    /// `journal`: stderr is connected to journald, which takes a priority in front of a line.
    Stderr { journal: bool },
    /// A datagram a line.
    Socket(Box<Socket>),
}

impl Sink {
    pub(super) fn open(to: LogTo) -> Self {
        let socket = |path, form| Self::Socket(Box::new(Socket::new(path, form)));
        match to {
            LogTo::Stderr => Self::Stderr { journal: false },
            LogTo::Auto => Self::Stderr { journal: stderr_is_journal() },
            LogTo::Journald if stderr_is_journal() => Self::Stderr { journal: true },
            LogTo::Journald => socket(JOURNAL, Form::Journal),
            LogTo::Syslog => socket(SYSLOG, Form::Syslog),
        }
    }

    /// Whether the receiver notes time and priority.
    pub(super) const fn is_log_daemon(&self) -> bool {
        !matches!(self, Self::Stderr { journal: false })
    }

    /// Hands a line over. The error, once a failure: why it could not be, and it goes to stderr instead.
    pub(super) fn put(&mut self, level: Level, line: &str) -> Result<(), Option<String>> {
        match self {
            Self::Stderr { journal } => {
                let line = if *journal {
                    format!("<{}>{line}\n", priority(level))
                } else {
                    format!("{line}\n")
                };
                // One that cannot be written is lost: there is nowhere to say so.
                let _ = io::stderr().lock().write_all(line.as_bytes());
                Ok(())
            }
            Self::Socket(socket) => socket.put(level, line),
        }
    }
}

/// How a datagram looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// RFC 3164 without its time, which is local time: syslogd puts that in.
    Syslog,
    /// A field a line.
    Journal,
}

/// A datagram socket of a log daemon, which may be away for a while.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    form: Form,
    open: Option<UnixDatagram>,
    /// Its failure was told.
    told: bool,
}

impl Socket {
    pub(super) fn new(path: impl AsRef<Path>, form: Form) -> Self {
        Self { path: path.as_ref().to_owned(), form, open: None, told: false }
    }

    pub(super) fn put(&mut self, level: Level, line: &str) -> Result<(), Option<String>> {
        let datagram = match self.form {
            Form::Syslog => {
                let number = DAEMON.saturating_mul(8).saturating_add(priority(level));
                format!("<{number}>{NAME}[{}]: {line}", std::process::id())
            }
            Form::Journal => {
                let priority = priority(level);
                format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER={NAME}\nMESSAGE={line}\n")
            }
        };
        match self.send(datagram.as_bytes()) {
            Ok(()) => {
                self.told = false;
                Ok(())
            }
            Err(error) => {
                let text = format!("{}: {error}; lines go to stderr", self.path.display());
                Err((!core::mem::replace(&mut self.told, true)).then_some(text))
            }
        }
    }

    /// A daemon that was restarted has a new socket: the old connection is refused, once.
    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        if let Some(socket) = &self.open {
            match socket.send(datagram) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => self.open = None,
            }
        }
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect(&self.path)?;
        self.open.insert(socket).send(datagram).map(|_| ())
    }
}

/// syslog's number for a level.
const fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug => 7,
    }
}

/// Whether JOURNAL_STREAM names the very file that stderr is: a child of a service inherits the variable, and may
/// have another stderr.
fn stderr_is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(io::stderr()).is_ok_and(|stat| named == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn receive(daemon: &UnixDatagram) -> String {
        let mut buffer = [0; 8192];
        let length = daemon.recv(&mut buffer).unwrap();
        String::from_utf8(buffer.get(..length).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn syslog_and_the_journal_get_a_datagram_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let pid = std::process::id();
        Socket::new(&path, Form::Syslog).put(Level::Warn, "a line").unwrap();
        assert_eq!(receive(&daemon), format!("<28>chiton[{pid}]: a line"));
        Socket::new(&path, Form::Journal).put(Level::Error, "a line").unwrap();
        assert_eq!(receive(&daemon), "PRIORITY=3\nSYSLOG_IDENTIFIER=chiton\nMESSAGE=a line\n");
    }

    #[test]
    fn a_missing_a_restarted_and_a_full_daemon_hold_up_nobody_and_are_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut socket = Socket::new(&path, Form::Syslog);
        let told = socket.put(Level::Info, "one").unwrap_err().unwrap();
        assert!(told.contains(&path.display().to_string()) && told.contains("stderr"), "{told}");
        assert_eq!(socket.put(Level::Info, "two"), Err(None), "told once");

        let daemon = UnixDatagram::bind(&path).unwrap();
        socket.put(Level::Info, "three").unwrap();
        assert!(receive(&daemon).ends_with("three"));
        drop(daemon);
        std::fs::remove_file(&path).unwrap();
        let daemon = UnixDatagram::bind(&path).unwrap();
        socket.put(Level::Info, "four").unwrap();
        assert!(receive(&daemon).ends_with("four"), "it was restarted");

        // Nobody reads: the queue of a socket is bounded, and so is our patience.
        let full = (0..100_000).find_map(|_| socket.put(Level::Info, "flood").err());
        assert!(full.unwrap().unwrap().contains("stderr"));
        assert_eq!(socket.put(Level::Info, "flood"), Err(None));
        receive(&daemon);
        socket.put(Level::Info, "five").unwrap();
    }
}
