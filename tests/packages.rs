//! Packages from outside: what is offered, what is fetched, what runs, what is reported.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use chiton_proto::{AgentToServer, PackageStatusEnum, RemoteConfigStatuses};
use common::packages::{Files, offered, packages, trusted};
use common::{Agent, Home, Peer, Server, Settings, eventually, is_alive, offer};

use PackageStatusEnum::{InstallFailed, Installed};

const GATE: &str = "rollback: { window: 10s, interval: 20ms, successes: 2 }";
const LONG_GATE: &str = "rollback: { window: 10s, interval: 100ms, successes: 15 }";

/// The workload is the package `prog`.
fn settings(home: &Home, gate: &str, more: &str) -> Settings {
    Settings {
        capabilities: vec!["accepts_remote_config", "accepts_packages"],
        command: Some("[\"{package_dir:prog}/prog\"]".to_owned()),
        opamp: vec![
            format!("remote_config: {{ {gate}, min_interval: 1ms }}"),
            format!("packages: {{ trusted_keys: [{}] {more} }}", trusted(home, 1)),
        ],
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

#[test]
fn a_program_is_fetched_installed_and_run_and_its_next_version_too() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, GATE, ""));
    let uid = &first.instance_uid;
    let empty = first.package_statuses.unwrap();
    assert!(empty.packages.is_empty() && empty.server_provided_all_packages_hash.is_empty());

    let one = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    peer.send(&packages(uid, "all-1", vec![one.clone()]));
    let status = peer.package("all-1", "prog");
    assert_eq!((status.status(), status.error_message.as_str()), (Installed, ""));
    assert_eq!(
        (status.agent_has_version.as_str(), status.server_offered_version.as_str()),
        ("1.0", "1.0")
    );
    assert_eq!((&status.agent_has_hash, &status.server_offered_hash), (&one.1.hash, &one.1.hash));
    assert!(status.download_details.is_none());
    let pid = home.workload(1);
    assert_eq!(home.version(pid), "1.0");
    assert_eq!(home.installed("prog"), [("prog".to_owned(), 0o755)].into());

    let two = offered(&files, "prog", "2.0", 2, &home.program("2.0", ""));
    peer.send(&packages(uid, "all-2", vec![two]));
    let status = peer.package("all-2", "prog");
    assert_eq!((status.status(), status.agent_has_version.as_str()), (Installed, "2.0"));
    let next = home.workload(2);
    assert_eq!(home.version(next), "2.0");
    assert!(!is_alive(pid));

    // The same again is nothing new, also after a restart.
    let asked = files.asked().len();
    agent.stop_with(peer);
    let agent = home.start();
    let (mut peer, first) = server.greet();
    let told = first.package_statuses.unwrap();
    assert_eq!(told.server_provided_all_packages_hash, "all-2");
    assert_eq!(told.packages.get("prog").unwrap().status(), Installed);
    assert_eq!(home.version(home.workload(3)), "2.0");
    peer.proves_to_work(uid);
    assert_eq!(files.asked().len(), asked);
    agent.stop_with(peer);
}

#[test]
fn a_program_that_does_not_live_is_rolled_back_with_its_configuration() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let mut settings = settings(&home, LONG_GATE, "");
    settings.command = Some("[\"{package_dir:prog}/prog\", \"{config_file}\"]".to_owned());
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;

    let one = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    let mut together = packages(uid, "all-1", vec![one]);
    together.remote_config = offer(uid, "c1", &[("c.yaml", "level: 1\n")]).remote_config;
    peer.send(&together);
    peer.status("c1", RemoteConfigStatuses::Applied);
    let pid = home.workload(1);
    assert_eq!((home.version(pid).as_str(), home.seen(pid).as_str()), ("1.0", "level: 1\n"));
    assert_eq!(home.pids().len(), 1, "one candidate, one start");

    let two = offered(&files, "prog", "2.0", 2, &home.program("2.0", "echo no >&2; exit 3"));
    let mut together = packages(uid, "all-2", vec![two.clone()]);
    together.remote_config = offer(uid, "c2", &[("c.yaml", "level: 2\n")]).remote_config;
    peer.send(&together);
    let status = peer.status("c2", RemoteConfigStatuses::Failed);
    assert!(status.error_message.contains("exited with status 3"), "{status:?}");
    let full = peer.proves_to_work(uid);
    let told = full.package_statuses.unwrap();
    assert_eq!(told.server_provided_all_packages_hash, "all-2");
    let prog = told.packages.get("prog").unwrap();
    assert_eq!(prog.status(), InstallFailed);
    assert!(prog.error_message.contains("exited with status 3"), "{prog:?}");
    assert_eq!(
        (prog.agent_has_version.as_str(), prog.server_offered_version.as_str()),
        ("1.0", "2.0")
    );
    let pid = home.workload(3);
    assert_eq!((home.version(pid).as_str(), home.seen(pid).as_str()), ("1.0", "level: 1\n"));
    // Nothing of the failed one is left but what is remembered of it.
    eventually("the failed tree is removed", || {
        (fs::read_dir(home.packages().join("trees")).unwrap().count() == 2).then_some(())
    });
    agent.stop_with(peer);
}

