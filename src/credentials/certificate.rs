//! An X.509 certificate (RFC 5280): what must be known of it before it is used.

use futures_rustls::pki_types::CertificateDer;
use futures_rustls::pki_types::pem::PemObject as _;

use super::der::{
    BITS, BOOLEAN, Broken, CONTEXT_0, INTEGER, OCTETS, OID, Reader, SEQUENCE, SET, UTF8,
    whole_bytes,
};

/// Most extensions of a certificate.
pub const MAX_EXTENSIONS: usize = 64;
/// Most parts of a subject.
pub const MAX_NAME_PARTS: usize = 64;
/// Most usages, and most alternative names, that are looked at.
pub const MAX_ENTRIES: usize = 256;
/// Longest common name that is shown, bytes (ub-common-name is 64 letters).
pub const MAX_COMMON_NAME: usize = 256;

/// Days from year 1 to 1970.
const TO_1970: u64 = 719_162;
const DAY: u64 = 86_400;

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 17];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 19];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 37, 0];
pub(super) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// A certificate, read. Nothing of it has been verified.
#[derive(Clone, Debug)]
pub struct Certificate<'a> {
    /// Holds from, seconds since 1970; zero: before 1970.
    pub not_before: u64,
    /// Holds until and with, seconds since 1970.
    pub not_after: u64,
    /// The common name of its subject, the last where there are several.
    pub common_name: Option<&'a str>,
    /// Name of its issuer, DER.
    pub issuer: &'a [u8],
    /// Name of its subject, DER.
    pub subject: &'a [u8],
    /// SubjectPublicKeyInfo, DER.
    pub key_info: &'a [u8],
    /// It may sign certificates.
    pub is_ca: bool,
    /// The first byte of keyUsage, 0x80 is digitalSignature, 4 is keyCertSign; [`None`]: it does not say.
    pub key_usage: Option<u8>,
    /// Whether its extended usages name clients, or any; [`None`]: it does not say.
    pub for_clients: Option<bool>,
    /// What its issuer signed.
    pub(super) signed: &'a [u8],
    /// How.
    pub(super) algorithm: &'a [u8],
    /// The signature.
    pub(super) signature: &'a [u8],
    /// The algorithm of its own key.
    pub(super) key_algorithm: &'a [u8],
    /// Its own key.
    pub(super) key: &'a [u8],
    alternative_names: &'a [u8],
}

/// A name that is not the subject's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name<'a> {
    /// Of a host.
    Dns(&'a str),
    /// Such as `urn:uuid:…`.
    Uri(&'a str),
}

impl<'a> Certificate<'a> {
    /// Reads one certificate.
    ///
    /// # Errors
    /// In what way it is none.
    pub fn parse(der: &'a [u8]) -> Result<Self, String> {
        Self::read(der).map_err(|broken| format!("it is no X.509 certificate: {broken}"))
    }

    fn read(der: &'a [u8]) -> Result<Self, Broken> {
        let mut outer = Reader::new(der);
        let mut parts = outer.enter(SEQUENCE)?;
        outer.end()?;
        let signed = parts.take(SEQUENCE)?;
        let algorithm = parts.take(SEQUENCE)?;
        let signature = whole_bytes(parts.take(BITS)?.content)?;
        parts.end()?;

        let mut fields = Reader::new(signed.content);
        let version = fields.enter(CONTEXT_0)?.take(INTEGER)?;
        if version.content != [2] {
            return Err("it is not of version 3");
        }
        fields.take(INTEGER)?;
        if fields.take(SEQUENCE)?.whole != algorithm.whole {
            return Err("it names two algorithms for its signature");
        }
        let issuer = fields.take(SEQUENCE)?.whole;
        let mut validity = fields.enter(SEQUENCE)?;
        let (not_before, not_after) = (time(&mut validity)?, time(&mut validity)?);
        validity.end()?;
        let subject = fields.take(SEQUENCE)?;
        let key_info = fields.take(SEQUENCE)?;
        let mut key = Reader::new(key_info.content);
        let key_algorithm = key.take(SEQUENCE)?.content;
        let key_bits = whole_bytes(key.take(BITS)?.content)?;
        key.end()?;
        // Identifiers of issuer and subject: bit strings, long out of use.
        fields.optional(0x81)?;
        fields.optional(0x82)?;
        let mut found = Self {
            not_before,
            not_after,
            common_name: common_name(Reader::new(subject.content))?,
            issuer,
            subject: subject.whole,
            key_info: key_info.whole,
            is_ca: false,
            key_usage: None,
            for_clients: None,
            signed: signed.whole,
            algorithm: algorithm.content,
            signature,
            key_algorithm,
            key: key_bits,
            alternative_names: &[],
        };
        if let Some(extensions) = fields.optional(0xa3)? {
            found.extensions(extensions.content)?;
        }
        fields.end()?;
        Ok(found)
    }

    fn extensions(&mut self, bytes: &'a [u8]) -> Result<(), Broken> {
        let mut outer = Reader::new(bytes);
        let mut all = outer.enter(SEQUENCE)?;
        outer.end()?;
        let mut seen = 0_u8;
        for _ in 0..MAX_EXTENSIONS {
            if all.is_empty() {
                return Ok(());
            }
            let mut extension = all.enter(SEQUENCE)?;
            let id = extension.take(OID)?.content;
            extension.optional(BOOLEAN)?;
            let mut value = extension.enter(OCTETS)?;
            extension.end()?;
            let bit = match id {
                BASIC_CONSTRAINTS => {
                    let mut constraints = value.enter(SEQUENCE)?;
                    let is_ca = constraints.optional(BOOLEAN)?;
                    self.is_ca = is_ca.is_some_and(|is_ca| is_ca.content == [0xff]);
                    1
                }
                KEY_USAGE => {
                    let usage = value.take(BITS)?.content;
                    self.key_usage = Some(usage.get(1).copied().unwrap_or_default());
                    2
                }
                EXTENDED_KEY_USAGE => {
                    self.for_clients = Some(for_clients(value.enter(SEQUENCE)?)?);
                    4
                }
                ALTERNATIVE_NAMES => {
                    self.alternative_names = value.take(SEQUENCE)?.content;
                    8
                }
                _ => continue,
            };
            value.end()?;
            if seen & bit != 0 {
                return Err("it has an extension twice");
            }
            seen |= bit;
        }
        if all.is_empty() { Ok(()) } else { Err("it has too many extensions") }
    }

    /// The common name of its issuer.
    #[must_use]
    pub fn issuer_name(&self) -> Option<&'a str> {
        let name = Reader::new(self.issuer).enter(SEQUENCE).and_then(common_name);
        name.ok().flatten()
    }

    /// The hosts and the URIs that it is for, at most [`MAX_ENTRIES`].
    ///
    /// # Errors
    /// They are broken.
    pub fn names(&self) -> Result<Vec<Name<'a>>, String> {
        let mut names = Vec::new();
        let mut all = Reader::new(self.alternative_names);
        while !all.is_empty() && names.len() < MAX_ENTRIES {
            let name = all.any().map_err(|broken| format!("its names: {broken}"))?;
            let text = core::str::from_utf8(name.content).ok();
            match (name.tag, text) {
                (0x82, Some(text)) => names.push(Name::Dns(text)),
                (0x86, Some(text)) => names.push(Name::Uri(text)),
                _ => {}
            }
        }
        Ok(names)
    }
}

