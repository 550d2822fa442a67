//! Files on their way in: `packages_dir/incoming/SHA256.part`, and `.meta` beside it.
//!
//! What is written is hashed, what is resumed is hashed from the descriptor that is written to: at the end the hash is
//! that of what the descriptor holds, and the descriptor is handed on. Everything here blocks.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstatvfs, ftruncate};
use rustix::io::Errno;

use super::disk::{Access, Disk, Real};
use super::record::{self, MarkRecord};
use super::{RECORD, STATE_MODE, make_directories};
use crate::sha256::Sha256;

/// Below `packages_dir`.
const DIRECTORY: &str = "incoming";
const PRIVATE: Access = Access { mode: 0o700, group: None };
/// Permission bits of a file that arrives: nobody runs it, nobody else reads it.
const MODE: u32 = 0o600;
/// Space that downloads leave free for everything else, bytes.
pub const FLOOR: u64 = 16 << 20;
/// Bytes written between two looks at the free space.
const LOOK_EVERY: u64 = 4 << 20;
/// Bytes written between two flushes: the last one is short, and a power cut costs no more than this.
const FLUSH_EVERY: u64 = 32 << 20;
/// Bytes hashed at once of what was there before.
const PIECE: usize = 64 * 1024;
/// Bytes of a validator that are kept; one that is longer is none.
pub const MAX_VALIDATOR: usize = 512;
/// Bytes of a `.meta`.
const MAX_META: u64 = 4096;
/// Opening again where an earlier download has just let go.
const ATTEMPTS: usize = 3;

/// What a server said of the file that the bytes belong to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// A strong ETag or a date, as it goes into `If-Range`; empty: there is none.
    pub validator: String,
    /// Bytes of the whole file.
    pub total: Option<u64>,
}

/// A file that arrives.
pub struct Incoming {
    packages_dir: PathBuf,
    disk: Real,
    sha256: [u8; 32],
    file: File,
    hasher: Sha256,
    size: u64,
    mark: Mark,
    looked_at: u64,
    flushed_at: u64,
}

/// A file that has arrived.
#[derive(Debug)]
pub struct Received {
    /// Open for reading, at its start: it holds what was hashed, whatever becomes of the path.
    pub file: File,
    /// Where it lies, below `packages_dir`.
    pub path: PathBuf,
    /// Of what it holds.
    pub sha256: [u8; 32],
    /// Its bytes.
    pub size: u64,
}

impl Incoming {
    /// Goes on with what is there of the file with this hash, or begins it. Waits for an earlier download of it that
    /// is about to end.
    ///
    /// # Errors
    /// Which path, and what is wrong there.
    pub fn open(packages_dir: &Path, sha256: &[u8; 32]) -> io::Result<Self> {
        let disk = Real::new(packages_dir.to_owned());
        let part = part(sha256);
        let opened = open(packages_dir, &disk, &part);
        let file = opened.map_err(|error| at(packages_dir, &part, &error))?;
        let mut incoming = Self {
            packages_dir: packages_dir.to_owned(),
            disk,
            sha256: *sha256,
            file,
            hasher: Sha256::new(),
            size: 0,
            mark: Mark::default(),
            looked_at: 0,
            flushed_at: 0,
        };
        incoming.hash_again().map_err(|error| incoming.at(&error))?;
        if incoming.size > 0 {
            incoming.mark = incoming.read_mark();
        }
        Ok(incoming)
    }

    /// Bytes that are there.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// What they belong to.
    #[must_use]
    pub const fn mark(&self) -> &Mark {
        &self.mark
    }

