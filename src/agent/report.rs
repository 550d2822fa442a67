//! What is reported, and what of it the server has yet to hear (opamp-spec L1222, "status compression").

use core::ops::{BitOr, BitOrAssign};

use chiton_proto::{AgentCapabilities as Agent, ServerCapabilities as Server};

/// A set of the sub-messages of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facets(u8);

impl Facets {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// `agent_description`.
    pub const DESCRIPTION: Self = Self(1);
    /// `health`.
    pub const HEALTH: Self = Self(2);
    /// `effective_config`.
    pub const EFFECTIVE_CONFIG: Self = Self(4);
    /// `remote_config_status`.
    pub const REMOTE_CONFIG_STATUS: Self = Self(8);
    /// `package_statuses`.
    pub const PACKAGE_STATUSES: Self = Self(16);
    /// `connection_settings_status`.
    pub const CONNECTION_STATUS: Self = Self(32);
    /// All of them: a full report.
    pub const ALL: Self = Self(63);

    /// Whether all of `other` are in this set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those that are in both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Those of this set that are not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set is empty.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What may be sent: a sub-message whose capability is declared (opamp-spec L650 ff.) to a server that
    /// takes it (L3661). A server that states nothing (0) is taken to accept everything.
    #[must_use]
    pub const fn allowed(capabilities: u64, server: u64) -> Self {
        const fn agent(capabilities: u64, bit: Agent) -> bool {
            #[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
            let bit = bit as i32 as u64;
            capabilities & bit != 0
        }
        const fn server_takes(server: u64, bit: Server) -> bool {
            #[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
            let bit = bit as i32 as u64;
            server == 0 || server & bit != 0
        }
        let mut allowed = Self::DESCRIPTION.0;
        if agent(capabilities, Agent::ReportsHealth) {
            allowed |= Self::HEALTH.0;
        }
        if agent(capabilities, Agent::ReportsEffectiveConfig)
            && server_takes(server, Server::AcceptsEffectiveConfig)
        {
            allowed |= Self::EFFECTIVE_CONFIG.0;
        }
        if agent(capabilities, Agent::ReportsRemoteConfig) {
            allowed |= Self::REMOTE_CONFIG_STATUS.0;
        }
        if agent(capabilities, Agent::ReportsPackageStatuses)
            && server_takes(server, Server::AcceptsPackagesStatus)
        {
            allowed |= Self::PACKAGE_STATUSES.0;
        }
        if agent(capabilities, Agent::ReportsConnectionSettingsStatus) {
            allowed |= Self::CONNECTION_STATUS.0;
        }
        Self(allowed)
    }
}

impl BitOr for Facets {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Facets {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// Which sub-messages the server has yet to hear.
///
/// One current value of each instead of a queue (opamp-spec L3490): offline, changes fold into one report.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    /// Changed since last sent.
    unsent: Facets,
    /// Sent on this connection; no ServerToAgent has followed yet.
    in_flight: Facets,
}

impl Ledger {
    /// Nothing has been heard yet: a new process, a new uid or a new endpoint.
    #[must_use]
    pub const fn full() -> Self {
        Self { unsent: Facets::ALL, in_flight: Facets::NONE }
    }

    /// Something changed.
    pub fn changed(&mut self, facets: Facets) {
        self.unsent |= facets;
    }

    /// What there is to send among `allowed`.
    #[must_use]
    pub const fn due(&self, allowed: Facets) -> Facets {
        self.unsent.and(allowed)
    }

    /// These went out.
    pub fn sent(&mut self, facets: Facets) {
        self.unsent = self.unsent.without(facets);
        self.in_flight |= facets;
    }

    /// The server has spoken after them: they count as reported.
    pub const fn acknowledged(&mut self) {
        self.in_flight = Facets::NONE;
    }

    /// The connection ended, or the server did not take them: they go again.
    pub fn returned(&mut self) {
        self.unsent |= self.in_flight;
        self.in_flight = Facets::NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: u64 = 0xffff;

    #[test]
    fn unacknowledged_facets_go_again_and_acknowledged_ones_do_not() {
        let mut ledger = Ledger::full();
        ledger.sent(Facets::ALL);
        assert!(ledger.due(Facets::ALL).is_empty());
        ledger.returned();
        assert_eq!(ledger.due(Facets::ALL), Facets::ALL);
        ledger.sent(Facets::ALL);
        ledger.acknowledged();
        ledger.returned();
        assert!(ledger.due(Facets::ALL).is_empty());
    }

    #[test]
    fn a_change_while_in_flight_is_sent_again() {
        let mut ledger = Ledger::full();
        ledger.sent(Facets::ALL);
        ledger.changed(Facets::HEALTH);
        ledger.acknowledged();
        assert_eq!(ledger.due(Facets::ALL), Facets::HEALTH);
    }

    #[test]
    fn a_server_that_states_nothing_gets_everything_declared() {
        assert_eq!(Facets::allowed(EVERYTHING, 0), Facets::ALL);
        assert_eq!(Facets::allowed(0x1, 0), Facets::DESCRIPTION);
        let accepts_status_only = 0x1;
        assert!(
            !Facets::allowed(EVERYTHING, accepts_status_only).contains(Facets::EFFECTIVE_CONFIG)
        );
        assert!(
            !Facets::allowed(EVERYTHING, accepts_status_only).contains(Facets::PACKAGE_STATUSES)
        );
        assert!(Facets::allowed(EVERYTHING, accepts_status_only).contains(Facets::HEALTH));
    }
}
