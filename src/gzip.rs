//! gzip (RFC 1952) around the deflate of miniz_oxide: for HTTP bodies and packages.
//!
//! Not flate2: the crc32fast that it brings costs 21 KB.

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::stream::{InflateState, MinReset, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

/// What a member begins with: the magic, deflate.
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];
/// The flags that a header may have.
const CHECKED: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;
/// Bytes of a header before what its flags announce.
const FIXED: u8 = 10;
/// deflate's fast level.
const FAST: u8 = 1;

/// Packs, fast rather than small.
#[must_use]
pub fn pack(plain: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(plain);
    let body = compress_to_vec(plain, FAST);
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255];
    [&head, body.as_slice(), &crc.sum().to_le_bytes(), &low(plain.len()).to_le_bytes()].concat()
}

/// Unpacks, a step at a time; what it keeps is deflate's window.
pub struct Decoder {
    inflate: Box<InflateState>,
    crc: Crc,
    /// Unpacked bytes of the member, modulo 2^32.
    size: u32,
    part: Part,
    /// Flags of the header whose parts have not come yet.
    flags: u8,
    /// The number that is being read, its first byte lowest.
    number: u64,
    many: bool,
}

/// Where in a member the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// So many bytes into the fixed part of the header.
    Fixed(u8),
    /// So many bytes into the length of the extra field.
    ExtraLength(u8),
    /// So many bytes before the end of the extra field.
    Extra(u64),
    /// In the name or the comment, which end with a zero.
    Text,
    /// So many bytes into the header's checksum.
    HeadSum(u8),
    /// In what deflate made.
    Body,
    /// So many bytes into checksum and size.
    Tail(u8),
    /// Behind it.
    End,
}

impl Decoder {
    /// A decoder of one member, or of as many as follow one another.
    #[must_use]
    pub fn new(many: bool) -> Self {
        Self {
            inflate: InflateState::new_boxed(DataFormat::Raw),
            crc: Crc::new(),
            size: 0,
            part: Part::Fixed(0),
            flags: 0,
            number: 0,
            many,
        }
    }

