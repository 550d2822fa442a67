//! The workload executor against real processes. Nothing sleeps to synchronise: a FIFO whose last writer is gone
//! says that a process has ended, and conditions are awaited with a deadline.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use chiton::reactor::{Timer, block_on, within};
use chiton::settings::HttpTarget;
use chiton::sys::Step;
use chiton::workload::check::{self, Why};
use chiton::workload::command::{self, How};
use chiton::workload::family;
use chiton::workload::identity::Identity;
use chiton::workload::reap::{Exit, ExitKind, Notice};
use chiton::workload::spawn::{Child, LOG_TAIL, Spec};
use chiton::workload::usage;
use rustix::process::Signal;
use rustix::thread::CapabilitySet;

/// Only a broken test waits this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than any test: what lives so long was forgotten.
const FOR_EVER: &str = "exec sleep 1000";
/// Makes this binary play the agent in the tests that need one of their own.
const ACT_AS_AGENT: &str = "CHITON_TEST_ACT_AS_AGENT";

fn sh(script: &str) -> Spec {
    argv(&["/bin/sh", "-c", script])
}

fn argv(argv: &[&str]) -> Spec {
    Spec { argv: argv.iter().map(OsString::from).collect(), ..Spec::default() }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let in_time = block_on(within(PATIENCE, future)).unwrap();
    in_time.expect("the test took too long")
}

/// The output of a command that must succeed.
async fn output(spec: &Spec) -> String {
    let outcome = command::run(spec, PATIENCE).await;
    assert!(outcome.success(), "{outcome}");
    outcome.output
}

/// Keeps a child going until a condition holds.
async fn until(child: &Child, condition: impl Fn() -> bool) {
    let ended = async {
        let exit = child.wait().await;
        panic!("{exit}: {}", child.output_tail());
    };
    let holds = async {
        while !condition() {
            Timer::after(Duration::from_millis(2)).await;
        }
    };
    smol::future::or(ended, holds).await;
}

async fn ready(child: &Child) {
    until(child, || child.output_tail().contains("ready")).await;
}

