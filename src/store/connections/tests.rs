//! What is refused, what is broken, and who may look.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::agent::connection::memory::Attempt;
use crate::agent::connection::overlay::Tls;
use crate::settings::TlsVersion;
use crate::store::crash::store;
use crate::store::disk::Real;
use crate::store::simulated::Simulated;

/// A store on the real disk. Its root is only a name: it is on no volatile disk.
fn device() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let mut store = store(&Simulated::empty(), 1);
    store.disk = Arc::new(Real::new(dir.path().to_owned()));
    (dir, store)
}

fn pem(text: &str) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(text.as_bytes()))
}

fn offer(certificate: &str, key: Option<&str>, base: Option<Generation>) -> Candidate {
    let key = key.map(|key| Secret::new(Bytes::copy_from_slice(key.as_bytes())));
    Candidate {
        overlay: Overlay { certificate: true, ..Overlay::default() },
        material: Material {
            certificate: pem(certificate),
            private_key: key,
            ..Material::default()
        },
        base,
    }
}

fn fits(files: &Files<'_>) -> Result<(), String> {
    match &files.key {
        Some(key) if Some(*key.expose()) == files.certificate => Ok(()),
        _ => Err("it does not fit".to_owned()),
    }
}

fn ready(staged: Staged) -> Generation {
    match staged {
        Staged::Ready(generation) => generation,
        other => panic!("{other:?}"),
    }
}

fn refused(staged: Staged) -> String {
    match staged {
        Staged::Refused(why) => why,
        other => panic!("{other:?}"),
    }
}

