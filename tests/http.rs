//! The session over plain HTTP, from outside: the real binary against a server that answers as each test says.
//!
//! What must never be: two requests at once, a report sent again that was too large, an answer that costs more than
//! its limit, an agent that stops asking.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use chiton_proto::{
    AgentIdentification, Message as _, RemoteConfigStatuses, RetryInfo, ServerErrorResponse,
    ServerErrorResponseType, ServerToAgent, server_error_response::Details,
};
use common::authority::{Authority, bootstrap};
use common::http::{Http, Request, gzip};
use common::{Agent, Home, Server, Settings, WINDOW, offer};
use rustix::process::{Pid, Signal, kill_process};

const PROTOBUF: &str = "Content-Type: application/x-protobuf\r\n";
const GZIPPED: &str = "Content-Type: application/x-protobuf\r\nContent-Encoding: gzip\r\n";
/// ReportFullState.
const FULL_STATE: u64 = 1;

/// Polls often, so that tests need not wait for them.
fn settings(server: &[&str]) -> Settings {
    let mut server: Vec<String> = server.iter().map(|line| (*line).to_owned()).collect();
    if !server.iter().any(|line| line.starts_with("poll_interval")) {
        server.push("poll_interval: 100ms".to_owned());
    }
    Settings { server, ..Settings::default() }
}

/// An agent that has told all that there is to tell, its connection, and its first request.
fn connected<'a>(
    home: &'a Home,
    server: &Server,
    settings: &Settings,
) -> (Agent<'a>, Http, Request) {
    home.settings(&server.http(), settings);
    let agent = home.start();
    let (mut http, first) = Http::asked(server);
    http.send(&first.to());
    agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
    let request = http.request();
    http.send(&ServerToAgent { flags: FULL_STATE, ..request.to() });
    // From here on nothing changes by itself.
    http.until("a full report", |request| request.report.agent_description.is_some());
    agent.unharmed();
    (agent, http, first)
}

/// The fault is told, and the next connection carries a report again.
fn comes_back(agent: &Agent, server: &Server, words: &[&str]) -> (Http, Request) {
    agent.logs(words);
    let (http, request) = Http::asked(server);
    agent.unharmed();
    (http, request)
}

mod polling {
    use super::*;

    #[test]
    fn the_first_report_is_full_and_polls_follow() {
        let (home, server) = (Home::new(), Server::new());
        let capabilities = vec!["accepts_remote_config"];
        let accepting = Settings { capabilities, ..settings(&["poll_interval: 1s"]) };
        home.settings(&server.http(), &accepting);
        let agent = home.start();
        let (mut http, first) = Http::asked(&server);
        let report = &first.report;
        assert_eq!(report.sequence_num, 0);
        assert!(report.agent_description.is_some() && report.health.is_some(), "{report:?}");
        assert!(report.effective_config.is_some() && report.remote_config_status.is_some());
        // Nobody is known to answer there yet.
        agent.tells("connection.state", &["connecting"]);
        http.send(&first.to());
        agent.tells("connection.state", &["connected"]);
        agent.logs(&["INFO", "connected to the OpAMP server"]);
        http.until("a poll", Request::is_poll);
        let start = Instant::now();
        for _ in 0..3 {
            let poll = http.request();
            assert!(poll.is_poll(), "{:?}", poll.report);
            http.send(&poll.to());
        }
        assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
        agent.unharmed();
        http.stop(agent);
    }

    #[test]
    fn a_change_waits_for_the_answer_and_goes_at_once_then() {
        let (home, server) = (Home::new(), Server::new());
        let slow = settings(&["poll_interval: 1h", "timeouts: { answer: 30s }"]);
        home.settings(&server.http(), &slow);
        let agent = home.start();
        let (mut http, first) = Http::asked(&server);
        let workload = home.workload(1);
        kill_process(Pid::from_raw(workload).unwrap(), Signal::KILL).unwrap();
        home.workload(2);
        agent.logs(&["WARN", "the workload", "starting it again"]);
        http.quiet_for(WINDOW);
        server.nobody_for(Duration::ZERO);
        http.send(&first.to());
        let next = http.request();
        assert!(next.report.health.is_some(), "{:?}", next.report);
        assert_eq!(next.report.sequence_num, 1);
        http.send(&next.to());
        http.stop(agent);
    }

