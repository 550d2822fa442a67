//! The loop that joins them: events into the core, its actions out to the executors.
//!
//! One local executor on the main thread. What blocks (disk, names, PEM files) goes to a pool of at most two
//! threads that end when they have nothing to do.

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
mod socket;

use core::cell::RefCell;
use core::time::Duration;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use smol::channel::{Receiver, Sender, bounded};

use crate::agent::connection::overlay::Staged;
use crate::agent::connection::{Found, Way};
use crate::agent::identity::{self, Choice, Kept};
use crate::agent::rollout::Generation;
use crate::agent::session::{LinkError, LinkErrorKind, LinkState, Tone};
use crate::agent::supervision::Process;
use crate::agent::uid::Uid;
use crate::agent::{Action, Agent, Config, Event};
use crate::clock::{self, Mono, Now};
use crate::confine;
use crate::host;
use crate::json::Json;
use crate::log::Log;
use crate::log::limit::Limiter;
use crate::notify::Notify;
use crate::reactor::{self, Io, Timer};
use crate::settings::{
    Apply, CheckKind, Level, Loaded, Owner, Packages, Problem, Sandbox, Settings,
};
use crate::status::{self, Surroundings};
use crate::store::Store;
use crate::transport::tls::Factory;
use crate::workload::check;
use crate::workload::command::{self, CommandOutcome};
use crate::workload::family::{self, Kind};
use crate::workload::identity::Identity;
use crate::workload::placeholders::{self, Places};
use crate::workload::reap::{self, Exit, ExitKind};
use crate::workload::spawn::{Child, Spec};
use executor::Executor;
use external::External;
use link::{Link, Links, Task};
use measure::Measures;
use rest::Rest;

