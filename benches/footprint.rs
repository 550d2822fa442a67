//! Size, memory, threads, wake-ups and heartbeat bytes of the static binaries, beside the budgets.
//!
//! `cross/build x86_64 i686 && cargo bench --bench footprint`. Measures every static binary that runs here, over mTLS
//! WebSocket on loopback with one workload (`sleep`). `CHITON_BENCH_SECONDS` sets how long it is watched at rest (65).
//! Nothing is asserted: a table is printed.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    reason = "a bench"
)]
#![expect(clippy::disallowed_methods, reason = "a bench measures time, in threads of its own")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use chiton_proto::{
    AgentConfigMap, AgentConfigObject, AgentRemoteConfig, AgentToServer, Message as _,
    RemoteConfigStatuses, ServerToAgent,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tungstenite::Message;

const PATIENCE: Duration = Duration::from_secs(30);
const MIB: usize = 1 << 20;
/// Messages pushed to show that memory does not grow with their number.
const FLOOD: usize = 100_000;

fn main() {
    let seconds =
        std::env::var("CHITON_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(65);
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let budgets = [("x86_64", Some(2_400_000)), ("i686", None), ("aarch64", Some(2_100_000))];
    let mut seen = 0;
    for (arch, size_budget) in budgets {
        let binary =
            PathBuf::from(&target).join(format!("{arch}-unknown-linux-musl/release/chiton"));
        let runs = Command::new(&binary)
            .arg("version")
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success());
        if runs {
            seen += 1;
            measure(arch, &binary, size_budget, Duration::from_secs(seconds));
        }
    }
    if seen == 0 {
        println!("no static binary to measure: run cross/build x86_64 i686 first");
        std::process::exit(1);
    }
}

fn measure(arch: &str, binary: &Path, size_budget: Option<u64>, watch: Duration) {
    println!("\n{arch}: {}", binary.display());
    println!("{:<58} {:>12} {:>12}  verdict", "what", "measured", "budget");
    let size = fs::metadata(binary).unwrap().len();
    row("binary, stripped, bytes", size, size_budget);

    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path());
    let begun = Instant::now();
    let mut agent = start(binary, home.path(), server.port);
    let first = server.reports.recv_timeout(PATIENCE).unwrap();
    row("start to first AgentToServer, ms", millis(begun.elapsed()), Some(20));
    assert_eq!(first.sequence_num, 0);

    thread::sleep(Duration::from_secs(3));
    let before = Sample::of(agent.id());
    while server.sizes.try_recv().is_ok() {}
    thread::sleep(watch);
    let after = Sample::of(agent.id());
    let per_minute = |count: u64| count * 60 / watch.as_secs().max(1);
    row("resident at rest (VmRSS), KiB", after.rss, Some(2048));
    row("threads at rest", after.threads, Some(2));
    row(
        "wake-ups a minute at rest, 30 s heartbeat",
        per_minute(after.switches - before.switches),
        Some(6),
    );
    row(
        "CPU at rest, ms a minute (10 ms steps)",
        per_minute((after.ticks - before.ticks) * 10),
        Some(1),
    );
    let heartbeat = server.sizes.try_iter().max();
    row("heartbeat in the WebSocket payload, bytes", heartbeat.unwrap_or(0) as u64, Some(32));

    server.offer(1, MIB);
    server.applied(b"offer 1");
    thread::sleep(Duration::from_secs(3));
    let placed = Sample::of(agent.id());
    row("peak (VmHWM), 1 MiB config placed, KiB", placed.peak, Some(5 * 1024));
    row("resident at rest after it, KiB", placed.rss, Some(2048));

    server.orders.send(Order::Flood).unwrap();
    let begun = Instant::now();
    server.flooded.recv_timeout(PATIENCE * 4).unwrap();
    thread::sleep(Duration::from_secs(2));
    let flooded = Sample::of(agent.id());
    row("resident after 100,000 server messages, KiB", flooded.rss, Some(2048));
    println!("{:<58} {:>12}", "  they took, ms", millis(begun.elapsed()));

    end(&mut agent);
    // No server any more, the committed configuration on the disk (promise 3).
    drop(server);
    let begun = Instant::now();
    let mut agent = start(binary, home.path(), 1);
    let children = format!("/proc/{0}/task/{0}/children", agent.id());
    while fs::read_to_string(&children).unwrap().is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    row("start to workload started, no server, ms", millis(begun.elapsed()), Some(100));
    end(&mut agent);
}

fn end(agent: &mut Child) {
    let done = Command::new("kill").arg(agent.id().to_string()).status().unwrap();
    assert!(done.success());
    agent.wait().unwrap();
}

fn row(what: &str, measured: u64, budget: Option<u64>) {
    let verdict = match budget {
        Some(budget) if measured <= budget => "within",
        Some(_) => "OVER",
        None => "",
    };
    let budget = budget.map_or_else(|| "-".to_owned(), |budget| budget.to_string());
    println!("{what:<58} {measured:>12} {budget:>12}  {verdict}");
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap()
}

/// What /proc says of a process.
struct Sample {
    rss: u64,
    peak: u64,
    threads: u64,
    /// Voluntary and involuntary switches of all threads: each is a wake-up at most.
    switches: u64,
    ticks: u64,
}

impl Sample {
    fn of(pid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches("kB").trim().parse().unwrap()
        };
        let mut switches = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let text = fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
            if !text.is_empty() {
                switches += field(&text, "voluntary_ctxt_switches:");
            }
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        let numbers: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |at: usize| numbers.get(at).unwrap().parse::<u64>().unwrap();
        Self {
            rss: field(&status, "VmRSS:"),
            peak: field(&status, "VmHWM:"),
            threads: field(&status, "Threads:"),
            switches,
            ticks: ticks(11) + ticks(12),
        }
    }
}

