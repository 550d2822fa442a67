//! Many rotations in a row on one agent: certificate, headers and heartbeat, each a new connection. Nothing may grow,
//! and nothing that was to be told may be lost. `CHITON_ROTATIONS` says how many.
#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::fs;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use chiton_proto::{AgentToServer, ConnectionSettingsStatuses, ServerToAgent};
use common::Home;
use common::authority::Authority;
use common::authority::bootstrap;
use common::connection::{accepting, certificate, connection, generation, headers, mutual};
use common::hub::Hub;
use rustls::ALL_VERSIONS;

const ROTATIONS: usize = 1000;
/// When everything that is made once has been made.
const WARM: usize = 100;
/// Pages come and go.
const SLACK_KIB: u64 = 512;
/// Files that are open for a moment while one connection takes another's place, and its record is written.
const SLACK_FILES: usize = 8;
const PATIENCE: Duration = Duration::from_secs(300);

/// What is resident, KiB, and how many files are open.
fn measure(pid: i32) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let resident = resident.trim().trim_end_matches(" kB").parse().unwrap();
    // Root's alone: nobody else may look into the agent.
    (resident, fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count))
}

/// What was heard: of the last offer, and of all of them.
#[derive(Default)]
struct Heard {
    last: usize,
    applying: bool,
    /// Offers of which both were told, in order.
    whole: usize,
}

#[test]
fn a_thousand_rotations_leave_nothing_behind() {
    let wanted = std::env::var("CHITON_ROTATIONS").ok().and_then(|text| text.parse().ok());
    let wanted: usize = wanted.unwrap_or(ROTATIONS);
    let (trust, clients) = (Authority::new("servers"), Authority::new("clients"));
    let home = Home::new();
    let hub = Hub::new(&mutual(&trust, &[&clients], ALL_VERSIONS));
    let (cert, key) = clients.issue("device", |_| {});
    let tls = bootstrap(&home, &trust, Some((&cert, &key)));
    home.settings(&hub.wss(), &accepting(&[&tls]));
    let issued: Vec<_> = (0..4).map(|_| clients.issue("device", |_| {})).collect();
    let issuer = clients.pem();
    let offer = move |number: usize| {
        let (cert, key) = issued.get(number % issued.len()).unwrap();
        connection(&number.to_string(), |opamp| {
            opamp.certificate = Some(certificate(cert, key, &issuer));
            opamp.headers = Some(headers(&[("X-Rotation", &number.to_string())]));
            opamp.heartbeat_interval_seconds = 3600 + u64::try_from(number % 7).unwrap();
        })
    };
    let heard: Arc<Mutex<Heard>> = Arc::default();
    let hears = Arc::clone(&heard);
    hub.answers(move |caller, report| {
        let mut heard = hears.lock().unwrap();
        match next(&mut heard, caller, report) {
            Some(number) if number <= wanted => offer(number),
            _ => ServerToAgent::default(),
        }
    });
    let begun = Instant::now();
    let agent = home.start();
    let until = |number: usize| {
        while heard.lock().unwrap().last < number {
            assert!(begun.elapsed() < PATIENCE && !agent.is_over(), "{}", agent.log());
            thread::park_timeout(Duration::from_millis(5));
        }
    };
    until(WARM.min(wanted));
    let (warm, files) = measure(agent.pid());
    until(wanted);
    let (resident, open) = measure(agent.pid());
    let whole = heard.lock().unwrap().whole;
    eprintln!(
        "{wanted} rotations in {:.1?}: {} lost reports; resident {warm} KiB after {WARM}, {resident} KiB at the end; \
         open files {files}, {open}",
        begun.elapsed(),
        wanted - whole
    );
    assert_eq!(whole, wanted, "reports were lost");
    assert!(
        open <= files + SLACK_FILES,
        "{files} open files, then {open}: one of a rotation stays"
    );
    assert!(resident <= warm + SLACK_KIB, "{warm} KiB, then {resident} KiB");
    generation(&home);
    agent.unharmed();
    agent.stop();
}

/// Notes what is told. Which offer is next, if this report ends the one before.
fn next(heard: &mut Heard, caller: &common::hub::Caller, report: &AgentToServer) -> Option<usize> {
    let told = report.connection_settings_status.as_ref()?;
    let number = std::str::from_utf8(&told.last_connection_settings_hash).unwrap();
    if number.is_empty() {
        return Some(1);
    }
    let number: usize = number.parse().unwrap();
    match told.status() {
        ConnectionSettingsStatuses::Applying => heard.applying = true,
        ConnectionSettingsStatuses::Applied if number == heard.last + 1 => {
            assert!(caller.head.contains(&format!("X-Rotation: {number}\r\n")), "{}", caller.head);
            heard.last = number;
            heard.whole += usize::from(core::mem::take(&mut heard.applying));
            return Some(number + 1);
        }
        other => assert_eq!(other, ConnectionSettingsStatuses::Applied, "{}", told.error_message),
    }
    None
}
