//! The packages' files on disk: `files/<sha256>`, and `incoming/` for what is still arriving.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::config::Database;
use crate::package::FileHash;

/// What is uploaded is nobody else's business until it is offered.
const DIRECTORY_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// Why the packages' directory could not be used.
#[derive(Debug)]
pub struct DepotError {
    path: PathBuf,
    why: Fault,
}

#[derive(Debug)]
enum Fault {
    Io(io::Error),
    Held,
}

impl fmt::Display for DepotError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.why {
            Fault::Io(error) => write!(out, "{path}: {error}"),
            Fault::Held => {
                write!(out, "{path}: another chiton-server uses it; stop that one first")
            }
        }
    }
}

impl std::error::Error for DepotError {}

/// The directory. Its calls block.
#[derive(Debug)]
pub(crate) struct Depot {
    root: PathBuf,
    tenure: Tenure,
    next: AtomicU64,
}

/// How long the directory lives.
#[derive(Debug)]
enum Tenure {
    /// As long as this server, which made it.
    Own,
    /// Beyond it; no other server may use it as long as this lock is held.
    Kept(File),
}

impl Depot {
    /// Takes the directory beside the database. Where state is kept nowhere, one is made for the first upload
    /// and removed at the end.
    pub(crate) fn open(database: &Database) -> Result<Self, DepotError> {
        let (root, tenure) = match database {
            Database::Memory => {
                let name = format!("chiton-server-{}", Uuid::now_v7());
                (std::env::temp_dir().join(name), Tenure::Own)
            }
            Database::File(file) => {
                let mut name = file.clone().into_os_string();
                name.push(".packages");
                let root = PathBuf::from(name);
                let lock = take(&root).map_err(|why| DepotError { path: root.clone(), why })?;
                (root, Tenure::Kept(lock))
            }
        };
        Ok(Self { root, tenure, next: AtomicU64::new(1) })
    }

    /// Removes what an interrupted upload or removal left, and gives the files that are there, of those `known`.
    pub(crate) fn sweep(
        &self,
        known: &BTreeSet<FileHash>,
    ) -> Result<BTreeSet<FileHash>, DepotError> {
        let sweep = || {
            let mut found = BTreeSet::new();
            for entry in fs::read_dir(self.incoming())? {
                fs::remove_file(entry?.path())?;
            }
            for entry in fs::read_dir(self.files())? {
                let entry = entry?;
                let name = entry.file_name();
                match name.to_str().and_then(FileHash::from_text) {
                    Some(hash) if known.contains(&hash) => {
                        found.insert(hash);
                    }
                    // Its upload was interrupted before it had a name, or its removal after.
                    Some(_) => fs::remove_file(entry.path())?,
                    // Not ours.
                    None => {}
                }
            }
            Ok(found)
        };
        if matches!(self.tenure, Tenure::Own) {
            return Ok(BTreeSet::new());
        }
        sweep().map_err(|error| DepotError { path: self.root.clone(), why: Fault::Io(error) })
    }

    /// Writes what comes until [`Piece::End`]; when the sender goes away without it, nothing is left.
    pub(crate) fn receive(
        &self,
        pieces: &mut mpsc::Receiver<Piece>,
        limit: u64,
    ) -> Result<Incoming, ReceiveError> {
        furnish(&self.root)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.incoming().join(format!("{number}.part"));
        let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&path)?;
        let mut incoming = Incoming { path, file: FileHash([0; 32]), size: 0 };
        let mut digest = Sha256::new();
        loop {
            match pieces.blocking_recv() {
                Some(Piece::Data(data)) => {
                    let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    incoming.size = incoming.size.saturating_add(length);
                    if incoming.size > limit {
                        return Err(ReceiveError::TooLarge);
                    }
                    (&file).write_all(&data)?;
                    digest.update(&data);
                }
                Some(Piece::End) => break,
                None => return Err(ReceiveError::CutShort),
            }
        }
        file.sync_all()?;
        incoming.file = FileHash(digest.finalize().into());
        Ok(incoming)
    }

    /// Gives an arrived file its place, for good.
    pub(crate) fn keep(&self, incoming: &Incoming) -> io::Result<()> {
        fs::rename(&incoming.path, self.path(incoming.file))?;
        File::open(self.files())?.sync_all()
    }

    /// Removes a file; whoever reads it goes on.
    pub(crate) fn remove(&self, file: FileHash) -> io::Result<()> {
        match fs::remove_file(self.path(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Opens a file to read it.
    pub(crate) fn read(&self, file: FileHash) -> io::Result<File> {
        File::open(self.path(file))
    }

    /// Lets the directory go.
    pub(crate) fn close(&self) {
        match &self.tenure {
            Tenure::Kept(lock) => drop(lock.unlock()),
            Tenure::Own => drop(fs::remove_dir_all(&self.root)),
        }
    }

    fn path(&self, file: FileHash) -> PathBuf {
        self.files().join(file.to_string())
    }

    fn files(&self) -> PathBuf {
        self.root.join("files")
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }
}

/// Makes the directory where it is absent, and locks it.
fn take(root: &Path) -> Result<File, Fault> {
    furnish(root).map_err(Fault::Io)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(FILE_MODE);
    let lock = options.open(root.join("lock")).map_err(Fault::Io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Fault::Held),
        Err(TryLockError::Error(error)) => Err(Fault::Io(error)),
    }
}

fn furnish(root: &Path) -> io::Result<()> {
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path);
    make(&root.join("files"))?;
    make(&root.join("incoming"))
}

impl Drop for Depot {
    fn drop(&mut self) {
        if matches!(self.tenure, Tenure::Own) {
            self.close();
        }
    }
}

/// A part of an upload.
pub(crate) enum Piece {
    Data(Bytes),
    /// That was all of it.
    End,
}

/// A whole file that has no place yet; dropping it removes it.
#[derive(Debug)]
pub(crate) struct Incoming {
    path: PathBuf,
    pub(crate) file: FileHash,
    pub(crate) size: u64,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After `keep` there is nothing here; what cannot be removed now is swept at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// Why an upload was not taken.
#[derive(Debug)]
pub(crate) enum ReceiveError {
    TooLarge,
    /// The sender went away.
    CutShort,
    Io(io::Error),
}

impl From<io::Error> for ReceiveError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
