//! Which of OpAMP's capability bits are sent: those that the user wants and that are usable.

use chiton_proto::AgentCapabilities as Bit;

use crate::settings::Settings;

/// The bits for these settings; `configs`, `packages`: some configuration, some package could be accepted. A capability that cannot work is not claimed (PRODUCT.md §3).
#[must_use]
pub fn usable(settings: &Settings, configs: bool, packages: bool) -> u64 {
    let wanted = settings.capabilities;
    let restarts = settings.workload.as_ref().is_some_and(crate::settings::Workload::restarts);
    [
        (true, Bit::ReportsStatus),
        (wanted.accepts_remote_config && configs, Bit::AcceptsRemoteConfig),
        (
            wanted.accepts_remote_config && configs && wanted.reports_remote_config,
            Bit::ReportsRemoteConfig,
        ),
        (wanted.reports_effective_config, Bit::ReportsEffectiveConfig),
        (wanted.accepts_packages && packages, Bit::AcceptsPackages),
        (
            wanted.accepts_packages && packages && wanted.reports_package_statuses,
            Bit::ReportsPackageStatuses,
        ),
        (wanted.reports_health, Bit::ReportsHealth),
        (wanted.reports_heartbeat, Bit::ReportsHeartbeat),
        (wanted.accepts_restart_command && restarts, Bit::AcceptsRestartCommand),
        (wanted.accepts_opamp_connection_settings, Bit::AcceptsOpAmpConnectionSettings),
        (
            wanted.accepts_opamp_connection_settings && wanted.reports_connection_settings_status,
            Bit::ReportsConnectionSettingsStatus,
        ),
    ]
    .into_iter()
    .filter(|(usable, _)| *usable)
    .fold(0, |bits, (_, bit)| bits | value(bit))
}

/// Whether a bit is among these.
#[must_use]
pub const fn has(bits: u64, bit: Bit) -> bool {
    bits & value(bit) != 0
}

#[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
const fn value(bit: Bit) -> u64 {
    bit as i32 as u64
}

/// The names of the bits, for people.
pub fn names(bits: u64) -> impl Iterator<Item = &'static str> {
    const ALL: [(Bit, &str); 16] = [
        (Bit::ReportsStatus, "reports_status"),
        (Bit::AcceptsRemoteConfig, "accepts_remote_config"),
        (Bit::ReportsEffectiveConfig, "reports_effective_config"),
        (Bit::AcceptsPackages, "accepts_packages"),
        (Bit::ReportsPackageStatuses, "reports_package_statuses"),
        (Bit::ReportsOwnTraces, "reports_own_traces"),
        (Bit::ReportsOwnMetrics, "reports_own_metrics"),
        (Bit::ReportsOwnLogs, "reports_own_logs"),
        (Bit::AcceptsOpAmpConnectionSettings, "accepts_opamp_connection_settings"),
        (Bit::AcceptsOtherConnectionSettings, "accepts_other_connection_settings"),
        (Bit::AcceptsRestartCommand, "accepts_restart_command"),
        (Bit::ReportsHealth, "reports_health"),
        (Bit::ReportsRemoteConfig, "reports_remote_config"),
        (Bit::ReportsHeartbeat, "reports_heartbeat"),
        (Bit::ReportsAvailableComponents, "reports_available_components"),
        (Bit::ReportsConnectionSettingsStatus, "reports_connection_settings_status"),
    ];
    ALL.into_iter().filter(move |(bit, _)| has(bits, *bit)).map(|(_, name)| name)
}
