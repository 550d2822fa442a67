//! Remote configuration from outside: what is offered, what is reported, what runs, what is on the disk.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;
use std::time::{Duration, Instant};

use chiton_proto::{AgentToServer, RemoteConfigStatuses, ServerToAgent};
use common::{
    Agent, Home, Peer, Server, Settings, WINDOW, eventually, files_with, is_alive, offer, read_head,
};

use rustix::process::{Pid, Signal, kill_process};

use RemoteConfigStatuses::{Applied, Applying, Failed};

/// A gate that is quick where it passes, and has time on a slow machine.
const GATE: &str = "rollback: { window: 10s, interval: 20ms, successes: 2 }";
/// A gate in which even a slow machine's workload has time to die.
const LONG_GATE: &str = "rollback: { window: 10s, interval: 100ms, successes: 15 }";

/// The workload reads its configuration and dies of one that says so.
fn home() -> Home {
    let home = Home::new();
    home.script("if grep -q 'die: now' \"$1\"; then echo 'cannot live like this' >&2; exit 3; fi");
    home
}

/// `more` are entries of `remote_config`.
fn settings(more: &[&str]) -> Settings {
    gated(GATE, more)
}

fn gated(gate: &str, more: &[&str]) -> Settings {
    let mut entries = vec![gate, "min_interval: 1ms"];
    entries.extend(more);
    Settings {
        capabilities: vec!["accepts_remote_config"],
        arguments: vec!["{config_file}"],
        opamp: vec![format!("remote_config: {{ {} }}", entries.join(", "))],
        ..Settings::default()
    }
}

/// With a local file of this content.
fn with_local(home: &Home, mut settings: Settings, content: &str) -> Settings {
    let path = home.path("local.yaml");
    fs::write(&path, content).unwrap();
    settings.opamp.push(format!("local_config_path: {}", path.display()));
    settings
}

fn connected<'a>(
    home: &'a Home,
    server: &Server,
    settings: &Settings,
) -> (Agent<'a>, Peer, AgentToServer) {
    home.settings(&server.ws(), settings);
    let agent = home.start();
    let (peer, first) = server.greet();
    (agent, peer, first)
}

/// Offers one file and waits until it is committed.
fn commit(peer: &mut Peer, uid: &[u8], hash: &str, body: &str) {
    peer.send(&offer(uid, hash, &[("config.yaml", body)]));
    peer.status(hash, Applied);
}

/// Names in the state directory, at every depth.
fn listing(home: &Home) -> Vec<String> {
    let mut names: Vec<String> = files_with(&home.path("state"), "")
        .into_iter()
        .map(|path| path.display().to_string())
        .collect();
    names.sort();
    names
}

#[test]
fn an_offer_is_applying_then_applied_and_the_workload_runs_with_it() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    peer.send(&offer(uid, "h1", &[("config.yaml", "level: 1\n")]));
    peer.status("h1", Applying);
    let status = peer.status("h1", Applied);
    assert_eq!(status.error_message, "");
    let pid = home.workload(1);
    assert_eq!(home.seen(pid), "level: 1\n");
    agent.shows("workload.pid", |shown| shown.as_i64() == Some(pid.into()));
    agent.tells("config.status", &["APPLIED"]);
    agent.tells("config.hash", &["6831"]);
    let full = peer.proves_to_work(uid);
    let map = full.effective_config.unwrap().config_map.unwrap().config_map;
    assert_eq!(map["config.yaml"].body.as_ref(), b"level: 1\n");
    agent.stop_with(peer);
}

/// What failed is not tried again whatever the server repeats; after `chiton retry` it is.
#[test]
fn a_failure_is_remembered_until_a_person_says_retry() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    peer.send(&offer(uid, "h2", &[("config.yaml", "die: now\n")]));
    assert!(peer.status("h2", Failed).error_message.contains("cannot live like this"));
    home.workload(3);
    commit(&mut peer, uid, "h1", "level: 1\n");
    // The same contents, by its hash and by another.
    for hash in ["h2", "h3"] {
        peer.send(&offer(uid, hash, &[("config.yaml", "die: now\n")]));
        assert!(peer.status(hash, Failed).error_message.contains("cannot live like this"));
    }
    assert_eq!(home.pids().len(), 3, "it was not tried again");
    // What is now wrong is not the configuration: say, a port that was taken.
    home.script("");
    let output = home.chiton("retry", &["7777"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("nothing that failed"));
    let output = home.chiton("retry", &[]);
    assert!(String::from_utf8_lossy(&output.stdout).contains("forgot 1"), "{output:?}");
    peer.send(&offer(uid, "h3", &[("config.yaml", "die: now\n")]));
    peer.status("h3", Applied);
    agent.stop_with(peer);
    assert_eq!(home.chiton("retry", &[]).status.code(), Some(3), "nobody runs");
}