/// A FIFO: opened for reading it says when its writer is there, and by its end that all writers are gone.
fn fifo(dir: &Path) -> String {
    let path = dir.join("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Waits for the line of a writer.
async fn opened(path: &str) -> BufReader<File> {
    let path = path.to_owned();
    smol::unblock(move || {
        let mut reader = BufReader::new(File::open(path).unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert_eq!(line, "here\n");
        reader
    })
    .await
}

/// Waits for the last writer to go.
async fn all_gone(mut reader: BufReader<File>) {
    smol::unblock(move || reader.read_to_end(&mut Vec::new())).await.unwrap();
}

/// Where it is not, what only root can do is not tested: that is said past the harness, which would swallow it.
fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        std::io::stderr().write_all(b"SKIPPED in part, needs root: other users\n").unwrap();
    }
    root
}

#[test]
fn a_process_that_ends_at_once_tells_its_status_and_last_words() {
    run(async {
        for notice in [Notice::Best, Notice::Sigchld] {
            let spec = sh("echo out; echo err >&2; exit 3");
            let child = Child::spawn_with(&spec, notice).unwrap();
            let exit = child.wait().await;
            assert_eq!(exit.kind, ExitKind::Code(3));
            assert_eq!(exit.to_string(), "exited with status 3");
            assert_eq!(child.output_tail(), "out\nerr");
            assert_eq!(child.exit(), Some(exit));
            // Later signals have nobody to go to.
            child.kill().unwrap();
            child.reload().unwrap();
        }
    });
}

#[test]
fn several_may_wait_and_stop_waiting() {
    run(async {
        let child = Child::spawn(&sh("echo said")).unwrap();
        let given_up = within(Duration::ZERO, child.wait()).await;
        assert!(given_up.is_none_or(Exit::success));
        let (first, second) = smol::future::zip(child.wait(), child.wait()).await;
        assert!(first.success());
        assert_eq!(first, second);
        assert_eq!(child.output_tail(), "said");
    });
}

#[test]
fn sigchld_serves_many_children_at_once() {
    run(async {
        let spawn = |code: i32| {
            let spec = sh(&format!("exit {code}"));
            (code, Child::spawn_with(&spec, Notice::Sigchld).unwrap())
        };
        for (code, child) in (1..20).map(spawn).collect::<Vec<_>>() {
            assert_eq!(child.wait().await.kind, ExitKind::Code(code));
        }
    });
}

#[test]
fn a_flood_is_read_without_end_and_only_its_tail_is_kept() {
    run(async {
        for notice in [Notice::Best, Notice::Sigchld] {
            let spec = argv(&["yes", "flood flood flood"]);
            let child = Child::spawn_with(&spec, notice).unwrap();
            until(&child, || child.output_tail().len() > LOG_TAIL / 2).await;
            // Everything else goes on meanwhile.
            let beside = async {
                for _ in 0..20 {
                    Timer::after(Duration::from_millis(1)).await;
                }
                true
            };
            assert!(smol::future::or(async { child.wait().await.success() }, beside).await);
            let exit = child.stop(PATIENCE).await.unwrap();
            assert_eq!(exit.to_string(), "killed by signal 15 (SIGTERM)");
            let tail = child.output_tail();
            assert!(tail.len() <= LOG_TAIL);
            let lines: Vec<_> = tail.lines().collect();
            let (_last, whole) = lines.split_last().unwrap();
            assert!(whole.iter().all(|line| *line == "flood flood flood"), "{tail}");
        }
    });
}

#[test]
fn one_endless_line_is_kept_by_its_end() {
    run(async {
        let spec = sh("head -c 100000 /dev/zero | tr '\\0' x; printf '\\377end'");
        let tail = output(&spec).await;
        assert!(tail.ends_with("x\u{fffd}end"));
        assert!(tail.len() <= LOG_TAIL + '\u{fffd}'.len_utf8());
    });
}

#[test]
fn what_ignores_sigterm_is_killed_when_its_time_is_up() {
    run(async {
        for notice in [Notice::Best, Notice::Sigchld] {
            let spec = sh("trap '' TERM; echo ready; while :; do sleep 1; done");
            let child = Child::spawn_with(&spec, notice).unwrap();
            ready(&child).await;
            let exit = child.stop(Duration::from_millis(50)).await.unwrap();
            assert_eq!(exit.to_string(), "killed by signal 9 (SIGKILL)");
        }
    });
}

#[test]
fn what_cleans_up_at_sigterm_is_given_the_time() {
    run(async {
        let spec = sh("trap 'echo clean; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        let child = Child::spawn(&spec).unwrap();
        ready(&child).await;
        assert!(child.stop(PATIENCE).await.unwrap().success());
        assert!(child.output_tail().contains("clean"));
    });
}

#[test]
fn a_stopped_process_hears_sigterm_too() {
    run(async {
        let child = Child::spawn(&sh("echo ready; exec sleep 1000")).unwrap();
        ready(&child).await;
        child.signal(Signal::STOP).unwrap();
        assert_eq!(child.stop(PATIENCE).await.unwrap().kind, ExitKind::Signal(15));
    });
}

#[test]
fn reload_is_sighup() {
    run(async {
        let spec = sh("trap 'echo again; exit 0' HUP; echo ready; while :; do sleep 0.01; done");
        let child = Child::spawn(&spec).unwrap();
        ready(&child).await;
        child.reload().unwrap();
        assert!(child.wait().await.success());
        assert!(child.output_tail().ends_with("again"));
    });
}

#[test]
fn a_workload_that_forks_away_leaves_nobody_behind() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    let go = dir.path().join("go");
    run(async {
        // It ends only once the grandchild has spoken, which would be killed before that otherwise.
        let grandchild = format!("(trap '' TERM HUP; echo here; {FOR_EVER}) > {fifo}");
        let script = format!("{grandchild} & until [ -e {} ]; do sleep 0.01; done", go.display());
        let child = Child::spawn(&sh(&script)).unwrap();
        let grandchild = opened(&fifo).await;
        fs::write(&go, "").unwrap();
        let exit = child.wait().await;
        assert!(exit.success());
        assert_eq!((exit.others.found, exit.others.left), (1, 0), "{exit}");
        all_gone(grandchild).await;
    });
}

#[test]
fn stopping_takes_the_grandchildren_along() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    run(async {
        let script = format!("(trap '' TERM; echo here; {FOR_EVER}) > {fifo} & wait");
        let child = Child::spawn(&sh(&script)).unwrap();
        let grandchild = opened(&fifo).await;
        let exit = child.stop(Duration::from_millis(50)).await.unwrap();
        assert_eq!(exit.kind, ExitKind::Signal(15));
        all_gone(grandchild).await;
    });
}

