//! Topics: where a publication belongs, and who may see it.
//!
//! A topic is one to eight levels joined by `/`, in at most 255 bytes: `wells/WELL-001`. An id that came from
//! outside is one level, percent-encoded (RFC 3986 section 2.1), so that a `+`, `#` or `/` in it never means
//! anything here; one with NUL is refused. What follows the first slash is the topic's id.
//!
//! Filters are MQTT's (version 5, section 4.7): `+` is any one level, `#` as the last level is the level
//! before it and all below.

use std::borrow::Cow;
use std::fmt;

use crate::percent;

/// The longest topic or filter, in bytes. One length byte holds it.
pub const MAX_BYTES: usize = 255;
/// The most levels of a topic or filter.
pub const MAX_LEVELS: usize = 8;
/// How many partitions there are. Fixed: where a topic is stored depends on it.
pub const PARTITIONS: usize = 256;

/// Why a text is no topic or no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TopicError {
    /// It, or one of its levels, is empty.
    Empty,
    /// More than [`MAX_BYTES`] bytes, encoded.
    TooLong,
    /// More than [`MAX_LEVELS`] levels.
    TooDeep,
    /// A `+` that is not a whole level, a `#` that is not the whole last one, or either of them in a topic.
    Wildcard,
    /// A byte that has to be percent-encoded, an escape that is not one of UTF-8, or NUL in any form.
    Encoding,
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "it or one of its levels is empty",
            Self::TooLong => "it is longer than 255 bytes",
            Self::TooDeep => "it has more than 8 levels",
            Self::Wildcard => "`+` must be a whole level, `#` the whole last level, and a topic has neither",
            Self::Encoding => "a byte in it must be percent-encoded, or does not decode to UTF-8 without NUL",
        })
    }
}

impl std::error::Error for TopicError {}

/// Checks that `topic` is a topic: within the limits, no wildcard, no byte that had to be encoded.
///
/// # Errors
/// What is wrong with it.
pub fn check(topic: &str) -> Result<(), TopicError> {
    if topic.len() > MAX_BYTES {
        return Err(TopicError::TooLong);
    }
    for (at, level) in topic.split('/').enumerate() {
        if at == MAX_LEVELS {
            return Err(TopicError::TooDeep);
        }
        if level.is_empty() {
            return Err(TopicError::Empty);
        }
        if level.contains(['+', '#']) {
            return Err(TopicError::Wildcard);
        }
        if !level.bytes().all(|byte| byte.is_ascii_graphic()) || percent::decode(level).is_err() {
            return Err(TopicError::Encoding);
        }
    }
    Ok(())
}

/// Appends the topic of an id from outside: `prefix`, which ends in a slash, and the id as one encoded level.
///
/// # Errors
/// If the id is empty or holds NUL, or the topic is too long; then `out` is as before.
pub fn key(prefix: &'static str, raw_id: &str, out: &mut Vec<u8>) -> Result<(), TopicError> {
    if raw_id.is_empty() {
        return Err(TopicError::Empty);
    }
    if raw_id.contains('\0') {
        return Err(TopicError::Encoding);
    }
    let start = out.len();
    out.extend_from_slice(prefix.as_bytes());
    percent::encode_level(raw_id, out);
    if out.len() - start > MAX_BYTES {
        out.truncate(start);
        return Err(TopicError::TooLong);
    }
    Ok(())
}

/// The id that [`key`] was given: what follows the first slash, decoded. (As it stands, where it does not
/// decode, which no topic made by [`key`] is.)
pub fn id(topic: &str) -> Cow<'_, str> {
    let level = encoded_id(topic);
    percent::decode(level).unwrap_or(Cow::Borrowed(level))
}

/// The partition of a topic, which decides its owner shard and its place outside this process.
///
/// FNV-1a over 64 bits, folded to 8 by exclusive or. It must never change: stores and other nodes rely on it.
pub fn partition(topic: &str) -> u8 {
    let hash = topic.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.to_le_bytes().into_iter().fold(0, |folded, byte| folded ^ byte)
}

