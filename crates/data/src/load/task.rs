//! What a file's rows are for, where nobody has said it and the model does not: told by its columns
//! and labels.

use serde_json::Value;

use super::LabelNeed;
use super::plan::census_of;
use super::row::list;
use crate::columns::{ColumnSpec, Columns, LabelColumns, TextColumns};
use crate::error::name_list;
use crate::labels::Task;
use crate::labels::several::{SeveralCell, is_only_a_vector, several};
use crate::labels::value::{Seen, is_gap, of_cell};
use crate::rows::{Cell, Table};

/// A task with the reason for it, in words that follow on "since".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskGuess {
    /// The task.
    pub task: Task,
    /// What shows it.
    pub reason: String,
}

/// The task that a file's columns and labels show, where it is not one class a row.
pub fn guess_task(table: &Table, spec: &ColumnSpec) -> Option<TaskGuess> {
    let resolve = |task| spec.resolve(table, task, LabelNeed::Required, None);
    if !spec.labels.is_empty() {
        return Some(TaskGuess {
            task: Task::MultiLabel,
            reason: "--label-columns names a column a label".into(),
        });
    }
    let Ok(columns) = resolve(Task::SingleLabel) else {
        let words = resolve(Task::TokenClassification).ok();
        return words
            .and_then(|columns| of_words(table, &columns))
            .or_else(|| of_columns(&resolve(Task::MultiLabel).ok()?));
    };
    match &columns.label {
        Some(LabelColumns::One(label)) => {
            of_fractions(table, label).or_else(|| of_several(table, &columns, label))
        }
        Some(LabelColumns::Each(_)) | None => None,
    }
}

/// Lists of words and of tags, and no text.
fn of_words(table: &Table, columns: &Columns) -> Option<TaskGuess> {
    let TextColumns::Words { words } = &columns.text else {
        return None;
    };
    let tags = columns.label.as_ref()?.names().first()?;
    let is_list = |column: &String| {
        let row = table.rows().first()?;
        list(table.get(row, column)?, "").ok()
    };
    (is_list(words)?.len() == is_list(tags)?.len()).then(|| TaskGuess {
        task: Task::TokenClassification,
        reason: format!("`{words}` and `{tags}` are lists of words and of their classes"),
    })
}

/// Columns of 0 and 1, and none of labels.
fn of_columns(columns: &Columns) -> Option<TaskGuess> {
    match &columns.label {
        Some(LabelColumns::Each(names)) => Some(TaskGuess {
            task: Task::MultiLabel,
            reason: format!(
                "there is no column of labels, and {} hold 0 and 1",
                name_list(names)
            ),
        }),
        Some(LabelColumns::One(_)) | None => None,
    }
}

/// Fractions in most rows, or in one of ten where every number is written with a point: whole ones
/// such as `4.0` are then measurements too, and not classes that a gap turned into such numbers.
fn of_fractions(table: &Table, label: &str) -> Option<TaskGuess> {
    let census = census_of(table.rows(), |row, census| {
        if let Ok(Seen::Value(value)) = of_cell(table.get(row, label), None) {
            census.add(value);
        }
    });
    let (fractions, total) = (census.fractions(), census.total());
    let is_pointed = |cell: Cell| match cell {
        Cell::Text(text) => text.contains('.') || is_gap(text),
        Cell::Json(value) => value.as_str().unwrap_or(&value.to_string()).contains('.'),
    };
    let all_pointed = || {
        let cells = table.rows().iter().filter_map(|row| table.get(row, label));
        cells.into_iter().all(is_pointed)
    };
    let are_measured = 2 * fractions > total || (10 * fractions >= total && all_pointed());
    (fractions > 0 && are_measured).then(|| TaskGuess {
        task: Task::Regression,
        reason: format!("{fractions} of {total} labels are numbers with fractions"),
    })
}

/// Lists in most rows, or texts of 0 and 1 that are vectors.
fn of_several(table: &Table, columns: &Columns, label: &str) -> Option<TaskGuess> {
    // Beside token ids, a list may be a class for each of them.
    if matches!(columns.text, TextColumns::Ids { .. }) {
        return None;
    }
    let (mut lists, mut vectors, mut total) = (0usize, 0usize, 0usize);
    for row in table.rows() {
        let cell = table.get(row, label);
        let typed = matches!(cell, Some(Cell::Json(Value::Array(_))));
        let Ok(cell) = several(cell, None) else {
            continue;
        };
        let filled = !matches!(cell, SeveralCell::Gap(_) | SeveralCell::Empty);
        total += usize::from(filled || typed);
        lists += usize::from(typed || matches!(cell, SeveralCell::List(_)));
        vectors += usize::from(cell.bits().is_some_and(|bits| is_only_a_vector(&bits)));
    }
    let reason = match () {
        () if 2 * vectors > total => "vectors of 0 and 1",
        () if 2 * lists > total => "lists",
        () => return None,
    };
    Some(TaskGuess {
        task: Task::MultiLabel,
        reason: format!("most labels are {reason}"),
    })
}
