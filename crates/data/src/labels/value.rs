//! One value of a column of labels: a gap, a name, a truth value, a whole number or a fraction.
//! Knows one cell, not the column: what a column holds is counted in `census`.

use serde_json::Value;

use super::LabelMap;
use crate::error::{RowFaultKind, shorten};
use crate::rows::Cell;

/// Words that stand where nothing is known: what pandas reads as missing, and the lone signs that
/// SNLI and others write.
const GAPS: [&str; 21] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "-", "?",
];

/// Words that may be gaps, but are names of classes as well: worth a warning, not a refusal.
const LIKE_GAPS: [&str; 18] = [
    "_",
    "tbd",
    "todo",
    "#value!",
    "#ref!",
    "#name?",
    "#div/0!",
    "#null!",
    "nil",
    "missing",
    "unlabeled",
    "unlabelled",
    "undefined",
    "nat",
    "not available",
    "no label",
    "empty",
    "blank",
];

/// Whether a text, without the blanks around it, stands for a gap.
pub(crate) fn is_gap(text: &str) -> bool {
    GAPS.contains(&text.trim())
}

/// Whether a name is so near to a word for a gap that it may be one.
pub(crate) fn is_like_gap(name: &str) -> bool {
    let lower = name.to_lowercase();
    LIKE_GAPS.contains(&lower.as_str()) || GAPS.iter().any(|gap| gap.to_lowercase() == lower)
}

/// Whether a name is nothing but signs, as `--`, `_` and a lone dash of any length are.
pub(crate) fn is_bare_sign(name: &str) -> bool {
    let is_sign = |c: char| {
        (c.is_ascii() && !c.is_alphanumeric())
            || matches!(c, '\u{2010}'..='\u{2015}' | '\u{2026}' | '\u{2212}')
    };
    name.chars().all(is_sign)
}

/// What kind of thing a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A word or several.
    Name,
    /// `true` or `false` in any case.
    Truth(bool),
    /// A whole number, also where it is written `1.0`.
    Number(i64),
    /// A number that is not whole.
    Fraction,
}

/// A value with its name as a class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClassValue {
    /// The name: text without blanks around it, whole numbers without a decimal point.
    pub(crate) name: String,
    /// What it is.
    pub(crate) kind: Kind,
    /// Whether blanks stood around it.
    pub(crate) padded: bool,
}

/// What stands in a place for one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing, or a word that means so.
    Gap(Option<String>),
    /// A value.
    Value(ClassValue),
}

impl Seen {
    /// The value, or the fault that there is none.
    pub(crate) fn value(self) -> Result<ClassValue, RowFaultKind> {
        match self {
            Self::Value(value) => Ok(value),
            Self::Gap(found) => Err(RowFaultKind::Unlabelled {
                found,
                nearest: None,
            }),
        }
    }
}

/// Reads a text; a word for a gap is a value where `known` names it as a class.
pub(crate) fn of_text(text: &str, known: Option<&LabelMap>) -> Seen {
    let trimmed = text.trim();
    let is_named = known.is_some_and(|map| map.has_name(trimmed));
    if is_gap(trimmed) && !is_named {
        return Seen::Gap((!trimmed.is_empty()).then(|| trimmed.to_string()));
    }
    let (name, kind) = match kind_of(trimmed) {
        // A code such as `007` keeps its zeros.
        Kind::Number(number) if !is_padded_with_zeros(trimmed) && !is_named => {
            (number.to_string(), Kind::Number(number))
        }
        kind => (trimmed.to_string(), kind),
    };
    Seen::Value(ClassValue {
        name,
        kind,
        padded: trimmed.len() != text.len(),
    })
}

/// Reads a typed value; lists and objects are no classes.
pub(crate) fn of_json(value: &Value, known: Option<&LabelMap>) -> Result<Seen, RowFaultKind> {
    match value {
        Value::Null => Ok(Seen::Gap(None)),
        Value::String(text) => Ok(of_text(text, known)),
        Value::Bool(_) | Value::Number(_) => Ok(of_text(&value.to_string(), known)),
        Value::Array(_) | Value::Object(_) => Err(super::wrong(&Cell::Json(value), "a label")),
    }
}

/// Reads a cell.
pub(crate) fn of_cell(cell: Option<Cell>, known: Option<&LabelMap>) -> Result<Seen, RowFaultKind> {
    match cell {
        None => Ok(Seen::Gap(None)),
        Some(Cell::Text(text)) => Ok(of_text(text, known)),
        Some(Cell::Json(value)) => of_json(value, known),
    }
}

fn is_padded_with_zeros(text: &str) -> bool {
    let digits = text.trim_start_matches(['+', '-']);
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit())
}