    /// Whether what is there has the hash that is expected.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        self.hasher.clone().finalize() == self.sha256
    }

    /// Drops what is there, and notes what the bytes to come belong to.
    ///
    /// # Errors
    /// Which path, and what is wrong there.
    pub fn begin(&mut self, mark: Mark) -> io::Result<()> {
        self.reset()?;
        if mark.validator.is_empty() {
            return Ok(());
        }
        let record = MarkRecord { validator: mark.validator.clone(), total: mark.total };
        let sealed = record::seal(&record::Record::to_payload(&record));
        let path = meta(&self.sha256);
        self.disk
            .create(&path, &sealed, RECORD)
            .map_err(|error| at(&self.packages_dir, &path, &self.explained(error, 0)))?;
        let directory = Path::new(DIRECTORY);
        self.disk.sync(directory).map_err(|error| at(&self.packages_dir, directory, &error))?;
        self.mark = mark;
        Ok(())
    }

    /// Drops what is there, for good: no mark of other bytes is ever beside it.
    ///
    /// # Errors
    /// Which path, and what is wrong there.
    pub fn reset(&mut self) -> io::Result<()> {
        let dropped = match self.disk.remove(&meta(&self.sha256)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ if self.size == 0 => Ok(()),
            _ => ftruncate(&self.file, 0)
                .and_then(|()| rustix::fs::fsync(&self.file))
                .map_err(io::Error::from)
                .and_then(|()| self.disk.sync(Path::new(DIRECTORY))),
        };
        dropped.map_err(|error| self.at(&error))?;
        (self.size, self.looked_at, self.flushed_at) = (0, 0, 0);
        self.hasher = Sha256::new();
        self.mark = Mark::default();
        Ok(())
    }

    /// Whether so many bytes more would leave [`FLOOR`] free.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`], with the numbers.
    pub fn reserve(&self, more: u64) -> io::Result<()> {
        match self.free() {
            Some(free) if free < more.saturating_add(FLOOR) => Err(self.at(&full(more, free))),
            _ => Ok(()),
        }
    }

    /// Writes at the end, and hashes.
    ///
    /// # Errors
    /// Which path, and what is wrong there. What was there before stays, and can be gone on with.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if self.size.saturating_sub(self.looked_at) >= LOOK_EVERY {
            self.reserve(count)?;
            self.looked_at = self.size;
        }
        if let Err(error) = self.file.write_all_at(bytes, self.size) {
            // A part of it may stand there: it is not hashed, so it goes.
            let _ = ftruncate(&self.file, self.size);
            return Err(self.at(&self.explained(error, count)));
        }
        self.hasher.update(bytes);
        self.size = self.size.saturating_add(count);
        if self.size.saturating_sub(self.flushed_at) >= FLUSH_EVERY {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes what is there survive a power cut.
    ///
    /// # Errors
    /// Which path, and what is wrong there.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.sync_data().map_err(|error| self.at(&error))?;
        self.flushed_at = self.size;
        Ok(())
    }

    /// It is whole: flushed, and what was hashed is what the descriptor holds.
    ///
    /// # Errors
    /// Which path, and what is wrong there.
    pub fn finish(mut self) -> io::Result<Received> {
        self.flush()?;
        let size = self.size;
        let finished = check(&self.file).and_then(|found| {
            if found != size {
                return Err(io::Error::other("somebody else has changed it"));
            }
            self.file.rewind()?;
            Ok(flock(&self.file, FlockOperation::Unlock)?)
        });
        finished.map_err(|error| self.at(&error))?;
        let sha256 = self.hasher.finalize();
        Ok(Received { file: self.file, path: part(&self.sha256), sha256, size })
    }

    /// Removes it.
    pub fn discard(self) {
        let _ = self.disk.remove(&meta(&self.sha256));
        let _ = self.disk.remove(&part(&self.sha256));
    }

    fn hash_again(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        let mut piece = vec![0; PIECE];
        loop {
            let got = match self.file.read(&mut piece) {
                Ok(0) => return Ok(()),
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.hasher.update(piece.get(..got).unwrap_or_default());
            self.size = self.size.saturating_add(u64::try_from(got).unwrap_or(u64::MAX));
        }
    }

    /// A mark that cannot be read is none: then the bytes are not gone on with.
    fn read_mark(&self) -> Mark {
        let read = self.disk.read(&meta(&self.sha256), MAX_META).ok();
        let record = read.as_deref().and_then(|bytes| record::open(bytes).ok());
        let record: Option<MarkRecord> =
            record.and_then(|payload| record::Record::from_payload(payload).ok());
        record.map_or_else(Mark::default, |record| Mark {
            validator: record.validator,
            total: record.total,
        })
    }

    /// Bytes that we may still write there; [`None`] where the file system does not say.
    fn free(&self) -> Option<u64> {
        free(&self.file)
    }

    /// A full disk, with the numbers.
    fn explained(&self, error: io::Error, more: u64) -> io::Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                full(more, self.free().unwrap_or_default())
            }
            _ => error,
        }
    }

    fn at(&self, error: &io::Error) -> io::Error {
        at(&self.packages_dir, &part(&self.sha256), error)
    }
}

/// Removes what is left of all downloads but these.
///
/// # Errors
/// When the directory cannot be listed; there being none is fine.
pub fn sweep(packages_dir: &Path, keep: &[[u8; 32]]) -> io::Result<()> {
    let disk = Real::new(packages_dir.to_owned());
    let directory = Path::new(DIRECTORY);
    let names = match disk.names(directory) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at(packages_dir, directory, &error)),
    };
    let kept: Vec<PathBuf> = keep.iter().flat_map(|sha256| [part(sha256), meta(sha256)]).collect();
    for path in names.iter().map(|name| directory.join(name)) {
        if !kept.contains(&path) {
            let _ = disk.remove(&path);
        }
    }
    Ok(())
}

