//! `chiton verify`: whether a file is what trusted keys have signed.

use core::time::Duration;
use std::path::PathBuf;

use lexopt::prelude::*;

use super::{Input, hex, kind, now, public_key, read, read_signature};
use crate::clock::Wall;
use crate::log::rfc3339;
use crate::signature::{
    self, Form, KeyId, Keyring, Kind, MAX_SIGNATURE, Manifest, digest_signer, manifest_signers,
};

const HELP: &str = "\
chiton verify: check a file's signature, as a device would

Usage: chiton verify --pub PUB [--pub PUB2 ...] [OPTIONS] FILE
       chiton verify --pub PUB --kind config [OPTIONS] FILE ...

Checks signature, size, SHA-256 and expiry, and prints what is signed. Whether the name,
the version and the counter are what you want is for you to see: a device compares them
with what it was offered and with what it has.

Options:
  --pub PUB          a trusted public key: from `chiton keygen`, or `openssl pkey -pubout`
  --threshold N      signatures needed, by different keys (default 1)
  --signature SIG    the signature (default FILE.sig; of a configuration, chiton.sig beside
                     the first FILE)
  --kind KIND        package (default) or config
  --unnamed FILE     of a configuration: the object that is offered with the empty name

Examples:
  chiton verify --pub release.key.pub otelcol.tar.gz
  chiton verify --pub a.pub --pub b.pub --threshold 2 otelcol.tar.gz

Exit codes: 0 good; 1 not good, or not readable; 2 wrong usage.
";

/// Most keys that may be given, and signatures that may be asked for.
const MAX_KEYS: usize = 16;

/// What to check, and by which keys.
pub(in crate::cli) struct Job {
    input: Input,
    signature: PathBuf,
    keys: Vec<PathBuf>,
    threshold: usize,
}

pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<super::Job, lexopt::Error> {
    let (mut signature, mut keys, mut threshold) = (None, Vec::new(), 1);
    let mut input = Input::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(super::Job::Help(HELP)),
            Long("pub") => keys.push(PathBuf::from(parser.value()?)),
            Long("signature") => signature = Some(PathBuf::from(parser.value()?)),
            Long("threshold") => threshold = parser.value()?.parse()?,
            Long("kind") => input.config = parser.value()?.parse_with(kind)? == Kind::Config,
            Long("unnamed") => input.add_unnamed(parser.value()?)?,
            Value(value) => input.add(value),
            other => return Err(other.unexpected()),
        }
    }
    if keys.is_empty() {
        return Err("--pub PUB is missing".into());
    }
    if keys.len() > MAX_KEYS {
        return Err(format!("--pub: {} keys; allowed are {MAX_KEYS}", keys.len()).into());
    }
    if !(1..=keys.len()).contains(&threshold) {
        let count = keys.len();
        return Err(
            format!("--threshold {threshold}: allowed is 1 to {count}, the keys given").into()
        );
    }
    input.check()?;
    let signature = signature.unwrap_or_else(|| input.signature());
    Ok(super::Job::Verify(Job { input, signature, keys, threshold }))
}

pub(super) fn run(job: &Job) -> Result<String, String> {
    let keys = job.keys.iter().map(|file| public_key(file)).collect::<Result<Vec<_>, _>>()?;
    let keyring = Keyring::new(keys, job.threshold, &[]);
    let bytes = if job.input.config {
        read_signature(&job.signature)?
    } else {
        read(&job.signature, u64::try_from(MAX_SIGNATURE).unwrap_or(u64::MAX))?
    };
    let at_fault = |refusal| format!("{}: {refusal}", job.signature.display());
    let shown = job.input.shown();
    match signature::form(&bytes) {
        Form::Digest if !job.input.config => {
            let (size, sha256) = job.input.digest()?;
            let signer = digest_signer(&keyring, &sha256, &bytes).map_err(at_fault)?;
            let sha256 = hex(&sha256);
            Ok(format!(
                "{shown}: good\nsigned by  {signer}\nform       digest: it has no name, version, counter or \
                 expiry\nsize       {size}\nsha256     {sha256}\n"
            ))
        }
        Form::Digest | Form::Manifest => {
            let (manifest, signers) = manifest_signers(&keyring, &bytes).map_err(at_fault)?;
            job.input.compare(&manifest, &job.signature)?;
            manifest.check_time(now().0.as_secs()).map_err(at_fault)?;
            Ok(format!("{shown}: good\n{}", describe(&manifest, &signers)))
        }
    }
}

fn describe(manifest: &Manifest, signers: &[KeyId]) -> String {
    let time = |seconds| rfc3339(Wall(Duration::from_secs(seconds)));
    let or =
        |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
    let kind = match manifest.kind() {
        Ok(Kind::Config) => "config",
        _ => "package",
    };
    let signers: Vec<String> = signers.iter().map(KeyId::to_string).collect();
    let expires = match manifest.expires_at {
        0 => "never".to_owned(),
        at => time(at),
    };
    [
        ("signed by", signers.join(", ")),
        ("form", "manifest".to_owned()),
        ("kind", kind.to_owned()),
        ("name", or(&manifest.name, "any")),
        ("version", or(&manifest.version, "none")),
        ("target", or(&manifest.target, "any")),
        ("set", or(&manifest.set, "none")),
        ("counter", manifest.counter.to_string()),
        ("issued", time(manifest.issued_at)),
        ("expires", expires),
        ("size", manifest.size.to_string()),
        ("sha256", hex(&manifest.sha256)),
    ]
    .into_iter()
    .map(|(key, value)| format!("{key:9}  {value}\n"))
    .collect()
}
