//! Packages offered by an enemy: what is signed wrongly, is old, is for somebody else, or would be written elsewhere.
//! After each attack a good package must go through.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::path::PathBuf;

use chiton::signature::Manifest;
use chiton_proto::{PackageAvailable, PackageStatus, PackageStatusEnum};
use common::packages::{
    Files, digest_form, manifest, offered, package, packages, signed, tar_gz, trusted,
};
use common::{Agent, Home, Peer, Server, Settings, eventually};

use PackageStatusEnum::{InstallFailed, Installed};

type Offer = (String, PackageAvailable);

/// The workload is the package `prog`; `more` are keys of `opamp.packages`.
fn settings(keys: &str, more: &str) -> Settings {
    Settings {
        capabilities: vec!["accepts_packages"],
        command: Some("[\"{package_dir:prog}/prog\"]".to_owned()),
        opamp: vec![
            "remote_config: { rollback: { window: 10s, interval: 20ms, successes: 2 }, min_interval: 1ms }"
                .to_owned(),
            format!("packages: {{ trusted_keys: [{keys}] {more} }}"),
        ],
        ..Settings::default()
    }
}

struct World {
    home: Home,
    server: Server,
    files: Files,
}

struct Link<'a> {
    world: &'a World,
    agent: Agent<'a>,
    peer: Peer,
    uid: Vec<u8>,
    offers: u32,
}

impl World {
    fn new(keys: &[u8], more: &str) -> Self {
        let world = Self { home: Home::new(), server: Server::new(), files: Files::new() };
        world.set(keys, more);
        world
    }

    fn set(&self, keys: &[u8], more: &str) {
        let keys: Vec<String> = keys.iter().map(|key| trusted(&self.home, *key)).collect();
        self.home.settings(&self.server.ws(), &settings(&keys.join(", "), more));
    }

    fn start(&self) -> Link<'_> {
        let agent = self.home.start();
        let (peer, first) = self.server.greet();
        Link { world: self, agent, peer, uid: first.instance_uid.to_vec(), offers: 0 }
    }

    fn program(&self, version: &str) -> Vec<u8> {
        self.home.program(version, "")
    }

    /// `prog`, signed by key 1.
    fn prog(&self, version: &str, counter: u64) -> Offer {
        offered(&self.files, "prog", version, counter, &self.program(version))
    }

    /// `prog`, with a manifest that says something else of it.
    fn twisted(&self, version: &str, keys: &[u8], twist: impl FnOnce(&mut Manifest)) -> Offer {
        let body = self.program(version);
        let mut says = manifest("prog", version, 1, &body);
        twist(&mut says);
        self.signed_as(version, &body, signed(&says, keys))
    }

    fn signed_as(&self, version: &str, body: &[u8], signature: Vec<u8>) -> Offer {
        let place = format!("prog-{version}");
        self.files.put(&place, body);
        ("prog".to_owned(), package(version, &self.files.url(&place), body, signature))
    }

    /// Everything below packages_dir that is a package's, whole or in parts.
    fn holds(&self) -> Vec<PathBuf> {
        common::files_with(&self.home.packages(), "")
    }
}

impl Link<'_> {
    fn offer(&mut self, offers: Vec<Offer>) -> chiton_proto::PackageStatuses {
        self.offers += 1;
        let hash = format!("{}-{}", self.agent.pid(), self.offers);
        self.peer.send(&packages(&self.uid, &hash, offers));
        self.peer.packages(&hash)
    }

    fn outcome(&mut self, offer: Offer) -> PackageStatus {
        let name: String = offer.0.chars().take(128).collect();
        self.offer(vec![offer]).packages.remove(&name).unwrap()
    }

    fn refused(&mut self, offer: Offer, word: &str) -> PackageStatus {
        let status = self.outcome(offer);
        assert_eq!(status.status(), InstallFailed, "{status:?}");
        assert!(status.error_message.contains(word), "{word}: {status:?}");
        status
    }

    fn installs(&mut self, offer: Offer) {
        let version = offer.1.version.clone();
        let status = self.outcome(offer);
        assert_eq!((status.status(), status.error_message.as_str()), (Installed, ""));
        self.runs(&version);
    }

    /// Waits for package statuses that fit.
    fn tells(&mut self, what: &str, fits: impl Fn(&chiton_proto::PackageStatuses) -> bool) {
        self.peer.until(what, |report| report.package_statuses.as_ref().is_some_and(&fits));
    }

    fn runs(&self, version: &str) {
        eventually(&format!("{version} runs"), || {
            let pid = *self.world.home.pids().last()?;
            (common::is_alive(pid) && self.world.home.version(pid) == version).then_some(())
        });
    }

    /// It still works: a good package goes through.
    fn ends_well(mut self, keys: &[u8]) {
        let good = self.world.twisted("99.0", keys, |says| says.counter = u64::MAX);
        self.installs(good);
        self.stop();
    }

    fn stop(mut self) {
        self.peer.proves_to_work(&self.uid);
        self.agent.stop_with(self.peer);
    }
}