    /// Whether a member ended with the last byte.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.part == Part::End
    }

    /// Takes some of `input` and puts what comes of it into `output`; says how much of each. Nothing of either: it wants
    /// more input, or is behind its end.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(usize, usize), &'static str> {
        if self.part == Part::Body {
            return self.body(input, output);
        }
        let mut taken: usize = 0;
        for byte in input {
            if self.part == Part::Body || self.part == Part::End && !self.many {
                break;
            }
            self.byte(*byte)?;
            taken = taken.saturating_add(1);
        }
        Ok((taken, 0))
    }

    fn body(&mut self, input: &[u8], output: &mut [u8]) -> Result<(usize, usize), &'static str> {
        let done = inflate(&mut self.inflate, input, output, MZFlush::None);
        let given = output.get(..done.bytes_written).unwrap_or_default();
        self.crc.update(given);
        self.size = self.size.wrapping_add(low(given.len()));
        match done.status {
            Ok(MZStatus::StreamEnd) => {
                self.number = 0;
                self.part = Part::Tail(0);
            }
            // Buf: it can do nothing without more input.
            Ok(_) | Err(MZError::Buf) => {}
            Err(_) => return Err("corrupt deflate stream"),
        }
        Ok((done.bytes_consumed, done.bytes_written))
    }

    /// A byte that is not deflate's.
    fn byte(&mut self, byte: u8) -> Result<(), &'static str> {
        if self.part == Part::End {
            self.inflate.reset_as(MinReset);
            self.crc.reset();
            self.size = 0;
            self.part = Part::Fixed(0);
        }
        if !matches!(self.part, Part::HeadSum(_) | Part::Tail(_)) {
            // Until the body comes it is the header's.
            self.crc.update(&[byte]);
        }
        match self.part {
            Part::Fixed(at) => {
                if MAGIC.get(usize::from(at)).is_some_and(|wanted| *wanted != byte) {
                    return Err("invalid gzip header");
                }
                if at == 3 {
                    if byte & RESERVED != 0 {
                        return Err("reserved flags in a gzip header");
                    }
                    self.flags = byte;
                }
                self.part = Part::Fixed(at.saturating_add(1));
                if self.part == Part::Fixed(FIXED) {
                    self.head();
                }
            }
            Part::ExtraLength(at) => match self.number(at, byte, 2) {
                None => self.part = Part::ExtraLength(at.saturating_add(1)),
                Some(0) => self.head(),
                Some(length) => self.part = Part::Extra(length),
            },
            Part::Extra(left) => match left.saturating_sub(1) {
                0 => self.head(),
                left => self.part = Part::Extra(left),
            },
            Part::Text if byte == 0 => self.head(),
            Part::HeadSum(at) => match self.number(at, byte, 2) {
                None => self.part = Part::HeadSum(at.saturating_add(1)),
                Some(sum) if sum == u64::from(self.crc.sum()) & 0xffff => self.head(),
                Some(_) => return Err("the checksum of a gzip header is wrong"),
            },
            Part::Tail(at) => match self.number(at, byte, 8) {
                None => self.part = Part::Tail(at.saturating_add(1)),
                Some(sums) if sums == u64::from(self.size) << 32 | u64::from(self.crc.sum()) => {
                    self.part = Part::End;
                }
                Some(_) => return Err("the checksum is wrong"),
            },
            Part::Text | Part::Body | Part::End => {}
        }
        Ok(())
    }

    /// Goes on to the next part that the header's flags announce.
    fn head(&mut self) {
        self.number = 0;
        let flags = [
            (EXTRA, Part::ExtraLength(0)),
            (NAME, Part::Text),
            (COMMENT, Part::Text),
            (CHECKED, Part::HeadSum(0)),
        ];
        let next = flags.into_iter().find(|(flag, _)| self.flags & flag != 0);
        if let Some((flag, part)) = next {
            self.flags &= !flag;
            self.part = part;
        } else {
            self.crc.reset();
            self.part = Part::Body;
        }
    }

    /// Byte `at` of a number of `length` bytes. [`None`]: there are more.
    fn number(&mut self, at: u8, byte: u8, length: u8) -> Option<u64> {
        self.number |= u64::from(byte) << (u32::from(at & 7) << 3);
        (at.saturating_add(1) == length).then_some(self.number)
    }
}

/// A length modulo 2^32.
fn low(length: usize) -> u32 {
    let [a, b, c, d, ..] = length.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

type Table = [u32; 256];

/// CRC-32 as gzip has it, four bytes at a time. Its tables are made when they are needed: they would be a tenth of what
/// deflate takes in the binary.
struct Crc {
    tables: Box<[Table; 4]>,
    state: u32,
}

impl Crc {
    fn new() -> Self {
        let mut tables = Box::new([[0; 256]; 4]);
        let [first, second, third, fourth] = &mut *tables;
        for (byte, entry) in (0..).zip(first.iter_mut()) {
            *entry =
                (0..8).fold(
                    byte,
                    |crc: u32, _| {
                        if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0xedb8_8320 }
                    },
                );
        }
        let mut before = *first;
        for table in [second, third, fourth] {
            for (entry, crc) in table.iter_mut().zip(before) {
                *entry = crc >> 8 ^ look(first, crc);
            }
            before = *table;
        }
        Self { tables, state: u32::MAX }
    }

    fn update(&mut self, bytes: &[u8]) {
        let [first, second, third, fourth] = &*self.tables;
        let (words, rest) = bytes.as_chunks();
        for word in words {
            let crc = self.state ^ u32::from_le_bytes(*word);
            self.state = look(fourth, crc)
                ^ look(third, crc >> 8)
                ^ look(second, crc >> 16)
                ^ look(first, crc >> 24);
        }
        for byte in rest {
            self.state = self.state >> 8 ^ look(first, self.state ^ u32::from(*byte));
        }
    }

    const fn sum(&self) -> u32 {
        !self.state
    }

    const fn reset(&mut self) {
        self.state = u32::MAX;
    }
}

