//! The loop that joins them: events into the core, its actions out to the executors.
//!
//! One local executor on the main thread. What blocks (disk, names, PEM files) goes to a pool of at most two
//! threads that end when they have nothing to do.

mod actions;
mod asked;
mod commands;
mod credentials;
mod disk;
mod executor;
mod external;
mod keys;
mod link;
mod measure;
mod obtain;
mod reload;
mod rest;
mod signals;
mod socket;
mod start;
mod uid;
mod workload;

use core::cell::RefCell;
use core::time::Duration;
use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use smol::channel::{Receiver, Sender, bounded};

use crate::agent::identity::Kept;
use crate::agent::session::{LinkState, Tone};
use crate::agent::supervision::Process;
use crate::agent::{Agent, Event};
use crate::clock::{self, Mono, Now};
use crate::confine;
use crate::log::Log;
use crate::log::limit::Limiter;
use crate::notify::Notify;
use crate::reactor::{self, Io, Timer};
use crate::settings::{Level, Loaded, Problem, Settings};
use crate::store::Store;
use crate::workload::family;
use crate::workload::identity::Identity;
use crate::workload::reap;
use crate::workload::spawn::Child;
use executor::Executor;
use external::External;
use link::{Link, Links};
use measure::Measures;
use rest::Rest;

/// Inputs that may wait for the core; whoever has one more waits himself.
const INBOX: usize = 32;
/// Problems that are kept for `chiton status`; the newest are.
const MAX_PROBLEMS: usize = 16;
/// How an orderly end is bounded, beside `stop_timeout`.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// Why `run` could not go on.
#[derive(Debug)]
pub struct Fatal(pub String);

/// Where everything that happens goes.
struct Inbox {
    inputs: Sender<Input>,
}

enum Input {
    Event(Event),
    Log(Tone, String),
    Settings(reload::Why, Result<Box<Loaded>, Vec<Problem>>),
    /// A client of the status socket, and what it says.
    Asked(Io<UnixStream>, String),
    Signal(u8),
    /// The external workload may have changed.
    Look,
    /// The external workload was asked; its main process before, and the outcome.
    Told(Option<Process>, Result<(), String>),
    /// Random numbers are there at last: a uid can be made.
    Entropy,
}

impl Inbox {
    async fn input(&self, input: Input) {
        // The receiver outlives every task but at the very end, when nothing matters any more.
        let _ = self.inputs.send(input).await;
    }

    async fn put(&self, event: Event) {
        self.input(Input::Event(event)).await;
    }

    async fn log(&self, tone: Tone, text: String) {
        self.input(Input::Log(tone, text)).await;
    }
}

/// What the agent starts with.
pub struct Start {
    /// The settings to run by.
    pub loaded: Loaded,
    /// The file that they come from.
    pub file: PathBuf,
    /// What is wrong with it, where these are the last good ones instead.
    pub bad: Vec<Problem>,
    /// Where lines go.
    pub log: Log,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot begin: the state directory is another agent's, or the kernel refuses what it needs.
pub fn run(start: Start) -> Result<(), Fatal> {
    let executor = Rc::new(Executor::new());
    let (inputs, received) = bounded(INBOX);
    let inbox = Rc::new(Inbox { inputs });
    let signals = signals::signals().map_err(|error| Fatal(format!("signals: {error}")))?;
    let Start { loaded, file, bad, log } = start;
    let mut runtime = Runtime::new(loaded, file, log, Rc::clone(&executor), Rc::clone(&inbox))?;
    let main = async {
        let watching = executor.spawn(signals::watch_signals(signals, Rc::clone(&inbox)));
        let collecting = executor.spawn(reap::collect_orphans());
        runtime.clear().await;
        // What takes privileges is done; no thread, no child, no byte from the network yet.
        for problem in confine::confine(&runtime.settings) {
            runtime.problem(problem);
        }
        runtime.begin(bad);
        runtime.serve(received).await;
        let left = family::end_all().await.left;
        if left > 0 {
            runtime.say(Tone::Warning, &format!("SIGKILL does not end {left} process(es) of ours"));
        }
        drop((watching, collecting));
    };
    reactor::block_on(executor.run(main)).map_err(|error| Fatal(format!("epoll: {error}")))
}

struct Runtime<'a> {
    settings: Rc<Settings>,
    /// chiton.yaml.
    file: PathBuf,
    /// Why it is being read again, if it is.
    reading: Option<reload::Why>,
    /// It is to be read once more after that.
    read_again: bool,
    /// Its text, until it is kept: see [`crate::store::Store::keep_settings`].
    unexpanded: String,
    notify: Notify,
    limiter: RefCell<Limiter>,
    log: Log,
    executor: Rc<Executor<'a>>,
    inbox: Rc<Inbox>,
    agent: Agent,
    store: Arc<Store>,
    /// Held for as long as we run.
    _lock: Option<crate::store::Lock>,
    jobs: Sender<disk::Job>,
    /// Works off the jobs; ends when they are closed.
    disk: Option<smol::Task<()>>,
    links: Rc<Links>,
    link: Option<Link>,
    /// The file of a package that is being obtained.
    obtaining: Option<smol::Task<()>>,
    child: Option<Rc<Child>>,
    external: Option<External>,
    measures: Measures,
    /// Credentials were placed for others since the start.
    exported: bool,
    /// An interrupted change was undone on the disk.
    went_back: bool,
    /// What is committed could not be made to run.
    astray: bool,
    /// Whom the workload runs as, or why nobody knows.
    identity: Result<Option<Identity>, String>,
    /// Environment variables whose values are secrets of ours.
    withhold: Vec<String>,
    kept: Option<Kept>,
    /// What is wrong with chiton.yaml while older settings are in force.
    bad_settings: Vec<String>,
    /// What the connection lacks.
    deferred: Vec<String>,
    /// What is worth a word, and makes nobody ill.
    notes: Vec<String>,
    /// Whatever else is wrong, at most [`MAX_PROBLEMS`].
    problems: Vec<String>,
    /// What happened while actions were carried out.
    aftermath: VecDeque<Event>,
    started: Mono,
    rest: Rest,
    give_up_at: Option<Mono>,
    over: bool,
}

