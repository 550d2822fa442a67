//! Records on disk: a magic word, a SHA-256 and a small protobuf. What does not match is broken, never empty.

mod connections;

use core::fmt;
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use prost::Message;

use crate::agent::identity::Kept;
use crate::agent::packages::set::{Kind, Member, Plan};
use crate::agent::rollout::{
    Attempt, Failed, Floors, Generation, Memory, Outcome, PackageFailure, Packaged, Parts, Seal,
};
use crate::agent::uid::Uid;
use crate::clock::Wall;
use crate::sha256::Sha256;
pub(super) use connections::OverlayRecord;

/// First bytes of every record; the number rises when an older Chiton could misread a newer record. From 2 on the digest
/// is to be over these bytes too: a flipped bit in the number is damage, and no newer Chiton.
const MAGIC: &[u8; 8] = b"chiton1\n";
/// Largest record: sixteen failures with their reasons, and sixty-four packages with theirs, are below it.
pub(super) const MAX_RECORD: u64 = 512 * 1024;

/// Puts magic and digest in front.
#[must_use]
pub(super) fn seal(payload: &[u8]) -> Vec<u8> {
    let digest = Sha256::digest(payload);
    [MAGIC.as_slice(), &digest, payload].concat()
}

/// Why a record is not known.
#[derive(Debug)]
pub(super) enum Unread {
    /// It is whole, and a newer Chiton's.
    Newer(String),
    /// It is damaged, or the disk gave no answer.
    Broken(String),
}

impl Unread {
    pub(super) const fn is_newer(&self) -> bool {
        matches!(self, Self::Newer(_))
    }

    /// With what is to be said before it.
    pub(super) fn of(self, what: &str) -> Self {
        let with = |text: &str| format!("{what}: {text}");
        match self {
            Self::Newer(text) => Self::Newer(with(&text)),
            Self::Broken(text) => Self::Broken(with(&text)),
        }
    }
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Newer(text) | Self::Broken(text)) = self;
        f.write_str(text)
    }
}

impl From<String> for Unread {
    fn from(text: String) -> Self {
        Self::Broken(text)
    }
}

impl From<Unread> for String {
    fn from((Unread::Newer(text) | Unread::Broken(text)): Unread) -> Self {
        text
    }
}

/// Takes them off.
///
/// # Errors
/// What is wrong with it.
pub(super) fn open(bytes: &[u8]) -> Result<&[u8], Unread> {
    let broken = |text: &str| Unread::Broken(text.to_owned());
    let Some(rest) = bytes.strip_prefix(MAGIC.as_slice()) else {
        return Err(newer(bytes).unwrap_or_else(|| broken("it is not one of Chiton's records")));
    };
    let (digest, payload) = rest.split_at_checked(32).ok_or_else(|| broken("it is cut short"))?;
    let expected = Sha256::digest(payload);
    if digest == expected { Ok(payload) } else { Err(broken("its checksum is wrong")) }
}

/// What is said of a whole record whose format has a higher number.
fn newer(bytes: &[u8]) -> Option<Unread> {
    let (magic, rest) = bytes.split_at_checked(MAGIC.len())?;
    let format = magic.strip_prefix(b"chiton")?.strip_suffix(b"\n")?;
    let (digest, payload) = rest.split_at_checked(32)?;
    let whole = Sha256::digest([magic, payload].concat()) == digest;
    let format = core::str::from_utf8(format).ok()?.parse::<u8>().ok()?;
    let text = format!("a newer Chiton wrote it (format {format}, this one knows 1)");
    (whole && format > 1).then_some(Unread::Newer(text))
}

/// A record that can be written and read.
pub(super) trait Record: Sized {
    /// Its protobuf bytes.
    fn to_payload(&self) -> Vec<u8>;
    /// From its protobuf bytes; the error says what is wrong.
    ///
    /// # Errors
    /// What is wrong with it.
    fn from_payload(payload: &[u8]) -> Result<Self, String>;
}

/// A message that is written as it is.
pub(super) trait Plain: Message + Default {}

