//! One YAML document laid over another.
//!
//! Maps are merged, key by key and all the way down; everything else (lists, scalars, a map over a list) is
//! replaced by the upper document's. One exception: a null over a map keeps the map, because OpenTelemetry
//! users write `otlp:` with nothing behind it and mean "as it is".
//!
//! What comes out is a new document. Comments, anchors and the style of the two are gone: aliases and `<<` are
//! expanded, and scalars are written as YAML 1.2 understands them (`1.10` is the number 1.1, a plain `yes` is
//! text and comes out quoted). Tags of one's own (`!secret`) stay. It costs up to some 20 times the input in memory
//! (tests/merge_memory.rs), so `remote_config.allow.max_merge` stands before it.

mod parts;

use core::cell::Cell;
use core::fmt;

use serde::de::{
    DeserializeSeed, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess as _, Visitor,
};
use serde_yaml::value::{Tag, TaggedValue};
use serde_yaml::{Mapping, Value};

/// Maps and lists inside one another.
pub const MAX_DEPTH: usize = 64;

/// A document with its aliases expanded may weigh so many times its own bytes (every value weighs one and its
/// text), …
pub const MAX_EXPANSION: usize = 2;

/// … and so much more for a small one.
pub const EXPANSION_SLACK: usize = 4096;

/// Which of the two documents is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The lower.
    Base,
    /// The upper.
    Over,
    /// Neither: both were read, but together they cannot be written.
    Result,
}

/// Why two documents cannot be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeError {
    /// Whose fault it is.
    pub side: Side,
    /// Line, counted from 1, where it is known.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for MergeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.side {
            Side::Base => "the lower document",
            Side::Over => "the upper document",
            Side::Result => "the merged document",
        })?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl core::error::Error for MergeError {}

/// Lays `over` on `base`. A document without content changes nothing.
///
/// # Errors
/// One of the two is not a single YAML document, is deeper than [`MAX_DEPTH`], or grows by aliases beyond
/// [`MAX_EXPANSION`].
pub fn overlay(base: &[u8], over: &[u8]) -> Result<Vec<u8>, MergeError> {
    let base = read(base, Side::Base)?;
    let over = read(over, Side::Over)?;
    let merged = match over {
        Value::Null => base,
        over => lay(base, over),
    };
    serde_yaml::to_string(&merged).map(String::into_bytes).map_err(|e| error(Side::Result, &e))
}

/// The rule itself. As deep as the shallower of the two.
fn lay(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Mapping(mut base), Value::Mapping(over)) => {
            for (key, upper) in over {
                let merged = match base.get_mut(&key) {
                    Some(lower) => lay(core::mem::take(lower), upper),
                    None => upper,
                };
                base.insert(key, merged);
            }
            Value::Mapping(base)
        }
        (base @ Value::Mapping(_), Value::Null) => base,
        (_, over) => over,
    }
}

fn read(document: &[u8], side: Side) -> Result<Value, MergeError> {
    let weight = document.len().saturating_mul(MAX_EXPANSION).saturating_add(EXPANSION_SLACK);
    let left = Cell::new(weight);
    let node = Node { left: &left, depth: 0 };
    let in_parts =
        core::str::from_utf8(document).ok().and_then(|text| parts::read(text, parts::PIECE, node));
    let mut value = match in_parts {
        Some(value) => value,
        None => {
            left.set(weight);
            node.deserialize(serde_yaml::Deserializer::from_slice(document))
                .map_err(|e| error(side, &e))?
        }
    };
    value.apply_merge().map_err(|e| error(side, &e))?;
    Ok(value)
}

fn error(side: Side, error: &serde_yaml::Error) -> MergeError {
    MergeError { side, line: error.location().map(|at| at.line()), what: error.to_string() }
}

/// Builds a [`Value`] while it counts: `Value`'s own way lets aliases grow it a hundredfold.
#[derive(Clone, Copy)]
struct Node<'a> {
    /// Weight that may still come.
    left: &'a Cell<usize>,
    depth: usize,
}

