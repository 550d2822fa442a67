//! The files that make up the settings: the main one, and `conf.d/*.yaml` beside it, merged over it in name order.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_yaml::Value;

use super::document::{Budget, MAX_SETTINGS_FILE, line_of, parse};
use super::problem::{Key, Problem};

/// Files in `conf.d`.
pub const MAX_CONF_D: usize = 64;
/// Entries of `conf.d` that are looked at.
const MAX_ENTRIES: usize = 4096;

/// Where each value comes from.
#[derive(Clone, Debug)]
pub struct Sources {
    files: Vec<Source>,
}

#[derive(Clone, Debug)]
struct Source {
    name: String,
    text: String,
}

impl Sources {
    /// Reads and merges the main file and what lies beside it.
    ///
    /// # Errors
    /// All files that cannot be read or are no YAML.
    pub fn read(main: &Path) -> Result<(Self, Value), Vec<Problem>> {
        let mut problems = Vec::new();
        let mut files = Vec::new();
        let beside = match conf_d(main) {
            Ok(beside) => beside,
            Err(problem) => {
                problems.push(problem);
                Vec::new()
            }
        };
        for path in core::iter::once(main.to_owned()).chain(beside) {
            let name = path.display().to_string();
            match read(&path) {
                Ok(text) => files.push(Source { name, text }),
                Err(error) => problems.push(whole(name, 1, error)),
            }
        }
        Self { files }.merged(problems)
    }

    /// The same for one text.
    ///
    /// # Errors
    /// It is no YAML.
    pub fn of_text(text: &str, name: &str) -> Result<(Self, Value), Vec<Problem>> {
        let files = vec![Source { name: name.to_owned(), text: text.to_owned() }];
        Self { files }.merged(Vec::new())
    }

    fn merged(self, mut problems: Vec<Problem>) -> Result<(Self, Value), Vec<Problem>> {
        let mut budget = Budget::default();
        let mut merged = Value::Null;
        for file in &self.files {
            match parse(&file.text, &mut budget) {
                Ok(value) => merge(&mut merged, value),
                Err(malformed) => {
                    problems.push(whole(file.name.clone(), malformed.line, malformed.text));
                }
            }
        }
        if problems.is_empty() { Ok((self, merged)) } else { Err(problems) }
    }

    /// File and line of a key: of the last file that has it, else of what it would lie in.
    #[must_use]
    pub fn locate(&self, key: &Key) -> (String, usize) {
        let found = key.outward().filter(|key| !key.is_root()).find_map(|key| {
            let mut files = self.files.iter().rev();
            files.find_map(|file| line_of(&file.text, &key).map(|line| (file.name.clone(), line)))
        });
        let first = || self.files.first().map(|file| file.name.clone()).unwrap_or_default();
        found.unwrap_or_else(|| (first(), 1))
    }

    /// A problem with a key, at its place.
    #[must_use]
    pub fn problem(&self, key: &Key, text: String, deferred: bool) -> Problem {
        let (file, line) = self.locate(key);
        Problem { file, line, key: key.clone(), text, deferred }
    }
}

fn whole(file: String, line: usize, text: String) -> Problem {
    Problem { file, line, key: Key::default(), text, deferred: false }
}

/// Maps are merged, anything else is replaced. The depth of both is bounded by [`parse`].
fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Mapping(under), Value::Mapping(over)) => {
            for (name, value) in over {
                match under.get_mut(&name) {
                    Some(below) => merge(below, value),
                    None => {
                        under.insert(name, value);
                    }
                }
            }
        }
        // A file with nothing but comments.
        (_, Value::Null) => {}
        (under, over) => *under = over,
    }
}

