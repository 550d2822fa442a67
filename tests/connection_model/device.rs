//! What the life cycle acts on: contents of connections, and an abstract disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use chiton::agent::connection::Found;
use chiton::agent::connection::memory::{Generation, Memory};
use chiton::agent::connection::overlay::{Candidate, Overlay, Staged};
use chiton::agent::rollout::Digest;
use chiton::settings::Server;
use chiton_proto::{ConnectionSettingsOffers, Header, Headers, OpAmpConnectionSettings};

/// What an agent shows to the server: it stands for key, certificate, token.
pub(crate) type Pass = u32;

/// The settings' own.
pub(crate) const OWN: Pass = 0;
pub(crate) const GOOD: Pass = 1;
pub(crate) const OTHER: Pass = 2;
pub(crate) const LAST: Pass = 3;
/// Never accepted.
pub(crate) const BAD: Pass = 9;

const HEADER: &str = "authorization";

/// One offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) hash: Bytes,
    /// [`None`]: the interval of heartbeats alone.
    pub(crate) pass: Option<Pass>,
    pub(crate) beat: u64,
    /// The store refuses its files.
    pub(crate) broken: bool,
}

const BROKEN: &str = "broken";

impl Offer {
    pub(crate) fn new(hash: u32, pass: Pass) -> Self {
        let hash = Bytes::copy_from_slice(&hash.to_be_bytes());
        Self { hash, pass: Some(pass), beat: 0, broken: false }
    }

    pub(crate) fn message(&self) -> ConnectionSettingsOffers {
        let header = |key: &str, value: String| Header { key: key.to_owned(), value };
        let headers = self.pass.map(|pass| {
            let mut headers = vec![header(HEADER, pass.to_string())];
            if self.broken {
                headers.push(header(BROKEN, String::new()));
            }
            Headers { headers }
        });
        let opamp = OpAmpConnectionSettings {
            headers,
            heartbeat_interval_seconds: self.beat,
            ..OpAmpConnectionSettings::default()
        };
        ConnectionSettingsOffers {
            hash: self.hash.clone(),
            opamp: Some(opamp),
            ..ConnectionSettingsOffers::default()
        }
    }
}

/// What a connection shows.
pub(crate) fn pass_of(server: &Server) -> Pass {
    let mut headers = server.headers.iter();
    let header = headers.find(|(name, _)| name.eq_ignore_ascii_case(HEADER));
    header.and_then(|(_, value)| value.expose().parse().ok()).unwrap_or(OWN)
}

fn pass_in(overlay: &Overlay) -> Pass {
    let header = overlay.headers.iter().flatten().next();
    header.and_then(|(_, value)| value.expose().parse().ok()).unwrap_or(OWN)
}

fn digest(overlay: &Overlay) -> Digest {
    let mut digest = [0; 32];
    let beat = overlay.heartbeat.map_or(u64::MAX, |beat| beat.as_secs());
    for (to, byte) in
        digest.iter_mut().zip(pass_in(overlay).to_be_bytes().into_iter().chain(beat.to_be_bytes()))
    {
        *to = byte;
    }
    digest
}

/// Executors that are wrong on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The store says that the record is written, and it is not.
    RemembersNothing,
    /// It takes a trial for a commit.
    CommitsTrials,
    /// It removes what is committed when it places a candidate.
    PrunesTheOld,
    /// It keeps no list of what failed.
    ForgetsFailures,
    /// It writes each trial down as the first.
    CountsNothing,
    /// It does not keep since when nothing was taken.
    ForgetsRefusals,
    /// It never answers what it was to place.
    SwallowsAnswers,
    /// The link never says that it is down.
    NeverDown,
    /// Where nothing can be reached a stranger answers, and is taken for the old server.
    Stranger,
    /// The timer does not fire.
    NoTimer,
}

/// What `store` keeps, and what it does, each in one step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) record: Memory,
    pub(crate) generations: BTreeMap<u64, (Digest, Overlay)>,
    staged: u64,
}

pub(crate) const FULL: &str = "no space left on device";

impl Disk {
    pub(crate) fn found(&self) -> Found {
        let of = |generation: Generation| self.generations.get(&generation.number).cloned();
        let trial = self.record.trial.as_ref().map(|trial| trial.generation);
        Found {
            memory: self.record.clone(),
            committed: self.record.committed.and_then(of).map(|(_, overlay)| overlay),
            candidate: trial.and_then(of).map(|(_, overlay)| overlay),
            volatile: None,
            unreadable: false,
        }
    }

    pub(crate) fn has(&self, generation: Generation) -> bool {
        let found = self.generations.get(&generation.number);
        found.is_some_and(|(digest, _)| *digest == generation.digest)
    }

    pub(crate) fn pass(&self, generation: Generation) -> Option<Pass> {
        self.generations.get(&generation.number).map(|(_, overlay)| pass_in(overlay))
    }

    pub(crate) fn stage(
        &mut self,
        candidate: &Candidate,
        known: &[Digest],
        refuses: bool,
        flaw: Option<Flaw>,
    ) -> Staged {
        let digest = digest(&candidate.overlay);
        if known.contains(&digest) {
            return Staged::Known(digest);
        }
        if candidate.overlay.headers.iter().flatten().any(|(name, _)| name == BROKEN) {
            return Staged::Refused("the certificate is not for the key".to_owned());
        }
        if refuses {
            return Staged::Failed(FULL.to_owned());
        }
        let here = self.generations.keys().next_back().copied().unwrap_or_default();
        let number = here.max(named(&self.record).max().unwrap_or_default()) + 1;
        self.staged = number;
        self.generations.insert(number, (digest, candidate.overlay.clone()));
        self.prune();
        if let (Some(Flaw::PrunesTheOld), Some(old)) = (flaw, self.record.committed) {
            self.generations.remove(&old.number);
        }
        Staged::Ready(Generation { number, digest })
    }

    pub(crate) fn remember(
        &mut self,
        memory: &Memory,
        refuses: bool,
        flaw: Option<Flaw>,
    ) -> Result<(), String> {
        if refuses {
            return Err(FULL.to_owned());
        }
        if flaw == Some(Flaw::RemembersNothing) {
            return Ok(());
        }
        self.record = memory.clone();
        match flaw {
            Some(Flaw::CommitsTrials) => {
                let trial = self.record.trial.as_ref().map(|trial| trial.generation);
                self.record.committed = trial.or(self.record.committed);
            }
            Some(Flaw::ForgetsFailures) => self.record.failed.clear(),
            Some(Flaw::ForgetsRefusals) => self.record.refused_since = None,
            Some(Flaw::CountsNothing) => {
                if let Some(trial) = &mut self.record.trial {
                    trial.number = 1;
                }
            }
            _ => {}
        }
        if named(memory).any(|number| number == self.staged) {
            self.staged = 0;
        }
        self.prune();
        Ok(())
    }

    fn prune(&mut self) {
        let kept: Vec<u64> = named(&self.record).chain([self.staged]).collect();
        self.generations.retain(|number, _| kept.contains(number));
    }

    /// The process is gone.
    pub(crate) fn restart(&mut self) {
        self.staged = 0;
        self.prune();
    }
}

/// The generations that a record names.
fn named(memory: &Memory) -> impl Iterator<Item = u64> {
    let trial = memory.trial.as_ref().map(|trial| trial.generation);
    [memory.committed, trial].into_iter().flatten().map(|generation| generation.number)
}
