//! JSONL: one object a line. Faults of all lines are collected before they are reported.

use std::collections::HashSet;
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::{Fields, Parsed, Row};
use crate::error::{DataError, FileProblem, MAX_FAULTS_SHOWN, RowFault, RowFaultKind};

/// Parses the lines in parallel, in file order.
pub(super) fn parse(path: &Path, text: &str) -> Result<Parsed, DataError> {
    if is_one_array(text) {
        return Err(DataError::Malformed {
            path: path.into(),
            line: 1,
            problem: FileProblem::JsonArray,
        });
    }
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
    let parsed: Vec<Result<Row, RowFault>> = lines
        .par_iter()
        .map(|(line, text)| parse_line(*line, text))
        .collect();
    let total = parsed.iter().filter(|row| row.is_err()).count();
    if total > 0 {
        return Err(DataError::Rows {
            path: path.into(),
            total,
            rows: parsed.len(),
            faults: parsed
                .into_iter()
                .filter_map(Result::err)
                .take(MAX_FAULTS_SHOWN)
                .collect(),
        });
    }
    let rows: Vec<Row> = parsed.into_iter().filter_map(Result::ok).collect();
    Ok(Parsed {
        columns: columns_of(&rows),
        rows,
        blank_lines,
    })
}

/// Whether the file is a pretty-printed or one-line array rather than lines of objects.
fn is_one_array(text: &str) -> bool {
    let text = text.trim();
    text.starts_with('[')
        && (text.ends_with(']') || !text.contains('\n'))
        && serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_array())
}

fn parse_line(line: u64, text: &str) -> Result<Row, RowFault> {
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
