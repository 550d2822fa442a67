//! The bounds, each at its edge.

#![expect(clippy::unwrap_used, reason = "tests")]

use chiton_proto::{AgentRemoteConfig, DownloadableFile};

use super::*;
use crate::agent::rollout::{
    Floors, MAX_FLOORS, Memory, OUTCOMES_AN_HOUR, Offer, Order, Rules, Staged, Verdict,
};
use crate::clock::Wall;
use crate::settings::{self, Settings};
use crate::signature::Keyring;

fn settings() -> Settings {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("chiton.yaml");
    let text = "opamp:\n  server: { endpoint: ws://localhost }\n  packages: { require_signature: false }\n";
    std::fs::write(&file, text).unwrap();
    settings::load(&file, &settings::Process).unwrap().settings
}

fn packages(running: Running) -> Packages {
    let keyring = Keyring::new(Vec::new(), 1, &[]);
    let policy = Policy::new(keyring, settings().packages, policy::Device::default());
    Packages::new(policy, running)
}

fn rollout(memory: Memory) -> Rollout {
    Rollout::new(Rules::new(&settings().remote_config, false), memory, at(0))
}

fn at(seconds: u64) -> Now {
    let mono = Mono(Duration::from_secs(seconds));
    Now { mono, wall: Wall(Duration::from_secs(1 << 31)) }
}

/// An offer with this hash of one package that is not here.
fn offer(hash: &str) -> PackagesAvailable {
    let file = DownloadableFile {
        download_url: "https://a/b".to_owned(),
        content_hash: vec![7; 32].into(),
        ..DownloadableFile::default()
    };
    let package = PackageAvailable { file: Some(file), ..PackageAvailable::default() };
    PackagesAvailable {
        packages: [("prog".to_owned(), package)].into(),
        all_packages_hash: hash.as_bytes().to_vec().into(),
    }
}

#[test]
fn so_many_offers_an_hour_are_begun_with_and_no_more() {
    let (mut packages, rollout) = (packages(Running::default()), rollout(Memory::default()));
    let mut orders = Vec::new();
    for count in 0..OFFERS_AN_HOUR {
        let taken = packages.offered(&offer(&count.to_string()), &[], &rollout, at(1), &mut orders);
        assert_eq!(taken, Taken::Working, "{count}");
    }
    let taken = packages.offered(&offer("more"), &[], &rollout, at(3600), &mut orders);
    let Taken::Concluded(outcome) = taken else { unreachable_taken(&taken) };
    assert!(outcome.transient && outcome.error.contains("too often"), "{outcome:?}");
    assert_eq!(orders.len(), OFFERS_AN_HOUR);
    let taken = packages.offered(&offer("more"), &[], &rollout, at(3601), &mut orders);
    assert_eq!(taken, Taken::Working);
}

#[expect(clippy::panic, reason = "tests")]
fn unreachable_taken(taken: &Taken) -> ! {
    panic!("{taken:?}")
}

#[test]
fn an_offer_that_the_network_failed_is_tried_again_after_a_pause_that_doubles() {
    let mut packages = packages(Running::default());
    let mut memory = Memory::default();
    memory.packages.received = Some(Bytes::from_static(b"all"));
    memory.packages.transient = true;
    let rollout = rollout(memory);
    let mut orders = Vec::new();
    let mut now = 0;
    for pause in [60, 120, 240, 480] {
        let taken = packages.offered(&offer("all"), &[], &rollout, at(now), &mut orders);
        assert_eq!(taken, Taken::Working, "at {now}");
        let round = orders.last().unwrap().round;
        let error = Unobtained { text: "cut".to_owned(), transient: true };
        packages.obtained(round, Err(error), at(now), &mut orders);
        let early =
            packages.offered(&offer("all"), &[], &rollout, at(now + pause - 1), &mut orders);
        assert_eq!(early, Taken::Ignored, "before {pause} s were over");
        now += pause;
    }
    packages.transients = u32::MAX;
    assert_eq!(packages.transient_pause(), MAX_TRANSIENT_PAUSE);
}

