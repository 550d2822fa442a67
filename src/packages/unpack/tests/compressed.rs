//! What a file is, and how much may come out of it.

use flate2::Compression;
use flate2::write::GzEncoder;

use super::writer::{Head, Tar, gzip, seal};
use super::*;

fn small() -> Tar {
    Tar::default().file("a", &[b'x'; 3000])
}

fn form_of(bytes: &[u8]) -> Form {
    form(&file_of(bytes)).unwrap()
}

#[test]
fn the_form_is_in_the_contents() {
    assert_eq!(form_of(&small().gz()), Form::TarGz);
    assert_eq!(form_of(b"\x7fELF\x02\x01\x01"), Form::Raw);
    assert_eq!(form_of(b""), Form::Raw);
    assert_eq!(form_of(b"\x1f"), Form::Raw);
    assert_eq!(form_of(b"#!/bin/sh\n"), Form::Raw);
    // gzip without a tar in it.
    assert_eq!(form_of(&gzip(b"short")), Form::Raw);
    assert_eq!(form_of(&gzip(&[b'x'; 5000])), Form::Raw);
    // A tar that is cut short, and what says that it is gzip: `unpack` tells what is wrong with them.
    assert_eq!(form_of(&gzip(&small().0[..1000])), Form::TarGz);
    assert_eq!(form_of(b"\x1f\x8bwhatever"), Form::TarGz);
    assert!(refusal(b"\x1f\x8bwhatever").contains("gzip is damaged"));
    assert!(refusal(b"\x7fELF").contains("neither gzip nor zstd"));
}

#[test]
fn gzip_of_several_members_is_one_stream() {
    let tar = small().bytes();
    let (first, second) = tar.split_at(1000);
    let both = [gzip(first), gzip(b""), gzip(second)].concat();
    assert_eq!(form_of(&both), Form::TarGz);
    let (tree, outcome) = unpacked(&both);
    assert_eq!(outcome.unwrap(), Unpacked { files: 1, bytes: 3000 });
    assert_eq!(fs::read(tree.at("a")).unwrap(), [b'x'; 3000]);
}

#[test]
fn gzip_that_is_damaged_or_cut_short_or_goes_on_is_refused() {
    let whole = small().gz();
    for behind in [b"x".as_slice(), b"\0\0\0\0", b"\x1f\x8b", b"\x1f\x8b\x08\0\0\0\0\0\0\x03"] {
        let text = refusal(&[whole.as_slice(), behind].concat());
        assert!(text.contains("gzip"), "{text}");
    }
    for length in [3, 15, whole.len() - 9, whole.len() - 8, whole.len() - 4, whole.len() - 1] {
        let text = refusal(&whole[..length]);
        assert!(text.contains("cut short"), "{length}: {text}");
    }
    for from_end in [8, 4] {
        let mut bad = whole.clone();
        let at = bad.len() - from_end;
        bad[at] ^= 1;
        assert!(refusal(&bad).contains("gzip is damaged"));
    }
}

