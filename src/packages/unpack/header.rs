//! The headers of a tar: POSIX ustar and PAX, GNU, and the old one. What is not needed of them (owners, times) is not read.

use core::ops::Range;

/// Bytes of a header, and what all data is padded to.
pub(super) const BLOCK: usize = 512;

const NAME: Range<usize> = 0..100;
const MODE: Range<usize> = 100..108;
const SIZE: Range<usize> = 124..136;
const CHECKSUM: Range<usize> = 148..156;
const KIND: Range<usize> = 156..157;
const TARGET: Range<usize> = 157..257;
const MAGIC: Range<usize> = 257..263;
const PREFIX: Range<usize> = 345..500;
/// Digits of a number in a PAX header.
const MAX_DIGITS: usize = 19;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
    /// GNU: the name of the next entry.
    LongName,
    /// GNU: where the next entry, a symlink, points.
    LongTarget,
    /// Attributes of the next entry.
    Pax,
    /// Attributes of all that follow.
    Global,
    /// Not unpacked, and why.
    Refused(&'static str),
}

/// One header.
#[derive(Clone, Copy)]
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
}

/// Whether a block is a header: its checksum is right.
pub(super) fn is_sound(block: &[u8; BLOCK]) -> bool {
    let header = Header { block };
    let bytes = block.iter().enumerate();
    let sum = bytes.fold(0_u64, |sum, (at, byte)| {
        let byte = if CHECKSUM.contains(&at) { b' ' } else { *byte };
        sum.saturating_add(u64::from(byte))
    });
    number(header.field(CHECKSUM)) == Some(sum)
}

impl<'a> Header<'a> {
    pub(super) const fn new(block: &'a [u8; BLOCK]) -> Self {
        Self { block }
    }

    fn field(self, range: Range<usize>) -> &'a [u8] {
        self.block.get(range).unwrap_or_default()
    }

    /// A field up to its NUL, which a full one does not have.
    fn text(self, range: Range<usize>) -> &'a [u8] {
        self.field(range).split(|byte| *byte == 0).next().unwrap_or_default()
    }

    fn letter(self) -> u8 {
        self.field(KIND).first().copied().unwrap_or(0)
    }

    pub(super) fn kind(self) -> Kind {
        match self.letter() {
            b'0' | 0 => Kind::File,
            b'1' => Kind::Refused("it is a hard link: make the archive with --hard-dereference"),
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Refused("it is a device"),
            b'5' => Kind::Directory,
            b'6' => Kind::Refused("it is a fifo"),
            b'K' => Kind::LongTarget,
            b'L' => Kind::LongName,
            b'S' => Kind::Refused("it is a sparse file: make the archive without --sparse"),
            b'g' => Kind::Global,
            b's' => Kind::Refused("it is a socket"),
            b'x' => Kind::Pax,
            _ => Kind::Refused("it is neither a file, a directory nor a symlink"),
        }
    }

    /// Of the time when a directory was a file whose name ends with a slash.
    pub(super) fn is_old(self) -> bool {
        self.field(MAGIC) != b"ustar\0"
    }

    pub(super) fn name(self) -> Vec<u8> {
        let (prefix, name) = (self.text(PREFIX), self.text(NAME));
        // GNU keeps other things in the prefix's place.
        if self.is_old() || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(super) fn target(self) -> Vec<u8> {
        self.text(TARGET).to_vec()
    }

    pub(super) fn size(self) -> Option<u64> {
        number(self.field(SIZE))
    }

    /// Whether its owner may execute it: all that is taken of the mode.
    pub(super) fn is_executable(self) -> Option<bool> {
        Some(number(self.field(MODE))? & 0o100 != 0)
    }
}

/// A number in octal, or big-endian behind a bit (GNU). None: it is malformed, negative or does not fit into 63 bits.
fn number(field: &[u8]) -> Option<u64> {
    let value = match field.split_first()? {
        (0x80, rest) => rest
            .iter()
            .try_fold(0_u64, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)))?,
        _ => {
            let text = field.split(|byte| *byte == 0).next().unwrap_or_default().trim_ascii();
            text.iter().try_fold(0_u64, |value, byte| {
                let digit = char::from(*byte).to_digit(8)?;
                value.checked_mul(8)?.checked_add(u64::from(digit))
            })?
        }
    };
    i64::try_from(value).is_ok().then_some(value)
}

/// A number in a PAX header.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > MAX_DIGITS {
        return None;
    }
    let value = text.iter().try_fold(0_u64, |value, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })?;
    i64::try_from(value).is_ok().then_some(value)
}

/// The records of a PAX header, key and value. None: malformed, and the last.
pub(super) fn records(data: &[u8]) -> impl Iterator<Item = Option<(&[u8], &[u8])>> {
    let mut rest = data;
    core::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = record(rest);
        rest = record.map_or(&[], |(_, _, behind)| behind);
        Some(record.map(|(key, value, _)| (key, value)))
    })
}

/// `LENGTH KEY=VALUE\n`, where the length is that of the whole; and what is behind it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(MAX_DIGITS).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(data.get(..space)?)?).ok()?;
    let (whole, behind) = data.split_at_checked(length)?;
    let body = whole.get(space..)?.strip_prefix(b" ")?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = body.split_at_checked(equals)?;
    Some((key, value.strip_prefix(b"=")?, behind))
}