/// Between two trials is `min_interval`; what would change nothing does not wait.
#[test]
fn trials_keep_their_distance() {
    let (home, server) = (home(), Server::new());
    let mut paced = settings(&[]);
    paced.opamp = vec![format!("remote_config: {{ {GATE}, min_interval: 2s }}")];
    let (agent, mut peer, first) = connected(&home, &server, &paced);
    let uid = &first.instance_uid;
    let begun = Instant::now();
    commit(&mut peer, uid, "h1", "level: 1\n");
    commit(&mut peer, uid, "h1 again", "level: 1\n");
    assert!(begun.elapsed() < Duration::from_secs(2), "equal contents wait for nothing");
    for (hash, body) in [("h2", "level: 2\n"), ("h3", "level: 3\n")] {
        peer.send(&offer(uid, hash, &[("config.yaml", body)]));
        peer.status(hash, Applying);
    }
    peer.status("h3", Applied);
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    let seen: Vec<String> = home.pids().into_iter().map(|pid| home.seen(pid)).collect();
    assert_eq!(seen, ["level: 1\n", "level: 3\n"], "the newest wins, the one before never ran");
    agent.stop_with(peer);
}

/// A newer offer ends a trial: the old runs between, and the newest wins.
#[test]
fn a_newer_offer_supersedes_a_trial() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &gated(LONG_GATE, &[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    peer.send(&offer(uid, "h2", &[("config.yaml", "level: 2\n")]));
    agent.tells("config.gate", &["trial"]);
    assert_eq!(home.seen(home.workload(2)), "level: 2\n");
    commit(&mut peer, uid, "h3", "level: 3\n");
    let seen: Vec<String> = home.pids().into_iter().map(|pid| home.seen(pid)).collect();
    assert_eq!(seen, ["level: 1\n", "level: 2\n", "level: 1\n", "level: 3\n"]);
    // It was not judged: offered again, it is tried.
    commit(&mut peer, uid, "h2", "level: 2\n");
    agent.stop_with(peer);
}

/// N5: it passes the gate and dies later, again and again: it goes back, once, and stays there.
#[test]
fn a_configuration_that_crash_loops_after_its_commit_goes_back_once() {
    let (home, server) = (home(), Server::new());
    home.script("if grep -q 'die: later' \"$1\"; then while [ ! -e \"$0.die\" ]; do sleep 0.01; done; exit 3; fi");
    let gate = "rollback: { window: 10s, interval: 20ms, successes: 2, crash_loop: { crashes: 3, within: 10m } }";
    let (agent, mut peer, first) = connected(&home, &server, &gated(gate, &[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    commit(&mut peer, uid, "h2", "die: later\n");
    fs::write(home.path("workload.sh.die"), "").unwrap();
    let status = peer.status("h2", Failed);
    assert!(status.error_message.contains("crashed 3 times"), "{}", status.error_message);
    assert_eq!(home.seen(home.workload(5)), "level: 1\n");
    let seen: Vec<String> = home.pids().into_iter().map(|pid| home.seen(pid)).collect();
    assert_eq!(seen.iter().filter(|seen| *seen == "die: later\n").count(), 3);
    // What it went back to has nothing behind it: crashes do not move it any more.
    for _ in 0..4 {
        let pid = *home.pids().last().unwrap();
        let count = home.pids().len();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        assert_eq!(home.seen(home.workload(count + 1)), "level: 1\n");
    }
    peer.send(&offer(uid, "h2 again", &[("config.yaml", "die: later\n")]));
    peer.status("h2 again", Failed);
    agent.stop_with(peer);
}

/// The device's own rule: what crash-loops runs with a smaller configuration, which is told, and the next offer
/// comes through its gate as ever.
#[test]
fn a_crash_loop_degrades_to_a_configuration_of_the_devices_own() {
    let (home, server) = (home(), Server::new());
    home.script("if grep -q 'level: 1' \"$1\" && [ -e \"$0.die\" ]; then exit 3; fi");
    fs::write(home.path("small.yaml"), "small: 1\n").unwrap();
    let gate = "rollback: { window: 10s, interval: 20ms, successes: 2, crash_loop: { crashes: 3, within: 10m } }";
    let mut own = gated(gate, &[]);
    let rule = format!("{{ use: {} }}", home.path("small.yaml").display());
    own.workload.push(format!("degrade: [{{ when: crash_loop, do: {rule}, cooldown: 1h }}]"));
    let (agent, mut peer, first) = connected(&home, &server, &own);
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    fs::write(home.path("workload.sh.die"), "").unwrap();
    kill_process(Pid::from_raw(home.workload(1)).unwrap(), Signal::KILL).unwrap();
    let told = peer.until("what was done", |report| {
        let health = report.health.as_ref();
        health.is_some_and(|health| health.component_health_map.contains_key("degrade"))
    });
    let degraded = &told.health.unwrap().component_health_map["degrade"];
    assert!(degraded.status.contains("small.yaml"), "{degraded:?}");
    assert!(degraded.status.contains("crashed 3 times"), "{degraded:?}");
    assert_eq!(home.seen(home.workload(4)), "small: 1\n");
    agent.tells("config.status", &["APPLIED"]);
    let map = peer.proves_to_work(uid).effective_config.unwrap().config_map.unwrap().config_map;
    assert_eq!(map["small.yaml"].body.as_ref(), b"small: 1\n", "what runs is what is told");
    fs::remove_file(home.path("workload.sh.die")).unwrap();
    // The same contents again are no news to the record, but they do not run.
    commit(&mut peer, uid, "h1 again", "level: 1\n");
    assert_eq!(home.seen(home.workload(5)), "level: 1\n");
    agent.stop_with(peer);
}

/// A record that cannot be read is told and kept aside, and never taken for "nothing is committed".
#[test]
fn a_broken_record_is_reported_and_what_ran_runs() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    commit(&mut peer, &first.instance_uid, "h1", "level: 1\n");
    agent.stop_with(peer);
    let record = home.path("state/workloads/default/record");
    let mut bytes = fs::read(&record).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&record, &bytes).unwrap();
    let agent = home.start();
    let (peer, _) = server.greet();
    agent.logs(&["ERROR", "record: its checksum is wrong", "generation 1"]);
    assert_eq!(home.seen(home.workload(2)), "level: 1\n");
    assert_eq!(fs::read(record.with_extension("broken")).unwrap(), bytes);
    agent.stop_with(peer);
}

/// opamp-spec L456: what is over the limit is not sent, and that is recorded; the rest of the report still goes.
#[test]
fn an_effective_config_over_the_limit_is_left_out_and_said() {
    let (home, server) = (home(), Server::new());
    let mut settings =
        with_local(&home, settings(&[]), &format!("large: {}\n", "x".repeat(32 << 10)));
    settings.server.push("max_message_size: 8KiB".to_owned());
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = first.instance_uid.clone();
    peer.send(&offer(&uid, "h1", &[("extra.yaml", "level: 1\n")]));
    peer.status("h1", Applied);
    let full = peer.proves_to_work(&uid);
    assert!(full.effective_config.is_none(), "it cannot fit into a message");
    assert!(full.health.is_some() && full.agent_description.is_some());
    agent.logs(&["effective config is not reported", "max_message_size (8192)"]);
    agent.stop_with(peer);
}

#[test]
fn a_set_with_a_bad_name_is_refused_as_a_whole_and_nothing_is_written() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "good", "level: 1\n");
    let pid = home.workload(1);
    let before = listing(&home);
    let long = "x".repeat(300);
    let names = [
        ("../escaped", "\"../escaped\""),
        ("/escaped", "\"/escaped\""),
        ("a/../../escaped", "/"),
        ("a\\escaped", "\\"),
        ("nul\0escaped", "control"),
        (".", "directory"),
        ("..", "directory"),
        (long.as_str(), "255"),
        (".chiton-escaped", "Chiton's own"),
        ("CONFIG.yaml", "config.yaml"),
    ];
    for (number, (name, word)) in names.into_iter().enumerate() {
        let hash = format!("bad-{number}");
        peer.send(&offer(uid, &hash, &[("config.yaml", "level: 2\n"), (name, "escaped: 1\n")]));
        let status = peer.status(&hash, Failed);
        assert!(status.error_message.contains(word), "{name:?}: {}", status.error_message);
    }
    // The record of the last refusal may still be on its way to the disk, under its temporary name.
    eventually("only what was there", || (listing(&home) == before).then_some(()));
    assert!(
        !home.path("escaped").exists() && files_with(&home.path("state"), "escaped: 1").is_empty()
    );
    assert_eq!(home.pids(), [pid]);
    agent.stop_with(peer);
}

