//! Labels: what a task expects of them, the map from names to classes, and reading them from a cell. Knows nothing of
//! files and tokens.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{LabelMapError, RowFaultKind, shorten};
use crate::nearest::nearest;
use crate::rows::{Cell, parse_list};

/// A token label that counts for nothing, as in PyTorch and transformers.
pub const IGNORE_INDEX: i64 = -100;

/// What is learned about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One class of several.
    SingleLabel,
    /// Any number of classes.
    MultiLabel,
    /// A real number.
    Regression,
    /// One class for each word.
    TokenClassification,
    /// The next token.
    CausalLm,
}

/// The label of one row.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// None, where labels are not needed.
    None,
    /// A class.
    Class(u32),
    /// 0 or 1 for each class.
    Multi(Vec<f32>),
    /// A finite number.
    Value(f32),
    /// A class or [`IGNORE_INDEX`] for each token.
    Tokens(Vec<i64>),
}

/// The names of the classes, in order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct LabelMap {
    names: Vec<String>,
    index: HashMap<String, u32>,
    all_numbers: bool,
}

impl TryFrom<Vec<String>> for LabelMap {
    type Error = LabelMapError;
    fn try_from(names: Vec<String>) -> Result<Self, LabelMapError> {
        Self::new(names)
    }
}

impl From<LabelMap> for Vec<String> {
    fn from(map: LabelMap) -> Self {
        map.names
    }
}

impl LabelMap {
    /// A map from names in order; they must differ.
    pub fn new(names: Vec<String>) -> Result<Self, LabelMapError> {
        if names.is_empty() {
            return Err(LabelMapError::Empty);
        }
        let mut index = HashMap::with_capacity(names.len());
        for (name, class) in names.iter().zip(0..) {
            if index.insert(name.clone(), class).is_some() {
                return Err(LabelMapError::Duplicate { name: name.clone() });
            }
        }
        let all_numbers = names.iter().all(|name| name.parse::<i64>().is_ok());
        Ok(Self {
            names,
            index,
            all_numbers,
        })
    }

    /// The map in a `config.json`'s `id2label`: an object of `"0"` to `"n-1"`.
    pub fn from_id2label(id2label: &Value) -> Result<Self, LabelMapError> {
        let fault = |problem: String| LabelMapError::Id2Label(problem);
        let object = id2label
            .as_object()
            .ok_or_else(|| fault("expected an object".into()))?;
        let mut names = vec![None; object.len()];
        for (id, name) in object {
            let slot = id
                .parse::<usize>()
                .ok()
                .and_then(|id| names.get_mut(id))
                .ok_or_else(|| {
                    fault(format!(
                        "key `{id}`: expected the numbers from 0 to {}",
                        object.len().saturating_sub(1)
                    ))
                })?;
            let name = name
                .as_str()
                .ok_or_else(|| fault(format!("key `{id}`: expected a name")))?;
            *slot = Some(name.to_string());
        }
        let names: Option<Vec<String>> = names.into_iter().collect();
        Self::new(names.ok_or_else(|| fault("a key stands twice in different spellings".into()))?)
    }

    /// A map learned from the names found in data: numbers in order of size, or else names in alphabetical order.
    pub fn learn<'a>(found: impl IntoIterator<Item = &'a str>) -> Result<Self, LabelMapError> {
        let found: BTreeSet<&str> = found.into_iter().collect();
        let mut names: Vec<String> = found.into_iter().map(str::to_string).collect();
        let numbers: Option<Vec<i64>> = names.iter().map(|name| name.parse().ok()).collect();
        if let Some(numbers) = numbers {
            let mut pairs: Vec<(i64, String)> = numbers.into_iter().zip(names).collect();
            pairs.sort();
            names = pairs.into_iter().map(|(_, name)| name).collect();
        }
        Self::new(names)
    }

    /// The names, in order of the class numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Number of classes; at least one.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether the names are only transformers' stand-ins `LABEL_0`, `LABEL_1`, ….
    pub fn is_placeholder(&self) -> bool {
        self.names
            .iter()
            .enumerate()
            .all(|(i, name)| *name == format!("LABEL_{i}"))
    }

    /// The class of a label: by name, or by number where the names are not numbers themselves.
    pub fn class(&self, label: &str) -> Option<u32> {
        if let Some(class) = self.index.get(label) {
            return Some(*class);
        }
        // JSON booleans, where two classes have other names.
        match label {
            "false" if self.names.len() == 2 => return Some(0),
            "true" if self.names.len() == 2 => return Some(1),
            _ => {}
        }
        let number = label.parse::<u32>().ok().filter(|_| !self.all_numbers)?;
        ((number as usize) < self.names.len()).then_some(number)
    }

    pub(crate) fn class_or_fault(&self, label: &str) -> Result<u32, RowFaultKind> {
        self.class(label).ok_or_else(|| RowFaultKind::UnknownLabel {
            label: shorten(label),
            nearest: nearest(label, &self.names),
            known: self.names.clone(),
        })
    }
}

