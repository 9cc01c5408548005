//! Timestamps: RFC 3339 text and milliseconds since the Unix epoch (UTC, leap seconds not counted).

/// 9999-12-31T23:59:59.999Z, the last moment that RFC 3339 has a text for.
pub const MAX_MS: u64 = 253_402_300_799_999;

const MS_PER_DAY: u64 = 86_400_000;

/// Appends `ms` as e.g. `2025-11-20T10:30:00Z`, or `2025-11-20T10:30:00.123Z` where it is not a whole second.
/// What is later than [`MAX_MS`] is written as that.
pub fn write_rfc3339(ms: u64, out: &mut Vec<u8>) {
    let ms = ms.min(MAX_MS);
    let (year, month, day) = date_of(ms / MS_PER_DAY);
    let second = (ms % MS_PER_DAY / 1000) as u32;
    let pair = |n: u32| [b'0' + (n / 10) as u8, b'0' + (n % 10) as u8];
    let ([y1, y2], [y3, y4]) = (pair(year / 100), pair(year % 100));
    let ([o1, o2], [d1, d2]) = (pair(month), pair(day));
    let ([h1, h2], [m1, m2], [s1, s2]) = (pair(second / 3600), pair(second / 60 % 60), pair(second % 60));
    out.extend_from_slice(&[
        y1, y2, y3, y4, b'-', o1, o2, b'-', d1, d2, b'T', h1, h2, b':', m1, m2, b':', s1, s2,
    ]);
    let fraction = (ms % 1000) as u32;
    if fraction != 0 {
        let [f2, f3] = pair(fraction % 100);
        out.extend_from_slice(&[b'.', b'0' + (fraction / 100) as u8, f2, f3]);
    }
    out.push(b'Z');
}

/// Appends `ms` as an IMF-fixdate (RFC 9110 section 5.6.7), e.g. `Thu, 20 Nov 2025 10:30:00 GMT`.
pub fn write_http_date(ms: u64, out: &mut Vec<u8>) {
    const DAYS: [&[u8]; 7] = [b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed"];
    const MONTHS: [&[u8]; 12] =
        [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];
    let ms = ms.min(MAX_MS) / 1000 * 1000;
    let (_, month, _) = date_of(ms / MS_PER_DAY);
    // The digits stand in `2025-11-20T10:30:00Z`.
    let mut text = Vec::with_capacity(20);
    write_rfc3339(ms, &mut text);
    for part in [
        DAYS[(ms / MS_PER_DAY % 7) as usize],
        b", ",
        &text[8..10],
        b" ",
        MONTHS[month as usize - 1],
        b" ",
        &text[..4],
        b" ",
        &text[11..19],
        b" GMT",
    ] {
        out.extend_from_slice(part);
    }
}

/// Reads an RFC 3339 `date-time` (section 5.6): offsets are converted, what is finer than a millisecond is cut
/// off, second 60 is the next minute's first where a leap second can stand (23:59 UTC). Nothing if `text` is
/// anything else, or a moment before 1970 or after [`MAX_MS`].
pub fn parse_rfc3339(text: &str) -> Option<u64> {
    let (date, rest) = text.as_bytes().split_at_checked(19)?;
    let [y1, y2, y3, y4, b'-', o1, o2, b'-', d1, d2, b'T' | b't', h1, h2, b':', m1, m2, b':', s1, s2] = *date
    else {
        return None;
    };
    let (year, month, day) = (number(&[y1, y2, y3, y4])?, number(&[o1, o2])?, number(&[d1, d2])?);
    let (hour, minute, second) = (number(&[h1, h2])?, number(&[m1, m2])?, number(&[s1, s2])?);
    if !(1..=12).contains(&month) || day == 0 || day > days_in(year, month) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let (fraction, rest) = fraction(rest)?;
    // Minutes, and in signed arithmetic: an offset can reach back over the epoch.
    let local = days_before(year, month, day) * 1440 + i64::from(hour * 60 + minute);
    let utc = local - offset(rest)?;
    if second == 60 && utc.rem_euclid(1440) != 1439 {
        return None;
    }
    let ms = (utc * 60 + i64::from(second)) * 1000 + i64::from(fraction);
    u64::try_from(ms).ok().filter(|&ms| ms <= MAX_MS)
}

/// The milliseconds of a fraction such as `.123456`, none if there is no fraction, and what follows it.
fn fraction(text: &[u8]) -> Option<(u32, &[u8])> {
    let Some(text) = text.strip_prefix(b".") else {
        return Some((0, text));
    };
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(digits);
    if digits.is_empty() {
        return None;
    }
    let ms = (0..3).fold(0, |ms, at| ms * 10 + digits.get(at).map_or(0, |byte| u32::from(byte - b'0')));
    Some((ms, rest))
}

/// Minutes that local time is ahead of UTC.
fn offset(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match *text {
        [b'Z' | b'z'] => return Some(0),
        [b'+', h1, h2, b':', m1, m2] => (1, [h1, h2, m1, m2]),
        [b'-', h1, h2, b':', m1, m2] => (-1, [h1, h2, m1, m2]),
        _ => return None,
    };
    let (hours, minutes) = (number(&digits[..2])?, number(&digits[2..])?);
    (hours <= 23 && minutes <= 59).then(|| sign * i64::from(hours * 60 + minutes))
}

fn number(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |n, byte| byte.is_ascii_digit().then(|| n * 10 + u32::from(byte - b'0')))
}

