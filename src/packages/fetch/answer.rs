//! What an answer's head promises, held against what is known of the file.

use core::time::Duration;

use crate::clock::Wall;
use crate::store::incoming::{MAX_VALIDATOR, Mark};
use crate::transport::http1::Head;
use crate::transport::retry_after;

/// What a body is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// The file from its start.
    Whole {
        /// What the server says of it.
        mark: Mark,
    },
    /// What comes behind the bytes that are there.
    Rest {
        /// Bytes in it.
        length: u64,
        /// Bytes of the whole file.
        total: u64,
    },
}

/// Why there is no body to take.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoBody {
    /// What is there cannot be gone on with.
    Restart(String),
    /// It may be there later, perhaps after so long.
    Later(String, Option<Duration>),
    /// It is probably not there.
    Missing(String),
    /// It is not what was asked for.
    Wrong(String),
}

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// Bytes that are there; 0: the whole file was asked for.
    pub(super) had: u64,
    /// What they belong to.
    pub(super) mark: &'a Mark,
    /// Bytes that the file must have.
    pub(super) size: Option<u64>,
    /// Bytes that it may have.
    pub(super) limit: u64,
}

/// Reads a head.
pub(super) fn judge(head: &Head, asked: Asked<'_>, now: Wall) -> Result<Body, NoBody> {
    let status = head.status;
    let text = |advice: &str| format!("the server answered {status}{advice}");
    match status {
        200 => {
            packed(head)?;
            let total = head.header("Content-Length").and_then(|text| text.trim().parse().ok());
            asked.fits(total)?;
            Ok(Body::Whole { mark: Mark { validator: validator(head), total } })
        }
        206 if asked.had > 0 => {
            packed(head)?;
            asked.rest(head).map_err(NoBody::Restart)
        }
        416 if asked.had > 0 => Err(NoBody::Restart(text(" to the range"))),
        429 | 503 => {
            let after = head.header("Retry-After").and_then(|value| retry_after::parse(value, now));
            Err(NoBody::Later(text(": it is overloaded"), after))
        }
        408 | 425 | 500..=599 => Err(NoBody::Later(text(""), None)),
        401 | 403 => Err(NoBody::Missing(text(
            ": the offered headers are missing or wrong (they are sent over TLS only), or the URL has expired",
        ))),
        404 | 410 => Err(NoBody::Missing(text(": there is no such file"))),
        _ => Err(NoBody::Missing(text(", which is no file"))),
    }
}

/// What is hashed is the file: it must not be packed on the way.
fn packed(head: &Head) -> Result<(), NoBody> {
    for coding in head.values("Content-Encoding") {
        if !matches!(coding.trim().to_ascii_lowercase().as_str(), "" | "identity") {
            return Err(NoBody::Wrong(format!(
                "the answer is packed (Content-Encoding {coding:.40?}), which was not asked for"
            )));
        }
    }
    Ok(())
}

impl Asked<'_> {
    /// Holds a size that the server announces against the known one.
    pub(super) fn fits(&self, total: Option<u64>) -> Result<(), NoBody> {
        let Some(total) = total else { return Ok(()) };
        match self.size {
            Some(size) if size != total => {
                Err(NoBody::Wrong(format!("the server has {total} bytes, and {size} are signed")))
            }
            _ if total > self.limit => Err(NoBody::Wrong(format!(
                "the server has {total} bytes; opamp.packages.max_size allows {}",
                self.limit
            ))),
            _ => Ok(()),
        }
    }

    /// 206: it must go on exactly where we are, in the file that we have.
    fn rest(&self, head: &Head) -> Result<Body, String> {
        let range = head.header("Content-Range").and_then(ContentRange::parse);
        let Some(ContentRange { first, last, total }) = range else {
            return Err("the server answered 206 without saying which bytes of how many".to_owned());
        };
        let what = format!("bytes {first} to {last} of {total}");
        let had = self.had;
        if first != had {
            return Err(format!("the server sends {what}, and {had} and on were asked for"));
        }
        if let Some(before) = self.mark.total.or(self.size).filter(|before| *before != total) {
            return Err(format!("the server sends {what}, and had {before} before"));
        }
        if self.fits(Some(total)).is_err() {
            return Err(format!("the server sends {what}, which is not the file's size"));
        }
        let now = validator(head);
        if head.header("ETag").is_some() && now != self.mark.validator {
            let dated = !self.mark.validator.starts_with('"');
            if !dated {
                return Err("the server sends a part of another version of the file".to_owned());
            }
        }
        let length = last.saturating_sub(first).saturating_add(1);
        let said = head.header("Content-Length").map(|text| text.trim().parse::<u64>().ok());
        if said.is_some_and(|said| said != Some(length)) {
            return Err(format!("the server sends {what}, with another Content-Length"));
        }
        Ok(Body::Rest { length, total })
    }
}

