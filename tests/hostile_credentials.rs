//! Credentials of a hostile or clumsy server (HOSTILE C1, C2, X5, N0): the real binary, killed and started again at
//! every step, with real TLS.
//!
//! What must never be: an agent that nobody takes any more, a certificate for another, a key in a message, a secret in
//! a log, a status, a command line or a core file.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use chiton_proto::{
    AgentToServer, ConnectionSettingsStatuses, ProxyConnectionSettings, ServerToAgent,
    TlsConnectionSettings,
};
use common::authority::Authority;
use common::authority::bootstrap;
use common::connection::{
    Line, Over, accepting, certificate, connection, generations, headers, mutual,
};
use common::hub::{Hub, Told};
use common::{Home, Server, Settings, eventually, files_with, read_head};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use rustls::version::{TLS12, TLS13};
use rustls::{ALL_VERSIONS, ServerConfig, SupportedProtocolVersion};

/// A candidate has 20 s, and a slow machine its time.
const LONG: Duration = Duration::from_secs(90);
/// Soon there is a report that an offer can answer.
const BEAT: &str = "heartbeat_interval: 1s";

/// Those who issue, and what the device has.
struct Owners {
    trust: Authority,
    old: Authority,
    new: Authority,
    cert: String,
    key: String,
}

impl Owners {
    fn new() -> Self {
        let old = Authority::new("old");
        let (cert, key) = old.issue("device", |_| {});
        Self { trust: Authority::new("servers"), new: Authority::new("new"), old, cert, key }
    }

    /// A server that takes the old, the new, or both.
    fn server(&self, old: bool, new: bool) -> Arc<ServerConfig> {
        self.server_with(old, new, ALL_VERSIONS)
    }

    fn server_with(
        &self,
        old: bool,
        new: bool,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        let clients = [old.then_some(&self.old), new.then_some(&self.new)];
        mutual(&self.trust, &clients.into_iter().flatten().collect::<Vec<_>>(), versions)
    }

    fn settings(&self, home: &Home, endpoint: &str, more: &[&str]) {
        let tls = bootstrap(home, &self.trust, Some((&self.cert, &self.key)));
        home.settings(endpoint, &accepting(&[&[tls.as_str(), BEAT], more].concat()));
    }

    /// What was there before is as it was.
    fn untouched(&self, home: &Home) {
        assert_eq!(fs::read_to_string(home.path("cert.pem")).unwrap(), self.cert);
        assert_eq!(fs::read_to_string(home.path("key.pem")).unwrap(), self.key);
        assert_eq!(fs::read_to_string(home.path("ca.pem")).unwrap(), self.trust.pem());
    }
}

fn patiently<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < end, "in vain: {what}");
        thread::park_timeout(Duration::from_millis(20));
    }
}

