//! What a set of packages is: its members, and the plan for the next one.

use bytes::Bytes;
use chiton_proto::PackageType;

use crate::agent::rollout::Digest;
use crate::sha256::Sha256;

pub use crate::signature::{MAX_NAME, MAX_VERSION};

/// The only top-level package may have no name (opamp-spec L2677): this is its name on the disk.
pub const UNNAMED: &str = "_top";

/// What a package is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The workload's program.
    #[default]
    TopLevel,
    /// A file or tree that the workload reads.
    Addon,
}

impl Kind {
    /// From OpAMP's.
    #[must_use]
    pub const fn of(kind: PackageType) -> Self {
        match kind {
            PackageType::TopLevel => Self::TopLevel,
            PackageType::Addon => Self::Addon,
        }
    }
}

/// One package of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// Its name, as placed: a plain file name.
    pub name: String,
    /// As offered.
    pub version: String,
    /// As offered: opaque.
    pub hash: Bytes,
    /// What it is for.
    pub kind: Kind,
    /// SHA-256 of its file.
    pub sha256: Digest,
    /// The counter of its signed manifest; 0 without one.
    pub counter: u64,
    /// When that was signed, Unix seconds; 0 without one.
    pub issued_at: u64,
    /// When that expires, Unix seconds; 0: never.
    pub expires_at: u64,
    /// It was put here by the device's maker: never reported, never removed.
    pub local: bool,
}

impl Member {
    /// Whether the files of the two are the same, in the same place.
    #[must_use]
    pub fn is_like(&self, other: &Self) -> bool {
        self.name == other.name && self.sha256 == other.sha256 && self.kind == other.kind
    }

    /// Its name in OpAMP's messages.
    #[must_use]
    pub fn offered_name(&self) -> &str {
        if self.name == UNNAMED { "" } else { &self.name }
    }
}

/// All that is to be installed, after what was offered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `all_packages_hash` of the offer.
    pub hash: Bytes,
    /// In the order of their names.
    pub members: Vec<Member>,
    /// Names of those that are not installed as they are here.
    pub changed: Vec<String>,
}

/// What the running generation has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Running {
    /// Its packages.
    pub members: Vec<Member>,
    /// It has a main configuration file.
    pub has_config: bool,
    /// Names of packages that the device's maker has put here.
    pub local: Vec<String>,
}

/// SHA-256 over what members are made of; not over what they are called by the server.
#[must_use]
pub fn digest(members: &[Member]) -> Digest {
    let mut hash = Sha256::new();
    for member in members {
        // A name has no NUL, and the rest has one length.
        hash.update(member.name.as_bytes());
        hash.update([0, u8::from(member.kind == Kind::Addon)]);
        hash.update(member.sha256);
    }
    hash.finalize()
}

/// The name on the disk of an offered package. ASCII only: what looks alike is alike.
///
/// # Errors
/// Why it is refused.
pub fn placed_name(offered: &str) -> Result<&str, String> {
    if offered.is_empty() {
        return Ok(UNNAMED);
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-+@~".contains(&byte);
    let shown: String = offered.escape_debug().take(60).collect();
    if offered.len() > MAX_NAME {
        return Err(format!("package name \"{shown}…\": longer than {MAX_NAME} bytes"));
    }
    if !offered.bytes().all(plain)
        || !offered.starts_with(|first: char| first.is_ascii_alphanumeric())
    {
        return Err(format!(
            "package name \"{shown}\": allowed are ASCII letters, digits and . _ - + @ ~, a letter or digit first"
        ));
    }
    Ok(offered)
}
