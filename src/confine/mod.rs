//! What the process itself may do: as little as its settings need (PRODUCT.md §4, promise 8).
//!
//! Two steps. [`begin`] is for whoever keeps state: umask, limits, no core files. [`confine`] comes when the state
//! directory is open and before there is a thread, a child or a byte from the network: capabilities, and where Chiton
//! starts nothing but its named commands, landlock and seccomp. What is given up does not come back; children are
//! given back what they would have had without us (`sys::spawn`).

mod landlock;
mod report;
#[cfg(all(
    feature = "seccomp",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
mod seccomp;
#[cfg(not(all(
    feature = "seccomp",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
mod seccomp {
    pub(super) fn install() -> Result<(), String> {
        Err("this build has no seccomp: it is a cargo feature, for 64-bit processors".to_owned())
    }
}

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, geteuid, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::settings::{Apply, CheckKind, Owner, Sandbox, Settings};
use crate::store::make_directories;
use crate::sys;
pub use report::report;

/// What others shall read is given its mode by name.
const UMASK: Mode = Mode::RWXG.union(Mode::RWXO);
/// Descriptors. At rest there are about twenty; a check takes three while it runs, and a list of hundreds of checks is
/// somebody's. It is what systemd gives by default, so nobody had more without asking; a container's million is cut.
const MAX_DESCRIPTORS: u64 = 1024;
/// Files and directories that others own: keys, settings, exports, a state directory that was copied. And the processes
/// of other users: to end them, and to read in their environment whose they are.
const ALWAYS: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SYS_PTRACE);
/// To become `workload.user`, and to leave that user no way to more.
const TO_CHANGE_USER: CapabilitySet =
    CapabilitySet::SETUID.union(CapabilitySet::SETGID).union(CapabilitySet::SETPCAP);

/// What the kernel has agreed to; none of it can be undone.
struct InForce {
    /// The ABI, or why not.
    landlock: Result<i32, String>,
    /// Or why not.
    seccomp: Result<(), String>,
    no_new_privs: bool,
}

static IN_FORCE: OnceLock<InForce> = OnceLock::new();

/// Umask, limits, no core files: for whoever keeps state. The command line's other half keeps what it was started with.
pub fn begin() {
    let umask = rustix::process::umask(UMASK);
    let (core, files) = (getrlimit(Resource::Core), getrlimit(Resource::Nofile));
    // Soft limits alone: children are given them back, and raising a hard one takes a capability.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), ..core });
    let few = files.current.map_or(MAX_DESCRIPTORS, |most| most.min(MAX_DESCRIPTORS));
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(few), ..files });
    sys::give_back_to_children(sys::Inherited { umask, core, files });
    // Keys and header values are in our memory: no core file has them, and no process of the same user reads them.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// What settings allow to give up.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Capabilities to keep.
    keep: CapabilitySet,
    /// It starts something else than systemctl.
    starts: bool,
    /// And some of that as the user that Chiton is.
    lends: bool,
    /// Whether what binds children too may be put in force, or why not.
    sandbox: Result<(), &'static str>,
}

impl Plan {
    fn new(settings: &Settings) -> Self {
        let workload = settings.workload.as_ref();
        let mut keep = ALWAYS;
        if let Some(workload) = workload {
            if workload.user.is_some() {
                keep |= TO_CHANGE_USER;
            }
            if workload.oom_score_adj.is_some() {
                keep |= CapabilitySet::SYS_RESOURCE;
            }
            let named = workload.ambient_capabilities.iter();
            keep |= named.filter_map(|name| sys::capability(name)).collect();
        }
        let own = workload.is_some_and(|workload| matches!(workload.owner, Owner::Chiton { .. }));
        let acts = acting(settings).any(|words| !is_systemctl(words));
        let starts = own || acts || probes(settings).next().is_some();
        let user = workload.and_then(|workload| workload.user.as_deref());
        let root = |user: &str| matches!(user.split(':').next(), Some("root" | "0"));
        let other = user.is_some_and(|user| !root(user));
        let (after, changed) = (&settings.packages.after_install, &settings.credentials.on_change);
        let lends = starts && !(other && after.is_empty() && changed.is_empty());
        let sandbox = match settings.sandbox {
            Sandbox::Off => Err("opamp.sandbox is off"),
            _ if own => Err("Chiton starts the workload, which would be bound too"),
            Sandbox::Auto if acts => Err(
                "a command of the settings (restart, reload, apply, on_change, after_install) may start the workload or \
                     change the system, and would be bound too; opamp.sandbox: on says that none does",
            ),
            Sandbox::Auto | Sandbox::On => Ok(()),
        };
        Self { keep, starts, lends, sandbox }
    }
}

