//! Takes the merged YAML apart: each value is asked for by its name, and what nobody asked for is unknown.
//!
//! A bad value is reported and its default goes on, so that one run shows every problem.

use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_yaml::{Mapping, Value};

use super::environment::{Environment, expand};
use super::problem::{Key, MAX_PROBLEMS, shorten};
use super::units::{Span, duration, size, sizes};

/// Elements of one list, entries of one map of the user's own names.
pub(super) const MAX_ENTRIES: usize = 256;
/// Bytes of all expanded values together.
pub(super) const MAX_EXPANDED_TOTAL: usize = 1 << 20;

/// A problem whose line is not known yet.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// The key.
    pub key: Key,
    /// What is wrong.
    pub text: String,
    /// See [`super::problem::Problem::deferred`].
    pub deferred: bool,
}

/// What is common to all sections: where problems go, and where variables come from.
pub(super) struct Walker<'e> {
    environment: &'e dyn Environment,
    /// Problems so far.
    pub problems: Vec<Draft>,
    /// Problems beyond [`MAX_PROBLEMS`].
    pub uncounted: usize,
    /// Keys that are set, for the notes about what is not in force yet.
    pub set: Vec<Key>,
    /// Variables by the key that uses them.
    pub variables: Vec<(Key, String)>,
    expanded: usize,
}

/// Sections whose missing variables and files only cost the connection.
const DEFERRED: [&str; 2] = ["opamp.server", "opamp.agent"];

impl<'e> Walker<'e> {
    /// Nothing found yet.
    #[must_use]
    pub(super) fn new(environment: &'e dyn Environment) -> Self {
        Self {
            environment,
            problems: Vec::new(),
            uncounted: 0,
            set: Vec::new(),
            variables: Vec::new(),
            expanded: 0,
        }
    }

    /// The whole file as a section.
    pub(super) fn root<'s, 'v>(&'s mut self, value: &'v Value) -> Section<'s, 'v, 'e> {
        self.section(Key::default(), value)
    }

    fn section<'s, 'v>(&'s mut self, key: Key, value: &'v Value) -> Section<'s, 'v, 'e> {
        let (map, broken) = match value {
            Value::Mapping(map) => (Some(map), false),
            Value::Null => (None, false),
            other => {
                self.report(&key, format!("is {}; allowed is a map of keys", kind(other)));
                (None, true)
            }
        };
        Section { walker: self, key, map, broken, known: Vec::new() }
    }

    /// Reports a problem.
    pub(super) fn report(&mut self, key: &Key, text: impl Into<String>) {
        self.push(key, text.into(), false);
    }

    fn push(&mut self, key: &Key, text: String, missing: bool) {
        if self.problems.len() >= MAX_PROBLEMS {
            self.uncounted = self.uncounted.saturating_add(1);
            return;
        }
        let deferred = missing && DEFERRED.iter().any(|section| key.lies_in(&Key::of(section)));
        self.problems.push(Draft { key: key.clone(), text, deferred });
    }

    /// A scalar with its expansions put in; reports what cannot be.
    fn scalar(&mut self, key: &Key, value: &Value, allowed: &str) -> Option<Scalar> {
        let raw = match value {
            Value::String(raw) => raw,
            Value::Number(number) => {
                let text = number.to_string();
                return Some(Scalar { text, quoted: false, expanded: false });
            }
            Value::Bool(value) => {
                return Some(Scalar { text: value.to_string(), quoted: false, expanded: false });
            }
            other => {
                self.report(key, format!("is {}; allowed is {allowed}", kind(other)));
                return None;
            }
        };
        let expanded = match expand(raw, self.environment) {
            Ok(expanded) => expanded,
            Err(error) => {
                self.push(key, error, true);
                return None;
            }
        };
        for name in expanded.variables {
            self.variables.push((key.clone(), name));
        }
        self.expanded = self.expanded.saturating_add(expanded.text.len());
        if self.expanded > MAX_EXPANDED_TOTAL {
            self.push(key, format!("more than {MAX_EXPANDED_TOTAL} bytes in all values"), false);
            return None;
        }
        if expanded.text.contains('\0') {
            self.push(key, "has a NUL character in it".to_owned(), expanded.changed);
            return None;
        }
        Some(Scalar { text: expanded.text, quoted: true, expanded: expanded.changed })
    }

    /// A scalar that must be text, given to `parse`, whose error says what is wrong with it.
    fn parse<T>(
        &mut self,
        key: &Key,
        value: &Value,
        wants: Wants<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let scalar = self.scalar(key, value, wants.allowed())?;
        if let Wants::Text(allowed) = wants
            && !scalar.quoted
            // A whole number reads back as it was written; 1.10, yes and null do not.
            && !value.is_i64()
            && !value.is_u64()
        {
            let kind = kind(value);
            self.report(key, format!("is {kind}; allowed is {allowed}: put it in quotes"));
            return None;
        }
        match parse(&scalar.text) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.push(key, error, scalar.expanded);
                None
            }
        }
    }
}

