//! From the merged YAML to [`Settings`]: every key of the contract, its form, its range and its default.

mod agent;
mod common;
mod health;
mod packages;
mod remote_config;
mod server;
mod workload;

use core::time::Duration;
use std::path::PathBuf;

use serde_yaml::Value;

use super::environment::Environment;
use super::model::{Apply, Credentials, Level, Log, LogFormat, LogTo, Sandbox, Settings};
use super::problem::Key;
use super::walker::{Draft, Section, Walker};
pub use server::{MAX_HEADERS, header as check_header, proxy_url};

/// Where state lies by default.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/chiton";
/// Where `chiton status` asks by default.
pub const DEFAULT_SOCKET: &str = "/run/chiton/status.sock";
/// Bytes of a Unix socket's path: what `sun_path` holds, without the NUL at its end.
const MAX_SOCKET_PATH: usize = 107;
/// What the redaction masks by default.
const REDACT: [&str; 4] = ["*password*", "*token*", "*secret*", "authorization"];

/// What came of it.
pub(super) struct Validated {
    /// With defaults where something was wrong: only to be used where all problems are deferred ones.
    pub settings: Settings,
    /// What is wrong.
    pub problems: Vec<Draft>,
    /// What is wrong beyond the bound.
    pub uncounted: usize,
    /// Keys that are set.
    pub set: Vec<Key>,
    /// Variables by the key that uses them.
    pub variables: Vec<(Key, String)>,
}

/// Validates all that the merged YAML has.
pub(super) fn validate(merged: &Value, environment: &dyn Environment) -> Validated {
    let mut walker = Walker::new(environment);
    let mut settings = {
        let mut root = walker.root(merged);
        if !root.has("opamp") && !root.is_broken() {
            root.report_self("the key opamp is missing; all settings stand below it");
            root.give_up();
        }
        root.within("opamp", |own| opamp(own, environment))
    };
    let deferred: Vec<String> = walker
        .problems
        .iter()
        .filter(|draft| draft.deferred)
        .map(|draft| format!("{}: {}", draft.key, draft.text))
        .collect();
    if !deferred.is_empty() {
        settings.server.unusable = Some(deferred.join("; "));
    }
    let Walker { problems, uncounted, set, variables, .. } = walker;
    Validated { settings, problems, uncounted, set, variables }
}

fn opamp(opamp: &mut Section<'_, '_, '_>, environment: &dyn Environment) -> Settings {
    if opamp.has("workloads") {
        opamp.report(
            "workloads",
            "is reserved for several workloads behind one connection, which is not built yet; allowed is one \
             workload: opamp.workload",
        );
    }
    let mut server = opamp.within("server", |own| server::server(own, environment));
    let agent = opamp.within("agent", agent::agent);
    let capabilities = opamp.within("capabilities", agent::capabilities);
    let (health, report_interval) = opamp.within("health", health::health);
    if let Some(interval) = report_interval {
        older_name(opamp, &mut server.heartbeat_interval, interval);
    }
    let workload =
        if opamp.has("workload") { opamp.within("workload", workload::workload) } else { None };
    let local_config_path = opamp.path_of("local_config_path");
    let remote_config = opamp.within("remote_config", remote_config::remote_config);
    let redact = opamp.section("effective_config").texts("redact");
    let packages = opamp.within("packages", packages::packages);
    let state_dir = opamp.path_of("state_dir").unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR));
    let packages_dir = packages::directory(opamp, &state_dir);
    let status_socket = socket(opamp);
    let credentials = opamp.within("credentials", credentials);
    let modes = [("auto", Sandbox::Auto), ("on", Sandbox::On), ("off", Sandbox::Off)];
    let sandbox = opamp.word("sandbox", &modes, Sandbox::Auto);
    let log = opamp.within("log", log);
    if remote_config.require_signature && packages.trusted_keys.is_empty() {
        opamp.report_below(
            &["remote_config", "require_signature"],
            "true refuses every config while opamp.packages.trusted_keys is empty; list a key there",
        );
    }
    let takes_configs = capabilities.accepts_remote_config || local_config_path.is_some();
    if takes_configs
        && remote_config.apply == Apply::Restart
        && workload.as_ref().is_some_and(|workload| !workload.restarts())
    {
        opamp.report_below(
            &["workload", "external"],
            "has no restart command, and nothing but a unit can be restarted without one; allowed is \
             restart: [program, arguments], or remote_config.apply: reload (SIGHUP) or a command",
        );
    }
    Settings {
        server,
        agent,
        capabilities,
        health,
        workload,
        local_config_path,
        remote_config,
        redact: redact.unwrap_or_else(|| REDACT.map(str::to_owned).to_vec()),
        packages_dir,
        packages,
        state_dir,
        status_socket,
        credentials,
        sandbox,
        log,
    }
}

/// `health.report_interval` is an older name of `server.heartbeat_interval`.
fn older_name(opamp: &mut Section<'_, '_, '_>, heartbeat: &mut Duration, interval: Duration) {
    if opamp.contains(&["server", "heartbeat_interval"]) && *heartbeat != interval {
        opamp.report_below(
            &["health", "report_interval"],
            "differs from opamp.server.heartbeat_interval, of which it is the older name; leave it out",
        );
    }
    *heartbeat = interval;
}

fn socket(opamp: &mut Section<'_, '_, '_>) -> PathBuf {
    let socket = opamp.path_of("status_socket").unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
    if socket.as_os_str().len() > MAX_SOCKET_PATH {
        opamp.report(
            "status_socket",
            format!("is longer than a socket's path may be; allowed are {MAX_SOCKET_PATH} bytes"),
        );
    }
    socket
}

fn credentials(section: &mut Section<'_, '_, '_>) -> Credentials {
    Credentials {
        export: section.path_of("export"),
        on_change: section.command("on_change").unwrap_or_default(),
    }
}

fn log(section: &mut Section<'_, '_, '_>) -> Log {
    Log {
        level: section.word(
            "level",
            &[
                ("error", Level::Error),
                ("warn", Level::Warn),
                ("info", Level::Info),
                ("debug", Level::Debug),
            ],
            Level::Info,
        ),
        format: section.word(
            "format",
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            LogFormat::Text,
        ),
        to: section.word(
            "to",
            &[
                ("auto", LogTo::Auto),
                ("stderr", LogTo::Stderr),
                ("syslog", LogTo::Syslog),
                ("journald", LogTo::Journald),
            ],
            LogTo::Auto,
        ),
    }
}
