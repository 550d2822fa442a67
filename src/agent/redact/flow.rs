//! Flow style: JSON, `{a: 1, b: 2}`, `[…]`.

use super::text::is_space;
use super::{MASKED, MAX_BRACKETS, Scanner};

impl Scanner<'_, '_> {
    /// From an opening bracket to behind the one that closes it. `None`: it does not close.
    pub(super) fn flow(&mut self, open: usize) -> Option<usize> {
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
}
