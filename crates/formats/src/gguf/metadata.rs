//! The keys and values of a GGUF file. Lists stay in the file until they are asked for: a
//! vocabulary is larger than all else. Knows no key's meaning.

use std::collections::HashMap;
use std::ops::Range;

use super::cursor::{Cursor, Trouble};
use super::fault::GgufFault;
use crate::source::Source;

/// The longest key that the format allows, in bytes.
const LONGEST_KEY: u64 = 65_535;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// u8 to u64.
    Unsigned(u64),
    /// i8 to i64.
    Signed(i64),
    /// f32, exact, or f64.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// A list that is still in the file.
    List(List),
}

/// A list in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct List {
    /// What its elements are.
    pub kind: ValueKind,
    /// Their count.
    pub len: u64,
    /// Where the first one is.
    at: u64,
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the documentation.
pub enum ValueKind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    List,
    U64,
    I64,
    F64,
}

impl ValueKind {
    fn from_id(id: u32) -> Option<ValueKind> {
        use ValueKind::*;
        let all = [
            U8, I8, U16, I16, U32, I32, F32, Bool, Text, List, U64, I64, F64,
        ];
        all.get(id as usize).copied()
    }

    /// Bytes of one, or the fewest.
    fn least_bytes(self) -> u64 {
        use ValueKind::*;
        match self {
            U8 | I8 | Bool => 1,
            U16 | I16 => 2,
            U32 | I32 | F32 => 4,
            U64 | I64 | F64 | Text => 8,
            List => 12,
        }
    }
}

impl Value {
    /// What it is, in words.
    fn described(&self) -> String {
        match self {
            Value::Unsigned(n) => format!("the number {n}"),
            Value::Signed(n) => format!("the number {n}"),
            Value::Float(n) => format!("the number {n}"),
            Value::Bool(b) => b.to_string(),
            Value::Text(text) => format!("the text `{}`", shortened(text)),
            Value::List(list) => format!("a list of {} values", list.len),
        }
    }

    /// The number, if it is a whole one from 0 on.
    fn unsigned(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            Value::Float(_) | Value::Bool(_) | Value::Text(_) | Value::List(_) => None,
        }
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// All keys, in the file's order.
#[derive(Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    places: HashMap<String, usize>,
    /// Where each key with its value stands in the file.
    spans: Vec<Range<u64>>,
}

impl Metadata {
    /// Reads `count` keys and values; the lists are only measured.
    pub(super) fn read(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata, Trouble> {
        // A key, its type and a byte.
        let most = cursor.left() / (8 + 4 + 1);
        check_count("keys", count, most, cursor)?;
        let mut metadata = Metadata::default();
        for _ in 0..count {
            let start = cursor.at();
            let key = name(cursor, "a key", LONGEST_KEY)?;
            let value = value(cursor, &key)?;
            metadata.spans.push(start..cursor.at());
            let place = metadata.entries.len();
            if metadata.places.insert(key.clone(), place).is_some() {
                return Err(GgufFault::Duplicate {
                    what: "the key",
                    name: key,
                }
                .into());
            }
            metadata.entries.push((key, value));
        }
        Ok(metadata)
    }

    /// Every key with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// Every key with where it and its value stand.
    pub(super) fn spans(&self) -> impl Iterator<Item = (&str, Range<u64>)> {
        let keys = self.entries.iter().map(|(key, _)| key.as_str());
        keys.zip(self.spans.iter().cloned())
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.places.get(key).map(|&place| &self.entries[place].1)
    }

    /// A whole number from 0 on, if the key is there.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>, GgufFault> {
        self.typed(key, "a whole number from 0 on", Value::unsigned)
    }

    /// A number, if the key is there.
    pub fn float(&self, key: &str) -> Result<Option<f64>, GgufFault> {
        self.typed(key, "a number", |value| match value {
            Value::Float(number) => Some(*number),
            other => other.unsigned().map(|n| n as f64),
        })
    }