fn commit(store: &Store, name: &str) -> Generation {
    let committed = ready(store.stage_connection(&offer(name, Some(name), None), &[], &fits));
    let memory = Memory {
        committed: Some(committed),
        received: Some(Bytes::from_static(b"hash")),
        outcome: Outcome::Applied,
        ..Memory::default()
    };
    store.remember_connection(&memory).unwrap();
    committed
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path().join(CONNECTION)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn nobody_else_reads_what_lies_there() {
    let (dir, store) = device();
    commit(&store, "a");
    let pending = Pending {
        common_name: "device".to_owned(),
        kind: KeyKind::Ed25519,
        key_pem: Secret::new(b"b".to_vec()),
        csr_pem: b"request".to_vec(),
    };
    store.keep_pending(&pending).unwrap();
    assert_eq!(store.pending().unwrap(), Some(pending));
    for (path, mode) in [
        ("", 0o700),
        ("record", 0o600),
        ("pending", 0o600),
        ("1", 0o700),
        ("1/overlay", 0o600),
        ("1/cert.pem", 0o600),
        ("1/key.pem", 0o600),
    ] {
        let metadata = fs::metadata(dir.path().join(CONNECTION).join(path)).unwrap();
        assert_eq!(metadata.mode() & 0o7777, mode, "{path}");
    }
    assert_eq!(fs::read(dir.path().join("connection/1/key.pem")).unwrap(), b"a");
}

#[test]
fn a_certificate_finds_its_key_or_is_refused() {
    let (dir, store) = device();
    let stage = |candidate: &Candidate| store.stage_connection(candidate, &[], &fits);
    let why = refused(stage(&offer("a", None, None)));
    assert!(why.contains("certificate.private_key is missing"), "{why}");
    assert_eq!(refused(stage(&offer("a", Some("b"), None))), "it does not fit");
    let mut alone = offer("a", Some("a"), None);
    alone.material.certificate = None;
    assert!(refused(stage(&alone)).contains("without certificate.cert"));
    assert!(!dir.path().join(CONNECTION).exists(), "nothing was written");
    // For the key in use; for that of the request; for neither.
    let committed = commit(&store, "a");
    let again = offer("a", None, Some(committed));
    assert_eq!(
        store.stage_connection(&again, &[committed.digest], &fits),
        Staged::Known(committed.digest)
    );
    store
        .keep_pending(&Pending {
            common_name: String::new(),
            kind: KeyKind::P256,
            key_pem: Secret::new(b"b".to_vec()),
            csr_pem: Vec::new(),
        })
        .unwrap();
    assert_eq!(ready(stage(&again)).digest, committed.digest);
    assert_eq!(refused(stage(&offer("c", None, Some(committed)))), "it does not fit");
    let renewed = ready(stage(&offer("b", None, Some(committed))));
    let memory = Memory { committed: Some(renewed), ..Memory::default() };
    store.remember_connection(&memory).unwrap();
    assert_eq!(store.pending().unwrap(), None, "its key is in use");
}

#[test]
fn what_is_not_new_comes_from_the_base() {
    let (dir, store) = device();
    let base = commit(&store, "a");
    let tls = Tls {
        trust: true,
        include_system_ca_certs_pool: false,
        insecure_skip_verify: false,
        min_version: TlsVersion::V12,
        max_version: TlsVersion::V13,
        cipher_suites: Vec::new(),
    };
    let mut candidate = Candidate {
        overlay: Overlay { certificate: true, tls: Some(tls), ..Overlay::default() },
        material: Material { trust: pem("roots"), ..Material::default() },
        base: Some(base),
    };
    let next = ready(store.stage_connection(&candidate, &[], &fits));
    let file = |name: &str| fs::read_to_string(store_dir(&dir, next).join(name)).unwrap();
    assert_eq!([file("cert.pem"), file("key.pem"), file("ca.pem")], ["a", "a", "roots"]);
    assert_eq!(store.overlay(next).unwrap(), candidate.overlay);
    candidate.base = None;
    assert!(matches!(store.stage_connection(&candidate, &[], &fits), Staged::Failed(_)));
    candidate.base = Some(base);
    let most = usize::try_from(MAX_PEM).unwrap();
    candidate.material.trust = Some(Bytes::from(vec![0; most.saturating_add(1)]));
    let why = refused(store.stage_connection(&candidate, &[], &fits));
    assert!(why.contains("tls.ca_pem_contents has 1048577 bytes; allowed are 1048576"), "{why}");
    candidate.material.trust = Some(Bytes::from(vec![0; most]));
    let next = ready(store.stage_connection(&candidate, &[], &fits));
    assert_eq!(store.overlay(next).unwrap(), candidate.overlay);
}

fn store_dir(dir: &TempDir, generation: Generation) -> PathBuf {
    dir.path().join(numbered(generation.number))
}

#[test]
fn candidates_that_nothing_came_of_do_not_pile_up() {
    let (dir, store) = device();
    let committed = commit(&store, "a");
    for name in ["b", "c", "d", "e", "f"] {
        let candidate = offer(name, Some(name), Some(committed));
        ready(store.stage_connection(&candidate, &[], &fits));
    }
    assert_eq!(names(&dir), ["1", "4", "5", "6", "record"]);
    let trial = Attempt {
        generation: ready(store.stage_connection(&offer("g", Some("g"), None), &[], &fits)),
        hash: Bytes::new(),
        number: 1,
        since: 0,
    };
    let memory = Memory { committed: Some(committed), trial: Some(trial), ..Memory::default() };
    store.remember_connection(&memory).unwrap();
    assert_eq!(names(&dir), ["1", "7", "record"]);
    let found = store.connections();
    assert!(found.problems.is_empty() && found.committed.is_some() && found.candidate.is_some());
    assert_eq!(found.memory, memory);
}

#[test]
fn what_is_broken_is_said_and_kept_aside() {
    for file in ["overlay", "cert.pem", "key.pem"] {
        for damage in [true, false] {
            let (dir, store) = device();
            let committed = commit(&store, "a");
            let path = store_dir(&dir, committed).join(file);
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            if damage {
                fs::write(&path, bytes).unwrap();
            } else {
                fs::remove_file(&path).unwrap();
            }
            let found = store.connections();
            let [problem] = found.problems.as_slice() else { panic!("{file}: {found:?}") };
            assert!(problem.contains("/state/connection/1"), "{problem}");
            assert!(problem.ends_with("the settings' own connection"), "{problem}");
            assert!(found.committed.is_none() && found.memory == Memory::default(), "{found:?}");
            assert_eq!(names(&dir), ["1.broken", "record"], "{file}");
            let again = store.connections();
            assert!(again.problems.len() == 1 && again.committed.is_none(), "{again:?}");
            assert_eq!(
                names(&dir),
                ["1.broken", "record"],
                "{file}: it is said until it is replaced"
            );
            // Offered again it is taken, under a number of its own, and what is aside stays.
            assert_eq!(commit(&store, "a").number, 2);
            assert_eq!(names(&dir), ["1.broken", "2", "record"], "{file}");
        }
    }
}

#[test]
fn a_record_that_is_broken_or_gone_is_said() {
    for damage in [true, false] {
        let (dir, store) = device();
        commit(&store, "a");
        let record = dir.path().join(MEMORY);
        if damage {
            fs::write(&record, "?").unwrap();
        } else {
            fs::remove_file(&record).unwrap();
        }
        let found = store.connections();
        assert_eq!(found.problems.len(), 1, "{found:?}");
        assert!(found.memory == Memory::default() && found.committed.is_none(), "{found:?}");
        assert!(names(&dir).contains(&"1.broken".to_owned()), "{:?}", names(&dir));
        assert!(store.connections().problems.is_empty(), "said once");
        assert_eq!(commit(&store, "b").number, 2);
        assert_eq!(store.connections().memory.committed.map(|it| it.number), Some(2));
    }
}

#[test]
fn a_candidate_that_is_broken_takes_only_its_trial_along() {
    let (dir, store) = device();
    let committed = commit(&store, "a");
    let generation =
        ready(store.stage_connection(&offer("b", Some("b"), Some(committed)), &[], &fits));
    let trial = Attempt { generation, hash: Bytes::new(), number: 1, since: 0 };
    let memory = Memory { committed: Some(committed), trial: Some(trial), ..Memory::default() };
    store.remember_connection(&memory).unwrap();
    fs::write(store_dir(&dir, generation).join("key.pem"), "c").unwrap();
    let found = store.connections();
    assert_eq!(found.problems.len(), 1, "{found:?}");
    assert!(found.candidate.is_none() && found.memory.trial.is_none());
    assert!(found.committed.is_some() && found.memory.committed == Some(committed));
}

#[test]
fn a_link_in_the_way_leads_nowhere() {
    let (dir, store) = device();
    let elsewhere = tempfile::tempdir().unwrap();
    symlink(elsewhere.path(), dir.path().join(CONNECTION)).unwrap();
    let staged = store.stage_connection(&offer("a", Some("a"), None), &[], &fits);
    assert!(matches!(staged, Staged::Failed(_)), "{staged:?}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

/// Where there is a tmpfs: what lies on it is lost with the power.
#[test]
fn no_certificate_is_taken_onto_a_volatile_disk() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let (_real, mut store) = device();
    assert_eq!(store.is_volatile(), None);
    store.root = dir.path().to_owned();
    store.disk = Arc::new(Real::new(dir.path().to_owned()));
    if store.is_volatile().is_none() {
        return;
    }
    let why = refused(store.stage_connection(&offer("a", Some("a"), None), &[], &|_| Ok(())));
    assert_eq!(why, "state_dir is on tmpfs: a certificate would be lost with the power");
    let mut headers = offer("a", None, None);
    headers.overlay = Overlay { headers: Some(Vec::new()), ..Overlay::default() };
    headers.material = Material::default();
    ready(store.stage_connection(&headers, &[], &|_| Ok(())));
}

#[test]
fn an_overlay_that_no_record_holds_is_refused() {
    let (dir, store) = device();
    let with = |length: usize| Candidate {
        overlay: Overlay {
            headers: Some(vec![("A".to_owned(), Secret::new("v".repeat(length)))]),
            ..Overlay::default()
        },
        material: Material::default(),
        base: None,
    };
    // Tags and lengths are nine bytes.
    let most = MAX_OVERLAY.saturating_sub(9);
    let why = refused(store.stage_connection(&with(most.saturating_add(1)), &[], &|_| Ok(())));
    assert!(why.contains("more than 262144 bytes"), "{why}");
    assert!(!dir.path().join(CONNECTION).exists(), "nothing was written");
    let candidate = with(most);
    let generation = ready(store.stage_connection(&candidate, &[], &|_| Ok(())));
    assert_eq!(store.overlay(generation).unwrap(), candidate.overlay);
}