    #[test]
    fn one_connection_carries_all_requests() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
        let mut last = None;
        for _ in 0..10 {
            let request = http.request();
            if let Some(last) = last {
                assert_eq!(request.report.sequence_num, last + 1);
            }
            last = Some(request.report.sequence_num);
            http.send(&request.to());
        }
        server.nobody_for(Duration::ZERO);
        http.stop(agent);
    }

    #[test]
    fn a_server_that_ends_the_connection_after_each_answer_is_asked_on_a_new_one() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.http(), &settings(&[]));
        let agent = home.start();
        let body = |request: &Request| request.to().encode_to_vec();
        let mut last = None;
        for turn in 0..6 {
            let (mut http, request) = Http::asked(&server);
            if let Some(last) = last {
                assert_eq!(request.report.sequence_num, last + 1, "no answer was lost");
            }
            last = Some(request.report.sequence_num);
            let body = body(&request);
            match turn % 3 {
                0 => http.answer(&format!("{PROTOBUF}Connection: close\r\n"), &body),
                1 => http.write(
                    &[format!("HTTP/1.0 200 OK\r\n{PROTOBUF}\r\n").as_bytes(), &body].concat(),
                ),
                // Its end is that of the connection.
                _ => http.write(
                    &[format!("HTTP/1.1 200 OK\r\n{PROTOBUF}\r\n").as_bytes(), &body].concat(),
                ),
            }
            // It is the server that hangs up.
        }
        agent.unharmed();
        assert!(!agent.log().contains("trying again"), "{}", agent.log());
        agent.terminate();
        loop {
            let (mut http, request) = Http::asked(&server);
            http.answer(&format!("{PROTOBUF}Connection: close\r\n"), &body(&request));
            if request.report.agent_disconnect.is_some() {
                break;
            }
        }
        agent.ended();
    }

    #[test]
    fn an_idle_connection_that_the_server_closed_is_replaced_in_silence() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, http, _) = connected(&home, &server, &settings(&["poll_interval: 500ms"]));
        let mut http = http;
        for _ in 0..3 {
            let request = http.request();
            http.send(&request.to());
            drop(http);
            let (next, again) = Http::asked(&server);
            assert_eq!(again.report.sequence_num, request.report.sequence_num + 1);
            http = next;
            http.send(&again.to());
        }
        assert!(!agent.log().contains("trying again"), "{}", agent.log());
        http.stop(agent);
    }

    #[test]
    fn a_kept_connection_that_dies_under_a_request_is_replaced_once() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
        let lost = http.request();
        drop(http);
        let (http, again) = Http::asked(&server);
        assert_eq!(again.report.sequence_num, lost.report.sequence_num, "the same request");
        assert!(!agent.log().contains("trying again"), "{}", agent.log());
        // A new connection that dies is an error.
        drop(http);
        let (mut http, request) =
            comes_back(&agent, &server, &["WARN", &server.http(), "ended before an answer"]);
        http.send(&request.to());
        http.stop(agent);
    }

    #[test]
    fn a_given_uid_is_in_the_next_header() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
        let request = http.request();
        http.send(&ServerToAgent {
            agent_identification: Some(AgentIdentification {
                new_instance_uid: vec![7; 16].into(),
            }),
            ..request.to()
        });
        let next = http.until("the new uid", |next| next.report.instance_uid == [7; 16].as_slice());
        assert!(next.report.agent_description.is_some(), "a full report: {:?}", next.report);
        http.stop(agent);
    }

    #[test]
    fn a_wish_for_the_full_state_in_each_answer_waits_for_the_poll() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&["poll_interval: 1s"]));
        let start = Instant::now();
        for _ in 0..4 {
            let request = http.request();
            http.send(&ServerToAgent { flags: FULL_STATE, ..request.to() });
        }
        assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
        http.stop(agent);
    }

    #[test]
    fn a_remote_config_is_applied_and_reported() {
        let (home, server) = (Home::new(), Server::new());
        let capabilities = vec!["accepts_remote_config"];
        let arguments = vec!["{config_file}"];
        let mut accepting = Settings { capabilities, arguments, ..settings(&[]) };
        accepting.opamp.push(
            "remote_config: { rollback: { window: 5s, interval: 20ms, successes: 2 } }".to_owned(),
        );
        home.settings(&server.http(), &accepting);
        let agent = home.start();
        let (mut http, first) = Http::asked(&server);
        let text = "exporters: { debug: {} }\n";
        let message = offer(&first.report.instance_uid, "one", &[("", text)]);
        http.answer(GZIPPED, &gzip(&message.encode_to_vec()));
        http.status("one", RemoteConfigStatuses::Applying);
        http.status("one", RemoteConfigStatuses::Applied);
        assert_eq!(home.seen(home.workload(1)), text);
        // Servers offer it again at each poll: nothing comes of it.
        for _ in 0..3 {
            let request = http.request();
            assert_eq!(request.report.remote_config_status, None, "{:?}", request.report);
            http.send(&offer(&request.report.instance_uid, "one", &[("", text)]));
        }
        agent.unharmed();
        http.stop(agent);
    }
}

