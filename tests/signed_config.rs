//! Signed configurations from outside: what is signed runs, and nothing else does.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;

use chiton::signature::{Kind, Manifest, SIGNATURE_OBJECT, digest_config};
use chiton_proto::{AgentToServer, PackageStatusEnum, RemoteConfigStatuses, ServerToAgent};
use common::packages::{Files, base64, offered, packages, signed, trusted};
use common::{Agent, Home, Peer, Server, Settings, files_with, offer};

use RemoteConfigStatuses::{Applied, Failed};

const GATE: &str = "rollback: { window: 10s, interval: 20ms, successes: 2 }";
const LONG_GATE: &str = "rollback: { window: 10s, interval: 100ms, successes: 15 }";

/// A set, its main file first.
type Set<'a> = &'a [(&'a str, &'a str)];

/// `more` are entries of `packages`.
fn settings(home: &Home, required: bool, more: &str) -> Settings {
    Settings {
        capabilities: vec!["accepts_remote_config"],
        arguments: vec!["{config_file}"],
        opamp: vec![
            format!(
                "remote_config: {{ {GATE}, min_interval: 1ms, main_file: main.yaml, require_signature: {required} }}"
            ),
            format!("packages: {{ trusted_keys: [{}] {more} }}", trusted(home, 1)),
            "agent: { service_name: gateway, labels: { site: hall3 } }".to_owned(),
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

fn manifest(counter: u64, set: Set<'_>) -> Manifest {
    let (size, sha256) = digest_config(set.iter().map(|(name, body)| (*name, body.as_bytes())));
    Manifest {
        name: "gateway".to_owned(),
        size,
        sha256: sha256.to_vec(),
        issued_at: 1_900_000_000,
        counter,
        kind: Kind::Config.number(),
        ..Manifest::default()
    }
}

/// The offer of a set with this body of the signature's object.
fn with_body(uid: &[u8], hash: &str, set: Set<'_>, body: Vec<u8>) -> ServerToAgent {
    let mut message = offer(uid, hash, set);
    let map = message.remote_config.as_mut().unwrap().config.as_mut().unwrap();
    let object = map.config_map.entry(SIGNATURE_OBJECT.to_owned()).or_default();
    object.body = body.into();
    message
}

fn signed_offer(uid: &[u8], hash: &str, counter: u64, set: Set<'_>) -> ServerToAgent {
    with_body(uid, hash, set, signed(&manifest(counter, set), &[1]))
}

/// Offers it and waits until it is committed.
fn commit(peer: &mut Peer, uid: &[u8], hash: &str, counter: u64, set: Set<'_>) {
    peer.send(&signed_offer(uid, hash, counter, set));
    let status = peer.status_of(hash);
    assert_eq!(status.status(), Applied, "{status:?}");
}

/// Offers it and waits until it is refused with this word.
fn refuse(peer: &mut Peer, message: &ServerToAgent, word: &str) {
    peer.send(message);
    let hash = &message.remote_config.as_ref().unwrap().config_hash;
    let status = peer.status_of(std::str::from_utf8(hash).unwrap());
    assert_eq!(status.status(), Failed, "{status:?}");
    assert!(status.error_message.starts_with("signature: "), "{status:?}");
    assert!(status.error_message.contains(word), "{word}: {status:?}");
}

trait Outcome {
    fn status_of(&mut self, hash: &str) -> chiton_proto::RemoteConfigStatus;
}

impl Outcome for Peer {
    /// How the offer with this hash ended.
    fn status_of(&mut self, hash: &str) -> chiton_proto::RemoteConfigStatus {
        let report = self.until(&format!("the outcome of {hash}"), |report| {
            report.remote_config_status.as_ref().is_some_and(|status| {
                status.last_remote_config_hash == hash.as_bytes()
                    && matches!(status.status(), Applied | Failed)
            })
        });
        report.remote_config_status.unwrap()
    }
}

const ONE: Set<'_> = &[("main.yaml", "level: 1\n"), ("rules.yaml", "r: 1\n")];
const TWO: Set<'_> = &[("main.yaml", "level: 2\n"), ("rules.yaml", "r: 2\n")];

#[test]
fn what_is_signed_runs_and_the_signature_is_no_file() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, true, ""));
    let uid = &first.instance_uid;
    let mut message = signed_offer(uid, "h1", 5, ONE);
    let map = message.remote_config.as_mut().unwrap().config.as_mut().unwrap();
    // What a server makes up about objects is nobody's word.
    for object in map.config_map.values_mut() {
        object.content_type = "text/plain".to_owned();
        object.role = "any".to_owned();
    }
    peer.send(&message);
    assert_eq!(peer.status_of("h1").status(), Applied);
    assert_eq!(home.seen(home.workload(1)), "level: 1\n");
    let full = peer.proves_to_work(uid);
    let map = full.effective_config.unwrap().config_map.unwrap().config_map;
    assert_eq!(map.keys().collect::<Vec<_>>(), ["main.yaml", "rules.yaml"]);
    assert_eq!((map["main.yaml"].content_type.as_str(), map["main.yaml"].role.as_str()), ("", ""));
    assert!(files_with(&home.path("state"), SIGNATURE_OBJECT).is_empty());
    assert!(!listing(&home).iter().any(|name| name.contains(SIGNATURE_OBJECT)));
    // Base64 is as good, for servers that carry text. One object beside it is the main file, whatever its name.
    let only: Set<'_> = &[("other.yaml", "level: 3\n")];
    let text = format!(" {}\n", base64(&signed(&manifest(6, only), &[1])));
    peer.send(&with_body(uid, "h2", only, text.into_bytes()));
    assert_eq!(peer.status_of("h2").status(), Applied);
    assert_eq!(home.seen(home.workload(2)), "level: 3\n");
    agent.stop_with(peer);
}

