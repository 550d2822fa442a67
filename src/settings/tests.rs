//! The contract, key by key: what loads, what is refused and with which words, what is shown again.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tests"
)]

use std::collections::BTreeMap;

use super::*;

/// The sample of the seed notes, key for key.
const SEED: &str = "\
opamp:
  server:
    endpoint: wss://opamp.example.com:4320/v1/opamp
    tls:
      insecure: false
      cert_file: /etc/certs/agent.crt
      key_file: /etc/certs/agent.key
      ca_file: /etc/certs/ca.crt
    headers:
      Authorization: \"Bearer ${OPAMP_TOKEN}\"
  agent:
    instance_id: \"${HOSTNAME}\"
    labels:
      env: \"${ENV}\"
      region: \"${REGION}\"
      tenant: \"${TENANT}\"
  capabilities:
    accepts_remote_config: true
    reports_health: true
    accepts_packages: true
    accepts_restart_command: true
  health:
    report_interval: 30s
    metrics:
      - cpu_usage
      - memory_usage
      - goroutines
      - spans_rate
      - export_latency
  local_config_path: /etc/otelcol/config.yaml
  packages_dir: /opt/otelcol/packages
";

/// Every key of the contract, each with a good value.
const FULL: &str = include_str!("../../tests/data/every-key.yaml");

fn environment() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([
        ("OPAMP_TOKEN", "hunter2"),
        ("HOSTNAME", "gateway-7"),
        ("ENV", "prod"),
        ("REGION", "eu"),
        ("TENANT", "acme"),
        ("PROXY_PASSWORD", "hunter3"),
        ("SECONDS", "45s"),
        ("COUNT", "7"),
        ("YES", "true"),
    ])
}

fn load_text(text: &str) -> Result<Loaded, Vec<Problem>> {
    from_text(text, "chiton.yaml", &environment())
}

fn loaded(text: &str) -> Loaded {
    load_text(text).unwrap_or_else(|problems| panic_with(&problems))
}

fn refused(text: &str) -> Vec<String> {
    load_text(text).unwrap_err().iter().map(ToString::to_string).collect()
}

#[expect(clippy::panic, reason = "tests")]
fn panic_with(problems: &[Problem]) -> ! {
    let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
    panic!("{}", lines.join("\n"))
}

/// The shortest good file, with more keys below `opamp`.
fn with(keys: &str) -> String {
    format!("opamp:\n  server: {{endpoint: \"wss://opamp.example.com\"}}\n{keys}")
}

#[test]
fn the_seed_sample_loads_as_it_is() {
    let loaded = loaded(SEED);
    let settings = loaded.settings;
    assert!(loaded.deferred.is_empty());
    assert_eq!(settings.server.headers[0].1.expose(), "Bearer hunter2");
    assert_eq!(settings.agent.instance_id, InstanceId::Text("gateway-7".into()));
    assert_eq!(settings.agent.non_identifying_attributes.get("tenant").unwrap(), "acme");
    assert_eq!(settings.server.heartbeat_interval.as_secs(), 30);
    assert_eq!(settings.packages_dir, Path::new("/opt/otelcol/packages"));
    assert_eq!(loaded.secrets_from, ["OPAMP_TOKEN"]);
    assert!(settings.workload.is_none());
}

#[test]
fn every_key_loads_and_is_in_force() {
    let settings = loaded(FULL).settings;
    let server = &settings.server;
    assert_eq!(server.endpoint.to_string(), "wss://opamp.example.com:4320/v1/opamp");
    assert_eq!(server.headers.len(), 3);
    assert_eq!(server.tls.min_version, TlsVersion::V13);
    assert_eq!(server.tls.enroll.as_ref().unwrap().key, KeyKind::Ed25519);
    assert_eq!(server.tls.renew_before.as_secs(), 20 * 86_400);
    assert_eq!(server.proxy.as_ref().unwrap().url.expose(), "http://u:hunter3@proxy:3128");
    assert_eq!(server.heartbeat_interval.as_secs(), 45);
    assert_eq!(server.reconnect.max.as_secs(), 90);
    assert_eq!(server.max_message_size, 2 << 20);
    // Labels lie over the description.
    assert_eq!(settings.agent.non_identifying_attributes.get("env").unwrap(), "prod");
    assert_eq!(settings.agent.non_identifying_attributes.get("site").unwrap(), "7");
    assert!(settings.capabilities.accepts_other_connection_settings);
    assert!(!settings.capabilities.reports_own_logs);
    assert_eq!(settings.health.checks.len(), 5);
    assert_eq!(settings.health.checks[0].timeout.as_secs(), 1);
    let workload = settings.workload.as_ref().unwrap();
    assert_eq!(workload.oom_score_adj, Some(-500));
    assert_eq!(workload.degrade.len(), 2);
    assert_eq!(workload.degrade[1].action, DegradeAction::Use("/etc/otelcol/small.yaml".into()));
    let remote = &settings.remote_config;
    assert_eq!(remote.layout, Layout::Merge);
    assert_eq!(remote.apply, Apply::Reload);
    assert_eq!(remote.rollback.crash_loop.crashes, 4);
    assert_eq!(remote.allow.max_size, 2 << 20);
    assert_eq!(settings.redact, ["*pass*"]);
    assert_eq!(settings.packages_dir, Path::new("/data/chiton/packages"));
    assert_eq!(settings.packages.min_counter.get("otelcol"), Some(&41));
    assert_eq!(settings.packages.apply, Apply::Command(vec!["/usr/bin/true".into()]));
    assert_eq!(settings.credentials.on_change, ["/usr/bin/true"]);
    assert_eq!(settings.sandbox, Sandbox::Off);
    assert_eq!(settings.log.to, LogTo::Syslog);
}

