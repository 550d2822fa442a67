#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

use proptest::prelude::*;
use ring::signature::{ED25519, UnparsedPublicKey};

use super::*;

use crate::sha256::Sha256;

// Keys and signature were made once with OpenSSL 3.0.19: `openssl genpkey -algorithm ed25519`, `openssl pkey -pubout`,
// and `openssl pkeyutl -sign -rawin` over the SHA-256 of "hello".
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIAVN+JmfTHXmB+KO8fOY1S7tBvbuLuCTD+JJWJ6bnTbR
-----END PRIVATE KEY-----
";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAu0Xrsk5tB5sRqTg5M8d5idiQr2iR8OxGdbGSdOhgM+s=
-----END PUBLIC KEY-----
";
const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIESmpbIdS8TaXcDBWrpxZK7Q2maDKc63pQVb56lghrIX
-----END PRIVATE KEY-----
";
const OTHER_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAQOFXKB8QSlHPBEy7zi5xSI9LUldGMcvnwmv+ocA9aSI=
-----END PUBLIC KEY-----
";
const SIGNATURE: &str = "54e621fe894680f391ccb5ac9bb9b9a1591cc689f3efe5a958d01516446b4255\
                         5c2502641e66b1f1877944af71fa9ef6ff0c5f7528440fbfcd73323174c9de0d";
const RSA: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQClwW56x8RQ12cNRbNZTX1DTdvu
aS6rr+8wUUHAw2rVAkbk6UqnQwf0b7y0zs5SgGcjk0IYj7vtNesOLyoUxvQbtbJj
cNOuYKc48716UeLMZdXX1fIh8UuZTz37gns9j1Byqfb/ROlaauL/Oq9NoBn6nBA7
5nJbsvzNKM9JNi6r1wIDAQAB
-----END PUBLIC KEY-----
";
const EC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaQd/8/R1UsFxXzCWUDpukvfYcXHU
LtWPzWLZfa2hRk0qe3EZYwuR2SPpEQZgbdn1q/6Vum4TOOI+a/S0G9P1Lg==
-----END PUBLIC KEY-----
";
const ED448: &str = "-----BEGIN PUBLIC KEY-----
MEMwBQYDK2VxAzoA7McRP8+WspxujFmj/VvKDsIK5OvxjHfPvz/dlY2c5r0zp3GR
bVIfG8Tg9ZaEi4wSZRQd5WNOqxYA
-----END PUBLIC KEY-----
";
const X25519: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VuAyEAUknYPuIXFZgf6mRKziOq1Yef41vYbTWgJBZ8qH95gXs=
-----END PUBLIC KEY-----
";
const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----
MIGbMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAgWcfcz+btAEgICCAAw
-----END ENCRYPTED PRIVATE KEY-----
";

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).unwrap())
        .collect()
}

fn hello() -> [u8; 32] {
    Sha256::digest(b"hello")
}

fn key() -> SigningKey {
    SigningKey::from_pem(KEY.as_bytes()).unwrap()
}

fn other_key() -> SigningKey {
    SigningKey::from_pem(OTHER_KEY.as_bytes()).unwrap()
}

fn ring_of(threshold: usize, revoked: &[&str]) -> Keyring {
    let keys = [PUBLIC, OTHER_PUBLIC].map(|pem| PublicKey::from_pem(pem.as_bytes()).unwrap());
    let revoked: Vec<String> = revoked.iter().map(|&id| id.to_owned()).collect();
    Keyring::new(keys.to_vec(), threshold, &revoked)
}

fn only(key: &SigningKey) -> Keyring {
    Keyring::new(vec![key.public()], 1, &[])
}

fn manifest() -> Manifest {
    Manifest {
        name: "otelcol".to_owned(),
        version: "1.2.3".to_owned(),
        size: 5,
        sha256: hello().to_vec(),
        issued_at: 1_700_000_000,
        counter: 7,
        ..Manifest::default()
    }
}

fn signed_by(manifest: &Manifest, keys: &[&SigningKey]) -> Vec<u8> {
    let mut signed = SignedManifest::new(manifest);
    keys.iter().for_each(|key| signed.sign(key));
    signed.encode_to_vec()
}

