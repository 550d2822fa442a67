//! `opamp.workload`.

use core::time::Duration;
use std::collections::BTreeMap;
use std::path::Path;

use rustix::thread::CapabilitySet;

use super::super::model::{
    Degrade, DegradeAction, DegradeWhen, External, ExternalBy, Owner, Workload,
};
use super::super::problem::shorten;
use super::super::units::Span;
use super::super::walker::{Section, Wants};
use super::common::{DAY, MINUTE, SECOND, SHORTEST, backoff};

/// How long a remedy is not tried again where it does not say.
const COOLDOWN: Duration = Duration::from_secs(300);
/// Keys that mean something only where Chiton starts the process.
const OWN_PROCESS: [&str; 5] = ["env", "user", "ambient_capabilities", "oom_score_adj", "restart"];

pub(super) fn workload(section: &mut Section<'_, '_, '_>) -> Option<Workload> {
    let owner = owner(section);
    if matches!(owner, Some(Owner::External(_))) {
        for name in OWN_PROCESS {
            if section.has(name) {
                section.report(
                    name,
                    "has no meaning beside external: the init system starts the process",
                );
            }
        }
    }
    let env = env(section);
    let user = section.parsed("user", Wants::Any("a name or uid:gid"), user);
    let ambient_capabilities =
        section.list("ambient_capabilities", "a list of capabilities", capability);
    let oom_score_adj = section.optional_number("oom_score_adj", -1000_i16..=1000);
    let stop = Span::new(SHORTEST, MINUTE.saturating_mul(10));
    let stop_timeout = section.duration("stop_timeout", stop, SECOND.saturating_mul(10));
    let restart = section.within("restart", |own| backoff(own, SECOND, MINUTE));
    let degrade = section.sections("degrade", "a list of when and do", degrade);
    Some(Workload {
        owner: owner?,
        env,
        user,
        ambient_capabilities,
        oom_score_adj,
        stop_timeout,
        restart,
        degrade,
    })
}

fn owner(section: &mut Section<'_, '_, '_>) -> Option<Owner> {
    const ALLOWED: &str = "allowed is a command as a list, such as [/usr/bin/otelcol, --config, \
                           \"{config_file}\"], or external";
    let before = section.problems();
    let external = section.has("external").then(|| section.within("external", external));
    let command = section.command("command");
    match (command, external) {
        (Some(_), Some(_)) => {
            section.report("command", "stands beside external; allowed is one of the two");
            None
        }
        (Some(command), None) if command.is_empty() => {
            section.report("command", format!("is an empty list; {ALLOWED}"));
            None
        }
        (Some(command), None) => Some(Owner::Chiton { command }),
        (None, Some(external)) => external.map(Owner::External),
        (None, None) => {
            if section.problems() == before && !section.is_broken() {
                section.report("command", format!("is missing; {ALLOWED}"));
            }
            None
        }
    }
}

fn external(section: &mut Section<'_, '_, '_>) -> Option<External> {
    const ALLOWED: &str = "exactly one of unit, pid_file, cgroup";
    let before = section.problems();
    let unit = section.parsed("unit", Wants::Text("a unit's name"), |name| {
        let good = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if !name.is_empty() && !name.starts_with('-') && name.chars().all(good) {
            return Ok(ExternalBy::Unit(name.to_owned()));
        }
        Err(format!(
            "{:?} is not allowed; allowed is a unit such as otelcol.service",
            shorten(name)
        ))
    });
    let found = [
        unit,
        section.path_of("pid_file").map(ExternalBy::PidFile),
        section.parsed("cgroup", Wants::Text("a cgroup's path"), cgroup),
    ];
    let reload = section.command("reload").unwrap_or_default();
    let restart = section.command("restart").unwrap_or_default();
    let mut found = found.into_iter().flatten();
    match (found.next(), found.next()) {
        (Some(by), None) => return Some(External { by, reload, restart }),
        (Some(_), Some(_)) => section.report_self(format!("has several; allowed is {ALLOWED}")),
        (None, _) if section.problems() == before && section.may_lack() => {
            section.report_self(format!("names nothing; allowed is {ALLOWED}"));
        }
        _ => {}
    }
    None
}

