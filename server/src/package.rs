//! Packages, and which of them are offered to whom. No I/O.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use chiton_proto::{DownloadableFile, PackageAvailable, PackageType, PackagesAvailable};
use sha2::{Digest as _, Sha256};

use crate::clock::Moment;
use crate::config_set::ConfigHash;
use crate::selector::{Labels, Selector};
use crate::uid::InstanceUid;

/// Bytes of a name, and of a version.
const MAX_WORD: usize = 128;
/// Packages kept, each version counted.
const MAX_PACKAGES: usize = 1024;
/// Package offers with different targets.
const MAX_OFFERS: usize = 256;
/// Packages in one offer.
const MAX_OFFERED: usize = 64;
/// Bytes of one signature.
pub(crate) const MAX_SIGNATURE: usize = 4 << 10;
/// Bytes that one package takes in an offer at most: signature, names, hashes and a URL.
const MAX_ENTRY: usize = MAX_SIGNATURE + (1 << 10);

/// What a package is called. Agents make file names of both parts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PackageId {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl PackageId {
    /// Checks both. The error is for the person who wrote them.
    pub(crate) fn new(name: &str, version: &str) -> Result<Self, String> {
        word("name", name, "._+-")?;
        word("version", version, "._+-~:")?;
        Ok(Self { name: name.to_owned(), version: version.to_owned() })
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.name, self.version)
    }
}

fn word(what: &str, text: &str, marks: &str) -> Result<(), String> {
    if text.len() > MAX_WORD {
        return Err(format!("{what}: {} bytes long, at most {MAX_WORD} are allowed", text.len()));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || marks.contains(c);
    if text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(good) {
        return Ok(());
    }
    Err(format!(
        "{what}: {text:?} is not one: ASCII letters, digits and {marks} are allowed, a letter or digit first"
    ))
}

/// What a package is to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    TopLevel,
    Addon,
}

impl Kind {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "top_level" => Some(Self::TopLevel),
            "addon" => Some(Self::Addon),
            _ => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::TopLevel => "top_level",
            Self::Addon => "addon",
        }
    }

    fn to_wire(self) -> PackageType {
        match self {
            Self::TopLevel => PackageType::TopLevel,
            Self::Addon => PackageType::Addon,
        }
    }
}

/// SHA-256 of a file, by which it is stored and fetched.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileHash(pub(crate) [u8; 32]);

impl FileHash {
    /// 64 digits, lower-case: one file has one address.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.len() != 64 || text.bytes().any(|c| !matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for FileHash {
    /// Lower-case hex.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for FileHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// One version of one package.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) id: PackageId,
    pub(crate) kind: Kind,
    pub(crate) file: FileHash,
    pub(crate) size: u64,
    pub(crate) created: Moment,
    /// Made elsewhere, passed on as it is; empty: none.
    signature: Bytes,
    /// Over all that an agent is told of it.
    hash: ConfigHash,
}

impl Package {
    pub(crate) fn new(
        id: PackageId,
        kind: Kind,
        file: FileHash,
        size: u64,
        created: Moment,
        signature: Bytes,
    ) -> Self {
        let parts = [
            id.name.as_bytes(),
            id.version.as_bytes(),
            kind.as_str().as_bytes(),
            &file.0,
            &signature,
        ];
        let hash = hash_of(parts.into_iter());
        Self { id, kind, file, size, created, signature, hash }
    }

    pub(crate) fn with_signature(&self, signature: Bytes) -> Self {
        let Self { id, kind, file, size, created, .. } = self.clone();
        Self::new(id, kind, file, size, created, signature)
    }

    pub(crate) fn signature(&self) -> &Bytes {
        &self.signature
    }

    pub(crate) fn hash(&self) -> &ConfigHash {
        &self.hash
    }

    /// The path of its file, below the server's own address.
    pub(crate) fn path(&self) -> String {
        format!("/packages/{}", self.file)
    }

    /// The URL still lacks the server's address, which depends on who asks.
    fn to_available(&self) -> PackageAvailable {
        let mut available = PackageAvailable {
            version: self.id.version.clone(),
            file: Some(DownloadableFile {
                download_url: self.path(),
                content_hash: Bytes::copy_from_slice(&self.file.0),
                signature: self.signature.clone(),
                headers: None,
            }),
            hash: self.hash.0.clone(),
            ..PackageAvailable::default()
        };
        available.set_type(self.kind.to_wire());
        available
    }
}

