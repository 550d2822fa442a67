//! What is known of the agents, and every decision about them. No I/O, no clock, no randomness.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use chiton_proto::{
    AgentCapabilities, AgentIdentification, AgentRemoteConfig, AgentToServer,
    ConnectionSettingsOffers, EffectiveConfig, PackagesAvailable, RemoteConfigStatuses, RetryInfo,
    ServerCapabilities, ServerErrorResponse, ServerErrorResponseType, ServerToAgent,
    ServerToAgentFlags, server_error_response::Details,
};
use prost::Message as _;

use crate::authority::Signed;
use crate::clock::Moment;
use crate::config_set::{ConfigHash, ConfigSet};
use crate::connection::Connection;
use crate::credentials::{Credentials, Digest, Outcome};
use crate::package::{Catalog, PackageOffer};
use crate::rotation::Rotation;
use crate::selector::{Labels, Selector};
use crate::uid::InstanceUid;
use crate::view;

/// What this server can do, in every answer.
pub(crate) const CAPABILITIES: u64 = ServerCapabilities::AcceptsStatus as u64
    | ServerCapabilities::OffersRemoteConfig as u64
    | ServerCapabilities::AcceptsEffectiveConfig as u64
    | ServerCapabilities::OffersPackages as u64
    | ServerCapabilities::AcceptsPackagesStatus as u64
    | ServerCapabilities::OffersConnectionSettings as u64;

/// Bytes of one agent's merged report that are kept in memory; its effective config is on disk only.
const MAX_KEPT_REPORT: usize = 256 << 10;
/// Failed configs that are remembered for one agent; the oldest is forgotten.
pub(crate) const MAX_FAILED: usize = 256;
/// Configs with different targets.
const MAX_CONFIGS: usize = 256;
/// An agent that was not seen for so long may be forgotten when room is needed.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// When nothing but the time of an agent's last message changed, it is saved this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// When a full server asks an agent to come back.
const RETRY_WHEN_FULL: Duration = Duration::from_secs(60);

/// One WebSocket connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub(crate) u64);

/// The way that a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Over this connection, which can be pushed to.
    WebSocket(ConnectionId),
    /// As a request; the answer is the only way back.
    Http,
    /// None came since the server started; what is known comes from the store.
    Unheard,
}

/// A config and whom it is for.
#[derive(Clone, Debug)]
pub(crate) struct Assignment {
    pub(crate) target: Selector,
    pub(crate) set: ConfigSet,
    pub(crate) created: Moment,
}

/// What a person offers with one request.
#[derive(Default)]
pub(crate) struct Offers {
    pub(crate) config: Option<Assignment>,
    pub(crate) packages: Option<PackageOffer>,
}

/// The last known state of one agent.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    /// Its reports merged into one, without the effective config.
    pub(crate) report: AgentToServer,
    pub(crate) last_seen: Moment,
    pub(crate) link: Link,
    /// False after a goodbye, after its connection ended, and after a restart of the server.
    pub(crate) connected: bool,
    /// Hashes that it reported FAILED, oldest first.
    pub(crate) failed: VecDeque<ConfigHash>,
    /// The hash that was last offered over `link`.
    offered: Option<ConfigHash>,
    /// The hash of all packages that was last offered over `link`.
    offered_packages: Option<ConfigHash>,
    /// The hash of the connection settings that were last offered over `link`.
    offered_connection: Option<Bytes>,
    labels: Labels,
    saved: Moment,
}

impl Agent {
    /// Takes up what the store kept.
    pub(crate) fn restored(report: AgentToServer, last_seen: Moment) -> Self {
        Self {
            labels: view::labels(&report),
            report,
            last_seen,
            link: Link::Unheard,
            connected: false,
            failed: VecDeque::new(),
            offered: None,
            offered_packages: None,
            offered_connection: None,
            saved: last_seen,
        }
    }

