//! Connections that a server offers, from outside: the real binary, over WebSocket and plain HTTP, with real TLS.
//!
//! What must never be: a connection that is left without a word, an offer that is in force before it has worked, or
//! that is forgotten by a restart, an old key that stays on the disk, a reconnect that nothing asked for, a loop.
#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]

mod common;

use std::fs;
use std::io::Write;

use chiton_proto::{
    AgentToServer, ConnectionSettingsStatuses, OpAmpConnectionSettings, ProxyConnectionSettings,
    ServerToAgent, TlsConnectionSettings,
};
use common::authority::Authority;
use common::authority::bootstrap;
use common::connection::{
    Line, Over, accepting, certificate, connection, generation, generations, header, headers,
    mutual,
};
use common::{Agent, Home, Server, Settings, Stream, read_head};
use rustls::ALL_VERSIONS;

/// Each over both transports.
macro_rules! over_both {
    ($($name:ident),* $(,)?) => {
        mod over_websocket {
            $(#[test] fn $name() { super::$name(super::Over::WebSocket) })*
        }
        mod over_http {
            $(#[test] fn $name() { super::$name(super::Over::Http) })*
        }
    };
}

over_both!(
    an_endpoint,
    headers_replace_headers,
    a_certificate,
    trust_roots,
    a_proxy,
    a_heartbeat_alone,
    all_at_once_and_one_after_the_other,
    the_same_hash_again,
    a_failed_hash_again,
    the_same_contents_by_another_name,
    an_offer_without_a_hash_each_time,
    an_offer_while_another_is_tried,
    an_offer_that_is_not_accepted,
    an_offer_of_nothing,
    other_connections_beside_it,
);

/// The life of a good offer, from the old connection to the new one.
fn is_taken(mut line: Line, hash: &str, offer: &ServerToAgent, next: &dyn Fn() -> Line) -> Line {
    line.send(offer);
    line.left_for(hash);
    let mut line = next();
    line.first(hash, ConnectionSettingsStatuses::Applying);
    line.applied(hash);
    line
}

/// After a restart the new connection is the first that is tried, and what became of the offer is told at once. What
/// was before it is gone from the disk.
fn outlives_a_restart(
    home: &Home,
    agent: Agent<'_>,
    line: Line,
    hash: &str,
    next: &dyn Fn() -> Line,
) {
    generation(home);
    agent.unharmed();
    line.stop(agent);
    fs::remove_file(home.path("pids")).unwrap();
    let agent = home.start();
    let mut line = next();
    line.first(hash, ConnectionSettingsStatuses::Applied);
    agent.shows("connection.settings.source", |source| source == "offered");
    agent.shows("connection.settings.phase", |phase| phase == "idle");
    line.stays();
    assert_eq!(generations(home).len(), 1);
    agent.unharmed();
    line.stop(agent);
}

fn an_endpoint(over: Over) {
    let (home, first, second) = (Home::new(), Server::new(), Server::new());
    home.settings(&over.url(&first, false), &accepting(&[]));
    let agent = home.start();
    let line = Line::accept(&first, over, None);
    let offer = connection("e1", |opamp| opamp.destination_endpoint = over.url(&second, false));
    let next = || Line::accept(&second, over, None);
    let line = is_taken(line, "e1", &offer, &next);
    agent.shows("connection.endpoint", |url| url == over.url(&second, false).as_str());
    outlives_a_restart(&home, agent, line, "e1", &next);
    first.was_left_alone();
}

fn headers_replace_headers(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    home.settings(&over.url(&server, false), &accepting(&["headers: { X-Old: was-here }"]));
    let agent = home.start();
    let line = Line::accept(&server, over, None);
    assert!(line.head().contains("X-Old: was-here"), "{}", line.head());
    let next = || {
        let line = Line::accept(&server, over, None);
        assert!(line.head().contains("X-New: is-here"), "{}", line.head());
        assert!(!line.head().contains("X-Old"), "{}", line.head());
        line
    };
    let line = is_taken(line, "h1", &header("h1", "X-New", "is-here"), &next);
    outlives_a_restart(&home, agent, line, "h1", &next);
}

fn a_certificate(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    let (trust, old, new) =
        (Authority::new("servers"), Authority::new("old"), Authority::new("new"));
    let (cert, key) = old.issue("device", |_| {});
    let tls = bootstrap(&home, &trust, Some((&cert, &key)));
    home.settings(&over.url(&server, true), &accepting(&[&tls]));
    let agent = home.start();
    let takes_old = mutual(&trust, &[&old], ALL_VERSIONS);
    let takes_new = mutual(&trust, &[&new], ALL_VERSIONS);
    let line = Line::accept(&server, over, Some(&takes_old));
    let (fresh, fresh_key) = new.issue("device", |_| {});
    let offer = connection("c1", |opamp| {
        opamp.certificate = Some(certificate(&fresh, &fresh_key, &new.pem()));
    });
    let next = || Line::accept(&server, over, Some(&takes_new));
    let line = is_taken(line, "c1", &offer, &next);
    let kept = home.path("state/connection").join(generation(&home));
    assert_eq!(fs::read_to_string(kept.join("cert.pem")).unwrap(), fresh);
    assert_eq!(fs::read_to_string(kept.join("key.pem")).unwrap(), fresh_key);
    // And again: nothing of the one before is left.
    let (third, third_key) = old.issue("device", |_| {});
    let offer = connection("c2", |opamp| {
        opamp.certificate = Some(certificate(&third, &third_key, &old.pem()));
    });
    let next = || Line::accept(&server, over, Some(&takes_old));
    let line = is_taken(line, "c2", &offer, &next);
    generation(&home);
    let secret = fresh_key.lines().nth(1).unwrap();
    assert_eq!(
        common::files_with(&home.path("state"), secret),
        [""; 0].map(Into::<std::path::PathBuf>::into)
    );
    outlives_a_restart(&home, agent, line, "c2", &next);
    for (name, was) in [("cert.pem", &cert), ("key.pem", &key)] {
        assert_eq!(&fs::read_to_string(home.path(name)).unwrap(), was, "a file that is not ours");
    }
}

fn trust_roots(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let tls = bootstrap(&home, &old, None);
    home.settings(&over.url(&server, true), &accepting(&[&tls]));
    let agent = home.start();
    let was = old.serve("127.0.0.1", |_| {}, None);
    let is = new.serve("127.0.0.1", |_| {}, None);
    let line = Line::accept(&server, over, Some(&was));
    let offer = connection("t1", |opamp| {
        opamp.tls = Some(TlsConnectionSettings {
            ca_pem_contents: new.pem(),
            min_version: "TLSv1.3".to_owned(),
            ..TlsConnectionSettings::default()
        });
    });
    let next = || Line::accept(&server, over, Some(&is));
    let line = is_taken(line, "t1", &offer, &next);
    outlives_a_restart(&home, agent, line, "t1", &next);
    // The old one is trusted no more.
    let agent = home.start();
    assert!(server.tls(&was).shaken().is_err());
    agent.logs(&["WARN", "unknown issuer"]);
    let line = Line::accept_first_good(&server, over, &is);
    line.stop(agent);
    assert_eq!(fs::read_to_string(home.path("ca.pem")).unwrap(), old.pem());
}

fn a_proxy(over: Over) {
    let (home, server, proxy) = (Home::new(), Server::new(), Server::new());
    home.settings(&over.url(&server, false), &accepting(&[]));
    let agent = home.start();
    let line = Line::accept(&server, over, None);
    let offer = connection("p1", |opamp| {
        opamp.proxy = Some(ProxyConnectionSettings {
            url: format!("http://me:pr0xy@{}", proxy.address()),
            connect_headers: Some(headers(&[("X-Site", "s1te")])),
        });
    });
    let next = || {
        let mut stream = Stream::Plain(proxy.tcp());
        let request = read_head(&mut stream);
        assert!(request.starts_with(&format!("CONNECT {} ", server.address())), "{request}");
        assert!(request.contains("Proxy-Authorization: Basic "), "{request}");
        assert!(request.contains("X-Site: s1te"), "{request}");
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        Line::new(stream, over)
    };
    let line = is_taken(line, "p1", &offer, &next);
    outlives_a_restart(&home, agent, line, "p1", &next);
    server.was_left_alone();
}

fn a_heartbeat_alone(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    // By its own settings the agent would say nothing more while the test runs.
    let slow = ["heartbeat_interval: 1h", "poll_interval: 1h"];
    home.settings(&over.url(&server, false), &accepting(&slow));
    let agent = home.start();
    let mut line = Line::accept(&server, over, None);
    line.report();
    line.send(&connection("b1", |opamp| opamp.heartbeat_interval_seconds = 1));
    line.applied("b1");
    for _ in 0..2 {
        let bare = |report: &AgentToServer| {
            *report
                == AgentToServer {
                    instance_uid: report.instance_uid.clone(),
                    sequence_num: report.sequence_num,
                    capabilities: report.capabilities,
                    ..AgentToServer::default()
                }
        };
        line.until("a heartbeat", bare);
    }
    server.was_left_alone();
    let next = || Line::accept(&server, over, None);
    outlives_a_restart(&home, agent, line, "b1", &next);
}

/// Each offer leaves what it does not name as it was.
fn all_at_once_and_one_after_the_other(over: Over) {
    let (home, first, second) = (Home::new(), Server::new(), Server::new());
    let (trust, other, clients) =
        (Authority::new("servers"), Authority::new("others"), Authority::new("clients"));
    let tls = bootstrap(&home, &trust, None);
    let allowed = "allow_endpoints: [\"127.0.0.*\"]";
    home.settings(&over.url(&first, true), &accepting(&[&tls, allowed]));
    let agent = home.start();
    let was = trust.serve("127.0.0.1", |_| {}, None);
    let line = Line::accept(&first, over, Some(&was));
    let (cert, key) = clients.issue("device", |_| {});
    let everything = connection("all", |opamp| {
        *opamp = OpAmpConnectionSettings {
            destination_endpoint: over.url(&second, true),
            headers: Some(headers(&[("X-Token", "t1")])),
            certificate: Some(certificate(&cert, &key, "")),
            heartbeat_interval_seconds: 1,
            tls: Some(TlsConnectionSettings {
                ca_pem_contents: other.pem(),
                ..TlsConnectionSettings::default()
            }),
            proxy: None,
        };
    });
    let is = mutual(&other, &[&clients], ALL_VERSIONS);
    let with = |token: &'static str| {
        let (second, is) = (&second, &is);
        move || {
            let line = Line::accept(second, over, Some(is));
            assert!(line.head().contains(&format!("X-Token: {token}")), "{}", line.head());
            line
        }
    };
    let line = is_taken(line, "all", &everything, &with("t1"));
    let line = is_taken(line, "token", &header("token", "X-Token", "t2"), &with("t2"));
    let (cert, key) = clients.issue("device", |_| {});
    let renewed = connection("renewed", |opamp| {
        opamp.certificate = Some(certificate(&cert, &key, &clients.pem()));
    });
    let line = is_taken(line, "renewed", &renewed, &with("t2"));
    outlives_a_restart(&home, agent, line, "renewed", &with("t2"));
    first.was_left_alone();
}

fn the_same_hash_again(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    home.settings(&over.url(&server, false), &accepting(&[]));
    let agent = home.start();
    let next = || Line::accept(&server, over, None);
    let offer = header("h1", "X-New", "is-here");
    let mut line = is_taken(next(), "h1", &offer, &next);
    let record = home.path("state/connection/record");
    let before = fs::metadata(&record).unwrap();
    for _ in 0..3 {
        line.send(&offer);
        line.stays();
    }
    let after = fs::metadata(&record).unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&before),
        std::os::unix::fs::MetadataExt::ino(&after),
        "the record was written again"
    );
    server.was_left_alone();
    outlives_a_restart(&home, agent, line, "h1", &next);
}

