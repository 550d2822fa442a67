//! `chiton keygen`: a new key for signing.

use std::fs;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;

use super::{Job, beside, output, required};
use crate::signature::SigningKey;

const HELP: &str = "\
chiton keygen: make an Ed25519 key for signing

Usage: chiton keygen --out KEY

Writes the private key to KEY (mode 600) and the public one to KEY.pub, and prints
the key id. Nothing is overwritten. Both are PEM, as openssl reads and writes them:

  openssl genpkey -algorithm ed25519 -out KEY
  openssl pkey -in KEY -pubout -out KEY.pub

make such a pair too.

KEY signs, with `chiton sign`: keep it where releases are made, never on a device or
beside the OpAMP server. KEY.pub goes onto the devices, into
opamp.packages.trusted_keys; the key id goes into revoked_keys should KEY be lost.

Exit codes: 0 well; 1 it could not be written; 2 wrong usage.
";

pub(super) fn parse(parser: &mut lexopt::Parser) -> Result<Job, lexopt::Error> {
    let mut out = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Job::Help(HELP)),
            Long("out") => out = Some(PathBuf::from(parser.value()?)),
            other => return Err(other.unexpected()),
        }
    }
    Ok(Job::Keygen(required(out, "--out KEY")?))
}

pub(super) fn run(out: &Path) -> Result<String, String> {
    let public_file = beside(out, ".pub");
    for file in [out, &public_file] {
        if fs::symlink_metadata(file).is_ok() {
            return Err(format!("{}: is there already; it is not overwritten", file.display()));
        }
    }
    let mut seed = [0; 32];
    output::fill_randomly(&mut seed).map_err(|error| format!("no random bytes: {error}"))?;
    let public = SigningKey::from_seed(&seed)?.public();
    let private = SigningKey::seed_to_der(&seed);
    output::create(out, 0o600, output::pem("PRIVATE KEY", private.expose()).as_bytes())?;
    let public_pem = output::pem("PUBLIC KEY", &public.der());
    output::create(&public_file, 0o644, public_pem.as_bytes()).inspect_err(|_| {
        // Half a pair is of no use to anybody.
        let _ = fs::remove_file(out);
    })?;
    Ok(format!(
        "key id   {}\nprivate  {} (keep it to yourself)\npublic   {} (for opamp.packages.trusted_keys)\n",
        public.id(),
        out.display(),
        public_file.display()
    ))
}