/// The text of a file. It may be a pipe.
fn read(path: &Path) -> Result<String, String> {
    let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
    let limit = u64::try_from(MAX_SETTINGS_FILE).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() > MAX_SETTINGS_FILE {
        return Err(format!("is larger than {MAX_SETTINGS_FILE} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// The files of `conf.d`, in the order of their names. Hidden ones are left out: editors write such.
pub(super) fn conf_d(main: &Path) -> Result<Vec<PathBuf>, Problem> {
    let dir = main.parent().unwrap_or_else(|| Path::new("")).join("conf.d");
    let name = dir.display().to_string();
    let unreadable =
        |error: std::io::Error| whole(name.clone(), 1, format!("cannot be read: {error}"));
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut files = Vec::new();
    for (count, entry) in entries.enumerate() {
        let entry = entry.map_err(unreadable)?;
        let file = entry.file_name();
        let hidden = file.as_encoded_bytes().starts_with(b".");
        // A link is followed, a pipe or a device is not opened.
        let path = entry.path();
        if !hidden && path.extension().is_some_and(|ext| ext == "yaml") && path.is_file() {
            files.push(path);
        }
        if files.len() > MAX_CONF_D || count >= MAX_ENTRIES {
            let text = format!(
                "has more than {MAX_CONF_D} settings files, or {MAX_ENTRIES} entries; allowed are as many"
            );
            return Err(whole(name, 1, text));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn later_files_lie_over_earlier_ones() {
        let dir = directory(&[
            ("chiton.yaml", "a: {x: 1, y: [1, 2], z: 1}\nb: 1\n"),
            ("conf.d/10-first.yaml", "a:\n  y: [3]\n  w: 1\n"),
            ("conf.d/20-second.yaml", "# here\na:\n  x: 2\n"),
            ("conf.d/30-empty.yaml", "# nothing\n"),
            ("conf.d/.hidden.yaml", "a: hidden\n"),
            ("conf.d/readme.txt", "a: text\n"),
        ]);
        let (sources, merged) = Sources::read(&dir.path().join("chiton.yaml")).unwrap();
        let expected: Value =
            serde_yaml::from_str("a: {x: 2, y: [3], z: 1, w: 1}\nb: 1\n").unwrap();
        assert_eq!(merged, expected);
        for (key, file, line) in [
            (Key::of("a.x"), "20-second.yaml", 3),
            (Key::of("a.y").index(0), "10-first.yaml", 2),
            (Key::of("a.z"), "chiton.yaml", 1),
            (Key::of("b"), "chiton.yaml", 2),
            // Missing: where it would stand.
            (Key::of("a.missing"), "20-second.yaml", 2),
            (Key::of("missing"), "chiton.yaml", 1),
        ] {
            let (found, at) = sources.locate(&key);
            assert!(found.ends_with(file), "{key}: {found}");
            assert_eq!(at, line, "{key}");
        }
    }

    #[test]
    fn every_bad_file_is_reported() {
        let dir = directory(&[
            ("chiton.yaml", "a: [\n"),
            ("conf.d/1.yaml", "a: 1\na: 2\n"),
            ("conf.d/2.yaml", "fine: 1\n"),
        ]);
        std::fs::write(dir.path().join("conf.d/3.yaml"), [b'a', 0xff]).unwrap();
        let problems = Sources::read(&dir.path().join("chiton.yaml")).unwrap_err();
        let places: Vec<_> = problems.iter().map(|p| (p.file.rsplit('/').next(), p.line)).collect();
        assert_eq!(places, [(Some("3.yaml"), 1), (Some("chiton.yaml"), 2), (Some("1.yaml"), 2)]);
    }

    #[test]
    fn files_and_their_number_are_bounded() {
        let dir = directory(&[]);
        let main = dir.path().join("chiton.yaml");
        let first = |main: &Path| Sources::read(main).unwrap_err().remove(0).to_string();
        assert!(first(&main).contains("cannot be read"));
        std::fs::write(&main, "#".repeat(10_000_000)).unwrap();
        assert!(first(&main).ends_with("chiton.yaml:1: is larger than 1048576 bytes"));
        std::fs::write(&main, "a: 1\n").unwrap();
        for n in 0..=MAX_CONF_D {
            std::fs::write(dir.path().join(format!("conf.d/{n}.yaml")), "").unwrap();
        }
        assert!(first(&main).contains("conf.d:1: has more than 64"));
    }
}