/// An offer that its server refuses: the old connection is back, the reason told.
fn is_refused(mut line: Line, server: &Server, hash: &str, over: Over) -> (Line, String) {
    line.send(&header(hash, "X-Bad", "is-bad"));
    line.left_for(hash);
    let request = server.refuse("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n");
    assert!(request.contains("X-Bad"), "{request}");
    let mut line = Line::accept(server, over, None);
    assert!(!line.head().contains("X-Bad"), "{}", line.head());
    line.first(hash, ConnectionSettingsStatuses::Applying);
    let reason = line.failed(hash);
    assert!(reason.contains("401"), "{reason}");
    (line, reason)
}

fn a_failed_hash_again(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    home.settings(&over.url(&server, false), &accepting(&[]));
    let agent = home.start();
    let next = || Line::accept(&server, over, None);
    let (line, reason) = is_refused(next(), &server, "bad", over);
    let mut line = is_taken(line, "good", &header("good", "X-Good", "is-good"), &next);
    // What is remembered is what is in it, not only what it is called.
    for hash in ["bad", "bad too", "bad", "bad again"] {
        line.send(&header(hash, "X-Bad", "is-bad"));
        assert_eq!(line.failed(hash), reason);
        line.stays();
    }
    // Also after a restart.
    line.stop(agent);
    fs::remove_file(home.path("pids")).unwrap();
    let agent = home.start();
    let mut line = next();
    assert!(line.head().contains("X-Good"), "{}", line.head());
    let told = line.first("bad again", ConnectionSettingsStatuses::Failed);
    assert_eq!(told.connection_settings_status.unwrap().error_message, reason);
    line.send(&header("and again", "X-Bad", "is-bad"));
    assert_eq!(line.failed("and again"), reason);
    server.was_left_alone();
    // Who says so may try it again.
    assert!(home.chiton("retry", &[]).status.success());
    line.send(&header("bad", "X-Bad", "is-bad"));
    line.left_for("bad");
    let mut line = next();
    assert!(line.head().contains("X-Bad"), "{}", line.head());
    line.first("bad", ConnectionSettingsStatuses::Applying);
    line.applied("bad");
    outlives_a_restart(&home, agent, line, "bad", &next);
}

