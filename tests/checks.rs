//! Health checks and figures, from outside: what is reported of a workload that is well, that takes too much, that
//! blinks, and whose endpoint is not to be trusted. The timing of the figures is tested on the core alone.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "tests"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use chiton::agent::metrics::Figures;
use chiton::agent::packages::set::Running;
use chiton::agent::rollout::{Memory, Staged};
use chiton::agent::{Action, Agent, Config, Event, Host};
use chiton::clock::{Mono, Now, Wall};
use chiton::signature::Keyring;
use chiton_proto::any_value::Value;
use chiton_proto::{AgentToServer, ComponentHealth};
use common::{Home, Peer, Server, Settings, eventually, is_alive};

/// Settings with this in `opamp.health`.
fn settings(health: &str) -> Settings {
    let opamp = vec![format!("health: {{ {health} }}")];
    let server = vec!["heartbeat_interval: 100ms".to_owned()];
    Settings { server, opamp, ..Settings::default() }
}

fn workload(report: &AgentToServer) -> Option<&ComponentHealth> {
    report.health.as_ref()?.component_health_map.get("workload")
}

fn attributes(report: &AgentToServer) -> BTreeMap<String, f64> {
    let attributes = workload(report).into_iter().flat_map(|health| &health.attributes);
    let number = |value: &Value| match value {
        #[expect(clippy::cast_precision_loss, reason = "a test")]
        Value::IntValue(number) => Some(*number as f64),
        Value::DoubleValue(number) => Some(*number),
        _ => None,
    };
    attributes
        .filter_map(|it| Some((it.key.clone(), number(it.value.as_ref()?.value.as_ref()?)?)))
        .collect()
}

/// Waits until the workload is reported as well.
fn well(peer: &mut Peer) {
    peer.until("the workload is well", |report| workload(report).is_some_and(|it| it.healthy));
}

/// Waits until the workload is reported as ill; why.
fn ill(peer: &mut Peer, word: &str) -> String {
    let report = peer.until(word, |report| {
        workload(report).is_some_and(|it| !it.healthy && it.last_error.contains(word))
    });
    let health = report.health.unwrap();
    assert!(!health.healthy && health.last_error.contains(word));
    let workload = &health.component_health_map["workload"];
    let failed = |(_, check): &(&String, &ComponentHealth)| !check.healthy;
    let failed: Vec<_> = workload.component_health_map.iter().filter(failed).collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].0.starts_with(word));
    workload.last_error.clone()
}

#[test]
fn memory_over_its_limit_is_ill_and_well_again_when_it_is_given_back() {
    let home = Home::new();
    let grow = home.path("grow").display().to_string();
    home.script(&format!(
        "while :; do\n\
         if [ -e {grow} ]; then\n\
         (head -c 96000000 /dev/zero; while [ -e {grow} ]; do sleep 0.05; done) | tail -c 96000000 >/dev/null\n\
         fi\nsleep 0.05\ndone"
    ));
    let server = Server::new();
    home.settings(
        &server.ws(),
        &settings("check_interval: 100ms, checks: [{ memory_max: 48MiB }]"),
    );
    let agent = home.start();
    let (mut peer, _) = server.greet();
    well(&mut peer);
    fs::write(&grow, "").unwrap();
    let why = ill(&mut peer, "memory_max 48MiB");
    assert!(why.contains("MiB are resident"), "{why}");
    fs::remove_file(&grow).unwrap();
    well(&mut peer);
    agent.unharmed();
    agent.stop_with(peer);
}

#[test]
fn cpu_over_its_limit_is_ill_and_well_again_when_it_rests() {
    let home = Home::new();
    let spin = home.path("spin").display().to_string();
    home.script(&format!("while :; do\nwhile [ -e {spin} ]; do :; done\nsleep 0.3\ndone"));
    let server = Server::new();
    home.settings(&server.ws(), &settings("check_interval: 100ms, checks: [{ cpu_max: 0.2 }]"));
    let agent = home.start();
    let (mut peer, _) = server.greet();
    well(&mut peer);
    fs::write(&spin, "").unwrap();
    let why = ill(&mut peer, "cpu_max 0.2");
    assert!(why.contains("cores are in use"), "{why}");
    fs::remove_file(&spin).unwrap();
    well(&mut peer);
    agent.unharmed();
    agent.stop_with(peer);
}

