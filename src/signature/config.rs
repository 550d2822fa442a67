//! The signature of a remote configuration: what is signed of its objects, and how it lies among them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::MAX_SIGNATURE;

use crate::sha256::Sha256;

/// The name of the object that carries the signature.
pub const SIGNATURE_OBJECT: &str = "chiton.sig";
/// Largest body of that object, bytes: a signature in base64, with white space.
pub const MAX_SIGNATURE_OBJECT: usize = 2 * MAX_SIGNATURE;

/// Length and SHA-256 of a configuration: of each object, in the byte order of their names, its name and its body,
/// each with its length before it as a little-endian u64. The signature itself does not count.
#[must_use]
pub fn digest_config<'a>(
    objects: impl IntoIterator<Item = (&'a str, &'a [u8])>,
) -> (u64, [u8; 32]) {
    let objects: BTreeMap<&str, &[u8]> = objects.into_iter().collect();
    let mut size = 0_u64;
    let mut hash = Sha256::new();
    for (name, body) in objects.into_iter().filter(|(name, _)| *name != SIGNATURE_OBJECT) {
        for part in [name.as_bytes(), body] {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            size = size.saturating_add(8).saturating_add(length);
            hash.update(length.to_le_bytes());
            hash.update(part);
        }
    }
    (size, hash.finalize())
}

/// A signed manifest's bytes: as they are, or from base64 for what carries text only. The two cannot be taken for
/// one another, since a manifest has bytes that are no letters.
#[must_use]
pub fn signature_bytes(body: &[u8]) -> Cow<'_, [u8]> {
    from_base64(body).map_or(Cow::Borrowed(body), Cow::Owned)
}

/// [`None`]: it is no base64.
fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    let letters: Vec<u8> =
        text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    if letters.is_empty() || !letters.len().is_multiple_of(4) {
        return None;
    }
    let plain =
        letters.strip_suffix(b"==").or_else(|| letters.strip_suffix(b"=")).unwrap_or(&letters);
    let mut bytes = Vec::with_capacity(letters.len());
    for quad in plain.chunks(4) {
        let bits = quad.iter().try_fold(0_u32, |bits, letter| Some(bits << 6 | value(*letter)?))?;
        let (shift, count) = match quad.len() {
            4 => (0, 3),
            3 => (6, 2),
            2 => (12, 1),
            _ => return None,
        };
        let [_, three @ ..] = (bits << shift).to_be_bytes();
        bytes.extend_from_slice(three.get(..count)?);
    }
    Some(bytes)
}

fn value(letter: u8) -> Option<u32> {
    let from =
        |first: u8, value: u8| Some(u32::from(letter.checked_sub(first)?.checked_add(value)?));
    match letter {
        b'A'..=b'Z' => from(b'A', 0),
        b'a'..=b'z' => from(b'a', 26),
        b'0'..=b'9' => from(b'0', 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::base64;

    #[test]
    fn the_digest_tells_every_change_apart_but_order() {
        let digest = |objects: &[(&'static str, &'static str)]| {
            digest_config(objects.iter().map(|(name, body)| (*name, body.as_bytes())))
        };
        let one = digest(&[("", "a: 1"), ("b", "x")]);
        assert_eq!(one, digest(&[("b", "x"), ("", "a: 1")]));
        assert_eq!(one, digest(&[("b", "x"), ("chiton.sig", "any"), ("", "a: 1")]));
        assert_eq!(one.0, 8 * 4 + 4 + 2);
        for other in [
            &[("", "a: 1")][..],
            &[("", "a: 1"), ("b", "y")],
            &[("", "a: 1"), ("c", "x")],
            &[("", "a: 1"), ("bx", "")],
            &[("", "a: 1"), ("b", "x"), ("c", "")],
            &[("", "a: 1"), ("b", "x"), ("Chiton.sig", "")],
            &[],
        ] {
            assert_ne!(one, digest(other), "{other:?}");
        }
        // As the documentation has it: a signer needs nothing else.
        let bytes = [&0_u64.to_le_bytes()[..], &4_u64.to_le_bytes(), b"a: 1"].concat();
        assert_eq!(digest(&[("", "a: 1")]), (20, Sha256::digest(bytes)));
    }

    #[test]
    fn base64_and_raw_bytes_are_told_apart() {
        for length in 1..200_u8 {
            let raw: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37) ^ 0x0a).collect();
            let text = base64(&raw);
            assert_eq!(*signature_bytes(text.as_bytes()), raw);
            assert_eq!(*signature_bytes(format!(" {text}\n").as_bytes()), raw);
        }
        for other in [
            &b""[..],
            b"=",
            b"====",
            b"AAA",
            b"A===",
            b"AA=A",
            b"AAAA=",
            b"\x0a\x03abc",
            b"AA\xffA",
        ] {
            assert_eq!(*signature_bytes(other), *other, "{other:?}");
        }
    }
}
