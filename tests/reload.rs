//! What changes while the agent runs: settings read again, settings that turned bad, logs, the service manager, and
//! restarts on command. Through the real binary.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use chiton_proto::RemoteConfigStatuses::Applied;
use chiton_proto::{AgentToServer, CommandType, ServerToAgent, ServerToAgentCommand};
use common::{Agent, Home, PATIENCE, Peer, Server, Settings, WINDOW, eventually, is_alive, offer};
use tungstenite::Message;

/// Settings with these keys of `opamp.server` and of `opamp`.
fn settings(server: &[&str], opamp: &[&str]) -> Settings {
    let lines = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect();
    Settings { server: lines(server), opamp: lines(opamp), ..Settings::default() }
}

/// An agent that has told all that there is to tell.
fn connected<'a>(
    home: &'a Home,
    server: &Server,
    settings: &Settings,
) -> (Agent<'a>, Peer, AgentToServer) {
    home.settings(&server.ws(), settings);
    let agent = home.start();
    let (mut peer, first) = server.greet();
    agent.unharmed();
    agent.settled(&mut peer, &first.instance_uid);
    (agent, peer, first)
}

fn label(report: &AgentToServer, key: &str) -> Option<String> {
    let attributes = &report.agent_description.as_ref()?.non_identifying_attributes;
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        chiton_proto::any_value::Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

/// The agent closes in order: the answer to its Close is sent, the connection ended.
fn leaves(mut peer: Peer) {
    peer.goodbye();
}

mod hang_up {
    use super::*;

    #[test]
    fn labels_are_reported_on_the_connection_that_is_there() {
        let (home, server) = (Home::new(), Server::new());
        let with =
            |label: &str| settings(&[], &[&format!("agent: {{ labels: {{ site: {label} }} }}")]);
        let (agent, mut peer, _) = connected(&home, &server, &with("north"));
        home.settings(&server.ws(), &with("south"));
        agent.hang_up();
        let report = peer.until("the new label", |report| report.agent_description.is_some());
        assert_eq!(label(&report, "site").as_deref(), Some("south"));
        assert!(report.effective_config.is_none(), "nothing else has changed: {report:?}");
        agent.logs(&["INFO", "in force now: opamp.agent.description.non_identifying_attributes"]);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn other_headers_are_a_new_connection_that_follows_the_old_one_in_order() {
        let (home, server) = (Home::new(), Server::new());
        let with =
            |token: &str| settings(&[&format!("headers: {{ Authorization: {token} }}")], &[]);
        let (agent, peer, _) = connected(&home, &server, &with("old-hunter2"));
        assert!(peer.request.contains("Authorization: old-hunter2\r\n"));
        home.settings(&server.ws(), &with("new-hunter2"));
        agent.hang_up();
        leaves(peer);
        let (peer, first) = server.greet();
        assert!(peer.request.contains("Authorization: new-hunter2\r\n"), "{}", peer.request);
        assert!(first.agent_description.is_none(), "the server knows it: {first:?}");
        agent.unharmed();
        let log = agent.stop_with(peer);
        assert!(log.contains("opamp.server.headers") && !log.contains("hunter2"), "{log}");
    }

    #[test]
    fn another_endpoint_gets_a_full_report_and_the_old_one_a_goodbye() {
        let (home, old, new) = (Home::new(), Server::new(), Server::new());
        let (agent, peer, _) = connected(&home, &old, &settings(&[], &[]));
        home.settings(&new.ws(), &settings(&[], &[]));
        agent.hang_up();
        leaves(peer);
        let (peer, first) = new.greet();
        assert!(first.agent_description.is_some() && first.effective_config.is_some(), "{first:?}");
        agent.shows("connection.endpoint", |endpoint| endpoint.as_str() == Some(&new.ws()));
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn who_waits_for_a_dead_server_goes_to_the_living_one_at_once() {
        let (home, server) = (Home::new(), Server::new());
        // Bound and let go: nobody listens there.
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let patient = settings(&["reconnect: { initial: 1h, max: 1h }"], &[]);
        home.settings(&format!("ws://{dead}/v1/opamp"), &patient);
        let agent = home.start();
        agent.logs(&["trying again in"]);
        home.settings(&server.ws(), &patient);
        agent.hang_up();
        let (peer, _) = server.greet();
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn an_attempt_that_hangs_is_given_up_for_the_new_endpoint() {
        let (home, silent, server) = (Home::new(), Server::new(), Server::new());
        let patient = settings(&["timeouts: { tls: 60s }"], &[]);
        home.settings(&silent.ws(), &patient);
        let agent = home.start();
        let mut hanging = silent.tcp();
        home.settings(&server.ws(), &patient);
        agent.hang_up();
        let (peer, _) = server.greet();
        let mut all = Vec::new();
        hanging.read_to_end(&mut all).unwrap();
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn a_wait_that_the_server_asked_for_is_kept_for_that_server_alone() {
        let (home, server, other) = (Home::new(), Server::new(), Server::new());
        let with =
            |token: &str| settings(&[&format!("headers: {{ Authorization: {token} }}")], &[]);
        home.settings(&server.ws(), &with("one"));
        let agent = home.start();
        server.refuse("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\n\r\n");
        agent.logs(&["503", "trying again in"]);
        home.settings(&server.ws(), &with("two"));
        agent.hang_up();
        agent.logs(&["in force now: opamp.server.headers"]);
        server.nobody_for(WINDOW);
        home.settings(&other.ws(), &with("two"));
        agent.hang_up();
        let (peer, _) = other.greet();
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn a_trusted_ca_that_was_missing_in_the_settings_is_used() {
        let (home, server) = (Home::new(), Server::new());
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        fs::write(home.path("right.pem"), certified.cert.pem()).unwrap();
        fs::write(home.path("wrong.pem"), other.cert.pem()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der());
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.unwrap())
            .unwrap();
        let config = Arc::new(config);
        let with = |file: &str| {
            settings(&[&format!("tls: {{ ca_file: {} }}", home.path(file).display())], &[])
        };
        home.settings(&server.wss(), &with("wrong.pem"));
        let agent = home.start();
        let mut refused = server.tls(&config);
        let mut nothing = Vec::new();
        let _ = refused.read_to_end(&mut nothing);
        agent.logs(&["WARN", "TLS: "]);
        home.settings(&server.wss(), &with("right.pem"));
        agent.hang_up();
        agent.logs(&["in force now: opamp.server.tls"]);
        // Attempts by the old settings may still stand in line.
        let mut peer = eventually("a handshake", || {
            let mut stream = server.tls(&config);
            let common::Stream::Tls(tls) = &mut stream else { return None };
            while tls.conn.is_handshaking() {
                tls.conn.complete_io(&mut tls.sock).ok()?;
            }
            Some(Peer::upgrade(stream))
        });
        let first = peer.report();
        peer.answer(&first);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn log_checks_and_redaction_change_at_once() {
        let (home, server) = (Home::new(), Server::new());
        let local = home.path("local.yaml");
        fs::write(&local, "password: visible\npin: 1234\n").unwrap();
        let local = format!("local_config_path: {}", local.display());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[], &[&local]));
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let sick = format!("health: {{ checks: [ {{ tcp: \"{dead}\" }} ] }}");
        home.settings(
            &server.ws(),
            &settings(
                &[],
                &[
                    &local,
                    &sick,
                    "log: { format: json }",
                    "effective_config: { redact: [\"pin\"] }",
                ],
            ),
        );
        agent.hang_up();
        agent.logs(&[
            "\"message\":\"in force now: opamp.health.checks, opamp.effective_config.redact",
        ]);
        let report = peer.until("it is masked", |report| {
            let config =
                report.effective_config.as_ref().and_then(|config| config.config_map.as_ref());
            config.is_some_and(|map| {
                map.config_map.values().all(|object| {
                    let text = String::from_utf8_lossy(&object.body).into_owned();
                    !text.contains("1234") && text.contains("visible")
                })
            })
        });
        assert!(report.agent_description.is_none(), "{report:?}");
        agent.tells("workload.last_error", &["check tcp", &dead.to_string()]);
        assert_eq!(agent.status().1, Some(1));
        // And back.
        home.settings(&server.ws(), &settings(&[], &[&local]));
        agent.hang_up();
        agent.settled(&mut peer, &first.instance_uid);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn capabilities_change_at_once() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[], &[]));
        let accepting =
            Settings { capabilities: vec!["accepts_remote_config"], ..Settings::default() };
        home.settings(&server.ws(), &accepting);
        agent.hang_up();
        let report = peer.until("the bit", |report| report.capabilities & 2 != 0);
        assert!(report.remote_config_status.is_some(), "what goes with it is told: {report:?}");
        peer.send(&offer(&first.instance_uid, "h1", &[("a.yaml", "a: 1\n")]));
        peer.send(&offer(&first.instance_uid, "h1", &[("a.yaml", "a: 1\n")]));
        home.workload(2);
        agent.terminate();
        peer.goodbye();
        drop(peer);
        agent.ended();
    }

    #[test]
    fn what_needs_a_restart_is_named_and_not_in_force() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, peer, _) = connected(&home, &server, &settings(&[], &[]));
        let yaml = fs::read_to_string(home.path("chiton.yaml")).unwrap();
        let elsewhere = home.path("elsewhere").display().to_string();
        let yaml = yaml.replace("stop_timeout: 5s", "stop_timeout: 6s\n    env: { A: b }");
        let yaml = yaml.replace(&home.path("state").display().to_string(), &elsewhere);
        fs::write(home.path("chiton.yaml"), yaml).unwrap();
        agent.hang_up();
        let line = agent.logs(&["WARN", "needs a restart: "]);
        for key in ["opamp.workload.env", "opamp.workload.stop_timeout", "opamp.state_dir"] {
            assert!(line.contains(key), "{line}");
        }
        assert!(!agent.log().contains("in force now"), "{}", agent.log());
        agent.unharmed();
        agent.stop_with(peer);
        assert!(!Path::new(&elsewhere).exists());
    }

    #[test]
    fn a_bad_file_changes_nothing_and_is_told_until_it_is_repaired() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[], &[]));
        let good = fs::read_to_string(home.path("chiton.yaml")).unwrap();
        let kept =
            eventually("the good settings are kept", || fs::read(home.path("state/settings")).ok());
        for (bad, words) in [
            (good.replace("endpoint: ws", "endpoint: gopher"), ["opamp.server.endpoint", "gopher"]),
            (
                good.replace("  workload:", "  labels: { a: b }\n  workload:"),
                ["opamp.labels", "unknown"],
            ),
            (good.replace("  workload:", "  workload: ["), ["chiton.yaml", ":"]),
        ] {
            fs::write(home.path("chiton.yaml"), &bad).unwrap();
            agent.hang_up();
            agent.logs(&["ERROR", words[0], words[1]]);
            let report = peer.until("it is told", |report| {
                let health = report.health.as_ref();
                let settings =
                    health.and_then(|health| health.component_health_map.get("settings"));
                settings.is_some_and(|settings| {
                    !settings.healthy && words.iter().all(|word| settings.last_error.contains(word))
                })
            });
            let health = report.health.unwrap();
            assert!(
                !health.healthy && health.component_health_map["workload"].healthy,
                "{health:?}"
            );
            let (status, code) = agent.status();
            assert_eq!(code, Some(1));
            let problems = format!("{:?}", status["problems"]);
            assert!(words.iter().all(|word| problems.contains(word)), "{problems}");
            agent.unharmed();
            assert_eq!(fs::read(home.path("state/settings")).unwrap(), kept);
        }
        fs::write(home.path("chiton.yaml"), &good).unwrap();
        agent.hang_up();
        agent.logs(&["INFO", "the settings are good again"]);
        agent.logs(&["INFO", "no setting has changed"]);
        agent.settled(&mut peer, &first.instance_uid);
        assert_eq!(agent.status().1, Some(0));
        let full = peer.proves_to_work(&first.instance_uid).health.unwrap();
        assert!(full.healthy && !full.component_health_map.contains_key("settings"), "{full:?}");
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn the_last_of_many_signals_counts() {
        let (home, server) = (Home::new(), Server::new());
        let with = |n: usize| settings(&[], &[&format!("agent: {{ labels: {{ n: v{n} }} }}")]);
        let (agent, mut peer, _) = connected(&home, &server, &with(0));
        for n in 1..=50 {
            // As editors do it: never half written.
            home.settings_at("new.yaml", &server.ws(), &with(n));
            fs::rename(home.path("new.yaml"), home.path("chiton.yaml")).unwrap();
            agent.hang_up();
        }
        peer.until("the last one", |report| label(report, "n").as_deref() == Some("v50"));
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn a_file_that_the_connection_lacked_is_noticed_without_a_signal() {
        let (home, server) = (Home::new(), Server::new());
        let token = home.path("token");
        let header = format!("headers: {{ Authorization: \"${{file:{}}}\" }}", token.display());
        home.settings(&server.ws(), &settings(&[&header], &[]));
        let agent = home.start();
        agent.logs(&["ERROR", "opamp.server.headers", "token"]);
        agent.unharmed();
        assert_eq!(agent.status().1, Some(1), "the connection lacks something");
        fs::write(home.path("token.new"), "late-hunter2\n").unwrap();
        fs::rename(home.path("token.new"), &token).unwrap();
        let (mut peer, first) = server.greet();
        assert!(peer.request.contains("Authorization: late-hunter2\r\n"), "{}", peer.request);
        agent.settled(&mut peer, &first.instance_uid);
        agent.unharmed();
        let log = agent.stop_with(peer);
        assert!(!log.contains("hunter2"), "{log}");
        let kept = common::files_with(&home.path("state"), "hunter2");
        assert!(kept.is_empty(), "what a file holds is not copied: {kept:?}");
    }
}

