//! What is allowed but worth a word: risks taken, and keys that are not in force yet.

use super::model::{Owner, Sandbox, Settings, SignatureForm};
use super::problem::Key;

/// Keys that are read and checked, but not yet acted upon: shrinks to nothing.
const NOT_YET: &[&str] = &["opamp.capabilities.accepts_other_connection_settings"];

/// The notes on these settings, with the key that each is about. `set` are the keys that the files have.
#[must_use]
pub(super) fn notes(settings: &Settings, set: &[Key]) -> Vec<(Key, String)> {
    let mut notes: Vec<(Key, String)> =
        risks(settings).into_iter().map(|(key, text)| (Key::of(key), text.to_owned())).collect();
    let not_yet = "is not in force yet: this version of Chiton reads and checks it, no more";
    for key in set {
        let name = key.to_string();
        let known = NOT_YET.contains(&name.as_str()) && !is_off(settings, &name);
        if known && !notes.iter().any(|(noted, text)| noted == key && text == not_yet) {
            notes.push((key.clone(), not_yet.to_owned()));
        }
    }
    if settings.server.proxy.is_some() && !set.contains(&Key::of("opamp.server.proxy")) {
        notes.push((
            Key::of("opamp.server.proxy"),
            "comes from the environment (HTTPS_PROXY)".to_owned(),
        ));
    }
    notes
}

/// Whether a key that is set says what also happens without it.
fn is_off(settings: &Settings, key: &str) -> bool {
    let capabilities = settings.capabilities;
    match key {
        "opamp.capabilities.accepts_other_connection_settings" => {
            !capabilities.accepts_other_connection_settings
        }
        _ => false,
    }
}

fn risks(settings: &Settings) -> Vec<(&'static str, &'static str)> {
    let server = &settings.server;
    let workload = settings.workload.as_ref();
    let external = workload.is_some_and(|own| matches!(own.owner, Owner::External(_)));
    let unsigned = settings.capabilities.accepts_remote_config
        && !settings.remote_config.require_signature
        && workload.is_none_or(|workload| workload.user.is_none());
    let local = server.endpoint.host == "localhost"
        || server
            .endpoint
            .host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    let clear = !server.endpoint.scheme.is_secure() && !local && server.unusable.is_none();
    let packages = &settings.packages;
    let health = &settings.health;
    let scraped = |name: &String| !matches!(name.as_str(), "cpu_usage" | "memory_usage");
    [
        (
            workload.is_none() && health.checks.iter().any(|check| check.kind.is_limit()),
            "opamp.health.checks",
            "memory_max and cpu_max have nothing to measure: there is no opamp.workload",
        ),
        (
            health.scrape.is_none() && health.metrics.iter().any(scraped),
            "opamp.health.metrics",
            "goroutines, spans_rate and export_latency are not reported without opamp.health.scrape, such as \
             http://127.0.0.1:8888/metrics",
        ),
        (
            server.tls.insecure_skip_verify,
            "opamp.server.tls.insecure_skip_verify",
            "anyone on the way can pose as the server: its certificate is not verified",
        ),
        (
            clear && !server.headers.is_empty(),
            "opamp.server.headers",
            "go over the network in clear text: the endpoint's scheme has no TLS",
        ),
        (
            unsigned && external,
            "opamp.capabilities.accepts_remote_config",
            "a server can run code through a config with exec inputs; set opamp.remote_config.require_signature, or \
             have the init system run the workload as a user of its own",
        ),
        (
            unsigned && !external,
            "opamp.capabilities.accepts_remote_config",
            "a server can run code through a config with exec inputs; set opamp.remote_config.require_signature, or \
             confine the workload with opamp.workload.user",
        ),
        (
            settings.sandbox == Sandbox::On && workload.is_some_and(|it| it.user.is_none()) && !external,
            "opamp.sandbox",
            "on has no effect: Chiton starts the workload, which would be bound too; with opamp.workload.user it bounds its \
             capabilities",
        ),
        (
            !packages.require_signature,
            "opamp.packages.require_signature",
            "a server can run any code: packages without a signature are accepted",
        ),
        (
            packages.signature == SignatureForm::Digest,
            "opamp.packages.signature",
            "digest does not protect against downgrades: an old signed package stays good for ever",
        ),
        (
            settings.capabilities.accepts_packages
                && packages.require_signature
                && packages.trusted_keys.is_empty(),
            "opamp.capabilities.accepts_packages",
            "is not offered to the server: opamp.packages.trusted_keys is empty",
        ),
        (
            settings.capabilities.accepts_restart_command && workload.is_none(),
            "opamp.capabilities.accepts_restart_command",
            "is not offered to the server: there is no opamp.workload",
        ),
        (
            settings.capabilities.accepts_restart_command
                && workload.is_some_and(|workload| !workload.restarts()),
            "opamp.capabilities.accepts_restart_command",
            "is not offered to the server: opamp.workload.external has no restart command",
        ),
    ]
    .into_iter()
    .filter_map(|(applies, key, text)| applies.then_some((key, text)))
    .collect()
}