#[test]
fn one_failed_round_is_not_reported_and_two_are() {
    let home = Home::new();
    let (fail, rounds) = (home.path("fail"), home.path("rounds"));
    // Each line of `fail` fails one round.
    fs::write(
        home.path("check.sh"),
        format!(
            "echo >> {1}; if [ -s {0} ]; then sed -i 1d {0}; echo blinked; exit 1; fi\n",
            fail.display(),
            rounds.display()
        ),
    )
    .unwrap();
    let check = home.path("check.sh").display().to_string();
    let server = Server::new();
    let checks = format!("check_interval: 50ms, checks: [{{ exec: [/bin/sh, {check}] }}]");
    home.settings(&server.ws(), &settings(&checks));
    let agent = home.start();
    let (mut peer, first) = server.greet();
    well(&mut peer);
    let failing = |lines: &str| {
        let next = home.path("next");
        fs::write(&next, lines).unwrap();
        fs::rename(next, &fail).unwrap();
    };
    failing("x\n");
    let counted = || fs::read_to_string(&rounds).unwrap_or_default().lines().count();
    eventually("the round fails", || fs::read(&fail).unwrap().is_empty().then_some(()));
    let seen = counted();
    eventually("two more rounds", || (counted() >= seen + 3).then_some(()));
    peer.send(&chiton_proto::ServerToAgent {
        instance_uid: first.instance_uid.clone(),
        flags: 1,
        ..chiton_proto::ServerToAgent::default()
    });
    peer.until("a full report", |report| {
        assert!(workload(report).is_none_or(|it| it.healthy), "one round was told: {report:?}");
        report.agent_description.is_some()
    });
    failing(&"x\n".repeat(10_000));
    let why = ill(&mut peer, "exec /bin/sh");
    assert!(why.ends_with("exited with status 1: blinked"), "{why}");
    failing("");
    well(&mut peer);
    agent.unharmed();
    agent.stop_with(peer);
}

#[test]
fn a_check_program_gets_its_places_and_nothing_of_it_outlives_its_time() {
    let home = Home::new();
    let pids = home.path("check-pids").display().to_string();
    let script = format!(
        "case \"$0\" in /*) ;; *) echo \"no place: $0\"; exit 9;; esac\n\
         printf '\\033[31mstuck\\033[0m\\007\\n'\n\
         trap '' TERM; sleep 1000 & echo $! >> {pids}; echo $$ >> {pids}; wait; sleep 1000\n"
    );
    fs::write(home.path("check.sh"), script).unwrap();
    let server = Server::new();
    let check = home.path("check.sh").display().to_string();
    let checks = format!(
        "check_interval: 10s, checks: [{{ exec: [/bin/sh, -c, '. {check}', \"{{config_dir}}\"], timeout: 200ms }}]"
    );
    home.settings(&server.ws(), &settings(&checks));
    let agent = home.start();
    let (mut peer, _) = server.greet();
    let why = ill(&mut peer, "exec /bin/sh");
    assert!(why.ends_with("killed after its 200ms: stuck"), "{why:?}");
    let pids = fs::read_to_string(&pids).unwrap();
    let pids: Vec<i32> = pids.lines().map(|line| line.parse().unwrap()).collect();
    assert!(pids.len() >= 2);
    for pid in pids {
        assert!(!is_alive(pid), "{pid} outlives its check");
    }
    agent.unharmed();
    agent.stop_with(peer);
}

