//! What an offer is called: by its server, or by its contents.

use bytes::Bytes;

use crate::sha256::Sha256;

/// How our own names of offers begin that came without a hash.
const OWN: &[u8] = b"\0by contents\0";

/// The hash that an offer is known by: a copy, because the offer's bytes are parts of the whole message. One without
/// a hash is known by its contents, or each repetition would be a new offer.
#[must_use]
pub(super) fn called<'p>(given: &Bytes, contents: impl Iterator<Item = &'p [u8]>) -> Bytes {
    if !given.is_empty() {
        return Bytes::copy_from_slice(given);
    }
    let mut hash = Sha256::new();
    for part in contents {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    [OWN, &hash.finalize()].concat().into()
}

/// What the server called it: nothing, where the name is our own.
#[must_use]
pub(super) fn given(hash: &Bytes) -> Bytes {
    if hash.starts_with(OWN) { Bytes::new() } else { hash.clone() }
}
