//! `chiton.yaml`: read, expanded, merged, validated.

pub mod endpoint;
mod model;

pub use model::*;
