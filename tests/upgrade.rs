//! The state of one release, read by another: what 0.1.0 wrote lies in `tests/fixtures/state-0.1.0`, and must be read
//! by whatever comes after it; a state of a release to come must be left as it is by this one, with its workload up.
//!
//! `CHITON_KEEP_STATE=DIR cargo test --test upgrade written_today` keeps what today's binary writes: a release whose
//! state differs adds a directory of its own, and never changes an older one. Paths in it begin with `/proc/self/cwd`,
//! which is the agent's home wherever that lies.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use chiton_proto::{AgentToServer, RemoteConfigStatuses};
use common::authority::Authority;
use common::connection::{Line, certificate, connection, headers};
use common::packages::{Files, offered, packages, trusted};
use common::{Agent, Home, Server, eventually, files_with, is_alive, offer};
use rcgen::date_time_ymd;
use serde_yaml::Value;
use sha2::{Digest as _, Sha256};

/// The package: notes its pid and what it was given, dies of some configurations.
const PROGRAM: &str = "#!/bin/sh\ncp \"$1\" seen.$$\necho $$ >> pids\ngrep -q die \"$1\" && exit 3\nexec sleep 1000\n";
/// Committed, then failed, then on trial when the power was cut.
const COMMITTED: &str = "level: 2\n";
const FAILED: &str = "die: now\n";
const ON_TRIAL: &str = "level: 3\n";
const CERTIFICATE: &str = "gateway-7-from-the-server";
/// Nobody listens there.
const NOWHERE: &str = "ws://127.0.0.1:1/v1/opamp";

fn settings(home: &Home, endpoint: &str) {
    let yaml = format!(
        "opamp:
  server:
    endpoint: {endpoint}
    reconnect: {{ initial: 20ms, max: 100ms }}
  agent: {{ instance_id: gateway-7 }}
  capabilities: {{ accepts_remote_config: true, accepts_packages: true, accepts_opamp_connection_settings: true }}
  workload:
    command: [\"{{package_dir:prog}}/prog\", \"{{config_file}}\"]
    restart: {{ initial: 50ms, max: 100ms }}
  remote_config: {{ rollback: {{ window: 20s, interval: 100ms, successes: 15 }}, min_interval: 1ms }}
  packages: {{ trusted_keys: [/proc/self/cwd/1.pub] }}
  state_dir: /proc/self/cwd/state
  status_socket: /proc/self/cwd/status.sock
"
    );
    fs::write(home.path("chiton.yaml"), yaml).unwrap();
}

/// The binary, at home.
fn at_home(home: &Home, command: &str) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "cd \"$1\" && exec \"$2\" $3 --config /proc/self/cwd/chiton.yaml", "sh"]);
    shell.arg(home.path("")).arg(env!("CARGO_BIN_EXE_chiton")).arg(command);
    shell
}

fn start(home: &Home) -> Agent<'_> {
    home.start_by(at_home(home, "run"))
}

fn status(home: &Home) -> Value {
    let output = at_home(home, "status --json").output().unwrap();
    serde_yaml::from_slice(&output.stdout).unwrap_or_default()
}

