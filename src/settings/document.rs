//! One YAML file: read within bounds, and asked for the line of a key.
//!
//! [`Value`] knows no lines. They are wanted only when something is wrong; then [`line_of`] reads the text once more
//! and stops, with an error on purpose, at the key: an error has a line.

use core::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_yaml::{Mapping, Value};

use super::problem::{Key, Step, shorten};

/// Bytes of one settings file.
pub const MAX_SETTINGS_FILE: usize = 1 << 20;
/// Characters of one file that may begin or end something in YAML: `[]{},:-?` and line ends. The parser keeps up to
/// three events of about a hundred bytes for each.
pub const MAX_MARKS: usize = 1 << 15;
/// Lists and maps inside one another. The contract needs eight.
pub const MAX_DEPTH: usize = 16;
/// Values of all files together, those behind an alias counted each time.
pub const MAX_VALUES: usize = 1 << 14;
/// Bytes of text in the values of all files together.
pub const MAX_VALUE_TEXT: usize = 1 << 20;

/// What may still be read: the bounds are over all files.
#[derive(Debug)]
pub(super) struct Budget {
    values: usize,
    text: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { values: MAX_VALUES, text: MAX_VALUE_TEXT }
    }
}

impl Budget {
    fn spend<E: Error>(&mut self, text: usize) -> Result<(), E> {
        self.values = self
            .values
            .checked_sub(1)
            .ok_or_else(|| ours(&format!("more than {MAX_VALUES} values, aliases followed")))?;
        self.text = self.text.checked_sub(text).ok_or_else(|| {
            ours(&format!("more than {MAX_VALUE_TEXT} bytes of text, aliases followed"))
        })?;
        Ok(())
    }
}

/// Why a file cannot be parsed, and on which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// From 1.
    pub line: usize,
    /// What is wrong.
    pub text: String,
}

/// Parses the text of one file.
///
/// # Errors
/// It is no YAML, or goes beyond a bound.
pub(super) fn parse(text: &str, budget: &mut Budget) -> Result<Value, Malformed> {
    if text.len() > MAX_SETTINGS_FILE {
        let text = format!("{} bytes, more than {MAX_SETTINGS_FILE}", text.len());
        return Err(Malformed { line: 1, text });
    }
    let marks = text.bytes().filter(|byte| b"[]{},:-?\r\n".contains(byte)).count();
    if marks > MAX_MARKS {
        let text =
            format!("{marks} brackets, commas, colons, dashes and lines, more than {MAX_MARKS}");
        return Err(Malformed { line: 1, text });
    }
    Bounded { budget, depth: MAX_DEPTH }
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .map_err(|error| malformed(&error))
}

fn malformed(error: &serde_yaml::Error) -> Malformed {
    let line = error.location().map_or(1, |location| location.line());
    let text = error.to_string();
    // The parser puts the place behind the words, and the way there before them; we have our own form for both.
    let text = text.split(" at line ").next().unwrap_or_default();
    let text = text.rsplit(OURS).next().unwrap_or_default();
    Malformed { line, text: text.to_owned() }
}

/// Begins the words that are ours, not the parser's.
const OURS: &str = "\u{1}";

fn ours<E: Error>(text: &str) -> E {
    E::custom(format!("{OURS}{text}"))
}

/// Builds a [`Value`], counting.
struct Bounded<'b> {
    budget: &'b mut Budget,
    depth: usize,
}

impl Bounded<'_> {
    fn deeper<E: Error>(&mut self) -> Result<Bounded<'_>, E> {
        let depth = self.depth.checked_sub(1).ok_or_else(|| {
            ours(&format!("more than {MAX_DEPTH} lists and maps inside one another"))
        })?;
        Ok(Bounded { budget: self.budget, depth })
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map, a list, text, a number or a truth value without a tag (!…)")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.budget.spend(0).map(|()| Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.budget.spend(0).map(|()| Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.budget.spend(0).map(|()| Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.budget.spend(0).map(|()| Value::from(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.budget.spend(value.len()).map(|()| Value::from(value))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.budget.spend(0).map(|()| Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Value, A::Error> {
        self.budget.spend(0)?;
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.deeper()?)? {
            values.push(value);
        }
        Ok(Value::Sequence(values))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        self.budget.spend(0)?;
        let mut values = Mapping::new();
        while let Some(name) = map.next_key_seed(Unique { among: &values })? {
            self.budget.spend(name.len())?;
            let value = map.next_value_seed(self.deeper()?)?;
            values.insert(Value::String(name), value);
        }
        Ok(Value::Mapping(values))
    }
}

/// A key of a map, any plain scalar taken as text, that the map does not have yet.
struct Unique<'m> {
    among: &'m Mapping,
}

impl<'de> DeserializeSeed<'de> for Unique<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Unique<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key that is text")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        if self.among.contains_key(name) {
            return Err(ours(&format!("the key {:?} stands here twice", shorten(name))));
        }
        Ok(name.to_owned())
    }
}

/// The line of a key in a text that [`parse`] has accepted; nothing where the text does not have it.
#[must_use]
pub(super) fn line_of(text: &str, key: &Key) -> Option<usize> {
    let found = Probe(key.steps()).deserialize(serde_yaml::Deserializer::from_str(text));
    let error = found.err()?;
    error.to_string().contains(HERE).then(|| error.location().map(|location| location.line()))?
}

