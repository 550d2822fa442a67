//! DER, as much of it as X.509 needs: read strictly, one level at a time, and written.

/// BOOLEAN.
pub(super) const BOOLEAN: u8 = 0x01;
/// INTEGER.
pub(super) const INTEGER: u8 = 0x02;
/// BIT STRING.
pub(super) const BITS: u8 = 0x03;
/// OCTET STRING.
pub(super) const OCTETS: u8 = 0x04;
/// OBJECT IDENTIFIER.
pub(super) const OID: u8 = 0x06;
/// UTF8String.
pub(super) const UTF8: u8 = 0x0c;
/// SEQUENCE.
pub(super) const SEQUENCE: u8 = 0x30;
/// SET.
pub(super) const SET: u8 = 0x31;
/// `[0]`, with something in it.
pub(super) const CONTEXT_0: u8 = 0xa0;

/// A length takes at most so many bytes after the first: what is longer fits into no file that is read.
const MAX_LENGTH_BYTES: usize = 4;

/// Why something is no DER; the reader adds where.
pub(super) type Broken = &'static str;

/// What follows one another. Nothing is taken that does not lie within.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

/// One element: its tag, what is in it, and the whole of it.
#[derive(Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    pub(super) whole: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next element, whatever it is.
    pub(super) fn any(&mut self) -> Result<Element<'a>, Broken> {
        let all = self.0;
        let [tag, first, rest @ ..] = all else { return Err("it is cut off") };
        if tag & 0x1f == 0x1f {
            return Err("it has a tag of several bytes");
        }
        let (length, rest) = match usize::from(*first) {
            short @ 0..0x80 => (short, rest),
            long => {
                let count = long & 0x7f;
                // 0x80 is BER's "until further notice".
                if count == 0 || count > MAX_LENGTH_BYTES {
                    return Err("it has a length that is none");
                }
                let (bytes, rest) = rest.split_at_checked(count).ok_or("it is cut off")?;
                let length = bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                if length < 0x80 || bytes.first() == Some(&0) {
                    return Err("it has a length that is written too long");
                }
                (usize::try_from(length).map_err(|_| "it is cut off")?, rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length).ok_or("it is cut off")?;
        let whole = all.len().checked_sub(rest.len()).and_then(|end| all.get(..end));
        self.0 = rest;
        Ok(Element { tag: *tag, content, whole: whole.unwrap_or_default() })
    }

    /// The next element, which must have this tag.
    pub(super) fn take(&mut self, tag: u8) -> Result<Element<'a>, Broken> {
        let element = self.any()?;
        if element.tag == tag { Ok(element) } else { Err("something else stands in its place") }
    }

    /// What is in the next element, which must have this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Result<Self, Broken> {
        self.take(tag).map(|element| Self(element.content))
    }

    /// The next element where it has this tag.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<Element<'a>>, Broken> {
        if self.0.first() == Some(&tag) { self.any().map(Some) } else { Ok(None) }
    }

    /// Nothing may be left.
    pub(super) const fn end(&self) -> Result<(), Broken> {
        if self.is_empty() { Ok(()) } else { Err("something stands behind it") }
    }
}

/// A BIT STRING's content where it is whole bytes.
pub(super) fn whole_bytes(bits: &[u8]) -> Result<&[u8], Broken> {
    bits.strip_prefix(&[0]).ok_or("its bits are no whole bytes")
}

/// Writes one element.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    let significant = length.get(zeros..).unwrap_or_default();
    let mut whole = vec![tag];
    if content.len() >= 0x80 {
        whole.push(0x80 | u8::try_from(significant.len()).unwrap_or_default());
    }
    whole.extend_from_slice(if content.is_empty() { &[0] } else { significant });
    whole.extend(content);
    whole
}
