//! What changed between two small texts.

use std::collections::BTreeMap;

/// More lines than this are compared from the top only.
const MAX_LINES: usize = 400;

/// Every line, with `-` where it is gone, `+` where it is new, and a space where it stayed.
pub(crate) fn lines(before: &str, after: &str) -> String {
    let before: Vec<&str> = before.lines().take(MAX_LINES).collect();
    let after: Vec<&str> = after.lines().take(MAX_LINES).collect();
    let mut memory = BTreeMap::new();
    let mut out = Vec::new();
    let (mut old, mut new) = (before.as_slice(), after.as_slice());
    loop {
        match (old.split_first(), new.split_first()) {
            (Some((gone, old_rest)), Some((come, new_rest))) => {
                if gone == come {
                    out.push(format!("  {gone}"));
                    (old, new) = (old_rest, new_rest);
                } else if common(&mut memory, old_rest, new) >= common(&mut memory, old, new_rest) {
                    out.push(format!("- {gone}"));
                    old = old_rest;
                } else {
                    out.push(format!("+ {come}"));
                    new = new_rest;
                }
            }
            (Some((gone, rest)), None) => {
                out.push(format!("- {gone}"));
                old = rest;
            }
            (None, Some((come, rest))) => {
                out.push(format!("+ {come}"));
                new = rest;
            }
            (None, None) => return out.join("\n"),
        }
    }
}

/// How many lines both can keep, remembered by how much is left of each.
fn common(memory: &mut BTreeMap<(usize, usize), usize>, old: &[&str], new: &[&str]) -> usize {
    let (Some((gone, old_rest)), Some((come, new_rest))) = (old.split_first(), new.split_first())
    else {
        return 0;
    };
    let key = (old.len(), new.len());
    if let Some(known) = memory.get(&key) {
        return *known;
    }
    let count = if gone == come {
        common(memory, old_rest, new_rest).saturating_add(1)
    } else {
        common(memory, old_rest, new).max(common(memory, old, new_rest))
    };
    memory.insert(key, count);
    count
}

#[cfg(test)]
mod tests {
    use super::lines;

    #[test]
    fn gone_new_and_kept() {
        assert_eq!(lines("a\nb\nc", "a\nx\nc\nd"), "  a\n- b\n+ x\n  c\n+ d");
        assert_eq!(lines("", "a"), "+ a");
        assert_eq!(lines("a", ""), "- a");
        assert_eq!(lines("a\nb", "a\nb"), "  a\n  b");
    }
}