#[test]
fn keys_and_signatures_of_openssl_are_understood_and_ours_are_the_same() {
    assert_eq!(key().public(), PublicKey::from_pem(PUBLIC.as_bytes()).unwrap());
    let signature = unhex(SIGNATURE);
    assert_eq!(check_digest(&ring_of(1, &[]), &hello(), &signature), Ok(()));
    assert_eq!(sign_digest(&key(), &hello()).as_slice(), signature);
}

#[test]
fn a_key_id_is_the_beginning_of_a_sha_256() {
    let public = key().public();
    let raw = public.der()[12..].to_vec();
    let digest = Sha256::digest(raw);
    assert_eq!(public.id().as_bytes(), &digest[..8]);
    assert_eq!(public.id().to_string().len(), 16);
    assert_eq!(unhex(&public.id().to_string()), digest[..8]);
}

#[test]
fn a_made_key_is_in_openssls_form() {
    let seed = [7; 32];
    let made = SigningKey::from_seed(&seed).unwrap();
    let der = SigningKey::seed_to_der(&seed);
    let read = ring::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.expose()).unwrap();
    use ring::signature::KeyPair as _;
    assert_eq!(read.public_key().as_ref(), &made.public().der()[12..]);
    let openssl = futures_rustls::pki_types::pem::from_buf(&mut KEY.as_bytes()).unwrap().unwrap().1;
    assert_eq!(openssl[..16], der.expose()[..16]);
}

#[test]
fn other_keys_are_refused_by_name() {
    for (pem, word) in [
        (RSA, "(RSA)"),
        (EC, "(EC)"),
        (ED448, "(Ed448)"),
        (X25519, "(X25519)"),
        (KEY, "it is a private key"),
        ("", "no public key"),
        ("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n", "broken"),
        ("-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n", "no known algorithm"),
        (&format!("{PUBLIC}{OTHER_PUBLIC}"), "more than one key"),
        (&PUBLIC.replace("MCow", "MCoA"), "damaged"),
    ] {
        let error = PublicKey::from_pem(pem.as_bytes()).unwrap_err();
        assert!(error.contains(word) && error.contains("allowed is"), "{word}: {error}");
    }
    for (pem, word) in [
        (ENCRYPTED, "it is encrypted"),
        (PUBLIC, "it is a public key"),
        ("text", "no PEM"),
        (&KEY.replace("AVN", "!!!"), "broken"),
        (&KEY.replace("K2Vw", "K2Vu"), "(X25519)"),
    ] {
        let error = SigningKey::from_pem(pem.as_bytes()).unwrap_err();
        assert!(error.contains(word) && error.contains("allowed is"), "{word}: {error}");
    }
}

#[test]
fn a_private_key_is_never_printed() {
    let shown = format!("{:?} {:#?}", key(), key());
    assert!(shown.contains("***"), "{shown}");
    assert!(!shown.contains("bb45"), "{shown}");
    let broken = SigningKey::from_pem(KEY.replace("-----END", "----END").as_bytes()).unwrap_err();
    assert!(!broken.contains("AVN"), "{broken}");
}

/// All fourteen encodings of the eight points of small order.
fn small_order() -> Vec<[u8; 32]> {
    let ys = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        // 0 and 1 again, with the field's prime added.
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    ys.iter()
        .flat_map(|y| {
            let plain: [u8; 32] = unhex(y).try_into().unwrap();
            let mut negative = plain;
            negative[31] |= 0x80;
            [plain, negative]
        })
        .collect()
}

#[test]
fn no_key_of_small_order_is_taken() {
    assert_eq!(small_order().len(), 14);
    for raw in small_order() {
        let error = PublicKey::from_raw(raw).unwrap_err();
        assert!(error.contains("small order") || error.contains("canonical"), "{error}");
    }
    // Why: with the neutral element for a key, this fits any message as far as the library is concerned.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let forged = [neutral, [0; 32]].concat();
    let library = UnparsedPublicKey::new(&ED25519, neutral);
    assert!(library.verify(b"anything", &forged).is_ok());
    assert!(library.verify(b"anything else", &forged).is_ok());
}

