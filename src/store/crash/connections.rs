//! The same for the connection: never a certificate with another key, never neither, no trial that was not counted, and
//! no request whose key is gone.

use super::*;
use crate::agent::connection::memory::{Attempt, Generation, Memory};
use crate::agent::connection::overlay::{Candidate, Material, Overlay, Staged, Tls};
use crate::agent::rollout::{Failed, Outcome};
use crate::secret::Secret;
use crate::settings::{KeyKind, TlsVersion};
use crate::store::connections::{Files, Found, Pending};

/// Why a flow stops: the power is off, or the disk is full.
type Done<T = ()> = Result<T, String>;

/// Something durable: what was last said to be kept, and what was being written when the power went.
#[derive(Debug)]
struct Kept<T> {
    sure: Option<T>,
    maybe: Option<T>,
}

impl<T: Clone + PartialEq> Kept<T> {
    fn keep(&mut self, value: &T, keep: impl FnOnce(&T) -> Done) -> Done {
        self.maybe = Some(value.clone());
        keep(value)?;
        self.sure = self.maybe.take();
        Ok(())
    }

    fn allows(&self, value: Option<&T>) -> bool {
        value == self.sure.as_ref() || value.is_some() && value == self.maybe.as_ref()
    }
}

/// A device that does what the core would ask for.
struct Edge {
    disk: Simulated,
    store: Store,
    memory: Kept<Memory>,
    pending: Kept<Pending>,
}

fn text(what: &str, number: u8) -> Bytes {
    Bytes::from(format!("{what} {number}"))
}

/// A certificate fits the key of its number.
fn judge(files: &Files<'_>) -> Done {
    let number = |bytes: &[u8]| bytes.rsplit(|byte| *byte == b' ').next().map(<[u8]>::to_vec);
    let key = files.key.as_ref().map(|key| number(key.expose()));
    if files.certificate.map(number) == key { Ok(()) } else { Err("another's key".to_owned()) }
}

fn request(number: u8) -> Pending {
    Pending {
        common_name: "device".to_owned(),
        kind: KeyKind::P256,
        key_pem: Secret::new(text("key", number).to_vec()),
        csr_pem: text("request", number).to_vec(),
    }
}

impl Edge {
    fn new(disk: Simulated) -> Self {
        let store = store(&disk, 1);
        let _ = store.lay_out();
        Self {
            store,
            disk,
            memory: Kept { sure: None, maybe: None },
            pending: Kept { sure: None, maybe: None },
        }
    }

    /// After a start.
    fn found(&self) -> Found {
        self.store.connections()
    }

    fn now(&self) -> Memory {
        self.memory.sure.clone().unwrap_or_default()
    }

    fn remember(&mut self, memory: &Memory) -> Done {
        self.memory.keep(memory, |memory| self.store.remember_connection(memory))
    }

    fn ask(&mut self, number: u8) -> Done {
        self.pending.keep(&request(number), |pending| self.store.keep_pending(pending))
    }

    /// The certificate of this number, with its key or for that of the request; roots come with the first.
    fn stage(&self, number: u8, with_key: bool) -> Done<Generation> {
        let tls = Tls {
            trust: true,
            include_system_ca_certs_pool: false,
            insecure_skip_verify: false,
            min_version: TlsVersion::V12,
            max_version: TlsVersion::V13,
            cipher_suites: Vec::new(),
        };
        let overlay = Overlay { certificate: true, tls: Some(tls), ..Overlay::default() };
        let base = self.now().committed;
        let material = Material {
            certificate: Some(text("certificate", number)),
            private_key: with_key.then(|| Secret::new(text("key", number))),
            trust: base.is_none().then(|| text("roots", 0)),
            ..Material::default()
        };
        let candidate = Candidate { overlay, material, base };
        match self.store.stage_connection(&candidate, &[], &judge) {
            Staged::Ready(generation) => Ok(generation),
            other => Err(format!("{other:?}")),
        }
    }

    fn arm(&mut self, generation: Generation, number: u32) -> Done {
        let trial =
            Attempt { generation, hash: Bytes::from_static(b"hash"), number, since: 1 << 33 };
        self.remember(&Memory { trial: Some(trial), ..self.now() })
    }

    fn commit(&mut self) -> Done {
        let now = self.now();
        let trial = now.trial.unwrap();
        self.remember(&Memory {
            committed: Some(trial.generation),
            trial: None,
            received: Some(trial.hash),
            outcome: Outcome::Applied,
            ..now
        })
    }

    fn fail(&mut self) -> Done {
        let mut now = self.now();
        let trial = now.trial.take().unwrap();
        let reason = "refused".to_owned();
        now.failed.push_front(Failed {
            digest: trial.generation.digest,
            reason: reason.clone(),
            hash: trial.hash.clone(),
        });
        self.remember(&Memory {
            received: Some(trial.hash),
            outcome: Outcome::Failed(reason),
            ..now
        })
    }