mod last_good {
    use super::*;

    /// Starts and stops an agent with good settings.
    fn once_good(home: &Home, server: &Server, settings: &Settings) {
        let (agent, peer, _) = connected(home, server, settings);
        agent.stop_with(peer);
    }

    fn break_file(home: &Home) {
        let yaml = fs::read_to_string(home.path("chiton.yaml")).unwrap();
        let yaml = yaml.replace("  workload:", "  workloda: 1\n  workload:");
        fs::write(home.path("chiton.yaml"), yaml).unwrap();
    }

    /// The workload runs again, and the server hears of the settings.
    fn lives(agent: &Agent, home: &Home, server: &Server, workload: usize) -> Peer {
        agent.logs(&["WARN", "the last good settings are in force"]);
        assert!(is_alive(home.workload(workload)));
        let (mut peer, first) = server.greet();
        let told = |report: &AgentToServer| {
            let health = report.health.as_ref();
            health.is_some_and(|health| health.component_health_map.contains_key("settings"))
        };
        if !told(&first) {
            peer.until("the settings are bad", told);
        }
        peer
    }

    #[test]
    fn a_file_that_turned_bad_does_not_lose_the_device() {
        let (home, server) = (Home::new(), Server::new());
        once_good(
            &home,
            &server,
            &settings(&[], &["agent: { labels: { site: \"${SITE:-north}\" } }"]),
        );
        let kept = home.path("state/settings");
        let before = fs::metadata(&kept).unwrap();
        assert_eq!(before.permissions().mode() & 0o777, 0o600);
        assert!(String::from_utf8_lossy(&fs::read(&kept).unwrap()).contains("${SITE:-north}"));

        break_file(&home);
        let agent = home.start();
        let mut peer = lives(&agent, &home, &server, 2);
        agent.logs(&["ERROR", "chiton.yaml", "workloda", "workload"]);
        let (status, code) = agent.status();
        assert_eq!(code, Some(1), "{status:?}");
        assert!(format!("{:?}", status["problems"]).contains("workloda"), "{status:?}");

        let yaml = fs::read_to_string(home.path("chiton.yaml")).unwrap();
        let yaml = yaml.replace("  workloda: 1\n", "").replace("north", "south");
        fs::write(home.path("chiton.yaml"), yaml).unwrap();
        agent.hang_up();
        let report = peer.until("the repaired file", |report| report.agent_description.is_some());
        assert_eq!(label(&report, "site").as_deref(), Some("south"));
        agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
        let now = |site: &str| {
            eventually("the repaired settings are kept", || {
                String::from_utf8_lossy(&fs::read(&kept).unwrap()).contains(site).then_some(())
            });
        };
        now("${SITE:-south}");
        agent.stop_with(peer);
        assert_ne!(fs::metadata(&kept).unwrap().ino(), before.ino());
    }