/// Inputs that may wait for the core; whoever has one more waits himself.
const INBOX: usize = 32;
/// Jobs for the disk: the life cycle has one at a time, a uid and a record may come between.
const JOBS: usize = 8;
/// A dry run or an apply command may take so long.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Without random numbers at boot, ask again after so long.
const ENTROPY_PAUSE: Duration = Duration::from_secs(1);
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
    let signals = signals().map_err(|error| Fatal(format!("signals: {error}")))?;
    let Start { loaded, file, bad, log } = start;
    let mut runtime = Runtime::new(loaded, file, log, Rc::clone(&executor), Rc::clone(&inbox))?;
    let main = async {
        let watching = executor.spawn(watch_signals(signals, Rc::clone(&inbox)));
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
    fn new(
        loaded: Loaded,
        file: PathBuf,
        log: Log,
        executor: Rc<Executor<'a>>,
        inbox: Rc<Inbox>,
    ) -> Result<Self, Fatal> {
        let now = now();
        let settings = Rc::new(loaded.settings);
        let user = settings.workload.as_ref().and_then(|workload| workload.user.as_deref());
        // A user that has vanished stops the workload, not the connection by which it can be told.
        let identity = user.map(Identity::find).transpose();
        let identity = identity.map_err(|error| format!("opamp.workload.user: {error}"));
        let group = identity.as_ref().ok().and_then(Option::as_ref).map(|identity| identity.gid);
        let store = Arc::new(Store::new(&settings, group));
        let deferred = reload::shown(&loaded.deferred);
        let mut problems: Vec<String> = identity.as_ref().err().cloned().into_iter().collect();
        let notify = Notify::from_environment(now.mono).unwrap_or_else(|error| {
            log.write(Level::Warn, &error, now.wall);
            Notify::default()
        });
        let lock = match store.prepare() {
            Ok(lock) => Some(lock),
            Err(error) if error.contains("another chiton") => return Err(Fatal(error)),
            Err(error) => {
                problems.push(error);
                None
            }
        };
        // Without the lock the state directory may be another's, and so may what ran on it.
        let key = lock.as_ref().and_then(|_| store.key());
        if let Err(error) = family::adopt(key) {
            let text = "what the workload leaves behind cannot be ended without /proc";
            problems.push(format!("{text}: {error}"));
        }
        let recovered = store.recover();
        clock::raise_floor(recovered.memory.packages.seen);
        problems.extend(recovered.problems);
        let notes: Vec<String> = store
            .is_volatile()
            .map(|on| {
                let at = settings.state_dir.display();
                format!("opamp.state_dir {at} is on {on}: uid, configurations and certificates are lost with the power")
            })
            .into_iter()
            .collect();
        for note in &notes {
            log.write(Level::Warn, note, now.wall);
        }
        for problem in deferred.iter().chain(&problems) {
            log.write(Level::Error, problem, now.wall);
        }
        let (keyring, unreadable) = keys::read(&settings.packages);
        for problem in unreadable {
            log.write(Level::Error, &problem, now.wall);
            problems.push(problem);
        }
        let config = Config::new(&settings, host::host(), keyring);
        let connections = store.connections();
        for problem in connections.problems {
            log.write(Level::Error, &problem, now.wall);
            problems.push(problem);
        }
        let found = Found {
            memory: connections.memory,
            committed: connections.committed,
            candidate: connections.candidate,
            volatile: store.is_volatile(),
            unreadable: connections.unreadable,
        };
        let links = Links {
            server: settings.server.clone(),
            way: Way::Own,
            store: Rc::new(RefCell::new(Arc::clone(&store))),
            factory: Arc::new(Factory::default().into()),
            inbox: Rc::clone(&inbox),
        };
        let (jobs, todo) = bounded(JOBS);
        let disk = executor.spawn(disk::work(Arc::clone(&store), todo, Rc::clone(&inbox)));
        Ok(Self {
            agent: Agent::new(config, recovered.memory, recovered.running, seed(now), now)
                .with_connection(found),
            external: External::new(&settings),
            measures: Measures::default(),
            exported: false,
            went_back: recovered.went_back,
            astray: recovered.astray,
            settings,
            file,
            reading: None,
            read_again: false,
            unexpanded: loaded.unexpanded,
            notify,
            limiter: RefCell::default(),
            log,
            executor,
            inbox,
            store,
            _lock: lock,
            jobs,
            disk: Some(disk),
            links: Rc::new(links),
            link: None,
            obtaining: None,
            child: None,
            identity,
            withhold: loaded.secrets_from,
            kept: None,
            bad_settings: Vec::new(),
            deferred,
            notes,
            problems,
            aftermath: VecDeque::new(),
            started: now.mono,
            rest: Rest::default(),
            give_up_at: None,
            over: false,
        })
    }

    /// Two workloads at once must never be: what a killed predecessor of ours left is ended first.
    async fn clear(&mut self) {
        let ended = family::end_leftovers().await;
        match (ended.found, ended.left) {
            (0, _) => {}
            (found, 0) => {
                let text = format!("ended {found} process(es) that a killed Chiton had left");
                self.say(Tone::Warning, &text);
            }
            (_, left) => self.problem(format!(
                "SIGKILL does not end {left} process(es) that a killed Chiton had left: the workload may find its \
                 ports and files in use"
            )),
        }
    }

    /// The workload first; the connection when a uid is there.
    fn begin(&mut self, bad: Vec<Problem>) {
        let now = now();
        let mut actions = Vec::new();
        if self.went_back {
            self.agent.undone();
        }
        if self.astray {
            self.agent.astray(now);
        }
        self.agent.boot(now, &mut actions);
        self.carry_out(actions);
        if self.external.is_some() {
            self.look();
            self.handle(Event::Tick);
        }
        if self.went_back {
            let mut actions = Vec::new();
            self.agent.went_back(now, &mut actions);
            self.carry_out(actions);
            self.handle(Event::Tick);
        }
        match socket::bind(&self.settings.status_socket) {
            Ok(listener) => {
                self.executor.spawn(socket::accept(listener, Rc::clone(&self.inbox))).detach();
            }
            Err(error) => {
                self.problem(format!(
                    "status_socket {}: {error}",
                    self.settings.status_socket.display()
                ));
            }
        }
        let text = core::mem::take(&mut self.unexpanded);
        if bad.is_empty() {
            self.keep_settings(text);
        } else {
            self.refuse(&bad);
            self.say(Tone::Warning, "the last good settings are in force instead");
        }
        drop(bad);
        self.identify();
        // What has happened by now.
        self.handle(Event::Tick);
        self.tend();
    }

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
        // A tick that only ends a burst is none of its events.
        if !matches!(event, Event::Tick) {
            self.rest.disturbed(now().mono);
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

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect { link } => {
                    self.refresh_links();
                    self.link = Some(link::begin(Rc::clone(&self.links), link, &self.executor));
                    if self.settings.server.unusable.is_some() {
                        self.read_settings(reload::Why::Missing);
                    }
                }
                Action::Send(report) => self.link_task(Task::Report(report)),
                Action::Ping => self.link_task(Task::Ping),
                Action::Close => self.link_task(Task::Close),
                Action::Abort => self.link = None,
                Action::KeepUid(uid) => {
                    let kept = self.keep(uid);
                    self.job(disk::Job::KeepUid(kept));
                }
                Action::StageConnection { candidate, known } => {
                    self.stage_connection(candidate, known);
                }
                Action::RememberConnection(memory) => {
                    self.job(disk::Job::RememberConnection(memory));
                }
                Action::UseCredentials => self.use_credentials(),
                Action::MakeRequest { common_name, key } => self.make_request(common_name, key),
                Action::Stage { candidate, known, write } => {
                    self.job(disk::Job::Stage { candidate, known, write });
                }
                Action::Arm { memory, after_going_back } => {
                    self.job(disk::Job::Arm { memory, after_going_back });
                }
                Action::Substitute(file) => self.job(disk::Job::Substitute(file)),
                Action::Activate(generation) => self.job(disk::Job::Activate(generation)),
                Action::Remember(memory) => {
                    clock::raise_floor(memory.packages.seen);
                    self.job(disk::Job::Remember(memory));
                }
                Action::Validate { generation, packages, config } => {
                    self.validate(generation, packages, config);
                }
                Action::Obtain(wanted) => self.obtain(*wanted),
                Action::Prepare { keep } => self.prepare(keep),
                Action::StartWorkload => self.start_workload(),
                Action::StopWorkload => self.stop_workload(),
                Action::Reload => self.reload(),
                Action::RunApply => self.run_apply(),
                Action::Ask(ask) => self.ask(ask),
                Action::Check { round } => self.check(round),
                Action::Measure { round } => self.measure(round),
                Action::Log(tone, text) => self.say(tone, &text),
                Action::Exit => self.over = true,
            }
        }
    }

    fn link_task(&mut self, task: Task) {
        let full = self.link.as_ref().filter(|link| !link.put(task)).map(|link| link.number);
        if let Some(link) = full {
            // What was not sent must be sent: all that is not acknowledged goes again with the next link.
            self.link = None;
            let text = "the network takes no more messages".to_owned();
            let error = Some(LinkError { text, kind: LinkErrorKind::Failed });
            self.aftermath.push_back(Event::LinkDown { link, error });
        }
    }

    fn job(&mut self, job: disk::Job) {
        let Err(refused) = self.jobs.try_send(job) else { return };
        let text = "the disk does not keep up: a change was not written".to_owned();
        // Who waits for an answer would wait for ever.
        self.aftermath.extend(match refused.into_inner() {
            disk::Job::StageConnection { .. } => {
                Some(Event::ConnectionStaged(Staged::Failed(text.clone())))
            }
            disk::Job::RememberConnection(_) => {
                Some(Event::ConnectionRemembered(Err(text.clone())))
            }
            disk::Job::MakeRequest { common_name, .. } => {
                Some(Event::RequestMade { common_name, result: Err(text.clone()) })
            }
            _ => None,
        });
        self.problem(text);
    }

    /// The dry runs of a candidate, one after the other; the first that fails ends them.
    fn validate(&mut self, generation: Generation, packages: bool, config: bool) {
        let settings = Rc::clone(&self.settings);
        let specs = self.store.candidate(generation).and_then(|candidate| {
            let places = Places {
                config_dir: candidate.config_dir,
                config_file: candidate.config_file,
                package_dirs: candidate.package_dirs,
                packages_dir: self.settings.packages_dir.clone(),
            };
            let Packages { verify, after_install, .. } = &settings.packages;
            let validate = &settings.remote_config.validate;
            let mut specs = Vec::new();
            // What the new files need is done as ourselves: labels and capabilities are root's business.
            if packages && !after_install.is_empty() {
                let spec = self.spec(after_install, &places)?;
                specs.push(Spec { kind: Kind::Probe, user: None, ..spec });
            }
            for (words, wanted) in [(verify, packages), (validate, config || packages)] {
                // There is nothing yet that it could be run on.
                let lacks = places.config_file.is_none()
                    && words.iter().any(|word| word.contains("{config_file}"));
                if wanted && !words.is_empty() && !lacks {
                    specs.push(Spec { kind: Kind::Probe, ..self.spec(words, &places)? });
                }
            }
            Ok(specs)
        });
        let inbox = Rc::clone(&self.inbox);
        let running = async move {
            let mut result = specs.as_ref().map(|_| ()).map_err(Clone::clone);
            for spec in specs.into_iter().flatten() {
                if result.is_ok() {
                    result = outcome(&spec, &command::run(&spec, COMMAND_TIMEOUT).await);
                }
            }
            inbox.put(Event::Validated(result)).await;
        };
        self.executor.spawn(running).detach();
    }

    fn run_apply(&mut self) {
        let Apply::Command(words) = self.agent.apply_by() else { return };
        let spec = self.running_spec(&words.clone());
        self.run_command(spec, Event::Reloaded);
    }

    /// Runs a command to its end and makes its outcome an event.
    fn run_command(&mut self, spec: Result<Spec, String>, event: fn(Result<(), String>) -> Event) {
        let inbox = Rc::clone(&self.inbox);
        let running = async move {
            let result = match spec {
                Ok(spec) => outcome(&spec, &command::run(&spec, COMMAND_TIMEOUT).await),
                Err(error) => Err(error),
            };
            inbox.put(event(result)).await;
        };
        self.executor.spawn(running).detach();
    }

    fn start_workload(&mut self) {
        let Some(workload) = &self.settings.workload else { return };
        let Owner::Chiton { command } = &workload.owner else { return };
        let bound = self.settings.sandbox == Sandbox::On;
        let child = self
            .running_spec(command)
            .map(|spec| Spec { kind: Kind::Workload, bound, ..spec })
            .and_then(|spec| Child::spawn(&spec).map_err(|error| error.to_string()));
        match child {
            Ok(child) => {
                let child = Rc::new(child);
                let pid = u32::try_from(child.pid()).unwrap_or_default();
                self.say(Tone::Info, &format!("the workload runs as process {pid}"));
                self.aftermath.push_back(Event::WorkloadStarted { pid });
                let inbox = Rc::clone(&self.inbox);
                let watched = Rc::clone(&child);
                let watching = async move {
                    let exit = watched.wait().await;
                    let text = format!("{exit}{}", advice(exit));
                    let text = with_output(&text, &watched.output_tail());
                    inbox.put(Event::WorkloadExited(text)).await;
                };
                self.executor.spawn(watching).detach();
                self.child = Some(child);
                self.measure_from_the_start();
            }
            Err(error) => {
                let text = format!("the workload could not be started: {error}");
                self.aftermath.push_back(Event::WorkloadNotStarted(text));
            }
        }
    }

    fn stop_workload(&mut self) {
        let Some(child) = self.child.take() else { return };
        let timeout = self
            .settings
            .workload
            .as_ref()
            .map_or(Duration::ZERO, |workload| workload.stop_timeout);
        let inbox = Rc::clone(&self.inbox);
        // The task that watches it reports the end.
        let stopping = async move {
            if let Err(still) = child.stop(timeout).await {
                inbox.put(Event::WorkloadStuck(still.to_string())).await;
            }
        };
        self.executor.spawn(stopping).detach();
    }

    fn reload(&mut self) {
        let result = match &self.child {
            Some(child) => child.reload().map_err(|error| error.to_string()),
            None => Err("the workload does not run".to_owned()),
        };
        self.aftermath.push_back(Event::Reloaded(result));
    }

    fn check(&mut self, round: u64) {
        // Being alive is part of every round.
        self.look();
        let settings = Rc::clone(&self.settings);
        let inbox = Rc::clone(&self.inbox);
        if settings.health.checks.is_empty() {
            self.aftermath.push_back(Event::Checked { round, results: Vec::new() });
            return;
        }
        let checks = &settings.health.checks;
        let limits = checks.iter().any(|check| check.kind.is_limit());
        let load = if limits { self.load() } else { None };
        // A check program runs as the workload does.
        let programs = checks.iter().filter_map(|check| match &check.kind {
            CheckKind::Exec(words) => Some(self.running_spec(words)),
            _ => None,
        });
        let programs = programs.collect();
        let checking = async move {
            let results = check::run_all(&settings.health.checks, programs, load.as_ref()).await;
            inbox.put(Event::Checked { round, results }).await;
        };
        self.executor.spawn(checking).detach();
    }

    fn running_spec(&self, words: &[String]) -> Result<Spec, String> {
        self.spec(words, &self.places())
    }

    /// What the placeholders stand for now.
    fn places(&self) -> Places {
        let names = self.agent.package_names();
        Places {
            config_dir: self.store.config_dir(),
            config_file: self.store.config_file(),
            packages_dir: self.settings.packages_dir.clone(),
            package_dirs: names
                .map(|name| (name.to_owned(), self.store.package_dir(None, name)))
                .collect(),
        }
    }

    fn spec(&self, words: &[String], places: &Places) -> Result<Spec, String> {
        let workload = self.settings.workload.as_ref();
        let env = workload.map(|workload| workload.env.iter()).into_iter().flatten();
        Ok(Spec {
            argv: placeholders::fill(words, places).map_err(|error| error.to_string())?,
            kind: Kind::default(),
            env: env.map(|(name, value)| (name.into(), value.into())).collect(),
            withhold: self.withhold.clone(),
            cwd: None,
            bound: false,
            user: self.identity.clone()?,
            oom_score_adj: workload.and_then(|workload| workload.oom_score_adj),
            ambient_capabilities: workload
                .map_or_else(Vec::new, |workload| workload.ambient_capabilities.clone()),
        })
    }

    /// Finds out which uid to go by, and connects.
    fn identify(&mut self) {
        let hardware = host::hardware();
        let settings = Rc::clone(&self.settings);
        let setting = &settings.agent.instance_id;
        let kept = match self.store.uid() {
            Ok(kept) => kept,
            Err(error) => {
                self.problem(format!("{error}; a new instance uid is made"));
                None
            }
        };
        let choice = identity::choose(setting, &host::machine_id(), &hardware, kept.as_ref());
        let given =
            matches!(choice, Choice::Keep(_)) && kept.as_ref().is_some_and(|kept| kept.given);
        let uid = match choice {
            Choice::Keep(uid) => uid,
            Choice::Take(uid) => uid,
            Choice::Make(why) => {
                let mut random = [0; 10];
                if getrandom(&mut random, GetRandomFlags::NONBLOCK).is_err() {
                    self.wait_for_entropy();
                    return;
                }
                let uid = Uid::v7(clock::trusted(now().wall), random);
                self.say(Tone::Info, &format!("made instance uid {uid}: {why}"));
                uid
            }
        };
        let fresh = Kept { uid, configured: identity::configured(setting), hardware, given };
        if kept.as_ref() != Some(&fresh)
            && let Err(error) = self.store.keep_uid(&fresh)
        {
            self.problem(format!("the instance uid could not be kept: {error}"));
        }
        self.kept = Some(fresh);
        let mut actions = Vec::new();
        self.agent.connect(uid, given, now(), &mut actions);
        self.carry_out(actions);
    }

    fn wait_for_entropy(&mut self) {
        let inbox = Rc::clone(&self.inbox);
        let waiting = async move {
            Timer::after(ENTROPY_PAUSE).await;
            inbox.input(Input::Entropy).await;
        };
        self.executor.spawn(waiting).detach();
    }

    /// The record for a uid that the server gave.
    fn keep(&mut self, uid: Uid) -> Kept {
        let kept = match self.kept.take() {
            Some(kept) => Kept { uid, given: true, ..kept },
            None => Kept {
                uid,
                given: true,
                configured: identity::configured(&self.settings.agent.instance_id),
                hardware: host::hardware(),
            },
        };
        self.kept = Some(kept.clone());
        kept
    }

    fn asked(&mut self, stream: Io<UnixStream>, request: &str) {
        let document = match request.split_once(' ').unwrap_or((request, "")) {
            ("" | "status", _) => self.status(),
            ("retry", hash) => {
                let hash = Some(hash.trim()).filter(|hash| !hash.is_empty());
                let mut actions = Vec::new();
                let forgotten = self.agent.retry(hash, now(), &mut actions);
                self.carry_out(actions);
                Json::object([("forgotten", Json::Number(forgotten))])
            }
            _ => Json::object([("error", Json::text("this agent does not know that request"))]),
        };
        self.executor.spawn(socket::answer(stream, format!("{document}\n"))).detach();
    }

    fn status(&self) -> Json {
        let now = now();
        let around = Surroundings {
            resident: resident(),
            problems: [&self.bad_settings, &self.deferred, &self.problems]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            notes: self.notes.clone(),
            confinement: confine::report(),
            uptime: now.mono.since(self.started).as_secs(),
        };
        status::document(&self.agent.snapshot(), &around, now)
    }

    fn signal(&mut self, signal: u8) {
        match signal {
            HUP => self.hang_up(),
            _ => {
                self.notify.stopping();
                self.say(Tone::Info, "ending in order");
                let stop = self
                    .settings
                    .workload
                    .as_ref()
                    .map_or(Duration::ZERO, |workload| workload.stop_timeout);
                self.give_up_at = Some(now().mono.after(stop.saturating_add(SHUTDOWN_GRACE)));
                self.handle(Event::Shutdown);
            }
        }
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

/// What the jitter starts from. Nothing secret hangs on it, so early at boot the clock must do.
fn seed(now: Now) -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bytes) ^ now.wall.unix_nanos() ^ u64::from(std::process::id())
}

