//! A workload that the init system owns. The tests play init: they start it, write its pid file, restart it when it
//! dies or when asked to, and know when it must not have been touched.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use chiton_proto::{
    AgentToServer, CommandType, RemoteConfigStatuses, ServerToAgent, ServerToAgentCommand,
};
use common::{Agent, Home, Peer, Server, Settings, eventually, is_alive, offer};
use rustix::process::{Pid, Signal, kill_process};

use RemoteConfigStatuses::{Applied, Failed};

/// A gate that is quick where it passes, and has time on a slow machine.
const GATE: &str = "rollback: { window: 10s, interval: 20ms, successes: 2 }";
/// A gate in which a test has time to do something.
const LONG_GATE: &str = "rollback: { window: 10s, interval: 100ms, successes: 50 }";
/// A gate in which even a slow machine's workload has time to die.
const DEATH_GATE: &str = "rollback: { window: 10s, interval: 100ms, successes: 15 }";
/// A gate in which nothing takes long to be given up.
const SHORT_GATE: &str = "rollback: { window: 500ms, interval: 20ms, successes: 2 }";

/// What a test wants of its init system.
#[derive(Clone, Copy)]
struct Wish {
    /// The workload is to run.
    up: bool,
    over: bool,
}

/// The init system: one service.
struct Init {
    dir: PathBuf,
    wish: Arc<Mutex<Wish>>,
    started: Arc<Mutex<Vec<i32>>>,
    thread: Option<JoinHandle<()>>,
}

impl Init {
    /// Runs the workload of this home from now on.
    fn new(home: &Home) -> Self {
        let script = format!(
            "take() {{ cp \"$1\" {dir}/seen.$$.new 2>/dev/null && mv {dir}/seen.$$.new {dir}/seen.$$\n\
             if grep -q 'die: now' \"$1\" 2>/dev/null; then exit 3; fi; }}\n\
             trap 'take \"$1\"' HUP\necho > {dir}/ready.$$\ntake \"$1\"\nwhile :; do sleep 0.02; done\n",
            dir = home.path("").display()
        );
        fs::write(home.path("service.sh"), script).unwrap();
        let wish = Arc::new(Mutex::new(Wish { up: true, over: false }));
        let started = Arc::new(Mutex::new(Vec::new()));
        let (theirs, pids, dir) = (Arc::clone(&wish), Arc::clone(&started), home.path(""));
        let thread = thread::spawn(move || serve(&dir, &theirs, &pids));
        let init = Self { dir: home.path(""), wish, started, thread: Some(thread) };
        init.process(1);
        init
    }

    fn wish(&self, change: impl FnOnce(&mut Wish)) {
        change(&mut self.wish.lock().unwrap());
    }

    /// All that were started, in order.
    fn pids(&self) -> Vec<i32> {
        self.started.lock().unwrap().clone()
    }

    /// Waits for process number `count` (from 1): it hears SIGHUP.
    fn process(&self, count: usize) -> i32 {
        let ready = |pid: &i32| self.dir.join(format!("ready.{pid}")).exists();
        eventually("init starts it", || self.pids().get(count - 1).copied().filter(ready))
    }

    /// Ends it, and leaves it so. What stays behind is a stale pid file.
    fn stop(&self) {
        self.wish(|wish| wish.up = false);
        eventually("it is down", || self.pids().iter().all(|pid| !is_alive(*pid)).then_some(()));
    }
}

