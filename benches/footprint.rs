//! Every budget of the static binaries, measured, beside the nearest peers.
//!
//! `cross/build x86_64 i686 && cargo bench --bench footprint` prints the tables, and
//! `cargo bench --bench footprint -- --write docs/footprint.md` writes them. Measured is every static binary that this
//! machine runs by itself, over mutual TLS on loopback; sizes are those of all that were built.
//! `CHITON_BENCH_SECONDS` (65): how long it is watched at rest, below 60 a short form. `CHITON_BENCH_MIB` (1024, short
//! 128): the package. `CHITON_BENCH_PEERS=0`: no peers. Nothing is asserted but that each thing works.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a bench"
)]
#![expect(clippy::disallowed_methods, reason = "a bench measures time, in threads of its own")]

#[path = "../tests/common/mod.rs"]
mod common;
mod kit;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use kit::document::{self, argument, table};
use kit::sample::{self, Sample};
use kit::server::Server;
use kit::{MIB, PATIENCE, Process, Setup, binary_for, chiton, from_environment, quantile, yaml};

/// How long a process may settle before it is looked at.
const WARM_UP: Duration = Duration::from_secs(4);
/// The configuration whose writes are counted.
const COUNTED: usize = 64 << 10;
const KIB: f64 = 1024.0;
const MB: f64 = 1e6;

/// Key, what it is, unit, budget.
const ROWS: &[(&str, &str, &str, Option<f64>)] = &[
    ("rss", "resident at rest (VmRSS)", "MB", Some(2.0)),
    ("pss", "resident at rest (PSS)", "MB", None),
    ("rss_config", "resident after a 1 MiB configuration (VmRSS)", "MB", Some(2.0)),
    ("pss_config", "resident after a 1 MiB configuration (PSS)", "MB", None),
    ("peak_package", "peak: the package streamed", "MB", Some(3.0)),
    ("peak_config", "peak: 1 MiB configuration placed", "MB", Some(5.0)),
    ("peak_merge", "peak: 128 KiB configuration merged", "MB", Some(5.0)),
    ("peak_flood", "peak: the flood of server messages", "MB", Some(3.0)),
    ("threads", "threads at rest", "", Some(2.0)),
    ("start", "start to first AgentToServer, median", "ms", Some(20.0)),
    ("start_p90", "start to first AgentToServer, 90 of 100", "ms", None),
    ("offline", "start to workload started, no server", "ms", Some(100.0)),
    ("heartbeat", "heartbeat in the WebSocket payload", "bytes", Some(32.0)),
    ("wakes", "wake-ups a minute at rest", "", Some(6.0)),
    ("cpu", "CPU a minute at rest", "ms", Some(1.0)),
    ("wakes_checks", "wake-ups a minute with an http check each 10 s", "", Some(18.0)),
    ("package", "package, of the time of curl, sha256sum, sync", "", Some(0.9)),
    ("push", "push to file swapped and workload signalled, median", "ms", Some(20.0)),
    ("push_p90", "push to file swapped and workload signalled, 90 of 100", "ms", None),
    ("flash_rest", "written at rest", "bytes", Some(0.0)),
    ("flash_config", "written by a 64 KiB configuration", "KiB", Some(192.0)),
    ("fsyncs", "flushes by a configuration change", "", Some(12.0)),
    ("flash_package", "written by a 64 MiB package, of its size", "", Some(1.05)),
];

/// Short name, triple, budget by default, budget with every feature; bytes.
const TARGETS: &[(&str, &str, Option<u64>, Option<u64>)] = &[
    ("x86_64", "x86_64-unknown-linux-musl", Some(2_400_000), Some(2_900_000)),
    ("aarch64", "aarch64-unknown-linux-musl", Some(2_100_000), Some(2_500_000)),
    ("armv7", "armv7-unknown-linux-musleabihf", Some(1_600_000), Some(2_000_000)),
    ("armv6", "arm-unknown-linux-musleabihf", None, None),
    ("i686", "i686-unknown-linux-musl", None, None),
    ("riscv64", "riscv64gc-unknown-linux-musl", None, None),
];

type Figures = BTreeMap<&'static str, f64>;