    /// True or false, if the key is there.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufFault> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Text, if the key is there.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufFault> {
        self.typed(key, "text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of text or numbers, if the key is there.
    pub fn list(&self, key: &str) -> Result<Option<List>, GgufFault> {
        self.typed(key, "a list", |value| match value {
            Value::List(list) => Some(*list),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufFault> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        convert(value).map(Some).ok_or_else(|| GgufFault::Key {
            key: key.to_owned(),
            found: value.described(),
            expected: expected.to_owned(),
        })
    }
}

impl List {
    /// Its texts.
    pub(super) fn texts(self, key: &str, source: &Source) -> Result<Vec<String>, Trouble> {
        if self.kind != ValueKind::Text {
            return Err(self.other(key, "a list of text"));
        }
        let mut cursor = Cursor::new(source, self.at);
        // That so many fit was checked when the list was measured.
        (0..self.len).map(|_| cursor.text(key)).collect()
    }

    /// Its numbers or truth values, exact up to 2^53.
    pub(super) fn numbers(self, key: &str, source: &Source) -> Result<Vec<f64>, Trouble> {
        if matches!(self.kind, ValueKind::Text | ValueKind::List) {
            return Err(self.other(key, "a list of numbers"));
        }
        let mut cursor = Cursor::new(source, self.at);
        let number = |_| {
            Ok(match scalar(&mut cursor, key, self.kind)? {
                Value::Unsigned(n) => n as f64,
                Value::Signed(n) => n as f64,
                Value::Float(n) => n,
                Value::Bool(flag) => f64::from(u8::from(flag)),
                Value::Text(_) | Value::List(_) => unreachable!("the kind was checked"),
            })
        };
        (0..self.len).map(number).collect()
    }

    fn other(self, key: &str, expected: &str) -> Trouble {
        GgufFault::Key {
            key: key.to_owned(),
            found: format!("a list of {:?}", self.kind).to_lowercase(),
            expected: expected.to_owned(),
        }
        .into()
    }
}

/// A name of at most so many bytes.
pub(super) fn name(
    cursor: &mut Cursor<'_>,
    what: &'static str,
    most: u64,
) -> Result<String, Trouble> {
    let found = cursor.peek_u64(what)?;
    if found > most {
        cursor.need(what, u128::from(found) + 8)?;
        return Err(GgufFault::NameTooLong { what, found, most }.into());
    }
    cursor.text(what)
}

/// Refuses a count that the bytes that are left cannot hold.
pub(super) fn check_count(
    what: &'static str,
    found: u64,
    most: u64,
    cursor: &Cursor<'_>,
) -> Result<(), GgufFault> {
    if found <= most {
        return Ok(());
    }
    Err(GgufFault::Count {
        what,
        found,
        most,
        len: cursor.len(),
    })
}

fn value(cursor: &mut Cursor<'_>, key: &str) -> Result<Value, Trouble> {
    let kind = kind(cursor, key)?;
    if kind != ValueKind::List {
        return scalar(cursor, key, kind);
    }
    let kind = self::kind(cursor, key)?;
    if kind == ValueKind::List {
        return Err(GgufFault::Nested {
            key: key.to_owned(),
        }
        .into());
    }
    let len = cursor.u64(key)?;
    let at = cursor.at();
    cursor.need(key, u128::from(len) * u128::from(kind.least_bytes()))?;
    match kind {
        ValueKind::Text => {
            for _ in 0..len {
                let bytes = cursor.u64(key)?;
                cursor.skip(key, u128::from(bytes))?;
            }
        }
        _ => cursor.skip(key, u128::from(len) * u128::from(kind.least_bytes()))?,
    }
    Ok(Value::List(List { kind, len, at }))
}

fn kind(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueKind, Trouble> {
    let found = cursor.u32(key)?;
    ValueKind::from_id(found).ok_or_else(|| {
        let key = key.to_owned();
        GgufFault::ValueType { key, found }.into()
    })
}

fn scalar(cursor: &mut Cursor<'_>, key: &str, kind: ValueKind) -> Result<Value, Trouble> {
    use ValueKind::*;
    Ok(match kind {
        U8 => Value::Unsigned(cursor.bytes::<1>(key)?[0].into()),
        I8 => Value::Signed(i8::from_le_bytes(cursor.bytes(key)?).into()),
        U16 => Value::Unsigned(u16::from_le_bytes(cursor.bytes(key)?).into()),
        I16 => Value::Signed(i16::from_le_bytes(cursor.bytes(key)?).into()),
        U32 => Value::Unsigned(cursor.u32(key)?.into()),
        I32 => Value::Signed(i32::from_le_bytes(cursor.bytes(key)?).into()),
        U64 => Value::Unsigned(cursor.u64(key)?),
        I64 => Value::Signed(i64::from_le_bytes(cursor.bytes(key)?)),
        F32 => Value::Float(f32::from_le_bytes(cursor.bytes(key)?).into()),
        F64 => Value::Float(f64::from_le_bytes(cursor.bytes(key)?)),
        Bool => match cursor.bytes::<1>(key)?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            found => {
                let key = key.to_owned();
                return Err(GgufFault::Bool { key, found }.into());
            }
        },
        Text => Value::Text(cursor.text(key)?),
        List => unreachable!("a list is no scalar; the caller tells them apart"),
    })
}
