//! `chiton keygen`, `chiton sign`, `chiton verify`: keys and signatures of packages and configurations.

mod keygen;
mod output;
mod sign;
mod verify;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{FAILED, USAGE, complain, print};
use crate::clock::{Wall, trusted_wall};
use crate::signature::PublicKey;
use crate::transport::tls::MAX_PEM;

/// Bytes that are hashed at a time.
const CHUNK: usize = 64 * 1024;

/// What one of these commands was asked to do.
pub(super) enum Job {
    Keygen(PathBuf),
    Sign(Box<sign::Job>),
    Verify(verify::Job),
    Help(&'static str),
    /// The command line is wrong.
    Usage(String),
}

/// Reads the arguments after `word`; [`None`]: it is not one of these commands.
pub(super) fn parse(word: &str, parser: &mut lexopt::Parser) -> Option<Job> {
    let parsed = match word {
        "keygen" => keygen::parse(parser),
        "sign" => sign::parse(parser),
        "verify" => verify::parse(parser),
        _ => return None,
    };
    let usage = |error| Job::Usage(format!("{error}; `chiton {word} --help` shows how"));
    Some(parsed.unwrap_or_else(usage))
}

/// Does it; returns the exit code.
pub(super) fn run(job: &Job) -> u8 {
    let done = match job {
        Job::Keygen(out) => keygen::run(out),
        Job::Sign(job) => sign::run(job),
        Job::Verify(job) => verify::run(job),
        Job::Help(text) => return print(text),
        Job::Usage(text) => {
            complain(text);
            return USAGE;
        }
    };
    match done {
        Ok(text) => print(&text),
        Err(text) => {
            complain(&text);
            FAILED
        }
    }
}

/// The one FILE of a command line.
fn one_file(file: &mut Option<PathBuf>, value: OsString) -> Result<(), lexopt::Error> {
    match file.replace(PathBuf::from(value)) {
        Some(first) => {
            Err(format!("one FILE at a time: {} is one already", first.display()).into())
        }
        None => Ok(()),
    }
}

fn required<T>(value: Option<T>, what: &str) -> Result<T, lexopt::Error> {
    value.ok_or_else(|| format!("{what} is missing").into())
}

/// The file's name with something behind it.
fn beside(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads a small file, or a pipe: at most one byte more than `most`.
fn read(file: &Path, most: u64) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let read = |file: File| file.take(most.saturating_add(1)).read_to_end(&mut content);
    match File::open(file).and_then(read) {
        Ok(_) => Ok(content),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

/// Reads a PEM file with `parse`.
fn key<T>(file: &Path, parse: impl Fn(&[u8]) -> Result<T, String>) -> Result<T, String> {
    let pem = read(file, MAX_PEM)?;
    if u64::try_from(pem.len()).is_ok_and(|length| length > MAX_PEM) {
        return Err(format!("{}: longer than {MAX_PEM} bytes: no key", file.display()));
    }
    parse(&pem).map_err(|error| format!("{}: {error}", file.display()))
}

fn public_key(file: &Path) -> Result<PublicKey, String> {
    key(file, PublicKey::from_pem)
}

/// Length and SHA-256 of a file, however long.
fn digest(file: &Path) -> Result<(u64, [u8; 32]), String> {
    let hash = || -> io::Result<(u64, [u8; 32])> {
        let mut source = File::open(file)?;
        let mut chunk = vec![0; CHUNK];
        let mut hash = Sha256::new();
        let mut size = 0_u64;
        loop {
            let length = match source.read(&mut chunk) {
                Ok(0) => return Ok((size, hash.finalize().into())),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                length => length?,
            };
            hash.update(chunk.get(..length).unwrap_or_default());
            size = size.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        }
    };
    hash().map_err(|error| format!("{}: {error}", file.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The time to judge by.
fn now() -> Wall {
    trusted_wall(clock(), 0)
}

#[expect(clippy::disallowed_methods, reason = "the edge reads the clock")]
fn clock() -> Wall {
    crate::clock::now().wall
}