impl<'a> Runtime<'a> {
    /// After everything that happens: what others want to hear from us.
    fn tend(&mut self) {
        let now = now();
        self.notify.alive(now.mono);
        let reloading = self.reading == Some(reload::Why::Asked);
        if !self.notify.is_ready() && !reloading && self.agent.has_begun() {
            self.notify.ready();
        }
        self.notify.status(match self.agent.link_state() {
            LinkState::Up(_) => "connected to the OpAMP server",
            LinkState::Connecting => "connecting to the OpAMP server",
            LinkState::Idle | LinkState::Waiting | LinkState::Closing => "not connected",
        });
        loop {
            let owed = self.limiter.borrow_mut().owed(now.mono);
            let Some(line) = owed else { break };
            self.say(Tone::Warning, &line);
        }
    }

    async fn serve(&mut self, inputs: Receiver<Input>) {
        while !self.over {
            let deadlines = [
                self.agent.deadline(),
                self.give_up_at,
                self.notify.deadline(),
                self.rest.deadline(),
            ];
            let deadline = deadlines.into_iter().flatten().min();
            let input = smol::future::or(async { inputs.recv().await.ok() }, async {
                Timer::at(deadline).await;
                None
            });
            match input.await {
                None => self.handle(Event::Tick),
                Some(Input::Event(event)) => self.handle(event),
                Some(Input::Log(tone, text)) => self.say(tone, &text),
                Some(Input::Settings(why, read)) => self.settings_read(why, read),
                Some(Input::Asked(stream, request)) => self.asked(stream, &request),
                Some(Input::Signal(signal)) => self.signal(signal),
                Some(Input::Entropy) => self.identify(),
                Some(Input::Look) => {
                    self.look();
                    self.handle(Event::Tick);
                }
                Some(Input::Told(before, result)) => {
                    self.told(before, result);
                    self.handle(Event::Tick);
                }
            }
            self.tend();
            if self.give_up_at.is_some_and(|at| at <= now().mono) {
                self.say(Tone::Warning, "the orderly end took too long: ending now");
                self.over = true;
            }
        }
        let _ = fs::remove_file(&self.settings.status_socket);
        // What was told to the server is on the disk before we are gone. Nobody listens to the answers any more.
        drop(inputs);
        self.jobs.close();
        if let Some(disk) = self.disk.take()
            && reactor::within(SHUTDOWN_GRACE, disk).await.is_none()
        {
            self.say(Tone::Warning, "the disk took too long: the last change may be lost");
        }
    }

    fn handle(&mut self, event: Event) {
        let answered = matches!(event, Event::Received { .. });
        match event {
            // One that only ends a burst is none of its events.
            Event::Tick => {}
            Event::LinkUp { .. } => self.rest.connected(now().mono),
            _ => self.rest.disturbed(now().mono),
        }
        let mut actions = Vec::new();
        self.agent.handle(event, now(), &mut actions);
        self.carry_out(actions);
        while let Some(event) = self.aftermath.pop_front() {
            let mut actions = Vec::new();
            self.agent.handle(event, now(), &mut actions);
            self.carry_out(actions);
        }
        self.rest.settle(answered, now().mono);
    }

    fn problem(&mut self, text: String) {
        self.log.write(Level::Error, &text, now().wall);
        self.problems.push(text);
        if self.problems.len() > MAX_PROBLEMS {
            self.problems.remove(0);
        }
    }

    fn say(&self, tone: Tone, text: &str) {
        if tone == Tone::Peer && !self.limiter.borrow_mut().allows(text, now().mono) {
            return;
        }
        let level = match tone {
            Tone::Warning | Tone::Peer => Level::Warn,
            Tone::Info => Level::Info,
            Tone::Debug => Level::Debug,
        };
        self.log.write(level, text, now().wall);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the loop reads the clock, and gives the time to the core"
)]
fn now() -> Now {
    clock::now()
}

/// Where `status_socket` is when nothing says otherwise.
#[must_use]
pub fn default_socket() -> PathBuf {
    PathBuf::from("/run/chiton/status.sock")
}