#[test]
fn figures_come_at_their_interval_and_between_them_heartbeats_stay_small() {
    let home = Home::new();
    let server = Server::new();
    // Figures that stay the same are no news: these do not.
    home.script("while :; do sleep 0.05; done");
    home.settings(&server.ws(), &settings("metrics_interval: 1s"));
    let agent = home.start();
    let (mut peer, first) = server.greet();
    assert!(attributes(&first).is_empty());
    let mut heartbeats = 0;
    let mut figures = Vec::new();
    peer.until("three reports of figures", |report| {
        let found = attributes(report);
        if report.health.is_none() {
            heartbeats += 1;
        } else if !found.is_empty() {
            assert!(heartbeats > 0, "figures again without a heartbeat between: {report:?}");
            heartbeats = 0;
            figures.push(found);
        }
        figures.len() == 3
    });
    for found in figures {
        assert_eq!(found.keys().collect::<Vec<_>>(), ["cpu_usage", "memory_usage"]);
        assert!(found["memory_usage"] > 10_000.0, "{found:?}");
        assert!((0.0..2.0).contains(&found["cpu_usage"]), "{found:?}");
    }
    agent.unharmed();
    agent.stop_with(peer);
}

/// A metrics endpoint: one behaviour after the other, the last one for ever. Ends what it holds open with the test.
fn endpoint(server: Server, behaviours: Vec<fn(TcpStream)>) -> String {
    let url = format!("http://{}/metrics", server.address());
    thread::spawn(move || {
        let last = *behaviours.last().unwrap();
        for behave in behaviours.into_iter().chain(std::iter::repeat(last)) {
            let mut stream = server.tcp();
            common::read_head(&mut stream);
            behave(stream);
        }
    });
    url
}

fn say(mut stream: TcpStream, body: &str) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\r\n";
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

fn good(stream: TcpStream) {
    say(
        stream,
        "go_goroutines 42\notelcol_receiver_accepted_spans{receiver=\"otlp\"} 1000\n\
         http_client_request_duration_sum 3\nhttp_client_request_duration_count 12\n",
    );
}

#[test]
fn the_collectors_own_figures_are_scraped() {
    let home = Home::new();
    let server = Server::new();
    let url = endpoint(Server::new(), vec![good]);
    let metrics = "[goroutines, spans_rate, export_latency]";
    home.settings(
        &server.ws(),
        &settings(&format!("metrics_interval: 1s, scrape: \"{url}\", metrics: {metrics}")),
    );
    let agent = home.start();
    let (mut peer, _) = server.greet();
    let first = peer.until("figures", |report| !attributes(report).is_empty());
    let found = attributes(&first);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!((found["goroutines"], found["export_latency"]) == (42.0, 0.25), "{found:?}");
    assert!(found["spans_rate"] > 0.0 && found["spans_rate"] <= 1000.0, "{found:?}");
    // The counters stand still: a rate of nothing, and nothing to take a mean of.
    let second = peer
        .until("other figures", |report| workload(report).is_some() && attributes(report) != found);
    let found = attributes(&second);
    assert_eq!(found.get("spans_rate"), Some(&0.0), "{found:?}");
    assert_eq!(found.get("export_latency"), None, "{found:?}");
    agent.unharmed();
    agent.stop_with(peer);
}

#[test]
fn an_endpoint_that_floods_lies_or_hangs_does_no_harm() {
    fn flood(mut stream: TcpStream) {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        let mut written: u64 = 0;
        while let Ok(count) = stream.write(&[b'7'; 65_536]) {
            written += u64::try_from(count).unwrap();
            assert!(written < 64 << 20, "it is read without end");
        }
    }
    fn endless_head(mut stream: TcpStream) {
        while stream.write_all(b"HTTP/1.1 200 OK\r\nA: b\r\n").is_ok() {}
    }
    fn html(stream: TcpStream) {
        say(stream, "<!DOCTYPE html><html><body>go_goroutines 7</body></html>");
    }
    fn garbage(mut stream: TcpStream) {
        let _ = stream.write_all(&[0xff, 0, b'\n', 0x1b].repeat(5_000));
    }
    fn error(mut stream: TcpStream) {
        let _ = stream.write_all(b"HTTP/1.1 503 Later\r\n\r\ngo_goroutines 7\n");
    }
    fn hang(mut stream: TcpStream) {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\ngo_goroutines 7\n");
        // The agent gives up; that ends the read.
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    }
    let home = Home::new();
    let server = Server::new();
    let url = endpoint(Server::new(), vec![flood, endless_head, html, garbage, error, hang, good]);
    let metrics = "[memory_usage, goroutines]";
    home.settings(
        &server.ws(),
        &settings(&format!("metrics_interval: 1s, scrape: \"{url}\", metrics: {metrics}")),
    );
    let agent = home.start();
    let (mut peer, _) = server.greet();
    let mut heartbeats = 0;
    let report = peer.until("the endpoint is good at last", |report| {
        heartbeats += usize::from(report.health.is_none());
        attributes(report).contains_key("goroutines")
    });
    assert!((attributes(&report)["goroutines"] - 42.0).abs() < 0.1, "{report:?}");
    assert!(heartbeats > 10, "heartbeats go on: {heartbeats}");
    for why in ["longer than", "not HTTP", "status 503", "no result within"] {
        agent.logs(&["opamp.health.scrape", why]);
    }
    agent.unharmed();
    agent.stop_with(peer);
}

