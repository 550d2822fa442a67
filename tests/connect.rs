//! Connecting from outside: redirects, proxies, pins, and what answers in a server's place. The real binary, real
//! sockets, real TLS.
//!
//! What must never be: a header or a certificate of the settings at another server than theirs, a connection to a
//! host that nobody named, a way on without TLS, an attempt without end.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use common::authority::{Authority, bootstrap, bootstrap_with};
use common::{Agent, Home, Peer, Server, Settings, Stream, WINDOW, read_head};
use rustls::{HandshakeKind, ServerConfig};

/// A pin of no key.
const NOBODY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const SECRET: &str = "hunter2-in-a-header";

fn settings(server: &[&str]) -> Settings {
    Settings {
        server: server.iter().map(|line| (*line).to_owned()).collect(),
        ..Settings::default()
    }
}

/// Settings with a secret header, and more.
fn with_secret(more: &[&str]) -> Settings {
    let headers = format!("headers: {{ Authorization: \"Bearer {SECRET}\", X-Tenant: blue }}");
    settings(&[&[headers.as_str()], more].concat())
}

fn has_secret(request: &str) -> bool {
    assert_eq!(request.contains(SECRET), request.contains("X-Tenant: blue"), "{request}");
    request.contains(SECRET)
}

fn path(request: &str) -> &str {
    request.strip_prefix("GET ").unwrap().split_once(' ').unwrap().0
}

