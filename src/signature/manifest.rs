//! What is signed about a file.

use prost::Message;

use super::{DIGEST_SIGNATURE, MAX_SIGNATURE, Refusal};

/// Longest name, bytes.
pub const MAX_NAME: usize = 128;
/// Longest version, bytes.
pub const MAX_VERSION: usize = 256;
/// Longest list of targets, bytes.
pub const MAX_TARGET: usize = 1024;
/// Longest name of a set, bytes.
pub const MAX_SET: usize = 128;
/// Signatures of one manifest: what two keyrings could ask for.
const MAX_SIGNATURES: usize = 32;

/// A file, what it is, for whom, and for how long.
///
/// An older Chiton ignores a field that it does not know: one that must not be ignored needs another first line of
/// what is signed.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Manifest {
    /// The package's name, or the service that a configuration is for.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version, for people; order is told by `counter`.
    #[prost(string, tag = "2")]
    pub version: String,
    /// For which devices: terms with commas, empty is any.
    #[prost(string, tag = "3")]
    pub target: String,
    /// The file's length, bytes; of a configuration, see [`super::digest_config`].
    #[prost(uint64, tag = "4")]
    pub size: u64,
    /// The file's SHA-256.
    #[prost(bytes = "vec", tag = "5")]
    pub sha256: Vec<u8>,
    /// When it was signed, seconds since 1970.
    #[prost(uint64, tag = "6")]
    pub issued_at: u64,
    /// When it stops being good, seconds since 1970; 0: never.
    #[prost(uint64, tag = "7")]
    pub expires_at: u64,
    /// May never fall: what protects from old packages.
    #[prost(uint64, tag = "8")]
    pub counter: u64,
    /// The set that it belongs to; empty: none.
    #[prost(string, tag = "9")]
    pub set: String,
    /// What it is: see [`Manifest::kind`].
    #[prost(uint32, tag = "10")]
    pub kind: u32,
}

/// What a manifest is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A package's file.
    Package,
    /// A remote configuration.
    Config,
}

/// A manifest and signatures over it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SignedManifest {
    /// The bytes of a [`Manifest`], as they were signed.
    #[prost(bytes = "vec", tag = "1")]
    pub manifest: Vec<u8>,
    /// By one or more keys.
    #[prost(message, repeated, tag = "2")]
    pub signatures: Vec<Signature>,
}

/// One key's signature.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Signature {
    /// The key's id.
    #[prost(bytes = "vec", tag = "1")]
    pub key_id: Vec<u8>,
    /// Ed25519, 64 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub signature: Vec<u8>,
}

impl SignedManifest {
    /// Reads one, without trusting anything in it.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        match bytes.len() {
            0 => return Err(Refusal::Absent),
            DIGEST_SIGNATURE => return Err(Refusal::DigestForm),
            length if length > MAX_SIGNATURE => return Err(Refusal::TooLong(length)),
            _ => {}
        }
        let signed = Self::decode(bytes).map_err(|_| Refusal::Malformed)?;
        if signed.manifest.is_empty() || signed.signatures.len() > MAX_SIGNATURES {
            return Err(Refusal::Malformed);
        }
        Ok(signed)
    }
}

impl Kind {
    /// As a manifest has it.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Package => 0,
            Self::Config => 1,
        }
    }
}

impl Manifest {
    /// Reads one and checks its fields.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let manifest = Self::decode(bytes).map_err(|_| Refusal::Malformed)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks the fields: lengths, and no control characters in what will be shown.
    ///
    /// # Errors
    /// What is wrong with the first bad field.
    pub fn check(&self) -> Result<(), Refusal> {
        // A configuration may be for any service, and its version is for people only.
        let named = self.kind()? == Kind::Package;
        for (field, text, most) in [
            ("name", &self.name, MAX_NAME),
            ("version", &self.version, MAX_VERSION),
            ("target", &self.target, MAX_TARGET),
            ("set", &self.set, MAX_SET),
        ] {
            let wrong = if text.len() > most {
                format!("has {} bytes; allowed are {most}", text.len())
            } else if text.chars().any(char::is_control) {
                "has control characters; allowed is printable text".to_owned()
            } else if text.is_empty() && named && matches!(field, "name" | "version") {
                "is empty; it must be there".to_owned()
            } else {
                continue;
            };
            return Err(Refusal::Field { field, wrong });
        }
        if self.sha256.len() != 32 {
            let wrong = format!("has {} bytes; a SHA-256 has 32", self.sha256.len());
            return Err(Refusal::Field { field: "sha256", wrong });
        }
        Ok(())
    }

    /// What it is about.
    ///
    /// # Errors
    /// It is a kind that this version does not know.
    pub fn kind(&self) -> Result<Kind, Refusal> {
        [Kind::Package, Kind::Config]
            .into_iter()
            .find(|kind| kind.number() == self.kind)
            .ok_or_else(|| {
                let wrong = format!("is {}; known are 0 (package) and 1 (config)", self.kind);
                Refusal::Field { field: "kind", wrong }
            })
    }

    /// Whether it is about a file with this length and SHA-256.
    ///
    /// # Errors
    /// It is not.
    pub fn check_file(&self, size: u64, sha256: &[u8; 32]) -> Result<(), Refusal> {
        if self.size != size {
            return Err(Refusal::Size { signed: self.size, found: size });
        }
        if self.sha256 != sha256 { Err(Refusal::Content) } else { Ok(()) }
    }

    /// Whether it is still good at this time, in seconds since 1970.
    ///
    /// # Errors
    /// It has expired.
    pub const fn check_time(&self, now: u64) -> Result<(), Refusal> {
        if self.expires_at == 0 || now < self.expires_at {
            return Ok(());
        }
        Err(Refusal::Expired { ago: now.saturating_sub(self.expires_at) })
    }
}
