//! `Retry-After`: seconds or an HTTP date (RFC 9110 §10.2.3).

use core::time::Duration;

use crate::clock::Wall;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];

/// How long the server asks to wait, counted from `now`. A date in the past is zero; what is neither a number
/// nor a date is [`None`].
#[must_use]
pub fn parse(value: &str, now: Wall) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number too large for us is still a number: whoever uses it has a bound of their own.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    Some(date(value)?.saturating_sub(now.0))
}

/// Time since 1970 of an HTTP date in any of its three forms: they differ only in order and separators.
pub(crate) fn date(text: &str) -> Option<Duration> {
    let (mut day, mut month, mut year, mut time) = (None, None, None, None);
    for word in text.split([' ', ',', '-']).filter(|word| !word.is_empty()) {
        if word.contains(':') {
            time = Some(clock_time(word)?);
        } else if let Ok(number) = word.parse::<u64>() {
            match (day, word.len()) {
                (None, 1 | 2) => day = Some(number),
                (_, 4) => year = Some(number),
                // RFC 850 dates have two digits; those of our century.
                (Some(_), 2) => {
                    year = Some(number.checked_add(if number < 70 { 2000 } else { 1900 })?);
                }
                _ => return None,
            }
        } else if let Some(found) = word.get(..3).and_then(month_number) {
            month = Some(found);
        }
    }
    let days = days_since_1970(year?, month?, day?)?;
    Some(Duration::from_secs(days.checked_mul(86_400)?.checked_add(time?)?))
}

fn month_number(name: &str) -> Option<u64> {
    let at = MONTHS.iter().position(|month| month.eq_ignore_ascii_case(name))?;
    u64::try_from(at).ok()?.checked_add(1)
}

/// Seconds since midnight of `12:34:56`.
pub(crate) fn clock_time(text: &str) -> Option<u64> {
    let mut parts = text.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let in_range = hours < 24 && minutes < 60 && seconds < 61 && parts.next().is_none();
    in_range.then_some(())?;
    hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?.checked_add(seconds)
}

/// Days from 1 January 1970 in the Gregorian calendar, by whole 400-year eras that begin in March.
pub(crate) fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let shifted_year = if month <= 2 { year.checked_sub(1)? } else { year };
    let shifted_month = if month <= 2 { month.checked_add(9)? } else { month.checked_sub(3)? };
    let day_of_year = shifted_month
        .checked_mul(153)?
        .checked_add(2)?
        .checked_div(5)?
        .checked_add(day)?
        .checked_sub(1)?;
    let leap_days = shifted_year
        .checked_div(4)?
        .checked_sub(shifted_year.checked_div(100)?)?
        .checked_add(shifted_year.checked_div(400)?)?;
    // 719 468 days lie between 1 March of year 0 and 1970.
    shifted_year
        .checked_mul(365)?
        .checked_add(leap_days)?
        .checked_add(day_of_year)?
        .checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Wall = Wall(Duration::from_secs(784_111_777)); // 1994-11-06 08:49:37

    #[test]
    fn seconds_and_all_three_kinds_of_date() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("120", Some(120)),
            (" 7 ", Some(7)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("Wed, 01 Jan 2070 00:00:00 GMT", Some(3_155_760_000 - 784_111_777)),
            ("", None),
            ("-5", None),
            ("soon", None),
            ("Sun, 06 Nov 1994", None),
            ("Sun, 32 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ] {
            assert_eq!(parse(text, NOW), seconds.map(Duration::from_secs), "{text:?}");
        }
    }
}
