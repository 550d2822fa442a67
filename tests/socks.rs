//! A SOCKS5 proxy between the agent and its server: the real binary, real sockets, real TLS, and a proxy that the test
//! plays byte by byte.
//!
//! What must never be: a name that the device looks up itself, a password in a log or at the server, a wait without
//! end, bytes of the tunnel lost.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use common::authority::Authority;
use common::{Agent, Home, Peer, Server, Settings, Stream};

const SECRET: &str = "hunter2-in-a-header";
const ENDPOINT: &str = "ws://opamp.invalid:4320/v1/opamp";
/// It agrees, from 0.0.0.0:0.
const GRANTED: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

fn settings(server: &[&str]) -> Settings {
    let headers = format!("headers: {{ Authorization: \"Bearer {SECRET}\" }}");
    Settings {
        server: [headers.as_str()].iter().chain(server).map(|line| (*line).to_owned()).collect(),
        ..Settings::default()
    }
}

fn url(scheme: &str, proxy: &Server) -> String {
    format!("proxy: {{ url: \"{scheme}{}\" }}", proxy.address())
}

fn take<const N: usize>(stream: &mut Stream) -> [u8; N] {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn counted(stream: &mut Stream) -> Vec<u8> {
    let [count] = take(stream);
    let mut bytes = vec![0; count.into()];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// The methods of the greeting.
fn greeting(stream: &mut Stream) -> Vec<u8> {
    assert_eq!(take(stream), [5]);
    counted(stream)
}

/// Version, user and password.
fn credentials(stream: &mut Stream) -> (Vec<u8>, Vec<u8>) {
    assert_eq!(take(stream), [1]);
    (counted(stream), counted(stream))
}

/// The kind of address, the address and the port.
fn request(stream: &mut Stream) -> (u8, Vec<u8>, u16) {
    let [version, command, reserved, kind] = take(stream);
    assert_eq!((version, command, reserved), (5, 1, 0));
    let address = match kind {
        1 => take::<4>(stream).to_vec(),
        4 => take::<16>(stream).to_vec(),
        3 => counted(stream),
        other => panic!("an address of kind {other}"),
    };
    (kind, address, u16::from_be_bytes(take(stream)))
}

/// Takes the next connection and lets it through, whoever it is: where to, and the tunnel.
fn grant(proxy: &Server) -> (String, Stream) {
    let mut stream = Stream::Plain(proxy.tcp());
    greeting(&mut stream);
    stream.write_all(&[5, 0]).unwrap();
    let (_, name, port) = request(&mut stream);
    stream.write_all(GRANTED).unwrap();
    (format!("{}:{port}", String::from_utf8_lossy(&name)), stream)
}

fn works(agent: &Agent, peer: &mut Peer) {
    let first = peer.report();
    peer.answer(&first);
    agent.shows("connection.state", |state| state == "connected");
    agent.unharmed();
}

#[test]
fn the_proxy_looks_names_up_and_nobody_else_sees_its_password() {
    for scheme in ["socks5", "socks5h"] {
        let (home, proxy) = (Home::new(), Server::new());
        let through = url(&format!("{scheme}://me:pr0xy%2Dpass@"), &proxy);
        home.settings(ENDPOINT, &settings(&[&through]));
        let check = home.chiton("check", &[]);
        assert_eq!(check.status.code(), Some(0));
        let shown = String::from_utf8(check.stdout).unwrap();
        assert!(shown.contains(&format!("{scheme}://***@")) && !shown.contains("pr0xy"), "{shown}");

        let agent = home.start();
        let mut stream = Stream::Plain(proxy.tcp());
        assert_eq!(greeting(&mut stream), [0, 2]);
        stream.write_all(&[5, 2]).unwrap();
        assert_eq!(credentials(&mut stream), (b"me".to_vec(), b"pr0xy-pass".to_vec()));
        stream.write_all(&[1, 0]).unwrap();
        assert_eq!(request(&mut stream), (3, b"opamp.invalid".to_vec(), 4320));
        stream.write_all(GRANTED).unwrap();
        let mut peer = Peer::upgrade(stream);
        assert!(peer.request.contains(SECRET) && !peer.request.contains("pr0xy"));
        works(&agent, &mut peer);
        drop(peer);

        // One that asks for no password gets none.
        works(&agent, &mut Peer::upgrade(grant(&proxy).1));
        let (status, _) = agent.status();
        let log = agent.stop();
        assert!(!log.contains("pr0xy") && !format!("{status:?}").contains("pr0xy"), "{log}");
    }
}

#[test]
fn addresses_of_both_families_go_as_such_and_answers_of_each_kind_are_read_to_their_end() {
    let named = [&[5, 0, 0, 3, 12][..], b"exit.invalid", &[1, 2]].concat();
    let six = [&[5, 0, 0, 4][..], &[7; 18]].concat();
    for (host, kind, address, answer) in [
        ("192.0.2.7", 1, vec![192, 0, 2, 7], GRANTED),
        ("[2001:db8::1]", 4, [&[0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1]].concat(), six.as_slice()),
        ("opamp.invalid", 3, b"opamp.invalid".to_vec(), named.as_slice()),
    ] {
        let (home, proxy) = (Home::new(), Server::new());
        home.settings(&format!("ws://{host}/"), &settings(&[&url("socks5://", &proxy)]));
        let agent = home.start();
        let mut stream = Stream::Plain(proxy.tcp());
        greeting(&mut stream);
        // Byte by byte, each in a packet of its own.
        for byte in [5, 0] {
            stream.write_all(&[byte]).unwrap();
        }
        assert_eq!(request(&mut stream), (kind, address, 80));
        for byte in answer {
            stream.write_all(&[*byte]).unwrap();
        }
        let mut peer = Peer::upgrade(stream);
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }
}

#[test]
fn a_proxy_that_does_not_let_through_is_told_by_name() {
    let (home, proxy) = (Home::new(), Server::new());
    let through = url("socks5://me:pr0xy@", &proxy);
    home.settings(ENDPOINT, &settings(&[&through, "timeouts: { connect: 300ms, tls: 5s }"]));
    let agent = home.start();
    let name = format!("the proxy {}: ", proxy.address());
    let cut = "ended the connection within its answer to";
    let (agreed, known): (&[u8], &[u8]) = (&[5, 0], &[1, 0]);
    // What it answers to the greeting, to user and password where it asks for them, and to CONNECT; then it closes.
    let mut cases: Vec<(Vec<&[u8]>, Vec<&str>)> = vec![
        (vec![&[5, 2], &[1, 1]], vec!["refused user and password (status 1)"]),
        (vec![&[5, 0xff]], vec!["takes neither user and password nor nobody"]),
        (vec![&[5, 7]], vec!["method 7", "not offered"]),
        (vec![b"HTTP/1.1 400 Bad Request\r\n\r\n"], vec!["it speaks HTTP", "http://?"]),
        (vec![&[0, 91]], vec!["SOCKS4"]),
        (vec![b"SSH-2.0-OpenSSH_9.6\r\n"], vec!["does not speak SOCKS5", "byte 83"]),
        (vec![&[]], vec![cut, "the greeting", "is it a SOCKS5 proxy?"]),
        (vec![&[5]], vec![cut, "the greeting"]),
        (vec![&[5, 2], &[1]], vec![cut, "user and password"]),
        (vec![&[5, 2], known, &[]], vec![cut, "CONNECT"]),
        (vec![agreed, &[5, 0, 0]], vec![cut, "CONNECT"]),
        (vec![agreed, &[5, 0, 0, 1, 127, 0]], vec![cut, "CONNECT"]),
        (vec![agreed, &[5, 0, 0, 3, 200, b'x']], vec![cut, "CONNECT"]),
        (vec![agreed, &[5, 0, 0, 9, 1, 1]], vec!["unknown kind 9"]),
        (vec![agreed, b"HTTP/1.1 200 OK\r\n\r\n"], vec!["it speaks HTTP"]),
    ];
    let replies: Vec<[u8; 10]> =
        [1, 2, 3, 4, 5, 6, 7, 8, 91].map(|reply| [5, reply, 0, 1, 0, 0, 0, 0, 0, 0]).to_vec();
    let words = [
        ["with 1:", "failed to connect to opamp.invalid:4320"],
        ["with 2:", "does not let us through to opamp.invalid:4320"],
        ["with 3:", "no network on the way to opamp.invalid:4320"],
        ["with 4:", "does not reach, or does not know, opamp.invalid:4320"],
        ["with 5:", "nobody listens at opamp.invalid:4320"],
        ["with 6:", "packets got lost on the way to opamp.invalid:4320"],
        ["with 7:", "knows no CONNECT"],
        ["with 8:", "kind of address"],
        ["with 91:", "failed to connect to opamp.invalid:4320"],
    ];
    for (reply, words) in replies.iter().zip(words) {
        cases.push((vec![agreed, reply.as_slice()], words.to_vec()));
    }
    for (answers, words) in cases {
        let mut stream = Stream::Plain(proxy.tcp());
        for (step, answer) in answers.iter().enumerate() {
            match (step, answers[0]) {
                (0, _) => drop(greeting(&mut stream)),
                (1, [5, 2]) => drop(credentials(&mut stream)),
                _ => drop(request(&mut stream)),
            }
            stream.write_all(answer).unwrap();
        }
        // No reset: what was sent is read first. An agent that has seen enough has gone already.
        let _ = stream.tcp().shutdown(std::net::Shutdown::Write);
        let all = [&["WARN", "ws://opamp.invalid:4320", &name], &words[..]].concat();
        let line = agent.logs(&all);
        assert!(line.contains("trying again in"), "{line}");
        agent.tells("connection.last_error", &all[1..]);
    }
    works(&agent, &mut Peer::upgrade(grant(&proxy).1));
    let log = agent.stop();
    assert!(!log.contains("pr0xy"), "{log}");
}

#[test]
fn a_proxy_that_is_silent_or_dribbles_has_a_time_limit() {
    let (home, proxy) = (Home::new(), Server::new());
    let limit = "timeouts: { connect: 300ms, tls: 5s }";
    home.settings(ENDPOINT, &settings(&[&url("socks5://", &proxy), limit]));
    let agent = home.start();
    let mut silent = Stream::Plain(proxy.tcp());
    greeting(&mut silent);
    // The agent lets go of it, and says why.
    assert_eq!(silent.read(&mut [0]).unwrap(), 0);
    agent.logs(&["WARN", "the proxy", "no answer to CONNECT within 300ms"]);

    let mut slow = Stream::Plain(proxy.tcp());
    greeting(&mut slow);
    slow.write_all(&[5, 0]).unwrap();
    request(&mut slow);
    slow.write_all(&[5, 0, 0, 3, 255]).unwrap();
    slow.tcp().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut sent = 0;
    let over = loop {
        if slow.write_all(b"x").is_err() {
            break true;
        }
        sent += 1;
        match slow.read(&mut [0]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                assert!(sent < 255, "it waits for each byte anew");
            }
            ended => break matches!(ended, Ok(0) | Err(_)),
        }
    };
    assert!(over);
    let (_, tunnel) = grant(&proxy);
    works(&agent, &mut Peer::upgrade(tunnel));
    agent.stop();
}

#[test]
fn without_credentials_a_demand_for_them_says_where_they_go() {
    let (home, proxy) = (Home::new(), Server::new());
    home.settings(ENDPOINT, &settings(&[&url("socks5://", &proxy)]));
    let agent = home.start();
    for demand in [0xff, 2] {
        let mut stream = Stream::Plain(proxy.tcp());
        assert_eq!(greeting(&mut stream), [0]);
        stream.write_all(&[5, demand]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        agent.tells("connection.last_error", &["demands credentials", "opamp.server.proxy.url"]);
    }
    agent.stop();
    let long = "x".repeat(256);
    home.settings(ENDPOINT, &settings(&[&url(&format!("socks5://{long}:p@"), &proxy)]));
    let agent = home.start();
    agent.logs(&["WARN", "more than the 255 bytes"]);
    agent.stop();
}

#[test]
fn tls_is_between_us_and_the_server_also_with_the_environments_proxy() {
    let (home, proxy) = (Home::new(), Server::new());
    let authority = Authority::new("ours");
    fs::write(home.path("ca.pem"), authority.pem()).unwrap();
    let ca = format!("tls: {{ ca_file: {} }}", home.path("ca.pem").display());
    home.settings("wss://opamp.invalid/v1/opamp", &settings(&[&ca]));
    let variable = format!("socks5h://{}", proxy.address());
    let agent = home.start_with(&[("HTTPS_PROXY", variable.as_str())]);
    // The proxy poses as the server.
    let (_, tunnel) = grant(&proxy);
    let false_one = Authority::new("false").serve("opamp.invalid", |_| {}, None);
    assert!(tunnel.encrypted(&false_one).read(&mut [0]).is_err());
    agent.logs(&["WARN", "wss://opamp.invalid", "TLS: ", "unknown issuer"]);
    let (to, tunnel) = grant(&proxy);
    assert_eq!(to, "opamp.invalid:443");
    let config = authority.serve("opamp.invalid", |_| {}, None);
    let mut peer = Peer::upgrade(tunnel.encrypted(&config));
    assert!(peer.request.contains(SECRET));
    works(&agent, &mut peer);
    agent.stop_with(peer);
}
