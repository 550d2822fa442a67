//! One process of ours with its group: started, listened to, signalled, ended.

use core::cell::{Cell, RefCell};
use core::fmt;
use core::time::Duration;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::io::{self, PipeReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use heapless::HistoryBuf;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Signal, Uid, getegid, geteuid};
use rustix::thread::CapabilitySet;
use smol::lock::Mutex;

use super::family::{Family, KILL_PATIENCE, Kind, MARK};
use super::identity::Identity;
use super::reap::{Exit, Notice, Watch};
use crate::clock::{self, Mono};
use crate::reactor::{Io, Timer, within};
use crate::sys::{self, Setup, Step};

/// Bytes of a process's last output that are kept.
pub const LOG_TAIL: usize = 4096;
/// Bytes read from it at once.
const READ_CHUNK: usize = 4096;
/// Reads in one turn. A pipe holds 64 KiB: who writes on meanwhile is read in the next.
const READS_PER_TURN: usize = 16;
/// From one turn to the next at least: a chatty process costs us ten turns a second, not one for each line …
const TURN: Duration = Duration::from_millis(100);
/// … and one that has filled the pipe is read at 6 MiB a second: it waits, and we do not spin.
const FULL_TURN: Duration = Duration::from_millis(10);

/// Bytes of a program's capabilities in the longest form, the third.
const MAX_FILE_CAPABILITIES: usize = 24;

/// Variables that are addressed to us alone, by name and by how the name begins.
const OURS: [&str; 3] = [MARK, "NOTIFY_SOCKET", "JOURNAL_STREAM"];
const OURS_BY_PREFIX: [&str; 2] = ["WATCHDOG_", "LISTEN_"];

/// What to start.
#[derive(Clone, Debug, Default)]
pub struct Spec {
    /// Program and arguments, placeholders filled in.
    pub argv: Vec<OsString>,
    /// What it is for: whether what leaves its group ends with it.
    pub kind: Kind,
    /// Added to the environment, over what is inherited.
    pub env: BTreeMap<OsString, OsString>,
    /// Variables of ours that it must not see: those whose values went into `chiton.yaml`.
    pub withhold: Vec<String>,
    /// Directory to start in; absent: ours.
    pub cwd: Option<PathBuf>,
    /// Run as this user; absent: as we do.
    pub user: Option<Identity>,
    /// −1000 to 1000: whom the kernel kills first when memory runs out.
    pub oom_score_adj: Option<i16>,
    /// Capabilities it keeps as that user, such as `cap_net_bind_service`.
    pub ambient_capabilities: Vec<String>,
    /// As that user it can gain no others, but those that the file of its program has.
    pub bound: bool,
}

/// Why a process could not be started.
#[derive(Debug)]
pub struct SpawnError {
    /// As it stands in the command.
    pub program: String,
    /// How far it came.
    pub step: Step,
    /// What the system said.
    pub error: io::Error,
    /// What to do about it; may be empty.
    pub advice: &'static str,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = match self.step {
            Step::Start => "",
            Step::OomScore => "oom_score_adj: ",
            Step::User => "changing the user: ",
            Step::Capabilities => "ambient_capabilities: ",
            Step::DeathSignal => "binding its life to ours: ",
        };
        write!(f, "cannot start {}: {step}{}", self.program, self.error)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, " ({})", self.advice) }
    }
}

impl Error for SpawnError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

/// A process that was killed and is still there.
#[derive(Debug)]
pub struct StillThere {
    pid: i32,
    refused: Option<io::Error>,
}

impl fmt::Display for StillThere {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.refused {
            Some(error) => write!(f, "process {} cannot be killed: {error}", self.pid)?,
            None => write!(f, "process {} was killed and does not end", self.pid)?,
        }
        f.write_str("; it is not started again before it is gone")
    }
}

impl Error for StillThere {}

/// A process that we started, with all that comes out of it ([`Kind`] says how far that goes). Dropped alive, it is
/// killed.
///
/// Its output is read while someone waits for it: the owner keeps a [`wait`](Self::wait) going.
pub struct Child {
    pid: Pid,
    family: Family,
    watch: Watch,
    output: PipeReader,
    tail: RefCell<Tail>,
    exit: Cell<Option<Exit>>,
    /// It was told to end, or killed by us.
    asked: Cell<bool>,
    /// Until when what outlives it may end by itself.
    grace: Cell<Option<Mono>>,
    /// Held by the one waiter that reads and watches; the others wait for it to let go.
    driver: Mutex<()>,
}

impl Child {
    /// Starts a process in a group of its own.
    ///
    /// # Errors
    /// When it did not come as far as running its program.
    pub fn spawn(spec: &Spec) -> Result<Self, SpawnError> {
        Self::spawn_with(spec, Notice::Best)
    }

