//! Sets of packages, below `packages_dir`.
//!
//! ```text
//! packages_dir/
//!   current -> sets/7         the running set, one pointer for all of it
//!   back -> sets/6            during a trial that changes it: the way back, one rename away
//!   sets/7/NAME -> ../../trees/12
//!   sets/7.set                record: the members
//!   trees/12/…                one unpacked package; a single file is trees/12/NAME
//!   trees/12.tree             record: what it was made of. Without it the tree is not whole
//!   local/NAME                a package of the device's maker: a member of every set that has none of this name
//!   incoming/                 what has arrived of a file (`incoming.rs`)
//! ```
//!
//! A generation says which set is its own, so one record decides about both. What is unpacked is never touched again:
//! unchanged members are linked, not copied.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use super::disk::{Access, Sink};
use super::incoming::Received;
use super::record::{self, MAX_RECORD, MemberRecord, Record as _, SetRecord, TreeRecord};
use super::{RECORD, Store, temporary};
use crate::agent::packages::policy::Warrant;
use crate::agent::packages::set::{Kind, Member, Plan};
use crate::agent::rollout::{Digest, Staged};
use crate::sha256::Sha256;

const SETS: &str = "sets";
const TREES: &str = "trees";
const LOCAL: &str = "local";
const CURRENT: &str = "current";
const BACK: &str = "back";
/// Others than root run what is in here, and packages are no secrets.
const DIRECTORY: Access = Access { mode: 0o755, group: None };
const EXECUTABLE: Access = Access { mode: 0o755, group: None };
const PLAIN: Access = Access { mode: 0o644, group: None };
/// Directories within each other that are removed; an archive has fewer.
const MAX_DEPTH: usize = 64;
/// Local packages that are members.
const MAX_LOCAL: usize = 64;

/// A file that may be used: its SHA-256 is the one that a warrant was given for, and it was taken over what this very
/// descriptor holds. There is no other way to one.
#[derive(Debug)]
pub struct VerifiedPackage {
    file: File,
    /// Where it lies, below `packages_dir`; the descriptor counts.
    path: PathBuf,
    member: Member,
}

impl VerifiedPackage {
    /// One of which only the name counts.
    #[cfg(test)]
    #[expect(clippy::unwrap_used, reason = "tests")]
    pub(super) fn of(member: &Member) -> Self {
        let file = File::open("/dev/null").unwrap();
        Self { file, path: PathBuf::from("part"), member: member.clone() }
    }

    /// Holds what was received against what was approved.
    ///
    /// # Errors
    /// What differs.
    pub fn new(received: Received, warrant: &Warrant) -> Result<Self, String> {
        let member = warrant.member();
        if received.sha256 != member.sha256 {
            return Err("its SHA-256 is not the offered one".to_owned());
        }
        if let Some(size) = warrant.size()
            && size != received.size
        {
            let had = received.size;
            return Err(format!("it has {had} bytes; its manifest says {size}"));
        }
        Ok(Self { file: received.file, path: received.path, member: member.clone() })
    }

    /// To be read.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// It has been used: nothing more is to be kept of what was received.
    pub fn consume(self, store: &Store) {
        let _ = store.discard_package(&self.path);
        let _ = store.discard_package(&self.path.with_extension("meta"));
    }
}

/// Which trees nobody may take away, though no set has them. One lock over looking and acting.
#[derive(Debug, Default)]
pub(super) struct Trees {
    /// Obtained for the offer under way.
    fresh: Vec<u64>,
    /// Being filled, for whichever offer.
    in_work: Vec<u64>,
    /// The highest number that was given out: none is given twice, whoever still writes.
    highest: u64,
}

/// A package that is being unpacked.
pub struct Tree<'a> {
    store: &'a Store,
    number: u64,
    directories: Vec<PathBuf>,
}

/// A file in it that is being written.
pub struct TreeFile(Box<dyn Sink>);

impl Write for TreeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        self.store.trees().in_work.retain(|number| *number != self.number);
    }
}

