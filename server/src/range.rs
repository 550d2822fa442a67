//! Which part of a file a request asks for (RFC 9110, section 14).

/// What to send.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it: no range, or one that this server does not serve.
    Whole,
    /// The bytes from the first to the last, both included.
    Part(u64, u64),
    /// The range is beyond the end.
    Beyond,
}

/// Reads a Range header for a file of `size` bytes. Several ranges at once are answered by the whole, as is
/// what is no range: both are allowed, and no agent asks for either.
pub(crate) fn wanted(header: &str, size: u64) -> Wanted {
    let Some((unit, spec)) = header.split_once('=') else { return Wanted::Whole };
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let end = size.saturating_sub(1);
    match (number(first), number(last)) {
        (Some(first), _) if last.is_empty() => part(first, end, size),
        (Some(first), Some(last)) if first <= last => part(first, last.min(end), size),
        (None, Some(0)) if first.is_empty() => Wanted::Beyond,
        (None, Some(count)) if first.is_empty() => part(size.saturating_sub(count), end, size),
        _ => Wanted::Whole,
    }
}

fn part(first: u64, last: u64, size: u64) -> Wanted {
    if first < size { Wanted::Part(first, last) } else { Wanted::Beyond }
}

/// Digits only; more than a u64 holds is as good as its greatest.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (header, expected) in [
            ("bytes=0-", Wanted::Part(0, 9)),
            ("bytes=0-0", Wanted::Part(0, 0)),
            ("BYTES = 3-5", Wanted::Part(3, 5)),
            ("bytes=3-99999999999999999999999", Wanted::Part(3, 9)),
            ("bytes=9-9", Wanted::Part(9, 9)),
            ("bytes=-3", Wanted::Part(7, 9)),
            ("bytes=-10", Wanted::Part(0, 9)),
            ("bytes=-11", Wanted::Part(0, 9)),
            ("bytes=10-", Wanted::Beyond),
            ("bytes=10-20", Wanted::Beyond),
            ("bytes=99999999999999999999999-", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=5-4", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=+1-2", Wanted::Whole),
            ("bytes=1-2,4-5", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("lines=1-2", Wanted::Whole),
            ("bytes", Wanted::Whole),
            ("", Wanted::Whole),
        ] {
            assert_eq!(wanted(header, 10), expected, "{header}");
        }
        assert_eq!(wanted("bytes=0-", 0), Wanted::Beyond);
        assert_eq!(wanted("bytes=-1", 0), Wanted::Beyond);
    }
}