/// What a command came to, with its name.
fn outcome(spec: &Spec, outcome: &CommandOutcome) -> Result<(), String> {
    if outcome.success() {
        return Ok(());
    }
    let program = spec.argv.first().map(|word| word.to_string_lossy()).unwrap_or_default();
    Err(format!("{program} {outcome}"))
}

/// What to do about an end that looks like that of a daemon's parent.
const fn advice(exit: Exit) -> &'static str {
    match exit {
        Exit { kind: ExitKind::Code(0), others, .. } if others.found > 0 => {
            "; it forked into the background: run it in the foreground, or set external: { pid_file: … }"
        }
        _ => "",
    }
}

/// A text with what a program said last.
fn with_output(text: &str, output: &str) -> String {
    match output.trim() {
        "" => text.to_owned(),
        output => format!("{text}: {output}"),
    }
}

/// Resident memory of this process, bytes.
fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The byte that stands for SIGHUP; any other asks us to end.
const HUP: u8 = 1;
const END: u8 = 2;

/// SIGTERM and SIGINT, and SIGHUP, each as readable bytes of a socket.
struct Signals {
    end: Io<UnixStream>,
    hang_up: Io<UnixStream>,
}

fn signals() -> io::Result<Signals> {
    let pair = || {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        io::Result::Ok((Io::new(ours)?, theirs))
    };
    let (end, write_end) = pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGTERM, write_end.try_clone()?)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGINT, write_end)?;
    let (hang_up, write_hang_up) = pair()?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGHUP, write_hang_up)?;
    Ok(Signals { end, hang_up })
}

async fn watch_signals(signals: Signals, inbox: Rc<Inbox>) {
    let watch = async |stream: &Io<UnixStream>, byte: u8| {
        let mut buffer = [0; 16];
        loop {
            let read =
                stream.when_readable(|mut stream| io::Read::read(&mut stream, &mut buffer)).await;
            if read.is_err() {
                return;
            }
            inbox.input(Input::Signal(byte)).await;
        }
    };
    smol::future::zip(watch(&signals.end, END), watch(&signals.hang_up, HUP)).await;
}

/// Where `status_socket` is when nothing says otherwise.
#[must_use]
pub fn default_socket() -> PathBuf {
    PathBuf::from("/run/chiton/status.sock")
}
