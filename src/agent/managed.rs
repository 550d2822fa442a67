//! What is managed, as reports and decisions see it.

use core::time::Duration;

use chiton_proto::{
    AgentDescription, ComponentHealth, ConnectionSettingsStatus, PackageStatuses,
    RemoteConfigStatus,
};

use super::Config;
use super::connection::Connections;
use super::degrade::Degrading;
use super::health::Health;
use super::packages::Packages;
use super::rollout::Rollout;
use super::session::Reportable;
use super::supervision::{State, Supervision};
use super::uid::Uid;
use crate::clock::{Mono, Now, Wall};
use crate::settings::Apply;

/// What is managed, and reported.
#[derive(Clone, Debug)]
pub(super) struct Managed {
    pub(super) config: Config,
    pub(super) rollout: Rollout,
    pub(super) packages: Packages,
    pub(super) connections: Connections,
    pub(super) workload: Option<Supervision>,
    pub(super) degrading: Degrading,
    /// What was last done by the device's own rules, and when.
    pub(super) degraded: Option<(String, Now)>,
    pub(super) health: Health,
    /// An interrupted change was undone on the disk, and a workload that lived on has not been told.
    pub(super) stale: bool,
    /// What is wrong with chiton.yaml, while older settings are in force, and since when.
    pub(super) bad_settings: Option<(String, Now)>,
    /// The installed package whose manifest expired first, and when, seconds since 1970.
    pub(super) stale_package: Option<(String, u64)>,
}

impl Managed {
    /// Whether the workload's command names what is not there yet.
    pub(super) fn waits_for_config(&self) -> bool {
        let placed = self.rollout.memory().committed.is_some() && self.packages.has_config();
        (self.config.needs_config && !placed) || self.waits_for_package().is_some()
    }

    /// How the workload is made to use what is new.
    pub(super) fn apply(&self) -> &Apply {
        let Config { apply, apply_packages, .. } = &self.config;
        match (self.rollout.changes_packages(), self.rollout.changes_config()) {
            (true, false) => apply_packages,
            // Together: a restart serves both, and so does nothing less.
            (true, true) if apply != apply_packages => &Apply::Restart,
            _ => apply,
        }
    }

    /// A package that the workload's command names and that does not run.
    pub(super) fn waits_for_package(&self) -> Option<&str> {
        let needed = self.config.needs_packages.iter();
        needed.map(String::as_str).find(|name| !self.packages.names().any(|it| it == *name))
    }

    /// Whether what is committed runs as well as it can: seen well, or not in its time, or it died.
    pub(super) fn committed_runs(&self, now: Now) -> bool {
        let Some(workload) = &self.workload else { return true };
        let runs = match workload.state() {
            _ if workload.is_asked() || self.stale => false,
            State::Running { .. } => {
                self.health.is_well() || self.repeats_by().is_none_or(|by| by <= now.mono)
            }
            State::Waiting { .. } => true,
            _ => false,
        };
        runs || self.waits_for_config()
    }

    /// When an interrupted trial is repeated though what is committed was not seen well.
    pub(super) fn repeats_by(&self) -> Option<Mono> {
        let workload = self.workload.as_ref()?;
        match workload.state() {
            State::Running { since, .. } if !workload.is_asked() && !self.stale => {
                self.rollout.repeats_by(since.mono, self.config.has_checks)
            }
            _ => None,
        }
    }
}

impl Reportable for Managed {
    fn description(&self, uid: Uid) -> AgentDescription {
        self.config.attributes.describe(uid)
    }

    fn health(&self) -> ComponentHealth {
        let mut tree = self.health.tree(self.workload.as_ref(), self.waits_for_config());
        if let Some((error, since)) = &self.bad_settings {
            let status = "the last good settings are in force";
            ill(&mut tree, "settings", status, error.clone(), since.wall);
        }
        if let Some((name, since)) = &self.stale_package {
            let error = format!(
                "the manifest of package {name:?} has expired, and no newer one was offered: sign it anew; or the server \
                 holds it back"
            );
            ill(&mut tree, "packages", "stale", error, Wall(Duration::from_secs(*since)));
        }
        if let Some((text, at)) = &self.degraded {
            let done = ComponentHealth {
                healthy: true,
                status: text.clone(),
                status_time_unix_nano: at.wall.unix_nanos(),
                ..ComponentHealth::default()
            };
            tree.component_health_map.insert("degrade".to_owned(), done);
        }
        tree
    }

    fn remote_config_status(&self) -> RemoteConfigStatus {
        self.rollout.status()
    }

    fn package_statuses(&self) -> PackageStatuses {
        self.packages.statuses(&self.rollout)
    }

    fn connection_status(&self) -> ConnectionSettingsStatus {
        self.connections.status()
    }
}

/// Adds a component that is unhealthy, and so is the whole.
fn ill(tree: &mut ComponentHealth, name: &str, status: &str, error: String, since: Wall) {
    let component = ComponentHealth {
        healthy: false,
        last_error: error,
        status: status.to_owned(),
        status_time_unix_nano: since.unix_nanos(),
        ..ComponentHealth::default()
    };
    if tree.healthy {
        tree.healthy = false;
        tree.last_error.clone_from(&component.last_error);
    }
    tree.component_health_map.insert(name.to_owned(), component);
}
