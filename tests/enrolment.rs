//! A certificate for a key that never leaves the device: asked for, renewed, refused, approved late. The real binary
//! under a small certificate authority, with real TLS.
//!
//! What must never be: a request beside anything else, two requests on one connection, a request that nothing calls
//! for, a key that is used twice, a bootstrap file that is touched.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chiton::agent::connection::enrol::{Enrolment, Wish};
use chiton::agent::uid::Uid;
use chiton::credentials::Judged;
use chiton::settings::{Enroll, KeyKind};
use chiton_proto::{
    AgentIdentification, AgentToServer, ConnectionSettingsStatuses, ServerErrorResponse,
    ServerErrorResponseType, ServerToAgent,
};
use common::authority::Authority;
use common::authority::bootstrap;
use common::connection::{accepting, certificate, connection};
use common::hub::Hub;
use common::{Home, eventually};
use rcgen::{CertificateParams, CertificateSigningRequestParams, DnType, DnValue, date_time_ymd};

const ENROLL: &str = "enroll: { common_name: \"{instance_uid}\", key: p256 }";

/// What the authority does with a request.
type Policy = Box<dyn FnMut(&Authority, &[u8], usize) -> ServerToAgent + Send>;

/// Each request, and on which connection it came.
type Asked = Arc<Mutex<Vec<(usize, Vec<u8>)>>>;

/// A device that may ask, and the server that is asked.
struct Device {
    home: Home,
    hub: Hub,
    clients: Arc<Authority>,
    asked: Asked,
}

impl Device {
    fn new(policy: Policy) -> Self {
        Self::with(policy, |home, trust, _| bootstrap(home, trust, None))
    }

    fn with(
        mut policy: Policy,
        settings: impl Fn(&Home, &Authority, &Authority) -> String,
    ) -> Self {
        let home = Home::new();
        let (trust, clients) = (Authority::new("servers"), Arc::new(Authority::new("clients")));
        let hub = Hub::new(&trust.serve_curious("127.0.0.1", &clients));
        let tls = settings(&home, &trust, &clients).replace(" }", &format!(", {ENROLL} }}"));
        home.settings(&hub.wss(), &accepting(&[&tls, "heartbeat_interval: 1s"]));
        let asked: Asked = Arc::default();
        let (noting, authority, calls) = (Arc::clone(&asked), Arc::clone(&clients), hub.counter());
        hub.answers(move |_, report| {
            let Some(csr) = csr(report) else { return ServerToAgent::default() };
            let mut asked = noting.lock().unwrap();
            asked.push((calls(), csr.clone()));
            policy(&authority, &csr, asked.len())
        });
        Self { home, hub, clients, asked }
    }

    fn asked(&self) -> Vec<(usize, Vec<u8>)> {
        self.asked.lock().unwrap().clone()
    }

    fn asks(&self, times: usize) -> Vec<u8> {
        eventually("it asks", || Some(self.asked().get(times - 1)?.1.clone()))
    }

    fn applied(&self, hash: &str) -> common::hub::Told {
        let told = eventually("an outcome", || self.hub.outcome(hash));
        assert_eq!(told.status, ConnectionSettingsStatuses::Applied, "{}", told.error);
        told
    }

    /// It goes on without another request, over a few heartbeats.
    fn asks_no_more(&self) {
        let (asked, end) = (self.asked().len(), self.hub.messages() + 3);
        eventually("heartbeats", || (self.hub.messages() >= end).then_some(()));
        assert_eq!(self.asked().len(), asked, "it asks again");
    }
}

/// The request in a report, which has nothing else in it.
fn csr(report: &AgentToServer) -> Option<Vec<u8>> {
    let request = report.connection_settings_request.as_ref()?;
    let alone = AgentToServer {
        instance_uid: report.instance_uid.clone(),
        sequence_num: report.sequence_num,
        capabilities: report.capabilities,
        connection_settings_request: Some(request.clone()),
        ..AgentToServer::default()
    };
    assert_eq!(*report, alone, "a request travels alone");
    Some(request.opamp.as_ref()?.certificate_request.as_ref()?.csr.to_vec())
}

/// The certificate for a request.
fn issued(
    clients: &Authority,
    csr: &[u8],
    hash: &str,
    change: impl Fn(&mut CertificateParams),
) -> ServerToAgent {
    let cert = clients.certify(csr, change);
    connection(hash, |opamp| opamp.certificate = Some(certificate(&cert, "", &clients.pem())))
}

fn common_name(csr: &[u8]) -> String {
    let csr = CertificateSigningRequestParams::from_pem(std::str::from_utf8(csr).unwrap()).unwrap();
    let name = csr.params.distinguished_name.get(&DnType::CommonName);
    let Some(DnValue::Utf8String(name)) = name else { return String::new() };
    name.clone()
}

fn key_of(csr: &[u8]) -> Vec<u8> {
    let csr = CertificateSigningRequestParams::from_pem(std::str::from_utf8(csr).unwrap()).unwrap();
    rcgen::PublicKeyData::subject_public_key_info(&csr.public_key)
}

