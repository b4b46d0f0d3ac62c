//! What became of a file's rows: examples are kept, and everything is counted.

use std::sync::Arc;

use super::chat::ReadChat;
use super::{Example, LoadSpec, Loaded};
use crate::error::{DataError, MAX_FAULTS_SHOWN, RowFault};

/// What became of a row.
pub(super) enum Outcome {
    /// An example.
    Kept(Example),
    /// Left out: so many tokens, and what is said of it.
    TooLong(usize, RowFault),
    /// Left out: a list of words without any.
    NoWords(RowFault),
    /// Left out: it has no label.
    Unlabelled(RowFault),
}

/// What a row of a file gives: one row of tokens, or several.
pub(super) struct Read {
    pub(super) outcomes: Vec<Outcome>,
    /// Where it is a chat, how that was laid out.
    pub(super) chat: Option<ReadChat>,
}

impl Read {
    pub(super) fn one(outcome: Outcome) -> Self {
        Read {
            outcomes: vec![outcome],
            chat: None,
        }
    }
}

/// Keeps the examples, and counts what became of the rows.
pub(super) fn collect(
    outcomes: Vec<Outcome>,
    mut loaded: Loaded,
    spec: &LoadSpec,
) -> Result<Loaded, DataError> {
    let mut shortest_dropped = usize::MAX;
    let mut wordless = Vec::new();
    let report = &mut loaded.report;
    for outcome in outcomes {
        match outcome {
            Outcome::Unlabelled(fault) => {
                report.unlabelled_rows += 1;
                loaded.left_out.push(fault);
            }
            Outcome::TooLong(tokens, fault) => {
                report.dropped_rows += 1;
                shortest_dropped = shortest_dropped.min(tokens);
                loaded.left_out.push(fault);
            }
            Outcome::NoWords(fault) => wordless.push(fault),
            Outcome::Kept(example) => {
                report.truncated_rows += usize::from(example.truncated_tokens > 0);
                report.truncated_tokens += u64::from(example.truncated_tokens);
                report.tokens += example.input_ids.len() as u64;
                report.longest = report.longest.max(example.input_ids.len());
                Arc::make_mut(&mut loaded.examples).push(example);
            }
        }
    }
    if loaded.examples.is_empty() && report.dropped_rows > 0 {
        return Err(DataError::AllRowsTooLong {
            path: report.path.clone(),
            rows: report.rows,
            max_length: spec.max_length.unwrap_or(usize::MAX),
            shortest: shortest_dropped,
        });
    }
    if loaded.examples.is_empty() {
        return Err(DataError::Rows {
            path: report.path.clone(),
            total: wordless.len(),
            rows: report.rows,
            faults: wordless.into_iter().take(MAX_FAULTS_SHOWN).collect(),
        });
    }
    if let Some(first) = wordless.first() {
        report.wordless_rows = wordless.len();
        let rows = match wordless.len() {
            1 => "1 row without words is left out".into(),
            n => format!("{n} rows without words are left out, the first"),
        };
        report.notes.push(format!("{rows} (line {})", first.line));
        loaded.left_out.extend(wordless);
    }
    loaded.left_out.sort_by_key(|fault| fault.line);
    Ok(loaded)
}
