//! The connection's side of the state directory: what offers made of the settings' own connection.
//!
//! ```text
//! state_dir/connection/
//!   record       record: which generation is committed, on trial. It is the pointer: one rename commits
//!   7/overlay    record: one generation, what offers changed
//!   7/cert.pem 7/key.pem 7/ca.pem    its files, as far as it has them
//!   pending      record: the one request for a certificate that is out, with its key
//!   6.broken/ record.broken          what could not be read
//! ```
//!
//! A generation is never touched again once it lies there, and nothing points at it before it is flushed.

mod export;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use ring::digest::{Context, SHA256};

use super::disk::Access;
use super::record::{self, OverlayRecord, Record, Unread};
use super::{RECORD, Store};
use crate::agent::connection::memory::{Generation, Memory};
use crate::agent::connection::overlay::{
    CERTIFICATE, Candidate, KEY, Material, Overlay, Staged, TRUST,
};
use crate::agent::rollout::{Digest, Outcome};
use crate::secret::Secret;
use crate::settings::KeyKind;
pub use export::export;

/// Largest PEM file of a generation.
pub const MAX_PEM: u64 = 1 << 20;
/// Largest overlay: with its digest it is below [`record::MAX_RECORD`].
const MAX_OVERLAY: usize = 256 * 1024;
/// Generations that lie there at most: what is committed, what is on trial, and candidates that nothing came of.
const MAX_GENERATIONS: usize = 4;
/// Nobody else looks into it.
const DIRECTORY: Access = Access { mode: 0o700, group: None };
const CONNECTION: &str = "connection";
pub(super) const MEMORY: &str = "connection/record";
const MEMORY_BROKEN: &str = "connection/record.broken";
const PENDING: &str = "connection/pending";
const OVERLAY: &str = "overlay";
const INSTEAD: &str = "going on with the settings' own connection";
/// Ends the name of what could not be read.
const BROKEN: &str = ".broken";
/// The PEM files of a generation, in the order in which they are digested.
const FILES: [&str; 3] = [CERTIFICATE, KEY, TRUST];

/// A request for a certificate that is out, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What it asks for.
    pub common_name: String,
    /// The kind of its key.
    pub kind: KeyKind,
    /// The key, PEM.
    pub key_pem: Secret<Vec<u8>>,
    /// The request, PEM.
    pub csr_pem: Vec<u8>,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub struct Found {
    /// The record; what it names can be read.
    pub memory: Memory,
    /// What is committed.
    pub committed: Option<Overlay>,
    /// What is on trial.
    pub candidate: Option<Overlay>,
    /// The disk gave no answer, or one for a newer Chiton: what is there may be good, and nothing must take its place.
    pub unreadable: bool,
    /// What was wrong, each in one line.
    pub problems: Vec<String>,
}

/// The files of a candidate as they would lie there, PEM.
pub struct Files<'a> {
    /// Chain, leaf first.
    pub certificate: Option<&'a [u8]>,
    /// Its key.
    pub key: Option<Secret<&'a [u8]>>,
    /// Who must have issued the certificate: offered with it, and kept nowhere.
    pub issuer: Option<&'a [u8]>,
    /// Trust roots.
    pub trust: Option<&'a [u8]>,
}

/// The files of a generation, in the order of [`FILES`].
type Contents = [Option<Secret<Vec<u8>>>; 3];

impl Store {
    /// What the record says, with the generations that it names. What is broken is put aside, and the settings' own
    /// are in force again.
    #[must_use]
    pub fn connections(&self) -> Found {
        let mut found = Found::default();
        match self.load::<Memory>(Path::new(MEMORY)) {
            Ok(Some(memory)) => found.memory = memory,
            record => {
                let numbers = self.connection_numbers().unwrap_or_default();
                if let Err(error) = record {
                    found.problems.push(format!("{error}; {INSTEAD}"));
                    if error.is_newer() || self.is_unreadable(Path::new(MEMORY)) {
                        found.unreadable = true;
                        return found;
                    }
                    let _ = self.disk.rename(Path::new(MEMORY), Path::new(MEMORY_BROKEN));
                } else if !numbers.is_empty() {
                    let path = self.shown(Path::new(MEMORY));
                    found.problems.push(format!("{path}: it is missing; {INSTEAD}"));
                }
                self.put_aside(&numbers);
                return found;
            }
        }
        if let Some(generation) = found.memory.committed {
            match self.overlay(generation) {
                Ok(overlay) => found.committed = Some(overlay),
                Err(error) => {
                    found.problems.push(format!("{error}; {INSTEAD}"));
                    let directory = numbered(generation.number);
                    let names = FILES.into_iter().chain([OVERLAY]);
                    let unreadable = |name| self.is_unreadable(&directory.join(name));
                    if error.is_newer() || names.into_iter().any(unreadable) {
                        found.unreadable = true;
                        found.memory = Memory::default();
                        return found;
                    }
                    self.put_aside(&[generation.number]);
                    // Not in force any more: when it is offered again it is new.
                    found.memory.committed = None;
                    found.memory.received = None;
                    found.memory.outcome = Outcome::Unset;
                }
            }
        }
        if let Some(trial) = &found.memory.trial {
            match self.overlay(trial.generation) {
                Ok(overlay) => found.candidate = Some(overlay),
                Err(error) => {
                    found.problems.push(format!("{error}; it was on trial, which is given up"));
                    found.memory.trial = None;
                }
            }
        }
        if found.problems.is_empty() {
            self.prune_connections(&found.memory);
        }
        found
    }

