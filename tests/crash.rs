//! The real binary, killed before each step that changes the disk during one change of configuration: once, twice,
//! and at every start for ten starts. Then left alone, it must end with the new configuration or with the old one, a
//! healthy workload, and a report that says which.
//!
//! `CHITON_DIE_AT=n` (debug builds only) is SIGKILL before the n-th such step of a process.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use chiton_proto::{AgentToServer, Message as _, RemoteConfigStatuses, ServerToAgent};
use common::{Agent, Home, Settings, eventually, is_alive, offer};

/// A gate that is quick where it passes, and has time on a slow machine.
const QUICK: &str = "interval: 20ms, successes: 2";
/// A gate in which even a slow machine's workload has time to die.
const LONG: &str = "interval: 100ms, successes: 20";
const OLD: (&str, &str) = ("h1", "level: 1\n");
const GOOD: (&str, &str) = ("h2", "level: 2\n");
/// The workload dies of it.
const BAD: (&str, &str) = ("h3", "die: now\n");
/// Trials that may be interrupted.
const ATTEMPTS: usize = 3;
/// More steps than any change takes: beyond it, the test itself is wrong.
const MOST_STEPS: u64 = 200;

/// A server that never tires: it offers what it wants to whoever runs something else. Whoever calls may die at any
/// time.
struct Tireless {
    address: SocketAddr,
    wanted: Arc<Mutex<(&'static str, &'static str)>>,
    told: Arc<Mutex<Told>>,
}

/// Hash and status that were last reported.
type Told = Option<(Vec<u8>, RemoteConfigStatuses)>;

impl Tireless {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            wanted: Arc::new(Mutex::new(OLD)),
            told: Arc::default(),
        };
        let (wanted, told) = (Arc::clone(&server.wanted), Arc::clone(&server.told));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (wanted, told) = (Arc::clone(&wanted), Arc::clone(&told));
                // What ends a connection is the agent's death.
                thread::spawn(move || serve(&stream.unwrap(), &wanted, &told).unwrap_or_default());
            }
        });
        server
    }

    fn wants(&self, what: (&'static str, &'static str)) {
        *self.wanted.lock().unwrap() = what;
        *self.told.lock().unwrap() = None;
    }

    /// The outcome of this hash, once there is one.
    fn outcome(&self, hash: &str) -> Option<RemoteConfigStatuses> {
        let told = self.told.lock().unwrap();
        let (of, status) = told.as_ref()?;
        let over = matches!(status, RemoteConfigStatuses::Applied | RemoteConfigStatuses::Failed);
        (of == hash.as_bytes() && over).then_some(*status)
    }
}

fn serve(
    mut stream: &TcpStream,
    wanted: &Mutex<(&'static str, &'static str)>,
    told: &Mutex<Told>,
) -> io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body)?;
        if head.contains("content-encoding") {
            stream.write_all(b"HTTP/1.1 415 No gzip here\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        }
        let report = AgentToServer::decode(body.as_slice()).unwrap();
        let (hash, file) = *wanted.lock().unwrap();
        let mut answer =
            ServerToAgent { instance_uid: report.instance_uid.clone(), ..ServerToAgent::default() };
        if let Some(status) = report.remote_config_status {
            if status.last_remote_config_hash != hash.as_bytes() {
                answer = offer(&report.instance_uid, hash, &[("config.yaml", file)]);
            }
            let known = (status.last_remote_config_hash.to_vec(), status.status());
            *told.lock().unwrap() = Some(known);
        }
        let body = answer.encode_to_vec();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat())?;
    }
}

/// A device with the old configuration committed.
struct Device {
    home: Home,
    server: Tireless,
}

impl Device {
    fn new(gate: &str) -> Self {
        let (home, server) = (Home::new(), Tireless::new());
        home.script(
            "if grep -q 'die: now' \"$1\"; then echo 'cannot live like this' >&2; exit 3; fi",
        );
        let settings = Settings {
            server: vec!["poll_interval: 100ms".to_owned()],
            capabilities: vec!["accepts_remote_config"],
            arguments: vec!["{config_file}"],
            opamp: vec![format!(
                "remote_config: {{ rollback: {{ window: 10s, {gate}, attempts: {ATTEMPTS} }}, \
                 min_interval: 1ms }}"
            )],
            ..Settings::default()
        };
        home.settings(&format!("http://{}/v1/opamp", server.address), &settings);
        let agent = home.start();
        eventually("the old configuration is applied", || server.outcome(OLD.0));
        agent.stop();
        copy(&home, "state", "base");
        Self { home, server }
    }