#[test]
fn a_set_without_what_the_command_names_is_refused_unless_the_device_has_its_own() {
    let member = Member { name: "collector".to_owned(), ..Member::default() };
    let rollout = rollout(Memory::default());
    let needed = ["collector".to_owned()];
    for local in [false, true] {
        let has = if local { needed.to_vec() } else { Vec::new() };
        let running = Running { members: vec![member.clone()], has_config: true, local: has };
        let mut packages = packages(running);
        let taken = packages.offered(&offer("all"), &needed, &rollout, at(1), &mut Vec::new());
        assert_eq!(taken == Taken::Working, local, "{taken:?}");
    }
}

#[test]
fn a_counter_whose_floor_could_not_be_kept_is_refused() {
    let member = Member { name: "new".to_owned(), counter: 1, ..Member::default() };
    let keyring = Keyring::new(Vec::new(), 1, &[]);
    let policy = Policy::new(keyring, settings().packages, policy::Device::default());
    let mut floors = Floors::default();
    floors.known.extend((1..MAX_FLOORS).map(|number| (number.to_string(), 1)));
    assert_eq!(policy.floor(&member, &Known { installed: &[], floors: &floors, now: 0 }), Ok(()));
    floors.known.insert("one more".to_owned(), 1);
    let full = policy.floor(&member, &Known { installed: &[], floors: &floors, now: 0 });
    assert!(full.is_err_and(|reason| reason.contains("256 packages")));
    floors.known.remove("one more");
    floors.known.insert("new".to_owned(), 1);
    assert_eq!(policy.floor(&member, &Known { installed: &[], floors: &floors, now: 0 }), Ok(()));
}

#[test]
fn so_many_outcomes_an_hour_are_written_down_and_the_newest_waits() {
    let mut rollout = rollout(Memory::default());
    let mut orders = Vec::new();
    let configuration = |count: usize| {
        let config_hash = Bytes::from(count.to_string());
        let offer = AgentRemoteConfig { config: None, config_hash };
        Offer::new(offer, None, Verdict::Good)
    };
    for count in 0..OUTCOMES_AN_HOUR {
        rollout.offered(configuration(count), at(1), &mut orders);
        assert!(matches!(orders.pop(), Some(Order::Stage { .. })), "{count}");
        rollout.staged(Staged::Refused("no".to_owned()), at(1), &mut orders);
        assert!(matches!(orders.pop(), Some(Order::Remember(_))), "{count}");
        rollout.remembered(Ok(()), at(1), &mut orders);
        orders.clear();
    }
    rollout.offered(configuration(OUTCOMES_AN_HOUR), at(2), &mut orders);
    assert!(orders.is_empty(), "{orders:?}");
    assert_eq!(rollout.deadline(), Some(at(3601).mono));
    rollout.tick(at(3601), &mut orders);
    assert!(matches!(orders.pop(), Some(Order::Stage { .. })));
}

#[test]
fn without_an_interval_nothing_is_paced() {
    let mut settings = settings().remote_config;
    settings.min_interval = core::time::Duration::ZERO;
    let mut rollout = rollout(Memory::default());
    rollout.govern(Rules::new(&settings, false));
    let mut orders = Vec::new();
    for count in 0..=OUTCOMES_AN_HOUR {
        let config_hash = Bytes::from(count.to_string());
        let offer = AgentRemoteConfig { config: None, config_hash };
        rollout.offered(Offer::new(offer, None, Verdict::Good), at(1), &mut orders);
        assert!(matches!(orders.pop(), Some(Order::Stage { write: true, .. })), "{count}");
        rollout.staged(Staged::Refused("no".to_owned()), at(1), &mut orders);
        rollout.remembered(Ok(()), at(1), &mut orders);
        orders.clear();
    }
}