/// The entry for the lowest byte.
fn look(table: &Table, crc: u32) -> u32 {
    let [byte, ..] = crc.to_le_bytes();
    table.get(usize::from(byte)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "tests"
    )]

    use std::io::Write;

    use flate2::{Compression, GzBuilder, bufread::GzDecoder};
    use proptest::prelude::*;

    use super::*;

    /// All that comes of it, given in pieces of so many bytes; how many bytes are left over.
    fn unpack(
        packed: &[u8],
        piece: usize,
        room: usize,
        many: bool,
    ) -> Result<(Vec<u8>, usize), &'static str> {
        let mut decoder = Decoder::new(many);
        let (mut plain, mut buffer) = (Vec::new(), vec![0; room]);
        let mut at = 0;
        loop {
            let end = packed.len().min(at + piece);
            let (taken, given) = decoder.step(&packed[at..end], &mut buffer)?;
            plain.extend_from_slice(&buffer[..given]);
            at += taken;
            if taken == 0 && given == 0 {
                return if decoder.is_whole() {
                    Ok((plain, packed.len() - at))
                } else {
                    Err("cut short")
                };
            }
        }
    }

    fn full_header(plain: &[u8]) -> Vec<u8> {
        let builder = GzBuilder::new().extra(vec![7; 300]).filename("a.tar").comment("why not");
        let mut writer = builder.write(Vec::new(), Compression::best());
        writer.write_all(plain).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_packed_is_unpacked_by_others_and_by_us() {
        for plain in [Vec::new(), b"a".to_vec(), b"abc".repeat(100_000), (0..=255).collect()] {
            let packed = pack(&plain);
            let mut other = Vec::new();
            std::io::Read::read_to_end(&mut GzDecoder::new(packed.as_slice()), &mut other).unwrap();
            assert_eq!(other, plain);
            for (piece, room) in [(1, 1 << 20), (7, 100), (1 << 20, 1 << 20), (1 << 20, 333)] {
                assert_eq!(unpack(&packed, piece, room, false), Ok((plain.clone(), 0)));
                let theirs = full_header(&plain);
                assert_eq!(unpack(&theirs, piece, room, true), Ok((plain.clone(), 0)));
            }
        }
    }

    #[test]
    fn a_header_may_have_a_checksum() {
        let packed = pack(b"hello");
        let mut head = packed[..10].to_vec();
        head[3] = CHECKED;
        let mut crc = Crc::new();
        crc.update(&head);
        head.extend_from_slice(&crc.sum().to_le_bytes()[..2]);
        head.extend_from_slice(&packed[10..]);
        assert_eq!(unpack(&head, 3, 100, false), Ok((b"hello".to_vec(), 0)));
        head[11] ^= 1;
        assert!(unpack(&head, 3, 100, false).unwrap_err().contains("header"));
    }

    #[test]
    fn a_second_member_is_another_file_unless_it_is_wanted() {
        let both = [pack(b"one"), full_header(b"two")].concat();
        assert_eq!(unpack(&both, 5, 100, true), Ok((b"onetwo".to_vec(), 0)));
        let left = full_header(b"two").len();
        assert_eq!(unpack(&both, 5, 100, false), Ok((b"one".to_vec(), left)));
    }

    #[test]
    fn each_byte_counts_and_none_is_missing() {
        let whole = pack(b"what a flipped bit must not get past, nor a missing byte");
        for length in 0..whole.len() {
            assert_eq!(unpack(&whole[..length], 10, 99, true), Err("cut short"), "{length}");
        }
        // Flags, time, level and system are nobody's concern, and some of deflate's last bits mean nothing.
        let plain = unpack(&whole, 10, 99, true).unwrap();
        for at in (0..3).chain(10..whole.len()) {
            let mut bad = whole.clone();
            bad[at] ^= 0x40;
            let got = unpack(&bad, 10, 99, true);
            let last = at == whole.len() - 9;
            assert!(got.is_err() || last && got == Ok(plain.clone()), "{at}");
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_it_ends(mut bytes: Vec<u8>, piece in 1..50_usize, room in 1..50_usize) {
            let _ = unpack(&bytes, piece, room, true);
            bytes.splice(0..0, [0x1f, 0x8b, 8]);
            let _ = unpack(&bytes, piece, room, true);
        }

        #[test]
        fn what_is_packed_comes_back(plain: Vec<u8>, piece in 1..50_usize, room in 1..50_usize) {
            prop_assert_eq!(unpack(&pack(&plain), piece, room, true), Ok((plain, 0)));
        }
    }
}
