//! Agents and configs as REST shows them.

use std::collections::BTreeMap;
use std::time::Duration;

use chiton_proto::{
    AgentCapabilities, AgentConfigMap, AgentToServer, AnyValue, ComponentHealth, EffectiveConfig,
    KeyValue, RemoteConfigStatus, any_value::Value as Any,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::clock::Moment;
use crate::config_set::ConfigHash;
use crate::fleet::{Agent, Assignment, Fleet, Link};
use crate::selector::Labels;
use crate::uid::InstanceUid;

/// Depth of nested components and values that are shown; deeper ones are cut off.
const MAX_DEPTH: u8 = 16;

/// One agent in the list.
#[derive(Serialize)]
pub(crate) struct AgentView {
    instance_uid: String,
    connected: bool,
    /// Silent for longer than a few heartbeats.
    stale: bool,
    /// `null` until it is heard of after a restart of the server.
    transport: Option<&'static str>,
    last_seen: String,
    capabilities: Vec<String>,
    attributes: Value,
    health: Option<Value>,
    remote_config_status: Option<Value>,
    /// The config that is meant for it now.
    assigned_config: Option<Value>,
    /// Set when the assigned config is withheld, because this agent reported it FAILED.
    assigned_config_failed: bool,
}

/// One agent on its own.
#[derive(Serialize)]
pub(crate) struct AgentDetail {
    #[serde(flatten)]
    agent: AgentView,
    sequence_num: u64,
    effective_config: Option<BTreeMap<String, String>>,
    offered_config: Option<Value>,
    failed_hashes: Vec<String>,
    packages: BTreeMap<String, Value>,
}

/// An agent for the list.
pub(crate) fn agent(
    fleet: &Fleet,
    uid: InstanceUid,
    agent: &Agent,
    now: Moment,
    stale_after: Duration,
) -> AgentView {
    let assigned = fleet.assigned(uid);
    AgentView {
        instance_uid: uid.to_string(),
        connected: agent.is_connected(now, stale_after),
        stale: agent.is_stale(now, stale_after),
        transport: match agent.link {
            Link::WebSocket(_) => Some("websocket"),
            Link::Http => Some("http"),
            Link::Unheard => None,
        },
        last_seen: agent.last_seen.to_string(),
        capabilities: capability_names(agent.report.capabilities),
        attributes: attributes(&agent.report),
        health: agent.report.health.as_ref().map(|health| component(health, 0)),
        remote_config_status: agent.report.remote_config_status.as_ref().map(config_status),
        assigned_config: assigned
            .map(|a| json!({"hash": a.set.hash().to_string(), "target": a.target.to_string()})),
        assigned_config_failed: assigned.is_some_and(|a| agent.failed.contains(a.set.hash())),
    }
}

/// An agent with its configs.
pub(crate) fn detail(view: AgentView, agent: &Agent, assigned: Option<&Assignment>) -> AgentDetail {
    let packages = agent.report.package_statuses.iter().flat_map(|statuses| &statuses.packages);
    AgentDetail {
        agent: view,
        sequence_num: agent.report.sequence_num,
        effective_config: None,
        offered_config: assigned.map(|a| {
            json!({"hash": a.set.hash().to_string(), "target": a.target.to_string(), "files": files(a.set.as_map())})
        }),
        failed_hashes: agent.failed.iter().map(ToString::to_string).collect(),
        packages: packages
            .map(|(name, package)| {
                let status = package.status().as_str_name().trim_start_matches("PackageStatusEnum_");
                let version = &package.agent_has_version;
                (name.clone(), json!({"version": version, "status": status, "error_message": package.error_message}))
            })
            .collect(),
    }
}

impl AgentDetail {
    /// Adds what the store alone keeps.
    pub(crate) fn with_effective_config(mut self, config: Option<&EffectiveConfig>) -> Self {
        self.effective_config =
            config.map(|config| config.config_map.as_ref().map(files).unwrap_or_default());
        self
    }
}

/// A config in force.
pub(crate) fn assignment(assignment: &Assignment) -> Value {
    json!({
        "hash": assignment.set.hash().to_string(),
        "target": assignment.target.to_string(),
        "created": assignment.created.to_string(),
        "files": assignment.set.as_map().config_map.keys().collect::<Vec<_>>(),
    })
}

/// Everything that an agent says of itself, for selectors. The first level only: a list is not a label.
pub(crate) fn labels(report: &AgentToServer) -> Labels {
    let description = report.agent_description.iter();
    let pairs = description
        .flat_map(|d| d.identifying_attributes.iter().chain(&d.non_identifying_attributes));
    pairs.filter_map(|pair| Some((pair.key.clone(), scalar_text(pair.value.as_ref()?)?))).collect()
}

fn scalar_text(value: &AnyValue) -> Option<String> {
    match value.value.as_ref()? {
        Any::StringValue(text) => Some(text.clone()),
        Any::BoolValue(value) => Some(value.to_string()),
        Any::IntValue(value) => Some(value.to_string()),
        Any::DoubleValue(value) => Some(value.to_string()),
        Any::ArrayValue(_) | Any::KvlistValue(_) | Any::BytesValue(_) => None,
    }
}

fn attributes(report: &AgentToServer) -> Value {
    let description = report.agent_description.clone().unwrap_or_default();
    json!({
        "identifying": object(&description.identifying_attributes, 0),
        "non_identifying": object(&description.non_identifying_attributes, 0),
    })
}

fn object(pairs: &[KeyValue], depth: u8) -> Value {
    let entry = |pair: &KeyValue| {
        (pair.key.clone(), pair.value.as_ref().map_or(Value::Null, |v| any(v, depth)))
    };
    Value::Object(pairs.iter().map(entry).collect::<Map<_, _>>())
}

fn any(value: &AnyValue, depth: u8) -> Value {
    let deeper = depth.saturating_add(1);
    match &value.value {
        None => Value::Null,
        Some(_) if deeper > MAX_DEPTH => json!("…"),
        Some(Any::StringValue(text)) => json!(text),
        Some(Any::BoolValue(value)) => json!(value),
        Some(Any::IntValue(value)) => json!(value),
        Some(Any::DoubleValue(value)) => json!(value),
        Some(Any::ArrayValue(list)) => list.values.iter().map(|value| any(value, deeper)).collect(),
        Some(Any::KvlistValue(list)) => object(&list.values, deeper),
        Some(Any::BytesValue(bytes)) => json!(ConfigHash(bytes.clone()).to_string()),
    }
}

fn component(health: &ComponentHealth, depth: u8) -> Value {
    let deeper = depth.saturating_add(1);
    let parts = health.component_health_map.iter().filter(|_| deeper <= MAX_DEPTH);
    let started = Some(health.start_time_unix_nano).filter(|nanos| *nanos != 0);
    json!({
        "healthy": health.healthy,
        "status": health.status,
        "last_error": health.last_error,
        "start_time": started.map(|nanos| Moment::from_nanos(nanos).to_string()),
        "attributes": object(&health.attributes, 0),
        "components": parts.map(|(name, part)| (name.clone(), component(part, deeper))).collect::<Map<_, _>>(),
    })
}

fn config_status(status: &RemoteConfigStatus) -> Value {
    json!({
        "hash": ConfigHash(status.last_remote_config_hash.clone()).to_string(),
        "status": status.status().as_str_name().trim_start_matches("RemoteConfigStatuses_"),
        "error_message": status.error_message,
    })
}

fn capability_names(bits: u64) -> Vec<String> {
    let set = (0..u64::BITS).filter_map(|bit| 1_u64.checked_shl(bit)).filter(|bit| bits & bit != 0);
    set.map(|bit| {
        let known = i32::try_from(bit).ok().and_then(|bit| AgentCapabilities::try_from(bit).ok());
        known.map_or_else(
            || format!("{bit:#x}"),
            |known| known.as_str_name().trim_start_matches("AgentCapabilities_").to_owned(),
        )
    })
    .collect()
}

/// Name → text; bytes that are not UTF-8 are shown with replacement characters.
fn files(map: &AgentConfigMap) -> BTreeMap<String, String> {
    map.config_map
        .iter()
        .map(|(name, file)| (name.clone(), String::from_utf8_lossy(&file.body).into_owned()))
        .collect()
}
