//! What the process may do, and that its children lose nothing by it: read from /proc, tried out by commands.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use chiton_proto::RemoteConfigStatuses::{Applied, Failed};
use common::{Agent, Home, Server, Settings, eventually, offer};
use serde_yaml::Value;

/// An endpoint where nobody is.
const NOWHERE: &str = "ws://127.0.0.1:9/v1/opamp";
/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, KILL, SYS_PTRACE: all that any settings need.
const ALWAYS: u64 = 0b1 | 0b10 | 0b100 | 0b1000 | 1 << 5 | 1 << 19;
/// SETGID, SETUID, SETPCAP.
const TO_CHANGE_USER: u64 = 1 << 6 | 1 << 7 | 1 << 8;
const NET_RAW: u64 = 1 << 13;
const SYS_RESOURCE: u64 = 1 << 24;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn needs_root() {
    assert!(is_root(), "run the tests as root: this one is about other users");
}

/// Without CAP_SYS_ADMIN the sandbox has to be asked for where there are commands.
fn sandbox() -> &'static str {
    if is_root() { "auto" } else { "on" }
}

/// `/proc/.../status` as key and value.
fn facts(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect()
}

fn facts_of(pid: i32) -> BTreeMap<String, String> {
    facts(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap())
}

fn set(facts: &BTreeMap<String, String>, name: &str) -> u64 {
    u64::from_str_radix(&facts[name], 16).unwrap()
}

fn ours(name: &str) -> u64 {
    set(&facts(&fs::read_to_string("/proc/thread-self/status").unwrap()), name)
}

/// What is left to Chiton of these capabilities: as another user than root it keeps what it has.
fn left(kept: u64) -> u64 {
    if is_root() { ours("CapPrm") & kept } else { ours("CapPrm") }
}

/// `lends`: what it starts as root gets its capabilities from it, though none of them is in force.
fn holds(agent: &Agent<'_>, kept: u64, lends: bool) {
    for task in fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("status")) else { continue };
        let facts = facts(&text);
        let permitted = if lends { ours("CapPrm") } else { left(kept) };
        assert_eq!(set(&facts, "CapPrm"), permitted, "{text}");
        assert_eq!(set(&facts, "CapEff"), left(kept), "{text}");
        assert_eq!(facts["Umask"], "0077");
    }
}

/// Waits until it is under way, and shows what is in force.
fn confinement(agent: &Agent<'_>) -> Value {
    agent.shows("confinement", |shown| !shown.is_null())
}

fn says(value: &Value, path: &[&str]) -> String {
    let found = path.iter().fold(value, |at, key| &at[*key]);
    found.as_str().unwrap_or_default().to_owned()
}

/// chiton.yaml without a workload; `opamp` are more keys of `opamp`, a line each.
fn alone(home: &Home, endpoint: &str, opamp: &[&str]) {
    let dir = home.path("").display().to_string();
    let more: String = opamp.iter().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "opamp:\n  server: {{ endpoint: '{endpoint}', reconnect: {{ initial: 20ms, max: 100ms }} }}\n\
         \x20 state_dir: {dir}state\n  status_socket: {dir}status.sock\n{more}"
    );
    fs::write(home.path("chiton.yaml"), text).unwrap();
}

/// A directory that no rule of the sandbox names, wherever the tests are built.
fn outside() -> tempfile::TempDir {
    let open = ["/tmp", "/var/tmp", "/run", "/dev/shm"];
    let home = std::env::var("HOME").unwrap_or_default();
    let shut = [env!("CARGO_TARGET_TMPDIR"), &home, "/var/lib"].into_iter().find(|place| {
        let place = Path::new(place).canonicalize();
        place.is_ok_and(|place| !open.iter().any(|open| place.starts_with(open)))
    });
    tempfile::tempdir_in(shut.unwrap()).unwrap()
}

#[test]
fn nothing_is_kept_that_the_settings_do_not_need() {
    let home = Home::new();
    home.settings(NOWHERE, &Settings::default());
    let agent = home.start();
    let shown = confinement(&agent);
    home.workload(1);
    // Neither SYS_ADMIN nor NET_RAW, nor what only another user's workload would need.
    holds(&agent, ALWAYS, true);
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let soft = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line.strip_prefix(name).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(soft("Max core file size"), "0");
    assert!(soft("Max open files").parse::<u64>().unwrap() <= 1024, "{limits}");

    if is_root() {
        assert_eq!(
            says(&shown, &["capabilities"]),
            "chown dac_override dac_read_search fowner kill sys_ptrace"
        );
        assert!(says(&shown, &["capabilities_lent"]).contains("net_raw"), "{shown:?}");
    }
    assert_eq!(shown["user"].as_u64(), Some(rustix::process::geteuid().as_raw().into()));
    assert_eq!(shown["umask"], "0077");
    assert_eq!(shown["core_limit_bytes"], 0);
    assert_eq!(shown["dumpable"], false);
    assert_eq!(shown["no_new_privs"], facts_of(agent.pid())["NoNewPrivs"] == "1");
    assert_eq!(shown["landlock"]["in_force"], false);
    assert!(says(&shown, &["landlock", "why_not"]).contains("Chiton starts the workload"));
    agent.stop();
}

