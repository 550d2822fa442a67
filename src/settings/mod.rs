//! `chiton.yaml`: read, expanded, merged, validated.

mod model;

pub use model::*;
