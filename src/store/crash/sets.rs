//! The same for sets of packages: with their configuration they are one, and counters' floors never fall.

use std::io::Write as _;

use super::*;
use crate::agent::packages::set::{Member, Plan};

/// The members of a release, version by version.
const NAMES: [&str; 2] = ["collector", "rules"];

fn member(name: &str, version: u8) -> Member {
    Member {
        name: name.to_owned(),
        version: version.to_string(),
        hash: Bytes::from(vec![version]),
        sha256: [version; 32],
        counter: version.into(),
        issued_at: 1_000 + u64::from(version),
        ..Member::default()
    }
}

fn plan(version: u8) -> Plan {
    Plan {
        hash: Bytes::from(vec![b'a', version]),
        members: NAMES.map(|name| member(name, version)).into(),
        changed: NAMES.map(str::to_owned).into(),
    }
}

/// What became of obtaining it: the power may be off, the disk full.
fn obtain(store: &Store, member: &Member) -> io::Result<()> {
    if store.has_tree(member) {
        return Ok(());
    }
    let mut tree = store.new_tree()?;
    tree.directory(Path::new("bin"))?;
    let mut file = tree.file(&Path::new("bin").join(&member.name), true)?;
    file.write_all(&[member.counter.try_into().unwrap()])?;
    tree.finish(file)?;
    tree.seal(&VerifiedPackage::of(member))
}

/// A release is offered: packages, and the configuration that goes with them.
fn release(device: &mut Device, version: u8, body: &str) {
    device.store.forget_obtained();
    let object = AgentConfigObject {
        body: Bytes::copy_from_slice(body.as_bytes()),
        ..AgentConfigObject::default()
    };
    let offer = AgentRemoteConfig {
        config: Some(AgentConfigMap { config_map: [(String::new(), object)].into() }),
        config_hash: Bytes::copy_from_slice(body.as_bytes()),
    };
    device.rollout.held(Offer::new(offer, None, Verdict::Good));
    device.rollout.forsake_packages();
    let plan = plan(version);
    for member in &plan.members {
        if obtain(&device.store, member).is_err() {
            return;
        }
    }
    device.rollout.packages_ready(plan, device.now, &mut device.orders);
    device.settle();
}

/// The versions that the workload would find, and its configuration.
fn found(store: &Store) -> Result<Option<(u8, String)>, String> {
    let Some(number) = store.running() else {
        return if store.running_set() == 0 {
            Ok(None)
        } else {
            Err("packages without a configuration".to_owned())
        };
    };
    let disk = store.packages.as_ref();
    let set = disk.target(Path::new("current")).map_err(|error| format!("current: {error}"))?;
    let versions = NAMES.map(|name| {
        let tree = disk.target(&set.join(name)).map_err(|error| format!("{name}: {error}"))?;
        let tree = Path::new("trees").join(tree.file_name().unwrap());
        let bytes = disk.read(&tree.join("bin").join(name), 10);
        bytes.map_err(|error| format!("{name} of set {}: {error}", set.display()))
    });
    let [one, two] = versions;
    let (one, two) = (one?, two?);
    if one != two {
        return Err(format!("a mix: {one:?} and {two:?}"));
    }
    let map = store.effective()?;
    let body = map.config_map.get("").ok_or("no configuration")?.body.to_vec();
    if store.describe(number)?.set != store.running_set() {
        return Err("the set is not that of the generation".to_owned());
    }
    Ok(Some((*one.first().ok_or("an empty program")?, String::from_utf8(body).unwrap())))
}

/// Images after a cut at one step that are tried.
const MOST_A_STEP: usize = 120;

/// What may be found after a crash.
struct Change {
    name: &'static str,
    change: fn(&mut Device),
    either: &'static [(u8, &'static str)],
    ends_with: (u8, &'static str),
}

const CHANGES: &[Change] = &[
    Change {
        name: "a release is installed",
        change: |device| release(device, 2, GOOD[1]),
        either: &[(1, GOOD[0]), (2, GOOD[1])],
        ends_with: (2, GOOD[1]),
    },
    Change {
        name: "a release fails",
        change: |device| release(device, 2, BAD),
        either: &[(1, GOOD[0])],
        ends_with: (1, GOOD[0]),
    },
];

fn base() -> Image {
    let mut device = Device::start(Simulated::empty(), 1);
    release(&mut device, 1, GOOD[0]);
    assert_eq!(found(&device.store), Ok(Some((1, GOOD[0].to_owned()))));
    let all =
        ["", "workloads", WORKLOAD, GENERATIONS, "packages", "packages/sets", "packages/trees"];
    for directory in all {
        device.disk.sync(Path::new(directory)).unwrap();
    }
    device.disk.image()
}

/// Recovery finds the one or the other, and no floor below what is committed.
fn recovers(image: &Image, change: &Change) -> Result<(), String> {
    let disk = Simulated::with(image.clone(), Manners::default());
    let store = store(&disk, 1);
    store.lay_out()?;
    let recovered = store.recover();
    if !recovered.problems.is_empty() {
        return Err(recovered.problems.join("; "));
    }
    let Some((version, body)) = found(&store)? else { return Err("nothing runs".to_owned()) };
    if !change.either.contains(&(version, body.as_str())) {
        return Err(format!("{version} with {body:?} runs"));
    }
    let running: Vec<String> =
        recovered.running.members.iter().map(|member| member.version.clone()).collect();
    if running != [version.to_string(), version.to_string()] {
        return Err(format!("{version} runs, {running:?} would be reported"));
    }
    let floors = &recovered.memory.packages.floors;
    for name in NAMES {
        let floor = floors.known.get(name).copied().unwrap_or(0);
        if floors.lost || floor != u64::from(version) {
            return Err(format!("{version} runs, and the floor of {name} is {floor}"));
        }
    }
    Ok(())
}