struct Scalar {
    text: String,
    /// It was a YAML string.
    quoted: bool,
    /// Something was put in.
    expanded: bool,
}

/// Which scalars are taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wants<'a> {
    /// Text only: `1.10` without quotes is a number, and would come out as `1.1`.
    Text(&'a str),
    /// Text, numbers and truth values; the parser decides.
    Any(&'a str),
}

impl Wants<'_> {
    const fn allowed(&self) -> &str {
        match self {
            Self::Text(allowed) | Self::Any(allowed) => allowed,
        }
    }
}

/// What a value is, for messages. Its content is not shown: it may be a secret in the wrong place.
const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a map",
        Value::Tagged(_) => "a tagged value",
    }
}

/// One map of the settings. Each method names a key, which is then known; when the section goes, the unknown ones are
/// reported.
pub(super) struct Section<'s, 'v, 'e> {
    walker: &'s mut Walker<'e>,
    key: Key,
    map: Option<&'v Mapping>,
    broken: bool,
    known: Vec<&'static str>,
}

impl<'v, 'e> Section<'_, 'v, 'e> {
    /// The value of a key, which is known from now on. An empty one counts as absent.
    fn take(&mut self, name: &'static str) -> Option<(Key, &'v Value)> {
        if !self.known.contains(&name) {
            self.known.push(name);
        }
        let value = self.map?.get(name)?;
        let key = self.key.name(name);
        self.walker.set.push(key.clone());
        Some((key, value))
    }

    /// Whether a key is there; it counts as known.
    pub(super) fn has(&mut self, name: &'static str) -> bool {
        self.take(name).is_some_and(|(_, value)| !value.is_null())
    }

    /// Reports a problem with a key of this section.
    pub(super) fn report(&mut self, name: &str, text: impl Into<String>) {
        self.walker.report(&self.key.name(name), text);
    }

    /// Reports a problem with the section itself.
    pub(super) fn report_self(&mut self, text: impl Into<String>) {
        self.walker.report(&self.key, text);
    }

    /// Reports that something is missing which may be there later.
    pub(super) fn report_missing(&mut self, name: &str, text: String) {
        let key = self.key.name(name);
        self.walker.push(&key, text, true);
    }

    /// Reports a problem with a key some names further down.
    pub(super) fn report_below(&mut self, names: &[&str], text: &str) {
        let key = names.iter().fold(self.key.clone(), |key, name| key.name(name));
        self.walker.report(&key, text);
    }

    /// Whether there is a value some names further down; they do not count as known.
    #[must_use]
    pub(super) fn contains(&self, names: &[&str]) -> bool {
        let Some((first, rest)) = names.split_first() else { return false };
        let value = self.map.and_then(|map| map.get(*first));
        let value = rest.iter().fold(value, |value, name| value.and_then(|value| value.get(*name)));
        value.is_some_and(|value| !value.is_null())
    }

    /// Whether it is something other than a map, or in such a thing, and has been reported: then nothing is missing.
    #[must_use]
    pub(super) const fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether something that is missing is to be reported: not where the section is broken, nor where it has unknown
    /// keys, which may be that very thing misspelt. Asked after all keys have been.
    #[must_use]
    pub(super) fn may_lack(&self) -> bool {
        !self.broken && self.unknown().next().is_none()
    }

    fn unknown(&self) -> impl Iterator<Item = &'v str> {
        let names = self.map.into_iter().flat_map(Mapping::keys).filter_map(Value::as_str);
        names.filter(|name| !self.known.contains(name))
    }

    /// What this section lacks has been reported; nothing below it is missing any more.
    pub(super) const fn give_up(&mut self) {
        self.broken = true;
    }

    /// Where the problems are, to see later whether there were new ones.
    #[must_use]
    pub(super) fn problems(&self) -> usize {
        self.walker.problems.len().saturating_add(self.walker.uncounted)
    }

    /// A section within; empty where it is absent.
    pub(super) fn section<'a>(&'a mut self, name: &'static str) -> Section<'a, 'v, 'e> {
        match self.take(name) {
            Some((key, value)) => self.walker.section(key, value),
            None => {
                let key = self.key.name(name);
                let broken = self.broken;
                Section { walker: &mut *self.walker, key, map: None, broken, known: Vec::new() }
            }
        }
    }

    /// The same, taken apart by a function.
    pub(super) fn within<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Section<'_, 'v, 'e>) -> T,
    ) -> T {
        read(&mut self.section(name))
    }

    /// Whether the section is in the file at all.
    #[must_use]
    pub(super) const fn is_there(&self) -> bool {
        self.map.is_some()
    }

    /// A scalar of the caller's own form.
    pub(super) fn parsed<T>(
        &mut self,
        name: &'static str,
        wants: Wants<'_>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let (key, value) = self.take(name)?;
        self.walker.parse(&key, value, wants, parse)
    }

    /// Text, perhaps empty.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.parsed(name, Wants::Text("text"), |text| Ok(text.to_owned()))
    }

    /// `true` or `false`.
    pub(super) fn truth(&mut self, name: &'static str, default: bool) -> bool {
        let allowed = "true or false";
        self.parsed(name, Wants::Any(allowed), |text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            other => Err(format!("{:?} is not allowed; allowed is {allowed}", shorten(other))),
        })
        .unwrap_or(default)
    }

    /// One of some words.
    pub(super) fn word<T: Copy>(
        &mut self,
        name: &'static str,
        words: &[(&str, T)],
        default: T,
    ) -> T {
        let allowed = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        self.parsed(name, Wants::Any(&allowed), |text| {
            words
                .iter()
                .find(|(word, _)| *word == text)
                .map(|(_, value)| *value)
                .ok_or_else(|| format!("{:?} is not allowed; allowed are {allowed}", shorten(text)))
        })
        .unwrap_or(default)
    }

    /// A duration.
    pub(super) fn duration(
        &mut self,
        name: &'static str,
        span: Span,
        default: Duration,
    ) -> Duration {
        self.optional_duration(name, span).unwrap_or(default)
    }

    /// A duration that has no default.
    pub(super) fn optional_duration(&mut self, name: &'static str, span: Span) -> Option<Duration> {
        let allowed = span.to_string();
        self.parsed(name, Wants::Any(&allowed), |text| {
            let shown = shorten(text);
            match duration(text) {
                Some(duration) if span.takes(duration) => Ok(duration),
                Some(_) => Err(format!("{shown} is out of range; allowed is {allowed}")),
                None => Err(format!(
                    "{shown:?} is not a duration (a number with a unit: ms, s, m, h, d); allowed is {allowed}"
                )),
            }
        })
    }

    /// A size in bytes.
    pub(super) fn size(
        &mut self,
        name: &'static str,
        range: &RangeInclusive<u64>,
        default: u64,
    ) -> u64 {
        self.optional_size(name, range).unwrap_or(default)
    }

    /// A size that has no default.
    pub(super) fn optional_size(
        &mut self,
        name: &'static str,
        range: &RangeInclusive<u64>,
    ) -> Option<u64> {
        let allowed = sizes(range);
        self.parsed(name, Wants::Any(&allowed), |text| {
            let shown = shorten(text);
            match size(text) {
                Some(size) if range.contains(&size) => Ok(size),
                Some(_) => Err(format!("{shown} is out of range; allowed is {allowed}")),
                None => Err(format!("{shown:?} is not a size; allowed is {allowed}")),
            }
        })
    }

    /// A whole number.
    pub(super) fn number<T>(
        &mut self,
        name: &'static str,
        range: RangeInclusive<T>,
        default: T,
    ) -> T
    where
        T: core::str::FromStr + PartialOrd + core::fmt::Display,
    {
        self.optional_number(name, range).unwrap_or(default)
    }

    /// A whole number that has no default.
    pub(super) fn optional_number<T>(
        &mut self,
        name: &'static str,
        range: RangeInclusive<T>,
    ) -> Option<T>
    where
        T: core::str::FromStr + PartialOrd + core::fmt::Display,
    {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.parsed(name, Wants::Any(&allowed), |text| {
            text.parse()
                .ok()
                .filter(|number| range.contains(number))
                .ok_or_else(|| format!("{:?} is not allowed; allowed is {allowed}", shorten(text)))
        })
    }

    /// An absolute path.
    pub(super) fn path_of(&mut self, name: &'static str) -> Option<PathBuf> {
        self.parsed(name, Wants::Text("an absolute path"), absolute)
    }

    /// A list of absolute paths.
    pub(super) fn paths(&mut self, name: &'static str) -> Vec<PathBuf> {
        self.list(name, "a list of absolute paths", absolute)
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, name: &'static str) -> Option<Vec<String>> {
        self.optional_list(name, "a list of texts", |text| Ok(text.to_owned()))
    }

    /// A list whose elements have a form of their own; absent: empty.
    pub(super) fn list<T>(
        &mut self,
        name: &'static str,
        allowed: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<T> {
        self.optional_list(name, allowed, parse).unwrap_or_default()
    }

    fn optional_list<T>(
        &mut self,
        name: &'static str,
        allowed: &str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let (key, elements) = self.elements(name, allowed)?;
        Some(
            elements
                .iter()
                .enumerate()
                .filter_map(|(at, value)| {
                    self.walker.parse(&key.index(at), value, Wants::Text("text"), &parse)
                })
                .collect(),
        )
    }

    /// A list of sections.
    pub(super) fn sections<T>(
        &mut self,
        name: &'static str,
        allowed: &str,
        mut each: impl FnMut(&mut Section<'_, 'v, 'e>) -> Option<T>,
    ) -> Vec<T> {
        let Some((key, elements)) = self.elements(name, allowed) else { return Vec::new() };
        elements
            .iter()
            .enumerate()
            .filter_map(|(at, value)| {
                let key = key.index(at);
                if value.is_null() {
                    self.walker.report(&key, "is empty; allowed is a map of keys");
                    return None;
                }
                let mut section = self.walker.section(key, value);
                if section.is_there() { each(&mut section) } else { None }
            })
            .collect()
    }

    fn elements(&mut self, name: &'static str, allowed: &str) -> Option<(Key, &'v [Value])> {
        let (key, value) = self.take(name)?;
        match value {
            Value::Sequence(elements) if elements.len() > MAX_ENTRIES => {
                let count = elements.len();
                self.walker
                    .report(&key, format!("has {count} elements; allowed are {MAX_ENTRIES}"));
                None
            }
            Value::Sequence(elements) => Some((key, elements)),
            Value::Null => None,
            other => {
                self.walker.report(&key, format!("is {}; allowed is {allowed}", kind(other)));
                None
            }
        }
    }

    /// A map of the user's own names, whose values have a form of their own: one, or with `several` also a list.
    pub(super) fn map<T>(
        &mut self,
        name: &'static str,
        wants: Wants<'_>,
        several: bool,
        parse: impl Fn(&str, &str) -> Result<T, String>,
    ) -> Vec<(String, T)> {
        let Some((key, value)) = self.take(name) else { return Vec::new() };
        let map = match value {
            Value::Mapping(map) => map,
            Value::Null => return Vec::new(),
            other => {
                let allowed = wants.allowed();
                let kind = kind(other);
                self.walker.report(
                    &key,
                    format!("is {kind}; allowed is a map of names, each with {allowed}"),
                );
                return Vec::new();
            }
        };
        if map.len() > MAX_ENTRIES {
            let count = map.len();
            self.walker.report(&key, format!("has {count} entries; allowed are {MAX_ENTRIES}"));
            return Vec::new();
        }
        let mut out = Vec::new();
        for (name, value) in map {
            // All keys are text: `document::parse` sees to it.
            let Value::String(name) = name else { continue };
            let key = key.name(name);
            let mut take = |key: &Key, value: &Value| {
                let parsed = self.walker.parse(key, value, wants, |text| parse(name, text));
                out.extend(parsed.map(|parsed| (name.clone(), parsed)));
            };
            match value {
                Value::Sequence(values) if several && values.len() <= MAX_ENTRIES => {
                    for (at, value) in values.iter().enumerate() {
                        take(&key.index(at), value);
                    }
                }
                value => take(&key, value),
            }
        }
        out
    }

    /// A map of texts.
    pub(super) fn text_map(&mut self, name: &'static str) -> BTreeMap<String, String> {
        let entries = self.map(name, Wants::Text("text"), false, |name, text| {
            if name.is_empty() {
                Err("has no name; allowed is any text".to_owned())
            } else {
                Ok(text.to_owned())
            }
        });
        entries.into_iter().collect()
    }

    /// A command: a program and its arguments, or an empty list.
    pub(super) fn command(&mut self, name: &'static str) -> Option<Vec<String>> {
        let before = self.problems();
        let allowed = "a list of a program and its arguments, such as [/usr/bin/otelcol, validate]; no shell \
                       takes it apart";
        let command =
            self.optional_list(name, allowed, |word| placeholders(word).map(|()| word.to_owned()))?;
        if self.problems() == before && command.first().is_some_and(String::is_empty) {
            self.report(name, format!("the program has no name; allowed is {allowed}"));
            return None;
        }
        Some(command)
    }

    /// Whether a value is text or another scalar, for keys that take a word or a list.
    pub(super) fn is_scalar(&self, name: &str) -> bool {
        let value = self.map.and_then(|map| map.get(name));
        matches!(value, Some(Value::String(_) | Value::Bool(_) | Value::Number(_)))
    }
}

impl Drop for Section<'_, '_, '_> {
    fn drop(&mut self) {
        let unknown: Vec<&str> = self.unknown().collect();
        for name in unknown {
            let text = match nearest(name, &self.known) {
                Some(near) => format!("unknown key; did you mean {near}?"),
                None => format!("unknown key; allowed are {}", self.known.join(", ")),
            };
            self.walker.report(&self.key.name(name), text);
        }
    }
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    /// What the kernel takes (`PATH_MAX`), bytes.
    const MAX_PATH: usize = 4095;
    if text.len() > MAX_PATH {
        return Err(format!("longer than {MAX_PATH} bytes"));
    }
    let path = PathBuf::from(text);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(format!("{:?} is not allowed; allowed is an absolute path", shorten(text)))
}