mod answers {
    use super::*;

    /// What is nearly an answer, and nevertheless one.
    #[test]
    fn every_form_of_a_good_answer_is_taken() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, first) = connected(&home, &server, &settings(&[]));
        let message = ServerToAgent { flags: FULL_STATE, ..first.to() }.encode_to_vec();
        let packed = gzip(&message);
        let chunked = |head: &str, parts: &[&[u8]], end: &str| {
            let mut bytes =
                format!("HTTP/1.1 200 OK\r\n{head}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
            for part in parts {
                bytes.extend(format!("{:x};x=y\r\n", part.len()).into_bytes());
                bytes.extend([part, b"\r\n".as_slice()].concat());
            }
            bytes.extend(end.as_bytes());
            bytes
        };
        let whole = |head: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{head}\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        let split: Vec<&[u8]> = packed.chunks(1).collect();
        let interim = "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".repeat(2).into_bytes();
        for (name, bytes) in [
            ("whole", whole(PROTOBUF, &message)),
            ("gzip", whole(GZIPPED, &packed)),
            ("chunked", chunked(PROTOBUF, &[&message], "0\r\n\r\n")),
            ("chunked gzip, byte by byte", chunked(GZIPPED, &split, "0\r\n\r\n")),
            ("trailers", chunked(PROTOBUF, &[&message], "0\r\nA: b\r\nC: d\r\n\r\n")),
            ("no type", whole("", &message)),
            (
                "a type with parameters",
                whole("Content-Type: Application/X-Protobuf; a=b\r\n", &message),
            ),
            ("interim heads", [interim, whole(PROTOBUF, &message)].concat()),
        ] {
            let request = http.request();
            http.write(&bytes);
            let full = http.request();
            assert!(full.report.agent_description.is_some(), "{name}: {:?}", full.report);
            assert_eq!(full.report.sequence_num, request.report.sequence_num + 1, "{name}");
            http.send(&full.to());
        }
        for (name, bytes) in [
            ("empty", whole(PROTOBUF, b"")),
            ("empty, of another type", whole("Content-Type: text/plain\r\n", b"")),
            ("empty gzip", whole(GZIPPED, b"")),
            ("no chunks", chunked(PROTOBUF, &[], "0\r\n\r\n")),
            ("no content", b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()),
        ] {
            let request = http.request();
            http.write(&bytes);
            let next = http.request();
            assert!(next.is_poll(), "{name}: {:?}", next.report);
            assert_eq!(next.report.sequence_num, request.report.sequence_num + 1, "{name}");
            http.send(&next.to());
        }
        server.nobody_for(Duration::ZERO);
        assert!(!agent.log().contains("trying again"), "{}", agent.log());
        agent.unharmed();
        http.stop(agent);
    }

    #[test]
    fn each_bad_answer_is_told_and_asked_for_again() {
        let (home, server) = (Home::new(), Server::new());
        let limited = settings(&["max_message_size: 64KiB"]);
        let (agent, mut http, first) = connected(&home, &server, &limited);
        let message = ServerToAgent { flags: FULL_STATE, ..first.to() }.encode_to_vec();
        let packed = gzip(&message);
        let good = |more: &str| format!("HTTP/1.1 200 OK\r\n{PROTOBUF}{more}\r\n");
        let whole = |head: &str, body: &[u8]| {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{head}\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        let behind = |bytes: &[u8], more: &[u8]| [bytes, more].concat();
        let mut damaged = packed.clone();
        let last = damaged.len() - 6;
        damaged[last] ^= 1;
        let html = "<html>Welcome to the hotel</html>".as_bytes();
        let chunked = "Transfer-Encoding: chunked\r\n";
        let large = format!("{:x}\r\n", 65 << 10);
        let cases = [
            (
                b"HTTP/1.1 302 Found\r\nLocation: http://x/\r\n\r\n".to_vec(),
                &["302", "redirect"][..],
            ),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), &["400"]),
            (b"HTTP/1.1 401 Unauthorized\r\n\r\n".to_vec(), &["401", "opamp.server.headers"]),
            (b"HTTP/1.1 403 Forbidden\r\n\r\n".to_vec(), &["403", "not allowed"]),
            (b"HTTP/1.1 404 Not Found\r\n\r\n".to_vec(), &["404", "path"]),
            (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops".to_vec(), &["500"]),
            (b"HTTP/1.1 101 Switching\r\n\r\n".to_vec(), &["101"]),
            (b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec(), &["not HTTP"]),
            (
                whole("Content-Type: text/html; charset=utf-8\r\n", html),
                &["web page", "captive portal"],
            ),
            (whole("Content-Type: application/json\r\n", b"{}"), &["application/json"]),
            (
                whole(&format!("{PROTOBUF}Content-Encoding: br\r\n"), &message),
                &["Content-Encoding", "br"],
            ),
            (whole(GZIPPED, &message), &["says that it is gzip"]),
            (whole(GZIPPED, &packed[..packed.len() - 3]), &["gzip is cut short"]),
            (whole(GZIPPED, &damaged), &["says that it is gzip", "checksum"]),
            (whole(GZIPPED, &behind(&packed, b"more")), &["behind the end of the answer's gzip"]),
            (whole(GZIPPED, &behind(&packed, &packed)), &["behind the end of the answer's gzip"]),
            (behind(&whole(PROTOBUF, &message), b"more"), &["behind the end of the answer"]),
            (good("Content-Length: 9999\r\n").into_bytes(), &["cut short", "ended within it"]),
            (behind(good(chunked).as_bytes(), b"40\r\nabc"), &["cut short", "ended within it"]),
            (behind(good(chunked).as_bytes(), b"3\r\nabc\r\n"), &["cut short", "ended within it"]),
            (
                behind(good(chunked).as_bytes(), b"3\r\nabcdef\r\n"),
                &["chunks of the answer are malformed"],
            ),
            (behind(good(chunked).as_bytes(), b"xyz\r\n"), &["chunks of the answer are malformed"]),
            (
                behind(good(chunked).as_bytes(), &[b'1'; 300]),
                &["chunks of the answer are malformed"],
            ),
            (
                behind(good(chunked).as_bytes(), large.as_bytes()),
                &["66560", "max_message_size (65536)"],
            ),
            (
                good("Content-Length: 65537\r\n").into_bytes(),
                &["65537", "max_message_size (65536)"],
            ),
            (
                good("Content-Length: 99999999999999999999\r\n").into_bytes(),
                &["exceeds max_message_size"],
            ),
            (good("Content-Length: -1\r\n").into_bytes(), &["not a number"]),
            (good("Content-Length: 1\r\nContent-Length: 2\r\n").into_bytes(), &["ambiguous"]),
            (good(&format!("Content-Length: 1\r\n{chunked}")).into_bytes(), &["ambiguous"]),
            (good("Transfer-Encoding: gzip, chunked\r\n").into_bytes(), &["ambiguous"]),
        ];
        for (bytes, words) in &cases {
            http.request();
            http.write(bytes);
            drop(http);
            let line = agent.logs(&[&["WARN", &server.http()], *words].concat());
            assert!(line.contains("trying again in"), "{line}");
            let (next, request) = Http::asked(&server);
            http = next;
            http.send(&request.to());
        }
        let told = agent.log().matches("trying again in").count();
        assert_eq!(told, cases.len(), "{}", agent.log());
        agent.unharmed();
        http.stop(agent);
    }

    /// The bound holds while it comes, not only at its end.
    #[test]
    fn a_body_without_end_and_a_gzip_bomb_cost_no_more_than_the_limit() {
        let (home, server) = (Home::new(), Server::new());
        let limited = settings(&["max_message_size: 256KiB"]);
        let (agent, mut http, _) = connected(&home, &server, &limited);
        let before = resident(&agent);
        // 64 MiB of nothing in 64 KiB.
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(bomb.len() < 128 << 10);
        http.request();
        http.answer(GZIPPED, &bomb);
        drop(http);
        let (mut http, request) =
            comes_back(&agent, &server, &["exceeds max_message_size (262144)", "more bytes"]);
        http.send(&request.to());

        for head in ["", "Transfer-Encoding: chunked\r\n"] {
            http.request();
            let head_bytes = format!("HTTP/1.1 200 OK\r\n{PROTOBUF}{head}\r\n");
            let part = if head.is_empty() { vec![0; 1000] } else { b"1\r\nx\r\n".repeat(200) };
            assert!(http.writes_until_dropped(head_bytes.as_bytes(), &part) < 64 << 20);
            drop(http);
            let (next, request) = Http::asked(&server);
            http = next;
            http.send(&request.to());
        }
        assert!(agent.log().matches("exceeds max_message_size (262144)").count() >= 3);
        let grown = resident(&agent).saturating_sub(before);
        assert!(grown < 4 << 20, "{grown} bytes more than before");
        agent.unharmed();
        http.stop(agent);
    }

    fn resident(agent: &Agent) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// No answer to this request will come any more: the next poll must.
    #[test]
    fn an_answer_that_is_no_message_or_for_another_does_not_end_the_polls() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, first) = connected(&home, &server, &settings(&[]));
        let foreign = ServerToAgent {
            instance_uid: vec![9; 16].into(),
            flags: FULL_STATE,
            ..ServerToAgent::default()
        };
        // Field 1 announces 200 bytes and has two.
        let malformed = vec![0x0a, 200, 1, 1, 2];
        for (body, word) in [
            (malformed, "message from the server"),
            (foreign.encode_to_vec(), "another instance uid"),
        ] {
            let request = http.request();
            http.answer(PROTOBUF, &body);
            agent.logs(&["WARN", word]);
            let next = http.request();
            assert!(next.is_poll(), "{:?}", next.report);
            assert_eq!(next.report.sequence_num, request.report.sequence_num + 1);
            http.send(&ServerToAgent { flags: FULL_STATE, ..first.to() });
            let full = http.request();
            assert!(full.report.agent_description.is_some(), "{:?}", full.report);
            http.send(&full.to());
        }
        agent.unharmed();
        http.stop(agent);
    }

    #[test]
    fn a_silent_server_is_given_up() {
        let (home, server) = (Home::new(), Server::new());
        let short = settings(&["timeouts: { answer: 1500ms, pong: 500ms }"]);
        home.settings(&server.http(), &short);
        let agent = home.start();
        let (http, first) = Http::asked(&server);
        agent.logs(&["WARN", &server.http(), "no answer within 2s"]);
        let (mut next, again) = Http::asked(&server);
        assert!(again.report.agent_description.is_some(), "it was not acknowledged");
        assert!(again.report.sequence_num > first.report.sequence_num);
        drop(http);
        // A body that stops half-way.
        next.write(format!("HTTP/1.1 200 OK\r\n{PROTOBUF}Content-Length: 9\r\n\r\nabc").as_bytes());
        agent.logs(&["WARN", &server.http(), "nothing came for 2s"]);
        agent.unharmed();
        drop(next);
        agent.stop();
    }
}

