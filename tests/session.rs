//! The session from outside: the real binary, real sockets, real TLS, and servers that misbehave.
//!
//! The pattern of a test: the server does something wrong; the log and `chiton status` say what, where and why; the
//! agent goes on, on this link or on the next; and the workload never notices.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chiton_proto::{
    AgentConfigMap, AgentConfigObject, AgentIdentification, AgentRemoteConfig, AgentToServer,
    CommandType, Message as _, RetryInfo, ServerErrorResponse, ServerErrorResponseType,
    ServerToAgent, ServerToAgentCommand, server_error_response::Details,
};
use common::authority::{Authority, bootstrap};
use common::{Agent, Home, PATIENCE, Peer, Server, Settings, WINDOW, eventually, is_alive, offer};
use rcgen::{CertificateParams, date_time_ymd};
use rustls::ServerConfig;
use tungstenite::{Bytes, Message};

/// The capability bits that tests look at.
const REPORTS_STATUS: u64 = 0x1;
const ACCEPTS_STATUS: u64 = 0x1;
/// ReportFullState.
const FULL_STATE: u64 = 0x1;
/// RequestInstanceUid.
const WANTS_UID: u64 = 0x1;

fn settings(server: &[&str]) -> Settings {
    Settings {
        server: server.iter().map(|line| (*line).to_owned()).collect(),
        ..Settings::default()
    }
}

/// An agent that has told all that there is to tell, its link, and its first report.
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

fn to(first: &AgentToServer) -> ServerToAgent {
    ServerToAgent { instance_uid: first.instance_uid.clone(), ..ServerToAgent::default() }
}

/// The fault is told, then the next link carries a report again.
fn comes_back(agent: &Agent, server: &Server, words: &[&str]) -> Peer {
    agent.logs(words);
    let (peer, _) = server.greet();
    agent.shows("connection.state", |state| state == "connected");
    agent.unharmed();
    peer
}

mod unreachable {
    use super::*;

    #[test]
    fn nobody_listens_then_somebody_does() {
        let home = Home::new();
        // Bound and let go: nobody listens there.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        home.settings(&format!("ws://{address}/v1/opamp"), &settings(&[]));
        let agent = home.start();
        let port = address.port().to_string();
        agent.logs(&["WARN", &port, "refused", "trying again in"]);
        agent.tells("connection.last_error", &[&port, "refused"]);
        agent.unharmed();

        let listener = TcpListener::bind(address).unwrap();
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer::upgrade(common::Stream::Plain(stream));
        let first = peer.report();
        assert!(first.agent_description.is_some(), "nothing was heard before: {first:?}");
        peer.answer(&first);
        agent.shows("connection.last_error", serde_yaml::Value::is_null);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn the_status_is_healthy_without_a_server_and_the_name_is_told() {
        let home = Home::new();
        home.settings("ws://no-such-host.invalid:4320/v1/opamp", &settings(&[]));
        let agent = home.start();
        agent.logs(&["no-such-host.invalid", "looking up"]);
        agent.unharmed();
        let (status, code) = agent.status();
        assert_eq!((status["healthy"].as_bool(), code), (Some(true), Some(0)), "{status:?}");
        agent.stop();
    }

    #[test]
    fn a_server_that_accepts_and_is_silent_is_given_up() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &settings(&["timeouts: { connect: 1s, tls: 300ms }"]));
        let agent = home.start();
        let silent = server.tcp();
        let peer = comes_back(&agent, &server, &["no answer to the WebSocket upgrade", "300ms"]);
        drop(silent);
        agent.stop_with(peer);
    }
}

mod refused {
    use super::*;