    #[test]
    fn what_is_kept_already_is_not_written_again() {
        let (home, server) = (Home::new(), Server::new());
        once_good(&home, &server, &settings(&[], &[]));
        let kept = home.path("state/settings");
        let before = fs::metadata(&kept).unwrap();
        let agent = home.start();
        let (peer, _) = server.greet();
        agent.hang_up();
        agent.logs(&["no setting has changed"]);
        agent.stop_with(peer);
        let after = fs::metadata(&kept).unwrap();
        assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    }

    #[test]
    fn a_file_that_is_gone_or_rubbish_is_no_loss_where_the_state_is_found() {
        let (home, server) = (Home::new(), Server::new());
        once_good(&home, &server, &settings(&[], &[]));
        let state = home.path("state").display().to_string();
        // Where systemd says.
        fs::remove_file(home.path("chiton.yaml")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        command.env("STATE_DIRECTORY", format!("/no/such:{state}"));
        let agent = home.start_by(command);
        let peer = lives(&agent, &home, &server, 2);
        agent.stop_with(peer);
        // Without that, nobody knows where it is.
        assert_eq!(home.chiton("run", &[]).status.code(), Some(78));
        // Cut short in the middle, but it names the place.
        fs::write(
            home.path("chiton.yaml"),
            format!("opamp:\n  state_dir: {state}\n  server: {{ end"),
        )
        .unwrap();
        let agent = home.start();
        agent.logs(&["ERROR", "chiton.yaml"]);
        let peer = lives(&agent, &home, &server, 3);
        assert_eq!(agent.status().1, Some(1));
        agent.stop_with(peer);
    }

    #[test]
    fn settings_of_another_file_and_damaged_ones_are_not_used() {
        let (home, server) = (Home::new(), Server::new());
        once_good(&home, &server, &settings(&[], &[]));
        break_file(&home);
        let bad = fs::read_to_string(home.path("chiton.yaml")).unwrap();
        fs::write(home.path("other.yaml"), &bad).unwrap();
        let other = Command::new(env!("CARGO_BIN_EXE_chiton"))
            .args(["run", "--config"])
            .arg(home.path("other.yaml"))
            .output()
            .unwrap();
        assert_eq!(other.status.code(), Some(78), "they belong to chiton.yaml");

        let kept = home.path("state/settings");
        let mut bytes = fs::read(&kept).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&kept, bytes).unwrap();
        let output = home.chiton("run", &[]);
        assert_eq!(output.status.code(), Some(78));
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains("workloda") && text.contains("state/settings"), "{text}");
        assert!(text.contains("checksum"), "{text}");
    }
}

