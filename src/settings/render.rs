//! The settings in force, as YAML, with secrets masked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use core::time::Duration;

use serde_yaml::{Mapping, Value};

use super::endpoint::Authority;
use super::model::{
    Apply, Backoff, Check, CheckKind, Degrade, DegradeAction, DegradeWhen, ExternalBy, InstanceId,
    KeyKind, Layout, Level, LogFormat, LogTo, Owner, Packages, RemoteConfig, Sandbox, Server,
    Settings, SignatureForm, Tls, TlsVersion, Workload,
};
use super::units::{Bytes, Long, to_base64};
use crate::secret::{MASK, Secret};

/// All settings in force. Header values, passwords in URLs, the query of the endpoint, and variables and labels whose
/// names match `effective_config.redact` are masked.
#[must_use]
pub fn render(settings: &Settings) -> String {
    let capabilities = settings.capabilities;
    let agent = &settings.agent;
    let health = &settings.health;
    let log = settings.log;
    let redact = settings.redact.as_slice();
    let opamp = map([
        ("server", server(&settings.server)),
        (
            "agent",
            map([
                ("instance_id", instance_id(&agent.instance_id)),
                ("service_name", text(&agent.service_name)),
                ("service_version", text(&agent.service_version)),
                (
                    "description",
                    map([
                        ("identifying_attributes", masked(&agent.identifying_attributes, redact)),
                        (
                            "non_identifying_attributes",
                            masked(&agent.non_identifying_attributes, redact),
                        ),
                    ]),
                ),
                ("request_instance_uid", agent.request_instance_uid.into()),
            ]),
        ),
        (
            "capabilities",
            map([
                ("accepts_remote_config", capabilities.accepts_remote_config.into()),
                ("accepts_packages", capabilities.accepts_packages.into()),
                (
                    "accepts_opamp_connection_settings",
                    capabilities.accepts_opamp_connection_settings.into(),
                ),
                (
                    "accepts_other_connection_settings",
                    capabilities.accepts_other_connection_settings.into(),
                ),
                ("accepts_restart_command", capabilities.accepts_restart_command.into()),
                ("reports_status", capabilities.reports_status.into()),
                ("reports_effective_config", capabilities.reports_effective_config.into()),
                ("reports_package_statuses", capabilities.reports_package_statuses.into()),
                ("reports_own_traces", capabilities.reports_own_traces.into()),
                ("reports_own_metrics", capabilities.reports_own_metrics.into()),
                ("reports_own_logs", capabilities.reports_own_logs.into()),
                ("reports_health", capabilities.reports_health.into()),
                ("reports_remote_config", capabilities.reports_remote_config.into()),
                ("reports_heartbeat", capabilities.reports_heartbeat.into()),
                ("reports_available_components", capabilities.reports_available_components.into()),
                (
                    "reports_connection_settings_status",
                    capabilities.reports_connection_settings_status.into(),
                ),
            ]),
        ),
        (
            "health",
            map([
                ("check_interval", time(health.check_interval)),
                ("unhealthy_after", health.unhealthy_after.into()),
                ("healthy_after", health.healthy_after.into()),
                ("metrics_interval", time(health.metrics_interval)),
                ("metrics", texts(&health.metrics)),
                (
                    "scrape",
                    optional(health.scrape.as_ref().map(|target| text(&target.to_string()))),
                ),
                ("checks", health.checks.iter().map(check).collect::<Vec<_>>().into()),
            ]),
        ),
        ("workload", optional(settings.workload.as_ref().map(|w| workload(w, redact)))),
        ("local_config_path", optional(settings.local_config_path.as_deref().map(path))),
        ("remote_config", remote_config(&settings.remote_config)),
        ("effective_config", map([("redact", texts(redact))])),
        ("packages_dir", path(&settings.packages_dir)),
        ("packages", packages(&settings.packages)),
        ("state_dir", path(&settings.state_dir)),
        ("status_socket", path(&settings.status_socket)),
        (
            "credentials",
            map([
                ("export", optional(settings.credentials.export.as_deref().map(path))),
                ("on_change", texts(&settings.credentials.on_change)),
            ]),
        ),
        (
            "sandbox",
            word(match settings.sandbox {
                Sandbox::Auto => "auto",
                Sandbox::On => "on",
                Sandbox::Off => "off",
            }),
        ),
        (
            "log",
            map([
                (
                    "level",
                    word(match log.level {
                        Level::Error => "error",
                        Level::Warn => "warn",
                        Level::Info => "info",
                        Level::Debug => "debug",
                    }),
                ),
                (
                    "format",
                    word(match log.format {
                        LogFormat::Text => "text",
                        LogFormat::Json => "json",
                    }),
                ),
                (
                    "to",
                    word(match log.to {
                        LogTo::Auto => "auto",
                        LogTo::Stderr => "stderr",
                        LogTo::Syslog => "syslog",
                        LogTo::Journald => "journald",
                    }),
                ),
            ]),
        ),
    ]);
    // Only text, numbers and truth values in lists and maps: nothing that the writer refuses.
    serde_yaml::to_string(&map([("opamp", opamp)])).unwrap_or_default()
}

