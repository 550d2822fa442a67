//! What the benches share: a server with mutual TLS, figures from /proc, figures in a row, documents.
#![expect(dead_code, reason = "each bench uses a part")]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "parts of small numbers"
)]
#![expect(unreachable_pub, reason = "a module of several binaries")]

pub mod document;
pub mod package;
pub mod peers;
pub mod sample;
pub mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Only a broken agent makes a bench wait this long.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const MIB: usize = 1 << 20;

/// Where cargo builds.
pub fn target_dir() -> PathBuf {
    PathBuf::from(std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned()))
}

/// The static binary for a target triple.
pub fn binary_for(triple: &str) -> PathBuf {
    target_dir().join(triple).join("release/chiton")
}

/// Those that this machine runs by itself.
pub fn native_triples() -> &'static [(&'static str, &'static str)] {
    match std::env::consts::ARCH {
        "aarch64" => &[
            ("aarch64", "aarch64-unknown-linux-musl"),
            ("armv7", "armv7-unknown-linux-musleabihf"),
        ],
        _ => &[("x86_64", "x86_64-unknown-linux-musl"), ("i686", "i686-unknown-linux-musl")],
    }
}

pub fn runs(binary: &Path) -> bool {
    let version = Command::new(binary).arg("version").stdout(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// A setting of the bench by the environment.
pub fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A directory in memory where there is one; whether it is.
pub fn in_memory() -> (tempfile::TempDir, bool) {
    match tempfile::tempdir_in("/dev/shm") {
        Ok(dir) => (dir, true),
        Err(_) => (tempfile::tempdir().unwrap(), false),
    }
}

/// A process of ours: ended when it is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// SIGTERM, and the end.
    pub fn end(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = Command::new("kill").arg(self.pid().to_string()).status();
            let _ = self.0.wait();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What differs between the agents of the benches.
#[derive(Clone, Default)]
pub struct Setup {
    /// More keys of `opamp`, a line each.
    pub opamp: Vec<String>,
    /// `opamp.workload.command`.
    pub command: Option<String>,
    /// Entries of `opamp.remote_config` beside the usual.
    pub config: Option<String>,
    /// Through this program and its arguments.
    pub through: Vec<String>,
}

/// Starts Chiton in a home that [`server::Server::start`] has put certificates into.
pub fn chiton(binary: &Path, home: &Path, port: u16, setup: &Setup) -> Process {
    let here = home.display();
    let command = setup.command.clone().unwrap_or_else(|| "[/bin/sleep, \"100000\"]".to_owned());
    let config = setup.config.clone().unwrap_or_default();
    let mut settings = format!(
        "opamp:
  server:
    endpoint: wss://localhost:{port}/v1/opamp
    tls: {{ ca_file: {here}/ca.pem, cert_file: {here}/agent.pem, key_file: {here}/agent.key }}
    reconnect: {{ initial: 10ms, max: 10ms }}
  capabilities: {{ accepts_remote_config: true }}
  workload: {{ command: {command} }}
  remote_config: {{ rollback: {{ interval: 10ms, successes: 1 }}, min_interval: 0{config} }}
  state_dir: {here}/state
  status_socket: {here}/status.sock
  log: {{ level: error }}
"
    );
    for line in &setup.opamp {
        settings.push_str(&format!("  {line}\n"));
    }
    fs::write(home.join("chiton.yaml"), settings).unwrap();
    let mut through = setup.through.iter();
    let mut command = match through.next() {
        Some(program) => Command::new(program),
        None => Command::new(binary),
    };
    if !setup.through.is_empty() {
        command.args(through).arg(binary);
    }
    let command = command.arg("run").arg("--config").arg(home.join("chiton.yaml"));
    Process(command.stdin(Stdio::null()).spawn().unwrap())
}

/// The value below which so much of all lies.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = ((values.len() as f64 * part).ceil() as usize).clamp(1, values.len());
    *values.get(at - 1).unwrap()
}

/// A configuration of about this size that every reader of YAML takes, another for each number.
pub fn yaml(number: u32, size: usize) -> String {
    let mut text = format!("number: {number}\nprocessors:\n");
    let mut line = 0;
    while text.len() < size {
        text.push_str(&format!(
            "  attributes/{line}: {{ actions: [insert, update], key: k{line} }}\n"
        ));
        line += 1;
    }
    text.truncate(text.get(..size).unwrap_or(&text).rfind('\n').map_or(0, |end| end + 1));
    text
}