/// Workload and checks have what they would have without Chiton between them and its parent.
#[test]
fn children_get_back_what_chiton_was_started_with() {
    const TELL: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp|Umask)' /proc/self/status; ulimit -Sc; ulimit -Hc; \
                        ulimit -Sn; ulimit -Hn; umask";
    const BEFORE: &str = "umask 027; ulimit -Sc $(ulimit -Hc); ulimit -Sn $(ulimit -Hn)";
    let plain = Command::new("sh").args(["-c", &format!("{BEFORE}; {TELL}")]).output().unwrap();
    let plain = String::from_utf8(plain.stdout).unwrap();
    assert!(plain.contains("CapBnd") && plain.ends_with("0027\n"), "{plain}");

    let home = Home::new();
    let dir = home.path("").display().to_string();
    let tell = |name: &str| format!("({TELL}) > {dir}{name}.$$; mv {dir}{name}.$$ {dir}{name}");
    home.script(&tell("workload"));
    fs::write(home.path("check.sh"), tell("check")).unwrap();
    let check = format!("health: {{ checks: [{{ exec: [/bin/sh, {dir}check.sh] }}] }}");
    home.settings(NOWHERE, &Settings { opamp: vec![check], ..Settings::default() });
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{BEFORE}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_chiton")]);
    let agent = home.start_by(command);
    for name in ["workload", "check"] {
        let told = eventually(name, || fs::read_to_string(home.path(name)).ok());
        assert_eq!(told, plain, "{name}");
    }
    agent.stop();
}

#[test]
fn another_users_workload_has_what_it_was_given_and_no_way_to_more() {
    needs_root();
    for (ambient, sandbox, kept, bounds) in [
        ("[]", "on", 0, 0),
        ("[cap_net_raw]", "on", NET_RAW, NET_RAW),
        // A wrapper's program, or what a plugin calls, may have a file's capabilities.
        ("[cap_net_raw]", "auto", NET_RAW, ours("CapBnd")),
        ("[cap_net_raw]", "off", NET_RAW, ours("CapBnd")),
    ] {
        let home = Home::new();
        // What runs as that user with the rights of a check keeps its bounds: it may need a file's capabilities.
        let bound = format!("CapBnd:.*{:016x}", ours("CapBnd"));
        let check = format!("exec: [grep, -q, '{bound}', /proc/self/status]");
        let settings = Settings {
            command: Some("[/bin/sleep, '1000']".to_owned()),
            workload: vec![
                "user: '1234:1234'".to_owned(),
                "oom_score_adj: 7".to_owned(),
                format!("ambient_capabilities: {ambient}"),
            ],
            opamp: vec![
                format!("health: {{ check_interval: 100ms, checks: [{{ {check} }}] }}"),
                format!("sandbox: {sandbox}"),
            ],
            ..Settings::default()
        };
        home.settings(NOWHERE, &settings);
        let agent = home.start();
        let pid = agent.shows("workload.pid", |pid| pid.as_i64().is_some()).as_i64().unwrap();
        let facts = facts_of(pid.try_into().unwrap());
        for name in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(set(&facts, name), kept, "{ambient} {sandbox} {name}");
        }
        assert_eq!(set(&facts, "CapBnd"), bounds, "{ambient} {sandbox}");
        assert!(facts["Uid"].starts_with("1234"), "{facts:?}");
        holds(&agent, ALWAYS | TO_CHANGE_USER | SYS_RESOURCE | kept, false);
        agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
        agent.stop();
    }
}

/// `after_install: [setcap, …]` is there for that: with other bounds the kernel would not execute the file at all.
#[test]
fn a_program_with_capabilities_of_its_own_still_starts() {
    needs_root();
    let home = Home::new();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(home.path(""), open.clone()).unwrap();
    let program = home.path("daemon");
    fs::copy("/bin/sleep", &program).unwrap();
    fs::set_permissions(&program, open).unwrap();
    // Version 2, effective; permitted NET_RAW.
    let words = [0x0200_0001, u32::try_from(NET_RAW).unwrap(), 0, 0, 0];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&program, "security.capability", &value, flags).unwrap();
    home.settings(
        NOWHERE,
        &Settings {
            command: Some(format!("[{}, '1000']", program.display())),
            workload: vec!["user: '1234:1234'".to_owned()],
            opamp: vec!["sandbox: on".to_owned()],
            ..Settings::default()
        },
    );
    let agent = home.start();
    let pid = agent.shows("workload.pid", |pid| pid.as_i64().is_some()).as_i64().unwrap();
    let facts = facts_of(pid.try_into().unwrap());
    assert_eq!((set(&facts, "CapEff"), set(&facts, "CapBnd")), (NET_RAW, NET_RAW), "{facts:?}");
    agent.stop();
}