mod logs {
    use super::*;

    #[test]
    fn the_journal_gets_priorities_and_only_the_journal() {
        let home = Home::new();
        home.settings("ws://127.0.0.1:1/v1/opamp", &settings(&[], &[]));
        // What systemd does: it names the file that stderr is.
        let script = "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"";
        let by = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script, env!("CARGO_BIN_EXE_chiton")]);
            command
        };
        let agent = home.start_by(by(script));
        let line = agent.logs(&["the workload runs"]);
        assert!(line.starts_with("<6>the workload runs"), "{line}");
        let line = agent.logs(&["trying again in"]);
        assert!(line.starts_with("<4>"), "{line}");
        let environment = fs::read(format!("/proc/{}/environ", home.workload(1))).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains("JOURNAL_STREAM"));
        agent.stop();

        // A variable that is inherited, with stderr elsewhere.
        let agent = home.start_by(by("JOURNAL_STREAM=1:2 exec \"$0\" \"$@\""));
        let line = agent.logs(&["the workload runs"]);
        assert!(line.contains("Z INFO "), "{line}");
        agent.stop();
    }

    #[test]
    fn a_missing_syslogd_is_told_once_and_holds_up_nobody() {
        let home = Home::new();
        home.settings("ws://127.0.0.1:1/v1/opamp", &settings(&[], &["log: { to: syslog }"]));
        let agent = home.start();
        agent.unharmed();
        let syslogd = Path::new("/dev/log").exists();
        let log = agent.stop();
        let told = log.lines().filter(|line| line.contains("/dev/log")).count();
        assert_eq!(told, usize::from(!syslogd), "{log}");
        assert_eq!(log.contains("the workload runs"), !syslogd, "{log}");
    }

    #[test]
    fn a_start_without_a_local_file_is_no_cause_for_a_warning() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, peer, _) = connected(&home, &server, &settings(&[], &[]));
        let log = agent.stop_with(peer);
        assert!(!log.contains("local configuration") && !log.contains("WARN"), "{log}");
    }

    #[test]
    fn a_flood_of_bad_frames_is_no_flood_of_lines() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[], &[]));
        for _ in 0..2000 {
            peer.send_payload(&[7, 7, 7]);
            peer.send_payload(&[0, 0xff, 0xff]);
        }
        peer.proves_to_work(&first.instance_uid);
        agent.unharmed();
        let log = agent.stop_with(peer);
        for words in ["bad header", "malformed"] {
            let lines = log.lines().filter(|line| line.contains(words)).count();
            assert!((1..=5).contains(&lines), "{lines} lines with {words}");
        }
    }
}