mod refused {
    use super::*;

    /// The least wait is 30 s: within the window nobody comes.
    #[test]
    fn after_429_and_503_the_agent_waits_for_as_long_as_it_is_told() {
        for (status, retry_after, wait) in [
            ("429", "0", 30.0..38.0),
            ("503", "soon", 30.0..38.0),
            ("503", "100", 100.0..126.0),
            ("503", "Fri, 01 Jan 2100 00:00:00 GMT", 3600.0..3600.1),
            ("429", "Sat, 01 Jan 2000 00:00:00 GMT", 30.0..38.0),
        ] {
            let (home, server) = (Home::new(), Server::new());
            let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
            http.request();
            let answer = format!("HTTP/1.1 {status} No\r\nRetry-After: {retry_after}\r\n\r\n");
            http.write(answer.as_bytes());
            drop(http);
            let line = agent.logs(&["WARN", &server.http(), status]);
            let told = line.split("trying again in ").nth(1).unwrap().trim_end_matches('s');
            assert!(wait.contains(&told.parse::<f64>().unwrap()), "{retry_after}: {line}");
            server.nobody_for(WINDOW);
            agent.tells("connection.last_error", &[status]);
            agent.tells("connection.state", &["waiting"]);
            agent.unharmed();
            agent.stop();
        }
    }

