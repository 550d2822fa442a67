//! A disk for the crash tests: it keeps what is flushed apart from what is not, and can be cut off at any step.
//!
//! After a crash every directory holds what was flushed, and any subset of what was not; a file that was not flushed
//! holds nothing, a part, or all of it. That is weaker than what any file system promises that has a journal.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::disk::{Access, Disk, Sink};

type Inode = u64;
const ROOT: Inode = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File {
        bytes: Vec<u8>,
        flushed: bool,
    },
    Link(PathBuf),
    Directory {
        /// Flushed.
        entries: BTreeMap<String, Inode>,
        /// Not flushed, in their order.
        pending: Vec<Change>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Add(String, Inode),
    Rename(String, String),
    Remove(String),
}

impl Change {
    fn apply(&self, entries: &mut BTreeMap<String, Inode>, names: &BTreeMap<String, Inode>) {
        match self {
            Self::Add(name, inode) => {
                entries.insert(name.clone(), *inode);
            }
            Self::Rename(from, to) => {
                // The new name may reach the disk although the old one never did.
                let inode = entries.remove(from).or_else(|| names.get(from).copied());
                if let Some(inode) = inode {
                    entries.insert(to.clone(), inode);
                }
            }
            Self::Remove(name) => {
                entries.remove(name);
            }
        }
    }
}

/// What is on it.
#[derive(Clone, Debug)]
pub(super) struct Image {
    nodes: BTreeMap<Inode, Node>,
    next: Inode,
}

impl Image {
    fn empty() -> Self {
        let root = Node::Directory { entries: BTreeMap::new(), pending: Vec::new() };
        Self { nodes: [(ROOT, root)].into(), next: 1 }
    }

    /// Every image that a power cut may leave of this one.
    pub(super) fn after_a_power_cut(&self) -> Vec<Self> {
        self.some_after_a_power_cut(usize::MAX)
    }

    /// At most so many of them, spread evenly.
    pub(super) fn some_after_a_power_cut(&self, most: usize) -> Vec<Self> {
        let variants: Vec<(Inode, Vec<Node>)> =
            self.nodes.iter().map(|(inode, node)| (*inode, node.after_a_power_cut())).collect();
        let all: usize = variants.iter().map(|(_, variants)| variants.len()).product();
        // Odd: the first choices are not always the same.
        let stride = all.div_ceil(most) | 1;
        let image = |mut choice: usize| {
            let nodes = variants.iter().map(|(inode, variants)| {
                let node = variants.get(choice % variants.len()).unwrap().clone();
                choice /= variants.len();
                (*inode, node)
            });
            Self { nodes: nodes.collect(), next: self.next }
        };
        (0..all).step_by(stride).map(image).collect()
    }
}

impl Node {
    /// What a power cut may make of it.
    fn after_a_power_cut(&self) -> Vec<Self> {
        match self {
            Self::Link(_) | Self::File { flushed: true, .. } => vec![self.clone()],
            Self::File { bytes, .. } => {
                let lengths = [0, bytes.len() / 2, bytes.len()];
                lengths.map(|length| file(bytes.get(..length).unwrap_or_default())).into()
            }
            Self::Directory { entries, pending } => subsets(entries, pending),
        }
    }
}

fn file(bytes: &[u8]) -> Node {
    Node::File { bytes: bytes.to_vec(), flushed: true }
}

/// A directory with every subset of its unflushed changes.
fn subsets(entries: &BTreeMap<String, Inode>, pending: &[Change]) -> Vec<Node> {
    let mut found: Vec<Node> = Vec::new();
    for choice in 0..(1_u32 << pending.len()) {
        let mut left = entries.clone();
        // All names that there ever were: a rename can bring along what was never flushed under its first name.
        let mut names = entries.clone();
        for (at, change) in pending.iter().enumerate() {
            if choice & (1 << at) != 0 {
                change.apply(&mut left, &names);
            }
            let before = names.clone();
            change.apply(&mut names, &before);
        }
        let node = Node::Directory { entries: left, pending: Vec::new() };
        if !found.contains(&node) {
            found.push(node);
        }
    }
    found
}

