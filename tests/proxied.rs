//! Packages that come through a proxy: the real binary, real sockets, and a proxy that carries real connections.
//!
//! What must never be: a download past the proxy, the proxy's credentials at a server, the server's at the proxy.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;

use chiton_proto::{PackageAvailable, PackageStatusEnum};
use common::authority::Authority;
use common::packages::{Files, offered, packages, trusted};
use common::proxy::{Relay, Speaks};
use common::{Agent, Home, Peer, Server, Settings};

use PackageStatusEnum::{InstallFailed, Installed};

const SECRET: &str = "hunter2-in-a-header";
const OPAMP: &str = "opamp.invalid:4320";
const SHELF: &str = "files.invalid:8080";

/// The workload is the package `prog`.
fn settings(home: &Home, server: Vec<String>) -> Settings {
    let headers = format!("headers: {{ Authorization: \"Bearer {SECRET}\" }}");
    Settings {
        server: [vec![headers], server].concat(),
        capabilities: vec!["accepts_packages"],
        command: Some("[\"{package_dir:prog}/prog\"]".to_owned()),
        opamp: vec![
            "remote_config: { rollback: { window: 10s, interval: 20ms, successes: 2 }, min_interval: 1ms }"
                .to_owned(),
            format!("packages: {{ trusted_keys: [{}] }}", trusted(home, 1)),
        ],
        ..Settings::default()
    }
}

/// The program as offered at this `host:port`.
fn prog(
    home: &Home,
    files: &Files,
    (version, counter): (&str, u64),
    at: &str,
) -> (String, PackageAvailable) {
    let (name, mut offer) = offered(files, "prog", version, counter, &home.program(version, ""));
    offer.file.as_mut().unwrap().download_url = format!("http://{at}/prog-{version}");
    (name, offer)
}

fn start(home: &Home) -> Agent<'_> {
    home.start_with(&[("CHITON_FETCH_HASTE", "1")])
}

/// The proxy's secrets reach no server and no log, the server's no proxy.
fn keeps_secrets(agent: Agent<'_>, peer: Peer, relay: &Relay, files: &Files) {
    let (status, _) = agent.status();
    let log = agent.stop_with(peer);
    for ours in ["pr0xy", "s1te-secret"] {
        assert!(!log.contains(ours) && !format!("{status:?}").contains(ours), "{log}");
    }
    for head in files.asked() {
        for word in ["pr0xy", "s1te", "Proxy-", "X-Site", "bWU6", SECRET] {
            assert!(!head.contains(word), "{head}");
        }
    }
    for asked in relay.asked() {
        assert!(!asked.contains(SECRET), "{asked}");
    }
}

/// A program is fetched through such a proxy, and what the proxy refuses is told.
fn fetched(speaks: &Speaks, scheme: &str, shown: &str, more: &[String]) {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let relay = Relay::new(speaks, &[(OPAMP, server.address()), (SHELF, files.address())]);
    let site = match speaks {
        Speaks::Socks => "",
        Speaks::Http | Speaks::Https(_) => ", connect_headers: { X-Site: s1te-secret }",
    };
    let proxy =
        format!("proxy: {{ url: \"{scheme}://me:pr0xy%2Dpass@{}\"{site} }}", relay.address());
    let allowed = "allow_endpoints: [\"*.invalid:8080\"]".to_owned();
    let lines = [vec![proxy, allowed], more.to_vec()].concat();
    home.settings(&format!("ws://{OPAMP}/v1/opamp"), &settings(&home, lines));
    let agent = start(&home);
    let (mut peer, first) = server.greet();
    assert!(peer.request.contains(SECRET) && !peer.request.contains("X-Site"));
    let uid = &first.instance_uid;

    peer.send(&packages(uid, "all-1", vec![prog(&home, &files, ("1.0", 1), SHELF)]));
    let status = peer.package("all-1", "prog");
    assert_eq!((status.status(), status.error_message.as_str()), (Installed, ""));
    assert_eq!(home.version(home.workload(1)), "1.0");
    let asked = relay.asked();
    assert!(asked.iter().any(|asked| asked.starts_with(SHELF)), "{asked:?}");
    assert!(asked.iter().all(|asked| asked.contains(shown)), "{asked:?}");

    // The proxy does not let us through: told, and what runs runs on.
    let elsewhere = prog(&home, &files, ("2.0", 2), "elsewhere.invalid:8080");
    peer.send(&packages(uid, "all-2", vec![elsewhere]));
    let status = peer.package("all-2", "prog");
    assert_eq!(status.status(), InstallFailed);
    for word in ["the proxy 127.0.0.1", "does not let us through to elsewhere.invalid:8080"] {
        assert!(status.error_message.contains(word), "{word}: {status:?}");
    }
    agent.unharmed();

    peer.send(&packages(uid, "all-3", vec![prog(&home, &files, ("3.0", 3), SHELF)]));
    assert_eq!(peer.package("all-3", "prog").status(), Installed);
    assert_eq!(home.version(home.workload(2)), "3.0");
    keeps_secrets(agent, peer, &relay, &files);
}

