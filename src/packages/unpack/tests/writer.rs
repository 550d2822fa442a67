//! Writes tars, also those that no other program writes.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

/// What is known of an entry; the rest is zeros.
pub(super) struct Head<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) size: u64,
    pub(super) target: &'a [u8],
    pub(super) prefix: &'a [u8],
    pub(super) magic: &'a [u8],
}

impl Default for Head<'_> {
    fn default() -> Self {
        let (name, magic) = (b"name".as_slice(), b"ustar\x0000".as_slice());
        Self { name, kind: b'0', mode: 0o644, size: 0, target: b"", prefix: b"", magic }
    }
}

impl Head<'_> {
    pub(super) fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, self.name);
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(124, format!("{:011o}", self.size).as_bytes());
        put(156, &[self.kind]);
        put(157, self.target);
        put(257, self.magic);
        put(345, self.prefix);
        seal(&mut block);
        block
    }
}

/// Puts the checksum right.
pub(super) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    pub(super) fn entry(mut self, head: &Head<'_>, data: &[u8]) -> Self {
        self.0.extend(head.block());
        self.data(data)
    }

    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// An entry with contents.
    fn with(self, name: &[u8], kind: u8, mode: u32, data: &[u8]) -> Self {
        let size = u64::try_from(data.len()).unwrap();
        self.entry(&Head { name, kind, mode, size, ..Head::default() }, data)
    }

    pub(super) fn file(self, name: &str, data: &[u8]) -> Self {
        self.with(name.as_bytes(), b'0', 0o644, data)
    }

    pub(super) fn program(self, name: &str, data: &[u8]) -> Self {
        self.with(name.as_bytes(), b'0', 0o6755, data)
    }

    pub(super) fn directory(self, name: &str) -> Self {
        self.with(name.as_bytes(), b'5', 0o700, b"")
    }

    pub(super) fn link(self, name: &str, target: &str) -> Self {
        let (name, target) = (name.as_bytes(), target.as_bytes());
        self.entry(&Head { name, target, kind: b'2', ..Head::default() }, b"")
    }

    /// A GNU header for a long name (`L`) or target (`K`).
    pub(super) fn long(self, kind: u8, text: &str) -> Self {
        self.with(b"././@LongLink", kind, 0o644, format!("{text}\0").as_bytes())
    }

    /// A PAX header (`x`, or `g` for all that follow).
    pub(super) fn pax(self, kind: u8, records: &[(&str, &str)]) -> Self {
        let mut data = String::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            // The length counts its own digits.
            let length = (1..).find(|all: &usize| all.to_string().len() + rest.len() == *all);
            data += &format!("{}{rest}", length.unwrap());
        }
        self.with(b"pax", kind, 0o644, data.as_bytes())
    }

    /// The tar with its end.
    pub(super) fn bytes(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    /// The same in gzip.
    pub(super) fn gz(self) -> Vec<u8> {
        gzip(&self.bytes())
    }
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
