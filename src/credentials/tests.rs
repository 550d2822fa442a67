#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData as _, SanType, date_time_ymd,
};

use super::certificate::{Certificate, Name, from_pem};
use super::judge::{belongs, describe};
use super::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

/// 15 January 2027.
const NOW: u64 = 1_800_000_000;

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = named(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

/// A root, an intermediate of it, and a client's certificate of that.
struct Chain {
    root: Issuer,
    middle: Issuer,
    key: KeyPair,
}

impl Chain {
    fn new() -> Self {
        let root = Issuer::self_signed(authority("root"), key()).unwrap();
        let middle = Issuer::signed_by(authority("middle"), key(), &root).unwrap();
        Self { root, middle, key: key() }
    }

    fn leaf(&self, change: impl Fn(&mut CertificateParams)) -> String {
        let mut params = named("device-7");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        change(&mut params);
        params.signed_by(&self.key, &self.middle).unwrap().pem()
    }

    fn judge(&self, chain: &str, issuer: Option<&str>) -> Result<Judged, String> {
        let key = self.key.serialize_pem();
        judge(chain.as_bytes(), key.as_bytes(), issuer.map(str::as_bytes), NOW)
    }
}

#[track_caller]
fn refused(result: Result<Judged, String>, words: &[&str]) {
    let why = result.unwrap_err();
    assert!(words.iter().all(|word| why.contains(word)), "{words:?}: {why}");
}

#[test]
fn a_good_chain_is_fit_with_and_without_its_issuer() {
    let chain = Chain::new();
    let leaf = chain.leaf(|params| {
        params.not_before = date_time_ymd(2026, 1, 1);
        params.not_after = date_time_ymd(2031, 12, 31);
    });
    let fit = Judged {
        not_before: 1_767_225_600,
        not_after: 1_956_441_600,
        common_name: "device-7".to_owned(),
    };
    let (middle, root) = (chain.middle.pem(), chain.root.pem());
    let with_middle = format!("{leaf}{middle}");
    let whole = format!("{leaf}{middle}{root}");
    for (sent, issuer) in [
        (&leaf, None),
        (&leaf, Some("")),
        (&leaf, Some(middle.as_str())),
        (&with_middle, None),
        (&with_middle, Some(&root)),
        (&with_middle, Some(&middle)),
        (&whole, Some(&root)),
        (&whole, Some(&middle)),
    ] {
        assert_eq!(chain.judge(sent, issuer), Ok(fit.clone()));
    }
    let two = format!("{}{root}", Chain::new().root.pem());
    assert_eq!(chain.judge(&with_middle, Some(&two)), Ok(fit.clone()));
    assert_eq!(describe(whole.as_bytes()), Ok(fit));
}

#[test]
fn what_is_not_fit_is_told_apart() {
    let chain = Chain::new();
    let (good, middle, root) = (chain.leaf(|_| {}), chain.middle.pem(), chain.root.pem());
    let other = Chain::new();
    refused(chain.judge(&other.leaf(|_| {}), None), &["private key", "does not belong"]);
    let expired = chain.leaf(|params| params.not_after = date_time_ymd(2026, 1, 2));
    refused(chain.judge(&expired, None), &["the certificate expired on 2026-01-02"]);
    let early = chain.leaf(|params| params.not_before = date_time_ymd(2030, 5, 6));
    refused(chain.judge(&early, None), &["the certificate is not valid before 2030-05-06"]);
    let server = |params: &mut CertificateParams| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    };
    refused(chain.judge(&chain.leaf(server), None), &["not for clients", "clientAuth"]);
    let crl = |params: &mut CertificateParams| params.key_usages = vec![KeyUsagePurpose::CrlSign];
    refused(chain.judge(&chain.leaf(crl), None), &["digitalSignature"]);
    let ca = chain.leaf(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.extended_key_usages.clear();
        params.key_usages.clear();
    });
    assert!(chain.judge(&ca, None).is_ok(), "a CA's may be for clients too");
    // The same names, other keys.
    refused(
        chain.judge(&format!("{good}{}", other.middle.pem()), None),
        &["a signature that is not"],
    );
    refused(
        chain.judge(&format!("{good}{middle}{}", other.root.pem()), None),
        &["certificate 2 of the chain", "a signature that is not"],
    );
    refused(chain.judge(&format!("{good}{root}"), None), &["issued by somebody else"]);
    refused(
        chain.judge(&format!("{good}{middle}"), Some(&other.root.pem())),
        &["not issued by the CA"],
    );
    refused(chain.judge(&good, Some(&root)), &["not issued by the CA"]);
    let no_ca = named("middle").signed_by(&key(), &chain.root).unwrap().pem();
    refused(chain.judge(&format!("{good}{no_ca}"), None), &["may not issue any"]);
    refused(chain.judge(&good.repeat(9), None), &["9 in a chain; allowed are 8"]);
    refused(chain.judge("", None), &["the certificate: no certificate in it"]);
    refused(chain.judge(&good, Some("nothing")), &["issuer's certificate", "no certificate"]);
    refused(chain.judge(&chain.key.serialize_pem(), None), &["no certificate in it"]);
}

