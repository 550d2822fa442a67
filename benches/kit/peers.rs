//! The nearest peers, built from `benches/peers` where Go and the module proxy are there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Process, target_dir};

/// A peer, or why it is not had.
pub struct Peer {
    pub name: &'static str,
    pub binary: Result<PathBuf, String>,
}

/// Builds what is missing. `CHITON_BENCH_PEERS=0` leaves them out.
pub fn all() -> Vec<Peer> {
    let out = target_dir().join("peers");
    let goagent = build("benches/peers/goagent", &out, "goagent", ".");
    let stand_in = build("benches/peers/goagent", &out, "collector", "./collector");
    let package = "github.com/open-telemetry/opentelemetry-collector-contrib/cmd/opampsupervisor";
    let supervisor = build("benches/peers/supervisor", &out, "opampsupervisor", package);
    vec![
        Peer { name: "goagent (opamp-go 0.23)", binary: goagent },
        Peer { name: "opampsupervisor 0.149", binary: stand_in.and(supervisor) },
    ]
}

fn build(module: &str, out: &Path, name: &str, package: &str) -> Result<PathBuf, String> {
    if std::env::var("CHITON_BENCH_PEERS").is_ok_and(|it| it == "0") {
        return Err("left out by CHITON_BENCH_PEERS=0".to_owned());
    }
    fs::create_dir_all(out).unwrap();
    let binary = fs::canonicalize(out).unwrap().join(name);
    let go = Command::new("go")
        .args(["-C", module, "build", "-trimpath", "-ldflags=-s -w", "-o"])
        .arg(&binary)
        .arg(package)
        .env("CGO_ENABLED", "0")
        .output();
    match go {
        Ok(done) if done.status.success() => Ok(binary),
        // What was built once is as good.
        _ if binary.exists() => Ok(binary),
        Ok(_) => Err("its modules could not be had or built".to_owned()),
        Err(_) => Err("Go is not installed".to_owned()),
    }
}

/// Starts one of them.
pub fn start(peer: &str, binary: &Path, home: &Path, port: u16) -> Process {
    let here = home.display();
    let mut command = Command::new(binary);
    let endpoint = format!("wss://localhost:{port}/v1/opamp");
    if peer.starts_with("goagent") {
        command.args(["-endpoint", &endpoint, "-dir"]).arg(home);
        for (flag, file) in [("-ca", "ca.pem"), ("-cert", "agent.pem"), ("-key", "agent.key")] {
            command.arg(flag).arg(home.join(file));
        }
        command.args(["--", "/bin/sleep", "100000"]);
    } else {
        let collector = binary.with_file_name("collector");
        let settings = format!(
            "server:
  endpoint: {endpoint}
  tls: {{ ca_file: {here}/ca.pem, cert_file: {here}/agent.pem, key_file: {here}/agent.key }}
capabilities: {{ reports_effective_config: true, reports_health: true, accepts_remote_config: true, reports_remote_config: true, reports_own_metrics: false, reports_own_logs: false, reports_own_traces: false }}
agent: {{ executable: {} }}
storage: {{ directory: {here}/storage }}
telemetry: {{ logs: {{ level: error }} }}
",
            collector.display()
        );
        fs::write(home.join("supervisor.yaml"), settings).unwrap();
        command.arg("--config").arg(home.join("supervisor.yaml"));
    }
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Process(command.spawn().unwrap())
}