/// S + L: the same signature for who does not look.
fn not_canonical(signature: &mut [u8]) {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde,
        0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    for (digit, add) in signature[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*digit) + u16::from(add) + carry;
        (*digit, carry) = (sum.to_le_bytes()[0], sum >> 8);
    }
}

#[test]
fn a1_what_is_not_signed_as_it_must_be_is_not_fetched() {
    use prost::Message as _;
    let world = World::new(&[1], "");
    let mut link = world.start();
    let body = world.program("1.0");
    let good = signed(&manifest("prog", "1.0", 1, &body), &[1]);
    let parsed = || chiton::signature::SignedManifest::parse(&good).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut signed = parsed();
        change(&mut signed.signatures[0].signature);
        signed.encode_to_vec()
    };
    let other = signed(&manifest("prog", "1.0", 1, b"another file"), &[1]);
    for (signature, word) in [
        (Vec::new(), "not signed"),
        (signed(&manifest("prog", "1.0", 1, &body), &[2]), ""),
        (signed(&manifest("prog", "1.0", 1, &body), &[]), ""),
        (other, "another file"),
        (with(&|s| s.truncate(63)), ""),
        (with(&|s| s.push(0)), ""),
        (with(&|s| not_canonical(s)), ""),
        (with(&|s| s.fill(0)), ""),
        (good[..63].to_vec(), ""),
        (good[..64].to_vec(), "digest"),
        (good[..65].to_vec(), ""),
        (vec![0; 65], ""),
        (vec![0xff; 1 << 16], ""),
        (digest_form(&body, 1), "signature: digest"),
    ] {
        let offer = world.signed_as("1.0", &body, signature.clone());
        let first = link.refused(offer.clone(), word).error_message;
        assert!(!first.is_empty());
        assert_eq!(link.refused(offer, word).error_message, first, "the same reason each time");
    }
    assert!(world.files.asked().is_empty(), "fetched before it was approved");
    assert!(world.holds().is_empty(), "{:?}", world.holds());
    link.ends_well(&[1]);
}

#[test]
fn a1_the_digest_form_is_held_as_strictly() {
    let world = World::new(&[1], ", signature: digest");
    let mut link = world.start();
    let body = world.program("1.0");
    let good = digest_form(&body, 1);
    let mut twisted = good.clone();
    not_canonical(&mut twisted);
    for signature in [
        twisted,
        digest_form(&body, 2),
        digest_form(b"another file", 1),
        good[..63].to_vec(),
        [good.as_slice(), &[0]].concat(),
        vec![0; 64],
    ] {
        link.refused(world.signed_as("1.0", &body, signature), "");
    }
    // The signature is one of this file, and the server sends another.
    let swapped = world.signed_as("1.0", &body, good.clone());
    world.files.put("prog-1.0", b"another file");
    link.refused(swapped, "SHA-256");
    assert!(world.holds().is_empty(), "{:?}", world.holds());
    link.installs(world.signed_as("1.0", &body, good));
    link.ends_well(&[1]);
}

#[test]
fn a1_a_key_of_small_order_is_not_trusted() {
    let world = World::new(&[1], "");
    let path = world.home.path("weak.pub");
    // The point of order 1; a "signature" of zeros and this point fits any message.
    let body = "MCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    fs::write(&path, format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n"))
        .unwrap();
    let weak = path.display().to_string();
    let only = settings(&weak, ", signature: digest");
    world.home.settings(&world.server.ws(), &only);
    let mut link = world.start();
    link.agent.logs(&["weak.pub", "small order"]);
    let program = world.program("1.0");
    let mut forged = vec![0; 64];
    forged[0] = 1;
    let offer = world.signed_as("1.0", &program, forged);
    link.peer.send(&packages(&link.uid, "forged", vec![offer]));
    link.agent.logs(&["ignored packages", "trusted key"]);
    assert!(world.files.asked().is_empty());
    link.stop();
    world.set(&[1], "");
    world.start().ends_well(&[1]);
}

