//! Masks the values of secret keys in a config file that is about to be reported.
//!
//! The file may be YAML, JSON, TOML, INI, `key=value` or `key value` (Fluent Bit), of any size up to a message's:
//! a tree of 1 MiB of YAML takes 27 MB, so this is a scanner that goes through the text once and keeps a few
//! numbers. It is not a parser of any of these languages. Where it cannot be sure, it masks more:
//!
//! - A value reaches to the end of its line, and further over quotes, brackets and more deeply indented lines.
//!   Only in flow style (JSON, `{a: 1, b: 2}`, `[…]`) does it end at a comma or a bracket.
//! - Text that no key of the file stands before, such as a block scalar or a long plain one, is searched line by
//!   line for anything that looks like `key:`, `key=` or `key value`.
//! - Where brackets or quotes do not close, the text is not what it seemed. It is scanned again as such lines
//!   all through: [`Trust::Lines`].
//! - A file with a NUL (UTF-16, or no text) is masked as a whole.
//!
//! Comment lines are left alone. Secrets in keys, behind aliases or in values of keys that no pattern matches
//! are not found.

mod flow;
mod keys;
mod lines;
#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;

use self::keys::lower;

/// What stands for a masked value. In quotes, so that YAML and JSON stay what they are.
pub const MASKED: &str = "\"***\"";

/// A key of more bytes than YAML allows for one on its line counts as matching: it is no key that a person wrote.
pub const MAX_KEY: usize = 1024;

/// Brackets inside one another that are followed; deeper text is taken for no flow style.
pub const MAX_BRACKETS: usize = 256;

/// The body with the values of all keys masked that match one of the patterns: `*` is any run of characters, `?`
/// any one, and case does not count. Without such keys the body itself.
#[must_use]
pub fn redact<'a>(body: &'a [u8], patterns: &[String]) -> Cow<'a, [u8]> {
    if patterns.is_empty() || body.is_empty() {
        return Cow::Borrowed(body);
    }
    if body.contains(&0) {
        return Cow::Borrowed(MASKED.as_bytes());
    }
    let patterns = patterns.iter().map(|pattern| lower(pattern)).collect::<Vec<_>>();
    Scanner::new(body, &patterns, Trust::Structure)
        .scan()
        .or_else(|| Scanner::new(body, &patterns, Trust::Lines).scan())
        .unwrap_or(Cow::Borrowed(MASKED.as_bytes()))
}

/// How far quotes and brackets are believed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// They say where flow style and quoted text begin and end. Given up when one does not close.
    Structure,
    /// They say nothing, except that a masked value that opens one goes on until it closes.
    Lines,
}

/// A masked value whose more deeply indented lines belong to it.
#[derive(Clone, Copy)]
struct Hide {
    /// Column of its key.
    column: usize,
    /// Nothing stood behind the key, so nothing says yet that something is masked.
    unsaid: bool,
}

/// `? key`, whose value is the `: value` on another line.
#[derive(Clone, Copy)]
struct Question {
    column: usize,
    matched: bool,
}

struct Scanner<'a, 'p> {
    body: &'a [u8],
    patterns: &'p [Vec<char>],
    trust: Trust,
    /// What is in the answer so far; empty as long as nothing is masked.
    out: Vec<u8>,
    /// The body before here is in `out`, or masked.
    done: usize,
    hide: Option<Hide>,
    /// Lines indented more than this are text: of a block scalar, or of a plain one that goes on.
    text: Option<usize>,
    question: Option<Question>,
    /// In a section (`[secrets]`) whose name matches.
    section: Option<Hide>,
}

impl<'a, 'p> Scanner<'a, 'p> {
    const fn new(body: &'a [u8], patterns: &'p [Vec<char>], trust: Trust) -> Self {
        Self {
            body,
            patterns,
            trust,
            out: Vec::new(),
            done: 0,
            hide: None,
            text: None,
            question: None,
            section: None,
        }
    }

    /// Line by line. `None`: something did not close.
    fn scan(mut self) -> Option<Cow<'a, [u8]>> {
        let mut at = if self.body.starts_with(&[0xef, 0xbb, 0xbf]) { 3 } else { 0 };
        while at < self.body.len() {
            at = self.line(at)?;
        }
        if self.done == 0 && self.out.is_empty() {
            return Some(Cow::Borrowed(self.body));
        }
        let rest = self.range(self.done, self.body.len());
        self.out.extend_from_slice(rest);
        Some(Cow::Owned(self.out))
    }

    /// Puts `mark` in the place of a range. What is already masked stays so.
    fn mask(&mut self, from: usize, end: usize, mark: &str) {
        if end <= self.done {
            return;
        }
        if self.out.capacity() == 0 {
            self.out.reserve(self.body.len().saturating_add(MASKED.len()));
        }
        if from >= self.done {
            let kept = self.range(self.done, from);
            self.out.extend_from_slice(kept);
            self.out.extend_from_slice(mark.as_bytes());
        }
        self.done = end;
    }
}
