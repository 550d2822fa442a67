//! TLS peers that must be refused, from outside (HOSTILE C3): the real binary against servers with each fault.
//!
//! What must never be: a byte of OpAMP for a server that did not prove itself, a refusal without a reason that a
//! person understands, a workload that notices, an agent that does not come back when the server is good again.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use common::authority::Authority;
use common::http::Http;
use common::{Agent, Home, PATIENCE, Peer, Server, Settings};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

type Versions<'v> = &'v [&'static SupportedProtocolVersion];
const ALL: Versions<'_> = &[&TLS12, &TLS13];

/// A server with this chain, which demands a certificate of these clients.
fn serve(
    chain: &[&str],
    key: &str,
    clients: Option<&Authority>,
    versions: Versions<'_>,
) -> Arc<ServerConfig> {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_protocol_versions(versions);
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(der(&authority.pem())).unwrap();
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = chain.iter().map(|pem| der(pem)).collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

/// The next connection is refused, by either end, and not a byte of a request has come.
fn fails(server: &Server, config: &Arc<ServerConfig>) {
    let mut stream = server.tls(config);
    let mut bytes = [0];
    assert!(!matches!(stream.read(&mut bytes), Ok(1..)), "the agent accepted the server");
    end(stream.tcp());
}

/// The alert has gone out; nothing that is unread shall make a reset of the end.
fn end(mut stream: &TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = io::copy(&mut stream, &mut io::sink());
}

/// The reason is logged with the place, and shown.
fn is_told(agent: &Agent, place: &str, words: &[&str]) {
    agent.tells("connection.last_error", words);
    agent.logs(&[&["WARN", place], words].concat());
}

/// The server is good again: the agent is there.
fn comes_back(agent: &Agent, server: &Server, good: &Arc<ServerConfig>) -> Peer {
    let mut peer = Peer::upgrade(server.tls(good));
    let first = peer.report();
    peer.answer(&first);
    agent.shows("connection.last_error", serde_yaml::Value::is_null);
    agent.unharmed();
    peer
}

fn settings(tls: &str) -> Settings {
    Settings { server: vec![format!("tls: {{ {tls} }}")], ..Settings::default() }
}

/// A root that the agent trusts, an intermediate, and good chains of it.
struct World {
    root: Authority,
    middle: Authority,
    good: Arc<ServerConfig>,
}

impl World {
    fn new(home: &Home) -> Self {
        let root = Authority::new("the root");
        let middle = root.below("the middle", |_| {});
        fs::write(home.path("ca.pem"), root.pem()).unwrap();
        let (leaf, key) = middle.issue("127.0.0.1", |_| {});
        let good = serve(&[&leaf, &middle.pem()], &key, None, ALL);
        Self { root, middle, good }
    }

    /// A server whose certificate is of the intermediate, which is sent too.
    fn with(&self, name: &str, change: impl Fn(&mut CertificateParams)) -> Arc<ServerConfig> {
        let (leaf, key) = self.middle.issue(name, change);
        serve(&[&leaf, &self.middle.pem()], &key, None, ALL)
    }
}

#[test]
fn a_server_that_does_not_prove_itself_is_refused_for_a_reason() {
    let (home, server) = (Home::new(), Server::new());
    let world = World::new(&home);
    let ca = format!("ca_file: {}", home.path("ca.pem").display());
    home.settings(&server.wss(), &settings(&ca));
    let agent = home.start();

    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 3, 4);
    };
    let to_come = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2090, 5, 6);
        params.not_after = date_time_ymd(2091, 1, 1);
    };
    let for_clients = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    };
    let own_key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let own = own.self_signed(&own_key).unwrap().pem();
    let self_signed = serve(&[&own], &own_key.serialize_pem(), None, ALL);
    let stranger = Authority::new("a stranger");
    let (leaf, key) = stranger.issue("127.0.0.1", |_| {});
    let alone = serve(&[&leaf], &key, None, ALL);
    let with_root = serve(&[&leaf, &stranger.pem()], &key, None, ALL);
    let namesake = Authority::new("the root");
    let (leaf, key) = namesake.issue("127.0.0.1", |_| {});
    let namesake = serve(&[&leaf], &key, None, ALL);
    let (leaf, key) = world.middle.issue("127.0.0.1", |_| {});
    let without_middle = serve(&[&leaf], &key, None, ALL);
    let old = world.root.below("the old middle", expired);
    let (leaf, key) = old.issue("127.0.0.1", |_| {});
    let old_middle = serve(&[&leaf, &old.pem()], &key, None, ALL);
    let no_ca = world.root.below("no CA", |params| params.is_ca = rcgen::IsCa::NoCa);
    let (leaf, key) = no_ca.issue("127.0.0.1", |_| {});
    let no_ca = serve(&[&leaf, &no_ca.pem()], &key, None, ALL);

    for (config, words) in [
        (world.with("127.0.0.1", expired), &["has expired on 2002-03-04", "clock"][..]),
        (world.with("127.0.0.1", to_come), &["not valid yet, before 2090-05-06"]),
        (world.with("opamp.example", |_| {}), &["for another name", "127.0.0.1"]),
        (world.with("127.0.0.1", for_clients), &["not for servers", "serverAuth"]),
        (self_signed, &["self-signed", "unknown issuer"]),
        (alone, &["unknown issuer", "\"a stranger\"", "ca_file"]),
        (with_root, &["unknown issuer", "\"a stranger\"", "ca_file"]),
        (namesake, &["bad signature", "another CA of that name"]),
        (without_middle, &["\"the middle\"", "intermediate"]),
        (old_middle, &["has expired on 2002-03-04"]),
        (no_ca, &["not acceptable"]),
    ] {
        fails(&server, &config);
        is_told(&agent, &server.wss(), &[&["TLS: "], words].concat());
        drop(comes_back(&agent, &server, &world.good));
    }
    let peer = comes_back(&agent, &server, &world.good);
    agent.stop_with(peer);
}

