//! Agents and configs as REST shows them.

use std::collections::BTreeMap;
use std::time::Duration;

use chiton_proto::{
    AgentCapabilities, AgentConfigMap, AgentToServer, AnyValue, ComponentHealth, EffectiveConfig,
    KeyValue, PackageStatus, PackageStatusEnum, PackageStatuses, RemoteConfigStatus,
    any_value::Value as Any,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::clock::Moment;
use crate::config_set::ConfigHash;
use crate::credentials::{Certificate, Credential, Decision, Offer, Outcome, Requested};
use crate::fleet::{Agent, Assignment, Fleet, Link};
use crate::package::{Catalog, Package, PackageOffer};
use crate::rotation::{Member, Rotation, State};
use crate::selector::Labels;
use crate::uid::InstanceUid;

/// Depth of nested components and values that are shown; deeper ones are cut off.
const MAX_DEPTH: u8 = 16;
/// Agents of a rotation that are listed one by one.
const MAX_OPEN: usize = 1000;

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
    packages: BTreeMap<String, Value>,
    /// What went wrong with its packages as a whole.
    packages_error: String,
    /// The packages that are meant for it now.
    assigned_packages: Option<Value>,
    /// What it last said of connection settings.
    connection_settings_status: Option<Value>,
    /// The newest connection settings that it was offered, and what became of them.
    offered_connection: Option<Value>,
    /// The certificate of this server's authority that it uses, as far as it said.
    certificate: Option<Value>,
    /// Whether its certificates were revoked.
    revoked: bool,
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
    let credential = fleet.credentials.get(uid);
    let statuses = agent.report.package_statuses.as_ref();
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
        packages: statuses.map(package_statuses).unwrap_or_default(),
        packages_error: statuses.map(|all| all.error_message.clone()).unwrap_or_default(),
        assigned_packages: fleet.assigned_packages(uid).map(|offer| {
            let hash = fleet.catalog().hash(offer).to_string();
            let state = progress(fleet.catalog(), offer, agent);
            json!({"hash": hash, "target": offer.target.to_string(), "packages": offer.members, "state": state})
        }),
        connection_settings_status: agent.report.connection_settings_status.as_ref().map(|status| {
            json!({
                "hash": ConfigHash(status.last_connection_settings_hash.clone()).to_string(),
                "status": status.status().as_str_name().trim_start_matches("ConnectionSettingsStatuses_"),
                "error_message": status.error_message,
            })
        }),
        offered_connection: credential.and_then(|credential| offered(credential.offer.as_ref()?)),
        certificate: credential.and_then(Credential::in_use).map(|one| certificate(one, now)),
        revoked: credential.is_some_and(|credential| credential.barred),
    }
}

