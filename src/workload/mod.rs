//! The executor for processes: starts, stops, signals and checks them. It decides nothing: the pure core does.
//!
//! Everything runs on the one thread with the reactor. Each process has its own group; all that came out of
//! it (`family`) ends with it, and with us. What the init system owns (`external`) is only watched and signalled.

pub mod check;
pub mod command;
pub mod external;
pub mod family;
pub mod identity;
pub mod placeholders;
pub mod reap;
pub mod scrape;
pub mod spawn;
pub mod usage;