/// A directory, or the path below the mount point as `/proc/PID/cgroup` and `systemd-cgls` show it, without its first
/// slash.
fn cgroup(path: &str) -> Result<ExternalBy, String> {
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    if path.strip_prefix('/').unwrap_or(path).trim_end_matches('/').split('/').any(odd) {
        return Err(format!(
            "{:?} is not allowed; allowed is a path such as system.slice/otelcol.service, below /sys/fs/cgroup",
            shorten(path)
        ));
    }
    // An absolute path stays as it is.
    Ok(ExternalBy::Cgroup(Path::new("/sys/fs/cgroup").join(path)))
}

fn env(section: &mut Section<'_, '_, '_>) -> BTreeMap<String, String> {
    let entries = section.map("env", Wants::Text("text"), false, |name, value| {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err("is not the name of a variable; allowed is text without =".to_owned());
        }
        Ok(value.to_owned())
    });
    entries.into_iter().collect()
}

/// `name` or `uid:gid`; a mixture of both does no harm. Whether there is such a user is looked up later.
fn user(text: &str) -> Result<String, String> {
    let good = |part: &str| {
        if !part.is_empty() && part.chars().all(|c| c.is_ascii_digit()) {
            // The last number means "unchanged" to the kernel.
            return part.parse::<u32>().is_ok_and(|id| id != u32::MAX);
        }
        let inner = |c: char| c.is_ascii_alphanumeric() || "_-.$".contains(c);
        !part.is_empty() && !part.starts_with(['-', '.']) && part.chars().all(inner)
    };
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    if good(user) && good(group) {
        return Ok(text.to_owned());
    }
    Err(format!("{:?} is not allowed; allowed is a name such as otel, or uid:gid", shorten(text)))
}

fn capability(name: &str) -> Result<String, String> {
    let known = |rest: &str| CapabilitySet::from_name(&rest.to_ascii_uppercase()).is_some();
    let lower = !name.contains(|c: char| c.is_ascii_uppercase());
    if lower && name.strip_prefix("cap_").is_some_and(known) {
        return Ok(name.to_owned());
    }
    Err(format!(
        "{:?} is not allowed; allowed is a name such as cap_net_bind_service",
        shorten(name)
    ))
}

fn degrade(section: &mut Section<'_, '_, '_>) -> Option<Degrade> {
    const WHEN: &str = "memory_max, cpu_max or crash_loop";
    const DO: &str = "restart, or use: with the path of a configuration";
    let cooldown = section.duration("cooldown", Span::new(SECOND, DAY), COOLDOWN);
    let before = section.problems();
    let when = section.parsed("when", Wants::Text(WHEN), |word| match word {
        "memory_max" => Ok(DegradeWhen::MemoryMax),
        "cpu_max" => Ok(DegradeWhen::CpuMax),
        "crash_loop" => Ok(DegradeWhen::CrashLoop),
        other => Err(format!("{:?} is not allowed; allowed is {WHEN}", shorten(other))),
    });
    let action = if section.is_scalar("do") {
        section.parsed("do", Wants::Text(DO), |word| match word {
            "restart" => Ok(DegradeAction::Restart),
            other => Err(format!("{:?} is not allowed; allowed is {DO}", shorten(other))),
        })
    } else {
        section.section("do").path_of("use").map(DegradeAction::Use)
    };
    if section.problems() == before && section.may_lack() {
        if when.is_none() {
            section.report("when", format!("is missing; allowed is {WHEN}"));
        }
        if action.is_none() {
            section.report("do", format!("is missing; allowed is {DO}"));
        }
    }
    Some(Degrade { when: when?, action: action?, cooldown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        for good in ["otel", "otel:otel", "1000:1000", "1000", "_svc", "svc$", "0:0"] {
            assert_eq!(user(good).as_deref(), Ok(good));
        }
        for bad in ["", "otel:", ":1", "a b", "a:b:c", "-x", "4294967295:1", "99999999999:1"] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }
}
