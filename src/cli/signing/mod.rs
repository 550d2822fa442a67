//! `chiton keygen`, `chiton sign`, `chiton verify`: keys and signatures of packages and configurations.

mod keygen;
mod output;
mod sign;
mod verify;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::{FAILED, USAGE, complain, print};
use crate::clock::{Wall, trusted_wall};
use crate::sha256::Sha256;
use crate::signature::{
    Kind, MAX_SIGNATURE_OBJECT, Manifest, PublicKey, SIGNATURE_OBJECT, digest_config,
    signature_bytes,
};
use crate::transport::tls::MAX_PEM;

/// Bytes that are hashed at a time.
const CHUNK: usize = 64 * 1024;
/// Bytes of one object of a configuration: what `remote_config.allow.max_size` can be at most.
const MAX_OBJECT: u64 = 16 << 20;

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

/// What is signed, or was: one file, or a configuration's objects.
#[derive(Default)]
struct Input {
    files: Vec<PathBuf>,
    /// Of a configuration: the file that is offered under the empty name.
    unnamed: Option<PathBuf>,
    config: bool,
}

impl Input {
    fn add(&mut self, file: OsString) {
        self.files.push(PathBuf::from(file));
    }

    fn add_unnamed(&mut self, file: OsString) -> Result<(), lexopt::Error> {
        match self.unnamed.replace(PathBuf::from(file)) {
            Some(first) => {
                Err(format!("--unnamed: one FILE, and {} is one already", first.display()).into())
            }
            None => Ok(()),
        }
    }

    /// Whether these are files that can be signed together.
    fn check(&self) -> Result<(), lexopt::Error> {
        let first = required(self.all().next(), "FILE")?;
        if !self.config && self.unnamed.is_some() {
            return Err("--unnamed goes with --kind config only".into());
        }
        if !self.config && self.files.len() > 1 {
            let text = format!("one FILE at a time: {} is one already", first.display());
            return Err(text.into());
        }
        Ok(())
    }

    /// All files.
    fn all(&self) -> impl Iterator<Item = &Path> {
        self.unnamed.iter().chain(&self.files).map(PathBuf::as_path)
    }

    /// Where the signature is, unless it is said.
    fn signature(&self) -> PathBuf {
        let first = self.all().next().unwrap_or(Path::new(""));
        if self.config { first.with_file_name(SIGNATURE_OBJECT) } else { beside(first, ".sig") }
    }

    /// As people are told.
    fn shown(&self) -> String {
        let all: Vec<String> = self.all().map(|file| file.display().to_string()).collect();
        all.join(" ")
    }

    /// Length and SHA-256, of the file or of the configuration.
    fn digest(&self) -> Result<(u64, [u8; 32]), String> {
        if !self.config {
            return digest(self.all().next().unwrap_or(Path::new("")));
        }
        let mut objects = BTreeMap::new();
        if let Some(file) = &self.unnamed {
            objects.insert(String::new(), object(file)?);
        }
        for file in &self.files {
            let name = file.file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
            let shown = file.display();
            if name.is_empty() || name == SIGNATURE_OBJECT {
                return Err(format!(
                    "{shown}: cannot be an object of a configuration by this name"
                ));
            }
            if objects.insert(name, object(file)?).is_some() {
                return Err(format!("{shown}: another FILE has the same name; objects go by it"));
            }
        }
        Ok(digest_config(objects.iter().map(|(name, body)| (name.as_str(), body.as_slice()))))
    }
}

impl Input {
    /// Whether a manifest is about this.
    fn compare(&self, manifest: &Manifest, signature: &Path) -> Result<(), String> {
        let at_fault = |refusal| format!("{}: {refusal}", signature.display());
        let config = manifest.kind().map_err(at_fault)? == Kind::Config;
        if config != self.config {
            let what = if config { "a configuration: --kind config" } else { "a package" };
            return Err(format!("{}: is the signature of {what}", signature.display()));
        }
        let (size, sha256) = self.digest()?;
        manifest.check_file(size, &sha256).map_err(|refusal| {
            let shown = self.shown();
            match config {
                true => format!("{shown}: not the objects that were signed: one was changed, added, left out or renamed"),
                false => format!("{shown}: {refusal}"),
            }
        })
    }
}

/// An object of a configuration.
fn object(file: &Path) -> Result<Vec<u8>, String> {
    let body = read(file, MAX_OBJECT)?;
    if u64::try_from(body.len()).is_ok_and(|length| length > MAX_OBJECT) {
        return Err(format!(
            "{}: longer than {MAX_OBJECT} bytes: no device takes it",
            file.display()
        ));
    }
    Ok(body)
}

/// The signature in a file, which for a configuration is text.
fn read_signature(file: &Path) -> Result<Vec<u8>, String> {
    let most = u64::try_from(MAX_SIGNATURE_OBJECT).unwrap_or(u64::MAX);
    Ok(signature_bytes(&read(file, most)?).into_owned())
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "package" => Ok(Kind::Package),
        "config" => Ok(Kind::Config),
        _ => Err("allowed are package and config".to_owned()),
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
                Ok(0) => return Ok((size, hash.finalize())),
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
