//! Signed configurations: whether an offered one may be used.
//!
//! The signature is one more object of the config map, [`SIGNATURE_OBJECT`], whatever its type and role say: a signed
//! manifest over the names and bodies of all others. What is not signed does not count: the types and roles of a
//! signed configuration's objects, which a server makes up, are dropped.

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentRemoteConfig};

use super::packages::policy::Device;
use super::rollout::{CONFIG_FLOOR, Floors, Offer, Seal, Verdict};
use crate::settings::Settings;
use crate::signature::{
    self, Keyring, Kind, MAX_SIGNATURE_OBJECT, Manifest, SIGNATURE_OBJECT, digest_config,
    signature_bytes,
};

/// The attribute that a manifest's name is compared with.
const SERVICE: &str = "service.name";

/// What is asked of a configuration before anything is placed.
#[derive(Clone, Debug)]
pub struct Seals {
    keyring: Keyring,
    device: Device,
    required: bool,
    /// What no lost record can lower.
    min_counter: Option<u64>,
}

impl Seals {
    /// By these settings and keys.
    #[must_use]
    pub fn new(settings: &Settings, keyring: Keyring, device: Device) -> Self {
        Self {
            keyring,
            device,
            required: settings.remote_config.require_signature,
            min_counter: settings.packages.min_counter.get(CONFIG_FLOOR).copied(),
        }
    }

    /// Whether any configuration could be accepted: PRODUCT.md §3.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.required || self.keyring.is_usable()
    }

    /// Takes the signature out of an offer and judges by it. `now` is in Unix seconds, never before the build or
    /// what was signed and committed.
    #[must_use]
    pub fn judge(&self, mut offer: AgentRemoteConfig, floors: &Floors, now: u64) -> Offer {
        let objects = offer.config.get_or_insert_default();
        let signature = objects.config_map.remove(SIGNATURE_OBJECT).map(|object| object.body);
        let (seal, verdict) = match self.open(objects, signature) {
            Ok(None) => (None, Verdict::Good),
            Ok(Some(manifest)) => {
                for object in objects.config_map.values_mut() {
                    object.content_type.clear();
                    object.role.clear();
                }
                let Manifest { counter, issued_at, .. } = manifest;
                let verdict = match self.is_due(&manifest, floors, now) {
                    Ok(()) => Verdict::Good,
                    Err(reason) => Verdict::Unless(refused(&reason)),
                };
                (Some(Seal { counter, issued_at }), verdict)
            }
            Err(reason) => (None, Verdict::Bad(refused(&reason))),
        };
        Offer::new(offer, seal, verdict)
    }

    /// The manifest of these objects; [`None`]: they need none. A signature that is there has to be good.
    fn open(
        &self,
        objects: &AgentConfigMap,
        signature: Option<Bytes>,
    ) -> Result<Option<Manifest>, String> {
        let Some(body) = signature.filter(|_| self.required || self.keyring.is_usable()) else {
            if self.required {
                return Err(format!(
                    "it has no object \"{SIGNATURE_OBJECT}\", and opamp.remote_config.require_signature is on; sign \
                     it with `chiton sign --kind config`"
                ));
            }
            return Ok(None);
        };
        if body.len() > MAX_SIGNATURE_OBJECT {
            let length = body.len();
            return Err(format!(
                "{SIGNATURE_OBJECT} has {length} bytes; allowed are {MAX_SIGNATURE_OBJECT}"
            ));
        }
        let manifest = signature::open_manifest(&self.keyring, &signature_bytes(&body))
            .map_err(|refusal| format!("{SIGNATURE_OBJECT}: {refusal}"))?;
        self.fits(objects, &manifest)?;
        Ok(Some(manifest))
    }

    /// Whether a manifest is about these objects and this device.
    fn fits(&self, objects: &AgentConfigMap, manifest: &Manifest) -> Result<(), String> {
        if manifest.kind().map_err(|refusal| refusal.to_string())? != Kind::Config {
            return Err("its manifest is one for a package; sign it with --kind config".to_owned());
        }
        if !manifest.set.is_empty() {
            return Err(
                "its manifest binds it to a set of packages, which has no meaning yet".to_owned()
            );
        }
        let objects = objects.config_map.iter();
        let (size, sha256) =
            digest_config(objects.map(|(name, it)| (name.as_str(), it.body.as_ref())));
        if manifest.size != size || manifest.sha256 != sha256 {
            return Err(
                "its objects are not those that were signed: one was changed, added, left out or renamed".to_owned(),
            );
        }
        let service = self.device.attributes.get(SERVICE).map_or("", String::as_str);
        if !manifest.name.is_empty() && manifest.name != service {
            let show = |text: &str| text.escape_debug().take(80).collect::<String>();
            return Err(format!(
                "its manifest is for the service \"{}\"; {SERVICE} is \"{}\" here",
                show(&manifest.name),
                show(service)
            ));
        }
        self.device.is_target(&manifest.target)
    }

    /// Whether its time has come and is not over. Where unsigned ones are taken too, order is not to be had.
    fn is_due(&self, manifest: &Manifest, floors: &Floors, now: u64) -> Result<(), String> {
        if manifest.expires_at != 0 && manifest.expires_at <= now {
            let ago = now.saturating_sub(manifest.expires_at);
            return Err(format!("its manifest expired {ago} s ago: sign it anew"));
        }
        if !self.required {
            return Ok(());
        }
        let kept = floors.known.get(CONFIG_FLOOR).copied();
        if floors.lost && self.min_counter.is_none() && kept.is_none() {
            return Err(format!(
                "how high its counter was is not known any more (the record was lost or broken): set \
                 opamp.packages.min_counter: {{ {CONFIG_FLOOR}: N }}"
            ));
        }
        let floor = self.min_counter.max(kept).unwrap_or(0);
        if manifest.counter < floor {
            return Err(format!(
                "an older one: its counter is {}, and {floor} is the lowest that is accepted",
                manifest.counter
            ));
        }
        Ok(())
    }
}

fn refused(reason: &str) -> String {
    format!("signature: {reason}")
}