/// A key is never part of what is said about it.
#[test]
fn broken_keys_are_told_and_not_shown() {
    let chain = Chain::new();
    let leaf = chain.leaf(|_| {});
    let pem = chain.key.serialize_pem();
    for cut in 0..pem.len() {
        match judge(leaf.as_bytes(), &pem.as_bytes()[..cut], None, NOW) {
            // The last line's end is not needed.
            Ok(_) => assert!(cut + 2 >= pem.len(), "{cut}"),
            Err(why) => assert!(why.starts_with("the private key"), "{why}"),
        }
    }
    let unknown = "-----BEGIN PRIVATE KEY-----\nU2VjcmV0U2VjcmV0\n-----END PRIVATE KEY-----\n";
    let quoted = "-----BEGIN PRIVATE KEY-----\nsecret!secret!\n-----END PRIVATE KEY-----\n";
    for pem in [unknown, quoted, "secret", "-----BEGIN secret"] {
        let why = judge(leaf.as_bytes(), pem.as_bytes(), None, NOW).unwrap_err();
        assert!(why.contains("private key") && !why.to_lowercase().contains("secret"), "{why}");
    }
}

#[test]
fn intermediates_must_hold_too() {
    let chain = Chain::new();
    for (change, words) in [
        (
            (|params: &mut CertificateParams| params.not_after = date_time_ymd(2026, 12, 31))
                as fn(&mut CertificateParams),
            ["certificate 2 of the chain", "expired on 2026-12-31"],
        ),
        (
            |params| params.key_usages = vec![KeyUsagePurpose::CrlSign],
            ["the certificate", "may not issue any"],
        ),
    ] {
        let mut params = authority("middle");
        change(&mut params);
        let old = Issuer::signed_by(params, key(), &chain.root).unwrap();
        let leaf = named("device-7").signed_by(&chain.key, &old).unwrap().pem();
        refused(chain.judge(&format!("{leaf}{}", old.pem()), None), &words);
    }
}

#[test]
fn a_self_signed_certificate_is_its_own_issuer() {
    let chain = Chain::new();
    let own = named("device-7").self_signed(&chain.key).unwrap().pem();
    assert!(chain.judge(&own, None).is_ok());
    assert!(chain.judge(&own, Some(&own)).is_ok());
}