/// Which topics somebody may see, or wants to.
///
/// A filter of several levels is matched with the whole topic: `wells/+`, `wells/WELL-1`, `#`. One of a single
/// level matches that topic too, and besides every topic whose id it matches: `WELL-1` and `+` in a token say
/// the same as `wells/WELL-1` and `wells/+`, and hold for whatever stands before the id.
///
/// A level may be written as it is, or percent-encoded as in a topic: it is read as encoded if two hexadecimal
/// digits follow every `%` in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Every level but wildcards encoded as [`key`] does it.
    text: Box<str>,
}

impl Filter {
    /// Reads a filter.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        let mut encoded = Vec::with_capacity(text.len());
        let mut levels = text.split('/').peekable();
        let mut count = 0;
        while let Some(level) = levels.next() {
            count += 1;
            match level {
                "" => return Err(TopicError::Empty),
                "#" if levels.peek().is_some() => return Err(TopicError::Wildcard),
                "+" | "#" => encoded.extend_from_slice(level.as_bytes()),
                _ if level.contains(['+', '#']) => return Err(TopicError::Wildcard),
                _ if has_whole_escapes(level) => {
                    let raw = percent::decode(level).map_err(|_| TopicError::Encoding)?;
                    percent::encode_level(&raw, &mut encoded);
                }
                _ if level.contains('\0') => return Err(TopicError::Encoding),
                _ => percent::encode_level(level, &mut encoded),
            }
            if levels.peek().is_some() {
                encoded.push(b'/');
            }
        }
        if count > MAX_LEVELS {
            return Err(TopicError::TooDeep);
        }
        if encoded.len() > MAX_BYTES {
            return Err(TopicError::TooLong);
        }
        let text = String::from_utf8(encoded).map_err(|_| TopicError::Encoding)?;
        Ok(Self { text: text.into_boxed_str() })
    }

    /// Whether `topic` is among those it names.
    pub fn matches(&self, topic: &str) -> bool {
        covers(&self.text, topic) || (!self.text.contains('/') && covers(&self.text, encoded_id(topic)))
    }

    /// The filter, with its levels encoded.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn encoded_id(topic: &str) -> &str {
    topic.split_once('/').map_or(topic, |(_, id)| id)
}

/// MQTT's matching, both texts being well formed.
fn covers(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        if !levels.next().is_some_and(|level| wanted == "+" || wanted == level) {
            return false;
        }
    }
    levels.next().is_none()
}