fn start(binary: &Path, home: &Path, port: u16) -> Child {
    let here = home.display();
    let settings = format!(
        "opamp:
  server:
    endpoint: wss://localhost:{port}/v1/opamp
    tls: {{ ca_file: {here}/ca.pem, cert_file: {here}/agent.pem, key_file: {here}/agent.key }}
  capabilities: {{ accepts_remote_config: true }}
  workload: {{ command: [/bin/sleep, \"100000\"] }}
  remote_config: {{ rollback: {{ interval: 100ms, successes: 1 }}, min_interval: 1ms }}
  state_dir: {here}/state
  status_socket: {here}/status.sock
  log: {{ level: error }}
"
    );
    fs::write(home.join("chiton.yaml"), settings).unwrap();
    Command::new(binary).arg("run").arg("--config").arg(home.join("chiton.yaml")).spawn().unwrap()
}

enum Order {
    Offer(u32, usize),
    Flood,
}

struct Server {
    port: u16,
    reports: Receiver<AgentToServer>,
    sizes: Receiver<usize>,
    flooded: Receiver<()>,
    orders: Sender<Order>,
}

impl Server {
    fn start(home: &Path) -> Self {
        let config = certificates(home);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to_reports, reports) = channel();
        let (to_sizes, sizes) = channel();
        let (to_flooded, flooded) = channel();
        let (orders, todo) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                serve(stream.unwrap(), &config, &to_reports, &to_sizes, &to_flooded, &todo);
            }
        });
        Self { port, reports, sizes, flooded, orders }
    }

    fn offer(&self, number: u32, size: usize) {
        self.orders.send(Order::Offer(number, size)).unwrap();
    }

    fn applied(&self, hash: &[u8]) {
        loop {
            let report = self.reports.recv_timeout(PATIENCE).unwrap();
            if report.remote_config_status.is_some_and(|status| {
                status.status() == RemoteConfigStatuses::Applied
                    && status.last_remote_config_hash == hash
            }) {
                return;
            }
        }
    }
}

/// Answers every message; does what it is told in between.
fn serve(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    reports: &Sender<AgentToServer>,
    sizes: &Sender<usize>,
    flooded: &Sender<()>,
    todo: &Receiver<Order>,
) {
    // As every real server: or its handshake waits 40 ms for our acknowledgement.
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let connection = ServerConnection::new(Arc::clone(config)).unwrap();
    let mut socket = accept(StreamOwned::new(connection, stream));
    let mut uid = Vec::new();
    let framed = |message: &ServerToAgent| {
        let mut bytes = vec![0];
        message.encode(&mut bytes).unwrap();
        Message::Binary(bytes.into())
    };
    loop {
        match socket.read() {
            Ok(Message::Binary(bytes)) => {
                let report = AgentToServer::decode(bytes.slice(1..)).unwrap();
                uid = report.instance_uid.to_vec();
                let _ = sizes.send(bytes.len());
                let _ = reports.send(report);
                let answer =
                    ServerToAgent { instance_uid: uid.clone().into(), ..ServerToAgent::default() };
                socket.send(framed(&answer)).unwrap();
            }
            Err(tungstenite::Error::Io(error))
                if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Ok(_) => {}
            Err(_) => return,
        }
        match todo.try_recv() {
            Ok(Order::Offer(number, size)) => {
                let body = "# a line of a configuration\n".repeat(size / 28);
                let object = AgentConfigObject {
                    body: body.into_bytes().into(),
                    ..AgentConfigObject::default()
                };
                let offer = AgentRemoteConfig {
                    config: Some(AgentConfigMap {
                        config_map: [("a.yaml".to_owned(), object)].into(),
                    }),
                    config_hash: format!("offer {number}").into_bytes().into(),
                };
                let message = ServerToAgent {
                    instance_uid: uid.clone().into(),
                    remote_config: Some(offer),
                    ..ServerToAgent::default()
                };
                socket.send(framed(&message)).unwrap();
            }
            Ok(Order::Flood) => {
                let message =
                    ServerToAgent { instance_uid: uid.clone().into(), ..ServerToAgent::default() };
                for _ in 0..FLOOD {
                    socket.send(framed(&message)).unwrap();
                }
                // Its pong comes when everything before has been read.
                socket.send(Message::Ping(b"end".to_vec().into())).unwrap();
                while !matches!(socket.read(), Ok(Message::Pong(_))) {}
                flooded.send(()).unwrap();
            }
            Err(_) => {}
        }
    }
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

fn accept(stream: Tls) -> tungstenite::WebSocket<Tls> {
    let mut handshake = tungstenite::accept(stream);
    loop {
        match handshake {
            Ok(socket) => return socket,
            Err(tungstenite::HandshakeError::Interrupted(middle)) => handshake = middle.handshake(),
            Err(error) => panic_with(&error.to_string()),
        }
    }
}

fn panic_with(text: &str) -> ! {
    println!("{text}");
    std::process::exit(1)
}

fn certificates(home: &Path) -> Arc<ServerConfig> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(home.join("ca.pem"), ca.pem()).unwrap();
    let server_key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned()];
    let server = CertificateParams::new(names).unwrap().signed_by(&server_key, &ca).unwrap();
    let agent_key = KeyPair::generate().unwrap();
    let agent = CertificateParams::new(vec!["agent".to_owned()])
        .unwrap()
        .signed_by(&agent_key, &ca)
        .unwrap();
    fs::write(home.join("agent.pem"), agent.pem()).unwrap();
    fs::write(home.join("agent.key"), agent_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![server.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
        )
        .unwrap();
    Arc::new(config)
}