fn server(server: &Server) -> Value {
    let mut endpoint = server.endpoint.to_string();
    if let Some((before, _)) = endpoint.split_once('?') {
        endpoint = format!("{before}?{MASK}");
    }
    map([
        ("endpoint", Value::from(endpoint)),
        ("headers", headers(&server.headers)),
        ("tls", tls(&server.tls)),
        (
            "proxy",
            optional(server.proxy.as_ref().map(|proxy| {
                map([
                    ("url", Value::from(without_user(proxy.url.expose()))),
                    ("connect_headers", headers(&proxy.connect_headers)),
                    ("no_proxy", texts(&proxy.no_proxy)),
                ])
            })),
        ),
        ("heartbeat_interval", time(server.heartbeat_interval)),
        ("poll_interval", time(server.poll_interval)),
        ("reconnect", backoff(server.reconnect)),
        (
            "timeouts",
            map([
                ("connect", time(server.timeouts.connect)),
                ("tls", time(server.timeouts.tls)),
                ("answer", time(server.timeouts.answer)),
                ("pong", time(server.timeouts.pong)),
            ]),
        ),
        ("max_message_size", bytes_of(server.max_message_size)),
        ("allow_endpoints", texts(&server.allow_endpoints)),
    ])
}

fn tls(tls: &Tls) -> Value {
    let version = |version| {
        word(match version {
            TlsVersion::V12 => "1.2",
            TlsVersion::V13 => "1.3",
        })
    };
    let client = tls.client.as_ref();
    let pins: Vec<Value> =
        tls.pinned_spki_sha256.iter().map(|pin| Value::from(to_base64(pin))).collect();
    map([
        ("ca_file", optional(tls.ca_file.as_deref().map(path))),
        ("cert_file", optional(client.map(|client| path(&client.cert_file)))),
        ("key_file", optional(client.map(|client| path(&client.key_file)))),
        ("include_system_ca_certs_pool", tls.include_system_ca_certs_pool.into()),
        ("min_version", version(tls.min_version)),
        ("max_version", version(tls.max_version)),
        ("pinned_spki_sha256", pins.into()),
        ("insecure_skip_verify", tls.insecure_skip_verify.into()),
        (
            "enroll",
            optional(tls.enroll.as_ref().map(|enroll| {
                let key = match enroll.key {
                    KeyKind::P256 => "p256",
                    KeyKind::Ed25519 => "ed25519",
                };
                map([("common_name", text(&enroll.common_name)), ("key", word(key))])
            })),
        ),
        ("renew_before", time(tls.renew_before)),
    ])
}

fn instance_id(id: &InstanceId) -> Value {
    match id {
        InstanceId::Auto => word("auto"),
        InstanceId::Text(id) => text(id),
        InstanceId::Uuid(uuid) => {
            let hex = format!("{:032x}", u128::from_be_bytes(*uuid));
            let mut out = String::with_capacity(36);
            for (at, digit) in hex.chars().enumerate() {
                if matches!(at, 8 | 12 | 16 | 20) {
                    out.push('-');
                }
                out.push(digit);
            }
            Value::from(out)
        }
    }
}

