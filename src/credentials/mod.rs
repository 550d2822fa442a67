//! Client certificates: read, judged, asked for. Bytes and time in, answers out.

pub mod certificate;
mod der;
pub mod judge;
pub mod request;

pub use judge::{Judged, judge};
pub use request::KeyKind;

#[cfg(test)]
mod tests;