#[test]
fn a_symlink_that_is_there_already_is_not_followed() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    commit(&mut peer, &first.instance_uid, "h1", "level: 1\n");
    fs::write(home.path("victim"), "untouched").unwrap();
    let generations = home.path("state/workloads/default/generations");
    let numbers = || {
        let entries = fs::read_dir(&generations).unwrap();
        entries.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u64>().ok()).max()
    };
    let next = numbers().unwrap() + 1;
    symlink(home.path("victim"), generations.join(next.to_string())).unwrap();
    peer.send(&offer(&first.instance_uid, "h2", &[("config.yaml", "level: 2\n")]));
    peer.until("an outcome", |report| {
        report.remote_config_status.as_ref().is_some_and(|status| {
            status.last_remote_config_hash == b"h2".as_slice() && status.status() != Applying
        })
    });
    assert_eq!(fs::read_to_string(home.path("victim")).unwrap(), "untouched");
    agent.stop_with(peer);
}

#[test]
fn what_the_dry_run_refuses_never_touches_the_workload() {
    let (home, server) = (home(), Server::new());
    let validate = home.path("validate.sh");
    fs::write(
        &validate,
        "if grep -q 'level: 2' \"$1\"; then echo 'level 2 is out of range'; exit 4; fi\n",
    )
    .unwrap();
    let validate = format!("validate: [/bin/sh, {}, \"{{config_file}}\"]", validate.display());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[&validate]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    let pid = home.workload(1);
    peer.send(&offer(uid, "h2", &[("config.yaml", "level: 2\n")]));
    let status = peer.status("h2", Failed);
    assert!(status.error_message.contains("level 2 is out of range"), "{status:?}");
    assert!(status.error_message.contains("/bin/sh"), "{status:?}");
    agent.tells("config.error", &["level 2 is out of range"]);
    agent.tells("config.source", &["remote"]);
    agent.unharmed();
    assert_eq!(home.seen(pid), "level: 1\n");
    agent.stop_with(peer);
}