/// Chiton's umask is its own affair: what others must pass through and read has its mode.
#[test]
fn directories_that_others_pass_through_are_not_closed_by_the_umask() {
    let home = Home::new();
    let mode = |name: &str| fs::metadata(home.path(name)).unwrap().permissions().mode() & 0o777;
    home.settings(NOWHERE, &Settings::default());
    let yaml = fs::read_to_string(home.path("chiton.yaml")).unwrap();
    let deep =
        yaml.replace("/state\n", "/data/edge/state\n").replace("/status.sock", "/run/sock/s");
    fs::write(home.path("chiton.yaml"), deep).unwrap();
    let agent = home.start();
    confinement(&agent);
    for (name, wanted) in [
        ("data", 0o755),
        ("data/edge", 0o755),
        ("data/edge/state", 0o711),
        ("run/sock", 0o755),
        ("run/sock/s", 0o600),
    ] {
        assert_eq!(mode(name), wanted, "{name}");
    }
    agent.stop();
}

/// One offer whose dry run writes to `path`: what became of it.
fn dry_run(home: &Home, path: &Path, opamp: &[&str]) -> (Value, Result<(), String>) {
    let server = Server::new();
    let write = format!("echo x > {}; echo x > /dev/null", path.display());
    let validate = format!(
        "remote_config: {{ min_interval: 1ms, validate: [/bin/sh, -c, 'set -e; {write}'], \
         rollback: {{ window: 5s, interval: 20ms, successes: 1 }} }}"
    );
    let capabilities = "capabilities: { accepts_remote_config: true }";
    alone(home, &server.ws(), &[&[capabilities, validate.as_str()], opamp].concat());
    let agent = home.start();
    let (mut peer, first) = server.greet();
    peer.send(&offer(&first.instance_uid, "new", &[("config.yaml", "a: b")]));
    let report = peer.until("the outcome", |report| {
        report.remote_config_status.as_ref().is_some_and(|sent| {
            *sent.last_remote_config_hash == *b"new" && [Applied, Failed].contains(&sent.status())
        })
    });
    let status = report.remote_config_status.unwrap();
    let shown = confinement(&agent);
    agent.stop_with(peer);
    match status.status() {
        Applied => (shown, Ok(())),
        _ => (shown, Err(status.error_message)),
    }
}

#[test]
fn a_command_writes_where_it_may_and_nowhere_else() {
    let sandbox = format!("sandbox: {}", sandbox());
    let outside = outside();
    let file = outside.path().join("file");
    let (shown, outcome) = dry_run(&Home::new(), &file, &[&sandbox]);
    assert_eq!(shown["landlock"]["in_force"], true, "{shown:?}");
    assert!(shown["landlock"]["abi"].as_u64() >= Some(2), "{shown:?}");
    let error = outcome.unwrap_err();
    assert!(error.contains("ermission denied") && error.contains("opamp.sandbox: off"), "{error}");
    assert!(!file.exists());

    // The same command where it may write, and Chiton's own files: the offer is committed.
    let home = Home::new();
    let (_, outcome) = dry_run(&home, &home.path("file"), &[&sandbox]);
    assert_eq!(outcome, Ok(()));
    assert!(home.path("file").exists());

    let (shown, outcome) = dry_run(&Home::new(), &file, &["sandbox: off"]);
    assert_eq!(outcome, Ok(()));
    assert!(file.exists());
    assert_eq!(shown["landlock"]["in_force"], false);
    assert!(says(&shown, &["landlock", "why_not"]).contains("opamp.sandbox is off"), "{shown:?}");
}

#[test]
fn without_landlock_in_the_kernel_it_runs_and_says_so() {
    for (error, words) in [("ENOSYS", "the kernel has no landlock"), ("EOPNOTSUPP", "lsm=")] {
        let home = Home::new();
        alone(&home, NOWHERE, &[]);
        let mut command = Command::new("strace");
        let inject = format!("inject=landlock_create_ruleset:error={error}");
        command.args(["-D", "-f", "-e", "trace=landlock_create_ruleset", "-e", &inject, "-o"]);
        command.arg(home.path("trace")).arg(env!("CARGO_BIN_EXE_chiton"));
        let agent = home.start_by(command);
        let shown = confinement(&agent);
        assert_eq!(shown["landlock"]["in_force"], false, "{shown:?}");
        assert!(says(&shown, &["landlock", "why_not"]).contains(words), "{shown:?}");
        // What else there is does not hang on it.
        assert_eq!(shown["no_new_privs"], true);
        let trace = fs::read_to_string(home.path("trace")).unwrap();
        assert!(trace.contains("INJECTED"), "{trace}");
        agent.stop();
    }
}