/// An agent with its configs.
pub(crate) fn detail(view: AgentView, agent: &Agent, assigned: Option<&Assignment>) -> AgentDetail {
    AgentDetail {
        agent: view,
        sequence_num: agent.report.sequence_num,
        effective_config: None,
        offered_config: assigned.map(|a| {
            json!({"hash": a.set.hash().to_string(), "target": a.target.to_string(), "files": files(a.set.as_map())})
        }),
        failed_hashes: agent.failed.iter().map(ToString::to_string).collect(),
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

/// An offer of connection settings; what is in it stays between the server and the agent.
fn offered(offer: &Offer) -> Option<Value> {
    let (outcome, error) = match &offer.outcome {
        Outcome::Waiting => ("waiting", ""),
        Outcome::Applying => ("applying", ""),
        Outcome::Applied => ("applied", ""),
        Outcome::Failed(why) => ("failed", why.as_str()),
    };
    Some(json!({
        "hash": offer.hash,
        "created": offer.created.to_string(),
        "certificate": offer.serial,
        "outcome": outcome,
        "error_message": error,
    }))
}

fn certificate(one: &Certificate, now: Moment) -> Value {
    json!({
        "serial": one.serial,
        "not_after": one.not_after.to_string(),
        "days_left": one.not_after.since(now).as_secs() / 86_400,
        "expired": one.not_after <= now,
        "revoked": one.revoked,
    })
}

/// A request that waits for a person.
pub(crate) fn request(uid: InstanceUid, request: &Requested) -> Option<Value> {
    let Decision::Pending(why) = &request.decision else { return None };
    Some(json!({
        "instance_uid": uid.to_string(),
        "common_name": request.common_name,
        "key_sha256": request.key,
        "received": request.received.to_string(),
        "why": why,
        "csr": request.pem,
    }))
}

/// A rotation and how far it is.
pub(crate) fn rotation(rotation: &Rotation) -> Value {
    let plan = &rotation.plan;
    json!({
        "id": rotation.id,
        "target": plan.target,
        "concurrency": plan.concurrency,
        "retries": plan.retries,
        "timeout_seconds": plan.timeout_seconds,
        "created": plan.created.to_string(),
        "ended": plan.ended.map(|ended| ended.to_string()),
        "cancelled": plan.cancelled,
        "total": rotation.members().len(),
        "agents": rotation.counts(),
    })
}

/// A rotation with those of its agents that are not done.
pub(crate) fn rotation_detail(of: &Rotation) -> Value {
    let open = of.members().iter().filter(|(_, member)| member.state != State::Applied);
    let show = |(uid, member): (&InstanceUid, &Member)| {
        json!({
            "instance_uid": uid.to_string(),
            "state": member.state,
            "tries": member.tries,
            "since": member.since.to_string(),
            "error_message": member.error,
        })
    };
    let mut shown = rotation(of);
    if let Some(fields) = shown.as_object_mut() {
        fields.insert("open".to_owned(), open.take(MAX_OPEN).map(show).collect());
    }
    shown
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

/// A package as it is kept.
pub(crate) fn package(catalog: &Catalog, package: &Package) -> Value {
    json!({
        "name": package.id.name,
        "version": package.id.version,
        "type": package.kind.as_str(),
        "sha256": package.file.to_string(),
        "size": package.size,
        "signature_size": package.signature().len(),
        "hash": package.hash().to_string(),
        "path": package.path(),
        "created": package.created.to_string(),
        "offered_to": catalog.offered_to(&package.id).map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Every offer of packages, newest first, with how many of its agents are how far.
pub(crate) fn package_offers(fleet: &Fleet) -> Vec<Value> {
    let catalog = fleet.catalog();
    let mut counts: BTreeMap<String, BTreeMap<&str, u64>> = BTreeMap::new();
    for (uid, agent) in fleet.agents() {
        if let Some(offer) = fleet.assigned_packages(*uid) {
            let count = counts.entry(offer.target.to_string()).or_default();
            let count = count.entry(progress(catalog, offer, agent)).or_default();
            *count = count.saturating_add(1);
        }
    }
    let show = |offer: &PackageOffer| {
        let target = offer.target.to_string();
        let states = counts.get(&target);
        let count =
            |state: &&str| states.and_then(|states| states.get(state)).copied().unwrap_or(0);
        let agents: BTreeMap<_, _> = STATES.iter().map(|state| (*state, count(state))).collect();
        json!({
            "target": target,
            "hash": catalog.hash(offer).to_string(),
            "created": offer.created.to_string(),
            "packages": offer.members,
            "agents": agents,
        })
    };
    catalog.offers().iter().rev().map(show).collect()
}

/// How far an agent can be with an offer.
const STATES: [&str; 7] =
    ["installed", "installing", "downloading", "pending", "failed", "waiting", "without_packages"];

/// How far this agent is with this offer. What goes badly is said first, then what is furthest from done.
fn progress(catalog: &Catalog, offer: &PackageOffer, agent: &Agent) -> &'static str {
    if !agent.has(AgentCapabilities::AcceptsPackages) {
        return "without_packages";
    }
    let hash = catalog.hash(offer);
    let statuses = agent.report.package_statuses.as_ref();
    let Some(statuses) = statuses.filter(|s| s.server_provided_all_packages_hash == hash.0) else {
        return "waiting";
    };
    let any = |state| statuses.packages.values().any(|package| package.status() == state);
    let has = |package: &Package| {
        let status = statuses.packages.get(&package.id.name);
        status.is_some_and(|status| status.agent_has_hash == package.hash().0)
    };
    if !statuses.error_message.is_empty() || any(PackageStatusEnum::InstallFailed) {
        "failed"
    } else if any(PackageStatusEnum::Downloading) {
        "downloading"
    } else if any(PackageStatusEnum::Installing) {
        "installing"
    } else if any(PackageStatusEnum::InstallPending) || !catalog.members(offer).all(has) {
        "pending"
    } else {
        "installed"
    }
}

fn package_statuses(statuses: &PackageStatuses) -> BTreeMap<String, Value> {
    let show = |status: &PackageStatus| {
        let word = status.status().as_str_name().trim_start_matches("PackageStatusEnum_");
        let details =
            status.download_details.filter(|_| status.status() == PackageStatusEnum::Downloading);
        // A peer's numbers: NaN and infinity are no JSON.
        let finite = |number: f64| if number.is_finite() { number.max(0.0) } else { 0.0 };
        json!({
            "version": status.agent_has_version,
            "hash": ConfigHash(status.agent_has_hash.clone()).to_string(),
            "offered_version": status.server_offered_version,
            "offered_hash": ConfigHash(status.server_offered_hash.clone()).to_string(),
            "status": word,
            "error_message": status.error_message,
            "download": details.map(|details| json!({
                "percent": finite(details.download_percent).min(100.0),
                "bytes_per_second": finite(details.download_bytes_per_second),
            })),
        })
    };
    statuses.packages.iter().map(|(name, status)| (name.clone(), show(status))).collect()
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
