//! What the core takes from the settings and the host.

use core::time::Duration;
use std::collections::BTreeMap;

use chiton_proto::{AgentDescription, AnyValue, KeyValue, any_value};

use super::bounds::Bounds;
use super::degrade::Degrading;
use super::health::Rounds;
use super::packages::policy::{self, Device, Policy};
use super::sealed::Seals;
use super::supervision::Supervision;
use super::uid::Uid;
use super::{capabilities, connection, rollout};
use crate::settings::{Apply, Owner, Settings};
use crate::signature::Keyring;

/// What the core takes from the settings and the host.
#[derive(Clone, Debug)]
pub struct Config {
    /// OpAMP's capability bits, as they are usable.
    pub(super) capabilities: u64,
    /// Heartbeats are sent.
    pub(super) beats: bool,
    /// A uid is asked for.
    pub(super) request_uid: bool,
    pub(super) connection: connection::Rules,
    pub(super) rollout: rollout::Rules,
    /// The first check after a start comes no later than this.
    pub(super) first_check: Duration,
    pub(super) apply: Apply,
    pub(super) apply_packages: Apply,
    pub(super) packages: Policy,
    pub(super) seals: Seals,
    /// As it is before anything has happened.
    pub(super) workload: Option<Supervision>,
    pub(super) degrading: Degrading,
    /// The command names `{config_file}` or `{config_dir}`: without a configuration it is not started.
    pub(super) needs_config: bool,
    /// The command names these packages: without them it is not started.
    pub(super) needs_packages: Vec<String>,
    /// There is something to check beside the process being alive.
    pub(super) has_checks: bool,
    pub(super) check_interval: Duration,
    pub(super) rounds: Rounds,
    /// Between measurements of these figures; [`None`]: nothing is measured.
    pub(super) metrics: Option<(Duration, Vec<String>)>,
    pub(super) attributes: Attributes,
    pub(super) bounds: Bounds,
}

/// Facts about the host that are reported.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// `host.name`.
    pub name: String,
    /// `os.version`.
    pub os_version: String,
    /// `host.arch`, in OpenTelemetry's words.
    pub arch: &'static str,
}

/// AgentDescription without the uid.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attributes {
    identifying: BTreeMap<String, String>,
    non_identifying: BTreeMap<String, String>,
}

impl Config {
    /// Picks what the core needs.
    #[must_use]
    pub fn new(settings: &Settings, host: Host, keyring: Keyring) -> Self {
        let server = &settings.server;
        let remote = &settings.remote_config;
        let needs_config =
            settings.workload.as_ref().is_some_and(|workload| match &workload.owner {
                Owner::Chiton { command } => command.iter().any(|word| word.contains("{config_")),
                Owner::External(_) => false,
            });
        let attributes = Attributes::new(settings, host);
        let seals = Seals::new(settings, keyring.clone(), attributes.device());
        let policy = Policy::new(keyring, settings.packages.clone(), attributes.device());
        Self {
            capabilities: capabilities::usable(settings, seals.is_usable(), policy.is_usable()),
            beats: settings.capabilities.reports_heartbeat,
            request_uid: settings.agent.request_instance_uid,
            connection: connection::Rules {
                own: server.clone(),
                directory: settings.state_dir.join(connection::DIRECTORY),
                accepts: settings.capabilities.accepts_opamp_connection_settings,
                enroll: server.tls.enroll.clone(),
                renew_before: server.tls.renew_before,
            },
            rollout: rollout::Rules::new(
                remote,
                !settings.packages.verify.is_empty() || !settings.packages.after_install.is_empty(),
            ),
            first_check: settings.health.check_interval.min(remote.rollback.interval),
            apply: remote.apply.clone(),
            apply_packages: settings.packages.apply.clone(),
            packages: policy,
            seals,
            workload: settings.workload.as_ref().map(|workload| match &workload.owner {
                Owner::Chiton { .. } => Supervision::new(workload.restart),
                Owner::External(_) => {
                    Supervision::external(workload.restarts(), remote.rollback.window)
                }
            }),
            degrading: Degrading::new(
                settings.workload.as_ref().map_or(&[][..], |workload| &workload.degrade),
                remote.rollback.crash_loop,
            ),
            needs_config,
            needs_packages: needed_packages(settings),
            has_checks: settings
                .health
                .checks
                .iter()
                .any(|check| !check.kind.is_limit() || settings.workload.is_some()),
            check_interval: settings.health.check_interval,
            rounds: Rounds {
                unhealthy_after: settings.health.unhealthy_after,
                healthy_after: settings.health.healthy_after,
            },
            metrics: measured(settings),
            attributes,
            bounds: Bounds { max_message: server.max_message_size, ..Bounds::default() },
        }
    }
}

/// The packages that the workload's command names.
fn needed_packages(settings: &Settings) -> Vec<String> {
    let words = settings.workload.as_ref().map(|workload| match &workload.owner {
        Owner::Chiton { command } => command.as_slice(),
        Owner::External(_) => &[],
    });
    let after =
        words.unwrap_or_default().iter().flat_map(|word| word.split("{package_dir:").skip(1));
    after.filter_map(|rest| rest.split_once('}')).map(|(name, _)| name.to_owned()).collect()
}

/// What is measured of the workload, and how often.
fn measured(settings: &Settings) -> Option<(Duration, Vec<String>)> {
    let health = &settings.health;
    let mut wanted = health.metrics.clone();
    wanted.retain(|name| {
        health.scrape.is_some() || matches!(name.as_str(), "cpu_usage" | "memory_usage")
    });
    let told = settings.capabilities.reports_health && settings.workload.is_some();
    (told && !wanted.is_empty()).then_some((health.metrics_interval, wanted))
}

impl Attributes {
    fn new(settings: &Settings, host: Host) -> Self {
        let agent = &settings.agent;
        let version = match agent.service_version.as_str() {
            "" => env!("CARGO_PKG_VERSION"),
            version => version,
        };
        let mut identifying = BTreeMap::from([
            ("service.name".to_owned(), agent.service_name.clone()),
            ("service.version".to_owned(), version.to_owned()),
        ]);
        let mut non_identifying = BTreeMap::from([
            ("os.type".to_owned(), "linux".to_owned()),
            ("os.version".to_owned(), host.os_version),
            ("host.name".to_owned(), host.name),
            ("host.arch".to_owned(), host.arch.to_owned()),
        ]);
        // What the user says wins over what we found.
        identifying.extend(agent.identifying_attributes.clone());
        non_identifying.extend(agent.non_identifying_attributes.clone());
        Self { identifying, non_identifying }
    }

    /// What a manifest's target is compared with.
    fn device(&self) -> Device {
        let all = self.identifying.iter().chain(&self.non_identifying);
        Device {
            platforms: policy::platforms(),
            attributes: all.map(|(name, value)| (name.clone(), value.clone())).collect(),
        }
    }

    pub(super) fn describe(&self, uid: Uid) -> AgentDescription {
        fn list(attributes: &BTreeMap<String, String>) -> Vec<KeyValue> {
            attributes.iter().map(|(key, value)| string(key, value)).collect()
        }
        let mut identifying = list(&self.identifying);
        if !self.identifying.contains_key("service.instance.id") {
            identifying.push(string("service.instance.id", &uid.to_string()));
        }
        AgentDescription {
            identifying_attributes: identifying,
            non_identifying_attributes: list(&self.non_identifying),
        }
    }
}

fn string(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) }),
    }
}