/// A restart that an init script does itself would leave the workload in the sandbox for good.
#[test]
fn what_may_start_the_workload_is_not_bound() {
    for (external, bound) in [
        ("pid_file: /run/x.pid, restart: [/usr/sbin/service, x, restart]", false),
        ("pid_file: /run/x.pid, reload: [/etc/init.d/x, reload]", false),
        ("pid_file: /run/x.pid, restart: [/usr/bin/systemctl, restart, x]", true),
        ("unit: x.service", true),
    ] {
        let home = Home::new();
        home.settings(
            NOWHERE,
            &Settings { external: Some(external.to_owned()), ..Settings::default() },
        );
        let agent = home.start();
        let shown = confinement(&agent);
        assert_eq!(shown["landlock"]["in_force"], bound, "{external}: {shown:?}");
        assert_eq!(shown["no_new_privs"], bound, "{external}");
        let why = says(&shown, &["landlock", "why_not"]);
        assert_eq!(why.contains("may start the workload"), !bound, "{external}: {why}");
        holds(&agent, ALWAYS, !bound);
        agent.stop();
    }
}

#[test]
fn what_was_given_up_comes_back_with_a_restart_only() {
    let home = Home::new();
    let external = Some("pid_file: /run/x.pid, restart: [systemctl, restart, x]".to_owned());
    home.settings(NOWHERE, &Settings { external, ..Settings::default() });
    let agent = home.start();
    assert_eq!(confinement(&agent)["landlock"]["in_force"], true);

    // A command that may need more: taken, and said.
    let yaml = fs::read_to_string(home.path("chiton.yaml")).unwrap();
    fs::write(
        home.path("chiton.yaml"),
        format!("{yaml}  remote_config: {{ apply: [/bin/true] }}\n"),
    )
    .unwrap();
    agent.hang_up();
    agent.logs(&["cannot be left without a restart of Chiton", "apply"]);

    // The workload becomes Chiton's own.
    home.settings(NOWHERE, &Settings::default());
    agent.hang_up();
    agent.logs(&["needs a restart", "opamp.workload"]);
    let shown = confinement(&agent);
    assert_eq!(shown["landlock"]["in_force"], true, "what is shown is what is in force");
    assert!(home.pids().is_empty());
    agent.stop();

    let agent = home.start();
    let pid = home.workload(1);
    assert_eq!(confinement(&agent)["landlock"]["in_force"], false);
    assert_eq!(
        set(&facts_of(pid), "CapPrm"),
        ours("CapPrm"),
        "the workload has what it has anywhere"
    );
    agent.stop();
}

#[cfg(not(feature = "seccomp"))]
#[test]
fn without_the_feature_seccomp_says_why_not() {
    let home = Home::new();
    alone(&home, NOWHERE, &[]);
    let agent = home.start();
    assert!(says(&confinement(&agent), &["seccomp", "why_not"]).contains("cargo feature"));
    agent.stop();
}

#[cfg(feature = "seccomp")]
#[test]
fn denied_calls_are_refused_and_the_rest_works() {
    let home = Home::new();
    // `mount` and `unshare` are root's business; the kernel refuses them to others by itself, in other words.
    let server = Server::new();
    for (validate, good) in [("/bin/true", true), ("/usr/bin/unshare, --uts, /bin/true", false)] {
        let remote = format!(
            "remote_config: {{ min_interval: 1ms, validate: [{validate}], \
             rollback: {{ window: 5s, interval: 20ms, successes: 1 }} }}"
        );
        let sandbox = format!("sandbox: {}", sandbox());
        let capabilities = "capabilities: { accepts_remote_config: true }";
        alone(&home, &server.ws(), &[capabilities, &remote, &sandbox]);
        let agent = home.start();
        let (mut peer, first) = server.greet();
        let shown = confinement(&agent);
        assert_eq!(shown["seccomp"]["in_force"], true, "{shown:?}");
        assert!(shown["seccomp"]["why_not"].is_null(), "{shown:?}");
        assert_eq!(facts_of(agent.pid())["Seccomp"], "2");
        peer.send(&offer(&first.instance_uid, validate, &[("config.yaml", validate)]));
        if good {
            peer.status(validate, Applied);
        } else {
            let error = peer.status(validate, Failed).error_message;
            assert!(error.contains("not permitted") && error.contains("opamp.sandbox"), "{error}");
        }
        agent.stop_with(peer);
    }
}