/// Each of these is refused before anything is tried: FAILED says why, the connection stays. Killed after each, the
/// agent comes back with what it had.
#[test]
fn what_cannot_be_right_is_refused_at_once() {
    let (home, server, owners) = (Home::new(), Server::new(), Owners::new());
    owners.settings(&home, &server.wss(), &[]);
    let takes_old = owners.server(true, false);
    let (cert, key) = owners.new.issue("device", |_| {});
    let (_, other_key) = owners.new.issue("device", |_| {});
    let between = |from: (i32, u8), to: (i32, u8)| {
        owners.new.issue("device", move |params| {
            params.not_before = date_time_ymd(from.0, from.1, 1);
            params.not_after = date_time_ymd(to.0, to.1, 1);
        })
    };
    let (expired, expired_key) = between((2020, 1), (2021, 3));
    let (future, future_key) = between((2090, 1), (2091, 3));
    let (servers, servers_key) = owners.new.issue("device", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let (inner, inner_key) = intermediate(&owners.new);
    let large = format!("{cert}{}", "#".repeat(2 << 20));
    let named = |name: &str| {
        owners.new.issue("device", |params| {
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    let (others, others_key) = named("01890a5d-ac96-774b-bcce-b302099a8057");
    let issuer = owners.new.pem();
    let mut rows: Vec<(ServerToAgent, Vec<&str>)> = [
        ("another key", &cert, &other_key, &issuer, &["does not belong"][..]),
        ("expired", &expired, &expired_key, &issuer, &["expired on 2021-03-01"]),
        ("not yet valid", &future, &future_key, &issuer, &["not valid before 2090-01-01"]),
        ("for servers", &servers, &servers_key, &issuer, &["clientAuth"]),
        ("another issuer", &cert, &key, &owners.old.pem(), &["not issued by the CA"]),
        ("a gap in the chain", &inner, &inner_key, &issuer, &["not issued by the CA"]),
        (
            "a chain of strangers",
            &format!("{cert}{}", owners.old.pem()),
            &key,
            &String::new(),
            &["issued by somebody else"],
        ),
        ("no key", &cert, &String::new(), &issuer, &["private_key is missing"]),
        ("no certificate", &String::new(), &key, &issuer, &["cert is empty"]),
        ("garbage", &"no PEM".to_owned(), &key, &issuer, &["certificate"]),
        ("a garbage key", &cert, &"no PEM".to_owned(), &issuer, &["private key"]),
        ("too large", &large, &key, &issuer, &["allowed are 1048576"]),
        ("another agent", &others, &others_key, &issuer, &["another agent", "01890a5d"]),
    ]
    .into_iter()
    .map(|(name, cert, key, issuer, words)| {
        let offer = connection(name, |opamp| {
            opamp.certificate = Some(certificate(cert, key, issuer));
        });
        (offer, words.to_vec())
    })
    .collect();
    let address = server.address();
    for (name, url, words) in [
        ("no TLS", format!("ws://{address}/v1/opamp"), vec!["has no TLS", "wss://"]),
        ("no TLS, polled", format!("http://{address}/v1/opamp"), vec!["has no TLS"]),
        ("another host", format!("wss://localhost:{}/", address.port()), vec!["allow_endpoints"]),
        ("another scheme", "ftp://127.0.0.1/".to_owned(), vec!["destination_endpoint"]),
        ("no URL", "!".to_owned(), vec!["destination_endpoint"]),
    ] {
        rows.push((connection(name, |opamp| opamp.destination_endpoint = url), words));
    }
    let tls = |change: &dyn Fn(&mut TlsConnectionSettings)| {
        let mut tls = TlsConnectionSettings::default();
        change(&mut tls);
        Some(tls)
    };
    for (name, offered, words) in [
        ("unverified", tls(&|tls| tls.insecure_skip_verify = true), vec!["insecure_skip_verify"]),
        ("TLS 1.1", tls(&|tls| tls.max_version = "TLSv1.1".to_owned()), vec!["max_version"]),
        ("no version", tls(&|tls| tls.min_version = "2.0".to_owned()), vec!["min_version"]),
        (
            "weak suites",
            tls(&|t| t.cipher_suites = vec!["TLS_RSA_WITH_RC4_128_MD5".to_owned()]),
            vec!["cipher_suites"],
        ),
        ("garbage roots", tls(&|tls| tls.ca_pem_contents = "no PEM".to_owned()), vec!["ca.pem"]),
    ] {
        rows.push((connection(name, |opamp| opamp.tls = offered), words));
    }
    for (name, url) in [("a socks of old", "socks4://127.0.0.1:1"), ("no proxy", "")] {
        let proxy = ProxyConnectionSettings { url: url.to_owned(), connect_headers: None };
        rows.push((connection(name, |opamp| opamp.proxy = Some(proxy)), vec!["proxy.url"]));
    }
    let bad = headers(&[("X-Bad", "split\r\nX-Evil: yes")]);
    rows.push((connection("bad headers", |opamp| opamp.headers = Some(bad)), vec!["headers"]));

    let mut agent = home.start();
    let mut line = Line::accept(&server, Over::WebSocket, Some(&takes_old));
    line.report();
    for (offer, words) in rows {
        let hash = offer.connection_settings.clone().unwrap().hash;
        let hash = std::str::from_utf8(&hash).unwrap();
        line.send(&offer);
        let reason = line.failed(hash);
        assert!(words.iter().all(|word| reason.contains(word)), "{hash}: {reason}");
        assert!(!reason.contains("X-Evil") && !reason.contains('\r'), "{reason}");
        agent.tells("connection.settings.error", &words);
        line.stays();
        server.was_left_alone();
        // Nothing of it lies there, least of all the key.
        assert!(generations(&home).is_empty(), "{hash}: {:?}", generations(&home));
        drop(agent);
        agent = home.start();
        line = Line::accept(&server, Over::WebSocket, Some(&takes_old));
        line.first(hash, ConnectionSettingsStatuses::Failed);
    }
    owners.untouched(&home);
    line.stop(agent);
}

/// A certificate whose issuer is missing between it and this one, and its key.
fn intermediate(root: &Authority) -> (String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "between");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    root.sign(&params, &key);
    let between = rcgen::Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["device".to_owned()]).unwrap();
    (params.signed_by(&key, &between).unwrap().pem(), key.serialize_pem())
}

/// An agent under a server that never tires, and what it is offered.
struct Device {
    home: Home,
    hub: Hub,
    owners: Owners,
    offer: ServerToAgent,
    fresh: String,
}

impl Device {
    fn new(versions: &[&'static SupportedProtocolVersion]) -> Self {
        let (home, owners) = (Home::new(), Owners::new());
        let hub = Hub::new(&owners.server_with(true, false, versions));
        owners.settings(&home, &hub.wss(), &[]);
        let (fresh, key) = owners.new.issue("device", |_| {});
        let offer = connection("c1", |opamp| {
            opamp.certificate = Some(certificate(&fresh, &key, &owners.new.pem()));
        });
        Self { home, hub, owners, offer, fresh }
    }

    /// What became of the offer, and by whom it was told.
    fn outcome(&self) -> Told {
        patiently("an outcome", || self.hub.outcome("c1"))
    }

    fn is_old(&self, told: &Told) {
        assert_eq!(told.status, ConnectionSettingsStatuses::Failed, "{}", told.error);
        assert!(told.by.shows(&self.owners.cert), "not the old certificate");
        self.owners.untouched(&self.home);
    }

    fn is_new(&self, told: &Told) {
        assert_eq!(told.status, ConnectionSettingsStatuses::Applied, "{}", told.error);
        assert!(told.by.shows(&self.fresh), "not the new certificate");
        self.owners.untouched(&self.home);
    }
}

/// All that can be known speaks for it; but the server does not take it.
fn a_server_does_not_take_it(version: &'static SupportedProtocolVersion) {
    let device = Device::new(&[version]);
    let agent = device.home.start();
    device.hub.offers(&device.offer);
    let told = device.outcome();
    device.is_old(&told);
    assert!(told.error.contains("certificate"), "{}", told.error);
    assert_eq!(device.hub.refused(), 1, "one refusal is enough: {}", agent.log());
    let reason = agent.tells("connection.settings.error", &["TLS"]);
    assert_eq!(reason, told.error);
    drop(agent);
    // It stays failed, and nobody shows it again.
    let agent = device.home.start();
    device.hub.offers(&device.offer);
    device.is_old(&device.outcome());
    assert_eq!(device.hub.refused(), 1);
    assert!(generations(&device.home).is_empty());
    agent.stop();
}

#[test]
fn a_server_does_not_take_it_over_tls_1_2() {
    a_server_does_not_take_it(&TLS12);
}

/// There the handshake of a client whose certificate is refused succeeds, as the client sees it.
#[test]
fn a_server_does_not_take_it_over_tls_1_3() {
    a_server_does_not_take_it(&TLS13);
}

/// Nobody answers for longer than a candidate has, and then somebody is back who takes the old, the new, or both.
#[test]
fn the_server_is_down_for_long() {
    thread::scope(|scope| {
        for (old, new) in [(true, false), (false, true), (true, true)] {
            scope.spawn(move || {
                let device = Device::new(ALL_VERSIONS);
                let agent = device.home.start();
                device.hub.offers_and_goes_down(&device.offer);
                let tries = "the old one is tried";
                patiently("both were tried", || {
                    (agent.log().matches(tries).count() > 1).then_some(())
                });
                assert!(device.hub.outcome("c1").is_none(), "judged by nobody");
                device.hub.takes(&device.owners.server(old, new));
                device.hub.offers(&device.offer);
                device.hub.is_up(true);
                let told = device.outcome();
                match new {
                    true => device.is_new(&told),
                    false => device.is_old(&told),
                }
                agent.unharmed();
                agent.stop();
            });
        }
    });
}

/// The same, but the device is switched off and on while nobody answers.
#[test]
fn the_device_is_switched_off_while_the_server_is_down() {
    for (old, new) in [(true, false), (false, true), (true, true)] {
        let device = Device::new(ALL_VERSIONS);
        let agent = device.home.start();
        device.hub.offers_and_goes_down(&device.offer);
        agent.tells("connection.settings.phase", &["trying"]);
        drop(agent);
        device.hub.takes(&device.owners.server(old, new));
        device.hub.offers(&device.offer);
        device.hub.is_up(true);
        let agent = device.home.start();
        let told = device.outcome();
        match new {
            true => device.is_new(&told),
            false => device.is_old(&told),
        }
        agent.stop();
    }
}

const ENROLL: &str = "enroll: { common_name: \"{instance_uid}\", key: p256 }";

/// A device without a certificate, which asks for one.
fn enrolling(owners: &Owners, home: &Home, hub: &Hub) -> Arc<Mutex<Vec<Vec<u8>>>> {
    let tls = bootstrap(home, &owners.trust, None).replace(" }", &format!(", {ENROLL} }}"));
    home.settings(&hub.wss(), &accepting(&[&tls, BEAT]));
    let asked: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let noting = Arc::clone(&asked);
    hub.answers(move |_, report| {
        noting.lock().unwrap().extend(csr(report));
        ServerToAgent::default()
    });
    asked
}

fn csr(report: &AgentToServer) -> Option<Vec<u8>> {
    let request = report.connection_settings_request.as_ref()?.opamp.as_ref()?;
    Some(request.certificate_request.as_ref()?.csr.to_vec())
}

/// The first line of a key's PEM that is the key.
fn heart_of_key(file: &[u8]) -> String {
    let text = String::from_utf8_lossy(file);
    let (_, key) = text.split_once("-----BEGIN PRIVATE KEY-----").unwrap();
    key.lines().find(|line| line.len() > 40).unwrap().to_owned()
}

fn contains(all: &[u8], part: &str) -> bool {
    all.windows(part.len()).any(|window| window == part.as_bytes())
}

/// Killed before each step between the wish for a key and the request on its way: one key in the end, the one that
/// lies there, and it never leaves.
#[test]
fn the_key_of_a_request_is_one_and_stays() {
    let owners = Owners::new();
    let open = owners.trust.serve_curious("127.0.0.1", &owners.new);
    for step in 1.. {
        assert!(step < 100, "it never asks");
        let (home, hub) = (Home::new(), Hub::new(&open));
        let asked = enrolling(&owners, &home, &hub);
        let has_asked = || asked.lock().unwrap().last().cloned();
        let agent = home.start_with(&[("CHITON_DIE_AT", &step.to_string())]);
        eventually("it dies, or asks", || (agent.is_over() || has_asked().is_some()).then_some(()));
        let got_through = !agent.is_over();
        let mut log = agent.log();
        drop(agent);
        let before = has_asked();
        asked.lock().unwrap().clear();
        let agent = home.start();
        let request = eventually("it asks", has_asked);
        assert!(before.is_none_or(|before| before == request), "another key");
        let pending = fs::read(home.path("state/connection/pending")).unwrap();
        assert!(contains(&pending, std::str::from_utf8(&request).unwrap()), "not what lies there");
        assert_eq!(files_with(&home.path("state"), "PRIVATE KEY").len(), 1);
        log.push_str(&agent.stop());
        for secret in ["PRIVATE KEY", &heart_of_key(&pending)] {
            assert!(!contains(&hub.heard(), secret) && !log.contains(secret), "the key is told");
        }
        if got_through {
            assert!(step > 5, "there are more steps");
            return;
        }
    }
}

#[test]
fn a_certificate_for_another_key_or_another_agent_is_refused() {
    let (home, owners) = (Home::new(), Owners::new());
    let hub = Hub::new(&owners.trust.serve_curious("127.0.0.1", &owners.new));
    let asked = enrolling(&owners, &home, &hub);
    let agent = home.start();
    let request = eventually("it asks", || asked.lock().unwrap().last().cloned());
    let offer = |hash: &str, cert: &str| {
        connection(hash, |opamp| {
            opamp.certificate = Some(certificate(cert, "", &owners.new.pem()));
        })
    };
    let (strange, _) = owners.new.issue("device", |_| {});
    let other = owners.new.certify(&request, |params| {
        params.distinguished_name.push(DnType::CommonName, "01890a5d-ac96-774b-bcce-b302099a8057");
    });
    for (hash, cert, words) in
        [("strange", strange, "does not belong"), ("other", other, "another agent")]
    {
        hub.offers(&offer(hash, &cert));
        let told = patiently("an outcome", || hub.outcome(hash));
        assert_eq!(told.status, ConnectionSettingsStatuses::Failed);
        assert!(told.error.contains(words), "{}", told.error);
    }
    assert!(home.path("state/connection/pending").exists(), "the right one can still come");
    let right = owners.new.certify(&request, |_| {});
    hub.offers(&offer("right", &right));
    let told = patiently("an outcome", || hub.outcome("right"));
    assert_eq!(told.status, ConnectionSettingsStatuses::Applied, "{}", told.error);
    assert!(told.by.shows(&right));
    eventually("the request is done", || {
        (!home.path("state/connection/pending").exists()).then_some(())
    });
    let key = heart_of_key(
        &fs::read(files_with(&home.path("state"), "PRIVATE KEY").pop().unwrap()).unwrap(),
    );
    assert!(!contains(&hub.heard(), &key));
    assert!(!agent.stop().contains(&key));
}

/// Whatever is shown, said, or given to others has none of the secrets. The state directory has them, for its owner
/// alone; the server that they are for is shown the headers.
#[test]
fn secrets_are_told_nobody() {
    const OWN: &str = "0wn-header-value";
    const OFFERED: &str = "0ffered-header-value";
    const PROXY: &str = "pr0xy-passw0rd";
    const SITE: &str = "s1te-header-value";
    let (home, owners) = (Home::new(), Owners::new());
    let hub = Hub::new(&owners.server(true, true));
    let proxy = tunnel(hub.address);
    let tls = bootstrap(&home, &owners.trust, Some((&owners.cert, &owners.key)));
    let own = format!("headers: {{ Authorization: \"Bearer {OWN}\" }}");
    let settings = Settings {
        opamp: vec!["log: { level: debug }".to_owned()],
        ..accepting(&[&tls, &own, BEAT])
    };
    home.settings(&hub.wss(), &settings);
    let (fresh, fresh_key) = owners.new.issue("device", |_| {});
    let (bad, bad_key) = owners.new.issue("device", |params| {
        params.not_after = date_time_ymd(2021, 3, 1);
    });
    let good = connection("good", |opamp| {
        opamp.certificate = Some(certificate(&fresh, &fresh_key, ""));
        opamp.headers = Some(headers(&[("Authorization", OFFERED)]));
        opamp.proxy = Some(ProxyConnectionSettings {
            url: format!("http://me:{PROXY}@{proxy}"),
            connect_headers: Some(headers(&[("X-Site", SITE)])),
        });
    });
    let refused = connection("bad", |opamp| {
        opamp.certificate = Some(certificate(&bad, &bad_key, ""));
        opamp.headers = Some(headers(&[("Authorization", "0ther-value")]));
    });
    hub.offers(&refused);
    let agent = home.start();
    patiently("it is refused", || hub.outcome("bad"));
    drop(agent);
    hub.offers(&good);
    let agent = home.start();
    let told = patiently("it is taken", || hub.outcome("good"));
    assert!(told.by.shows(&fresh) && told.by.head.contains(OFFERED), "{}", told.error);
    assert!(contains(&hub.heads(), OWN), "the server is shown them");

    let mut shown = String::new();
    for (command, more) in [("status", &["--json"][..]), ("status", &[]), ("check", &[])] {
        let output = home.chiton(command, more);
        shown.push_str(&String::from_utf8_lossy(&output.stdout));
        shown.push_str(&String::from_utf8_lossy(&output.stderr));
    }
    let workload = home.pids().into_iter().next_back().unwrap();
    for pid in [agent.pid(), workload] {
        for name in ["cmdline", "environ"] {
            let bytes = fs::read(format!("/proc/{pid}/{name}")).unwrap();
            shown.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    shown.push_str(&String::from_utf8_lossy(&hub.heard()));
    shown.push_str(&agent.stop());
    assert!(shown.contains("DEBUG"), "the log says what it can");
    let keys = [&owners.key, &fresh_key, &bad_key].map(|key| heart_of_key(key.as_bytes()));
    let secrets = [OWN, OFFERED, PROXY, SITE, "0ther-value", "PRIVATE KEY"];
    for secret in secrets.into_iter().chain(keys.iter().map(String::as_str)) {
        assert!(!shown.contains(secret), "{secret}: {shown}");
    }
    for secret in [OFFERED, PROXY, SITE, &keys[1]] {
        for file in files_with(&home.path("state"), secret) {
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600, "{}", file.display());
        }
    }
    assert!(
        files_with(&home.path("state"), &keys[2]).is_empty(),
        "of what was refused nothing is kept"
    );
}

/// A proxy that lets everything through to one address.
fn tunnel(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut stream = stream;
                read_head(&mut stream);
                stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
                let server = TcpStream::connect(to).unwrap();
                let (mut from, mut into) =
                    (stream.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut into);
                    let _ = into.shutdown(Shutdown::Both);
                });
                let _ = io::copy(&mut &server, &mut &stream);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

/// Neither a core file nor another process of the same user gets at what is in the agent's memory: the kernel gives the
/// process to root. The workload, which has none of it, stays as it is.
#[test]
fn the_agents_memory_is_its_own() {
    const NOBODY: u32 = 65_534;
    let home = Home::new();
    home.settings("ws://127.0.0.1:9/v1/opamp", &accepting(&[]));
    let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
    let mut user = rustix::process::geteuid().as_raw();
    if user == 0 {
        user = NOBODY;
        std::os::unix::fs::chown(home.path(""), Some(user), Some(user)).unwrap();
        let copy = home.path("chiton");
        fs::copy(env!("CARGO_BIN_EXE_chiton"), &copy).unwrap();
        command = Command::new(copy);
        command.uid(user).gid(user);
    }
    let agent = home.start_by(command);
    let workload = home.workload(1);
    let owner = |pid: i32| fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    assert_eq!(owner(agent.pid()), 0, "it can be looked into");
    assert_eq!(owner(workload), user);
    agent.stop();
}

/// Where the state directory does not outlive the power, a certificate would leave a device that nobody takes any more.
#[test]
fn certificates_are_refused_on_a_volatile_state_directory() {
    let (home, owners) = (Home::new(), Owners::new());
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    std::os::unix::fs::symlink(memory.path(), home.path("state")).unwrap();
    let hub = Hub::new(&owners.server(true, true));
    owners.settings(&home, &hub.wss(), &[]);
    let (fresh, key) = owners.new.issue("device", |_| {});
    let offer = connection("c1", |opamp| {
        opamp.certificate = Some(certificate(&fresh, &key, &owners.new.pem()));
    });
    hub.offers(&offer);
    let agent = home.start();
    let told = patiently("an outcome", || hub.outcome("c1"));
    assert_eq!(told.status, ConnectionSettingsStatuses::Failed);
    assert!(told.error.contains("tmpfs"), "{}", told.error);
    agent.tells("connection.settings.error", &["tmpfs"]);
    assert!(files_with(&home.path("state"), "PRIVATE KEY").is_empty());
    agent.stop();
}
