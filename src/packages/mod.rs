//! Packages: how their files come to the device.

pub mod fetch;
