//! gzip with a bound on what comes out.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;

/// Why a body could not be unpacked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum UnpackError {
    /// More than the bound came out.
    TooLarge,
    /// It is not gzip, or it is cut short.
    Malformed,
}

/// Unpacks at most `limit` bytes.
pub(crate) fn unpack(packed: &[u8], limit: usize) -> Result<Vec<u8>, UnpackError> {
    let mut out = Vec::new();
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    MultiGzDecoder::new(packed)
        .take(one_more)
        .read_to_end(&mut out)
        .map_err(|_| UnpackError::Malformed)?;
    if out.len() > limit { Err(UnpackError::TooLarge) } else { Ok(out) }
}

/// Packs; `None` only if memory fails the encoder.
pub(crate) fn pack(plain: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_is_on_what_comes_out() {
        let packed = pack(&[0; 1000]).unwrap();
        assert!(packed.len() < 100);
        assert_eq!(unpack(&packed, 1000), Ok(vec![0; 1000]));
        assert_eq!(unpack(&packed, 999), Err(UnpackError::TooLarge));
        assert_eq!(unpack(&packed[..packed.len() - 4], 1000), Err(UnpackError::Malformed));
        assert_eq!(unpack(b"plain", 1000), Err(UnpackError::Malformed));
    }
}