impl Node<'_> {
    fn weigh<E: serde::de::Error>(self, text: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(text).and_then(|left| left.checked_sub(1));
        let left = left.ok_or_else(|| E::custom("its aliases expand to more than is allowed"))?;
        self.left.set(left);
        Ok(())
    }

    fn deeper<E: serde::de::Error>(self) -> Result<Self, E> {
        let depth = self.depth.saturating_add(1);
        if depth > MAX_DEPTH {
            return Err(E::custom(format_args!("deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self { depth, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        self.weigh(0)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.weigh(0)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.weigh(0)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        self.weigh(0)?;
        Ok(Value::Number(value.into()))
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.weigh(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.weigh(0)?;
        Ok(Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        self.weigh(0)?;
        let inside = self.deeper()?;
        let mut list = Vec::new();
        while let Some(value) = seq.next_element_seed(inside)? {
            list.push(value);
        }
        list.shrink_to_fit();
        Ok(Value::Sequence(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        self.weigh(0)?;
        let inside = self.deeper()?;
        let mut mapping = Mapping::new();
        while let Some(key) = map.next_key_seed(inside)? {
            if mapping.contains_key(&key) {
                return Err(A::Error::custom("a key comes twice in one map"));
            }
            mapping.insert(key, map.next_value_seed(inside)?);
        }
        mapping.shrink_to_fit();
        Ok(Value::Mapping(mapping))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (tag, value) = tagged.variant::<String>()?;
        // `Tag::new` panics on an empty one.
        if tag.is_empty() || tag == "!" {
            return Err(A::Error::custom("an empty tag"));
        }
        self.weigh(tag.len())?;
        let value = value.newtype_variant_seed(self.deeper()?)?;
        Ok(Value::Tagged(Box::new(TaggedValue { tag: Tag::new(tag), value })))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn merged(base: &str, over: &str) -> String {
        String::from_utf8(overlay(base.as_bytes(), over.as_bytes()).unwrap()).unwrap()
    }

    fn value(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[track_caller]
    fn check(base: &str, over: &str, expected: &str) {
        assert_eq!(value(&merged(base, over)), value(expected));
    }

    #[test]
    fn maps_are_merged_and_all_else_is_replaced() {
        check(
            "a: 1\nm: {x: 1, y: [1, 2]}\n",
            "b: 2\nm: {y: [3], z: 4}\n",
            "{a: 1, b: 2, m: {x: 1, y: [3], z: 4}}",
        );
        check("a: {x: 1}", "a: [1]", "a: [1]");
        check("a: [1]", "a: {x: 1}", "a: {x: 1}");
        check("a: 1", "a: ''", "a: ''");
        check("1: a\ntrue: b", "1: c", "{1: c, true: b}");
    }

    #[test]
    fn a_null_keeps_a_map_and_replaces_all_else() {
        check(
            "receivers: {otlp: {protocols: {}}}",
            "receivers: {otlp: }",
            "receivers: {otlp: {protocols: {}}}",
        );
        check("a: 1\nb: [1]", "a: ~\nb: null", "{a: null, b: null}");
    }

    #[test]
    fn another_root_than_a_map_is_replaced_and_an_empty_document_changes_nothing() {
        check("a: 1", "[1, 2]", "[1, 2]");
        check("[1]", "a: 1", "a: 1");
        check("a: 1", "", "a: 1");
        check("[1]", "# nothing but this\n", "[1]");
        check("", "a: 1", "a: 1");
        check("---\na: 1\n", "---\nb: 2\n...\n", "{a: 1, b: 2}");
    }

    #[test]
    fn scalars_keep_their_type_and_own_tags_stay() {
        let out = merged(
            "a: '1'\nb: 'true'\nc: !secret x\nt: 0x10\nn: 'null'\nm: \"two\\nlines\"\n",
            "d: !m {k: v}\n",
        );
        assert_eq!(
            value(&out),
            value(
                "{a: '1', b: 'true', c: !secret x, t: 16, n: 'null', m: \"two\\nlines\", d: !m {k: v}}"
            )
        );
        assert!(out.contains("c: !secret x"), "{out}");
    }

    #[test]
    fn aliases_and_merge_keys_are_expanded() {
        check("x: &x {a: 1}\ny: *x\n", "y: {b: 2}", "{x: {a: 1}, y: {a: 1, b: 2}}");
        check(
            "x: &x {a: 1, b: 1}\ny: {<<: *x, b: 2}\n",
            "y: {c: 3}",
            "{x: {a: 1, b: 1}, y: {a: 1, b: 2, c: 3}}",
        );
    }

    #[test]
    fn an_error_says_which_side_and_the_line() {
        let error = overlay(b"a: 1\n", b"a: 1\nb: [1\n").unwrap_err();
        assert_eq!(error.side, Side::Over);
        assert!(error.line.is_some_and(|line| line >= 2), "{error}");
        let error = overlay(b"a: 1\na: 2\n", b"").unwrap_err();
        assert_eq!(error.side, Side::Base);
        assert!(error.to_string().starts_with("the lower document"), "{error}");
        assert!(error.to_string().contains("a key comes twice"), "{error}");
        assert_eq!(overlay(b"a: 1", b"a: 1\n---\nb: 2\n").unwrap_err().side, Side::Over);
        assert_eq!(overlay(b"a: 1", &[0xff, 0xfe, 0xfd]).unwrap_err().side, Side::Over);
    }

    #[test]
    fn a_bomb_of_aliases_is_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for i in 1..8 {
            let below = i - 1;
            let list = vec![format!("*a{below}"); 9].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{list}]\n"));
        }
        let error = overlay(b"", bomb.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("expand"), "{error}");
        let long = "x".repeat(20_000);
        let wide = format!("a: &a {long}\nb: [*a, *a, *a, *a]\n");
        assert!(overlay(wide.as_bytes(), b"").unwrap_err().to_string().contains("expand"));
    }

    #[test]
    fn a_deep_document_is_refused() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(overlay(b"", nested(MAX_DEPTH).as_bytes()).is_ok());
        for depth in [MAX_DEPTH.saturating_add(1), 100_000] {
            assert_eq!(overlay(b"", nested(depth).as_bytes()).unwrap_err().side, Side::Over);
        }
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(|n| Value::Number(n.into())),
            "[ -~\\n]{0,12}".prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::Sequence),
                prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| {
                    Value::Mapping(map.into_iter().map(|(k, v)| (Value::String(k), v)).collect())
                }),
            ]
        })
    }

    fn bytes(value: &Value) -> Vec<u8> {
        serde_yaml::to_string(value).unwrap().into_bytes()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_document_over_itself_is_itself(tree in tree()) {
            let out = overlay(&bytes(&tree), &bytes(&tree)).unwrap();
            prop_assert_eq!(serde_yaml::from_slice::<Value>(&out).unwrap(), tree);
        }

        #[test]
        fn laying_twice_is_laying_once(base in tree(), over in tree()) {
            let once = overlay(&bytes(&base), &bytes(&over)).unwrap();
            prop_assert_eq!(overlay(&once, &bytes(&over)).unwrap(), once);
        }

        #[test]
        fn random_bytes_never_panic(base in prop::collection::vec(any::<u8>(), 0..64), over in "[-:&*!{}\\[\\]a<|>'\"\n ]{0,64}") {
            let _merged = overlay(&base, over.as_bytes());
        }
    }
}
