//! Which packages may be installed: what a signature has to say, and about what.

use bytes::Bytes;
use chiton_proto::{DownloadableFile, PackageAvailable, PackageType};

use super::set::{Kind, MAX_VERSION, Member, placed_name};
use crate::agent::rollout::{Digest, Floors, MAX_FLOORS};
use crate::settings::{Packages, SignatureForm};
use crate::signature::{self, Form, Keyring, Manifest};

/// The name that is Chiton's own.
const OWN_NAME: &str = "chiton";

/// What is asked of a package before a byte of it is fetched.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    keyring: Keyring,
    settings: Packages,
    device: Device,
}

/// What a manifest's `target` is compared with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// `linux/amd64` and the like: any of these is this machine.
    pub platforms: Vec<String>,
    /// Attributes and labels.
    pub attributes: std::collections::BTreeMap<String, String>,
}

/// That a file may be used, once it is here: only [`Policy::approve`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warrant {
    member: Member,
    size: Option<u64>,
    signed: bool,
}

impl Warrant {
    /// What it is about.
    #[must_use]
    pub const fn member(&self) -> &Member {
        &self.member
    }

    /// Bytes of the file, where a manifest tells.
    #[must_use]
    pub const fn size(&self) -> Option<u64> {
        self.size
    }

    /// Whether trusted keys have signed it.
    #[must_use]
    pub const fn is_signed(&self) -> bool {
        self.signed
    }
}

/// Against what an offer is held.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The packages that are committed.
    pub installed: &'a [Member],
    /// The lowest counters.
    pub floors: &'a Floors,
    /// Unix seconds, never before the build or a committed manifest.
    pub now: u64,
}

impl Policy {
    /// By these settings and keys.
    #[must_use]
    pub const fn new(keyring: Keyring, settings: Packages, device: Device) -> Self {
        Self { keyring, settings, device }
    }

