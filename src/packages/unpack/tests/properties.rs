//! Whatever the bytes are: no panic, nothing outside, no more than the limits.

use proptest::prelude::*;

use super::writer::{Head, Tar, gzip};
use super::*;

const LIMITS: Limits = Limits { entries: 8, unpacked: 16 << 10, ratio: 1 << 20, free: 0 };

/// Unpacks into a tree that fails the test where it is asked for what may not be.
fn survive(bytes: &[u8]) {
    let file = file_of(bytes);
    let form = form(&file).unwrap();
    let mut tree = Counting::default();
    let outcome = unpack(&file, &mut tree, &LIMITS);
    assert!(tree.made.len() <= 8 && tree.written.get() <= LIMITS.unpacked);
    match outcome {
        Ok(done) => assert!(done.bytes == tree.written.get()),
        Err(Refusal::Archive(text)) => assert!(!text.is_empty() && form_is_told(form, &text)),
        Err(disk @ Refusal::Disk { .. }) => assert_eq!(disk.to_string(), "no disk failed"),
    }
}

fn form_is_told(form: Form, text: &str) -> bool {
    text.len() < 1024 && (form != Form::Raw || !text.contains("is refused"))
}

/// Names and targets that have gone wrong elsewhere, and harmless ones.
fn name() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[ab]",
        2 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(String::new()),
        1 => "\\PC{1,3}",
    ];
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

fn tar() -> impl Strategy<Value = Tar> {
    let kind = prop_oneof![
        4 => Just(b'0'), 3 => Just(b'5'), 4 => Just(b'2'), 1 => Just(b'1'), 1 => Just(b'L'), 1 => Just(b'K'),
        1 => Just(b'x'), 1 => any::<u8>(),
    ];
    let entry =
        (name(), kind, name(), any::<u16>(), proptest::collection::vec(any::<u8>(), 0..700));
    proptest::collection::vec(entry, 0..10).prop_map(|entries| {
        entries.into_iter().fold(Tar::default(), |tar, (name, kind, target, mode, data)| match kind
        {
            b'L' | b'K' => tar.long(kind, &name),
            b'x' => tar.pax(kind, &[("path", &name), ("linkpath", &target)]),
            _ => {
                let data = if kind == b'0' { data.as_slice() } else { &[] };
                let head = Head {
                    name: name.as_bytes(),
                    kind,
                    mode: mode.into(),
                    size: u64::try_from(data.len()).unwrap(),
                    target: target.as_bytes(),
                    ..Head::default()
                };
                tar.entry(&head, data)
            }
        })
    })
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)
}

fn change(bytes: &mut [u8], changes: &[(prop::sample::Index, u8)]) {
    for (at, byte) in changes.iter().filter(|_| !bytes.is_empty()).collect::<Vec<_>>() {
        bytes[at.index(bytes.len())] = *byte;
    }
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..2000), how in 0..4) {
        let magic: &[u8] = match how {
            0 => b"\x1f\x8b\x08\0\0\0\0\0\0\x03",
            1 => b"\x28\xb5\x2f\xfd",
            2 => b"",
            _ => { bytes = gzip(&bytes); b"" }
        };
        survive(&[magic, &bytes].concat());
    }

    #[test]
    fn hostile_tars_do_no_harm(tar in tar(), changed in changes(), sealed: bool) {
        let mut bytes = tar.bytes();
        change(&mut bytes, &changed);
        if sealed {
            for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
                super::writer::seal(block.try_into().unwrap());
            }
        }
        survive(&gzip(&bytes));
    }

    #[test]
    fn damaged_archives_do_no_harm(tar in tar(), changed in changes(), cut: prop::sample::Index) {
        let packed = packed(&tar.bytes());
        let mut bytes = packed.clone();
        change(&mut bytes, &changed);
        survive(&bytes);
        survive(&packed[..cut.index(packed.len())]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// On a real disk: links that follow links included.
    #[test]
    fn nothing_leads_out_of_a_real_directory(tar in tar()) {
        let mut tree = Plain::new();
        let _ = unpack(&file_of(&tar.gz()), &mut tree, &LIMITS);
        tree.assert_kept_within();
    }
}

#[cfg(not(feature = "zstd"))]
fn packed(bytes: &[u8]) -> Vec<u8> {
    gzip(bytes)
}

#[cfg(feature = "zstd")]
fn packed(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}
