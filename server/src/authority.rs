//! The certificate authority: reads requests, signs certificates for agents, tells its own from others'.

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use uuid::Uuid;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use crate::clock::Moment;
use crate::config::{Approval, AuthorityConfig, AuthorityFiles};
use crate::credentials::{Digest, Serial};
use crate::tls::{TlsError, fault};
use crate::uid::InstanceUid;

/// Bytes of a request in PEM: RSA with 4096 bits takes 1.7 KB.
pub(crate) const MAX_REQUEST: usize = 8 << 10;
/// How long the authority's own certificate is valid.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
/// Certificates are valid from this long before they were made: clocks of devices are wrong.
const BACKDATE: Duration = Duration::from_secs(3600);
/// The authority's certificate and key in `--ca-dir`.
const CERTIFICATE: &str = "ca.pem";
const KEY: &str = "ca.key";
/// Stands for the agent's uid in the template of common names.
pub(crate) const UID_MARK: &str = "{instance_uid}";

/// What signs.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    not_after: Moment,
    approval: Approval,
    lifetime: Duration,
    common_name: String,
    /// Every serial that is no longer let in; asked in TLS handshakes too.
    revoked: RwLock<BTreeSet<Serial>>,
}

/// A request whose signature is right.
pub(crate) struct Request {
    pub(crate) pem: String,
    pub(crate) common_name: String,
    pub(crate) key: Digest,
    parsed: CertificateSigningRequestParams,
}

/// A certificate as it goes to an agent.
pub(crate) struct Signed {
    pub(crate) serial: Serial,
    pub(crate) not_after: Moment,
    pub(crate) key: Digest,
    pub(crate) cert: String,
    /// Where the server made the key.
    pub(crate) private_key: Option<String>,
}

/// Who a peer proved to be in its TLS handshake, by a certificate of this authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) serial: Serial,
    pub(crate) uid: Option<InstanceUid>,
}