impl Drop for Init {
    fn drop(&mut self) {
        self.wish(|wish| wish.over = true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(dir: &Path, wish: &Mutex<Wish>, started: &Mutex<Vec<i32>>) {
    let mut child: Option<Child> = None;
    let end = |child: &mut Option<Child>| {
        if let Some(mut child) = child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    };
    loop {
        let mut wish = wish.lock().unwrap();
        if wish.over {
            return end(&mut child);
        }
        if child.as_mut().is_some_and(|child| child.try_wait().unwrap().is_some()) {
            child = None;
        }
        let restart = dir.join("restart").exists();
        wish.up |= restart;
        let up = wish.up;
        drop(wish);
        if restart || !up {
            end(&mut child);
        }
        if up && child.is_none() {
            let config = dir.join("state/workloads/default/config/config.yaml");
            let process = Command::new("env")
                // A shell cannot trap what was ignored before it, as under nohup.
                .args(["--default-signal=HUP", "/bin/sh"])
                .arg(dir.join("service.sh"))
                .arg(config)
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            let pid = process.id();
            fs::write(dir.join("service.pid"), format!("{pid}\n")).unwrap();
            fs::create_dir_all(dir.join("group")).unwrap();
            fs::write(dir.join("group/cgroup.procs"), format!("{pid}\n")).unwrap();
            started.lock().unwrap().push(pid.try_into().unwrap());
            child = Some(process);
        }
        if restart {
            fs::remove_file(dir.join("restart")).unwrap();
        }
        thread::park_timeout(Duration::from_millis(2));
    }
}

/// By its pid file; `restart` is a command that tells init, and ends when that has been done.
fn by_pid_file(home: &Home) -> String {
    let dir = home.path("").display().to_string();
    let restart = format!("echo > {dir}restart; while [ -e {dir}restart ]; do sleep 0.01; done");
    format!("pid_file: {dir}service.pid, restart: [/bin/sh, -c, \"{restart}\"]")
}

/// `more` are entries of `remote_config`.
fn settings(external: String, gate: &str, more: &[&str]) -> Settings {
    let mut entries = vec![gate, "min_interval: 1ms"];
    entries.extend(more);
    Settings {
        capabilities: vec!["accepts_remote_config", "accepts_restart_command"],
        opamp: vec![
            format!("remote_config: {{ {} }}", entries.join(", ")),
            "health: { check_interval: 100ms }".to_owned(),
        ],
        external: Some(external),
        ..Settings::default()
    }
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

/// Waits until a process has read this configuration.
fn reads(home: &Home, pid: i32, body: &str) {
    eventually("it has read it", || (home.seen(pid) == body).then_some(()));
}

fn runs(agent: &Agent<'_>, pid: i32) {
    agent.shows("workload.pid", |shown| shown.as_i64() == Some(pid.into()));
}

fn link(home: &Home) -> PathBuf {
    fs::read_link(home.path("state/workloads/default/config")).unwrap_or_default()
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// SIGTERM; the workload stays as it is.
fn stop(agent: Agent<'_>, peer: Peer, init: &Init) {
    let pids = init.pids();
    agent.stop_with(peer);
    assert_eq!(init.pids(), pids, "the workload was restarted at the end");
    assert!(is_alive(*pids.last().unwrap()), "the workload went with Chiton");
}

#[test]
fn a_config_is_applied_by_the_restart_command_and_the_workload_outlives_the_agent() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    let (agent, mut peer, first) =
        connected(&home, &server, &settings(by_pid_file(&home), GATE, &[]));
    runs(&agent, init.process(1));
    assert_eq!(init.pids().len(), 1, "it is not restarted at the start");
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", "level: 1\n");
    let pid = init.process(2);
    reads(&home, pid, "level: 1\n");
    runs(&agent, pid);
    let began = agent.shows("health.start_time_unix_nano", |at| at.as_u64() > Some(0));
    commit(&mut peer, uid, "h2", "level: 2\n");
    reads(&home, init.process(3), "level: 2\n");
    runs(&agent, init.process(3));
    agent.shows("health.start_time_unix_nano", |at| at.as_u64() > began.as_u64());
    assert_eq!(init.pids().len(), 3, "one restart for one config");
    stop(agent, peer, &init);

    // Started again, Chiton finds what it left, and leaves it alone.
    let agent = home.start();
    let (mut peer, first) = server.greet();
    runs(&agent, init.process(3));
    agent.tells("config.status", &["APPLIED"]);
    peer.proves_to_work(&first.instance_uid);
    stop(agent, peer, &init);
}

#[test]
fn a_config_is_applied_by_sighup_to_the_main_process() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    let dir = home.path("").display().to_string();
    for (number, by) in
        [format!("pid_file: {dir}service.pid"), format!("cgroup: {dir}group")].iter().enumerate()
    {
        let wanted = settings(by.clone(), GATE, &["apply: reload"]);
        let (agent, mut peer, first) = connected(&home, &server, &wanted);
        let pid = init.process(1);
        runs(&agent, pid);
        let body = format!("level: {number}\n");
        commit(&mut peer, &first.instance_uid, &body, &body);
        reads(&home, pid, &body);
        assert_eq!(init.pids(), [pid]);
        stop(agent, peer, &init);
    }
}

#[test]
fn a_reload_command_and_an_apply_command_are_used_where_they_are_given() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    let dir = home.path("").display().to_string();
    let hup = format!("[/bin/sh, -c, \"echo >> {dir}asked; kill -HUP `cat {dir}service.pid`\"]");
    let external = format!("pid_file: {dir}service.pid");
    let rows = [
        settings(format!("{external}, reload: {hup}"), GATE, &["apply: reload"]),
        settings(external, GATE, &[&format!("apply: {hup}")]),
    ];
    for (number, wanted) in rows.iter().enumerate() {
        let (agent, mut peer, first) = connected(&home, &server, wanted);
        let pid = init.process(1);
        runs(&agent, pid);
        let body = format!("level: {number}\n");
        commit(&mut peer, &first.instance_uid, &body, &body);
        reads(&home, pid, &body);
        let asked = fs::read_to_string(home.path("asked")).unwrap();
        assert_eq!(asked.lines().count(), number + 1);
        assert_eq!(init.pids(), [pid]);
        stop(agent, peer, &init);
    }
}

/// A config that kills the workload: init starts it again and again. By whatever means Chiton hears of it.
fn a_new_main_process_in_the_window_rolls_back(start: impl Fn(&Home) -> Agent<'_>) {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    home.settings(&server.ws(), &settings(by_pid_file(&home), LONG_GATE, &[]));
    let agent = start(&home);
    let (mut peer, first) = server.greet();
    let uid = &first.instance_uid;
    peer.send(&offer(uid, "h1", &[("config.yaml", "level: 1\n")]));
    agent.tells("config.gate", &["trial"]);
    // Not its fault, but who could tell?
    kill(init.process(2));
    let status = peer.status("h1", Failed);
    assert!(status.error_message.contains("main process"), "{status:?}");
    agent.stop_with(peer);

    home.settings(&server.ws(), &settings(by_pid_file(&home), DEATH_GATE, &[]));
    let agent = start(&home);
    let (mut peer, _) = server.greet();
    commit(&mut peer, uid, "h2", "level: 2\n");
    peer.send(&offer(uid, "h3", &[("config.yaml", "die: now\n")]));
    peer.status("h3", Failed);
    agent.logs(&["WARN", "rolling back"]);
    let pid = agent.shows("workload.pid", |pid| {
        pid.as_i64().is_some_and(|pid| home.seen(pid.try_into().unwrap()) == "level: 2\n")
    });
    assert_eq!(init.pids().last().copied().map(i64::from), pid.as_i64());
    agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
    let full = peer.proves_to_work(uid).effective_config.unwrap().config_map.unwrap();
    assert_eq!(full.config_map["config.yaml"].body.as_ref(), b"level: 2\n");
    stop(agent, peer, &init);
}

#[test]
fn a_new_main_process_in_the_window_is_a_crash() {
    a_new_main_process_in_the_window_rolls_back(Home::start);
}

/// As on a kernel before Linux 5.3.
fn without_pidfd(home: &Home) -> Agent<'_> {
    let mut command = Command::new("strace");
    // -D: the agent is our child, strace is not in between.
    command.args(["-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pidfd_open"]);
    command.args(["-e", "inject=pidfd_open:error=ENOSYS", env!("CARGO_BIN_EXE_chiton")]);
    home.start_by(command)
}

#[test]
fn without_pidfd_it_is_noticed_all_the_same() {
    let traced = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
    assert!(traced.is_ok_and(|status| status.success()), "strace is needed, and leave to trace");
    a_new_main_process_in_the_window_rolls_back(without_pidfd);
    death_and_return_are_told(without_pidfd);
}

fn death_and_return_are_told(start: impl Fn(&Home) -> Agent<'_>) {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    home.settings(&server.ws(), &settings(by_pid_file(&home), GATE, &[]));
    let agent = start(&home);
    let (mut peer, first) = server.greet();
    agent.settled(&mut peer, &first.instance_uid);
    init.stop();
    let sick = peer
        .until("it is down", |report| report.health.as_ref().is_some_and(|health| !health.healthy));
    let health = sick.health.unwrap();
    assert_eq!(health.start_time_unix_nano, 0);
    assert!(health.last_error.contains("service.pid"), "{health:?}");
    let (_, code) = agent.status();
    assert_eq!(code, Some(1));
    // Whatever stands in the file: nothing runs, and nobody else is taken for it.
    for (text, words) in [
        ("", &["number"][..]),
        ("no number", &["number"]),
        ("-1", &["number"]),
        ("1", &["number"]),
        ("99999999999999999999999", &["number"]),
        ("4194305", &["no such process"]),
        (&"7".repeat(1 << 20), &["number"]),
    ] {
        fs::write(home.path("service.pid"), text).unwrap();
        agent.tells("workload.last_error", words);
    }
    agent.shows("workload.pid", serde_yaml::Value::is_null);
    fs::write(home.path("service.pid"), format!("{}", agent.pid())).unwrap();
    agent.tells("workload.last_error", &["Chiton itself"]);
    // Started by hand, it is seen all the same.
    let mut by_hand = Command::new("sleep").arg("1000").spawn().unwrap();
    fs::write(home.path("service.pid"), by_hand.id().to_string()).unwrap();
    runs(&agent, by_hand.id().try_into().unwrap());
    by_hand.kill().unwrap();
    agent.tells("workload.last_error", &["it has ended"]);
    by_hand.wait().unwrap();
    init.wish(|wish| wish.up = true);
    let pid = init.process(2);
    runs(&agent, pid);
    peer.until("it is back", |report| {
        report
            .health
            .as_ref()
            .is_some_and(|health| health.healthy && health.start_time_unix_nano > 0)
    });
    stop(agent, peer, &init);
}

#[test]
fn death_and_return_are_told_and_a_pid_file_is_not_believed_blindly() {
    death_and_return_are_told(Home::start);
}

#[test]
fn one_that_is_down_is_started_with_the_new_config() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    init.stop();
    let (agent, mut peer, first) =
        connected(&home, &server, &settings(by_pid_file(&home), GATE, &[]));
    agent.tells("workload.last_error", &["no such process"]);
    commit(&mut peer, &first.instance_uid, "h1", "level: 1\n");
    reads(&home, init.process(2), "level: 1\n");
    runs(&agent, init.process(2));
    stop(agent, peer, &init);
}

