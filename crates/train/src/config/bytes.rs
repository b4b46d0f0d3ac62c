//! Amounts of memory as people write them, and the setting that is one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `2GB`, `1.5GiB`, `800 MB`, `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("b", 1),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            format!(
                "`{text}` is no amount of memory, expected bytes or a number with KB, MB, GB, TB, KiB, MiB, GiB or TiB, such as 1.5GiB"
            )
        };
        let trimmed = text.trim();
        let digits = |c: char| !(c.is_ascii_digit() || c == '.');
        let (number, unit) = trimmed.split_at(trimmed.find(digits).unwrap_or(trimmed.len()));
        let unit = unit.trim_start().to_ascii_lowercase();
        let factor = match unit.as_str() {
            "" => 1,
            unit => {
                UNITS
                    .iter()
                    .find(|(name, _)| *name == unit)
                    .ok_or_else(expected)?
                    .1
            }
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(ByteSize).ok_or_else(expected);
        }
        let bytes = number.parse::<f64>().map_err(|_| expected())? * factor as f64;
        // Parts of a byte are a slip of the unit; beyond 2^53 a fraction is no longer exact, and no
        // machine is that large.
        if factor == 1 || bytes >= (1u64 << 53) as f64 {
            return Err(expected());
        }
        Ok(ByteSize(bytes as u64))
    }
}

/// Plain bytes, which read back as the same.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.0)
    }
}

/// What a file can hold: a number, or text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let expected = "expected an amount of memory such as 2GB";
        match Written::deserialize(from).map_err(|_| serde::de::Error::custom(expected))? {
            Written::Number(bytes) => Ok(ByteSize(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

/// How much memory may hold what frozen layers give, so that it is not computed again each epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixCacheLimit {
    /// What the machine, or the limit of the run, can spare.
    #[default]
    Auto,
    /// Nothing is kept.
    Off,
    /// So many bytes.
    Bytes(ByteSize),
}

impl FromStr for PrefixCacheLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(PrefixCacheLimit::Auto),
            "off" => Ok(PrefixCacheLimit::Off),
            size => size
                .parse()
                .map(PrefixCacheLimit::Bytes)
                .map_err(|error: String| format!("{error}; or auto, or off")),
        }
    }
}

impl Serialize for PrefixCacheLimit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            PrefixCacheLimit::Auto => to.serialize_str("auto"),
            PrefixCacheLimit::Off => to.serialize_str("off"),
            PrefixCacheLimit::Bytes(bytes) => bytes.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for PrefixCacheLimit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let expected = "expected auto, off or an amount of memory such as 2GB";
        match Written::deserialize(from).map_err(|_| serde::de::Error::custom(expected))? {
            Written::Number(bytes) => Ok(PrefixCacheLimit::Bytes(ByteSize(bytes))),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let good = [
            ("2GB", 2_000_000_000),
            ("1.5GiB", 3 << 29),
            ("800MB", 800_000_000),
            ("800 mb", 800_000_000),
            (" 512KiB ", 512 << 10),
            ("0.5kb", 500),
            ("12345", 12345),
            ("12345B", 12345),
            ("0", 0),
            ("16TiB", 16 << 40),
        ];
        for (text, bytes) in good {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        let bad = [
            "",
            "GB",
            "2G",
            "two GB",
            "-1GB",
            "1.5",
            "1.5B",
            "1e9",
            "1..5GB",
            "1.5.2GB",
            "2GBs",
            "2 G B",
            "NaN",
            "inf",
            "99999999999TB",
            "18446744073709551616",
            "9999999.5TB",
        ];
        for text in bad {
            let error = text.parse::<ByteSize>().unwrap_err();
            assert!(error.contains(text) && error.contains("GiB"), "{error}");
        }
    }

    #[test]
    fn settings_survive_json() {
        for text in ["auto", "off", "3GB"] {
            let setting: PrefixCacheLimit = text.parse().unwrap();
            let json = serde_json::to_string(&setting).unwrap();
            assert_eq!(
                serde_json::from_str::<PrefixCacheLimit>(&json).unwrap(),
                setting
            );
        }
        assert_eq!(
            serde_json::from_str::<ByteSize>("\"2GB\"").unwrap(),
            ByteSize(2_000_000_000)
        );
        for bad in ["\"2G\"", "-1", "true", "[1]", "1.5"] {
            assert!(serde_json::from_str::<ByteSize>(bad).is_err(), "{bad}");
            assert!(
                serde_json::from_str::<PrefixCacheLimit>(bad).is_err(),
                "{bad}"
            );
        }
        assert!(
            "none"
                .parse::<PrefixCacheLimit>()
                .unwrap_err()
                .contains("auto, or off")
        );
    }
}