#[test]
fn what_outlives_its_parent_has_the_time_to_clean_up_too() {
    run(async {
        // The wrapper dies of SIGTERM at once; the real thing flushes first.
        let real =
            "trap 'sleep 0.1; echo flushed; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
        let child = Child::spawn(&sh(&format!("({real}) & wait"))).unwrap();
        ready(&child).await;
        let exit = child.stop(PATIENCE).await.unwrap();
        assert_eq!(exit.kind, ExitKind::Signal(15));
        assert!(child.output_tail().ends_with("flushed"), "{}", child.output_tail());
    });
}

#[test]
fn an_end_is_seen_though_somebody_keeps_the_pipe_open() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let go = dir.path().join("go");
        // In a session of its own, where the end of a command that acts on the system does not reach it.
        let script = format!(
            "setsid sh -c 'echo $$; echo ready; exec sleep 1000' & until [ -e {} ]; do sleep 0.01; done; exit 4",
            go.display()
        );
        let child = Child::spawn(&sh(&script)).unwrap();
        ready(&child).await;
        fs::write(&go, "").unwrap();
        assert_eq!(child.wait().await.kind, ExitKind::Code(4));
        let stray: i32 = child.output_tail().lines().next().unwrap().parse().unwrap();
        let stray = rustix::process::Pid::from_raw(stray).unwrap();
        rustix::process::kill_process(stray, Signal::KILL).expect("a command's service lives on");
    });
}

#[test]
fn closing_its_output_is_not_its_end() {
    run(async {
        let script = "trap 'exit 7' TERM; echo ready; exec >&- 2>&-; while :; do sleep 0.01; done";
        let child = Child::spawn(&sh(script)).unwrap();
        ready(&child).await;
        let early = within(Duration::from_millis(100), child.wait()).await;
        assert!(early.is_none(), "{early:?}");
        assert_eq!(child.stop(PATIENCE).await.unwrap().kind, ExitKind::Code(7));
    });
}

#[test]
fn a_dropped_child_dies_with_its_group_and_is_collected() {
    // In a process of its own, where every child may be collected.
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "acts_as_agent"])
        .envs([(ACT_AS_AGENT, "drop"), ("SCRIPT", "")])
        .status()
        .unwrap();
    assert!(done.success());
}

async fn drops_a_child() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    let script = format!("(echo here; {FOR_EVER}) > {fifo} & wait");
    let child = Child::spawn(&sh(&script)).unwrap();
    let grandchild = opened(&fifo).await;
    let proc = format!("/proc/{}", child.pid());
    family::collect();
    assert!(Path::new(&proc).exists());
    drop(child);
    all_gone(grandchild).await;
    while Path::new(&proc).exists() {
        family::collect();
        Timer::after(Duration::from_millis(1)).await;
    }
}

#[test]
fn the_environment_is_ours_without_what_is_ours_alone() {
    // In a process of its own: a test must not change the environment that the others read.
    let done = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "acts_as_agent", "--nocapture"])
        .envs([(ACT_AS_AGENT, "env"), ("SCRIPT", "env")])
        .envs([("CHITON_CHILD", "1-2.3.4"), ("NOTIFY_SOCKET", "/x"), ("WATCHDOG_USEC", "1")])
        .envs([("LISTEN_FDS", "1"), ("LISTEN_PID", "1"), ("JOURNAL_STREAM", "1:2")])
        .envs([("OPAMP_TOKEN", "geheim"), ("INHERITED", "yes"), ("OVERRIDDEN", "no")])
        .output()
        .unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    assert!(text.contains("\nINHERITED=yes\n"), "{text}");
    assert!(text.contains("\nOVERRIDDEN=yes\n"), "{text}");
    for own in
        ["CHITON_CHILD", "NOTIFY_", "WATCHDOG", "LISTEN_", "JOURNAL", "OPAMP_TOKEN", "geheim"]
    {
        assert!(!text.contains(own), "{own}: {text}");
    }
}