/// SHA-256 over the parts, each with its length before it.
fn hash_of<'p>(parts: impl Iterator<Item = &'p [u8]>) -> ConfigHash {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    }
    ConfigHash(Bytes::copy_from_slice(&digest.finalize()))
}

/// Packages and whom they are for.
#[derive(Clone, Debug)]
pub(crate) struct PackageOffer {
    pub(crate) target: Selector,
    /// Name → version; never empty.
    pub(crate) members: BTreeMap<String, String>,
    pub(crate) created: Moment,
}

impl PackageOffer {
    /// Checks names, versions and count; a message may have `max_message` bytes. The error is for the person who
    /// wrote it.
    pub(crate) fn new(
        target: Selector,
        wanted: Vec<PackageId>,
        max_message: usize,
        created: Moment,
    ) -> Result<Self, String> {
        if wanted.is_empty() {
            return Err("packages: empty, which would tell agents to remove all they have; to take an offer \
                        back, DELETE it"
                .to_owned());
        }
        // The rest of the message is for a config and whatever else there is to say.
        let most = MAX_OFFERED.min((max_message / 4) / MAX_ENTRY);
        if wanted.len() > most {
            return Err(format!("packages: {} of them, at most {most} are allowed", wanted.len()));
        }
        let mut members = BTreeMap::new();
        for id in wanted {
            if let Some(version) = members.insert(id.name.clone(), id.version) {
                return Err(format!("packages: {} is there twice, once as {version}", id.name));
            }
        }
        Ok(Self { target, members, created })
    }

    fn ids(&self) -> impl Iterator<Item = PackageId> {
        self.members
            .iter()
            .map(|(name, version)| PackageId { name: name.clone(), version: version.clone() })
    }

    pub(crate) fn holds(&self, id: &PackageId) -> bool {
        self.members.get(&id.name) == Some(&id.version)
    }
}

/// Every package, and every offer of packages.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    packages: BTreeMap<PackageId, Package>,
    /// Oldest first; targets differ.
    offers: Vec<PackageOffer>,
}

impl Catalog {
    /// From what the store kept.
    pub(crate) fn new(packages: Vec<Package>, offers: Vec<PackageOffer>) -> Self {
        let packages = packages.into_iter().map(|package| (package.id.clone(), package)).collect();
        Self { packages, offers }
    }

    /// All packages, by name and version as text.
    pub(crate) fn packages(&self) -> &BTreeMap<PackageId, Package> {
        &self.packages
    }

    /// All offers, oldest first.
    pub(crate) fn offers(&self) -> &[PackageOffer] {
        &self.offers
    }

    /// A package whose file is this.
    pub(crate) fn with_file(&self, file: FileHash) -> Option<&Package> {
        self.packages.values().find(|package| package.file == file)
    }

    /// Whether one more package fits. The error is for the person who sent it.
    pub(crate) fn admits_package(&self) -> Result<(), String> {
        if self.packages.len() < MAX_PACKAGES {
            return Ok(());
        }
        Err(format!("{MAX_PACKAGES} packages are kept, which is the limit; delete some first"))
    }

    /// Whether this offer can be made. The error is for the person who sent it.
    pub(crate) fn admits_offer(&self, offer: &PackageOffer) -> Result<(), String> {
        for id in offer.ids() {
            if !self.packages.contains_key(&id) {
                let PackageId { name, version } = &id;
                return Err(format!(
                    "packages: there is no {id}; upload it first, with PUT /api/v1/packages/{name}/{version}"
                ));
            }
        }
        if self.offers.len() < MAX_OFFERS
            || self.offers.iter().any(|other| other.target == offer.target)
        {
            return Ok(());
        }
        Err(format!("{MAX_OFFERS} targets have packages already; use the target of one of them"))
    }

    /// Puts a package in, or in place of itself.
    pub(crate) fn insert(&mut self, package: Package) {
        self.packages.insert(package.id.clone(), package);
    }

    /// Takes a package out.
    pub(crate) fn remove(&mut self, id: &PackageId) {
        self.packages.remove(id);
    }

    /// Puts an offer into force, in place of an older one with its target.
    pub(crate) fn offer(&mut self, offer: PackageOffer) {
        self.withdraw(&offer.target);
        self.offers.push(offer);
    }

    /// Takes an offer back; false if there is none.
    pub(crate) fn withdraw(&mut self, target: &Selector) -> bool {
        let before = self.offers.len();
        self.offers.retain(|other| other.target != *target);
        self.offers.len() < before
    }

