//! `opamp.health`.

use core::time::Duration;

use super::super::endpoint::split_port;
use super::super::model::{Check, CheckKind, Health, HttpTarget};
use super::super::problem::shorten;
use super::super::units::Span;
use super::super::walker::{Section, Wants};
use super::common::{DAY, MINUTE, SECOND, SHORTEST};
use super::server::heartbeat_span;

/// What can be reported of a workload.
pub(super) const METRICS: [&str; 5] =
    ["cpu_usage", "memory_usage", "goroutines", "spans_rate", "export_latency"];
/// How long a check may take where it does not say.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Rounds of checks in a row.
const ROUNDS: core::ops::RangeInclusive<u32> = 1..=100;
/// Memory that a check may allow, bytes.
const MEMORY: core::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 40);
/// The most cores that a check may allow.
const MAX_CORES: f64 = 1024.0;
const KINDS: &str = "exactly one of http, tcp, exec, memory_max, cpu_max";

/// The section, and `report_interval`, the older name of the heartbeat's interval.
pub(super) fn health(section: &mut Section<'_, '_, '_>) -> (Health, Option<Duration>) {
    let report_interval = section.optional_duration("report_interval", heartbeat_span());
    let metrics = section.list("metrics", "a list of names", |name| {
        if METRICS.contains(&name) {
            return Ok(name.to_owned());
        }
        Err(format!("{:?} is not allowed; allowed are {}", shorten(name), METRICS.join(", ")))
    });
    let metrics_given = section.has("metrics");
    let health = Health {
        check_interval: section.duration(
            "check_interval",
            Span::new(SHORTEST, DAY),
            SECOND.saturating_mul(10),
        ),
        unhealthy_after: section.number("unhealthy_after", ROUNDS, 2),
        healthy_after: section.number("healthy_after", ROUNDS, 1),
        metrics_interval: section.duration(
            "metrics_interval",
            Span::new(SECOND, DAY),
            MINUTE.saturating_mul(5),
        ),
        metrics: if metrics_given {
            metrics
        } else {
            METRICS.iter().take(2).map(|name| (*name).to_owned()).collect()
        },
        scrape: section.parsed("scrape", Wants::Text("a URL"), http_target),
        checks: section.sections("checks", "a list of checks", check),
    };
    (health, report_interval)
}

fn check(section: &mut Section<'_, '_, '_>) -> Option<Check> {
    let before = section.problems();
    let timeout = section.duration("timeout", Span::new(SHORTEST, MINUTE), CHECK_TIMEOUT);
    let kinds = [
        section.parsed("http", Wants::Text("a URL"), http_target).map(CheckKind::Http),
        section.parsed("tcp", Wants::Text("host:port"), tcp_target),
        section.command("exec").map(CheckKind::Exec),
        section.optional_size("memory_max", &MEMORY).map(CheckKind::MemoryMax),
        section.parsed("cpu_max", Wants::Any("a number of cores"), cores).map(CheckKind::CpuMax),
    ];
    let mut given = kinds.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(CheckKind::Exec(command)), None) if command.is_empty() => {
            section.report("exec", "is an empty list; allowed is a program and its arguments");
            None
        }
        (Some(kind), None) => Some(Check { kind, timeout }),
        (Some(_), Some(_)) => {
            section.report_self(format!("has several kinds; allowed is {KINDS}"));
            None
        }
        (None, _) => {
            if section.problems() == before && section.may_lack() {
                section.report_self(format!("checks nothing; allowed is {KINDS}"));
            }
            None
        }
    }
}

fn http_target(url: &str) -> Result<HttpTarget, String> {
    const ALLOWED: &str = "allowed is a URL such as http://127.0.0.1:13133/";
    if url.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("has white space or control characters in it; {ALLOWED}"));
    }
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(format!(
            "does not begin with http:// (no TLS is spoken to a local check); {ALLOWED}"
        ));
    };
    let split = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at_checked(split).unwrap_or((rest, ""));
    if authority.contains('@') || path.contains('#') {
        return Err(format!("has user information or a fragment in it; {ALLOWED}"));
    }
    let (host, port) = split_port(authority, 80).map_err(|error| format!("{error}; {ALLOWED}"))?;
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(HttpTarget { host, port, path })
}

fn tcp_target(text: &str) -> Result<CheckKind, String> {
    const ALLOWED: &str = "allowed is host:port, such as 127.0.0.1:4317";
    match split_port(text, 0).map_err(|error| format!("{error}; {ALLOWED}"))? {
        (_, 0) => Err(format!("has no port; {ALLOWED}")),
        (host, port) => Ok(CheckKind::Tcp { host, port }),
    }
}

fn cores(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cores) if cores > 0.0 && cores <= MAX_CORES => Ok(cores),
        _ => Err(format!(
            "{:?} is not allowed; allowed is a number of cores such as 0.9: above 0, up to {MAX_CORES}",
            shorten(text)
        )),
    }
}
