//! The whole loop on one machine: a server, an agent, a workload, a config that arrives, a bad one that is
//! rolled back. It goes on until Ctrl-C, which leaves nothing running.

#![expect(clippy::indexing_slicing, reason = "a serde_json::Value gives null where it has nothing")]

mod agent;
mod client;
mod diff;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use chiton_server::{Config, Database, Journal, Running, Server, StartError};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use crate::agent::{Agent, Home};
use crate::client::Client;

/// The ports that the documentation names; where they are taken, free ones are used.
const PORTS: (u16, u16) = (4320, 4321);
/// Between two looks at the server.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// No step takes so long on a working machine.
const STEP_LIMIT: Duration = Duration::from_secs(60);
/// Whom the demo pushes to.
const TARGET: &str = "env=demo";

/// Whatever went wrong, for the person who watches.
type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(demo()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr().lock(), "chiton-demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn demo() -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let running = start_server().await?;
    let told_to_end = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    let result = with_agent(&running, told_to_end).await;
    running.shutdown().await;
    if result.is_ok() {
        say("Agent, workload and server have ended; nothing is left running.");
    }
    result
}

async fn with_agent(
    running: &Running,
    told_to_end: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let home = Home::furnish(running.opamp_addr())?;
    let mut agent = Agent::start(&home)?;
    let show = async {
        walk_through(running, &home).await?;
        std::future::pending().await
    };
    let result = tokio::select! {
        result = show => result,
        () = told_to_end => Ok(()),
        failure = agent.ended() => Err(failure),
    };
    say("");
    if result.is_err() {
        say(format_args!("What the agent logged last:\n{}", indented(&home.last_words())));
    }
    result.and(agent.stop().await)
}

async fn start_server() -> Result<Running, StartError> {
    let on = |opamp: u16, rest: u16| Config {
        opamp: SocketAddr::from((Ipv4Addr::LOCALHOST, opamp)),
        rest: SocketAddr::from((Ipv4Addr::LOCALHOST, rest)),
        database: Database::Memory,
        journal: Journal::Silent,
        ..Config::default()
    };
    match Server::start(on(PORTS.0, PORTS.1)).await {
        Err(StartError::Listen(..)) => Server::start(on(0, 0)).await,
        other => other,
    }
}

async fn walk_through(running: &Running, home: &Home) -> Result<(), Failure> {
    let client = Client::new(running.rest_addr());
    say(format_args!("The server is up. Its page: http://{}/", running.rest_addr()));
    say(format_args!("Agents connect to ws://{}/v1/opamp", running.opamp_addr()));
    say(format_args!(
        "The agent is started with the settings in {}",
        home.settings_file().display()
    ));

    step("1. The agent connects, and its workload is healthy with its local config");
    let first =
        wait_for(&client, |agent| agent["connected"] == true && agent["health"]["healthy"] == true)
            .await?;
    let uid = text(&first["instance_uid"]);
    say(format_args!("agent {uid}"));
    say(format_args!("health: {}", text(&first["health"]["status"])));
    say("effective config:");
    let before = effective(&client, &uid).await?;
    say(indented(&before));

    step("2. A new config is pushed");
    let body = format!("greeting: hello from the server\nport: {}\n", home.workload_port());
    let hash = push(&client, &body).await?;
    let applied = wait_for(&client, |agent| reports(agent, &hash, &["APPLIED", "FAILED"])).await?;
    if applied["remote_config_status"]["status"] != "APPLIED" {
        return Err(format!(
            "the config failed: {}",
            text(&applied["remote_config_status"]["error_message"])
        )
        .into());
    }
    say("APPLIED: the workload runs with it and passed its health gate. What changed:");
    let after = effective(&client, &uid).await?;
    say(indented(&diff::lines(&before, &after)));

    step("3. A config that makes the workload crash is pushed");
    let hash = push(&client, &format!("{body}crash: true\n")).await?;
    let failed = wait_for(&client, |agent| reports(agent, &hash, &["APPLIED", "FAILED"])).await?;
    if failed["remote_config_status"]["status"] != "FAILED" {
        return Err("a config that crashes the workload was reported as applied".into());
    }
    say(format_args!("FAILED: {}", text(&failed["remote_config_status"]["error_message"])));
    wait_for(&client, |agent| agent["health"]["healthy"] == true).await?;
    let now = effective(&client, &uid).await?;
    if now == after {
        say(
            "The agent went back by itself: the workload runs the config of step 2, and the server will not",
        );
        say("offer this one again.");
    } else {
        return Err(format!(
            "the effective config is not that of step 2:\n{}",
            diff::lines(&after, &now)
        )
        .into());
    }

    step("4. A signed package is offered, and then one that somebody tampered with");
    let (file, signature) = home.sign("words", "1.0", "good words\n")?;
    let told = offer(&client, "1.0", &file, &signature).await?;
    if told["status"] != "Installed" {
        return Err(format!("the package failed: {}", text(&told["error_message"])).into());
    }
    say(format_args!("Installed: words 1.0, and in it: {}", home.installed("words")?.trim_end()));
    let (_, signature) = home.sign("words", "2.0", "better words\n")?;
    let told = offer(&client, "2.0", b"evil words\n", &signature).await?;
    if told["status"] != "InstallFailed" || home.installed("words")? != "good words\n" {
        return Err("what nobody signed was installed".into());
    }
    say(format_args!("InstallFailed: {}", text(&told["error_message"])));
    say("Not a byte of it was fetched; version 1.0 is still there.");

    step("Now it is yours");
    say(format_args!(
        "Open http://{}/ to see the agent and to push a config, or:",
        running.rest_addr()
    ));
    let body = json!({"target": TARGET, "files": {"": format!("greeting: good evening\nport: {}\n", home.workload_port())}});
    say(format_args!(
        "  curl http://{}/api/v1/config -H 'Content-Type: application/json' -d '{body}'",
        running.rest_addr()
    ));
    say("Ctrl-C ends everything.");
    Ok(())
}

