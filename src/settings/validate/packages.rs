//! `opamp.packages` and `opamp.packages_dir`.

use std::path::{Path, PathBuf};

use super::super::model::{Packages, SignatureForm};
use super::super::problem::shorten;
use super::super::walker::{Section, Wants};
use super::common::apply;

/// Bytes of one file that may be allowed.
const FILE_SIZE: core::ops::RangeInclusive<u64> = (1 << 10)..=(64 << 30);
/// Bytes a second that may be set; 0 stands for unlimited.
const BANDWIDTH: core::ops::RangeInclusive<u64> = 0..=(10 << 30);
/// Trusted keys, and signatures that may be asked for.
const MAX_KEYS: usize = 16;

pub(super) fn packages(section: &mut Section<'_, '_, '_>) -> Packages {
    let trusted_keys = section.paths("trusted_keys");
    if trusted_keys.len() > MAX_KEYS {
        let count = trusted_keys.len();
        section.report("trusted_keys", format!("has {count} keys; allowed are {MAX_KEYS}"));
    }
    let threshold = section.number("threshold", 1..=MAX_KEYS, 1);
    if !trusted_keys.is_empty() && threshold > trusted_keys.len() {
        let count = trusted_keys.len();
        section.report(
            "threshold",
            format!(
                "{threshold} cannot be reached with {count} trusted_keys; allowed is 1 to {count}"
            ),
        );
    }
    let min_counter =
        section.map("min_counter", Wants::Any("a whole number"), false, |name, text| {
            if name.is_empty() {
                return Err("has no name; allowed is a package's name".to_owned());
            }
            let allowed = "allowed is a whole number from 0";
            text.parse().map_err(|_| format!("{:?} is not allowed; {allowed}", shorten(text)))
        });
    Packages {
        trusted_keys,
        threshold,
        revoked_keys: section.list("revoked_keys", "a list of key ids", key_id),
        require_signature: section.truth("require_signature", true),
        signature: section.word(
            "signature",
            &[("manifest", SignatureForm::Manifest), ("digest", SignatureForm::Digest)],
            SignatureForm::Manifest,
        ),
        min_counter: min_counter.into_iter().collect(),
        max_size: section.size("max_size", &FILE_SIZE, 512 << 20),
        bandwidth: section.size("bandwidth", &BANDWIDTH, 0),
        apply: apply(section),
        verify: section.command("verify").unwrap_or_default(),
        after_install: section.command("after_install").unwrap_or_default(),
        allow_empty: section.truth("allow_empty", false),
    }
}

/// The id of a key in hex, as `chiton keygen` prints it.
fn key_id(text: &str) -> Result<String, String> {
    let digits = (8..=64).contains(&text.len()) && text.len().is_multiple_of(2);
    if digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("{:?} is not allowed; allowed is a key's id: 8 to 64 hex digits", shorten(text)))
}

/// `packages_dir`, with `{state_dir}` put in.
pub(super) fn directory(opamp: &mut Section<'_, '_, '_>, state_dir: &Path) -> PathBuf {
    const STATE_DIR: &str = "{state_dir}";
    let given = opamp.parsed("packages_dir", Wants::Text("an absolute path"), |text| {
        let state_dir = state_dir.to_string_lossy();
        let path = PathBuf::from(text.replace(STATE_DIR, &state_dir));
        if path.is_absolute() && !path.to_string_lossy().contains(['{', '}']) {
            return Ok(path);
        }
        Err(format!(
            "{:?} is not allowed; allowed is an absolute path, {STATE_DIR} in it for opamp.state_dir",
            shorten(text)
        ))
    });
    given.unwrap_or_else(|| state_dir.join("packages"))
}