    #[test]
    fn an_unavailable_server_is_left_alone() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
        let request = http.request();
        http.send(&ServerToAgent {
            error_response: Some(ServerErrorResponse {
                r#type: ServerErrorResponseType::Unavailable.into(),
                error_message: "no, thanks".to_owned(),
                details: Some(Details::RetryInfo(RetryInfo { retry_after_nanoseconds: 1 })),
            }),
            ..request.to()
        });
        agent.logs(&["WARN", "unavailable", "no, thanks", "trying again in 3"]);
        http.is_dropped();
        server.nobody_for(WINDOW);
        agent.tells("connection.state", &["waiting"]);
        agent.unharmed();
        agent.stop();
    }

    /// A server's reason comes in OpAMP's own words, with status 400.
    #[test]
    fn a_bad_request_is_told_and_not_sent_again() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.http(), &settings(&[]));
        let agent = home.start();
        let (mut http, first) = Http::asked(&server);
        let refusal = ServerToAgent {
            error_response: Some(ServerErrorResponse {
                r#type: ServerErrorResponseType::BadRequest.into(),
                error_message: "no, thanks".to_owned(),
                details: None,
            }),
            ..first.to()
        };
        let body = refusal.encode_to_vec();
        let head = format!("HTTP/1.1 400 Bad\r\n{PROTOBUF}Content-Length: {}\r\n\r\n", body.len());
        http.write(&[head.as_bytes(), &body].concat());
        agent.logs(&["WARN", "refused a report", "no, thanks"]);
        let next = http.request();
        assert_eq!(next.report.agent_description, None, "{:?}", next.report);
        http.send(&next.to());
        http.stop(agent);
    }

    /// opamp-spec L573: not the same request again. Less of it, then nothing but polls.
    #[test]
    fn a_report_that_is_too_large_is_not_sent_again() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.http(), &settings(&[]));
        let agent = home.start();
        let too_large = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n".as_bytes();
        let (mut http, first) = Http::asked(&server);
        assert!(first.report.effective_config.is_some());
        http.write(too_large);
        http.is_dropped();
        agent.logs(&["WARN", &server.http(), "413", "effective config is not sent again"]);
        agent.tells("connection.last_error", &["413"]);

        let (mut http, second) = Http::asked(&server);
        assert_eq!(second.report.effective_config, None, "{:?}", second.report);
        assert!(second.report.agent_description.is_some(), "the rest goes again");
        http.write(too_large);
        agent.logs(&["WARN", &server.http(), "413", "what was in it is not sent again"]);

        // Whatever changes meanwhile is another report.
        let (mut http, third) = Http::asked(&server);
        assert_eq!(third.report.agent_description, None, "{:?}", third.report);
        http.send(&third.to());
        // Nor when the server asks for it all: a full report would be too large again, for ever.
        for _ in 0..4 {
            let request = http.request();
            assert_eq!(request.report.effective_config, None, "{:?}", request.report);
            assert_eq!(request.report.agent_description, None, "{:?}", request.report);
            http.send(&ServerToAgent { flags: FULL_STATE, ..request.to() });
        }
        agent.unharmed();
        http.stop(agent);
    }

    /// opamp-spec L588: our own limit counts before compression, and the agent goes on with what is small enough.
    #[test]
    fn a_report_over_our_own_limit_is_not_sent_and_polls_are() {
        let (home, server) = (Home::new(), Server::new());
        let mut long = settings(&["max_message_size: 1KiB"]);
        long.opamp.push(format!("agent: {{ labels: {{ long: {} }} }}", "x".repeat(2000)));
        home.settings(&server.http(), &long);
        let agent = home.start();
        let (mut http, first) = Http::asked(&server);
        agent.logs(&["WARN", "was not sent: max_message_size is 1024"]);
        assert_eq!(first.report.agent_description, None, "{:?}", first.report);
        http.send(&ServerToAgent { flags: FULL_STATE, ..first.to() });
        let poll = http.until("a poll", Request::is_poll);
        assert!(poll.report.sequence_num > first.report.sequence_num);
        agent.unharmed();
        http.stop(agent);
    }

    #[test]
    fn a_poll_that_is_too_large_ends_the_link_with_a_wait() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
        assert!(http.request().is_poll());
        http.write(b"HTTP/1.1 413 Content Too Large\r\n\r\n");
        let (mut http, next) =
            comes_back(&agent, &server, &["WARN", &server.http(), "413", "trying again in"]);
        http.send(&next.to());
        http.stop(agent);
    }

    #[test]
    fn a_server_without_gzip_gets_plain_reports() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.http(), &with_large_config(&home));
        let agent = home.start();
        let (mut http, first) = large(&server);
        http.write(b"HTTP/1.1 415 Unsupported Media Type\r\n\r\n");
        let (mut http, plain) = Http::asked(&server);
        assert_eq!(plain.header("Content-Encoding"), None);
        assert_eq!(plain.report, first.report);
        http.send(&plain.to());
        let log = agent.log();
        assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
        http.stop(agent);
    }

    #[test]
    fn a_large_report_is_gzipped_and_a_small_one_is_not() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.http(), &with_large_config(&home));
        let agent = home.start();
        let (mut http, first) = large(&server);
        let plain = first.report.encode_to_vec().len();
        assert!(plain > 100_000 && first.size < plain / 4, "{} of {plain} bytes", first.size);
        http.send(&first.to());
        let poll = http.until("a poll", Request::is_poll);
        assert_eq!(poll.header("Content-Encoding"), None);
        http.stop(agent);
    }

    /// The answer may come while the body is still on its way.
    #[test]
    fn a_server_that_refuses_a_large_body_unread_is_understood() {
        let (home, server) = (Home::new(), Server::new());
        let mut noise = String::from("x: |\n");
        let mut state = 1_u64;
        for _ in 0..25_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.push_str(&format!("  {state:016x}{:016x}\n", state.rotate_left(29)));
        }
        home.settings(&server.http(), &local_config(&home, &noise));
        let agent = home.start();
        let mut http = Http::accept(&server);
        loop {
            let head = http.head();
            if head.contains("Content-Encoding: gzip") {
                break;
            }
            // The configuration was not in place yet.
            let request = http.body(head);
            http.send(&request.to());
        }
        http.write(b"HTTP/1.1 413 Too Large\r\n\r\n");
        drop(http);
        agent.logs(&["WARN", &server.http(), "413", "effective config is not sent again"]);
        let (mut http, next) = Http::asked(&server);
        assert_eq!(next.report.effective_config, None);
        http.send(&next.to());
        http.stop(agent);
    }

    /// The first report that is gzipped: the local configuration may take a moment to be in place.
    fn large(server: &Server) -> (Http, Request) {
        let (mut http, mut request) = Http::asked(server);
        while request.header("Content-Encoding").is_none() {
            http.send(&request.to());
            request = http.request();
        }
        (http, request)
    }

    fn local_config(home: &Home, text: &str) -> Settings {
        fs::write(home.path("local.yaml"), text).unwrap();
        let mut local = settings(&[]);
        local.opamp.push(format!("local_config_path: {}", home.path("local.yaml").display()));
        local
    }

    fn with_large_config(home: &Home) -> Settings {
        local_config(home, &"receivers: [otlp, otlp, otlp] # as always\n".repeat(4000))
    }
}

