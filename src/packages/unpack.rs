//! An archive becomes a tree of files: what is in it is checked name by name, and only then asked of the disk.
//!
//! The file's signature has been verified before, so what is refused here is what would hurt a device all the same:
//! a packer's mistake, or a stolen key. Nothing is written outside of the tree, whatever the archive says.

mod header;
mod name;
mod stream;
#[cfg(test)]
mod tests;

use core::fmt;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};
use std::path::Path;

use header::{BLOCK, Header, Kind};
use stream::Stream;

/// Bytes copied at once.
const CHUNK: usize = 32 * 1024;
/// Bytes of a header that holds a long name: the name and its NUL.
const MAX_LONG: usize = name::MAX_PATH + 1;
/// Bytes of a PAX header.
const MAX_PAX: usize = 16 * 1024;

/// Where an unpacked package goes; the store implements it. Every path is relative, checked, and its parents are there.
pub trait Tree {
    /// A file that is being written.
    type File: io::Write;

    /// Makes a directory.
    ///
    /// # Errors
    /// What the disk says.
    fn directory(&mut self, path: &Path) -> io::Result<()>;
    /// Makes a file; one that is there is an error. An executable one is for everybody to execute, and no file is for
    /// others to write.
    ///
    /// # Errors
    /// What the disk says.
    fn file(&mut self, path: &Path, executable: bool) -> io::Result<Self::File>;
    /// Flushes a file that is written.
    ///
    /// # Errors
    /// What the disk says.
    fn finish(&mut self, file: Self::File) -> io::Result<()>;
    /// Makes a symlink; its target stays within the tree.
    ///
    /// # Errors
    /// What the disk says.
    fn symlink(&mut self, path: &Path, target: &Path) -> io::Result<()>;
}

/// What a package's file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The program itself, or anything that holds no tar: not unpacked.
    Raw,
    /// A tar in gzip.
    TarGz,
    /// A tar in zstd.
    TarZst,
}

/// What an archive may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries, with the directories that are only implied.
    pub entries: u32,
    /// Bytes of the tar, so of all that is in it.
    pub unpacked: u64,
    /// Bytes of the tar for each byte of the file.
    pub ratio: u64,
    /// The ratio does not matter for so many bytes.
    pub free: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries: 20_000, unpacked: 4 << 30, ratio: 200, free: 1 << 20 }
    }
}

impl Limits {
    /// The most bytes that a file of `size` bytes may unpack to.
    #[must_use]
    pub fn of_file(&self, size: u64) -> u64 {
        size.saturating_mul(self.ratio).max(self.free).min(self.unpacked)
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files.
    pub files: u32,
    /// Bytes in them.
    pub bytes: u64,
}

/// Why an archive was not unpacked. Its tree is then half there, for the caller to remove.
#[derive(Debug)]
pub enum Refusal {
    /// The archive is not one to unpack, now or ever.
    Archive(String),
    /// The disk failed: the same file may go through another time.
    Disk {
        /// What was to be done.
        doing: String,
        /// What the kernel says.
        error: io::Error,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Archive(text) => f.write_str(text),
            Self::Disk { doing, error } => write!(f, "{doing}: {error}"),
        }
    }
}

impl core::error::Error for Refusal {}

/// What a file is, by its contents: the name in the offer is not signed.
///
/// What says that it is compressed and cannot be read is called an archive, so that [`unpack`] tells why.
///
/// # Errors
/// The file cannot be read.
pub fn form(file: &File) -> io::Result<Form> {
    let Some(mut stream) = Stream::open(file, u64::MAX)? else { return Ok(Form::Raw) };
    let form = stream.form();
    let mut block = [0; BLOCK];
    match stream.fill(&mut block) {
        Ok(BLOCK) if !header::is_sound(&block) => Ok(Form::Raw),
        Ok(BLOCK) | Err(Refusal::Archive(_)) => Ok(form),
        Ok(_) => Ok(Form::Raw),
        Err(Refusal::Disk { error, .. }) => Err(error),
    }
}

