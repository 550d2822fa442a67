//! A large document, read part by part.
//!
//! The parser keeps all events of what it is given until the last value is built: some twenty times the text. Block maps are
//! taken apart at the lines where their keys stand, and each part is parsed by itself. No part is believed to be whole: one
//! that is not (a quote or a flow that goes on, an alias of another part's anchor) is an error of the parser, and
//! whoever called reads it in one piece.

use serde::de::DeserializeSeed as _;
use serde_yaml::{Deserializer, Mapping, Value};

use super::Node;

/// Up to so many bytes a part is parsed in one piece.
pub(super) const PIECE: usize = 8 * 1024;

/// A block map whose keys stand in one column; [`None`]: it must be read in one piece, if it can be read at all.
pub(super) fn read(text: &str, piece: usize, node: Node<'_>) -> Option<Value> {
    // The parser knows more ends of lines than one.
    let breaks = ['\u{85}', '\u{2028}', '\u{2029}'];
    if text.replace("\r\n", "").contains('\r') || text.contains(breaks) {
        return None;
    }
    let mut map = Mapping::new();
    for part in split(text)? {
        let Value::Mapping(entries) = entries(part, piece, node)? else { return None };
        for (key, value) in entries {
            if map.insert(key, value).is_some() {
                return None;
            }
        }
    }
    map.shrink_to_fit();
    Some(Value::Mapping(map))
}

fn entries(part: &str, piece: usize, node: Node<'_>) -> Option<Value> {
    let weight = node.left.get();
    if let Some(value) = nested(part, piece, node) {
        return Some(value);
    }
    node.left.set(weight);
    node.deserialize(Deserializer::from_str(part)).ok()
}

/// A large map behind a line that has its key and nothing else.
fn nested(part: &str, piece: usize, node: Node<'_>) -> Option<Value> {
    let (head, rest) = part.split_once('\n').filter(|_| part.len() > piece)?;
    let Value::Mapping(mut map) = node.deserialize(Deserializer::from_str(head)).ok()? else {
        return None;
    };
    let one = map.len() == 1;
    let (_, value) = map.iter_mut().next().filter(|(_, value)| one && value.is_null())?;
    let bare = head.split(" #").next().unwrap_or_default();
    if !bare.trim_end().ends_with(':') {
        return None; // `key: ~`, an anchor, a tag
    }
    *value = read(rest, piece, node.deeper::<serde_yaml::Error>().ok()?)?;
    Some(Value::Mapping(map))
}

/// The lines of each key, with what belongs to it.
fn split(text: &str) -> Option<Vec<&str>> {
    let mut column = None;
    let mut starts = Vec::new();
    let mut at: usize = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_start_matches(' ');
        let indent = line.len().saturating_sub(content.len());
        match content.bytes().next() {
            None | Some(b'\n' | b'\r' | b'#') => {}
            Some(_) if indent > *column.get_or_insert(indent) => {}
            Some(_) if Some(indent) != column => return None,
            // A list may stand in its key's column.
            Some(b'-') if content.starts_with("- ") && !starts.is_empty() => {}
            Some(byte) if byte.is_ascii_alphanumeric() || byte == b'_' => starts.push(at),
            // A marker between documents, a directive, a flow, a key of another kind.
            Some(_) => return None,
        }
        at = at.saturating_add(line.len());
    }
    starts.first()?;
    let ends = starts.iter().copied().skip(1).chain([text.len()]);
    starts.iter().zip(ends).map(|(start, end)| text.get(*start..end)).collect()
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> Option<Value> {
        let left = Cell::new(1 << 20);
        Node { left: &left, depth: 0 }.deserialize(Deserializer::from_str(text)).ok()
    }

    fn in_parts(text: &str) -> Option<Value> {
        let left = Cell::new(1 << 20);
        read(text, 0, Node { left: &left, depth: 0 })
    }

    #[test]
    fn what_stands_apart_is_read_apart() {
        for text in [
            "a: 1\nb: 2\n",
            "# x\n\na:\n  b: # y\n    c: |\n      d: 1\n\n      e\n  f: [1,\n    2]\n",
            "a:\n- x: 1\n- y\nb: 'it''s'\n",
            "  a: &x 1\n  b: {c: &x 2, d: *x}",
            "a: >-\n # no comment\n b\nc:\n",
        ] {
            assert!(in_parts(text).is_some(), "{text:?}");
            assert_eq!(in_parts(text), whole(text), "{text:?}");
        }
    }

    #[test]
    fn what_hangs_together_is_not_taken_apart() {
        for text in [
            "a: &x 1\nb: *x\n",
            "a: {\nb: 1}\n",
            "a: \"x\nb: y\"\n",
            "a: 1\na: 2\n",
            "a: 1\n---\nb: 2\n",
            "a: 1\n...\nb: 2\n",
            "%YAML 1.1\n---\na: 1\n",
            "  a: 1\nb: 2\n",
            "- a\n- b\n",
            "? a\n: b\n",
            "a\nb: 1\n",
            "# head\rb: 2\na: 1\n",
            "# head\u{2028}b: 2\na: 1\n",
            "a:\rb:\n  c: 1\n",
            "",
        ] {
            assert_eq!(in_parts(text), None, "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4096, ..ProptestConfig::default() })]

        #[test]
        fn in_parts_it_is_what_it_is_as_a_whole(
            lines in prop::collection::vec("( {0,4}|- )([a-c]{1,2}: ?){0,2}(|~|1|&x 1|[*]x|!t b|\\[a,|\\]|[{]a: |[}]|'|\"|[|]|>-|# e|-|[?] a|---|<<: [*]x|\r|\t|#\ra: 1|b:\rc:|#\u{2028}a: 2)", 0..8)
        ) {
            let text = lines.join("\n");
            if let Some(value) = in_parts(&text) {
                prop_assert_eq!(Some(value), whole(&text), "{:?}", text);
            }
        }
    }
}