/// Commands that act on the system: what they start lives on.
fn acting(settings: &Settings) -> impl Iterator<Item = &[String]> {
    let external = settings.workload.as_ref().and_then(|workload| match &workload.owner {
        Owner::External(external) => Some([&external.restart, &external.reload]),
        Owner::Chiton { .. } => None,
    });
    let applies = [&settings.remote_config.apply, &settings.packages.apply];
    let applies = applies.into_iter().filter_map(|apply| match apply {
        Apply::Command(words) => Some(words),
        Apply::Restart | Apply::Reload => None,
    });
    let all = external.into_iter().flatten().chain(applies);
    all.chain([&settings.credentials.on_change, &settings.packages.after_install])
        .map(Vec::as_slice)
        .filter(|words| !words.is_empty())
}

/// Dry runs and checks: what they start ends with them.
fn probes(settings: &Settings) -> impl Iterator<Item = &[String]> {
    let packages = &settings.packages;
    let dry = [&settings.remote_config.validate, &packages.verify];
    let checks = settings.health.checks.iter().filter_map(|check| match &check.kind {
        CheckKind::Exec(words) => Some(words),
        _ => None,
    });
    dry.into_iter().chain(checks).map(Vec::as_slice).filter(|words| !words.is_empty())
}

/// It asks the init system, which starts things in a world of its own.
fn is_systemctl(words: &[String]) -> bool {
    words.first().and_then(|program| Path::new(program).file_name()) == Some("systemctl".as_ref())
}

/// Gives up for good what the settings do not need. What could not be done, as lines for the log.
pub fn confine(settings: &Settings) -> Vec<String> {
    let plan = Plan::new(settings);
    let mut problems = Vec::new();
    let sets = capabilities(None).ok();
    let admin = sets.is_some_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    let inherited = rustix::thread::no_new_privs().unwrap_or(false);
    // Where nothing is started that could gain anything; or where the sandbox was asked for and takes it.
    let wanted = !plan.starts || (settings.sandbox == Sandbox::On && !admin);
    let set = plan.sandbox.is_ok() && wanted && rustix::thread::set_no_new_privs(true).is_ok();
    let no_new_privs = set || inherited;
    let allowed = match plan.sandbox {
        Ok(()) if no_new_privs || admin => Ok(()),
        Ok(()) => Err(
            "takes CAP_SYS_ADMIN or no_new_privs, with which a command of the settings may not work; \
                       opamp.sandbox: on says that all do",
        ),
        Err(why) => Err(why),
    };
    let landlock = allowed.map_err(str::to_owned).and_then(|()| {
        let (writable, missing) = directories(settings);
        // A rule is about what is there: what is mounted or made later could not be written.
        let whole = missing.is_empty();
        problems.extend(missing);
        if whole {
            landlock::restrict(&writable)
        } else {
            Err("a directory that Chiton writes to could not be made".to_owned())
        }
    });
    let seccomp = allowed.map_err(str::to_owned).and_then(|()| seccomp::install());
    if let Some(sets) = sets.filter(|_| geteuid().is_root())
        && let Err(error) = reduce(sets, plan.keep, plan.lends)
    {
        problems.push(format!("capabilities could not be given up: {error}"));
    }
    let _ = IN_FORCE.set(InForce { landlock, seccomp, no_new_privs: set });
    problems
}

/// As another user than root there is nothing to give up: what it has, somebody meant it to have.
///
/// What root's children are permitted they get from the bounding set when they execute their program. Had they less
/// before, the kernel would take that for a gain and forget the signal that ends them with us (`commit_creds`); and
/// where we were started with `no_new_privs`, they would not get it at all.
fn reduce(sets: CapabilitySets, keep: CapabilitySet, lend: bool) -> rustix::io::Result<()> {
    let permitted = if lend { sets.permitted } else { sets.permitted & keep };
    // Without SYS_PTRACE (containers) whose a child is can be read only by who has as much in force as it.
    let reads = sets.effective.contains(CapabilitySet::SYS_PTRACE);
    let effective = if lend && !reads { sets.effective } else { sets.effective & keep };
    // A service manager that has taken them may have taken the call too.
    if (effective, permitted) == (sets.effective, sets.permitted) {
        return Ok(());
    }
    set_capabilities(None, CapabilitySets { effective, permitted, ..sets })
}

/// Where Chiton writes: these directories are made now, since a rule is about what is there. With it, what of that
/// cannot be.
fn directories(settings: &Settings) -> (Vec<PathBuf>, Vec<String>) {
    let socket = settings.status_socket.parent().map(Path::to_owned);
    // A workload of another user passes through to its packages.
    let own = [settings.state_dir.clone(), settings.packages_dir.clone()].map(|path| (path, 0o711));
    let shared = socket.into_iter().chain(settings.credentials.export.clone());
    let all = own.into_iter().chain(shared.map(|path| (path, 0o755)));
    let (mut made, mut missing) = (Vec::new(), Vec::new());
    for (path, mode) in all {
        match make_directories(&path, mode) {
            Ok(()) => made.push(path),
            Err(error) => {
                let text = "until a restart of Chiton there is no landlock";
                missing.push(format!("{}: {error}: {text}", path.display()));
            }
        }
    }
    (made, missing)
}

