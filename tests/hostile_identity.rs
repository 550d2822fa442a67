//! HOSTILE X4: a server that gives instance uids at the worst moments, twice, and without end. The real binary.
//!
//! What must never be: a uid that is neither the old nor the new one, a new one forgotten after it was used, two changes
//! on one connection, a trial or a download that fails for it.
#![expect(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "tests")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::{fs, thread};

use chiton_proto::{
    AgentIdentification, AgentToServer, Message as _, PackageStatusEnum, RemoteConfigStatuses,
    ServerToAgent,
};
use common::packages::{Files, honest, offered, packages, trusted};
use common::{Agent, Home, Peer, Server, Settings, eventually, offer};

use RemoteConfigStatuses::{Applied, Applying};

const GIVEN: [u8; 16] = [7; 16];
/// More steps than the start and the change of a uid take: beyond it, the test itself is wrong.
const MOST_STEPS: u8 = 100;

/// A gate in which there is time for a uid.
fn settings(home: &Home) -> Settings {
    Settings {
        capabilities: vec!["accepts_remote_config", "accepts_packages"],
        arguments: vec!["{config_file}"],
        opamp: vec![
            "remote_config: { rollback: { window: 10s, interval: 100ms, successes: 10 }, min_interval: 1ms }"
                .to_owned(),
            format!("packages: {{ trusted_keys: [{}] }}", trusted(home, 1)),
        ],
        ..Settings::default()
    }
}

fn give(to: &AgentToServer, uid: &[u8]) -> ServerToAgent {
    ServerToAgent {
        instance_uid: to.instance_uid.clone(),
        agent_identification: Some(AgentIdentification { new_instance_uid: uid.to_vec().into() }),
        ..ServerToAgent::default()
    }
}

/// Gives a uid, and returns the report under it: a full one.
fn given(peer: &mut Peer, to: &AgentToServer, uid: &[u8]) -> AgentToServer {
    peer.send(&give(to, uid));
    let report = peer.until("the new uid", |report| report.instance_uid == uid);
    assert!(report.agent_description.is_some() && report.health.is_some(), "{report:?}");
    report
}

/// Where `h1` is committed.
fn with_config<'a>(home: &'a Home, server: &Server) -> (Agent<'a>, Peer, AgentToServer) {
    home.settings(&server.ws(), &settings(home));
    let agent = home.start();
    let (mut peer, first) = server.greet();
    peer.send(&offer(&first.instance_uid, "h1", &[("c.yaml", "level: 1\n")]));
    peer.status("h1", Applied);
    (agent, peer, first)
}

#[test]
fn a_uid_given_while_a_configuration_is_tried_does_not_disturb_the_trial() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = with_config(&home, &server);
    peer.send(&offer(&first.instance_uid, "h2", &[("c.yaml", "level: 2\n")]));
    let tried = home.workload(2);
    let report = given(&mut peer, &first, &GIVEN);
    let status = report.remote_config_status.unwrap();
    assert_eq!(
        (status.last_remote_config_hash.as_ref(), status.status()),
        (b"h2".as_slice(), Applying)
    );
    peer.status("h2", Applied);
    assert_eq!(peer.proves_to_work(&GIVEN).instance_uid, GIVEN.as_slice());
    assert_eq!(home.pids().last(), Some(&tried), "one trial, one start; the log:\n{}", agent.log());
    agent.stop_with(peer);

    let agent = home.start();
    let (peer, again) = server.greet();
    assert_eq!(again.instance_uid, GIVEN.as_slice());
    let status = again.remote_config_status.unwrap();
    assert_eq!(
        (status.last_remote_config_hash.as_ref(), status.status()),
        (b"h2".as_slice(), Applied)
    );
    agent.stop_with(peer);
}

#[test]
fn killed_in_the_trial_right_after_it_both_are_there_again() {
    let (home, server) = (Home::new(), Server::new());
    let (agent, mut peer, first) = with_config(&home, &server);
    peer.send(&offer(&first.instance_uid, "h2", &[("c.yaml", "level: 2\n")]));
    home.workload(2);
    given(&mut peer, &first, &GIVEN);
    // SIGKILL.
    drop(agent);
    drop(peer);

    let agent = home.start();
    let (mut peer, again) = server.greet();
    assert_eq!(again.instance_uid, GIVEN.as_slice());
    peer.send(&offer(&GIVEN, "h2", &[("c.yaml", "level: 2\n")]));
    peer.status("h2", Applied);
    let pid = *home.pids().last().unwrap();
    assert_eq!(home.seen(pid), "level: 2\n");
    agent.stop_with(peer);
}