#[test]
fn every_encoding_beyond_the_prime_is_refused_and_what_is_below_is_not_mistaken_for_it() {
    for low in 0xed..=0xff_u8 {
        for high in [0x7f, 0xff] {
            let mut raw = [0xff; 32];
            (raw[0], raw[31]) = (low, high);
            assert!(PublicKey::from_raw(raw).unwrap_err().contains("canonical"), "{low:x}");
        }
    }
    for at in [0, 1, 15, 30, 31] {
        let mut raw = [0xff; 32];
        raw[31] = 0x7f;
        raw[at] = 0x70;
        assert!(PublicKey::from_raw(raw).is_ok(), "{at}");
    }
}

#[test]
fn a_signature_has_one_number_only() {
    // S + L fits the same equation; taking it would make two signatures of one.
    let order = unhex("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010");
    let mut signature = unhex(SIGNATURE);
    let mut carry = 0_u16;
    for (byte, add) in signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*byte) + u16::from(add) + carry;
        (*byte, carry) = (sum as u8, sum >> 8);
    }
    assert_eq!(carry, 0);
    let refused = check_digest(&ring_of(1, &[]), &hello(), &signature);
    assert!(matches!(refused, Err(Refusal::DigestWrong(_))), "{refused:?}");
}

#[test]
fn the_digest_form_is_64_bytes_by_a_trusted_key_over_this_digest() {
    let good = unhex(SIGNATURE);
    let keyring = ring_of(1, &[]);
    for (length, refusal) in
        [(0, Refusal::Absent), (63, Refusal::DigestLength(63)), (1, Refusal::DigestLength(1))]
    {
        assert_eq!(check_digest(&keyring, &hello(), &good[..length]), Err(refusal));
    }
    let long = [good.as_slice(), &[0]].concat();
    assert_eq!(check_digest(&keyring, &hello(), &long), Err(Refusal::DigestLength(65)));
    for at in 0..64 {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        assert!(check_digest(&keyring, &hello(), &flipped).is_err(), "byte {at}");
    }
    let mut file = hello();
    file[31] ^= 0x80;
    assert!(matches!(check_digest(&keyring, &file, &good), Err(Refusal::DigestWrong(_))));
    let wrong = check_digest(&only(&other_key()), &hello(), &good);
    assert_eq!(wrong, Err(Refusal::DigestWrong(vec![other_key().public().id()])));
    let two = check_digest(&ring_of(2, &[]), &hello(), &good);
    assert_eq!(two, Err(Refusal::DigestThreshold(2)));
}

#[test]
fn a_revoked_key_signs_nothing_by_whatever_length_of_its_id() {
    let id = key().public().id();
    let digest = Sha256::digest(&key().public().der()[12..]);
    let whole: String = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    for revoked in [id.to_string(), whole, id.to_string()[..8].to_owned()] {
        let keyring = ring_of(1, &[&revoked]);
        let refused = check_digest(&keyring, &hello(), &unhex(SIGNATURE));
        assert_eq!(refused, Err(Refusal::DigestRevoked(id)), "{revoked}");
        let refused = open_manifest(&keyring, &signed_by(&manifest(), &[&key()])).unwrap_err();
        assert!(refused.to_string().contains(&format!("revoked: {id}")), "{refused}");
        assert!(open_manifest(&keyring, &signed_by(&manifest(), &[&key(), &other_key()])).is_ok());
        assert!(!ring_of(2, &[&revoked]).is_usable());
    }
    assert!(ring_of(2, &["", "00000000"]).is_usable(), "what names no key revokes none");
}