/// What the probe says when it is there.
const HERE: &str = "\u{2}here";

/// Walks down the steps.
struct Probe<'k>(&'k [Step]);

impl<'de> DeserializeSeed<'de> for Probe<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        match self.0.first() {
            Some(Step::Name(_)) => deserializer.deserialize_map(self),
            Some(Step::Index(_)) => deserializer.deserialize_seq(self),
            None => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Probe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // At the end of the steps a scalar is what was looked for; before, the key is not there.
        f.write_str(if self.0.is_empty() { HERE } else { "something else" })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Step::Index(wanted), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(HERE));
        };
        for _ in 0..*wanted {
            if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        list.next_element_seed(Probe(rest))?;
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Name(name), rest)) = self.0.split_first() else {
            return Err(A::Error::custom(HERE));
        };
        while let Some(found) = map.next_key_seed(KeyProbe { name, last: rest.is_empty() })? {
            if found {
                map.next_value_seed(Probe(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Whether a key of a map is the wanted one; raises the error when it is the last step.
struct KeyProbe<'k> {
    name: &'k str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for KeyProbe<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyProbe<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        let found = name == self.name;
        if found && self.last { Err(E::custom(HERE)) } else { Ok(found) }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn refused(text: &str) -> Malformed {
        parse(text, &mut Budget::default()).unwrap_err()
    }

    #[test]
    fn lines_are_found() {
        let text = "# x\na:\n  b: 1\n  c:\n    - d: 1\n    - e: |\n        two\n      f: 3\n  g: [1, \n 2]\n";
        for (key, line) in [
            (Key::of("a"), 2),
            (Key::of("a.b"), 3),
            (Key::of("a.c"), 4),
            (Key::of("a.c").index(0), 5),
            (Key::of("a.c").index(1), 6),
            (Key::of("a.c").index(1).name("f"), 8),
            (Key::of("a.g").index(0), 9),
            (Key::of("a.g").index(1), 10),
        ] {
            assert_eq!(line_of(text, &key), Some(line), "{key}");
        }
        for key in [Key::of("x"), Key::of("a.b.c"), Key::of("a.c").index(2), Key::of("a.g.x")] {
            assert_eq!(line_of(text, &key), None, "{key}");
        }
    }

    #[test]
    fn lines_are_found_behind_aliases() {
        let text = "a: &x\n  b: 1\nc: *x\n";
        assert_eq!(line_of(text, &Key::of("c.b")), Some(2));
        assert_eq!(line_of(text, &Key::of("c")), Some(3));
    }

    #[test]
    fn syntax_errors_have_a_line() {
        for (text, line) in [
            ("a: [1\nb: 2\n", 2),
            ("a: 1\n  b: 2\n", 2),
            ("a: 1\nb: *nowhere\n", 2),
            ("a: 1\na: 2\n", 2),
            ("x:\n  - !tag y\n", 2),
            ("a: 1\n? [x]\n: 1\n", 2),
            ("\ta: 1\n", 1),
            ("a: \"\u{7}\"", 1),
        ] {
            assert_eq!(refused(text).line, line, "{text:?}: {}", refused(text).text);
        }
        assert_eq!(refused("a: 1\nx:\n  a: 1\n  a: 2\n").text, "the key \"a\" stands here twice");
        assert!(refused("a: 1\n---\nb: 1\n").text.contains("more than one document"));
    }

    #[test]
    fn keys_are_text_whatever_they_look_like() {
        let value = parse("{1: a, true: b, null: c}", &mut Budget::default()).unwrap();
        for key in ["1", "true", "null"] {
            assert!(value.get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn bombs_end_at_a_bound() {
        // Doubling, the classic.
        let mut doubling = "a0: &a0 [x, x]\n".to_owned();
        for n in 1..60 {
            let before = n - 1;
            doubling.push_str(&format!("a{n}: &a{n} [*a{before}, *a{before}]\n"));
        }
        // One long list, many times: below the parser's own limit for each.
        let wide = format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(5_000), "*a ,".repeat(5_000));
        // One long text, many times.
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(500_000), "*a ,".repeat(5_000));
        let itself = "a: &a [*a]\n";
        for (bomb, word) in [
            (doubling.as_str(), "more than 16384 values"),
            (&wide, "values"),
            (&long, "bytes of text"),
            (itself, "inside one another"),
        ] {
            assert!(refused(bomb).text.contains(word), "{}", refused(bomb).text);
        }
    }

    #[test]
    fn depth_length_and_density_are_bounded() {
        for (text, word) in [
            ("[".repeat(30_000), ""),
            ("- ".repeat(30_000), ""),
            (format!("{}{}", "[".repeat(17), "]".repeat(17)), "inside one another"),
            ("[],".repeat(100_000), "brackets"),
            ("x".repeat(10_000_000), "more than 1048576"),
        ] {
            assert!(refused(&text).text.contains(word), "{}", refused(&text).text);
        }
        let deep = format!("{}{}", "[".repeat(16), "]".repeat(16));
        assert!(parse(&deep, &mut Budget::default()).is_ok());
    }
}