/// An agent under measurement.
struct Subject {
    name: String,
    binary: PathBuf,
    /// A peer, or Chiton in this set-up.
    setup: Option<Setup>,
    home: tempfile::TempDir,
    server: Server,
    process: Option<Process>,
    before: Sample,
    figures: Figures,
}

impl Subject {
    fn new(name: &str, binary: &Path, setup: Option<Setup>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let server = Server::start(home.path());
        let (name, binary) = (name.to_owned(), binary.to_owned());
        let (before, figures) = (Sample::default(), Figures::new());
        Self { name, binary, setup, home, server, process: None, before, figures }
    }

    fn launch(&self) -> Process {
        match &self.setup {
            Some(setup) => chiton(&self.binary, self.home.path(), self.server.port, setup),
            None => kit::peers::start(&self.name, &self.binary, self.home.path(), self.server.port),
        }
    }

    fn start(&mut self) {
        self.process = Some(self.launch());
        self.server.report();
    }

    fn look(&self) -> Sample {
        Sample::of(self.process.as_ref().unwrap().pid())
    }

    /// Starts it so often, and notes how long the first message takes.
    fn starts(&mut self, count: u64) {
        let mut took = Vec::new();
        for _ in 0..count {
            self.server.came();
            let begun = Instant::now();
            let mut process = self.launch();
            took.push((self.server.report().at - begun).as_secs_f64() * 1e3);
            process.end();
        }
        self.figures.insert("start", quantile(&mut took, 0.5));
        self.figures.insert("start_p90", quantile(&mut took, 0.9));
    }

    fn rest_begins(&mut self) {
        self.server.came();
        self.before = self.look();
    }

    fn rest_ends(&mut self, watched: Duration) {
        let after = self.look();
        let minutes = watched.as_secs_f64() / 60.0;
        self.figures.extend([
            ("rss", after.rss / MB),
            ("pss", after.pss / MB),
            ("threads", after.threads),
            ("wakes", (after.wakes - self.before.wakes) / minutes),
            ("cpu", (after.cpu - self.before.cpu) / minutes),
            ("flash_rest", after.written - self.before.written),
        ]);
        let heartbeat = self.server.came().iter().map(|report| report.size).max();
        if let Some(size) = heartbeat {
            self.figures.insert("heartbeat", size as f64);
        }
    }

    fn large_config(&mut self) {
        let pid = self.process.as_ref().unwrap().pid();
        sample::forget_peak(pid);
        self.server.offer("large", yaml(1, MIB));
        self.server.applied("large");
        thread::sleep(WARM_UP);
        let after = self.look();
        self.figures.extend([
            ("peak_config", after.peak / MB),
            ("rss_config", after.rss / MB),
            ("pss_config", after.pss / MB),
        ]);
    }

    fn flood(&mut self, count: usize) {
        let pid = self.process.as_ref().unwrap().pid();
        sample::forget_peak(pid);
        self.server.tell(move |connection| connection.flood(count));
        self.figures.insert("peak_flood", self.look().peak / MB);
    }

    fn end(&mut self) {
        self.process = None;
    }
}

fn main() {
    if let Some(address) = argument("--signalled") {
        signalled(&address);
    }
    let seconds = from_environment("CHITON_BENCH_SECONDS", 65);
    let whole = seconds >= 60;
    let begun = Instant::now();
    println!("load average {} at the start", document::load());
    let load = document::load();
    let natives: Vec<_> = kit::native_triples()
        .iter()
        .map(|(name, triple)| (*name, binary_for(triple)))
        .filter(|(_, binary)| kit::runs(binary))
        .collect();
    if natives.is_empty() {
        document::fail("no static binary to measure: run cross/build x86_64 i686 first");
    }
    let run = Run { whole, watch: Duration::from_secs(seconds), load };
    let peers = kit::peers::all();
    let mut own: Vec<Subject> = natives
        .iter()
        .map(|(name, binary)| Subject::new(name, binary, Some(Setup::default())))
        .collect();
    let mut others: Vec<Subject> = peers
        .iter()
        .filter_map(|peer| Some(Subject::new(peer.name, peer.binary.as_ref().ok()?, None)))
        .collect();
    at_rest(&mut own, &mut others, &run);
    for subject in &mut own {
        beyond_rest(subject, &run);
    }
    let packages = package(&mut own, &run);
    let sizes = sizes();
    let text = render(&own, &others, &peers, &sizes, &packages, &run);
    println!(
        "{text}\nmeasured in {} s, load average {} at the end",
        begun.elapsed().as_secs(),
        document::load()
    );
    if let Some(file) = argument("--write") {
        write(Path::new(&file), &text);
    }
}