impl Tree<'_> {
    fn path(&self, inside: &Path) -> PathBuf {
        tree(self.number).join(inside)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn directory(&mut self, path: &Path) -> io::Result<()> {
        let path = self.path(path);
        self.store.packages.make_directory(&path, DIRECTORY)?;
        self.directories.push(path);
        Ok(())
    }

    /// Opens a new file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn file(&self, path: &Path, executable: bool) -> io::Result<TreeFile> {
        let access = if executable { EXECUTABLE } else { PLAIN };
        self.store.packages.writer(&self.path(path), access).map(TreeFile)
    }

    /// Flushes a file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn finish(&self, file: TreeFile) -> io::Result<()> {
        file.0.finish()
    }

    /// Makes a symlink.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn symlink(&self, path: &Path, target: &Path) -> io::Result<()> {
        self.store.packages.link(&self.path(path), target)
    }

    /// The package is a single file, already verified: it is moved here as it is.
    ///
    /// # Errors
    /// What the kernel says; also when what stands at `from` is not that file.
    pub fn adopt(&self, package: &VerifiedPackage) -> io::Result<()> {
        let member = &package.member;
        let access = if member.kind == Kind::TopLevel { EXECUTABLE } else { PLAIN };
        let to = self.path(Path::new(&member.name));
        self.store.packages.adopt(&package.file, &package.path, &to, access)
    }

    /// It cannot be completed: what there is of it goes.
    pub fn abandon(self) {
        self.store.remove_tree(&tree(self.number), 0);
    }

    /// All is in it: makes it durable.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn seal(self, package: &VerifiedPackage) -> io::Result<()> {
        let member = &package.member;
        let disk = self.store.packages.as_ref();
        for directory in self.directories.iter().rev() {
            disk.sync(directory)?;
        }
        disk.sync(&tree(self.number))?;
        let record = TreeRecord {
            sha256: member.sha256.to_vec(),
            name: member.name.clone(),
            addon: member.kind == Kind::Addon,
        };
        disk.create(&tree_record(self.number), &record::seal(&record.to_payload()), RECORD)?;
        disk.sync(Path::new(TREES))?;
        self.store.trees().fresh.push(self.number);
        Ok(())
    }
}

impl Store {
    /// Where packages lie.
    #[must_use]
    pub fn packages_dir(&self) -> &Path {
        &self.packages_root
    }

