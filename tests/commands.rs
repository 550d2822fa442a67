//! The command line: exit codes and what is printed.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::process::{Command, Output};

fn chiton(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chiton")).args(arguments).output().unwrap()
}

#[test]
fn wrong_usage_is_2_and_names_the_word_at_fault() {
    for (arguments, word) in [
        (&[][..], "missing"),
        (&["fly"], "fly"),
        (&["run", "--fast"], "--fast"),
        (&["run", "--config"], "--config"),
        (&["run", "more"], "more"),
        (&["run", "--json"], "--json"),
        (&["version", "--config", "x"], "--config"),
    ] {
        let output = chiton(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert!(complaint.starts_with("chiton: ") && complaint.contains(word), "{complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
    }
}

#[test]
fn help_names_every_command_on_stdout() {
    for arguments in [&["--help"][..], &["-h"], &["help"], &["status", "--help"]] {
        let output = chiton(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        for command in ["run", "check", "status", "version"] {
            assert!(text.lines().any(|line| line.trim_start().starts_with(command)), "{command}");
        }
    }
}

#[test]
fn version_is_for_eyes_and_for_programs() {
    let output = chiton(&["version", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let document: serde_yaml::Value =
        serde_yaml::from_str(&String::from_utf8(output.stdout).unwrap()).unwrap();
    let text = |key: &str| document.get(key).unwrap().as_str().unwrap().to_owned();
    assert_eq!(text("version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(text("opamp"), "0.20.0");
    assert!(text("target").contains("linux"), "{document:?}");
    assert!(text("build").ends_with('Z'), "{document:?}");

    for arguments in [["version"], ["--version"]] {
        let output = chiton(&arguments);
        assert_eq!(output.status.code(), Some(0));
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(line.starts_with(&format!("chiton {} (", text("version"))), "{line}");
    }
}

#[test]
fn output_into_a_closed_pipe_is_no_failure() {
    let mut child = Command::new("/bin/sh")
        .args(["-c", "\"$0\" --help | true", env!("CARGO_BIN_EXE_chiton")])
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
}