fn the_same_contents_by_another_name(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    let (trust, clients) = (Authority::new("servers"), Authority::new("clients"));
    let tls = bootstrap(&home, &trust, None);
    home.settings(&over.url(&server, true), &accepting(&[&tls]));
    let agent = home.start();
    let open = trust.serve_curious("127.0.0.1", &clients);
    let next = || Line::accept(&server, over, Some(&open));
    let (cert, key) = clients.issue("device", |_| {});
    let offer = |hash: &str| {
        connection(hash, |opamp| {
            opamp.headers = Some(headers(&[("X-New", "is-here")]));
            opamp.certificate = Some(certificate(&cert, &key, &clients.pem()));
        })
    };
    let mut line = is_taken(next(), "one", &offer("one"), &next);
    let lies_there = generation(&home);
    for hash in ["two", "three", "one"] {
        line.send(&offer(hash));
        line.applied(hash);
        line.stays();
    }
    server.was_left_alone();
    assert_eq!(generations(&home), [lies_there]);
    outlives_a_restart(&home, agent, line, "one", &next);
}

/// Some servers offer the same at each connect, or in each answer, and hash nothing: no loop, and no write.
fn an_offer_without_a_hash_each_time(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    let trust = Authority::new("servers");
    let tls = bootstrap(&home, &trust, None);
    home.settings(&over.url(&server, true), &accepting(&[&tls]));
    let agent = home.start();
    let config = trust.serve("127.0.0.1", |_| {}, None);
    let next = || Line::accept(&server, over, Some(&config));
    let offer = connection("", |opamp| {
        opamp.headers = Some(headers(&[("X-New", "is-here")]));
        opamp.tls = Some(TlsConnectionSettings {
            ca_pem_contents: trust.pem(),
            ..TlsConnectionSettings::default()
        });
    });
    let mut line = is_taken(next(), "", &offer, &next);
    let record = fs::read(home.path("state/connection/record")).unwrap();
    // In answer to each report: one more report would be the next step of a loop.
    let mut reports = 0;
    line.send(&ServerToAgent { flags: 1, ..offer.clone() });
    let full = loop {
        let report = line.report();
        line.send(&offer);
        reports += 1;
        if report.agent_description.is_some() {
            break report;
        }
    };
    assert!(reports <= 3, "{reports} reports");
    let told = full.connection_settings_status.unwrap();
    assert_eq!(told.status(), ConnectionSettingsStatuses::Applied);
    if over == Over::Http {
        for _ in 0..5 {
            let report = line.report();
            assert_eq!(report.connection_settings_status, None, "a loop");
            line.send(&offer);
        }
    } else {
        line.peer().quiet_for(common::WINDOW);
    }
    server.was_left_alone();
    assert_eq!(fs::read(home.path("state/connection/record")).unwrap(), record);
    outlives_a_restart(&home, agent, line, "", &next);
}

