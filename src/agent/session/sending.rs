//! What is told to the server: reports, and requests for a certificate.

use bytes::Bytes;
use chiton_proto::{
    AgentToServer, AgentToServerFlags, CertificateRequest, ConnectionSettingsRequest,
    OpAmpConnectionSettingsRequest, ServerCapabilities,
};

use super::{Link, Order, Outgoing, Reportable, Session};
use crate::agent::report::Facets;
use crate::clock::Now;

impl Session {
    /// Sends a report if one is due: the first on a link, a change, or a heartbeat.
    pub fn flush(&mut self, from: &impl Reportable, now: Now, out: &mut Vec<Order>) {
        let Link::Up(up) = &self.link else { return };
        if self.is_http() && up.unanswered.is_some() {
            return; // opamp-spec L539: one request at a time
        }
        let heartbeat = self.heartbeat_at(up).is_some_and(|at| at <= now.mono);
        if heartbeat && up.full_at_heartbeat {
            self.ledger.changed(Facets::ALL);
        }
        let allowed = Facets::allowed(self.rules.capabilities, up.server_capabilities)
            .without(self.too_large);
        let facets = self.ledger.due(allowed);
        if facets.is_empty() && up.last_sent.is_some() && !heartbeat {
            return;
        }
        let full = facets == allowed;
        let message = self.compose(facets, from);
        out.push(Order::Send(Box::new(Outgoing {
            message,
            effective_config: facets.contains(Facets::EFFECTIVE_CONFIG),
        })));
        self.ledger.sent(facets);
        if let Link::Up(up) = &mut self.link {
            up.last_sent = Some(now.mono);
            up.unanswered.get_or_insert(now.mono);
            up.sent = facets;
            up.sent_full = full;
            if full {
                up.full_at_heartbeat = false;
            }
        }
    }

    /// One message: what every message carries, and these sub-messages.
    fn compose(&mut self, facets: Facets, from: &impl Reportable) -> AgentToServer {
        let flags =
            if self.wants_uid { from_flag(AgentToServerFlags::RequestInstanceUid) } else { 0 };
        AgentToServer {
            flags,
            agent_description: facets
                .contains(Facets::DESCRIPTION)
                .then(|| from.description(self.uid)),
            health: facets.contains(Facets::HEALTH).then(|| from.health()),
            remote_config_status: facets
                .contains(Facets::REMOTE_CONFIG_STATUS)
                .then(|| from.remote_config_status()),
            package_statuses: facets
                .contains(Facets::PACKAGE_STATUSES)
                .then(|| from.package_statuses()),
            connection_settings_status: facets
                .contains(Facets::CONNECTION_STATUS)
                .then(|| from.connection_status()),
            ..self.bare()
        }
    }

    /// What every message carries.
    pub(super) fn bare(&mut self) -> AgentToServer {
        let sequence_num = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        AgentToServer {
            instance_uid: self.uid.as_bytes().to_vec().into(),
            sequence_num,
            capabilities: self.rules.capabilities,
            ..AgentToServer::default()
        }
    }

    /// Whether the server has been told of these, as far as it can be.
    #[must_use]
    pub fn has_told(&self, facets: Facets) -> bool {
        match &self.link {
            Link::Up(up) => {
                let allowed = Facets::allowed(self.rules.capabilities, up.server_capabilities);
                let waits = self.is_http() && up.unanswered.is_some();
                self.ledger.due(allowed.without(self.too_large).and(facets)).is_empty() && !waits
            }
            _ => true,
        }
    }

    /// Something to report changed.
    pub fn changed(&mut self, facets: Facets) {
        self.ledger.changed(facets);
        self.too_large = self.too_large.without(facets);
    }

    /// Whether a request for a certificate can go out: once a connection, to a server that takes it, and alone.
    #[must_use]
    pub fn can_request(&self) -> bool {
        let Link::Up(up) = &self.link else { return false };
        let takes = up.server_capabilities == 0
            || up.server_capabilities
                & flag_of(ServerCapabilities::AcceptsConnectionSettingsRequest)
                != 0;
        let busy = self.is_http() && up.unanswered.is_some();
        up.proven && takes && !up.requested && !busy
    }

    /// Sends one, in a message of its own: a server that refuses it refuses the whole message (opamp-spec L1876).
    pub fn request(&mut self, csr: Bytes, now: Now, out: &mut Vec<Order>) {
        let message = AgentToServer {
            connection_settings_request: Some(ConnectionSettingsRequest {
                opamp: Some(OpAmpConnectionSettingsRequest {
                    certificate_request: Some(CertificateRequest { csr }),
                }),
            }),
            ..self.bare()
        };
        if let Link::Up(up) = &mut self.link {
            up.requested = true;
            up.request_open = true;
            up.last_sent = Some(now.mono);
            up.unanswered.get_or_insert(now.mono);
            up.sent = Facets::NONE;
            up.sent_full = false;
        }
        out.push(Order::Send(Box::new(Outgoing { message, effective_config: false })));
    }
}

#[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
const fn flag_of(bit: ServerCapabilities) -> u64 {
    bit as i32 as u64
}

#[expect(clippy::cast_sign_loss, reason = "the bits are positive")]
const fn from_flag(bit: AgentToServerFlags) -> u64 {
    bit as i32 as u64
}