    #[test]
    fn each_wrong_answer_to_the_upgrade_is_told_and_tried_again() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &settings(&[]));
        let agent = home.start();
        for (answer, words) in [
            ("HTTP/1.1 401 Unauthorized\r\n\r\n", &["401", "credentials"][..]),
            ("HTTP/1.1 403 Forbidden\r\n\r\n", &["403", "not allowed"]),
            ("HTTP/1.1 404 Not Found\r\n\r\n", &["404", "path"]),
            ("HTTP/1.1 413 Content Too Large\r\n\r\n", &["413", "larger"]),
            ("HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops", &["500"]),
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", &["200"]),
            ("SSH-2.0-OpenSSH_9.6\r\n\r\n", &["not HTTP"]),
            (
                "HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
                &["does not upgrade"],
            ),
            (
                "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
                &["Sec-WebSocket-Accept"],
            ),
            ("", &["ended before an answer"]),
        ] {
            server.refuse(answer);
            let line = agent.logs(&[&["WARN", &server.ws()], words].concat());
            assert!(line.contains("trying again in"), "{line}");
            agent.tells("connection.last_error", words);
        }
        let peer = comes_back(&agent, &server, &[]);
        agent.stop_with(peer);
    }

    #[test]
    fn an_endless_head_is_cut_off() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &settings(&[]));
        let agent = home.start();
        let mut stream = server.tcp();
        stream.write_all(b"HTTP/1.1 101 Switching\r\nA: ").unwrap();
        // Until the agent has had enough: it closes, and a write fails.
        let end = Instant::now() + PATIENCE;
        while stream.write_all(&[b'x'; 4096]).is_ok() {
            assert!(Instant::now() < end, "the agent reads for ever");
        }
        let peer = comes_back(&agent, &server, &["longer than"]);
        agent.stop_with(peer);
    }

    /// The least wait is 30 s: within the window nobody comes.
    #[test]
    fn after_429_and_503_the_agent_waits() {
        for (answer, word) in [
            ("HTTP/1.1 429 Slow Down\r\nRetry-After: 0\r\n\r\n", "429"),
            ("HTTP/1.1 503 Busy\r\n\r\n", "503"),
        ] {
            let (home, server) = (Home::new(), Server::new());
            home.settings(&server.ws(), &settings(&[]));
            let agent = home.start();
            server.refuse(answer);
            let line = agent.logs(&[word, "trying again in 3"]);
            assert!(line.contains(&server.ws()), "{line}");
            server.nobody_for(WINDOW);
            agent.tells("connection.last_error", &[word]);
            agent.tells("connection.state", &["waiting"]);
            agent.unharmed();
            agent.stop();
        }
    }
}

mod tls {
    use super::*;

    /// The handshake fails on this connection.
    fn fails(server: &Server, config: &Arc<ServerConfig>) {
        let outcome = server.tls(config).read(&mut [0; 1]);
        assert!(!matches!(outcome, Ok(1..)), "the agent accepted the server");
    }

    #[test]
    fn a_server_that_cannot_prove_its_name_gets_nothing() {
        let (home, server) = (Home::new(), Server::new());
        let (good, other) = (Authority::new("good"), Authority::new("other"));
        fs::write(home.path("ca.pem"), good.pem()).unwrap();
        let ca = format!("tls: {{ ca_file: {} }}", home.path("ca.pem").display());
        home.settings(&server.wss(), &settings(&[&ca]));
        let agent = home.start();
        let expired = |params: &mut CertificateParams| {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        };
        let to_come = |params: &mut CertificateParams| {
            params.not_before = date_time_ymd(2090, 1, 1);
            params.not_after = date_time_ymd(2091, 1, 1);
        };
        let as_is = |_: &mut CertificateParams| {};
        for (config, words) in [
            (other.serve("127.0.0.1", as_is, None), &["unknown issuer"][..]),
            (good.serve("127.0.0.1", expired, None), &["expired"]),
            (good.serve("127.0.0.1", to_come, None), &["not valid yet"]),
            (good.serve("opamp.example", as_is, None), &["another name"]),
        ] {
            fails(&server, &config);
            agent.logs(&[&["WARN", &server.wss(), "TLS: "], words].concat());
            agent.tells("connection.last_error", words);
        }
        // Not TLS at all.
        let mut stream = server.tcp();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        agent.logs(&["WARN", &server.wss(), "TLS: ", "corrupt"]);
        drop(stream);

        let mut peer = Peer::upgrade(server.tls(&good.serve("127.0.0.1", as_is, None)));
        let first = peer.report();
        peer.answer(&first);
        agent.shows("connection.last_error", serde_yaml::Value::is_null);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn a_client_certificate_is_missing_or_of_a_wrong_authority_then_right() {
        let (home, server) = (Home::new(), Server::new());
        let (good, other) = (Authority::new("good"), Authority::new("other"));
        let config = good.serve("127.0.0.1", |_| {}, Some(&good));
        let place = |authority: &Authority| {
            let (cert, key) = authority.issue("device", |_| {});
            bootstrap(&home, &good, Some((&cert, &key)))
        };
        let tls = place(&other);
        home.settings(&server.wss(), &settings(&[&tls]));
        let agent = home.start();
        fails(&server, &config);
        agent.logs(&["WARN", &server.wss(), "refused our side of TLS"]);

        // Gone for a moment: the workload goes on, the file is named.
        fs::remove_file(home.path("cert.pem")).unwrap();
        agent.logs(&["WARN", "cert.pem", "No such file"]);
        place(&good);
        let mut peer = loop {
            let mut stream = server.tls(&config);
            // A connection of before, with the other certificate, may still be in the queue.
            if stream.read(&mut []).is_ok() && stream.flush().is_ok() && shakes_hands(&mut stream) {
                break Peer::upgrade(stream);
            }
        };
        let first = peer.report();
        peer.answer(&first);
        agent.unharmed();
        let log = agent.stop_with(peer);
        assert!(!log.contains("PRIVATE KEY"), "{log}");
    }

    fn shakes_hands(stream: &mut common::Stream) -> bool {
        let common::Stream::Tls(stream) = stream else { return false };
        let owned = stream.as_mut();
        owned.conn.complete_io(&mut owned.sock).is_ok()
    }
}

mod frames {
    use super::*;