#[test]
fn a_manifest_comes_back_as_it_was_signed() {
    let signed = signed_by(&manifest(), &[&key()]);
    assert_eq!(form(&signed), Form::Manifest);
    assert_eq!(
        manifest_signers(&ring_of(1, &[]), &signed),
        Ok((manifest(), vec![key().public().id()]))
    );
    for at in 0..signed.len() {
        let mut flipped = signed.clone();
        flipped[at] ^= 1;
        assert!(open_manifest(&ring_of(1, &[]), &flipped).is_err(), "byte {at}");
    }
    for length in 0..signed.len() {
        assert!(open_manifest(&ring_of(1, &[]), &signed[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn a_threshold_counts_keys_and_not_signatures() {
    let keyring = ring_of(2, &[]);
    let both = signed_by(&manifest(), &[&key(), &other_key()]);
    assert_eq!(open_manifest(&keyring, &both), Ok(manifest()));

    let mut twice = SignedManifest::new(&manifest());
    twice.sign(&key());
    twice.sign(&key());
    assert_eq!(twice.signatures.len(), 1);
    twice.signatures.push(twice.signatures[0].clone());
    let refused = open_manifest(&keyring, &twice.encode_to_vec()).unwrap_err();
    let (good, none) = (vec![key().public().id()], Vec::new());
    let (wrong, revoked, unknown) = (none.clone(), none.clone(), none);
    assert_eq!(refused, Refusal::TooFew { needed: 2, good, wrong, revoked, unknown });
    // The same signature under the other key's id.
    twice.signatures[1].key_id = other_key().public().id().as_bytes().to_vec();
    let refused = open_manifest(&keyring, &twice.encode_to_vec()).unwrap_err();
    assert!(refused.to_string().contains("wrong signature: "), "{refused}");

    let doubled = Keyring::new(vec![key().public(); 2], 2, &[]);
    let refused = open_manifest(&doubled, &both);
    assert_eq!(refused, Err(Refusal::NoKeys { needed: 2, active: 1 }), "one key in two files");
    assert!(matches!(
        open_manifest(&Keyring::new(Vec::new(), 0, &[]), &both),
        Err(Refusal::NoKeys { needed: 1, active: 0 })
    ));
}

#[test]
fn a_strangers_signatures_neither_count_nor_stand_in_the_way() {
    let strangers: Vec<SigningKey> =
        (0..6).map(|seed| SigningKey::from_seed(&[seed; 32]).unwrap()).collect();
    let mut all: Vec<&SigningKey> = strangers.iter().collect();
    let refused = open_manifest(&ring_of(1, &[]), &signed_by(&manifest(), &all)).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("0 of 1") && text.contains("not trusted here: "), "{text}");
    assert!(text.contains("and 2 more"), "{text}");
    all.push(&strangers[0]);
    let key = key();
    all.push(&key);
    assert_eq!(open_manifest(&ring_of(1, &[]), &signed_by(&manifest(), &all)), Ok(manifest()));
    // A worthless signature that bears a trusted id, before the good one.
    let mut signed = SignedManifest::new(&manifest());
    signed.sign(&key);
    let mut worthless = signed.signatures[0].clone();
    worthless.signature = vec![0; 64];
    signed.signatures.insert(0, worthless);
    assert_eq!(open_manifest(&ring_of(1, &[]), &signed.encode_to_vec()), Ok(manifest()));
}

#[test]
fn one_form_is_never_taken_for_the_other() {
    let keyring = ring_of(1, &[]);
    let digest = unhex(SIGNATURE);
    assert_eq!(form(&digest), Form::Digest);
    assert_eq!(open_manifest(&keyring, &digest), Err(Refusal::DigestForm));
    for length in [1, 63, 65] {
        let bytes = [digest.as_slice(), &[0]].concat();
        assert_eq!(open_manifest(&keyring, &bytes[..length]), Err(Refusal::Malformed));
    }
    // A signature of the bytes without what stands before them, as a digest signature would be.
    let mut signed = SignedManifest::new(&manifest());
    signed.sign(&key());
    signed.signatures[0].signature = key().sign(&signed.manifest).to_vec();
    assert!(matches!(
        open_manifest(&keyring, &signed.encode_to_vec()),
        Err(Refusal::TooFew { .. })
    ));
    // The shortest signed manifest that there can be.
    let mut least = SignedManifest { manifest: vec![0], signatures: Vec::new() };
    least.sign(&key());
    assert!(least.encode_to_vec().len() > DIGEST_SIGNATURE);
}

#[test]
fn what_is_too_long_is_refused_before_it_is_read() {
    let refused = open_manifest(&ring_of(1, &[]), &[0; MAX_SIGNATURE + 1]);
    assert_eq!(refused, Err(Refusal::TooLong(MAX_SIGNATURE + 1)));
    let mut signed = SignedManifest::new(&manifest());
    signed.signatures = vec![Signature::default(); 33];
    assert_eq!(open_manifest(&ring_of(1, &[]), &signed.encode_to_vec()), Err(Refusal::Malformed));
}

/// One field of a manifest made wrong.
type Spoil = fn(&mut Manifest);

#[test]
fn a_signed_manifest_with_a_bad_field_is_refused_all_the_same() {
    let cases: [(&str, Spoil); 9] = [
        ("name", |manifest| manifest.name.clear()),
        ("name", |manifest| manifest.name = "n".repeat(MAX_NAME + 1)),
        ("name", |manifest| manifest.name.push('\u{1b}')),
        ("version", |manifest| manifest.version = "v".repeat(MAX_VERSION + 1)),
        ("version", |manifest| manifest.version.push('\n')),
        ("target", |manifest| manifest.target.push('\0')),
        ("set", |manifest| manifest.set = "s".repeat(MAX_SET + 1)),
        ("sha256", |manifest| manifest.sha256.push(0)),
        ("kind", |manifest| manifest.kind = 2),
    ];
    for (named, spoil) in cases {
        let mut bad = manifest();
        spoil(&mut bad);
        match open_manifest(&ring_of(1, &[]), &signed_by(&bad, &[&key()])) {
            Err(Refusal::Field { field, .. }) => assert_eq!(field, named),
            other => assert_eq!(format!("{other:?}"), named),
        }
    }
    let mut longest = manifest();
    longest.name = "n".repeat(MAX_NAME);
    longest.version = "v".repeat(MAX_VERSION);
    longest.target = "t".repeat(MAX_TARGET);
    longest.set = "s".repeat(MAX_SET);
    assert!(open_manifest(&ring_of(1, &[]), &signed_by(&longest, &[&key()])).is_ok());
}

#[test]
fn it_is_about_one_file_and_until_one_time() {
    let mut manifest = manifest();
    assert_eq!(manifest.check_file(5, &hello()), Ok(()));
    assert_eq!(manifest.check_file(6, &hello()), Err(Refusal::Size { signed: 5, found: 6 }));
    assert_eq!(manifest.check_file(5, &[0; 32]), Err(Refusal::Content));
    assert_eq!(manifest.check_time(u64::MAX), Ok(()), "0 is never");
    manifest.expires_at = 1000;
    assert_eq!(manifest.check_time(999), Ok(()));
    for (now, ago) in [(1000, "0s"), (1059, "59s"), (8300, "2h"), (1_000_000, "11d")] {
        let text = manifest.check_time(now).unwrap_err().to_string();
        assert!(text.contains(&format!("expired {ago} ago")), "{text}");
    }
}

#[test]
fn every_refusal_is_one_line_that_says_what_to_do() {
    let id = key().public().id();
    let none = Vec::new;
    for refusal in [
        Refusal::Absent,
        Refusal::TooLong(5000),
        Refusal::DigestLength(65),
        Refusal::DigestForm,
        Refusal::Malformed,
        Refusal::NoKeys { needed: 2, active: 1 },
        Refusal::DigestThreshold(2),
        Refusal::DigestRevoked(id),
        Refusal::DigestWrong(vec![id]),
        Refusal::TooFew {
            needed: 1,
            good: none(),
            wrong: none(),
            revoked: none(),
            unknown: none(),
        },
        Refusal::Size { signed: 1, found: 2 },
        Refusal::Content,
        Refusal::Expired { ago: 5 },
    ] {
        let text = refusal.to_string();
        assert!((20..400).contains(&text.len()) && !text.contains('\n'), "{text}");
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic_and_are_never_signed(
        bytes in prop::collection::vec(any::<u8>(), 0..256),
        manifest in prop::collection::vec(any::<u8>(), 1..128),
    ) {
        prop_assert!(open_manifest(&ring_of(1, &[]), &bytes).is_err());
        prop_assert!(check_digest(&ring_of(1, &[]), &hello(), &bytes).is_err());
        // Random bytes that a trusted key did sign.
        let mut signed = SignedManifest { manifest, signatures: Vec::new() };
        signed.sign(&key());
        let _ = open_manifest(&ring_of(1, &[]), &signed.encode_to_vec());
        let _ = PublicKey::from_pem(&bytes);
        let _ = SigningKey::from_pem(&bytes);
    }
}
