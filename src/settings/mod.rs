//! `chiton.yaml`: read, expanded, merged, validated.

pub mod endpoint;
mod model;
mod stub;
pub use model::*;
pub use stub::*;