#[test]
fn the_workload_dies_with_the_agent() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    run(async {
        // With a change of user as well, which clears the death signal.
        for user in [None, Some("1234:1234")].into_iter().filter(|user| user.is_none() || is_root())
        {
            if user.is_some() {
                fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
                fs::set_permissions(&fifo, fs::Permissions::from_mode(0o666)).unwrap();
            }
            let mut agent = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "acts_as_agent"])
                .env(ACT_AS_AGENT, "die")
                .env("SCRIPT", format!("exec > {fifo}; echo here; {FOR_EVER}"))
                .envs(user.map(|user| ("AS_USER", user)))
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            let workload = opened(&fifo).await;
            agent.kill().unwrap();
            all_gone(workload).await;
            agent.wait().unwrap();
        }
    });
}

/// Not a test by itself: the agent's part in those above.
#[test]
fn acts_as_agent() {
    let Ok(part) = std::env::var(ACT_AS_AGENT) else { return };
    let mut spec = sh(&std::env::var("SCRIPT").unwrap());
    run(async {
        if part == "env" {
            spec.withhold.push("OPAMP_TOKEN".to_owned());
            spec.env.insert("OVERRIDDEN".into(), "yes".into());
            let text = output(&spec).await;
            std::io::stdout().write_all(format!("\n{text}\n").as_bytes()).unwrap();
        } else if part == "drop" {
            drops_a_child().await;
        } else {
            spec.user = std::env::var("AS_USER").ok().map(|user| Identity::find(&user).unwrap());
            Child::spawn(&spec).unwrap().wait().await;
        }
    });
}

#[test]
fn a_child_starts_with_clean_signals_umask_and_descriptors() {
    run(async {
        let status = output(&argv(&["cat", "/proc/self/status"])).await;
        assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
        // The classic signals, 1 to 31: those above are the C library's own and applications' to share out.
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        let ignored = u64::from_str_radix(ignored, 16).unwrap();
        assert_eq!(ignored & 0x7fff_ffff, 0, "{status}");
        assert_eq!(output(&sh("umask")).await, "0022");
        let stdin = output(&argv(&["readlink", "/proc/self/fd/0"])).await;
        assert_eq!(stdin, "/dev/null");
        // Its own three, and what the parent of this test had already left open.
        let script = "for fd in /proc/self/fd/*; do readlink $fd; done; readlink /proc/self/fd/1";
        let all = output(&sh(script)).await;
        let ours = all.lines().last().unwrap();
        assert!(ours.starts_with("pipe:"), "{all}");
        let parent = rustix::process::getppid().unwrap().as_raw_pid();
        // Another user's parent (a privileged runner) does not show what it left open.
        let Ok(inherited) = fs::read_dir(format!("/proc/{parent}/fd")) else { return };
        let inherited: Vec<_> =
            inherited.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect();
        for link in all.lines().filter(|link| *link != "/dev/null" && *link != ours) {
            assert!(inherited.iter().any(|open| open == Path::new(link)), "{link}: {all}");
        }
    });
}

#[test]
fn directory_and_oom_score_are_set() {
    run(async {
        let spec = Spec {
            cwd: Some("/proc".into()),
            oom_score_adj: Some(1000),
            ..sh("pwd; cat self/oom_score_adj")
        };
        assert_eq!(output(&spec).await, "/proc\n1000");
        let spec = Spec { cwd: Some("/does/not/exist".into()), ..sh("exit 0") };
        let error = Child::spawn(&spec).err().unwrap().to_string();
        assert!(error.contains("the directory to start in is missing"), "{error}");
        let spec = Spec { oom_score_adj: Some(2000), ..sh("exit 0") };
        let error = Child::spawn(&spec).err().unwrap();
        assert_eq!(error.step, Step::OomScore, "{error}");
    });
}

#[test]
fn a_user_is_taken_on_with_its_groups() {
    run(async {
        let mut spec = sh("id -u; id -g; id -G");
        spec.user =
            Some(Identity { uid: 7, gid: 8, groups: vec![1234, 5678], ..Identity::default() });
        if !is_root() {
            let error = Child::spawn(&spec).err().unwrap();
            assert_eq!(error.step, Step::User);
            assert!(error.to_string().contains("must run as root"), "{error}");
            return;
        }
        assert_eq!(output(&spec).await, "7\n8\n8 1234 5678");
        spec.user = Some(Identity::find("65534:65534").unwrap());
        let status = output(&Spec { argv: argv(&["cat", "/proc/self/status"]).argv, ..spec }).await;
        for line in ["Uid:\t65534\t65534\t65534\t65534", "Gid:\t65534\t65534\t65534\t65534"] {
            assert!(status.contains(line), "{status}");
        }
        assert!(status.contains("CapPrm:\t0000000000000000"), "{status}");
    });
}

