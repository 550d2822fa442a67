//! Whether a certificate and its key are fit to be shown to a server: all that can be known without a connection.

use core::time::Duration;

use futures_rustls::pki_types::pem::PemObject as _;
use futures_rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use futures_rustls::rustls::crypto::ring;

use super::certificate::{Certificate, from_pem};
use crate::clock::{Wall, date};

/// Most certificates of a chain, and of the issuers that are named beside it.
pub const MAX_CHAIN: usize = 8;

const DIGITAL_SIGNATURE: u8 = 0x80;
const KEY_CERT_SIGN: u8 = 0x04;

/// A certificate that is fit, for as long as it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Holds from, seconds since 1970.
    pub not_before: u64,
    /// Holds until and with, seconds since 1970.
    pub not_after: u64,
    /// Whose it is.
    pub common_name: String,
}

impl Judged {
    fn of(certificate: &Certificate<'_>) -> Self {
        Self {
            not_before: certificate.not_before,
            not_after: certificate.not_after,
            common_name: certificate.common_name.unwrap_or_default().to_owned(),
        }
    }
}

/// What the first certificate of a PEM file says of itself, fit or not.
///
/// # Errors
/// There is none in it.
pub fn describe(chain_pem: &[u8]) -> Result<Judged, String> {
    let chain = from_pem(chain_pem)?;
    Certificate::parse(chain.first().map(AsRef::as_ref).unwrap_or_default())
        .map(|certificate| Judged::of(&certificate))
}

/// Judges a chain, leaf first, and its key at this time (seconds since 1970). With issuers the chain must end at one
/// of them; they are trusted with nothing else.
///
/// # Errors
/// One line: which certificate, what is wrong with it. Never a part of the key.
pub fn judge(
    chain_pem: &[u8],
    key_pem: &[u8],
    issuer_pem: Option<&[u8]>,
    now: u64,
) -> Result<Judged, String> {
    let ders = from_pem(chain_pem).map_err(|why| format!("the certificate: {why}"))?;
    let chain = parse(&ders, "the certificate")?;
    let issuers = issuer_pem.filter(|pem| !pem.is_empty()).map(from_pem).transpose();
    let issuers = issuers.map_err(|why| format!("the issuer's certificate: {why}"))?;
    let issuers = issuers.unwrap_or_default();
    let named = parse(&issuers, "the issuer's certificate")?;
    let leaf = chain.first().ok_or("the certificate: there is none")?;
    if !fits(key_pem, leaf)? {
        return Err("the private key does not belong to the certificate".to_owned());
    }
    for (at, certificate) in chain.iter().enumerate() {
        holds(certificate, now).map_err(|why| format!("{} {why}", nth(at)))?;
    }
    usage(leaf).map_err(|why| format!("the certificate {why}"))?;
    for (at, (certificate, above)) in chain.iter().zip(chain.iter().skip(1)).enumerate() {
        issued(certificate, above).map_err(|why| format!("{} {why}", nth(at)))?;
    }
    // A chain may go on to the root, above the issuer that is named.
    let reaches = |certificate: &Certificate<'_>| {
        let is_it = |issuer: &Certificate<'_>| {
            issuer.signed == certificate.signed || issued(certificate, issuer).is_ok()
        };
        named.iter().any(is_it)
    };
    if !named.is_empty() && !chain.iter().any(reaches) {
        return Err("the certificate was not issued by the CA that came with it".to_owned());
    }
    Ok(Judged::of(leaf))
}

/// Whether this private key (PEM) is that of the first certificate (PEM).
///
/// # Errors
/// One of them cannot be read. Never a part of the key.
pub fn belongs(key_pem: &[u8], chain_pem: &[u8]) -> Result<bool, String> {
    let chain = from_pem(chain_pem)?;
    let first = chain.first().map(AsRef::as_ref).unwrap_or_default();
    fits(key_pem, &Certificate::parse(first)?)
}

fn parse<'a, D: AsRef<[u8]>>(ders: &'a [D], what: &str) -> Result<Vec<Certificate<'a>>, String> {
    if ders.len() > MAX_CHAIN {
        return Err(format!("{what}: {} in a chain; allowed are {MAX_CHAIN}", ders.len()));
    }
    let parsed = ders.iter().map(|der| Certificate::parse(der.as_ref()));
    parsed.collect::<Result<_, _>>().map_err(|why| format!("{what}: {why}"))
}

fn fits(key_pem: &[u8], certificate: &Certificate<'_>) -> Result<bool, String> {
    // The library's error may quote the file.
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|_| {
        "the private key: there is no PEM of a key that is not encrypted".to_owned()
    })?;
    let key = ring::sign::any_supported_type(&key).map_err(|_| {
        "the private key is broken or of a kind that is not known; allowed are RSA, P-256, P-384 and Ed25519"
            .to_owned()
    })?;
    let public: Option<SubjectPublicKeyInfoDer<'_>> = key.public_key();
    Ok(public.is_some_and(|public| public.as_ref() == certificate.key_info))
}

/// Which certificate of a chain.
fn nth(at: usize) -> String {
    match at {
        0 => "the certificate".to_owned(),
        _ => format!("certificate {} of the chain", at.saturating_add(1)),
    }
}

fn holds(certificate: &Certificate<'_>, now: u64) -> Result<(), String> {
    let day = |seconds| date(Wall(Duration::from_secs(seconds)));
    if now > certificate.not_after {
        return Err(format!("expired on {}", day(certificate.not_after)));
    }
    if now < certificate.not_before {
        return Err(format!("is not valid before {}", day(certificate.not_before)));
    }
    Ok(())
}

fn usage(leaf: &Certificate<'_>) -> Result<(), &'static str> {
    if leaf.for_clients == Some(false) {
        return Err("is not for clients (its extended key usage lacks clientAuth)");
    }
    if leaf.key_usage.is_some_and(|usage| usage & DIGITAL_SIGNATURE == 0) {
        return Err("is not for TLS (its key usage lacks digitalSignature)");
    }
    // That it may be a CA's is no usage: `openssl req -x509` makes such ones, and whether to take it is the server's to say.
    Ok(())
}

/// Whether a certificate was signed by the next.
fn issued(certificate: &Certificate<'_>, by: &Certificate<'_>) -> Result<(), &'static str> {
    if certificate.issuer != by.subject {
        return Err("was issued by somebody else than the next certificate's owner");
    }
    if !by.is_ca || by.key_usage.is_some_and(|usage| usage & KEY_CERT_SIGN == 0) {
        return Err("was issued by a certificate that may not issue any");
    }
    let known = ring::default_provider().signature_verification_algorithms.all;
    let mut tried = false;
    for algorithm in known {
        if algorithm.signature_alg_id().as_ref() != certificate.algorithm
            || algorithm.public_key_alg_id().as_ref() != by.key_algorithm
        {
            continue;
        }
        tried = true;
        if algorithm.verify_signature(by.key, certificate.signed, certificate.signature).is_ok() {
            return Ok(());
        }
    }
    Err(match tried {
        true => "has a signature that is not that of the next certificate's key",
        false => "is signed in a way that is not known, or too weak",
    })
}