/// Unpacks an archive into an empty tree.
///
/// # Errors
/// [`Refusal`]; what the tree holds then is not to be used.
pub fn unpack<T: Tree>(file: &File, tree: &mut T, limits: &Limits) -> Result<Unpacked, Refusal> {
    let reading = |error| Refusal::Disk { doing: "reading the archive".to_owned(), error };
    let size = file.metadata().map_err(reading)?.len();
    let most = limits.of_file(size);
    let Some(stream) = Stream::open(file, most).map_err(reading)? else {
        return Err(Refusal::Archive("the file is neither gzip nor zstd".to_owned()));
    };
    let mut work = Work {
        stream,
        tree,
        limits,
        seen: BTreeMap::new(),
        headers: 0,
        done: Unpacked::default(),
        buffer: vec![0; CHUNK],
    };
    work.run()?;
    Ok(work.done)
}

/// What stands under a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    Directory,
    /// A file or a symlink: nothing goes below it, nothing replaces it.
    Leaf,
}

struct Work<'a, T: Tree> {
    stream: Stream<'a>,
    tree: &'a mut T,
    limits: &'a Limits,
    /// What was made, by the hash of its path; at most [`Limits::entries`]. Two paths with one hash are refused as
    /// duplicates, so a collision does no harm.
    seen: BTreeMap<u64, Node>,
    /// Headers of entries.
    headers: u32,
    done: Unpacked,
    buffer: Vec<u8>,
}

/// What headers before an entry's own say of it.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    pax: bool,
    global: bool,
}

impl Ahead {
    const fn is_empty(&self) -> bool {
        self.name.is_none() && self.target.is_none() && !self.pax
    }
}

