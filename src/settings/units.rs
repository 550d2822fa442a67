//! Durations (`250ms 10s 5m 24h 30d`), sizes (`64KiB 1MiB 10MB`) and base64, read and written.

use core::fmt;
use core::ops::RangeInclusive;
use core::time::Duration;

/// Which durations a key takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// The shortest.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
    /// What zero means; absent: zero is refused, like everything below `min`.
    pub zero: Option<&'static str>,
}

impl Span {
    /// From the shortest to the longest.
    #[must_use]
    pub(super) const fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, zero: None }
    }

    /// Zero as well.
    #[must_use]
    pub(super) const fn or_zero(self, meaning: &'static str) -> Self {
        Self { zero: Some(meaning), ..self }
    }

    /// Whether it takes this one.
    #[must_use]
    pub(super) fn takes(&self, duration: Duration) -> bool {
        (duration.is_zero() && self.zero.is_some()) || (self.min..=self.max).contains(&duration)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration such as 30s: ")?;
        if let Some(meaning) = self.zero {
            write!(f, "0 ({meaning}) or ")?;
        }
        write!(f, "{} to {}", Long(self.min), Long(self.max))
    }
}

/// Milliseconds of each unit, longest first.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads `250ms`, `10s`, `1m30s`, `30d`, and `0`. [`None`]: it is no duration.
#[must_use]
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() {
        return None;
    }
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let (digits, after) = split_digits(rest);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(letters)?;
        let (_, scale) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(digits.parse::<u64>().ok()?.checked_mul(scale)?)?;
        rest = after;
    }
    Some(Duration::from_millis(total))
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// Shows a duration in the largest unit that divides it; hours up to two days.
#[derive(Clone, Copy, Debug)]
pub struct Long(pub Duration);

impl fmt::Display for Long {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 0 {
            return f.write_str("0");
        }
        let fits = |(name, scale): &(&str, u64)| {
            millis.is_multiple_of(*scale) && (*name != "d" || millis >= scale.saturating_mul(2))
        };
        let (unit, scale) = UNITS.into_iter().find(fits).unwrap_or(("ms", 1));
        write!(f, "{}{unit}", millis.checked_div(scale).unwrap_or_default())
    }
}

/// Bytes of each unit. The binary ones come first, largest first: sizes are shown in them.
const SIZES: [(&str, u64); 8] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("kB", 1_000),
];

/// Reads `64KiB`, `10MB`, `4096`. [`None`]: it is no size.
#[must_use]
pub(super) fn size(text: &str) -> Option<u64> {
    let (digits, unit) = split_digits(text);
    let number: u64 = digits.parse().ok()?;
    if unit.is_empty() {
        return Some(number);
    }
    let (_, scale) = SIZES.into_iter().find(|(name, _)| *name == unit.trim_start())?;
    number.checked_mul(scale)
}

/// Shows a size in the largest binary unit that divides it.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, scale): &(&str, u64)| self.0 != 0 && self.0.is_multiple_of(*scale);
        match SIZES.into_iter().find(fits) {
            Some((unit, scale)) if scale > 1 => {
                write!(f, "{}{unit}", self.0.checked_div(scale).unwrap_or_default())
            }
            _ => write!(f, "{}", self.0),
        }
    }
}

/// The words for a range of sizes.
#[must_use]
pub(super) fn sizes(range: &RangeInclusive<u64>) -> String {
    format!("a size such as 64KiB: {} to {}", Bytes(*range.start()), Bytes(*range.end()))
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Reads the base64 of 32 bytes (a SHA-256), with or without its `=`.
#[must_use]
pub(super) fn base64_digest(text: &str) -> Option<[u8; 32]> {
    let text = text.strip_suffix('=').unwrap_or(text);
    if text.len() != 43 {
        return None;
    }
    let mut out = Vec::with_capacity(33);
    for quad in text.as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for at in 0..4 {
            let value = match quad.get(at) {
                Some(letter) => BASE64.iter().position(|known| known == letter)?,
                None => 0,
            };
            bits = (bits << 6) | u32::try_from(value).ok()?;
        }
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend_from_slice(&bytes);
    }
    // 43 letters hold 258 bits: the last two, and the filled-up byte, must be nothing.
    let digest = out.get(..32)?.try_into().ok()?;
    (out.get(32) == Some(&0)).then_some(digest)
}

/// Writes the base64 of a digest.
#[must_use]
pub(super) fn to_base64(digest: &[u8; 32]) -> String {
    let mut out = String::with_capacity(44);
    for triple in digest.chunks(3) {
        let byte = |at: usize| u32::from(triple.get(at).copied().unwrap_or_default());
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let letter = usize::try_from((bits >> shift) & 63).ok().and_then(|at| BASE64.get(at));
            match letter {
                Some(letter) if at <= triple.len() => out.push(char::from(*letter)),
                _ => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("10s", Some(10_000)),
            ("5m", Some(300_000)),
            ("24h", Some(86_400_000)),
            ("30d", Some(2_592_000_000)),
            ("1m30s", Some(90_000)),
            ("", None),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("1us", None),
            ("1S", None),
            ("99999999999999999999s", None),
            ("999999999999999999d", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn durations_print_as_they_are_written() {
        for text in ["0", "250ms", "10s", "90s", "5m", "24h", "36h", "2d", "30d"] {
            assert_eq!(duration(text).map(|d| Long(d).to_string()).as_deref(), Some(text));
        }
    }

    #[test]
    fn sizes_are_read_and_printed() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64KiB", Some(65_536)),
            ("1MiB", Some(1 << 20)),
            ("10MB", Some(10_000_000)),
            ("1 GiB", Some(1 << 30)),
            ("1kB", Some(1000)),
            ("", None),
            ("MiB", None),
            ("1.5MiB", None),
            ("-1", None),
            ("1mib", None),
            ("1TB", None),
            ("99999999999GiB", None),
        ] {
            assert_eq!(size(text), bytes, "{text}");
        }
        for (bytes, text) in
            [(0, "0"), (1, "1"), (65_536, "64KiB"), (1000, "1000"), (3 << 30, "3GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn spans_say_what_zero_means() {
        let span = Span::new(Duration::from_secs(1), Duration::from_secs(86_400)).or_zero("off");
        assert_eq!(span.to_string(), "a duration such as 30s: 0 (off) or 1s to 24h");
        assert!(span.takes(Duration::ZERO) && !span.takes(Duration::from_millis(999)));
    }

    #[test]
    fn digests_round_trip() {
        for digest in
            [[0; 32], [255; 32], core::array::from_fn(|n| u8::try_from(n * 7).unwrap_or(1))]
        {
            let text = to_base64(&digest);
            assert_eq!(text.len(), 44);
            assert_eq!(base64_digest(&text), Some(digest));
            assert_eq!(base64_digest(text.trim_end_matches('=')), Some(digest));
        }
        // SHA-256 of nothing, as openssl prints it.
        let text = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        assert_eq!(base64_digest(text).map(|digest| digest[..2].to_vec()), Some(vec![0xe3, 0xb0]));
        for bad in ["", "x", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=", &"!".repeat(43)] {
            assert_eq!(base64_digest(bad), None, "{bad}");
        }
    }
}
