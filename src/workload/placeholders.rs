//! `{config_dir}`, `{config_file}`, `{packages_dir}` and `{package_dir:NAME}` in commands.

use core::fmt;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::path::PathBuf;

/// What the placeholders stand for: the running generation's places, or in a dry run the candidate's.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `{config_dir}`.
    pub config_dir: PathBuf,
    /// `{config_file}`; absent: there is no main file.
    pub config_file: Option<PathBuf>,
    /// `{packages_dir}`.
    pub packages_dir: PathBuf,
    /// `{package_dir:NAME}` by name.
    pub package_dirs: BTreeMap<String, PathBuf>,
}

/// Why a command cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlaceholderError {
    /// No placeholder has this name.
    Unknown(String),
    /// `{config_file}` without a main file.
    NoConfigFile,
    /// `{package_dir:NAME}` of a package that is not installed.
    NoPackage(String),
}

impl fmt::Display for PlaceholderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(
                f,
                "unknown placeholder {{{name}}}; there are {{config_dir}}, {{config_file}}, {{packages_dir}} and \
                 {{package_dir:NAME}} (a space after the brace keeps it as it is)"
            ),
            Self::NoConfigFile => f.write_str("{config_file}: there is no main configuration file"),
            Self::NoPackage(name) => {
                write!(f, "{{package_dir:{name}}}: no package {name} is installed")
            }
        }
    }
}

impl Error for PlaceholderError {}

/// Fills the placeholders of a command in.
///
/// A placeholder is a brace, lower-case letters and underscores, perhaps a colon and a name, and a brace. Braces of
/// any other shape stay as they are (`{"json":1}`), and so does what stands in double ones (`{{config_dir}}`).
///
/// # Errors
/// Names the placeholder that means nothing here.
pub fn fill(argv: &[String], places: &Places) -> Result<Vec<OsString>, PlaceholderError> {
    argv.iter().map(|argument| fill_one(argument, places)).collect()
}

fn fill_one(argument: &str, places: &Places) -> Result<OsString, PlaceholderError> {
    let mut filled = OsString::new();
    let mut rest = argument;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push(before);
        if let Some(doubled) = after.strip_prefix('{') {
            filled.push("{{");
            let (inside, beyond) = doubled.split_once("}}").unwrap_or((doubled, ""));
            filled.push(inside);
            if inside.len() < doubled.len() {
                filled.push("}}");
            }
            rest = beyond;
            continue;
        }
        match after.split_once('}') {
            Some((inside, beyond)) if is_placeholder(inside) => {
                filled.push(place(inside, places)?);
                rest = beyond;
            }
            _ => {
                filled.push("{");
                rest = after;
            }
        }
    }
    filled.push(rest);
    Ok(filled)
}

fn is_placeholder(inside: &str) -> bool {
    let word = inside.split_once(':').map_or(inside, |(word, _)| word);
    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

fn place<'a>(inside: &str, places: &'a Places) -> Result<&'a PathBuf, PlaceholderError> {
    match inside.split_once(':') {
        None if inside == "config_dir" => Ok(&places.config_dir),
        None if inside == "config_file" => {
            places.config_file.as_ref().ok_or(PlaceholderError::NoConfigFile)
        }
        None if inside == "packages_dir" => Ok(&places.packages_dir),
        Some(("package_dir", name)) => places
            .package_dirs
            .get(name)
            .ok_or_else(|| PlaceholderError::NoPackage(name.to_owned())),
        _ => Err(PlaceholderError::Unknown(inside.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn filled(argument: &str) -> Result<String, PlaceholderError> {
        let places = Places {
            config_dir: "/c".into(),
            config_file: Some("/c/main.yaml".into()),
            packages_dir: "/p".into(),
            package_dirs: [("otel".to_owned(), "/p/otel".into())].into(),
        };
        fill(&[argument.to_owned()], &places)
            .map(|mut argv| argv.pop().unwrap().into_string().unwrap())
    }

    #[test]
    fn placeholders_are_filled_wherever_they_stand() {
        for (argument, expected) in [
            ("{config_dir}", "/c"),
            ("--config={config_file}", "--config=/c/main.yaml"),
            ("{config_dir}:{package_dir:otel}/bin:{packages_dir}", "/c:/p/otel/bin:/p"),
            ("{{config_dir}}", "{{config_dir}}"),
            ("a{{b", "a{{b"),
            ("{\"json\":1}", "{\"json\":1}"),
            ("{\"dir\":\"{config_dir}\"}", "{\"dir\":\"/c\"}"),
            ("${HOME} { print } {} {A} {1} { }", "${HOME} { print } {} {A} {1} { }"),
            ("open {config_dir", "open {config_dir"),
            ("", ""),
        ] {
            assert_eq!(filled(argument).unwrap(), expected, "{argument}");
        }
    }

    #[test]
    fn what_means_nothing_is_named() {
        let unknown = |name: &str| Err(PlaceholderError::Unknown(name.to_owned()));
        assert_eq!(filled("x{config_dirs}"), unknown("config_dirs"));
        assert_eq!(filled("{config_dir:x}"), unknown("config_dir:x"));
        assert_eq!(filled("{package_dir}"), unknown("package_dir"));
        assert_eq!(filled("{package_dir:x}"), Err(PlaceholderError::NoPackage("x".to_owned())));
        let none = fill(&["{config_file}".to_owned()], &Places::default());
        assert_eq!(none, Err(PlaceholderError::NoConfigFile));
    }

    proptest! {
        #[test]
        fn text_without_placeholders_is_untouched(argument in "[A-Z0-9{}:\" ]{0,24}") {
            prop_assert_eq!(filled(&argument).unwrap(), argument);
        }
    }
}