#[test]
fn the_fields_are_those_that_were_written() {
    let chain = Chain::new();
    let leaf = chain.leaf(|params| {
        params.distinguished_name.push(DnType::OrganizationName, "Ünït");
        params.subject_alt_names = vec![
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::URI("urn:uuid:1".try_into().unwrap()),
            SanType::IpAddress([127, 0, 0, 1].into()),
        ];
    });
    let ders = from_pem(format!("{leaf}{}", chain.middle.pem()).as_bytes()).unwrap();
    let read = Certificate::parse(&ders[0]).unwrap();
    assert_eq!(read.common_name, Some("device-7"));
    assert_eq!(read.names().unwrap(), [Name::Dns("a.example"), Name::Uri("urn:uuid:1")]);
    assert_eq!(read.key_info, chain.key.subject_public_key_info());
    assert_eq!((read.is_ca, read.key_usage, read.for_clients), (false, Some(0x80), Some(true)));
    let middle = Certificate::parse(&ders[1]).unwrap();
    assert!(middle.is_ca && middle.key_usage.is_none() && middle.for_clients.is_none());
    assert_eq!(read.issuer, middle.subject);
    assert_ne!(middle.issuer, middle.subject);
    assert!(belongs(chain.key.serialize_pem().as_bytes(), leaf.as_bytes()).unwrap());
    assert!(!belongs(key().serialize_pem().as_bytes(), leaf.as_bytes()).unwrap());
    assert!(belongs(b"", leaf.as_bytes()).is_err());
}

#[test]
fn dates_of_both_forms_and_of_no_form() {
    let chain = Chain::new();
    for (year, seconds) in [
        (1950, 0),
        (1969, 0),
        (1970, 5_097_600),
        (2000, 951_868_800),
        (2049, 2_498_169_600),
        (2050, 2_529_705_600),
        (2100, 4_107_542_400),
        (9999, 253_375_862_400),
    ] {
        let leaf = chain.leaf(|params| {
            params.not_before = date_time_ymd(1950, 1, 1);
            params.not_after = date_time_ymd(year, 3, 1);
        });
        let read = describe(leaf.as_bytes()).unwrap();
        assert_eq!((read.not_before, read.not_after), (0, seconds), "{year}");
    }
    let leaf = from_pem(
        chain
            .leaf(|params| {
                params.not_before = date_time_ymd(2026, 1, 1);
                params.not_after = date_time_ymd(2031, 1, 1);
            })
            .as_bytes(),
    )
    .unwrap();
    let at = leaf[0].windows(13).position(|window| window == b"310101000000Z").unwrap();
    for (text, fits) in [
        ("310101000000Z", true),
        ("320229235959Z", true),
        ("310229000000Z", false),
        ("310431000000Z", false),
        ("311301000000Z", false),
        ("310001000000Z", false),
        ("310100000000Z", false),
        ("310101240000Z", false),
        ("310101006000Z", false),
        ("310101000060Z", false),
        ("3101010000.0Z", false),
        ("31010100+100Z", false),
        ("310101000000z", false),
        ("31-101000000Z", false),
        ("3101010000000", false),
    ] {
        let mut bent = leaf[0].to_vec();
        bent[at..at + 13].copy_from_slice(text.as_bytes());
        assert_eq!(Certificate::parse(&bent).is_ok(), fits, "{text}");
        // The other form has two digits more; a fraction or a missing second fits neither.
        bent[at - 2] = 0x18;
        assert!(Certificate::parse(&bent).is_err(), "{text}");
    }
}

#[test]
fn cut_off_at_every_byte_and_bent_at_every_byte() {
    let chain = Chain::new();
    let pem = chain.leaf(|params| {
        params.subject_alt_names = vec![SanType::DnsName("a.example".try_into().unwrap())];
    });
    let der = from_pem(pem.as_bytes()).unwrap().remove(0);
    for cut in 0..der.len() {
        assert!(Certificate::parse(&der[..cut]).is_err(), "cut at {cut}");
    }
    let more = [&der[..], &[0]].concat();
    assert!(Certificate::parse(&more).is_err());
    for at in 0..der.len() {
        for value in 0..=255 {
            let mut bent = der.to_vec();
            bent[at] = value;
            let _ = Certificate::parse(&bent).map(|read| read.names().is_ok());
        }
    }
}