#[test]
fn defaults_are_the_contracts() {
    let settings = loaded(&with("")).settings;
    let secs = |duration: core::time::Duration| duration.as_secs();
    let server = &settings.server;
    assert_eq!((secs(server.heartbeat_interval), secs(server.poll_interval)), (30, 30));
    assert_eq!((secs(server.reconnect.initial), secs(server.reconnect.max)), (5, 60));
    let timeouts = server.timeouts;
    let timeouts = [timeouts.connect, timeouts.tls, timeouts.answer, timeouts.pong].map(secs);
    assert_eq!(timeouts, [30, 30, 10, 10]);
    assert_eq!((server.max_message_size, server.proxy.is_none()), (4 << 20, true));
    assert_eq!(
        (server.tls.min_version, server.tls.max_version),
        (TlsVersion::V12, TlsVersion::V13)
    );
    assert_eq!(settings.agent.instance_id, InstanceId::Auto);
    assert_eq!(settings.agent.service_name, "chiton");
    assert!(!settings.capabilities.accepts_remote_config && settings.capabilities.reports_health);
    assert_eq!(settings.health.metrics, ["cpu_usage", "memory_usage"]);
    assert_eq!(secs(settings.health.metrics_interval), 300);
    let rollback = settings.remote_config.rollback;
    assert_eq!((secs(rollback.window), secs(rollback.interval)), (60, 1));
    assert_eq!((rollback.successes, rollback.attempts), (5, 3));
    let allow = &settings.remote_config.allow;
    assert_eq!((allow.max_files, allow.max_size, allow.max_merge), (32, 1 << 20, 128 << 10));
    assert_eq!(
        (settings.remote_config.history, secs(settings.remote_config.min_interval)),
        (5, 60)
    );
    assert_eq!(settings.redact, ["*password*", "*token*", "*secret*", "authorization"]);
    assert_eq!(settings.packages_dir, Path::new("/var/lib/chiton/packages"));
    assert!(settings.packages.require_signature && settings.packages.threshold == 1);
    assert_eq!(settings.packages.signature, SignatureForm::Manifest);
    assert_eq!((settings.packages.max_size, settings.packages.bandwidth), (512 << 20, 0));
    assert_eq!(settings.status_socket, Path::new("/run/chiton/status.sock"));
    let log = settings.log;
    assert_eq!((log.level, log.format, log.to), (Level::Info, LogFormat::Text, LogTo::Auto));
}

