//! `chiton version`.

use super::print;
use crate::clock::{BUILD_TIME, Wall};
use crate::json::Json;
use crate::log::rfc3339;

/// The protocol that we speak.
const OPAMP_VERSION: &str = "0.20.0";

pub(super) fn run(json: bool) -> u8 {
    let version = env!("CARGO_PKG_VERSION");
    let target = env!("CHITON_TARGET");
    let build = rfc3339(Wall(core::time::Duration::from_secs(BUILD_TIME)));
    if json {
        let document = Json::object([
            ("version", Json::text(version)),
            ("target", Json::text(target)),
            ("build", Json::text(build)),
            ("opamp", Json::text(OPAMP_VERSION)),
        ]);
        return print(&format!("{document}\n"));
    }
    print(&format!("chiton {version} ({target}, built {build}, OpAMP {OPAMP_VERSION})\n"))
}