fn check(check: &Check) -> Value {
    let (name, value) = match &check.kind {
        CheckKind::Http(target) => ("http", Value::from(target.to_string())),
        CheckKind::Tcp { host, port } => ("tcp", Value::from(Authority(host, *port).to_string())),
        CheckKind::Exec(command) => ("exec", texts(command)),
        CheckKind::MemoryMax(bytes) => ("memory_max", Value::from(Bytes(*bytes).to_string())),
        CheckKind::CpuMax(cores) => ("cpu_max", Value::from(*cores)),
    };
    map([(name, value), ("timeout", time(check.timeout))])
}

fn workload(workload: &Workload, redact: &[String]) -> Value {
    let (owner, owned) = match &workload.owner {
        Owner::Chiton { command } => ("command", texts(command)),
        Owner::External(external) => {
            let by = match &external.by {
                ExternalBy::Unit(unit) => ("unit", text(unit)),
                ExternalBy::PidFile(file) => ("pid_file", path(file)),
                ExternalBy::Cgroup(directory) => ("cgroup", path(directory)),
            };
            let commands =
                [("reload", texts(&external.reload)), ("restart", texts(&external.restart))];
            ("external", map([by].into_iter().chain(commands)))
        }
    };
    let own = matches!(workload.owner, Owner::Chiton { .. });
    let keys = [
        ("env", own.then(|| masked(&workload.env, redact))),
        ("user", workload.user.as_deref().map(text)),
        ("ambient_capabilities", own.then(|| texts(&workload.ambient_capabilities))),
        ("oom_score_adj", workload.oom_score_adj.map(Value::from)),
        ("stop_timeout", Some(time(workload.stop_timeout))),
        ("restart", own.then(|| backoff(workload.restart))),
        ("degrade", Some(workload.degrade.iter().map(degrade).collect::<Vec<_>>().into())),
    ];
    let keys = keys.into_iter().filter_map(|(name, value)| Some((name, value?)));
    map([(owner, owned)].into_iter().chain(keys))
}

fn degrade(degrade: &Degrade) -> Value {
    let when = match degrade.when {
        DegradeWhen::MemoryMax => "memory_max",
        DegradeWhen::CpuMax => "cpu_max",
        DegradeWhen::CrashLoop => "crash_loop",
    };
    let action = match &degrade.action {
        DegradeAction::Restart => word("restart"),
        DegradeAction::Use(file) => map([("use", path(file))]),
    };
    map([("when", word(when)), ("do", action), ("cooldown", time(degrade.cooldown))])
}

fn remote_config(config: &RemoteConfig) -> Value {
    let layout = match config.layout {
        Layout::Files => "files",
        Layout::Merge => "merge",
    };
    let rollback = config.rollback;
    map([
        ("main_file", text(&config.main_file)),
        ("layout", word(layout)),
        ("validate", texts(&config.validate)),
        ("apply", apply(&config.apply)),
        (
            "rollback",
            map([
                ("window", time(rollback.window)),
                ("interval", time(rollback.interval)),
                ("successes", rollback.successes.into()),
                ("attempts", rollback.attempts.into()),
                (
                    "crash_loop",
                    map([
                        ("crashes", rollback.crash_loop.crashes.into()),
                        ("within", time(rollback.crash_loop.within)),
                    ]),
                ),
            ]),
        ),
        ("min_interval", time(config.min_interval)),
        (
            "allow",
            map([
                ("files", texts(&config.allow.files)),
                ("max_files", number(config.allow.max_files)),
                ("max_size", bytes_of(config.allow.max_size)),
                ("max_merge", bytes_of(config.allow.max_merge)),
            ]),
        ),
        ("history", number(config.history)),
        ("require_signature", config.require_signature.into()),
    ])
}