#[test]
fn what_is_not_signed_as_it_is_changes_nothing() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, true, ""));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "good", 5, ONE);
    let before = listing(&home);

    refuse(&mut peer, &offer(uid, "unsigned", TWO), "no object \"chiton.sig\"");
    refuse(&mut peer, &offer(uid, "empty", &[]), "no object \"chiton.sig\"");
    let good = signed(&manifest(6, TWO), &[1]);
    let with = |hash: &str, set: Set<'_>| with_body(uid, hash, set, good.clone());
    let renamed = "changed, added, left out or renamed";
    for (hash, set) in [
        ("a byte", &[("main.yaml", "level: 3\n"), ("rules.yaml", "r: 2\n")][..]),
        ("added", &[TWO[0], TWO[1], ("more.yaml", "")]),
        ("removed", &[TWO[0]]),
        ("renamed", &[TWO[0], ("Rules.yaml", "r: 2\n")]),
        ("swapped", &[("main.yaml", "r: 2\n"), ("rules.yaml", "level: 2\n")]),
        ("nothing", &[]),
    ] {
        refuse(&mut peer, &with(hash, set), renamed);
    }
    let by = |manifest: &Manifest, keys: &[u8]| signed(manifest, keys);
    let fits = manifest(6, TWO);
    let mut cut = good.clone();
    cut.pop();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let package = Manifest { kind: 0, version: "1".to_owned(), ..fits.clone() };
    for (hash, body, word) in [
        ("another key", by(&fits, &[2]), "not trusted here"),
        ("cut", cut, "signature"),
        ("flipped", flipped, "wrong signature"),
        ("blank", Vec::new(), "there is no signature"),
        ("noise", b"anything".to_vec(), "neither a signed manifest"),
        ("too long", vec![b'A'; 8193], "8193 bytes"),
        ("digest form", vec![7; 64], "digest signature"),
        ("a package's", by(&package, &[1]), "for a package"),
        ("service", by(&Manifest { name: "other".to_owned(), ..fits.clone() }, &[1]), "\"other\""),
        ("label", by(&Manifest { target: "site=hall4".to_owned(), ..fits.clone() }, &[1]), "hall4"),
        ("set", by(&Manifest { set: "s".to_owned(), ..fits.clone() }, &[1]), "set of packages"),
        ("expired", by(&Manifest { expires_at: 1_900_000_000, ..fits.clone() }, &[1]), "expired"),
        ("older", by(&manifest(4, TWO), &[1]), "its counter is 4, and 5 is the lowest"),
    ] {
        refuse(&mut peer, &with_body(uid, hash, TWO, body), word);
    }
    // The same hash again is nothing new.
    peer.send(&offer(uid, "older", TWO));
    peer.proves_to_work(uid);
    assert_eq!(listing(&home), before, "nothing was staged");
    agent.unharmed();
    agent.tells("config.status", &["FAILED"]);
    let target = Manifest { target: "site=hall3".to_owned(), name: String::new(), ..fits };
    peer.send(&with_body(uid, "fits", TWO, by(&target, &[1])));
    assert_eq!(peer.status_of("fits").status(), Applied);
    assert_eq!(home.seen(home.workload(2)), "level: 2\n");
    agent.stop_with(peer);
}

