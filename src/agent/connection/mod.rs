//! The connection that offers make: what is in force, what is on trial, what has failed.

pub mod memory;
pub mod offer;
pub mod overlay;
