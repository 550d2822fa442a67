//! One config: named files and the hash that agents know it by.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use chiton_proto::{AgentConfigMap, AgentConfigObject, AgentRemoteConfig};
use sha2::{Digest as _, Sha256};

/// Bytes in one file's name.
const MAX_NAME: usize = 255;

/// SHA-256 over names and bodies, or whatever another server gave an agent: bytes to compare.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConfigHash(pub(crate) Bytes);

impl fmt::Display for ConfigHash {
    /// Lower-case hex.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// Files by name, within the bounds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConfigSet {
    files: AgentConfigMap,
    hash: ConfigHash,
}

impl ConfigSet {
    /// Checks names, count and size. The error is for the person who wrote it.
    pub(crate) fn new(
        files: BTreeMap<String, String>,
        max_files: usize,
        max_size: usize,
    ) -> Result<Self, String> {
        if files.is_empty() {
            return Err("files: empty; at least one file is needed".to_owned());
        }
        if files.len() > max_files {
            return Err(format!("files: {} of them, at most {max_files} are allowed", files.len()));
        }
        let size = files.iter().fold(0_usize, |sum, (name, body)| {
            sum.saturating_add(name.len()).saturating_add(body.len())
        });
        if size > max_size {
            return Err(format!("files: {size} bytes in all, at most {max_size} are allowed"));
        }
        for name in files.keys() {
            if name.len() > MAX_NAME {
                return Err(format!(
                    "files: a name of {} bytes, at most {MAX_NAME} are allowed",
                    name.len()
                ));
            }
            if name.chars().any(char::is_control) {
                return Err(format!("files: the name {name:?} holds a control character"));
            }
        }
        let object = |name: &str, body: String| AgentConfigObject {
            body: Bytes::from(body),
            content_type: content_type(name).to_owned(),
            role: String::new(),
        };
        let files =
            files.into_iter().map(|(name, body)| (name.clone(), object(&name, body))).collect();
        Ok(Self::from_map(AgentConfigMap { config_map: files }))
    }

    /// What [`Self::as_map`] gave.
    pub(crate) fn from_map(files: AgentConfigMap) -> Self {
        let mut digest = Sha256::new();
        for (name, object) in &files.config_map {
            for part in [name.as_bytes(), &object.body] {
                digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
                digest.update(part);
            }
        }
        let hash = ConfigHash(Bytes::copy_from_slice(&digest.finalize()));
        Self { files, hash }
    }

    /// The files as a message carries them.
    pub(crate) fn as_map(&self) -> &AgentConfigMap {
        &self.files
    }

    /// What agents know it by.
    pub(crate) fn hash(&self) -> &ConfigHash {
        &self.hash
    }

    /// The offer of it.
    pub(crate) fn to_offer(&self) -> AgentRemoteConfig {
        AgentRemoteConfig { config: Some(self.files.clone()), config_hash: self.hash.0.clone() }
    }
}

/// By the ending of the name; the nameless main file is YAML for the agents that this server is made for.
fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("yaml" | "yml") => "text/yaml",
        Some("json") => "application/json",
        None if name.is_empty() => "text/yaml",
        _ => "text/plain",
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;

    fn set(files: &[(&str, &str)]) -> Result<ConfigSet, String> {
        ConfigSet::new(
            files.iter().map(|(name, body)| ((*name).to_owned(), (*body).to_owned())).collect(),
            2,
            20,
        )
    }

    #[test]
    fn the_hash_tells_every_split_apart() {
        let hash = |files: &[(&str, &str)]| set(files).unwrap().hash().clone();
        assert_eq!(hash(&[("a", "1"), ("b", "2")]), hash(&[("b", "2"), ("a", "1")]));
        assert_ne!(hash(&[("a", "bc")]), hash(&[("ab", "c")]));
        assert_ne!(hash(&[("a", ""), ("b", "")]), hash(&[("a", "b")]));
        assert_ne!(hash(&[("a", "1")]), hash(&[("a", "2")]));
        assert_eq!(hash(&[("a", "1")]).to_string().len(), 64);
    }

    #[test]
    fn the_hash_survives_the_way_through_the_store() {
        let first = set(&[("a.yaml", "1")]).unwrap();
        assert_eq!(ConfigSet::from_map(first.as_map().clone()), first);
    }

    #[test]
    fn what_is_refused_says_why() {
        for (files, part) in [
            (&[][..], "at least one"),
            (&[("a", ""), ("b", ""), ("c", "")], "at most 2"),
            (&[("a", "12345678901234567890")], "at most 20"),
            (&[("a\n", "")], "control character"),
        ] {
            let error = set(files).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