/// The text, or the number as text, at a dotted path.
fn at(status: &Value, path: &str) -> String {
    let value = path.split('.').try_fold(status, |at, key| at.get(key));
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// Waits for a status with this text at a dotted path.
fn shows(home: &Home, path: &str, text: &str) -> Value {
    let mut last = Value::Null;
    let fits = || {
        last = status(home);
        (at(&last, path) == text).then(|| last.clone())
    };
    eventually(&format!("{path}: {text}"), fits)
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// What today's binary writes in a life: packages, configurations, a failure, a connection that the server gave, and
/// the power is cut in the midst of a trial.
fn written() -> (Home, String) {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    trusted(&home, 1);
    settings(&home, &server.ws());
    let agent = start(&home);
    let (mut peer, first) = server.greet();
    let uid = first.instance_uid;

    let program = offered(&files, "prog", "1.0", 1, PROGRAM.as_bytes());
    let mut together = packages(&uid, "all-1", vec![program]);
    together.remote_config = offer(&uid, "c1", &[("c.yaml", "level: 1\n")]).remote_config;
    peer.send(&together);
    peer.status("c1", RemoteConfigStatuses::Applied);
    peer.send(&offer(&uid, "c2", &[("c.yaml", COMMITTED)]));
    peer.status("c2", RemoteConfigStatuses::Applied);
    peer.send(&offer(&uid, "c3", &[("c.yaml", FAILED)]));
    peer.status("c3", RemoteConfigStatuses::Failed);

    let clients = Authority::new("clients");
    let (cert, key) =
        clients.issue(CERTIFICATE, |params| params.not_after = date_time_ymd(2999, 1, 1));
    peer.send(&connection("k1", |opamp| {
        opamp.headers = Some(headers(&[("X-Fleet", "north")]));
        opamp.certificate = Some(certificate(&cert, &key, ""));
    }));
    Line::WebSocket(Box::new(peer)).left_for("k1");
    let mut line = Line::WebSocket(Box::new(server.accept()));
    line.applied("k1");

    line.send(&offer(&uid, "c4", &[("c.yaml", ON_TRIAL)]));
    eventually("the trial has begun", || {
        line.until("anything", |_| true);
        (at(&status(&home), "config.gate") == "trial").then_some(())
    });
    let uid = at(&status(&home), "instance_uid");
    // The power is cut.
    drop(agent);
    forget(&home);
    (home, uid)
}

/// Takes away what is no state.
fn forget(home: &Home) {
    for pid in home.pids() {
        eventually("the workload ends with its agent", || (!is_alive(pid)).then_some(()));
        let _ = fs::remove_file(home.path(&format!("seen.{pid}")));
    }
    for name in ["pids", "status.sock", "state/lock", "workload.sh"] {
        let _ = fs::remove_file(home.path(name));
    }
}

fn copy(from: &Path, to: &Path) {
    let from = from.join(".");
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A home with what 0.1.0 left.
fn of_0_1_0() -> Home {
    let home = Home::new();
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state-0.1.0");
    copy(&kept, &home.path(""));
    forget(&home);
    home
}

/// The configurations that ran, in order.
fn ran(home: &Home) -> Vec<String> {
    home.pids().into_iter().map(|pid| home.seen(pid)).collect()
}

/// All of that state is in force: first with no server, then with one.
fn is_in_force(home: &Home, uid: &str) {
    settings(home, NOWHERE);
    let agent = start(home);
    // What was committed runs first; the trial that was cut off is repeated, and holds.
    let before = shows(home, "config.generation", "4");
    let text = agent.log();
    assert_eq!(at(&before, "instance_uid"), uid, "{text}");
    assert_eq!(ran(home), [COMMITTED, ON_TRIAL], "{text}");
    assert_eq!(at(&before, "config.hash"), hex("c4"));
    assert_eq!(at(&before, "config.status"), "APPLIED");
    assert_eq!(at(&before, "certificate.common_name"), "rcgen self signed cert");
    assert_eq!(at(&before, "connection.settings.source"), "offered");
    assert_eq!(at(&before, "connection.settings.hash"), hex("k1"));
    assert_eq!(at(&before, "connection.settings.status"), "APPLIED");
    assert_eq!(before.get("problems"), Some(&Value::Sequence(Vec::new())));
    let package = before.get("packages").and_then(|list| list.get(0)).unwrap();
    assert_eq!((at(package, "name"), at(package, "version")), ("prog".into(), "1.0".into()));
    assert_eq!(at(package, "status"), "installed");
    agent.stop();

    let server = Server::new();
    settings(home, &server.ws());
    let agent = start(home);
    let (mut peer, first) = server.greet();
    assert!(peer.request.contains("X-Fleet: north"), "{}", peer.request);
    knows_what_it_did(&first);
    // What failed is not tried again.
    peer.send(&offer(&first.instance_uid, "c3-again", &[("c.yaml", FAILED)]));
    let told = peer.status("c3-again", RemoteConfigStatuses::Failed);
    assert!(told.error_message.contains("exited with status 3"), "{told:?}");
    assert_eq!(ran(home), [COMMITTED, ON_TRIAL, ON_TRIAL], "{}", agent.log());
    agent.stop_with(peer);
    // The settings that were good are, whatever became of the file.
    fs::write(home.path("chiton.yaml"), "opamp: {\n  state_dir: /proc/self/cwd/state\n").unwrap();
    let agent = start(home);
    agent.logs(&["the last good settings are in force"]);
    assert_eq!(home.seen(home.workload(4)), ON_TRIAL);
    server.accept();
}

fn knows_what_it_did(first: &AgentToServer) {
    let config = first.remote_config_status.clone().unwrap();
    assert_eq!(config.last_remote_config_hash, "c4".as_bytes());
    let offers = first.connection_settings_status.clone().unwrap();
    assert_eq!(offers.last_connection_settings_hash, "k1".as_bytes());
    let packages = first.package_statuses.clone().unwrap();
    assert_eq!(packages.server_provided_all_packages_hash, "all-1");
}

#[test]
fn what_0_1_0_wrote_is_read_by_this_one() {
    let home = of_0_1_0();
    let uid = fs::read_to_string(home.path("uid")).unwrap();
    is_in_force(&home, uid.trim());
}

#[test]
fn what_is_written_today_is_read_today() {
    let (home, uid) = written();
    if let Some(keep) = std::env::var_os("CHITON_KEEP_STATE").map(PathBuf::from) {
        fs::create_dir_all(&keep).unwrap();
        settings(&home, NOWHERE);
        fs::write(home.path("uid"), format!("{uid}\n")).unwrap();
        copy(&home.path(""), &keep);
    }
    is_in_force(&home, &uid);
}

/// A record as a release of a later format writes it: another number, and the digest is over that too.
fn raise(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let payload = bytes.strip_prefix(b"chiton1\n").unwrap().split_at(32).1;
    let later = [b"chiton2\n", payload].concat();
    let sealed = [b"chiton2\n".as_slice(), &Sha256::digest(&later), payload].concat();
    fs::write(path, sealed).unwrap();
}

/// All that lies there, with what links point at.
fn everything(home: &Home) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut todo = vec![home.path("state")];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(path, target.into_os_string().into_encoded_bytes());
            } else if path.is_dir() {
                todo.push(path);
            } else if path.file_name().unwrap() != "lock" {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    found
}

/// The state of a release to come, of which these records have another format: what was committed runs, and nothing
/// that lies there is changed, whatever a server wants.
fn is_left_alone(which: &[&str]) {
    let home = of_0_1_0();
    let records = files_with(&home.path("state"), "chiton1\n");
    assert!(records.len() >= 10, "{records:?}");
    for record in &records {
        let name = record.strip_prefix(home.path("state")).unwrap().to_str().unwrap();
        if which.is_empty() || which.contains(&name) {
            raise(record);
        }
    }
    let server = Server::new();
    settings(&home, &server.ws());
    let recovered = at_home(&home, "recover").output().unwrap();
    let text = String::from_utf8(recovered.stderr).unwrap();
    assert_eq!(recovered.status.code(), Some(1), "{text}");
    assert!(text.contains("newer Chiton") && text.contains("format 2"), "{text}");
    // The one thing that is done: an interrupted trial does not run untested.
    let before = everything(&home);
    let config = home.path("state/workloads/default/config");
    assert_eq!(fs::read_link(&config).unwrap(), Path::new("generations/2"));

    let agent = start(&home);
    let (mut peer, first) = server.greet();
    assert_eq!(home.seen(home.workload(1)), COMMITTED);
    peer.send(&offer(&first.instance_uid, "c9", &[("c.yaml", "level: 9\n")]));
    let told = peer.status("c9", RemoteConfigStatuses::Failed);
    assert!(told.error_message.contains("newer Chiton"), "{told:?}");
    peer.send(&connection("k9", |opamp| opamp.headers = Some(headers(&[("X-Fleet", "south")]))));
    peer.proves_to_work(&first.instance_uid);
    let said = at_home(&home, "status").output().unwrap();
    assert_eq!(said.status.code(), Some(1));
    assert!(String::from_utf8(said.stdout).unwrap().contains("newer Chiton"));
    assert_eq!(ran(&home), [COMMITTED], "{}", agent.log());
    agent.stop_with(peer);
    let after = everything(&home);
    for (path, contents) in &before {
        assert_eq!(after.get(path), Some(contents), "{}", path.display());
    }
    assert_eq!(after.len(), before.len(), "{:?}", after.keys());
}

#[test]
fn the_state_of_a_release_to_come_is_left_as_it_is() {
    is_left_alone(&[]);
}

#[test]
fn one_record_of_a_release_to_come_is_enough() {
    is_left_alone(&["workloads/default/record"]);
    is_left_alone(&["instance_uid"]);
    is_left_alone(&["connection/record"]);
    is_left_alone(&["workloads/default/generations/2.set"]);
    is_left_alone(&["packages/sets/1.set"]);
}