    /// Whether nothing was heard of it for longer than a few heartbeats.
    pub(crate) fn is_stale(&self, now: Moment, stale_after: Duration) -> bool {
        now.since(self.last_seen) > stale_after
    }

    /// Whether it has a connection, or polls.
    pub(crate) fn is_connected(&self, now: Moment, stale_after: Duration) -> bool {
        self.connected && (self.link != Link::Http || !self.is_stale(now, stale_after))
    }

    pub(crate) fn remember_failed(&mut self, hash: ConfigHash) {
        if self.failed.contains(&hash) {
            return;
        }
        if self.failed.len() >= MAX_FAILED {
            self.failed.pop_front();
        }
        self.failed.push_back(hash);
    }

    /// The config hash in its last RemoteConfigStatus.
    fn reported_hash(&self) -> Option<&Bytes> {
        self.report.remote_config_status.as_ref().map(|status| &status.last_remote_config_hash)
    }

    /// The hash of the packages' offer that it last took up, whatever came of it.
    pub(crate) fn reported_packages(&self) -> Option<&Bytes> {
        let statuses = self.report.package_statuses.as_ref()?;
        Some(&statuses.server_provided_all_packages_hash)
    }

    pub(crate) fn has(&self, capability: AgentCapabilities) -> bool {
        self.report.capabilities & (capability as u64) != 0
    }
}

/// What is to be written down after a message.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// The agent's merged report, where it is worth a write.
    pub(crate) report: Option<AgentToServer>,
    /// Its effective config, where the message carried one.
    pub(crate) effective_config: Option<EffectiveConfig>,
    /// A hash that it reported FAILED for the first time.
    pub(crate) failed: Option<ConfigHash>,
    /// An agent that made room.
    pub(crate) forgotten: Option<InstanceUid>,
}

/// Agents, configs and packages.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    agents: BTreeMap<InstanceUid, Agent>,
    /// Oldest first; targets differ.
    assignments: Vec<Assignment>,
    catalog: Catalog,
    pub(crate) credentials: Credentials,
    /// Oldest first; targets differ.
    pub(crate) connections: Vec<Connection>,
    /// Oldest first; one runs at most.
    pub(crate) rotations: Vec<Rotation>,
    max_agents: usize,
}

impl Fleet {
    /// From what the store kept.
    pub(crate) fn new(
        agents: BTreeMap<InstanceUid, Agent>,
        assignments: Vec<Assignment>,
        catalog: Catalog,
        max_agents: usize,
    ) -> Self {
        Self { agents, assignments, catalog, max_agents, ..Self::default() }
    }

