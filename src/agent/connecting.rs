//! Where the session and the connection that it goes by meet.

use bytes::Bytes;
use chiton_proto::{AgentCapabilities, ConnectionSettingsOffers, ConnectionSettingsStatuses};

use super::connection::enrol::Wish;
use super::connection::{self, Connections, Found, Way, overlay};
use super::report::Facets;
use super::session::{self, News, Session, Tone, Wire};
use super::{Action, Agent, Config, capabilities};
use crate::clock::Now;
use crate::credentials::Judged;
use crate::settings::{Connection, Scheme, Server, connection_of};

impl Config {
    /// The session's rules on the way to a server.
    pub(super) fn session_to(&self, server: &Server) -> session::Rules {
        let beats = self.beats && !server.heartbeat_interval.is_zero();
        session::Rules {
            endpoint: server.endpoint.to_string(),
            wire: match server.endpoint.scheme {
                Scheme::Ws | Scheme::Wss => Wire::WebSocket,
                Scheme::Http | Scheme::Https => Wire::Http,
            },
            heartbeat: beats.then_some(server.heartbeat_interval),
            poll: server.poll_interval,
            timeouts: server.timeouts,
            reconnect: server.reconnect,
            capabilities: self.capabilities,
            request_uid: self.request_uid,
        }
    }
}

impl Agent {
    /// Goes by what the store has of offered connections. Before [`Agent::boot`].
    #[must_use]
    pub fn with_connection(mut self, found: Found) -> Self {
        self.state.connections = Connections::new(self.state.config.connection.clone(), found);
        self.govern_enrolment();
        self
    }

    /// The connection that is gone by, and which it is.
    #[must_use]
    pub fn server(&self) -> (Server, Way) {
        (self.state.connections.server(), self.state.connections.way())
    }

    /// What is committed of it.
    #[must_use]
    pub const fn connections(&self) -> &Connections {
        &self.state.connections
    }

    pub(super) fn session_rules(&self) -> session::Rules {
        self.state.config.session_to(&self.state.connections.server())
    }

    pub(super) fn on_connections(
        &mut self,
        actions: &mut Vec<Action>,
        now: Now,
        act: impl FnOnce(&mut Connections, &mut Vec<connection::Order>),
    ) {
        let mut orders = Vec::new();
        act(&mut self.state.connections, &mut orders);
        for order in orders {
            self.carry_out_connection(order, now, actions);
        }
    }

    fn carry_out_connection(
        &mut self,
        order: connection::Order,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        match order {
            connection::Order::Stage(candidate, known) => {
                actions.push(Action::StageConnection { candidate, known });
            }
            connection::Order::Remember(memory) => {
                actions.push(Action::RememberConnection(memory));
            }
            connection::Order::Travel { at_once } => {
                let rules = self.session_rules();
                self.on_session(actions, |session, out| session.travel(rules, at_once, now, out));
            }
            connection::Order::Beat => {
                let rules = self.session_rules();
                self.on_session(actions, |session, out| {
                    session.govern(rules, Connection::Kept, now, out);
                });
            }
            connection::Order::Committed => {
                let text = "the offered connection is committed".to_owned();
                actions.push(Action::Log(Tone::Info, text));
                self.enrolment.forget_certificate();
                actions.push(Action::UseCredentials);
            }
            connection::Order::Say(tone, text) => actions.push(Action::Log(tone, text)),
        }
    }

    /// An offer of connections came.
    pub(super) fn connections_offered(
        &mut self,
        offers: ConnectionSettingsOffers,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        let bit = AgentCapabilities::AcceptsOpAmpConnectionSettings;
        if capabilities::has(self.capabilities(), bit) {
            self.on_connections(actions, now, |it, out| it.offered(offers, now, out));
        } else {
            let text =
                "ignored offered connection settings: accepts_opamp_connection_settings is off";
            actions.push(Action::Log(Tone::Peer, text.to_owned()));
        }
    }

