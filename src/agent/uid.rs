//! The instance uid: 16 bytes that name this agent to every server (opamp-spec L628).

use core::fmt;

use crate::clock::Wall;

/// An instance uid. Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uid([u8; 16]);

/// The namespace of the uids that are made from text: a fixed random UUID of ours.
const TEXT_NAMESPACE: [u8; 16] =
    *b"\x3c\x1f\xa0\x6e\x52\x9b\x4d\x07\x8e\x61\x0d\x94\xb8\x27\xc5\x7a";

impl Uid {
    /// Takes 16 bytes that are not all zero (opamp-spec L631).
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        bytes.iter().any(|byte| *byte != 0).then_some(Self(bytes))
    }

    /// A UUIDv7 (RFC 9562 §5.7): milliseconds of `wall`, the rest from `random`.
    #[must_use]
    pub fn v7(wall: Wall, random: [u8; 10]) -> Self {
        let millis = u64::try_from(wall.0.as_millis()).unwrap_or(u64::MAX);
        let [_, _, t0, t1, t2, t3, t4, t5] = millis.to_be_bytes();
        let [a0, a1, b0, b1, b2, b3, b4, b5, b6, b7] = random;
        Self([
            t0,
            t1,
            t2,
            t3,
            t4,
            t5,
            0x70 | (a0 & 0x0f),
            a1,
            0x80 | (b0 & 0x3f),
            b1,
            b2,
            b3,
            b4,
            b5,
            b6,
            b7,
        ])
    }

    /// A UUIDv5 (RFC 9562 §5.5) of a text on one machine: the same text on another machine is another uid.
    #[must_use]
    pub fn v5(text: &str, machine_id: &str) -> Self {
        let mut context = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
        context.update(&TEXT_NAMESPACE);
        context.update(text.as_bytes());
        context.update(&[0]);
        context.update(machine_id.as_bytes());
        let digest = context.finish();
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
        let [.., version, _, variant, _, _, _, _, _, _, _] = &mut bytes;
        *version = 0x50 | (*version & 0x0f);
        *variant = 0x80 | (*variant & 0x3f);
        Self(bytes)
    }

    /// The canonical text form, `8-4-4-4-12` hexadecimal digits; also without the dashes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let dashes: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
        if !(dashes.is_empty() || dashes == [8, 13, 18, 23]) {
            return None;
        }
        let digits: Vec<u32> =
            text.chars().filter(|c| *c != '-').map(|c| c.to_digit(16)).collect::<Option<_>>()?;
        let bytes: Vec<u8> = digits
            .chunks_exact(2)
            .filter_map(|pair| match pair {
                [high, low] => u8::try_from((high << 4) | low).ok(),
                _ => None,
            })
            .collect();
        (digits.len() == 32).then(|| Self::from_slice(&bytes)).flatten()
    }

    /// The bytes, as OpAMP carries them.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            if matches!(i, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use core::time::Duration;

    use super::*;

    #[test]
    fn v7_has_time_version_and_variant() {
        let uid = Uid::v7(Wall(Duration::from_millis(0x0123_4567_89ab)), [0xff; 10]);
        assert_eq!(uid.to_string(), "01234567-89ab-7fff-bfff-ffffffffffff");
    }

    #[test]
    fn v5_depends_on_text_and_machine_and_is_stable() {
        let here = Uid::v5("gateway-7", "machine a");
        assert_eq!(here, Uid::v5("gateway-7", "machine a"));
        assert_ne!(here, Uid::v5("gateway-7", "machine b"));
        assert_ne!(here, Uid::v5("gateway-8", "machine a"));
        assert_eq!(here.to_string().as_bytes().get(14), Some(&b'5'));
        // The separator keeps ("a", "bc") and ("ab", "c") apart.
        assert_ne!(Uid::v5("a", "bc"), Uid::v5("ab", "c"));
    }

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        let uid = Uid::v7(Wall(Duration::from_secs(1_700_000_000)), [7; 10]);
        assert_eq!(Uid::parse(&uid.to_string()), Some(uid));
        assert_eq!(Uid::parse(&uid.to_string().replace('-', "").to_uppercase()), Some(uid));
        for bad in ["", "gateway-7", "0123", "00000000-0000-0000-0000-000000000000", "0-0-0-0-0"] {
            assert_eq!(Uid::parse(bad), None, "{bad}");
        }
        assert_eq!(Uid::parse(uid.to_string().get(1..).unwrap()), None);
        assert_eq!(Uid::from_slice(&[1; 15]), None);
        assert_eq!(Uid::from_slice(&[0; 16]), None);
    }
}