/// Waits until the demo's agent is as it should be.
async fn wait_for(client: &Client, is_so: impl Fn(&Value) -> bool) -> Result<Value, Failure> {
    let mut last = Value::Null;
    let look = async {
        loop {
            let list = client.get("/api/v1/agents").await?;
            if let Some(agent) = list["agents"].as_array().and_then(|agents| agents.first()) {
                last = agent.clone();
                if is_so(agent) {
                    return Ok(agent.clone());
                }
            }
            sleep(LOOK_INTERVAL).await;
        }
    };
    match timeout(STEP_LIMIT, look).await {
        Ok(result) => result,
        Err(_) => Err(format!(
            "it did not happen within {} s; the agent's state: {last:#}",
            STEP_LIMIT.as_secs()
        )
        .into()),
    }
}

async fn push(client: &Client, body: &str) -> Result<String, Failure> {
    say("pushed to every agent with env=demo:");
    say(indented(body));
    let answer =
        client.post("/api/v1/config", &json!({"target": TARGET, "files": {"": body}})).await?;
    Ok(text(&answer["hash"]))
}

/// Uploads a version of the package `words`, offers it, and waits for what the agent says in the end.
async fn offer(
    client: &Client,
    version: &str,
    file: &[u8],
    signature: &[u8],
) -> Result<Value, Failure> {
    let path = format!("/api/v1/packages/words/{version}");
    client.put(&format!("{path}?type=addon"), file).await?;
    client.put(&format!("{path}/signature"), signature).await?;
    let packages = json!([{"name": "words", "version": version}]);
    let offer = json!({"target": TARGET, "packages": packages});
    client.put("/api/v1/offers/packages", offer.to_string().as_bytes()).await?;
    let agent = wait_for(client, |agent| {
        let package = &agent["packages"]["words"];
        package["offered_version"] == version
            && package["status"].as_str().is_some_and(|status| status.starts_with("Install"))
            && !["InstallPending", "Installing"].contains(&package["status"].as_str().unwrap_or(""))
    });
    Ok(agent.await?["packages"]["words"].clone())
}

async fn effective(client: &Client, uid: &str) -> Result<String, Failure> {
    let detail = client.get(&format!("/api/v1/agents/{uid}")).await?;
    let files: BTreeMap<String, String> =
        serde_json::from_value(detail["effective_config"].clone()).unwrap_or_default();
    Ok(files.into_values().collect::<Vec<_>>().join("\n"))
}

fn reports(agent: &Value, hash: &str, states: &[&str]) -> bool {
    let status = &agent["remote_config_status"];
    status["hash"] == hash && status["status"].as_str().is_some_and(|state| states.contains(&state))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn indented(lines: &str) -> String {
    lines.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn step(title: &str) {
    say(format_args!("\n{title}"));
}

fn say(line: impl Display) {
    // Whoever closed our stdout does not want to read it.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
