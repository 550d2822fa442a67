//! OpAMP v0.20.0 messages (`opamp.proto.v1`), generated from the descriptions in `opamp/v1/`.
//!
//! Every `bytes` field shares the buffer that it was decoded from, and every map is ordered, so that
//! equal messages encode to equal bytes.

#[expect(
    missing_docs,
    clippy::all,
    reason = "generated code: prost copies the comments of messages and fields, not of what it adds"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/opamp.proto.v1.rs"));
}

pub use generated::*;
pub use prost::Message;
