//! JSON files that tell whether they are whole: their last key is the SHA-256 of the rest of their
//! text, so that a bit that flipped, a line that is gone and a number that was changed are found.
//! It knows no file and no field.

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::fingerprint;

const KEY: &str = "checksum";

/// What stands in the checksum's place while it is computed, as long as it is.
const BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Why a text is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It does not parse.
    #[error("it is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It parses, but says something twice.
    #[error("{0}")]
    Repeated(serde_json::Error),
    /// It parses to something else.
    #[error("expected a JSON object")]
    NoObject,
    /// The text is not the one that the checksum was made of.
    #[error("its checksum does not fit: the file was changed or damaged after it was written")]
    Checksum,
}

/// What a file holds.
#[derive(Debug)]
pub struct Opened {
    /// The object, without the checksum.
    pub object: Map<String, Value>,
    /// Whether it had a checksum, which fits.
    pub sealed: bool,
}

/// The text of a file that holds `value`, which serialises to an object, and its checksum.
///
/// # Errors
/// `value` does not serialise to an object.
pub fn seal(value: &impl Serialize) -> Result<Vec<u8>, SealError> {
    let Value::Object(mut object) = serde_json::to_value(value)? else {
        return Err(SealError::NoObject);
    };
    object.insert(KEY.to_owned(), BLANK.into());
    let text = serde_json::to_string_pretty(&object)?;
    let sum = fingerprint::of_bytes(text.as_bytes());
    let place = place(&text, BLANK).ok_or(SealError::Checksum)?;
    Ok([&text[..place], &sum, &text[place + BLANK.len()..]]
        .concat()
        .into_bytes())
}

/// Reads what [`seal`] wrote, or an object without a checksum, as older versions wrote it.
///
/// # Errors
/// The text is no JSON object, holds a key twice, or is not the one that its checksum was made of.
pub fn open(bytes: &[u8]) -> Result<Opened, SealError> {
    let Value::Object(mut object) = serde_json::from_slice(bytes)? else {
        return Err(SealError::NoObject);
    };
    // Of a key given twice the last value would count, and nobody would know which was meant.
    serde_json::from_slice::<KeysOnce>(bytes).map_err(SealError::Repeated)?;
    let Some(sum) = object.shift_remove(KEY) else {
        return Ok(Opened {
            object,
            sealed: false,
        });
    };
    let (Some(sum), Ok(text)) = (sum.as_str(), std::str::from_utf8(bytes)) else {
        return Err(SealError::Checksum);
    };
    let place = place(text, sum).filter(|_| sum.len() == BLANK.len());
    let place = place.ok_or(SealError::Checksum)?;
    let blank = [&text[..place], BLANK, &text[place + BLANK.len()..]].concat();
    if fingerprint::of_bytes(blank.as_bytes()) != sum {
        return Err(SealError::Checksum);
    }
    Ok(Opened {
        object,
        sealed: true,
    })
}

/// Any JSON in which no object holds a key twice.
struct KeysOnce;

impl<'de> Deserialize<'de> for KeysOnce {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for KeysOnce {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            entries.next_value::<Self>()?;
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format!("it holds the key {key:?} twice")));
            }
        }
        Ok(self)
    }
}

/// Where the checksum stands: it is the last value of the text.
fn place(text: &str, sum: &str) -> Option<usize> {
    let key = format!("\"{KEY}\": \"{sum}\"");
    Some(text.rfind(&key)? + key.len() - sum.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_changed_byte_is_found() {
        let value = json!({ "step": 8, "best": { "checksum": "no" }, "rate": 0.1, "text": "é\n" });
        let text = seal(&value).unwrap();
        let opened = open(&text).unwrap();
        assert!(opened.sealed);
        assert_eq!(Value::Object(opened.object), value);
        for at in 0..text.len() {
            for flip in [1u8, 4, 32] {
                let mut other = text.clone();
                other[at] ^= flip;
                // A key by another name is an unknown one, which is the reader's to find.
                let fits = open(&other).is_ok_and(|o| o.sealed);
                assert!(!fits, "byte {at} ^ {flip}");
            }
            assert!(open(&text[..at]).is_err(), "cut at {at}");
        }
        assert!(open(&[&text[..], b"x"].concat()).is_err());
        assert!(open(&[&text[..], b"\n"].concat()).is_err());
    }

    #[test]
    fn a_key_that_is_given_twice_is_an_error_at_any_depth() {
        for text in [
            r#"{"step": 8, "step": 9}"#,
            r#"{"best": {"a": [null, {"b": 1.5, "b": 1.5}]}, "c": true}"#,
            r#"{"step": 1, "\u0073tep": 1}"#,
        ] {
            let error = open(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains("twice at line 1"), "{error}");
        }
        assert!(open(br#"{"a": {"b": -1}, "b": {"a": "x"}, "c": [{"a": 1}, {"a": 2}]}"#).is_ok());
    }

    #[test]
    fn a_file_without_a_checksum_is_read_and_no_object_is_refused() {
        assert!(!open(b"{\"a\": 1}").unwrap().sealed);
        assert!(open(b"[1]").is_err() && open(b"").is_err());
        assert!(open(b"{\"checksum\": 5}").is_err() && open(b"{\"checksum\": \"\"}").is_err());
        assert!(seal(&3).is_err());
    }
}