#[test]
fn an_older_one_never_comes_back_and_what_runs_is_always_fine() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, true, ""));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", 5, ONE);
    commit(&mut peer, uid, "h2", 6, TWO);
    refuse(&mut peer, &signed_offer(uid, "h1", 5, ONE), "6 is the lowest");
    agent.stop_with(peer);

    let agent = home.start();
    let (mut peer, _) = server.greet();
    refuse(&mut peer, &signed_offer(uid, "replayed", 5, ONE), "6 is the lowest");
    // What is committed, by whatever hash and however old its signature.
    commit(&mut peer, uid, "again", 6, TWO);
    commit(&mut peer, uid, "signed before", 1, TWO);
    let expired = Manifest { expires_at: 1, ..manifest(6, TWO) };
    peer.send(&with_body(uid, "expired", TWO, signed(&expired, &[1])));
    assert_eq!(peer.status_of("expired").status(), Applied);
    assert_eq!(home.pids().len(), 3, "nothing was restarted for it");
    // Signed anew: as good as any, and it raises the floor.
    commit(&mut peer, uid, "anew", 9, TWO);
    refuse(&mut peer, &signed_offer(uid, "between", 8, ONE), "9 is the lowest");
    commit(&mut peer, uid, "next", 10, ONE);
    assert_eq!(home.seen(home.workload(4)), "level: 1\n");
    agent.stop_with(peer);
}

/// Only a commit raises the floor: what fails its trial bars nothing.
#[test]
fn a_newer_one_that_fails_its_trial_raises_no_floor() {
    let (home, server) = (Home::new(), Server::new());
    home.script("if grep -q 'die: now' \"$1\"; then exit 3; fi");
    let mut settings = settings(&home, true, "");
    settings.opamp[0] = settings.opamp[0].replace(GATE, LONG_GATE);
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", 5, ONE);
    peer.send(&signed_offer(uid, "h9", 9, &[("main.yaml", "die: now\n")]));
    assert_eq!(peer.status_of("h9").status(), Failed);
    commit(&mut peer, uid, "h6", 6, TWO);
    agent.stop_with(peer);
}

/// What was gone back to is older than the floor, and still what runs by right.
#[test]
fn after_a_late_rollback_what_runs_is_fine_and_nothing_else_that_is_old() {
    let (home, server) = (Home::new(), Server::new());
    home.script("if grep -q 'die: later' \"$1\"; then while [ ! -e \"$0.die\" ]; do sleep 0.01; done; exit 3; fi");
    let mut settings = settings(&home, true, "");
    let gate = "rollback: { window: 10s, interval: 20ms, successes: 2, crash_loop: { crashes: 2, within: 10m } }";
    settings.opamp[0] = settings.opamp[0].replace(GATE, gate);
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h5", 5, ONE);
    let later: Set<'_> = &[("main.yaml", "die: later\n")];
    commit(&mut peer, uid, "h7", 7, later);
    fs::write(home.path("workload.sh.die"), "").unwrap();
    let status = peer.status("h7", Failed);
    assert!(status.error_message.contains("crashed 2 times"), "{status:?}");
    commit(&mut peer, uid, "h5", 5, ONE);
    refuse(&mut peer, &signed_offer(uid, "h6", 6, TWO), "7 is the lowest");
    commit(&mut peer, uid, "h8", 8, TWO);
    agent.stop_with(peer);
}

