//! What is in force, as the kernel tells it.

use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, geteuid, getrlimit};
use rustix::thread::{
    CapabilitySet, SecureComputingMode, capabilities, no_new_privs, secure_computing_mode,
};

use super::IN_FORCE;
use crate::json::Json;

/// The section `confinement` of the status document. That landlock is in force cannot be asked: it is what the kernel
/// has answered, for good.
#[must_use]
pub fn report() -> Json {
    let in_force = IN_FORCE.get();
    let landlock = in_force.map(|it| &it.landlock);
    let seccomp = in_force.map(|it| &it.seccomp);
    let limit = |resource| Json::or_null(getrlimit(resource).current.map(Json::Number));
    let sets = capabilities(None).ok();
    let names = |set: CapabilitySet| {
        let names: Vec<_> = set.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect();
        Json::Text(names.join(" "))
    };
    let why = |error: Option<&String>| Json::or_null(error.map(Json::text));
    let abi = landlock.and_then(|it| it.as_ref().ok());
    Json::object([
        ("user", Json::Number(geteuid().as_raw().into())),
        ("capabilities", Json::or_null(sets.map(|sets| names(sets.effective)))),
        // Not in force: there for children to be born with.
        (
            "capabilities_lent",
            Json::or_null(sets.map(|sets| names(sets.permitted.difference(sets.effective)))),
        ),
        ("no_new_privs", Json::or_null(no_new_privs().ok().map(Json::Bool))),
        ("umask", Json::or_null(umask().map(Json::Text))),
        ("core_limit_bytes", limit(Resource::Core)),
        ("dumpable", Json::Bool(!matches!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable)))),
        ("open_files_limit", limit(Resource::Nofile)),
        (
            "landlock",
            Json::object([
                ("in_force", Json::Bool(abi.is_some())),
                (
                    "abi",
                    Json::or_null(abi.and_then(|abi| u64::try_from(*abi).ok()).map(Json::Number)),
                ),
                ("why_not", why(landlock.and_then(|it| it.as_ref().err()))),
            ]),
        ),
        (
            "seccomp",
            Json::object([
                // A container's filter counts.
                (
                    "in_force",
                    Json::Bool(matches!(secure_computing_mode(), Ok(SecureComputingMode::Filter))),
                ),
                ("why_not", why(seccomp.and_then(|it| it.as_ref().err()))),
            ]),
        ),
    ])
}

/// To ask for it by its system call is to change it. Linux 4.7.
fn umask() -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| Some(line.strip_prefix("Umask:")?.trim().to_owned()))
}