/// A core whose workload runs.
fn core(health: &str) -> (Agent, Vec<Action>) {
    let text = format!(
        "opamp: {{ server: {{ endpoint: \"ws://a\" }}, workload: {{ command: [/a] }}, health: {{ {health} }} }}"
    );
    let loaded = chiton::settings::from_text(&text, "test", &BTreeMap::<&str, &str>::new());
    let config =
        Config::new(&loaded.unwrap().settings, Host::default(), Keyring::new(Vec::new(), 1, &[]));
    let mut agent = Agent::new(config, Memory::default(), Running::default(), 1, at(0));
    let mut actions = Vec::new();
    agent.boot(at(0), &mut actions);
    agent.handle(Event::Staged(Staged::Nothing), at(0), &mut actions);
    agent.handle(Event::WorkloadStarted { pid: 7 }, at(0), &mut actions);
    (agent, actions)
}

fn at(seconds: u64) -> Now {
    let since = Duration::from_secs(seconds);
    Now { mono: Mono(since), wall: Wall(since) }
}

#[test]
fn without_checks_nothing_wakes_up_but_for_the_figures() {
    let (mut agent, _) = core("");
    let mut woken = Vec::new();
    loop {
        let now = agent.deadline().expect("the next figures").0.as_secs();
        if now > 3600 {
            break;
        }
        let mut actions = Vec::new();
        agent.handle(Event::Tick, at(now), &mut actions);
        let rounds: Vec<_> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Measure { round } => Some(*round),
                _ => None,
            })
            .collect();
        assert_eq!((rounds.len(), actions.len()), (1, 1), "{actions:?}");
        woken.push(now);
        let figures = Figures { memory_usage: Some(now), ..Figures::default() };
        let stale = Figures { memory_usage: Some(1), ..Figures::default() };
        let mut after = Vec::new();
        agent.handle(Event::Measured { round: rounds[0] - 1, figures: stale }, at(now), &mut after);
        agent.handle(Event::Measured { round: rounds[0], figures }, at(now), &mut after);
        let health = agent.snapshot().health;
        let shown = &health.component_health_map["workload"].attributes;
        let value = shown[0].value.as_ref().unwrap().value.as_ref().unwrap();
        assert_eq!(value, &Value::IntValue(now.try_into().unwrap()));
        assert!(health.attributes.is_empty());
    }
    assert_eq!(woken, (1..=12).map(|count| count * 300).collect::<Vec<_>>());
    // What was measured of a process does not outlive it, and a process that is gone is not measured.
    let mut actions = Vec::new();
    agent.handle(Event::WorkloadExited("exited".to_owned()), at(3700), &mut actions);
    let health = agent.snapshot().health;
    assert!(health.component_health_map["workload"].attributes.is_empty());
    actions.clear();
    agent.handle(Event::Tick, at(9999), &mut actions);
    assert!(!actions.iter().any(|action| matches!(action, Action::Measure { .. })), "{actions:?}");
}

#[test]
fn figures_that_nobody_wants_are_not_taken() {
    for health in ["metrics: []", "metrics: [goroutines]", "metrics: [spans_rate, export_latency]"]
    {
        assert_eq!(core(health).0.deadline(), None, "{health}");
    }
    assert!(core("metrics: [goroutines], scrape: 'http://a/'").0.deadline().is_some());
}
