//! Facts about the host, by uname and read from /proc, /sys and /etc; what is missing is left out.

use std::fs;

use crate::agent::Host;
use crate::agent::identity::Hardware;
use crate::sha256::Sha256;

/// Bytes read of any of these files.
const MAX_FACT: usize = 4096;

/// What is reported about the host.
#[must_use]
pub fn host() -> Host {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let os_version =
        pretty.map(|name| name.trim_matches('"').to_owned()).filter(|name| !name.is_empty());
    // Not from /proc/sys: a service may be shown nothing of /proc but processes (systemd's ProcSubset).
    let uname = rustix::system::uname();
    let kernel = uname.release().to_str().ok().map(str::to_owned);
    Host {
        name: uname.nodename().to_str().unwrap_or_default().trim().to_owned(),
        os_version: os_version.or(kernel).unwrap_or_default(),
        arch: arch(),
    }
}

/// The architecture in OpenTelemetry's words (`host.arch`).
const fn arch() -> &'static str {
    if cfg!(target_arch = "x86_64") {
        "amd64"
    } else if cfg!(target_arch = "x86") {
        "x86"
    } else if cfg!(target_arch = "aarch64") {
        "arm64"
    } else if cfg!(target_arch = "arm") {
        "arm32"
    } else {
        std::env::consts::ARCH
    }
}

/// The machine-id, or nothing on a system without one.
#[must_use]
pub fn machine_id() -> String {
    fact("/etc/machine-id").or_else(|| fact("/var/lib/dbus/machine-id")).unwrap_or_default()
}

/// Digests of what identifies the hardware.
#[must_use]
pub fn hardware() -> Hardware {
    let serial = fact("/proc/device-tree/serial-number")
        .or_else(|| fact("/sys/firmware/devicetree/base/serial-number"));
    let dmi =
        fact("/sys/class/dmi/id/product_uuid").or_else(|| fact("/sys/class/dmi/id/product_serial"));
    let machine = Some(machine_id()).filter(|id| !id.is_empty());
    [("device-tree", serial), ("dmi", dmi), ("machine-id", machine)]
        .into_iter()
        .filter_map(|(source, value)| {
            let mut hasher = Sha256::new();
            hasher.update(source.as_bytes());
            hasher.update([0]);
            hasher.update(value?.as_bytes());
            Some((source.to_owned(), hasher.finalize()))
        })
        .collect()
}

/// One line of a small file; [`None`] where there is none, or nothing in it.
fn fact(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.trim_matches(['\0', ' ', '\n', '\t']);
    (!line.is_empty() && line.len() <= MAX_FACT).then(|| line.to_owned())
}
