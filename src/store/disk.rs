//! What the store does to a disk: a handful of steps, each of which is done or not. Two implementations: the real
//! one here, and that of the crash tests, which forgets what was not flushed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Who may do what with a file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Permission bits, whatever the umask.
    pub mode: u32,
    /// The group that it is given to; [`None`]: ours.
    pub group: Option<u32>,
}

/// The steps. Paths are relative to the state directory.
pub(super) trait Disk: fmt::Debug + Send + Sync {
    /// From now on nothing is changed: what lies here is for a newer Chiton.
    fn close(&self) {}
    /// Makes the directory that all paths begin in, and those above it, where they are missing.
    ///
    /// # Errors
    /// What the kernel says.
    fn make_root(&self) -> io::Result<()>;
    /// Reads a file of at most `most` bytes; a larger one is an error.
    ///
    /// # Errors
    /// What the kernel says.
    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>>;
    /// The names in a directory.
    ///
    /// # Errors
    /// What the kernel says.
    fn names(&self, directory: &Path) -> io::Result<Vec<String>>;
    /// Where a symlink points.
    ///
    /// # Errors
    /// What the kernel says.
    fn target(&self, link: &Path) -> io::Result<PathBuf>;
    /// Makes a directory; fine if it is there.
    ///
    /// # Errors
    /// What the kernel says.
    fn make_directory(&self, path: &Path, access: Access) -> io::Result<()>;
    /// Writes a new file and flushes it; its name is flushed by [`Disk::sync`]. One that is there is an error.
    ///
    /// # Errors
    /// What the kernel says.
    fn create(&self, path: &Path, bytes: &[u8], access: Access) -> io::Result<()>;
    /// Opens a new file to be written piece by piece; [`Sink::finish`] flushes it. One that is there is an error.
    ///
    /// # Errors
    /// What the kernel says.
    fn writer(&self, path: &Path, access: Access) -> io::Result<Box<dyn Sink>>;
    /// Gives an open file, which stands at `from`, its final access, flushes it, and renames it. An error if what
    /// bears the name is not that very file.
    ///
    /// # Errors
    /// What the kernel says.
    fn adopt(&self, file: &File, from: &Path, to: &Path, access: Access) -> io::Result<()>;
    /// Makes a symlink. One that is there is an error.
    ///
    /// # Errors
    /// What the kernel says.
    fn link(&self, link: &Path, target: &Path) -> io::Result<()>;
    /// Renames within a directory; what bore the name goes, in one step.
    ///
    /// # Errors
    /// What the kernel says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file or symlink.
    ///
    /// # Errors
    /// What the kernel says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the kernel says.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Flushes the names in a directory.
    ///
    /// # Errors
    /// What the kernel says.
    fn sync(&self, directory: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub(super) trait Sink: Write + Send {
    /// Flushes it.
    ///
    /// # Errors
    /// What the kernel says.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

struct Writing {
    file: File,
    access: Access,
    written: u64,
}

/// Bytes written between two looks at the free space.
const LOOK_EVERY: u64 = 4 << 20;

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        let before = self.written;
        self.written = before.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if self.written / LOOK_EVERY != before / LOOK_EVERY {
            super::incoming::leave_room(&self.file)?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Writing {
    fn finish(self: Box<Self>) -> io::Result<()> {
        give(&self.file, self.access)?;
        failpoint();
        self.file.sync_all()
    }
}

/// The disk beneath a directory. Every step starts from that directory and follows no symlink below it, so nobody
/// who may write there can lead us elsewhere.
#[derive(Debug)]
pub(super) struct Real {
    root: PathBuf,
    closed: AtomicBool,
}

const WALK: OFlags =
    OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Real {
    /// The disk beneath `root`, which need not be there yet.
    #[must_use]
    pub(super) const fn new(root: PathBuf) -> Self {
        Self { root, closed: AtomicBool::new(false) }
    }

    /// [`Real::parent`] of what is about to be changed.
    fn open<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a Path)> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(io::Error::other("the state is a newer Chiton's: it is left as it is"));
        }
        self.parent(path)
    }

    /// A handle on a directory below the root, opened part by part.
    fn walk(&self, directory: &Path) -> io::Result<OwnedFd> {
        let root = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::openat(CWD, &self.root, root, Mode::empty())?;
        for part in directory.components() {
            let Component::Normal(name) = part else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain path"));
            };
            at = rustix::fs::openat(&at, name, WALK, Mode::empty())?;
        }
        Ok(at)
    }

    /// A handle on the parent, and the name in it.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a Path)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = self.walk(path.parent().unwrap_or_else(|| Path::new("")))?;
        Ok((parent, Path::new(name)))
    }
}