fn days_in(year: u32, month: u32) -> u32 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The Gregorian calendar repeats every 400 years, of so many days.
const DAYS_PER_ERA: u64 = 146_097;
/// From 0000-03-01 to 1970-01-01. Years are counted from March, so that the leap day is a year's last.
const DAYS_TO_EPOCH: u64 = 719_468;

/// Year, month and day of a day counted from the epoch.
fn date_of(day: u64) -> (u32, u32, u32) {
    let day = day + DAYS_TO_EPOCH;
    let (era, day) = (day / DAYS_PER_ERA, day % DAYS_PER_ERA);
    // Every 4th year is longer by a day, save every 100th, save the 400th.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 31 30 31 30 31 days, twice and then two more: 153 days in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    ((era * 400 + year + next) as u32, month as u32, day as u32)
}

/// Days from the epoch to a date, negative before it.
fn days_before(year: u32, month: u32, day: u32) -> i64 {
    let (year, month) = match month {
        3.. => (i64::from(year), month - 3),
        // January and February end the year before, which may be year -1: hence the Euclidean division.
        _ => (i64::from(year) - 1, month + 9),
    };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day = i64::from((153 * month + 2) / 5 + day - 1);
    era * DAYS_PER_ERA as i64 + 365 * year + year / 4 - year / 100 + day - DAYS_TO_EPOCH as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(ms: u64) -> String {
        let mut out = Vec::new();
        write_rfc3339(ms, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn moments_have_one_text() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (1, "1970-01-01T00:00:00.001Z"),
            (10, "1970-01-01T00:00:00.010Z"),
            (999, "1970-01-01T00:00:00.999Z"),
            (86_399_999, "1970-01-01T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (951_868_800_000, "2000-03-01T00:00:00Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00Z"),
            (1_763_634_600_000, "2025-11-20T10:30:00Z"),
            (1_763_634_600_123, "2025-11-20T10:30:00.123Z"),
            (1_767_225_599_000, "2025-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
            (MAX_MS, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(written(ms), text);
            assert_eq!(parse_rfc3339(text), Some(ms), "{text}");
        }
        assert_eq!(written(MAX_MS + 1), "9999-12-31T23:59:59.999Z");
        assert_eq!(written(u64::MAX), "9999-12-31T23:59:59.999Z");
    }

    #[test]
    fn other_spellings_are_read() {
        for (text, same) in [
            ("2025-11-20T13:30:00+03:00", "2025-11-20T10:30:00Z"),
            ("2025-11-20T05:00:00-05:30", "2025-11-20T10:30:00Z"),
            ("2025-11-20T10:30:00-00:00", "2025-11-20T10:30:00Z"),
            ("2025-11-20t10:30:00z", "2025-11-20T10:30:00Z"),
            ("2025-11-20T10:30:00.1Z", "2025-11-20T10:30:00.100Z"),
            ("2025-11-20T10:30:00.12Z", "2025-11-20T10:30:00.120Z"),
            ("2025-11-20T10:30:00.1239999999999999999999Z", "2025-11-20T10:30:00.123Z"),
            ("2025-11-20T10:30:00.000000+00:00", "2025-11-20T10:30:00Z"),
            ("2026-01-01T02:00:00+03:00", "2025-12-31T23:00:00Z"),
            ("1969-12-31T23:00:00-01:00", "1970-01-01T00:00:00Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
            ("2017-01-01T02:59:60+03:00", "2017-01-01T00:00:00Z"),
        ] {
            assert_eq!(parse_rfc3339(text).map(written).as_deref(), Some(same), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_nothing() {
        for text in [
            "",
            "now",
            "1763634600000",
            "2025-11-20",
            "2025-11-20T10:30:00",
            "2025-11-20T10:30Z",
            "2025-11-20 10:30:00Z",
            " 2025-11-20T10:30:00Z",
            "2025-11-20T10:30:00Z ",
            "2025-11-20T10:30:00ZZ",
            "2025-11-20T10:30:00.Z",
            "2025-11-20T10:30:00,5Z",
            "2025-11-20T10:30:00+0300",
            "2025-11-20T10:30:00+03",
            "2025-11-20T10:30:00+24:00",
            "2025-11-20T10:30:00+03:60",
            "2025-11-20T10:30:00*03:00",
            "2025-00-20T10:30:00Z",
            "2025-13-20T10:30:00Z",
            "2025-11-00T10:30:00Z",
            "2025-11-31T10:30:00Z",
            "2025-02-29T10:30:00Z",
            "2100-02-29T10:30:00Z",
            "2025-11-20T24:00:00Z",
            "2025-11-20T10:60:00Z",
            "2025-11-20T10:30:61Z",
            "2025-11-20T10:30:60Z",
            "2025-11-20T23:59:60+01:00",
            "20２5-11-20T10:30:00Z",
            "+025-11-20T10:30:00Z",
            "1969-12-31T23:59:59.999Z",
            "1970-01-01T00:59:59+01:00",
            "0000-01-01T00:00:00Z",
            "9999-12-31T23:59:59-00:01",
            "12025-11-20T10:30:00Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for count in 0..=MAX_MS / MS_PER_DAY {
            assert_eq!(date_of(count), (year, month, day));
            assert_eq!(days_before(year, month, day), count as i64);
            day += 1;
            if day > days_in(year, month) {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
        assert_eq!((year, month, day), (10_000, 1, 1));
    }

    proptest! {
        #[test]
        fn texts_come_back(ms in 0..=MAX_MS, offset in -1439_i64..=1439) {
            prop_assert_eq!(parse_rfc3339(&written(ms)), Some(ms));
            let local = ms as i64 + offset * 60_000;
            if (0..=MAX_MS as i64).contains(&local) {
                let text = written(local as u64);
                let sign = if offset < 0 { '-' } else { '+' };
                let minutes = offset.abs();
                let text =
                    format!("{}{sign}{:02}:{:02}", text.trim_end_matches('Z'), minutes / 60, minutes % 60);
                prop_assert_eq!(parse_rfc3339(&text), Some(ms), "{}", text);
            }
        }

        #[test]
        fn any_text_ends_in_an_answer(text in "[0-9TZ:.+-]{0,30}") {
            if let Some(ms) = parse_rfc3339(&text) {
                prop_assert!(ms <= MAX_MS);
            }
        }
    }

    #[test]
    fn http_dates() {
        for (ms, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777_999, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_763_634_600_000, "Thu, 20 Nov 2025 10:30:00 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            let mut out = Vec::new();
            write_http_date(ms, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