#[test]
fn a4_a_manifest_for_something_else_is_refused() {
    let world = World::new(&[1], "");
    let mut with = settings(&trusted(&world.home, 1), "");
    with.opamp.push("agent: { labels: { product: gw7 } }".to_owned());
    world.home.settings(&world.server.ws(), &with);
    let mut link = world.start();
    type Twist = fn(&mut Manifest);
    let refused: [(Twist, &str); 11] = [
        (|says| says.name = "prog2".to_owned(), "for the package \"prog2\""),
        (|says| says.name = "Prog".to_owned(), "for the package"),
        (|says| says.version = "1.0.1".to_owned(), "for version"),
        (|says| says.target = "linux/nios2".to_owned(), "linux/nios2"),
        (|says| says.target = "windows/amd64".to_owned(), "target"),
        (|says| says.target = "product=gw8".to_owned(), "product=gw8"),
        (|says| says.target = "product=gw7,site=x".to_owned(), "site=x"),
        (|says| says.target = "product=".to_owned(), "target"),
        (|says| says.kind = 1, "configuration"),
        (|says| says.kind = 7, ""),
        (|says| says.sha256 = vec![0; 32], "another file"),
    ];
    for (twist, word) in refused {
        link.refused(world.twisted("1.0", &[1], twist), word);
    }
    assert!(world.files.asked().is_empty());
    // The size that was signed is not that of the file.
    for size in [0_u64, 1, 1 << 20] {
        link.refused(world.twisted("1.0", &[1], |says| says.size = size), "bytes");
    }
    assert!(world.holds().is_empty(), "{:?}", world.holds());
    link.installs(world.twisted("1.0", &[1], |says| says.target = "product=gw7".to_owned()));
    link.ends_well(&[1]);
}

#[test]
fn r1_what_is_older_is_refused_also_after_a_restart() {
    let world = World::new(&[1], "");
    let mut link = world.start();
    link.installs(world.prog("1.0", 5));
    link.installs(world.prog("2.0", 7));
    let text = link.refused(world.prog("1.0", 5), "7 is the lowest").error_message;
    link.refused(world.prog("3.0", 6), "7 is the lowest");
    link.runs("2.0");
    link.stop();
    let mut link = world.start();
    assert_eq!(link.refused(world.prog("1.0", 5), "lowest").error_message, text);
    // The one that is committed may always be offered again, with whatever else.
    link.installs(world.prog("2.0", 7));
    // One that fails does not raise the floor.
    let body = world.home.program("8.0", "exit 3");
    let failing = offered(&world.files, "prog", "8.0", 8, &body);
    link.refused(failing, "exited");
    link.installs(world.prog("2.1", 7));
    link.ends_well(&[1]);
}

#[test]
fn r1_what_was_deleted_by_hand_is_fetched_again() {
    let world = World::new(&[1], "");
    let mut link = world.start();
    link.installs(world.prog("2.0", 7));
    link.stop();
    fs::remove_dir_all(world.home.packages().join("trees")).unwrap();
    let mut link = world.start();
    link.refused(world.prog("1.0", 6), "7 is the lowest");
    link.installs(world.prog("2.0", 7));
    link.ends_well(&[1]);
}

#[test]
fn r2_without_its_record_nothing_old_comes_back() {
    let world = World::new(&[1], "");
    let record = world.home.path("state/workloads/default/record");
    let mut link = world.start();
    link.installs(world.prog("1.0", 5));
    let older = fs::read(&record).unwrap();
    link.installs(world.prog("2.0", 7));
    link.stop();
    let current = fs::read(&record).unwrap();

    let refuses = |what: &str| {
        let mut link = world.start();
        let status = link.outcome(world.prog("1.5", 6));
        assert_eq!(status.status(), InstallFailed, "{what}: {status:?}");
        link.stop();
    };
    fs::remove_file(&record).unwrap();
    refuses("deleted");
    fs::write(&record, &current).unwrap();
    let mut broken = current.clone();
    *broken.last_mut().unwrap() ^= 1;
    fs::write(&record, &broken).unwrap();
    refuses("broken");
    fs::write(&record, b"").unwrap();
    refuses("empty");
    // All of the life cycle's state is gone, and the packages are there still.
    fs::remove_dir_all(world.home.path("state/workloads")).unwrap();
    refuses("all deleted");

    // An older record was good once: nothing on this disk can tell. The second place is the settings.
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::write(&record, &older).unwrap();
    world.set(&[1], ", min_counter: { prog: 7 }");
    refuses("an older one");
    let mut link = world.start();
    link.installs(world.prog("2.0", 7));
    link.ends_well(&[1]);
}