    /// Begins with the tree of a package.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new_tree(&self) -> io::Result<Tree<'_>> {
        self.lay_out_packages()?;
        let mut trees = self.trees();
        let number = self.next_in(TREES)?.max(trees.highest.saturating_add(1));
        trees.highest = number;
        // From now on nobody takes it for a leftover.
        trees.in_work.push(number);
        drop(trees);
        let tree_of = Tree { store: self, number, directories: Vec::new() };
        self.packages.make_directory(&tree(number), DIRECTORY)?;
        Ok(tree_of)
    }

    fn trees(&self) -> MutexGuard<'_, Trees> {
        self.trees.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the tree of this package is here already.
    #[must_use]
    pub fn has_tree(&self, member: &Member) -> bool {
        let mut trees = self.trees();
        let found = self.find_tree(member);
        if let Some(number) = found
            && !trees.fresh.contains(&number)
        {
            trees.fresh.push(number);
        }
        found.is_some()
    }

    fn find_tree(&self, member: &Member) -> Option<u64> {
        self.numbers_in(TREES).into_iter().rev().find(|number| {
            let record = self.load_package::<TreeRecord>(&tree_record(*number));
            record.is_ok_and(|record| {
                // What is unpacked from an archive has the same contents under any name; a single file has not.
                record.sha256 == member.sha256
                    && record.name == member.name
                    && record.addon == (member.kind == Kind::Addon)
                    // Its name may have been flushed, and that of the tree not.
                    && self.packages.names(&tree(*number)).is_ok()
            })
        })
    }

    /// A new offer begins: what was obtained for an older one may go.
    pub fn forget_obtained(&self) {
        self.trees().fresh.clear();
    }

    fn lay_out_packages(&self) -> io::Result<()> {
        self.packages.make_root()?;
        for name in [SETS, TREES] {
            self.packages.make_directory(Path::new(name), DIRECTORY)?;
        }
        Ok(())
    }

    /// Names of packages that the device's maker has put here.
    pub(super) fn local_names(&self) -> Vec<String> {
        self.local_members().into_iter().map(|member| member.name).collect()
    }

    /// Members that the device's maker has put here.
    fn local_members(&self) -> Vec<Member> {
        let mut names = self.packages.names(Path::new(LOCAL)).unwrap_or_default();
        names.sort_unstable();
        names.truncate(MAX_LOCAL);
        let local = |name| Member { name, local: true, ..Member::default() };
        names.into_iter().map(local).collect()
    }

    /// The members of the next set: those of a plan, or those of a set that is here, and the local ones.
    pub(super) fn members(&self, plan: Option<&Plan>, set: u64) -> Result<Vec<Member>, String> {
        let mut members = match plan {
            Some(plan) => plan.members.clone(),
            None => self.set(set)?.into_iter().filter(|member| !member.local).collect(),
        };
        for local in self.local_members() {
            if !members.iter().any(|member| member.name == local.name) {
                members.push(local);
            }
        }
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(members)
    }

    /// The members of a set; 0 has none.
    pub(super) fn set(&self, number: u64) -> Result<Vec<Member>, String> {
        if number == 0 {
            return Ok(Vec::new());
        }
        let path = set_record(number);
        let record: SetRecord = self
            .load_package(&path)
            .map_err(|error| format!("{}: {error}", self.packages_root.join(&path).display()))?;
        record.members.into_iter().map(MemberRecord::into_member).collect()
    }

    /// Whether a member of a set is there, as far as names tell.
    pub(super) fn has_member(&self, number: u64, member: &Member) -> bool {
        let link = set(number).join(&member.name);
        let Some(target) = self.packages.target(&link).ok() else { return false };
        let tree = target.file_name().and_then(|name| name.to_str()?.parse().ok());
        member.local
            || tree.is_some_and(|tree| self.load_package::<TreeRecord>(&tree_record(tree)).is_ok())
    }

    /// Writes a set beside the running one; nothing points at it yet. No members: no set.
    pub(super) fn write_set(&self, members: &[Member]) -> Result<u64, Staged> {
        if members.is_empty() {
            return Ok(0);
        }
        let at = |error: io::Error| {
            Staged::Failed(format!("{}: {error}", self.packages_root.join(SETS).display()))
        };
        self.lay_out_packages().map_err(at)?;
        let number = self.next_in(SETS).map_err(at)?;
        let directory = set(number);
        let disk = self.packages.as_ref();
        disk.make_directory(&directory, DIRECTORY).map_err(at)?;
        let mut used = Vec::new();
        for member in members {
            let target = if member.local {
                Path::new("../..").join(LOCAL).join(&member.name)
            } else {
                let gone = || format!("package {} is not there any more", member.name);
                let tree = self.find_tree(member).ok_or_else(|| Staged::Lacking(gone()))?;
                used.push(tree);
                Path::new("../../trees").join(tree.to_string())
            };
            disk.link(&directory.join(&member.name), &target).map_err(at)?;
        }
        disk.sync(&directory).map_err(at)?;
        let record = SetRecord { members: members.iter().map(MemberRecord::new).collect() };
        disk.create(&set_record(number), &record::seal(&record.to_payload()), RECORD)
            .map_err(at)?;
        disk.sync(Path::new(SETS)).map_err(at)?;
        // From here on the set keeps them.
        self.trees().fresh.retain(|number| !used.contains(number));
        Ok(number)
    }

    /// The same members by other names of the server's: versions, hashes, counters.
    pub(super) fn relabel(&self, number: u64, members: &[Member]) -> Result<(), String> {
        if number == 0 || self.set(number)? == members {
            return Ok(());
        }
        let path = set_record(number);
        let at =
            |error: io::Error| format!("{}: {error}", self.packages_root.join(&path).display());
        let record = SetRecord { members: members.iter().map(MemberRecord::new).collect() };
        let temporary = temporary(&path);
        self.discard_package(&temporary).map_err(at)?;
        let disk = self.packages.as_ref();
        disk.create(&temporary, &record::seal(&record.to_payload()), RECORD).map_err(at)?;
        disk.rename(&temporary, &path).map_err(at)?;
        disk.sync(Path::new(SETS)).map_err(at)
    }

    /// The set that runs; 0: none.
    pub(super) fn running_set(&self) -> u64 {
        self.pointed_set(CURRENT)
    }

    fn pointed_set(&self, link: &str) -> u64 {
        let target = self.packages.target(Path::new(link)).ok();
        target.and_then(|target| target.file_name()?.to_str()?.parse().ok()).unwrap_or(0)
    }

    /// Before a trial that leaves `committed`: the way back to it.
    pub(super) fn arm_set(&self, committed: u64) -> Result<(), String> {
        if committed == 0 || self.pointed_set(BACK) == committed {
            return Ok(());
        }
        let at = |error: io::Error| format!("{}: {error}", self.packages_root.join(BACK).display());
        self.discard_package(Path::new(BACK)).map_err(at)?;
        self.packages.link(Path::new(BACK), &set(committed)).map_err(at)?;
        self.packages.sync(Path::new("")).map_err(at)
    }

    /// Makes a set the running one in one step.
    pub(super) fn point_to_set(&self, number: u64) -> Result<(), String> {
        if self.running_set() == number {
            return Ok(());
        }
        let link = Path::new(CURRENT);
        let at =
            |error: io::Error| format!("{}: {error}", self.packages_root.join(CURRENT).display());
        let disk = self.packages.as_ref();
        if number == 0 {
            self.discard_package(link).map_err(at)?;
        } else if self.pointed_set(BACK) == number {
            disk.rename(Path::new(BACK), link).map_err(at)?;
        } else {
            let temporary = temporary(link);
            self.discard_package(&temporary).map_err(at)?;
            disk.link(&temporary, &set(number)).map_err(at)?;
            disk.rename(&temporary, link).map_err(at)?;
        }
        disk.sync(Path::new("")).map_err(at)
    }

    /// The members of the running set by their names alone, whatever its record says.
    pub(super) fn running_members(&self) -> Vec<Member> {
        let names = self.packages.names(&set(self.running_set())).unwrap_or_default();
        names.into_iter().map(|name| Member { name, ..Member::default() }).collect()
    }

    /// What is said where a newer Chiton wrote the record of the running set.
    pub(super) fn newer_set(&self) -> Option<String> {
        let path = set_record(self.running_set());
        let bytes = self.packages.read(&path, MAX_RECORD).ok()?;
        let error = record::open(&bytes).err().filter(record::Unread::is_newer)?;
        Some(error.of(&path.display().to_string()).into())
    }

    /// An interrupted trial is undone, whatever a record says.
    pub(super) fn go_back_of_sets(&self) {
        if self.pointed_set(BACK) != 0 {
            let _ = self.packages.rename(Path::new(BACK), Path::new(CURRENT));
            let _ = self.packages.sync(Path::new(""));
        }
    }

    /// After a trial.
    pub(super) fn clear_way_back_of_sets(&self) {
        if self.pointed_set(BACK) != 0 {
            let _ = self.discard_package(Path::new(BACK));
        }
    }

    /// Where a package lies: in the running set, or in that of a candidate.
    #[must_use]
    pub fn package_dir(&self, set_number: Option<u64>, name: &str) -> PathBuf {
        let set = set_number.map_or_else(|| PathBuf::from(CURRENT), set);
        self.packages_root.join(set).join(name)
    }

    /// Removes sets but these, and trees of which nothing is made; never one that was obtained for the offer under
    /// way. What cannot be removed now is tried again after the next change.
    pub(super) fn prune_sets(&self, keep: &[u64]) {
        // Nothing is begun or found between the look and the end of this.
        let trees = self.trees();
        let mut needed: Vec<u64> = trees.fresh.iter().chain(&trees.in_work).copied().collect();
        let running = self.running_set();
        for number in self.numbers_in(SETS) {
            let directory = set(number);
            if keep.contains(&number) || number == running {
                let names = self.packages.names(&directory).unwrap_or_default();
                let targets = names.iter().filter_map(|name| {
                    let target = self.packages.target(&directory.join(name)).ok()?;
                    target.file_name()?.to_str()?.parse::<u64>().ok()
                });
                needed.extend(targets);
                continue;
            }
            // The record first: without it nobody takes what is left for a set.
            let _ = self.discard_package(&set_record(number));
            self.remove_tree(&directory, 0);
        }
        for number in self.numbers_in(TREES).into_iter().filter(|number| !needed.contains(number)) {
            let _ = self.discard_package(&tree_record(number));
            self.remove_tree(&tree(number), 0);
        }
        drop(trees);
    }

    fn remove_tree(&self, directory: &Path, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        for name in self.packages.names(directory).unwrap_or_default() {
            let path = directory.join(name);
            // A directory cannot be unlinked: what is in it goes first.
            if self.packages.remove(&path).is_err() {
                self.remove_tree(&path, depth.saturating_add(1));
            }
        }
        let _ = self.packages.remove_directory(directory);
    }

    fn load_package<R: record::Record>(&self, path: &Path) -> Result<R, String> {
        super::load(self.packages.as_ref(), path, MAX_RECORD)?
            .ok_or_else(|| "it is missing".to_owned())
    }

    fn discard_package(&self, path: &Path) -> io::Result<()> {
        match self.packages.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn numbers_in(&self, directory: &str) -> Vec<u64> {
        let names = self.packages.names(Path::new(directory)).unwrap_or_default();
        let mut numbers: Vec<u64> =
            names.iter().filter_map(|name| name.split('.').next()?.parse().ok()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn next_in(&self, directory: &str) -> io::Result<u64> {
        let highest = self.numbers_in(directory).pop().unwrap_or(0);
        highest.checked_add(1).ok_or_else(|| io::Error::other("no more numbers"))
    }
}

/// The digest of a generation: of its configuration, and of its packages where it has any.
pub(super) fn digest(config: Digest, members: &[Member]) -> Digest {
    if members.is_empty() {
        return config;
    }
    let mut hash = Sha256::new();
    hash.update(config);
    hash.update(crate::agent::packages::set::digest(members));
    hash.finalize()
}

fn set(number: u64) -> PathBuf {
    Path::new(SETS).join(number.to_string())
}

fn set_record(number: u64) -> PathBuf {
    Path::new(SETS).join(format!("{number}.set"))
}

fn tree(number: u64) -> PathBuf {
    Path::new(TREES).join(number.to_string())
}

fn tree_record(number: u64) -> PathBuf {
    Path::new(TREES).join(format!("{number}.tree"))
}
