//! Pieces of the text: where lines, quotes, brackets and what may be passed over end.

use super::{MAX_KEY, Scanner};

impl<'a> Scanner<'a, '_> {
    pub(super) fn at(&self, at: usize) -> Option<u8> {
        self.body.get(at).copied()
    }

    pub(super) fn range(&self, from: usize, end: usize) -> &'a [u8] {
        self.body.get(from..end.min(self.body.len())).unwrap_or_default()
    }

    /// The first place from `at` on, `end` at most, where the byte is not such a one.
    pub(super) fn skip(&self, at: usize, end: usize, mut such: impl FnMut(u8) -> bool) -> usize {
        let stop = self.range(at, end).iter().position(|&byte| !such(byte));
        stop.map_or(end.min(self.body.len()).max(at), |stop| at.saturating_add(stop))
    }

    /// Before white space, or at the end: a `-`, `?` or `:` there stands alone.
    pub(super) fn ends_word(&self, at: usize) -> bool {
        self.at(at).is_none_or(is_space)
    }

    pub(super) fn before_is_space(&self, at: usize) -> bool {
        at.checked_sub(1).and_then(|before| self.at(before)).is_none_or(is_space)
    }

    /// `end` without the white space before it.
    pub(super) fn trimmed(&self, from: usize, end: usize) -> usize {
        from.saturating_add(self.range(from, end).trim_ascii_end().len())
    }

    /// The end of the line that `at` is in: before LF, CRLF or CR.
    pub(super) fn line_end(&self, at: usize) -> usize {
        self.skip(at, self.body.len(), |byte| !matches!(byte, b'\n' | b'\r'))
    }

    pub(super) fn next_line(&self, at: usize) -> usize {
        let end = self.line_end(at);
        let width = if self.range(end, end.saturating_add(2)) == b"\r\n" { 2 } else { 1 };
        end.saturating_add(width).min(self.body.len())
    }

    /// Whether a quote or a bracket stands here.
    pub(super) fn opens(&self, at: usize) -> bool {
        matches!(self.at(at), Some(b'"' | b'\'' | b'{' | b'['))
    }

    /// Behind what the quote or bracket here opens.
    pub(super) fn closing(&self, open: usize) -> Option<usize> {
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
    pub(super) fn triple(&self, open: usize) -> bool {
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
    pub(super) fn quoted_end(&self, open: usize) -> Option<usize> {
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
    pub(super) fn after_dashes(&self, mut at: usize, end: usize) -> (Option<usize>, usize) {
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
    pub(super) fn after_properties(&self, mut at: usize, end: usize) -> usize {
        while at < end && matches!(self.at(at), Some(b'&' | b'!')) {
            at = self.skip(at, end, |byte| !is_space(byte) && !b",[]{}".contains(&byte));
            at = self.skip(at, end, is_space);
        }
        at.min(end)
    }

    /// Behind white space, line breaks and comments.
    pub(super) fn after_comments(&self, at: usize) -> usize {
        let mut at = self.skip(at, self.body.len(), is_space);
        while self.at(at) == Some(b'#') && self.before_is_space(at) {
            at = self.skip(self.line_end(at), self.body.len(), is_space);
        }
        at
    }
}

pub(super) const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

pub(super) const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}
