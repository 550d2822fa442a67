//! One path out of settings that cannot be read as a whole: where the last good ones are.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::document::MAX_SETTINGS_FILE;
use super::environment::{Environment, expand};
use super::sources::conf_d;

/// The absolute path that `name` (such as `state_dir`) has in the main file or in `conf.d`, whatever else is wrong
/// with them: a line that looks like it is enough. The last file that has one counts, as in merging.
#[must_use]
pub fn salvage(main: &Path, name: &str, environment: &dyn Environment) -> Option<PathBuf> {
    let beside = conf_d(main).unwrap_or_default();
    let files = core::iter::once(main.to_owned()).chain(beside);
    let found = files.filter_map(|file| {
        let text = read(&file)?;
        text.lines().rev().find_map(|line| value(line, name, environment))
    });
    found.last()
}

/// A file's beginning as text, whatever is in it.
fn read(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(MAX_SETTINGS_FILE).unwrap_or(u64::MAX);
    File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The value of `name: /path` in a line of block or flow style.
fn value(line: &str, name: &str, environment: &dyn Environment) -> Option<PathBuf> {
    let line = line.split(" #").next().filter(|line| !line.trim_start().starts_with('#'))?;
    line.match_indices(name).find_map(|(at, _)| {
        let before = line.get(..at)?.trim_end_matches(['"', '\'']);
        if !before.is_empty() && !before.ends_with([' ', '\t', '{', ',']) {
            return None;
        }
        let after = line.get(at.checked_add(name.len())?..)?;
        let after = after.trim_start_matches(['"', '\'']).trim_start().strip_prefix(':')?.trim();
        let text = match after.chars().next()? {
            quote @ ('"' | '\'') => after.get(1..)?.split(quote).next()?,
            // A closing brace ends it, unless it is that of ${…}.
            _ => {
                let end = after.find([',', ' ', '\t']).unwrap_or(after.len());
                let word = after.get(..end)?;
                if word.contains("${") { word } else { word.split('}').next()? }
            }
        };
        let path = PathBuf::from(expand(text, environment).ok()?.text);
        path.is_absolute().then_some(path)
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_line_that_looks_like_it_is_enough() {
        let environment = BTreeMap::from([("D", "/d")]);
        for (line, path) in [
            ("  state_dir: /a/b", Some("/a/b")),
            ("state_dir: \"/a b\" # c", Some("/a b")),
            ("  'state_dir' : '/a'", Some("/a")),
            ("opamp: { state_dir: /a/b, log: {} }", Some("/a/b")),
            ("opamp: { log: {}, state_dir: /a}", Some("/a")),
            ("  state_dir: ${D}/x", Some("/d/x")),
            ("  state_dir: ${NONE}/x", None),
            ("  state_dir: relative", None),
            ("  # state_dir: /a", None),
            ("  x: 1 # state_dir: /a", None),
            ("  my_state_dir: /a", None),
            ("  packages_dir: \"{state_dir}/packages\"", None),
            ("  state_dir /a", None),
            ("  state_dir:", None),
        ] {
            assert_eq!(value(line, "state_dir", &environment), path.map(PathBuf::from), "{line}");
        }
    }

    #[test]
    fn broken_files_are_looked_through_in_their_order() {
        let environment = BTreeMap::<&str, &str>::new();
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("chiton.yaml");
        assert_eq!(salvage(&main, "state_dir", &environment), None);
        std::fs::write(&main, b"opamp: [\xff\n  state_dir: /main\n  }}}").unwrap();
        assert_eq!(salvage(&main, "state_dir", &environment), Some("/main".into()));
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(dir.path().join("conf.d/1.yaml"), "opamp: { state_dir: /site }\n").unwrap();
        assert_eq!(salvage(&main, "state_dir", &environment), Some("/site".into()));
        std::fs::remove_file(&main).unwrap();
        assert_eq!(salvage(&main, "state_dir", &environment), Some("/site".into()));
    }
}