#[test]
fn a_config_that_kills_the_workload_is_rolled_back() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &gated(LONG_GATE, &[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    peer.send(&offer(uid, "h2", &[("config.yaml", "die: now\n")]));
    let status = peer.status("h2", Failed);
    assert!(status.error_message.contains("cannot live like this"), "{status:?}");
    agent.logs(&["WARN", "rolling back", "3"]);
    let pid = home.workload(3);
    agent.shows("workload.pid", |shown| shown.as_i64() == Some(pid.into()));
    assert_eq!(home.seen(pid), "level: 1\n");
    let effective = peer.proves_to_work(uid).effective_config.unwrap().config_map.unwrap();
    assert_eq!(effective.config_map["config.yaml"].body.as_ref(), b"level: 1\n");

    // Another one, then the failed one again: FAILED at once, with the reason of then.
    commit(&mut peer, uid, "h1", "level: 1\n");
    let started = home.pids().len();
    peer.send(&offer(uid, "h2", &[("config.yaml", "die: now\n")]));
    let again = peer.status("h2", Failed);
    assert_eq!(again.error_message, status.error_message);
    assert_eq!(home.pids().len(), started, "it was tried again");

    // Also under another hash, and after a restart.
    peer.send(&offer(uid, "h3", &[("config.yaml", "die: now\n")]));
    assert_eq!(peer.status("h3", Failed).error_message, status.error_message);
    agent.stop_with(peer);
    let agent = home.start();
    let (mut peer, first) = server.greet();
    let stored = first.remote_config_status.unwrap();
    assert_eq!((stored.last_remote_config_hash.as_ref(), stored.status()), (&b"h3"[..], Failed));
    assert_eq!(stored.error_message, status.error_message);
    peer.send(&offer(uid, "h2", &[("config.yaml", "die: now\n")]));
    assert_eq!(peer.status("h2", Failed).error_message, status.error_message);
    let pid = home.workload(started + 1);
    assert_eq!(home.seen(pid), "level: 1\n");
    agent.shows("workload.pid", |shown| shown.as_i64() == Some(pid.into()));
    agent.stop_with(peer);
}

/// An HTTP server that says 200 or 500.
fn serve_health(is_healthy: impl Fn() -> bool + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = read_head(&mut stream);
            let status = if is_healthy() { "200 OK" } else { "500 Sick" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        }
    });
    address
}

