//! Why a signature does not count.

use core::fmt;

use super::{DIGEST_SIGNATURE, KeyId, MAX_SIGNATURE};

/// Key ids of one sort that are named; the rest are counted.
const NAMED: usize = 4;

/// Why a signature, or what it says, does not count. Its text is stable: it is shown to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No signature at all.
    Absent,
    /// Longer than [`MAX_SIGNATURE`].
    TooLong(usize),
    /// The digest form was asked for, and it has so many bytes.
    DigestLength(usize),
    /// The digest form where a manifest is needed.
    DigestForm,
    /// Neither of the forms.
    Malformed,
    /// Fewer trusted keys than signatures needed.
    NoKeys {
        /// Signatures needed.
        needed: usize,
        /// Keys that are trusted and not revoked.
        active: usize,
    },
    /// The digest form has room for one signature, and more are needed.
    DigestThreshold(usize),
    /// Signed by a key that is revoked.
    DigestRevoked(KeyId),
    /// Signed by none of these keys, or it is the signature of something else.
    DigestWrong(Vec<KeyId>),
    /// Not signed by enough trusted keys.
    TooFew {
        /// Signatures needed.
        needed: usize,
        /// Trusted keys that have signed.
        good: Vec<KeyId>,
        /// Trusted keys whose id is there with a signature that is not theirs, or of something else.
        wrong: Vec<KeyId>,
        /// Revoked keys that are named.
        revoked: Vec<KeyId>,
        /// Keys that are not trusted here.
        unknown: Vec<KeyId>,
    },
    /// The manifest is signed, but a field of it is not as it must be.
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        wrong: String,
    },
    /// The file has another size than the manifest says.
    Size {
        /// What is signed.
        signed: u64,
        /// What there is.
        found: u64,
    },
    /// The file has another SHA-256 than the manifest says.
    Content,
    /// The manifest's time is over.
    Expired {
        /// Seconds since then.
        ago: u64,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("there is no signature; `chiton sign` makes one"),
            Self::TooLong(length) => {
                write!(f, "the signature has {length} bytes; allowed are {MAX_SIGNATURE}")
            }
            Self::DigestLength(length) => write!(
                f,
                "the signature has {length} bytes; the digest form has {DIGEST_SIGNATURE}: it is cut short, or not raw"
            ),
            Self::DigestForm => f.write_str(
                "it is a digest signature, which names no package and no version; needed is a signed manifest: sign \
                 with `chiton sign --name NAME --version VERSION`",
            ),
            Self::Malformed => write!(
                f,
                "the signature is neither a signed manifest nor {DIGEST_SIGNATURE} raw bytes; `chiton sign` makes both"
            ),
            Self::NoKeys { needed, active } => write!(
                f,
                "{needed} signature(s) are needed and {active} key(s) are trusted and not revoked; add a trusted key"
            ),
            Self::DigestThreshold(needed) => write!(
                f,
                "signatures by {needed} keys are needed and the digest form has one; sign a manifest: `chiton sign \
                 --name`, then `--add` with each other key"
            ),
            Self::DigestRevoked(id) => {
                write!(f, "it is signed by key {id}, which is revoked; sign it with another key")
            }
            Self::DigestWrong(trusted) => write!(
                f,
                "it is the signature of another file, or by another key; trusted: {}",
                Ids(trusted)
            ),
            Self::TooFew { needed, good, wrong, revoked, unknown } => {
                write!(f, "signed by {} of {needed} trusted key(s) needed", good.len())?;
                for (what, ids) in [
                    ("good", good),
                    ("wrong signature", wrong),
                    ("revoked", revoked),
                    ("not trusted here", unknown),
                ] {
                    if !ids.is_empty() {
                        write!(f, "; {what}: {}", Ids(ids))?;
                    }
                }
                f.write_str("; sign it with a trusted key")
            }
            Self::Field { field, wrong } => write!(f, "the signed manifest's {field} {wrong}"),
            Self::Size { signed, found } => write!(
                f,
                "the file has {found} bytes and {signed} are signed: it is another file, or not whole"
            ),
            Self::Content => f.write_str(
                "the file's SHA-256 is not the signed one: it was changed, or it is another file",
            ),
            Self::Expired { ago } => {
                write!(f, "the signed manifest expired {} ago; sign the file again", Ago(*ago))
            }
        }
    }
}

impl core::error::Error for Refusal {}

/// Key ids with commas between them.
struct Ids<'i>(&'i [KeyId]);

impl fmt::Display for Ids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, id) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{id}", if at == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Seconds in the largest unit that they fill.
struct Ago(u64);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, seconds): &(&str, u64)| self.0 >= *seconds;
        let units = [("d", 86_400), ("h", 3600), ("m", 60)];
        let (unit, seconds) = units.into_iter().find(fits).unwrap_or(("s", 1));
        write!(f, "{}{unit}", self.0.checked_div(seconds).unwrap_or_default())
    }
}