    /// The targets that this package is offered to.
    pub(crate) fn offered_to<'c>(
        &'c self,
        id: &'c PackageId,
    ) -> impl Iterator<Item = &'c Selector> {
        self.offers.iter().filter(|offer| offer.holds(id)).map(|offer| &offer.target)
    }

    /// The newest offer whose target means this agent.
    pub(crate) fn assigned(&self, uid: InstanceUid, labels: &Labels) -> Option<&PackageOffer> {
        self.offers.iter().rev().find(|offer| offer.target.matches(uid, labels))
    }

    /// The packages of an offer.
    pub(crate) fn members<'c>(
        &'c self,
        offer: &'c PackageOffer,
    ) -> impl Iterator<Item = &'c Package> {
        offer.ids().filter_map(|id| self.packages.get(&id))
    }

    /// What agents know the whole offer by.
    pub(crate) fn hash(&self, offer: &PackageOffer) -> ConfigHash {
        let members: Vec<_> = self.members(offer).collect();
        let parts = members.iter().flat_map(|p| [p.id.name.as_bytes(), &p.hash.0[..]]);
        hash_of(parts)
    }

    /// As a message carries it, with URLs that lack the server's address.
    pub(crate) fn to_available(&self, offer: &PackageOffer) -> PackagesAvailable {
        let packages = self.members(offer).map(|p| (p.id.name.clone(), p.to_available())).collect();
        PackagesAvailable { packages, all_packages_hash: self.hash(offer).0 }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;

    fn id(name: &str, version: &str) -> PackageId {
        PackageId::new(name, version).unwrap()
    }

    fn package(version: &str, kind: Kind, file: u8, signature: &'static [u8]) -> Package {
        let signature = Bytes::from_static(signature);
        Package::new(id("a", version), kind, FileHash([file; 32]), 1, Moment::from_db(0), signature)
    }

    fn offer(wanted: Vec<PackageId>) -> Result<PackageOffer, String> {
        PackageOffer::new(Selector::parse("*").unwrap(), wanted, 4 << 20, Moment::from_db(0))
    }

    #[test]
    fn names_are_file_names_everywhere() {
        for good in ["a", "otelcol-contrib", "lib_x.so", "A+1", "7zip"] {
            assert!(PackageId::new(good, "1:2.3~rc1+b").is_ok(), "{good}");
        }
        let long = "a".repeat(129);
        for bad in ["", ".", "..", ".hidden", "-rf", "a/b", "a\\b", "a b", "a\0", "ä", "a:b", &long]
        {
            assert!(PackageId::new(bad, "1").is_err(), "{bad}");
            assert!(PackageId::new("a", bad).is_err() || bad == "a:b", "{bad}");
        }
    }

    #[test]
    fn the_hash_tells_every_difference() {
        let base = package("1", Kind::TopLevel, 1, b"s");
        assert_eq!(base.hash(), package("1", Kind::TopLevel, 1, b"s").hash());
        for other in [
            package("2", Kind::TopLevel, 1, b"s"),
            package("1", Kind::Addon, 1, b"s"),
            package("1", Kind::TopLevel, 2, b"s"),
            package("1", Kind::TopLevel, 1, b""),
        ] {
            assert_ne!(base.hash(), other.hash(), "{other:?}");
        }
        let whole = |package: Package| {
            let offer = offer(vec![package.id.clone()]).unwrap();
            Catalog::new(vec![package], vec![offer.clone()]).hash(&offer)
        };
        assert_ne!(whole(base.clone()), whole(base.with_signature(Bytes::new())));
    }

    #[test]
    fn bad_offers_say_why() {
        let many = (0..65).map(|n| id(&format!("p{n}"), "1")).collect();
        for (wanted, part) in
            [(vec![], "DELETE"), (vec![id("a", "1"), id("a", "2")], "twice"), (many, "at most 64")]
        {
            let error = offer(wanted).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let error = Catalog::default().admits_offer(&offer(vec![id("a", "1")]).unwrap());
        assert!(error.unwrap_err().contains("upload it first"));
    }

    #[test]
    fn a_file_hash_has_one_spelling() {
        let text = "ab".repeat(32);
        assert_eq!(FileHash::from_text(&text).unwrap().to_string(), text);
        for bad in [text.to_uppercase(), "ab".repeat(31), "zz".repeat(32), "é".repeat(32)] {
            assert_eq!(FileHash::from_text(&bad), None, "{bad}");
        }
    }
}