    /// What the server puts on the wire, with which code the agent closes, and what it logs.
    #[test]
    fn a_broken_protocol_is_answered_with_its_close_code() {
        let five_mib = (5_u64 << 20).to_be_bytes();
        let oversized = [&[0x82, 127][..], &five_mib].concat();
        let cases: [(&str, &[u8], u16, &[&str]); 9] = [
            ("text", &[0x81, 2, b'h', b'i'], 1003, &["text message"]),
            ("oversized", &oversized, 1009, &["exceeds max_message_size"]),
            ("masked", &[0x82, 0x81, 1, 2, 3, 4, 5], 1002, &["WebSocket protocol"]),
            ("reserved bit 1", &[0xc2, 1, 0], 1002, &["WebSocket protocol"]),
            ("reserved bit 2", &[0xa2, 1, 0], 1002, &["WebSocket protocol"]),
            ("reserved bit 3", &[0x92, 1, 0], 1002, &["WebSocket protocol"]),
            ("unknown opcode", &[0x83, 1, 0], 1002, &["WebSocket protocol"]),
            ("a fragmented ping", &[0x09, 1, 0], 1002, &["WebSocket protocol"]),
            ("a continuation of nothing", &[0x80, 1, 0], 1002, &["WebSocket protocol"]),
        ];
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, _) = connected(&home, &server, &settings(&[]));
        for (name, bytes, code, words) in cases {
            peer.send_bytes(bytes);
            assert_eq!(peer.close_code(), code, "{name}");
            drop(peer);
            agent.logs(&[&["WARN", &server.ws()], words].concat());
            peer = server.greet().0;
            agent.unharmed();
        }
        agent.stop_with(peer);
    }

