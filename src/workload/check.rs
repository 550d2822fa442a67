//! Health checks: an HTTP GET, a TCP connection, a command, what the workload uses. Each ends within its limit.

use core::fmt;
use core::future::poll_fn;
use core::pin::Pin;
use core::task::Poll;
use core::time::Duration;
use std::error::Error;
use std::io;
use std::net::{SocketAddr, TcpStream};

use smol::io::{AsyncReadExt, AsyncWriteExt};

use super::command;
use super::family::Kind;
use super::spawn::Spec;
use crate::agent::health::{CheckResult, Pass};
use crate::net;
use crate::reactor::{Io, within};
use crate::settings::endpoint::Authority;
use crate::settings::{Bytes, Check, CheckKind, HttpTarget};

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
    /// The answer is longer than so many bytes.
    TooLong(usize),
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
            Self::TooLong(most) => write!(f, "the answer is longer than {most} bytes"),
            Self::TimedOut(limit) => write!(f, "no result within {limit:?}"),
            Self::Command(outcome) => outcome.fmt(f),
        }
    }
}

impl Error for CheckFailure {}

/// What a workload uses, for the checks.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Resident memory, bytes.
    pub memory: u64,
    /// Cores; [`None`] before there is a second figure.
    pub cores: Option<f64>,
}

/// Runs all checks at once, each within its own limit. `programs` are those of the `exec` checks, in their order, or why
/// one cannot be run. `load` is what the workload uses, or why that is not known; [`None`]: there is nothing to measure.
pub async fn run_all(
    checks: &[Check],
    programs: Vec<Result<Spec, String>>,
    load: Option<&Result<Load, String>>,
) -> Vec<CheckResult> {
    let mut programs = programs.into_iter();
    let mut running: Vec<Pin<Box<dyn Future<Output = CheckResult> + '_>>> = checks
        .iter()
        .filter(|check| !check.kind.is_limit())
        .map(|check| {
            let program = match &check.kind {
                CheckKind::Exec(_) => programs.next(),
                _ => None,
            };
            Box::pin(run(check, program)) as _
        })
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
    let limits = checks.iter().filter_map(|check| limit(&check.kind, load?));
    results.into_iter().flatten().chain(limits).collect()
}

/// A check that failed at a limit is well again only this far below it.
const MARGIN: f64 = 0.95;

/// Whether a limit is kept; [`None`]: the check is no limit.
#[must_use]
pub fn limit(kind: &CheckKind, load: &Result<Load, String>) -> Option<CheckResult> {
    let name = match kind {
        CheckKind::MemoryMax(most) => format!("memory_max {}", Bytes(*most)),
        CheckKind::CpuMax(most) => format!("cpu_max {most}"),
        _ => return None,
    };
    let judge = |used: f64, most: f64, words: &dyn Fn() -> String| match used {
        used if used > most => (Some(words()), Pass::Clear),
        used if used > most * MARGIN => (None, Pass::Near),
        _ => (None, Pass::Clear),
    };
    #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
    let (failure, pass) = match (kind, load) {
        (_, Err(why)) => (Some(why.clone()), Pass::Clear),
        (CheckKind::MemoryMax(most), Ok(load)) => judge(load.memory as f64, *most as f64, &|| {
            format!("{:.1} MiB are resident", load.memory as f64 / (1024.0 * 1024.0))
        }),
        (CheckKind::CpuMax(most), Ok(Load { cores: Some(cores), .. })) => {
            judge(*cores, *most, &|| format!("{cores:.2} cores are in use"))
        }
        _ => (None, Pass::Unmeasured),
    };
    Some(CheckResult { name, failure, pass })
}

async fn run(check: &Check, program: Option<Result<Spec, String>>) -> CheckResult {
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
            let spec = match program.unwrap_or_else(|| Err("it has no program".to_owned())) {
                Ok(spec) => Spec { kind: Kind::Probe, ..spec },
                Err(why) => return CheckResult { name, failure: Some(why), pass: Pass::Clear },
            };
            (name, exec(&spec, check.timeout).await)
        }
        // `limit` is for these.
        CheckKind::MemoryMax(_) | CheckKind::CpuMax(_) => return CheckResult::default(),
    };
    let failure = result.err().map(|failure| failure.why.to_string());
    CheckResult { name, failure, pass: Pass::Clear }
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
pub(super) async fn open(host: &str, port: u16, limit: Duration) -> Result<Io<TcpStream>, Why> {
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
pub(super) fn parse_status(line: &[u8]) -> Option<u16> {
    let line = core::str::from_utf8(line).ok()?;
    let (minor, rest) = line.strip_prefix("HTTP/1.")?.split_once(' ')?;
    let code = rest.trim_end_matches('\r').split(' ').next()?;
    let digits =
        |text: &str, count| text.len() == count && text.bytes().all(|b| b.is_ascii_digit());
    (digits(minor, 1) && digits(code, 3)).then(|| code.parse().ok())?
}
