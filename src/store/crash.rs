//! Every crash point of every flow: the power goes at each step that changes the disk, what was not flushed is lost
//! in every legal way, and the shipping recovery must find the old or the new: never a mix, never neither.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    clippy::panic,
    reason = "tests"
)]

use core::time::Duration;

use chiton_proto::{AgentRemoteConfig, RemoteConfigStatuses};

use super::simulated::{Image, Manners, Simulated};
use super::*;
use crate::agent::rollout::{Offer, Order, Rollout, Rules, Verdict};
use crate::agent::uid::Uid;
use crate::clock::{Mono, Now, Wall};
use crate::settings::{Allow, Apply, CrashLoop, Layout, Rollback};

const GOOD: [&str; 4] = ["v: 1\n", "v: 2\n", "v: 3\n", "v: 4\n"];
/// The workload dies of it.
const BAD: &str = "v: bad\n";

fn rules(history: usize) -> RemoteConfig {
    RemoteConfig {
        main_file: String::new(),
        layout: Layout::Files,
        validate: Vec::new(),
        apply: Apply::Restart,
        rollback: Rollback {
            window: Duration::from_secs(60),
            interval: Duration::from_secs(1),
            successes: 2,
            attempts: 3,
            crash_loop: CrashLoop { crashes: 2, within: Duration::from_secs(600) },
        },
        min_interval: Duration::ZERO,
        allow: Allow {
            files: vec!["*".to_owned()],
            max_files: 32,
            max_size: 1 << 20,
            max_merge: 1 << 17,
        },
        history,
        require_signature: false,
    }
}

mod connections;
mod sets;

/// The shipping store on a simulated disk.
pub(super) fn store(disk: &Simulated, history: usize) -> Store {
    Store {
        root: PathBuf::from("/state"),
        disk: Arc::new(disk.clone()),
        packages_root: PathBuf::from("/state/packages"),
        packages: Arc::new(disk.below("packages")),
        trees: Arc::default(),
        staged: Arc::default(),
        local: None,
        rules: rules(history),
        redact: Vec::new(),
        group: None,
    }
}

/// A device: the shipping life cycle on the shipping store, on a simulated disk.
struct Device {
    disk: Simulated,
    store: Store,
    rollout: Rollout,
    now: Now,
    orders: Vec<Order>,
}

impl Device {
    /// Powers up: recovery, and whatever it leads to.
    fn start(disk: Simulated, history: usize) -> Self {
        let store = store(&disk, history);
        let _ = store.lay_out();
        let found = store.recover();
        let now = Now { mono: Mono::default(), wall: Wall(Duration::from_secs(1 << 31)) };
        let rollout = Rollout::new(Rules::new(&store.rules, false), found.memory, now);
        let mut device = Self { disk, store, rollout, now, orders: Vec::new() };
        device.rollout.boot(&mut device.orders);
        device.settle();
        device.rollout.workload_is_up(device.now, &mut device.orders);
        device.settle();
        device
    }

    fn offer(&mut self, body: &str) {
        self.receive(body);
        self.settle();
    }

    fn receive(&mut self, body: &str) {
        let object = AgentConfigObject {
            body: Bytes::copy_from_slice(body.as_bytes()),
            ..AgentConfigObject::default()
        };
        let offer = AgentRemoteConfig {
            config: Some(AgentConfigMap { config_map: [(String::new(), object)].into() }),
            config_hash: Bytes::copy_from_slice(body.as_bytes()),
        };
        let offer = Offer::new(offer, None, Verdict::Good);
        self.rollout.offered(offer, self.now, &mut self.orders);
    }

    /// Carries out what is asked for until nothing is, or the power is off.
    fn settle(&mut self) {
        while self.step() {}
    }

    /// One order, or one tick.
    fn step(&mut self) -> bool {
        if self.disk.is_off() {
            return false;
        }
        if self.orders.is_empty() {
            let Some(at) = self.rollout.deadline() else { return false };
            self.now.mono = self.now.mono.max(at);
            self.rollout.tick(self.now, &mut self.orders);
            return true;
        }
        let order = self.orders.remove(0);
        let dies = self.body().as_deref() == Some(BAD);
        let (rollout, out, now) = (&mut self.rollout, &mut self.orders, self.now);
        match order {
            Order::Stage { candidate, known, write } => {
                let staged = self.store.stage(&candidate, &known, write);
                rollout.staged(staged, now, out);
            }
            Order::Validate(_) => {
                rollout.validated(Ok(()), now, out);
            }
            Order::Arm { memory, after_going_back } => {
                rollout.armed(self.store.arm(&memory, &after_going_back), now, out);
            }
            Order::Activate(generation) => {
                rollout.activated(self.store.activate(generation).map(|_| ()), out);
            }
            Order::Apply => {
                rollout.applied(Ok(()), now, out);
            }
            Order::Check if dies => {
                rollout.crashed("exited with status 1", now, out);
            }
            Order::Check => rollout.checked(&[], now, out),
            Order::Remember(memory) => {
                rollout.remembered(self.store.remember(&memory), now, out);
            }
            Order::Substitute(_) | Order::Say(_) => {}
        }
        true
    }

