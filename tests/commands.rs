//! The command line: exit codes and what is printed.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::process::{Command, Output};

use common::{Home, Settings};

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
        for command in ["run", "recover", "check", "status", "version"] {
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

/// `chiton check` of this file: its exit code and all that it prints.
fn check(home: &Home, yaml: &str) -> (Option<i32>, String) {
    fs::write(home.path("chiton.yaml"), yaml).unwrap();
    let output = home.chiton("check", &[]);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// A settings file with this endpoint and these further keys of `opamp`.
fn file(home: &Home, more: &str) -> String {
    let dir = home.path("").display().to_string();
    format!(
        "opamp:\n  server:\n    endpoint: ws://127.0.0.1:1/v1/opamp\n    headers: {{ Authorization: \"Bearer hunter2\" }}\n  \
         state_dir: {dir}state\n  status_socket: {dir}status.sock\n{more}"
    )
}

#[test]
fn check_prints_what_is_in_force_without_secrets() {
    let home = Home::new();
    let (code, text) = check(&home, &file(&home, ""));
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("ws://127.0.0.1:1/v1/opamp") && text.contains("heartbeat_interval"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn check_tells_each_problem_with_its_line_and_key() {
    let home = Home::new();
    let more = "  agent: { service_nam: x }\n  health: { check_interval: often }\n";
    let (code, text) = check(&home, &file(&home, more));
    assert_eq!(code, Some(78), "{text}");
    let path = home.path("chiton.yaml").display().to_string();
    let start = |line: u32, key: &str| format!("{path}:{line}: {key}: ");
    for (line, key, word) in [
        (7, "opamp.agent.service_nam", "service_name"),
        (8, "opamp.health.check_interval", "often"),
    ] {
        let start = start(line, key);
        let told = text.lines().find(|told| told.starts_with(&start));
        assert!(told.is_some_and(|told| told.contains(word)), "{start}…{word} in:\n{text}");
    }
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn check_reads_what_the_file_points_to() {
    let home = Home::new();
    let more = format!("  local_config_path: {}\n", home.path("none/such.yaml").display());
    assert_eq!(check(&home, &file(&home, &more)).0, Some(0), "it may come later");
    let yaml = file(&home, "")
        .replace("    headers", "    tls: { ca_file: /no/such/ca.pem }\n    headers");
    let yaml = yaml.replace("ws://", "wss://");
    let (code, text) = check(&home, &yaml);
    assert_eq!(code, Some(78), "{text}");
    assert!(
        text.contains("opamp.server.tls.ca_file: ") && text.contains("/no/such/ca.pem"),
        "{text}"
    );
}

#[test]
fn bad_settings_at_the_first_start_are_78() {
    let home = Home::new();
    for (yaml, word) in [
        (Some("opamp: { server: { endpoint: \"gopher://x\" } }\n"), "gopher"),
        (Some("opamp: [unclosed\n"), "chiton.yaml"),
        (None, "chiton.yaml"),
    ] {
        let path = home.path("chiton.yaml");
        match yaml {
            Some(yaml) => fs::write(&path, yaml).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let output = home.chiton("run", &[]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{text}");
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn status_is_0_healthy_1_unhealthy_3_not_running() {
    let home = Home::new();
    home.settings("ws://127.0.0.1:1/v1/opamp", &Settings::default());
    let output = home.chiton("status", &[]);
    assert_eq!(output.status.code(), Some(3));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("status.sock"), "{complaint}");

    let agent = home.start();
    agent.unharmed();
    let output = home.chiton("status", &[]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("healthy: true"), "{text}");
    agent.stop();

    fs::remove_file(home.path("workload.sh")).unwrap();
    let agent = home.start();
    agent.tells("workload.last_error", &["workload.sh"]);
    let (status, code) = agent.status();
    assert_eq!((code, status.get("healthy").unwrap().as_bool()), (Some(1), Some(false)));
    agent.stop();
}

#[test]
fn a_second_agent_on_one_state_directory_is_refused() {
    let home = Home::new();
    home.settings("ws://127.0.0.1:1/v1/opamp", &Settings::default());
    let agent = home.start();
    agent.unharmed();
    let output = home.chiton("run", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("another chiton"));
    // The first one does not notice.
    agent.unharmed();
    agent.stop();
}
