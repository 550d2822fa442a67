//! Writing that survives: a temporary beside the target, flushed, renamed, the directory flushed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

/// Prefix of temporaries; the sets of a server cannot hold such names.
const TEMPORARY: &str = ".chiton-new-";

/// Replaces a file as a whole.
///
/// # Errors
/// The first step that failed; the old file is still there.
pub(super) fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = temporary(path)?;
    create(&temporary, bytes, mode)?;
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Writes a new file and flushes it. An older one of that name goes first.
///
/// # Errors
/// The first step that failed.
pub(super) fn create(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Points a symlink elsewhere in one step.
///
/// # Errors
/// The first step that failed; the old one is still there.
pub(super) fn point(link: &Path, target: &Path) -> io::Result<()> {
    let temporary = temporary(link)?;
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(target, &temporary)?;
    fs::rename(&temporary, link)?;
    sync_parent(link)
}

/// Removes a file or link, if it is there.
///
/// # Errors
/// When it is there and cannot be removed.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_parent(path),
    }
}

/// Flushes a directory: the names in it.
///
/// # Errors
/// When it cannot be opened or flushed.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Reads a file up to a bound.
///
/// # Errors
/// Also when it is larger.
pub(super) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    // Its size in one piece: growing would take half as much again.
    let size = file.metadata()?.len().min(most).saturating_add(1);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // One byte more than allowed tells whether there was more.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        let text = format!("{}: more than {most} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Makes a directory with these permissions, whatever the umask; fine if it is there.
///
/// # Errors
/// When it cannot be made.
pub(super) fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    sync_directory(path.parent().unwrap_or_else(|| Path::new("/")))
}

fn temporary(path: &Path) -> io::Result<std::path::PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("a path without a file name"))?;
    let mut temporary = std::ffi::OsString::from(TEMPORARY);
    temporary.push(name);
    Ok(path.with_file_name(temporary))
}
