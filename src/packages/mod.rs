//! Packages: what a server offers besides configuration.

pub mod unpack;
