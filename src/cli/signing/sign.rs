//! `chiton sign`: a signature beside a file.

use core::time::Duration;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use prost::Message as _;

use super::{Input, clock, complain, hex, key, kind, now, output, read_signature, required};
use crate::clock::{Wall, trusted_wall};
use crate::log::rfc3339;
use crate::settings::duration;
use crate::signature::{Kind, MAX_SIGNATURE, Manifest, SignedManifest, SigningKey, sign_digest};
use crate::transport::base64;
use crate::transport::retry_after::{clock_time, days_since_1970};

const HELP: &str = "\
chiton sign: sign a package or a configuration

Usage: chiton sign --key KEY --name NAME --version VERSION [OPTIONS] FILE
       chiton sign --key KEY --kind config [--name SERVICE] [OPTIONS] FILE ...
       chiton sign --key KEY --add [--kind config] FILE ...
       chiton sign --key KEY FILE

The first makes a signed manifest in FILE.sig: name, version, size and SHA-256 of FILE,
and a counter that may never fall, so that nobody can bring back an old version. The
second does so for a remote configuration, in chiton.sig beside the first FILE: offer it
as an object of that name among the others, which go by the base names of their FILEs.
The third adds another key's signature to the manifest that is there. The fourth,
without a name, signs the SHA-256 of FILE and nothing else: 64 raw bytes, the same as

  openssl dgst -sha256 -binary FILE > HASH
  openssl pkeyutl -sign -rawin -inkey KEY -in HASH -out FILE.sig

Options:
  --key KEY        private key: from `chiton keygen`, or `openssl genpkey -algorithm ed25519`
  --name NAME      the package's name, as the server offers it; for a configuration the
                   service.name that it is for, any without it
  --version V      its version; of a configuration, for people only
  --target T       for which devices: terms with commas, such as linux/arm64 or
                   product=gw7; any device without it
  --set S          the set of packages that it belongs to
  --counter N      default: the time in microseconds, which rises by itself
  --expires WHEN   after a time (90d, 12h) or at one (2031-01-31, 2031-01-31T12:00:00Z);
                   never without it
  --kind KIND      package (default) or config
  --unnamed FILE   of a configuration: the object that is offered with the empty name
  --add            add a signature to the manifest that is there already
  --out FILE.sig   where to; - is stdout. A configuration's signature is text (base64)

Examples:
  chiton sign --key release.key --name otelcol --version 0.139.0 otelcol.tar.gz
  chiton sign --key release.key --kind config --name gateway collector.yaml rules.yaml
  chiton sign --key second.key --add otelcol.tar.gz
  chiton verify --pub release.key.pub --pub second.key.pub --threshold 2 otelcol.tar.gz

Exit codes: 0 signed; 1 not; 2 wrong usage.
";

/// What to sign, how, and where to.
pub(in crate::cli) struct Job {
    input: Input,
    key: PathBuf,
    /// [`None`]: stdout.
    out: Option<PathBuf>,
    form: Form,
}

enum Form {
    Digest,
    /// With what is not known before the file is read left open.
    Manifest {
        manifest: Manifest,
        counter: Option<u64>,
        expires: Option<Expiry>,
    },
    Add,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Expiry {
    After(Duration),
    At(u64),
}

pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<super::Job, lexopt::Error> {
    let (mut input, mut key, mut out, mut add) = (Input::default(), None, None, false);
    let (mut name, mut version, mut counter, mut expires) = (None, None, None, None);
    let mut manifest = Manifest::default();
    // An option that only a manifest has.
    let mut detail = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(super::Job::Help(HELP)),
            Long("key") => key = Some(PathBuf::from(parser.value()?)),
            Long("out") => out = Some(PathBuf::from(parser.value()?)),
            Long("add") => add = true,
            Long("name") => name = Some(parser.value()?.string()?),
            Long("version") => {
                version = Some(parser.value()?.string()?);
                detail = Some("--version");
            }
            Long("target") => {
                manifest.target = parser.value()?.parse_with(target)?;
                detail = Some("--target");
            }
            Long("set") => {
                manifest.set = parser.value()?.string()?;
                detail = Some("--set");
            }
            Long("counter") => {
                counter = Some(parser.value()?.parse()?);
                detail = Some("--counter");
            }
            Long("expires") => {
                expires = Some(parser.value()?.parse_with(expiry)?);
                detail = Some("--expires");
            }
            Long("kind") => {
                let kind = parser.value()?.parse_with(kind)?;
                manifest.kind = kind.number();
                input.config = kind == Kind::Config;
                if !input.config {
                    detail = Some("--kind");
                }
            }
            Long("unnamed") => input.add_unnamed(parser.value()?)?,
            Value(value) => input.add(value),
            other => return Err(other.unexpected()),
        }
    }
    if input.config && !manifest.set.is_empty() {
        return Err("--set does not go with --kind config".into());
    }
    let form = match (name, add, detail) {
        (name, false, _) if input.config => {
            manifest.name = name.unwrap_or_default();
            manifest.version = version.unwrap_or_default();
            Form::Manifest { manifest, counter, expires }
        }
        (None, false, None) => Form::Digest,
        (None, true, None) => Form::Add,
        (Some(_), true, _) => return Err("--name does not go with --add".into()),
        (None, true, Some(detail)) => {
            return Err(format!("{detail} does not go with --add").into());
        }
        (None, false, Some(detail)) => return Err(format!("{detail} goes with --name only").into()),
        (Some(name), false, _) => {
            manifest.name = name;
            manifest.version = required(version, "--version, which goes with --name,")?;
            Form::Manifest { manifest, counter, expires }
        }
    };
    input.check()?;
    let out = match out {
        Some(out) if out == Path::new("-") => None,
        Some(out) => Some(out),
        None => Some(input.signature()),
    };
    let job = Job { key: required(key, "--key KEY")?, input, out, form };
    Ok(super::Job::Sign(Box::new(job)))
}

