//! Chiton: an OpAMP agent for the edge.
//!
//! One direction: bytes come in at the edge, become events, the pure core ([`agent`]) decides, actions go
//! out. `docs/architecture.md` has the picture.

pub mod agent;
pub mod secret;
pub mod settings;
