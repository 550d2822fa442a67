//! A key and a request to certify it (PKCS#10, RFC 2986).

use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};

use super::certificate::CLIENT_AUTH;
use super::der::{BITS, BOOLEAN, CONTEXT_0, INTEGER, OCTETS, OID, SEQUENCE, SET, UTF8, element};
use crate::base64::pem;
use crate::secret::Secret;

pub use super::judge::belongs;

/// Longest common name of a request, letters (ub-common-name).
pub const MAX_COMMON_NAME: usize = 64;

/// What stands before the seed of an Ed25519 key in PKCS#8, version 1.
const ED25519_PKCS8: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
/// AlgorithmIdentifier of Ed25519, of keys and signatures.
const ED25519: &[u8] = &[0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70];
/// AlgorithmIdentifier of a key on P-256.
const P256: &[u8] = &[
    0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
    0xce, 0x3d, 0x03, 0x01, 0x07,
];
/// AlgorithmIdentifier of ECDSA with SHA-256.
const ECDSA_SHA256: &[u8] =
    &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// extensionRequest (RFC 2985 §5.4.2).
const EXTENSION_REQUEST: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 14];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
const COMMON_NAME: &[u8] = &[0x55, 4, 3];
/// keyUsage digitalSignature: one bit of a byte.
const DIGITAL_SIGNATURE: &[u8] = &[BITS, 2, 7, 0x80];

/// Kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on NIST P-256.
    P256,
    /// Ed25519.
    Ed25519,
}

/// A new key, and the request to certify it.
#[derive(Debug)]
pub struct Request {
    /// PKCS#8, PEM.
    pub key_pem: Secret<Vec<u8>>,
    /// What goes to the server, PEM.
    pub csr_pem: Vec<u8>,
}

/// A key pair of either kind.
enum Pair {
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

/// Makes a key and a request for this common name.
///
/// # Errors
/// The name is none, or there are no random numbers.
pub fn make(kind: KeyKind, common_name: &str) -> Result<Request, String> {
    let letters = common_name.chars().count();
    if letters == 0 || letters > MAX_COMMON_NAME || common_name.chars().any(char::is_control) {
        return Err(format!(
            "the common name {common_name:.100?} is none; allowed are 1 to {MAX_COMMON_NAME} letters"
        ));
    }
    let (key, pair) = generate(kind).map_err(|_| "no random numbers for a key".to_owned())?;
    let (key_kind, public, signature_kind) = match &pair {
        Pair::P256(pair) => (P256, pair.public_key().as_ref(), ECDSA_SHA256),
        Pair::Ed25519(pair) => (ED25519, pair.public_key().as_ref(), ED25519),
    };
    let info = info(common_name, key_kind, public);
    let signature = match &pair {
        Pair::P256(pair) => pair.sign(&SystemRandom::new(), &info),
        Pair::Ed25519(pair) => Ok(pair.sign(&info)),
    };
    let signature = signature.map_err(|_| "no random numbers for a signature".to_owned())?;
    let signature = element(BITS, &[&[0], signature.as_ref()]);
    let csr = element(SEQUENCE, &[&info, signature_kind, &signature]);
    Ok(Request {
        key_pem: Secret::new(pem("PRIVATE KEY", key.expose()).into_bytes()),
        csr_pem: pem("CERTIFICATE REQUEST", &csr).into_bytes(),
    })
}

/// A new key: its PKCS#8, and itself.
fn generate(kind: KeyKind) -> Result<(Secret<Vec<u8>>, Pair), ring::error::Unspecified> {
    let random = SystemRandom::new();
    let unfit = |_| ring::error::Unspecified;
    Ok(match kind {
        KeyKind::P256 => {
            let by = &ECDSA_P256_SHA256_ASN1_SIGNING;
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(by, &random)?;
            let pair = EcdsaKeyPair::from_pkcs8(by, pkcs8.as_ref(), &random).map_err(unfit)?;
            (Secret::new(pkcs8.as_ref().to_vec()), Pair::P256(pair))
        }
        KeyKind::Ed25519 => {
            let mut seed = [0; 32];
            random.fill(&mut seed)?;
            let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(unfit)?;
            (Secret::new([ED25519_PKCS8.as_slice(), &seed].concat()), Pair::Ed25519(pair))
        }
    })
}

/// CertificationRequestInfo: what is signed.
fn info(common_name: &str, key_kind: &[u8], public: &[u8]) -> Vec<u8> {
    let id = |id: &[u8]| element(OID, &[id]);
    let name = element(UTF8, &[common_name.as_bytes()]);
    let name = element(SET, &[&element(SEQUENCE, &[&id(COMMON_NAME), &name])]);
    let key = element(SEQUENCE, &[key_kind, &element(BITS, &[&[0], public])]);
    let critical = element(BOOLEAN, &[&[0xff]]);
    let usage = element(OCTETS, &[DIGITAL_SIGNATURE]);
    let usage = element(SEQUENCE, &[&id(KEY_USAGE), &critical, &usage]);
    let clients = element(OCTETS, &[&element(SEQUENCE, &[&id(CLIENT_AUTH)])]);
    let clients = element(SEQUENCE, &[&id(EXTENDED_KEY_USAGE), &clients]);
    let wishes = element(SET, &[&element(SEQUENCE, &[&usage, &clients])]);
    let wishes = element(SEQUENCE, &[&id(EXTENSION_REQUEST), &wishes]);
    let version = element(INTEGER, &[&[0]]);
    let parts = [&version, &element(SEQUENCE, &[&name]), &key, &element(CONTEXT_0, &[&wishes])];
    element(SEQUENCE, &parts.map(Vec::as_slice))
}