impl Disk for Real {
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn make_root(&self) -> io::Result<()> {
        make_directories(&self.root, 0o755)
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let (parent, name) = self.parent(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&parent, name, flags, Mode::empty())?);
        read_all(file, most)
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.walk_readable(directory)?)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn target(&self, link: &Path) -> io::Result<PathBuf> {
        let (parent, name) = self.parent(link)?;
        let target = rustix::fs::readlinkat(&parent, name, Vec::new())?;
        Ok(PathBuf::from(std::ffi::OsStr::from_bytes(target.as_bytes())))
    }

    fn make_directory(&self, path: &Path, access: Access) -> io::Result<()> {
        let (parent, name) = self.open(path)?;
        failpoint();
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(access.mode)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                return if FileType::from_raw_mode(found.st_mode).is_dir() {
                    Ok(())
                } else {
                    Err(Errno::NOTDIR.into())
                };
            }
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
        give(&made, access)
    }

    fn create(&self, path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
        let (parent, name) = self.open(path)?;
        failpoint();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = File::from(file);
        failpoint();
        file.write_all(bytes)?;
        give(&file, access)?;
        failpoint();
        file.sync_all()
    }

    fn writer(&self, path: &Path, access: Access) -> io::Result<Box<dyn Sink>> {
        let (parent, name) = self.open(path)?;
        failpoint();
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
        let file = File::from(file);
        super::incoming::leave_room(&file)?;
        Ok(Box::new(Writing { file, access, written: 0 }))
    }

    fn adopt(&self, file: &File, from: &Path, to: &Path, access: Access) -> io::Result<()> {
        let (parent, name) = self.open(from)?;
        let (new_parent, new_name) = self.open(to)?;
        failpoint();
        rustix::fs::renameat(&parent, name, &new_parent, new_name)?;
        // Who swaps the name meanwhile has renamed his own file: what counts is what we have verified.
        let placed = rustix::fs::statat(&new_parent, new_name, AtFlags::SYMLINK_NOFOLLOW)?;
        let ours = rustix::fs::fstat(file)?;
        if (placed.st_dev, placed.st_ino) != (ours.st_dev, ours.st_ino) {
            let text = "it was replaced by another file after it had been verified";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        give(file, access)?;
        failpoint();
        file.sync_all()
    }

    fn link(&self, link: &Path, target: &Path) -> io::Result<()> {
        let (parent, name) = self.open(link)?;
        failpoint();
        Ok(rustix::fs::symlinkat(target, &parent, name)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (parent, name) = self.open(from)?;
        let (new_parent, new_name) = self.open(to)?;
        failpoint();
        Ok(rustix::fs::renameat(&parent, name, &new_parent, new_name)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.open(path)?;
        failpoint();
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::empty())?)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.open(path)?;
        failpoint();
        Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        let handle = self.walk_readable(directory)?;
        failpoint();
        Ok(rustix::fs::fsync(&handle)?)
    }
}

impl Real {
    /// A handle that can be listed and flushed.
    fn walk_readable(&self, directory: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match directory.file_name() {
            None => Ok(rustix::fs::openat(CWD, &self.root, flags, Mode::empty())?),
            Some(_) => {
                let (parent, name) = self.parent(directory)?;
                Ok(rustix::fs::openat(&parent, name, flags | OFlags::NOFOLLOW, Mode::empty())?)
            }
        }
    }
}

/// Makes a directory, and those above it, where they are missing: of this mode, whatever the umask.
///
/// # Errors
/// What the kernel says.
pub fn make_directories(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_directories(parent, mode)?;
    }
    match std::fs::create_dir(path) {
        Ok(()) => std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)),
        Err(_) if path.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

fn give(file: impl AsFd, access: Access) -> io::Result<()> {
    rustix::fs::fchmod(&file, Mode::from_raw_mode(access.mode))?;
    match access.group {
        Some(group) => {
            Ok(rustix::fs::fchown(&file, None, Some(rustix::process::Gid::from_raw(group)))?)
        }
        None => Ok(()),
    }
}

/// Reads a file up to a bound.
///
/// # Errors
/// Also when it is larger.
pub(super) fn read_all(file: File, most: u64) -> io::Result<Vec<u8>> {
    // Its size in one piece: growing would take half as much again.
    let size = file.metadata()?.len().min(most).saturating_add(1);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    // One byte more than allowed tells whether there was more.
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        let text = format!("more than {most} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// In debug builds: dies as by a power cut before the n-th step that changes the disk, where `CHITON_DIE_AT=n`.
#[cfg(debug_assertions)]
fn failpoint() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static STEPS: AtomicU64 = AtomicU64::new(0);
    let step = STEPS.fetch_add(1, Ordering::SeqCst).saturating_add(1);
    let fatal = std::env::var("CHITON_DIE_AT").ok().and_then(|text| text.parse::<u64>().ok());
    if fatal == Some(step) {
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[cfg(not(debug_assertions))]
const fn failpoint() {}