fn redirect(status: u16, location: &str) -> String {
    format!("HTTP/1.1 {status} Elsewhere\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
}

/// Reads the request and answers it with these bytes.
fn answer(mut stream: Stream, answer: &str) -> String {
    let request = read_head(&mut stream);
    stream.write_all(answer.as_bytes()).unwrap();
    stream.flush().unwrap();
    request
}

/// The upgraded connection carries a report, and the agent knows it is up.
fn works(agent: &Agent, peer: &mut Peer) {
    let first = peer.report();
    peer.answer(&first);
    agent.shows("connection.state", |state| state == "connected");
    agent.shows("connection.last_error", serde_yaml::Value::is_null);
    agent.unharmed();
}

/// Neither the log nor the status nor the state directory knows the secret, but for the copy of the settings, which
/// is as private as they are.
fn keeps_its_secret(home: &Home, status: &serde_yaml::Value, log: &str, secret: &str) {
    assert!(!log.contains(secret), "{log}");
    assert!(!format!("{status:?}").contains(secret), "{status:?}");
    for file in common::files_with(&home.path("state"), secret) {
        assert_eq!(file, home.path("state/settings"));
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

mod redirects {
    use super::*;

    #[test]
    fn each_is_followed_with_credentials_on_the_same_server_and_for_this_connection_only() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &with_secret(&[]));
        let agent = home.start();
        let absolute = format!("ws://{}/b", server.address());
        let http = format!("http://{}/c?d=e", server.address());
        let relative = format!("//{}/f", server.address());
        for (status, location, to) in [
            (301, "/a", "/a"),
            (302, absolute.as_str(), "/b"),
            (303, &http, "/c?d=e"),
            (307, &relative, "/f"),
            (308, "g#h", "/v1/g"),
        ] {
            let first = server.refuse(&redirect(status, location));
            assert_eq!((path(&first), has_secret(&first)), ("/v1/opamp", true), "{status}");
            let mut peer = server.accept();
            assert_eq!((path(&peer.request), has_secret(&peer.request)), (to, true), "{status}");
            works(&agent, &mut peer);
        }
        // Its end names the endpoint and where the redirect led.
        let words = [&server.ws(), "redirected to", "was cut"];
        agent.logs(&words);
        agent.stop();
    }

    #[test]
    fn another_port_gets_no_credentials_and_nor_does_what_it_points_back_to() {
        let (home, ours, other) = (Home::new(), Server::new(), Server::new());
        home.settings(&ours.ws(), &with_secret(&[]));
        let agent = home.start();
        assert!(has_secret(&ours.refuse(&redirect(307, &other.ws()))));
        let mut peer = other.accept();
        assert!(!has_secret(&peer.request), "{}", peer.request);
        works(&agent, &mut peer);
        drop(peer);

        assert!(has_secret(&ours.refuse(&redirect(307, &other.ws()))));
        let back = format!("ws://{}/back", ours.address());
        assert!(!has_secret(&other.refuse(&redirect(307, &back))));
        let mut peer = ours.accept();
        assert_eq!((path(&peer.request), has_secret(&peer.request)), ("/back", false));
        works(&agent, &mut peer);
        drop(peer);
        assert!(has_secret(&ours.accept().request), "the next attempt starts anew");
        agent.stop();
    }

    #[test]
    fn another_host_is_not_followed_unless_it_is_named_and_never_with_credentials() {
        let (home, ours, other) = (Home::new(), Server::new(), Server::new());
        let elsewhere =
            format!("http://localhost:{}/login?token=t0k3n-of-theirs", other.address().port());
        home.settings(&ours.ws(), &with_secret(&[]));
        let agent = home.start();
        ours.refuse(&redirect(302, &elsewhere));
        let words = ["another host", "localhost", "captive portal", "opamp.server.allow_endpoints"];
        let line = agent.logs(&[&["WARN", &ours.ws()], &words[..]].concat());
        assert!(line.contains("trying again in"), "{line}");
        agent.tells("connection.last_error", &words);
        let mut peer = ours.accept();
        works(&agent, &mut peer);
        other.nobody_for(WINDOW);
        let (status, _) = agent.status();
        keeps_its_secret(&home, &status, &agent.stop_with(peer), "t0k3n-of-theirs");

        let home = Home::new();
        home.settings(&ours.ws(), &with_secret(&["allow_endpoints: [\"local*\"]"]));
        let agent = home.start();
        assert!(has_secret(&ours.refuse(&redirect(302, &elsewhere))));
        let mut peer = other.accept();
        assert!(!has_secret(&peer.request), "{}", peer.request);
        assert_eq!(path(&peer.request), "/login?token=t0k3n-of-theirs");
        let host = format!("Host: localhost:{}\r\n", other.address().port());
        assert!(peer.request.contains(&host), "{}", peer.request);
        works(&agent, &mut peer);
        let (status, _) = agent.status();
        keeps_its_secret(&home, &status, &agent.stop_with(peer), "t0k3n-of-theirs");
    }

    #[test]
    fn a_way_on_without_tls_is_not_taken_one_with_tls_is() {
        let (home, ours, other) = (Home::new(), Server::new(), Server::new());
        let authority = Authority::new("ours");
        fs::write(home.path("ca.pem"), authority.pem()).unwrap();
        let config = authority.serve("127.0.0.1", |_| {}, None);
        let ca = format!("tls: {{ ca_file: {} }}", home.path("ca.pem").display());
        home.settings(&ours.wss(), &with_secret(&[&ca]));
        let agent = home.start();
        let plain = format!("http://{}/", other.address());
        for location in [&other.ws(), &plain] {
            assert!(has_secret(&answer(ours.tls(&config), &redirect(301, location))));
            agent.logs(&["WARN", &ours.wss(), "has no TLS", &other.address().to_string()]);
        }
        let mut peer = Peer::upgrade(ours.tls(&config));
        works(&agent, &mut peer);
        other.nobody_for(WINDOW);
        agent.stop_with(peer);

        let second = Home::new();
        second.settings(&other.ws(), &with_secret(&[&ca]));
        let agent = second.start();
        let secure = format!("https://{}/v1/opamp", ours.address());
        other.refuse(&redirect(308, &secure));
        let mut peer = Peer::upgrade(ours.tls(&config));
        assert!(!has_secret(&peer.request), "another port: {}", peer.request);
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }

    #[test]
    fn the_client_certificate_stays_with_its_server() {
        let (home, ours, other) = (Home::new(), Server::new(), Server::new());
        let authority = Authority::new("ours");
        let (cert, key) = authority.issue("device", |_| {});
        let tls = bootstrap(&home, &authority, Some((&cert, &key)));
        home.settings(&ours.wss(), &with_secret(&[&tls]));
        let agent = home.start();
        let strict = authority.serve("127.0.0.1", |_| {}, Some(&authority));
        let curious = authority.serve_curious("127.0.0.1", &authority);
        // Twice: a session that was resumed must not carry it either.
        for _ in 0..2 {
            let mut stream = ours.tls(&strict);
            assert!(stream.shaken().unwrap().peer_certificates().is_some());
            assert!(has_secret(&answer(stream, &redirect(307, &other.wss()))));
            let mut stream = other.tls(&curious);
            assert_eq!(stream.shaken().unwrap().peer_certificates(), None);
            let mut peer = Peer::upgrade(stream);
            assert!(!has_secret(&peer.request), "{}", peer.request);
            works(&agent, &mut peer);
        }
        // On its own server it goes along.
        answer(ours.tls(&strict), &redirect(307, "/elsewhere"));
        let mut stream = ours.tls(&strict);
        assert!(stream.shaken().unwrap().peer_certificates().is_some());
        let mut peer = Peer::upgrade(stream);
        assert!(has_secret(&peer.request));
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }

    #[test]
    fn a_circle_and_a_long_way_end_and_back_off() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &with_secret(&[]));
        let agent = home.start();
        for (from, location) in [("/v1/opamp", "/a"), ("/a", "/b"), ("/b", "/a")] {
            assert_eq!(path(&server.refuse(&redirect(302, location))), from);
        }
        let line = agent.logs(&["WARN", &server.ws(), "circle"]);
        assert!(line.contains("trying again in"), "{line}");
        // Itself.
        assert_eq!(path(&server.refuse(&redirect(302, &server.ws()))), "/v1/opamp");
        for step in 0..5 {
            server.refuse(&redirect(302, &format!("/{step}")));
        }
        assert_eq!(path(&server.refuse(&redirect(302, "/5"))), "/4");
        let line = agent.logs(&["WARN", &server.ws(), "after 5 times"]);
        assert!(line.contains("trying again in"), "{line}");
        let mut peer = server.accept();
        assert_eq!(path(&peer.request), "/v1/opamp");
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }

    #[test]
    fn a_redirect_to_nowhere_is_told() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &with_secret(&[]));
        let agent = home.start();
        for (bytes, words) in [
            ("HTTP/1.1 302 Found\r\n\r\n".to_owned(), ["302", "no Location"]),
            (redirect(301, "ftp://127.0.0.1/x"), ["301", "scheme"]),
            (redirect(307, "http://"), ["307", "no host"]),
            (redirect(307, "http://127.0.0.1:99999/"), ["307", "port"]),
            (redirect(308, "ws://me:t0k3n-of-theirs@127.0.0.1/"), ["308", "user information"]),
            (redirect(308, &"x".repeat(4000)), ["308", "longer than"]),
        ] {
            server.refuse(&bytes);
            agent.logs(&[&["WARN", &server.ws()], &words[..]].concat());
            agent.tells("connection.last_error", &words);
        }
        works(&agent, &mut server.accept());
        let (status, _) = agent.status();
        keeps_its_secret(&home, &status, &agent.stop(), "t0k3n-of-theirs");
    }
}