fn an_offer_while_another_is_tried(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    home.settings(&over.url(&server, false), &accepting(&[]));
    let agent = home.start();
    let mut line = Line::accept(&server, over, None);
    line.send(&header("one", "X-Number", "one"));
    line.left_for("one");
    let next = |number: &str| {
        let line = Line::accept(&server, over, None);
        assert!(line.head().contains(&format!("X-Number: {number}")), "{}", line.head());
        line
    };
    // The answers on the new connection bring two more: the last one counts, as soon as the first is decided.
    let mut line = next("one");
    line.report();
    line.send(&header("two", "X-Number", "two"));
    let mut tried = vec!["one".to_owned()];
    loop {
        let Some(report) = line.report_or_end() else {
            line = Line::accept(&server, over, None);
            let (_, number) = line.head().split_once("X-Number: ").unwrap();
            tried.push(number.lines().next().unwrap().to_owned());
            continue;
        };
        if report.agent_disconnect.is_some() {
            continue;
        }
        let told = report.connection_settings_status.clone().unwrap_or_default();
        if told.last_connection_settings_hash == "three"
            && told.status() == ConnectionSettingsStatuses::Applied
        {
            line.answer(&report);
            break;
        }
        line.send(&header("three", "X-Number", "three"));
    }
    assert!(tried == ["one", "three"] || tried == ["one", "two", "three"], "{tried:?}");
    outlives_a_restart(&home, agent, line, "three", &|| next("three"));
}

