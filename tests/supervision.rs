//! What must never be: an orphan, a zombie, two workloads at once, an agent that waits for ever. With the real binary,
//! also where the kernel lacks what it would like to have (strace answers for it).
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use chiton_proto::{CommandType, ServerToAgent, ServerToAgentCommand};
use common::{Agent, Home, Peer, Server, Settings, eventually, is_alive, offer};
use rustix::process::{Pid, Signal, kill_process};

/// Nobody listens there.
const NOWHERE: &str = "ws://127.0.0.1:9";
/// Keeps the log short where nobody is to be reached.
const RARELY: &str = "reconnect: { initial: 10s, max: 60s }";
/// In the environment of an agent and of all that comes out of it: where its home is.
const HOME: &str = "CHITON_TEST_HOME";
const AGENT: &str = env!("CARGO_BIN_EXE_chiton");

fn settle(home: &Home, settings: &Settings) {
    home.settings(NOWHERE, &Settings { server: vec![RARELY.to_owned()], ..settings.clone() });
}

/// Starts the agent so that whatever comes out of it can be found.
fn start(home: &Home) -> Agent<'_> {
    start_by(home, Command::new(AGENT))
}

fn start_by<'h>(home: &'h Home, mut command: Command) -> Agent<'h> {
    command.env(HOME, home.path(""));
    home.start_by(command)
}

/// The agent under strace, which answers for the kernel. Its pid is the agent's.
fn strace(home: &Home, arguments: &[&str]) -> Command {
    let mut command = Command::new("strace");
    command.arg("-D").arg("-o").arg(home.path("strace")).args(arguments).arg(AGENT);
    command
}

/// That strace did answer: without it (or without ptrace) these tests would test nothing.
fn injected(home: &Home) {
    eventually("strace answers for the kernel; it must be installed and ptrace allowed", || {
        fs::read_to_string(home.path("strace")).ok().filter(|trace| trace.contains("(INJECTED)"))
    });
}

/// The processes that came out of the agents of this home, found by their environment or their arguments.
fn around(home: &Home, agent: Option<&Agent<'_>>) -> Vec<(i32, String)> {
    let place = home.path("").to_str().unwrap().trim_end_matches('/').to_owned();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let text = |name| {
            let bytes = fs::read(entry.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let program = fs::read_link(entry.path().join("exe")).unwrap_or_default();
        let tool = program.ends_with("strace") || program == Path::new(AGENT);
        let ours = text("cmdline").contains(&place) || text("environ").contains(&place);
        if ours && !tool && is_alive(pid) && agent.is_none_or(|agent| agent.pid() != pid) {
            found.push((pid, text("cmdline")));
        }
    }
    found
}

/// Nothing that came out of the agent is there any more.
fn all_gone(home: &Home) {
    let left = around(home, None);
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// The children of a process that have ended and were not collected.
fn zombies(parent: i32) -> Vec<String> {
    let stats = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        rest.starts_with(&format!("Z {parent} ")).then_some(stat)
    });
    stats.collect()
}

fn number(home: &Home, name: &str) -> i32 {
    eventually(name, || {
        let text = fs::read_to_string(home.path(name)).ok()?;
        text.strip_suffix('\n')?.parse().ok()
    })
}

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