struct Run {
    whole: bool,
    watch: Duration,
    load: String,
}

/// All of them at once: asleep, they do not disturb each other.
fn at_rest(own: &mut [Subject], others: &mut [Subject], run: &Run) {
    let health = healthy_port();
    let checked = Setup {
        opamp: vec![format!(
            "health: {{ checks: [ {{ http: \"http://127.0.0.1:{health}/\" }} ] }}"
        )],
        ..Setup::default()
    };
    let mut with_checks: Vec<Subject> = own
        .iter()
        .map(|subject| Subject::new(&subject.name, &subject.binary, Some(checked.clone())))
        .collect();
    let starts = if run.whole { 21 } else { 7 };
    for subject in own.iter_mut().chain(others.iter_mut()) {
        println!("starts of {}", subject.name);
        let few = if subject.setup.is_none() { 5 } else { starts };
        subject.starts(few);
    }
    let mut everyone: Vec<&mut Subject> =
        own.iter_mut().chain(&mut with_checks).chain(others.iter_mut()).collect();
    everyone.iter_mut().for_each(|subject| subject.start());
    thread::sleep(WARM_UP);
    everyone.iter_mut().for_each(|subject| subject.rest_begins());
    thread::sleep(run.watch);
    everyone.iter_mut().for_each(|subject| subject.rest_ends(run.watch));
    for (subject, checked) in own.iter_mut().zip(&with_checks) {
        subject
            .figures
            .insert("wakes_checks", checked.figures.get("wakes").copied().unwrap_or(0.0));
    }
    drop(with_checks);
    for subject in own.iter_mut().chain(others.iter_mut()) {
        subject.large_config();
    }
    for subject in others {
        subject.end();
    }
}

fn beyond_rest(subject: &mut Subject, run: &Run) {
    subject.flood(if run.whole { 1_000_000 } else { 100_000 });
    written_by_a_change(subject);
    subject.end();
    offline(subject);
    merged(subject);
    flushes(subject);
    pushes(subject, if run.whole { 21 } else { 11 });
}

fn written_by_a_change(subject: &mut Subject) {
    subject.server.offer("first", yaml(2, COUNTED));
    subject.server.applied("first");
    let before = subject.look();
    subject.server.offer("second", yaml(3, COUNTED));
    subject.server.applied("second");
    let written = subject.look().written - before.written;
    subject.figures.insert("flash_config", written / KIB);
}

/// No server any more, the committed configuration on the disk (promise 3).
fn offline(subject: &mut Subject) {
    let begun = Instant::now();
    let process = chiton(&subject.binary, subject.home.path(), 1, &Setup::default());
    while sample::children(process.pid()).is_empty() {
        assert!(begun.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    subject.figures.insert("offline", begun.elapsed().as_secs_f64() * 1e3);
}

/// A local file lies beneath.
fn merged(subject: &mut Subject) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path());
    let local = home.path().join("local.yaml");
    fs::write(&local, yaml(1, 4 << 10)).unwrap();
    let setup = Setup {
        opamp: vec![format!("local_config_path: {}", local.display())],
        config: Some(", main_file: config.yaml".to_owned()),
        ..Setup::default()
    };
    let process = chiton(&subject.binary, home.path(), server.port, &setup);
    server.report();
    server.offer("merged", yaml(2, 123 << 10));
    server.applied("merged");
    subject.figures.insert("peak_merge", Sample::of(process.pid()).peak / MB);
}