    pub(super) fn connection_staged(
        &mut self,
        staged: overlay::Staged,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        self.on_connections(actions, now, |it, out| it.staged(staged, now, out));
    }

    /// The certificate in use was read.
    pub(super) fn certificate_read(&mut self, facts: Option<Judged>) {
        let offered = self.state.connections.certificate_was_offered();
        self.enrolment.facts(facts, offered);
    }

    pub(super) fn request_made(
        &mut self,
        common_name: String,
        result: Result<Bytes, String>,
        now: Now,
        actions: &mut Vec<Action>,
    ) {
        if let Some(error) = self.enrolment.made(common_name, result, now) {
            actions.push(Action::Log(Tone::Warning, error));
        }
    }

    /// What the session has learnt, and what is due. Before a report goes out.
    pub(super) fn tend_connection(&mut self, now: Now, actions: &mut Vec<Action>) {
        let news = self.session.as_mut().map(Session::take_news).unwrap_or_default();
        for news in news {
            self.on_connections(actions, now, |it, out| it.news(&news, now, out));
            if let News::RequestRefused(why) = news {
                let wait = self.enrolment.refused(now);
                let text = format!(
                    "the server refused the request for a certificate ({why}); asking again in {wait:?}"
                );
                actions.push(Action::Log(Tone::Warning, text));
            }
        }
        if self.session.as_ref().is_some_and(Session::is_connecting) {
            self.state.connections.connecting(now);
        }
        self.on_connections(actions, now, |it, out| it.tick(now, out));
        let status = self.state.connections.status();
        if self.connection_status != status {
            if status.status() == ConnectionSettingsStatuses::Failed {
                self.enrolment.failed(now);
            }
            self.connection_status = status;
            self.changed(Facets::CONNECTION_STATUS);
        }
    }

    /// After what there was to report went out.
    pub(super) fn leave_or_ask(&mut self, now: Now, actions: &mut Vec<Action>) {
        let told = |session: &Session| session.has_told(Facets::CONNECTION_STATUS);
        if self.state.connections.announces() && self.session.as_ref().is_none_or(told) {
            self.on_connections(actions, now, Connections::announced);
        }
        let Some(session) = self.session.as_ref().filter(|session| session.is_proven()) else {
            return;
        };
        // What is on trial may be the answer.
        if !self.state.connections.is_idle() {
            return;
        }
        let (uid, ready) = (session.uid(), session.can_request());
        match self.enrolment.wish(uid, now) {
            Some(Wish::Make { common_name, key }) => {
                actions.push(Action::MakeRequest { common_name, key });
            }
            Some(Wish::Send(csr)) if ready => {
                let text = "asking the server for a certificate".to_owned();
                actions.push(Action::Log(Tone::Info, text));
                self.on_session(actions, |session, out| session.request(csr, now, out));
            }
            Some(Wish::Wait(wait)) => {
                let text = format!(
                    "the certificate that came is to be renewed already, or for another name: asking again in {wait:?}"
                );
                actions.push(Action::Log(Tone::Warning, text));
            }
            _ => {}
        }
    }

    /// Other settings are in force: what they mean for the connection.
    pub(super) fn govern_connection(&mut self, now: Now, actions: &mut Vec<Action>) {
        let before = self.state.connections.server();
        let rules = self.state.config.connection.clone();
        self.on_connections(actions, now, |it, out| it.govern(rules, out));
        let after = self.state.connections.server();
        self.govern_enrolment();
        if before.tls.client != after.tls.client {
            actions.push(Action::UseCredentials);
        }
        let connection = connection_of(&before, &after);
        let rules = self.session_rules();
        self.on_session(actions, |session, out| session.govern(rules, connection, now, out));
    }

    fn govern_enrolment(&mut self) {
        let connection::Rules { accepts, enroll, renew_before, .. } = &self.state.config.connection;
        let usable = *accepts && self.state.connections.volatile().is_none();
        self.enrolment.govern(enroll.clone().filter(|_| usable), *renew_before);
    }
}