mod secrets {
    use super::*;

    #[test]
    fn https_with_certificates_on_both_sides() {
        let (home, server) = (Home::new(), Server::new());
        let authority = Authority::new("ours");
        let (cert, key) = authority.issue("device", |_| {});
        let tls = bootstrap(&home, &authority, Some((&cert, &key)));
        home.settings(&server.https(), &settings(&[&tls]));

        let config = authority.serve("127.0.0.1", |_| {}, Some(&authority));

        let agent = home.start();
        let mut http = Http::new(server.tls(&config));
        for _ in 0..5 {
            let request = http.request();
            http.send(&request.to());
        }
        // The server tires of it: nothing is said, and a new one is made.
        drop(http);
        let mut http = Http::new(server.tls(&config));
        let request = http.request();
        http.send(&request.to());
        assert!(!agent.log().contains("trying again"), "{}", agent.log());

        // Not TLS any more.
        drop(http);
        drop(server.tcp());
        agent.logs(&["WARN", &server.https(), "TLS"]);
        let mut http = Http::new(server.tls(&config));
        let request = http.request();
        http.send(&request.to());
        http.stop(agent);
    }

    #[test]
    fn header_values_reach_the_server_and_nobody_else() {
        let (home, server) = (Home::new(), Server::new());
        let secret = "hunter2-in-a-header";
        let header = format!("headers: {{ Authorization: \"Bearer {secret}\" }}");
        let (agent, mut http, first) = connected(&home, &server, &settings(&[&header]));
        assert_eq!(first.header("Authorization"), Some(format!("Bearer {secret}").as_str()));
        http.request();
        http.write(b"HTTP/1.1 401 Unauthorized\r\n\r\n");
        let (mut http, request) = comes_back(&agent, &server, &["401"]);
        assert_eq!(request.header("Authorization"), first.header("Authorization"));
        http.send(&request.to());
        let status = format!("{:?}", agent.status());
        assert!(!status.contains(secret), "{status}");
        let log = http.stop(agent);
        assert!(!log.contains(secret), "{log}");
    }
}

