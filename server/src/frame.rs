//! The header of a WebSocket message: a base-128 varint that must be zero.

use bytes::{Buf as _, Bytes};
use chiton_proto::ServerToAgent;
use prost::Message as _;

/// Longest varint of a u64.
const MAX_HEADER: usize = 10;

/// Why a message's header was refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// The message ended inside it, or it was longer than ten bytes.
    Malformed,
    /// It was not zero, and zero is the only version there is.
    NotZero,
}

impl HeaderError {
    /// For the agent's log.
    pub(crate) fn text(&self) -> &'static str {
        match self {
            Self::Malformed => "the message does not begin with a varint header",
            Self::NotZero => "the message's header is not 0, the only one that this server knows",
        }
    }
}

/// Takes the header off.
pub(crate) fn strip_header(mut message: Bytes) -> Result<Bytes, HeaderError> {
    let mut value_bits = 0;
    for _ in 0..MAX_HEADER {
        let byte = message.try_get_u8().map_err(|_| HeaderError::Malformed)?;
        value_bits |= byte & 0x7f;
        if byte & 0x80 == 0 {
            return if value_bits == 0 { Ok(message) } else { Err(HeaderError::NotZero) };
        }
    }
    Err(HeaderError::Malformed)
}

/// One WebSocket message: header and protobuf.
pub(crate) fn encode(message: &ServerToAgent) -> Bytes {
    let mut out = Vec::with_capacity(message.encoded_len().saturating_add(1));
    out.push(0);
    out.extend_from_slice(&message.encode_to_vec());
    Bytes::from(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_zero_header_is_taken() {
        let strip = |bytes: &'static [u8]| strip_header(Bytes::from_static(bytes));
        assert_eq!(strip(&[0, 7, 8]), Ok(Bytes::from_static(&[7, 8])));
        assert_eq!(strip(&[0]), Ok(Bytes::new()));
        assert_eq!(strip(&[0x80, 0, 9]), Ok(Bytes::from_static(&[9])));
        assert_eq!(strip(&[]), Err(HeaderError::Malformed));
        assert_eq!(strip(&[0x80]), Err(HeaderError::Malformed));
        assert_eq!(strip(&[1, 7]), Err(HeaderError::NotZero));
        assert_eq!(strip(&[0x80, 1]), Err(HeaderError::NotZero));
        assert_eq!(strip(&[0x80; 11]), Err(HeaderError::Malformed));
    }
}
