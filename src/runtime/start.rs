//! The beginning: from settings and a state directory to a workload that runs and a connection.

use core::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use smol::channel::bounded;

use super::executor::Executor;
use super::external::External;
use super::link::Links;
use super::measure::Measures;
use super::rest::Rest;
use super::{Fatal, Inbox, Runtime, disk, keys, now, reload, socket};
use crate::agent::connection::{Found, Way};
use crate::agent::session::Tone;
use crate::agent::{Agent, Config, Event};
use crate::clock::{self, Now};
use crate::host;
use crate::log::Log;
use crate::notify::Notify;
use crate::settings::{Level, Loaded, Problem};
use crate::store::Store;
use crate::transport::tls::Factory;
use crate::workload::family;
use crate::workload::identity::Identity;

/// Jobs for the disk: the life cycle has one at a time, a uid and a record may come between.
const JOBS: usize = 8;

impl<'a> Runtime<'a> {
    pub(super) fn new(
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
            rest: Rest::new(now.mono),
            give_up_at: None,
            over: false,
        })
    }

    /// Two workloads at once must never be: what a killed predecessor of ours left is ended first.
    pub(super) async fn clear(&mut self) {
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
    pub(super) fn begin(&mut self, bad: Vec<Problem>) {
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
}

/// What the jitter starts from. Nothing secret hangs on it, so early at boot the clock must do.
fn seed(now: Now) -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom(&mut bytes, GetRandomFlags::NONBLOCK);
    u64::from_ne_bytes(bytes) ^ now.wall.unix_nanos() ^ u64::from(std::process::id())
}