    /// What the workload would read.
    fn body(&self) -> Option<String> {
        let map = self.store.effective().ok()?;
        let object = map.config_map.get("")?;
        Some(String::from_utf8(object.body.to_vec()).unwrap())
    }
}

/// A change, and what may be found after a crash in it.
struct Flow {
    name: &'static str,
    history: usize,
    /// Committed before, in this order.
    before: &'static [&'static str],
    change: fn(&mut Device),
    /// What may run after a crash.
    either: &'static [Option<&'static str>],
    /// What runs in the end, when it is offered again.
    wanted: &'static str,
    ends_with: &'static str,
}

const A: Option<&str> = Some(GOOD[0]);
const B: Option<&str> = Some(GOOD[1]);
const C: Option<&str> = Some(GOOD[2]);
const D: Option<&str> = Some(GOOD[3]);

const FLOWS: &[Flow] = &[
    Flow {
        name: "the first configuration",
        history: 5,
        before: &[],
        change: |device| device.offer(GOOD[0]),
        either: &[None, A],
        wanted: GOOD[0],
        ends_with: GOOD[0],
    },
    Flow {
        name: "apply and commit",
        history: 5,
        before: &[GOOD[0]],
        change: |device| device.offer(GOOD[1]),
        either: &[A, B],
        wanted: GOOD[1],
        ends_with: GOOD[1],
    },
    Flow {
        name: "roll back",
        history: 5,
        before: &[GOOD[0]],
        change: |device| device.offer(BAD),
        either: &[A],
        wanted: BAD,
        ends_with: GOOD[0],
    },
    Flow {
        name: "supersede",
        history: 5,
        before: &[GOOD[0]],
        change: |device| {
            device.receive(GOOD[1]);
            while !device.rollout.is_trial() && device.step() {}
            device.offer(GOOD[2]);
        },
        // A crash before the newer one came leaves the one it would have replaced on trial: that may be committed.
        either: &[A, C],
        wanted: GOOD[2],
        ends_with: GOOD[2],
    },
    Flow {
        name: "late rollback",
        history: 5,
        before: &[GOOD[0], GOOD[1]],
        change: |device| {
            for _ in 0..2 {
                device.rollout.crashed("exited with status 1", device.now, &mut device.orders);
            }
            device.settle();
        },
        either: &[A, B],
        wanted: GOOD[2],
        ends_with: GOOD[2],
    },
    Flow {
        name: "prune",
        history: 2,
        before: &[GOOD[0], GOOD[1], GOOD[2]],
        change: |device| device.offer(GOOD[3]),
        either: &[C, D],
        wanted: GOOD[3],
        ends_with: GOOD[3],
    },
];

/// What stands on the disk before a flow.
fn base(flow: &Flow) -> Image {
    let mut device = Device::start(Simulated::empty(), flow.history);
    for body in flow.before {
        device.offer(body);
        assert_eq!(device.body().as_deref(), Some(*body));
    }
    for directory in ["", "workloads", WORKLOAD, GENERATIONS] {
        device.disk.sync(Path::new(directory)).unwrap();
    }
    device.disk.image()
}

/// Recovery alone: finds one of `either`, whole, and says nothing is wrong.
fn recovers(image: &Image, flow: &Flow) -> Result<Simulated, String> {
    let disk = Simulated::with(image.clone(), Manners::default());
    let device = Device {
        store: store(&disk, flow.history),
        rollout: Rollout::new(Rules::new(&rules(5), false), Memory::default(), Now::default()),
        now: Now::default(),
        orders: Vec::new(),
        disk: disk.clone(),
    };
    device.store.lay_out()?;
    let found = device.store.recover();
    if !found.problems.is_empty() {
        return Err(found.problems.join("; "));
    }
    let committed = found.memory.committed.map(|generation| generation.number);
    if device.store.running() != committed {
        return Err(format!("{:?} runs, {committed:?} is committed", device.store.running()));
    }
    let body = match committed {
        Some(number) => {
            let digest = device.store.describe(number)?.digest;
            if found.memory.committed.is_some_and(|generation| generation.digest.to_vec() != digest)
            {
                return Err("the record and the generation differ".to_owned());
            }
            Some(device.body().ok_or("what is committed cannot be read")?)
        }
        None => None,
    };
    if flow.either.contains(&body.as_deref()) {
        Ok(disk)
    } else {
        Err(format!("{body:?} runs, which is neither the old nor the new"))
    }
}