    /// Takes one message in; the answer carries whatever the agent is to be told now.
    pub(crate) fn receive(
        &mut self,
        uid: InstanceUid,
        link: Link,
        mut message: AgentToServer,
        now: Moment,
    ) -> (ServerToAgent, Changes) {
        let mut changes = Changes::default();
        let flags = std::mem::take(&mut message.flags);
        debug_assert_eq!(flags & 1, 0, "a request for a uid is answered before it comes here");
        let goodbye = message.agent_disconnect.take().is_some();
        let complete = is_complete(&message);
        let carries_status = message.remote_config_status.is_some();
        let connection_status = message.connection_settings_status.clone();
        changes.effective_config = message.effective_config.take();
        // Passing events, not state.
        message.custom_message = None;
        message.connection_settings_request = None;

        let expected = self.agents.get(&uid).map(|agent| agent.report.sequence_num.wrapping_add(1));
        let in_sequence = expected == Some(message.sequence_num);
        let wants_full = !complete && !in_sequence;

        let substance =
            has_substance(&message) || changes.effective_config.is_some() || expected.is_none();
        let merged = match self.agents.get(&uid) {
            Some(agent) if !complete => merge(agent.report.clone(), message),
            _ => message,
        };
        let size = merged.encoded_len();
        if size > MAX_KEPT_REPORT {
            let text = format!(
                "this agent's state would take {size} bytes, at most {MAX_KEPT_REPORT} are kept"
            );
            return (Refusal { uid: Some(uid), text }.to_answer(), Changes::default());
        }
        if expected.is_none() {
            match self.make_room(now) {
                Ok(forgotten) => changes.forgotten = forgotten,
                Err(text) => return (unavailable(uid, text), Changes::default()),
            }
        }

        let agent = self
            .agents
            .entry(uid)
            .or_insert_with(|| Agent::restored(AgentToServer::default(), now));
        if agent.link != link || !agent.connected {
            agent.offered = None;
            agent.offered_packages = None;
            agent.offered_connection = None;
        }
        agent.labels = view::labels(&merged);
        agent.report = merged;
        agent.last_seen = now;
        agent.link = link;
        agent.connected = !goodbye;
        if carries_status {
            changes.failed = note_failure(agent);
        }
        let settled = connection_status.and_then(|status| self.credentials.report(uid, &status));
        self.note_connection(uid, settled, now);
        let Some(agent) = self.agents.get_mut(&uid) else {
            return (answer(uid), changes);
        };
        // Without a description nothing tells which config is meant for it.
        let wants_full = wants_full || agent.report.agent_description.is_none();
        if substance || goodbye || now.since(agent.saved) >= SAVE_INTERVAL {
            agent.saved = now;
            changes.report = Some(agent.report.clone());
        }

        let offers = if wants_full || goodbye { None } else { self.due(uid) };
        let flags =
            if wants_full && !goodbye { ServerToAgentFlags::ReportFullState as u64 } else { 0 };
        (ServerToAgent { flags, ..offers.unwrap_or_else(|| answer(uid)) }, changes)
    }

    /// Puts a config into force for its target.
    pub(crate) fn publish(&mut self, assignment: Assignment) {
        self.assignments.retain(|other| other.target != assignment.target);
        self.assignments.push(assignment);
    }

    /// What is due to the connected ones of these agents, to be sent at once.
    pub(crate) fn pushes(&mut self, agents: &[InstanceUid]) -> Vec<(ConnectionId, ServerToAgent)> {
        let pushable: Vec<_> = agents
            .iter()
            .copied()
            .filter_map(|uid| match self.agents.get(&uid) {
                Some(Agent { link: Link::WebSocket(connection), connected: true, .. }) => {
                    Some((uid, *connection))
                }
                _ => None,
            })
            .collect();
        let push = |(uid, connection)| Some((connection, self.due(uid)?));
        pushable.into_iter().filter_map(push).collect()
    }

    /// Whether one more config with this target fits. The error is for the person who sent it.
    pub(crate) fn admits(&self, target: &Selector) -> Result<(), String> {
        if self.assignments.len() < MAX_CONFIGS
            || self.assignments.iter().any(|other| other.target == *target)
        {
            return Ok(());
        }
        Err(format!("{MAX_CONFIGS} targets have a config already; use the target of one of them"))
    }

    /// An offer that did not reach its connection is made again with the next answer.
    pub(crate) fn not_delivered(&mut self, uid: InstanceUid) {
        if let Some(agent) = self.agents.get_mut(&uid) {
            agent.offered = None;
            agent.offered_packages = None;
            agent.offered_connection = None;
        }
    }

    /// A connection ended: its agents are no longer connected.
    pub(crate) fn disconnect(&mut self, connection: ConnectionId) {
        let gone =
            self.agents.values_mut().filter(|agent| agent.link == Link::WebSocket(connection));
        gone.for_each(|agent| agent.connected = false);
    }

    /// The live connection that speaks for this agent.
    pub(crate) fn holder(&self, uid: InstanceUid) -> Option<ConnectionId> {
        match self.agents.get(&uid) {
            Some(Agent { link: Link::WebSocket(connection), connected: true, .. }) => {
                Some(*connection)
            }
            _ => None,
        }
    }