#[test]
fn lengths_that_lie() {
    let der = from_pem(Chain::new().leaf(|_| {}).as_bytes()).unwrap().remove(0);
    let inner = &der[4..];
    assert_eq!(&der[..2], [0x30, 0x82]);
    let length = u16::from_be_bytes([der[2], der[3]]);
    let [high, low] = length.to_be_bytes();
    for header in [
        &[0x30, 0x80][..],
        &[0x30, 0x81, low],
        &[0x30, 0x83, 0, high, low],
        &[0x30, 0x84, 0, 0, high, low],
        &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        &[0x30, 0x85, 0, 0, 0, high, low],
        &[0x30, 0x85, 1, 0, 0, high, low],
        &[0x30, 0x88, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[0x30, 0xff, high, low],
        &[0x30, 0x82, high, low.wrapping_sub(1)],
        &[0x30, 0x82, high, low.wrapping_add(1)],
        &[0x31, 0x82, high, low],
        &[0x3f, 0x82, high, low],
    ] {
        assert!(Certificate::parse(&[header, inner].concat()).is_err(), "{header:02x?}");
    }
    assert!(Certificate::parse(&[&[0x30, 0x82, high, low][..], inner].concat()).is_ok());
}

#[test]
fn lengths_are_written_as_they_are_read() {
    for size in [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000] {
        let content = vec![7; size];
        let written = der::element(der::OCTETS, &[&content[..size / 2], &content[size / 2..]]);
        let mut reader = der::Reader::new(&written);
        let read = reader.take(der::OCTETS).unwrap();
        assert_eq!((read.content, read.whole), (content.as_slice(), written.as_slice()));
        assert!(reader.is_empty());
    }
}

/// Runs openssl on files in a directory: what it says.
fn openssl(directory: &Path, arguments: &str) -> Result<String, String> {
    let mut command = Command::new("openssl");
    let output = command.args(arguments.split(' ')).current_dir(directory).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if output.status.success() { Ok(said) } else { Err(said) }
}

#[test]
fn certificates_of_openssl_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let at = |arguments: &str| openssl(directory.path(), arguments).unwrap();
    for (number, algorithm) in [
        "rsa:2048",
        "ed25519",
        "ec -pkeyopt ec_paramgen_curve:P-256",
        "ec -pkeyopt ec_paramgen_curve:P-384",
    ]
    .into_iter()
    .enumerate()
    {
        at(&format!(
            "req -x509 -newkey {algorithm} -nodes -keyout k{number} -out c{number} -days 4000 -subj /O=Fleet/CN=dev{number} -addext extendedKeyUsage=clientAuth -addext keyUsage=digitalSignature"
        ));
        let read = |name: &str| std::fs::read(directory.path().join(format!("{name}{number}")));
        let (cert, key) = (read("c").unwrap(), read("k").unwrap());
        let now = describe(&cert).unwrap().not_before + 1;
        let judged = judge(&cert, &key, Some(&cert), now);
        assert_eq!(judged.unwrap().common_name, format!("dev{number}"), "{algorithm}");
    }
    // Without a word on usage, openssl's own default makes a CA of it.
    at("req -x509 -newkey ed25519 -nodes -keyout k -out c -days 4000 -subj /CN=x");
    let read = |name: &str| std::fs::read(directory.path().join(name)).unwrap();
    let now = describe(&read("c")).unwrap().not_before;
    assert_eq!(judge(&read("c"), &read("k"), None, now).unwrap().common_name, "x");
    // Its private key in a form of its own, and a curve that TLS here does not have.
    at("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521 -out k521");
    at("req -x509 -new -key k521 -out c521 -days 40 -subj /CN=x");
    refused(judge(&read("c521"), &read("k521"), None, now), &["of a kind that is not known"]);
    at("ecparam -name prime256v1 -genkey -noout -out sec1");
    at(
        "req -x509 -new -key sec1 -out csec1 -days 40 -subj /CN=y -addext keyUsage=digitalSignature",
    );
    assert!(judge(&read("csec1"), &read("sec1"), None, now + 60).is_ok());
}