/// One state after a crash: recovery works, also when it is cut off itself, and in the end all is as wanted.
fn survives(image: &Image, flow: &Flow) -> Result<u64, String> {
    let mut states = 1;
    let recovered = recovers(image, flow)?;
    for cut in 0..recovered.steps() {
        let manners = Manners { steps: Some(cut), ..Manners::default() };
        let disk = Simulated::with(image.clone(), manners);
        drop(Device::start(disk.clone(), flow.history));
        for again in disk.image().after_a_power_cut() {
            recovers(&again, flow)?;
            states += 1;
        }
    }
    let mut device =
        Device::start(Simulated::with(image.clone(), Manners::default()), flow.history);
    device.offer(flow.wanted);
    match device.body() {
        Some(body) if body == flow.ends_with => Ok(states),
        other => Err(format!("offered {:?} again, and {other:?} runs", flow.wanted)),
    }
}

/// Crashes one flow everywhere. The number of states, or the first bad one.
fn crash_everywhere(flow: &Flow, lazy: bool) -> Result<u64, String> {
    let base = base(flow);
    let run = |steps| {
        let disk = Simulated::with(base.clone(), Manners { steps, lazy, full_from: None });
        let mut device = Device::start(disk, flow.history);
        (flow.change)(&mut device);
        device
    };
    let whole = run(None);
    assert!(whole.orders.is_empty() && whole.rollout.is_idle(), "{}: it ends", flow.name);
    let total = whole.disk.steps();
    let mut states = 0;
    for steps in 0..=total {
        for image in run(Some(steps)).disk.image().after_a_power_cut() {
            states += survives(&image, flow)
                .map_err(|error| format!("{}, cut after step {steps}: {error}", flow.name))?;
        }
    }
    eprintln!("{}: {total} steps, {states} states after a crash", flow.name);
    Ok(states)
}

/// Promise 1 for configurations.
#[test]
fn no_crash_leaves_a_mix_or_nothing() {
    for flow in FLOWS {
        if let Err(error) = crash_everywhere(flow, false) {
            panic!("{error}");
        }
    }
}

/// The test itself: it must catch a store that renames what it has not flushed.
#[test]
fn a_rename_before_the_flush_is_caught() {
    for flow in FLOWS.iter().take(2) {
        assert!(crash_everywhere(flow, true).is_err(), "{}: nothing was noticed", flow.name);
    }
}

#[test]
fn no_crash_loses_the_uid() {
    let uid = |byte| Kept {
        uid: Uid::from_slice(&[byte; 16]).unwrap(),
        configured: String::new(),
        hardware: [].into(),
        given: byte == 2,
    };
    let disk = Simulated::empty();
    let device = Device::start(disk.clone(), 5);
    device.store.keep_uid(&uid(1)).unwrap();
    disk.sync(Path::new("")).unwrap();
    let base = disk.image();
    let mut states = 0;
    for steps in 0.. {
        let disk =
            Simulated::with(base.clone(), Manners { steps: Some(steps), ..Manners::default() });
        let device = Device::start(disk.clone(), 5);
        let kept = device.store.keep_uid(&uid(2));
        for image in disk.image().after_a_power_cut() {
            let after = Device::start(Simulated::with(image, Manners::default()), 5);
            let found = after.store.uid().unwrap().unwrap();
            assert!(found == uid(1) || found == uid(2), "{found:?}");
            assert!(kept.is_err() || found == uid(2), "kept, and lost");
            states += 1;
        }
        if kept.is_ok() {
            break;
        }
    }
    eprintln!("uid change: {states} states after a crash");
}

/// N4: the disk is full from each step of a change on. What ran runs on, the failure is told, and when there is
/// room again the change is made.
#[test]
fn a_full_disk_never_loses_what_runs() {
    for (offered, from) in
        [GOOD[1], BAD].into_iter().flat_map(|body| (0..60).map(move |n| (body, n)))
    {
        let flow = FLOWS.get(1).unwrap();
        let manners = Manners { full_from: Some(from), ..Manners::default() };
        let disk = Simulated::with(base(flow), manners);
        let mut device = Device::start(disk.clone(), 5);
        device.receive(offered);
        // An hour of it: what the disk refuses is tried again and again, the last time to its end.
        let hour = Mono(Duration::from_secs(3600));
        while (device.now.mono < hour || !device.orders.is_empty()) && device.step() {}
        let body = device.body();
        let runs = [Some(GOOD[0]), Some(offered).filter(|body| *body != BAD)];
        assert!(runs.contains(&body.as_deref()), "full from step {from}: {body:?} runs");
        let status = device.rollout.status();
        if body.as_deref() == Some(GOOD[0]) {
            let failed = status.status() == RemoteConfigStatuses::Failed;
            assert!(failed, "full from step {from}: {status:?}");
        }
        // The same on the next start, though the disk is still full.
        let again = Device::start(Simulated::with(disk.image(), manners), 5);
        assert!(
            runs.contains(&again.body().as_deref()),
            "full from step {from}, at the next start"
        );
        // Room at last.
        let mut device = Device::start(Simulated::with(disk.image(), Manners::default()), 5);
        device.offer(GOOD[2]);
        assert_eq!(device.body().as_deref(), Some(GOOD[2]));
    }
}