    /// Whether the disk gives no answer: what is there may be good, and is left alone.
    fn is_unreadable(&self, path: &Path) -> bool {
        let read = self.disk.read(path, MAX_PEM);
        read.is_err_and(|error| {
            error.kind() != io::ErrorKind::NotFound && error.raw_os_error().is_some()
        })
    }

    /// Where the files of a generation lie.
    #[must_use]
    pub fn connection_dir(&self, generation: Generation) -> PathBuf {
        self.root.join(numbered(generation.number))
    }

    /// Places a candidate as a new generation beside the others, once `judge` has nothing to say against its files. A
    /// certificate that came without a key is for that of the pending request, or for the one that is in use.
    #[must_use]
    pub fn stage_connection(
        &self,
        candidate: &Candidate,
        known: &[Digest],
        judge: &dyn Fn(&Files<'_>) -> Result<(), String>,
    ) -> Staged {
        let sets = match self.sets_of(candidate) {
            Ok(sets) => sets,
            Err(staged) => return staged,
        };
        let record = OverlayRecord::new(&candidate.overlay);
        let overlay = record.contents();
        if overlay.len() > MAX_OVERLAY {
            let text = format!("without certificates it has more than {MAX_OVERLAY} bytes");
            return Staged::Refused(text);
        }
        let digests: Vec<Digest> = sets.iter().map(|set| digest(&overlay, set)).collect();
        if let Some(digest) = digests.iter().find(|digest| known.contains(digest)) {
            return Staged::Known(*digest);
        }
        let mut refusals: Vec<String> = Vec::new();
        for (set, digest) in sets.iter().zip(digests) {
            let [certificate, key, trust] =
                set.each_ref().map(|file| file.as_ref().map(|file| file.expose().as_slice()));
            let issuer = candidate.material.issuer.as_deref();
            let key = key.map(Secret::new);
            match judge(&Files { certificate, key, issuer, trust }) {
                Ok(()) => {
                    return match self.write_connection(record, set, digest) {
                        Ok(generation) => Staged::Ready(generation),
                        Err(error) => Staged::Failed(error),
                    };
                }
                Err(refusal) if refusals.contains(&refusal) => {}
                Err(refusal) => refusals.push(refusal),
            }
        }
        Staged::Refused(refusals.join("; with the key in use: "))
    }

    /// Removes a generation that was staged, and will not be tried.
    pub fn unstage_connection(&self, generation: Generation) {
        self.staged.store(0, Ordering::Relaxed);
        self.remove_connection(&numbered(generation.number));
    }

    /// Makes the record durable, then removes what it no longer names.
    ///
    /// # Errors
    /// The step that failed; the old record stands.
    pub fn remember_connection(&self, memory: &Memory) -> Result<(), String> {
        self.make_connection_directory()?;
        self.save(Path::new(MEMORY), memory)?;
        if named(memory).any(|number| number == self.staged.load(Ordering::Relaxed)) {
            self.staged.store(0, Ordering::Relaxed);
        }
        self.prune_connections(memory);
        Ok(())
    }

    /// The request that is out.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn pending(&self) -> Result<Option<Pending>, String> {
        Ok(self.load(Path::new(PENDING))?)
    }

    /// Keeps a request in place of the one before. It may be sent once this is done.
    ///
    /// # Errors
    /// The step that failed; the one before is still there.
    pub fn keep_pending(&self, pending: &Pending) -> Result<(), String> {
        self.make_connection_directory()?;
        self.save(Path::new(PENDING), pending)
    }