fn part(sha256: &[u8; 32]) -> PathBuf {
    named(sha256, "part")
}

fn meta(sha256: &[u8; 32]) -> PathBuf {
    named(sha256, "meta")
}

fn named(sha256: &[u8; 32], end: &str) -> PathBuf {
    let hex: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(DIRECTORY).join(format!("{hex}.{end}"))
}

/// The file of that name, ours alone and locked; a new one where there is none, or where something else stands there.
fn open(packages_dir: &Path, disk: &Real, part: &Path) -> io::Result<File> {
    make_directories(packages_dir, STATE_MODE)?;
    disk.make_directory(Path::new(DIRECTORY), PRIVATE)?;
    let (parent, name) = disk.parent(part)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    for _ in 0..ATTEMPTS {
        let file = match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => {
                let new = flags | OFlags::CREATE | OFlags::EXCL;
                let mode = Mode::from_raw_mode(MODE);
                let file = File::from(rustix::fs::openat(&parent, name, new, mode)?);
                rustix::fs::fchmod(&file, mode)?;
                file
            }
            Err(Errno::LOOP | Errno::NXIO | Errno::ACCESS) => {
                disk.remove(part)?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        flock(&file, FlockOperation::LockExclusive)?;
        if check(&file).is_ok() {
            return Ok(file);
        }
        if let Err(error) = disk.remove(part)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Err(io::Error::other("something else comes to stand there again and again"))
}

/// A plain file of ours, by one name, for us alone: its size.
fn check(file: &File) -> io::Result<u64> {
    let found: fs::Metadata = file.metadata()?;
    let own = found.uid() == rustix::process::geteuid().as_raw();
    if found.is_file() && own && found.nlink() == 1 && found.mode() & 0o7777 == MODE {
        return Ok(found.len());
    }
    Err(io::Error::other("it is not the file that was made there"))
}

/// Free bytes where a file lies; [`None`]: it has no end.
fn free(file: &File) -> Option<u64> {
    let stat = fstatvfs(file).ok()?;
    let known = stat.f_blocks > 0;
    known.then(|| stat.f_bavail.saturating_mul(stat.f_frsize.max(1)))
}

/// Whether [`FLOOR`] is free where a file lies.
///
/// # Errors
/// [`io::ErrorKind::StorageFull`], with the numbers.
pub(super) fn leave_room(file: &File) -> io::Result<()> {
    match free(file) {
        Some(free) if free < FLOOR => Err(full(0, free)),
        _ => Ok(()),
    }
}

fn full(more: u64, free: u64) -> io::Error {
    let text = format!(
        "no space left: {more} bytes more are needed, {free} are free, and {FLOOR} are kept free; make room there"
    );
    io::Error::new(io::ErrorKind::StorageFull, text)
}

fn at(packages_dir: &Path, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", packages_dir.join(path).display()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn digest(bytes: &[u8]) -> [u8; 32] {
        Sha256::digest(bytes)
    }

    fn mark(validator: &str) -> Mark {
        Mark { validator: validator.to_owned(), total: Some(6) }
    }

    #[test]
    fn what_arrived_is_gone_on_with_and_hashed_from_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let dir = &dir.path().join("not/yet/there");
        let sha256 = digest(b"abcdef");
        let mut first = Incoming::open(dir, &sha256).unwrap();
        first.begin(mark("\"v1\"")).unwrap();
        first.write(b"abc").unwrap();
        assert!(!first.is_expected());
        drop(first);
        let mut second = Incoming::open(dir, &sha256).unwrap();
        assert_eq!((second.size(), second.mark()), (3, &mark("\"v1\"")));
        second.write(b"def").unwrap();
        assert!(second.is_expected());
        let received = second.finish().unwrap();
        assert_eq!((received.size, received.sha256), (6, sha256));
        let mut text = String::new();
        (&received.file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "abcdef");
        let placed = fs::metadata(dir.join(&received.path)).unwrap();
        assert_eq!(placed.permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_new_mark_never_stands_beside_old_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let sha256 = digest(b"x");
        let mut incoming = Incoming::open(dir.path(), &sha256).unwrap();
        incoming.begin(mark("\"v1\"")).unwrap();
        incoming.write(b"old").unwrap();
        incoming.begin(mark("\"v2\"")).unwrap();
        assert_eq!(incoming.size(), 0);
        incoming.write(b"new").unwrap();
        drop(incoming);
        // Without its mark it is of no use.
        fs::write(dir.path().join(meta(&sha256)), "damaged").unwrap();
        let again = Incoming::open(dir.path(), &sha256).unwrap();
        assert_eq!((again.size(), again.mark()), (3, &Mark::default()));
    }

    #[test]
    fn what_somebody_else_placed_there_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let sha256 = digest(b"x");
        let (path, victim) = (dir.path().join(part(&sha256)), dir.path().join("victim"));
        fs::create_dir(dir.path().join(DIRECTORY)).unwrap();
        fs::write(&victim, "untouched").unwrap();
        let place: [&dyn Fn(); 4] = [
            &|| symlink(&victim, &path).unwrap(),
            &|| fs::hard_link(&victim, &path).unwrap(),
            &|| {
                fs::write(&path, "open to others").unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            },
            &|| {
                let fifo = rustix::fs::FileType::Fifo;
                let mode = Mode::from_raw_mode(MODE);
                rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();
            },
        ];
        for place in place {
            place();
            let mut incoming = Incoming::open(dir.path(), &sha256).unwrap();
            assert_eq!(incoming.size(), 0);
            incoming.write(b"x").unwrap();
            incoming.finish().unwrap();
            assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
            fs::remove_file(&path).unwrap();
        }
        fs::create_dir(&path).unwrap();
        let error = Incoming::open(dir.path(), &sha256).err().unwrap().to_string();
        assert!(error.contains(".part: "), "{error}");
    }

    #[test]
    fn a_file_that_was_swapped_or_grew_is_not_received() {
        let dir = tempfile::tempdir().unwrap();
        let sha256 = digest(b"x");
        let path = dir.path().join(part(&sha256));
        let mut incoming = Incoming::open(dir.path(), &sha256).unwrap();
        incoming.write(b"x").unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "y").unwrap();
        assert!(incoming.finish().is_err(), "the name leads elsewhere");
        fs::remove_file(&path).unwrap();
        let mut incoming = Incoming::open(dir.path(), &sha256).unwrap();
        incoming.write(b"x").unwrap();
        fs::write(&path, "xy").unwrap();
        assert!(incoming.finish().is_err(), "more is in it than was hashed");
    }

    #[test]
    fn files_around_the_powers_of_two_are_as_long_as_what_was_hashed() {
        let dir = tempfile::tempdir().unwrap();
        for at in [1_u64 << 31, 1 << 32] {
            for size in [at - 1, at, at + 1] {
                // A hole stands for what came before.
                let mut incoming = Incoming::open(dir.path(), &[1; 32]).unwrap();
                incoming.file.set_len(size - 3).unwrap();
                incoming.size = size - 3;
                incoming.write(b"end").unwrap();
                assert_eq!(incoming.size(), size);
                let received = incoming.finish().unwrap();
                assert_eq!((received.size, received.file.metadata().unwrap().len()), (size, size));
                let mut end = [0; 4];
                received.file.read_exact_at(&mut end, size - 4).unwrap();
                assert_eq!(&end, b"\0end");
                fs::remove_file(dir.path().join(received.path)).unwrap();
            }
        }
    }

    #[test]
    fn space_is_looked_at_before_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let incoming = Incoming::open(dir.path(), &[1; 32]).unwrap();
        incoming.reserve(1).unwrap();
        let error = incoming.reserve(u64::MAX - FLOOR).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("no space left: "), "{error}");
    }

    #[test]
    fn a_disk_that_is_full_loses_nothing_of_what_came() {
        let dir = tempfile::tempdir().unwrap();
        let sha256 = digest(b"abcdef");
        let mut incoming = Incoming::open(dir.path(), &sha256).unwrap();
        incoming.write(b"abc").unwrap();
        let full = File::options().read(true).write(true).open("/dev/full").unwrap();
        let good = core::mem::replace(&mut incoming.file, full);
        let error = incoming.write(b"def").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(error.to_string().contains("no space left: 3 bytes more are needed"), "{error}");
        incoming.file = good;
        incoming.write(b"def").unwrap();
        assert!(incoming.is_expected());
        assert_eq!(incoming.finish().unwrap().size, 6);
    }

    #[test]
    fn leftovers_go_and_what_is_wanted_stays() {
        let dir = tempfile::tempdir().unwrap();
        sweep(dir.path(), &[]).unwrap();
        for sha256 in [[1; 32], [2; 32]] {
            let mut incoming = Incoming::open(dir.path(), &sha256).unwrap();
            incoming.begin(mark("\"v\"")).unwrap();
        }
        sweep(dir.path(), &[[2; 32]]).unwrap();
        let left =
            |sha256| [part(&sha256), meta(&sha256)].map(|path| dir.path().join(path).exists());
        assert_eq!((left([1; 32]), left([2; 32])), ([false, false], [true, true]));
        sweep(dir.path(), &[]).unwrap();
        assert_eq!(left([2; 32]), [false, false]);
    }
}
