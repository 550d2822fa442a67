//! The program itself: what it prints and how it ends.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

const PROGRAM: &str = env!("CARGO_BIN_EXE_chiton-server");

#[test]
fn it_prints_its_addresses_and_ends_in_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut child = Command::new(PROGRAM)
            .args(["run", "--opamp", "127.0.0.1:0", "--rest", "127.0.0.1:0", "--db", ":memory:"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let lines: Vec<String> = lines.take(2).map(Result::unwrap).collect();
        assert!(
            lines[0].starts_with("agents: ws://127.0.0.1:") && lines[0].ends_with("/v1/opamp"),
            "{}",
            lines[0]
        );
        assert!(lines[1].starts_with("page and REST: http://127.0.0.1:"), "{}", lines[1]);
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn exit_codes() {
    let run = |arguments: &[&str]| {
        let output = Command::new(PROGRAM).args(arguments).output().unwrap();
        (
            output.status.code().unwrap(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (code, out, _) = run(&["--help"]);
    assert!(code == 0 && out.contains("--rest-unsafe") && out.contains("EXIT CODES"));
    let (code, out, err) = run(&["run", "--fast"]);
    assert!(code == 2 && out.is_empty() && err.contains("--fast"), "{code} {err}");
    let (code, _, err) = run(&["run", "--rest", "0.0.0.0:0", "--db", ":memory:"]);
    assert!(code == 1 && err.contains("--rest-unsafe"), "{code} {err}");
    let (code, _, err) =
        run(&["run", "--opamp", "127.0.0.1:0", "--rest", "127.0.0.1:0", "--db", "/dev/null/x"]);
    assert!(code == 1 && err.contains("database"), "{code} {err}");
}
