//! Ed25519 keys: PEM as openssl writes it, and nothing weak.

use core::fmt;

use futures_rustls::pki_types::pem::{PemObject as _, SectionKind};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::secret::Secret;
use crate::sha256::Sha256;

/// What stands before the 32 bytes of a key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What stands before the 32 bytes of a private key in PKCS#8, version 1, as openssl writes and reads it.
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// Where in a key its algorithm is named.
const ALGORITHM_WITHIN: usize = 40;
/// Object identifiers by which a key of another kind is named.
const ALGORITHMS: [(&str, &[u8]); 8] = [
    ("Ed25519, but damaged", &[6, 3, 0x2b, 0x65, 0x70]),
    ("Ed448", &[6, 3, 0x2b, 0x65, 0x71]),
    ("X25519", &[6, 3, 0x2b, 0x65, 0x6e]),
    ("X448", &[6, 3, 0x2b, 0x65, 0x6f]),
    ("RSA", &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1]),
    ("RSA-PSS", &[6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10]),
    ("EC", &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1]),
    ("DSA", &[6, 7, 0x2a, 0x86, 0x48, 0xce, 0x38, 4, 1]),
];
/// The y coordinates of the eight points of small order. Whoever has one of these as his key can have signatures
/// that fit many messages, without any private key.
const SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    {
        let mut one = [0; 32];
        one[0] = 1;
        one
    },
    {
        let mut minus_one = [0xff; 32];
        minus_one[0] = 0xec;
        minus_one[31] = 0x7f;
        minus_one
    },
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
];
const ALLOWED_PUBLIC: &str = "allowed is what `openssl pkey -pubout` writes for an Ed25519 key";
const ALLOWED_PRIVATE: &str =
    "allowed is what `chiton keygen` or `openssl genpkey -algorithm ed25519` writes";

/// The name of a key: the first 8 bytes of the SHA-256 of its 32 bytes, shown as 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// From its bytes; [`None`]: they are not 8.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An Ed25519 public key that is fit to be trusted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Reads a PEM file's content: one SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = section(pem, SectionKind::PublicKey)
            .map_err(|wrong| format!("no public key: {wrong}; {ALLOWED_PUBLIC}"))?;
        let raw = der.strip_prefix(&SPKI).and_then(|raw| raw.try_into().ok());
        Self::from_raw(raw.ok_or_else(|| other_kind(&der, ALLOWED_PUBLIC))?)
    }

    /// From its 32 bytes.
    ///
    /// # Errors
    /// The encoding is not the one there is for its point, or the point is of small order.
    pub fn from_raw(raw: [u8; 32]) -> Result<Self, String> {
        // The highest bit is the sign of x; the rest is y, which must be below 2^255 - 19.
        let [low, middle @ .., high] = raw;
        if high | 0x80 == 0xff && middle.iter().all(|byte| *byte == 0xff) && low >= 0xed {
            return Err(format!("the key is not in its canonical encoding; {ALLOWED_PUBLIC}"));
        }
        let small = |y: &[u8; 32]| {
            let [known_low, known_middle @ .., known_high] = y;
            low == *known_low && middle == *known_middle && high & 0x7f == *known_high
        };
        if SMALL_ORDER.iter().any(small) {
            return Err(format!(
                "the key is a point of small order, for which anybody can sign; {ALLOWED_PUBLIC}"
            ));
        }
        Ok(Self(raw))
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let [a, b, c, d, e, f, g, h, ..] = Sha256::digest(self.0);
        KeyId([a, b, c, d, e, f, g, h])
    }

    /// Its SubjectPublicKeyInfo.
    #[must_use]
    pub fn der(&self) -> Vec<u8> {
        [SPKI.as_slice(), &self.0].concat()
    }

    /// Whether this key has signed these bytes.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// A private key. It cannot be printed.
pub struct SigningKey(Secret<Ed25519KeyPair>);

impl SigningKey {
    /// Reads a PEM file's content: PKCS#8, not encrypted.
    ///
    /// # Errors
    /// What is wrong with it, and what is allowed; never a part of it.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let der = section(pem, SectionKind::PrivateKey)
            .map_err(|wrong| format!("no private key: {wrong}; {ALLOWED_PRIVATE}"))?;
        // Version 1 has no public key to compare with: openssl writes it so.
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der);
        Ok(Self(Secret::new(pair.map_err(|_| other_kind(&der, ALLOWED_PRIVATE))?)))
    }

    /// A key made of 32 random bytes.
    ///
    /// # Errors
    /// The library refuses them; it never does.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, String> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        Ok(Self(Secret::new(pair.map_err(|error| error.to_string())?)))
    }

    /// The PKCS#8 of the key that [`SigningKey::from_seed`] makes.
    #[must_use]
    pub fn seed_to_der(seed: &[u8; 32]) -> Secret<Vec<u8>> {
        Secret::new([PKCS8.as_slice(), seed].concat())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut raw = [0; 32];
        for (to, from) in raw.iter_mut().zip(self.0.expose().public_key().as_ref()) {
            *to = *from;
        }
        PublicKey(raw)
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut raw = [0; 64];
        for (to, from) in raw.iter_mut().zip(self.0.expose().sign(message).as_ref()) {
            *to = *from;
        }
        raw
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.0)
    }
}

/// The one section of this kind in a PEM file; the error says what is there instead.
fn section(pem: &[u8], wanted: SectionKind) -> Result<Vec<u8>, String> {
    let mut found = None;
    let mut other = None;
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem) {
        // The library's error may quote the file.
        let (kind, der) = section.map_err(|_| "the PEM is broken")?;
        if kind != wanted {
            other = Some(kind);
        } else if found.replace(der).is_some() {
            return Err("there is more than one key in the file".to_owned());
        }
    }
    let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";
    found.ok_or_else(|| {
        match other {
            Some(SectionKind::PublicKey) => "it is a public key",
            Some(SectionKind::PrivateKey) => "it is a private key",
            Some(SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey) => {
                "it is a private key of another kind (RSA or EC)"
            }
            Some(SectionKind::Certificate) => "it is a certificate",
            _ if pem.windows(encrypted.len()).any(|window| window == encrypted) => {
                "it is encrypted; `openssl pkey -in KEY -out PLAIN` decrypts it"
            }
            _ => "there is no PEM of a key in the file",
        }
        .to_owned()
    })
}

/// What to say about a key that is not one of ours.
fn other_kind(der: &[u8], allowed: &str) -> String {
    let head = der.get(..ALGORITHM_WITHIN).unwrap_or(der);
    let named = |(_, id): &(&str, &[u8])| head.windows(id.len()).any(|window| window == *id);
    let name = ALGORITHMS.into_iter().find(named).map_or("of no known algorithm", |(name, _)| name);
    format!("another kind of key ({name}); {allowed}")
}
