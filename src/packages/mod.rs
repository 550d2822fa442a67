//! What packages are made of, on their way from an offer to the disk: fetched, unpacked, handed to the store.

pub mod fetch;
pub mod install;
pub mod unpack;
