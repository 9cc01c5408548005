//! Values with units, and the other simple types of keys.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::section::{Setting, Written};
use super::source::{ConfigError, Node, Problem, Value};

/// Units of time and their milliseconds, largest first.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
/// Units of size and their bytes. Of several that divide a size, the first is written.
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("KB", 1000),
    ("B", 1),
];

/// A number of bytes. KB, MB and GB are decimal; KiB, MiB and GiB are binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub usize);

/// Reads a duration such as `10s`: a whole number and ms, s, m, h or d.
pub fn duration(text: &str) -> Option<Duration> {
    measure(text, &TIMES).map(Duration::from_millis)
}

/// A value that is text in a file.
pub(crate) trait Text: Sized {
    /// What it takes, for messages.
    const EXPECTED: &'static str;
    /// Whether what was given must not be shown.
    const SECRET: bool = false;
    /// Whether a number may stand for its digits.
    const DIGITS: bool = false;
    /// Reads it.
    fn from_text(text: &str) -> Option<Self>;
    /// Writes it, so that reading gives the same.
    fn to_text(&self) -> String;
    /// Whether it is in a range.
    fn is_within(&self, _low: &str, _high: &str) -> bool {
        true
    }
}

/// Implements [`Setting`] by [`Text`].
macro_rules! texts {
    ($($type:ty),*) => {$(
        impl $crate::config::section::Setting for $type {
            fn read(node: &$crate::config::source::Node, key: &str)
                -> Result<Self, $crate::config::ConfigError>
            {
                $crate::config::units::read_text(node, key)
            }
            fn write(&self) -> $crate::config::section::Written {
                $crate::config::units::write_text(self)
            }
            fn is_within(&self, low: &str, high: &str) -> bool {
                $crate::config::units::Text::is_within(self, low, high)
            }
        }
    )*};
}
pub(crate) use texts;

texts!(Duration, Size, String, PathBuf);

pub(crate) fn read_text<T: Text>(node: &Node, key: &str) -> Result<T, ConfigError> {
    let value = match &node.value {
        Value::Text(text) | Value::Raw(text) => T::from_text(text),
        Value::Integer(number) if T::DIGITS => T::from_text(&number.to_string()),
        _ => None,
    };
    value.ok_or_else(|| {
        let found = match T::SECRET {
            true => "something else (not shown)".into(),
            false => node.value.to_string(),
        };
        let problem = Problem::Expected { expected: T::EXPECTED.into(), found };
        ConfigError { place: node.place.clone(), key: key.into(), problem }
    })
}

pub(crate) fn write_text<T: Text>(value: &T) -> Written {
    match T::SECRET {
        true => Written::Secret,
        false => Written::Value(toml::Value::String(value.to_text()).to_string()),
    }
}

impl Text for Duration {
    const EXPECTED: &'static str = r#"a duration with its unit (ms, s, m, h, d), such as "10s""#;

    fn from_text(text: &str) -> Option<Self> {
        duration(text)
    }
    fn to_text(&self) -> String {
        written(u64::try_from(self.as_millis()).unwrap_or(u64::MAX), &TIMES)
    }
    fn is_within(&self, low: &str, high: &str) -> bool {
        duration(low) <= Some(*self) && Some(*self) <= duration(high)
    }
}

impl Text for Size {
    const EXPECTED: &'static str = r#"a size with its unit (B, KB, MB, GB, KiB, MiB, GiB), such as "16KiB""#;

