//! Signatures by trusted keys: the digest form and the manifest form. Pure: bytes and keys in, a verdict out.
//!
//! Nothing of what is signed is read before its signatures are good. Ed25519 is taken strictly: keys and numbers in
//! their one encoding, no key of small order.

mod config;
mod key;
mod manifest;
mod refusal;

pub use config::{MAX_SIGNATURE_OBJECT, SIGNATURE_OBJECT, digest_config, signature_bytes};
pub use key::{KeyId, PublicKey, SigningKey};
pub use manifest::{
    Kind, MAX_NAME, MAX_SET, MAX_TARGET, MAX_VERSION, Manifest, Signature, SignedManifest,
};
pub use refusal::Refusal;

use prost::Message as _;

/// Largest signature of either form, bytes.
pub const MAX_SIGNATURE: usize = 4096;
/// Length of the digest form: one Ed25519 signature.
pub const DIGEST_SIGNATURE: usize = 64;
/// What is signed in the manifest form begins with this; another version of the manifest has another beginning.
const MANIFEST_DOMAIN: &[u8] = b"chiton-manifest-v1\0";

/// The form of a signature, by its length alone: a signed manifest is always longer than 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// 64 bytes of Ed25519 over the file's SHA-256.
    Digest,
    /// A `SignedManifest`.
    Manifest,
}

/// The form of these bytes.
#[must_use]
pub const fn form(signature: &[u8]) -> Form {
    if signature.len() == DIGEST_SIGNATURE { Form::Digest } else { Form::Manifest }
}

/// The keys whose signatures count, and how many of them are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyring {
    keys: Vec<PublicKey>,
    threshold: usize,
    revoked: Vec<String>,
}

impl Keyring {
    /// A key that is listed twice is one key. `revoked` are key ids in hex: their first digits are enough.
    #[must_use]
    pub fn new(mut keys: Vec<PublicKey>, threshold: usize, revoked: &[String]) -> Self {
        keys.sort_unstable();
        keys.dedup();
        // An empty entry would revoke every key.
        let revoked = revoked.iter().filter(|id| !id.is_empty());
        let revoked = revoked.map(|id| id.to_ascii_lowercase()).collect();
        Self { keys, threshold: threshold.max(1), revoked }
    }

    /// The keys that count.
    pub fn active(&self) -> impl Iterator<Item = &PublicKey> {
        self.keys.iter().filter(|key| !self.is_revoked(key.id()))
    }

    /// Whether there are as many keys that count as signatures are needed.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.active().count() >= self.threshold
    }

    /// Whether a key no longer counts. An entry longer than an id (the whole digest) goes by its beginning.
    fn is_revoked(&self, id: KeyId) -> bool {
        let id = id.to_string();
        self.revoked.iter().any(|entry| id.starts_with(entry.get(..id.len()).unwrap_or(entry)))
    }

    /// # Errors
    /// No signature can be enough.
    fn usable(&self) -> Result<(), Refusal> {
        if self.is_usable() {
            return Ok(());
        }
        Err(Refusal::NoKeys { needed: self.threshold, active: self.active().count() })
    }
}

/// Checks a signature in the digest form: Ed25519 over the 32 bytes of a SHA-256. Returns whose it is.
///
/// # Errors
/// Why it does not count.
pub fn digest_signer(
    keyring: &Keyring,
    sha256: &[u8; 32],
    signature: &[u8],
) -> Result<KeyId, Refusal> {
    match signature.len() {
        0 => return Err(Refusal::Absent),
        DIGEST_SIGNATURE => {}
        length => return Err(Refusal::DigestLength(length)),
    }
    keyring.usable()?;
    if keyring.threshold > 1 {
        return Err(Refusal::DigestThreshold(keyring.threshold));
    }
    match keyring.keys.iter().find(|key| key.verify(sha256, signature)) {
        Some(key) if keyring.is_revoked(key.id()) => Err(Refusal::DigestRevoked(key.id())),
        Some(key) => Ok(key.id()),
        None => Err(Refusal::DigestWrong(keyring.active().map(PublicKey::id).collect())),
    }
}

/// As [`digest_signer`].
///
/// # Errors
/// Why the signature does not count.
pub fn check_digest(keyring: &Keyring, sha256: &[u8; 32], signature: &[u8]) -> Result<(), Refusal> {
    digest_signer(keyring, sha256, signature).map(drop)
}

/// Opens a signed manifest: returns it where enough trusted keys have signed it, and who they are.
///
/// # Errors
/// Why it does not count.
pub fn manifest_signers(
    keyring: &Keyring,
    bytes: &[u8],
) -> Result<(Manifest, Vec<KeyId>), Refusal> {
    let signed = SignedManifest::parse(bytes)?;
    keyring.usable()?;
    let signers = signers(keyring, &signed)?;
    Ok((Manifest::parse(&signed.manifest)?, signers))
}

/// Opens a signed manifest where enough trusted keys have signed it. What it says still has to be compared: kind,
/// name, target, counter, [`Manifest::check_file`], [`Manifest::check_time`].
///
/// # Errors
/// Why it does not count.
pub fn open_manifest(keyring: &Keyring, bytes: &[u8]) -> Result<Manifest, Refusal> {
    manifest_signers(keyring, bytes).map(|(manifest, _)| manifest)
}

/// The trusted keys that have signed: each counts once, however many signatures bear its id.
fn signers(keyring: &Keyring, signed: &SignedManifest) -> Result<Vec<KeyId>, Refusal> {
    let message = [MANIFEST_DOMAIN, &signed.manifest].concat();
    let signatures_of = |id: KeyId| {
        signed.signatures.iter().filter(move |signature| signature.key_id == id.as_bytes())
    };
    let (mut good, mut wrong) = (Vec::new(), Vec::new());
    for key in keyring.active() {
        let mut own = signatures_of(key.id()).peekable();
        if own.peek().is_none() {
            continue;
        }
        let verified = own.any(|signature| key.verify(&message, &signature.signature));
        if verified { &mut good } else { &mut wrong }.push(key.id());
    }
    if good.len() >= keyring.threshold {
        return Ok(good);
    }
    let mut others: Vec<KeyId> =
        signed.signatures.iter().filter_map(|signature| KeyId::read(&signature.key_id)).collect();
    others.sort_unstable();
    others.dedup();
    others.retain(|id| !good.contains(id) && !wrong.contains(id));
    let (revoked, unknown) = others.into_iter().partition(|id| keyring.is_revoked(*id));
    Err(Refusal::TooFew { needed: keyring.threshold, good, wrong, revoked, unknown })
}

/// Signs a file's SHA-256: the digest form.
#[must_use]
pub fn sign_digest(key: &SigningKey, sha256: &[u8; 32]) -> [u8; DIGEST_SIGNATURE] {
    key.sign(sha256)
}

impl SignedManifest {
    /// A manifest that nobody has signed yet.
    #[must_use]
    pub fn new(manifest: &Manifest) -> Self {
        Self { manifest: manifest.encode_to_vec(), signatures: Vec::new() }
    }

    /// Signs it too. A signature that bears this key's id is replaced.
    pub fn sign(&mut self, key: &SigningKey) {
        let key_id = key.public().id().as_bytes().to_vec();
        let signature = key.sign(&[MANIFEST_DOMAIN, &self.manifest].concat()).to_vec();
        self.signatures.retain(|other| other.key_id != key_id);
        self.signatures.push(Signature { key_id, signature });
    }
}

#[cfg(test)]
mod tests;