#[test]
fn f1_nobody_runs_the_counter_to_its_end_alone() {
    let world = World::new(&[1, 2], ", threshold: 2");
    let mut link = world.start();
    link.installs(world.twisted("1.0", &[1, 2], |says| says.counter = 1));
    link.refused(world.twisted("999", &[1], |says| says.counter = u64::MAX), "");
    // One key twice is one key.
    let body = world.program("999");
    let mut twice =
        chiton::signature::SignedManifest::new(&manifest("prog", "999", u64::MAX, &body));
    twice.sign(&common::packages::key(1));
    let again = twice.signatures[0].clone();
    twice.signatures.push(again);
    let twice = prost::Message::encode_to_vec(&twice);
    link.refused(world.signed_as("999", &body, twice), "");
    link.installs(world.twisted("2.0", &[1, 2], |says| says.counter = 2));
    // Both keys may: then nothing lower is taken any more, and another name is the way on.
    link.installs(world.twisted("999", &[1, 2], |says| says.counter = u64::MAX));
    link.refused(world.twisted("3.0", &[1, 2], |says| says.counter = 3), "lowest");
    world.files.put("other", b"x");
    let says = signed(&manifest("other", "1", 1, b"x"), &[1, 2]);
    let mut other = package("1", &world.files.url("other"), b"x", says);
    other.r#type = 1;
    let top = world.twisted("999", &[1, 2], |says| says.counter = u64::MAX);
    let told = link.offer(vec![top, ("other".to_owned(), other)]);
    assert!(told.packages.values().all(|it| it.status() == Installed), "{told:?}");
    link.ends_well(&[1, 2]);
}

#[test]
fn z1_an_installed_package_whose_manifest_expires_is_told() {
    const ISSUED: u64 = 1_900_000_000;
    let world = World::new(&[1], "");
    let mut link = world.start();
    let soon = chiton::clock::now().wall.0.as_secs() + 8;
    link.installs(world.twisted("1.0", &[1], |says| {
        (says.issued_at, says.expires_at) = (1_700_000_000, soon);
    }));
    let report = link.peer.until("a stale package", |report| {
        report.health.as_ref().is_some_and(|it| it.component_health_map.contains_key("packages"))
    });
    let health = report.health.unwrap();
    let stale = &health.component_health_map["packages"];
    assert!(!stale.healthy && !health.healthy, "{health:?}");
    assert_eq!(stale.status_time_unix_nano, soon * 1_000_000_000);
    assert!(stale.last_error.contains("prog"), "{stale:?}");
    assert!(health.component_health_map["workload"].healthy);
    link.stop();
    // Still so after a restart, until a fresh one comes.
    let mut link = world.start();
    link.agent.tells("health.last_error", &["expired"]);
    link.installs(world.twisted("2.0", &[1], |says| {
        (says.counter, says.issued_at, says.expires_at) = (2, ISSUED, 0);
    }));
    link.agent.shows("healthy", |healthy| healthy.as_bool() == Some(true));
    link.ends_well(&[1]);
}

#[test]
fn z2_what_has_expired_by_what_was_signed_stays_expired() {
    const ISSUED: u64 = 1_900_000_000;
    let world = World::new(&[1], "");
    let mut link = world.start();
    let prog = |version, counter, issued, expires| {
        world.twisted(version, &[1], |says| {
            (says.counter, says.issued_at, says.expires_at) = (counter, issued, expires);
        })
    };
    // By this machine's clock this one is good for years.
    let old = prog("1.0", 1, 1_800_000_000, ISSUED);
    link.refused(prog("0.1", 1, 1, 2), "expired");
    link.installs(old);
    link.installs(prog("2.0", 2, ISSUED, 0));
    link.refused(prog("2.1", 2, 1_800_000_000, ISSUED), "expired");
    link.stop();
    let mut link = world.start();
    link.refused(prog("2.1", 2, 1_800_000_000, ISSUED), "expired");
    link.installs(prog("2.2", 2, ISSUED, ISSUED + 1000));
    link.ends_well(&[1]);
}