    /// The same, with a choice of how to hear of its end.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn).
    pub fn spawn_with(spec: &Spec, notice: Notice) -> Result<Self, SpawnError> {
        let Some((program, arguments)) = spec.argv.split_first() else {
            return Err(SpawnError {
                program: "nothing".to_owned(),
                step: Step::Start,
                error: io::ErrorKind::InvalidInput.into(),
                advice: "the command is empty",
            });
        };
        let fail = |step, error: io::Error| SpawnError {
            program: program.to_string_lossy().into_owned(),
            step,
            advice: advice(program, step, &error),
            error,
        };
        let start = |error| fail(Step::Start, error);

        let ambient = capabilities(&spec.ambient_capabilities)
            .map_err(|error| fail(Step::Capabilities, error))?;
        let other = spec.user.as_ref().is_some_and(|user| user.uid != 0);
        let bound = (spec.bound && other)
            .then(|| ambient.unwrap_or(CapabilitySet::empty()) | file_capabilities(program));
        let setup = Setup {
            bound,
            user: spec.user.as_ref().and_then(user_to_become),
            oom_score_adj: spec.oom_score_adj.map(|score| score.to_string()),
            ambient,
        };
        let (output, input) = io::pipe().map_err(start)?;
        // Only our end: the process expects writes that wait.
        rustix::io::ioctl_fionbio(&output, true).map_err(|error| start(error.into()))?;
        let family = Family::new(spec.kind);
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(environment(std::env::vars_os(), spec))
            .envs(family.mark())
            .stdin(Stdio::null())
            .stdout(input.try_clone().map_err(start)?)
            .stderr(input)
            .process_group(0);
        if let Some(cwd) = &spec.cwd {
            command.current_dir(cwd);
        }
        let child = sys::spawn(&mut command, setup).map_err(|(step, error)| fail(step, error))?;
        // It holds the other end of the pipe.
        drop(command);
        let pid = Pid::from_child(&child);
        family.born(pid);
        // Without a way to hear of its end it must not live.
        let watch = Watch::new(pid, notice).map_err(|error| {
            let _ = family.signal(Signal::KILL);
            start(error)
        })?;
        Ok(Self {
            pid,
            family,
            watch,
            output,
            tail: RefCell::new(Tail::default()),
            exit: Cell::new(None),
            asked: Cell::new(false),
            grace: Cell::new(None),
            driver: Mutex::new(()),
        })
    }

    /// Its process id, which is its group's too.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// How it ended, once it has.
    #[must_use]
    pub const fn exit(&self) -> Option<Exit> {
        self.exit.get()
    }

    /// The end of its output, both streams as they came: whole lines where they fit into [`LOG_TAIL`].
    #[must_use]
    pub fn output_tail(&self) -> String {
        self.tail.borrow().text()
    }

    /// Waits for its end and meanwhile reads its output. Any number may wait, and may stop waiting. What outlives it
    /// is ended first, so that nothing of it is there any more.
    pub async fn wait(&self) -> Exit {
        let _driving = self.driver.lock().await;
        if let Some(exit) = self.exit.get() {
            return exit;
        }
        let end = async {
            let exit = self.watch.ended().await;
            Exit { others: self.family.end(&self.asked, &self.grace).await, ..exit }
        };
        let exit = smol::future::or(end, self.listen()).await;
        self.watch.collect();
        self.family.buried();
        self.exit.set(Some(exit));
        // What others may still write is not waited for.
        let _ = self.turn();
        exit
    }

    /// Reads output, in turns, for as long as it is polled.
    async fn listen(&self) -> Exit {
        let mut last: Option<(Mono, Duration)> = None;
        loop {
            match self.readable(last.map(|(at, pause)| at.after(pause))).await {
                Ok(()) => {}
                Err(_) => return core::future::pending().await,
            }
            match self.turn() {
                Ok(Turn::Dry) => last = Some((now(), TURN)),
                Ok(Turn::Full) => last = Some((now(), FULL_TURN)),
                // Closed or broken: nothing more will come, but it may live on.
                Ok(Turn::Over) | Err(_) => return core::future::pending().await,
            }
        }
    }

    /// Waits until there is something to read, and then until it may be read. The pipe is watched only while nothing
    /// is in it: meanwhile what is written wakes nobody.
    async fn readable(&self, not_before: Option<Mono>) -> io::Result<()> {
        let look = |pipe: &&PipeReader| {
            let mut polled = [PollFd::new(*pipe, PollFlags::IN)];
            match poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        };
        Io::new(&self.output)?.when_readable(look).await?;
        Timer::at(Some(not_before.unwrap_or_default())).await;
        Ok(())
    }

