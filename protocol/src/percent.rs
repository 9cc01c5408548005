//! Percent-encoding (RFC 3986 section 2.1): what URLs carry, and one topic level at a time.

use std::borrow::Cow;

/// Why a piece of an URL cannot be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PercentError {
    /// A `%` without two hexadecimal digits behind it.
    Malformed,
    /// The bytes decoded are not UTF-8.
    NotUtf8,
    /// A NUL, encoded or not.
    Nul,
}

/// Decodes a path or a part of one. `+` stands for itself. Borrows where nothing is encoded.
///
/// # Errors
/// Any [`PercentError`].
pub fn decode(input: &str) -> Result<Cow<'_, str>, PercentError> {
    decode_with(input, false)
}

/// Decodes a name or value of a query, where `+` stands for a space (URL standard,
/// application/x-www-form-urlencoded). Borrows where nothing is encoded.
///
/// # Errors
/// Any [`PercentError`].
pub fn decode_form(input: &str) -> Result<Cow<'_, str>, PercentError> {
    decode_with(input, true)
}

/// The `name=value` pairs of a query without its `?`, as sent; a name without `=` has an empty value. Nothing
/// between two `&` is no pair.
pub fn query(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// The decoded value of the first pair of `query` whose decoded name is `name`; `None` if there is none.
///
/// # Errors
/// Any [`PercentError`] of the value. A name that cannot be decoded is not `name`.
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<Result<Cow<'a, str>, PercentError>> {
    self::query(query)
        .find(|(key, _)| decode_form(key).is_ok_and(|key| key == name))
        .map(|(_, value)| decode_form(value))
}

/// Appends `raw` with everything encoded but the unreserved characters (RFC 3986 section 2.3): letters, digits
/// and `-._~`. So no `/`, `+`, `#`, `%` or NUL of `raw` is left to be taken for syntax.
pub fn encode_level(raw: &str, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in raw.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(byte);
        } else {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 0x0f));
            out.extend_from_slice(&[b'%', DIGITS[high], DIGITS[low]]);
        }
    }
}

fn decode_with(input: &str, plus_is_space: bool) -> Result<Cow<'_, str>, PercentError> {
    if input.contains('\0') {
        return Err(PercentError::Nul);
    }
    if !input.bytes().any(|b| b == b'%' || (plus_is_space && b == b'+')) {
        return Ok(Cow::Borrowed(input));
    }
    let mut decoded = Vec::with_capacity(input.len());
    let mut rest = input.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        decoded.push(match byte {
            b'%' => {
                let [high, low, tail @ ..] = tail else {
                    return Err(PercentError::Malformed);
                };
                rest = tail;
                hex(*high)? << 4 | hex(*low)?
            }
            b'+' if plus_is_space => b' ',
            _ => *byte,
        });
    }
    if decoded.contains(&0) {
        return Err(PercentError::Nul);
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| PercentError::NotUtf8)
}

fn hex(digit: u8) -> Result<u8, PercentError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(PercentError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PercentError::*;
    use proptest::prelude::*;

    #[test]
    fn decodes() {
        let rows = [
            ("", Ok("")),
            ("WELL-001", Ok("WELL-001")),
            ("a%20b", Ok("a b")),
            ("a+b", Ok("a+b")),
            ("%2F%2f%25", Ok("//%")),
            ("%2541", Ok("%41")),
            ("%C3%A4", Ok("\u{e4}")),
            ("\u{e4}%41", Ok("\u{e4}A")),
            ("%", Err(Malformed)),
            ("a%4", Err(Malformed)),
            ("%%41", Err(Malformed)),
            ("%4g", Err(Malformed)),
            ("%+1", Err(Malformed)),
            ("% 1", Err(Malformed)),
            ("%4\u{e4}", Err(Malformed)),
            ("%C3", Err(NotUtf8)),
            ("%FF", Err(NotUtf8)),
            ("%C0%80", Err(NotUtf8)),
            ("%ED%A0%80", Err(NotUtf8)),
            ("a%00", Err(Nul)),
            ("a\0", Err(Nul)),
            ("a\0%41", Err(Nul)),
        ];
        for (input, expected) in rows {
            assert_eq!(decode(input).as_deref(), expected.as_ref().copied(), "{input:?}");
        }
    }

    #[test]
    fn decodes_forms() {
        let rows = [("a+b", Ok("a b")), ("a%2Bb+", Ok("a+b ")), ("%20", Ok(" ")), ("+%", Err(Malformed))];
        for (input, expected) in rows {
            assert_eq!(decode_form(input).as_deref(), expected.as_ref().copied(), "{input:?}");
        }
    }

    #[test]
    fn borrows_where_nothing_is_encoded() {
        assert!(matches!(decode("a+b"), Ok(Cow::Borrowed("a+b"))));
        assert!(matches!(decode_form("ab"), Ok(Cow::Borrowed("ab"))));
    }

    #[test]
    fn splits_queries() {
        let rows: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("&&", &[]),
            ("a", &[("a", "")]),
            ("a=", &[("a", "")]),
            ("=a", &[("", "a")]),
            ("a=b=c&d=%20&&a=e", &[("a", "b=c"), ("d", "%20"), ("a", "e")]),
        ];
        for (input, expected) in rows {
            assert_eq!(query(input).collect::<Vec<_>>(), *expected, "{input:?}");
        }
    }

    #[test]
    fn finds_values() {
        let input = "limit=5&%66rom=a+b%2Bc&%zz=1&limit=6&bad=%zz&flag";
        let rows = [
            ("limit", Some(Ok("5"))),
            ("from", Some(Ok("a b+c"))),
            ("flag", Some(Ok(""))),
            ("bad", Some(Err(Malformed))),
            ("%66rom", None),
            ("%zz", None),
            ("Limit", None),
            ("", None),
        ];
        for (name, expected) in rows {
            let value = query_value(input, name);
            let value = value.as_ref().map(|value| value.as_deref().map_err(|error| *error));
            assert_eq!(value, expected, "{name}");
        }
    }

    #[test]
    fn encodes() {
        let rows = [
            ("WELL-001_a.b~", "WELL-001_a.b~"),
            ("+#/\0%", "%2B%23%2F%00%25"),
            (" ?&=:", "%20%3F%26%3D%3A"),
            ("\u{e4}", "%C3%A4"),
        ];
        for (raw, expected) in rows {
            let mut out = b"wells/".to_vec();
            encode_level(raw, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("wells/{expected}"));
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes_to_itself(raw in any::<String>()) {
            let mut out = Vec::new();
            encode_level(&raw, &mut out);
            let encoded = String::from_utf8(out).unwrap();
            prop_assert!(encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
            let expected = if raw.contains('\0') { Err(Nul) } else { Ok(Cow::Owned(raw)) };
            prop_assert_eq!(&decode(&encoded), &expected);
            prop_assert_eq!(&decode_form(&encoded), &expected);
        }

        #[test]
        fn nothing_panics(input in "[%+0-9a-fA-F&=\0g\u{e4}]{0,40}", name in "[a-f]{0,2}") {
            let decoded = decode(&input);
            prop_assert!(!decoded.is_ok_and(|text| text.contains('\0')));
            prop_assert!(query(&input).all(|(name, _)| !name.contains(['=', '&'])));
            if let Some(value) = query_value(&input, &name) {
                prop_assert!(!value.is_ok_and(|text| text.contains('\0')));
            }
        }
    }
}
