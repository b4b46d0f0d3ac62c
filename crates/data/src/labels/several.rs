//! The cell of a row that may have several labels: a vector of 0 and 1, a list, or names in a text
//! whose separator only the whole column tells.

use serde_json::Value;

use super::value::{bit_of_json, bit_of_text, is_gap};
use super::{LabelMap, wrong};
use crate::error::RowFaultKind;
use crate::rows::{Cell, parse_list};

/// What may stand between names; the first that a column holds often enough is its separator.
pub(crate) const SEPARATORS: [char; 3] = ['|', ';', ','];

/// What a cell holds, before it is known what the column means.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum SeveralCell {
    /// Nothing is known: `null`, or a word that means so.
    Gap(Option<String>),
    /// None of the labels: an empty list or text.
    Empty,
    /// A list, typed or written out.
    List(Vec<Value>),
    /// A text that is no list.
    Text(String),
}

/// Reads a cell; a word for a gap is text where `known` names it as a class.
pub(crate) fn several(
    cell: Option<Cell>,
    known: Option<&LabelMap>,
) -> Result<SeveralCell, RowFaultKind> {
    match cell {
        None => Ok(SeveralCell::Gap(None)),
        Some(Cell::Text(text)) => Ok(of_text(text, known)),
        Some(Cell::Json(value)) => match value {
            Value::Null => Ok(SeveralCell::Gap(None)),
            Value::String(text) => Ok(of_text(text, known)),
            Value::Array(items) if items.is_empty() => Ok(SeveralCell::Empty),
            Value::Array(items) => Ok(SeveralCell::List(items.clone())),
            Value::Number(_) | Value::Bool(_) => Ok(SeveralCell::Text(value.to_string())),
            Value::Object(_) => Err(wrong(&Cell::Json(value), "a list of labels")),
        },
    }
}

fn of_text(text: &str, known: Option<&LabelMap>) -> SeveralCell {
    let text = text.trim();
    if text.is_empty() {
        return SeveralCell::Empty;
    }
    if is_gap(text) && !known.is_some_and(|map| map.has_name(text)) {
        return SeveralCell::Gap(Some(text.to_string()));
    }
    match parse_list(text) {
        Some(items) if items.is_empty() => SeveralCell::Empty,
        Some(items) => SeveralCell::List(items),
        None => SeveralCell::Text(text.to_string()),
    }
}

impl SeveralCell {
    /// The cell as 0 and 1, where it holds nothing else.
    pub(crate) fn bits(&self) -> Option<Vec<f32>> {
        let bits: Vec<f32> = match self {
            Self::Gap(_) | Self::Empty => return None,
            Self::List(items) => items.iter().map(bit_of_json).collect::<Option<_>>()?,
            Self::Text(text) => parts(text)
                .into_iter()
                .map(bit_of_text)
                .collect::<Option<_>>()?,
        };
        (!bits.is_empty()).then_some(bits)
    }

    /// A text of nothing but the digits 0 and 1, at least two, as a vector: `010`.
    pub(crate) fn digits(&self) -> Option<Vec<f32>> {
        let Self::Text(text) = self else { return None };
        let bits: Option<Vec<f32>> = text
            .chars()
            .map(|c| match c {
                '0' => Some(0.0),
                '1' => Some(1.0),
                _ => None,
            })
            .collect();
        bits.filter(|bits| bits.len() > 1)
    }

    /// Whether names are parted by this sign.
    pub(crate) fn holds(&self, separator: char) -> bool {
        matches!(self, Self::Text(text) if text.contains(separator))
    }

    /// The labels as values; a text is cut at the column's separator.
    pub(crate) fn items(&self, separator: Option<char>) -> Vec<Value> {
        match self {
            Self::Gap(_) | Self::Empty => Vec::new(),
            Self::List(items) => items.clone(),
            Self::Text(text) => match separator {
                None => vec![text.as_str().into()],
                Some(separator) => {
                    let parts = text.split(separator).map(str::trim);
                    parts
                        .filter(|part| !part.is_empty())
                        .map(Value::from)
                        .collect()
                }
            },
        }
    }
}

/// What stands between the signs of a text, whatever signs they are. A point and a sign before a
/// number are parts of it, but not where nothing but points part single digits, two at least:
/// `0.1.0`.
fn parts(text: &str) -> Vec<&str> {
    let digits: Vec<&str> = text.split('.').collect();
    if digits.len() > 2 && digits.iter().all(|digit| matches!(*digit, "0" | "1")) {
        return digits;
    }
    let mut before = None;
    let is_sign = |c: char| {
        let in_word = before.replace(c).is_some_and(char::is_alphanumeric);
        match c {
            '.' => false,
            '+' | '-' => in_word,
            _ => !c.is_alphanumeric(),
        }
    };
    let parts = text.split(is_sign);
    parts.filter(|part| !part.is_empty()).collect()
}

/// Whether a vector cannot be a list of the classes 0 and 1: a class stands once in a list.
pub(crate) fn is_only_a_vector(bits: &[f32]) -> bool {
    bits.len() > 2 || (bits.len() == 2 && bits[0] == bits[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_between_any_signs_are_vectors() {
        for text in [
            "0,1,0",
            "0 1 0",
            "0;1;0",
            "0|1|0",
            "0, 1, 0",
            "[0, 1, 0]",
            "[0 1 0]",
            "(0,1,0)",
            "0/1/0",
            "0.0 1.0 0.0",
            "[\"0\", \"1\", \"0\"]",
            "['0', '1', '0']",
            "[False, True, False]",
            "false,true,false",
            "0\t1\t0",
            "{0, 1, 0}",
            "0:1:0",
            "0-1-0",
            "0_1_0",
            "0.1.0",
            "<0 1 0>",
            "0 & 1 & 0",
            "0\u{3001}1\u{3001}0",
            "False-True-False",
        ] {
            let cell = several(Some(Cell::Text(text)), None).unwrap();
            assert_eq!(cell.bits(), Some(vec![0.0, 1.0, 0.0]), "{text}");
        }
        for text in [
            "0,1,2", "a", "0,a", "", "[]", "nan", "010", "-1", "0 -1", "0.1", "1e-1",
        ] {
            assert_eq!(
                several(Some(Cell::Text(text)), None).unwrap().bits(),
                None,
                "{text}"
            );
        }
        let digits = several(Some(Cell::Text("010")), None).unwrap().digits();
        assert_eq!(digits, Some(vec![0.0, 1.0, 0.0]));
    }
}