/// Writes a script that notes its pid under its name and stays.
fn stray(home: &Home, name: &str, before: &str) -> String {
    let path = home.path(&format!("{name}.sh"));
    let (note, temporary) = (home.path(name), home.path(&format!("{name}.new")));
    let (note, temporary) = (note.display(), temporary.display());
    let script = format!(
        "{before}\necho $$ > {temporary}; mv {temporary} {note}\nwhile :; do sleep 0.02; done\n"
    );
    fs::write(&path, script).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Makes the workload one that has a child in its group, one in a session of its own, one that forked away twice, and
/// one more of these that knows nothing of where it came from. Returns their names.
fn large_family(home: &Home, ignores: &str) -> [&'static str; 4] {
    let near = stray(home, "near", ignores);
    let apart = stray(home, "apart", ignores);
    let away = stray(home, "away", ignores);
    let bare = stray(home, "bare", ignores);
    let gone = |name: &str| {
        // Another of its kind lives already: that must never be.
        let (note, two) = (home.path(name), home.path("two"));
        let (note, two) = (note.display(), two.display());
        format!(
            "if [ -e {note} ]; then read -r old < {note}; case $(cat /proc/$old/stat 2>&-) in ''|*') Z '*) ;; \
             *) echo {name} $old >> {two};; esac; fi\n"
        )
    };
    let names = ["near", "apart", "away", "bare"];
    let checks: String = names.iter().map(|name| gone(name)).collect();
    home.script(&format!(
        "{checks}\nsh {near} &\nsetsid sh {apart} &\n(setsid sh {away} &)\n(env -i PATH=$PATH setsid sh {bare} &)\n"
    ));
    names
}

fn members(home: &Home, names: &[&str]) -> Vec<i32> {
    names.iter().map(|name| number(home, name)).collect()
}

/// Waits until all of them have been replaced by others.
fn replaced(home: &Home, names: &[&str], old: &[i32]) -> Vec<i32> {
    let new: Vec<i32> = names
        .iter()
        .zip(old)
        .map(|(name, old)| eventually(name, || Some(number(home, name)).filter(|new| new != old)))
        .collect();
    for pid in old {
        assert!(!is_alive(*pid), "{pid} is still there beside its successor");
    }
    new
}

fn never_two(home: &Home) {
    let two = fs::read_to_string(home.path("two")).unwrap_or_default();
    assert_eq!(two, "", "two workloads at once");
}

/// A whole life: a start, a crash, an end in order.
fn lives_and_leaves_nobody(home: &Home, command: Command) {
    let names = large_family(home, "");
    settle(home, &Settings::default());
    let agent = start_by(home, command);
    let first = members(home, &names);
    kill(home.workload(1));
    agent.logs(&["WARN", "killed by signal 9 (SIGKILL), left ", "other process(es), now killed"]);
    home.workload(2);
    replaced(home, &names, &first);
    never_two(home);
    eventually("no zombie is left", || zombies(agent.pid()).is_empty().then_some(()));
    agent.stop();
    all_gone(home);
}

#[test]
fn nobody_outlives_a_crash_nor_an_end_in_order() {
    let home = Home::new();
    lives_and_leaves_nobody(&home, Command::new(AGENT));
}

#[test]
fn without_pidfd_all_is_the_same() {
    let home = Home::new();
    let inject = "inject=pidfd_open,pidfd_send_signal:error=ENOSYS";
    let command = strace(&home, &["-e", "trace=pidfd_open,pidfd_send_signal", "-e", inject]);
    lives_and_leaves_nobody(&home, command);
    injected(&home);
}

#[test]
fn without_lists_of_children_all_is_the_same() {
    let home = Home::new();
    let children = "/proc/thread-self/children";
    let command = strace(&home, &["-P", children, "-e", "inject=open,openat:error=ENOENT"]);
    lives_and_leaves_nobody(&home, command);
    injected(&home);
}

#[test]
fn who_ignores_sigterm_is_killed_wherever_it_went() {
    let home = Home::new();
    let names = large_family(&home, "trap '' TERM HUP INT");
    settle(
        &home,
        &Settings { workload: vec!["stop_timeout: 100ms".to_owned()], ..Settings::default() },
    );
    let agent = start(&home);
    members(&home, &names);
    agent.stop();
    all_gone(&home);
}

#[test]
fn all_that_came_out_of_it_is_asked_to_end_before_it_is_killed() {
    let home = Home::new();
    let flushed = home.path("flushed");
    let flush = format!("trap 'echo $0 >> {}; exit 0' TERM", flushed.display());
    let names = large_family(&home, &flush);
    settle(&home, &Settings::default());
    let agent = start(&home);
    members(&home, &names);
    agent.stop();
    all_gone(&home);
    let flushed = fs::read_to_string(flushed).unwrap();
    for name in names {
        assert!(flushed.contains(&format!("/{name}.sh")), "{name} was not asked: {flushed}");
    }
}

#[test]
fn after_a_killed_chiton_the_old_ones_are_gone_before_the_new_ones_start() {
    let home = Home::new();
    // Only what clears its environment escapes us here, where no unit's cgroup holds it.
    let names = large_family(&home, "trap '' TERM HUP INT");
    let names = &names[..3];
    settle(
        &home,
        &Settings { workload: vec!["stop_timeout: 100ms".to_owned()], ..Settings::default() },
    );
    let killed = start(&home);
    let first = members(&home, names);
    kill(number(&home, "bare"));
    kill(killed.pid());
    eventually("the workload dies with its agent", || (!is_alive(home.workload(1))).then_some(()));
    assert!(first.iter().all(|pid| is_alive(*pid)), "this test tests nothing");
    let agent = start(&home);
    agent.logs(&["WARN", "process(es) that a killed Chiton had left"]);
    home.workload(2);
    replaced(&home, names, &first);
    never_two(&home);
    agent.stop();
    all_gone(&home);
}

#[test]
fn another_agents_workload_is_none_of_our_business() {
    let (home, other) = (Home::new(), Home::new());
    for home in [&home, &other] {
        large_family(home, "");
        settle(home, &Settings::default());
    }
    let names = ["near", "apart", "away", "bare"];
    let neighbour = start(&other);
    let theirs = members(&other, &names);
    let killed = start(&home);
    members(&home, &names);
    kill(killed.pid());
    drop(killed);
    let agent = start(&home);
    home.workload(2);
    agent.stop();
    assert!(theirs.iter().all(|pid| is_alive(*pid)), "the neighbour's workload was killed");
    neighbour.unharmed();
    neighbour.stop();
    all_gone(&other);
    for name in names {
        let pid = number(&home, name);
        if is_alive(pid) {
            assert_eq!(name, "bare");
            kill(pid);
        }
    }
}

#[test]
fn a_workload_that_forks_away_is_told_how_to_live() {
    let home = Home::new();
    let daemon = stray(&home, "daemon", "");
    home.script(&format!(
        "(setsid sh {daemon} &)\nuntil [ -e {} ]; do sleep 0.01; done; exit 0",
        home.path("daemon").display()
    ));
    settle(&home, &Settings::default());
    let agent = start(&home);
    let said = agent.logs(&["WARN", "forked into the background", "external: { pid_file: "]);
    assert!(said.contains("exited with status 0, left "), "{said}");
    agent.tells("workload.last_error", &["run it in the foreground"]);
    agent.stop();
    all_gone(&home);
}

#[test]
fn orphans_are_collected_when_they_end() {
    let home = Home::new();
    let done = home.path("done");
    home.script(&format!(
        "for i in 1 2 3 4 5 6 7 8 9; do (setsid true &); done\n: > {}",
        done.display()
    ));
    settle(&home, &Settings::default());
    let agent = start(&home);
    eventually("all orphans were made", || done.exists().then_some(()));
    eventually("no zombie is left", || zombies(agent.pid()).is_empty().then_some(()));
    agent.unharmed();
    agent.stop();
}

#[test]
fn a_check_leaves_nobody_behind_and_harms_nobody() {
    let home = Home::new();
    // The workload's own that left it and forgot where it came from.
    let bare = stray(&home, "bare", "");
    home.script(&format!("(env -i PATH=$PATH setsid sh {bare} &)"));
    let (check, rounds) = (home.path("check.sh"), home.path("rounds"));
    let left = stray(&home, "left", "trap '' TERM");
    let note = home.path("left");
    let script = format!(
        "rm -f {note}; (setsid sh {left} &); until [ -e {note} ]; do sleep 0.01; done; cat {note} >> {}\n",
        rounds.display(),
        note = note.display()
    );
    fs::write(&check, script).unwrap();
    let check = format!(
        "health: {{ check_interval: 20ms, checks: [{{ exec: [sh, {}], timeout: 5s }}] }}",
        check.display()
    );
    settle(&home, &Settings { opamp: vec![check], ..Settings::default() });
    let agent = start(&home);
    let bare = number(&home, "bare");
    let pids = eventually("five checks", || {
        let text = fs::read_to_string(&rounds).ok()?;
        let pids: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        (pids.len() > 5).then_some(pids)
    });
    for pid in pids.iter().take(5) {
        assert!(!is_alive(*pid), "a check's orphan lives on");
    }
    assert!(is_alive(bare), "the workload's orphan was killed with a check's");
    agent.unharmed();
    agent.stop();
    all_gone(&home);
}

#[test]
fn a_service_that_an_apply_command_starts_lives_on() {
    let home = Home::new();
    let service = stray(&home, "service", "");
    let apply = home.path("apply.sh");
    // As a service script does it: the script ends only once the service is up.
    let script = format!(
        "(setsid sh {service} > /dev/null 2>&1 &)\nuntil [ -e {} ]; do sleep 0.01; done\n",
        home.path("service").display()
    );
    fs::write(&apply, script).unwrap();
    let server = Server::new();
    let gate = "rollback: { window: 10s, interval: 10ms, successes: 2 }";
    let apply = format!("remote_config: {{ apply: [sh, {}], {gate} }}", apply.display());
    let settings = Settings {
        capabilities: vec!["accepts_remote_config"],
        opamp: vec![apply],
        ..Settings::default()
    };
    home.settings(&server.ws(), &settings);
    let agent = start(&home);
    let (mut peer, first) = server.greet();
    let uid = first.instance_uid.to_vec();
    home.workload(1);
    agent.settled(&mut peer, &uid);
    peer.send(&offer(&uid, "one", &[("config.yaml", "a: 1\n")]));
    peer.status("one", chiton_proto::RemoteConfigStatuses::Applied);
    let service = number(&home, "service");
    let stat = fs::read_to_string(format!("/proc/{service}/stat")).unwrap();
    assert!(!stat.contains(&format!(" S {} ", agent.pid())), "it became ours: {stat}");
    agent.stop_with(peer);
    assert!(is_alive(service), "a service that is not ours was killed");
    kill(service);
}

/// The server asks for a restart.
fn ask_to_restart(peer: &mut Peer, uid: &[u8]) {
    peer.send(&ServerToAgent {
        instance_uid: uid.to_vec().into(),
        command: Some(ServerToAgentCommand { r#type: CommandType::Restart.into() }),
        ..ServerToAgent::default()
    });
}

#[test]
fn what_sigkill_does_not_end_is_told_and_not_started_twice() {
    let home = Home::new();
    let server = Server::new();
    let settings = Settings {
        capabilities: vec!["accepts_restart_command", "accepts_remote_config"],
        workload: vec!["stop_timeout: 20ms".to_owned()],
        ..Settings::default()
    };
    home.settings(&server.ws(), &settings);
    // As with a program of another user, or one that waits in the kernel.
    let agent =
        start_by(&home, strace(&home, &["-e", "trace=kill", "-e", "inject=kill:error=EPERM"]));
    let (mut peer, first) = server.greet();
    let uid = first.instance_uid.to_vec();
    let workload = home.workload(1);
    agent.settled(&mut peer, &uid);
    ask_to_restart(&mut peer, &uid);
    agent.logs(&["WARN", "cannot be killed", "Operation not permitted"]);
    injected(&home);
    agent.tells("workload.last_error", &["is not started again before it is gone"]);
    assert_eq!(home.pids(), [workload]);
    // Nothing hangs, and it goes on once that one is gone.
    peer.proves_to_work(&uid);
    kill(workload);
    let second = home.workload(2);
    agent.settled(&mut peer, &uid);
    // The end of the agent reaches it by another way.
    kill(agent.pid());
    eventually("it dies with its agent", || (!is_alive(second)).then_some(()));
}

#[test]
fn a_flood_and_a_closed_output_hold_nobody_up() {
    for body in ["yes flood flood flood & yes >&2 &", "exec >&- 2>&-"] {
        let home = Home::new();
        home.script(body);
        settle(&home, &Settings::default());
        let agent = start(&home);
        home.workload(1);
        agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
        let resident = agent.shows("memory.resident_bytes", |bytes| bytes.as_u64().is_some());
        // A debug build's; the release build has its own budget.
        assert!(resident.as_u64().unwrap() < 64 << 20);
        agent.unharmed();
        agent.stop();
        all_gone(&home);
    }
}

#[test]
fn a_start_that_fails_is_told_and_tried_again_until_it_works() {
    let home = Home::new();
    let program = home.path("program");
    let settings = format!(
        "opamp:\n  server: {{ endpoint: {NOWHERE} }}\n  workload: {{ command: [{}], restart: {{ initial: 20ms, \
         max: 50ms }} }}\n  state_dir: {}\n  status_socket: {}\n",
        program.display(),
        home.path("state").display(),
        home.path("status.sock").display()
    );
    fs::write(home.path("chiton.yaml"), settings).unwrap();
    let agent = start(&home);
    agent.tells("workload.last_error", &["could not be started", "no such program"]);
    fs::create_dir(&program).unwrap();
    agent.tells("workload.last_error", &["it is a directory"]);
    fs::remove_dir(&program).unwrap();
    let put = |text: &str, mode: u32| {
        let new = home.path("program.new");
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(new, &program).unwrap();
    };
    put("#!/bin/sh\n", 0o644);
    agent.tells("workload.last_error", &["its mode lacks execute permission"]);
    put("#!/no/such/shell\n", 0o755);
    agent.tells("workload.last_error", &["it is there: the interpreter"]);
    fs::remove_file(&program).unwrap();
    fs::copy("/bin/sleep", &program).unwrap();
    let mut open = fs::File::options().append(true).open(&program).unwrap();
    open.flush().unwrap();
    agent.tells("workload.last_error", &["it is being written to"]);
    drop(open);
    agent.tells("workload.last_error", &["exited with status 1"]);
    put(
        &format!("#!/bin/sh\necho $$ >> {}\nexec sleep 1000\n", home.path("pids").display()),
        0o755,
    );
    agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
    agent.unharmed();
    agent.stop();
    all_gone(&home);
}

/// For tests that nobody but root can do: says so where they are not done.
fn is_root(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        // Past the harness, which would swallow it.
        std::io::stderr().write_all(format!("SKIPPED, needs root: {what}\n").as_bytes()).unwrap();
    }
    root
}

/// A home that any user may use.
fn open_home() -> Home {
    let home = Home::new();
    fs::set_permissions(home.path(""), fs::Permissions::from_mode(0o777)).unwrap();
    home
}

#[test]
fn numbers_need_no_accounts_and_only_what_is_asked_for_is_passed_on() {
    if !is_root("a workload as uid:gid, with ambient capabilities and an OOM score") {
        return;
    }
    let home = open_home();
    let (seen, new) = (home.path("seen"), home.path("seen.new"));
    let (new, shown) = (new.display(), seen.display());
    home.script(&format!(
        "cat /proc/self/status /proc/self/oom_score_adj > {new}; mv {new} {shown}"
    ));
    let workload = [
        "user: \"12345:23456\"",
        "ambient_capabilities: [cap_net_bind_service, cap_net_raw]",
        "oom_score_adj: 321",
    ];
    let settings =
        Settings { workload: workload.map(str::to_owned).to_vec(), ..Settings::default() };
    settle(&home, &settings);
    let inject = "inject=open,openat:error=ENOENT";
    let command = strace(&home, &["-P", "/etc/passwd", "-P", "/etc/group", "-e", inject]);
    let agent = start_by(&home, command);
    let seen = eventually("it says who it is", || fs::read_to_string(&seen).ok());
    injected(&home);
    for line in [
        "Uid:\t12345\t12345\t12345\t12345\n",
        "Gid:\t23456\t23456\t23456\t23456\n",
        "Groups:\t \n",
        "CapInh:\t0000000000002400\n",
        "CapPrm:\t0000000000002400\n",
        "CapEff:\t0000000000002400\n",
        "CapAmb:\t0000000000002400\n",
        "\n321\n",
    ] {
        assert!(seen.contains(line), "{line:?} is not in {seen}");
    }
    agent.stop();
    all_gone(&home);
}

#[test]
fn a_user_that_is_not_there_stops_the_workload_and_not_the_agent() {
    let home = open_home();
    let settings =
        Settings { workload: vec!["user: no-such-user".to_owned()], ..Settings::default() };
    settle(&home, &settings);
    let checked = home.chiton("check", &[]);
    assert_eq!(checked.status.code(), Some(78));
    let said = String::from_utf8_lossy(&checked.stderr).into_owned()
        + &String::from_utf8_lossy(&checked.stdout);
    assert!(said.contains("opamp.workload.user: user no-such-user: not in /etc/passwd"), "{said}");
    let agent = start(&home);
    agent.tells("workload.last_error", &["opamp.workload.user", "create it, or give uid:gid"]);
    assert_eq!(home.pids(), [], "it must not run as somebody else");
    agent.stop();
}

/// N0. Where this machine has no tmpfs there is nothing to see.
#[test]
fn a_state_directory_that_is_lost_with_the_power_is_said() {
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    let is_tmpfs = fs::read_to_string("/proc/self/mounts").unwrap();
    if !is_tmpfs.lines().any(|line| line.contains(" /dev/shm tmpfs ")) {
        return;
    }
    let home = Home::new();
    std::os::unix::fs::symlink(memory.path(), home.path("state")).unwrap();
    settle(&home, &Settings::default());
    let agent = start(&home);
    let workload = home.workload(1);
    agent.logs(&["WARN", "opamp.state_dir", "is on tmpfs"]);
    let (status, code) = agent.status();
    let notes = format!("{:?}", status.get("notes"));
    assert_eq!(notes.matches("is on tmpfs").count(), 1, "{notes}");
    // A device may well be built so.
    assert_eq!(code, Some(0));
    assert!(is_alive(workload));
    agent.stop();
}

#[test]
fn a_capability_that_does_not_exist_is_refused() {
    let home = Home::new();
    for (line, said) in [
        ("ambient_capabilities: [cap_fly]", "cap_fly"),
        ("ambient_capabilities: [net_raw]", "allowed is a name such as cap_net_bind_service"),
        ("oom_score_adj: 1001", "oom_score_adj"),
    ] {
        let settings = Settings { workload: vec![line.to_owned()], ..Settings::default() };
        settle(&home, &settings);
        for command in ["check", "run"] {
            let done = home.chiton(command, &[]);
            assert_eq!(done.status.code(), Some(78), "{command} {line}");
            let text = String::from_utf8_lossy(&done.stderr).into_owned()
                + &String::from_utf8_lossy(&done.stdout);
            assert!(text.contains(said), "{line}: {text}");
        }
    }
}
