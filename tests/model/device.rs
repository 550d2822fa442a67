//! What the life cycle acts on: an abstract disk, and contents.

use std::collections::BTreeMap;

use bytes::Bytes;
use chiton::agent::rollout::{Digest, Generation, Memory, Staged};
use chiton_proto::{AgentConfigMap, AgentConfigObject, AgentRemoteConfig};

/// What is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// The local file.
    Local,
    Good,
    /// The contents of [`Kind::Good`] under another hash.
    Same,
    Other,
    /// Never offered before the faults are over.
    Last,
    /// The workload dies of it.
    Bad,
    /// Its checks fail.
    Sick,
    /// Its dry run fails.
    Invalid,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Local,
        Self::Good,
        Self::Same,
        Self::Other,
        Self::Last,
        Self::Bad,
        Self::Sick,
        Self::Invalid,
    ];

    pub(crate) fn digest(self) -> Digest {
        let mut digest = [0; 32];
        if let Some(first) = digest.first_mut() {
            *first = match self {
                Self::Same => Self::Good as u8,
                kind => kind as u8,
            };
        }
        digest
    }

    pub(crate) fn of(digest: &Digest) -> Self {
        let found = Self::ALL.into_iter().find(|kind| kind.digest() == *digest);
        found.unwrap_or(Self::Local)
    }

    pub(crate) const fn is_good(self) -> bool {
        matches!(self, Self::Local | Self::Good | Self::Same | Self::Other | Self::Last)
    }

    pub(crate) fn hash(self) -> Bytes {
        Bytes::copy_from_slice(&[self as u8])
    }

    pub(crate) fn hashed(hash: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.hash() == hash)
    }

    pub(crate) fn offer(self) -> AgentRemoteConfig {
        let object = AgentConfigObject { body: self.hash(), ..AgentConfigObject::default() };
        AgentRemoteConfig {
            config: Some(AgentConfigMap { config_map: [(String::new(), object)].into() }),
            config_hash: self.hash(),
        }
    }
}

/// A store that is wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Says that a trial is on record before it is.
    ArmsLate,
    /// Cannot make any trial safe.
    NeverArms,
    /// Each trial is written down as the first.
    CountsNothing,
    /// Says that a commit is on record, and it is not.
    LosesCommits,
    /// Keeps no list of what failed.
    ForgetsFailures,
    /// Starts with what ran last.
    StaysAtTheStart,
}

/// What `store` keeps, and what it does, each in one step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) record: Memory,
    /// `record.back`.
    pub(crate) prepared: Option<Memory>,
    /// `config`.
    pub(crate) link: Option<Generation>,
    /// `back`.
    pub(crate) back: Option<Generation>,
    pub(crate) generations: BTreeMap<u64, Generation>,
}

const FULL: &str = "no space left on device";

/// Whether the disk has room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Enough,
    None,
}

type Done = Result<(), String>;

impl Disk {
    fn room(room: Room) -> Done {
        if room == Room::Enough { Ok(()) } else { Err(FULL.to_owned()) }
    }

    /// `Store::recover`.
    pub(crate) fn recover(&mut self, flaw: Option<Flaw>) {
        if flaw != Some(Flaw::StaysAtTheStart) && self.link != self.record.committed {
            let _ = self.activate(self.record.committed, Room::Enough);
        }
        if self.record.trial.is_none() {
            self.clear_way_back();
        }
    }

    fn clear_way_back(&mut self) {
        self.back = None;
        self.prepared = None;
    }

    pub(crate) fn stage(
        &mut self,
        offer: Option<&AgentConfigMap>,
        local: bool,
        known: &[Digest],
        write: bool,
        room: Room,
    ) -> Staged {
        let kind = match offer {
            None if local => Kind::Local,
            None => return Staged::Nothing,
            Some(map) => {
                let body = map.config_map.get("").map(|object| object.body.clone());
                Kind::hashed(&body.unwrap_or_default()).unwrap_or(Kind::Local)
            }
        };
        let digest = kind.digest();
        if known.contains(&digest) {
            return Staged::Known(digest);
        }
        if !write {
            return Staged::Deferred;
        }
        if let Err(error) = Self::room(room) {
            return Staged::Failed(error);
        }
        let number = self.generations.keys().next_back().map_or(1, |highest| highest + 1);
        let generation = Generation { number, digest, remote: offer.is_some() };
        self.generations.insert(number, generation);
        Staged::New(generation)
    }

    pub(crate) fn arm(
        &mut self,
        memory: &Memory,
        back: &Memory,
        room: Room,
        flaw: Option<Flaw>,
    ) -> Done {
        Self::room(room)?;
        match flaw {
            Some(Flaw::ArmsLate) => return Ok(()),
            Some(Flaw::NeverArms) => return Err(FULL.to_owned()),
            _ => {}
        }
        if memory.committed.is_some() {
            self.back = memory.committed;
        }
        self.prepared = Some(back.clone());
        self.record = memory.clone();
        if let (Some(Flaw::CountsNothing), Some(trial)) = (flaw, &mut self.record.trial) {
            trial.number = 1;
        }
        Ok(())
    }

    pub(crate) fn activate(&mut self, generation: Option<Generation>, room: Room) -> Done {
        if generation.is_some() && self.back == generation {
            self.back = None; // a rename: it needs no room
        } else if generation.is_some() {
            Self::room(room)?;
        }
        self.link = generation;
        Ok(())
    }

    pub(crate) fn remember(&mut self, memory: &Memory, room: Room, flaw: Option<Flaw>) -> Done {
        if flaw == Some(Flaw::LosesCommits) && memory.committed != self.record.committed {
            return Ok(());
        }
        if let Err(error) = Self::room(room) {
            let failed = |memory: &Memory| memory.failed.front().map(|failed| failed.digest);
            let prepared = self.prepared.take_if(|prepared| {
                memory.trial.is_none()
                    && prepared.committed == memory.committed
                    && failed(prepared) == failed(memory)
            });
            self.record = prepared.ok_or(error)?;
            return Ok(());
        }
        self.record = memory.clone();
        if flaw == Some(Flaw::ForgetsFailures) {
            self.record.failed.clear();
        }
        if memory.trial.is_none() && self.link == memory.committed {
            self.clear_way_back();
        }
        Ok(())
    }
}