    /// The agents that a target means.
    pub(crate) fn matching(&self, target: &Selector) -> Vec<InstanceUid> {
        let matching =
            self.agents.iter().filter(|(uid, agent)| target.matches(**uid, &agent.labels));
        matching.map(|(uid, _)| *uid).collect()
    }

    /// Every agent, by uid.
    pub(crate) fn agents(&self) -> &BTreeMap<InstanceUid, Agent> {
        &self.agents
    }

    /// Every config in force, oldest first.
    pub(crate) fn assignments(&self) -> &[Assignment] {
        &self.assignments
    }

    /// The newest config whose target means this agent.
    pub(crate) fn assigned(&self, uid: InstanceUid) -> Option<&Assignment> {
        let agent = self.agents.get(&uid)?;
        self.assignments
            .iter()
            .rev()
            .find(|assignment| assignment.target.matches(uid, &agent.labels))
    }

    /// Every package, and every offer of packages.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// To change them.
    pub(crate) fn catalog_mut(&mut self) -> &mut Catalog {
        &mut self.catalog
    }

    /// The newest offer of packages whose target means this agent.
    pub(crate) fn assigned_packages(&self, uid: InstanceUid) -> Option<&PackageOffer> {
        self.catalog.assigned(uid, &self.agents.get(&uid)?.labels)
    }

    /// All that this agent is to be offered now, in one message: what comes together is tried together.
    fn due(&mut self, uid: InstanceUid) -> Option<ServerToAgent> {
        let remote_config = self.offer(uid);
        let packages_available = self.offer_packages(uid);
        let connection_settings = self.offer_connection(uid);
        let any = remote_config.is_some()
            || packages_available.is_some()
            || connection_settings.is_some();
        any.then(|| ServerToAgent {
            remote_config,
            packages_available,
            connection_settings,
            ..answer(uid)
        })
    }

    /// The connection settings that this agent is to be offered now.
    pub(crate) fn offer_connection(
        &mut self,
        uid: InstanceUid,
    ) -> Option<ConnectionSettingsOffers> {
        let agent = self.agents.get_mut(&uid)?;
        let labels = &agent.labels;
        let mut connections = self.connections.iter().rev();
        let assigned = connections.find(|connection| connection.target.matches(uid, labels));
        if !agent.has(AgentCapabilities::AcceptsOpAmpConnectionSettings) {
            return None;
        }
        let status = agent.report.connection_settings_status.as_ref();
        let offer = self.credentials.due(
            uid,
            assigned.map(|connection| (connection.settings(), connection.digest())),
            status.map(|status| &status.last_connection_settings_hash),
            agent.has(AgentCapabilities::ReportsConnectionSettingsStatus),
            agent.last_seen,
        )?;
        let under_way =
            agent.link != Link::Http && agent.offered_connection.as_ref() == Some(&offer.hash);
        if under_way {
            return None;
        }
        agent.offered_connection = Some(offer.hash.clone());
        Some(offer)
    }

    /// Offers a certificate that was made for this agent.
    pub(crate) fn issue(
        &mut self,
        uid: InstanceUid,
        signed: Signed,
        authority: &str,
        now: Moment,
    ) -> Digest {
        let labels = self.agents.get(&uid).map(|agent| &agent.labels);
        let assigned = labels.and_then(|labels| {
            self.connections.iter().rev().find(|connection| connection.target.matches(uid, labels))
        });
        let assigned = assigned.map(|connection| (connection.settings(), connection.digest()));
        self.credentials.issue(uid, signed, authority, assigned, now)
    }

    /// Tells the rotations what became of an offer.
    pub(crate) fn note_connection(
        &mut self,
        uid: InstanceUid,
        settled: Option<(Digest, Outcome)>,
        now: Moment,
    ) {
        let Some((hash, outcome)) = settled else { return };
        for rotation in &mut self.rotations {
            rotation.note(uid, hash, &outcome, now);
        }
    }