#[test]
fn m1_packages_of_two_releases_are_not_mixed() {
    let world = World::new(&[1], "");
    let mut link = world.start();
    let addon = |version: &str, counter, set: &str| {
        let body = format!("addon {version}").into_bytes();
        let place = format!("addon-{version}");
        world.files.put(&place, &body);
        let mut says = manifest("addon", version, counter, &body);
        says.set = set.to_owned();
        let signature = signed(&says, &[1]);
        let mut offer = package(version, &world.files.url(&place), &body, signature);
        offer.r#type = 1;
        ("addon".to_owned(), offer)
    };
    let prog = |version: &str, counter, set: &str| {
        world.twisted(version, &[1], |says| {
            (says.counter, says.set) = (counter, set.to_owned());
        })
    };
    let told = link.offer(vec![prog("1", 1, "r1"), addon("1", 1, "r1")]);
    assert!(told.packages.values().all(|it| it.status() == Installed), "{told:?}");
    // New and old, new and the unchanged one of the old release, new and one of no release.
    for set in [("2", "r1"), ("1", "r1"), ("1", ""), ("2", "R2")] {
        let told = link.offer(vec![prog("2", 2, "r2"), addon(set.0, 2, set.1)]);
        assert!(told.packages.values().all(|it| it.status() == InstallFailed), "{set:?}: {told:?}");
        assert!(told.packages.values().any(|it| it.error_message.contains("binds")), "{told:?}");
        assert_eq!(told.packages["prog"].agent_has_version, "1");
    }
    // The same file, signed for the new release too.
    let told = link.offer(vec![prog("2", 2, "r2"), addon("1", 2, "r2")]);
    assert!(told.packages.values().all(|it| it.status() == Installed), "{told:?}");
    link.runs("2");
    link.ends_well(&[1]);
}

#[test]
fn k1_one_stolen_key_is_not_enough_and_a_revoked_one_is_none() {
    let world = World::new(&[1, 2, 3], ", threshold: 2");
    let mut link = world.start();
    link.refused(world.twisted("1.0", &[3], |_| ()), "");
    link.installs(world.twisted("1.0", &[1, 3], |_| ()));
    let id = common::packages::key(3).public().id();
    world.set(&[1, 2, 3], &format!(", threshold: 2, revoked_keys: [\"{id}\"]"));
    link.agent.hang_up();
    link.agent.logs(&["in force now", "revoked_keys"]);
    let two = |version, keys: &[u8]| world.twisted(version, keys, |says| says.counter = 2);
    link.refused(two("2.0", &[1, 3]), &id.to_string());
    link.runs("1.0");
    link.stop();
    let mut link = world.start();
    link.refused(two("2.0", &[1, 3]), &id.to_string());
    link.refused(two("2.0", &[3]), "");
    link.ends_well(&[1, 2]);
}

#[test]
fn x1_an_empty_offer_removes_nothing() {
    let world = World::new(&[1], "");
    let mut link = world.start();
    link.installs(world.prog("1.0", 1));
    let told = link.offer(Vec::new());
    assert!(told.error_message.contains("allow_empty"), "{told:?}");
    assert_eq!(told.packages["prog"].agent_has_version, "1.0");
    link.runs("1.0");
    assert_eq!(world.home.pids().len(), 1);
    link.ends_well(&[1]);
}

#[test]
fn x1_what_the_devices_maker_put_there_is_never_removed() {
    let world = World::new(&[1], ", allow_empty: true");
    let local = world.home.packages().join("local/base");
    fs::create_dir_all(&local).unwrap();
    fs::write(local.join("data"), "of the maker").unwrap();
    let mut link = world.start();
    let addon = |name: &str, version: &str, counter| {
        let (name, mut offer) = offered(&world.files, name, version, counter, version.as_bytes());
        offer.r#type = 1;
        (name, offer)
    };
    let told = link.offer(vec![world.prog("1.0", 1), addon("extra", "e1", 1)]);
    assert_eq!(told.packages.len(), 2, "{told:?}");
    let current = world.home.packages().join("current");
    let names = || {
        let mut names: Vec<String> = fs::read_dir(&current)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(), ["base", "extra", "prog"]);
    // Left out is removed.
    link.offer(vec![world.prog("1.0", 1)]);
    link.tells("what is left out goes", |told| told.packages.keys().eq(["prog"]));
    assert_eq!(names(), ["base", "prog"]);
    // One of the same name takes its place, and gives it back.
    link.offer(vec![world.prog("1.0", 1), addon("base", "b1", 1)]);
    assert_eq!(world.home.installed("base").keys().collect::<Vec<_>>(), ["base"]);
    link.offer(Vec::new());
    link.tells("what was offered goes", |told| told.packages.is_empty());
    assert_eq!(names(), ["base"]);
    assert_eq!(fs::read_to_string(local.join("data")).unwrap(), "of the maker");
    link.ends_well(&[1]);
}

