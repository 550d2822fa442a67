//! `opamp.credentials`: what is in force of the connection's credentials at stable paths, for other programs.
//!
//! What must never be there: a certificate beside another's key, and what no server has taken.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use chiton_proto::{ConnectionSettingsStatuses, ServerToAgent};
use common::authority::Authority;
use common::authority::bootstrap;
use common::connection::{accepting, certificate, connection, mutual};
use common::hub::Hub;
use common::{Home, Settings, eventually};
use rustls::{ALL_VERSIONS, ServerConfig};

/// What others saw each time they were told, certificate and key.
fn seen(home: &Home) -> Vec<(String, String)> {
    let text = fs::read_to_string(home.path("seen")).unwrap_or_default();
    let whole = text.split("--- end\n").map(str::to_owned);
    let mut whole: Vec<String> = whole.collect();
    // The last one may be half written.
    whole.pop();
    let parts =
        |one: &String| one.split_once("--- key\n").map(|(a, b)| (a.to_owned(), b.to_owned()));
    whole.iter().map(|one| parts(one).unwrap()).collect()
}

#[test]
fn others_see_what_is_in_force_and_nothing_else() {
    let home = Home::new();
    let (trust, old, new) =
        (Authority::new("servers"), Authority::new("old"), Authority::new("new"));
    let server =
        |clients: &[&Authority]| -> Arc<ServerConfig> { mutual(&trust, clients, ALL_VERSIONS) };
    let hub = Hub::new(&server(&[&old]));
    let (cert, key) = old.issue("device", |_| {});
    let tls = bootstrap(&home, &trust, Some((&cert, &key)));
    let dir = home.path("others");
    fs::create_dir(&dir).unwrap();
    let (shown, noted) = (dir.display(), home.path("seen"));
    fs::write(
        home.path("on_change.sh"),
        format!(
            "cat {shown}/cert.pem >> {0}\necho '--- key' >> {0}\ncat {shown}/key.pem >> {0}\n\
             echo '--- end' >> {0}\n",
            noted.display()
        ),
    )
    .unwrap();
    let script = home.path("on_change.sh");
    let credentials =
        format!("credentials: {{ export: {shown}, on_change: [/bin/sh, {}] }}", script.display());
    let settings =
        Settings { opamp: vec![credentials], ..accepting(&[&tls, "heartbeat_interval: 1s"]) };
    home.settings(&hub.wss(), &settings);
    let checked = home.chiton("check", &[]);
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success() && !said.contains("not in force"), "{said}");

    let agent = home.start();
    let offered = |hash: &str, by: &Authority| -> (ServerToAgent, (String, String)) {
        let pair = by.issue("device", |_| {});
        let offer = connection(hash, |opamp| {
            opamp.certificate = Some(certificate(&pair.0, &pair.1, &by.pem()));
        });
        (offer, pair)
    };
    let first = (cert, key);
    eventually("the settings' own are there", || (seen(&home) == [first.clone()]).then_some(()));
    // The server does not take it, which is known only once TLS 1.3 is up.
    let (bad, _) = offered("bad", &new);
    hub.offers(&bad);
    let told = eventually("an outcome", || hub.outcome("bad"));
    assert_eq!(told.status, ConnectionSettingsStatuses::Failed);
    // Nor are those there that a server was shown, but did not answer yet.
    hub.takes(&server(&[&old, &new]));
    let (mute, unanswered) = offered("mute", &new);
    let (offer, cert) = (mute.clone(), unanswered.0.clone());
    hub.answers_if(move |caller, _| {
        let known = caller.knows == b"mute";
        let answer = if known { ServerToAgent::default() } else { offer.clone() };
        (!caller.shows(&cert)).then_some(answer)
    });
    eventually("it is tried", || (hub.calls_with(&unanswered.0) > 0).then_some(()));
    for _ in 0..20 {
        agent.status();
        assert_eq!(seen(&home), std::slice::from_ref(&first));
    }
    drop(agent);
    hub.takes(&server(&[&old]));
    hub.offers(&mute);
    fs::remove_file(home.path("pids")).unwrap();
    let agent = home.start();
    let told = eventually("an outcome", || hub.outcome("mute"));
    assert_eq!(told.status, ConnectionSettingsStatuses::Failed);
    eventually("the old are there still", || {
        (seen(&home) == [first.clone(), first.clone()]).then_some(())
    });
    hub.takes(&server(&[&old, &new]));
    let (good, second) = offered("good", &new);
    hub.offers(&good);
    let told = eventually("an outcome", || hub.outcome("good"));
    assert_eq!(told.status, ConnectionSettingsStatuses::Applied, "{}", told.error);
    eventually("the new are there", || seen(&home).contains(&second).then_some(()));
    let so_far = [first.clone(), first.clone(), second.clone()];
    assert_eq!(seen(&home), so_far, "the log:\n{}", agent.log());
    assert_eq!(fs::read_to_string(dir.join("ca.pem")).unwrap(), trust.pem());
    for name in ["cert.pem", "key.pem", "ca.pem"] {
        let file = fs::metadata(dir.join(name)).unwrap();
        assert_eq!((file.mode() & 0o777, file.gid()), (0o640, fs::metadata(&dir).unwrap().gid()));
    }
    agent.unharmed();
    drop(agent);
    // Whether the command was run before the end nobody knows: it is run once more.
    let agent = home.start();
    eventually("told again", || (seen(&home).len() == 4).then_some(()));
    assert_eq!(seen(&home), [first.clone(), first, second.clone(), second]);
    agent.stop();
}

/// A command that fails, or a directory that cannot be written, is said; the connection goes on.
#[test]
fn what_goes_wrong_is_said_and_hinders_nothing() {
    for (export, command, words) in [
        ("others", "[/bin/sh, -c, \"echo no; exit 3\"]", "on_change"),
        ("chiton.yaml/no", "[/bin/true]", "opamp.credentials"),
    ] {
        let home = Home::new();
        let (trust, old) = (Authority::new("servers"), Authority::new("old"));
        let hub = Hub::new(&mutual(&trust, &[&old], ALL_VERSIONS));
        let (cert, key) = old.issue("device", |_| {});
        let tls = bootstrap(&home, &trust, Some((&cert, &key)));
        let dir = home.path(export);
        let credentials =
            format!("credentials: {{ export: {}, on_change: {command} }}", dir.display());
        home.settings(&hub.wss(), &Settings { opamp: vec![credentials], ..accepting(&[&tls]) });
        let agent = home.start();
        agent.logs(&["WARN", words]);
        eventually("it is connected", || (hub.calls() > 0).then_some(()));
        agent.unharmed();
        agent.stop();
    }
}