    /// The rotation that runs, and whose turn it is; tries that took too long have failed.
    pub(crate) fn turns(
        &mut self,
        now: Moment,
        stale_after: Duration,
    ) -> Option<(u64, Vec<InstanceUid>)> {
        let rotation = self.rotations.iter_mut().find(|rotation| rotation.is_running())?;
        rotation.expire(now);
        let ready = |uid: InstanceUid| {
            self.agents.get(&uid).is_some_and(|agent| {
                agent.is_connected(now, stale_after)
                    && agent.has(AgentCapabilities::AcceptsOpAmpConnectionSettings)
            })
        };
        Some((rotation.id, rotation.next(ready)))
    }

    /// A rotation.
    pub(crate) fn rotation(&mut self, id: u64) -> Option<&mut Rotation> {
        self.rotations.iter_mut().find(|rotation| rotation.id == id)
    }

    /// The packages that this agent is to be offered now. It says which offer it took up, so one that it refused
    /// is not made again; and no offer is never an empty one, which would have it remove what it runs.
    fn offer_packages(&mut self, uid: InstanceUid) -> Option<PackagesAvailable> {
        let offer = self.catalog.to_available(self.assigned_packages(uid)?);
        let agent = self.agents.get_mut(&uid)?;
        let hash = &offer.all_packages_hash;
        let under_way = agent.link != Link::Http
            && agent.offered_packages.as_ref().is_some_and(|offered| offered.0 == *hash);
        let known = agent.reported_packages() == Some(hash);
        if !agent.has(AgentCapabilities::AcceptsPackages) || known || under_way {
            return None;
        }
        agent.offered_packages = Some(ConfigHash(hash.clone()));
        Some(offer)
    }

    /// The config that this agent is to be offered now.
    fn offer(&mut self, uid: InstanceUid) -> Option<AgentRemoteConfig> {
        let set = &self.assigned(uid)?.set;
        let (hash, offer) = (set.hash().clone(), set.to_offer());
        let agent = self.agents.get_mut(&uid)?;
        // Over one connection an offer arrives or the connection ends, so once is enough.
        let under_way = agent.link != Link::Http && agent.offered.as_ref() == Some(&hash);
        let known = agent.reported_hash() == Some(&hash.0);
        if !agent.has(AgentCapabilities::AcceptsRemoteConfig)
            || known
            || under_way
            || agent.failed.contains(&hash)
        {
            return None;
        }
        agent.offered = Some(hash);
        Some(offer)
    }

    /// Makes sure that one more agent fits; gives the one that was forgotten for it.
    fn make_room(&mut self, now: Moment) -> Result<Option<InstanceUid>, String> {
        if self.agents.len() < self.max_agents {
            return Ok(None);
        }
        let oldest = self
            .agents
            .iter()
            .filter(|(_, agent)| {
                now.since(agent.last_seen) > FORGET_AFTER && self.holder_of(agent).is_none()
            })
            .min_by_key(|(_, agent)| agent.last_seen)
            .map(|(uid, _)| *uid);
        match oldest {
            Some(uid) => {
                self.agents.remove(&uid);
                Ok(Some(uid))
            }
            None => Err(format!("{} agents are known, which is the limit", self.max_agents)),
        }
    }

    fn holder_of(&self, agent: &Agent) -> Option<ConnectionId> {
        match agent.link {
            Link::WebSocket(connection) if agent.connected => Some(connection),
            _ => None,
        }
    }
}

/// Whether the message carries every part that the agent's capabilities promise.
fn is_complete(message: &AgentToServer) -> bool {
    let promised = |capability: AgentCapabilities| message.capabilities & (capability as u64) != 0;
    message.agent_description.is_some()
        && (message.health.is_some() || !promised(AgentCapabilities::ReportsHealth))
        && (message.effective_config.is_some()
            || !promised(AgentCapabilities::ReportsEffectiveConfig))
        && (message.remote_config_status.is_some()
            || !promised(AgentCapabilities::ReportsRemoteConfig))
        && (message.package_statuses.is_some()
            || !promised(AgentCapabilities::ReportsPackageStatuses))
}