#[test]
fn a_failed_check_rolls_back_too() {
    let (home, server) = (home(), Server::new());
    let running = home.path("state/workloads/default/config/config.yaml");
    let health = serve_health(move || {
        fs::read_to_string(&running).is_ok_and(|config| !config.contains("sick"))
    });
    let mut wanted = settings(&[]);
    wanted.opamp = vec![
        "remote_config: { rollback: { window: 1s, interval: 20ms, successes: 2 }, min_interval: 1ms }"
            .to_owned(),
        format!("health: {{ checks: [ {{ http: \"http://{health}/\" }} ] }}"),
    ];
    let (agent, mut peer, first) = connected(&home, &server, &wanted);
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    peer.send(&offer(uid, "h2", &[("config.yaml", "sick: true\n")]));
    let status = peer.status("h2", Failed);
    for word in ["not healthy within 1s", "check", "500"] {
        assert!(status.error_message.contains(word), "{status:?}");
    }
    let pid = home.workload(3);
    assert_eq!(home.seen(pid), "level: 1\n");
    agent.stop_with(peer);
}

#[test]
fn the_same_hash_again_is_nothing_new() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    agent.settled(&mut peer, uid);
    for _ in 0..3 {
        peer.send(&offer(uid, "h1", &[("config.yaml", "level: 1\n")]));
    }
    peer.quiet_for(WINDOW);
    agent.unharmed();
    agent.stop_with(peer);
}

#[test]
fn the_same_contents_under_a_new_hash_are_applied_without_a_restart() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    commit(&mut peer, uid, "h2", "level: 1\n");
    agent.unharmed();
    agent.tells("config.hash", &["6832"]);
    agent.stop_with(peer);
}

#[test]
fn an_offer_with_nothing_in_it_is_refused_where_no_local_file_is() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    peer.send(&offer(uid, "h2", &[("", "")]));
    let status = peer.status("h2", Failed);
    assert!(status.error_message.contains("empty config"), "{status:?}");
    agent.unharmed();
    agent.stop_with(peer);
}

#[test]
fn the_newest_of_ten_offers_in_a_row_wins() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    for number in 0..10 {
        let body = format!("level: {number}\n");
        peer.send(&offer(uid, &format!("h{number}"), &[("config.yaml", &body)]));
    }
    peer.status("h9", Applied);
    let pid = agent.shows("workload.pid", serde_yaml::Value::is_i64).as_i64().unwrap();
    let pid = i32::try_from(pid).unwrap();
    assert_eq!(home.seen(pid), "level: 9\n");
    assert!(home.pids().iter().all(|other| *other == pid || !is_alive(*other)));
    agent.stop_with(peer);
}