mod in_its_place {
    use super::*;

    #[test]
    fn what_answers_instead_of_a_server_is_recognised() {
        let (home, server) = (Home::new(), Server::new());
        home.settings(&server.ws(), &with_secret(&[]));
        let agent = home.start();
        let page = "<html>Welcome to our wifi</html>";
        for (bytes, words) in [
            (
                format!("HTTP/1.1 200 OK\r\nContent-Type: Text/HTML; charset=utf-8\r\n\r\n{page}"),
                &["200", "captive portal"][..],
            ),
            (format!("HTTP/1.1 511 No\r\n\r\n{page}"), &["511", "captive portal"]),
            ("SSH-2.0-OpenSSH_9.6\r\n".to_owned(), &["not HTTP", "SSH server"]),
            ("220 mail.example ESMTP Postfix\r\n".to_owned(), &["not HTTP", "mail"]),
            ("+OK\r\n".to_owned(), &["not HTTP", "port"]),
            (
                "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
                    .to_owned(),
                &["400", "wss://"],
            ),
        ] {
            server.refuse(&bytes);
            agent.logs(&[&["WARN", &server.ws()], words].concat());
            agent.tells("connection.last_error", words);
        }
        // A real TLS server.
        let config = Authority::new("ours").serve("127.0.0.1", |_| {}, None);
        assert!(server.tls(&config).shaken().is_err());
        agent.logs(&["WARN", &server.ws(), "it is TLS", "wss://"]);
        works(&agent, &mut server.accept());
        agent.stop();
    }