mod notify {
    use super::*;

    /// A service manager that listens.
    struct Manager {
        socket: UnixDatagram,
    }

    impl Manager {
        fn new(socket: UnixDatagram) -> Self {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            Self { socket }
        }

        fn hears(&self) -> String {
            let mut buffer = [0; 4096];
            let length = self.socket.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        }

        /// What is heard up to this, itself included.
        fn until(&self, end: &str) -> Vec<String> {
            let mut heard = Vec::new();
            loop {
                heard.push(self.hears());
                if heard.last().unwrap().starts_with(end) {
                    return heard;
                }
            }
        }
    }

    fn chiton(environment: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        command.envs(environment.iter().copied());
        command
    }

    #[test]
    fn ready_status_reloading_and_stopping_are_told() {
        let (home, server) = (Home::new(), Server::new());
        let path = home.path("notify");
        let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
        home.settings(&server.ws(), &settings(&[], &[]));
        let agent = home.start_by(chiton(&[
            ("NOTIFY_SOCKET", path.to_str().unwrap()),
            ("WATCHDOG_USEC", "3600000000"),
        ]));
        manager.until("READY=1");
        let pid = home.workload(1);
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(!environment.contains("NOTIFY_SOCKET") && !environment.contains("WATCHDOG"));
        let (peer, _) = server.greet();
        manager.until("STATUS=connected");

        agent.hang_up();
        let reloading = manager.until("RELOADING=1").pop().unwrap();
        let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
        assert!(since.parse::<u64>().unwrap() > 0);
        manager.until("READY=1");
        // Also after a bad file: the service runs on.
        fs::write(home.path("chiton.yaml"), "opamp: 1\n").unwrap();
        agent.hang_up();
        manager.until("RELOADING=1");
        manager.until("READY=1");

        agent.terminate();
        manager.until("STOPPING=1");
        agent.stop_with(peer);
    }