#[test]
fn a_package_comes_through_a_proxy() {
    // me:pr0xy-pass
    fetched(&Speaks::Http, "http", "Basic bWU6cHIweHktcGFzcw==", &[]);
}

#[test]
fn a_package_comes_through_an_encrypted_proxy() {
    let (files, authority) = (Home::new(), Authority::new("ours"));
    fs::write(files.path("ca.pem"), authority.pem()).unwrap();
    let ca = format!("tls: {{ ca_file: {} }}", files.path("ca.pem").display());
    let speaks = Speaks::Https(authority.serve("127.0.0.1", |_| {}, None));
    fetched(&speaks, "https", "X-Site: s1te-secret", &[ca]);
}

#[cfg(feature = "socks")]
#[test]
fn a_package_comes_through_a_socks_proxy() {
    fetched(&Speaks::Socks, "socks5h", "me:pr0xy-pass", &[]);
}

#[test]
fn no_proxy_holds_for_each_of_them_by_itself() {
    for direct in ["files", "opamp"] {
        let (home, server, files) = (Home::new(), Server::new(), Files::new());
        let names = [(OPAMP, server.address()), (SHELF, files.address())];
        let relay = Relay::new(&Speaks::Http, &names);
        let here = if direct == "files" { files.address() } else { server.address() };
        let lines = vec![
            format!("proxy: {{ url: \"http://{}\", no_proxy: [\"{here}\"] }}", relay.address()),
            "allow_endpoints: [\"127.0.0.1\", \"*.invalid:8080\"]".to_owned(),
        ];
        let (endpoint, at, through) = match direct {
            "files" => (format!("ws://{OPAMP}/v1/opamp"), here.to_string(), OPAMP),
            _ => (server.ws(), SHELF.to_owned(), SHELF),
        };
        home.settings(&endpoint, &settings(&home, lines));
        let agent = start(&home);
        let (mut peer, first) = server.greet();
        let offer = prog(&home, &files, ("1.0", 1), &at);
        peer.send(&packages(&first.instance_uid, "all-1", vec![offer]));
        let status = peer.package("all-1", "prog");
        assert_eq!((status.status(), status.error_message.as_str()), (Installed, ""));
        let asked = relay.asked();
        assert!(!asked.is_empty(), "{direct}");
        assert!(asked.iter().all(|asked| asked.starts_with(through)), "{direct}: {asked:?}");
        keeps_secrets(agent, peer, &relay, &files);
    }
}

#[test]
fn a_tunnel_that_ends_within_a_download_is_followed_by_one_for_the_rest() {
    let (home, server, files) = (Home::new(), Server::new(), Files::new());
    let relay = Relay::new(&Speaks::Http, &[(OPAMP, server.address()), (SHELF, files.address())]);
    let lines = vec![
        format!("proxy: {{ url: \"http://{}\" }}", relay.address()),
        "allow_endpoints: [\"*.invalid:8080\"]".to_owned(),
    ];
    home.settings(&format!("ws://{OPAMP}/v1/opamp"), &settings(&home, lines));
    let agent = start(&home);
    let (mut peer, first) = server.greet();
    let mut body = home.program("1.0", "");
    body.resize(300_000, b'\n');
    let (name, mut offer) = offered(&files, "prog", "1.0", 1, &body);
    offer.file.as_mut().unwrap().download_url = format!("http://{SHELF}/prog-1.0");
    // The first answer ends with the connection, and the tunnel with it.
    let mut answers = 0;
    files.oddly(move |head, file, stream| {
        use std::io::Write;
        answers += 1;
        if answers > 1 {
            return false;
        }
        let (head, body) = common::packages::honest(head, file);
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.get(..200_000).unwrap()).unwrap();
        true
    });
    peer.send(&packages(&first.instance_uid, "all-1", vec![(name, offer)]));
    let status = peer.package("all-1", "prog");
    assert_eq!((status.status(), status.error_message.as_str()), (Installed, ""));
    let asked = files.asked();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().any(|head| head.contains("Range: bytes=")), "{asked:?}");
    assert!(files.sent() < 300_000, "{}", files.sent());
    agent.stop_with(peer);
}