    #[test]
    fn what_speaks_no_tls_is_recognised() {
        let (home, server) = (Home::new(), Server::new());
        let authority = Authority::new("ours");
        fs::write(home.path("ca.pem"), authority.pem()).unwrap();
        let ca = format!("tls: {{ ca_file: {} }}", home.path("ca.pem").display());
        home.settings(&server.wss(), &with_secret(&[&ca]));
        let agent = home.start();
        for bytes in ["HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-OpenSSH_9.6\r\n"] {
            let mut stream = server.tcp();
            stream.write_all(bytes.as_bytes()).unwrap();
            let mut hello = Vec::new();
            let _ = stream.read_to_end(&mut hello);
            let hello = String::from_utf8_lossy(&hello).into_owned();
            assert!(!has_secret(&hello));
            agent.logs(&["WARN", &server.wss(), "does not speak TLS", "ws://"]);
        }
        let closed = server.tcp();
        closed.shutdown(std::net::Shutdown::Write).unwrap();
        agent.logs(&["WARN", &server.wss(), "TLS: ", "closed within the handshake"]);
        drop(closed);
        works(&agent, &mut Peer::upgrade(server.tls(&authority.serve("127.0.0.1", |_| {}, None))));
        agent.stop();
    }
}

mod pins {
    use super::*;

    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    fn pin(key: &impl rcgen::PublicKeyData) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
        let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bits: String = digest.as_ref().iter().map(|byte| format!("{byte:08b}")).collect();
        let bits = bits + "00";
        let sextets = bits.as_bytes().chunks(6).map(|six| {
            let six = std::str::from_utf8(six).unwrap();
            char::from(digits[usize::from_str_radix(six, 2).unwrap()])
        });
        sextets.chain(['=']).collect()
    }

    /// A server for this key, whose chain has other certificates too.
    fn serve(authority: &Authority, key: &KeyPair, more: &[&str]) -> Arc<ServerConfig> {
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let mut chain = vec![authority.sign(&params, key)];
        chain.extend(more.iter().map(|pem| (*pem).to_owned()));
        let chain = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let builder = ServerConfig::builder().with_no_client_auth();
        Arc::new(builder.with_single_cert(chain.collect(), key).unwrap())
    }

    #[test]
    fn a_trusted_server_with_another_key_gets_nothing() {
        for skip in [false, true] {
            let (home, server) = (Home::new(), Server::new());
            let (authority, key) = (Authority::new("ours"), KeyPair::generate().unwrap());
            fs::write(home.path("ca.pem"), authority.pem()).unwrap();
            let tls = format!(
                "tls: {{ ca_file: {}, pinned_spki_sha256: [\"{NOBODY}\", \"{}\"], insecure_skip_verify: {skip} }}",
                home.path("ca.pem").display(),
                pin(&key)
            );
            home.settings(&server.wss(), &with_secret(&[&tls]));
            let agent = home.start();
            let (impostor, good) = (KeyPair::generate().unwrap(), serve(&authority, &key, &[]));
            let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
            let pinned = authority.sign(&params, &key);
            // Alone, and with the pinned key's certificate, which is public, behind its own.
            for more in [&[][..], &[pinned.as_str()]] {
                let mut stream = server.tls(&serve(&authority, &impostor, more));
                let mut bytes = Vec::new();
                assert!(stream.read_to_end(&mut bytes).is_err() && bytes.is_empty());
                let words = ["TLS: ", "pinned_spki_sha256", &pin(&impostor)];
                agent.logs(&[&["WARN", &server.wss()], &words[..]].concat());
                agent.tells("connection.last_error", &words);
            }
            let mut peer = Peer::upgrade(server.tls(&good));
            assert!(has_secret(&peer.request));
            works(&agent, &mut peer);
            agent.stop_with(peer);
        }
    }

    /// The root is in ca_file and need not be sent.
    #[test]
    fn the_key_of_the_ca_is_enough_and_the_normal_checks_still_hold() {
        let (home, server) = (Home::new(), Server::new());
        let (authority, other) = (Authority::new("ours"), Authority::new("other"));
        fs::write(home.path("ca.pem"), authority.pem()).unwrap();
        let tls = format!(
            "tls: {{ ca_file: {}, pinned_spki_sha256: [\"{}\", \"{}\"] }}",
            home.path("ca.pem").display(),
            pin(authority.key()),
            pin(other.key()),
        );
        home.settings(&server.wss(), &with_secret(&[&tls]));
        let agent = home.start();
        assert!(server.tls(&other.serve("127.0.0.1", |_| {}, None)).read(&mut [0]).is_err());
        agent.logs(&["WARN", &server.wss(), "unknown issuer"]);
        assert!(server.tls(&authority.serve("opamp.other", |_| {}, None)).read(&mut [0]).is_err());
        agent.logs(&["WARN", &server.wss(), "another name"]);
        let mut peer = Peer::upgrade(server.tls(&authority.serve("127.0.0.1", |_| {}, None)));
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }

    /// Where a redirect leads, the pins hold too.
    #[test]
    fn a_redirect_does_not_lead_around_them() {
        let (home, ours, other) = (Home::new(), Server::new(), Server::new());
        let (authority, key) = (Authority::new("ours"), KeyPair::generate().unwrap());
        fs::write(home.path("ca.pem"), authority.pem()).unwrap();
        let tls = format!(
            "tls: {{ ca_file: {}, pinned_spki_sha256: [\"{}\"] }}",
            home.path("ca.pem").display(),
            pin(&key)
        );
        home.settings(&ours.wss(), &with_secret(&[&tls]));
        let agent = home.start();
        let good = serve(&authority, &key, &[]);
        answer(ours.tls(&good), &redirect(307, &other.wss()));
        assert!(other.tls(&authority.serve("127.0.0.1", |_| {}, None)).read(&mut [0]).is_err());
        agent.logs(&["WARN", "redirected to", "pinned_spki_sha256"]);
        works(&agent, &mut Peer::upgrade(ours.tls(&good)));
        agent.stop();
    }
}

