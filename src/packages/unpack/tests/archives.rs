//! What a tar may hold, and what it may not.

use std::os::unix::fs::PermissionsExt;

use super::super::header::BLOCK;
use super::writer::{Head, Tar, gzip, seal};
use super::*;

fn mode(path: PathBuf) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_directories_and_symlinks_come_out_as_they_are() {
    let large: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let tar = Tar::default()
        .directory("./")
        .directory("./otelcol-1.2/")
        .program("./otelcol-1.2/bin/otelcol", &large)
        .file("otelcol-1.2/etc/config.yaml", b"a: 1\n")
        .file("otelcol-1.2/empty", b"")
        .link("otelcol-1.2/lib/current", "../bin")
        .link("otelcol-1.2/run", "bin/otelcol")
        .directory("otelcol-1.2/lib/");
    let (tree, outcome) = unpacked(&tar.gz());
    assert_eq!(outcome.unwrap(), Unpacked { files: 3, bytes: 800_005 });
    // The one directory at the top is kept, owners and special bits are not.
    assert_eq!(fs::read(tree.at("otelcol-1.2/bin/otelcol")).unwrap(), large);
    assert_eq!(mode(tree.at("otelcol-1.2/bin/otelcol")), 0o755);
    assert_eq!(mode(tree.at("otelcol-1.2/etc/config.yaml")), 0o644);
    assert_eq!(fs::read_link(tree.at("otelcol-1.2/lib/current")).unwrap(), Path::new("../bin"));
    assert_eq!(fs::read(tree.at("otelcol-1.2/run")).unwrap(), large);
}

#[test]
fn only_the_owners_bit_makes_a_program() {
    let odd = |mode| Tar::default().entry(&Head { mode, ..Head::default() }, b"").gz();
    for (bits, wanted) in
        [(0o4700, 0o755), (0o7777, 0o755), (0o0, 0o644), (0o2011, 0o644), (0o666, 0o644)]
    {
        let (tree, outcome) = unpacked(&odd(bits));
        outcome.unwrap();
        assert_eq!(mode(tree.at("name")), wanted, "{bits:o}");
    }
}

#[test]
fn names_of_every_dialect_are_understood() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let head = Head { name: b"file", prefix: b"some/where", ..Head::default() };
    let gnu = Head { name: b"gnu", magic: b"ustar  \0", prefix: b"12345", ..Head::default() };
    let v7 = Head { name: b"v7/", kind: 0, magic: b"", ..Head::default() };
    let tar = Tar::default()
        .pax(b'g', &[("comment", "the commit that git archive names")])
        .entry(&head, b"")
        .entry(&gnu, b"")
        .entry(&v7, b"")
        .long(b'L', &long)
        .file("cut", b"gnu")
        .pax(b'x', &[("mtime", "1.5"), ("path", "päx/näme"), ("SCHILY.xattr.user.a", "b")])
        .file("cut", b"pax")
        .long(b'K', &"t".repeat(150))
        .long(b'L', &"l".repeat(150))
        .link("cut", "cut")
        .pax(b'x', &[("linkpath", "päx"), ("path", "link")])
        .link("cut", "cut");
    let (tree, outcome) = unpacked(&tar.gz());
    assert_eq!(outcome.unwrap().files, 4);
    assert_eq!(fs::read(tree.at(long)).unwrap(), b"gnu");
    assert_eq!(fs::read(tree.at("päx/näme")).unwrap(), b"pax");
    assert!(tree.at("some/where/file").is_file() && tree.at("gnu").is_file());
    assert!(tree.at("v7").is_dir());
    assert_eq!(fs::read_link(tree.at("l".repeat(150))).unwrap(), Path::new(&"t".repeat(150)));
    assert_eq!(fs::read_link(tree.at("link")).unwrap(), Path::new("päx"));
}