impl<M: Plain> Record for M {
    fn to_payload(&self) -> Vec<u8> {
        self.encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, String> {
        Self::decode(payload).map_err(|error| error.to_string())
    }
}

#[derive(Clone, PartialEq, Message)]
struct GenerationRecord {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(bytes = "vec", tag = "2")]
    digest: Vec<u8>,
    #[prost(bool, tag = "3")]
    remote: bool,
}

#[derive(Clone, PartialEq, Message)]
struct FailedRecord {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(string, tag = "2")]
    reason: String,
    #[prost(bytes = "vec", tag = "3")]
    hash: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct AttemptRecord {
    #[prost(message, optional, tag = "1")]
    generation: Option<GenerationRecord>,
    #[prost(message, optional, tag = "4")]
    parts: Option<PartsRecord>,
    #[prost(uint32, tag = "3")]
    number: u32,
}

#[derive(Clone, PartialEq, Message)]
struct PartsRecord {
    #[prost(bytes = "vec", optional, tag = "1")]
    config: Option<Vec<u8>>,
    #[prost(message, optional, tag = "2")]
    packages: Option<PlanRecord>,
    #[prost(message, optional, tag = "3")]
    seal: Option<SealRecord>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct SealRecord {
    #[prost(uint64, tag = "1")]
    counter: u64,
    #[prost(uint64, tag = "2")]
    issued_at: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PlanRecord {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    members: Vec<MemberRecord>,
    #[prost(string, repeated, tag = "3")]
    changed: Vec<String>,
}

/// A package of a set.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MemberRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(bytes = "vec", tag = "3")]
    hash: Vec<u8>,
    #[prost(bool, tag = "4")]
    addon: bool,
    #[prost(bytes = "vec", tag = "5")]
    sha256: Vec<u8>,
    #[prost(uint64, tag = "6")]
    counter: u64,
    #[prost(uint64, tag = "7")]
    issued_at: u64,
    #[prost(uint64, tag = "8")]
    expires_at: u64,
    #[prost(bool, tag = "9")]
    local: bool,
}

#[derive(Clone, PartialEq, Message)]
struct PackageFailureRecord {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(bytes = "vec", tag = "3")]
    hash: Vec<u8>,
    #[prost(string, tag = "4")]
    error: String,
}

#[derive(Clone, PartialEq, Message)]
struct PackagedRecord {
    #[prost(bytes = "vec", optional, tag = "1")]
    received: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    installed: Option<Vec<u8>>,
    #[prost(string, tag = "3")]
    error: String,
    #[prost(message, repeated, tag = "4")]
    failed: Vec<PackageFailureRecord>,
    #[prost(btree_map = "string, uint64", tag = "5")]
    floors: BTreeMap<String, u64>,
    #[prost(bool, tag = "6")]
    lost: bool,
    #[prost(uint64, tag = "7")]
    seen: u64,
    #[prost(bool, tag = "8")]
    transient: bool,
}

impl MemberRecord {
    pub(super) fn new(member: &Member) -> Self {
        Self {
            name: member.name.clone(),
            version: member.version.clone(),
            hash: member.hash.to_vec(),
            addon: member.kind == Kind::Addon,
            sha256: member.sha256.to_vec(),
            counter: member.counter,
            issued_at: member.issued_at,
            expires_at: member.expires_at,
            local: member.local,
        }
    }

    pub(super) fn into_member(self) -> Result<Member, String> {
        Ok(Member {
            name: self.name,
            version: self.version,
            hash: self.hash.into(),
            kind: if self.addon { Kind::Addon } else { Kind::TopLevel },
            sha256: self.sha256.try_into().map_err(|_| "a SHA-256 is not 32 bytes")?,
            counter: self.counter,
            issued_at: self.issued_at,
            expires_at: self.expires_at,
            local: self.local,
        })
    }
}

impl PartsRecord {
    fn new(parts: &Parts) -> Self {
        Self {
            config: parts.config.as_ref().map(|hash| hash.to_vec()),
            packages: parts.packages.as_ref().map(|plan| PlanRecord {
                hash: plan.hash.to_vec(),
                members: plan.members.iter().map(MemberRecord::new).collect(),
                changed: plan.changed.clone(),
            }),
            seal: parts.seal.map(|Seal { counter, issued_at }| SealRecord { counter, issued_at }),
        }
    }