#[test]
fn without_a_way_to_restart_the_init_systems_own_start_is_waited_for() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    init.stop();
    let external = format!("pid_file: {}", home.path("service.pid").display());
    let wanted = settings(external, GATE, &["apply: reload"]);
    let (agent, mut peer, first) = connected(&home, &server, &wanted);
    // Nor is a restart offered to the server.
    assert_eq!(first.capabilities & 0x400, 0, "{:x}", first.capabilities);
    peer.send(&offer(&first.instance_uid, "h1", &[("config.yaml", "level: 1\n")]));
    agent.tells("config.gate", &["applying"]);
    assert_eq!(init.pids().len(), 1);
    init.wish(|wish| wish.up = true);
    peer.status("h1", Applied);
    reads(&home, init.process(2), "level: 1\n");
    stop(agent, peer, &init);
}

#[test]
fn a_restart_that_fails_or_is_not_done_rolls_back() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    let pid_file = format!("pid_file: {}", home.path("service.pid").display());
    let ignored = "restart: [/bin/true]";
    let fails = "restart: [/bin/sh, -c, \"echo no such service; exit 5\"]";
    let rows = [
        (format!("{pid_file}, {ignored}"), &["still is", "500ms"][..]),
        (format!("{pid_file}, {fails}"), &["/bin/sh", "status 5", "no such service"]),
        (format!("{pid_file}, restart: [/does/not/exist]"), &["/does/not/exist", "No such file"]),
        ("unit: chiton-test-of-no-such-unit.service".to_owned(), &["systemctl"]),
    ];
    for (number, (external, words)) in rows.into_iter().enumerate() {
        home.settings(&server.ws(), &settings(external, SHORT_GATE, &[]));
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        // No systemctl.
        command.env("PATH", home.path(""));
        let agent = home.start_by(command);
        let (mut peer, first) = server.greet();
        let hash = format!("h{number}");
        peer.send(&offer(&first.instance_uid, &hash, &[("config.yaml", &hash)]));
        let status = peer.status(&hash, Failed);
        assert!(words.iter().all(|w| status.error_message.contains(w)), "{status:?}");
        assert_eq!(link(&home), PathBuf::new(), "the candidate stays in place");
        stop(agent, peer, &init);
    }
    assert_eq!(init.pids().len(), 1);
}

