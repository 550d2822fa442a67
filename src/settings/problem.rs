//! What is wrong, and where: `FILE:LINE: key.path: what is wrong, what is allowed`.

use core::fmt;

/// Problems that are reported of one load; further ones are counted.
pub const MAX_PROBLEMS: usize = 100;

/// One thing that is wrong with the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file that has the key.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// The key, empty where the whole file is meant.
    pub key: Key,
    /// What is wrong, and what is allowed.
    pub text: String,
    /// Only the connection suffers, and it may be gone later: a variable or a file is missing that `opamp.server`
    /// or `opamp.agent` needs.
    pub deferred: bool,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.key.is_root() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// The way to a value: `opamp.health.checks[1].timeout`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key(Vec<Step>);

/// One step of a [`Key`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Into a map.
    Name(String),
    /// Into a list.
    Index(usize),
}

impl Key {
    /// A key that is made of plain names: `opamp.server.tls`.
    #[must_use]
    pub fn of(dotted: &str) -> Self {
        Self(dotted.split('.').map(|name| Step::Name(name.to_owned())).collect())
    }

    /// The key below this one.
    #[must_use]
    pub fn name(&self, name: &str) -> Self {
        self.step(Step::Name(name.to_owned()))
    }

    /// The element of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.step(Step::Index(index))
    }

    fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// Whether it is the whole file.
    #[must_use]
    pub const fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Its steps.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether it is this section or lies in it.
    #[must_use]
    pub fn lies_in(&self, section: &Self) -> bool {
        self.0.starts_with(&section.0)
    }

    /// Itself, what it lies in, what that lies in, and so on to the whole file.
    pub fn outward(&self) -> impl Iterator<Item = Self> {
        (0..=self.0.len())
            .rev()
            .map(|length| Self(self.0.get(..length).unwrap_or_default().to_vec()))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.0.iter().enumerate() {
            match step {
                Step::Name(name) => {
                    if at != 0 {
                        f.write_str(".")?;
                    }
                    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
                    if !name.is_empty() && name.chars().all(plain) {
                        f.write_str(name)?;
                    } else {
                        write!(f, "{:?}", shorten(name))?;
                    }
                }
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Characters of a value that a message shows.
const MAX_SHOWN: usize = 60;

/// The beginning of a text, as a message shows it.
#[must_use]
pub(super) fn shorten(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_line() {
        let key = Key::of("opamp.health.checks").index(1).name("timeout");
        let problem = Problem {
            file: "a.yaml".into(),
            line: 7,
            key,
            text: "is no duration".into(),
            deferred: false,
        };
        assert_eq!(problem.to_string(), "a.yaml:7: opamp.health.checks[1].timeout: is no duration");
    }

    #[test]
    fn odd_names_are_quoted_and_short() {
        assert_eq!(Key::of("labels").name("service.name").to_string(), "labels.\"service.name\"");
        assert_eq!(Key::of("labels").name("a\nb").to_string(), "labels.\"a\\nb\"");
        assert!(Key::default().name(&"x y".repeat(1000)).to_string().len() < 100);
    }

    #[test]
    fn outward_ends_at_the_whole_file() {
        let all: Vec<String> = Key::of("a.b").outward().map(|key| key.to_string()).collect();
        assert_eq!(all, ["a.b", "a", ""]);
    }
}
