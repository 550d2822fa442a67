//! As `crash.rs`, for a release: a program, what it reads and its configuration, offered together. The real binary is
//! killed before each step that changes the disk, from the first byte fetched to the commit. No workload may ever see a
//! mix, and in the end all three are the new ones, or all three the old.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use chiton_proto::{AgentToServer, Message as _, PackageStatusEnum, ServerToAgent};
use common::packages::{Files, offered, packages, tar_gz, trusted};
use common::{Home, Settings, eventually, is_alive, offer};

const QUICK: &str = "interval: 20ms, successes: 2";
const LONG: &str = "interval: 100ms, successes: 15";
const MOST_STEPS: u64 = 400;

/// What a server that never tires offers, and what it was told last.
struct Tireless {
    address: SocketAddr,
    wanted: Arc<Mutex<Option<ServerToAgent>>>,
    /// Of the wanted packages: all installed, or not.
    told: Arc<Mutex<Option<bool>>>,
}

impl Tireless {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            wanted: Arc::default(),
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

    fn wants(&self, what: &ServerToAgent) {
        *self.wanted.lock().unwrap() = Some(what.clone());
        *self.told.lock().unwrap() = None;
    }

    fn outcome(&self) -> Option<bool> {
        *self.told.lock().unwrap()
    }
}

fn serve(
    mut stream: &TcpStream,
    wanted: &Mutex<Option<ServerToAgent>>,
    told: &Mutex<Option<bool>>,
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
        let mut answer =
            ServerToAgent { instance_uid: report.instance_uid.clone(), ..ServerToAgent::default() };
        let wanted = wanted.lock().unwrap().clone();
        if let (Some(status), Some(wanted)) = (report.package_statuses, wanted) {
            let hash = &wanted.packages_available.as_ref().unwrap().all_packages_hash;
            if status.server_provided_all_packages_hash == *hash {
                let all = |what: PackageStatusEnum| {
                    status.packages.values().any(|it| it.status() == what)
                };
                let over = [
                    PackageStatusEnum::InstallPending,
                    PackageStatusEnum::Downloading,
                    PackageStatusEnum::Installing,
                ];
                if !over.into_iter().any(all) {
                    *told.lock().unwrap() = Some(!all(PackageStatusEnum::InstallFailed));
                }
            } else {
                answer = ServerToAgent { instance_uid: report.instance_uid.clone(), ..wanted };
            }
        }
        let body = answer.encode_to_vec();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), &body].concat())?;
    }
}

/// A device with release 1 committed.
struct Device {
    home: Home,
    server: Tireless,
    files: Files,
    /// By number.
    releases: BTreeMap<u64, ServerToAgent>,
}

impl Device {
    fn new(gate: &str) -> Self {
        let home = Home::new();
        let mut device =
            Self { server: Tireless::new(), files: Files::new(), releases: BTreeMap::new(), home };
        device.release(1, "");
        device.release(2, "");
        device.release(3, "echo 'cannot live like this' >&2; exit 3");
        let settings = Settings {
            server: vec!["poll_interval: 100ms".to_owned()],
            capabilities: vec!["accepts_remote_config", "accepts_packages"],
            command: Some(
                "[\"{package_dir:prog}/prog\", \"{config_file}\", \"{package_dir:rules}/lib/version\"]".to_owned(),
            ),
            opamp: vec![
                format!("remote_config: {{ rollback: {{ window: 10s, {gate} }}, min_interval: 1ms }}"),
                format!("packages: {{ trusted_keys: [{}] }}", trusted(&device.home, 1)),
            ],
            ..Settings::default()
        };
        device.home.settings(&format!("http://{}/v1/opamp", device.server.address), &settings);
        device.server.wants(device.releases.get(&1).unwrap());
        let agent = device.home.start();
        eventually("the old release is installed", || device.server.outcome());
        agent.stop();
        copy(&device.home, "state", "base");
        device
    }

