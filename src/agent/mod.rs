//! The pure core: no I/O, no clock, no randomness of its own.

pub mod bounds;
pub mod configset;
pub mod merge;
pub mod redact;