fn an_offer_that_is_not_accepted(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    let settings = Settings { capabilities: Vec::new(), ..accepting(&[]) };
    home.settings(&over.url(&server, false), &settings);
    let agent = home.start();
    let mut line = Line::accept(&server, over, None);
    for hash in ["one", ""] {
        line.send(&header(hash, "X-New", "is-here"));
        let told = line.stays().connection_settings_status.unwrap_or_default();
        assert_eq!(told, chiton_proto::ConnectionSettingsStatus::default());
    }
    agent.logs(&["ignored offered connection settings", "accepts_opamp_connection_settings"]);
    server.was_left_alone();
    assert!(generations(&home).is_empty());
    agent.unharmed();
    line.stop(agent);
}

fn an_offer_of_nothing(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    home.settings(&over.url(&server, false), &accepting(&[]));
    let agent = home.start();
    let mut line = Line::accept(&server, over, None);
    line.send(&connection("nothing", |_| {}));
    line.applied("nothing");
    line.stays();
    server.was_left_alone();
    agent.unharmed();
    line.stop(agent);
}

/// Those are not accepted; what is of OpAMP in the same offer is.
fn other_connections_beside_it(over: Over) {
    let (home, server) = (Home::new(), Server::new());
    home.settings(&over.url(&server, false), &accepting(&[]));
    let agent = home.start();
    let next = || Line::accept(&server, over, None);
    let mut offer = header("h1", "X-New", "is-here");
    let metrics = chiton_proto::TelemetryConnectionSettings {
        destination_endpoint: "http://127.0.0.1:9/v1/metrics".to_owned(),
        ..chiton_proto::TelemetryConnectionSettings::default()
    };
    offer.connection_settings.as_mut().unwrap().own_metrics = Some(metrics.clone());
    let mut line = is_taken(next(), "h1", &offer, &next);
    let alone = chiton_proto::ConnectionSettingsOffers {
        hash: b"m1".to_vec().into(),
        own_metrics: Some(metrics),
        ..chiton_proto::ConnectionSettingsOffers::default()
    };
    line.send(&ServerToAgent { connection_settings: Some(alone), ..ServerToAgent::default() });
    line.stays();
    server.was_left_alone();
    outlives_a_restart(&home, agent, line, "h1", &next);
}