/// What settings that were read again want, and what was given up for good.
#[must_use]
pub fn outgrown(settings: &Settings) -> Option<String> {
    let in_force = IN_FORCE.get()?;
    let plan = Plan::new(settings);
    let bound = in_force.landlock.is_ok() || in_force.seccomp.is_ok();
    let why = match plan.sandbox {
        Err(why) if bound => why,
        Ok(()) if in_force.no_new_privs && plan.starts && settings.sandbox == Sandbox::Auto => {
            "there are commands now, and they can gain no privileges"
        }
        _ => return None,
    };
    Some(format!("the sandbox that is in force cannot be left without a restart of Chiton: {why}"))
}

/// What to say of a command that failed with this output, where the sandbox may be why.
#[must_use]
pub fn hint(output: &str) -> &'static str {
    let bound = IN_FORCE.get().is_some_and(|it| it.landlock.is_ok() || it.seccomp.is_ok());
    let refused = ["ermission denied", "not permitted", "EACCES", "EPERM"];
    if bound && refused.iter().any(|words| output.contains(words)) {
        " (Chiton's sandbox lets it write only below state_dir, packages_dir, /tmp, /var/tmp and /run; if it needs more: \
         opamp.sandbox: off)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use super::*;

    fn plan(yaml: &str) -> Plan {
        let text = format!("opamp: {{ server: {{ endpoint: 'ws://a' }}, {yaml} }}");
        let environment = BTreeMap::<&str, &str>::new();
        Plan::new(&crate::settings::from_text(&text, "test", &environment).unwrap().settings)
    }

    #[test]
    fn only_what_the_settings_need_is_kept() {
        let kept = |yaml: &str| plan(yaml).keep.difference(ALWAYS);
        assert_eq!(kept("workload: { command: [/a] }"), CapabilitySet::empty());
        assert_eq!(kept("workload: { external: { unit: a } }"), CapabilitySet::empty());
        assert_eq!(kept("workload: { command: [/a], user: a }"), TO_CHANGE_USER);
        assert_eq!(
            kept(
                "workload: { command: [/a], oom_score_adj: -5, ambient_capabilities: [cap_net_raw, cap_sys_time] }"
            ),
            CapabilitySet::SYS_RESOURCE | CapabilitySet::NET_RAW | CapabilitySet::SYS_TIME
        );
    }

    /// Who is root already would gain by executing: the kernel would forget the signal that ends the workload with us.
    #[test]
    fn what_runs_as_root_is_lent_what_it_needs() {
        for (yaml, lends) in [
            ("workload: { command: [/a] }", true),
            ("workload: { command: [/a], user: root }", true),
            ("workload: { command: [/a], user: '0:0' }", true),
            ("workload: { command: [/a], user: otel }", false),
            ("workload: { command: [/a], user: otel }, credentials: { on_change: [/b] }", true),
            ("workload: { command: [/a], user: otel }, packages: { after_install: [/b] }", true),
            ("workload: { external: { unit: a } }", false),
        ] {
            assert_eq!(plan(yaml).lends, lends, "{yaml}");
        }
    }

    /// What a child needs that outlives its command must not be taken from it.
    #[test]
    fn the_sandbox_is_there_only_where_nothing_lives_on_in_it() {
        for (yaml, sandbox, starts) in [
            ("log: {}", true, false),
            ("sandbox: off", false, false),
            ("workload: { command: [/a] }", false, true),
            ("sandbox: on, workload: { command: [/a] }", false, true),
            ("workload: { external: { unit: a } }", true, false),
            (
                "workload: { external: { unit: a, restart: [/bin/systemctl, restart, b] } }",
                true,
                false,
            ),
            ("workload: { external: { unit: a, restart: [service, a, restart] } }", false, true),
            (
                "sandbox: on, workload: { external: { unit: a, restart: [service, a, restart] } }",
                true,
                true,
            ),
            ("workload: { external: { pid_file: /a, reload: [rc-service, a] } }", false, true),
            ("remote_config: { apply: [/a] }", false, true),
            ("packages: { apply: [/a] }", false, true),
            ("credentials: { on_change: [/a] }", false, true),
            ("remote_config: { validate: [/a] }", true, true),
            ("packages: { verify: [/a] }", true, true),
            ("packages: { after_install: [/a] }", false, true),
            ("sandbox: on, packages: { after_install: [/a] }", true, true),
            ("health: { checks: [{ exec: [/a] }] }", true, true),
            ("health: { checks: [{ tcp: 'a:1' }] }", true, false),
        ] {
            let plan = plan(yaml);
            assert_eq!((plan.sandbox.is_ok(), plan.starts), (sandbox, starts), "{yaml}");
        }
    }
}
