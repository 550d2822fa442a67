//! The keys that packages and configurations are signed with, from their files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::settings::Packages;
use crate::signature::{Keyring, PublicKey};

/// Bytes of a key's file.
const MAX_FILE: u64 = 16 * 1024;

/// The trusted keys, and what is wrong with those that cannot be used: the others count all the same.
pub(super) fn read(settings: &Packages) -> (Keyring, Vec<String>) {
    let mut keys = Vec::new();
    let mut problems = Vec::new();
    for path in &settings.trusted_keys {
        match key(path) {
            Ok(key) => keys.push(key),
            Err(error) => problems.push(format!(
                "opamp.packages.trusted_keys: {}: {error}; it does not count",
                path.display()
            )),
        }
    }
    let keyring = Keyring::new(keys, settings.threshold, &settings.revoked_keys);
    if !settings.trusted_keys.is_empty() && !keyring.is_usable() {
        let (threshold, active) = (settings.threshold, keyring.active().count());
        problems.push(format!(
            "opamp.packages.threshold: {threshold} cannot be reached with {active} usable key(s): what has to be \
             signed is not accepted"
        ));
    }
    (keyring, problems)
}

fn key(path: &Path) -> Result<PublicKey, String> {
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE).read_to_end(&mut pem).map_err(|error| error.to_string())?;
    PublicKey::from_pem(&pem)
}
