//! What a language model is given of a row: the prompt, what it is about, and what was said to the
//! model before.

use serde_json::Value;

use lowrank_formats::nearest;

use super::LabelNeed;
use crate::columns::{ColumnSpec, Columns, PromptColumns, TextColumns};
use crate::error::{DataError, RowFault, RowFaultKind};
use crate::labels::{Task, wrong};
use crate::rows::{Cell, Row, Table};

/// What a language model is to go on with.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prompt {
    /// The prompt itself, behind the system prompt if there is one.
    pub text: String,
    /// What it is about, Alpaca's `input` or Dolly's `context`; empty where there is nothing.
    pub context: String,
}

impl From<String> for Prompt {
    fn from(text: String) -> Self {
        Self {
            text,
            context: String::new(),
        }
    }
}

impl Prompt {
    /// The prompt and, on the next line, what it is about: as LLaMA-Factory joins Alpaca's columns.
    pub fn joined(&self) -> String {
        match self.context.is_empty() {
            true => self.text.clone(),
            false => format!("{}\n{}", self.text, self.context),
        }
    }

    /// The prompt of a row.
    pub(super) fn of_row(
        table: &Table,
        row: &Row,
        columns: &PromptColumns,
    ) -> Result<Self, RowFault> {
        if let Some(column) = &columns.history
            && has_turns(table.get(row, column))
        {
            return Err(fault(row, column, RowFaultKind::Conversation));
        }
        let optional = |column: &Option<String>| match column {
            Some(column) if table.get(row, column).is_some() => string(table, row, column),
            Some(_) | None => Ok(""),
        };
        let (text, system) = (
            string(table, row, &columns.prompt)?,
            optional(&columns.system)?,
        );
        Ok(Self {
            text: match system.trim().is_empty() {
                true => text.into(),
                false => format!("{system}\n{text}"),
            },
            context: match optional(&columns.context)? {
                blank if blank.trim().is_empty() => String::new(),
                context => context.into(),
            },
        })
    }
}

/// The prompts of a table's rows, made from the same columns as in training; completions need not
/// be there.
///
/// # Errors
/// No column is known to hold prompts, or some rows have none.
pub fn prompts_of(table: &Table, columns: &ColumnSpec) -> Result<Vec<Prompt>, DataError> {
    let columns = columns.resolve_prompt(table)?;
    let rows = table.rows().iter();
    let read = rows.map(|row| Prompt::of_row(table, row, &columns));
    all(table, read.collect())
}

/// A prompt and the text that is to follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// The line of the row.
    pub line: u64,
    /// The prompt.
    pub prompt: Prompt,
    /// What follows.
    pub completion: String,
}

/// The prompts of a table's rows with their completions, made from the same columns as in training;
/// nothing where the table has no such columns.
///
/// # Errors
/// A named column is not there, or some rows have no prompt or no completion.
pub fn completed_of(
    table: &Table,
    columns: &ColumnSpec,
) -> Result<Option<Vec<Completed>>, DataError> {
    let (prompt, completion) =
        match columns.resolve(table, Task::CausalLm, LabelNeed::Ignored, None) {
            Ok(Columns {
                text: TextColumns::Completion { prompt, completion },
                ..
            }) => (prompt, completion),
            Ok(_) | Err(DataError::NoColumnFor { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
    let read = table.rows().iter().map(|row| {
        Ok(Completed {
            line: row.line,
            prompt: Prompt::of_row(table, row, &prompt)?,
            completion: self::completion(table, row, &completion)?.to_owned(),
        })
    });
    all(table, read.collect()).map(Some)
}

/// All rows, or the error of those that have a fault.
pub(super) fn all<T>(table: &Table, rows: Vec<Result<T, RowFault>>) -> Result<Vec<T>, DataError> {
    let (mut read, mut faults) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        match row {
            Ok(row) => read.push(row),
            Err(fault) => faults.push(fault),
        }
    }
    match faults.is_empty() {
        true => Ok(read),
        false => Err(table.rows_error(&faults)),
    }
}

/// The text that follows a prompt: a text, or the first of several answers, as SQuAD writes them.
pub(super) fn completion<'t>(
    table: &'t Table,
    row: &'t Row,
    column: &str,
) -> Result<&'t str, RowFault> {
    let several = match table.get(row, column) {
        Some(Cell::Json(Value::Object(answers))) => answers.get("text").and_then(Value::as_array),
        Some(Cell::Json(Value::Array(answers))) => Some(answers),
        Some(Cell::Json(_) | Cell::Text(_)) | None => None,
    };
    match several.map(|answers| answers.first()) {
        None => string(table, row, column),
        Some(Some(Value::String(first))) => Ok(first),
        Some(_) => Err(fault(row, column, RowFaultKind::Missing { nearest: None })),
    }
}

/// A row's text in a column.
pub(super) fn string<'t>(
    table: &'t Table,
    row: &'t Row,
    column: &str,
) -> Result<&'t str, RowFault> {
    match table.get(row, column) {
        Some(Cell::Text(text)) => Ok(text),
        Some(Cell::Json(Value::String(text))) => Ok(text),
        Some(cell) => Err(fault(row, column, wrong(&cell, "a text"))),
        None => Err(fault(row, column, missing(table, row, column))),
    }
}

/// A column that a row lacks, with the nearest that it has.
pub(super) fn missing(table: &Table, row: &Row, column: &str) -> RowFaultKind {
    RowFaultKind::Missing {
        nearest: nearest(column, table.keys(row)).map(str::to_owned),
    }
}

/// Whether a column of earlier turns holds any.
fn has_turns(cell: Option<Cell>) -> bool {
    match cell {
        None => false,
        Some(Cell::Text(text)) => !["", "[]"].contains(&text.trim()),
        Some(Cell::Json(Value::Array(turns))) => !turns.is_empty(),
        Some(Cell::Json(Value::String(text))) => !["", "[]"].contains(&text.trim()),
        Some(Cell::Json(_)) => true,
    }
}

pub(super) fn fault(row: &Row, column: &str, kind: RowFaultKind) -> RowFault {
    RowFault {
        line: row.line,
        column: Some(column.to_string()),
        kind,
    }
}