fn packages(packages: &Packages) -> Value {
    let signature = match packages.signature {
        SignatureForm::Manifest => "manifest",
        SignatureForm::Digest => "digest",
    };
    let counters = packages
        .min_counter
        .iter()
        .map(|(name, floor)| (text(name), Value::from(*floor)))
        .collect::<Mapping>();
    map([
        ("trusted_keys", paths(&packages.trusted_keys)),
        ("threshold", number(packages.threshold)),
        ("revoked_keys", texts(&packages.revoked_keys)),
        ("require_signature", packages.require_signature.into()),
        ("signature", word(signature)),
        ("min_counter", Value::Mapping(counters)),
        ("max_size", Value::from(Bytes(packages.max_size).to_string())),
        ("bandwidth", Value::from(Bytes(packages.bandwidth).to_string())),
        ("apply", apply(&packages.apply)),
        ("verify", texts(&packages.verify)),
        ("after_install", texts(&packages.after_install)),
        ("allow_empty", packages.allow_empty.into()),
    ])
}

fn apply(apply: &Apply) -> Value {
    match apply {
        Apply::Restart => word("restart"),
        Apply::Reload => word("reload"),
        Apply::Command(command) => texts(command),
    }
}

fn backoff(backoff: Backoff) -> Value {
    map([("initial", time(backoff.initial)), ("max", time(backoff.max))])
}

/// A map without the keys that have no value.
fn map<'k>(entries: impl IntoIterator<Item = (&'k str, Value)>) -> Value {
    let entries = entries.into_iter().filter(|(_, value)| !value.is_null());
    Value::Mapping(entries.map(|(name, value)| (Value::from(name), value)).collect())
}

fn optional(value: Option<Value>) -> Value {
    value.unwrap_or(Value::Null)
}

fn word(word: &str) -> Value {
    Value::from(word)
}

/// A text of the user's, written so that [`super::from_text`] does not expand it again.
fn text(text: &str) -> Value {
    Value::from(text.replace('$', "$$"))
}

fn texts(list: &[String]) -> Value {
    list.iter().map(|item| text(item)).collect::<Vec<_>>().into()
}

fn path(path: &Path) -> Value {
    text(&path.to_string_lossy())
}

fn paths(list: &[PathBuf]) -> Value {
    list.iter().map(|item| path(item)).collect::<Vec<_>>().into()
}

fn time(duration: Duration) -> Value {
    Value::from(Long(duration).to_string())
}

fn number(number: usize) -> Value {
    Value::from(u64::try_from(number).unwrap_or(u64::MAX))
}

fn bytes_of(size: usize) -> Value {
    Value::from(Bytes(u64::try_from(size).unwrap_or(u64::MAX)).to_string())
}

/// Header names, each with as many masks as it has values.
fn headers(headers: &[(String, Secret<String>)]) -> Value {
    let mut by_name: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for (name, _) in headers {
        by_name.entry(name).or_default().push(word(MASK));
    }
    map(by_name.into_iter().map(|(name, mut values)| match values.pop() {
        Some(only) if values.is_empty() => (name, only),
        last => {
            values.extend(last);
            (name, values.into())
        }
    }))
}

fn masked(values: &BTreeMap<String, String>, redact: &[String]) -> Value {
    map(values.iter().map(|(name, value)| {
        let secret = redact.iter().any(|pattern| matches(pattern, name));
        (name.as_str(), if secret { word(MASK) } else { text(value) })
    }))
}

/// The URL with its user information masked.
fn without_user(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return MASK.to_owned() };
    match rest.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://{MASK}@{host}"),
        None => url.to_owned(),
    }
}

/// Whether a pattern (`*` is any run of characters) fits a name, without regard to case.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.to_lowercase(), name.to_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let mut open = false;
    let mut last = "";
    for part in parts {
        open = true;
        last = part;
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    // What stands behind the last star must end the name.
    if open { name.ends_with(last) } else { rest.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*token*", "API_TOKEN", true),
            ("*token*", "tokens", true),
            ("*token*", "tok", false),
            ("authorization", "Authorization", true),
            ("authorization", "x-authorization", false),
            ("a*b", "ab", true),
            ("a*b", "a1b2b", true),
            ("a*b", "abc", false),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn user_information_is_masked() {
        assert_eq!(without_user("http://u:p@x@proxy:3128"), "http://***@proxy:3128");
        assert_eq!(without_user("http://proxy:3128"), "http://proxy:3128");
    }
}