/// Whether two hexadecimal digits follow every `%`.
fn has_whole_escapes(level: &str) -> bool {
    let is_hex = |byte: &u8| byte.is_ascii_hexdigit();
    level.split('%').skip(1).all(|rest| rest.as_bytes().get(..2).is_some_and(|two| two.iter().all(is_hex)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keyed(prefix: &'static str, id: &str) -> Result<String, TopicError> {
        let mut out = Vec::new();
        key(prefix, id, &mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn topics_are_checked() {
        let long = format!("wells/{}", "x".repeat(MAX_BYTES - 6));
        for (topic, verdict) in [
            ("wells/WELL-001", Ok(())),
            ("iris/overview", Ok(())),
            ("a", Ok(())),
            ("a/b/c/d/e/f/g/h", Ok(())),
            ("wells/a%2Fb", Ok(())),
            (&long, Ok(())),
            (&format!("{long}x"), Err(TopicError::TooLong)),
            ("a/b/c/d/e/f/g/h/i", Err(TopicError::TooDeep)),
            ("", Err(TopicError::Empty)),
            ("/a", Err(TopicError::Empty)),
            ("a/", Err(TopicError::Empty)),
            ("a//b", Err(TopicError::Empty)),
            ("wells/+", Err(TopicError::Wildcard)),
            ("wells/#", Err(TopicError::Wildcard)),
            ("wells/a+b", Err(TopicError::Wildcard)),
            ("wells/a b", Err(TopicError::Encoding)),
            ("wells/a\0", Err(TopicError::Encoding)),
            ("wells/é", Err(TopicError::Encoding)),
            ("wells/50%", Err(TopicError::Encoding)),
            ("wells/%4", Err(TopicError::Encoding)),
            ("wells/%4g", Err(TopicError::Encoding)),
            ("wells/%FF", Err(TopicError::Encoding)),
            ("wells/%00", Err(TopicError::Encoding)),
        ] {
            assert_eq!(check(topic), verdict, "{topic}");
        }
    }

    #[test]
    fn ids_become_one_level() {
        for (raw, topic) in [
            ("WELL-001", "wells/WELL-001"),
            ("a/b", "wells/a%2Fb"),
            ("+", "wells/%2B"),
            ("#", "wells/%23"),
            ("50%", "wells/50%25"),
            ("%41", "wells/%2541"),
            ("بئر", "wells/%D8%A8%D8%A6%D8%B1"),
        ] {
            assert_eq!(keyed("wells/", raw).as_deref(), Ok(topic));
            assert_eq!(id(topic), raw);
        }
        assert_eq!(keyed("wells/", ""), Err(TopicError::Empty));
        assert_eq!(keyed("wells/", "a\0"), Err(TopicError::Encoding));
        assert_eq!(keyed("wells/", &"x".repeat(249)).unwrap().len(), MAX_BYTES);
        assert_eq!(keyed("wells/", &"x".repeat(250)), Err(TopicError::TooLong));
        assert_eq!(keyed("wells/", &"é".repeat(42)), Err(TopicError::TooLong));
        let mut out = b"before".to_vec();
        assert!(key("wells/", &"x".repeat(250), &mut out).is_err());
        assert_eq!(out, b"before");
    }

    #[test]
    fn ids_of_other_topics() {
        for (topic, text) in [("iris/overview", "overview"), ("a/b/c", "b/c"), ("a", "a"), ("a/%zz", "%zz")] {
            assert_eq!(id(topic), text);
        }
    }

    #[test]
    fn filters_match_as_in_mqtt() {
        for (filter, topic, matches) in [
            ("wells/WELL-1", "wells/WELL-1", true),
            ("wells/WELL-1", "wells/WELL-11", false),
            ("wells/WELL-1", "wells/well-1", false),
            ("wells/WELL-1", "wells", false),
            ("wells/WELL-1", "wells/WELL-1/x", false),
            ("wells/+", "wells/WELL-1", true),
            ("wells/+", "wells", false),
            ("wells/+", "wells/a/b", false),
            ("wells/+", "devices/a", false),
            ("+/+", "wells/a", true),
            ("+/+", "a", false),
            ("+/a", "wells/a", true),
            ("+/a/+", "x/a/y", true),
            ("+/a/+", "x/b/y", false),
            ("wells/#", "wells/a", true),
            ("wells/#", "wells/a/b/c", true),
            ("wells/#", "wells", true),
            ("wells/#", "wellsx", false),
            ("wells/+/#", "wells/a", true),
            ("wells/+/#", "wells", false),
            ("#", "wells/a", true),
            ("#", "a", true),
        ] {
            assert_eq!(Filter::parse(filter).unwrap().matches(topic), matches, "{filter} on {topic}");
        }
    }

    #[test]
    fn filters_of_one_level_match_the_id_too() {
        for (filter, topic, matches) in [
            ("WELL-1", "wells/WELL-1", true),
            ("WELL-1", "wells/WELL-2", false),
            ("WELL-1", "WELL-1", true),
            ("WELL-1", "wells/WELL-1/x", false),
            ("WELL-1", "a/b/WELL-1", false),
            ("+", "wells/WELL-1", true),
            ("+", "wells/a/b", false),
            ("wells", "wells/WELL-1", false),
        ] {
            assert_eq!(Filter::parse(filter).unwrap().matches(topic), matches, "{filter} on {topic}");
        }
    }

    #[test]
    fn filters_are_encoded_like_topics() {
        for (filter, text) in [
            ("wells/a b", "wells/a%20b"),
            ("wells/a%20b", "wells/a%20b"),
            ("wells/%d8%a8", "wells/%D8%A8"),
            ("wells/%41", "wells/A"),
            ("بئر", "%D8%A8%D8%A6%D8%B1"),
            ("50%", "50%25"),
            ("50%25", "50%25"),
            ("%41 b", "A%20b"),
            ("%41 50%", "%2541%2050%25"),
            ("wells/%2B", "wells/%2B"),
            ("wells/+/#", "wells/+/#"),
        ] {
            assert_eq!(Filter::parse(filter).unwrap().as_str(), text, "{filter}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        let long = "x".repeat(MAX_BYTES);
        assert!(Filter::parse(&long).is_ok());
        for (filter, error) in [
            ("", TopicError::Empty),
            ("/", TopicError::Empty),
            ("wells/", TopicError::Empty),
            ("/wells", TopicError::Empty),
            ("a//b", TopicError::Empty),
            ("#/a", TopicError::Wildcard),
            ("a/#/b", TopicError::Wildcard),
            ("a+", TopicError::Wildcard),
            ("+a/b", TopicError::Wildcard),
            ("a/b#", TopicError::Wildcard),
            ("##", TopicError::Wildcard),
            ("a/b/c/d/e/f/g/h/i", TopicError::TooDeep),
            ("wells/%FF", TopicError::Encoding),
            ("wells/%00", TopicError::Encoding),
            ("wells/\0", TopicError::Encoding),
            (&format!("{long}x"), TopicError::TooLong),
            (&" ".repeat(86), TopicError::TooLong),
        ] {
            assert_eq!(Filter::parse(filter), Err(error), "{filter}");
        }
    }

    /// Computed by an independent implementation of FNV-1a. If this fails, data is lost: do not adapt it.
    #[test]
    fn partitions_never_change() {
        for (topic, number) in [
            ("", 225),
            ("a", 187),
            ("wells/WELL-001", 170),
            ("wells/WELL-002", 209),
            ("wells/a%2Fb", 65),
            ("devices/X1", 78),
            ("iris/overview", 81),
            ("streams/events", 223),
            ("sensors/V1", 232),
        ] {
            assert_eq!(partition(topic), number, "{topic}");
        }
    }

    #[test]
    fn partitions_are_even() {
        let mut counts = [0_u32; PARTITIONS];
        for well in 0..25_600 {
            counts[usize::from(partition(&format!("wells/WELL-{well:05}")))] += 1;
        }
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 50 && *most < 160, "{least}..{most} where 100 is even");
    }

    /// MQTT's matching, as it is worded, by recursion.
    fn reference(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) => true,
            ([], []) => true,
            ([wanted, filter @ ..], [level, topic @ ..]) => {
                (*wanted == "+" || wanted == level) && reference(filter, topic)
            }
            _ => false,
        }
    }

    fn topics() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop::sample::select(vec!["a", "b", "c%2F"]), 1..=4)
            .prop_map(|levels| levels.join("/"))
    }

    fn filters() -> impl Strategy<Value = String> {
        let level = prop::sample::select(vec!["a", "b", "c%2F", "+", "+"]);
        (proptest::collection::vec(level, 0..=4), any::<bool>()).prop_map(|(mut levels, all)| {
            if all || levels.is_empty() {
                levels.push("#");
            }
            levels.join("/")
        })
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_wording(filter in filters(), topic in topics()) {
            let wanted: Vec<_> = filter.split('/').collect();
            let levels: Vec<_> = topic.split('/').collect();
            let id = if levels.len() > 1 { &levels[1..] } else { &levels[..] };
            let expected = reference(&wanted, &levels) || (wanted.len() == 1 && reference(&wanted, id));
            prop_assert_eq!(Filter::parse(&filter).unwrap().matches(&topic), expected);
        }

        #[test]
        fn any_id_comes_back(raw in any::<String>()) {
            if let Ok(topic) = keyed("wells/", &raw) {
                prop_assert_eq!(check(&topic), Ok(()));
                prop_assert_eq!(topic.split('/').count(), 2);
                prop_assert_eq!(id(&topic), raw);
                prop_assert!(Filter::parse(&topic).unwrap().matches(&topic));
            } else {
                prop_assert!(raw.is_empty() || raw.contains('\0') || raw.len() * 3 + 6 > MAX_BYTES);
            }
        }

        #[test]
        fn any_filter_ends_in_an_answer(text in any::<String>(), topic in topics()) {
            if let Ok(filter) = Filter::parse(&text) {
                filter.matches(&topic);
                let again = Filter::parse(filter.as_str());
                prop_assert_eq!(again, Ok(filter));
            }
        }
    }
}
