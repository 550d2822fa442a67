//! Two thousand agents get new certificates while one step in twenty goes wrong and the server restarts once: every
//! one ends with a certificate that works.
//!
//! The agents are in this process and speak over plain WebSockets on loopback. They keep the rules that Chiton keeps:
//! staged and counted on their "disk" before the trial, the old certificate until the new one has been answered, FAILED
//! with a reason otherwise. At the end each one connects by mTLS, with what it has, to a server that lets nobody else in.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::print_stdout,
    reason = "a test stops at what it did not expect; this one prints its figures"
)]

mod agent;
#[expect(dead_code, reason = "shared with the other tests, which use all of it")]
#[path = "../server/client.rs"]
mod client;
#[path = "../server/tls.rs"]
mod tls;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chiton_server::{
    Approval, AuthorityConfig, ClientAuth, Config, Database, Journal, Running, Server,
};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use crate::agent::{Disk, Sim, World};
use crate::client::{get, post_json, quiet, report, upgrade};

const AGENTS: usize = 2000;
/// Far beyond what it takes: who needs longer hangs.
const PATIENCE: Duration = Duration::from_secs(300);
/// TLS handshakes at once, at the end.
const PROOFS: usize = 64;

async fn shown(running: &Running) -> Value {
    get(running.rest_addr(), "/api/v1/rotations").await.json()["rotations"][0].clone()
}

async fn wait_for(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_agents_with_faults() {
    let directory = tempfile::tempdir().unwrap();
    let authority = AuthorityConfig {
        approval: Approval::Auto,
        ..AuthorityConfig::new(directory.path().join("ca"))
    };
    let mut config = Config {
        authority: Some(authority.clone()),
        database: Database::File(directory.path().join("state.db")),
        journal: Journal::Silent,
        ..quiet()
    };
    let running = Server::start(config.clone()).await.unwrap();
    (config.opamp, config.rest) = (running.opamp_addr(), running.rest_addr());

    // Everybody comes; every second one asks for a certificate for a key of its own.
    let (stop, stopped) = watch::channel(false);
    let world = Arc::new(World::new(
        running.opamp_addr(),
        &get(running.rest_addr(), "/api/v1/ca").await.body,
    ));
    let begun = Instant::now();
    let agents: Vec<_> = (0..AGENTS)
        .map(|number| tokio::spawn(Sim::new(number, Arc::clone(&world)).run(stopped.clone())))
        .collect();
    let ready = || world.ready.load(Ordering::Relaxed) == AGENTS;
    wait_for("enrollment", async || ready()).await;
    let enrolled = begun.elapsed();

    world.faults.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    let plan =
        json!({"target": "env=test", "concurrency": 200, "retries": 10, "timeout_seconds": 30});
    let answer =
        post_json(running.rest_addr(), "/api/v1/rotations", &plan.to_string()).await.json();
    assert_eq!(answer["agents"], AGENTS, "{answer}");
    wait_for("the middle", async || {
        shown(&running).await["agents"]["applied"].as_u64().unwrap() > 600
    })
    .await;
    running.shutdown().await;
    let running = Server::start(config).await.unwrap();
    wait_for("the end", async || shown(&running).await["ended"] != Value::Null).await;
    let rotated = begun.elapsed();
    let end = shown(&running).await;
    assert_eq!(end["agents"]["applied"], AGENTS, "{end}");
    stop.send_replace(true);
    let mut disks: Vec<Disk> = Vec::new();
    for agent in agents {
        disks.push(agent.await.unwrap());
    }
    running.shutdown().await;

    // Each by mTLS, with what is on its disk.
    let begun = Instant::now();
    let host = tls::authority();
    let files = tls::files(directory.path(), &host, false);
    let strict = Config {
        authority: Some(authority),
        tls: Some(files),
        client_auth: ClientAuth::Required,
        ..quiet()
    };
    let strict = Arc::new(Server::start(strict).await.unwrap());
    let host = Arc::new(host);
    assert!(tls::is_refused(tls::connect(&strict, &host, None).await).await, "nobody without one");
    let room = Arc::new(Semaphore::new(PROOFS));
    let proofs: Vec<_> = disks
        .into_iter()
        .map(|disk| {
            let (room, strict, host) = (Arc::clone(&room), Arc::clone(&strict), Arc::clone(&host));
            tokio::spawn(async move {
                let _turn = room.acquire_owned().await.unwrap();
                let committed = disk.committed.unwrap();
                assert_ne!(Some(&committed.cert), disk.first.as_ref(), "it was rotated");
                let identity = Some((committed.cert, committed.key));
                let stream = tls::connect(&strict, &host, identity).await.unwrap();
                let mut agent = upgrade(Box::new(stream)).await;
                assert_eq!(agent.ask(&report(disk.uid, 0)).await.error_response, None);
            })
        })
        .collect();
    for proof in proofs {
        proof.await.unwrap();
    }
    let count = |counter: &std::sync::atomic::AtomicUsize| counter.load(Ordering::Relaxed);
    println!(
        "{AGENTS} agents: enrolled {:.1} s; rotated {:.1} s with a restart of the server, {} at the first try; faults: {} \
         connections dropped before the trial, {} certificates not taken, {} restarts in the trial, {} dropped before \
         APPLIED; {AGENTS} mTLS connections {:.1} s",
        enrolled.as_secs_f64(),
        rotated.as_secs_f64(),
        end["agents"]["at_first_try"],
        count(&world.dropped),
        count(&world.refused),
        count(&world.restarted),
        count(&world.unsaid),
        begun.elapsed().as_secs_f64(),
    );
    for counter in [&world.dropped, &world.refused, &world.restarted, &world.unsaid] {
        assert!(count(counter) > AGENTS / 100, "every fault must occur");
    }
}