    /// Fragments count together.
    #[test]
    fn many_fragments_that_are_too_much_together_are_1009() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, _) = connected(&home, &server, &settings(&[]));
        let mebibyte = [&[0x00, 127][..], &(1_u64 << 20).to_be_bytes(), &vec![0; 1 << 20]].concat();
        peer.send_bytes(&[0x02, 1, 0]);
        for _ in 0..5 {
            peer.send_bytes(&mebibyte);
        }
        assert_eq!(peer.close_code(), 1009);
        drop(peer);
        let peer = comes_back(&agent, &server, &["exceeds max_message_size"]);
        agent.stop_with(peer);
    }

    #[test]
    fn a_bad_message_is_ignored_and_the_link_stays() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        let with_header = |header: &[u8]| [header, &to(&first).encode_to_vec()].concat();
        let object = |at: usize| (format!("file{at}"), AgentConfigObject::default());
        let objects = ServerToAgent {
            remote_config: Some(AgentRemoteConfig {
                config: Some(AgentConfigMap { config_map: (0..33).map(object).collect() }),
                config_hash: Bytes::from_static(b"many"),
            }),
            ..to(&first)
        };
        for (payload, words) in [
            (with_header(&[1]), &["bad header", "not 0"][..]),
            (with_header(&[0x80; 10]), &["bad header", "longer than 10"]),
            (Vec::new(), &["bad header", "ends within"]),
            (vec![0x80], &["bad header", "ends within"]),
            // Field 1 announces 200 bytes and has two.
            (vec![0, 0x0a, 200, 1, 1, 2], &["malformed"]),
            // A key of eleven bytes.
            ([&[0][..], &[0xff; 11]].concat(), &["malformed", "byte 0"]),
            // Wire type 7 does not exist.
            (vec![0, 0x0f, 0], &["malformed"]),
            (
                [&[0][..], &objects.encode_to_vec()].concat(),
                &["33 config objects", "32 are allowed"],
            ),
        ] {
            peer.send_payload(&payload);
            agent.logs(&[&["WARN"], words].concat());
        }
        peer.proves_to_work(&first.instance_uid);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn unknown_fields_and_an_empty_message_are_no_fault() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        // Field 1000, length-delimited, of a version to come.
        peer.send_body(&[&to(&first).encode_to_vec()[..], &[0xc2, 0x3e, 2, 7, 7]].concat());
        peer.send_body(&[]);
        // A header in more bytes than it needs.
        peer.send_payload(&[0x80, 0x80, 0]);
        peer.proves_to_work(&first.instance_uid);
        let log = agent.stop_with(peer);
        for fault in ["malformed", "ignored", "refused"] {
            assert!(!log.contains(fault), "{log}");
        }
    }

    #[test]
    fn a_message_in_fragments_with_a_ping_between_and_byte_by_byte() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        let wish = ServerToAgent { flags: FULL_STATE, ..to(&first) };
        let payload = [&[0][..], &wish.encode_to_vec()].concat();
        let (one, two) = payload.split_at(9);
        let frame =
            |head: u8, body: &[u8]| [&[head, body.len().try_into().unwrap()][..], body].concat();
        let whole = [frame(0x02, one), frame(0x89, b"are you there"), frame(0x80, two)].concat();
        for byte in &whole {
            peer.send_bytes(&[*byte]);
        }
        let pong = eventually("a pong", || match peer.next() {
            Message::Pong(payload) => Some(payload),
            Message::Binary(bytes) => {
                peer.decode(&bytes);
                None
            }
            _ => None,
        });
        assert_eq!(pong.as_ref(), b"are you there");
        peer.until("a full report", |report| report.agent_description.is_some());
        agent.stop_with(peer);
    }

    #[test]
    fn a_hundred_thousand_bad_messages_cost_no_memory() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        let resident = || agent.status().0["memory"]["resident_bytes"].as_u64().unwrap();
        let before = resident();
        let empty = [0x82, 0].repeat(1000);
        for _ in 0..100 {
            peer.send_bytes(&empty);
        }
        peer.proves_to_work(&first.instance_uid);
        let after = resident();
        assert!(after < before + (1 << 20), "{before} bytes before, {after} after");
        agent.unharmed();
        agent.stop_with(peer);
    }
}

mod link {
    use super::*;

