//! Which agents a config is for: `env=test,region=eu`.

use std::collections::BTreeSet;
use std::fmt;

use crate::uid::InstanceUid;

/// Conditions in one target.
const MAX_TERMS: usize = 16;
/// Bytes in one target.
const MAX_LENGTH: usize = 1024;
/// The key that means the agent's own uid.
const UID_KEY: &str = "instance_uid";

/// What an agent says of itself, as (key, value) in text; a key may occur twice.
pub(crate) type Labels = BTreeSet<(String, String)>;

/// Conditions that must all hold; none at all matches every agent.
///
/// Its text form is normal (sorted, without spaces), so that one target has one spelling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector(BTreeSet<(String, String)>);

impl Selector {
    /// Reads `key=value,key=value`, `*` or nothing. The error is for the person who wrote it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LENGTH {
            return Err(format!(
                "target: {} bytes long, at most {MAX_LENGTH} are allowed",
                text.len()
            ));
        }
        if matches!(text.trim(), "" | "*") {
            return Ok(Self(BTreeSet::new()));
        }
        let mut terms = BTreeSet::new();
        for term in text.split(',') {
            let Some((key, value)) = term.split_once('=') else {
                return Err(format!(
                    "target: {term:?} is not key=value; allowed are key=value pairs joined by commas, \
                     instance_uid=UUID, or * for every agent"
                ));
            };
            let (key, value) = (key.trim(), value.trim());
            if key.is_empty() {
                return Err(format!("target: {term:?} has no key before the equals sign"));
            }
            if key == UID_KEY && InstanceUid::from_text(value).is_none() {
                return Err(format!(
                    "target: {value:?} is not a UUID such as 01890a5d-ac96-774b-bcce-b302099a8057"
                ));
            }
            let value = if key == UID_KEY { value.to_lowercase() } else { value.to_owned() };
            terms.insert((key.to_owned(), value));
        }
        if terms.len() > MAX_TERMS {
            return Err(format!(
                "target: {} conditions, at most {MAX_TERMS} are allowed",
                terms.len()
            ));
        }
        Ok(Self(terms))
    }

    /// Whether all conditions hold for this agent.
    pub(crate) fn matches(&self, uid: InstanceUid, labels: &Labels) -> bool {
        self.0.iter().all(|term| {
            if term.0 == UID_KEY { term.1 == uid.to_string() } else { labels.contains(term) }
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return out.write_str("*");
        }
        for (at, (key, value)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(out, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_condition_must_hold() {
        let uid = InstanceUid::generate();
        let agent = labels(&[("env", "test"), ("region", "eu")]);
        let matches = |target: &str| Selector::parse(target).unwrap().matches(uid, &agent);
        assert!(matches("env=test,region=eu"));
        assert!(matches(" region=eu , env=test "));
        assert!(matches("env=test"));
        assert!(matches("*") && matches(""));
        assert!(matches(&format!("instance_uid={uid}")));
        assert!(matches(&format!("instance_uid={}", uid.to_string().to_uppercase())));
        assert!(!matches("env=test,region=us"));
        assert!(!matches("env=tes"));
        assert!(!matches("tier=1"));
        assert!(!matches(&format!("instance_uid={}", InstanceUid::generate())));
    }

    #[test]
    fn one_target_has_one_spelling() {
        let text = |target: &str| Selector::parse(target).unwrap().to_string();
        assert_eq!(text(" b=2 ,a=1,b=2"), "a=1,b=2");
        assert_eq!(text(""), "*");
        assert_eq!(text("a=b=c"), "a=b=c");
    }

    #[test]
    fn what_is_refused_says_why() {
        for (target, part) in [
            ("env", "not key=value"),
            ("env=test,", "not key=value"),
            ("=test", "no key"),
            ("instance_uid=seven", "not a UUID"),
            (&"k=v,".repeat(400), "bytes long"),
            (&(0..17).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(","), "at most 16"),
        ] {
            let error = Selector::parse(target).unwrap_err();
            assert!(error.contains(part), "{target}: {error}");
        }
    }
}
