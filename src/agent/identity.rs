//! Which uid this agent goes by: the kept one, unless the device or the settings say otherwise.

use std::collections::BTreeMap;

use super::uid::Uid;
use crate::settings::InstanceId;

/// What identifies the hardware, strongest first: the first source that both sides know decides.
pub const HARDWARE_SOURCES: [&str; 3] = ["device-tree", "dmi", "machine-id"];

/// SHA-256 of each identity of the hardware that could be read, by source. Only digests are kept.
pub type Hardware = BTreeMap<String, [u8; 32]>;

/// What is kept on disk about the uid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The uid in use, which a server may have given.
    pub uid: Uid,
    /// What the settings said when it was made: another text means another uid.
    pub configured: String,
    /// The hardware that it was made on.
    pub hardware: Hardware,
    /// A server gave it, or confirmed it: no other one is asked for.
    pub given: bool,
}

/// What to go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The kept one, given or not.
    Keep(Uid),
    /// This one, and write it down.
    Take(Uid),
    /// A fresh UUIDv7, and write it down; says why.
    Make(&'static str),
}

/// The text that [`Kept::configured`] holds for these settings.
#[must_use]
pub fn configured(setting: &InstanceId) -> String {
    match setting {
        InstanceId::Auto => "auto".to_owned(),
        InstanceId::Uuid(bytes) => {
            Uid::from_slice(bytes).map_or_else(String::new, |uid| uid.to_string())
        }
        InstanceId::Text(text) => format!("text {text}"),
    }
}

/// Chooses.
#[must_use]
pub fn choose(
    setting: &InstanceId,
    machine_id: &str,
    hardware: &Hardware,
    kept: Option<&Kept>,
) -> Choice {
    if let Some(kept) = kept
        && kept.configured == configured(setting)
    {
        let cloned = *setting == InstanceId::Auto && is_other_device(&kept.hardware, hardware);
        return if cloned {
            Choice::Make("this is another device than the uid was made on (a cloned image?)")
        } else {
            Choice::Keep(kept.uid)
        };
    }
    match setting {
        InstanceId::Auto => Choice::Make("none was kept"),
        InstanceId::Uuid(bytes) => Uid::from_slice(bytes)
            .map_or(Choice::Make("the configured uid is all zero"), Choice::Take),
        InstanceId::Text(text) => Choice::Take(Uid::v5(text, machine_id)),
    }
}

fn is_other_device(before: &Hardware, now: &Hardware) -> bool {
    HARDWARE_SOURCES
        .iter()
        .find_map(|source| Some(before.get(*source)? != now.get(*source)?))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Wall;

    fn hardware(sources: &[(&str, u8)]) -> Hardware {
        sources.iter().map(|(source, value)| ((*source).to_owned(), [*value; 32])).collect()
    }

    fn kept(setting: &InstanceId, hardware: Hardware) -> Kept {
        Kept {
            uid: Uid::v7(Wall::default(), [9; 10]),
            configured: configured(setting),
            hardware,
            given: false,
        }
    }

    #[test]
    fn auto_keeps_its_uid_until_the_hardware_is_another() {
        let auto = InstanceId::Auto;
        let here = hardware(&[("device-tree", 1), ("machine-id", 2)]);
        assert!(matches!(choose(&auto, "m", &here, None), Choice::Make(_)));
        let kept = kept(&auto, here.clone());
        assert_eq!(choose(&auto, "m", &here, Some(&kept)), Choice::Keep(kept.uid));
        let cloned = hardware(&[("device-tree", 7), ("machine-id", 2)]);
        assert!(matches!(choose(&auto, "m", &cloned, Some(&kept)), Choice::Make(_)));
        let reflashed = hardware(&[("device-tree", 1), ("machine-id", 9)]);
        assert_eq!(choose(&auto, "m", &reflashed, Some(&kept)), Choice::Keep(kept.uid));
        // Nothing comparable can be read (another user, another kernel): no reason to change.
        assert_eq!(
            choose(&auto, "m", &hardware(&[("dmi", 1)]), Some(&kept)),
            Choice::Keep(kept.uid)
        );
    }

    #[test]
    fn a_text_is_mapped_and_a_server_s_uid_outlives_a_restart_but_not_a_new_text() {
        let text = InstanceId::Text("gateway-7".to_owned());
        assert_eq!(
            choose(&text, "m", &Hardware::new(), None),
            Choice::Take(Uid::v5("gateway-7", "m"))
        );
        let given = kept(&text, Hardware::new());
        assert_eq!(choose(&text, "m", &Hardware::new(), Some(&given)), Choice::Keep(given.uid));
        let other = InstanceId::Text("gateway-8".to_owned());
        let choice = choose(&other, "m", &Hardware::new(), Some(&given));
        assert_eq!(choice, Choice::Take(Uid::v5("gateway-8", "m")));
    }
}