    /// What a candidate may consist of, the likeliest first: there are two where a certificate came without its key.
    fn sets_of(&self, candidate: &Candidate) -> Result<Vec<Contents>, Staged> {
        let Candidate { overlay, material, base } = candidate;
        let Material { certificate, private_key, issuer, trust } = material;
        let private_key = private_key.as_ref().map(Secret::expose);
        for (name, file) in [
            ("certificate.cert", certificate.as_ref()),
            ("certificate.private_key", private_key),
            ("certificate.ca_cert", issuer.as_ref()),
            ("tls.ca_pem_contents", trust.as_ref()),
        ] {
            let length = file.map_or(0, |file| u64::try_from(file.len()).unwrap_or(u64::MAX));
            if length > MAX_PEM {
                let text = format!("{name} has {length} bytes; allowed are {MAX_PEM}");
                return Err(Staged::Refused(text));
            }
        }
        if certificate.is_none() && private_key.is_some() {
            let text = "certificate.private_key came without certificate.cert";
            return Err(Staged::Refused(text.to_owned()));
        }
        let own = |file: &[u8]| Some(Secret::new(file.to_vec()));
        let has_trust = overlay.tls.as_ref().is_some_and(|tls| tls.trust);
        let trust = match trust {
            _ if !has_trust => None,
            Some(trust) => own(trust),
            None => self.of_base(*base, TRUST)?,
        };
        if !overlay.certificate {
            return Ok(vec![[None, None, trust]]);
        }
        let Some(certificate) = certificate else {
            let files = [self.of_base(*base, CERTIFICATE)?, self.of_base(*base, KEY)?, trust];
            return Ok(vec![files]);
        };
        if let Some(on) = self.is_volatile() {
            let text = format!("state_dir is on {on}: a certificate would be lost with the power");
            return Err(Staged::Refused(text));
        }
        let keys = match private_key {
            Some(key) => vec![own(key)],
            None => {
                let pending = self.pending().map_err(Staged::Failed)?;
                let in_use = base.and_then(|base| self.file_of(base, KEY).ok());
                [pending.map(|pending| pending.key_pem), in_use]
                    .into_iter()
                    .flatten()
                    .map(Some)
                    .collect()
            }
        };
        if keys.is_empty() {
            let text = "certificate.private_key is missing, and no request is out whose key it could be for";
            return Err(Staged::Refused(text.to_owned()));
        }
        let set = |key| [own(certificate), key, trust.clone()];
        Ok(keys.into_iter().map(set).collect())
    }