    #[test]
    fn a_close_by_the_server_is_answered_told_and_followed_by_a_new_link() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, _) = connected(&home, &server, &settings(&[]));
        // Close 1012, "restart", by hand so as to see the answer.
        peer.send_bytes(&[&[0x88, 9, 0x03, 0xf4][..], b"restart"].concat());
        assert_eq!(peer.close_code(), 1012);
        drop(peer);
        let peer = comes_back(&agent, &server, &[&server.ws(), "closed", "1012", "restart"]);
        agent.stop_with(peer);
    }

    #[test]
    fn a_cut_link_is_told_and_followed_by_a_new_one_that_omits_what_is_known() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, peer, first) = connected(&home, &server, &settings(&[]));
        assert!(first.agent_description.is_some() && first.health.is_some());
        drop(peer);
        agent.logs(&["WARN", &server.ws(), "trying again in"]);
        let (peer, again) = server.greet();
        assert_eq!(again.agent_description, None, "it was acknowledged: {again:?}");
        assert_eq!(again.instance_uid, first.instance_uid);
        assert!(again.sequence_num > first.sequence_num);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_again() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &settings(&[]));
        let agent = home.start();
        let mut peer = server.accept();
        assert!(peer.report().agent_description.is_some());
        drop(peer);
        let (peer, again) = server.greet();
        assert!(again.agent_description.is_some(), "{again:?}");
        agent.stop_with(peer);
    }

    #[test]
    fn a_server_that_never_answers_but_pongs_keeps_its_link() {
        let (home, server) = (Home::new(), Server::new());
        // A slow machine may delay our pongs, so they may take their time; an answer is never due.
        let short = &["heartbeat_interval: 1s", "timeouts: { answer: 200ms, pong: 10s }"];
        home.settings(&server.ws(), &settings(short));
        let agent = home.start();
        let mut peer = server.accept();
        let (mut pings, mut reports) = (0, 0);
        // The codec answers each ping; three heartbeats go by.
        while pings < 3 || reports < 3 {
            match peer.next() {
                Message::Ping(_) => pings += 1,
                Message::Binary(_) => reports += 1,
                other => panic!("{other:?}"),
            }
        }
        server.nobody_for(Duration::ZERO);
        let since = agent.shows("connection.connected_seconds", serde_yaml::Value::is_u64);
        assert!(since.as_u64() >= Some(2), "{since:?}: three reports, a second apart");
        agent.stop_with(peer);
    }

    #[test]
    fn a_server_that_answers_nothing_is_dropped() {
        let (home, server) = (Home::new(), Server::new());
        let short = &["timeouts: { answer: 200ms, pong: 200ms }"];
        home.settings(&server.ws(), &settings(short));
        let agent = home.start();
        let started = Instant::now();
        // Half open: it is there, reads nothing and says nothing.
        let half_open = server.accept();
        agent.logs(&["WARN", &server.ws(), "no answer for 200ms and no pong for 200ms"]);
        assert!(started.elapsed() >= Duration::from_millis(400));
        assert!(server.accept().report().agent_description.is_some(), "it was not acknowledged");
        agent.unharmed();
        drop(half_open);
        // On a slow machine the patience may be over again: whatever the link does, the end is in order.
        agent.stop();
    }

    #[test]
    fn a_heartbeat_is_small_and_says_who_is_there() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) =
            connected(&home, &server, &settings(&["heartbeat_interval: 1s"]));
        let mut seen = 0;
        while seen < 2 {
            let Message::Binary(bytes) = peer.next() else { continue };
            let report = peer.decode(&bytes);
            peer.answer(&report);
            if report.health.is_some() {
                continue; // the workload's health may still have changed
            }
            assert!(bytes.len() <= 32, "{} bytes: {report:?}", bytes.len());
            let least = AgentToServer {
                instance_uid: first.instance_uid.clone(),
                sequence_num: report.sequence_num,
                capabilities: first.capabilities,
                ..AgentToServer::default()
            };
            assert_eq!(report, least);
            seen += 1;
        }
        agent.stop_with(peer);
    }

    #[test]
    fn without_heartbeats_the_link_is_silent() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) =
            connected(&home, &server, &settings(&["heartbeat_interval: 0"]));
        peer.proves_to_work(&first.instance_uid);
        peer.quiet_for(Duration::from_millis(1500));
        agent.stop_with(peer);
    }

    #[test]
    fn the_end_is_in_order() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, peer, _) = connected(&home, &server, &settings(&[]));
        let workload = home.workload(1);
        let log = agent.stop_with(peer);
        assert!(log.contains("ending in order"), "{log}");
        assert!(!is_alive(workload));
        assert!(!home.path("status.sock").exists());
        assert_eq!(home.chiton("status", &[]).status.code(), Some(3));
    }

    #[test]
    fn a_server_that_hangs_does_not_hold_up_the_end() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, peer, _) = connected(&home, &server, &settings(&[]));
        let asked = Instant::now();
        // Its Close is never answered.
        agent.stop();
        assert!(asked.elapsed() < Duration::from_secs(6), "{:?}", asked.elapsed());
        drop(peer);
    }
}

mod uid {
    use super::*;

    const GIVEN: [u8; 16] = [7; 16];

    fn give(first: &AgentToServer, uid: &[u8]) -> ServerToAgent {
        ServerToAgent {
            agent_identification: Some(AgentIdentification {
                new_instance_uid: uid.to_vec().into(),
            }),
            ..to(first)
        }
    }