fn survives(image: &Image, change: &Change) -> Result<(), String> {
    recovers(image, change)?;
    let mut device = Device::start(Simulated::with(image.clone(), Manners::default()), 1);
    (change.change)(&mut device);
    match found(&device.store)? {
        Some((version, body)) if (version, body.as_str()) == change.ends_with => Ok(()),
        other => Err(format!("offered again, and {other:?} runs")),
    }
}

fn crash_everywhere(change: &Change, lazy: bool) -> Result<u64, String> {
    let base = base();
    let run = |steps| {
        let disk = Simulated::with(base.clone(), Manners { steps, lazy, full_from: None });
        let mut device = Device::start(disk, 1);
        (change.change)(&mut device);
        device
    };
    let whole = run(None);
    assert!(whole.orders.is_empty() && whole.rollout.is_idle(), "{}: it ends", change.name);
    let total = whole.disk.steps();
    let mut states = 0;
    for steps in 0..=total {
        let images = run(Some(steps)).disk.image().after_a_power_cut();
        // What is removed at the end is not flushed, file by file: of the thousands of subsets some do.
        let stride = images.len().div_ceil(MOST_A_STEP);
        for image in images.into_iter().step_by(stride) {
            survives(&image, change)
                .map_err(|error| format!("{}, cut after step {steps}: {error}", change.name))?;
            states += 1;
        }
    }
    eprintln!("{}: {total} steps, {states} states after a crash", change.name);
    Ok(states)
}

/// Promise 1 for sets of packages and the configuration offered with them; and the floor never falls.
#[test]
fn no_crash_leaves_a_mix_of_packages() {
    for change in CHANGES {
        if let Err(error) = crash_everywhere(change, false) {
            panic!("{error}");
        }
    }
}

/// The test itself: it must catch a store that points at what it has not flushed.
#[test]
fn packages_that_are_not_flushed_are_caught() {
    let change = CHANGES.first().unwrap();
    assert!(crash_everywhere(change, true).is_err(), "nothing was noticed");
}

/// An unpacker outlives the offer that it works for: nobody takes its tree away, and nobody gets its number.
#[test]
fn a_tree_in_work_is_nobodys_to_take() {
    let device = Device::start(Simulated::empty(), 1);
    let store = &device.store;
    let mut tree = store.new_tree().unwrap();
    store.forget_obtained();
    store.prune_sets(&[]);
    tree.directory(Path::new("bin")).unwrap();
    let file = tree.file(Path::new("bin/collector"), true).unwrap();
    tree.finish(file).unwrap();
    tree.seal(&VerifiedPackage::of(&member("collector", 1))).unwrap();
    assert!(store.has_tree(&member("collector", 1)));
    // Sealed for an offer that is forgotten: a leftover now, but its number is used.
    store.forget_obtained();
    store.prune_sets(&[]);
    assert!(!store.has_tree(&member("collector", 1)));
    drop(store.new_tree().unwrap());
    let trees = Path::new("trees");
    assert_eq!(store.packages.names(trees).unwrap(), ["2"]);
}

/// Nothing was committed yet, and the power went between the two steps back: the set that failed does not stay.
#[test]
fn with_nothing_committed_no_set_runs_after_recovery() {
    let mut device = Device::start(Simulated::empty(), 1);
    release(&mut device, 1, GOOD[0]);
    let image = device.disk.image();
    let disk = Simulated::with(image, Manners::default());
    for path in [CONFIG, MEMORY] {
        disk.remove(Path::new(path)).unwrap();
    }
    let store = store(&disk, 1);
    assert_ne!(store.running_set(), 0);
    let found = store.recover();
    assert!(found.went_back, "{found:?}");
    assert_eq!(store.running_set(), 0);
}

/// What a candidate keeps is what is committed, also while a configuration of the device's own runs.
#[test]
fn a_candidate_keeps_what_is_committed_and_not_what_stands_in_for_it() {
    let mut device = Device::start(Simulated::empty(), 5);
    release(&mut device, 1, GOOD[0]);
    let committed = device.rollout.memory().committed;
    let own = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(own.path(), "v: own\n").unwrap();
    device.store.substitute(own.path()).unwrap();
    assert_ne!(device.store.running(), committed.map(|generation| generation.number));
    for member in plan(2).members {
        obtain(&device.store, &member).unwrap();
    }
    let candidate = Candidate { config: Source::Keep, packages: Some(plan(2)), base: committed };
    let Staged::New(generation) = device.store.stage(&candidate, &[], true) else {
        panic!("it is new")
    };
    device.store.activate(Some(generation)).unwrap();
    assert_eq!(found(&device.store), Ok(Some((2, GOOD[0].to_owned()))));
    assert!(generation.remote);
}
