//! The `chiton-server` binary.

mod arguments;

use std::fmt::Display;
use std::io::Write as _;
use std::process::ExitCode;

use chiton_server::{Config, Server};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::Command;

/// It could not start, or not end in order.
const EXIT_FAILURE: u8 = 1;
/// The arguments make no sense.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match arguments::parse(lexopt::Parser::from_env()) {
        Ok(Command::Run(config)) => match run(*config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(EXIT_FAILURE, &error),
        },
        Ok(Command::Print(text)) => {
            say(text);
            ExitCode::SUCCESS
        }
        Err(error) => complain(EXIT_USAGE, &error),
    }
}

fn run(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let scheme = if config.tls.is_some() { "wss" } else { "ws" };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // Before anything is served, so that no signal is missed.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let running = Server::start(config).await?;
        say(format_args!("agents: {scheme}://{}/v1/opamp", running.opamp_addr()));
        say(format_args!("page and REST: http://{}/", running.rest_addr()));
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        running.shutdown().await;
        Ok(())
    })
}

fn say(text: impl Display) {
    // Whoever closed our stdout does not want to read it.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

fn complain(code: u8, error: &dyn Display) -> ExitCode {
    let _ = writeln!(std::io::stderr().lock(), "chiton-server: {error}");
    ExitCode::from(code)
}