/// Holds from a little ago until so many seconds from now.
fn holds_for(params: &mut CertificateParams, seconds: u64) {
    let now = chiton::clock::now().wall.0;
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + (now - Duration::from_secs(2));
    params.not_after = epoch + (now + Duration::from_secs(seconds));
}

#[test]
fn from_nothing() {
    let device = Device::new(Box::new(|clients, csr, _| issued(clients, csr, "c1", |_| {})));
    let agent = device.home.start();
    let told = device.applied("c1");
    let shown = told.by.certificate.unwrap();
    let uid = agent.shows("instance_uid", serde_yaml::Value::is_string);
    let request = device.asks(1);
    assert_eq!(Some(common_name(&request).as_str()), uid.as_str());
    agent.shows("certificate.common_name", |name| *name == uid);
    // One was enough, also for the connection that came of it.
    device.asks_no_more();
    assert_eq!(device.asked().len(), 1);
    eventually("the request is done", || {
        (!device.home.path("state/connection/pending").exists()).then_some(())
    });
    agent.unharmed();
    agent.stop();
    let calls = device.hub.calls();
    let agent = device.home.start();
    eventually("it is back", || (device.hub.calls() > calls).then_some(()));
    device.asks_no_more();
    assert_eq!(device.hub.last_certificate(), Some(shown));
    assert_eq!(device.asked().len(), 1);
    agent.stop();
}

#[test]
fn it_is_renewed_before_it_ends_with_a_key_of_its_own() {
    let device = Device::new(Box::new(|clients, csr, times| match times {
        1 => issued(clients, csr, "short", |params| holds_for(params, 7)),
        _ => issued(clients, csr, "long", |_| {}),
    }));
    let agent = device.home.start();
    let first = device.applied("short").by.certificate;
    let second = device.applied("long").by.certificate;
    assert!(first.is_some() && second.is_some() && first != second);
    assert_ne!(key_of(&device.asks(1)), key_of(&device.asks(2)), "the same key again");
    device.asks_no_more();
    assert_eq!(device.asked().len(), 2);
    agent.unharmed();
    agent.stop();
}

/// Our clock is ahead, or the authority gives names of its own: what comes is never what is wanted. No storm.
#[test]
fn certificates_that_are_never_right_are_asked_for_slowly() {
    let old = |params: &mut CertificateParams| {
        holds_for(params, 3600);
        params.not_before = date_time_ymd(2026, 1, 1);
    };
    let named = |params: &mut CertificateParams| {
        params.distinguished_name.push(DnType::CommonName, "whatever we like");
    };
    let changes: [fn(&mut CertificateParams); 2] = [old, named];
    for change in changes {
        let policy: Policy =
            Box::new(move |clients, csr, times| issued(clients, csr, &format!("c{times}"), change));
        let device = Device::new(policy);
        let agent = device.home.start();
        device.applied("c1");
        agent.logs(&["WARN", "to be renewed already, or for another name", "3600s"]);
        device.asks_no_more();
        assert_eq!(device.asked().len(), 1);
        agent.stop();
    }
}

#[test]
fn a_refusal_is_taken_for_an_hour() {
    let device = Device::new(Box::new(|_, _, _| ServerToAgent {
        error_response: Some(ServerErrorResponse {
            r#type: ServerErrorResponseType::BadRequest.into(),
            error_message: "not this one".to_owned(),
            ..ServerErrorResponse::default()
        }),
        ..ServerToAgent::default()
    }));
    let agent = device.home.start();
    let request = device.asks(1);
    agent.logs(&["WARN", "refused the request for a certificate", "not this one", "3600s"]);
    device.asks_no_more();
    // Not over another connection either.
    let calls = device.hub.calls();
    device.hub.cut();
    eventually("it is back", || (device.hub.calls() > calls).then_some(()));
    device.asks_no_more();
    assert_eq!(device.asked().len(), 1);
    agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
    agent.unharmed();
    agent.stop();
    // Who restarts it may have done something about it: the same request.
    let agent = device.home.start();
    assert_eq!(device.asks(2), request);
    agent.stop();
}

/// A person looks at requests. Until then the same one is sent, once a connection.
#[test]
fn an_approval_comes_days_later() {
    let device = Device::new(Box::new(|clients, csr, times| match times {
        1..=3 => ServerToAgent::default(),
        _ => issued(clients, csr, "late", |_| {}),
    }));
    let agent = device.home.start();
    for times in 1..=2 {
        device.asks(times);
        device.asks_no_more();
        device.hub.cut();
    }
    device.asks(3);
    agent.stop();
    let agent = device.home.start();
    let told = device.applied("late");
    assert!(told.by.certificate.is_some());
    let asked = device.asked();
    assert!(asked.iter().all(|(_, csr)| *csr == device.asks(1)), "another request");
    let mut connections: Vec<usize> = asked.iter().map(|(connection, _)| *connection).collect();
    connections.dedup();
    assert_eq!(connections.len(), asked.len(), "twice on one connection");
    device.asks_no_more();
    agent.stop();
}

