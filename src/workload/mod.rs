//! The executor for processes: starts, stops, signals and checks them. It decides nothing: the pure core does.
//!
//! Everything runs on the one thread with the reactor. Each process has its own group; all that came out of
//! it (`family`) ends with it, and with us.

pub mod check;
pub mod command;
pub mod family;
pub mod identity;
pub mod placeholders;
pub mod reap;
pub mod spawn;
pub mod usage;
