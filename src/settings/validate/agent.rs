//! `opamp.agent` and `opamp.capabilities`.

use super::super::model::{Agent, Capabilities, InstanceId};
use super::super::walker::{Section, Wants};

/// Bytes of an identity that is neither `auto` nor a UUID.
const MAX_IDENTITY: usize = 256;
/// Bytes of all attributes together: they go out with every full report.
const MAX_ATTRIBUTES: usize = 16 << 10;

pub(super) fn agent(section: &mut Section<'_, '_, '_>) -> Agent {
    let instance_id =
        section.parsed("instance_id", Wants::Text("auto, a UUID or text"), instance_id);
    let service_name = section.parsed("service_name", Wants::Text("text"), |text| {
        if text.is_empty() {
            Err("is empty; allowed is a name".to_owned())
        } else {
            Ok(text.to_owned())
        }
    });
    let service_version = section.text("service_version").unwrap_or_default();
    let labels = section.text_map("labels");
    let mut description = section.section("description");
    let identifying_attributes = description.text_map("identifying_attributes");
    let mut non_identifying_attributes = description.text_map("non_identifying_attributes");
    drop(description);
    non_identifying_attributes.extend(labels);
    let bytes: usize = identifying_attributes
        .iter()
        .chain(&non_identifying_attributes)
        .map(|(name, value)| name.len().saturating_add(value.len()))
        .sum();
    if bytes > MAX_ATTRIBUTES {
        section.report_self(format!(
            "labels and description are {bytes} bytes together; allowed are {MAX_ATTRIBUTES}"
        ));
    }
    Agent {
        instance_id: instance_id.unwrap_or(InstanceId::Auto),
        service_name: service_name.unwrap_or_else(|| "chiton".to_owned()),
        service_version,
        identifying_attributes,
        non_identifying_attributes,
        request_instance_uid: section.truth("request_instance_uid", false),
    }
}

fn instance_id(text: &str) -> Result<InstanceId, String> {
    if text == "auto" {
        return Ok(InstanceId::Auto);
    }
    if text.trim().is_empty() {
        return Err(
            "is empty; allowed is auto, a UUID, or a text that only this device has".to_owned()
        );
    }
    if text.len() > MAX_IDENTITY {
        return Err(format!("{} bytes; allowed are {MAX_IDENTITY}", text.len()));
    }
    match uuid(text) {
        Some(uuid) if uuid == [0; 16] => {
            Err("is the UUID of nobody; allowed is auto, another UUID, or text".to_owned())
        }
        Some(uuid) => Ok(InstanceId::Uuid(uuid)),
        None => Ok(InstanceId::Text(text.to_owned())),
    }
}

/// `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let groups: Vec<&str> = text.split('-').collect();
    if groups.iter().map(|group| group.len()).ne([8, 4, 4, 4, 12]) {
        return None;
    }
    let hex = groups.concat();
    if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(&hex, 16).ok().map(u128::to_be_bytes)
}

pub(super) fn capabilities(section: &mut Section<'_, '_, '_>) -> Capabilities {
    if !section.truth("reports_status", true) {
        section.report(
            "reports_status",
            "false is refused: OpAMP demands it of every agent; allowed is true",
        );
    }
    Capabilities {
        accepts_remote_config: section.truth("accepts_remote_config", false),
        accepts_packages: section.truth("accepts_packages", false),
        accepts_opamp_connection_settings: section
            .truth("accepts_opamp_connection_settings", false),
        accepts_other_connection_settings: section
            .truth("accepts_other_connection_settings", false),
        accepts_restart_command: section.truth("accepts_restart_command", false),
        reports_status: true,
        reports_effective_config: section.truth("reports_effective_config", true),
        reports_package_statuses: section.truth("reports_package_statuses", true),
        reports_own_traces: section.truth("reports_own_traces", true),
        reports_own_metrics: section.truth("reports_own_metrics", true),
        reports_own_logs: section.truth("reports_own_logs", true),
        reports_health: section.truth("reports_health", true),
        reports_remote_config: section.truth("reports_remote_config", true),
        reports_heartbeat: section.truth("reports_heartbeat", true),
        reports_available_components: section.truth("reports_available_components", true),
        reports_connection_settings_status: section
            .truth("reports_connection_settings_status", true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities() {
        let text = "01890a5d-ac96-774b-bcce-b302099a8057";
        let bytes = 0x0189_0a5d_ac96_774b_bcce_b302_099a_8057_u128.to_be_bytes();
        assert_eq!(instance_id(text), Ok(InstanceId::Uuid(bytes)));
        assert_eq!(instance_id(&text.to_uppercase()), Ok(InstanceId::Uuid(bytes)));
        assert_eq!(instance_id("auto"), Ok(InstanceId::Auto));
        for other in ["gateway-7", "0189-0a5d", "+1890a5d-ac96-774b-bcce-b302099a8057"] {
            assert_eq!(instance_id(other), Ok(InstanceId::Text(other.to_owned())), "{other}");
        }
        for bad in ["", " ", "00000000-0000-0000-0000-000000000000", &"x".repeat(257)] {
            assert!(instance_id(bad).is_err(), "{bad}");
        }
    }
}