/// Key, a value of the wrong type, and a wrong value of the right type (`-`: every text is right).
const WRONG: &[(&str, &str, &str)] = &[
    ("server", "5", "{endpoint: \"ws://h\", nothing: 1}"),
    ("server.endpoint", "[]", "ftp://x"),
    ("server.headers", "text", "{A: \"x\\r\\nB: y\"}"),
    ("server.headers.X", "{}", "\"caf\\u00e9\""),
    ("server.headers.Y", "[[]]", "[\"a\\nb\"]"),
    ("server.tls", "[]", "{ca: x}"),
    ("server.tls.ca_file", "5", "relative.pem"),
    ("server.tls.cert_file", "[]", "relative.pem"),
    ("server.tls.key_file", "{}", "relative.pem"),
    ("server.tls.include_system_ca_certs_pool", "[]", "maybe"),
    ("server.tls.min_version", "[]", "1.1"),
    ("server.tls.max_version", "{}", "1.4"),
    ("server.tls.pinned_spki_sha256", "text", "[abc]"),
    ("server.tls.insecure_skip_verify", "{}", "1"),
    ("server.tls.insecure", "[]", "true"),
    ("server.tls.enroll", "true", "{key: rsa}"),
    ("server.tls.enroll.common_name", "true", "\"\""),
    ("server.tls.enroll.key", "[]", "rsa"),
    ("server.tls.renew_before", "[]", "1s"),
    ("server.proxy", "text", "{no_proxy: []}"),
    ("server.proxy.url", "5", "ftp://proxy"),
    ("server.proxy.url", "{}", "socks4://proxy"),
    ("server.proxy.connect_headers", "[]", "{\"a b\": x}"),
    ("server.proxy.no_proxy", "text", "[\"a b\"]"),
    ("server.proxy.no_proxy", "{}", "[10.0.0.0/x]"),
    ("server.heartbeat_interval", "[]", "30"),
    ("server.heartbeat_interval", "{}", "50ms"),
    ("server.poll_interval", "[]", "0"),
    ("server.reconnect", "5s", "{first: 1s}"),
    ("server.reconnect.initial", "[]", "0"),
    ("server.reconnect.max", "[]", "1s"),
    ("server.timeouts", "5s", "{all: 1s}"),
    ("server.timeouts.connect", "[]", "11m"),
    ("server.timeouts.tls", "[]", "1ms"),
    ("server.timeouts.answer", "[]", "soon"),
    ("server.timeouts.pong", "[]", "-1s"),
    ("server.max_message_size", "[]", "512"),
    ("server.allow_endpoints", "text", "[\"https://x/\"]"),
    ("agent", "text", "{name: x}"),
    ("agent.instance_id", "1.5", "\" \""),
    ("agent.service_name", "[]", "\"\""),
    ("agent.service_version", "1.10", "-"),
    ("agent.labels", "[]", "{\"\": x}"),
    ("agent.labels.a", "1.5", "-"),
    ("agent.description", "text", "{attributes: {}}"),
    ("agent.description.identifying_attributes", "text", "{a: 1.5}"),
    ("agent.description.non_identifying_attributes", "text", "{a: []}"),
    ("agent.request_instance_uid", "[]", "5"),
    ("capabilities", "[]", "{accepts_everything: true}"),
    ("capabilities.accepts_remote_config", "[]", "yes"),
    ("capabilities.accepts_packages", "[]", "1"),
    ("capabilities.accepts_opamp_connection_settings", "{}", "on"),
    ("capabilities.accepts_other_connection_settings", "{}", "on"),
    ("capabilities.accepts_restart_command", "{}", "on"),
    ("capabilities.reports_status", "{}", "false"),
    ("capabilities.reports_effective_config", "{}", "on"),
    ("capabilities.reports_package_statuses", "{}", "on"),
    ("capabilities.reports_own_traces", "{}", "on"),
    ("capabilities.reports_own_metrics", "{}", "on"),
    ("capabilities.reports_own_logs", "{}", "on"),
    ("capabilities.reports_health", "{}", "on"),
    ("capabilities.reports_remote_config", "{}", "on"),
    ("capabilities.reports_heartbeat", "{}", "on"),
    ("capabilities.reports_available_components", "{}", "on"),
    ("capabilities.reports_connection_settings_status", "{}", "on"),
    ("health", "[]", "{interval: 5s}"),
    ("health.report_interval", "[]", "50ms"),
    ("health.check_interval", "[]", "0"),
    ("health.unhealthy_after", "[]", "0"),
    ("health.healthy_after", "[]", "101"),
    ("health.metrics_interval", "[]", "25h"),
    ("health.metrics", "cpu_usage", "[happiness]"),
    ("health.scrape", "[]", "https://localhost/"),
    ("health.checks", "{}", "[{}]"),
    ("health.checks", "text", "[{http: \"http://a/\", tcp: \"a:1\"}]"),
    ("health.checks", "5", "[{http: \"https://a/\"}]"),
    ("health.checks", "true", "[{tcp: \"a\"}]"),
    ("health.checks", "true", "[{tcp: \"a:0\"}]"),
    ("health.checks", "true", "[{exec: []}]"),
    ("health.checks", "true", "[{exec: /bin/true}]"),
    ("health.checks", "true", "[{memory_max: 1KiB}]"),
    ("health.checks", "true", "[{cpu_max: 0}]"),
    ("health.checks", "true", "[{cpu_max: lots}]"),
    ("health.checks", "true", "[{tcp: \"a:1\", timeout: 2m}]"),
    ("health.checks", "true", "[{ping: a}]"),
    ("health.checks", "true", "[null]"),
    ("workload", "[]", "{}"),
    ("workload.command", "/bin/otelcol", "[]"),
    ("workload.command", "{}", "[\"\"]"),
    ("workload.command", "5", "[x, \"{confg_file}\"]"),
    ("workload.env", "[]", "{\"A=B\": x}"),
    ("workload.env.A", "1.5", "\"a\\0b\""),
    ("workload.user", "[]", "\"a b\""),
    ("workload.ambient_capabilities", "cap_net_raw", "[NET_RAW]"),
    ("workload.oom_score_adj", "[]", "1001"),
    ("workload.stop_timeout", "[]", "0"),
    ("workload.restart", "[]", "{initial: 1s, max: 500ms}"),
    ("workload.restart.initial", "[]", "2h"),
    ("workload.restart.max", "[]", "2d"),
    ("workload.degrade", "{}", "[{when: memory_max}]"),
    ("workload.degrade", "5", "[{do: restart}]"),
    ("workload.degrade", "5", "[{when: full_moon, do: restart}]"),
    ("workload.degrade", "5", "[{when: cpu_max, do: panic}]"),
    ("workload.degrade", "5", "[{when: cpu_max, do: {use: x}}]"),
    ("workload.degrade", "5", "[{when: cpu_max, do: restart, cooldown: 0}]"),
    ("workload.external", "otelcol.service", "{}"),
    ("workload.external", "[]", "{unit: a, cgroup: /x}"),
    ("workload.external.unit", "[]", "\"a b\""),
    ("workload.external.pid_file", "[]", "run.pid"),
    ("workload.external.cgroup", "[]", "../otelcol"),
    ("workload.external.reload", "text", "[\"\"]"),
    ("workload.external.restart", "text", "[\"{x}\"]"),
    ("local_config_path", "[]", "config.yaml"),
    ("remote_config", "[]", "{main: x}"),
    ("remote_config.main_file", "[]", "../x"),
    ("remote_config.main_file", "true", "/etc/x"),
    ("remote_config.layout", "[]", "tree"),
    ("remote_config.validate", "text", "[\"{config}\"]"),
    ("remote_config.apply", "{}", "reboot"),
    ("remote_config.apply", "5", "[]"),
    ("remote_config.rollback", "[]", "{windows: 1m}"),
    ("remote_config.rollback.window", "[]", "2s"),
    ("remote_config.rollback.interval", "[]", "1ms"),
    ("remote_config.rollback.successes", "[]", "0"),
    ("remote_config.rollback.attempts", "[]", "1.5"),
    ("remote_config.rollback.crash_loop", "5", "{crash: 1}"),
    ("remote_config.rollback.crash_loop.crashes", "[]", "0"),
    ("remote_config.rollback.crash_loop.within", "[]", "10"),
    ("remote_config.min_interval", "[]", "60"),
    ("remote_config.allow", "[]", "{file: []}"),
    ("remote_config.allow.files", "text", "[true]"),
    ("remote_config.allow.max_files", "[]", "0"),
    ("remote_config.allow.max_size", "[]", "1GiB"),
    ("remote_config.allow.max_merge", "[]", "0"),
    ("remote_config.history", "[]", "0"),
    ("remote_config.require_signature", "[]", "true"),
    ("effective_config", "[]", "{mask: []}"),
    ("effective_config.redact", "text", "[[]]"),
    ("packages_dir", "[]", "packages"),
    ("packages_dir", "5", "\"{home}/packages\""),
    ("packages", "[]", "{keys: []}"),
    ("packages.trusted_keys", "/a", "[a]"),
    ("packages.threshold", "[]", "0"),
    ("packages.revoked_keys", "text", "[xyz]"),
    ("packages.require_signature", "[]", "no"),
    ("packages.signature", "[]", "none"),
    ("packages.min_counter", "[]", "{a: -1}"),
    ("packages.max_size", "[]", "1"),
    ("packages.bandwidth", "[]", "1Mbit"),
    ("packages.apply", "{}", "kill"),
    ("packages.verify", "text", "[\"\"]"),
    ("packages.after_install", "text", "[\"{package_dir}\"]"),
    ("packages.allow_empty", "[]", "5"),
    ("state_dir", "[]", "var/lib"),
    ("status_socket", "[]", "chiton.sock"),
    ("credentials", "[]", "{dir: /x}"),
    ("credentials.export", "[]", "certs"),
    ("credentials.on_change", "text", "[\"{x}\"]"),
    ("sandbox", "[]", "strict"),
    ("log", "debug", "{file: x}"),
    ("log.level", "[]", "verbose"),
    ("log.format", "[]", "xml"),
    ("log.to", "[]", "printer"),
    ("workloads", "5", "{a: {}}"),
];

