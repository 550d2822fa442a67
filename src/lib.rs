//! Chiton: an OpAMP agent for the edge.
//!
//! One direction: bytes come in at the edge, become events, the pure core ([`agent`]) decides, actions go
//! out. `docs/architecture.md` has the picture.

pub mod agent;
pub mod base64;
pub mod cli;
pub mod clock;
pub mod confine;
pub mod credentials;
pub mod gzip;
pub mod host;
pub mod json;
pub mod log;
pub mod net;
pub mod notify;
pub mod packages;
pub mod pool;
pub mod reactor;
pub mod runtime;
pub mod secret;
pub mod settings;
pub mod sha256;
pub mod signature;
pub mod status;
pub mod store;
pub mod sys;
pub mod transport;
pub mod workload;