    /// What `state_dir` lies on where that is lost with the power: certificates are not taken then (opamp-spec L1753).
    #[must_use]
    pub fn is_volatile(&self) -> Option<&'static str> {
        // The type of `f_type` differs by architecture; this one holds them all.
        match i128::from(rustix::fs::statfs(&self.root).ok()?.f_type) {
            0x0102_1994 => Some("tmpfs"),
            0x8584_58f6 => Some("ramfs"),
            _ => None,
        }
    }

    fn of_base(
        &self,
        base: Option<Generation>,
        name: &str,
    ) -> Result<Option<Secret<Vec<u8>>>, Staged> {
        let base = base.ok_or_else(|| Staged::Failed(format!("nothing to take {name} from")))?;
        self.file_of(base, name).map(Some).map_err(Staged::Failed)
    }

    fn file_of(&self, generation: Generation, name: &str) -> Result<Secret<Vec<u8>>, String> {
        let path = numbered(generation.number).join(name);
        let file = self.disk.read(&path, MAX_PEM).map_err(|error| self.at(&path, &error))?;
        Ok(Secret::new(file))
    }

    /// Reads a generation, whole: it is what the record says, to the last byte of its files.
    fn overlay(&self, generation: Generation) -> Result<Overlay, Unread> {
        let path = numbered(generation.number).join(OVERLAY);
        let record: OverlayRecord =
            self.load(&path)?.ok_or_else(|| format!("{}: it is missing", self.shown(&path)))?;
        let wanted = [record.certificate, record.certificate, record.has_trust()];
        let mut files = Contents::default();
        for ((file, name), wanted) in files.iter_mut().zip(FILES).zip(wanted) {
            if wanted {
                *file = Some(self.file_of(generation, name)?);
            }
        }
        if record.digest != generation.digest
            || digest(&record.contents(), &files) != generation.digest
        {
            let dir = self.connection_dir(generation);
            return Err(format!("{}: it is not what the record says", dir.display()).into());
        }
        record.into_overlay().map_err(|error| Unread::from(error).of(&self.shown(&path)))
    }

    fn write_connection(
        &self,
        mut record: OverlayRecord,
        files: &Contents,
        digest: Digest,
    ) -> Result<Generation, String> {
        record.digest = digest.to_vec();
        let sealed = record::seal(&record.to_payload());
        self.make_connection_directory()?;
        let known = match self.load(Path::new(MEMORY))? {
            Some(known) => known,
            None => {
                // From now on a record that is not there has been lost.
                let known = Memory::default();
                self.save(Path::new(MEMORY), &known)?;
                known
            }
        };
        self.prune_candidates(&known, MAX_GENERATIONS.saturating_sub(1));
        let number =
            self.next_connection(&known).map_err(|error| self.at(Path::new(CONNECTION), &error))?;
        let directory = numbered(number);
        let written = (|| {
            self.disk.make_directory(&directory, DIRECTORY)?;
            for (name, file) in FILES.iter().zip(files) {
                if let Some(file) = file {
                    self.disk.create(&directory.join(name), file.expose(), RECORD)?;
                }
            }
            self.disk.create(&directory.join(OVERLAY), &sealed, RECORD)?;
            self.disk.sync(&directory)?;
            self.disk.sync(Path::new(CONNECTION))
        })();
        written.map_err(|error| {
            self.remove_connection(&directory);
            self.at(&directory, &error)
        })?;
        self.staged.store(number, Ordering::Relaxed);
        Ok(Generation { number, digest })
    }

    fn make_connection_directory(&self) -> Result<(), String> {
        let path = Path::new(CONNECTION);
        self.disk
            .make_directory(path, DIRECTORY)
            .and_then(|()| self.disk.sync(Path::new("")))
            .map_err(|error| self.at(path, &error))
    }

    /// One more than the highest number that is here or on record.
    fn next_connection(&self, known: &Memory) -> io::Result<u64> {
        let names = self.names_of_connection()?;
        let kept = names.iter().filter_map(|name| aside(name));
        let highest = kept.chain(self.connection_numbers()?).chain(named(known)).max().unwrap_or(0);
        highest.checked_add(1).ok_or_else(|| io::Error::other("no more generation numbers"))
    }

    fn names_of_connection(&self) -> io::Result<Vec<String>> {
        match self.disk.names(Path::new(CONNECTION)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => names,
        }
    }

    /// The generations, lowest first.
    fn connection_numbers(&self) -> io::Result<Vec<u64>> {
        let names = self.names_of_connection()?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Keeps generations out of the way; those that were kept so before make room.
    fn put_aside(&self, numbers: &[u64]) {
        let here = self.connection_numbers().unwrap_or_default();
        let mut numbers = numbers.iter().filter(|number| here.contains(number)).peekable();
        if numbers.peek().is_none() {
            return;
        }
        for name in self.names_of_connection().unwrap_or_default() {
            if aside(&name).is_some() {
                self.remove_connection(&Path::new(CONNECTION).join(name));
            }
        }
        for number in numbers {
            let aside = format!("{CONNECTION}/{number}{BROKEN}");
            let _ = self.disk.rename(&numbered(*number), Path::new(&aside));
        }
        let _ = self.disk.sync(Path::new(CONNECTION));
    }

    /// What cannot be removed now is tried again after the next change.
    fn prune_connections(&self, memory: &Memory) {
        self.prune_candidates(memory, 0);
        let Ok(Some(pending)) = self.pending() else { return };
        let used = memory.committed.and_then(|committed| self.file_of(committed, KEY).ok());
        if used.is_some_and(|used| used == pending.key_pem) {
            let _ = self.discard(Path::new(PENDING));
        }
    }

    /// Removes generations that the record does not name, the oldest first, until `most` are left in all. The one that
    /// was staged last may be named next.
    fn prune_candidates(&self, memory: &Memory, most: usize) {
        let numbers = self.connection_numbers().unwrap_or_default();
        let spare = numbers.len().saturating_sub(most);
        let staged = self.staged.load(Ordering::Relaxed);
        let kept: Vec<u64> = named(memory).chain([staged]).collect();
        for number in numbers.into_iter().filter(|number| !kept.contains(number)).take(spare) {
            self.remove_connection(&numbered(number));
        }
    }

    fn remove_connection(&self, directory: &Path) {
        for name in self.disk.names(directory).unwrap_or_default() {
            let _ = self.disk.remove(&directory.join(name));
        }
        let _ = self.disk.remove_directory(directory);
    }
}

fn numbered(number: u64) -> PathBuf {
    Path::new(CONNECTION).join(number.to_string())
}

/// The number of a generation that was put aside.
fn aside(name: &str) -> Option<u64> {
    name.strip_suffix(BROKEN)?.parse().ok()
}

/// The generations that a record names.
fn named(memory: &Memory) -> impl Iterator<Item = u64> {
    let trial = memory.trial.as_ref().map(|trial| trial.generation);
    [memory.committed, trial].into_iter().flatten().map(|generation| generation.number)
}

fn digest(overlay: &[u8], files: &Contents) -> Digest {
    let mut hasher = Context::new(&SHA256);
    let files = files.iter().map(|file| file.as_ref().map(|file| file.expose().as_slice()));
    for part in core::iter::once(Some(overlay)).chain(files) {
        // A file that is not there is none that is empty.
        let length = part.map_or(u64::MAX, |part| u64::try_from(part.len()).unwrap_or(u64::MAX));
        hasher.update(&length.to_be_bytes());
        hasher.update(part.unwrap_or_default());
    }
    let mut digest = [0; 32];
    digest.copy_from_slice(hasher.finish().as_ref());
    digest
}
