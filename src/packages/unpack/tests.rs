#![expect(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod archives;
mod compressed;
mod properties;
mod writer;

use core::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;

use tempfile::TempDir;

use super::*;

/// A tree in a plain directory. Something stands beside it that must stay as it is.
struct Plain {
    place: TempDir,
}

impl Plain {
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        fs::create_dir(place.path().join("tree")).unwrap();
        fs::write(place.path().join("beside"), "untouched").unwrap();
        Self { place }
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.place.path().join("tree").join(path)
    }

    /// Nothing came to be outside of the tree, and nothing in it leads there.
    fn assert_kept_within(&self) {
        let mut names: Vec<_> = fs::read_dir(self.place.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["beside", "tree"]);
        assert_eq!(fs::read(self.place.path().join("beside")).unwrap(), b"untouched");
        let top = self.at("").canonicalize().unwrap();
        let mut open = vec![top.clone()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    open.push(entry.path());
                } else if let Ok(real) = entry.path().canonicalize() {
                    assert!(real.starts_with(&top), "{:?} leads to {real:?}", entry.path());
                }
            }
        }
    }
}

impl Tree for Plain {
    type File = File;

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        fs::create_dir(self.at(path))
    }

    fn file(&mut self, path: &Path, executable: bool) -> io::Result<File> {
        let mode = if executable { 0o755 } else { 0o644 };
        OpenOptions::new().write(true).create_new(true).mode(mode).open(self.at(path))
    }

    fn finish(&mut self, file: File) -> io::Result<()> {
        file.sync_all()
    }

    fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(target, self.at(path))
    }
}

/// A tree that only counts, and fails the test where it is asked for what no tree may be asked for.
#[derive(Default)]
struct Counting {
    /// Bytes, also of files that were not finished.
    written: Rc<Cell<u64>>,
    /// What was made; true: a directory.
    made: BTreeMap<PathBuf, bool>,
}

impl Counting {
    fn make(&mut self, path: &Path, directory: bool) {
        let normal = |part| matches!(part, std::path::Component::Normal(_));
        assert!(path.components().all(normal) && path.file_name().is_some(), "{path:?}");
        let above = path.parent().unwrap();
        assert!(above == Path::new("") || self.made.get(above) == Some(&true), "{path:?}");
        assert_eq!(self.made.insert(path.to_owned(), directory), None, "{path:?}");
    }
}

struct Count(Rc<Cell<u64>>);

impl Write for Count {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        assert!(data.len() <= CHUNK);
        self.0.set(self.0.get() + u64::try_from(data.len()).unwrap());
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Tree for Counting {
    type File = Count;

    fn directory(&mut self, path: &Path) -> io::Result<()> {
        self.make(path, true);
        Ok(())
    }

    fn file(&mut self, path: &Path, _: bool) -> io::Result<Count> {
        self.make(path, false);
        Ok(Count(Rc::clone(&self.written)))
    }

    fn finish(&mut self, _: Count) -> io::Result<()> {
        Ok(())
    }

    fn symlink(&mut self, path: &Path, _: &Path) -> io::Result<()> {
        self.make(path, false);
        Ok(())
    }
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    // It stands at its end, where nobody must start to read.
    file.write_all(bytes).unwrap();
    file
}

/// Unpacks bytes into a directory.
fn unpacked(bytes: &[u8]) -> (Plain, Result<Unpacked, Refusal>) {
    let mut tree = Plain::new();
    let outcome = unpack(&file_of(bytes), &mut tree, &Limits::default());
    tree.assert_kept_within();
    (tree, outcome)
}

/// The text of a refusal for ever.
fn refusal(bytes: &[u8]) -> String {
    match unpacked(bytes).1.unwrap_err() {
        Refusal::Archive(text) => text,
        disk @ Refusal::Disk { .. } => format!("the disk: {disk}"),
    }
}