#[test]
fn a_pax_size_counts_and_so_does_one_of_gnu() {
    let mut block = Head::default().block();
    block[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    seal(&mut block);
    let gnu = Tar(block.to_vec()).data(b"abc");
    let pax = Tar::default().pax(b'x', &[("size", "3")]).file("name", b"").data(b"abc");
    for tar in [gnu, pax] {
        let (tree, outcome) = unpacked(&tar.gz());
        assert_eq!(outcome.unwrap(), Unpacked { files: 1, bytes: 3 });
        assert_eq!(fs::read(tree.at("name")).unwrap(), b"abc");
    }
}

/// The tar is refused with these words, and where `entry` is not empty, by name.
fn refuses(tar: &Tar, entry: &str, why: &str) {
    let text = refusal(&tar.clone().gz());
    assert!(text.contains(why), "{text:?} has no {why:?}");
    assert!(text.contains(&format!("{entry:?}")) || entry.is_empty(), "{text:?}: {entry:?}");
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let deep = ["d"; 33].join("/");
    let part = "p".repeat(256);
    for (name, why) in [
        ("/etc/passwd", "absolute"),
        ("//etc/passwd", "absolute"),
        ("../beside", "`..`"),
        ("a/../../beside", "`..`"),
        ("./../beside", "`..`"),
        ("a/..", "`..`"),
        ("a//b", "empty part"),
        (".//a", "empty part"),
        ("a\nb", "control character"),
        ("a\u{1b}[2J", "control character"),
        ("a\u{85}b", "control character"),
        ("", "name is empty"),
        (".", "the top is a directory"),
        ("a/", "ends with a slash"),
    ] {
        refuses(&Tar::default().file(name, b""), name, why);
    }
    for (name, why) in [
        (deep.as_str(), "more than 32 parts"),
        (part.as_str(), "more than 255 bytes"),
        ("a\0b", "control character"),
    ] {
        let shown: String = name.chars().take(120).collect();
        let shown = if shown == name { shown } else { shown + "…" };
        for tar in [
            Tar::default().long(b'L', name).file("x", b""),
            Tar::default().pax(b'x', &[("path", name)]).file("x", b""),
        ] {
            refuses(&tar, &shown, why);
        }
    }
    let long = vec!["p".repeat(204); 5].join("/");
    assert_eq!(long.len(), 1024);
    let longest = Tar::default().long(b'L', &long).file("x", b"").file("y", b"");
    assert_eq!(unpacked(&longest.gz()).1.unwrap().files, 2);
    let longer = format!("{long}p");
    refuses(&Tar::default().long(b'L', &longer).file("x", b""), "", "a long name has more than");
    let pax = Tar::default().pax(b'x', &[("path", &longer)]).file("x", b"");
    refuses(&pax, "", "more than 1024 bytes");
    let bytes = Head { name: b"a\xff", ..Head::default() };
    refuses(&Tar::default().entry(&bytes, b""), "a\u{fffd}", "not UTF-8");
}

#[test]
fn symlinks_that_lead_out_are_refused() {
    for (link, target, why) in [
        ("l", "/etc", "absolute"),
        ("l", "..", "out of the package"),
        ("a/l", "../..", "out of the package"),
        ("a/l", "./../../beside", "out of the package"),
        // Where `d` is a symlink itself, the kernel would not end where the words do.
        ("a/l", "d/../../beside", "`..` behind a name"),
        ("l", "", "points nowhere"),
        ("l", "a//b", "empty part"),
        ("l", "a\nb", "control character"),
    ] {
        refuses(&Tar::default().link(link, target), link, why);
    }
    let (tree, outcome) = unpacked(&Tar::default().link("a/b/l", "../..").link("m", "a/b/l").gz());
    outcome.unwrap();
    assert_eq!(tree.at("m").canonicalize().unwrap(), tree.at("").canonicalize().unwrap());
    let pax = Tar::default().pax(b'x', &[("linkpath", "a\0b")]).link("l", "x");
    refuses(&pax, "l", "control character");
}

#[test]
fn nothing_goes_below_a_link_or_a_file_and_nothing_is_replaced() {
    let link = Tar::default().directory("d").link("l", "d").file("f", b"1");
    for (tar, name, why) in [
        (link.clone().file("l/x", b""), "l/x", "below"),
        (link.clone().directory("l/x/y"), "l/x/y", "below"),
        (link.clone().file("f/x", b""), "f/x", "below"),
        (link.clone().link("f/x", "y"), "f/x", "below"),
        (link.clone().file("f", b"2"), "f", "twice"),
        (link.clone().file("./f", b"2"), "./f", "twice"),
        (link.clone().file("l", b"2"), "l", "twice"),
        (link.clone().link("l", "f"), "l", "twice"),
        (link.clone().link("d", "f"), "d", "twice"),
        (link.clone().directory("l/"), "l/", "twice"),
        (link.clone().directory("f"), "f", "twice"),
        (link.clone().file("d", b""), "d", "twice"),
    ] {
        refuses(&tar, name, why);
    }
    // What differs only by case differs.
    assert_eq!(unpacked(&link.file("F", b"").directory("d").gz()).1.unwrap().files, 2);
}

#[test]
fn only_files_directories_and_symlinks_come_out() {
    for (kind, why) in [
        (b'1', "hard link"),
        (b'3', "device"),
        (b'4', "device"),
        (b'6', "fifo"),
        (b's', "socket"),
        (b'S', "sparse"),
        (b'M', "neither a file"),
        (b'V', "neither a file"),
        (b'7', "neither a file"),
        (0xff, "neither a file"),
    ] {
        let head = Head { kind, target: b"f", ..Head::default() };
        refuses(&Tar::default().file("f", b"").entry(&head, b""), "name", why);
    }
    for key in ["GNU.sparse.major", "GNU.sparse.name", "SCHILY.realsize"] {
        refuses(&Tar::default().pax(b'x', &[(key, "1")]).file("x", b""), "", "sparse");
    }
    for kind in [b'2', b'5'] {
        let head = Head { kind, size: 3, target: b"t", ..Head::default() };
        refuses(&Tar::default().entry(&head, b"abc"), "name", "only a file has contents");
    }
}

#[test]
fn sizes_that_are_none_are_refused() {
    let sized = |field: &[u8; 12]| {
        let mut block = Head::default().block();
        block[124..136].copy_from_slice(field);
        seal(&mut block);
        Tar(block.to_vec())
    };
    let no_number = "no number, negative or too large";
    for field in [
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
        b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
        b"\x80\x01\0\0\0\0\0\0\0\0\0\0",
        b"\x81\0\0\0\0\0\0\0\0\0\0\0",
        b"00000000009\0",
        b"-0000000001\0",
        b"0000000 001\0",
    ] {
        refuses(&sized(field), "name", no_number);
    }
    // Over 4 GiB, and what a 32-bit number would make of it: 1.
    refuses(&sized(b"\x80\0\0\0\0\0\0\x01\0\0\0\x01"), "name", "it has 4294967297 bytes");
    refuses(&sized(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), "name", "9223372036854775807 b");
    refuses(&sized(b"77777777777\0"), "name", "it has 8589934591 bytes");
    for size in ["9223372036854775808", "99999999999999999999", "-1", "", "1e3"] {
        let tar = Tar::default().pax(b'x', &[("size", size)]).file("x", b"");
        refuses(&tar, "", "a PAX size is no number");
    }
    let mut block = Head::default().block();
    block[100..107].copy_from_slice(b"rwxr-xr");
    seal(&mut block);
    refuses(&Tar(block.to_vec()), "name", "mode is no number");
}

#[test]
fn headers_before_an_entry_are_bounded_and_unambiguous() {
    let many = "v".repeat(MAX_PAX);
    let base = Tar::default;
    for (tar, why) in [
        (base().pax(b'x', &[("comment", &many)]), "a PAX header has more than 16384 bytes"),
        (base().pax(b'g', &[("comment", &many)]), "a global PAX header has more than 16384"),
        (base().long(b'K', &"t".repeat(1025)), "a long name has more than 1025 bytes"),
        (base().long(b'L', "a").long(b'L', "b"), "two headers give one entry a name"),
        (base().long(b'L', "a").pax(b'x', &[("path", "b")]), "two headers give one entry a name"),
        (base().long(b'K', "a").long(b'K', "b"), "two headers give one symlink a target"),
        (base().pax(b'x', &[]).pax(b'x', &[]), "two PAX headers"),
        (base().pax(b'g', &[]).pax(b'g', &[]), "two global PAX headers"),
        (base().pax(b'g', &[("path", "b")]), "names or sizes all entries"),
        (base().pax(b'x', &[("a", "b")]), "ends where an entry was announced"),
        (base().long(b'L', "a"), "ends where an entry was announced"),
    ] {
        refuses(&tar, "", why);
    }
    for data in [
        "5 a=b\n",
        "7 a=b\n",
        "0 a=b\n",
        "6 a b\n",
        "x a=b\n",
        "6 a=bc",
        " 6 a=b\n",
        "\n",
        "9999999999999999999999 a=b\n",
    ] {
        let size = u64::try_from(data.len()).unwrap();
        let head = Head { kind: b'x', size, ..Head::default() };
        let tar = base().entry(&head, data.as_bytes()).file("x", b"");
        refuses(&tar, "", "a PAX header is malformed");
    }
}

#[test]
fn what_is_cut_short_damaged_or_goes_on_is_refused() {
    let tar = Tar::default().file("a", &[1; 700]).file("b", b"2").0;
    for (length, why) in [
        (0, "its end is not marked"),
        (100, "cut short within a header"),
        (512, "cut short within it"),
        (1211, "cut short within it"),
        (1300, "cut short behind a file"),
        (1536, "its end is not marked"),
        (tar.len(), "its end is not marked"),
    ] {
        let text = refusal(&gzip(&tar[..length]));
        assert!(text.contains(why), "{length}: {text}");
    }
    let one_block = [tar.as_slice(), &[0; BLOCK]].concat();
    assert_eq!(unpacked(&gzip(&one_block)).1.unwrap().files, 2);
    let padded = [tar.as_slice(), &[0; 20 * BLOCK]].concat();
    assert_eq!(unpacked(&gzip(&padded)).1.unwrap().files, 2);
    let more = [tar.as_slice(), &[0; 2 * BLOCK], &tar].concat();
    assert!(refusal(&gzip(&more)).contains("behind the archive's end"));
    let mut bad = tar;
    bad[3] ^= 1;
    assert!(refusal(&gzip(&bad)).contains("checksum is wrong"));
}

#[test]
fn more_entries_than_allowed_are_refused() {
    let limits = Limits { entries: 5, ..Limits::default() };
    let count = |tar: Tar| {
        let mut tree = Counting::default();
        let outcome = unpack(&file_of(&tar.gz()), &mut tree, &limits);
        assert!(tree.made.len() <= 5);
        outcome.map_err(|why| why.to_string())
    };
    let five = (0..5).fold(Tar::default(), |tar, at| tar.file(&at.to_string(), b""));
    assert_eq!(count(five.clone()).unwrap().files, 5);
    let text = count(five.file("6th", b"")).unwrap_err();
    assert!(text.contains("\"6th\"") && text.contains("more than the 5 entries"), "{text}");
    // Implied directories count, and so does one that comes again and again.
    assert!(count(Tar::default().file("1/2/3/4/5", b"")).is_ok());
    assert!(count(Tar::default().file("1/2/3/4/5/6", b"")).is_err());
    assert!(count((0..6).fold(Tar::default(), |tar, _| tar.directory("."))).is_err());
}

#[test]
fn a_disk_that_fails_is_no_fault_of_the_archive() {
    struct Full;
    impl Tree for Full {
        type File = File;
        fn directory(&mut self, _: &Path) -> io::Result<()> {
            Ok(())
        }
        fn file(&mut self, _: &Path, _: bool) -> io::Result<File> {
            OpenOptions::new().write(true).open("/dev/full")
        }
        fn finish(&mut self, _: File) -> io::Result<()> {
            Ok(())
        }
        fn symlink(&mut self, _: &Path, _: &Path) -> io::Result<()> {
            Ok(())
        }
    }
    let file = file_of(&Tar::default().file("d/f", b"1").gz());
    match unpack(&file, &mut Full, &Limits::default()) {
        Err(Refusal::Disk { doing, error }) => {
            assert_eq!(doing, "writing \"d/f\"");
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
        other => assert!(other.is_err_and(|_| false)),
    }
}