    fn turn(&self) -> io::Result<Turn> {
        for _ in 0..READS_PER_TURN {
            match self.read_some() {
                Ok(0) => return Ok(Turn::Over),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Dry),
                Err(error) => return Err(error),
            }
        }
        Ok(Turn::Full)
    }

    fn read_some(&self) -> io::Result<usize> {
        let mut chunk = [0; READ_CHUNK];
        let count = (&self.output).read(&mut chunk)?;
        self.tail.borrow_mut().push(chunk.get(..count).unwrap_or_default());
        Ok(count)
    }

    /// Asks it and all that came out of it to end: SIGTERM, and SIGCONT lest a stopped one not hear it.
    ///
    /// # Errors
    /// When the group may not be signalled.
    pub fn terminate(&self) -> io::Result<()> {
        self.asked.set(true);
        self.signal(Signal::TERM)?;
        self.signal(Signal::CONT)
    }

    /// Asks it to read its configuration again: SIGHUP to the process, not to its group.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn reload(&self) -> io::Result<()> {
        if self.exit.get().is_some() {
            return Ok(());
        }
        Ok(rustix::process::kill_process(self.pid, Signal::HUP)?)
    }

    /// Ends it and all that came out of it: SIGKILL.
    ///
    /// # Errors
    /// When the group may not be signalled.
    pub fn kill(&self) -> io::Result<()> {
        self.asked.set(true);
        self.signal(Signal::KILL)
    }

    /// Sends a signal to it and all that came out of it; nothing once it has ended.
    ///
    /// # Errors
    /// When the group may not be signalled.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.exit.get().is_some() {
            return Ok(());
        }
        self.family.signal(signal)
    }

    /// Ends it in good order: SIGTERM, after `patience` SIGKILL, each to all that came out of it.
    ///
    /// # Errors
    /// When it is there long after SIGKILL.
    pub async fn stop(&self, patience: Duration) -> Result<Exit, StillThere> {
        self.grace.set(Some(now().after(patience)));
        // What cannot be told to end is killed after its time like what does not listen.
        let _ = self.terminate();
        if let Some(exit) = within(patience, self.wait()).await {
            return Ok(exit);
        }
        self.end().await
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When it is there long after SIGKILL.
    pub async fn end(&self) -> Result<Exit, StillThere> {
        self.grace.set(None);
        let refused = self.kill().err();
        // Once for itself, once for what outlives it.
        let exit = within(KILL_PATIENCE.saturating_mul(2), self.wait()).await;
        exit.ok_or(StillThere { pid: self.pid(), refused })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// How a turn of reading ended.
enum Turn {
    /// Nothing more is there now.
    Dry,
    /// There may be more.
    Full,
    /// Nobody can write any more.
    Over,
}

#[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
fn now() -> Mono {
    clock::now().mono
}

/// The environment of a child: ours without what is addressed to us, the user's names, then the spec's.
fn environment(
    inherited: impl Iterator<Item = (OsString, OsString)>,
    spec: &Spec,
) -> BTreeMap<OsString, OsString> {
    let withheld = |name: &OsStr| {
        let named = |own: &str| name == own;
        let begins = |own: &&str| name.as_encoded_bytes().starts_with(own.as_bytes());
        OURS.into_iter().any(named)
            || OURS_BY_PREFIX.iter().any(begins)
            || spec.withhold.iter().any(|own| named(own))
    };
    let mut variables: BTreeMap<_, _> = inherited.filter(|(name, _)| !withheld(name)).collect();
    if let Some(user) = &spec.user {
        for variable in ["USER", "LOGNAME"] {
            match &user.name {
                Some(name) => variables.insert(variable.into(), name.into()),
                None => variables.remove(OsStr::new(variable)),
            };
        }
        match &user.home {
            Some(home) => variables.insert("HOME".into(), home.into()),
            None => variables.remove(OsStr::new("HOME")),
        };
    }
    variables.extend(spec.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    variables
}

/// [`None`] where we are that user already and could not change anyway.
fn user_to_become(user: &Identity) -> Option<sys::User> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if !geteuid().is_root() && (geteuid(), getegid()) == (uid, gid) {
        return None;
    }
    let groups = user.groups.iter().copied().map(Gid::from_raw).collect();
    Some(sys::User { uid, gid, groups })
}

fn capabilities(names: &[String]) -> io::Result<Option<CapabilitySet>> {
    let mut set = CapabilitySet::empty();
    for name in names {
        let Some(one) = sys::capability(name) else {
            let text = format!("no capability is called {name}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        };
        set |= one;
    }
    Ok((!set.is_empty()).then_some(set))
}

/// What the file of a program permits (`setcap`): without all of it in the bounds the kernel would not execute it.
fn file_capabilities(program: &OsStr) -> CapabilitySet {
    let path = std::env::var_os("PATH").filter(|_| !program.as_encoded_bytes().contains(&b'/'));
    let path = path.unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|directory| directory.join(program));
    let file = places.find(|file| file.is_file()).unwrap_or_else(|| program.into());
    // `vfs_cap_data`: a word of version and flags, then permitted and inheritable, the lower words first.
    let mut data = [0; MAX_FILE_CAPABILITIES];
    let read = rustix::fs::getxattr(&file, "security.capability", &mut data);
    let word = |at: usize| {
        let bytes = data.get(at..)?.first_chunk()?;
        read.is_ok().then(|| u64::from(u32::from_le_bytes(*bytes)))
    };
    let bits = word(4).unwrap_or(0) | word(12).unwrap_or(0).wrapping_shl(u32::BITS);
    CapabilitySet::from_bits_retain(bits)
}

fn advice(program: &OsStr, step: Step, error: &io::Error) -> &'static str {
    let errno = Errno::from_io_error(error);
    match step {
        Step::User => "Chiton must run as root to start a workload as another user",
        Step::OomScore => "lowering it takes root or CAP_SYS_RESOURCE",
        Step::Capabilities => "Chiton can pass on only capabilities that it has",
        Step::DeathSignal => "",
        Step::Start => match errno {
            Some(Errno::NOENT | Errno::ACCESS) if !program.as_encoded_bytes().contains(&b'/') => {
                "nothing of that name can be executed in the directories of PATH"
            }
            Some(Errno::NOENT) if Path::new(program).exists() => {
                "it is there: the interpreter in its first line, its dynamic loader or the directory to start in is missing"
            }
            Some(Errno::NOENT) => "no such program",
            Some(Errno::ACCESS) => match std::fs::metadata(program) {
                Ok(found) if found.is_dir() => "it is a directory",
                Ok(found) if found.permissions().mode() & 0o111 == 0 => {
                    "its mode lacks execute permission"
                }
                _ => "this user may not execute it, or its file system is mounted noexec",
            },
            Some(Errno::NOEXEC) => {
                "built for another architecture, damaged, or a script without #! in its first line"
            }
            Some(Errno::TXTBSY) => "it is being written to",
            Some(Errno::AGAIN | Errno::NOMEM) => "the limit of processes or memory is reached",
            Some(Errno::TOOBIG) => "arguments and environment are too long",
            _ => "",
        },
    }
}

/// The last [`LOG_TAIL`] bytes of a stream.
#[derive(Default)]
struct Tail {
    bytes: Box<HistoryBuf<u8, LOG_TAIL>>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, chunk: &[u8]) {
        self.cut |= self.bytes.len().saturating_add(chunk.len()) > LOG_TAIL;
        self.bytes.extend_from_slice(chunk);
    }

    /// What was cut begins in the middle of a line, which is left out unless it is all there is.
    fn text(&self) -> String {
        let bytes: Vec<u8> = self.bytes.oldest_ordered().copied().collect();
        let mut kept = bytes.as_slice();
        if self.cut
            && let Some((_, whole)) = kept
                .iter()
                .position(|byte| *byte == b'\n')
                .and_then(|end| kept.split_at_checked(end.saturating_add(1)))
            && !whole.is_empty()
        {
            kept = whole;
        }
        plain(&String::from_utf8_lossy(kept)).trim_end().to_owned()
    }
}

/// Text without what would act on a terminal: colours and other sequences as a whole, control characters one by one.
/// Line ends and tabs stay.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.next_if_eq(&'[').is_some() => {
                // Parameters, then one letter.
                while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
                let _ = chars.next_if(|c| matches!(c, '@'..='~'));
            }
            '\n' | '\t' => plain.push(c),
            c if c.is_control() => {}
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn output_cannot_act_on_the_terminal_of_who_reads_it() {
        for (said, kept) in [
            ("one\r\n\ttwo", "one\n\ttwo"),
            ("\x1b[1;31mred\x1b[0m \x1b[2K\x1b[?25lend", "red end"),
            ("a\0b\x07c\x08d\x7fe\u{9b}f", "abcdef"),
            ("\x1b]0;title\x07x", "]0;titlex"),
            ("cut \x1b[", "cut "),
            ("cut \x1b", "cut "),
            ("häßlich \u{fffd} 日本", "häßlich \u{fffd} 日本"),
        ] {
            assert_eq!(plain(said), kept, "{said:?}");
        }
    }
}