    /// Whether any package could be accepted: PRODUCT.md §3, no trusted key, no `accepts_packages`.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.settings.require_signature || self.keyring.is_usable()
    }

    /// An empty offer removes all.
    #[must_use]
    pub const fn allows_empty(&self) -> bool {
        self.settings.allow_empty
    }

    /// Whether one package of an offer may be installed; also the set that its manifest binds it to.
    ///
    /// # Errors
    /// Why not.
    pub fn approve(
        &self,
        name: &str,
        offered: &PackageAvailable,
        known: &Known<'_>,
    ) -> Result<(Warrant, Option<String>), String> {
        let placed = placed_name(name)?;
        if placed == OWN_NAME {
            return Err("Chiton does not replace itself yet: offer another name".to_owned());
        }
        if offered.version.len() > MAX_VERSION {
            return Err(format!("its version is longer than {MAX_VERSION} bytes"));
        }
        let kind = PackageType::try_from(offered.r#type)
            .map_err(|_| format!("its type {} is unknown", offered.r#type))?;
        let file = offered.file.as_ref().ok_or("the offer has no file")?;
        let sha256 = Digest::try_from(file.content_hash.as_ref()).map_err(|_| {
            format!("its content_hash has {} bytes; a SHA-256 has 32", file.content_hash.len())
        })?;
        let mut member = Member {
            name: placed.to_owned(),
            version: offered.version.clone(),
            hash: Bytes::copy_from_slice(&offered.hash),
            kind: Kind::of(kind),
            sha256,
            counter: 0,
            issued_at: 0,
            expires_at: 0,
            local: false,
        };
        let signature = file.signature.as_ref();
        if signature.is_empty() || !self.keyring.is_usable() {
            if self.settings.require_signature {
                return Err("it is not signed; sign it with `chiton sign`".to_owned());
            }
            return Ok((Warrant { member, size: None, signed: false }, None));
        }
        if signature::form(signature) == Form::Digest {
            if self.settings.signature != SignatureForm::Digest {
                return Err(
                    "its signature is of the digest form, which does not protect against downgrades: sign it with \
                     --name and --version, or set opamp.packages.signature: digest"
                        .to_owned(),
                );
            }
            signature::check_digest(&self.keyring, &sha256, signature)
                .map_err(|refusal| refusal.to_string())?;
            self.floor(&member, known)?;
            return Ok((Warrant { member, size: None, signed: true }, None));
        }
        let manifest = signature::open_manifest(&self.keyring, signature)
            .map_err(|refusal| refusal.to_string())?;
        self.fits(name, offered, file, &manifest, known.now)?;
        member.counter = manifest.counter;
        member.issued_at = manifest.issued_at;
        member.expires_at = manifest.expires_at;
        self.floor(&member, known)?;
        let set = Some(manifest.set).filter(|set| !set.is_empty());
        Ok((Warrant { member, size: Some(manifest.size), signed: true }, set))
    }

    /// Whether a manifest is about this package, this device and this time.
    fn fits(
        &self,
        name: &str,
        offered: &PackageAvailable,
        file: &DownloadableFile,
        manifest: &Manifest,
        now: u64,
    ) -> Result<(), String> {
        let other = |what: &str, signed: &str, offered: &str| {
            let show = |text: &str| text.escape_debug().take(80).collect::<String>();
            Err(format!(
                "its manifest is for {what} \"{}\", the offer says \"{}\"",
                show(signed),
                show(offered)
            ))
        };
        let kind = manifest.kind().map_err(|refusal| refusal.to_string())?;
        if kind != signature::Kind::Package {
            return Err("its manifest is one for a configuration".to_owned());
        }
        // One without a name is signed by the name that it has on the disk.
        if manifest.name != name && Ok(manifest.name.as_str()) != placed_name(name) {
            return other("the package", &manifest.name, name);
        }
        if manifest.version != offered.version {
            return other("version", &manifest.version, &offered.version);
        }
        if manifest.sha256 != file.content_hash.as_ref() {
            return Err("its manifest is for another file: the SHA-256 differs".to_owned());
        }
        if manifest.size > self.settings.max_size {
            let most = self.settings.max_size;
            return Err(format!("{} bytes; opamp.packages.max_size is {most}", manifest.size));
        }
        self.device.is_target(&manifest.target)?;
        if manifest.expires_at != 0 && manifest.expires_at <= now {
            let ago = now.saturating_sub(manifest.expires_at);
            return Err(format!("its manifest expired {ago} s ago: sign it anew"));
        }
        Ok(())
    }

    /// Whether its counter has not fallen. What is installed may always be fetched again.
    pub(super) fn floor(&self, member: &Member, known: &Known<'_>) -> Result<(), String> {
        if known.installed.iter().any(|installed| installed.is_like(member)) {
            return Ok(());
        }
        let set = self.settings.min_counter.get(&member.name).copied();
        let kept = known.floors.known.get(&member.name).copied();
        if known.floors.lost && set.is_none() && kept.is_none() {
            return Err(format!(
                "how high its counter was is not known any more (the record was lost or broken): set \
                 opamp.packages.min_counter: {{ {}: N }}",
                member.name
            ));
        }
        let floors = &known.floors.known;
        if kept.is_none() && member.counter > 0 && floors.len() >= MAX_FLOORS {
            return Err(format!("the counters of {MAX_FLOORS} packages are kept, and no more"));
        }
        let floor = set.max(kept).unwrap_or(0);
        if member.counter < floor {
            return Err(format!(
                "an older one: its counter is {}, and {floor} is the lowest that is accepted",
                member.counter
            ));
        }
        Ok(())
    }
}

impl Device {
    /// Whether a manifest's target means this device.
    ///
    /// # Errors
    /// The first term that does not.
    pub fn is_target(&self, target: &str) -> Result<(), String> {
        for term in target.split(',').map(str::trim).filter(|term| !term.is_empty()) {
            let fits = match term.split_once('=') {
                Some((name, value)) => {
                    self.attributes.get(name.trim()).is_some_and(|own| own == value.trim())
                }
                None => self.platforms.iter().any(|own| own == term),
            };
            if !fits {
                let platforms = self.platforms.join(", ");
                let shown: String = term.escape_debug().take(80).collect();
                return Err(format!("its target is \"{shown}\"; this device is {platforms}"));
            }
        }
        Ok(())
    }
}

/// What manifests may call this machine: as OCI images do, and by Rust's triple.
#[must_use]
pub fn platforms() -> Vec<String> {
    const TARGET: &str = env!("CHITON_TARGET");
    let arch = TARGET.split('-').next().unwrap_or(TARGET);
    let names: &[&str] = match arch {
        "x86_64" => &["linux/amd64"],
        "i586" | "i686" => &["linux/386"],
        "aarch64" => &["linux/arm64", "linux/arm64/v8"],
        "armv7" => &["linux/arm", "linux/arm/v6", "linux/arm/v7"],
        "arm" => &["linux/arm", "linux/arm/v6"],
        "riscv64" | "riscv64gc" => &["linux/riscv64"],
        _ => &[],
    };
    names.iter().chain([&TARGET]).map(|name| (*name).to_owned()).collect()
}