fn kind_of(text: &str) -> Kind {
    if let Some(truth) = truth_of(text) {
        return Kind::Truth(truth);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Kind::Number(number);
    }
    // Rust also reads `inf` and `nan`, which are words here; `1e5` without a point is more likely a
    // code.
    let has_point = text.contains('.') && text.bytes().any(|b| b.is_ascii_digit());
    let plain = |b: u8| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E');
    let real = text.parse::<f64>().ok();
    match real.filter(|_| has_point && text.bytes().all(plain)) {
        Some(real) if real.fract() == 0.0 && real.abs() < 9e15 => Kind::Number(real as i64),
        Some(_) => Kind::Fraction,
        None => Kind::Name,
    }
}

/// `true` or `false` as Python, R, JSON and spreadsheets write them.
pub(crate) fn truth_of(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// 0 or 1, also as a truth value, as text or as `1.0`.
pub(crate) fn bit_of_text(text: &str) -> Option<f32> {
    match kind_of(text.trim()) {
        Kind::Number(0) | Kind::Truth(false) => Some(0.0),
        Kind::Number(1) | Kind::Truth(true) => Some(1.0),
        Kind::Number(_) | Kind::Name | Kind::Fraction => None,
    }
}

/// The same of a typed value.
pub(crate) fn bit_of_json(value: &Value) -> Option<f32> {
    match value {
        Value::String(text) => bit_of_text(text),
        Value::Bool(_) | Value::Number(_) => bit_of_text(&value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The same of a cell; `None` also where it is a gap.
pub(crate) fn bit_of_cell(cell: Cell) -> Option<f32> {
    match cell {
        Cell::Text(text) => bit_of_text(text),
        Cell::Json(value) => bit_of_json(value),
    }
}

/// A finite number in a cell.
pub(crate) fn number(cell: Option<Cell>) -> Result<f32, RowFaultKind> {
    let not_a_number = |found: &str| RowFaultKind::NotANumber {
        found: shorten(found),
        numeric_column: None,
    };
    let written = match cell {
        Some(Cell::Json(Value::Number(number))) => number.to_string(),
        Some(Cell::Json(Value::String(text))) => text.clone(),
        Some(Cell::Text(text)) => text.to_string(),
        Some(Cell::Json(Value::Null)) | None => String::new(),
        Some(cell @ Cell::Json(Value::Bool(_) | Value::Array(_) | Value::Object(_))) => {
            return Err(super::wrong(&cell, "a number"));
        }
    };
    if is_gap(&written) {
        return Err(of_text(&written, None)
            .value()
            .err()
            .unwrap_or_else(|| not_a_number("")));
    }
    let value = written.trim().parse::<f64>();
    let value = value.map_err(|_| not_a_number(&written))? as f32;
    if !value.is_finite() {
        return Err(RowFaultKind::NotFinite {
            found: shorten(&written),
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_from_the_text() {
        let kinds = [
            ("sport", Kind::Name),
            ("True", Kind::Truth(true)),
            ("FALSE", Kind::Truth(false)),
            ("tRUE", Kind::Name),
            ("-7", Kind::Number(-7)),
            ("+1", Kind::Number(1)),
            ("2.00", Kind::Number(2)),
            ("2.5", Kind::Fraction),
            ("1.5e-3", Kind::Fraction),
            ("inf", Kind::Name),
            ("1e5", Kind::Name),
            ("3a", Kind::Name),
            ("...", Kind::Name),
        ];
        for (text, kind) in kinds {
            assert_eq!(kind_of(text), kind, "{text}");
        }
    }

    #[test]
    fn gaps_are_no_values_unless_they_are_named() {
        for gap in [
            "", "  ", "nan", "NaN", "None", "null", "NULL", "NA", "N/A", "<NA>", "-", "?",
        ] {
            assert!(matches!(of_text(gap, None), Seen::Gap(_)), "{gap}");
        }
        let map = LabelMap::new(vec!["NA".into(), "EU".into()]).unwrap();
        assert!(matches!(of_text(" NA ", Some(&map)), Seen::Value(value) if value.name == "NA"));
        assert!(matches!(of_text("None", Some(&map)), Seen::Gap(_)));
        for near in ["none", "NONE", "Null", "missing", "_"] {
            assert!(!is_gap(near) && is_like_gap(near), "{near}");
        }
        assert!(is_bare_sign("\u{2014}") && is_bare_sign("\u{2026}") && !is_bare_sign("\u{1f600}"));
        assert!(is_bare_sign("--") && !is_gap("--") && !is_bare_sign("c++"));
        assert!(!is_like_gap("nonsense") && !is_like_gap("😀"));
    }

    #[test]
    fn numbers_lose_their_point_and_codes_keep_their_zeros() {
        let name = |text: &str| match of_text(text, None) {
            Seen::Value(value) => value.name,
            Seen::Gap(_) => panic!("a gap"),
        };
        assert_eq!(
            [name("3.0"), name("+1"), name("007"), name(" a ")],
            ["3", "1", "007", "a"]
        );
    }
}