#[test]
fn capabilities_are_kept_where_we_have_them() {
    run(async {
        let spec = Spec {
            user: is_root().then(|| Identity::find("65534:65534").unwrap()),
            ambient_capabilities: vec!["cap_net_bind_service".to_owned()],
            ..argv(&["cat", "/proc/self/status"])
        };
        let ours = rustix::thread::capabilities(None).unwrap().permitted;
        if ours.contains(CapabilitySet::NET_BIND_SERVICE) {
            let status = output(&spec).await;
            assert!(status.contains("CapAmb:\t0000000000000400"), "{status}");
            assert!(status.contains("CapPrm:\t0000000000000400"), "{status}");
        } else {
            assert_eq!(Child::spawn(&spec).err().unwrap().step, Step::Capabilities);
        }
        let unknown = Spec { ambient_capabilities: vec!["cap_fly".to_owned()], ..spec };
        let error = Child::spawn(&unknown).err().unwrap().to_string();
        assert!(error.contains("no capability is called cap_fly"), "{error}");
    });
}

#[test]
fn a_failed_start_says_what_is_wrong_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, mode: u32, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let here = dir.path().to_str().unwrap().to_owned();
    for (program, said) in [
        ("/no/such/program".to_owned(), "no such program"),
        ("no-such-program".to_owned(), "in the directories of PATH"),
        (here, "it is a directory"),
        (file("plain", 0o644, "#!/bin/sh\n"), "its mode lacks execute permission"),
        (file("orphan", 0o755, "#!/no/such/shell\n"), "it is there: the interpreter"),
        // glibc hands it to a shell, as POSIX asks of execvp.
        #[cfg(target_env = "musl")]
        (file("foreign", 0o755, "\u{7f}ELFgarbage\0"), "built for another architecture"),
    ] {
        let error = Child::spawn(&argv(&[&program])).err().unwrap().to_string();
        assert!(error.starts_with(&format!("cannot start {program}: ")), "{error}");
        assert!(error.contains(said), "{error}");
    }
    let empty = Child::spawn(&Spec::default()).err().unwrap().to_string();
    assert!(empty.contains("the command is empty"), "{empty}");
    assert!(Child::spawn(&argv(&["/bin/true", "a\0b"])).is_err());
}

#[test]
fn a_command_that_takes_too_long_goes_with_its_group() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = fifo(dir.path());
    run(async {
        let spec =
            sh(&format!("echo before; (trap '' TERM; echo here; {FOR_EVER}) > {fifo} & wait"));
        let writer = async { all_gone(opened(&fifo).await).await };
        let limit = Duration::from_secs(1);
        let (outcome, ()) = smol::future::zip(command::run(&spec, limit), writer).await;
        assert!(matches!(outcome.how, How::TimedOut(_)));
        assert!(!outcome.success());
        assert_eq!(outcome.to_string(), "killed after its 1s: before");
    });
}

#[test]
fn a_command_says_how_it_failed() {
    run(async {
        let outcome = command::run(&sh("echo no good >&2; exit 2"), PATIENCE).await;
        assert_eq!(outcome.to_string(), "exited with status 2: no good");
        let outcome = command::run(&argv(&["/no/such"]), PATIENCE).await;
        assert!(matches!(outcome.how, How::NotStarted(_)));
        let failed = check::exec(&sh("exit 1"), PATIENCE).await.unwrap_err();
        assert_eq!(failed.to_string(), "/bin/sh: exited with status 1");
        check::exec(&sh("exit 0"), PATIENCE).await.unwrap();
    });
}