/// What the trial of a newer one needs outlives Chiton: the commit raises the floor all the same.
#[test]
fn a_trial_that_was_interrupted_raises_the_floor_when_it_is_committed() {
    let (home, server) = (Home::new(), Server::new());
    let mut settings = settings(&home, true, "");
    settings.opamp[0] = settings.opamp[0].replace(GATE, LONG_GATE);
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", 5, ONE);
    peer.send(&signed_offer(uid, "h2", 6, TWO));
    agent.tells("config.gate", &["trial"]);
    drop(agent);
    drop(peer);
    let agent = home.start();
    let (mut peer, _) = server.greet();
    // It is repeated whatever unsigned offers come before.
    refuse(&mut peer, &offer(uid, "bad", ONE), "no object");
    assert_eq!(peer.status_of("h2").status(), Applied);
    refuse(&mut peer, &signed_offer(uid, "h1", 5, ONE), "6 is the lowest");
    assert_eq!(home.seen(*home.pids().last().unwrap()), "level: 2\n");
    agent.stop_with(peer);
}

/// An unsigned offer does not even end a trial.
#[test]
fn a_trial_goes_on_whatever_unsigned_offers_come() {
    let (home, server) = (Home::new(), Server::new());
    let mut settings = settings(&home, true, "");
    settings.opamp[0] = settings.opamp[0].replace(GATE, LONG_GATE);
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", 5, ONE);
    peer.send(&signed_offer(uid, "h2", 6, TWO));
    agent.tells("config.gate", &["trial"]);
    refuse(&mut peer, &offer(uid, "bad", ONE), "no object");
    agent.tells("config.gate", &["idle"]);
    assert_eq!(home.seen(*home.pids().last().unwrap()), "level: 2\n");
    assert_eq!(home.pids().len(), 2);
    refuse(&mut peer, &signed_offer(uid, "older", 5, ONE), "6 is the lowest");
    agent.stop_with(peer);
}

#[test]
fn a_lost_record_needs_a_floor_from_elsewhere() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, true, ""));
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", 5, ONE);
    agent.stop_with(peer);
    let record = home.path("state/workloads/default/record");
    fs::remove_file(&record).unwrap();

    let agent = home.start();
    let (mut peer, _) = server.greet();
    refuse(&mut peer, &signed_offer(uid, "h2", 6, TWO), "min_counter: { /config: N }");
    commit(&mut peer, uid, "what runs", 5, ONE);
    agent.stop_with(peer);

    fs::remove_file(&record).unwrap();
    home.settings(&server.ws(), &settings(&home, true, ", min_counter: { /config: 6 }"));
    let agent = home.start();
    let (mut peer, _) = server.greet();
    refuse(&mut peer, &signed_offer(uid, "h5", 5, TWO), "6 is the lowest");
    commit(&mut peer, uid, "h6", 6, TWO);
    assert_eq!(home.seen(*home.pids().last().unwrap()), "level: 2\n");
    agent.stop_with(peer);
}

#[test]
fn where_no_signature_is_needed_one_that_is_there_must_be_good() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = connected(&home, &server, &settings(&home, false, ""));
    let uid = &first.instance_uid;
    peer.send(&offer(uid, "unsigned", ONE));
    assert_eq!(peer.status_of("unsigned").status(), Applied);
    refuse(&mut peer, &with_body(uid, "bad", TWO, signed(&manifest(6, ONE), &[1])), "renamed");
    refuse(&mut peer, &with_body(uid, "other", TWO, signed(&manifest(6, TWO), &[2])), "trusted");
    agent.unharmed();
    commit(&mut peer, uid, "signed", 6, TWO);
    // Order cannot be had where unsigned ones are taken.
    commit(&mut peer, uid, "older", 5, ONE);
    assert!(!listing(&home).iter().any(|name| name.contains(SIGNATURE_OBJECT)));
    agent.stop_with(peer);
}

#[test]
fn without_trusted_keys_a_signature_is_taken_out() {
    let (home, server) = (Home::new(), Server::new());
    let mut settings = settings(&home, false, "");
    settings.opamp.remove(1);
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    peer.send(&with_body(uid, "h1", ONE, b"anything".to_vec()));
    assert_eq!(peer.status_of("h1").status(), Applied);
    assert!(!listing(&home).iter().any(|name| name.contains(SIGNATURE_OBJECT)));
    let full = peer.proves_to_work(uid);
    let map = full.effective_config.unwrap().config_map.unwrap().config_map;
    assert_eq!(map.keys().collect::<Vec<_>>(), ["main.yaml", "rules.yaml"]);
    agent.stop_with(peer);
}

