//! A small program for Chiton to manage: it greets, and answers health checks.
//!
//! `sample-workload FILE` runs it, `sample-workload validate FILE` only reads the file. The file holds
//! `key: value` lines:
//!
//! ```yaml
//! greeting: hello       # printed now and then
//! port: 8080            # HTTP 200 on 127.0.0.1, for health checks
//! crash: true           # ends at once with status 1, as a bad config would make a real one do
//! ```

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a sample: talking is what it does")]
#![expect(
    clippy::disallowed_methods,
    reason = "a sample: the agent's rules on threads and sleep are not for it"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fs, thread};

/// Between two greetings.
const GREETING_INTERVAL: Duration = Duration::from_secs(10);
/// How long a health check may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// What the file says.
struct Settings {
    greeting: String,
    port: u16,
    crash: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["validate", file] => read(file).map(|_| ()),
        [file] => read(file).and_then(run),
        _ => Err("usage: sample-workload [validate] FILE".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sample-workload: {error}");
            ExitCode::FAILURE
        }
    }
}

fn read(file: &str) -> Result<Settings, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let mut settings = Settings { greeting: String::new(), port: 0, crash: false };
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') || line == "---" {
            continue;
        }
        let fault = |why: &str| format!("{file}:{number}: {why}");
        let (key, value) = line.split_once(':').ok_or_else(|| fault("it must be `key: value`"))?;
        let value = value.trim().trim_matches(['"', '\'']);
        match key.trim() {
            "greeting" => settings.greeting = value.to_owned(),
            "port" => {
                settings.port = value.parse().map_err(|_| fault("port must be 1 to 65535"))?;
            }
            "crash" => {
                settings.crash = value.parse().map_err(|_| fault("crash must be true or false"))?;
            }
            other => {
                return Err(fault(&format!(
                    "unknown key {other}; known are greeting, port, crash"
                )));
            }
        }
    }
    if settings.greeting.is_empty() {
        return Err(format!("{file}: greeting is missing"));
    }
    if settings.port == 0 {
        return Err(format!("{file}: port is missing"));
    }
    Ok(settings)
}

fn run(settings: Settings) -> Result<(), String> {
    let Settings { greeting, port, crash } = settings;
    if crash {
        return Err("the config told me to crash".to_owned());
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(|error| format!("port {port}: {error}"))?;
    thread::spawn(move || {
        loop {
            println!("{greeting}");
            thread::sleep(GREETING_INTERVAL);
        }
    });
    for connection in listener.incoming() {
        let Ok(mut connection) = connection else { continue };
        // A check that goes away or dawdles is its own problem.
        let _ = connection.set_read_timeout(Some(REQUEST_TIMEOUT));
        let _ = connection.read(&mut [0; 1024]);
        let _ = connection
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n");
    }
    Ok(())
}