/// Keys that must stand beside another one.
fn companion(key: &str) -> &'static str {
    match key {
        "server.tls.cert_file" => "key_file: /a",
        "server.tls.key_file" => "cert_file: /a",
        "server.proxy.connect_headers" | "server.proxy.no_proxy" => "url: \"http://p\"",
        "workload.external.reload" | "workload.external.restart" => "unit: a",
        key if key.starts_with("workload.external") || key == "workload.command" => "",
        key if key.starts_with("workload.") && key.split('.').count() == 2 => {
            "command: [/bin/true]"
        }
        _ => "",
    }
}

/// A file in which one key has this value, and the line that it stands on.
fn file_with(key: &str, value: &str) -> (String, usize) {
    let mut text = "# one\nopamp:\n".to_owned();
    let names: Vec<&str> = key.split('.').collect();
    if names[0] != "server" {
        text.push_str("  server: {endpoint: \"wss://opamp.example.com\"}\n");
    }
    let mut line = text.lines().count();
    for (depth, name) in names.iter().enumerate() {
        let indent = "  ".repeat(depth + 1);
        if depth == 1 && names[0] == "server" && *name != "endpoint" {
            text.push_str("    endpoint: \"wss://opamp.example.com\"\n");
            line += 1;
        }
        if depth == 1 && names[0] == "workload" && names.len() > 2 && *name != "external" {
            text.push_str("    command: [/bin/true]\n");
            line += 1;
        }
        if depth + 1 == names.len() {
            let companion = companion(key);
            if !companion.is_empty() {
                text.push_str(&format!("{indent}{companion}\n"));
                line += 1;
            }
            text.push_str(&format!("{indent}{name}: {value}\n"));
        } else {
            text.push_str(&format!("{indent}{name}:\n"));
        }
        line += 1;
    }
    text.push_str("  # end\n");
    (text, line)
}