/// As small as gzip can make it.
fn dense(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The header of a file of so many bytes.
fn header_of(size: u64) -> [u8; BLOCK] {
    Head { size, ..Head::default() }.block()
}

#[test]
fn a_bomb_is_refused_before_it_is_written() {
    // 1 GiB of zeros, member by member.
    let zeros = dense(&vec![0; 16 << 20]).repeat(64);
    let bytes = [gzip(&header_of(1 << 30)), zeros, gzip(&[0; 1024])].concat();
    assert!(bytes.len() < 1_100_000);
    let limit = Limits::default().of_file(u64::try_from(bytes.len()).unwrap());
    let mut tree = Counting::default();
    let why = unpack(&file_of(&bytes), &mut tree, &Limits::default()).unwrap_err().to_string();
    assert!(why.contains(&format!("\"name\" is refused: it has {} bytes", 1 << 30)), "{why}");
    assert!(why.contains(&limit.to_string()), "{why}");
    assert_eq!(tree.written.get(), 0);
}

#[test]
fn many_small_bombs_are_one() {
    let piece = Tar::default().file("name", &vec![0; 4 << 20]).0;
    let pieces = (0..16_u8).map(|at| {
        let mut piece = piece.clone();
        piece[0] = b'a' + at;
        let block: &mut [u8; BLOCK] = (&mut piece[..BLOCK]).try_into().unwrap();
        seal(block);
        dense(&piece)
    });
    let bytes = [pieces.collect::<Vec<_>>().concat(), gzip(&[0; 1024])].concat();
    let limit = Limits::default().of_file(u64::try_from(bytes.len()).unwrap());
    let mut tree = Counting::default();
    let outcome = unpack(&file_of(&bytes), &mut tree, &Limits::default());
    assert!(matches!(outcome, Err(Refusal::Archive(_))));
    assert!(tree.written.get() > 0 && tree.written.get() <= limit, "{}", tree.written.get());
    // Zeros behind the end are no way around.
    let padded = dense(&[small().bytes(), vec![0; 2 << 20]].concat());
    let text = refusal(&padded);
    assert!(text.contains("unpacks to more than the 1048576 bytes"), "{text}");
}

#[test]
fn the_limits_hold_at_every_size() {
    let limits = Limits::default();
    assert_eq!(limits.of_file(0), 1 << 20);
    assert_eq!(limits.of_file(1 << 20), 200 << 20);
    assert_eq!(limits.of_file(u64::MAX), 4 << 30);
}

#[cfg(not(feature = "zstd"))]
#[test]
fn zstd_is_refused_with_advice() {
    let frame = b"\x28\xb5\x2f\xfd\x04\x00\x01\x00\x00";
    assert_eq!(form_of(frame), Form::TarZst);
    assert!(refusal(frame).contains("--features zstd"));
}

#[cfg(feature = "zstd")]
mod zstd {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn pack(bytes: &[u8]) -> Vec<u8> {
        compress_to_vec(bytes, CompressionLevel::Fastest)
    }

    #[test]
    fn a_tar_in_zstd_comes_out() {
        let large: Vec<u8> = (0..400_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let bytes = pack(&Tar::default().file("a", &large).bytes());
        assert_eq!(form_of(&bytes), Form::TarZst);
        let (tree, outcome) = unpacked(&bytes);
        assert_eq!(outcome.unwrap().files, 1);
        assert_eq!(fs::read(tree.at("a")).unwrap(), large);
        assert_eq!(form_of(&pack(&[b'x'; 5000])), Form::Raw);
    }

    #[test]
    fn several_frames_are_one_stream_and_some_are_skipped() {
        let tar = small().bytes();
        let (first, second) = tar.split_at(1000);
        let skipped = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        let bytes = [pack(first).as_slice(), skipped, &pack(second), skipped].concat();
        assert_eq!(unpacked(&bytes).1.unwrap().files, 1);
    }

    #[test]
    fn what_is_damaged_or_cut_short_or_goes_on_is_refused() {
        let whole = pack(&small().bytes());
        for behind in
            [b"x".as_slice(), b"\0\0\0\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18\x03\0\0\0a"]
        {
            let text = refusal(&[whole.as_slice(), behind].concat());
            assert!(text.contains("zstd"), "{text}");
        }
        for length in 5..whole.len() {
            let text = refusal(&whole[..length]);
            assert!(text.contains("cut short"), "{length}: {text}");
        }
        let mut bad = whole.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert!(refusal(&bad).contains("checksum"));
    }

    #[test]
    fn a_frame_that_wants_too_large_a_window_is_refused() {
        // 2 TB, the most that there is; 8 MiB and an eighth; 1 GiB in one segment.
        for frame in [
            b"\x28\xb5\x2f\xfd\x00\xf8\x01\x00\x00".as_slice(),
            b"\x28\xb5\x2f\xfd\x00\x69\x01\x00\x00",
            b"\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x40\x01\x00\x00",
        ] {
            assert_eq!(form_of(frame), Form::TarZst);
            let text = refusal(frame);
            assert!(text.contains("allowed are 8388608"), "{text}");
        }
        // 8 MiB are fine; there is only nothing in it.
        let text = refusal(b"\x28\xb5\x2f\xfd\x00\x68\x01\x00\x00");
        assert!(text.contains("its end is not marked"), "{text}");
    }

    #[test]
    fn a_bomb_is_refused() {
        let zeros = pack(&vec![0; 4 << 20]).repeat(16);
        let bytes = [pack(&header_of(64 << 20)), zeros].concat();
        let text = refusal(&bytes);
        assert!(text.contains("it has 67108864 bytes"), "{text}");
    }
}