    fn release(&mut self, number: u64, body: &str) {
        let dir = self.home.path("").display().to_string();
        let program = format!(
            "#!/bin/sh\necho \"{number} $(cat $2) $(cat $1)\" > {dir}/.mix && mv {dir}/.mix {dir}/mix.$$\n\
             echo $$ >> {dir}/pids\n{body}\nexec sleep 1000\n"
        );
        let rules = tar_gz(&[
            ("lib/version", format!("{number}").as_bytes(), 0o644),
            ("README", b"rules", 0o644),
        ]);
        let version = number.to_string();
        let prog = offered(&self.files, "prog", &version, number, program.as_bytes());
        let mut rules = offered(&self.files, "rules", &version, number, &rules);
        rules.1.r#type = 1;
        let mut all = packages(b"", &format!("all-{number}"), vec![prog, rules]);
        all.remote_config =
            offer(b"", &format!("c{number}"), &[("c.yaml", &version)]).remote_config;
        self.releases.insert(number, all);
    }

    fn restore(&self) {
        fs::remove_dir_all(self.home.path("state")).unwrap();
        copy(&self.home, "base", "state");
        let _ = fs::remove_file(self.home.path("pids"));
    }

    /// One start that is killed before its n-th step; false: it got through.
    fn is_killed(&self, step: u64, wanted: u64) -> bool {
        self.server.wants(self.releases.get(&wanted).unwrap());
        let agent = self.home.start_with(&[("CHITON_DIE_AT", &step.to_string())]);
        eventually("it dies, or gets through", || {
            if agent.is_over() {
                return Some(true);
            }
            self.server.outcome().map(|_| false)
        })
    }

    fn recovers(&self, wanted: u64, good: bool) {
        self.server.wants(self.releases.get(&wanted).unwrap());
        let agent = self.home.start();
        let outcome = eventually("the release has an outcome", || self.server.outcome());
        assert_eq!(outcome, good, "the log:\n{}", agent.log());
        let number = if good { wanted } else { 1 };
        agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
        let pid = agent.shows("workload.pid", serde_yaml::Value::is_u64).as_i64().unwrap();
        eventually("its pid is noted", || {
            self.home.pids().contains(&i32::try_from(pid).unwrap()).then_some(())
        });
        assert_eq!(self.mix(pid), format!("{number} {number} {number}"));
        for pid in self.home.pids() {
            let mix = self.mix(pid.into());
            assert!(
                ["1 1 1".to_owned(), format!("{wanted} {wanted} {wanted}")].contains(&mix),
                "a mix: {mix}"
            );
            assert_eq!(
                i64::from(pid)
                    == agent.shows("workload.pid", serde_yaml::Value::is_u64).as_i64().unwrap(),
                is_alive(pid)
            );
        }
        agent.stop();
        let running = fs::read_link(self.home.packages().join("current")).unwrap();
        assert!(running.starts_with("sets"), "{}", running.display());
    }

    fn mix(&self, pid: i64) -> String {
        fs::read_to_string(self.home.path(&format!("mix.{pid}"))).unwrap().trim().to_owned()
    }
}

fn copy(home: &Home, from: &str, to: &str) {
    let done = Command::new("cp").arg("-a").arg(home.path(from)).arg(home.path(to)).status();
    assert!(done.unwrap().success());
}

fn killed_at_every_step(wanted: u64, good: bool) {
    let device = Device::new(if good { QUICK } else { LONG });
    for step in 1..MOST_STEPS {
        device.restore();
        let died = device.is_killed(step, wanted);
        device.recovers(wanted, good);
        if !died {
            eprintln!("release {wanted}: killed before each of {} steps", step - 1);
            assert!(step > 60, "a release has more steps");
            return;
        }
    }
    panic!("it never gets through");
}

#[test]
fn killed_at_every_step_of_a_good_release() {
    killed_at_every_step(2, true);
}

#[test]
fn killed_at_every_step_of_a_bad_release() {
    killed_at_every_step(3, false);
}