    fn into_parts(self) -> Result<Parts, String> {
        let plan = self.packages.map(|plan| {
            let members: Result<_, String> =
                plan.members.into_iter().map(MemberRecord::into_member).collect();
            Ok::<_, String>(Plan {
                hash: plan.hash.into(),
                members: members?,
                changed: plan.changed,
            })
        });
        Ok(Parts {
            config: self.config.map(Into::into),
            seal: self.seal.map(|SealRecord { counter, issued_at }| Seal { counter, issued_at }),
            packages: plan.transpose()?,
        })
    }
}

impl PackagedRecord {
    fn new(packages: &Packaged) -> Self {
        Self {
            received: packages.received.as_ref().map(|hash| hash.to_vec()),
            installed: packages.installed.as_ref().map(|hash| hash.to_vec()),
            error: packages.error.clone(),
            failed: packages
                .failed
                .iter()
                .map(|failure| PackageFailureRecord {
                    name: failure.name.clone(),
                    version: failure.version.clone(),
                    hash: failure.hash.to_vec(),
                    error: failure.error.clone(),
                })
                .collect(),
            floors: packages.floors.known.clone(),
            lost: packages.floors.lost,
            seen: packages.seen,
            transient: packages.transient,
        }
    }

    fn into_packaged(self) -> Packaged {
        let failed = self.failed.into_iter().map(|failure| PackageFailure {
            name: failure.name,
            version: failure.version,
            hash: failure.hash.into(),
            error: failure.error,
        });
        Packaged {
            received: self.received.map(Into::into),
            installed: self.installed.map(Into::into),
            error: self.error,
            failed: failed.collect(),
            transient: self.transient,
            floors: Floors { known: self.floors, lost: self.lost },
            seen: self.seen,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct MemoryRecord {
    #[prost(message, optional, tag = "1")]
    committed: Option<GenerationRecord>,
    #[prost(bytes = "vec", optional, tag = "2")]
    received: Option<Vec<u8>>,
    /// 0 unset, 1 applied, 2 failed.
    #[prost(uint32, tag = "3")]
    outcome: u32,
    #[prost(string, tag = "4")]
    reason: String,
    #[prost(message, repeated, tag = "5")]
    failed: Vec<FailedRecord>,
    #[prost(message, optional, tag = "6")]
    previous: Option<GenerationRecord>,
    /// Seconds since 1970.
    #[prost(uint64, tag = "7")]
    committed_at: u64,
    #[prost(message, optional, tag = "8")]
    trial: Option<AttemptRecord>,
    #[prost(message, optional, tag = "9")]
    committed_as: Option<PartsRecord>,
    #[prost(message, optional, tag = "10")]
    packages: Option<PackagedRecord>,
}

impl GenerationRecord {
    fn new(generation: &Generation) -> Self {
        Self {
            number: generation.number,
            digest: generation.digest.to_vec(),
            remote: generation.remote,
        }
    }

    fn into_generation(self) -> Result<Generation, String> {
        let digest = self.digest.try_into().map_err(|_| "a digest is not 32 bytes")?;
        Ok(Generation { number: self.number, digest, remote: self.remote })
    }
}

impl Record for Memory {
    fn to_payload(&self) -> Vec<u8> {
        let (outcome, reason) = match &self.outcome {
            Outcome::Unset => (0, ""),
            Outcome::Applied => (1, ""),
            Outcome::Failed(reason) => (2, reason.as_str()),
        };
        let failed = self.failed.iter().map(|failed| FailedRecord {
            digest: failed.digest.to_vec(),
            reason: failed.reason.clone(),
            hash: failed.hash.to_vec(),
        });
        MemoryRecord {
            committed: self.committed.as_ref().map(GenerationRecord::new),
            received: self.received.as_ref().map(|hash| hash.to_vec()),
            outcome,
            reason: reason.to_owned(),
            failed: failed.collect(),
            previous: self.previous.as_ref().map(GenerationRecord::new),
            committed_at: self.committed_at.0.as_secs(),
            trial: self.trial.as_ref().map(|trial| AttemptRecord {
                generation: Some(GenerationRecord::new(&trial.generation)),
                parts: Some(PartsRecord::new(&trial.parts)),
                number: trial.number,
            }),
            committed_as: self.committed_as.as_ref().map(PartsRecord::new),
            packages: Some(PackagedRecord::new(&self.packages)),
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, String> {
        let record = MemoryRecord::decode(payload).map_err(|error| error.to_string())?;
        let failed: Result<VecDeque<_>, String> = record
            .failed
            .into_iter()
            .map(|failed| {
                let digest = failed.digest.try_into().map_err(|_| "a digest is not 32 bytes")?;
                Ok(Failed { digest, reason: failed.reason, hash: failed.hash.into() })
            })
            .collect();
        let trial = record.trial.map(|trial| {
            let generation = trial.generation.ok_or("a trial without a candidate")?;
            let generation = generation.into_generation()?;
            let parts = trial.parts.unwrap_or_default().into_parts()?;
            Ok::<_, String>(Attempt { generation, parts, number: trial.number })
        });
        Ok(Self {
            previous: record.previous.map(GenerationRecord::into_generation).transpose()?,
            committed_at: Wall(Duration::from_secs(record.committed_at)),
            trial: trial.transpose()?,
            committed: record.committed.map(GenerationRecord::into_generation).transpose()?,
            received: record.received.map(Bytes::from),
            outcome: match record.outcome {
                0 => Outcome::Unset,
                1 => Outcome::Applied,
                2 => Outcome::Failed(record.reason),
                other => return Err(format!("outcome {other} is unknown")),
            },
            failed: failed?,
            committed_as: record.committed_as.map(PartsRecord::into_parts).transpose()?,
            packages: record.packages.unwrap_or_default().into_packaged(),
        })
    }
}

#[derive(Clone, PartialEq, Message)]
struct KeptRecord {
    #[prost(bytes = "vec", tag = "1")]
    uid: Vec<u8>,
    #[prost(string, tag = "2")]
    configured: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    hardware: BTreeMap<String, Vec<u8>>,
    #[prost(bool, tag = "4")]
    given: bool,
}

impl Record for Kept {
    fn to_payload(&self) -> Vec<u8> {
        let hardware =
            self.hardware.iter().map(|(source, digest)| (source.clone(), digest.to_vec()));
        KeptRecord {
            uid: self.uid.as_bytes().to_vec(),
            configured: self.configured.clone(),
            hardware: hardware.collect(),
            given: self.given,
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, String> {
        let record = KeptRecord::decode(payload).map_err(|error| error.to_string())?;
        let hardware: Result<_, String> = record
            .hardware
            .into_iter()
            .map(|(source, digest)| {
                Ok((source, digest.try_into().map_err(|_| "a digest is not 32 bytes")?))
            })
            .collect();
        Ok(Self {
            uid: Uid::from_slice(&record.uid).ok_or("the uid is not 16 bytes")?,
            configured: record.configured,
            hardware: hardware?,
            given: record.given,
        })
    }
}

/// Settings that were good.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LastGood {
    /// The main file that they come from.
    #[prost(string, tag = "1")]
    pub file: String,
    /// All files together, not expanded.
    #[prost(string, tag = "2")]
    pub text: String,
}

impl Plain for LastGood {}

/// What a generation's directory does not say by itself: it stands beside it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Description {
    /// What is in it.
    #[prost(bytes = "vec", tag = "1")]
    pub digest: Vec<u8>,
    /// Whether an offer is part of it.
    #[prost(bool, tag = "2")]
    pub remote: bool,
    /// Name of the main file.
    #[prost(string, tag = "3")]
    pub main: String,
    /// Its files.
    #[prost(message, repeated, tag = "4")]
    pub files: Vec<FileDescription>,
    /// The number of its set of packages; 0: it has none.
    #[prost(uint64, tag = "5")]
    pub set: u64,
}

/// What a set's directory does not say by itself: it stands beside it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SetRecord {
    /// Its members.
    #[prost(message, repeated, tag = "1")]
    pub members: Vec<MemberRecord>,
}

impl Plain for SetRecord {}

/// What a tree was made of: it stands beside it, and says that the tree is whole.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TreeRecord {
    /// SHA-256 of the file.
    #[prost(bytes = "vec", tag = "1")]
    pub sha256: Vec<u8>,
    /// The package's name, which a single file bears.
    #[prost(string, tag = "2")]
    pub name: String,
    /// A single file of an add-on is not executable.
    #[prost(bool, tag = "3")]
    pub addon: bool,
}

impl Plain for TreeRecord {}

/// One file of a generation.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FileDescription {
    /// Its name on disk.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its name in the offer.
    #[prost(string, tag = "2")]
    pub offered: String,
    /// As offered.
    #[prost(string, tag = "3")]
    pub content_type: String,
}

impl Plain for Description {}

/// What is known of a file that arrives.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MarkRecord {
    /// Strong validator.
    #[prost(string, tag = "1")]
    pub validator: String,
    /// Bytes of the whole file.
    #[prost(uint64, optional, tag = "2")]
    pub total: Option<u64>,
}

impl Plain for MarkRecord {}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn memory_survives_and_damage_is_never_read_as_empty() {
        let memory = Memory {
            committed: Some(Generation { number: 7, digest: [3; 32], remote: true }),
            previous: Some(Generation { number: 6, digest: [2; 32], remote: false }),
            committed_at: Wall(Duration::from_secs(1 << 33)),
            trial: Some(Attempt {
                generation: Generation { number: 8, digest: [5; 32], remote: true },
                parts: Parts {
                    config: Some(Bytes::from_static(b"next")),
                    seal: Some(Seal { counter: 1 << 40, issued_at: 1 << 33 }),
                    packages: Some(Plan {
                        hash: Bytes::from_static(b"all"),
                        members: vec![Member {
                            name: "otelcol".to_owned(),
                            version: "0.1".to_owned(),
                            hash: Bytes::from_static(b"one"),
                            sha256: [9; 32],
                            counter: 41,
                            issued_at: 1 << 33,
                            ..Member::default()
                        }],
                        changed: vec!["otelcol".to_owned()],
                    }),
                },
                number: 2,
            }),
            committed_as: Some(Parts {
                config: Some(Bytes::from_static(b"hash")),
                ..Parts::default()
            }),
            packages: Packaged {
                received: Some(Bytes::from_static(b"all")),
                installed: None,
                error: "why".to_owned(),
                failed: vec![PackageFailure {
                    name: String::new(),
                    version: "2".to_owned(),
                    hash: Bytes::new(),
                    error: "why".to_owned(),
                }],
                transient: true,
                floors: Floors { known: [("otelcol".to_owned(), 40)].into(), lost: true },
                seen: 7,
            },
            received: Some(Bytes::from_static(b"hash")),
            outcome: Outcome::Failed("why".to_owned()),
            failed: [Failed {
                digest: [4; 32],
                reason: "why".to_owned(),
                hash: Bytes::from_static(b"bad"),
            }]
            .into(),
        };
        let sealed = seal(&memory.to_payload());
        assert_eq!(Memory::from_payload(open(&sealed).unwrap()).unwrap(), memory);
        for length in 0..sealed.len() {
            assert!(open(sealed.get(..length).unwrap()).is_err(), "cut to {length} bytes");
        }
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            *damaged.get_mut(at).unwrap() ^= 1;
            assert!(open(&damaged).is_err(), "bit flipped in byte {at}");
            assert!(!open(&damaged).unwrap_err().is_newer(), "bit flipped in byte {at}");
        }
    }

    #[test]
    fn a_record_of_a_later_format_is_told_from_a_broken_one() {
        let later = |magic: &[u8]| {
            let digest = Sha256::digest([magic, b"payload"].concat());
            open(&[magic, &digest, b"payload"].concat()).unwrap_err()
        };
        let error = later(b"chiton2\n");
        assert!(error.is_newer() && error.to_string().contains("format 2"), "{error}");
        for magic in [b"chiton0\n", b"chitons\n", b"chitin2\n", b"chiton2 "] {
            assert!(!later(magic).is_newer());
        }
        // As today's are made: only the number is higher, as a flipped bit makes it.
        let mut flipped = seal(b"payload");
        *flipped.get_mut(6).unwrap() = b'3';
        assert!(!open(&flipped).unwrap_err().is_newer());
    }
}