/// How a disk misbehaves.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Manners {
    /// Steps that are done; from then on the power is off.
    pub(super) steps: Option<usize>,
    /// From this step on, nothing can be added.
    pub(super) full_from: Option<usize>,
    /// `create` does not flush: the order that must be caught.
    pub(super) lazy: bool,
}

#[derive(Debug)]
struct State {
    image: Image,
    manners: Manners,
    steps: usize,
}

/// The disk: clones are the same disk, seen from the same or another directory.
#[derive(Clone, Debug)]
pub(super) struct Simulated(Arc<Mutex<State>>, PathBuf);

impl Simulated {
    pub(super) fn empty() -> Self {
        Self::with(Image::empty(), Manners::default())
    }

    pub(super) fn with(image: Image, manners: Manners) -> Self {
        Self(Arc::new(Mutex::new(State { image, manners, steps: 0 })), PathBuf::new())
    }

    /// The same disk, seen from a directory.
    pub(super) fn below(&self, directory: &str) -> Self {
        Self(Arc::clone(&self.0), self.1.join(directory))
    }

    fn at(&self, path: &Path) -> PathBuf {
        self.1.join(path).components().collect()
    }

    pub(super) fn image(&self) -> Image {
        self.0.lock().unwrap().image.clone()
    }

    /// Steps that changed it.
    pub(super) fn steps(&self) -> usize {
        self.0.lock().unwrap().steps
    }

    pub(super) fn is_off(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.manners.steps.is_some_and(|most| state.steps >= most)
    }

    /// Reading is no step.
    fn look<T>(&self, look: impl FnOnce(&Image) -> io::Result<T>) -> io::Result<T> {
        look(&self.0.lock().unwrap().image)
    }

    fn step<T>(
        &self,
        adds: bool,
        change: impl FnOnce(&mut Image, bool) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.0.lock().unwrap();
        let state = &mut *state;
        if state.manners.steps.is_some_and(|most| state.steps >= most) {
            return Err(io::Error::other("the power is off"));
        }
        state.steps += 1;
        if adds && state.manners.full_from.is_some_and(|from| state.steps > from) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        change(&mut state.image, state.manners.lazy)
    }
}

impl Image {
    fn entries(&self, directory: Inode) -> io::Result<BTreeMap<String, Inode>> {
        let Some(Node::Directory { entries, pending }) = self.nodes.get(&directory) else {
            return Err(io::ErrorKind::NotADirectory.into());
        };
        let mut now = entries.clone();
        for change in pending {
            let before = now.clone();
            change.apply(&mut now, &before);
        }
        Ok(now)
    }