/// The approval may also come by itself, on a connection that has not asked again.
#[test]
fn an_approval_comes_by_itself() {
    let device = Device::new(Box::new(|_, _, _| ServerToAgent::default()));
    let agent = device.home.start();
    let request = device.asks(1);
    device.asks_no_more();
    device.hub.offers(&issued(&device.clients, &request, "late", |_| {}));
    assert!(device.applied("late").by.certificate.is_some());
    agent.stop();
}

#[test]
fn another_uid_wants_another_certificate() {
    let device = Device::new(Box::new(|clients, csr, times| {
        issued(clients, csr, &format!("c{times}"), |_| {})
    }));
    let agent = device.home.start();
    device.applied("c1");
    let other = [1, 0x8d, 0, 0, 0, 0, 0x70, 0, 0x80, 0, 0, 0, 0, 0, 0, 7];
    let (clients, asked) = (Arc::clone(&device.clients), Arc::clone(&device.asked));
    let given = Mutex::new(false);
    device.hub.answers(move |_, report| {
        if let Some(csr) = csr(report) {
            asked.lock().unwrap().push((0, csr.clone()));
            return issued(&clients, &csr, "c2", |_| {});
        }
        let mut given = given.lock().unwrap();
        if *given {
            return ServerToAgent::default();
        }
        *given = true;
        ServerToAgent {
            agent_identification: Some(AgentIdentification {
                new_instance_uid: other.to_vec().into(),
            }),
            ..ServerToAgent::default()
        }
    });
    let request = device.asks(2);
    assert_eq!(common_name(&request), "018d0000-0000-7000-8000-000000000007");
    device.applied("c2");
    device.asks_no_more();
    agent.shows("certificate.common_name", |name| name == "018d0000-0000-7000-8000-000000000007");
    agent.stop();
}

/// What the device was delivered with ends: it is used to ask, and stays as it is.
#[test]
fn a_bootstrap_certificate_that_ends_is_replaced_and_not_touched() {
    let policy: Policy = Box::new(|clients, csr, _| issued(clients, csr, "c1", |_| {}));
    let device = Device::with(policy, |home, trust, clients| {
        let (cert, key) = clients.issue("bootstrap", |params| {
            holds_for(params, 3600);
            params.not_before = date_time_ymd(2026, 1, 1);
        });
        for (name, pem) in [("cert.was", &cert), ("key.was", &key)] {
            fs::write(home.path(name), pem).unwrap();
        }
        let tls = bootstrap(home, trust, Some((&cert, &key)));
        tls.replace(" }", ", renew_before: 2h }")
    });
    let agent = device.home.start();
    let told = device.applied("c1");
    assert!(told.by.certificate.is_some());
    device.asks_no_more();
    assert_eq!(device.asked().len(), 1);
    agent.stop();
    for name in ["cert", "key"] {
        let is = fs::read(device.home.path(&format!("{name}.pem"))).unwrap();
        assert_eq!(is, fs::read(device.home.path(&format!("{name}.was"))).unwrap(), "{name}");
    }
}

/// Promise 7: whatever is waited for, the process sleeps until something can change.
#[test]
fn nothing_is_looked_at_again_and_again() {
    let certificate = |from: u64, to: u64, name: &str| {
        Some(Judged { not_before: from, not_after: to, common_name: name.to_owned() })
    };
    let uid = Uid::parse("018d0000-0000-7000-8000-000000000007").unwrap();
    let now = chiton::clock::now();
    let today = now.wall.0.as_secs();
    let cases = [
        None,
        certificate(today - 10, today + 20, &uid.to_string()),
        certificate(today - 1000, today + 10, &uid.to_string()),
        certificate(today - 1000, today - 1, &uid.to_string()),
        certificate(today - 10, today + 1_000_000, "another"),
    ];
    for (at, facts) in cases.into_iter().enumerate() {
        for refused in [false, true] {
            let mut enrolment = Enrolment::new(7);
            let rules = Enroll { common_name: "{instance_uid}".to_owned(), key: KeyKind::P256 };
            enrolment.govern(Some(rules), Duration::from_secs(3600));
            assert_eq!(enrolment.deadline(), None, "nothing is known yet");
            enrolment.facts(facts.clone(), true);
            let due = match enrolment.wish(uid, now) {
                Some(Wish::Make { common_name, .. }) => {
                    enrolment.made(common_name, Ok("request".into()), now);
                    assert!(matches!(enrolment.wish(uid, now), Some(Wish::Send(_))));
                    true
                }
                other => {
                    assert_eq!(other, None);
                    false
                }
            };
            assert_eq!(due, at != 1, "{at}");
            if refused {
                enrolment.refused(now);
            }
            let next = enrolment.deadline().unwrap().since(now.mono);
            let least = if due { Duration::from_secs(3600) } else { Duration::from_secs(5) };
            assert!(next >= least, "{at}: wakes up in {next:?}");
            // What came is asked for anew at once: no sooner than what was refused.
            enrolment.facts(certificate(today - 1000, today + 9, "whatever"), true);
            assert!(matches!(enrolment.wish(uid, now), Some(Wish::Wait(_))), "{at}");
            let next = enrolment.deadline().unwrap().since(now.mono);
            assert!(next >= Duration::from_secs(3600), "{at}: wakes up in {next:?}");
        }
    }
}