    fn rotate(&mut self, number: u8, with_key: bool) -> Done {
        let generation = self.stage(number, with_key)?;
        self.arm(generation, 1)?;
        self.commit()
    }
}

/// A change, and what is in force when it is over.
struct Flow {
    name: &'static str,
    before: fn(&mut Edge) -> Done,
    change: fn(&mut Edge) -> Done,
    ends_with: Option<u8>,
}

const FLOWS: &[Flow] = &[
    Flow {
        name: "the first certificate",
        before: |_| Ok(()),
        change: |edge| edge.rotate(1, true),
        ends_with: Some(1),
    },
    Flow {
        name: "a rotation over a rotation",
        before: |edge| edge.rotate(1, true),
        change: |edge| edge.rotate(2, true).and_then(|()| edge.rotate(3, true)),
        ends_with: Some(3),
    },
    Flow {
        name: "an offer in a trial",
        before: |edge| edge.rotate(1, true),
        change: |edge| {
            let generation = edge.stage(2, true)?;
            edge.arm(generation, 1)?;
            let generation = edge.stage(3, true)?;
            edge.remember(&Memory { trial: None, ..edge.now() })?;
            edge.arm(generation, 1)?;
            edge.commit()
        },
        ends_with: Some(3),
    },
    Flow {
        name: "three trials, and a failure",
        before: |edge| edge.rotate(1, true),
        change: |edge| {
            let generation = edge.stage(2, true)?;
            for number in 1..=3 {
                edge.arm(generation, number)?;
            }
            edge.fail()
        },
        ends_with: Some(1),
    },
    Flow {
        name: "enrolment",
        before: |_| Ok(()),
        change: |edge| {
            edge.ask(1)?;
            edge.rotate(1, false)
        },
        ends_with: Some(1),
    },
    Flow {
        name: "a certificate for the request fails, the next one does not",
        before: |edge| {
            edge.rotate(1, true)?;
            edge.ask(2)
        },
        change: |edge| {
            let generation = edge.stage(2, false)?;
            edge.arm(generation, 1)?;
            edge.fail()?;
            edge.rotate(2, false)
        },
        ends_with: Some(2),
    },
    Flow {
        name: "another request, and its certificate",
        before: |edge| {
            edge.rotate(1, true)?;
            edge.ask(2)
        },
        change: |edge| {
            edge.ask(3)?;
            edge.rotate(3, false)
        },
        ends_with: Some(3),
    },
];

/// The number on all files of a generation.
fn number_of(store: &Store, generation: Generation) -> Done<u8> {
    let directory = store.connection_dir(generation);
    let directory = directory.strip_prefix("/state").unwrap();
    let read = |name: &str, what: &str| {
        let bytes = store.disk.read(&directory.join(name), 64);
        let text = String::from_utf8(bytes.map_err(|error| format!("{name}: {error}"))?).unwrap();
        let number = text.strip_prefix(what).and_then(|number| number.trim().parse::<u8>().ok());
        number.ok_or_else(|| format!("{name} holds {text:?}"))
    };
    let (certificate, key) = (read("cert.pem", "certificate")?, read("key.pem", "key")?);
    if (certificate, read("ca.pem", "roots")?) != (key, 0) {
        return Err(format!("certificate {certificate} with key {key}"));
    }
    Ok(key)
}

/// What was kept is found, whole.
fn holds(edge: &Edge, image: &Image) -> Done<Simulated> {
    let disk = Simulated::with(image.clone(), Manners::default());
    let after = Edge::new(disk.clone());
    let found = after.found();
    if !found.problems.is_empty() {
        return Err(found.problems.join("; "));
    }
    let memory = &found.memory;
    // An empty record is as good as none.
    let is_known = *memory == edge.now() || edge.memory.maybe.as_ref() == Some(memory);
    if !is_known {
        return Err(format!("{memory:?} where {:?}", edge.memory));
    }
    if found.committed.is_some() != memory.committed.is_some()
        || found.candidate.is_some() != memory.trial.is_some()
    {
        return Err("a generation on record was not read".to_owned());
    }
    let trial = memory.trial.as_ref().map(|trial| trial.generation);
    let committed = memory.committed.map(|it| number_of(&after.store, it)).transpose()?;
    trial.map(|it| number_of(&after.store, it)).transpose()?;
    let pending = after.store.pending()?;
    let is_used = |pending: &Pending| committed.is_some_and(|it| *pending == request(it));
    let used = edge.pending.sure.as_ref().is_some_and(is_used);
    let is_known = edge.pending.allows(pending.as_ref()) || pending.is_none() && used;
    if !is_known {
        return Err(format!("{pending:?} is out, where {:?}", edge.pending));
    }
    // The start has tidied up.
    let mut wanted: Vec<u64> =
        memory.committed.into_iter().chain(trial).map(|it| it.number).collect();
    wanted.sort_unstable();
    let names = after.store.disk.names(Path::new("connection")).unwrap_or_default();
    let mut left: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
    left.sort_unstable();
    if left != wanted || is_used_and_there(pending.as_ref(), committed) {
        return Err(format!("{names:?} are left, {wanted:?} are wanted"));
    }
    Ok(disk)
}

