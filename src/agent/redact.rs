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

use std::borrow::Cow;

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

    // ---- Lines ---------------------------------------------------------------------------------------

    /// One line, and those after it that its value takes; where the next begins.
    fn line(&mut self, start: usize) -> Option<usize> {
        let end = self.line_end(start);
        let next = self.next_line(start);
        let first = self.skip(start, end, is_blank);
        if first == end {
            return Some(next);
        }
        let column = first.saturating_sub(start);
        let byte = self.at(first)?;
        if let Some(section) = self.section {
            if !self.ends_section(first, end) {
                self.section = Some(Hide { unsaid: false, ..section });
                self.drop_line(start, next, end, section);
                return Some(next);
            }
            self.section = None;
        }
        if let Some(hide) = self.hide {
            let item =
                column == hide.column && byte == b'-' && self.ends_word(first.saturating_add(1));
            if column > hide.column || item {
                self.hide = Some(Hide { unsaid: false, ..hide });
                self.drop_line(start, next, end, hide);
                return Some(next);
            }
            if byte == b'#' {
                return Some(next);
            }
            self.hide = None;
        }
        let text = self.text.is_some_and(|column_of_key| column > column_of_key);
        if !text {
            self.text = None;
            if byte == b'#' {
                return Some(next);
            }
        }
        if let (false, Some(matched)) = (text, self.section_header(first, end)) {
            self.section = matched.then_some(Hide { column: 0, unsaid: true });
            return Some(next);
        }
        if text && let Some(question) = &mut self.question {
            // A key of several lines is not read as one.
            question.matched = true;
        }
        if text || self.trust == Trust::Lines {
            let from = self.after_dashes(first, end).1;
            return Some(self.search(from, end, column, true));
        }
        self.structured(start, first, end)
    }

    /// A line that is not inside anything.
    fn structured(&mut self, start: usize, first: usize, end: usize) -> Option<usize> {
        let next = self.next_line(start);
        let (dash, mut from) = self.after_dashes(first, end);
        let mut column = from.saturating_sub(start);
        match (self.at(from), self.ends_word(from.saturating_add(1))) {
            (Some(b'?'), true) => {
                let key = self.skip(from.saturating_add(1), end, is_blank);
                let plain =
                    !self.at(key).is_none_or(|byte| b"|>[{&!-?*".contains(&byte)) && key < end;
                let matched = !plain || self.matches_any(key, end);
                self.question = Some(Question { column, matched });
                // Text of a key on several lines, a block scalar perhaps; or a map inside the key.
                self.text = Some(column);
                return Some(self.search(key, end, column, true));
            }
            (Some(b':'), true) => {
                let asked = self.question.take().filter(|question| question.column == column);
                let value = from.saturating_add(1);
                if asked.is_none_or(|question| question.matched) {
                    return Some(self.mask_lines(value, end, column));
                }
                from = self.skip(value, end, is_blank);
                return self.value(from, end, Some(column), column);
            }
            _ => {}
        }
        if let Some(question) = self.question
            && column <= question.column
        {
            self.question = None;
        }
        let node = from;
        from = self.after_properties(from, end);
        if from == end {
            return Some(next);
        }
        if matches!(self.at(from), Some(b'"' | b'\'')) {
            let close = self.quoted_end(from)?;
            let end = self.line_end(close);
            let colon = self.skip(close, end, is_blank);
            if matches!(self.at(colon), Some(b':' | b'=')) && colon < end {
                let value = colon.saturating_add(1);
                if self.matches(from, close) {
                    return Some(self.mask_lines(value, end, column));
                }
                let value = self.skip(value, end, is_blank);
                return self.value(value, end, None, column);
            }
            return self.value(from, end, None, column);
        }
        if matches!(self.at(from), Some(b'{' | b'[' | b'|' | b'>')) {
            return self.value(from, end, dash.map(|dash| dash.saturating_sub(start)), column);
        }
        // A plain key, or plain text.
        column = node.saturating_sub(start);
        if let Some(value) = self.find_key(from, end, true) {
            let separator = self.separator(from, end).unwrap_or(end);
            // A candidate behind the key of the line: the value of that key may be quoted or in flow style.
            if value <= separator.saturating_add(1)
                || !self.opens(self.skip(separator.saturating_add(1), end, is_blank))
            {
                return Some(self.mask_lines(value, end, column));
            }
        }
        let Some(separator) = self.separator(from, end) else {
            if dash.is_some() {
                self.text = dash.map(|dash| dash.saturating_sub(start));
            }
            return Some(next);
        };
        let value = self.skip(separator.saturating_add(1), end, is_blank);
        if self.at(separator) == Some(b'=') {
            // In YAML it may be a part of the key, with any kind of value behind that.
            let colon = self
                .range(separator, end)
                .windows(2)
                .any(|two| matches!(two, [b':', b' ' | b'\t']));
            if colon || self.at(end.saturating_sub(1)) == Some(b':') {
                self.text = Some(column);
                return Some(self.search(value, end, column, false));
            }
            return self.assigned(value, end, column);
        }
        self.value(value, end, Some(column), column)
    }

    /// The value of a key that does not match, or an item of a list. `parent` is the column that the lines of a
    /// block scalar, and of a plain one that goes on, are indented beyond.
    fn value(
        &mut self,
        from: usize,
        end: usize,
        parent: Option<usize>,
        column: usize,
    ) -> Option<usize> {
        let from = self.after_properties(from, end);
        let next = self.next_line(from.min(end));
        if from >= end {
            return Some(next);
        }
        match self.at(from)? {
            b'#' => Some(next),
            b'|' | b'>' => {
                self.text = parent.or(Some(column));
                Some(next)
            }
            b'"' | b'\'' => {
                let close = self.quoted_end(from)?;
                self.search_inside(from, close)?;
                let end = self.line_end(close);
                Some(self.search(close, end, column, false))
            }
            b'{' | b'[' => {
                let close = self.flow(from)?;
                let end = self.line_end(close);
                let colon = self.skip(close, end, is_blank);
                if self.at(colon) == Some(b':') {
                    // A map or list as a key: not looked into, so taken for a match.
                    return Some(self.mask_lines(colon.saturating_add(1), end, column));
                }
                Some(self.search(close, end, column, false))
            }
            _ => {
                self.text = parent;
                Some(self.search(from, end, column, false))
            }
        }
    }

    /// What stands behind `=`: quotes close on their line or are none, except TOML's three.
    fn assigned(&mut self, from: usize, end: usize, column: usize) -> Option<usize> {
        match self.at(from).filter(|_| from < end) {
            Some(b'{' | b'[') => self.value(from, end, None, column),
            Some(b'"' | b'\'') => match self.quoted_end(from) {
                Some(close) if close <= end || self.triple(from) => {
                    self.value(from, end, None, column)
                }
                _ => Some(self.search(from, end, column, false)),
            },
            _ => Some(self.search(from, end, column, false)),
        }
    }

    /// Looks for anything like a key in text, and masks from its value on. Where the next line begins.
    fn search(&mut self, from: usize, end: usize, column: usize, at_start: bool) -> usize {
        match self.find_key(from, end, at_start) {
            Some(value) => self.mask_lines(value, end, column),
            None => self.next_line(from.min(end)),
        }
    }

    /// Quoted text of several lines that holds what looks like a key is perhaps no quoted text: `None`.
    fn search_inside(&self, open: usize, close: usize) -> Option<()> {
        let several = self.range(open, close).iter().any(|byte| matches!(byte, b'\n' | b'\r'));
        let mut at = if several { self.next_line(open) } else { close };
        while at < close {
            let end = self.line_end(at);
            if self.find_key(self.skip(at, end, is_blank), end, true).is_some() {
                return None;
            }
            at = self.next_line(end);
        }
        Some(())
    }

    /// Masks the rest of a line from a matching key's separator on, what its value opens, and by `hide` the
    /// lines beneath it. Where the next line begins.
    fn mask_lines(&mut self, separator: usize, end: usize, column: usize) -> usize {
        let value = self.skip(separator, end, is_blank);
        if value == end {
            self.hide = Some(Hide { column, unsaid: true });
            return self.next_line(end);
        }
        let (mut column, mut end) = (column, end);
        let mut opening = self.after_properties(value, end);
        loop {
            // A backslash at the end continues a line in many formats.
            let last = if self.opens(opening) {
                self.line_end(self.closing(opening).unwrap_or(self.body.len()).max(end))
            } else if self.at(end.saturating_sub(1)) == Some(b'\\') {
                self.line_end(self.next_line(end))
            } else {
                end
            };
            if last == end {
                break;
            }
            // Where that was no continuation, its last line may hold a key of its own.
            let line = self.range(end, last).iter().rposition(|byte| matches!(byte, b'\n' | b'\r'));
            let start = line.map_or(end, |line| end.saturating_add(line).saturating_add(1));
            let from = self.after_dashes(self.skip(start, last, is_blank), last).1;
            end = last;
            opening = end;
            if let Some(value) = self.find_key(from, end, true) {
                column = column.min(from.saturating_sub(start));
                opening = self.after_properties(self.skip(value, end, is_blank), end);
            }
        }
        self.hide = Some(Hide { column, unsaid: false });
        self.mask(value, end, MASKED);
        self.next_line(end)
    }

    /// A line of a masked value goes; the first says so, where its key's line could not.
    fn drop_line(&mut self, start: usize, next: usize, end: usize, hide: Hide) {
        if hide.unsaid {
            let indent = " ".repeat(hide.column.saturating_add(1).min(MAX_KEY));
            self.mask(start, end, &[indent.as_str(), MASKED].concat());
        } else {
            self.mask(start, next, "");
        }
    }

    /// `[name]` or `[[name]]` alone on a line: whether the name matches.
    fn section_header(&self, first: usize, end: usize) -> Option<bool> {
        let whole = String::from_utf8_lossy(self.section_name(first, end)?);
        let part = |part: &str| self.matches_text(part.trim_matches(['"', '\'', ' ', '\t']));
        Some(part(&whole) || whole.split(['.', ' ', ':', '/']).any(part))
    }

    fn section_name(&self, first: usize, end: usize) -> Option<&'a [u8]> {
        let line = self.range(first, end).strip_prefix(b"[")?;
        let line = line.split(|&byte| byte == b'#').next()?.trim_ascii().strip_suffix(b"]")?;
        let name = line.strip_prefix(b"[").unwrap_or(line);
        let name = name.strip_suffix(b"]").unwrap_or(name);
        (!name.iter().any(|byte| b"[]{},".contains(byte))).then_some(name)
    }

    /// Whether a line ends the section before it, and is not a line of an array in it (`["a"]`, `[1]`).
    fn ends_section(&self, first: usize, end: usize) -> bool {
        let name = self.section_name(first, end).map(<[u8]>::trim_ascii).unwrap_or_default();
        let bare =
            !name.iter().any(|byte| b"\"'".contains(byte)) && name != b"true" && name != b"false";
        bare && name.first().is_some_and(|&byte| !byte.is_ascii_digit() && !b"+-".contains(&byte))
    }

    // ---- Flow style ----------------------------------------------------------------------------------

    /// From an opening bracket to behind the one that closes it. `None`: it does not close.
    fn flow(&mut self, open: usize) -> Option<usize> {
        let mut open_brackets = Vec::new();
        let mut at = open;
        // Nothing but white space stands before `at` on its line.
        let mut at_start = false;
        loop {
            let byte = self.at(at)?;
            let after = at.saturating_add(1);
            match byte {
                b'\n' | b'\r' => {
                    at_start = true;
                    at = after;
                    continue;
                }
                b' ' | b'\t' => {
                    at = after;
                    continue;
                }
                b'{' | b'[' if open_brackets.len() == MAX_BRACKETS => return None,
                b'{' | b'[' => {
                    open_brackets.push(byte);
                    at = after;
                }
                b'}' | b']' => {
                    let pair = (open_brackets.pop()?, byte);
                    if !matches!(pair, (b'{', b'}') | (b'[', b']')) {
                        return None;
                    }
                    at = after;
                    if open_brackets.is_empty() {
                        return Some(at);
                    }
                }
                b',' | b':' | b'=' => at = after,
                b'?' if self.ends_word(after) => at = after,
                b'&' | b'!' => {
                    at = self.skip(at, self.body.len(), |byte| {
                        !is_space(byte) && !b",[]{}".contains(&byte)
                    });
                }
                b'#' if self.before_is_space(at) => at = self.line_end(at),
                b'"' | b'\'' => {
                    let close = self.quoted_end(at)?;
                    self.search_inside(at, close)?;
                    let colon = self.skip(close, self.body.len(), is_space);
                    let keyed = matches!(self.at(colon), Some(b':' | b'='));
                    at = if keyed && self.matches(at, close) {
                        self.mask_flow(colon.saturating_add(1), at_start)
                    } else {
                        close
                    };
                }
                _ => {
                    let word = at;
                    if at_start && let Some(value) = self.by_place(word, self.line_end(word)) {
                        self.mask_rest(value, value);
                    }
                    at = self.skip(at, self.body.len(), |byte| !b",[]{}:=\n\r".contains(&byte));
                    // ` #` begins a comment.
                    let comment = self
                        .range(word, at)
                        .windows(2)
                        .position(|two| matches!(two, [b' ' | b'\t', b'#']));
                    if let Some(comment) = comment {
                        at = word.saturating_add(comment).saturating_add(1);
                    } else if matches!(self.at(at), Some(b':' | b'=')) && self.matches_any(word, at)
                    {
                        at = self.mask_flow(at.saturating_add(1), at_start);
                    }
                }
            }
            at_start = false;
        }
    }

    /// Masks a value in flow style; where to go on.
    fn mask_flow(&mut self, separator: usize, at_start: bool) -> usize {
        // `=>`, `==`
        let value = self.skip(separator, self.body.len(), |byte| b"=>".contains(&byte));
        let value = self.after_comments(value);
        let opening = self.after_comments(self.after_properties(value, self.body.len()));
        let mut end = opening;
        let whole = self.opens(opening);
        if whole {
            end = self.closing(opening).unwrap_or(self.body.len());
            let next = self.skip(end, self.body.len(), is_space);
            if self.at(next).is_none_or(|byte| b",]}#".contains(&byte)) {
                self.mask(value, end, MASKED);
                return end;
            }
        }
        let mut depth = 0_usize;
        let stop = self.skip(end, self.body.len(), |byte| match byte {
            b'{' | b'[' => {
                depth = depth.saturating_add(1);
                true
            }
            b'}' | b']' if depth > 0 => {
                depth = depth.saturating_sub(1);
                true
            }
            b'}' | b']' => false,
            b',' => depth > 0,
            _ => true,
        });
        let last = self.trimmed(value, stop);
        if at_start && !whole {
            // One key a line is what people write: a comma in it may be the secret's.
            self.mask_rest(value, last);
        } else if value < last {
            self.mask(value, last, MASKED);
        }
        stop
    }

    /// Masks from `value` to the end of the line that `last` is in, without the brackets and commas there.
    fn mask_rest(&mut self, value: usize, last: usize) {
        let line = self.range(last, self.line_end(last));
        let kept = line.iter().rposition(|&byte| !is_space(byte) && !b",]}".contains(&byte));
        let end = kept.map_or(last, |kept| last.saturating_add(kept).saturating_add(1));
        if value < end {
            self.mask(value, end, MASKED);
        }
    }

    // ---- Pieces of text ------------------------------------------------------------------------------

    /// Where the key of a plain line ends: `:` before white space, or `=`.
    fn separator(&self, from: usize, end: usize) -> Option<usize> {
        let line = self.range(from, end);
        let found = line.iter().zip(1_usize..).position(|(&byte, after)| {
            byte == b'=' || (byte == b':' && self.ends_word(from.saturating_add(after)))
        });
        found.map(|found| from.saturating_add(found))
    }

    /// The first thing in a piece of a line that looks like a matching key: where its value begins.
    fn find_key(&self, from: usize, end: usize, at_start: bool) -> Option<usize> {
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
    fn by_place(&self, from: usize, end: usize) -> Option<usize> {
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
    fn matches_any(&self, from: usize, end: usize) -> bool {
        let end = self.trimmed(from, end);
        let text = self.range(from, end);
        let word = text.iter().rposition(|byte| is_space(*byte) || b"\"';&?(<".contains(byte));
        let word = word.map_or(from, |space| from.saturating_add(space).saturating_add(1));
        self.matches(from, end) || (word > from && self.matches(word, end))
    }

    /// Whether a key as it stands in the text matches: quotes and escapes are taken off, and the last part of a
    /// dotted one counts alone too.
    fn matches(&self, from: usize, end: usize) -> bool {
        if end.saturating_sub(from) > MAX_KEY {
            return true;
        }
        let key = unescaped(&String::from_utf8_lossy(self.range(from, end)));
        let last = key.rsplit('.').next().unwrap_or_default().trim_matches(['"', '\'', ' ']);
        self.matches_text(key.trim()) || (last.len() < key.len() && self.matches_text(last))
    }

    fn matches_text(&self, key: &str) -> bool {
        let key = lower(key);
        self.patterns.iter().any(|pattern| glob(pattern, &key))
    }

    /// Whether a quote or a bracket stands here.
    fn opens(&self, at: usize) -> bool {
        matches!(self.at(at), Some(b'"' | b'\'' | b'{' | b'['))
    }

    /// Behind what the quote or bracket here opens.
    fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0_usize;
        let mut at = open;
        loop {
            match self.at(at)? {
                b'"' | b'\'' if depth == 0 || self.starts_token(at) => at = self.quoted_end(at)?,
                b'#' if self.before_is_space(at) => at = self.line_end(at),
                b'{' | b'[' => {
                    depth = depth.saturating_add(1);
                    at = at.saturating_add(1);
                }
                b'}' | b']' => {
                    depth = depth.saturating_sub(1);
                    at = at.saturating_add(1);
                }
                _ => at = at.saturating_add(1),
            }
            if depth == 0 {
                return Some(at);
            }
        }
    }

    /// Whether a quote here can open quoted text inside brackets.
    fn starts_token(&self, at: usize) -> bool {
        at.checked_sub(1)
            .and_then(|before| self.at(before))
            .is_none_or(|byte| is_space(byte) || b",:=[{".contains(&byte))
    }

    /// Whether TOML's three quotes stand here. In YAML `'''` is a quote and a quoted one, so only after `=`.
    fn triple(&self, open: usize) -> bool {
        match self.range(open, open.saturating_add(3)) {
            b"\"\"\"" => true,
            b"'''" => {
                let before = self.range(open.saturating_sub(MAX_KEY), open);
                before.trim_ascii_end().ends_with(b"=")
            }
            _ => false,
        }
    }

    /// Behind the quote that closes the one here.
    fn quoted_end(&self, open: usize) -> Option<usize> {
        let quote = self.at(open)?;
        if self.triple(open) {
            let text = open.saturating_add(3);
            let found =
                self.range(text, self.body.len()).windows(3).position(|three| three == [quote; 3]);
            // More than three quotes may close it.
            let close = text.saturating_add(found?).saturating_add(3);
            return Some(self.skip(close, close.saturating_add(2), |byte| byte == quote));
        }
        let mut at = open.saturating_add(1);
        loop {
            let byte = self.at(at)?;
            let after = at.saturating_add(1);
            if byte == b'\\' && quote == b'"' {
                at = after.saturating_add(1);
            } else if byte != quote {
                at = after;
            } else if quote == b'\'' && self.at(after) == Some(quote) {
                at = after.saturating_add(1);
            } else {
                return Some(after);
            }
        }
    }

    /// Behind `- - `: the column's place of the last dash, and what follows.
    fn after_dashes(&self, mut at: usize, end: usize) -> (Option<usize>, usize) {
        let mut dash = None;
        if self.range(at, at.saturating_add(3)) == b"---" && self.ends_word(at.saturating_add(3)) {
            at = self.skip(at.saturating_add(3), end, is_blank);
        }
        while at < end && self.at(at) == Some(b'-') && self.ends_word(at.saturating_add(1)) {
            dash = Some(at);
            at = self.skip(at.saturating_add(1), end, is_blank);
        }
        (dash, at)
    }

    /// Behind anchors and tags.
    fn after_properties(&self, mut at: usize, end: usize) -> usize {
        while at < end && matches!(self.at(at), Some(b'&' | b'!')) {
            at = self.skip(at, end, |byte| !is_space(byte) && !b",[]{}".contains(&byte));
            at = self.skip(at, end, is_space);
        }
        at.min(end)
    }

    /// Behind white space, line breaks and comments.
    fn after_comments(&self, at: usize) -> usize {
        let mut at = self.skip(at, self.body.len(), is_space);
        while self.at(at) == Some(b'#') && self.before_is_space(at) {
            at = self.skip(self.line_end(at), self.body.len(), is_space);
        }
        at
    }

    fn at(&self, at: usize) -> Option<u8> {
        self.body.get(at).copied()
    }

    fn range(&self, from: usize, end: usize) -> &'a [u8] {
        self.body.get(from..end.min(self.body.len())).unwrap_or_default()
    }

    /// The first place from `at` on, `end` at most, where the byte is not such a one.
    fn skip(&self, at: usize, end: usize, mut such: impl FnMut(u8) -> bool) -> usize {
        let stop = self.range(at, end).iter().position(|&byte| !such(byte));
        stop.map_or(end.min(self.body.len()).max(at), |stop| at.saturating_add(stop))
    }

    /// Before white space, or at the end: a `-`, `?` or `:` there stands alone.
    fn ends_word(&self, at: usize) -> bool {
        self.at(at).is_none_or(is_space)
    }

    fn before_is_space(&self, at: usize) -> bool {
        at.checked_sub(1).and_then(|before| self.at(before)).is_none_or(is_space)
    }

    /// `end` without the white space before it.
    fn trimmed(&self, from: usize, end: usize) -> usize {
        from.saturating_add(self.range(from, end).trim_ascii_end().len())
    }

    /// The end of the line that `at` is in: before LF, CRLF or CR.
    fn line_end(&self, at: usize) -> usize {
        self.skip(at, self.body.len(), |byte| !matches!(byte, b'\n' | b'\r'))
    }

    fn next_line(&self, at: usize) -> usize {
        let end = self.line_end(at);
        let width = if self.range(end, end.saturating_add(2)) == b"\r\n" { 2 } else { 1 };
        end.saturating_add(width).min(self.body.len())
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

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

fn lower(text: &str) -> Vec<char> {
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
fn glob(pattern: &[char], key: &[char]) -> bool {
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

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use serde_yaml::{Mapping, Value};

    use super::*;

    fn patterns() -> Vec<String> {
        ["*password*", "*token*", "*secret*", "authorization"].map(String::from).to_vec()
    }

    fn redacted(body: &str) -> String {
        String::from_utf8(redact(body.as_bytes(), &patterns()).into_owned()).unwrap()
    }

    /// `hunter` must go and `keep…` must stay.
    #[track_caller]
    fn check(body: &str) {
        // With each kind of line end.
        for body in [body.to_owned(), body.replace('\n', "\r\n"), body.replace('\n', "\r")] {
            let out = redacted(&body);
            assert!(!out.contains("hunter"), "leaked:\n{body}\n----\n{out}");
            assert!(out.contains("***"), "not masked:\n{body}");
            for word in
                body.split(|c: char| !c.is_alphanumeric()).filter(|word| word.starts_with("keep"))
            {
                assert!(out.contains(word), "{word} lost:\n{body}\n----\n{out}");
            }
        }
    }

    #[test]
    fn block_style() {
        for body in [
            "password: hunter\nname: keep\n",
            "a:\n  Password: hunter 2 # why\n  name: keep",
            "a:\n- token: hunter\n  name: keep1\n- name: keep2\n",
            "a:\n  - - token: hunter\n      name: keep1\n    - keep2\n",
            "\"db_password\": \"hunter\"\nname: keep",
            "'db_password' : 'it''s hunter'\nname: keep",
            "\"pass\\u0077ord\": hunter\nb: keep",
            "\"\\x70assword\": hunter\nb: keep",
            "password: |\n  hunter\n\n  # hunter\n   hunter\nb: keep",
            "password: >-  # folded\n\n  hunter\nb: keep",
            "- password: |2\n    hunter\n- b: keep",
            "password:\n  - hunter\n  - a: hunter\nb: keep",
            "password:\n- hunter\n- hunter\nb: keep",
            "c:\n  password:\n  - hunter\n  # keep\n  - hunter\n  b: keep2",
            "password:\n  a:\n    b: hunter\n# keep1\n  c: hunter\nb: keep",
            "password: hunter\n  hunter\n\n  hunter\nb: keep",
            "password: \"hunter\n hunter\n\n\n  hunter\"\nb: keep",
            "password: 'hunter\nhunter: hunter'\nb: keep",
            "password: &a hunter\nb: keep",
            "password: !!binary |\n  hunter\nb: keep",
            "password: &a !t\n  hunter\nb: keep",
            "&k password: hunter\nb: keep",
            "!!str password: hunter\nb: keep",
            "? password\n: hunter\nb: keep",
            "? \"password\"\n: - hunter\n  - hunter\nb: keep",
            "? - a\n  - password\n: hunter\nb: keep",
            "? |\n  password\n: hunter\nb: keep",
            "? keep1\n: keep2\n? token\n: hunter\n",
            "password: {a: hunter, b: [hunter]}\nb: keep",
            "password: {a: hunter,\n b: hunter }\nb: keep",
            "password: [hunter,\nhunter]\nb: keep",
            "password:\thunter\nb: keep",
            "password :  hunter\nb: keep",
            "my password of old: hunter\nb: keep",
            "headers:\n  authorization: Bearer hunter\n  x: keep",
            "--- \n# keep1: password\npassword: hunter\n...\n---\nb: keep",
            "\u{feff}password: hunter\nb: keep",
            "a: keep's\npassword: hunter\nb: keep it's\n",
            "a: keep1 {\npassword: a,hunter}hunter\nb: keep",
            "a: |\n  { [ \" '\nb: keep\npassword: x, hunter\n",
            "a: keep\n  'tis keep1\npassword: x, hunter\nc: it's keep2\n",
            "a: |\n  password=hunter\n  keep1\nb: keep",
            "a: |\n  x: keep1\n  password:\n    hunter\n  y: keep2\nb: keep",
            "a: \"keep\n  password: hunter\n  \"\nb: keep1\n",
            "cmd: keep --password=hunter --x\nb: keep1",
            "cmd: [keep, --token=hunter, keep1]\nb: keep2",
            "url: keep?token=hunter&x=1\nb: keep2",
        ] {
            check(body);
        }
    }

    #[test]
    fn flow_style_and_json() {
        for body in [
            r#"{"password":"hunter","b":"keep"}"#,
            r#"{"a":{"token":"x\"hunter, hunter","b":"keep"},"c":["keep1",{"secret":["hunter"],"d":"keep2"}]}"#,
            r#"{"pass\u0077ord" : 12hunter, "b":"keep"}"#,
            "{\n  \"password\": \"hunter\",\n  \"b\": \"keep\",\n  \"x\": {\n    \"token\": {\n  \"a\": \"hunter\"\n    },\n    \"y\": \"keep1\"\n  }\n}\n",
            "{\"password\"\n:\n\"hunter\"\n,\"b\":\"keep\"}",
            "{password: hunter, b: keep}",
            "{b: keep, password: hunter}",
            "a: {password: hunter,\n  b: keep,\n  c: keep1}\nd: keep2",
            "a: {password: hunter\n hunter, b: keep}",
            "a: {b: keep, # it's\n password: # a, b\n hunter}\nc: keep2",
            "a: {b: keep, password: [x, # ]\n hunter]}\nc: keep2",
            "a: {'pass''word': keep, 'a password': 'it''s, hunter', b: keep2}",
            "a: {? password : hunter, b: keep}",
            "a: {password: &x !!str hunter, b: keep}",
            "a: [b, password: hunter, keep]",
            "a: {{b: c}: d, password: hunter, e: keep}",
            "[keep]: a\npassword: hunter",
            "- {password: hunter, b: keep}\n- [keep1]\n- {token: hunter}",
            "{\"a\":\"keep\"}\n{\"token\":\"hunter\",\"b\":\"keep2\"}\n",
            "{\n  password: hunter,hunter\n  b: keep\n}",
            "{\"a\": \"keep\", \"password\": null, \"token\": \"hunter\", \"b\": \"keep1\"}",
            "{\"password\": \"hunter\"",
            "{\"a\": \"keep\",\n\"password\": \"x, hunter\",\n\"c\": [ \"keep1\"",
        ] {
            check(body);
        }
    }

    #[test]
    fn other_formats() {
        for body in [
            "[[outputs.keep]]\n  urls = [\"keep1\"]\n  password = \"hunter\"\n  token = 'hunter' # x\n  b = \"keep2\"\n",
            "a = {user = \"keep\", password = \"hunter\", b = \"keep1\"}\n",
            "password = \"\"\"\nhunter\n\"quoted\"\n\"\"\"\nb = \"keep\"\n",
            "password = '''\nhunter'''\nb = \"keep\"\n",
            "password = [\n\"hunter\",\n\"hunter\"\n]\nb = \"keep\"\n",
            "outputs.password = \"hunter\"\nb = \"keep\"\n",
            "headers.authorization = \"hunter\"\nb = \"keep\"\n",
            "[secrets] # x\na = \"hunter\"\nb = [\n  [\"hunter\"]\n]\nc = 'hunter'\n[keep]\nb = \"keep1\"\n",
            "[a]\nb = keep\n\n[outputs.password]\nx = hunter\n\n[keep1]\n",
            "[OUTPUT]\n    Name keep\n    HTTP_Passwd_Token hunter\n    Password hun:ter=hunter\n    Match keep1\n",
            "[OUTPUT]\n    Header Authorization Bearer hunter\n    Match keep1\n",
            "[OUTPUT]\n    Match ^[keep\n    Password a,hunter\n    Regex keep1]\n",
            "pattern = [^x\npassword = a,hunter\nb = keep\n",
            "name = 'tis keep\npassword = a,hunter\nb = it's keep1\n",
            "export DB_PASSWORD=hunter\nexport B=keep\n",
            "password=abc\\\nhunter\nb=keep\n",
            "password => \"hunter\"\nb => \"keep\"\n",
            "<a>keep</a>\n<password>hunter</password>\n<b>keep1</b>\n",
            "options { password(\"hunter\"); };\nb(\"keep\");\n",
            "password:hunter\nb:keep\n",
        ] {
            check(body);
        }
    }

    #[test]
    fn the_masked_text_stays_what_it_was() {
        for (body, expected) in [
            ("a: 1\npassword: x # y\nb: 2\n", "a: 1\npassword: \"***\"\nb: 2\n"),
            ("password:\r\n  - x\r\n  - y\r\nb: 2\r\n", "password:\r\n \"***\"\r\nb: 2\r\n"),
            ("- token:\n  - x\n- b", "- token:\n   \"***\"\n- b"),
            ("password: |\n  x\n\n  y\nb: 2", "password: \"***\"\n\nb: 2"),
            ("{\"token\": {\"a\": 1}, \"b\": 2}", "{\"token\": \"***\", \"b\": 2}"),
            (
                "{\n \"token\": 1,\n \"secret\": 2\n}",
                "{\n \"token\": \"***\",\n \"secret\": \"***\"\n}",
            ),
            ("password:\nb: 2\n", "password:\nb: 2\n"),
            ("{password: , b: 1}", "{password: , b: 1}"),
            ("[secrets]\na = 1\nb = 2\n[c]\n", "[secrets]\n \"***\"\n[c]\n"),
            ("# password: kept\n", "# password: kept\n"),
            ("\0p\0a", "\"***\""),
        ] {
            assert_eq!(redacted(body), expected, "{body}");
        }
    }

    #[test]
    fn without_a_match_nothing_is_copied() {
        let body = "receivers:\n  otlp: {protocols: {grpc: }}\nexporters: [a, b]\n";
        assert!(matches!(redact(body.as_bytes(), &patterns()), Cow::Borrowed(_)));
        assert!(matches!(redact(b"password: x", &[]), Cow::Borrowed(_)));
    }

    #[test]
    fn patterns_are_globs_without_case() {
        for (pattern, key, expected) in [
            ("*Pass?word*", "MY_PASS_WORD_2", true),
            ("authorization", "Authorization", true),
            ("authorization", "x-authorization", false),
            ("*über*", "ÜBERKEY", true),
            ("*", "", true),
            ("a*b*c", "abbbcabc", true),
            ("a*b*c", "abbb", false),
        ] {
            assert_eq!(glob(&lower(pattern), &lower(key)), expected, "{pattern} {key}");
        }
    }

    /// Not a measurement: at quadratic cost each of these would take many seconds, not a blink.
    #[test]
    fn cost_is_linear_whatever_repeats() {
        for piece in [
            "[",
            "{",
            "]",
            "[]",
            "{a: ",
            "\"",
            "'",
            "'''",
            "\"\"\"",
            ":",
            "=",
            "a:",
            "a: ",
            "a=",
            "- ",
            "? ",
            ": ",
            "\\",
            "#",
            " #",
            ",",
            " ",
            "\t",
            "\n",
            "\r",
            "&a ",
            "!",
            "a: '\n",
            "k = \"\n",
            "k = \"\"\"\n",
            "k = [\n",
            "token",
            "token ",
            "token:",
            "token: ",
            "token: [",
            "token=\"",
            "token: '\n",
            "{token: ",
            "{token: [",
            "[token: {a,",
            "token:\n ",
            "a: |\n token: x\n",
            "[token]\n",
            "<token>",
            "*",
            "|\n",
            "{\"a\": \"\n\",",
            "{\"token\":1,",
        ] {
            let body = piece.repeat((1 << 17) / piece.len());
            let _masked = redact(body.as_bytes(), &patterns());
            let _masked = redact(format!("[{body}").as_bytes(), &patterns());
        }
    }

    /// A tree with marks in its texts.
    fn tree() -> impl Strategy<Value = Value> {
        let text = "[ -~äß\n\t]{0,10}";
        let leaf = prop_oneof![
            text.prop_map(Value::String),
            Just(Value::Null),
            any::<i32>().prop_map(|n| Value::Number(n.into())),
            Just(Value::String("MARK".into())),
            text.prop_map(|t| Value::String(format!("MARK{t}"))),
            text.prop_map(|t| Value::String(format!("{t}MARK"))),
        ];
        let secret =
            vec!["password", "My Token", "x_SECRET.y", "Authorization", "secret: a", "\"token\""];
        let key = prop_oneof![
            6 => "[a-d]{1,3}",
            1 => "[ -~ä]{1,6}",
            2 => prop::sample::select(secret).prop_map(str::to_owned),
        ]
        .boxed();
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Sequence),
                prop::collection::vec((key.clone(), inner), 0..5).prop_map(|map| {
                    Value::Mapping(map.into_iter().map(|(k, v)| (Value::String(k), v)).collect())
                }),
            ]
        })
    }

    fn is_secret(key: &str) -> bool {
        patterns().iter().any(|pattern| glob(&lower(pattern), &lower(key)))
    }

    /// Numbers the marks, so that each is unique: secret ones become `hunterN`, others `keepN`.
    fn marked(value: Value, secret: bool, count: &mut u32) -> Value {
        match value {
            Value::String(text) if text.contains("MARK") => {
                *count += 1;
                let mark = if secret { format!("hunter{count}") } else { format!("keep{count}x") };
                Value::String(text.replace("MARK", &mark))
            }
            Value::Sequence(list) => {
                Value::Sequence(list.into_iter().map(|v| marked(v, secret, count)).collect())
            }
            Value::Mapping(map) => {
                let mut entry = |(key, value): (Value, Value)| {
                    let below = secret || key.as_str().is_some_and(is_secret);
                    (key, marked(value, below, count))
                };
                Value::Mapping(map.into_iter().map(&mut entry).collect::<Mapping>())
            }
            other => other,
        }
    }

    fn json(value: &Value, indent: Option<usize>, out: &mut String) {
        let line = |out: &mut String, depth: usize| {
            if indent.is_some() {
                out.push('\n');
                out.push_str(&"  ".repeat(depth));
            }
        };
        let depth = indent.unwrap_or_default();
        let deeper = indent.map(|depth| depth + 1);
        match value {
            Value::String(text) => json_text(text, out),
            Value::Sequence(list) => {
                out.push('[');
                for (i, item) in list.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { "," });
                    line(out, depth + 1);
                    json(item, deeper, out);
                }
                line(out, depth);
                out.push(']');
            }
            Value::Mapping(map) => {
                out.push('{');
                for (i, (key, item)) in map.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { "," });
                    line(out, depth + 1);
                    json_text(key.as_str().unwrap(), out);
                    out.push_str(if indent.is_some() { ": " } else { ":" });
                    json(item, deeper, out);
                }
                line(out, depth);
                out.push('}');
            }
            Value::Number(number) => out.push_str(&number.to_string()),
            Value::Null => out.push_str("null"),
            other => panic!("{other:?}"),
        }
    }

    /// A JSON string, with an escape now and then where none is needed.
    fn json_text(text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' | '\\' => out.extend(['\\', c]),
                '\n' => out.push_str("\\n"),
                '\t' => out.push_str("\\t"),
                'w' => out.push_str("\\u0077"),
                c => out.push(c),
            }
        }
        out.push('"');
    }

    /// Whether every text in a tree is one that nobody can take for a key, so that what is not secret must
    /// survive.
    fn is_plain(value: &Value) -> bool {
        let text = |text: &str| text.chars().all(|c| c.is_alphanumeric() || c == ' ');
        match value {
            Value::String(string) => text(string),
            Value::Sequence(list) => list.iter().all(is_plain),
            Value::Mapping(map) => {
                map.iter().all(|(k, v)| k.as_str().is_some_and(text) && is_plain(v))
            }
            _ => true,
        }
    }

    fn numbers(body: &str) -> Vec<String> {
        let number = |rest: &str| rest.chars().take_while(char::is_ascii_digit).collect::<String>();
        body.split("keep").skip(1).map(number).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn no_secret_of_a_tree_survives_and_the_rest_does(tree in tree()) {
            let tree = marked(tree, false, &mut 0);
            let (mut compact, mut pretty) = (String::new(), String::new());
            json(&tree, None, &mut compact);
            json(&tree, Some(0), &mut pretty);
            for body in [serde_yaml::to_string(&tree).unwrap(), compact, pretty] {
                let out = redacted(&body);
                prop_assert!(!out.contains("hunter"), "leaked:\n{}\n----\n{}", body, out);
                if is_plain(&tree) {
                    prop_assert_eq!(numbers(&out), numbers(&body), "lost:\n{}\n----\n{}", body, out);
                }
            }
        }

        #[test]
        fn masked_json_can_still_be_read(tree in tree()) {
            let mut body = String::new();
            json(&tree, None, &mut body);
            let out = redacted(&body);
            prop_assert!(serde_yaml::from_str::<serde::de::IgnoredAny>(&out).is_ok(), "{}\n----\n{}", body, out);
        }

        #[test]
        fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..256)) {
            let _masked = redact(&body, &patterns());
        }

        /// Text made of what the scanner looks at.
        #[test]
        fn random_structure_never_panics(body in "([\\[\\]{}:=,#\"'|>&!?*\\\\ \n\r\t-]|token|a){0,48}") {
            let _masked = redact(body.as_bytes(), &patterns());
        }

        /// Whatever stands in the value of another key, a key on its own line is found.
        #[test]
        fn a_value_before_a_key_does_not_hide_it(
            before in "[a-c]([\\[\\]{}:=,\"'|>&!?*\\\\ \t-]|a){0,12}", after in "[\\[\\]{}:=,\"'|>&!?*\\\\ \t-]{0,6}",
        ) {
            for separator in [": ", "=", " = ", " "] {
                let body = format!("k{separator}{before}\ntoken{separator}{after}hunter{after}hunter\nz: {before}\n");
                let out = redacted(&body);
                prop_assert!(!out.contains("hunter"), "{}\n----\n{}", body, out);
            }
        }
    }
}
