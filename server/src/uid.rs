//! An agent's instance uid.

use std::fmt;

use bytes::Bytes;
use uuid::Uuid;

/// Sixteen bytes that name one agent; never all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InstanceUid(Uuid);

impl InstanceUid {
    /// A fresh UUIDv7.
    pub(crate) fn generate() -> Self {
        Self(Uuid::now_v7())
    }

    /// The `instance_uid` field of a message; `None` unless it is 16 bytes that are not all zero.
    pub(crate) fn from_wire(bytes: &[u8]) -> Option<Self> {
        Uuid::from_slice(bytes).ok().filter(|uuid| !uuid.is_nil()).map(Self)
    }

    /// The canonical text: 36 characters with hyphens.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let canonical = text.len() == uuid::fmt::Hyphenated::LENGTH;
        Uuid::try_parse(text).ok().filter(|uuid| canonical && !uuid.is_nil()).map(Self)
    }

    /// As a message carries it.
    pub(crate) fn to_wire(self) -> Bytes {
        Bytes::copy_from_slice(self.0.as_bytes())
    }

    /// The sixteen bytes.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Display for InstanceUid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(out)
    }
}