fn target(text: &str) -> Result<String, String> {
    let whole = |part: &str| !part.is_empty() && part.trim() == part;
    let good = |term: &str| match term.split_once('=') {
        Some((key, value)) => whole(key) && whole(value),
        None => whole(term) && !term.contains(' '),
    };
    if text.split(',').all(good) {
        return Ok(text.to_owned());
    }
    Err("allowed are terms with commas between them, such as linux/arm64 or product=gw7".to_owned())
}

fn expiry(text: &str) -> Result<Expiry, String> {
    let after = duration(text).filter(|after| !after.is_zero()).map(Expiry::After);
    after.or_else(|| date(text).map(Expiry::At)).ok_or_else(|| {
        "allowed is a duration such as 90d, or a date such as 2031-01-31 or 2031-01-31T12:00:00Z"
            .to_owned()
    })
}

/// Seconds since 1970 of a date, or a date and time, in UTC.
fn date(text: &str) -> Option<u64> {
    let (day, time) = match text.split_once('T') {
        Some((day, time)) => (day, clock_time(time.strip_suffix('Z')?)?),
        None => (text, 0),
    };
    let mut parts = day.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, of_month) = (parts.next()??, parts.next()??, parts.next()??);
    let days = days_since_1970(year, month, of_month)?;
    let seconds = days.checked_mul(86_400)?.checked_add(time)?;
    // What does not come back the same is no date: 30 February, one digit, a leap second.
    let back = rfc3339(Wall(Duration::from_secs(seconds)));
    (back.starts_with(text.trim_end_matches('Z')) && parts.next().is_none()).then_some(seconds)
}

pub(super) fn run(job: &Job) -> Result<String, String> {
    let key = key(&job.key, SigningKey::from_pem)?;
    warn_of_readers(&job.key);
    let out = job.out.as_deref();
    let files = job.input.all().map(|file| (file, "the file to sign"));
    for (input, what) in files.chain([(job.key.as_path(), "the key")]) {
        if out.is_some_and(|out| output::same(out, input)) {
            return Err(format!("{}: is {what}; --out must be another", input.display()));
        }
    }
    let (mut signature, what) = signature(job, &key)?;
    if job.input.config {
        signature = format!("{}\n", base64(&signature)).into_bytes();
    }
    let id = key.public().id();
    match out {
        Some(out) => {
            output::replace(out, &signature)?;
            Ok(format!("{}: {what}, by key {id}\n", out.display()))
        }
        None => {
            let mut stdout = io::stdout().lock();
            let written = stdout.write_all(&signature).and_then(|()| stdout.flush());
            written.map_err(|error| format!("stdout: {error}"))?;
            complain(&format!("{what}, by key {id}"));
            Ok(String::new())
        }
    }
}

/// The bytes of the signature, and what to say about them.
fn signature(job: &Job, key: &SigningKey) -> Result<(Vec<u8>, String), String> {
    let shown = job.input.shown();
    let (signed, what) = match &job.form {
        Form::Digest => {
            let (size, sha256) = job.input.digest()?;
            let what = format!("digest of {shown} ({size} bytes, SHA-256 {})", hex(&sha256));
            return Ok((sign_digest(key, &sha256).to_vec(), what));
        }
        Form::Manifest { manifest, counter, expires } => {
            let mut manifest = manifest.clone();
            stamp(&mut manifest, *counter, *expires)?;
            // Before the file is read: it may be long.
            manifest.sha256 = vec![0; 32];
            manifest.check().map_err(|refusal| format!("{shown}: {refusal}"))?;
            let (size, sha256) = job.input.digest()?;
            (manifest.size, manifest.sha256) = (size, sha256.to_vec());
            let mut signed = SignedManifest::new(&manifest);
            signed.sign(key);
            (signed, format!("manifest of {shown}: {}", summary(&manifest)))
        }
        Form::Add => add(job, key)?,
    };
    let bytes = signed.encode_to_vec();
    if bytes.len() > MAX_SIGNATURE {
        let length = bytes.len();
        return Err(format!(
            "{shown}: the signature has {length} bytes; allowed are {MAX_SIGNATURE}"
        ));
    }
    Ok((bytes, what))
}