/// The placeholders of commands; `package_dir` goes with a name.
const PLACEHOLDERS: [&str; 4] = ["config_file", "config_dir", "packages_dir", "package_dir:NAME"];

/// Refuses placeholders that mean nothing: braces, small letters and underscores, perhaps a colon and a name.
fn placeholders(word: &str) -> Result<(), String> {
    let mut rest = word;
    while let Some((_, after)) = rest.split_once('{') {
        rest = after;
        if let Some(doubled) = after.strip_prefix('{') {
            // Stays as it is: braces that another program fills in.
            rest = doubled.split_once("}}").map_or("", |(_, beyond)| beyond);
            continue;
        }
        let Some((inside, _)) = after.split_once('}') else { break };
        let (name, of) = match inside.split_once(':') {
            Some((name, of)) => (name, Some(of)),
            None => (inside, None),
        };
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            continue;
        }
        let known = match of {
            None => matches!(name, "config_file" | "config_dir" | "packages_dir"),
            Some(package) => name == "package_dir" && !package.is_empty(),
        };
        if !known {
            let all = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(", ");
            return Err(format!("unknown placeholder {{{}}}; allowed are {all}", shorten(inside)));
        }
    }
    Ok(())
}

/// The known name that is nearest, if it is near at all: a third of its letters may differ.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let typed: Vec<char> = name.chars().take(64).flat_map(char::to_lowercase).collect();
    known
        .iter()
        .map(|known| (distance(&typed, &known.chars().collect::<Vec<_>>()), *known))
        .filter(|(distance, known)| *distance <= known.len().div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Letters to change, add or take away between two words.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i.saturating_add(1);
        let mut next = vec![left];
        for (y, above) in b.iter().zip(row.iter().skip(1)) {
            let changed = diagonal.saturating_add(usize::from(x != y));
            left = changed.min(left.saturating_add(1)).min(above.saturating_add(1));
            next.push(left);
            diagonal = *above;
        }
        row = next;
    }
    row.last().copied().unwrap_or(a.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_suggested() {
        let known = ["endpoint", "headers", "tls", "heartbeat_interval"];
        for (typed, near) in [
            ("endpont", Some("endpoint")),
            ("Headers", Some("headers")),
            ("header", Some("headers")),
            ("heartbeat-interval", Some("heartbeat_interval")),
            ("heartbeatinterval", Some("heartbeat_interval")),
            ("ssl", None),
            ("tsl", None),
            ("tl", Some("tls")),
            ("banana", None),
        ] {
            assert_eq!(nearest(typed, &known), near, "{typed}");
        }
    }

    #[test]
    fn distances() {
        for (a, b, letters) in
            [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            assert_eq!(distance(&chars(a), &chars(b)), letters, "{a} {b}");
        }
    }

    #[test]
    fn placeholders_that_mean_nothing_are_refused() {
        for good in [
            "{config_file}",
            "--x={config_dir}/a",
            "{package_dir:otelcol}",
            "{\"a\": 1}",
            "{}",
            "{A}",
            "{",
            "{{name}} x",
        ] {
            assert_eq!(placeholders(good), Ok(()), "{good}");
        }
        for bad in ["{config}", "{package_dir}", "{config_file:x}", "{confg_file}", "{state_dir}"] {
            assert!(placeholders(bad).is_err(), "{bad}");
        }
    }
}