impl<T: Tree> Work<'_, T> {
    fn run(&mut self) -> Result<(), Refusal> {
        let mut ahead = Ahead::default();
        let mut block = [0; BLOCK];
        loop {
            match self.stream.fill(&mut block)? {
                BLOCK if block == [0; BLOCK] => break,
                BLOCK => {}
                0 => return Err(refused("the archive is cut short: its end is not marked")),
                _ => return Err(refused("the archive is cut short within a header")),
            }
            if !header::is_sound(&block) {
                let text = "a header's checksum is wrong: the tar in it is damaged, or none";
                return Err(refused(text));
            }
            let header = Header::new(&block);
            match header.kind() {
                Kind::LongName => ahead.set_name(self.long(&header)?)?,
                Kind::LongTarget => ahead.set_target(self.long(&header)?)?,
                Kind::Pax => self.pax(&header, &mut ahead)?,
                Kind::Global => self.global(&header, &mut ahead)?,
                kind => self.entry(&header, kind, core::mem::take(&mut ahead))?,
            }
        }
        if !ahead.is_empty() {
            return Err(refused("the archive ends where an entry was announced"));
        }
        self.rest()
    }

    /// What is behind the end: zeros, up to the end of the file, so that the checksums of the compression are checked.
    fn rest(&mut self) -> Result<(), Refusal> {
        loop {
            match self.stream.read(&mut self.buffer)? {
                0 => return Ok(()),
                count if self.buffer.iter().take(count).all(|byte| *byte == 0) => {}
                _ => return Err(refused("there are bytes behind the archive's end")),
            }
        }
    }

    /// The text of a GNU header for a long name.
    fn long(&mut self, header: &Header<'_>) -> Result<Vec<u8>, Refusal> {
        let mut text = self.small(header, MAX_LONG, "a long name")?;
        let end = text.iter().rposition(|byte| *byte != 0).map_or(0, |last| last.saturating_add(1));
        text.truncate(end);
        Ok(text)
    }

    fn pax(&mut self, header: &Header<'_>, ahead: &mut Ahead) -> Result<(), Refusal> {
        if core::mem::replace(&mut ahead.pax, true) {
            return Err(refused("two PAX headers stand before one entry"));
        }
        let data = self.small(header, MAX_PAX, "a PAX header")?;
        for record in header::records(&data) {
            let (key, value) = record.ok_or_else(|| refused("a PAX header is malformed"))?;
            match key {
                b"path" => ahead.set_name(value.to_vec())?,
                b"linkpath" => ahead.set_target(value.to_vec())?,
                b"size" => {
                    let size = header::decimal(value);
                    ahead.size = Some(size.ok_or_else(|| refused("a PAX size is no number"))?);
                }
                _ if is_sparse(key) => return Err(refused(SPARSE)),
                _ => {}
            }
        }
        Ok(())
    }

    /// A header for all that follows: a comment of `git archive` is fine, names and sizes are not.
    fn global(&mut self, header: &Header<'_>, ahead: &mut Ahead) -> Result<(), Refusal> {
        if core::mem::replace(&mut ahead.global, true) {
            return Err(refused("two global PAX headers stand before one entry"));
        }
        let data = self.small(header, MAX_PAX, "a global PAX header")?;
        for record in header::records(&data) {
            let (key, _) = record.ok_or_else(|| refused("a global PAX header is malformed"))?;
            if matches!(key, b"path" | b"linkpath" | b"size") || is_sparse(key) {
                return Err(refused("a global PAX header names or sizes all entries"));
            }
        }
        Ok(())
    }

    /// The data of a header that is read whole.
    fn small(&mut self, header: &Header<'_>, most: usize, what: &str) -> Result<Vec<u8>, Refusal> {
        let size = header.size().and_then(|size| usize::try_from(size).ok());
        let Some(size) = size.filter(|size| *size <= most) else {
            return Err(refused(&format!("{what} has more than {most} bytes, or no size")));
        };
        let mut data = vec![0; size];
        if self.stream.fill(&mut data)? < size {
            return Err(refused(&format!("the archive is cut short within {what}")));
        }
        self.padding(u64::try_from(size).unwrap_or(u64::MAX), what)?;
        Ok(data)
    }

    /// The rest of the last block of so much data.
    fn padding(&mut self, size: u64, what: &str) -> Result<(), Refusal> {
        let mut block = [0; BLOCK];
        let rest = usize::try_from(size % 512).unwrap_or(0);
        let length = if rest == 0 { 0 } else { BLOCK.saturating_sub(rest) };
        let padding = block.get_mut(..length).unwrap_or_default();
        if self.stream.fill(padding)? < length {
            return Err(refused(&format!("the archive is cut short behind {what}")));
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header<'_>, kind: Kind, ahead: Ahead) -> Result<(), Refusal> {
        let raw = ahead.name.unwrap_or_else(|| header.name());
        let no = |why: &str| {
            refused(&format!("the archive's entry {} is refused: {why}", name::shown(&raw)))
        };
        self.headers = self.headers.saturating_add(1);
        if self.headers > self.limits.entries {
            return Err(no(&too_many(self.limits)));
        }
        let path = name::clean(&raw).map_err(no)?;
        let kind = match kind {
            Kind::File if raw.ends_with(b"/") && header.is_old() => Kind::Directory,
            kind => kind,
        };
        let size =
            header.size().ok_or_else(|| no("its size is no number, negative or too large"))?;
        let size = ahead.size.unwrap_or(size);
        if kind != Kind::File && size != 0 && !matches!(kind, Kind::Refused(_)) {
            return Err(no("only a file has contents"));
        }
        match kind {
            Kind::Directory if path.is_empty() => Ok(()),
            Kind::Directory => self.directories(&path, &path, &no),
            _ if path.is_empty() => Err(no("the top is a directory")),
            Kind::File if raw.ends_with(b"/") => Err(no("a file's name ends with a slash")),
            Kind::File => {
                let executable =
                    header.is_executable().ok_or_else(|| no("its mode is no number"))?;
                self.leaf(&path, &no)?;
                self.file(&path, executable, size, &no)
            }
            Kind::Symlink => {
                let target = ahead.target.unwrap_or_else(|| header.target());
                let target = name::target(&path, &target).map_err(&no)?;
                self.leaf(&path, &no)?;
                let made = self.tree.symlink(Path::new(&path), Path::new(target));
                made.map_err(|error| disk("making the symlink", &path, error))
            }
            Kind::Refused(why) => Err(no(why)),
            // These do not come here.
            Kind::LongName | Kind::LongTarget | Kind::Pax | Kind::Global => Ok(()),
        }
    }

    /// Notes a new file or symlink, and makes the directories above it.
    fn leaf(&mut self, path: &str, no: &dyn Fn(&str) -> Refusal) -> Result<(), Refusal> {
        if let Some((above, _)) = path.rsplit_once('/') {
            self.directories(above, path, no)?;
        }
        match self.note(path, Node::Leaf, no)? {
            None => Ok(()),
            Some(_) => Err(no(TWICE)),
        }
    }

    /// Makes what is not there yet of a directory and those above it, for `entry`. One that is named again is fine: it stays as it is.
    fn directories(
        &mut self,
        path: &str,
        entry: &str,
        no: &dyn Fn(&str) -> Refusal,
    ) -> Result<(), Refusal> {
        let ends = path.match_indices('/').map(|(end, _)| end).chain([path.len()]);
        for part in ends.filter_map(|end| path.get(..end)) {
            match self.note(part, Node::Directory, no)? {
                None => {
                    let made = self.tree.directory(Path::new(part));
                    made.map_err(|error| disk("making the directory", part, error))?;
                }
                Some(Node::Directory) => {}
                Some(Node::Leaf) if part == entry => return Err(no(TWICE)),
                Some(Node::Leaf) => return Err(no(BELOW)),
            }
        }
        Ok(())
    }

    /// Notes what stands under a path, unless something does already.
    fn note(
        &mut self,
        path: &str,
        node: Node,
        no: &dyn Fn(&str) -> Refusal,
    ) -> Result<Option<Node>, Refusal> {
        let full = u32::try_from(self.seen.len()).is_ok_and(|count| count >= self.limits.entries);
        match self.seen.entry(hash(path)) {
            Entry::Occupied(there) => Ok(Some(*there.get())),
            Entry::Vacant(_) if full => Err(no(&too_many(self.limits))),
            Entry::Vacant(place) => {
                place.insert(node);
                Ok(None)
            }
        }
    }

    fn file(
        &mut self,
        path: &str,
        executable: bool,
        size: u64,
        no: &dyn Fn(&str) -> Refusal,
    ) -> Result<(), Refusal> {
        if size > self.stream.left() {
            let (size, most) = (size, self.stream.most());
            return Err(no(&format!(
                "it has {size} bytes, and so the archive more than the {most} allowed for a file of its size"
            )));
        }
        let writing = |error| disk("writing", path, error);
        let mut file = self.tree.file(Path::new(path), executable).map_err(writing)?;
        let mut left = size;
        while left > 0 {
            let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let part = self.buffer.get_mut(..count).unwrap_or_default();
            let count = self.stream.read(part)?;
            if count == 0 {
                return Err(no("the archive is cut short within it"));
            }
            file.write_all(part.get(..count).unwrap_or_default()).map_err(writing)?;
            left = left.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        }
        self.padding(size, "a file")?;
        self.tree.finish(file).map_err(writing)?;
        self.done.files = self.done.files.saturating_add(1);
        self.done.bytes = self.done.bytes.saturating_add(size);
        Ok(())
    }
}

impl Ahead {
    fn set_name(&mut self, name: Vec<u8>) -> Result<(), Refusal> {
        match self.name.replace(name) {
            None => Ok(()),
            Some(_) => Err(refused("two headers give one entry a name")),
        }
    }

    fn set_target(&mut self, target: Vec<u8>) -> Result<(), Refusal> {
        match self.target.replace(target) {
            None => Ok(()),
            Some(_) => Err(refused("two headers give one symlink a target")),
        }
    }
}

const TWICE: &str = "the archive has that name twice";
const BELOW: &str = "it is below a file or a symlink";
const SPARSE: &str = "the archive has a sparse file: make it without --sparse";

fn is_sparse(key: &[u8]) -> bool {
    key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize"
}

fn hash(path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(path.as_bytes());
    hasher.finish()
}

fn too_many(limits: &Limits) -> String {
    format!("with it there are more than the {} entries allowed", limits.entries)
}

fn refused(text: &str) -> Refusal {
    Refusal::Archive(text.to_owned())
}

fn disk(doing: &str, path: &str, error: io::Error) -> Refusal {
    Refusal::Disk { doing: format!("{doing} {}", name::shown(path.as_bytes())), error }
}