mod sessions {
    use super::*;

    #[test]
    fn a_reconnect_resumes_the_session_a_new_certificate_does_not() {
        for version in ["1.2", "1.3"] {
            let (home, server) = (Home::new(), Server::new());
            let authority = Authority::new("ours");
            let place = || {
                let (cert, key) = authority.issue("device", |_| {});
                let more = format!(", max_version: \"{version}\"");
                bootstrap_with(&home, &authority, Some((&cert, &key)), &more)
            };
            let tls = place();
            home.settings(&server.wss(), &with_secret(&[&tls]));
            let agent = home.start();
            let config = authority.serve("127.0.0.1", |_| {}, Some(&authority));
            let connect = || {
                let mut stream = server.tls(&config);
                let kind = stream.shaken().unwrap().handshake_kind().unwrap();
                let resumed = kind == HandshakeKind::Resumed;
                let mut peer = Peer::upgrade(stream);
                works(&agent, &mut peer);
                (resumed, peer)
            };
            let (resumed, peer) = connect();
            assert!(!resumed, "the first");
            drop(peer);
            for _ in 0..3 {
                assert!(connect().0, "TLS {version}");
            }
            // While this one is up nothing connects: the next reads the new files.
            let (_, peer) = connect();
            place();
            drop(peer);
            let (resumed, peer) = connect();
            assert!(!resumed, "TLS {version}: the old identity was resumed");
            agent.stop_with(peer);
        }
    }
}

mod proxies {
    use super::*;

    const GRANTED: &str = "HTTP/1.1 200 Connection established\r\n\r\n";

    /// Takes the next connection of a proxy and lets it through: the request and the tunnel.
    fn grant(proxy: &Server) -> (String, Stream) {
        let mut stream = Stream::Plain(proxy.tcp());
        let request = read_head(&mut stream);
        stream.write_all(GRANTED.as_bytes()).unwrap();
        (request, stream)
    }

    fn url(proxy: &Server) -> String {
        format!("proxy: {{ url: \"http://{}\" }}", proxy.address())
    }