/// The name of a class in a cell: text without blanks around it, whole numbers and booleans as they are written.
pub(crate) fn class_name(cell: Cell) -> Result<String, RowFaultKind> {
    match cell {
        Cell::Text(text) => {
            // Tables written by pandas hold `1.0` where a column of whole numbers had gaps.
            let text = text.trim();
            let whole = text
                .strip_suffix(".0")
                .filter(|whole| whole.parse::<i64>().is_ok());
            Ok(whole.unwrap_or(text).to_string())
        }
        Cell::Json(value) => match value {
            Value::String(text) => Ok(text.trim().to_string()),
            Value::Bool(value) => Ok(value.to_string()),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Ok(whole.to_string()),
                (None, Some(real)) if real.fract() == 0.0 && real.abs() < 9e15 => {
                    Ok((real as i64).to_string())
                }
                (None, _) => Err(RowFaultKind::NotAClass {
                    found: number.to_string(),
                }),
            },
            Value::Null | Value::Array(_) | Value::Object(_) => Err(wrong(&cell, "a label")),
        },
    }
}

/// A finite number in a cell.
pub(crate) fn number(cell: Cell) -> Result<f32, RowFaultKind> {
    let not_a_number = |found: &str| RowFaultKind::NotANumber {
        found: shorten(found),
        numeric_column: None,
    };
    let parse = |text: &str| text.trim().parse::<f64>().map_err(|_| not_a_number(text));
    let (value, found) = match cell {
        Cell::Text(text) => (parse(text)?, text.to_string()),
        Cell::Json(Value::String(text)) => (parse(text)?, text.clone()),
        Cell::Json(Value::Number(number)) => (
            number
                .as_f64()
                .ok_or_else(|| not_a_number(&number.to_string()))?,
            number.to_string(),
        ),
        Cell::Json(Value::Bool(_) | Value::Null | Value::Array(_) | Value::Object(_)) => {
            return Err(wrong(&cell, "a number"));
        }
    };
    let value = value as f32;
    if !value.is_finite() {
        return Err(RowFaultKind::NotFinite {
            found: shorten(&found),
        });
    }
    Ok(value)
}

/// The labels of a multi-label row, before it is known whether numbers are classes or a vector.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum MultiCell {
    /// Names of classes, or their numbers.
    Names(Vec<String>),
    /// Only 0 and 1: a vector, or classes number 0 and 1.
    Bits(Vec<f32>),
}

/// Reads a list of names, a vector of 0 and 1, or, in CSV and TSV, names between `|`, `;` or `,`.
pub(crate) fn multi(cell: Cell) -> Result<MultiCell, RowFaultKind> {
    const WANTED: &str = "a list of labels, or of 0 and 1";
    let parsed: Vec<Value>;
    let items: &[Value] = match cell {
        Cell::Json(Value::Array(items)) => items,
        Cell::Text(text) if text.trim_start().starts_with(['[', '(']) => {
            parsed = parse_list(text).ok_or_else(|| wrong(&cell, WANTED))?;
            &parsed
        }
        Cell::Json(Value::String(text)) => match parse_list(text) {
            Some(items) => {
                parsed = items;
                &parsed
            }
            None => return Ok(split_names(text)),
        },
        Cell::Text(text) => return Ok(split_names(text)),
        Cell::Json(Value::Number(_) | Value::Bool(_)) => {
            return Ok(MultiCell::Names(vec![class_name(cell)?]));
        }
        Cell::Json(Value::Null | Value::Object(_)) => return Err(wrong(&cell, WANTED)),
    };
    let bit = |item: &Value| match item {
        Value::Bool(value) => Some(f32::from(u8::from(*value))),
        Value::Number(number) => number
            .as_f64()
            .filter(|value| *value == 0.0 || *value == 1.0)
            .map(|value| value as f32),
        Value::Null | Value::String(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let bits: Option<Vec<f32>> = items.iter().map(bit).collect();
    match bits {
        Some(bits) if !bits.is_empty() => Ok(MultiCell::Bits(bits)),
        Some(_) | None => Ok(MultiCell::Names(
            items
                .iter()
                .map(|item| class_name(Cell::Json(item)))
                .collect::<Result<_, _>>()?,
        )),
    }
}

fn split_names(text: &str) -> MultiCell {
    let names = text
        .split(['|', ';', ','])
        .map(str::trim)
        .filter(|name| !name.is_empty());
    MultiCell::Names(names.map(str::to_string).collect())
}

pub(crate) fn wrong(cell: &Cell, expected: &'static str) -> RowFaultKind {
    RowFaultKind::WrongType {
        expected,
        found: cell.describe(),
    }
}
