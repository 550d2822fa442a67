//! The command line: what PRODUCT.md §2 promises.

mod check;
mod good;
mod recover;
mod retry;
mod run;
mod signing;
mod status;
mod version;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use lexopt::prelude::*;

/// All is well.
pub const OK: u8 = 0;
/// It failed, or the agent is unhealthy.
pub const FAILED: u8 = 1;
/// The command line is wrong.
pub const USAGE: u8 = 2;
/// No agent runs.
pub const NOT_RUNNING: u8 = 3;
/// The settings are bad (`EX_CONFIG`).
pub const BAD_SETTINGS: u8 = 78;

/// Where the settings are when nothing says otherwise.
const DEFAULT_CONFIG: &str = "/etc/chiton/chiton.yaml";

const HELP: &str = "\
chiton: an OpAMP agent for the edge

Usage: chiton COMMAND [OPTIONS] [HASH]

Commands:
  run      run the agent: keep the connection, manage the workload;
           SIGHUP makes it read the settings again
  recover  undo an interrupted change on the disk, as run does at its start;
           for a oneshot before a workload that the init system starts
  retry    make the running agent forget what failed, so that the next offer
           of it is tried again: all, or HASH as status shows it
  check    validate the settings and what they point to; print what is in force
  status   ask the running agent how it is
  version  print version, target and protocol version
  keygen   make a key for signing packages and configurations
  sign     sign a file with it
  verify   check a file's signature; `chiton sign --help` and the like tell more

Options:
  --config FILE   the settings file (default /etc/chiton/chiton.yaml);
                  conf.d/*.yaml beside it is merged over it
  --json          status, version: for programs
  -h, --help      this text

Exit codes: 0 well; 1 failed or unhealthy; 2 wrong usage; 3 no agent runs; 78 bad settings.

To begin: write the settings, try them with `chiton check --config FILE`, then
`chiton run --config FILE`.
";

enum Command {
    Run(PathBuf),
    Recover(PathBuf),
    Check(PathBuf),
    Status { config: Option<PathBuf>, json: bool },
    Retry { config: Option<PathBuf>, hash: Option<String> },
    Version { json: bool },
    Signing(signing::Job),
    Help,
}

/// Does what the arguments say; returns the exit code.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    match parse(arguments) {
        Ok(Command::Run(config)) => run::run(&config),
        Ok(Command::Recover(config)) => recover::run(&config),
        Ok(Command::Check(config)) => check::run(&config),
        Ok(Command::Status { config, json }) => status::run(config.as_deref(), json),
        Ok(Command::Retry { config, hash }) => retry::run(config.as_deref(), hash.as_deref()),
        Ok(Command::Version { json }) => version::run(json),
        Ok(Command::Signing(job)) => signing::run(&job),
        Ok(Command::Help) => print(HELP),
        Err(error) => {
            complain(&format!("{error}; `chiton --help` shows what there is"));
            USAGE
        }
    }
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, lexopt::Error> {
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut command = None;
    let mut config = None;
    let mut json = false;
    let mut hash = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Help),
            Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("json") => json = true,
            Long("version") if command.is_none() => command = Some("version".to_owned()),
            Value(word) if command.is_none() => {
                let word = word.string()?;
                match signing::parse(&word, &mut parser) {
                    Some(_) if json => return Err("--json goes with status and version".into()),
                    Some(_) if config.is_some() => {
                        return Err(format!("--config does not go with {word}").into());
                    }
                    Some(job) => return Ok(Command::Signing(job)),
                    None => command = Some(word),
                }
            }
            Value(word) if command.as_deref() == Some("retry") && hash.is_none() => {
                hash = Some(word.string()?);
            }
            other => return Err(other.unexpected()),
        }
    }
    let file = || config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG));
    let parsed = match command.as_deref() {
        Some("run") => Command::Run(file()),
        Some("recover") => Command::Recover(file()),
        Some("check") => Command::Check(file()),
        Some("status") => Command::Status { config: config.clone(), json },
        Some("retry") => Command::Retry { config: config.clone(), hash },
        Some("version") => Command::Version { json },
        Some("help") => Command::Help,
        Some(other) => return Err(format!("there is no command {other:?}").into()),
        None => return Err("a command is missing".into()),
    };
    if json && !matches!(parsed, Command::Status { .. } | Command::Version { .. }) {
        return Err("--json goes with status and version".into());
    }
    if config.is_some() && matches!(parsed, Command::Version { .. }) {
        return Err("--config does not go with version".into());
    }
    Ok(parsed)
}

/// Prints to stdout; a closed pipe is not our fault, anything else is reported.
fn print(text: &str) -> u8 {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => OK,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => OK,
        Err(error) => {
            complain(&format!("stdout: {error}"));
            FAILED
        }
    }
}

/// One line to stderr.
fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "chiton: {text}");
}
