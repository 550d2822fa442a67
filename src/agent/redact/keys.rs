//! Keys: where one stands in a text, and whether a pattern matches it.

use super::text::is_space;
use super::{MAX_KEY, Scanner};

impl Scanner<'_, '_> {
    /// Where the key of a plain line ends: `:` before white space, or `=`.
    pub(super) fn separator(&self, from: usize, end: usize) -> Option<usize> {
        let line = self.range(from, end);
        let found = line.iter().zip(1_usize..).position(|(&byte, after)| {
            byte == b'=' || (byte == b':' && self.ends_word(from.saturating_add(after)))
        });
        found.map(|found| from.saturating_add(found))
    }

    /// The first thing in a piece of a line that looks like a matching key: where its value begins.
    pub(super) fn find_key(&self, from: usize, end: usize, at_start: bool) -> Option<usize> {
        let whole = if at_start { self.separator(from, end) } else { None };
        let separator =
            whole.filter(|&separator| self.matches(from, self.trimmed(from, separator)));
        let first = self.first_word(from, end, at_start);
        match (separator, first) {
            (Some(separator), Some(word)) => Some(word.min(separator.saturating_add(1))),
            (Some(separator), None) => Some(separator.saturating_add(1)),
            (None, word) => word,
        }
    }

    /// The first matching word before `:`, `=`, `(` or `>`; at the start of a line one of the first two words.
    fn first_word(&self, from: usize, end: usize, at_start: bool) -> Option<usize> {
        let mut words = 0_u32;
        // `Some` while words may be keys by their place alone.
        let mut by_place = at_start;
        let mut at = from;
        while at < end {
            let word =
                self.skip(at, end, |byte| is_space(byte) || b"\"',;&{}[]<`|".contains(&byte));
            let close = self
                .skip(word, end, |byte| !is_space(byte) && !b"\"',;&{}[]<`|:=(>".contains(&byte));
            let gap = self.skip(close, end, |byte| is_space(byte) || b"\"'".contains(&byte));
            let separated = gap < end && self.at(gap).is_some_and(|byte| b":=(>".contains(&byte));
            words = words.saturating_add(1);
            if word < close
                && (separated || (by_place && words <= 2 && gap > close && gap < end))
                && self.matches(word, close)
            {
                return Some(if separated { gap.saturating_add(1) } else { close });
            }
            by_place &= !separated;
            at = if separated { gap.saturating_add(1) } else { gap.max(word.saturating_add(1)) };
        }
        None
    }

    /// One of the first two words of a line that matches without a separator: where its value begins.
    pub(super) fn by_place(&self, from: usize, end: usize) -> Option<usize> {
        let mut word = from;
        for _ in 0..2 {
            let close = self.skip(word, end, |byte| !is_space(byte) && !b":=".contains(&byte));
            let value = self.skip(close, end, is_space);
            if value == close || value == end {
                return None;
            }
            if self.matches(word, close) {
                return Some(value);
            }
            word = value;
        }
        None
    }

    /// Whether a key matches, or its last word does.
    pub(super) fn matches_any(&self, from: usize, end: usize) -> bool {
        let end = self.trimmed(from, end);
        let text = self.range(from, end);
        let word = text.iter().rposition(|byte| is_space(*byte) || b"\"';&?(<".contains(byte));
        let word = word.map_or(from, |space| from.saturating_add(space).saturating_add(1));
        self.matches(from, end) || (word > from && self.matches(word, end))
    }

    /// Whether a key as it stands in the text matches: quotes and escapes are taken off, and the last part of a
    /// dotted one counts alone too.
    pub(super) fn matches(&self, from: usize, end: usize) -> bool {
        if end.saturating_sub(from) > MAX_KEY {
            return true;
        }
        let key = unescaped(&String::from_utf8_lossy(self.range(from, end)));
        let last = key.rsplit('.').next().unwrap_or_default().trim_matches(['"', '\'', ' ']);
        self.matches_text(key.trim()) || (last.len() < key.len() && self.matches_text(last))
    }

    pub(super) fn matches_text(&self, key: &str) -> bool {
        let key = lower(key);
        self.patterns.iter().any(|pattern| glob(pattern, &key))
    }
}

pub(super) fn lower(text: &str) -> Vec<char> {
    text.chars().flat_map(char::to_lowercase).collect()
}

/// A key without its quotes, with the escapes of JSON, YAML and TOML read.
fn unescaped(key: &str) -> String {
    let bare = match key.as_bytes() {
        [b'\'', .., b'\''] => return key.trim_matches('\'').replace("''", "'"),
        [b'"', .., b'"'] => key.trim_matches('"'),
        _ => key,
    };
    let mut out = String::with_capacity(bare.len());
    let mut chars = bare.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let digits = match chars.next() {
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            // A line that goes on: its indentation does not count.
            Some('\n' | '\r') => {
                chars = chars.as_str().trim_start().chars();
                continue;
            }
            Some('n' | 'r' | 't' | '_' | 'N' | 'L' | 'P') => {
                out.push(' ');
                continue;
            }
            Some('a' | 'b' | 'e' | 'f' | 'v' | '0') | None => continue,
            Some(other) => {
                out.push(other);
                continue;
            }
        };
        let (code, _) = chars.as_str().split_at_checked(digits).unwrap_or(("", ""));
        let decoded = u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
        if let Some(decoded) = decoded {
            out.push(decoded);
            chars = chars.as_str().get(digits..).unwrap_or_default().chars();
        }
    }
    out
}

/// `*` is any run of characters, `?` any one.
pub(super) fn glob(pattern: &[char], key: &[char]) -> bool {
    let (mut pattern, mut key) = (pattern, key);
    // What follows the last `*`, and where it was last tried.
    let mut retry: Option<(&[char], &[char])> = None;
    loop {
        match (pattern.split_first(), key.split_first()) {
            (None, None) => return true,
            (Some(('*', after)), _) => {
                retry = Some((after, key));
                pattern = after;
            }
            (Some((wanted, after)), Some((found, rest))) if *wanted == '?' || wanted == found => {
                (pattern, key) = (after, rest);
            }
            _ => {
                let Some((after, (_, rest))) =
                    retry.and_then(|(after, from)| Some((after, from.split_first()?)))
                else {
                    return false;
                };
                retry = Some((after, rest));
                (pattern, key) = (after, rest);
            }
        }
    }
}
