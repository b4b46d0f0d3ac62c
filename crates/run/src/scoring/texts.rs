//! Files of generated texts and of what to score them by.

use std::path::Path;

use lowrank_data::nlg;
use lowrank_data::{Cell, FileFormat, Header, NlgFormat, Table};
use lowrank_formats::files::{self, Ceiling};
use lowrank_metrics::Segment;
use serde_json::Value;

use crate::error::{RunError, RunResult};

/// Columns that hold generated texts, in order of preference.
const TEXT_COLUMNS: [&str; 3] = ["text", "output", "prediction"];

/// What people wrote for one input.
pub struct Group {
    /// The line where it begins.
    pub line: u64,
    /// Their texts, at least one.
    pub references: Vec<String>,
    /// Whether WebNLG's training set has its category.
    pub seen: Option<bool>,
}

impl From<nlg::PromptRow> for Group {
    fn from(row: nlg::PromptRow) -> Self {
        Self {
            line: row.line,
            references: row.references,
            seen: row.seen,
        }
    }
}

/// An output and the line where it stands.
pub struct Output {
    /// The line.
    pub line: u64,
    /// The text.
    pub text: String,
}

/// The outputs of a file: one a line, or the column `text` of JSON lines.
pub fn read_outputs(path: &str) -> RunResult<Vec<Output>> {
    let outputs: Vec<Output> = match is_jsonl(path) {
        true => json_column(path, &TEXT_COLUMNS)?
            .into_iter()
            .map(|(line, value)| match value {
                Value::String(text) => Ok(Output { line, text }),
                _ => Err(fault(path, line, "the output is no text")),
            })
            .collect::<RunResult<_>>()?,
        false => {
            let text = read_text(path)?;
            let lines = text.lines().zip(1..);
            lines
                .map(|(text, line)| Output {
                    line,
                    text: text.to_owned(),
                })
                .collect()
        }
    };
    if outputs.is_empty() {
        return Err(RunError::failure(format!("`{path}` holds no output")));
    }
    Ok(outputs)
}

/// The references of a file, in groups.
pub fn read_references(path: &str, format: Option<NlgFormat>) -> RunResult<Vec<Group>> {
    let file = Path::new(path);
    let format = format.or_else(|| nlg::detect(file));
    let groups = if format.is_some() {
        let rows = nlg::read_prompts(file, format)?;
        rows.into_iter().map(Group::from).collect()
    } else if is_jsonl(path) {
        let rows = json_column(path, &["references"])?;
        let groups = rows
            .into_iter()
            .map(|(line, value)| json_group(path, line, value));
        groups.collect::<RunResult<_>>()?
    } else {
        plain_groups(path, &read_text(path)?)?
    };
    if groups.is_empty() {
        return Err(RunError::failure(format!("`{path}` holds no reference")));
    }
    Ok(groups)
}

/// Outputs with their references; there must be as many of the one as of the other.
pub fn pair(
    outputs_path: &str,
    outputs: Vec<Output>,
    references_path: &str,
    groups: &[Group],
) -> RunResult<Vec<Segment>> {
    if outputs.len() != groups.len() {
        let (lonely, line) = match outputs.get(groups.len()) {
            Some(output) => (outputs_path, output.line),
            None => (references_path, groups[outputs.len()].line),
        };
        return Err(RunError::failure(format!(
            "`{outputs_path}` holds {} outputs, but `{references_path}` {} groups of references: the first without a partner is at `{lonely}`, line {line}",
            outputs.len(),
            groups.len()
        ))
        .hint("one output a line, references in the same order, a blank line after each group"));
    }
    let pairs = outputs.into_iter().zip(groups);
    Ok(pairs
        .map(|(output, group)| Segment::new(output.text, group.references.clone()))
        .collect())
}

/// Lines in groups, parted by a blank line; more may end the file.
fn plain_groups(path: &str, text: &str) -> RunResult<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut is_open = false;
    for (text, line) in text.trim_end().lines().zip(1..) {
        match (text.trim().is_empty(), is_open) {
            (true, true) => is_open = false,
            (true, false) => return Err(fault(path, line, "a group of references is empty")),
            (false, true) => {
                if let Some(group) = groups.last_mut() {
                    group.references.push(text.to_owned());
                }
            }
            (false, false) => {
                is_open = true;
                groups.push(Group {
                    line,
                    references: vec![text.to_owned()],
                    seen: None,
                });
            }
        }
    }
    Ok(groups)
}

fn json_group(path: &str, line: u64, value: Value) -> RunResult<Group> {
    let text = |value: Value| match value {
        Value::String(text) => Ok(text),
        _ => Err(fault(path, line, "a reference is no text")),
    };
    let references = match value {
        Value::Array(texts) => texts.into_iter().map(text).collect::<RunResult<Vec<_>>>()?,
        one => vec![text(one)?],
    };
    if references.is_empty() {
        return Err(fault(path, line, "a group of references is empty"));
    }
    Ok(Group {
        line,
        references,
        seen: None,
    })
}

/// The values of the first of these columns that JSON lines have.
fn json_column(path: &str, columns: &[&str]) -> RunResult<Vec<(u64, Value)>> {
    let table = Table::read(Path::new(path), Some(FileFormat::Jsonl), Header::Present)?;
    let column = columns
        .iter()
        .find(|name| table.columns().iter().any(|c| c == *name));
    let column = column.ok_or_else(|| {
        RunError::failure(format!(
            "`{path}` has no column `{}`; found {}",
            columns[0],
            table.columns().join(", ")
        ))
    })?;
    let value = |row: &lowrank_data::Row| match table.get(row, column) {
        Some(Cell::Json(value)) => Ok((row.line, value.clone())),
        Some(Cell::Text(text)) => Ok((row.line, Value::String(text.to_owned()))),
        None => Err(fault(
            path,
            row.line,
            &format!("column `{column}` is missing"),
        )),
    };
    table.rows().iter().map(value).collect()
}

fn is_jsonl(path: &str) -> bool {
    FileFormat::from_path(Path::new(path)).is_ok_and(|format| format == FileFormat::Jsonl)
}

/// A text file without its byte order mark.
fn read_text(path: &str) -> RunResult<String> {
    let bytes = files::read_any(Path::new(path), Ceiling::DATA)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        fault(path, line as u64, "it is not UTF-8")
    })?;
    Ok(text
        .strip_prefix('\u{feff}')
        .map_or_else(|| text.clone(), str::to_owned))
}

fn fault(path: &str, line: u64, what: &str) -> RunError {
    RunError::failure(format!("`{path}`, line {line}: {what}"))
}