    #[test]
    fn ready_waits_for_no_server_and_for_no_configuration() {
        let home = Home::new();
        let waiting = Settings {
            capabilities: vec!["accepts_remote_config"],
            arguments: vec!["{config_file}"],
            ..Settings::default()
        };
        home.settings("ws://127.0.0.1:1/v1/opamp", &waiting);
        let name = format!("chiton-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = Manager::new(UnixDatagram::bind_addr(&address).unwrap());
        let agent = home.start_by(chiton(&[("NOTIFY_SOCKET", &format!("@{name}"))]));
        manager.until("READY=1");
        agent.tells("workload.status", &["waiting for a configuration"]);
        agent.stop();
    }

    #[test]
    fn the_watchdog_is_fed() {
        let home = Home::new();
        home.settings(
            "ws://127.0.0.1:1/v1/opamp",
            &settings(&["reconnect: { initial: 1h, max: 1h }"], &[]),
        );
        let path = home.path("notify");
        let manager = Manager::new(UnixDatagram::bind(&path).unwrap());
        let agent = home.start_by(chiton(&[
            ("NOTIFY_SOCKET", path.to_str().unwrap()),
            ("WATCHDOG_USEC", "200000"),
        ]));
        manager.until("READY=1");
        for _ in 0..5 {
            manager.until("WATCHDOG=1");
        }
        agent.stop();
    }

    #[test]
    fn a_manager_that_is_gone_is_told_and_changes_nothing() {
        let home = Home::new();
        home.settings("ws://127.0.0.1:1/v1/opamp", &settings(&[], &[]));
        let agent = home.start_by(chiton(&[("NOTIFY_SOCKET", "/no/such/socket")]));
        agent.logs(&["WARN", "NOTIFY_SOCKET", "/no/such/socket"]);
        agent.unharmed();
        agent.stop();
    }
}

mod restart {
    use super::*;