#[test]
fn a_unit_is_asked_through_systemctl_and_past_failures_are_forgiven_first() {
    let (home, server) = (Home::new(), Server::new());
    let systemctl = home.path("systemctl");
    fs::write(&systemctl, format!("#!/bin/sh\necho $* >> {}\n", home.path("asked").display()))
        .unwrap();
    fs::set_permissions(&systemctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let asked = |apply: &str| {
        let unit = "unit: chiton-test-of-no-such-unit.service".to_owned();
        home.settings(&server.ws(), &settings(unit, SHORT_GATE, &[apply]));
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        command.env("PATH", format!("{}:/bin:/usr/bin", home.path("").display()));
        let agent = home.start_by(command);
        let (mut peer, first) = server.greet();
        assert_eq!(first.capabilities & 0x400, 0x400, "{:x}", first.capabilities);
        agent.tells("workload.last_error", &["chiton-test-of-no-such-unit", "does not run"]);
        peer.send(&offer(&first.instance_uid, apply, &[("config.yaml", apply)]));
        let status = peer.status(apply, Failed);
        assert!(status.error_message.contains("does not run"), "{status:?}");
        agent.stop_with(peer);
        fs::read_to_string(home.path("asked")).unwrap()
    };
    let unit = "chiton-test-of-no-such-unit.service";
    let once = format!("reset-failed {unit}\nrestart {unit}\n");
    // There, and back again.
    assert_eq!(asked("apply: restart"), format!("{once}{once}"));
}

#[test]
fn the_server_restarts_it_by_the_restart_command() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    let (agent, mut peer, first) =
        connected(&home, &server, &settings(by_pid_file(&home), GATE, &[]));
    agent.settled(&mut peer, &first.instance_uid);
    peer.send(&ServerToAgent {
        instance_uid: first.instance_uid.clone(),
        command: Some(ServerToAgentCommand { r#type: CommandType::Restart.into() }),
        ..ServerToAgent::default()
    });
    runs(&agent, init.process(2));
    agent.shows("workload.restarts", |restarts| restarts.as_i64() == Some(0));
    assert!(!agent.log().contains("has lost its main process"), "{}", agent.log());
    stop(agent, peer, &init);
}

#[test]
fn the_local_file_is_placed_at_the_start_and_read_once() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    fs::write(home.path("config.yaml"), "local: 1\n").unwrap();
    let mut wanted = settings(by_pid_file(&home), GATE, &[]);
    wanted.opamp.push(format!("local_config_path: {}", home.path("config.yaml").display()));
    let (agent, peer, _) = connected(&home, &server, &wanted);
    let pid = init.process(2);
    reads(&home, pid, "local: 1\n");
    agent.tells("config.source", &["local"]);
    stop(agent, peer, &init);
    let agent = home.start();
    let (mut peer, first) = server.greet();
    agent.settled(&mut peer, &first.instance_uid);
    stop(agent, peer, &init);
    assert_eq!(init.pids().len(), 2, "restarted for nothing");
}

/// Commits level 1, and dies while level 2 is on trial.
fn interrupted(home: &Home, server: &Server, init: &Init) {
    let (agent, mut peer, first) = connected(home, server, &settings(by_pid_file(home), GATE, &[]));
    commit(&mut peer, &first.instance_uid, "h1", "level: 1\n");
    let before = init.pids().len();
    agent.stop_with(peer);
    home.settings(&server.ws(), &settings(by_pid_file(home), LONG_GATE, &[]));
    let agent = home.start();
    let (mut peer, first) = server.greet();
    peer.send(&offer(&first.instance_uid, "h2", &[("config.yaml", "level: 2\n")]));
    reads(home, init.process(before + 1), "level: 2\n");
    agent.tells("config.gate", &["trial"]);
    drop(agent); // SIGKILL
}

fn recover(home: &Home) -> (Option<i32>, String) {
    let output = home.chiton("recover", &[]);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), text)
}