fn is_used_and_there(pending: Option<&Pending>, committed: Option<u8>) -> bool {
    committed.is_some_and(|number| pending == Some(&request(number)))
}

/// One state after a crash: it holds, also when the start is cut off, and the change can be made from there.
fn survives(edge: &Edge, image: &Image, flow: &Flow) -> Done<u64> {
    let mut states = 1;
    let recovered = holds(edge, image)?;
    for cut in 0..recovered.steps() {
        let manners = Manners { steps: Some(cut), ..Manners::default() };
        let disk = Simulated::with(image.clone(), manners);
        let _ = Edge::new(disk.clone()).found();
        for again in disk.image().some_after_a_power_cut(MOST_A_START) {
            holds(edge, &again)?;
            states += 1;
        }
    }
    let mut after = Edge::new(recovered);
    let memory = after.found().memory;
    after.memory.sure = Some(Memory { trial: None, ..memory });
    after.pending.sure = after.store.pending()?;
    (flow.change)(&mut after).map_err(|error| format!("made again: {error}"))?;
    ends(&after, flow)?;
    Ok(states)
}

fn ends(edge: &Edge, flow: &Flow) -> Done {
    let found = edge.found();
    let committed = found.memory.committed.map(|it| number_of(&edge.store, it)).transpose()?;
    if committed == flow.ends_with && found.memory.trial.is_none() && found.problems.is_empty() {
        Ok(())
    } else {
        Err(format!("it ends with {committed:?}: {found:?}"))
    }
}

/// Images after a cut that are tried, of the thousands of subsets of what was removed and never flushed.
const MOST_A_STEP: usize = 20;
const MOST_A_START: usize = 2;

/// What stands on the disk before a flow, and what was promised by then.
fn base(flow: &Flow) -> (Image, Edge) {
    let mut edge = Edge::new(Simulated::empty());
    (flow.before)(&mut edge).unwrap();
    let names = edge.store.disk.names(Path::new("connection")).unwrap_or_default();
    for directory in ["", "workloads", WORKLOAD, GENERATIONS] {
        edge.disk.sync(Path::new(directory)).unwrap();
    }
    if !names.is_empty() {
        edge.disk.sync(Path::new("connection")).unwrap();
    }
    (edge.disk.image(), edge)
}

fn crash_everywhere(flow: &Flow, lazy: bool) -> Done<u64> {
    let (image, promised) = base(flow);
    let run = |steps| {
        let disk = Simulated::with(image.clone(), Manners { steps, lazy, full_from: None });
        let mut edge = Edge::new(disk);
        edge.memory.sure.clone_from(&promised.memory.sure);
        edge.pending.sure.clone_from(&promised.pending.sure);
        let done = (flow.change)(&mut edge);
        (edge, done)
    };
    let (whole, done) = run(None);
    done.unwrap();
    ends(&whole, flow)?;
    let total = whole.disk.steps();
    let mut states = 0;
    for steps in 0..=total {
        let (edge, _) = run(Some(steps));
        for image in edge.disk.image().some_after_a_power_cut(MOST_A_STEP) {
            states += survives(&edge, &image, flow)
                .map_err(|error| format!("{}, cut after step {steps}: {error}", flow.name))?;
        }
    }
    eprintln!("{}: {total} steps, {states} states after a crash", flow.name);
    Ok(states)
}

/// Promise 1 for credentials, and the way in of promise 5.
#[test]
fn no_crash_leaves_a_certificate_with_another_key() {
    for flow in FLOWS {
        if let Err(error) = crash_everywhere(flow, false) {
            panic!("{error}");
        }
    }
}

/// The test itself: it must catch a store that points at what it has not flushed.
#[test]
fn credentials_that_are_not_flushed_are_caught() {
    for flow in FLOWS {
        assert!(crash_everywhere(flow, true).is_err(), "{}: nothing was noticed", flow.name);
    }
}

/// N4: the disk is full from each step on. What is in force stays, and with room again the change is made.
#[test]
fn a_full_disk_never_loses_credentials() {
    for flow in FLOWS {
        let (image, promised) = base(flow);
        for from in 0..60 {
            let manners = Manners { full_from: Some(from), ..Manners::default() };
            let mut edge = Edge::new(Simulated::with(image.clone(), manners));
            edge.memory.sure.clone_from(&promised.memory.sure);
            edge.pending.sure.clone_from(&promised.pending.sure);
            let _ = (flow.change)(&mut edge);
            if let Err(error) = survives(&edge, &edge.disk.image(), flow) {
                panic!("{}, full from step {from}: {error}", flow.name);
            }
        }
    }
}