#[test]
fn a_uid_given_while_a_package_comes_does_not_begin_it_anew() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let mut settings = settings(&home);
    settings.command = Some("[\"{package_dir:prog}/prog\"]".to_owned());
    settings.arguments.clear();
    home.settings(&server.ws(), &settings);
    let agent = home.start();
    let (mut peer, first) = server.greet();
    let (go, wait) = channel::<()>();
    files.oddly(move |head, file, stream| {
        let (head, body) = honest(head, file);
        let (one, two) = body.split_at(body.len() / 2);
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(one).unwrap();
        let _ = wait.recv();
        stream.write_all(two).unwrap();
        true
    });
    let program = offered(&files, "prog", "1.0", 1, &home.program("1.0", ""));
    peer.send(&packages(&first.instance_uid, "all-1", vec![program]));
    eventually("the download begins", || (!files.asked().is_empty()).then_some(()));
    let report = given(&mut peer, &first, &GIVEN);
    let told = report.package_statuses.unwrap();
    assert_ne!(told.packages.get("prog").unwrap().status(), PackageStatusEnum::Installed);
    go.send(()).unwrap();
    let status = peer.package("all-1", "prog");
    assert_eq!(
        (status.status(), status.error_message.as_str()),
        (PackageStatusEnum::Installed, "")
    );
    assert_eq!(home.version(home.workload(1)), "1.0");
    assert_eq!(files.asked().len(), 1, "{:?}", files.asked());
    agent.stop_with(peer);

    let agent = home.start();
    let (peer, again) = server.greet();
    assert_eq!(again.instance_uid, GIVEN.as_slice());
    assert_eq!(again.package_statuses.unwrap().server_provided_all_packages_hash, "all-1");
    agent.stop_with(peer);
}

#[test]
fn of_two_with_one_uid_the_one_that_is_told_takes_another() {
    let (one, two, server) = (Home::new(), Home::new(), Server::new());
    one.settings(&server.ws(), &settings(&one));
    two.settings(&server.ws(), &settings(&two));
    let agent = one.start();
    let (peer, first) = server.greet();
    agent.stop_with(peer);
    // What a copied card is: the same state on hardware that does not say otherwise.
    fs::create_dir(two.path("state")).unwrap();
    fs::copy(one.path("state/instance_uid"), two.path("state/instance_uid")).unwrap();

    let (first_agent, second_agent) = (one.start(), two.start());
    let (mut kept, also) = server.greet();
    let (mut changed, twin) = server.greet();
    assert_eq!(
        (&also.instance_uid, &twin.instance_uid),
        (&first.instance_uid, &first.instance_uid)
    );
    given(&mut changed, &twin, &GIVEN);
    // Once that is settled, the old one is another's.
    changed
        .answer(&AgentToServer { instance_uid: GIVEN.to_vec().into(), ..AgentToServer::default() });
    changed.answer(&twin);
    assert_eq!(changed.proves_to_work(&GIVEN).instance_uid, GIVEN.as_slice());
    assert_eq!(kept.proves_to_work(&first.instance_uid).instance_uid, first.instance_uid);
    // Which of the two came first is nobody's concern.
    for words in ["instance uid is now", "another instance uid"] {
        let told = || [&first_agent, &second_agent].map(|agent| agent.log().matches(words).count());
        eventually(words, || (told().iter().sum::<usize>() == 1).then_some(()));
    }
    drop((kept, changed));
    first_agent.stop();
    second_agent.stop();
}

