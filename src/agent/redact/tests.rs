//! Each format by hand, then trees and texts of any shape.

#![expect(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "tests")]

use proptest::prelude::*;
use serde_yaml::{Mapping, Value};

use super::keys::glob;
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
        Value::Mapping(map) => map.iter().all(|(k, v)| k.as_str().is_some_and(text) && is_plain(v)),
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