mod end {
    use super::*;

    #[test]
    fn a_request_under_way_is_answered_before_the_goodbye() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
        let request = http.request();
        agent.terminate();
        agent.logs(&["ending in order"]);
        server.nobody_for(Duration::ZERO);
        http.send(&request.to());
        let last = http.request();
        assert!(last.report.agent_disconnect.is_some(), "{:?}", last.report);
        assert_eq!(last.report.sequence_num, request.report.sequence_num + 1);
        http.send(&last.to());
        http.is_dropped();
        agent.ended();
    }

    #[test]
    fn a_server_that_hangs_does_not_hold_up_the_end() {
        let (home, server) = (Home::new(), Server::new());
        let (agent, mut http, _) = connected(&home, &server, &settings(&[]));
        http.request();
        let asked = Instant::now();
        agent.stop();
        assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
        // The goodbye was said on a connection of its own.
        let (_, last) = Http::asked(&server);
        assert!(last.report.agent_disconnect.is_some(), "{:?}", last.report);
        drop(http);
    }

    #[test]
    fn without_a_server_the_end_is_quick() {
        let home = Home::new();
        // Bound and let go: nobody listens there.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        home.settings(&format!("http://{address}/v1/opamp"), &settings(&[]));
        let agent = home.start();
        agent.logs(&["WARN", "refused", "trying again in"]);
        agent.unharmed();
        assert!(!agent.log().contains("connected to"), "{}", agent.log());
        agent.stop();
    }
}

