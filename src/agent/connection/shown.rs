//! What is in force, and what is told of it.

use std::path::PathBuf;

use bytes::Bytes;
use chiton_proto::{ConnectionSettingsStatus, ConnectionSettingsStatuses};

use super::memory::{Generation, Memory};
use super::overlay::Overlay;
use super::{Connections, Phase, Way, Why};
use crate::agent::rollout::Outcome;
use crate::settings::Server;

impl Connections {
    /// The connection to go by.
    #[must_use]
    pub fn server(&self) -> Server {
        let own = &self.rules.own;
        let laid = |overlay: &Overlay, generation: Option<Generation>| match generation {
            Some(_) => overlay.lay_over(own, &self.files_of(generation)),
            None => own.clone(),
        };
        match (self.way, &self.candidate) {
            (Way::Candidate, Some(overlay)) => laid(overlay, self.candidate_generation()),
            (Way::Committed, _) => laid(&self.committed, self.memory.committed),
            _ => own.clone(),
        }
    }

    /// Where the files of a generation are.
    pub(super) fn files_of(&self, generation: Option<Generation>) -> PathBuf {
        let number = generation.map_or(0, |generation| generation.number);
        self.rules.directory.join(number.to_string())
    }

    /// Which connection that is.
    #[must_use]
    pub const fn way(&self) -> Way {
        self.way
    }

    /// What is committed, for what others use of it; [`None`]: the settings' own.
    #[must_use]
    pub const fn committed(&self) -> Option<Generation> {
        self.memory.committed
    }

    /// Whether the certificate in use came with an offer.
    #[must_use]
    pub const fn certificate_was_offered(&self) -> bool {
        matches!(self.way, Way::Committed) && self.committed.certificate
    }

    /// Why certificates are not accepted, though they would be.
    #[must_use]
    pub const fn volatile(&self) -> Option<&'static str> {
        self.volatile
    }

    /// Whether no offer is under way.
    #[must_use]
    pub const fn is_idle(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// What `chiton status` calls it.
    #[must_use]
    pub const fn phase(&self) -> &'static str {
        match self.phase {
            Phase::Idle => "idle",
            Phase::Staging { .. } => "staging",
            Phase::Writing { .. } => "writing",
            Phase::Announcing { .. } => "announcing",
            Phase::Trying { .. } => "trying",
            Phase::Returned { .. } => "returned",
        }
    }

    /// ConnectionSettingsStatus.
    #[must_use]
    pub fn status(&self) -> ConnectionSettingsStatus {
        let of = |hash: &Bytes, status: ConnectionSettingsStatuses, error: &str| {
            ConnectionSettingsStatus {
                last_connection_settings_hash: hash.clone(),
                status: status.into(),
                error_message: error.to_owned(),
            }
        };
        // What is being placed may turn out to be known: a server that offers it in each answer would hear of it, and
        // answer, for ever.
        let placed = !matches!(self.phase, Phase::Staging { .. });
        if let Some(hash) = self.under_way().filter(|_| placed) {
            return of(hash, ConnectionSettingsStatuses::Applying, "");
        }
        if let Some((hash, reason, _)) = &self.unplaced {
            return of(hash, ConnectionSettingsStatuses::Failed, reason);
        }
        let received = self.memory.received.clone().unwrap_or_default();
        match &self.memory.outcome {
            Outcome::Unset => of(&received, ConnectionSettingsStatuses::Unset, ""),
            Outcome::Applied => of(&received, ConnectionSettingsStatuses::Applied, ""),
            Outcome::Failed(reason) => of(&received, ConnectionSettingsStatuses::Failed, reason),
        }
    }

    /// The hash of the offer that is under way.
    pub(super) fn under_way(&self) -> Option<&Bytes> {
        let trial = |memory: &'_ Memory| memory.trial.is_some();
        match &self.phase {
            Phase::Staging { hash, .. } => Some(hash),
            Phase::Writing { why: Why::Beat | Why::Commit | Why::Condemn, next, .. } => {
                next.received.as_ref()
            }
            Phase::Writing { next, .. } if trial(next) => {
                next.trial.as_ref().map(|trial| &trial.hash)
            }
            _ => self.memory.trial.as_ref().map(|trial| &trial.hash),
        }
    }

    fn candidate_generation(&self) -> Option<Generation> {
        let memory = match &self.phase {
            // What was tried is what is being committed.
            Phase::Writing { why: Why::Commit, next, .. } => return next.committed,
            _ => &self.memory,
        };
        memory.trial.as_ref().map(|trial| trial.generation)
    }
}