/// An `openssl s_server`, and the way to it.
struct OpenSsl {
    child: Child,
    address: String,
}

impl OpenSsl {
    fn new(home: &Home, arguments: &str) -> Self {
        let mut child = Command::new("openssl")
            .args("s_server -accept 127.0.0.1:0 -cert server.pem -key server.key".split(' '))
            .args(arguments.split(' '))
            .current_dir(home.path("."))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut addresses = lines.map_while(Result::ok).filter_map(|line| {
            line.strip_prefix("ACCEPT ").map(|address| address.trim().to_owned())
        });
        let address = addresses.next().unwrap();
        Self { child, address }
    }

    /// Lets it speak on the next connection.
    fn fails(&self, server: &Server) {
        let (mut from_agent, mut from_openssl) =
            (server.tcp(), TcpStream::connect(&self.address).unwrap());
        from_openssl.set_read_timeout(Some(PATIENCE)).unwrap();
        let (mut to_agent, mut to_openssl) =
            (from_agent.try_clone().unwrap(), from_openssl.try_clone().unwrap());
        let forward = thread::spawn(move || {
            let _ = io::copy(&mut from_agent, &mut to_openssl);
            let _ = to_openssl.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut from_openssl, &mut to_agent);
        let _ = to_agent.shutdown(Shutdown::Write);
        forward.join().unwrap();
    }
}

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_of_yesterday_is_refused() {
    let (home, server) = (Home::new(), Server::new());
    let world = World::new(&home);
    let ca = format!("ca_file: {}", home.path("ca.pem").display());
    home.settings(&server.wss(), &settings(&ca));
    let (leaf, key) = world.root.issue("127.0.0.1", |_| {});
    fs::write(home.path("server.pem"), leaf).unwrap();
    fs::write(home.path("server.key"), key).unwrap();
    let agent = home.start();
    for (arguments, words) in [
        ("-tls1_1 -cipher ALL:@SECLEVEL=0", &["ProtocolVersion", "TLS 1.2 or 1.3"][..]),
        ("-tls1 -cipher ALL:@SECLEVEL=0", &["ProtocolVersion", "TLS 1.2 or 1.3"]),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA", &["HandshakeFailure", "no cipher suite"]),
        ("-tls1_2 -curves P-521", &["HandshakeFailure", "no cipher suite"]),
    ] {
        OpenSsl::new(&home, arguments).fails(&server);
        is_told(&agent, &server.wss(), &[&["TLS: ", "refused our side of TLS"], words].concat());
        drop(comes_back(&agent, &server, &world.good));
    }
    // Servers that do not refuse us but choose what we did not offer, byte by byte: ServerHello with version and suite.
    let hello = |version: u8, suite: [u8; 2]| {
        let body = [&[3, version][..], &[7; 32], &[0], &suite, &[0]].concat();
        let length = u8::try_from(body.len()).unwrap();
        let message = [&[2, 0, 0, length][..], &body].concat();
        [&[0x16, 3, version, 0, length.checked_add(4).unwrap()][..], &message].concat()
    };
    for (bytes, words) in [
        (hello(2, [0xc0, 0x09]), &["too old or too weak", "TLS 1.2 or 1.3"][..]),
        (hello(0, [0xc0, 0x09]), &["too old or too weak"]),
        (hello(3, [0x00, 0x05]), &["too old or too weak", "cipher suite"]),
        (hello(3, [0x00, 0x00]), &["too old or too weak", "cipher suite"]),
    ] {
        let mut stream = server.tcp();
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream.write_all(&bytes).unwrap();
        end(&stream);
        is_told(&agent, &server.wss(), &[&["TLS: "], words].concat());
        drop(comes_back(&agent, &server, &world.good));
    }
    let peer = comes_back(&agent, &server, &world.good);
    agent.stop_with(peer);
}

/// A certificate whose bytes are cut off, or which is none, in a handshake that goes on to there.
#[test]
fn a_certificate_that_is_broken_is_refused() {
    let (home, server) = (Home::new(), Server::new());
    let world = World::new(&home);
    let ca = format!("ca_file: {}", home.path("ca.pem").display());
    home.settings(&server.wss(), &settings(&ca));
    let agent = home.start();
    let (leaf, key) = world.root.issue("127.0.0.1", |_| {});
    let whole = CertificateDer::from_pem_slice(leaf.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    for bytes in [&whole[..whole.len() - 1], &whole[..whole.len() / 2], &whole[..1], b"nothing"] {
        let chain = vec![CertificateDer::from(bytes.to_vec())];
        let certified = rustls::sign::CertifiedKey::new(chain, Arc::clone(&key));
        let resolver = rustls::sign::SingleCertAndKey::from(certified);
        let config = ServerConfig::builder_with_protocol_versions(ALL)
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(resolver));
        fails(&server, &Arc::new(config));
        is_told(&agent, &server.wss(), &["TLS: ", "not acceptable", "BadEncoding"]);
        drop(comes_back(&agent, &server, &world.good));
    }
    let peer = comes_back(&agent, &server, &world.good);
    agent.stop_with(peer);
}

/// A server that demands a certificate, over both versions: TLS 1.3 tells only after our handshake.
#[test]
fn a_client_certificate_that_is_missing_or_refused_is_told() {
    let of_servers = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    let expired = |params: &mut CertificateParams| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    };
    for version in [&TLS12, &TLS13] {
        let (home, server) = (Home::new(), Server::new());
        let world = World::new(&home);
        let clients = Authority::new("the clients' CA");
        let (leaf, key) = world.root.issue("127.0.0.1", |_| {});
        let demanding = serve(&[&leaf], &key, Some(&clients), &[version]);
        let path = |name: &str| home.path(name).display().to_string();
        home.settings(&server.wss(), &settings(&format!("ca_file: {}", path("ca.pem"))));
        let agent = home.start();
        fails(&server, &demanding);
        let demanded = ["CertificateRequired", "it demands a client certificate", "cert_file"];
        is_told(&agent, &server.wss(), &demanded);
        let peer = comes_back(&agent, &server, &world.good);
        agent.stop_with(peer);

        let (home, server) = (Home::new(), Server::new());
        fs::write(home.path("ca.pem"), world.root.pem()).unwrap();
        let path = |name: &str| home.path(name).display().to_string();
        let place = |(cert, key): (String, String)| {
            fs::write(home.path("cert.pem"), cert).unwrap();
            fs::write(home.path("key.pem"), key).unwrap();
        };
        let tls = format!(
            "ca_file: {}, cert_file: {}, key_file: {}",
            path("ca.pem"),
            path("cert.pem"),
            path("key.pem")
        );
        place(clients.issue("device", |_| {}));
        home.settings(&server.wss(), &settings(&tls));
        let agent = home.start();
        let mut peer = comes_back(&agent, &server, &demanding);
        agent.shows("certificate.common_name", |name| {
            name.as_str() == Some("rcgen self signed cert")
        });
        agent.tells("certificate.not_after", &["4096-01-01T00:00:00"]);
        for (files, words) in [
            (world.root.issue("device", |_| {}), &["UnknownCA", "does not know the CA"][..]),
            (
                clients.issue("device", expired),
                &["CertificateExpired", "our client certificate has expired"],
            ),
            (clients.issue("device", of_servers), &["does not accept our client certificate"]),
        ] {
            // While the connection is up nothing reads the files.
            place(files);
            drop(peer);
            fails(&server, &demanding);
            place(clients.issue("device", |_| {}));
            is_told(&agent, &server.wss(), &[&["refused our side of TLS"], words].concat());
            // An attempt with the other files may be under way.
            while server.tls(&demanding).shaken().is_err() {}
            peer = comes_back(&agent, &server, &demanding);
        }
        agent.stop_with(peer);
    }
}

#[test]
fn over_plain_http_it_is_told_too() {
    for version in [&TLS12, &TLS13] {
        let (home, server) = (Home::new(), Server::new());
        let world = World::new(&home);
        let (leaf, key) = world.root.issue("127.0.0.1", |_| {});
        let demanding = serve(&[&leaf], &key, Some(&world.root), &[version]);
        let ca = format!("ca_file: {}", home.path("ca.pem").display());
        home.settings(&server.https(), &settings(&ca));
        let agent = home.start();
        fails(&server, &demanding);
        is_told(&agent, &server.https(), &["CertificateRequired", "demands a client certificate"]);
        let stranger = Authority::new("a stranger");
        fails(&server, &stranger.serve("127.0.0.1", |_| {}, None));
        is_told(&agent, &server.https(), &["unknown issuer", "\"a stranger\""]);
        let mut http = Http::new(server.tls(&world.good));
        let first = http.request();
        http.send(&first.to());
        agent.shows("connection.last_error", serde_yaml::Value::is_null);
        agent.unharmed();
        drop(http);
        agent.stop();
    }
}