/// Whether the message carries more than a heartbeat does.
fn has_substance(message: &AgentToServer) -> bool {
    message.agent_description.is_some()
        || message.health.is_some()
        || message.remote_config_status.is_some()
        || message.package_statuses.is_some()
        || message.custom_capabilities.is_some()
        || message.available_components.is_some()
        || message.connection_settings_status.is_some()
}

/// Lays a message over what is known: an absent part is unchanged.
fn merge(known: AgentToServer, new: AgentToServer) -> AgentToServer {
    AgentToServer {
        agent_description: new.agent_description.or(known.agent_description),
        health: new.health.or(known.health),
        remote_config_status: new.remote_config_status.or(known.remote_config_status),
        package_statuses: new.package_statuses.or(known.package_statuses),
        custom_capabilities: new.custom_capabilities.or(known.custom_capabilities),
        available_components: new.available_components.or(known.available_components),
        connection_settings_status: new
            .connection_settings_status
            .or(known.connection_settings_status),
        ..new
    }
}

/// Remembers a FAILED status; gives the hash if it is a new one. One without a hash means the last offer.
fn note_failure(agent: &mut Agent) -> Option<ConfigHash> {
    let status = agent.report.remote_config_status.as_ref()?;
    if status.status() != RemoteConfigStatuses::Failed {
        return None;
    }
    let named = Some(&status.last_remote_config_hash).filter(|hash| !hash.is_empty());
    let hash = named.cloned().map(ConfigHash).or_else(|| agent.offered.clone())?;
    if agent.failed.contains(&hash) {
        return None;
    }
    agent.remember_failed(hash.clone());
    Some(hash)
}

/// The least that every agent is told.
fn answer(uid: InstanceUid) -> ServerToAgent {
    ServerToAgent {
        instance_uid: uid.to_wire(),
        capabilities: CAPABILITIES,
        ..ServerToAgent::default()
    }
}

/// Tells an agent its new uid.
pub(crate) fn renamed(uid: InstanceUid, new: InstanceUid) -> ServerToAgent {
    let agent_identification = Some(AgentIdentification { new_instance_uid: new.to_wire() });
    ServerToAgent { agent_identification, ..answer(uid) }
}

/// A message that cannot be taken, and why.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) uid: Option<InstanceUid>,
    pub(crate) text: String,
}

impl Refusal {
    /// As the agent is told.
    pub(crate) fn to_answer(&self) -> ServerToAgent {
        let error_message = self.text.clone();
        let error = ServerErrorResponse { error_message, ..ServerErrorResponse::default() };
        failure(self.uid, error, ServerErrorResponseType::BadRequest)
    }
}

/// Come back later.
fn unavailable(uid: InstanceUid, error_message: String) -> ServerToAgent {
    let nanos = u64::try_from(RETRY_WHEN_FULL.as_nanos()).unwrap_or(u64::MAX);
    let details = Some(Details::RetryInfo(RetryInfo { retry_after_nanoseconds: nanos }));
    let error = ServerErrorResponse { error_message, details, ..ServerErrorResponse::default() };
    failure(Some(uid), error, ServerErrorResponseType::Unavailable)
}

/// The specification leaves every field but the uid unset beside an error.
fn failure(
    uid: Option<InstanceUid>,
    mut error: ServerErrorResponse,
    kind: ServerErrorResponseType,
) -> ServerToAgent {
    error.set_type(kind);
    let instance_uid = uid.map(InstanceUid::to_wire).unwrap_or_default();
    ServerToAgent { instance_uid, error_response: Some(error), ..ServerToAgent::default() }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