    fn find(&self, path: &Path) -> io::Result<Inode> {
        path.components().try_fold(ROOT, |at, part| {
            let name = part.as_os_str().to_str().unwrap();
            self.entries(at)?.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn parent(&self, path: &Path) -> io::Result<(Inode, String)> {
        let parent = self.find(path.parent().unwrap())?;
        Ok((parent, path.file_name().unwrap().to_str().unwrap().to_owned()))
    }

    fn change(&mut self, directory: Inode, change: Change) {
        if let Some(Node::Directory { pending, .. }) = self.nodes.get_mut(&directory) {
            pending.push(change);
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<Inode> {
        let (parent, name) = self.parent(path)?;
        if self.entries(parent)?.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = self.next;
        self.next += 1;
        self.nodes.insert(inode, node);
        self.change(parent, Change::Add(name, inode));
        Ok(inode)
    }
}

impl Disk for Simulated {
    fn make_root(&self) -> io::Result<()> {
        Self(Arc::clone(&self.0), PathBuf::new())
            .make_directory(&self.1, Access { mode: 0o755, group: None })
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let path = self.at(path);
        self.look(|image| match image.nodes.get(&image.find(&path)?) {
            Some(Node::File { bytes, .. }) if bytes.len() as u64 <= most => Ok(bytes.clone()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        })
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        let directory = self.at(directory);
        self.look(|image| Ok(image.entries(image.find(&directory)?)?.into_keys().collect()))
    }

    fn target(&self, link: &Path) -> io::Result<PathBuf> {
        let link = self.at(link);
        self.look(|image| match image.nodes.get(&image.find(&link)?) {
            Some(Node::Link(target)) => Ok(target.clone()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        })
    }

    fn make_directory(&self, path: &Path, _access: Access) -> io::Result<()> {
        let path = self.at(path);
        if self.look(|image| image.find(&path)).is_ok() {
            return Ok(());
        }
        self.step(true, |image, _| {
            let node = Node::Directory { entries: BTreeMap::new(), pending: Vec::new() };
            image.add(&path, node).map(|_| ())
        })
    }

    fn create(&self, path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
        // Opened; written; flushed.
        let mut sink = self.writer(path, access)?;
        sink.write_all(bytes)?;
        sink.finish()
    }

    fn writer(&self, path: &Path, _access: Access) -> io::Result<Box<dyn Sink>> {
        let path = self.at(path);
        let node = Node::File { bytes: Vec::new(), flushed: false };
        let inode = self.step(true, |image, _| image.add(&path, node))?;
        Ok(Box::new(Writing { disk: self.clone(), inode, bytes: Vec::new() }))
    }

    fn adopt(&self, _file: &File, _from: &Path, to: &Path, access: Access) -> io::Result<()> {
        // What is fetched lies on a real disk in these tests: here it appears.
        self.create(to, b"a single file", access)
    }

    fn link(&self, link: &Path, target: &Path) -> io::Result<()> {
        let link = self.at(link);
        self.step(true, |image, _| image.add(&link, Node::Link(target.to_owned())).map(|_| ()))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.at(from), self.at(to));
        self.step(false, |image, _| {
            image.find(&from)?;
            let (parent, old) = image.parent(&from)?;
            let (same, new) = image.parent(&to)?;
            assert_eq!(parent, same, "renames stay within a directory");
            image.change(parent, Change::Rename(old, new));
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let path = self.at(path);
        let inode = self.look(|image| image.find(&path))?;
        self.look(|image| match image.nodes.get(&inode) {
            Some(Node::Directory { .. }) => Err(io::ErrorKind::IsADirectory.into()),
            _ => Ok(()),
        })?;
        self.unlink(&path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        if !self.names(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.unlink(&self.at(path))
    }

    fn sync(&self, directory: &Path) -> io::Result<()> {
        let directory = self.at(directory);
        self.step(false, |image, _| {
            let inode = image.find(&directory)?;
            let now = image.entries(inode)?;
            let node = Node::Directory { entries: now, pending: Vec::new() };
            image.nodes.insert(inode, node);
            Ok(())
        })
    }
}

impl Simulated {
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.step(false, |image, _| {
            let (parent, name) = image.parent(path)?;
            image.change(parent, Change::Remove(name));
            Ok(())
        })
    }
}

/// A file that is being written.
struct Writing {
    disk: Simulated,
    inode: Inode,
    bytes: Vec<u8>,
}

impl Write for Writing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        let all = self.bytes.clone();
        self.disk.step(true, |image, _| {
            image.nodes.insert(self.inode, Node::File { bytes: all, flushed: false });
            Ok(bytes.len())
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Writing {
    fn finish(self: Box<Self>) -> io::Result<()> {
        let Self { disk, inode, bytes } = *self;
        disk.step(false, |image, lazy| {
            image.nodes.insert(inode, Node::File { bytes, flushed: !lazy });
            Ok(())
        })
    }
}