#[test]
fn every_wrong_value_is_one_clear_problem_at_its_key_and_line() {
    let told = ["allowed", "needs", "unknown", "reserved", "leave it out", "list a key", "NUL"];
    let mut wrong = Vec::new();
    for (key, wrong_type, wrong_value) in WRONG {
        for value in [wrong_type, wrong_value].into_iter().filter(|value| **value != "-") {
            let (text, line) = file_with(key, value);
            let beginning = format!("chiton.yaml:{line}: opamp.{key}");
            let shown: Vec<String> =
                load_text(&text).err().into_iter().flatten().map(|p| p.to_string()).collect();
            let good = matches!(shown.as_slice(), [only] if only.starts_with(&beginning)
                && told.iter().any(|word| only.contains(word)));
            if !good {
                wrong.push(format!("{line}: {key}: {value}: {shown:#?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_key_of_the_contract_is_in_the_table() {
    fn keys(value: &Value, path: &str, out: &mut Vec<String>) {
        // The users' own names are not the contract's.
        let own = ["headers", "connect_headers", "labels", "env", "min_counter"];
        let own_map = own.contains(&path.rsplit('.').next().unwrap_or_default())
            || path.ends_with("identifying_attributes");
        for (name, value) in value.as_mapping().into_iter().flatten() {
            if own_map {
                return;
            }
            let path = format!("{path}.{}", name.as_str().unwrap()).trim_matches('.').to_owned();
            keys(value, &path, out);
            out.push(path);
        }
    }
    let mut all = Vec::new();
    let value: Value = serde_yaml::from_str(FULL).unwrap();
    keys(&value["opamp"], "", &mut all);
    assert!(all.len() > 100, "{}", all.len());
    for key in all {
        assert!(WRONG.iter().any(|(known, _, _)| *known == key), "{key} has no wrong value");
    }
}

#[test]
fn unknown_keys_suggest_the_nearest() {
    for (keys, key, near) in [
        ("  agnet: {}\n", "opamp.agnet", "agent"),
        ("  health: {check_intervall: 1s}\n", "opamp.health.check_intervall", "check_interval"),
        (
            "  remote_config: {rollback: {sucesses: 1}}\n",
            "opamp.remote_config.rollback.sucesses",
            "successes",
        ),
        (
            "  capabilities: {AcceptsRemoteConfig: true}\n",
            "opamp.capabilities.AcceptsRemoteConfig",
            "accepts_remote_config",
        ),
        ("  packages: {trusted_key: []}\n", "opamp.packages.trusted_key", "trusted_keys"),
        ("  log: {levle: info}\n", "opamp.log.levle", "level"),
    ] {
        let wanted = format!("chiton.yaml:3: {key}: unknown key; did you mean {near}?");
        assert_eq!(refused(&with(keys)), [wanted]);
    }
    let far = refused(&with("  log: {banana: 1}\n"));
    assert_eq!(
        far,
        ["chiton.yaml:3: opamp.log.banana: unknown key; allowed are level, format, to"]
    );
    let alone = refused("opamp: {server: {endpoint: \"ws://h\"}}\nx: {}\n");
    assert_eq!(alone, ["chiton.yaml:2: x: unknown key; allowed are opamp"]);
    let beside = refused("opamp:\n  server: {endpoint: \"ws://h\"}\nopmap: {}\n");
    assert_eq!(beside, ["chiton.yaml:3: opmap: unknown key; did you mean opamp?"]);
}

#[test]
fn what_is_missing_is_named() {
    for (text, problem) in [
        ("", "chiton.yaml:1: the key opamp is missing; all settings stand below it"),
        ("# nothing\n", "chiton.yaml:1: the key opamp is missing; all settings stand below it"),
        ("5\n", "chiton.yaml:1: is a number; allowed is a map of keys"),
        ("- a\n", "chiton.yaml:1: is a list; allowed is a map of keys"),
        ("\nopamp: text\n", "chiton.yaml:2: opamp: is text; allowed is a map of keys"),
    ] {
        assert_eq!(refused(text), [problem], "{text:?}");
    }
    let endpoint = refused("opamp:\n  server:\n    heartbeat_interval: 1s\n");
    assert_eq!(endpoint.len(), 1);
    assert!(
        endpoint[0].starts_with("chiton.yaml:2: opamp.server.endpoint: is missing; allowed is")
    );
    assert!(
        refused("opamp: {}\n")[0].starts_with("chiton.yaml:1: opamp.server.endpoint: is missing")
    );
}

#[test]
fn all_problems_come_at_once_and_their_number_is_bounded() {
    let text = with("  log: {level: loud, format: 5, to: here}\n  history: 5\n  agent: []\n");
    let problems = refused(&text);
    assert_eq!(problems.len(), 5, "{problems:#?}");
    assert!(problems.is_sorted_by_key(|problem| problem.split(": ").next().map(str::to_owned)));
    let many: String = (0..500).map(|n| format!("  k{n}: 1\n")).collect();
    let problems = refused(&with(&many));
    assert_eq!(problems.len(), MAX_PROBLEMS + 1);
    assert!(problems.last().unwrap().contains("400 more problems"));
}

#[test]
fn expanded_values_take_the_type_that_is_needed() {
    let settings = loaded(&with(
        "  health: {check_interval: \"${SECONDS}\"}\n  remote_config: {history: \"${COUNT}\"}\n  capabilities: {accepts_remote_config: \"${YES}\"}\n  packages: {max_size: \"${COUNT}MiB\"}\n",
    ))
    .settings;
    assert_eq!(settings.health.check_interval.as_secs(), 45);
    assert_eq!(settings.remote_config.history, 7);
    assert!(settings.capabilities.accepts_remote_config);
    assert_eq!(settings.packages.max_size, 7 << 20);
}

#[test]
fn a_value_cannot_bring_structure() {
    let environment = BTreeMap::from([("A", "x, accepts_packages: true}\nopamp: [")]);
    let text = with("  agent: {labels: {a: \"${A}\"}}\n");
    let settings = from_text(&text, "f", &environment).unwrap().settings;
    assert_eq!(settings.agent.non_identifying_attributes["a"], environment["A"]);
    assert!(!settings.capabilities.accepts_packages);
}

#[test]
fn what_the_connection_lacks_waits_and_the_rest_does_not() {
    let text = "opamp:\n  server:\n    endpoint: \"${ENDPOINT_UNSET}\"\n    headers: {A: \"Bearer ${UNSET}\", B: \"${file:/nonexistent/token}\"}\n  agent: {labels: {site: \"${SITE_UNSET}\"}}\n  workload: {command: [/bin/true]}\n";
    let loaded = loaded(text);
    let lines: Vec<String> = loaded.deferred.iter().map(ToString::to_string).collect();
    assert_eq!(lines.len(), 4, "{lines:#?}");
    assert!(
        lines[0].starts_with("chiton.yaml:3: opamp.server.endpoint: the variable ENDPOINT_UNSET")
    );
    let unusable = loaded.settings.server.unusable.unwrap();
    for name in ["ENDPOINT_UNSET", "UNSET", "/nonexistent/token", "SITE_UNSET"] {
        assert!(unusable.contains(name), "{unusable}");
    }
    assert!(loaded.settings.workload.is_some());
    // Elsewhere it is fatal, and so is a wrong value that no variable brought.
    assert_eq!(refused(&with("  state_dir: \"${UNSET}\"\n")).len(), 1);
    assert_eq!(refused("opamp: {server: {endpoint: \"${UNSET}\", poll_interval: 5}}\n").len(), 2);
}

#[test]
fn a_wrong_value_that_a_variable_brought_waits_and_is_not_shown() {
    let environment = BTreeMap::from([("TOKEN", "hunter2\nX: y"), ("URL", "hunter2://x")]);
    let text = "opamp:\n  server: {endpoint: \"${URL}\", headers: {A: \"${TOKEN}\"}, proxy: {url: \"${TOKEN}\"}}\n";
    let loaded = from_text(text, "f", &environment).unwrap();
    assert_eq!(loaded.deferred.len(), 3);
    assert!(loaded.settings.server.unusable.is_some());
    assert!(!loaded.settings.server.headers.iter().any(|(_, value)| value.expose().contains('\n')));
}

#[test]
fn report_interval_is_the_older_name() {
    let heartbeat = |text: &str| loaded(text).settings.server.heartbeat_interval.as_secs();
    assert_eq!(heartbeat(&with("  health: {report_interval: 45s}\n")), 45);
    let both = |interval: &str| {
        format!(
            "opamp:\n  server: {{endpoint: \"ws://h\", heartbeat_interval: 45s}}\n  health:\n    report_interval: {interval}\n"
        )
    };
    assert_eq!(heartbeat(&both("45s")), 45);
    let problems = refused(&both("46s"));
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("chiton.yaml:4: opamp.health.report_interval: differs"));
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    for (keys, word) in [
        (
            "  workload: {command: [/a], external: {unit: a}}\n",
            "opamp.workload.command: stands beside external",
        ),
        ("  workload: {external: {unit: a}, user: otel}\n", "opamp.workload.user: has no meaning"),
        (
            "  workload: {external: {pid_file: /a}}\n  capabilities: {accepts_remote_config: true}\n",
            "opamp.workload.external: has no restart command",
        ),
        (
            "  workload: {external: {cgroup: a}}\n  local_config_path: /a\n",
            "opamp.workload.external: has no restart command",
        ),
        (
            "  packages: {trusted_keys: [/a], threshold: 2}\n",
            "opamp.packages.threshold: 2 cannot be reached",
        ),
        ("  remote_config: {rollback: {window: 3s}}\n", "allowed is 4s or longer"),
        ("  remote_config: {require_signature: true}\n", "trusted_keys is empty"),
        (
            "  status_socket: /aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa/s\n",
            "107 bytes",
        ),
    ] {
        let problems = refused(&with(keys));
        assert_eq!(problems.len(), 1, "{problems:#?}");
        assert!(problems[0].contains(word), "{}", problems[0]);
    }
    let tls =
        |keys: &str| format!("opamp: {{server: {{endpoint: \"wss://h\", tls: {{{keys}}}}}}}\n");
    assert!(refused(&tls("cert_file: /a"))[0].contains("needs key_file"));
    assert!(
        refused(&tls("min_version: \"1.3\", max_version: \"1.2\""))[0]
            .contains("above max_version")
    );
    assert!(refused(&tls("insecure: true"))[0].contains("ws:// or http://"));
}

#[test]
fn an_external_workload_without_a_restart_is_good_where_none_is_needed() {
    let accepts = "  capabilities: {accepts_remote_config: true}\n";
    for keys in [
        "  workload: {external: {pid_file: /a}}\n".to_owned(),
        format!("{accepts}  workload: {{external: {{pid_file: /a, restart: [/b]}}}}\n"),
        format!("{accepts}  workload: {{external: {{unit: a}}}}\n"),
        format!(
            "{accepts}  workload: {{external: {{pid_file: /a}}}}\n  remote_config: {{apply: reload}}\n"
        ),
        format!(
            "{accepts}  workload: {{external: {{cgroup: a}}}}\n  remote_config: {{apply: [/b]}}\n"
        ),
    ] {
        assert!(load_text(&with(&keys)).is_ok(), "{keys}");
    }
    let settings =
        load_text(&with("  workload: {external: {cgroup: a.slice/b}}\n")).unwrap().settings;
    let found = settings.workload.map(|workload| workload.owner);
    let by = ExternalBy::Cgroup("/sys/fs/cgroup/a.slice/b".into());
    let external = External { by, reload: Vec::new(), restart: Vec::new() };
    assert_eq!(found, Some(Owner::External(external)));
}

#[test]
fn the_proxy_of_the_environment_counts_where_none_is_set() {
    let load = |endpoint: &str, proxy: &str, variables: &[(&'static str, &'static str)]| {
        let text = format!("opamp:\n  server:\n    endpoint: {endpoint}\n{proxy}");
        from_text(&text, "f", &variables.iter().copied().collect::<BTreeMap<_, _>>()).unwrap()
    };
    let url =
        |loaded: &Loaded| loaded.settings.server.proxy.as_ref().map(|p| p.url.expose().clone());
    let variables = [("HTTPS_PROXY", "http://a:1"), ("NO_PROXY", "localhost, .lan,")];
    let taken = load("wss://h", "", &variables);
    assert_eq!(url(&taken).as_deref(), Some("http://a:1"));
    let direct = &taken.settings.server.proxy.as_ref().unwrap().no_proxy;
    assert_eq!(direct, &[".lan", "localhost", "127.0.0.0/8", "::1"]);
    assert!(taken.notes.iter().any(|note| note.contains("HTTPS_PROXY")));
    assert_eq!(url(&load("ws://h", "", &variables)), None);
    assert_eq!(url(&load("ws://h", "", &[("http_proxy", "a:1")])).as_deref(), Some("http://a:1"));
    let set = "    proxy: {url: \"http://b:2\"}\n";
    assert_eq!(url(&load("wss://h", set, &variables)).as_deref(), Some("http://b:2"));
    assert_eq!(url(&load("wss://h", "    proxy: {url: \"\"}\n", &variables)), None);
    let bad = load("wss://h", "", &[("HTTPS_PROXY", "ftp://hunter2@x")]);
    assert!(bad.settings.server.unusable.is_some_and(|why| !why.contains("hunter2")));
}

#[test]
fn a_socks_proxy_is_taken_where_it_was_built_in_and_else_says_how_to_get_it() {
    let server = "opamp:\n  server:\n    endpoint: wss://h\n";
    for scheme in ["socks5", "socks5h"] {
        let set = format!("{server}    proxy: {{url: \"{scheme}://u:hunter2@p\"}}\n");
        let loaded = load_text(&set);
        assert_eq!(loaded.is_ok(), cfg!(feature = "socks"));
        if let Err(problems) = loaded {
            let text = problems[0].to_string();
            assert!(text.contains("--features socks") && !text.contains("hunter2"), "{text}");
        }
        // From the environment too.
        let variables = BTreeMap::from([("HTTPS_PROXY", format!("{scheme}://p"))]);
        let variables = variables.iter().map(|(name, value)| (*name, value.as_str()));
        let loaded = from_text(server, "f", &variables.collect::<BTreeMap<_, _>>()).unwrap();
        let why = loaded.settings.server.unusable;
        assert_eq!(why.is_none(), cfg!(feature = "socks"), "{why:?}");
        assert!(why.is_none_or(|why| why.contains("--features socks")));
    }
    #[cfg(feature = "socks")]
    {
        let set =
            format!("{server}    proxy: {{url: \"socks5://p\", connect_headers: {{A: b}}}}\n");
        let problems = load_text(&set).err().unwrap();
        assert!(problems[0].to_string().contains("connect_headers: are for http"));
    }
}

#[test]
fn what_is_shown_has_no_secrets_and_loads_again() {
    let loaded = loaded(FULL);
    let shown = render(&loaded.settings);
    for secret in ["hunter2", "hunter3", "s3cret", "x-plain-header-value"] {
        assert!(!shown.contains(secret), "{secret}: {shown}");
        assert!(!format!("{:?}", loaded.settings.server).contains(secret), "{secret}");
    }
    for kept in ["Authorization", "http://***@proxy:3128", "DB_PASSWORD", "otelcol: 41", "p: $$5"] {
        assert!(shown.contains(kept), "{kept}: {shown}");
    }
    // Masked is what was secret, the rest is the same: also through another round.
    let again = load_text(&shown).unwrap_or_else(|problems| panic_with(&problems)).settings;
    assert_eq!(render(&again), shown);
    assert_eq!(again.remote_config, loaded.settings.remote_config);
    assert_eq!(again.packages, loaded.settings.packages);
    assert_eq!(again.health, loaded.settings.health);
    let seed = load_text(SEED).unwrap().settings;
    assert!(!render(&seed).contains("hunter2"));
}

#[test]
fn an_endpoints_query_is_masked() {
    let settings = loaded("opamp: {server: {endpoint: \"ws://h/a?token=hunter2\"}}\n").settings;
    assert!(render(&settings).contains("endpoint: ws://h/a?***"));
}

#[test]
fn what_is_kept_is_unexpanded_and_loads_to_the_same() {
    for text in [SEED, FULL] {
        let first = loaded(text);
        assert!(!first.unexpanded.contains("hunter"), "{}", first.unexpanded);
        let second = from_text(&first.unexpanded, "kept.yaml", &environment()).unwrap();
        assert_eq!(second.settings, first.settings);
        assert_eq!(second.unexpanded, first.unexpanded);
    }
}

#[test]
fn files_beside_it_are_merged_and_blamed() {
    let dir = tempfile::tempdir().unwrap();
    let main = dir.path().join("chiton.yaml");
    std::fs::create_dir(dir.path().join("conf.d")).unwrap();
    std::fs::write(&main, FULL).unwrap();
    let site = dir.path().join("conf.d/site.yaml");
    std::fs::write(&site, "opamp:\n  log: {level: debug}\n").unwrap();
    let settings = load(&main, &environment()).unwrap().settings;
    assert_eq!((settings.log.level, settings.log.to), (Level::Debug, LogTo::Syslog));
    std::fs::write(&site, "opamp:\n  log:\n    level: loud\n").unwrap();
    let problems = load(&main, &environment()).unwrap_err();
    assert_eq!(problems.len(), 1);
    let shown = problems[0].to_string();
    assert!(
        shown.contains("conf.d/site.yaml:3: opamp.log.level: \"loud\" is not allowed"),
        "{shown}"
    );
}

#[test]
fn risks_and_keys_not_in_force_are_noted() {
    let noted = |text: &str, key: &str, word: &str| {
        let notes = loaded(text).notes;
        let found =
            notes.iter().any(|note| note.contains(&format!(": {key}: ")) && note.contains(word));
        assert!(found, "{key}: {notes:#?}");
    };
    noted(
        &with("  capabilities: {accepts_remote_config: true}\n"),
        "opamp.capabilities.accepts_remote_config",
        "confine",
    );
    noted(
        &with("  packages: {require_signature: false}\n"),
        "opamp.packages.require_signature",
        "any code",
    );
    noted(&with("  packages: {signature: digest}\n"), "opamp.packages.signature", "downgrades");
    noted(
        &with("  health: {checks: [{memory_max: 1MiB}]}\n"),
        "opamp.health.checks",
        "no opamp.workload",
    );
    noted(SEED, "opamp.health.metrics", "opamp.health.scrape");
    let server = |keys: &str| format!("opamp: {{server: {{{keys}}}}}\n");
    noted(
        &server("endpoint: \"wss://h\", tls: {insecure_skip_verify: true}"),
        "opamp.server.tls.insecure_skip_verify",
        "not verified",
    );
    noted(&server("endpoint: \"ws://h\", headers: {A: b}"), "opamp.server.headers", "clear text");
    assert_eq!(loaded(&with("")).notes, Vec::<String>::new());
    let quiet = loaded(&with(
        "  capabilities: {accepts_remote_config: true, accepts_packages: false}\n  workload: {command: [/a], user: otel}\n",
    ));
    assert_eq!(quiet.notes, Vec::<String>::new());
}