    /// As it was before the change.
    fn restore(&self) {
        fs::remove_dir_all(self.home.path("state")).unwrap();
        copy(&self.home, "base", "state");
        fs::remove_file(self.home.path("pids")).unwrap();
    }

    /// One start that is killed before its n-th step; false: it got through.
    fn is_killed(&self, step: u64, wanted: (&'static str, &'static str)) -> bool {
        self.server.wants(wanted);
        let agent = self.home.start_with(&[("CHITON_DIE_AT", &step.to_string())]);
        eventually("it dies, or gets through", || {
            if agent.is_over() {
                return Some(true);
            }
            self.server.outcome(wanted.0).map(|_| false)
        })
    }

    /// Left alone, it ends well.
    fn recovers(&self, wanted: (&'static str, &'static str), may_give_up: bool) {
        self.server.wants(wanted);
        let agent = self.home.start();
        let status = eventually("the change has an outcome", || self.server.outcome(wanted.0));
        let good = status == RemoteConfigStatuses::Applied;
        assert!(good || wanted == BAD || may_give_up, "given up:\n{}", agent.log());
        assert!(!good || wanted != BAD, "what cannot run is APPLIED");
        if !good && wanted != BAD {
            let pids = self.home.pids();
            let tried = pids.iter().filter(|pid| self.home.seen(**pid) == wanted.1).count();
            assert!(tried <= ATTEMPTS, "tried {tried} times");
        }
        self.runs(&agent, if good { wanted.1 } else { OLD.1 });
        agent.stop();
    }

    /// One healthy workload, with this configuration.
    fn runs(&self, agent: &Agent<'_>, body: &str) {
        agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
        let pid = agent.shows("workload.pid", serde_yaml::Value::is_u64).as_i64().unwrap();
        let pid = i32::try_from(pid).unwrap();
        eventually("it has read its configuration", || (self.home.seen(pid) == body).then_some(()));
        // It notes its pid after it has read.
        let pids = eventually("its pid is noted", || {
            Some(self.home.pids()).filter(|pids| pids.contains(&pid))
        });
        let alive: Vec<i32> = pids.into_iter().filter(|pid| is_alive(*pid)).collect();
        assert_eq!(alive, [pid], "one workload");
    }
}

fn copy(home: &Home, from: &str, to: &str) {
    let done = Command::new("cp").arg("-a").arg(home.path(from)).arg(home.path(to)).status();
    assert!(done.unwrap().success());
}

/// Kills it at each step in turn, `times` times each. How many steps there were.
fn killed_at_every_step(
    wanted: (&'static str, &'static str),
    times: u32,
    may_give_up: bool,
) -> u64 {
    let device = Device::new(if wanted == BAD { LONG } else { QUICK });
    for step in 1..MOST_STEPS {
        device.restore();
        let mut deaths = 0;
        for _ in 0..times {
            deaths += u32::from(device.is_killed(step, wanted));
        }
        device.recovers(wanted, may_give_up);
        if deaths == 0 {
            eprintln!("{}: killed {times} times before each of {} steps", wanted.0, step - 1);
            return step - 1;
        }
    }
    panic!("it never gets through");
}

#[test]
fn killed_once_at_every_step_of_a_good_change() {
    assert!(killed_at_every_step(GOOD, 1, false) > 20, "a change has more steps");
}

#[test]
fn killed_once_at_every_step_of_a_bad_change() {
    assert!(killed_at_every_step(BAD, 1, false) > 20, "a change has more steps");
}

#[test]
fn killed_twice_at_every_step() {
    killed_at_every_step(GOOD, 2, false);
}

/// The loop breaker: after three interrupted trials it may give up, and must not try for ever.
#[test]
fn killed_at_every_start_for_ten_starts() {
    killed_at_every_step(GOOD, 10, true);
}