#[test]
fn usage_is_that_of_the_group_and_of_no_other() {
    run(async {
        let busy = Child::spawn(&sh("sleep 1000 & echo ready; while :; do :; done")).unwrap();
        ready(&busy).await;
        let used = || usage::of_group(busy.pid()).unwrap();
        until(&busy, || used().cpu >= Duration::from_millis(20)).await;
        assert_eq!(used().processes, 2);
        assert!(used().rss_bytes > 0);
        let pid = busy.pid();
        busy.stop(PATIENCE).await.unwrap();
        while usage::of_group(pid).unwrap().rss_bytes > 0 {
            Timer::after(Duration::from_millis(1)).await;
        }
    });
}

/// A server for one connection, on a thread of its own.
#[expect(clippy::disallowed_methods, reason = "the server's thread")]
fn serve(answer: impl FnOnce(TcpStream) + Send + 'static) -> HttpTarget {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || answer(listener.accept().unwrap().0));
    HttpTarget { host: "localhost".to_owned(), port, path: "/health?full=1".to_owned() }
}

fn answer(text: &'static str) -> HttpTarget {
    serve(move |mut stream| {
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let request: Vec<_> =
            lines.map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
        assert_eq!(request.first().unwrap(), "GET /health?full=1 HTTP/1.1");
        assert!(request.iter().any(|line| line.starts_with("Host: localhost:")));
        stream.write_all(text.as_bytes()).unwrap();
    })
}

#[test]
fn an_http_check_passes_with_2xx_only() {
    run(async {
        for good in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 204\r\n\r\n", "HTTP/1.1 299 Odd\n"] {
            check::http(&answer(good), PATIENCE).await.unwrap();
        }
        for (text, status) in [
            ("HTTP/1.1 500 Internal Server Error\r\n\r\n", 500),
            ("HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", 302),
            ("HTTP/1.1 404 \r\n\r\n", 404),
        ] {
            let target = answer(text);
            let failure = check::http(&target, PATIENCE).await.unwrap_err();
            assert!(matches!(failure.why, Why::Status(got) if got == status), "{failure}");
            let what = format!("GET http://localhost:{}/health?full=1: ", target.port);
            assert!(failure.to_string().starts_with(&what), "{failure}");
        }
    });
}

#[test]
fn an_http_check_is_not_taken_in() {
    run(async {
        for garbage in
            ["", "\r\n", "SSH-2.0-x\r\n", "HTTP/2 200\r\n", "HTTP/1.1 2000\r\n", "HTTP/1.1 +20\r\n"]
        {
            let failure = check::http(&answer(garbage), PATIENCE).await.unwrap_err();
            assert!(matches!(failure.why, Why::NotHttp), "{garbage:?}: {failure}");
        }
        let endless_line = serve(|mut stream| while stream.write_all(&[b'x'; 512]).is_ok() {});
        let failure = check::http(&endless_line, PATIENCE).await.unwrap_err();
        assert!(matches!(failure.why, Why::NotHttp), "{failure}");
        let endless_header = serve(|mut stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
            while stream.write_all(b"X-More: and more\r\n").is_ok() {}
        });
        check::http(&endless_header, PATIENCE).await.unwrap();
    });
}

#[test]
fn a_check_that_hangs_or_is_refused_fails_in_time() {
    run(async {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let silent = serve(move |stream| {
            let _ = held.recv();
            drop(stream);
        });
        let failure = check::http(&silent, Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(failure.why, Why::TimedOut(_)), "{failure}");
        drop(release);

        // Bound but not listening: refused, and no other test can take the port.
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )
        .unwrap();
        let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        rustix::net::bind(&socket, &any).unwrap();
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC).unwrap();
        let socket = TcpListener::from(socket);
        let port = socket.local_addr().unwrap().port();
        let refused = HttpTarget { host: "127.0.0.1".to_owned(), port, path: "/".to_owned() };
        let failure = check::http(&refused, PATIENCE).await.unwrap_err();
        assert!(matches!(failure.why, Why::Unreachable(..)), "{failure}");
        let failure = check::tcp("127.0.0.1", port, PATIENCE).await.unwrap_err();
        assert!(failure.to_string().contains("Connection refused"), "{failure}");
        let failure = check::tcp("::1", port, PATIENCE).await.unwrap_err();
        assert_eq!(failure.what, format!("TCP [::1]:{port}"));

        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        check::tcp("localhost", open.local_addr().unwrap().port(), PATIENCE).await.unwrap();
    });
}