    #[test]
    fn connect_carries_the_proxys_credentials_and_the_tunnel_the_servers() {
        let (home, proxy) = (Home::new(), Server::new());
        let settings = with_secret(&[&format!(
            "proxy: {{ url: \"http://me:pr0xy%2Dpass@{}\", connect_headers: {{ X-Site: \"s1te-secret\" }} }}",
            proxy.address()
        )]);
        home.settings("ws://opamp.invalid:4320/v1/opamp", &settings);
        let agent = home.start();
        let (request, tunnel) = grant(&proxy);
        assert!(request.starts_with("CONNECT opamp.invalid:4320 HTTP/1.1\r\n"), "{request}");
        for line in [
            "Host: opamp.invalid:4320",
            // me:pr0xy-pass
            "Proxy-Authorization: Basic bWU6cHIweHktcGFzcw==",
            "X-Site: s1te-secret",
        ] {
            assert!(request.contains(&format!("{line}\r\n")), "{line}: {request}");
        }
        assert!(!has_secret(&request), "{request}");
        let mut peer = Peer::upgrade(tunnel);
        assert!(has_secret(&peer.request), "{}", peer.request);
        assert!(peer.request.contains("Host: opamp.invalid:4320\r\n"), "{}", peer.request);
        assert!(!peer.request.contains("Proxy-") && !peer.request.contains("X-Site"));
        works(&agent, &mut peer);
        drop(peer);
        // A refusal does not show them either.
        proxy.refuse("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
        agent.logs(&["WARN", "407", "demands credentials"]);
        let (status, _) = agent.status();
        let log = agent.stop();
        for secret in ["pr0xy", "s1te-secret", "bWU6", SECRET] {
            keeps_its_secret(&home, &status, &log, secret);
        }
    }

    /// What the proxy answers, and what is told.
    #[test]
    fn a_proxy_that_does_not_let_through_is_told_by_name() {
        let (home, proxy) = (Home::new(), Server::new());
        let settings = with_secret(&[&url(&proxy), "timeouts: { connect: 300ms, tls: 5s }"]);
        home.settings("ws://opamp.invalid:4320/v1/opamp", &settings);
        let agent = home.start();
        let name = format!("the proxy {}: ", proxy.address());
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(20_000));
        for (bytes, words) in [
            ("HTTP/1.1 407 Who?\r\n\r\n", &["407", "connect_headers"][..]),
            ("HTTP/1.1 403 No\r\n\r\n", &["403", "does not let us through to opamp.invalid:4320"]),
            ("HTTP/1.1 405 No\r\nContent-Type: text/html\r\n\r\n<html>", &["405", "CONNECT?"]),
            ("HTTP/1.1 502 No\r\n\r\n", &["502", "does not reach opamp.invalid:4320"]),
            ("HTTP/1.1 302 To\r\nLocation: http://login/\r\n\r\n", &["302", "captive portal"]),
            ("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", &["is it a proxy?"]),
            ("SSH-2.0-OpenSSH_9.6\r\n", &["not HTTP", "SSH server"]),
            ("\0\u{1}\u{2}garbage\r\n\r\n", &["not HTTP"]),
            (&endless, &["longer than"]),
            ("", &["ended before an answer"]),
        ] {
            let request = proxy.refuse(bytes);
            assert!(request.starts_with("CONNECT ") && !has_secret(&request), "{request}");
            let words = [&["ws://opamp.invalid:4320", &name], words].concat();
            let line = agent.logs(&[&["WARN"], &words[..]].concat());
            assert!(line.contains("trying again in"), "{line}");
            agent.tells("connection.last_error", &words);
        }
        let silent = proxy.tcp();
        agent.logs(&["WARN", &name, "no answer to CONNECT within 300ms"]);
        drop(silent);
        let mut peer = Peer::upgrade(grant(&proxy).1);
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }

    #[test]
    fn a_proxy_that_is_not_there_is_told() {
        let home = Home::new();
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = format!("proxy: {{ url: \"http://{gone}\" }}");
        home.settings("ws://opamp.invalid:4320/v1/opamp", &with_secret(&[&proxy]));
        let agent = home.start();
        agent.logs(&["WARN", "ws://opamp.invalid:4320", &format!("the proxy {gone}"), "refused"]);
        agent.unharmed();
        agent.stop();
        let named = "proxy: { url: \"http://no-such-proxy.invalid:3128\" }";
        home.settings("ws://opamp.invalid:4320/v1/opamp", &with_secret(&[named]));
        let agent = home.start();
        agent.logs(&["WARN", "the proxy no-such-proxy.invalid:3128", "looking up"]);
        agent.stop();
    }

    #[test]
    fn tls_is_between_us_and_the_server() {
        let (home, proxy) = (Home::new(), Server::new());
        let authority = Authority::new("ours");
        fs::write(home.path("ca.pem"), authority.pem()).unwrap();
        let ca = format!("tls: {{ ca_file: {} }}", home.path("ca.pem").display());
        home.settings("wss://opamp.invalid/v1/opamp", &with_secret(&[&ca, &url(&proxy)]));
        let agent = home.start();
        // The proxy poses as the server.
        let (_, tunnel) = grant(&proxy);
        let false_one = Authority::new("false").serve("opamp.invalid", |_| {}, None);
        assert!(tunnel.encrypted(&false_one).read(&mut [0]).is_err());
        agent.logs(&["WARN", "wss://opamp.invalid", "TLS: ", "unknown issuer"]);
        let (request, tunnel) = grant(&proxy);
        assert!(request.starts_with("CONNECT opamp.invalid:443 HTTP/1.1\r\n"), "{request}");
        let config = authority.serve("opamp.invalid", |_| {}, None);
        let mut peer = Peer::upgrade(tunnel.encrypted(&config));
        assert!(has_secret(&peer.request));
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }

    /// opamp-spec L2342: the connection's own TLS settings are used to the proxy too. The pins are the server's.
    #[test]
    fn an_encrypted_proxy_gets_the_client_certificate() {
        let (files, proxy) = (Home::new(), Server::new());
        let authority = Authority::new("ours");
        let (cert, key) = authority.issue("device", |_| {});
        let tls = |more: &str| bootstrap_with(&files, &authority, Some((&cert, &key)), more);
        let pinned = tls(&format!(", pinned_spki_sha256: [{NOBODY}]"));
        let through = format!("proxy: {{ url: \"https://me:pr0xy@{}\" }}", proxy.address());
        let outer = authority.serve("127.0.0.1", |_| {}, Some(&authority));
        let home = Home::new();
        home.settings("ws://opamp.invalid/v1/opamp", &with_secret(&[&pinned, &through]));
        let agent = home.start();
        let mut stream = proxy.tls(&outer);
        assert!(stream.shaken().unwrap().peer_certificates().is_some());
        let request = read_head(&mut stream);
        assert!(request.starts_with("CONNECT opamp.invalid:80 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("Proxy-Authorization: Basic "), "{request}");
        stream.write_all(GRANTED.as_bytes()).unwrap();
        let mut peer = Peer::upgrade(stream);
        works(&agent, &mut peer);
        agent.stop_with(peer);

        // TLS within TLS, where the pins count.
        let home = Home::new();
        home.settings("wss://opamp.invalid/v1/opamp", &with_secret(&[&pinned, &through]));
        let agent = home.start();
        let mut stream = proxy.tls(&outer);
        read_head(&mut stream);
        stream.write_all(GRANTED.as_bytes()).unwrap();
        let inner = authority.serve("opamp.invalid", |_| {}, None);
        assert!(stream.encrypted(&inner).read(&mut [0]).is_err());
        agent.logs(&["WARN", "wss://opamp.invalid", "pinned_spki_sha256"]);
        agent.stop();
        let (home, proxy) = (Home::new(), Server::new());
        let through = format!("proxy: {{ url: \"https://me:pr0xy@{}\" }}", proxy.address());
        home.settings("wss://opamp.invalid/v1/opamp", &with_secret(&[&tls(""), &through]));
        let agent = home.start();
        let mut stream = proxy.tls(&outer);
        read_head(&mut stream);
        stream.write_all(GRANTED.as_bytes()).unwrap();
        let mut peer = Peer::upgrade(stream.encrypted(&inner));
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }

    #[test]
    fn an_encrypted_proxy_must_prove_its_name() {
        let (home, proxy) = (Home::new(), Server::new());
        let authority = Authority::new("ours");
        fs::write(home.path("ca.pem"), authority.pem()).unwrap();
        let ca = format!("tls: {{ ca_file: {} }}", home.path("ca.pem").display());
        let through = format!("proxy: {{ url: \"https://me:pr0xy@{}\" }}", proxy.address());
        home.settings("ws://opamp.invalid/v1/opamp", &with_secret(&[&ca, &through]));
        let agent = home.start();
        let name = format!("the proxy {}: TLS: ", proxy.address());
        let config = authority.serve("proxy.other", |_| {}, None);
        assert!(proxy.tls(&config).read(&mut [0]).is_err());
        agent.logs(&["WARN", "ws://opamp.invalid", &name, "another name"]);
        let mut plain = Stream::Plain(proxy.tcp());
        plain.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        agent.logs(&["WARN", &name, "does not speak TLS"]);
        agent.stop();
    }

    #[test]
    fn hosts_that_no_proxy_names_are_reached_directly() {
        for (entry, direct) in [("127.0.0.0/8", true), ("*", true), ("10.0.0.0/8", false)] {
            let (home, proxy, server) = (Home::new(), Server::new(), Server::new());
            let proxied = format!(
                "proxy: {{ url: \"http://{}\", no_proxy: [\"{entry}\"] }}",
                proxy.address()
            );
            home.settings(&server.ws(), &with_secret(&[&proxied]));
            let agent = home.start();
            let mut peer = if direct { server.accept() } else { Peer::upgrade(grant(&proxy).1) };
            works(&agent, &mut peer);
            let unused = if direct { &proxy } else { &server };
            unused.nobody_for(WINDOW);
            agent.stop_with(peer);
        }
    }

    #[test]
    fn the_environments_proxy_counts_but_not_on_the_way_to_this_host() {
        let (proxy, server) = (Server::new(), Server::new());
        let address = proxy.address().to_string();
        let environment = [
            ("http_proxy", address.as_str()),
            ("NO_PROXY", "other.invalid,.lan"),
            ("https_proxy", "http://no-such-proxy.invalid"),
        ];
        let home = Home::new();
        home.settings("ws://opamp.invalid:4320/v1/opamp", &with_secret(&[]));
        let agent = home.start_with(&environment);
        let (request, tunnel) = grant(&proxy);
        assert!(request.starts_with("CONNECT opamp.invalid:4320 "), "{request}");
        let mut peer = Peer::upgrade(tunnel);
        works(&agent, &mut peer);
        agent.stop_with(peer);

        let home = Home::new();
        home.settings(&server.ws(), &with_secret(&[]));
        let agent = home.start_with(&environment);
        let mut peer = server.accept();
        works(&agent, &mut peer);
        proxy.nobody_for(WINDOW);
        agent.stop_with(peer);

        // Settings count before it.
        let home = Home::new();
        home.settings("ws://opamp.invalid:4320/v1/opamp", &with_secret(&["proxy: { url: \"\" }"]));
        let agent = home.start_with(&environment);
        agent.logs(&["WARN", "looking up opamp.invalid"]);
        proxy.nobody_for(WINDOW);
        agent.stop();
    }

    #[test]
    fn a_redirect_goes_through_the_proxy_too() {
        let (home, proxy) = (Home::new(), Server::new());
        let settings = with_secret(&[&url(&proxy), "allow_endpoints: [\"*.invalid:8080\"]"]);
        home.settings("ws://opamp.invalid:4320/v1/opamp", &settings);
        let agent = home.start();
        let (_, tunnel) = grant(&proxy);
        assert!(has_secret(&answer(tunnel, &redirect(307, "http://eu.invalid:8080/x"))));
        let (request, tunnel) = grant(&proxy);
        assert!(request.starts_with("CONNECT eu.invalid:8080 "), "{request}");
        let mut peer = Peer::upgrade(tunnel);
        assert!(!has_secret(&peer.request), "{}", peer.request);
        works(&agent, &mut peer);
        agent.stop_with(peer);
    }
}
