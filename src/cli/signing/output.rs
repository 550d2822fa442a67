//! Writing keys and signatures: whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};

pub(super) use crate::base64::pem;

/// Writes a file that is not there yet.
pub(super) fn create(file: &Path, mode: u32, content: &[u8]) -> Result<(), String> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(file)
        .and_then(|to| fill(to, content))
        .and_then(|()| flush_directory(file));
    written.map_err(|error| format!("{}: {error}", file.display()))
}

/// Puts a new content in a file's place: whoever reads it sees the old or the new one.
pub(super) fn replace(file: &Path, content: &[u8]) -> Result<(), String> {
    let describe = |error: io::Error| format!("{}: {error}", file.display());
    // What a link points to is replaced, not the link; and no device.
    let target = match fs::metadata(file) {
        Ok(facts) if facts.is_file() => fs::canonicalize(file).map_err(describe)?,
        Ok(_) => return Err(format!("{}: not a file; `--out -` is stdout", file.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => file.to_owned(),
        Err(error) => return Err(describe(error)),
    };
    let mut random = [0; 8];
    fill_randomly(&mut random).map_err(describe)?;
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = target.with_file_name(format!(".{name}.{:016x}", u64::from_ne_bytes(random)));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&new)
        .and_then(|to| fill(to, content))
        .and_then(|()| fs::rename(&new, &target))
        .and_then(|()| flush_directory(&target));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        describe(error)
    })
}

fn fill(mut to: File, content: &[u8]) -> io::Result<()> {
    to.write_all(content)?;
    to.sync_all()
}

/// Makes a new name durable.
fn flush_directory(file: &Path) -> io::Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.map_or_else(|| PathBuf::from("."), Path::to_owned))?.sync_all()
}

/// Random bytes fit for a key: waits where the kernel has none yet.
pub(super) fn fill_randomly(bytes: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(length) => filled = filled.saturating_add(length),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether two names are of one file.
pub(super) fn same(one: &Path, other: &Path) -> bool {
    match (fs::metadata(one), fs::metadata(other)) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}
