//! The status document: what the agent knows of itself, as JSON.

use core::time::Duration;

use chiton_proto::{
    ComponentHealth, ConnectionSettingsStatuses, PackageStatusEnum, PackageStatuses,
    RemoteConfigStatuses,
};

use crate::agent::Snapshot;
use crate::agent::capabilities;
use crate::agent::connection::Way;
use crate::agent::rollout::Generation;
use crate::agent::session::LinkState;
use crate::clock::{Now, Wall};
use crate::credentials::Judged;
use crate::json::Json;
use crate::log::rfc3339;

/// What the runtime adds to the core's view.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// Resident memory, bytes.
    pub resident: Option<u64>,
    /// What is wrong with the settings file, the connection's credentials or the state directory.
    pub problems: Vec<String>,
    /// What is worth a word.
    pub notes: Vec<String>,
    /// What the process may do: `confine::report`.
    pub confinement: Json,
    /// Seconds since the agent started.
    pub uptime: u64,
}

/// The document.
#[must_use]
pub fn document(snapshot: &Snapshot, around: &Surroundings, now: Now) -> Json {
    let healthy = snapshot.health.healthy && around.problems.is_empty();
    Json::object([
        ("healthy", Json::Bool(healthy)),
        ("version", Json::text(env!("CARGO_PKG_VERSION"))),
        ("instance_uid", Json::or_null(snapshot.uid.map(|uid| Json::text(uid.to_string())))),
        ("uptime_seconds", Json::Number(around.uptime)),
        ("connection", connection(snapshot, now)),
        ("config", config(snapshot)),
        ("packages", packages(&snapshot.packages)),
        ("certificate", Json::or_null(snapshot.certificate.as_ref().map(certificate))),
        ("workload", workload(snapshot)),
        ("health", health(&snapshot.health)),
        (
            "memory",
            Json::object([("resident_bytes", Json::or_null(around.resident.map(Json::Number)))]),
        ),
        ("confinement", around.confinement.clone()),
        ("notes", Json::List(around.notes.iter().map(Json::text).collect())),
        ("problems", Json::List(around.problems.iter().map(Json::text).collect())),
    ])
}

fn connection(snapshot: &Snapshot, now: Now) -> Json {
    let (state, since) = match snapshot.link {
        LinkState::Idle => ("idle", None),
        LinkState::Waiting => ("waiting", None),
        LinkState::Connecting => ("connecting", None),
        LinkState::Up(since) => ("connected", Some(now.mono.since(since).as_secs())),
        LinkState::Closing => ("closing", None),
    };
    let names = capabilities::names(snapshot.capabilities).map(Json::text);
    Json::object([
        ("state", Json::text(state)),
        ("endpoint", Json::text(&snapshot.endpoint)),
        ("settings", connection_settings(snapshot)),
        ("connected_seconds", Json::or_null(since.map(Json::Number))),
        ("last_error", Json::or_null(snapshot.link_error.as_ref().map(Json::text))),
        ("capabilities", Json::List(names.collect())),
    ])
}

/// The client certificate in use.
fn certificate(facts: &Judged) -> Json {
    let end = Wall(Duration::from_secs(facts.not_after));
    Json::object([
        ("common_name", Json::text(&facts.common_name)),
        ("not_after", Json::text(rfc3339(end))),
        ("not_after_unix_seconds", Json::Number(facts.not_after)),
    ])
}

/// What became of offered connection settings.
fn connection_settings(snapshot: &Snapshot) -> Json {
    let offered = &snapshot.connection_settings;
    let status = match offered.status() {
        ConnectionSettingsStatuses::Unset => "UNSET",
        ConnectionSettingsStatuses::Applied => "APPLIED",
        ConnectionSettingsStatuses::Applying => "APPLYING",
        ConnectionSettingsStatuses::Failed => "FAILED",
    };
    let way = match snapshot.way {
        Way::Own => "settings",
        Way::Committed => "offered",
        Way::Candidate => "candidate",
    };
    let error = Some(&offered.error_message).filter(|error| !error.is_empty());
    Json::object([
        ("source", Json::text(way)),
        ("hash", Json::text(hex(&offered.last_connection_settings_hash))),
        ("status", Json::text(status)),
        ("error", Json::or_null(error.map(Json::text))),
        ("phase", Json::text(snapshot.connection_phase)),
    ])
}

fn config(snapshot: &Snapshot) -> Json {
    let status = match snapshot.remote_config.status() {
        RemoteConfigStatuses::Unset => "UNSET",
        RemoteConfigStatuses::Applied => "APPLIED",
        RemoteConfigStatuses::Applying => "APPLYING",
        RemoteConfigStatuses::Failed => "FAILED",
    };
    let committed =
        |of: fn(&Generation) -> Json| Json::or_null(snapshot.committed.as_ref().map(of));
    let error = Some(&snapshot.remote_config.error_message).filter(|error| !error.is_empty());
    Json::object([
        ("generation", committed(|generation| Json::Number(generation.number))),
        ("digest", committed(|generation| Json::text(hex(&generation.digest)))),
        (
            "source",
            committed(|generation| Json::text(if generation.remote { "remote" } else { "local" })),
        ),
        ("hash", Json::text(hex(&snapshot.remote_config.last_remote_config_hash))),
        ("status", Json::text(status)),
        ("error", Json::or_null(error.map(Json::text))),
        ("gate", Json::text(snapshot.phase)),
    ])
}

fn packages(statuses: &PackageStatuses) -> Json {
    let mut sorted: Vec<_> = statuses.packages.values().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let list = sorted.into_iter().map(|package| {
        let status = match package.status() {
            PackageStatusEnum::Installed => "installed",
            PackageStatusEnum::InstallPending => "install pending",
            PackageStatusEnum::Installing => "installing",
            PackageStatusEnum::InstallFailed => "install failed",
            PackageStatusEnum::Downloading => "downloading",
        };
        let or_null = |text: &String| Json::or_null((!text.is_empty()).then(|| Json::text(text)));
        Json::object([
            ("name", Json::text(&package.name)),
            ("version", or_null(&package.agent_has_version)),
            ("offered_version", or_null(&package.server_offered_version)),
            ("status", Json::text(status)),
            ("error", or_null(&package.error_message)),
        ])
    });
    Json::List(list.collect())
}

fn workload(snapshot: &Snapshot) -> Json {
    let Some(workload) = snapshot.health.component_health_map.get("workload") else {
        return Json::Null;
    };
    Json::object([
        ("pid", Json::or_null(snapshot.pid.map(|pid| Json::Number(pid.into())))),
        ("healthy", Json::Bool(workload.healthy)),
        ("status", Json::text(&workload.status)),
        ("last_error", Json::text(&workload.last_error)),
        ("restarts", Json::Number(snapshot.restarts)),
    ])
}

fn health(component: &ComponentHealth) -> Json {
    let children = component.component_health_map.iter();
    Json::object([
        ("healthy", Json::Bool(component.healthy)),
        ("status", Json::text(&component.status)),
        ("last_error", Json::text(&component.last_error)),
        ("start_time_unix_nano", Json::Number(component.start_time_unix_nano)),
        (
            "components",
            Json::Object(children.map(|(name, child)| (name.clone(), health(child))).collect()),
        ),
    ])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