impl Authority {
    /// Opens the authority, and makes it when its directory is empty.
    pub(crate) fn open(config: &AuthorityConfig) -> Result<Self, TlsError> {
        let (cert, key) = match &config.files {
            AuthorityFiles::Directory(directory) => {
                let (cert, key) = (directory.join(CERTIFICATE), directory.join(KEY));
                make(directory, &cert, &key)?;
                (cert, key)
            }
            AuthorityFiles::Given { cert, key } => (cert.clone(), key.clone()),
        };
        let read = |file: &Path| fs::read_to_string(file).map_err(|error| fault(file, error));
        let mode = fs::metadata(&key).map_err(|error| fault(&key, error))?.mode();
        if mode & 0o077 != 0 {
            return Err(fault(&key, "others may read this key: chmod 600 it"));
        }
        let pair = KeyPair::from_pem(&read(&key)?).map_err(|error| fault(&key, error))?;
        let pem = read(&cert)?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|error| fault(&cert, error))?;
        let not_after = {
            let (_, parsed) =
                X509Certificate::from_der(&der).map_err(|error| fault(&cert, error))?;
            if !parsed.is_ca() {
                return Err(fault(&cert, "it is no authority's: basicConstraints lacks CA:true"));
            }
            if parsed.public_key().subject_public_key.data != pair.public_key_raw() {
                return Err(fault(&key, format_args!("it is not the key of {}", cert.display())));
            }
            Moment::from_seconds(parsed.validity().not_after.timestamp())
        };
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|error| fault(&cert, error))?;
        Ok(Self {
            issuer,
            pem,
            der,
            not_after,
            approval: config.approval,
            lifetime: config.lifetime,
            common_name: config.common_name.clone(),
            revoked: RwLock::default(),
        })
    }

    /// Its certificate, PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// Its certificate, DER.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Who approves requests.
    pub(crate) fn approval(&self) -> Approval {
        self.approval
    }

    /// The name that a certificate for this agent has.
    pub(crate) fn name_of(&self, uid: InstanceUid) -> String {
        self.common_name.replace(UID_MARK, &uid.to_string())
    }

    /// Reads a request and checks all that can be checked without a person.
    pub(crate) fn read(&self, uid: InstanceUid, pem: &[u8]) -> Result<Request, String> {
        let request = read(pem)?;
        let wanted = self.name_of(uid);
        if request.common_name == wanted {
            return Ok(request);
        }
        let asked = &request.common_name;
        Err(format!("the request's common name is {asked:?}; for this agent it must be {wanted:?}"))
    }

    /// Signs the key of a request.
    pub(crate) fn sign(
        &self,
        uid: InstanceUid,
        request: &Request,
        now: Moment,
    ) -> Result<Signed, String> {
        self.certify(uid, &request.parsed.public_key, now)
    }

    /// Makes a key, and a certificate for it.
    pub(crate) fn make_pair(&self, uid: InstanceUid, now: Moment) -> Result<Signed, String> {
        let pair = KeyPair::generate().map_err(|error| format!("no key could be made: {error}"))?;
        let signed = self.certify(uid, &pair, now)?;
        Ok(Signed { private_key: Some(pair.serialize_pem()), ..signed })
    }

    /// Nothing but the key is taken from whoever asked.
    fn certify(
        &self,
        uid: InstanceUid,
        key: &impl PublicKeyData,
        now: Moment,
    ) -> Result<Signed, String> {
        let serial = Serial::generate();
        let not_after = now.after(self.lifetime).min(self.not_after);
        if not_after <= now {
            return Err("the authority's own certificate has expired: make another".to_owned());
        }
        let wrong = |error| format!("the certificate could not be made: {error}");
        let mut params = CertificateParams::default();
        params.not_before = now.before(BACKDATE).to_system().into();
        params.not_after = not_after.to_system().into();
        params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.name_of(uid));
        let uri = format!("urn:uuid:{uid}").try_into().map_err(wrong)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer).map_err(wrong)?.pem();
        Ok(Signed { serial, not_after, key: digest_of(key), cert, private_key: None })
    }

    /// Who showed this certificate; `None` where another authority made it.
    pub(crate) fn identify(&self, certificate: &CertificateDer<'_>) -> Option<Identity> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let (_, own) = X509Certificate::from_der(&self.der).ok()?;
        if certificate.issuer().as_raw() != own.subject().as_raw() {
            return None;
        }
        let names = certificate.subject_alternative_name().ok().flatten();
        let uid = names.and_then(|names| {
            names.value.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => InstanceUid::from_text(uri.strip_prefix("urn:uuid:")?),
                _ => None,
            })
        });
        Some(Identity { serial: Serial::from_der(certificate.raw_serial())?, uid })
    }

    /// Lets these no longer in.
    pub(crate) fn revoke(&self, serials: impl IntoIterator<Item = Serial>) {
        self.revoked.write().unwrap_or_else(PoisonError::into_inner).extend(serials);
    }

    /// Whether it is no longer let in.
    pub(crate) fn is_revoked(&self, serial: Serial) -> bool {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).contains(&serial)
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Reads a request and checks the signature that proves its key.
pub(crate) fn read(pem: &[u8]) -> Result<Request, String> {
    if pem.len() > MAX_REQUEST {
        return Err(format!(
            "the request has {} bytes, at most {MAX_REQUEST} are taken",
            pem.len()
        ));
    }
    let text = std::str::from_utf8(pem).map_err(|_| "the request is not PEM".to_owned())?;
    let parsed = CertificateSigningRequestParams::from_pem(text).map_err(|error| match error {
        rcgen::Error::InvalidCertificationRequestSignature => {
            "the request's signature is wrong: it is not by the key that it names".to_owned()
        }
        other => format!("the request cannot be read: {other}"),
    })?;
    let common_name = match parsed.params.distinguished_name.get(&DnType::CommonName) {
        Some(DnValue::Utf8String(name)) => name.clone(),
        Some(DnValue::PrintableString(name)) => name.as_str().to_owned(),
        _ => return Err("the request has no common name in UTF-8".to_owned()),
    };
    let key = digest_of(&parsed.public_key);
    Ok(Request { pem: text.to_owned(), common_name, key, parsed })
}

fn digest_of(key: &impl PublicKeyData) -> Digest {
    Digest(Sha256::digest(key.subject_public_key_info()).into())
}

/// Makes the authority once: the key first, and the certificate is what says that it is whole.
fn make(directory: &Path, cert: &Path, key: &Path) -> Result<(), TlsError> {
    if cert.exists() {
        return Ok(());
    }
    let failed = |error: rcgen::Error| fault(directory, error);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| fault(directory, error))?;
    let pair = if key.exists() {
        let text = fs::read_to_string(key).map_err(|error| fault(key, error))?;
        KeyPair::from_pem(&text).map_err(|error| fault(key, error))?
    } else {
        let pair = KeyPair::generate().map_err(failed)?;
        write(key, pair.serialize_pem().as_bytes(), 0o600).map_err(|error| fault(key, error))?;
        pair
    };
    let now = Moment::now();
    let serial = Serial::generate();
    let mut params = CertificateParams::default();
    params.not_before = now.before(BACKDATE).to_system().into();
    params.not_after = now.after(AUTHORITY_LIFETIME).to_system().into();
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.distinguished_name = DistinguishedName::new();
    // Two servers' authorities must not have one name.
    params.distinguished_name.push(DnType::CommonName, format!("chiton-server {serial}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&pair).map_err(failed)?.pem();
    write(cert, pem.as_bytes(), 0o644).map_err(|error| fault(cert, error))
}

/// Durable, whole or not there.
fn write(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", Uuid::now_v7().simple()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}
