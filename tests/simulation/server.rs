//! The model server: OpAMP's rules for a server, and the faults that are its own.

use std::collections::BTreeMap;

use bytes::Bytes;
use chiton::agent::session::Outgoing;
use chiton_proto::{
    AgentConfigMap, AgentConfigObject, AgentDescription, AgentIdentification, AgentRemoteConfig,
    ComponentHealth, RemoteConfigStatus, ServerErrorResponse, ServerErrorResponseType,
    ServerToAgent, ServerToAgentFlags,
};

/// What a configuration does to the workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It runs, and its checks pass.
    Good,
    /// The process dies within the gate's window.
    Crashes,
    /// It passes the gate, and its process dies a while later, again and again.
    Late,
    /// The process lives, a check fails.
    Sick,
    /// The process cannot be started.
    NoStart,
    /// The dry run refuses it.
    Invalid,
    /// The agent's own rules refuse it.
    Refused,
}

/// One offer of the server.
#[derive(Clone, Debug)]
pub(crate) struct Offer {
    pub(crate) hash: Bytes,
    pub(crate) body: String,
}

impl Offer {
    pub(crate) fn new(version: u64, content: u64, kind: Kind) -> Self {
        let mut hash = version.to_be_bytes().to_vec();
        hash.extend([0xc0; 24]);
        Self { hash: hash.into(), body: format!("{kind:?}#{content}") }
    }

    pub(crate) fn message(&self) -> AgentRemoteConfig {
        let file = AgentConfigObject {
            body: self.body.clone().into_bytes().into(),
            ..AgentConfigObject::default()
        };
        let config_map = BTreeMap::from([("main.yaml".to_owned(), file)]);
        AgentRemoteConfig {
            config: Some(AgentConfigMap { config_map }),
            config_hash: self.hash.clone(),
        }
    }
}

pub(crate) fn kind_of(body: &str) -> Kind {
    match body.split('#').next() {
        Some("Crashes") => Kind::Crashes,
        Some("Late") => Kind::Late,
        Some("Sick") => Kind::Sick,
        Some("NoStart") => Kind::NoStart,
        Some("Invalid") => Kind::Invalid,
        Some("Refused") => Kind::Refused,
        _ => Kind::Good,
    }
}

/// What the server believes of one agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct View {
    pub(crate) last: Option<u64>,
    /// A message was lost, and no full report has come since.
    pub(crate) needs_full: bool,
    pub(crate) description: Option<AgentDescription>,
    pub(crate) health: Option<ComponentHealth>,
    pub(crate) status: Option<RemoteConfigStatus>,
    pub(crate) effective: Option<String>,
}

/// How the server treats the message that has just come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Fine,
    Unavailable(Option<u64>),
    BadRequest,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Server {
    pub(crate) views: BTreeMap<Vec<u8>, View>,
    pub(crate) desired: Option<Offer>,
    /// Flags ReportFullState in every reply.
    pub(crate) insists: bool,
    /// States its capabilities; else 0, as many servers do.
    pub(crate) capabilities: u64,
    /// To be given with the next reply.
    pub(crate) new_uid: Option<Vec<u8>>,
}

pub(crate) const FULL_STATE: u64 = ServerToAgentFlags::ReportFullState as i32 as u64;

impl Server {
    /// Takes one message and answers it. `effective` is what the edge put into it.
    pub(crate) fn answer(
        &mut self,
        out: &Outgoing,
        effective: Option<&String>,
        mood: Mood,
    ) -> ServerToAgent {
        let message = &out.message;
        let uid = message.instance_uid.to_vec();
        let mut reply = ServerToAgent {
            instance_uid: message.instance_uid.clone(),
            capabilities: self.capabilities,
            ..ServerToAgent::default()
        };
        if let Mood::Unavailable(nanos) = mood {
            use chiton_proto::{RetryInfo, server_error_response::Details};
            reply.error_response = Some(ServerErrorResponse {
                r#type: ServerErrorResponseType::Unavailable.into(),
                error_message: "busy".to_owned(),
                details: nanos.map(|retry_after_nanoseconds| {
                    Details::RetryInfo(RetryInfo { retry_after_nanoseconds })
                }),
            });
            return reply;
        }
        if mood == Mood::BadRequest {
            self.views.entry(uid).or_default().needs_full = true;
            reply.error_response = Some(ServerErrorResponse {
                r#type: ServerErrorResponseType::BadRequest.into(),
                error_message: "no".to_owned(),
                details: None,
            });
            return reply;
        }
        let view = self.views.entry(uid).or_default();
        let follows = view
            .last
            .map_or(message.sequence_num == 0, |last| last.wrapping_add(1) == message.sequence_num);
        view.last = Some(message.sequence_num);
        let full = message.agent_description.is_some()
            && message.health.is_some()
            && message.remote_config_status.is_some()
            && out.effective_config;
        if full {
            view.needs_full = false;
        } else if !follows {
            view.needs_full = true;
        }
        if let Some(description) = &message.agent_description {
            view.description = Some(description.clone());
        }
        if let Some(health) = &message.health {
            view.health = Some(health.clone());
        }
        if let Some(status) = &message.remote_config_status {
            view.status = Some(status.clone());
        }
        if out.effective_config {
            view.effective = Some(effective.cloned().unwrap_or_default());
        }
        if view.needs_full || !follows || self.insists {
            reply.flags |= FULL_STATE;
        }
        let known = view.status.as_ref().map(|status| &status.last_remote_config_hash);
        if let Some(desired) = &self.desired
            && known.is_some_and(|hash| *hash != desired.hash)
        {
            reply.remote_config = Some(desired.message());
        }
        if let Some(uid) = self.new_uid.take() {
            reply.agent_identification = Some(AgentIdentification { new_instance_uid: uid.into() });
        }
        reply
    }
}