#[test]
fn a_request_is_what_others_read() {
    let directory = tempfile::tempdir().unwrap();
    for (kind, name) in [
        (KeyKind::P256, "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"),
        (KeyKind::Ed25519, "x"),
        (KeyKind::P256, "Gerät 7, Ünten = links"),
        (KeyKind::Ed25519, &"n".repeat(64)),
    ] {
        let made = request::make(kind, name).unwrap();
        let mut file = std::fs::File::create(directory.path().join("csr")).unwrap();
        file.write_all(&made.csr_pem).unwrap();
        std::fs::write(directory.path().join("key"), made.key_pem.expose()).unwrap();
        let said =
            openssl(directory.path(), "req -in csr -verify -noout -text -nameopt utf8").unwrap();
        assert!(said.contains("verify OK"), "{said}");
        for words in ["Digital Signature", "TLS Web Client Authentication", name] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let public = openssl(directory.path(), "pkey -in key -pubout").unwrap();
        assert_eq!(openssl(directory.path(), "req -in csr -noout -pubkey").unwrap(), public);

        let text = core::str::from_utf8(&made.csr_pem).unwrap();
        let csr = CertificateSigningRequestParams::from_pem(text).unwrap();
        assert_eq!(
            csr.params.distinguished_name.get(&DnType::CommonName),
            Some(&rcgen::DnValue::Utf8String(name.to_owned()))
        );
        assert_eq!(csr.params.extended_key_usages, [ExtendedKeyUsagePurpose::ClientAuth]);
        assert_eq!(csr.params.key_usages, [KeyUsagePurpose::DigitalSignature]);
        // And a CA that signs it makes a certificate that is fit for the key, and for no other.
        let chain = Chain::new();
        let certificate = csr.signed_by(&chain.middle).unwrap().pem();
        let judged = judge(
            certificate.as_bytes(),
            made.key_pem.expose(),
            Some(chain.middle.pem().as_bytes()),
            NOW,
        );
        assert_eq!(judged.unwrap().common_name, name);
        assert!(request::belongs(made.key_pem.expose(), certificate.as_bytes()).unwrap());
        let another = request::make(kind, name).unwrap();
        assert_ne!(another.key_pem, made.key_pem);
        assert!(!request::belongs(another.key_pem.expose(), certificate.as_bytes()).unwrap());
    }
}

#[test]
fn names_that_are_none_are_refused() {
    for name in ["", "a\nb", "a\0b", &"n".repeat(65)] {
        let why = request::make(KeyKind::P256, name).unwrap_err();
        assert!(why.contains("common name") && why.contains("1 to 64"), "{why}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Certificate::parse(&bytes);
        let _ = judge(&bytes, &bytes, Some(&bytes), NOW);
        let pem = crate::base64::pem("CERTIFICATE", &bytes);
        let _ = judge(pem.as_bytes(), pem.as_bytes(), Some(pem.as_bytes()), NOW);
    }

    #[test]
    fn nothing_panics_within(at in 0_usize..600, with in proptest::collection::vec(any::<u8>(), 1..8)) {
        let mut der = FIXED.with(Clone::clone);
        for (to, from) in der.iter_mut().skip(at).zip(with) {
            *to = from;
        }
        if let Ok(read) = Certificate::parse(&der) {
            let _ = read.names();
        }
        let pem = crate::base64::pem("CERTIFICATE", &der);
        let _ = judge(pem.as_bytes(), b"", Some(pem.as_bytes()), NOW);
    }
}

thread_local! {
    static FIXED: Vec<u8> = from_pem(Chain::new().leaf(|_| {}).as_bytes()).unwrap()[0].to_vec();
}
