//! stub
use super::*;
use core::time::Duration;
use serde_yaml::Value;
use std::path::PathBuf;
/// stub
pub struct Loaded {
    /// x
    pub settings: Settings,
    /// x
    pub notes: Vec<String>,
    /// x
    pub deferred: Vec<String>,
    /// x
    pub secrets_from: Vec<String>,
}
/// stub
pub struct Process;
fn at<'a>(v: &'a Value, path: &str) -> Option<&'a Value> {
    let mut v = v;
    for k in path.split('.') {
        v = v.get(k)?;
    }
    Some(v)
}
fn dur(v: Option<&Value>, d: u64) -> Duration {
    match v {
        Some(Value::String(s)) => {
            let n: u64 =
                s.chars().take_while(|c| c.is_ascii_digit()).collect::<String>().parse().unwrap();
            match s.trim_start_matches(|c: char| c.is_ascii_digit()) {
                "ms" => Duration::from_millis(n),
                "s" => Duration::from_secs(n),
                "m" => Duration::from_secs(n * 60),
                "h" => Duration::from_secs(n * 3600),
                _ => panic!(),
            }
        }
        Some(Value::Number(_)) => Duration::ZERO,
        _ => Duration::from_millis(d),
    }
}
fn st(v: Option<&Value>, d: &str) -> String {
    v.and_then(|v| v.as_str()).unwrap_or(d).to_owned()
}
fn list(v: Option<&Value>) -> Vec<String> {
    v.and_then(|v| v.as_sequence())
        .map(|s| {
            s.iter()
                .map(|x| {
                    x.as_str()
                        .map(str::to_owned)
                        .unwrap_or_else(|| serde_yaml::to_string(x).unwrap().trim().to_owned())
                })
                .collect()
        })
        .unwrap_or_default()
}
fn b(v: Option<&Value>, d: bool) -> bool {
    v.and_then(|v| v.as_bool()).unwrap_or(d)
}
fn map(v: Option<&Value>) -> std::collections::BTreeMap<String, String> {
    v.and_then(|v| v.as_mapping())
        .map(|m| {
            m.iter()
                .map(|(k, v)| {
                    (
                        k.as_str().unwrap().to_owned(),
                        v.as_str()
                            .map(str::to_owned)
                            .unwrap_or_else(|| serde_yaml::to_string(v).unwrap().trim().to_owned()),
                    )
                })
                .collect()
        })
        .unwrap_or_default()
}
/// stub
pub fn load(p: &std::path::Path, _e: &Process) -> Result<Loaded, Vec<String>> {
    let t = std::fs::read_to_string(p).map_err(|e| vec![e.to_string()])?;
    let v: Value = serde_yaml::from_str(&t).map_err(|e| vec![e.to_string()])?;
    let g = |k: &str| at(&v, &format!("opamp.{k}"));
    let path = |k: &str| g(k).and_then(|v| v.as_str()).map(PathBuf::from);
    let apply = match g("remote_config.apply") {
        Some(Value::Sequence(_)) => Apply::Command(list(g("remote_config.apply"))),
        Some(Value::String(s)) if s == "reload" => Apply::Reload,
        _ => Apply::Restart,
    };
    let checks = g("health.checks")
        .and_then(|v| v.as_sequence())
        .map(|s| {
            s.iter()
                .map(|c| {
                    let u = c.get("http").unwrap().as_str().unwrap();
                    let e = Endpoint::parse(u).unwrap();
                    Check {
                        kind: CheckKind::Http(HttpTarget {
                            host: e.host,
                            port: e.port,
                            path: if e.path == "/v1/opamp" { "/".into() } else { e.path },
                        }),
                        timeout: dur(c.get("timeout"), 1000),
                    }
                })
                .collect()
        })
        .unwrap_or_default();
    let state = path("state_dir").unwrap_or("/var/lib/chiton".into());
    let client = path("server.tls.cert_file").map(|c| ClientCertificate {
        cert_file: c,
        key_file: path("server.tls.key_file").unwrap(),
    });
    let id = st(g("agent.instance_id"), "auto");
    let mut headers = vec![];
    for (k, v) in map(g("server.headers")) {
        headers.push((k, crate::secret::Secret::new(v)));
    }
    Ok(Loaded {
        notes: vec![],
        deferred: vec![],
        secrets_from: vec![],
        settings: Settings {
            server: Server {
                endpoint: Endpoint::parse(&st(g("server.endpoint"), "")).map_err(|e| vec![e])?,
                headers,
                tls: Tls {
                    ca_file: path("server.tls.ca_file"),
                    client,
                    include_system_ca_certs_pool: false,
                    min_version: TlsVersion::V12,
                    max_version: TlsVersion::V13,
                    pinned_spki_sha256: vec![],
                    insecure_skip_verify: b(g("server.tls.insecure_skip_verify"), false),
                },
                proxy: None,
                heartbeat_interval: dur(g("server.heartbeat_interval"), 30000),
                poll_interval: dur(g("server.poll_interval"), 30000),
                reconnect: Backoff {
                    initial: dur(g("server.reconnect.initial"), 5000),
                    max: dur(g("server.reconnect.max"), 60000),
                },
                timeouts: Timeouts {
                    connect: dur(g("server.timeouts.connect"), 30000),
                    tls: dur(g("server.timeouts.tls"), 30000),
                    answer: dur(g("server.timeouts.answer"), 10000),
                    pong: dur(g("server.timeouts.pong"), 10000),
                },
                max_message_size: 4 << 20,
                allow_endpoints: vec![],
                unusable: None,
            },
            agent: Agent {
                instance_id: if id == "auto" { InstanceId::Auto } else { InstanceId::Text(id) },
                service_name: st(g("agent.service_name"), "chiton"),
                service_version: st(g("agent.service_version"), ""),
                identifying_attributes: map(g("agent.description.identifying_attributes")),
                non_identifying_attributes: map(g("agent.labels")),
                request_instance_uid: false,
            },
            capabilities: Capabilities {
                accepts_remote_config: b(g("capabilities.accepts_remote_config"), false),
                accepts_packages: false,
                accepts_opamp_connection_settings: false,
                accepts_other_connection_settings: false,
                accepts_restart_command: b(g("capabilities.accepts_restart_command"), false),
                reports_status: true,
                reports_effective_config: true,
                reports_package_statuses: true,
                reports_own_traces: true,
                reports_own_metrics: true,
                reports_own_logs: true,
                reports_health: true,
                reports_remote_config: true,
                reports_heartbeat: true,
                reports_available_components: true,
                reports_connection_settings_status: true,
            },
            health: Health {
                check_interval: dur(g("health.check_interval"), 10000),
                metrics_interval: dur(None, 300000),
                metrics: vec![],
                scrape: None,
                checks,
            },
            workload: g("workload").map(|_| Workload {
                owner: Owner::Chiton { command: list(g("workload.command")) },
                env: map(g("workload.env")),
                user: None,
                ambient_capabilities: vec![],
                oom_score_adj: None,
                stop_timeout: dur(g("workload.stop_timeout"), 10000),
                restart: Backoff {
                    initial: dur(g("workload.restart.initial"), 1000),
                    max: dur(g("workload.restart.max"), 60000),
                },
            }),
            local_config_path: path("local_config_path"),
            remote_config: RemoteConfig {
                main_file: st(g("remote_config.main_file"), ""),
                layout: Layout::Files,
                validate: list(g("remote_config.validate")),
                apply,
                rollback: Rollback {
                    window: dur(g("remote_config.rollback.window"), 60000),
                    interval: dur(g("remote_config.rollback.interval"), 1000),
                    successes: g("remote_config.rollback.successes")
                        .and_then(|v| v.as_u64())
                        .unwrap_or(5) as u32,
                    attempts: 3,
                    crash_loop: CrashLoop { crashes: 5, within: dur(None, 600000) },
                },
                min_interval: dur(None, 60000),
                allow: Allow {
                    files: vec!["*".into()],
                    max_files: 32,
                    max_size: 1 << 20,
                    max_merge: 128 << 10,
                },
                history: 5,
                require_signature: false,
            },
            redact: vec![
                "*password*".into(),
                "*token*".into(),
                "*secret*".into(),
                "authorization".into(),
            ],
            packages_dir: state.join("packages"),
            packages: Packages {
                trusted_keys: vec![],
                threshold: 1,
                revoked_keys: vec![],
                require_signature: true,
                signature: SignatureForm::Manifest,
                min_counter: Default::default(),
                max_size: 0,
                bandwidth: 0,
                apply: Apply::Restart,
                verify: vec![],
                after_install: vec![],
                allow_empty: false,
            },
            state_dir: state,
            status_socket: path("status_socket").unwrap_or("/run/chiton/status.sock".into()),
            log: Log {
                level: if st(g("log.level"), "info") == "debug" {
                    Level::Debug
                } else {
                    Level::Info
                },
                format: LogFormat::Text,
                to: LogTo::Auto,
            },
        },
    })
}