/// fsync and its kin in one change of the configuration, counted by strace.
fn flushes(subject: &mut Subject) {
    let home = tempfile::tempdir().unwrap();
    let server = Server::start(home.path());
    let trace = home.path().join("trace");
    let calls = "trace=fsync,fdatasync,sync_file_range,syncfs,sync";
    let words = ["strace", "-f", "-qq", "-e", calls, "-o", &trace.display().to_string()];
    if Command::new("strace").arg("-V").output().is_err() {
        return;
    }
    let setup = Setup { through: words.map(str::to_owned).to_vec(), ..Setup::default() };
    let process = chiton(&subject.binary, home.path(), server.port, &setup);
    server.report();
    server.offer("first", yaml(1, COUNTED));
    server.applied("first");
    let count = || {
        let text = fs::read_to_string(&trace).unwrap();
        text.lines().filter(|line| line.contains("sync")).count()
    };
    let before = count();
    server.offer("second", yaml(2, COUNTED));
    server.applied("second");
    // The record of what was reported may follow.
    thread::sleep(Duration::from_millis(500));
    subject.figures.insert("fsyncs", (count() - before) as f64);
    // strace hands SIGTERM on to nobody: its child ends first.
    for child in sample::children(process.pid()) {
        let _ = Command::new("kill").arg(child.to_string()).status();
    }
}

/// A server's push to the signal in the workload, which looks at the file first.
fn pushes(subject: &mut Subject, count: usize) {
    let (home, _) = kit::in_memory();
    let server = Server::start(home.path());
    let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
    ear.set_read_timeout(Some(PATIENCE)).unwrap();
    let this = std::env::current_exe().unwrap();
    let to = ear.local_addr().unwrap();
    let setup = Setup {
        command: Some(format!(
            "[\"{}\", --signalled, \"{to}\", \"{{config_file}}\"]",
            this.display()
        )),
        config: Some(", apply: reload, main_file: config.yaml".to_owned()),
        ..Setup::default()
    };
    let _process = chiton(&subject.binary, home.path(), server.port, &setup);
    server.report();
    server.offer("0", yaml(0, 4 << 10));
    server.applied("0");
    let mut took = Vec::new();
    let mut heard = [0; 64];
    for number in 1..=count {
        ear.set_nonblocking(true).unwrap();
        while ear.recv(&mut heard).is_ok() {}
        ear.set_nonblocking(false).unwrap();
        let hash = number.to_string();
        let begun = server.offer(&hash, yaml(number as u32, 4 << 10));
        let length = ear.recv(&mut heard).unwrap();
        took.push(begun.elapsed().as_secs_f64() * 1e3);
        let seen = String::from_utf8_lossy(heard.get(..length).unwrap()).into_owned();
        assert_eq!(seen, format!("number: {number}"), "signalled before the file was there");
        server.applied(&hash);
    }
    subject.figures.insert("push", quantile(&mut took, 0.5));
    subject.figures.insert("push_p90", quantile(&mut took, 0.9));
}

/// The workload of [`pushes`]: says the first line of its configuration at each SIGHUP.
fn signalled(address: &str) -> ! {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGHUP, theirs).unwrap();
    let file = argument(address).unwrap_or_default();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    loop {
        ours.read_exact(&mut [0]).unwrap();
        let text = fs::read_to_string(&file).unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        socket.send_to(line.as_bytes(), address).unwrap();
    }
}

/// What an http check finds.
fn healthy_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    thread::spawn(move || listener.incoming().flatten().for_each(answer));
    port
}

/// Seconds of one way to fetch a package.
struct Fetched {
    what: String,
    seconds: f64,
    peak: f64,
}

fn package(own: &mut [Subject], run: &Run) -> (u64, bool, Vec<Fetched>) {
    use kit::package::{Row, Shelf, curl, make, swupdate};
    let mib = from_environment("CHITON_BENCH_MIB", if run.whole { 1024 } else { 128 });
    let (dir, memory) = kit::in_memory();
    let size = mib << 20;
    let digest = make(&dir.path().join("payload"), size);
    let shelf = Shelf::open(dir.path());
    let fetched = |what: &str, row: &Row| Fetched {
        what: what.to_owned(),
        seconds: row.seconds,
        peak: row.peak as f64 * KIB / MB,
    };
    let base = curl(dir.path(), &shelf);
    let mut rows = vec![fetched("curl, sha256sum, sync", &base)];
    for subject in own.iter_mut() {
        let row =
            kit::package::chiton("", &subject.binary, dir.path(), &digest, size, &shelf, false);
        subject.figures.insert("package", row.seconds / base.seconds);
        subject.figures.insert("peak_package", row.peak as f64 * KIB / MB);
        rows.push(fetched(&format!("chiton {}", subject.name), &row));
    }
    rows.extend(swupdate(dir.path(), &digest, &shelf).map(|row| fetched("SWUpdate", &row)));
    // On a disk, for what is written.
    let disk = tempfile::tempdir().unwrap();
    let size = 64 << 20;
    let digest = make(&disk.path().join("payload"), size);
    let shelf = Shelf::open(disk.path());
    for subject in own {
        let row =
            kit::package::chiton("", &subject.binary, disk.path(), &digest, size, &shelf, false);
        subject.figures.insert("flash_package", row.written as f64 / size as f64);
    }
    (mib, memory, rows)
}