#[test]
fn what_nobody_signed_is_not_even_fetched() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, GATE, ""));
    let uid = &first.instance_uid;
    let mut unsigned = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    unsigned.1.file.as_mut().unwrap().signature.clear();
    peer.send(&packages(uid, "all-1", vec![unsigned]));
    let status = peer.package("all-1", "prog");
    assert_eq!(status.status(), InstallFailed);
    assert!(status.error_message.contains("not signed"), "{status:?}");
    assert!(status.agent_has_version.is_empty());
    assert!(files.asked().is_empty());
    assert!(!home.packages().join("current").exists());
    agent.stop_with(peer);
}

#[test]
fn an_offer_without_a_hash_is_known_by_its_contents() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, GATE, ""));
    let uid = &first.instance_uid;

    let one = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    for _ in 0..3 {
        peer.send(&packages(uid, "", vec![one.clone()]));
    }
    let status = peer.until("1.0", |report| runs(report, "1.0"));
    assert!(status.package_statuses.unwrap().server_provided_all_packages_hash.is_empty());
    let pid = home.workload(1);
    let asked = files.asked().len();
    assert_eq!(asked, 1);

    // Also where its URL is another one each time.
    let mut elsewhere = one.clone();
    elsewhere.1.file.as_mut().unwrap().download_url.push_str("?signed=again");
    peer.send(&packages(uid, "", vec![elsewhere]));
    peer.proves_to_work(uid);
    assert_eq!(files.asked().len(), asked);
    assert!(is_alive(pid));

    // What is another one is another one.
    let bad = offered(&files, "prog", "2.0", 2, &home.program("2.0", "exit 3"));
    for _ in 0..3 {
        peer.send(&packages(uid, "", vec![bad.clone()]));
    }
    peer.until("2.0 failed", |report| {
        let told = report.package_statuses.as_ref().and_then(|told| told.packages.get("prog"));
        told.is_some_and(|it| it.status() == InstallFailed)
    });
    assert_eq!(home.version(home.workload(3)), "1.0");
    // Nor is it tried again, also after a restart.
    let asked = files.asked().len();
    agent.stop_with(peer);
    let agent = home.start();
    let (mut peer, _) = server.greet();
    home.workload(4);
    peer.send(&packages(uid, "", vec![bad]));
    peer.proves_to_work(uid);
    assert_eq!((files.asked().len(), home.pids().len()), (asked, 4));
    let three = offered(&files, "prog", "3.0", 3, &home.program("3.0", ""));
    peer.send(&packages(uid, "", vec![three]));
    peer.until("3.0", |report| runs(report, "3.0"));
    agent.stop_with(peer);
}

/// The report says that `prog` is installed in a version.
fn runs(report: &AgentToServer, version: &str) -> bool {
    let told = report.package_statuses.as_ref().and_then(|told| told.packages.get("prog"));
    told.is_some_and(|it| it.status() == Installed && it.agent_has_version == version)
}

/// A set without the program is refused, whoever signed it: what runs goes on, nothing is fetched.
#[test]
fn a_set_without_the_workloads_program_is_refused() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, GATE, ""));
    let uid = &first.instance_uid;
    let one = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    let rules = offered(&files, "rules", "1.0", 1, b"drop everything");
    peer.send(&packages(uid, "all-1", vec![one]));
    assert_eq!(peer.package("all-1", "prog").status(), Installed);
    let asked = files.asked().len();
    peer.send(&packages(uid, "all-2", vec![rules.clone()]));
    let told = peer.packages("all-2");
    assert!(told.error_message.contains("no package prog"), "{told:?}");
    assert_eq!(told.packages.get("prog").unwrap().status(), Installed);
    assert_eq!(files.asked().len(), asked);
    agent.unharmed();
    let one = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    peer.send(&packages(uid, "all-3", vec![one, rules]));
    assert_eq!(peer.package("all-3", "rules").status(), Installed);
    agent.stop_with(peer);
}

/// The newest offer wins, also when it is the one before the one on trial: that is not committed behind its back.
#[test]
fn what_is_installed_offered_again_ends_the_trial_of_the_next() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, LONG_GATE, ""));
    let uid = &first.instance_uid;
    let one = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    let two = offered(&files, "prog", "2.0", 2, &home.program("2.0", ""));
    peer.send(&packages(uid, "all-1", vec![one.clone()]));
    assert_eq!(peer.package("all-1", "prog").status(), Installed);
    for again in ["all-1", "all-1-by-another-name"] {
        let before = home.pids().len();
        peer.send(&packages(uid, "all-2", vec![two.clone()]));
        let trial = home.workload(before + 1);
        eventually("it runs", || (home.version(trial) == "2.0").then_some(()));
        peer.send(&packages(uid, again, vec![one.clone()]));
        let status = peer.package(again, "prog");
        assert_eq!((status.status(), status.agent_has_version.as_str()), (Installed, "1.0"));
        let back = home.workload(before + 2);
        eventually("the old one runs", || (home.version(back) == "1.0").then_some(()));
    }
    peer.send(&packages(uid, "all-2", vec![two]));
    let status = peer.package("all-2", "prog");
    assert_eq!((status.status(), status.agent_has_version.as_str()), (Installed, "2.0"));
    agent.stop_with(peer);
}