#[test]
fn recover_undoes_an_interrupted_change_on_the_disk_and_touches_nothing_else() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    interrupted(&home, &server, &init);
    let pids = init.pids();
    let trial = link(&home);
    let (code, text) = recover(&home);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("an interrupted change is undone: generation "), "{text}");
    let committed = link(&home);
    assert_ne!(committed, trial);
    let config = home.path("state/workloads/default/config/config.yaml");
    assert_eq!(fs::read_to_string(config).unwrap(), "level: 1\n");
    let (code, text) = recover(&home);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("nothing was interrupted"), "{text}");
    assert_eq!((link(&home), init.pids()), (committed, pids));
}

#[test]
fn after_an_interrupted_change_a_workload_that_lived_on_is_told_to_go_back() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    interrupted(&home, &server, &init);
    let before = init.pids().len();
    reads(&home, init.process(before), "level: 2\n");
    let agent = home.start();
    let (peer, _) = server.greet();
    reads(&home, init.process(before + 1), "level: 1\n");
    // Then the trial is repeated.
    let pid = init.process(before + 2);
    reads(&home, pid, "level: 2\n");
    runs(&agent, pid);
    stop(agent, peer, &init);
}

#[test]
fn recover_beside_a_running_agent_does_nothing() {
    let (home, server) = (Home::new(), Server::new());
    let init = Init::new(&home);
    let wanted = settings(by_pid_file(&home), LONG_GATE, &[]);
    let (agent, mut peer, first) = connected(&home, &server, &wanted);
    peer.send(&offer(&first.instance_uid, "h1", &[("config.yaml", "level: 1\n")]));
    agent.tells("config.gate", &["trial"]);
    let trial = link(&home);
    let (code, text) = recover(&home);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("another chiton runs"), "{text}");
    assert_eq!(link(&home), trial);
    peer.status("h1", Applied);
    stop(agent, peer, &init);
}

#[test]
fn recover_without_anything_to_recover_is_well() {
    let home = Home::new();
    home.settings("ws://127.0.0.1:1/v1/opamp", &Settings::default());
    let (code, text) = recover(&home);
    assert_eq!(code, Some(0), "{text}");
    assert!(!home.path("state").exists(), "nothing is made");
    fs::create_dir(home.path("state")).unwrap();
    let (code, text) = recover(&home);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("no generation"), "{text}");
    fs::write(home.path("chiton.yaml"), "opamp: 5\n").unwrap();
    let (code, text) = recover(&home);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("chiton.yaml:1: opamp"), "{text}");
}