/// Bytes of each target by default and with every feature, where they were built.
fn sizes() -> Vec<Vec<String>> {
    let size = |path: PathBuf| fs::metadata(path).ok().map(|it| it.len());
    let cell = |size: Option<u64>, budget: Option<u64>| {
        let Some(size) = size else {
            return ["not built".to_owned(), budget_of(budget), String::new()];
        };
        let verdict =
            budget.map_or("", |budget| if size <= budget { "within" } else { "**over**" });
        [grouped(size), budget_of(budget), verdict.to_owned()]
    };
    let row = |(name, triple, budget, every): &(&str, &str, _, _)| {
        let default = cell(size(binary_for(triple)), *budget);
        let all = kit::target_dir().join("every-feature").join(triple).join("release/chiton");
        let all = cell(size(all), *every);
        core::iter::once((*name).to_owned()).chain(default).chain(all).collect()
    };
    TARGETS.iter().map(row).collect()
}

fn budget_of(budget: Option<u64>) -> String {
    budget.map_or_else(|| "–".to_owned(), grouped)
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With as many decimals as tell something.
fn shown(value: f64) -> String {
    match value {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn render(
    own: &[Subject],
    others: &[Subject],
    peers: &[kit::peers::Peer],
    sizes: &[Vec<String>],
    packages: &(u64, bool, Vec<Fetched>),
    run: &Run,
) -> String {
    let mut text = String::from("## Machine and method\n\n");
    for line in document::machine() {
        text.push_str(&format!("- {line}\n"));
    }
    let (mib, memory, fetched) = packages;
    text.push_str(&format!(
        "- Load average at the start: {}. Times measured beside a load above 0.5 are too long.\n",
        run.load
    ));
    text.push_str(&method(run, *mib, *memory));
    text.push_str("\n## Budgets\n\n");
    let mut head = vec!["what".to_owned(), "budget".to_owned()];
    for subject in own {
        head.extend([subject.name.clone(), String::new()]);
    }
    let rows: Vec<_> = ROWS.iter().map(|row| budget_row(row, own)).collect();
    text.push_str(&table(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows));
    text.push_str("\n## Size of the binary\n\nStripped, static, bytes.\n\n");
    let head = ["target", "default", "budget", "", "every feature", "budget", ""];
    text.push_str(&table(&head, sizes));
    text.push_str("\n## Beside others, in the same run\n\n");
    text.push_str(&beside(own, others, peers));
    text.push_str("\nA package over loopback http:\n\n");
    let base = fetched.first().map_or(1.0, |it| it.seconds);
    let rows: Vec<_> = fetched
        .iter()
        .map(|it| {
            vec![
                it.what.clone(),
                format!("{:.2}", it.seconds),
                format!("{:.2}", it.seconds / base),
                shown(it.peak),
            ]
        })
        .collect();
    text.push_str(&table(&["what", "s", "of curl's", "peak, MB"], &rows));
    if fetched.iter().all(|it| it.what != "SWUpdate") {
        text.push_str("\nSWUpdate: not had, it is not installed.\n");
    }
    text
}

fn budget_row(row: &(&'static str, &str, &str, Option<f64>), own: &[Subject]) -> Vec<String> {
    let (key, what, unit, budget) = row;
    let unit = if unit.is_empty() { String::new() } else { format!(", {unit}") };
    let mut cells = vec![format!("{what}{unit}"), budget.map_or_else(|| "–".to_owned(), shown)];
    for subject in own {
        let Some(value) = subject.figures.get(key) else {
            cells.extend(["not had".to_owned(), String::new()]);
            continue;
        };
        let verdict =
            budget.map_or("", |budget| if *value <= budget { "within" } else { "**over**" });
        cells.extend([shown(*value), verdict.to_owned()]);
    }
    cells
}

fn beside(own: &[Subject], others: &[Subject], peers: &[kit::peers::Peer]) -> String {
    let columns = [
        ("rss", "VmRSS, MB"),
        ("pss", "PSS, MB"),
        ("threads", "threads"),
        ("wakes", "wake-ups a minute"),
        ("start", "first message, ms"),
        ("peak_config", "peak with 1 MiB configuration, MB"),
    ];
    let size =
        |subject: &Subject| fs::metadata(&subject.binary).map_or(0.0, |it| it.len() as f64) / MB;
    let mut head = vec!["agent", "size, MB"];
    head.extend(columns.iter().map(|(_, name)| *name));
    let mut rows = Vec::new();
    let base = own.first();
    for subject in own.iter().take(1).chain(others) {
        let is_own = subject.setup.is_some();
        let name = if is_own { format!("chiton {}", subject.name) } else { subject.name.clone() };
        let mut cells = vec![name];
        let mut add = |value: Option<f64>, of: Option<f64>| {
            let text = value.map_or_else(|| "not had".to_owned(), shown);
            let ratio = value.zip(of).filter(|(_, of)| !is_own && *of > 0.0);
            let ratio =
                ratio.map_or_else(String::new, |(value, of)| format!(" (×{:.1})", value / of));
            cells.push(text + &ratio);
        };
        add(Some(size(subject)), base.map(size));
        for (key, _) in columns {
            add(
                subject.figures.get(key).copied(),
                base.and_then(|it| it.figures.get(key).copied()),
            );
        }
        rows.push(cells);
    }
    let mut text = table(&head, &rows);
    for peer in peers {
        if let Err(why) = &peer.binary {
            text.push_str(&format!("\n{}: not had, {why}.\n", peer.name));
        }
    }
    text
}

fn method(run: &Run, mib: u64, memory: bool) -> String {
    let seconds = run.watch.as_secs();
    let (starts, pushes, flood) =
        if run.whole { (21, 21, "1,000,000") } else { (7, 11, "100,000") };
    let place = if memory { "in memory (tmpfs)" } else { "on a disk: there is no /dev/shm" };
    let warm = WARM_UP.as_secs();
    format!(
        "- WebSocket over mutual TLS on loopback, one workload (`sleep`), heartbeats each 30 s, state on a disk.
- At rest: {warm} s after the first message, then watched for {seconds} s; all agents at once, asleep. VmRSS, PSS and peak (VmHWM,
  begun anew before each step) from `/proc`; wake-ups are voluntary context switches of all threads, CPU is the scheduler's count.
  MB is 10^6 bytes. VmRSS counts pages of the file that the page cache has anyway; PSS is what would come back if it ended.
- First message: {starts} starts (peers 5), from `exec` to the message at the server. Push: {pushes} configurations of 4 KiB with `apply: reload`,
  until the workload has had SIGHUP and read the new file, in memory where there is /dev/shm.
- The flood: {flood} server messages. The package: {mib} MiB over loopback http, {place}.
- Written: `write_bytes` of `/proc/PID/io` on a disk; flushes counted by strace, gate of one success included.
- goagent (`benches/peers/goagent`) is the least agent on opamp-go's client with the same duties. opampsupervisor's Collector is a stand-in that
  is not counted; its time to the first message has a start of that in it.
"
    )
}

fn write(file: &Path, measured: &str) {
    let why = document::kept(file, "by hand", "Nothing is written here yet.");
    let flat = document::kept(
        file,
        "flat",
        "Not measured yet: `cargo bench --bench flat -- --write docs/footprint.md`.",
    );
    let text = format!(
        "# Footprint\n\nEvery budget, measured by\n\n```sh\ncross/build all\ncargo bench --bench footprint -- --write docs/footprint.md\n\
         ```\n\nwhich anyone can run (five minutes beside the builds; Linux, Rust, strace, curl; Go and SWUpdate for the peers). Nothing in this file but the parts\n\
         \"What is over\" and \"Flat lines\" is written by hand or by another command.\n\n{measured}\n## What is over, and why\n{why}\n\
         ## Flat lines\n{flat}"
    );
    fs::write(file, text).unwrap();
    println!("wrote {}", file.display());
}
