//! `${…}` in the settings: variables of the environment, and files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Bytes of a file that `${file:…}` takes.
pub const MAX_FILE: u64 = 64 << 10;
/// Bytes of one value after expansion.
pub const MAX_EXPANDED: usize = 64 << 10;

/// Where variables come from.
pub trait Environment {
    /// A variable, unless it is unset or not UTF-8.
    fn variable(&self, name: &str) -> Option<String>;
}

/// The environment of this process. `HOSTNAME`, which shells set but init systems do not, is always known.
#[derive(Clone, Copy, Debug)]
pub struct Process;

impl Environment for Process {
    fn variable(&self, name: &str) -> Option<String> {
        match std::env::var(name) {
            Ok(value) => Some(value),
            Err(_) if name == "HOSTNAME" => {
                Some(rustix::system::uname().nodename().to_string_lossy().into_owned())
            }
            Err(_) => None,
        }
    }
}

/// A given environment.
impl Environment for BTreeMap<&str, &str> {
    fn variable(&self, name: &str) -> Option<String> {
        self.get(name).map(|value| (*value).to_owned())
    }
}

/// A text with its expansions put in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expanded {
    /// The text.
    pub text: String,
    /// The variables that it is made of.
    pub variables: Vec<String>,
    /// Whether anything was put in (`$$` alone does not count).
    pub changed: bool,
}

const ALLOWED: &str =
    "allowed are ${NAME}, ${env:NAME}, ${NAME:-default}, ${file:/path} and $$ for a dollar";

/// Puts in what `${…}` stands for. What is put in is not looked at again.
///
/// # Errors
/// A variable is unset, a file cannot be read, or the form is wrong: which, and what is allowed.
pub(super) fn expand(text: &str, environment: &dyn Environment) -> Result<Expanded, String> {
    let mut out = Expanded { text: String::new(), variables: Vec::new(), changed: false };
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.text.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.text.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let (inside, after) =
                after.split_once('}').ok_or_else(|| format!("${{ without a }}; {ALLOWED}"))?;
            let value = value_of(inside, environment, &mut out.variables)?;
            out.text.push_str(&value);
            out.changed = true;
            rest = after;
        } else {
            // A lone dollar is one: passwords have them.
            out.text.push('$');
            rest = after;
        }
        if out.text.len() > MAX_EXPANDED {
            return Err(format!("more than {MAX_EXPANDED} bytes once expanded"));
        }
    }
    out.text.push_str(rest);
    Ok(out)
}

fn value_of(
    inside: &str,
    environment: &dyn Environment,
    used: &mut Vec<String>,
) -> Result<String, String> {
    if let Some(path) = inside.strip_prefix("file:") {
        return read(Path::new(path)).map_err(|error| format!("${{{inside}}}: {error}"));
    }
    let name = inside.strip_prefix("env:").unwrap_or(inside);
    let (name, default) = match name.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (name, None),
    };
    let mut letters = name.chars();
    let begins = letters.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if !begins || !letters.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        // It may be a secret that stands in the wrong place: not shown.
        return Err(format!("the text in ${{…}} is not the name of a variable; {ALLOWED}"));
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err(format!("${{{name}:-…}} has another ${{ in its default; {ALLOWED}"));
    }
    used.push(name.to_owned());
    match (environment.variable(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the variable {name} is not set; set it, or give a default: ${{{name}:-…}}"
        )),
    }
}

/// A file's content without white space around it.
fn read(path: &Path) -> Result<String, String> {
    if !path.is_absolute() {
        return Err("the path must be absolute".to_owned());
    }
    // A pipe would block, a device would never end.
    if !std::fs::metadata(path).map_err(|error| error.to_string())?.is_file() {
        return Err("not a file".to_owned());
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_FILE.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(|error| error.to_string())?;
    if u64::try_from(content.len()).is_ok_and(|length| length > MAX_FILE) {
        return Err(format!("more than {MAX_FILE} bytes"));
    }
    let content = String::from_utf8(content).map_err(|_| "not UTF-8".to_owned())?;
    Ok(content.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn environment() -> BTreeMap<&'static str, &'static str> {
        BTreeMap::from([("A", "one"), ("EMPTY", ""), ("SLY", "${A} $$ x: [y]")])
    }

    #[test]
    fn expansions() {
        for (text, expanded) in [
            ("plain", "plain"),
            ("${A}", "one"),
            ("x${A}y${env:A}z", "xoneyonez"),
            ("${NONE:-two}", "two"),
            ("${env:NONE:-two}", "two"),
            ("${NONE:-}", ""),
            ("${EMPTY:-two}", "two"),
            ("${EMPTY}", ""),
            ("${A:-two}", "one"),
            ("$$", "$"),
            ("$${A}", "${A}"),
            ("$$${A}", "$one"),
            ("cost $5 $", "cost $5 $"),
            ("${NONE:-a:-b}", "a:-b"),
            // Not looked at again.
            ("${SLY}", "${A} $$ x: [y]"),
        ] {
            assert_eq!(expand(text, &environment()).unwrap().text, expanded, "{text}");
        }
        assert_eq!(expand("${A} ${NONE:-x}", &environment()).unwrap().variables, ["A", "NONE"]);
        assert!(!expand("$$ x", &environment()).unwrap().changed);
    }

    #[test]
    fn refusals_say_why() {
        for (text, word) in [
            ("${NONE}", "NONE is not set"),
            ("${env:NONE}", "NONE is not set"),
            ("${A", "without a }"),
            ("${}", "not the name"),
            ("${1A}", "not the name"),
            ("${A B}", "not the name"),
            ("${vault:x}", "not the name"),
            ("${NONE:-${A}}", "in its default"),
            ("${file:relative}", "absolute"),
            ("${file:/nonexistent/x}", "/nonexistent/x"),
            ("${file:/}", "not a file"),
            ("${file:/dev/zero}", "not a file"),
        ] {
            let error = expand(text, &environment()).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn files_are_trimmed_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let text = format!("Bearer ${{file:{}}}", path.display());
        std::fs::write(&path, " s3cret\n\n").unwrap();
        assert_eq!(expand(&text, &environment()).unwrap().text, "Bearer s3cret");
        std::fs::write(&path, "x".repeat(100_000)).unwrap();
        assert!(expand(&text, &environment()).unwrap_err().contains("65536"));
        std::fs::write(&path, "x".repeat(60_000)).unwrap();
        assert!(expand(&text.repeat(2), &environment()).unwrap_err().contains("once expanded"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(expand(&text, &environment()).unwrap_err().contains("UTF-8"));
    }

    #[test]
    fn the_host_name_is_always_known() {
        assert!(Process.variable("HOSTNAME").is_some());
    }
}