/// The last common name that is text.
fn common_name(mut parts: Reader<'_>) -> Result<Option<&str>, Broken> {
    let mut name = None;
    for _ in 0..MAX_NAME_PARTS {
        if parts.is_empty() {
            break;
        }
        let mut part = parts.enter(SET)?.enter(SEQUENCE)?;
        let id = part.take(OID)?.content;
        let value = part.any()?;
        // UTF8String, PrintableString, IA5String.
        if id == COMMON_NAME
            && matches!(value.tag, UTF8 | 0x13 | 0x16)
            && value.content.len() <= MAX_COMMON_NAME
        {
            name = core::str::from_utf8(value.content).ok();
        }
    }
    if parts.is_empty() { Ok(name) } else { Err("its name has too many parts") }
}

fn for_clients(mut usages: Reader<'_>) -> Result<bool, Broken> {
    let mut found = false;
    for _ in 0..MAX_ENTRIES {
        if usages.is_empty() {
            break;
        }
        let usage = usages.take(OID)?.content;
        found |= usage == CLIENT_AUTH || usage == ANY_USAGE;
    }
    usages.end()?;
    Ok(found)
}

/// UTCTime or GeneralizedTime as RFC 5280 §4.1.2.5 has them: to the second, in UTC, no fractions.
fn time(from: &mut Reader<'_>) -> Result<u64, Broken> {
    let time = from.any()?;
    let (century, rest) = match (time.tag, time.content) {
        (0x17, digits) => {
            let year = digits.first_chunk().and_then(number);
            (Some(if year.is_some_and(|year| year < 50) { 20 } else { 19 }), digits)
        }
        (0x18, [century @ .., _, _, _, _, _, _, _, _, _, _, _, _, _]) => {
            let century = <&[u8; 2]>::try_from(century).ok().and_then(number);
            (century, time.content.get(2..).unwrap_or_default())
        }
        _ => (None, time.content),
    };
    century.and_then(|century| seconds(century, rest)).ok_or("it has a date that is none")
}

/// Seconds since 1970 of `YYMMDDhhmmssZ` in this century; zero for what lies before.
fn seconds(century: u64, text: &[u8]) -> Option<u64> {
    let (pairs, b"Z") = text.as_chunks::<2>() else { return None };
    let [year, month, day, hour, minute, second] = pairs else { return None };
    let year = century.checked_mul(100)?.checked_add(number(year)?)?;
    let (month, day) = (number(month)?, number(day)?);
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let february = if is_leap { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let before = usize::try_from(month.checked_sub(1)?).ok()?;
    let length = lengths.get(before)?;
    if day == 0 || day > *length || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let years = year.checked_sub(1)?;
    let leaps = (years / 4).checked_sub(years / 100)?.checked_add(years / 400)?;
    let of_year = lengths.get(..before)?.iter().sum::<u64>();
    let days =
        years.checked_mul(365)?.checked_add(leaps)?.checked_add(of_year)?.checked_add(day)?;
    let of_day = hour.checked_mul(60)?.checked_add(minute)?.checked_mul(60)?.checked_add(second)?;
    let Some(days) = days.checked_sub(TO_1970.saturating_add(1)) else { return Some(0) };
    days.checked_mul(DAY)?.checked_add(of_day)
}

/// Two digits.
fn number(digits: &[u8; 2]) -> Option<u64> {
    let [tens, ones] = digits.map(|digit| u64::from(digit.wrapping_sub(b'0')));
    (tens < 10 && ones < 10).then(|| tens.saturating_mul(10).saturating_add(ones))
}

/// All certificates of a PEM file; an empty file is an error.
///
/// # Errors
/// What is wrong with it.
pub fn from_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}