#[test]
fn x3_names_that_lead_elsewhere_are_refused() {
    let world = World::new(&[1], "");
    let mut link = world.start();
    let long = "n".repeat(4096);
    let body = world.program("1.0");
    for name in [
        "../x",
        "/x",
        "a/b",
        "..",
        ".",
        ".hidden",
        "a\0b",
        "-rf",
        "a b",
        "a\nb",
        "pr\u{043e}g",
        "prog\u{200b}",
        "ﬁle",
        "_top",
        "chiton",
        "x\\y",
        long.as_str(),
    ] {
        let mut says = manifest("prog", "1.0", 1, &body);
        says.name = name.to_owned();
        let signature = signed(&says, &[1]);
        let (_, mut offer) = world.signed_as("1.0", &body, Vec::new());
        offer.file.as_mut().unwrap().signature = signature.into();
        link.refused((name.to_owned(), offer), "");
    }
    assert!(world.files.asked().is_empty());
    assert!(world.holds().is_empty(), "{:?}", world.holds());
    link.ends_well(&[1]);
}

/// An archive with an entry of this type that leads there.
fn archive(name: &str, kind: u8, target: &str) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut tar = Vec::new();
    let entries: [(&str, &[u8], u32); 1] = [(name, b"", 0o755)];
    flate2::read::GzDecoder::new(tar_gz(&entries).as_slice()).read_to_end(&mut tar).unwrap();
    tar[156] = kind;
    tar[157..157 + target.len()].copy_from_slice(target.as_bytes());
    tar[148..156].fill(b' ');
    let sum: u32 = tar[..512].iter().map(|byte| u32::from(*byte)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn x3_archives_that_lead_elsewhere_are_refused() {
    let world = World::new(&[1], "");
    let mut link = world.start();
    let outside = world.home.path("outside");
    fs::write(&outside, "untouched").unwrap();
    let absolute = outside.display().to_string();
    let program = world.program("1.0");
    let mut cases: Vec<Vec<u8>> = ["../x", "../../../../outside", "a/../../x", "/x", &absolute]
        .into_iter()
        .map(|name| tar_gz(&[("prog", &program, 0o755), (name, b"evil", 0o644)]))
        .collect();
    for (kind, target) in [
        (b'2', absolute.as_str()),
        (b'2', "../../../../../outside"),
        (b'2', "/etc/passwd"),
        (b'1', absolute.as_str()),
        (b'1', "../x"),
        (b'3', ""),
        (b'4', ""),
        (b'6', ""),
        (b'Z', ""),
    ] {
        cases.push(archive("bad", kind, target));
    }
    // Twice the same name, a file where a directory is, and an end that does not come.
    cases.push(tar_gz(&[("prog", &program, 0o755), ("prog", b"evil", 0o755)]));
    cases.push(tar_gz(&[("prog", &program, 0o755), ("prog/x", b"evil", 0o755)]));
    let mut cut = tar_gz(&[("prog", &program, 0o755)]);
    cut.truncate(cut.len() - 9);
    cases.push(cut);
    for (at, body) in cases.iter().enumerate() {
        let signature = signed(&manifest("prog", "1.0", 1, body), &[1]);
        let status = link.refused(world.signed_as("1.0", body, signature), "");
        assert!(!status.error_message.is_empty(), "case {at}");
        assert!(world.holds().is_empty(), "case {at} left {:?}", world.holds());
    }
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    assert!(!world.home.packages().join("current").exists());
    let good = tar_gz(&[("prog", &program, 0o4777), ("lib/data", b"x", 0o666)]);
    let signature = signed(&manifest("prog", "1.0", 1, &good), &[1]);
    link.installs(world.signed_as("1.0", &good, signature));
    assert_eq!(world.home.installed("prog").get("prog"), Some(&0o755), "no bit beyond");
    link.ends_well(&[1]);
}
