//! JSON: one object a line, one array of objects, objects end to end, or an array of objects in a
//! document's one field. Faults of all rows are collected before they are reported.

use std::collections::HashSet;
use std::path::Path;

use rayon::prelude::*;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{Fields, Parsed, Row};
use crate::error::{DataError, FileProblem, RowFault, RowFaultKind};

/// Parses the rows in parallel, in file order.
pub(super) fn parse(path: &Path, text: &str) -> Result<Parsed, DataError> {
    let malformed = |line, problem| DataError::Malformed {
        path: path.into(),
        line,
        problem,
    };
    let begins = text.trim_start();
    let first = begins.lines().next().unwrap_or_default();
    let first = serde_json::from_str::<&RawValue>(first).ok();
    if begins.starts_with('[')
        && let Some(items) = items_of(text)
    {
        return Ok(rows_of(text, &items));
    }
    if !begins.starts_with('{') {
        return Ok(lines(text));
    }
    if let Some(first) = first {
        // One object on one line is a row, unless it is a whole document.
        return match begins.trim_end().len() == first.get().trim().len() {
            true => match document(first.get()) {
                Document::Rows(items) => Ok(rows_of(text, &items)),
                Document::Columns => Err(malformed(1, FileProblem::JsonColumns)),
                Document::Row => Ok(lines(text)),
            },
            false => Ok(lines(text)),
        };
    }
    // An object over several lines: the whole document, or one of several rows.
    let values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    let values: Result<Vec<&RawValue>, _> = values.collect();
    match values.as_deref() {
        Ok([one]) => match document(one.get()) {
            Document::Rows(items) => Ok(rows_of(text, &items)),
            Document::Columns => Err(malformed(1, FileProblem::JsonColumns)),
            Document::Row => Ok(rows_of(text, &[one])),
        },
        Ok(rows) => Ok(rows_of(text, rows)),
        Err(_) => Ok(lines(text)),
    }
}

/// What a document that is one object holds.
enum Document<'a> {
    /// A list of rows in a field of its own, as `{"data": [...]}`.
    Rows(Vec<&'a RawValue>),
    /// A field for each column, as pandas writes a table unless told otherwise.
    Columns,
    /// A single row.
    Row,
}

/// Fields that hold a document's rows, beside what else it says of itself.
const ROWS: [&str; 5] = ["data", "rows", "train", "examples", "instances"];
/// Fields whose list of objects is one row: the turns of a conversation.
const TURNS: [&str; 3] = ["messages", "conversations", "conversation"];

fn document(text: &str) -> Document<'_> {
    let Ok(RawObject(fields)) = serde_json::from_str(text) else {
        return Document::Row;
    };
    let objects = |value: &RawValue| {
        let items = value.get().strip_prefix('[');
        items.is_some_and(|items| items.trim_start().starts_with('{'))
    };
    let alone = fields.len() == 1 && !TURNS.contains(&fields[0].0.as_str());
    let named = fields
        .iter()
        .find(|(name, value)| (alone || ROWS.contains(&name.as_str())) && objects(value));
    if let Some((_, value)) = named
        && let Some(items) = items_of(value.get())
    {
        return Document::Rows(items);
    }
    let by_row = |(_, value): &(String, &RawValue)| {
        serde_json::from_str::<Map<String, Value>>(value.get())
            .is_ok_and(|rows| rows.contains_key("0"))
    };
    match fields.len() > 1 && fields.iter().all(by_row) {
        true => Document::Columns,
        false => Document::Row,
    }
}

/// An object's fields in their order, their values unread.
struct RawObject<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> serde::Deserialize<'de> for RawObject<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        from.deserialize_map(Visitor).map(RawObject)
    }
}

fn items_of(text: &str) -> Option<Vec<&RawValue>> {
    serde_json::from_str(text).ok()
}

/// Values of a document as rows; `text` is what they are pieces of.
fn rows_of(text: &str, values: &[&RawValue]) -> Parsed {
    let (mut line, mut seen) = (1, 0);
    let mut begins: Vec<u64> = Vec::with_capacity(values.len());
    for value in values {
        // A borrowed value is a piece of the text, so that its distance from the beginning is its
        // place.
        let at = (value.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let between = text.get(seen..at).unwrap_or_default();
        line += between.bytes().filter(|byte| *byte == b'\n').count() as u64;
        seen = at.max(seen);
        begins.push(line);
    }
    // Rows that share a line are told apart by their number.
    if begins.windows(2).any(|pair| pair[0] == pair[1]) {
        begins = (1..=values.len() as u64).collect();
    }
    let rows: Vec<(u64, &str)> = begins
        .into_iter()
        .zip(values.iter().map(|value| value.get()))
        .collect();
    collect(&rows, 0)
}

/// One object a line.
fn lines(text: &str) -> Parsed {
    let mut blank_lines = 0;
    let mut lines: Vec<(u64, &str)> = Vec::new();
    let mut pieces = text.split('\n').enumerate().peekable();
    while let Some((i, line)) = pieces.next() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if !line.trim().is_empty() {
            lines.push((i as u64 + 1, line));
        } else if pieces.peek().is_some() {
            blank_lines += 1;
        }
    }
    collect(&lines, blank_lines)
}

fn collect(rows: &[(u64, &str)], blank_lines: u64) -> Parsed {
    let parsed: Vec<Result<Row, RowFault>> = rows
        .par_iter()
        .map(|(line, text)| parse_row(*line, text))
        .collect();
    let mut found = Parsed {
        blank_lines,
        ..Parsed::default()
    };
    for row in parsed {
        match row {
            Ok(row) => found.rows.push(row),
            Err(fault) => found.faults.push(fault),
        }
    }
    found.columns = columns_of(&found.rows);
    found
}

fn parse_row(line: u64, text: &str) -> Result<Row, RowFault> {
    let fault = |kind| RowFault {
        line,
        column: None,
        kind,
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(map)) => Ok(Row {
            line,
            fields: Fields::Object(map),
        }),
        Ok(other) => Err(fault(RowFaultKind::NotAnObject {
            found: kind_of(&other),
        })),
        Err(error) => {
            // The parser counts lines within the one line that it was given.
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or_default();
            Err(fault(RowFaultKind::NotJson {
                message: format!("{message} at column {}", error.column()),
                python_constant: ["NaN", "Infinity"].iter().any(|word| text.contains(word)),
            }))
        }
    }
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Every key of any row, in order of first appearance.
fn columns_of(rows: &[Row]) -> Vec<String> {
    let mut seen: HashSet<&str> = HashSet::new();
    let mut columns = Vec::new();
    let maps = rows.iter().filter_map(|row| match &row.fields {
        Fields::Object(map) => Some(map),
        Fields::Text(_) => None,
    });
    for key in maps.flat_map(Map::keys) {
        if seen.insert(key) {
            columns.push(key.clone());
        }
    }
    columns
}