mod redirects {
    use super::*;

    fn to(location: &str, status: u16) -> Vec<u8> {
        format!("HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
            .into_bytes()
    }

    #[test]
    fn a_post_is_sent_again_elsewhere_without_credentials_and_the_link_stays_there() {
        let (home, server, other) = (Home::new(), Server::new(), Server::new());
        home.settings(&server.http(), &settings(&["headers: { Authorization: Bearer s3cret }"]));
        let agent = home.start();
        let (mut http, first) = Http::asked(&server);
        assert_eq!(first.header("Authorization"), Some("Bearer s3cret"));
        http.write(&to(&other.http(), 307));
        let (mut http, again) = Http::asked(&other);
        assert_eq!(again.report, first.report, "the same request");
        assert_eq!(again.header("Authorization"), None, "another port is another's");
        http.send(&again.to());
        let next = http.request();
        assert_eq!(next.header("Authorization"), None);
        http.send(&next.to());
        server.nobody_for(WINDOW);
        agent.unharmed();
        http.stop(agent);
    }

    #[test]
    fn what_may_not_be_followed_is_told_and_tried_again() {
        for (status, location, words) in [
            (303, "/other", "303"),
            (302, "/v1/opamp", "in a circle"),
            (308, "http://elsewhere.example/", "another host"),
        ] {
            let (home, server) = (Home::new(), Server::new());
            home.settings(&server.http(), &settings(&[]));
            let agent = home.start();
            let (mut http, _) = Http::asked(&server);
            http.write(&to(location, status));
            let (mut http, request) = comes_back(&agent, &server, &["WARN", words]);
            http.send(&request.to());
            http.stop(agent);
        }
    }
}
