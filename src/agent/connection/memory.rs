//! What must outlive a power cut about the connection: one small record, which is the pointer too.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::agent::rollout::{Digest, Failed, Outcome};

/// One complete set of connection settings under the state directory: what the offers said so far, with key and
/// certificate beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number: rises, never reused.
    pub number: u64,
    /// What is in it, files included.
    pub digest: Digest,
}

/// A candidate whose trial has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The candidate.
    pub generation: Generation,
    /// The hash that it was offered with.
    pub hash: Bytes,
    /// The how-many-eth trial of it this is; 1 is the first. Counted before it begins.
    pub number: u32,
    /// When the first began, Unix seconds.
    pub since: u64,
}

/// What is kept on disk about the connection. Written in one piece: no crash leaves a new certificate with an old key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// What has worked; [`None`]: the settings' own.
    pub committed: Option<Generation>,
    /// The trial that is under way; found at the start, it was interrupted.
    pub trial: Option<Attempt>,
    /// `hash` of the last offer whose outcome is known.
    pub received: Option<Bytes>,
    /// Its outcome.
    pub outcome: Outcome,
    /// Contents that failed, newest first, at most [`crate::agent::rollout::MAX_FAILED`].
    pub failed: VecDeque<Failed>,
    /// Since when no server has taken what is committed, Unix seconds.
    pub refused_since: Option<u64>,
}