/// PRODUCT.md §3: a capability that cannot work is not claimed.
#[test]
fn without_a_usable_key_signed_configurations_are_not_claimed() {
    let (home, server) = (Home::new(), Server::new());
    let settings = settings(&home, true, "");
    fs::write(home.path("1.pub"), "no key").unwrap();
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    assert_eq!(first.capabilities & 0x1002, 0, "{:#x}", first.capabilities);
    peer.send(&offer(uid, "h1", ONE));
    agent.logs(&["ignored a remote configuration"]);
    peer.proves_to_work(uid);
    // The key comes: the next one is taken.
    trusted(&home, 1);
    agent.hang_up();
    peer.until("the capability", |report| report.capabilities & 2 != 0);
    commit(&mut peer, uid, "h2", 5, ONE);
    agent.stop_with(peer);
}

/// One candidate: a configuration that is refused refuses the packages with it, and nothing is fetched.
#[test]
fn packages_do_not_come_with_a_refused_configuration() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let mut settings = settings(&home, true, "");
    settings.capabilities.push("accepts_packages");
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    commit(&mut peer, uid, "h1", 5, ONE);
    let package = offered(&files, "prog", "1.0", 1, b"program");
    let mut together = packages(uid, "all-1", vec![package.clone()]);
    together.remote_config = offer(uid, "h2", TWO).remote_config;
    peer.send(&together);
    let status = peer.package("all-1", "prog");
    assert_eq!(status.status(), PackageStatusEnum::InstallFailed);
    assert!(status.error_message.contains("configuration offered with it"), "{status:?}");
    let full = peer.proves_to_work(uid);
    let config = full.remote_config_status.unwrap();
    assert_eq!((config.status(), &config.last_remote_config_hash[..]), (Failed, &b"h2"[..]));
    assert!(files.asked().is_empty());
    agent.unharmed();
    let mut together = packages(uid, "all-2", vec![package]);
    together.remote_config = signed_offer(uid, "h3", 6, TWO).remote_config;
    peer.send(&together);
    assert_eq!(peer.status_of("h3").status(), Applied);
    let full = peer.proves_to_work(uid);
    let statuses = full.package_statuses.unwrap();
    assert_eq!(statuses.packages["prog"].status(), PackageStatusEnum::Installed);
    agent.stop_with(peer);
}

/// What `chiton sign` writes is what the agent takes.
#[test]
fn the_command_line_signs_for_the_agent() {
    let (home, server) = (Home::new(), Server::new());
    let run = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_chiton"));
        let output = command.args(arguments).current_dir(home.path("")).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    run(&["keygen", "--out", "release.key"]);
    for (name, body) in ONE {
        fs::write(home.path(name), body).unwrap();
    }
    let sign = ["sign", "--key", "release.key", "--kind", "config", "--name", "gateway"];
    run(&[&sign[..], &["--target", "site=hall3", "--unnamed", "main.yaml", "rules.yaml"]].concat());
    let mut settings = settings(&home, true, "");
    settings.opamp[1] =
        format!("packages: {{ trusted_keys: [{}] }}", home.path("release.key.pub").display());
    let (agent, mut peer, first) = connected(&home, &server, &settings);
    let uid = &first.instance_uid;
    let signature = fs::read(home.path(SIGNATURE_OBJECT)).unwrap();
    let set: Set<'_> = &[("", ONE[0].1), ONE[1]];
    peer.send(&with_body(uid, "h1", set, signature.clone()));
    assert_eq!(peer.status_of("h1").status(), Applied);
    assert_eq!(home.seen(home.workload(1)), "level: 1\n");
    refuse(&mut peer, &with_body(uid, "h2", ONE, signature), "renamed");
    agent.unharmed();
    agent.stop_with(peer);
}

/// Names in the state directory, at every depth.
fn listing(home: &Home) -> Vec<String> {
    let files = files_with(&home.path("state"), "").into_iter();
    let mut names: Vec<String> = files.map(|path| path.display().to_string()).collect();
    names.sort();
    names
}