    #[test]
    fn a_message_for_another_is_ignored() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        let foreign = ServerToAgent {
            instance_uid: vec![9; 16].into(),
            flags: FULL_STATE,
            ..ServerToAgent::default()
        };
        peer.send(&foreign);
        agent.logs(&["WARN", "another instance uid"]);
        peer.quiet_for(WINDOW);
        // One without a uid is for us.
        peer.proves_to_work(&[]);
        peer.proves_to_work(&first.instance_uid);
        agent.stop_with(peer);
    }

    #[test]
    fn a_given_uid_is_taken_once_a_connection_and_outlives_a_restart() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        peer.send(&give(&first, &GIVEN));
        let report = peer.until("the new uid", |report| report.instance_uid == GIVEN.as_slice());
        assert!(report.agent_description.is_some(), "a full report: {report:?}");
        // A reply in flight has the old uid; then the new one settles it.
        peer.send(&ServerToAgent {
            instance_uid: GIVEN.to_vec().into(),
            ..ServerToAgent::default()
        });
        peer.send(&ServerToAgent { instance_uid: GIVEN.to_vec().into(), ..give(&first, &[8; 16]) });
        agent.logs(&["WARN", "second new instance uid"]);
        assert_eq!(peer.proves_to_work(&GIVEN).instance_uid, GIVEN.as_slice());
        let uid = agent.tells("instance_uid", &["07070707-0707"]);
        agent.unharmed();
        agent.stop_with(peer);

        let agent = home.start();
        let (peer, first) = server.greet();
        assert_eq!(first.instance_uid, GIVEN.as_slice());
        agent.tells("instance_uid", &[&uid]);
        agent.stop_with(peer);
    }

    #[test]
    fn a_uid_that_is_none_is_not_taken() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        for uid in [&[][..], &[1; 15], &[1; 17], &[0; 16]] {
            peer.send(&give(&first, uid));
        }
        assert_eq!(peer.proves_to_work(&first.instance_uid).instance_uid, first.instance_uid);
        let log = agent.stop_with(peer);
        assert_eq!(log.matches("ignored a new instance uid").count(), 4, "{log}");
    }

    #[test]
    fn it_is_a_uuid_of_version_7_and_kept() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, peer, first) = connected(&home, &server, &settings(&[]));
        let uid = first.instance_uid.clone();
        assert_eq!((uid.len(), uid[6] >> 4, uid[8] >> 6), (16, 7, 0b10), "{uid:?}");
        agent.stop_with(peer);
        let agent = home.start();
        let (peer, again) = server.greet();
        assert_eq!(again.instance_uid, uid);
        agent.stop_with(peer);
    }

    #[test]
    fn the_wish_for_a_uid_is_repeated_until_it_is_granted() {
        let (home, server) = (Home::new(), Server::new());
        let mut wish = settings(&["heartbeat_interval: 1s"]);
        wish.opamp.push("agent: { request_instance_uid: true }".to_owned());
        let (agent, mut peer, first) = connected(&home, &server, &wish);
        assert_eq!(first.flags, WANTS_UID);
        peer.until("a wish again", |report| report.flags == WANTS_UID);
        // What is none does not grant it.
        peer.send(&give(&first, &[1; 15]));
        assert_eq!(peer.proves_to_work(&first.instance_uid).flags, WANTS_UID);
        agent.stop_with(peer);
        // Nobody granted it: asked for again.
        let agent = home.start();
        let (mut peer, again) = server.greet();
        assert_eq!((&again.instance_uid, again.flags), (&first.instance_uid, WANTS_UID));
        peer.send(&give(&first, &GIVEN));
        let report = peer.until("the new uid", |report| report.instance_uid == GIVEN.as_slice());
        assert_eq!(report.flags, 0);
        drop(peer);
        let (mut peer, again) = server.greet();
        assert_eq!((again.instance_uid.as_ref(), again.flags), (GIVEN.as_slice(), 0));
        assert_eq!(peer.proves_to_work(&GIVEN).flags, 0);
        agent.stop_with(peer);
        // Granted: never asked for again.
        let agent = home.start();
        let (mut peer, again) = server.greet();
        assert_eq!((again.instance_uid.as_ref(), again.flags), (GIVEN.as_slice(), 0));
        assert_eq!(peer.proves_to_work(&GIVEN).flags, 0);
        agent.stop_with(peer);
    }

    #[test]
    fn a_server_that_gives_the_uid_that_we_have_has_granted_the_wish() {
        let (home, server) = (Home::new(), Server::new());
        let mut wish = settings(&[]);
        wish.opamp.push("agent: { request_instance_uid: true }".to_owned());
        let checked = {
            home.settings(&server.ws(), &wish);
            home.chiton("check", &[])
        };
        let shown = String::from_utf8(checked.stdout).unwrap();
        assert!(!shown.contains("not in force"), "{shown}");
        let (agent, mut peer, first) = connected(&home, &server, &wish);
        assert_eq!(first.flags, WANTS_UID);
        for _ in 0..3 {
            peer.send(&give(&first, &first.instance_uid));
        }
        let report = peer.proves_to_work(&first.instance_uid);
        assert_eq!((&report.instance_uid, report.flags), (&first.instance_uid, 0));
        // It is on the disk by the time that the agent has ended in order.
        let log = agent.stop_with(peer);
        assert!(!log.contains("instance uid is now"), "{log}");
        let agent = home.start();
        let (peer, again) = server.greet();
        assert_eq!((&again.instance_uid, again.flags), (&first.instance_uid, 0));
        agent.stop_with(peer);
        // Another name of its own is not the server's any more.
        wish.opamp.pop();
        wish.opamp.push("agent: { request_instance_uid: true, instance_id: gateway-7 }".to_owned());
        home.settings(&server.ws(), &wish);
        let agent = home.start();
        let (peer, again) = server.greet();
        assert_ne!(again.instance_uid, first.instance_uid);
        assert_eq!(again.flags, WANTS_UID);
        agent.stop_with(peer);
    }
}