    fn command(first: &AgentToServer) -> ServerToAgent {
        ServerToAgent {
            instance_uid: first.instance_uid.clone(),
            command: Some(ServerToAgentCommand { r#type: CommandType::Restart.into() }),
            ..ServerToAgent::default()
        }
    }

    fn accepting() -> Settings {
        Settings {
            capabilities: vec!["accepts_restart_command", "accepts_remote_config"],
            ..Settings::default()
        }
    }

    #[test]
    fn a_flood_of_commands_is_one_restart() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &accepting());
        for _ in 0..200 {
            peer.send(&command(&first));
        }
        let pid = home.workload(2);
        agent.logs(&["WARN", "ignored a command to restart", "10s"]);
        peer.proves_to_work(&first.instance_uid);
        agent.shows("workload.pid", |shown| shown.as_i64() == Some(pid.into()));
        assert_eq!(home.pids().len(), 2);
        assert!(is_alive(pid));
        let log = agent.stop_with(peer);
        let lines = log.lines().filter(|line| line.contains("ignored a command")).count();
        assert!(lines <= 5, "{lines}");
    }

    #[test]
    fn during_a_trial_it_waits_for_the_end_and_fails_nothing() {
        let (home, server) = (Home::new(), Server::new());
        let well = Arc::new(AtomicBool::new(true));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let health = listener.local_addr().unwrap();
        let answers = Arc::clone(&well);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = common::read_head(&mut stream);
                let status = if answers.load(Ordering::SeqCst) { "200 OK" } else { "500 Sick" };
                let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let mut wanted = accepting();
        wanted.opamp = vec![
            "remote_config: { rollback: { window: 1h, interval: 20ms, successes: 2 } }".to_owned(),
            format!(
                "health: {{ check_interval: 1h, checks: [ {{ http: \"http://{health}/\" }} ] }}"
            ),
        ];
        let (agent, mut peer, first) = connected(&home, &server, &wanted);
        // Well before the trial, so it counts; not well in it until we say so.
        well.store(false, Ordering::SeqCst);
        peer.send(&offer(&first.instance_uid, "h1", &[("a.yaml", "a: 1\n")]));
        let trial = home.workload(2);
        agent.shows("config.gate", |gate| gate.as_str() == Some("trial"));
        peer.send(&command(&first));
        agent.logs(&["INFO", "done after the trial"]);
        peer.proves_to_work(&first.instance_uid);
        assert_eq!(home.pids().last(), Some(&trial), "the trial was disturbed");
        well.store(true, Ordering::SeqCst);
        peer.status("h1", Applied);
        let after = home.workload(3);
        agent.shows("workload.pid", |shown| shown.as_i64() == Some(after.into()));
        agent.shows("config.status", |status| status.as_str() == Some("APPLIED"));
        let log = agent.stop_with(peer);
        assert!(!log.contains("rolling back"), "{log}");
    }

    #[test]
    fn a_workload_that_waits_for_its_configuration_is_not_started_by_it() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &Settings { arguments: vec!["{config_file}"], ..accepting() });
        let agent = home.start();
        let (mut peer, first) = server.greet();
        peer.send(&command(&first));
        agent.logs(&["WARN", "ignored a command to restart", "waits for a configuration"]);
        peer.send(&offer(&first.instance_uid, "h1", &[("a.yaml", "a: 1\n")]));
        let pid = home.workload(1);
        assert_eq!(home.seen(pid), "a: 1\n");
        agent.shows("workload.pid", |shown| shown.as_i64() == Some(pid.into()));
        assert_eq!(home.pids().len(), 1);
        agent.stop_with(peer);
    }

    #[test]
    fn without_the_capability_or_of_another_type_it_is_one_line() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[], &[]));
        for _ in 0..20 {
            peer.send(&command(&first));
        }
        let strange = ServerToAgentCommand { r#type: 99 };
        peer.send(&ServerToAgent { command: Some(strange), ..command(&first) });
        // A frame in between is no harm.
        peer.send_frame(Message::Ping(vec![1].into()));
        peer.proves_to_work(&first.instance_uid);
        agent.unharmed();
        peer.quiet_for(WINDOW);
        let log = agent.stop_with(peer);
        let lines = log.lines().filter(|line| line.contains("ignored a command")).count();
        assert!((1..=5).contains(&lines), "{log}");
    }
}
