//! Line by line: what a line is, what its value is, and what is masked beneath it.

use super::text::is_blank;
use super::{Hide, MASKED, MAX_KEY, Question, Scanner, Trust};

impl<'a> Scanner<'a, '_> {
    /// One line, and those after it that its value takes; where the next begins.
    pub(super) fn line(&mut self, start: usize) -> Option<usize> {
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
    pub(super) fn search_inside(&self, open: usize, close: usize) -> Option<()> {
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
}
