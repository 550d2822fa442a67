//! What a file that is read again changes: which keys take effect at once, and which wait for a restart.

use super::model::{Agent, Owner, Server, Settings, Workload};

/// What became of the keys that differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In force now.
    pub taken: Vec<&'static str>,
    /// In force after a restart of Chiton.
    pub waiting: Vec<&'static str>,
    /// What it means for the connection.
    pub connection: Connection,
    /// Other values are masked in what is reported.
    pub redaction: bool,
    /// There are other checks, or they run at another interval.
    pub checks: bool,
}

/// What changed settings mean for the connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// It may stay.
    #[default]
    Kept,
    /// It is opened anew, to the same server.
    Renewed,
    /// It goes elsewhere.
    Moved,
}

/// The keys of a section that differ; the section itself where something else in it does.
macro_rules! differing {
    ($to:expr, $section:literal, $old:expr, $new:expr, $($field:ident)*) => {
        let (old, new) = (&$old, &$new);
        let keys = [$((concat!($section, ".", stringify!($field)), old.$field != new.$field)),*];
        name($to, $section, &keys, old != new);
    };
}

fn name(
    to: &mut Vec<&'static str>,
    section: &'static str,
    keys: &[(&'static str, bool)],
    differs: bool,
) {
    let before = to.len();
    to.extend(keys.iter().filter_map(|(key, differs)| differs.then_some(*key)));
    if differs && to.len() == before {
        to.push(section);
    }
}

/// The settings to go on with: those that were read, but with the running ones' values where a key needs a restart.
#[must_use]
pub fn take(running: &Settings, read: Settings) -> (Settings, Changes) {
    let mut changes = Changes::default();
    // Taken apart, so that a new section is not forgotten here.
    let Settings {
        server,
        mut agent,
        capabilities,
        health,
        workload,
        local_config_path,
        remote_config,
        redact,
        packages_dir,
        packages,
        state_dir,
        status_socket,
        credentials,
        sandbox,
        log,
    } = read;

    let waiting = &mut changes.waiting;
    if agent.instance_id != running.agent.instance_id {
        waiting.push("opamp.agent.instance_id");
    }
    if agent.request_instance_uid != running.agent.request_instance_uid {
        waiting.push("opamp.agent.request_instance_uid");
    }
    agent.instance_id = running.agent.instance_id.clone();
    agent.request_instance_uid = running.agent.request_instance_uid;
    match (&running.workload, &workload) {
        (Some(old), Some(new)) => workload_keys(old, new, waiting),
        (None, None) => {}
        _ => waiting.push("opamp.workload"),
    }
    if local_config_path != running.local_config_path {
        waiting.push("opamp.local_config_path");
    }
    if packages_dir != running.packages_dir {
        waiting.push("opamp.packages_dir");
    }
    if state_dir != running.state_dir {
        waiting.push("opamp.state_dir");
    }
    if status_socket != running.status_socket {
        waiting.push("opamp.status_socket");
    }
    if sandbox != running.sandbox {
        waiting.push("opamp.sandbox");
    }
    differing!(waiting, "opamp.credentials", running.credentials, credentials, export on_change);

    let taken = &mut changes.taken;
    differing!(taken, "opamp.server", running.server, server,
        endpoint headers tls proxy heartbeat_interval poll_interval reconnect timeouts max_message_size
        allow_endpoints);
    agent_keys(&running.agent, &agent, taken);
    if capabilities != running.capabilities {
        taken.push("opamp.capabilities");
    }
    differing!(taken, "opamp.health", running.health, health,
        check_interval unhealthy_after healthy_after metrics_interval metrics scrape checks);
    differing!(taken, "opamp.remote_config", running.remote_config, remote_config,
        main_file layout validate apply rollback min_interval allow history require_signature);
    differing!(taken, "opamp.packages", running.packages, packages,
        trusted_keys threshold revoked_keys require_signature signature min_counter max_size bandwidth
        apply verify after_install allow_empty);
    if redact != running.redact {
        taken.push("opamp.effective_config.redact");
    }
    differing!(taken, "opamp.log", running.log, log, level format to);

    changes.connection = connection_of(&running.server, &server);
    changes.redaction = redact != running.redact;
    changes.checks = health.checks != running.health.checks
        || health.check_interval != running.health.check_interval;
    let settings = Settings {
        server,
        agent,
        capabilities,
        health,
        remote_config,
        packages,
        redact,
        log,
        ..running.clone()
    };
    (settings, changes)
}

fn agent_keys(old: &Agent, new: &Agent, taken: &mut Vec<&'static str>) {
    let keys = [
        ("opamp.agent.service_name", old.service_name != new.service_name),
        ("opamp.agent.service_version", old.service_version != new.service_version),
        (
            "opamp.agent.description.identifying_attributes",
            old.identifying_attributes != new.identifying_attributes,
        ),
        // Labels are among them.
        (
            "opamp.agent.description.non_identifying_attributes",
            old.non_identifying_attributes != new.non_identifying_attributes,
        ),
    ];
    name(taken, "opamp.agent", &keys, old != new);
}

fn workload_keys(old: &Workload, new: &Workload, waiting: &mut Vec<&'static str>) {
    let before = waiting.len();
    if old.owner != new.owner {
        waiting.push(match (&old.owner, &new.owner) {
            (Owner::Chiton { .. }, Owner::Chiton { .. }) => "opamp.workload.command",
            _ => "opamp.workload.external",
        });
    }
    let rest = Workload { owner: new.owner.clone(), ..old.clone() };
    if rest == *new && waiting.len() > before {
        return;
    }
    differing!(waiting, "opamp.workload", rest, *new,
        env user ambient_capabilities oom_score_adj stop_timeout restart degrade);
}

/// What the link itself is made of; the rest is the session's and needs no new link.
#[must_use]
pub fn connection_of(old: &Server, new: &Server) -> Connection {
    if old.endpoint != new.endpoint {
        return Connection::Moved;
    }
    let link = Server {
        heartbeat_interval: new.heartbeat_interval,
        poll_interval: new.poll_interval,
        reconnect: new.reconnect,
        allow_endpoints: new.allow_endpoints.clone(),
        ..old.clone()
    };
    if link == *new { Connection::Kept } else { Connection::Renewed }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use super::*;

    fn settings(more: &str) -> Settings {
        let text = "opamp: { server: { endpoint: ws://a }, workload: { command: [/a] } }";
        let mut value: serde_yaml::Value = serde_yaml::from_str(text).unwrap();
        let over: serde_yaml::Value = serde_yaml::from_str(more).unwrap();
        let opamp = value.get_mut("opamp").unwrap().as_mapping_mut().unwrap();
        for (key, section) in over.as_mapping().unwrap() {
            match opamp.get_mut(key) {
                Some(below) if below.is_mapping() => {
                    let section = section.as_mapping().unwrap().clone();
                    below.as_mapping_mut().unwrap().extend(section);
                }
                _ => {
                    opamp.insert(key.clone(), section.clone());
                }
            }
        }
        let text = serde_yaml::to_string(&value).unwrap();
        let environment = BTreeMap::<&str, &str>::new();
        super::super::from_text(&text, "test", &environment).unwrap().settings
    }

    #[test]
    fn each_key_is_taken_or_waits_and_is_named() {
        let running = settings("{}");
        for (yaml, taken, waiting, connection) in [
            ("{}", "", "", Connection::Kept),
            ("server: { endpoint: ws://b }", "opamp.server.endpoint", "", Connection::Moved),
            ("server: { headers: { A: b } }", "opamp.server.headers", "", Connection::Renewed),
            (
                "server: { heartbeat_interval: 9s }",
                "opamp.server.heartbeat_interval",
                "",
                Connection::Kept,
            ),
            ("log: { level: debug }", "opamp.log.level", "", Connection::Kept),
            (
                "agent: { labels: { a: b }, instance_id: me }",
                "opamp.agent.description.non_identifying_attributes",
                "opamp.agent.instance_id",
                Connection::Kept,
            ),
            (
                "capabilities: { accepts_remote_config: true }",
                "opamp.capabilities",
                "",
                Connection::Kept,
            ),
            ("health: { checks: [{ tcp: 'a:1' }] }", "opamp.health.checks", "", Connection::Kept),
            (
                "effective_config: { redact: [x] }",
                "opamp.effective_config.redact",
                "",
                Connection::Kept,
            ),
            ("remote_config: { history: 2 }", "opamp.remote_config.history", "", Connection::Kept),
            ("workload: { command: [/b] }", "", "opamp.workload.command", Connection::Kept),
            (
                "workload: { command: [/b], user: x }",
                "",
                "opamp.workload.command opamp.workload.user",
                Connection::Kept,
            ),
            ("workload: { stop_timeout: 1s }", "", "opamp.workload.stop_timeout", Connection::Kept),
            ("state_dir: /x", "", "opamp.packages_dir opamp.state_dir", Connection::Kept),
            ("status_socket: /x/s", "", "opamp.status_socket", Connection::Kept),
            ("sandbox: off", "", "opamp.sandbox", Connection::Kept),
            ("local_config_path: /x/s", "", "opamp.local_config_path", Connection::Kept),
            ("packages: { max_size: 1MiB }", "opamp.packages.max_size", "", Connection::Kept),
        ] {
            let (now, changes) = take(&running, settings(yaml));
            assert_eq!(changes.taken.join(" "), taken, "{yaml}");
            assert_eq!(changes.waiting.join(" "), waiting, "{yaml}");
            assert_eq!(changes.connection, connection, "{yaml}");
            assert_eq!(now == running, taken.is_empty(), "what waits is not in force: {yaml}");
        }
    }
}
