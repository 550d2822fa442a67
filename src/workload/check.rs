//! Health checks: an HTTP GET, a TCP connection, a command. Each ends within its limit.

use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::Poll;
use core::time::Duration;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};

use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::command;
use super::family::Kind;
use super::spawn::Spec;
use crate::agent::health::CheckResult;
use crate::net;
use crate::reactor::{Io, within};
use crate::settings::{Check, CheckKind, HttpTarget};

/// Bytes read of an answer: the status line is all that counts.
pub const MAX_STATUS_LINE: usize = 1024;

/// A check that did not pass: what was checked, and why it failed.
#[derive(Debug)]
pub struct CheckFailure {
    /// Such as `GET http://127.0.0.1:13133/`.
    pub what: String,
    /// What went wrong.
    pub why: Why,
}

/// Why a check failed.
#[derive(Debug)]
pub enum Why {
    /// Its name has no address.
    Unresolved(io::Error),
    /// No address could be connected to; the last one's error.
    Unreachable(SocketAddr, io::Error),
    /// The connection broke.
    Broken(io::Error),
    /// The answer is not HTTP.
    NotHttp,
    /// Another status than 2xx.
    Status(u16),
    /// It took longer than this.
    TimedOut(Duration),
    /// The command failed.
    Command(command::CommandOutcome),
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unresolved(error) => write!(f, "name lookup failed: {error}"),
            Self::Unreachable(address, error) => write!(f, "cannot connect to {address}: {error}"),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::NotHttp => f.write_str("the answer is not HTTP"),
            Self::Status(status) => write!(f, "answered with status {status}"),
            Self::TimedOut(limit) => write!(f, "no result within {limit:?}"),
            Self::Command(outcome) => outcome.fmt(f),
        }
    }
}

impl Error for CheckFailure {}

/// Runs all checks at once, each within its own limit. `spec` is how a check's program is started: its `argv` is put
/// in here.
pub async fn run_all(checks: &[Check], spec: &Spec) -> Vec<CheckResult> {
    let mut running: Vec<Pin<Box<dyn Future<Output = CheckResult> + '_>>> = checks
        .iter()
        .filter(|check| check.kind.is_in_force())
        .map(|check| Box::pin(run(check, spec)) as _)
        .collect();
    let mut results: Vec<Option<CheckResult>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, slot) in running.iter_mut().zip(&mut results) {
            if slot.is_none()
                && let Poll::Ready(result) = future.as_mut().poll(cx)
            {
                *slot = Some(result);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}

async fn run(check: &Check, spec: &Spec) -> CheckResult {
    let (name, result) = match &check.kind {
        CheckKind::Http(target) => {
            let name =
                format!("http http://{}{}", Authority(&target.host, target.port), target.path);
            (name, http(target, check.timeout).await)
        }
        CheckKind::Tcp { host, port } => {
            (format!("tcp {}", Authority(host, *port)), tcp(host, *port, check.timeout).await)
        }
        CheckKind::Exec(argv) => {
            let name = format!("exec {}", argv.join(" "));
            let argv = argv.iter().map(Into::into).collect();
            let spec = Spec { argv, kind: Kind::Probe, ..spec.clone() };
            (name, exec(&spec, check.timeout).await)
        }
        // Not in force: never run. Should one be, it must not look like a pass.
        CheckKind::MemoryMax(_) | CheckKind::CpuMax(_) => {
            let failure = Some("this kind of check is not in force yet".to_owned());
            return CheckResult { name: "not in force".to_owned(), failure };
        }
    };
    CheckResult { name, failure: result.err().map(|failure| failure.why.to_string()) }
}

/// GET answers 2xx.
///
/// # Errors
/// When it does not, in time.
pub async fn http(target: &HttpTarget, limit: Duration) -> Result<(), CheckFailure> {
    let host = Authority(&target.host, target.port);
    let get = async {
        let mut stream = open(&target.host, target.port, limit).await?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: chiton\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            target.path
        );
        stream.write_all(request.as_bytes()).await.map_err(Why::Broken)?;
        match read_status(&mut stream).await? {
            200..=299 => Ok(()),
            status => Err(Why::Status(status)),
        }
    };
    let done = within(limit, get).await.unwrap_or(Err(Why::TimedOut(limit)));
    done.map_err(|why| CheckFailure { what: format!("GET http://{host}{}", target.path), why })
}

/// A TCP connection succeeds.
///
/// # Errors
/// When it does not, in time.
pub async fn tcp(host: &str, port: u16, limit: Duration) -> Result<(), CheckFailure> {
    let opened = within(limit, open(host, port, limit)).await;
    match opened.unwrap_or(Err(Why::TimedOut(limit))) {
        Ok(_) => Ok(()),
        Err(why) => Err(CheckFailure { what: format!("TCP {}", Authority(host, port)), why }),
    }
}

/// A program ends with 0.
///
/// # Errors
/// When it does not, in time.
pub async fn exec(spec: &Spec, limit: Duration) -> Result<(), CheckFailure> {
    let outcome = command::run(spec, limit).await;
    if outcome.success() {
        return Ok(());
    }
    let program = spec.argv.first().map(|program| program.to_string_lossy());
    let what = program.map_or_else(|| "empty command".to_owned(), std::borrow::Cow::into_owned);
    Err(CheckFailure { what, why: Why::Command(outcome) })
}

/// Connects to the first address that will have it.
async fn open(host: &str, port: u16, limit: Duration) -> Result<Io<TcpStream>, Why> {
    let addresses = net::resolve(host, port).await.map_err(Why::Unresolved)?;
    let mut failed = Why::Unresolved(io::ErrorKind::NotFound.into());
    for address in addresses {
        match net::connect(address, limit).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = Why::Unreachable(address, error),
        }
    }
    Err(failed)
}

async fn read_status(stream: &mut Io<TcpStream>) -> Result<u16, Why> {
    let mut buffer = [0; MAX_STATUS_LINE];
    let mut filled: usize = 0;
    loop {
        // A full buffer reads nothing more: a line of that length is no status line.
        let room = buffer.get_mut(filled..).unwrap_or_default();
        let count = stream.read(room).await.map_err(Why::Broken)?;
        filled = filled.saturating_add(count);
        let received = buffer.get(..filled).unwrap_or_default();
        if let Some(end) = received.iter().position(|byte| *byte == b'\n') {
            return received.get(..end).and_then(parse_status).ok_or(Why::NotHttp);
        }
        if count == 0 {
            return Err(Why::NotHttp);
        }
    }
}

/// `HTTP/1.1 200 OK`, the words at the end left to the server's taste.
fn parse_status(line: &[u8]) -> Option<u16> {
    let line = core::str::from_utf8(line).ok()?;
    let (minor, rest) = line.strip_prefix("HTTP/1.")?.split_once(' ')?;
    let code = rest.trim_end_matches('\r').split(' ').next()?;
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    (digits(minor, 1) && digits(code, 3)).then(|| code.parse().ok())?
}

/// `host:port` with the brackets of IPv6.
struct Authority<'a>(&'a str, u16);

impl fmt::Display for Authority<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.parse() {
            Ok(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.1),
            _ => write!(f, "{}:{}", self.0, self.1),
        }
    }
}
