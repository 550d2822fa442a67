//! `chiton status`: asks the running agent, and shows the answer to eyes or to scripts.

use core::time::Duration;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{DEFAULT_CONFIG, FAILED, NOT_RUNNING, OK, complain, good, print};
use crate::runtime::default_socket;

/// The agent answers at once, or something is wrong with it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer that is read.
const MAX_DOCUMENT: u64 = 1 << 20;

pub(super) fn run(config: Option<&Path>, json: bool) -> u8 {
    let socket = socket(config);
    let document = match ask(&socket, "status") {
        Ok(document) => document,
        Err(error) => {
            complain(&format!("no agent answers at {}: {error}", socket.display()));
            return NOT_RUNNING;
        }
    };
    // JSON is YAML: the same library that reads settings reads it, and writes it for eyes.
    let parsed: serde_yaml::Value = match serde_yaml::from_str(&document) {
        Ok(parsed) => parsed,
        Err(error) => {
            complain(&format!("the agent's answer is not JSON: {error}"));
            return FAILED;
        }
    };
    let healthy = parsed.get("healthy").and_then(serde_yaml::Value::as_bool).unwrap_or(false);
    let printed = if json {
        print(&document)
    } else {
        print(&serde_yaml::to_string(&parsed).unwrap_or(document))
    };
    if printed != OK {
        printed
    } else if healthy {
        OK
    } else {
        FAILED
    }
}

/// The socket that the settings name, or named when they were last good.
pub(super) fn socket(config: Option<&Path>) -> PathBuf {
    let file = config.unwrap_or_else(|| Path::new(DEFAULT_CONFIG));
    good::status_socket(file).unwrap_or_else(default_socket)
}

/// Asks the agent at this socket one thing.
pub(super) fn ask(socket: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut document = String::new();
    stream.take(MAX_DOCUMENT).read_to_string(&mut document)?;
    Ok(document)
}