    fn from_text(text: &str) -> Option<Self> {
        measure(text, &SIZES).and_then(|bytes| usize::try_from(bytes).ok()).map(Self)
    }
    fn to_text(&self) -> String {
        written(self.0 as u64, &SIZES)
    }
    fn is_within(&self, low: &str, high: &str) -> bool {
        Self::from_text(low) <= Some(*self) && Some(*self) <= Self::from_text(high)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl Text for String {
    const EXPECTED: &'static str = "a text that is not empty";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
    fn to_text(&self) -> String {
        self.clone()
    }
}

impl Text for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn from_text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| text.into())
    }
    fn to_text(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

impl Setting for usize {
    fn read(node: &Node, key: &str) -> Result<Self, ConfigError> {
        let number = match &node.value {
            Value::Integer(number) => Self::try_from(*number).ok(),
            Value::Raw(text) => text.parse().ok(),
            _ => None,
        };
        number.ok_or_else(|| node.expected(key, "a whole number"))
    }
    fn write(&self) -> Written {
        Written::Value(self.to_string())
    }
    fn is_within(&self, low: &str, high: &str) -> bool {
        low.parse().is_ok_and(|low| *self >= low) && high.parse().is_ok_and(|high| *self <= high)
    }
}

impl Setting for bool {
    fn read(node: &Node, key: &str) -> Result<Self, ConfigError> {
        match &node.value {
            Value::Boolean(truth) => Ok(*truth),
            Value::Raw(text) if text == "true" => Ok(true),
            Value::Raw(text) if text == "false" => Ok(false),
            _ => Err(node.expected(key, "true or false")),
        }
    }
    fn write(&self) -> Written {
        Written::Value(self.to_string())
    }
}

impl<T: Setting> Setting for Option<T> {
    fn read(node: &Node, key: &str) -> Result<Self, ConfigError> {
        T::read(node, key).map(Some)
    }
    fn write(&self) -> Written {
        self.as_ref().map_or(Written::Unset, T::write)
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: Text> Setting for Vec<T> {
    fn read(node: &Node, key: &str) -> Result<Self, ConfigError> {
        let Value::List(list) = &node.value else { return Err(node.expected(key, "a list")) };
        let entry = |(index, node)| read_text(node, &format!("{key}.{index}"));
        list.iter().enumerate().map(entry).collect()
    }
    fn write(&self) -> Written {
        let texts = self.iter().map(|entry| toml::Value::String(entry.to_text()));
        Written::Value(toml::Value::Array(texts.collect()).to_string())
    }
    fn absent() -> Option<Self> {
        Some(Self::new())
    }
}

fn measure(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let &(_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(factor)
}

fn written(amount: u64, units: &[(&str, u64)]) -> String {
    let fits = |&&(_, factor): &&(&str, u64)| amount.is_multiple_of(factor) && amount >= factor;
    match units.iter().find(fits) {
        Some((unit, factor)) => format!("{}{unit}", amount / factor),
        // Zero: the smallest unit.
        None => format!("0{}", units[units.len() - 1].0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_and_sizes_are_read_in_every_unit() {
        for (text, millis) in [
            ("0ms", Some(0)),
            ("250ms", Some(250)),
            ("10s", Some(10_000)),
            ("3m", Some(180_000)),
            ("1h", Some(3_600_000)),
            ("7d", Some(604_800_000)),
            ("10", None),
            ("s", None),
            ("", None),
            ("10 s", None),
            ("-1s", None),
            ("1.5s", None),
            ("10S", None),
            ("1w", None),
            ("18446744073709551615s", None),
            ("99999999999999999999ms", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
        for (text, bytes) in [
            ("0B", Some(0)),
            ("12B", Some(12)),
            ("1KB", Some(1000)),
            ("1KiB", Some(1024)),
            ("1MB", Some(1_000_000)),
            ("8MiB", Some(8 << 20)),
            ("2GB", Some(2_000_000_000)),
            ("4GiB", Some(4 << 30)),
            ("1024", None),
            ("1kb", None),
            ("1K", None),
            ("1 KiB", None),
            ("99999999999GiB", None),
        ] {
            assert_eq!(Size::from_text(text), bytes.map(Size), "{text}");
        }
    }

    #[test]
    fn the_largest_whole_unit_is_written() {
        for (text, written) in [
            ("0s", "0ms"),
            ("1000ms", "1s"),
            ("90s", "90s"),
            ("60m", "1h"),
            ("48h", "2d"),
            ("1001ms", "1001ms"),
        ] {
            assert_eq!(duration(text).unwrap().to_text(), written);
        }
        for (text, written) in [("0KiB", "0B"), ("1024KiB", "1MiB"), ("1000KB", "1MB"), ("1500B", "1500B")] {
            assert_eq!(Size::from_text(text).unwrap().to_string(), written);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(amount in any::<u64>(), shift in 0u32..64) {
            let amount = amount >> shift;
            let time = Duration::from_millis(amount);
            prop_assert_eq!(duration(&time.to_text()), Some(time));
            let size = Size(amount as usize);
            prop_assert_eq!(Size::from_text(&size.to_text()), Some(size));
        }

        #[test]
        fn a_unit_means_what_it_says(amount in 0u64..1_000_000_000, unit in 0usize..7) {
            let (name, factor) = SIZES[unit];
            let size = Size::from_text(&format!("{amount}{name}"));
            prop_assert_eq!(size, Some(Size((amount * factor) as usize)));
        }
    }
}
