//! The server over real sockets: what an agent, a script and a browser see.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    reason = "a test stops at what it did not expect"
)]

mod binary;
mod client;
mod credentials;
mod download;
mod offers;
mod packages;
mod rest;
mod session;
mod sizes;
mod tls;