/// Puts the times and the counter in.
fn stamp(
    manifest: &mut Manifest,
    counter: Option<u64>,
    expires: Option<Expiry>,
) -> Result<(), String> {
    let shown = clock();
    let issued = trusted_wall(shown, 0);
    if counter.is_none() && issued != shown {
        let shown = rfc3339(shown);
        return Err(format!(
            "the clock shows {shown}, before this program was built: the counter would not rise; set it, or give --counter"
        ));
    }
    let issued = issued.0;
    manifest.issued_at = issued.as_secs();
    let micros = u64::try_from(issued.as_micros()).unwrap_or(u64::MAX);
    manifest.counter = counter.unwrap_or(micros);
    manifest.expires_at = match expires {
        None => 0,
        Some(Expiry::At(at)) => at,
        Some(Expiry::After(after)) => issued.saturating_add(after).as_secs(),
    };
    manifest
        .check_time(manifest.issued_at)
        .map_err(|_| "--expires is in the past: nobody would take it".to_owned())
}

/// The manifest that is there, signed by this key too.
fn add(job: &Job, key: &SigningKey) -> Result<(SignedManifest, String), String> {
    let from = job.out.clone().unwrap_or_else(|| job.input.signature());
    let at_fault = |refusal| format!("{}: {refusal}", from.display());
    let mut signed = SignedManifest::parse(&read_signature(&from)?).map_err(at_fault)?;
    let manifest = Manifest::parse(&signed.manifest).map_err(at_fault)?;
    manifest.check_time(now().0.as_secs()).map_err(at_fault)?;
    job.input.compare(&manifest, &from).map_err(|error| format!("{error}; not signed"))?;
    signed.sign(key);
    let count = signed.signatures.len();
    let what =
        format!("manifest of {}: {}, {count} signature(s)", job.input.shown(), summary(&manifest));
    Ok((signed, what))
}

fn summary(manifest: &Manifest) -> String {
    let Manifest { name, version, size, counter, expires_at, .. } = manifest;
    let expires = match expires_at {
        0 => "never expires".to_owned(),
        at => format!("expires {}", rfc3339(Wall(Duration::from_secs(*at)))),
    };
    let label = [name.as_str(), version.as_str()].join(" ");
    let label = if label.trim().is_empty() { "any service" } else { label.trim() };
    format!("{label} ({size} bytes, counter {counter}, {expires})")
}

fn warn_of_readers(key: &Path) {
    let mode = fs::metadata(key).ok().filter(fs::Metadata::is_file);
    if let Some(mode) = mode.map(|facts| facts.permissions().mode() & 0o777)
        && mode & 0o077 != 0
    {
        let shown = key.display();
        complain(&format!(
            "note: {shown}: others may read it (mode {mode:o}); 600 keeps it to you"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_whole_and_exist() {
        for (text, seconds) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2100-03-01", 4_107_542_400),
            ("2024-12-31T23:59:59Z", 1_735_689_599),
        ] {
            assert_eq!(expiry(text), Ok(Expiry::At(seconds)), "{text}");
        }
        for text in [
            "",
            "0",
            "soon",
            "90",
            "2031-02-30",
            "2031-1-31",
            "2031-13-01",
            "2031-01",
            "1969-12-31",
            "2031-01-31T12:00:00",
            "2031-01-31T24:00:00Z",
            "2031-01-31T12:00Z",
            "2031-01-31Z",
            "2031-01-31-01",
            "2031-01-31T12:00:60Z",
            "2031-01-31T1:00:00Z",
        ] {
            assert!(expiry(text).is_err(), "{text}");
        }
        assert_eq!(expiry("90d"), Ok(Expiry::After(Duration::from_secs(90 * 86_400))));
    }

    #[test]
    fn targets_are_terms_with_commas() {
        for good in ["linux/arm64", "linux/arm/v7,product=gw7", "site=Hall 3"] {
            assert_eq!(target(good).as_deref(), Ok(good));
        }
        for bad in ["", ",", "a,", "a, b", "=x", "x=", "linux arm"] {
            assert!(target(bad).is_err(), "{bad}");
        }
    }
}