/// What tells this version of the file from every other (RFC 9110 §8.8.1, §13.1.5); empty: nothing does.
fn validator(head: &Head) -> String {
    let usable = |text: &&str| {
        text.len() <= MAX_VALIDATOR && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
    };
    if let Some(etag) = head.header("ETag") {
        let etag = etag.trim();
        let strong = etag.len() >= 2 && etag.starts_with('"') && etag.ends_with('"');
        return Some(etag).filter(|etag| strong && usable(etag)).unwrap_or_default().to_owned();
    }
    let Some(modified) = head.header("Last-Modified").map(str::trim).filter(usable) else {
        return String::new();
    };
    let Some(at) = retry_after::date(modified) else { return String::new() };
    // A file changed within the very second of its answer may change again within it.
    let date = head.header("Date").and_then(retry_after::date);
    let strong = date.is_none_or(|date| at < date);
    if strong { modified.to_owned() } else { String::new() }
}

/// `bytes 5-9/10`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The first byte.
    first: u64,
    /// The last byte.
    last: u64,
    /// Bytes of the whole.
    total: u64,
}

impl ContentRange {
    /// [`None`] for everything else, also for what RFC 9110 §14.4 calls invalid, and for an unknown total.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.trim().split_once(' ')?;
        let (range, total) = rest.trim().split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u64>().ok())?
        };
        let (first, last, total) = (number(first)?, number(last)?, number(total)?);
        let valid = unit.eq_ignore_ascii_case("bytes") && first <= last && last < total;
        valid.then_some(Self { first, last, total })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Head {
        let text = format!("HTTP/1.1 {}\r\n\r\n", text.replace('\n', "\r\n"));
        let mut text = smol::io::Cursor::new(text.into_bytes());
        let head = crate::transport::http1::read_head(&mut text, Vec::new());
        smol::future::block_on(head).ok().unwrap()
    }

    fn mark(validator: &str, total: Option<u64>) -> Mark {
        Mark { validator: validator.to_owned(), total }
    }

    fn ask(head_text: &str, had: u64, mark: &Mark, size: Option<u64>) -> Result<Body, NoBody> {
        judge(&head(head_text), Asked { had, mark, size, limit: 1 << 40 }, Wall::default())
    }

    #[test]
    fn ranges_that_are_and_that_are_not() {
        for (text, range) in [
            ("bytes 5-9/10", Some((5, 9, 10))),
            ("Bytes 0-0/1", Some((0, 0, 1))),
            (" bytes  2147483648-4294967295/4294967296", Some((1 << 31, (1 << 32) - 1, 1 << 32))),
            (
                "bytes 0-18446744073709551614/18446744073709551615",
                Some((0, u64::MAX - 1, u64::MAX)),
            ),
            ("bytes 0-18446744073709551615/18446744073709551616", None),
            ("bytes 5-9/*", None),
            ("bytes */10", None),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes 5-9", None),
            ("bytes -9/10", None),
            ("bytes +5-9/10", None),
            ("bytes 5-9/10/11", None),
            ("items 5-9/10", None),
            ("bytes=5-9/10", None),
            ("", None),
        ] {
            let range = range.map(|(first, last, total)| ContentRange { first, last, total });
            assert_eq!(ContentRange::parse(text), range, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_range_is_read_that_was_not_written(text in "(bytes )?[0-9*+ -]{0,8}/?[0-9*]{0,4}") {
            if let Some(range) = ContentRange::parse(&text) {
                prop_assert!(range.first <= range.last && range.last < range.total);
                let zeros = |text: &str| text.replace(['0', ' '], "");
                let written = format!("bytes {}-{}/{}", range.first, range.last, range.total);
                prop_assert_eq!(zeros(&text), zeros(&written));
            }
        }
    }

    #[test]
    fn a_rest_is_taken_only_where_it_fits_exactly() {
        let v1 = mark("\"v1\"", Some(100));
        let rest = Ok(Body::Rest { length: 60, total: 100 });
        for good in [
            "206 P\nContent-Range: bytes 40-99/100",
            "206 P\nContent-Range: bytes 40-99/100\nETag: \"v1\"\nContent-Length: 60",
        ] {
            assert_eq!(ask(good, 40, &v1, Some(100)), rest, "{good}");
            assert_eq!(ask(good, 40, &v1, None), rest, "{good}");
        }
        for bad in [
            "206 P",
            "206 P\nContent-Type: multipart/byteranges; boundary=x",
            "206 P\nContent-Range: bytes 40-99/*",
            "206 P\nContent-Range: bytes 39-99/100",
            "206 P\nContent-Range: bytes 41-99/100",
            "206 P\nContent-Range: bytes 0-99/100",
            "206 P\nContent-Range: bytes 40-100/101",
            "206 P\nContent-Range: bytes 40-98/99",
            "206 P\nContent-Range: bytes 40-99/100\nETag: \"v2\"",
            "206 P\nContent-Range: bytes 40-99/100\nETag: W/\"v1\"",
            "206 P\nContent-Range: bytes 40-99/100\nContent-Length: 61",
            "416 R\nContent-Range: bytes */100",
        ] {
            let judged = ask(bad, 40, &v1, None);
            assert!(matches!(judged, Err(NoBody::Restart(_))), "{bad}: {judged:?}");
        }
        // Nothing was known of the size, and now it is.
        let unknown = mark("\"v1\"", None);
        let range = "206 P\nContent-Range: bytes 40-99/100";
        assert_eq!(ask(range, 40, &unknown, None), rest);
        assert!(matches!(ask(range, 40, &unknown, Some(101)), Err(NoBody::Restart(_))));
        // Nobody asked for a part.
        let unasked = ask("206 P\nContent-Range: bytes 0-99/100", 0, &v1, None);
        assert!(matches!(unasked, Err(NoBody::Missing(_))));
    }

    #[test]
    fn sizes_around_the_powers_of_two_are_held_exactly() {
        for at in [1_u64 << 31, 1 << 32] {
            for size in [at - 1, at, at + 1] {
                let known = mark("\"v\"", Some(size));
                let text = format!("206 P\nContent-Range: bytes {}-{}/{size}", at - 2, size - 1);
                let length = size - (at - 2);
                let rest = ask(&text, at - 2, &known, Some(size));
                assert_eq!(rest, Ok(Body::Rest { length, total: size }));
                let whole = ask(&format!("200 OK\nContent-Length: {size}"), 0, &known, Some(size));
                assert!(matches!(whole, Ok(Body::Whole { .. })));
                for other in [size - 1, size + 1, size.wrapping_sub(1 << 32), size + (1 << 32)] {
                    let text = format!("200 OK\nContent-Length: {other}");
                    let whole = ask(&text, 0, &known, Some(size));
                    assert!(matches!(whole, Err(NoBody::Wrong(_))), "{other} for {size}");
                }
            }
        }
    }

    #[test]
    fn only_strong_validators_count() {
        for (headers, validator) in [
            ("ETag: \"v1\"", "\"v1\""),
            ("ETag: W/\"v1\"", ""),
            ("ETag: v1", ""),
            ("ETag: \"", ""),
            ("ETag: W/\"v1\"\nLast-Modified: Tue, 01 Sep 2026 10:00:00 GMT", ""),
            ("Last-Modified: Tue, 01 Sep 2026 10:00:00 GMT", "Tue, 01 Sep 2026 10:00:00 GMT"),
            (
                "Last-Modified: Tue, 01 Sep 2026 10:00:00 GMT\nDate: Tue, 01 Sep 2026 10:00:00 GMT",
                "",
            ),
            ("Last-Modified: yesterday", ""),
            ("X: y", ""),
        ] {
            let got = ask(&format!("200 OK\n{headers}"), 0, &Mark::default(), None);
            assert_eq!(got, Ok(Body::Whole { mark: mark(validator, None) }), "{headers}");
        }
        let long = format!("200 OK\nETag: \"{}\"", "x".repeat(MAX_VALIDATOR));
        let got = ask(&long, 0, &Mark::default(), None);
        assert_eq!(got, Ok(Body::Whole { mark: Mark::default() }));
    }

    #[test]
    fn what_is_no_body_says_what_to_do() {
        let none = Mark::default();
        let later = |text, after| match ask(text, 0, &none, None) {
            Err(NoBody::Later(_, found)) => assert_eq!(found, after, "{text}"),
            other => assert!(text.is_empty(), "{other:?}"),
        };
        later("503 No\nRetry-After: 7", Some(Duration::from_secs(7)));
        later("429 No\nRetry-After: -7", None);
        later("429 No", None);
        later("502 No", None);
        for missing in ["404 No", "410 No", "403 No", "304 No", "204 No", "416 No"] {
            assert!(matches!(ask(missing, 0, &none, None), Err(NoBody::Missing(_))), "{missing}");
        }
        let packed = "200 OK\nContent-Encoding: gzip";
        assert!(matches!(ask(packed, 0, &none, None), Err(NoBody::Wrong(_))));
        let large = format!("200 OK\nContent-Length: {}", (1_u64 << 40) + 1);
        assert!(matches!(ask(&large, 0, &none, None), Err(NoBody::Wrong(_))));
    }
}
