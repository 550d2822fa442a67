//! `chiton keygen`, `sign` and `verify` from outside, against openssl where it does the same.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "tests"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory with a file to sign in it.
struct Bench(tempfile::TempDir);

const FILE: &str = "otelcol.tar.gz";
const SIGNATURE: &str = "otelcol.tar.gz.sig";

impl Bench {
    fn new() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        fs::write(bench.path(FILE), vec![0x5a; 200_000]).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiton"));
        command.args(arguments.split_whitespace()).current_dir(self.0.path()).output().unwrap()
    }

    /// Runs what must succeed; returns stdout.
    fn done(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{arguments}: {err}");
        out
    }

    /// Runs what must fail with this exit code, one line on stderr and nothing on stdout; returns that line.
    fn fails(&self, code: i32, arguments: &str) -> String {
        let output = self.run(arguments);
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {out}{err}");
        assert_eq!((out.as_str(), err.lines().count()), ("", 1), "{arguments}: {err}");
        assert!(err.starts_with("chiton: "), "{err}");
        err
    }

    /// Runs openssl, which must be there.
    fn openssl(&self, arguments: &str) {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split_whitespace()).current_dir(self.0.path()).output();
        let output = output.expect("this test needs the program `openssl`; install it");
        let (_, err) = texts(&output);
        assert!(output.status.success(), "openssl {arguments}: {err}");
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn spoil(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut content = self.read(name);
        change(&mut content);
        fs::write(self.path(name), content).unwrap();
    }
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What `keygen` says the key's id is.
fn id(said: &str) -> &str {
    let id = said.lines().next().unwrap().strip_prefix("key id").unwrap().trim();
    assert!(id.len() == 16 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
    id
}

#[test]
fn a_key_signs_and_its_other_half_verifies() {
    let bench = Bench::new();
    let said = bench.done("keygen --out release.key");
    let id = id(&said);
    assert_eq!(mode(&bench.path("release.key")), 0o600);
    let signed = bench.done(
        "sign --key release.key --name otelcol --version 0.139.0 --target linux/arm64,product=gw7 --set edge \
         --expires 90d otelcol.tar.gz",
    );
    assert_eq!(signed.lines().count(), 1, "{signed}");
    for word in [SIGNATURE, "otelcol 0.139.0", "200000 bytes", id] {
        assert!(signed.contains(word), "{word}: {signed}");
    }
    let good = bench.done("verify --pub release.key.pub otelcol.tar.gz");
    for (key, value) in [
        ("signed by", id),
        ("form", "manifest"),
        ("kind", "package"),
        ("name", "otelcol"),
        ("version", "0.139.0"),
        ("target", "linux/arm64,product=gw7"),
        ("set", "edge"),
        ("size", "200000"),
    ] {
        let line = good.lines().find(|line| line.starts_with(key)).unwrap();
        assert_eq!(line[key.len()..].trim(), value, "{good}");
    }
    assert!(good.starts_with("otelcol.tar.gz: good\n"), "{good}");
    // Nothing half-written lies about.
    assert_eq!(bench.names(), [FILE, SIGNATURE, "release.key", "release.key.pub"]);
}

#[test]
fn no_key_is_ever_overwritten() {
    let bench = Bench::new();
    bench.done("keygen --out a");
    let (private, public) = (bench.read("a"), bench.read("a.pub"));
    let error = bench.fails(1, "keygen --out a");
    assert!(error.contains("a: is there already"), "{error}");
    assert_eq!((bench.read("a"), bench.read("a.pub")), (private, public));
    // Neither for half of it, nor through a dangling link.
    fs::write(bench.path("b.pub"), "mine").unwrap();
    let error = bench.fails(1, "keygen --out b");
    assert!(error.contains("b.pub: is there already"), "{error}");
    std::os::unix::fs::symlink("nowhere", bench.path("c")).unwrap();
    bench.fails(1, "keygen --out c");
    assert_eq!(bench.names(), ["a", "a.pub", "b.pub", "c", FILE]);
    let error = bench.fails(1, "keygen --out absent/key");
    assert!(error.contains("absent/key: No such file"), "{error}");
}

#[test]
fn openssl_reads_our_keys_and_verifies_our_digest_form() {
    let bench = Bench::new();
    bench.done("keygen --out ours");
    bench.openssl("pkey -in ours -pubout -out theirs.pub");
    assert_eq!(bench.read("theirs.pub"), bench.read("ours.pub"));
    bench.done("sign --key ours otelcol.tar.gz");
    assert_eq!(bench.read(SIGNATURE).len(), 64);
    bench.openssl("dgst -sha256 -binary -out hash otelcol.tar.gz");
    bench.openssl(
        "pkeyutl -verify -rawin -pubin -inkey ours.pub -in hash -sigfile otelcol.tar.gz.sig",
    );
    let good = bench.done("verify --pub ours.pub otelcol.tar.gz");
    assert!(good.contains("form       digest"), "{good}");
}

#[test]
fn keys_and_signatures_of_openssl_are_as_good_as_ours() {
    let bench = Bench::new();
    bench.openssl("genpkey -algorithm ed25519 -out theirs");
    bench.openssl("pkey -in theirs -pubout -out theirs.pub");
    bench.openssl("dgst -sha256 -binary -out hash otelcol.tar.gz");
    bench.openssl("pkeyutl -sign -rawin -inkey theirs -in hash -out otelcol.tar.gz.sig");
    let signature = bench.read(SIGNATURE);
    bench.done("verify --pub theirs.pub otelcol.tar.gz");
    bench.done("sign --key theirs otelcol.tar.gz");
    assert_eq!(bench.read(SIGNATURE), signature, "Ed25519 leaves nothing to chance");
    bench.done("sign --key theirs --name n --version v otelcol.tar.gz");
    bench.done("verify --pub theirs.pub otelcol.tar.gz");
}

#[test]
fn keys_of_another_kind_are_refused_by_name() {
    let bench = Bench::new();
    bench.done("keygen --out good");
    bench.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec");
    bench.openssl("pkey -in ec -pubout -out ec.pub");
    bench.openssl("pkey -in good -aes256 -passout pass:x -out locked");
    bench.done("sign --key good otelcol.tar.gz");
    for (arguments, file, word) in [
        ("sign --key ec otelcol.tar.gz", "ec: ", "(EC)"),
        ("sign --key good.pub otelcol.tar.gz", "good.pub: ", "it is a public key"),
        ("sign --key locked otelcol.tar.gz", "locked: ", "it is encrypted"),
        ("sign --key absent otelcol.tar.gz", "absent: ", "No such file"),
        ("sign --key . otelcol.tar.gz", ".: ", "Is a directory"),
        ("sign --key /dev/zero otelcol.tar.gz", "/dev/zero: ", "no key"),
        ("verify --pub ec.pub otelcol.tar.gz", "ec.pub: ", "(EC)"),
        ("verify --pub good otelcol.tar.gz", "good: ", "it is a private key"),
        ("verify --pub absent otelcol.tar.gz", "absent: ", "No such file"),
    ] {
        let error = bench.fails(1, arguments);
        assert!(error.contains(&format!("chiton: {file}")) && error.contains(word), "{error}");
    }
}

#[test]
fn what_was_changed_is_not_good_whichever_the_form() {
    let bench = Bench::new();
    bench.done("keygen --out key");
    bench.done("keygen --out other");
    for form in ["", "--name n --version v"] {
        let sign = |key: &str| bench.done(&format!("sign --key {key} {form} {FILE}"));
        let verify = format!("verify --pub key.pub {FILE}");
        sign("key");
        let (file, signature) = (bench.read(FILE), bench.read(SIGNATURE));
        let last = signature.len().checked_sub(1).unwrap();
        for change in [
            &|bytes: &mut Vec<u8>| bytes[0] ^= 1,
            &|bytes: &mut Vec<u8>| bytes[last / 2] ^= 0x80,
            &|bytes: &mut Vec<u8>| bytes[last] ^= 1,
            &|bytes: &mut Vec<u8>| bytes.truncate(last),
            &|bytes: &mut Vec<u8>| bytes.truncate(64 - 1),
            &|bytes: &mut Vec<u8>| bytes.truncate(1),
            &|bytes: &mut Vec<u8>| bytes.clear(),
            &|bytes: &mut Vec<u8>| bytes.push(0),
            &|bytes: &mut Vec<u8>| bytes.resize(5000, 0),
        ] as [&dyn Fn(&mut Vec<u8>); 9]
        {
            bench.spoil(SIGNATURE, change);
            bench.fails(1, &verify);
            fs::write(bench.path(SIGNATURE), &signature).unwrap();
        }
        for change in [
            &|bytes: &mut Vec<u8>| bytes[0] ^= 1,
            &|bytes: &mut Vec<u8>| bytes[199_999] ^= 1,
            &|bytes: &mut Vec<u8>| bytes.truncate(199_999),
            &|bytes: &mut Vec<u8>| bytes.push(0x5a),
            &|bytes: &mut Vec<u8>| bytes.clear(),
        ] as [&dyn Fn(&mut Vec<u8>); 5]
        {
            bench.spoil(FILE, change);
            bench.fails(1, &verify);
            fs::write(bench.path(FILE), &file).unwrap();
        }
        bench.done(&verify);
        sign("other");
        bench.fails(1, &verify);
        fs::write(bench.path("file2"), "another").unwrap();
        bench.done(&format!("sign --key key {form} file2"));
        bench.fails(1, &format!("{verify} --signature file2.sig"));
    }
}

#[test]
fn what_has_expired_is_not_good_and_cannot_be_made() {
    let bench = Bench::new();
    bench.done("keygen --out key");
    let sign = "sign --key key --name n --version v otelcol.tar.gz";
    let error = bench.fails(1, &format!("{sign} --expires 2001-01-01"));
    assert!(error.contains("--expires is in the past"), "{error}");
    assert!(!bench.path(SIGNATURE).exists());
    bench.done(&format!("{sign} --expires 2101-01-01T06:00:00Z"));
    let good = bench.done("verify --pub key.pub otelcol.tar.gz");
    assert!(good.contains("expires    2101-01-01T06:00:00"), "{good}");
    // It was good for a while, long ago.
    let mut expired = manifest(&bench);
    expired.expires_at = 1_000_000_000;
    write_signed(&bench, &expired, "key");
    let error = bench.fails(1, "verify --pub key.pub otelcol.tar.gz");
    assert!(error.contains("expired") && error.contains("sign the file again"), "{error}");
    bench.done("keygen --out second");
    bench.fails(1, "sign --key second --add otelcol.tar.gz");
}

/// The manifest beside the file.
fn manifest(bench: &Bench) -> chiton::signature::Manifest {
    let signed = chiton::signature::SignedManifest::parse(&bench.read(SIGNATURE)).unwrap();
    chiton::signature::Manifest::parse(&signed.manifest).unwrap()
}

fn write_signed(bench: &Bench, manifest: &chiton::signature::Manifest, key: &str) {
    use chiton_proto::Message as _;
    let key = chiton::signature::SigningKey::from_pem(&bench.read(key)).unwrap();
    let mut signed = chiton::signature::SignedManifest::new(manifest);
    signed.sign(&key);
    fs::write(bench.path(SIGNATURE), signed.encode_to_vec()).unwrap();
}

#[test]
fn two_keys_sign_one_manifest() {
    let bench = Bench::new();
    bench.done("keygen --out a");
    bench.done("keygen --out b");
    bench.done("keygen --out stranger");
    bench.done("sign --key a --name n --version v --counter 5 otelcol.tar.gz");
    let both = "verify --pub a.pub --pub b.pub --threshold 2 otelcol.tar.gz";
    let error = bench.fails(1, both);
    assert!(error.contains("signed by 1 of 2"), "{error}");
    // The same key again, and one that nobody trusts, are not a second one.
    bench.done("sign --key a --add otelcol.tar.gz");
    bench.done("sign --key stranger --add otelcol.tar.gz");
    let error = bench.fails(1, both);
    assert!(error.contains("signed by 1 of 2") && error.contains("not trusted here"), "{error}");
    let said = bench.done("sign --key b --add otelcol.tar.gz");
    assert!(said.contains("3 signature(s)") && said.contains("counter 5"), "{said}");
    bench.done(both);
    bench.fails(1, "verify --pub a.pub --pub a.pub --threshold 2 otelcol.tar.gz");
    // Only to what the manifest is about.
    let signature = bench.read(SIGNATURE);
    bench.spoil(FILE, |bytes| bytes[7] ^= 1);
    let error = bench.fails(1, "sign --key b --add otelcol.tar.gz");
    assert!(error.contains("not signed"), "{error}");
    assert_eq!(bench.read(SIGNATURE), signature);
    // And not to a signature without a manifest.
    bench.done("sign --key a otelcol.tar.gz");
    let error = bench.fails(1, "sign --key b --add otelcol.tar.gz");
    assert!(error.contains("digest signature"), "{error}");
    bench.fails(1, "sign --key b --add a.pub");
}

#[test]
fn a_configuration_is_signed_as_a_whole() {
    let bench = Bench::new();
    bench.done("keygen --out one");
    bench.done("keygen --out two");
    fs::create_dir(bench.path("set")).unwrap();
    for (name, body) in [("set/a.yaml", "a: 1\n"), ("set/b.yaml", "b: 1\n"), ("main", "m: 1\n")] {
        fs::write(bench.path(name), body).unwrap();
    }
    let objects = "--unnamed main set/a.yaml set/b.yaml";
    let signature = "--out set/chiton.sig";
    let said = bench.done(&format!(
        "sign --key one --kind config --name gateway --expires 9d {signature} {objects}"
    ));
    assert!(said.contains("gateway (") && said.contains("main set/a.yaml set/b.yaml"), "{said}");
    let text = String::from_utf8(bench.read("set/chiton.sig")).unwrap();
    assert!(text.trim_end().bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
    let verify = "verify --pub one.pub --kind config --signature set/chiton.sig";
    let good = bench.done(&format!("{verify} {objects}"));
    for word in ["config", "gateway", "version    none"] {
        assert!(good.contains(word), "{word}: {good}");
    }
    // The order in which they are named is nothing; which they are, is.
    bench.done(&format!("{verify} set/b.yaml set/a.yaml --unnamed main"));
    for other in [
        "set/a.yaml set/b.yaml",
        "set/a.yaml set/b.yaml main",
        "--unnamed main set/a.yaml",
        "--unnamed set/a.yaml main set/b.yaml",
    ] {
        let error = bench.fails(1, &format!("{verify} {other}"));
        assert!(error.contains("changed, added, left out or renamed"), "{other}: {error}");
    }
    // Another key signs the same, and only that.
    let add = format!("sign --key two --kind config --add {signature} {objects}");
    assert!(bench.done(&add).contains("2 signature(s)"));
    bench.done(&format!("{verify} --pub two.pub --threshold 2 {objects}"));
    bench.spoil("set/b.yaml", |body| body[0] ^= 1);
    assert!(bench.fails(1, &add).contains("not signed"));
    assert!(bench.fails(1, &format!("{verify} {objects}")).contains("renamed"));
    // Beside the first file without --out; for any service without a name.
    let said = bench.done("sign --key one --kind config set/a.yaml");
    assert!(said.contains("set/chiton.sig") && said.contains("any service"), "{said}");
    bench.done("verify --pub one.pub --kind config set/a.yaml");
    for (arguments, word) in [
        ("verify --pub one.pub --signature set/chiton.sig set/a.yaml", "neither a signed manifest"),
        ("sign --key one --kind config set/a.yaml set/a.yaml", "same name"),
        ("sign --key one --kind config set/chiton.sig --out x", "by this name"),
        ("sign --key one --kind config set", "Is a directory"),
        (
            "verify --pub one.pub --kind config --signature otelcol.tar.gz set/a.yaml",
            "the signature has",
        ),
    ] {
        let error = bench.fails(1, arguments);
        assert!(error.contains(word), "{arguments}: {error}");
    }
}

#[test]
fn the_counter_rises_by_itself() {
    let bench = Bench::new();
    bench.done("keygen --out key");
    let mut last = 0;
    for _ in 0..3 {
        bench.done("sign --key key --name n --version v otelcol.tar.gz");
        let counter = manifest(&bench).counter;
        assert!(counter > last, "{counter} after {last}");
        last = counter;
    }
}

#[test]
fn where_the_signature_goes() {
    let bench = Bench::new();
    bench.done("keygen --out key");
    let output = bench.run("sign --key key --out - otelcol.tar.gz");
    let (_, said) = texts(&output);
    assert_eq!((output.stdout.len(), said.lines().count()), (64, 1), "{said}");
    bench.done("sign --key key --out elsewhere otelcol.tar.gz");
    assert_eq!(bench.read("elsewhere"), output.stdout);
    bench.done("verify --pub key.pub --signature elsewhere otelcol.tar.gz");
    assert!(!bench.path(SIGNATURE).exists());
    // Neither what is signed nor the key can be lost by a slip.
    for slip in ["key", FILE, "./key"] {
        let before = bench.read(slip);
        let error = bench.fails(1, &format!("sign --key key --out {slip} otelcol.tar.gz"));
        assert!(error.contains("--out must be another"), "{error}");
        assert_eq!(bench.read(slip), before);
    }
    let error = bench.fails(1, "sign --key key --out /dev/null otelcol.tar.gz");
    assert!(error.contains("/dev/null: not a file"), "{error}");
    // A link stays one.
    std::os::unix::fs::symlink("elsewhere", bench.path("link")).unwrap();
    bench.done("sign --key key --name n --version v --out link otelcol.tar.gz");
    assert!(fs::symlink_metadata(bench.path("link")).unwrap().is_symlink());
    bench.done("verify --pub key.pub --signature elsewhere otelcol.tar.gz");
    assert_eq!(bench.names(), ["elsewhere", "key", "key.pub", "link", FILE]);
}

#[test]
fn a_key_that_others_may_read_is_noted() {
    let bench = Bench::new();
    bench.done("keygen --out key");
    fs::set_permissions(bench.path("key"), fs::Permissions::from_mode(0o644)).unwrap();
    let output = bench.run("sign --key key otelcol.tar.gz");
    let (_, said) = texts(&output);
    assert_eq!(output.status.code(), Some(0));
    assert!(said.contains("note: key: others may read it (mode 644)"), "{said}");
}

#[test]
fn wrong_usage_is_2_and_says_what_is_wrong() {
    let bench = Bench::new();
    bench.done("keygen --out key");
    for (arguments, word) in [
        ("keygen", "--out KEY is missing"),
        ("keygen --out a b", "\"b\""),
        ("sign otelcol.tar.gz", "--key KEY is missing"),
        ("sign --key key", "FILE is missing"),
        ("sign --key key --name n otelcol.tar.gz", "--version"),
        ("sign --key key --version v otelcol.tar.gz", "--version goes with --name only"),
        ("sign --key key --expires 90d otelcol.tar.gz", "--expires goes with --name only"),
        ("sign --key key --add --name n otelcol.tar.gz", "--name does not go with --add"),
        ("sign --key key --add --counter 5 otelcol.tar.gz", "--counter does not go with --add"),
        ("sign --key key --name n --version v --expires soon otelcol.tar.gz", "such as 90d"),
        ("sign --key key --name n --version v --counter -1 otelcol.tar.gz", "-1"),
        ("sign --key key --name n --version v --kind film otelcol.tar.gz", "package and config"),
        ("sign --key key --name n --version v --target , otelcol.tar.gz", "terms with commas"),
        ("sign --key key otelcol.tar.gz key.pub", "one FILE at a time"),
        ("sign --key key --kind config", "FILE is missing"),
        ("sign --key key --kind config --set s otelcol.tar.gz", "--set does not go"),
        ("sign --key key --kind config --add --expires 9d otelcol.tar.gz", "--expires does not go"),
        ("sign --key key --unnamed otelcol.tar.gz", "--unnamed goes with --kind config"),
        ("sign --key key --kind package otelcol.tar.gz", "--kind goes with --name only"),
        ("verify --pub key.pub otelcol.tar.gz key", "one FILE at a time"),
        ("sign --fast", "--fast"),
        ("verify otelcol.tar.gz", "--pub PUB is missing"),
        ("verify --pub key.pub", "FILE is missing"),
        ("verify --pub key.pub --threshold 2 otelcol.tar.gz", "--threshold 2"),
        ("verify --pub key.pub --threshold 0 otelcol.tar.gz", "--threshold 0"),
        ("--json sign --key key otelcol.tar.gz", "--json"),
        ("--config x verify --pub key.pub otelcol.tar.gz", "--config"),
    ] {
        let error = bench.fails(2, arguments);
        assert!(error.contains(word), "{arguments}: {error}");
    }
    assert_eq!(bench.names(), ["key", "key.pub", FILE]);
}

#[test]
fn what_cannot_be_read_or_signed_is_1_and_named() {
    let bench = Bench::new();
    bench.done("keygen --out key");
    for (arguments, word) in [
        ("verify --pub key.pub otelcol.tar.gz", "otelcol.tar.gz.sig: No such file"),
        ("sign --key key absent", "absent: No such file"),
        ("sign --key key .", ".: Is a directory"),
        ("sign --key key --add otelcol.tar.gz", "otelcol.tar.gz.sig: No such file"),
        ("sign --key key --out absent/sig otelcol.tar.gz", "absent/sig: No such file"),
    ] {
        let error = bench.fails(1, arguments);
        assert!(error.contains(word), "{arguments}: {error}");
    }
    let long = "n".repeat(129);
    let error = bench.fails(1, &format!("sign --key key --name {long} --version v otelcol.tar.gz"));
    assert!(error.contains("name has 129 bytes; allowed are 128"), "{error}");
    assert_eq!(bench.names(), ["key", "key.pub", FILE]);
}

#[test]
fn each_command_teaches() {
    let bench = Bench::new();
    for (command, words) in [
        ("keygen", ["openssl genpkey", "trusted_keys", "Exit codes"]),
        ("sign", ["Examples:", "--add", "openssl pkeyutl"]),
        ("verify", ["Examples:", "--threshold", "Exit codes"]),
    ] {
        let text = bench.done(&format!("{command} --help"));
        assert_eq!(bench.done(&format!("{command} -h")), text);
        for word in words {
            assert!(text.contains(word), "{word}: {text}");
        }
        let all = bench.done("--help");
        assert!(all.lines().any(|line| line.trim_start().starts_with(command)), "{all}");
    }
}
