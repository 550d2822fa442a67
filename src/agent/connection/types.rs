//! What the connections go by, what the store has of them, and what they want done.

use core::time::Duration;
use std::path::PathBuf;

use super::memory::Memory;
use super::overlay::{Candidate, Overlay};
use crate::agent::rollout::Digest;
use crate::agent::session::Tone;
use crate::settings::{Enroll, Server};

/// What governs it.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// The settings' own connection.
    pub own: Server,
    /// Where the generations are.
    pub directory: PathBuf,
    /// Offers are accepted.
    pub accepts: bool,
    /// Ask for a certificate.
    pub enroll: Option<Enroll>,
    /// So long before its end it is renewed.
    pub renew_before: Duration,
}

/// What the store has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// The record.
    pub memory: Memory,
    /// What is in the committed generation.
    pub committed: Option<Overlay>,
    /// What is in the candidate; [`None`] though there is a trial: it was lost.
    pub candidate: Option<Overlay>,
    /// Why the state directory does not outlive the next start, if so.
    pub volatile: Option<&'static str>,
    /// What is there could not be read, and may be good: nothing is taken in its place.
    pub unreadable: bool,
}

/// Which connection is gone by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The settings' own.
    Own,
    /// The committed generation.
    Committed,
    /// The candidate.
    Candidate,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Order {
    /// Place a candidate. → [`staged`](super::Connections::staged)
    Stage(Box<Candidate>, Vec<Digest>),
    /// Write the record. → [`remembered`](super::Connections::remembered)
    Remember(Box<Memory>),
    /// The session goes by [`server`](super::Connections::server) from now on; at once, or with its next attempt.
    Travel {
        /// Now.
        at_once: bool,
    },
    /// The interval of heartbeats has changed, no more.
    Beat,
    /// Other credentials are committed.
    Committed,
    /// Tell the log.
    Say(Tone, String),
}