#[test]
fn after_a_restart_the_committed_config_runs_with_no_server() {
    let (home, server) = (home(), Server::new());
    let wanted = with_local(&home, settings(&[]), "local: 1\n");
    let (agent, mut peer, first) = connected(&home, &server, &wanted);
    let uid = first.instance_uid;
    commit(&mut peer, &uid, "h1", "level: 1\n");
    let started = home.pids().len();
    agent.stop_with(peer);

    // Nobody listens there.
    home.settings("ws://127.0.0.1:1/v1/opamp", &wanted);
    let agent = home.start();
    let pid = home.workload(started + 1);
    assert_eq!(home.seen(pid), "local: 1\nlevel: 1\n");
    agent.logs(&["127.0.0.1:1", "refused"]);
    agent.tells("config.status", &["APPLIED"]);
    agent.stop();

    home.settings(&server.ws(), &wanted);
    let agent = home.start();
    let (peer, first) = server.greet();
    let status = first.remote_config_status.clone().unwrap();
    assert_eq!((status.last_remote_config_hash.as_ref(), status.status()), (&b"h1"[..], Applied));
    assert_eq!(first.instance_uid, uid);
    agent.stop_with(peer);
}

#[test]
fn the_local_file_runs_at_once_and_lies_beneath_what_is_offered() {
    let (home, server) = (home(), Server::new());
    let local = "receivers:\n  local: 1\nlist: [1, 2]\nkept: true\n";
    let wanted = with_local(&home, settings(&[]), local);
    home.settings(&server.ws(), &wanted);
    let agent = home.start();
    // Before anything is heard from the server.
    let pid = home.workload(1);
    assert_eq!(home.seen(pid), local);
    let (mut peer, first) = server.greet();
    let uid = &first.instance_uid;
    peer.send(&offer(uid, "h1", &[("", "receivers:\n  remote: 2\nlist: [3]\n")]));
    peer.status("h1", Applied);
    let pid = home.workload(2);
    let merged: serde_yaml::Value = serde_yaml::from_str(&home.seen(pid)).unwrap();
    let expected: serde_yaml::Value =
        serde_yaml::from_str("{receivers: {local: 1, remote: 2}, list: [3], kept: true}").unwrap();
    assert_eq!(merged, expected);
    // Nothing offered: the local file alone.
    peer.send(&offer(uid, "h2", &[]));
    peer.status("h2", Applied);
    assert_eq!(home.seen(home.workload(3)), local);
    agent.stop_with(peer);
}

#[test]
fn the_effective_config_hides_secrets_and_the_workload_gets_them() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    let uid = &first.instance_uid;
    let body = "exporter:\n  password: hunter2\n  api_token: hunter3\n  endpoint: collector\n";
    commit(&mut peer, uid, "h1", body);
    assert_eq!(home.seen(home.workload(1)), body);
    let full = peer.proves_to_work(uid);
    let map = full.effective_config.unwrap().config_map.unwrap().config_map;
    let told = String::from_utf8(map["config.yaml"].body.to_vec()).unwrap();
    assert!(!told.contains("hunter") && told.contains("endpoint: collector"), "{told}");
    let status = format!("{:?}", agent.status());
    assert!(!status.contains("hunter"), "{status}");
    let log = agent.stop_with(peer);
    assert!(!log.contains("hunter"), "{log}");
}

#[test]
fn an_offer_is_ignored_where_none_is_accepted() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &Settings::default());
    peer.send(&offer(&first.instance_uid, "h1", &[("", "a: 1\n")]));
    agent.logs(&["WARN", "accepts_remote_config is off"]);
    peer.proves_to_work(&first.instance_uid);
    agent.unharmed();
    assert!(files_with(&home.path("state"), "a: 1").is_empty());
    agent.stop_with(peer);
}

#[test]
fn what_is_kept_is_not_for_other_users() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    commit(&mut peer, &first.instance_uid, "h1", "password: hunter2\n");
    let files = files_with(&home.path("state"), "hunter2");
    assert!(!files.is_empty());
    for file in files {
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{}: {mode:o}", file.display());
    }
    let mode = fs::metadata(home.path("status.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    agent.stop_with(peer);
}

#[test]
fn a_push_during_a_dead_link_is_taken_up_after_it() {
    let (home, server) = (home(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
    // The link dies before the outcome is told: it is told on the next.
    peer.send(&offer(&first.instance_uid, "h1", &[("config.yaml", "level: 1\n")]));
    home.workload(1);
    drop(peer);
    let mut peer = server.accept();
    let start = Instant::now();
    peer.status("h1", Applied);
    assert!(start.elapsed() < Duration::from_secs(10));
    peer.send(&ServerToAgent::default());
    agent.unharmed();
    agent.stop_with(peer);
}