mod answers {
    use super::*;

    fn error(
        first: &AgentToServer,
        kind: ServerErrorResponseType,
        wait: Option<u64>,
    ) -> ServerToAgent {
        ServerToAgent {
            error_response: Some(ServerErrorResponse {
                r#type: kind.into(),
                error_message: "no, thanks".to_owned(),
                details: wait.map(|retry_after_nanoseconds| {
                    Details::RetryInfo(RetryInfo { retry_after_nanoseconds })
                }),
            }),
            ..to(first)
        }
    }

    #[test]
    fn a_wish_for_the_full_state_in_each_answer_does_not_become_a_loop() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) =
            connected(&home, &server, &settings(&["heartbeat_interval: 2s"]));
        let wish = ServerToAgent { flags: FULL_STATE, ..to(&first) };
        let start = Instant::now();
        let mut full = 0;
        peer.send(&wish);
        // Each report is answered with the wish: only heartbeats may keep this going.
        while start.elapsed() < Duration::from_secs(5) {
            let report = peer.report();
            full += usize::from(report.agent_description.is_some());
            peer.send(&wish);
        }
        assert!((2..=5).contains(&full), "{full} full reports in 5 s at a heartbeat of 2 s");
        agent.stop_with(peer);
    }

    #[test]
    fn a_refused_report_is_told_and_not_sent_again() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &settings(&[]));
        let agent = home.start();
        let mut peer = server.accept();
        let first = peer.report();
        peer.send(&error(&first, ServerErrorResponseType::BadRequest, None));
        agent.logs(&["WARN", "refused a report", "no, thanks"]);
        agent.tells("connection.last_error", &["no, thanks"]);
        drop(peer);
        let (mut peer, again) = server.greet();
        assert_eq!(again.agent_description, None, "{again:?}");
        peer.proves_to_work(&first.instance_uid);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn an_unavailable_server_is_left_in_order_and_left_alone() {
        for wait in [None, Some(0), Some(1_000_000_000)] {
            let (home, server) = (Home::new(), Server::new());
            home.settings(&server.ws(), &settings(&[]));
            let agent = home.start();
            let mut peer = server.accept();
            let first = peer.report();
            peer.send(&error(&first, ServerErrorResponseType::Unavailable, wait));
            peer.goodbye();
            drop(peer);
            agent.logs(&["WARN", "unavailable", "no, thanks", "trying again in 3"]);
            agent.tells("connection.state", &["waiting"]);
            agent.tells("connection.last_error", &["unavailable", "no, thanks"]);
            server.nobody_for(WINDOW);
            agent.unharmed();
            agent.stop();
        }
    }

    #[test]
    fn a_server_that_wants_status_only_is_sent_status_only() {
        let (home, server) = (Home::new(), Server::new());
        let capabilities = vec!["accepts_remote_config"];
        home.settings(&server.ws(), &Settings { capabilities, ..Settings::default() });
        let agent = home.start();
        let mut peer = server.accept();
        let first = peer.report();
        assert_eq!(first.capabilities & REPORTS_STATUS, REPORTS_STATUS);
        assert!(first.effective_config.is_some(), "nothing is known of the server: {first:?}");
        peer.send(&ServerToAgent { capabilities: ACCEPTS_STATUS, ..to(&first) });
        let full = peer.proves_to_work(&first.instance_uid);
        assert_eq!((full.effective_config, full.package_statuses), (None, None));
        assert!(full.health.is_some() && full.remote_config_status.is_some());
        // On the next connection nothing is known again.
        drop(peer);
        let (mut peer, _) = server.greet();
        assert!(peer.proves_to_work(&first.instance_uid).effective_config.is_some());
        agent.stop_with(peer);
    }

    fn restart(first: &AgentToServer) -> ServerToAgent {
        ServerToAgent {
            command: Some(ServerToAgentCommand { r#type: CommandType::Restart.into() }),
            ..to(first)
        }
    }

    #[test]
    fn a_restart_is_done_where_it_is_accepted_and_nothing_else_beside_it() {
        let (home, server) = (Home::new(), Server::new());
        let accepting = Settings {
            capabilities: vec!["accepts_restart_command", "accepts_remote_config"],
            ..Settings::default()
        };
        let (agent, mut peer, first) = connected(&home, &server, &accepting);
        let before = home.workload(1);
        peer.send(&ServerToAgent {
            remote_config: offer(&[], "beside", &[("", "a: 1\n")]).remote_config,
            ..restart(&first)
        });
        let after = home.workload(2);
        assert_ne!(before, after);
        assert!(!is_alive(before));
        agent.shows("workload.pid", |pid| pid.as_i64() == Some(after.into()));
        let full = peer.proves_to_work(&first.instance_uid);
        let status = full.remote_config_status.unwrap();
        assert!(status.last_remote_config_hash.is_empty(), "it was not for us: {status:?}");
        agent.stop_with(peer);
    }

    #[test]
    fn a_restart_is_not_done_where_it_is_not_accepted() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut peer, first) = connected(&home, &server, &settings(&[]));
        peer.send(&restart(&first));
        agent.logs(&["WARN", "ignored a command"]);
        // Nor is a command that is yet to be invented.
        peer.send(&ServerToAgent {
            command: Some(ServerToAgentCommand { r#type: 99 }),
            ..to(&first)
        });
        peer.proves_to_work(&first.instance_uid);
        agent.unharmed();
        agent.stop_with(peer);
    }

    #[test]
    fn header_values_reach_the_server_and_nobody_else() {
        let (home, server) = (Home::new(), Server::new());
        let secret = "hunter2-in-a-header";
        home.settings(
            &server.ws(),
            &settings(&[&format!("headers: {{ Authorization: \"Bearer {secret}\" }}")]),
        );
        let agent = home.start();
        server.refuse("HTTP/1.1 401 Unauthorized\r\n\r\n");
        let (peer, _) = server.greet();
        assert!(peer.request.contains(&format!("Authorization: Bearer {secret}\r\n")));
        assert!(peer.request.starts_with("GET /v1/opamp HTTP/1.1\r\n"), "{}", peer.request);
        let status = format!("{:?}", agent.status());
        let plain = format!("{:?}", home.chiton("status", &[]));
        assert!(!status.contains(secret) && !plain.contains(secret), "{status}");
        let environment = fs::read(format!("/proc/{}/environ", home.workload(1))).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains(secret));
        let log = agent.stop_with(peer);
        assert!(!log.contains(secret), "{log}");
        // Whoever writes it into chiton.yaml has it in the copy of that, which is root's alone.
        let kept = common::files_with(&home.path("state"), secret);
        assert_eq!(kept, [home.path("state/settings")]);
        assert_eq!(fs::metadata(&kept[0]).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
