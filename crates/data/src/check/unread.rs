//! Columns that are not read, although what stands in them looks like text.

use crate::columns::{Columns, TextColumns};
use crate::rows::{Cell, Table};

/// Rows that are looked at.
const LOOKED_AT: usize = 1000;

/// The unread columns of which most values are texts: more words than one, and not the same in
/// every row.
pub(super) fn texts(table: &Table, columns: &Columns) -> Vec<String> {
    let ignored = columns.ignored(table);
    ignored
        .into_iter()
        .filter(|name| holds_texts(table, name))
        .collect()
}

fn holds_texts(table: &Table, column: &str) -> bool {
    let rows = table.rows().iter().take(LOOKED_AT);
    let values = rows.filter_map(|row| match table.get(row, column)? {
        Cell::Text(text) => Some(text.trim()),
        Cell::Json(value) => value.as_str().map(str::trim),
    });
    let values: Vec<&str> = values.filter(|text| !text.is_empty()).collect();
    let several = values.iter().filter(|text| has_words(text)).count();
    let differ = values
        .first()
        .is_some_and(|first| values.iter().any(|text| text != first));
    2 * several > values.len() && (differ || table.rows().len() == 1)
}

fn has_words(text: &str) -> bool {
    let words = text.split_whitespace();
    words
        .filter(|word| word.chars().any(char::is_alphabetic))
        .nth(1)
        .is_some()
}

/// How such a column is read.
pub(super) fn way(columns: &Columns) -> &'static str {
    match &columns.text {
        TextColumns::Text { pair: None, .. } => {
            "--text-pair-column takes a second text (a language model's completion), --text-column another one"
        }
        TextColumns::Completion { prompt, .. } if prompt.context.is_none() => {
            "--context-column makes it part of the prompt"
        }
        TextColumns::Text { .. } | TextColumns::Completion { .. } => {
            "write it into one of the columns that are read if it matters"
        }
        TextColumns::Words { .. } | TextColumns::Ids { .. } | TextColumns::Chat { .. } => {
            "--text-column takes another one"
        }
    }
}