#[test]
fn a_uid_that_comes_again_is_no_other_change_and_a_flood_is_one_a_connection() {
    let (home, server) = (Home::new(), Server::new());
    home.settings(&server.ws(), &settings(&home));
    let agent = home.start();
    let (mut peer, first) = server.greet();
    for _ in 0..20 {
        peer.send(&give(&first, &GIVEN));
    }
    let report = peer.until("the new uid", |report| report.instance_uid == GIVEN.as_slice());
    assert_eq!(peer.proves_to_work(&GIVEN).instance_uid, GIVEN.as_slice());
    agent.logs(&["instance uid is now"]);
    assert_eq!(agent.log().matches("instance uid is now").count(), 1, "{}", agent.log());
    // Others, the first one among them, are too many for this connection.
    for uid in 10..60 {
        peer.send(&give(&report, &[uid; 16]));
    }
    peer.send(&give(&report, &first.instance_uid));
    assert_eq!(peer.proves_to_work(&GIVEN).instance_uid, GIVEN.as_slice());
    agent.logs(&["WARN", "second new instance uid"]);
    drop(peer);

    // The next one has its own: taken from the first that is offered.
    let (mut peer, again) = server.greet();
    assert_eq!(again.instance_uid, GIVEN.as_slice());
    for uid in 100..150 {
        peer.send(&give(&again, &[uid; 16]));
    }
    peer.until("the next uid", |report| report.instance_uid == [100; 16].as_slice());
    assert_eq!(peer.proves_to_work(&[100; 16]).instance_uid, [100; 16].as_slice());
    drop((agent, peer));
    let agent = home.start();
    let (peer, again) = server.greet();
    assert_eq!(again.instance_uid, [100; 16].as_slice());
    assert_eq!(agent.log().matches("instance uid is now").count(), 0);
    agent.stop_with(peer);
}

/// A server over plain HTTP that gives whoever calls this uid; whoever calls may die at any time.
#[derive(Default)]
struct Giver {
    gives: Option<[u8; 16]>,
    /// The uid of the last report.
    seen: Option<Vec<u8>>,
}

fn serve(mut stream: &TcpStream, giver: &Mutex<Giver>) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body)?;
        let report = AgentToServer::decode(body.as_slice()).unwrap();
        let gives = {
            let mut giver = giver.lock().unwrap();
            giver.seen = Some(report.instance_uid.to_vec());
            giver.gives.filter(|uid| report.instance_uid != uid.as_slice())
        };
        let answer =
            give(&report, gives.as_ref().map_or(&report.instance_uid, <[u8; 16]>::as_slice));
        let body = answer.encode_to_vec();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(&[head.as_bytes(), &body].concat())?;
    }
}

/// `CHITON_DIE_AT=n` (debug builds only) is SIGKILL before the n-th step of a process that changes the disk.
#[test]
fn killed_at_each_step_of_the_change_it_has_the_old_uid_or_the_new_one() {
    let home = Home::new();
    let giver: Arc<Mutex<Giver>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/opamp", listener.local_addr().unwrap());
    let serving = Arc::clone(&giver);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let giver = Arc::clone(&serving);
            // What ends a connection is the agent's death.
            thread::spawn(move || serve(&stream, &giver).unwrap_or_default());
        }
    });
    let mut settings = settings(&home);
    settings.server.push("poll_interval: 100ms".to_owned());
    home.settings(&endpoint, &settings);
    // The uid of the first report of a new process.
    let goes_by = |home: &Home| {
        *giver.lock().unwrap() = Giver::default();
        let agent = home.start();
        let seen = eventually("a report", || giver.lock().unwrap().seen.clone());
        agent.stop();
        seen
    };
    let mut now = goes_by(&home);
    let (mut before, mut after) = (0, 0);
    for step in 1..MOST_STEPS {
        let next = [step; 16];
        *giver.lock().unwrap() = Giver { gives: Some(next), seen: None };
        let agent = home.start_with(&[("CHITON_DIE_AT", &step.to_string())]);
        let used = || giver.lock().unwrap().seen.as_deref() == Some(next.as_slice());
        let survives = eventually("it dies, or goes by the new uid", || {
            used().then_some(true).or(agent.is_over().then_some(false))
        });
        // Killed, if it is not dead yet.
        drop(agent);
        let found = goes_by(&home);
        assert!(found == now || found == next, "step {step}: {found:?}");
        assert!(!survives || found == next, "step {step}: it was used, and is lost");
        if survives {
            assert!(
                before > 0 && after > 0,
                "killed {before} times before it, {after} times after it"
            );
            return;
        }
        *(if found == now { &mut before } else { &mut after }) += 1;
        now = found;
    }
    panic!("it never gets through");
}
