//! Rows to examples: token ids and a label each, checked against the vocabulary and the map. The faults of all rows
//! are collected before they are reported.

mod causal;
mod plan;
mod row;

use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::columns::{ColumnSpec, Columns, TextColumns};
use crate::error::{DataError, MAX_FAULTS_SHOWN, RowFault, RowFaultKind, TokenizerError};
use crate::labels::{Label, LabelMap, Task, number};
use crate::nlg::{self, NlgFormat};
use crate::rows::{FileFormat, Header, Table};
use crate::tokenizer::Tokenizer;
pub use causal::{Template, TemplateError};
use plan::LabelPlan;
use row::{Outcome, RowReader};

/// What to do with a row that is longer than the maximum length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongRows {
    /// Cut it, as transformers does; how much was cut is in the report.
    #[default]
    Truncate,
    /// Leave it out.
    Drop,
    /// Refuse the file.
    Refuse,
}

/// Whether rows must have labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelNeed {
    /// Each row must have one.
    #[default]
    Required,
    /// They are read if every row has one.
    IfPresent,
    /// They are not read.
    Ignored,
}

/// How a file becomes examples.
#[derive(Debug, Clone)]
pub struct LoadSpec {
    /// How the file is written; told by its extension if not given.
    pub format: Option<FileFormat>,
    /// Whether a CSV or TSV file begins with the names of its columns.
    pub header: Header,
    /// Which column holds what.
    pub columns: ColumnSpec,
    /// What is learned.
    pub task: Task,
    /// The classes; learned from this file if not given. A `config.json`'s stand-ins (see
    /// [`LabelMap::is_placeholder`]) are better not given.
    pub labels: Option<LabelMap>,
    /// Whether rows must have labels.
    pub need: LabelNeed,
    /// The most tokens a row may have, special tokens included.
    pub max_length: Option<usize>,
    /// What to do with longer rows.
    pub long_rows: LongRows,
    /// Which data set of text generation a file is of. A language model's file is looked at where this is not given and no
    /// column is named.
    pub nlg: Option<NlgFormat>,
    /// How a language model's rows are laid out.
    pub template: Template,
    /// Rows of the model's token embedding; every id must be below.
    pub vocab_size: Option<usize>,
    /// Rows of the model's token type embedding; every token type must be below.
    pub type_vocab_size: Option<usize>,
}

impl LoadSpec {
    /// The usual way for a task: format and columns found, labels required and learned, nothing cut.
    pub fn new(task: Task) -> Self {
        Self {
            format: None,
            header: Header::Present,
            columns: ColumnSpec::default(),
            task,
            labels: None,
            need: LabelNeed::Required,
            max_length: None,
            long_rows: LongRows::Truncate,
            nlg: None,
            template: Template::default(),
            vocab_size: None,
            type_vocab_size: None,
        }
    }
}

/// One row as a model takes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Token ids, special tokens included; at least one.
    pub input_ids: Vec<u32>,
    /// Token types, one for each id; `None` where all are 0.
    pub token_type_ids: Option<Vec<u32>>,
    /// The label, of the kind that the task needs; [`Label::None`] for all rows of a file without labels.
    pub label: Label,
    /// The line of the file, counted from 1.
    pub line: u64,
    /// Tokens that were cut off.
    pub truncated_tokens: u32,
}

/// What was done with a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// The file.
    pub path: PathBuf,
    /// How it is written.
    pub format: FileFormat,
    /// The columns that were read.
    pub columns: Columns,
    /// The columns that were not.
    pub ignored_columns: Vec<String>,
    /// Rows in the file.
    pub rows: usize,
    /// Lines that held nothing.
    pub blank_lines: u64,
    /// Rows left out because they are too long.
    pub dropped_rows: usize,
    /// Rows that were cut.
    pub truncated_rows: usize,
    /// Tokens cut off in all.
    pub truncated_tokens: u64,
    /// Tokens kept in all.
    pub tokens: u64,
    /// Tokens of the longest row that was kept.
    pub longest: usize,
}

/// A file's examples.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// One for each row that was kept, in file order; at least one.
    pub examples: Vec<Example>,
    /// The classes, given or learned; `None` for regression, and where no labels are read and none were given.
    pub label_map: Option<LabelMap>,
    /// What was done.
    pub report: LoadReport,
}

impl Loaded {
    /// Tokens of each example.
    pub fn lengths(&self) -> Vec<usize> {
        self.examples
            .iter()
            .map(|example| example.input_ids.len())
            .collect()
    }
}

/// Reads a file's rows and turns them into examples. Without a tokenizer only rows that are already tokenised
/// (`input_ids`) can be used.
pub fn load_examples(
    path: &Path,
    spec: &LoadSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Loaded, DataError> {
    examples_from_table(&read_table(path, spec)?, spec, tokenizer)
}

/// Reads a file's rows. Of a data set of text generation each reference is a row of `prompt` and `completion`.
pub fn read_table(path: &Path, spec: &LoadSpec) -> Result<Table, DataError> {
    let is_causal = spec.task == Task::CausalLm;
    if let Some(format) = spec.nlg.filter(|_| !is_causal) {
        return Err(DataError::Spec(format!(
            "rows of `{format}` are for a language model, and the task is another"
        )));
    }
    let open = is_causal && spec.format.is_none() && spec.columns == ColumnSpec::default();
    match spec.nlg.or_else(|| nlg::detect(path).filter(|_| open)) {
        Some(format) => nlg::read_table(path, format),
        None => Table::read(path, spec.format, spec.header),
    }
}

/// Turns rows that were read into examples. Rows are worked on in parallel; the result is in file order.
pub fn examples_from_table(
    table: &Table,
    spec: &LoadSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Loaded, DataError> {
    let mut columns = spec.columns.resolve(table, spec.task, spec.need)?;
    refuse_impossible(table, &columns, spec, tokenizer)?;
    if spec.need == LabelNeed::IfPresent
        && let Some(label) = &columns.label
        && !table
            .rows()
            .iter()
            .all(|row| row::has_label(table, row, label))
    {
        columns.label = None;
    }
    let plan = LabelPlan::new(table, columns.label.as_deref(), spec)?;
    let reader = RowReader {
        table,
        columns: &columns,
        spec,
        tokenizer,
        plan: &plan,
    };
    let outcomes: Vec<Result<Outcome, RowFault>> = table
        .rows()
        .par_iter()
        .map(|row| reader.read(row))
        .collect();
    refuse_faults(table, &columns, &outcomes)?;

    let report = LoadReport {
        path: table.path().into(),
        format: table.format(),
        ignored_columns: columns.ignored(table),
        columns,
        rows: table.rows().len(),
        blank_lines: table.blank_lines(),
        dropped_rows: 0,
        truncated_rows: 0,
        truncated_tokens: 0,
        tokens: 0,
        longest: 0,
    };
    collect(
        outcomes.into_iter().filter_map(Result::ok),
        report,
        plan.into_map(),
        spec,
    )
}

/// Keeps the examples, and counts what became of the rows.
fn collect(
    outcomes: impl Iterator<Item = Outcome>,
    mut report: LoadReport,
    label_map: Option<LabelMap>,
    spec: &LoadSpec,
) -> Result<Loaded, DataError> {
    let mut examples = Vec::with_capacity(report.rows);
    let mut shortest_dropped = usize::MAX;
    for outcome in outcomes {
        match outcome {
            Outcome::TooLong(tokens) => {
                report.dropped_rows += 1;
                shortest_dropped = shortest_dropped.min(tokens);
            }
            Outcome::Kept(example) => {
                report.truncated_rows += usize::from(example.truncated_tokens > 0);
                report.truncated_tokens += u64::from(example.truncated_tokens);
                report.tokens += example.input_ids.len() as u64;
                report.longest = report.longest.max(example.input_ids.len());
                examples.push(example);
            }
        }
    }
    if examples.is_empty() {
        return Err(DataError::AllRowsTooLong {
            path: report.path,
            rows: report.rows,
            max_length: spec.max_length.unwrap_or(usize::MAX),
            shortest: shortest_dropped,
        });
    }
    Ok(Loaded {
        examples,
        label_map,
        report,
    })
}

/// What is wrong whatever the rows hold.
fn refuse_impossible(
    table: &Table,
    columns: &Columns,
    spec: &LoadSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), DataError> {
    let (column, pair) = match &columns.text {
        TextColumns::Text { text, pair } => (text, pair.is_some()),
        TextColumns::Completion { prompt, .. } => (prompt, false),
        TextColumns::Words { words } => (words, false),
        TextColumns::Ids { .. } => {
            return match spec.max_length {
                Some(0) => Err(TokenizerError::MaxLengthTooSmall {
                    max_length: 0,
                    special: 0,
                }
                .into()),
                Some(_) | None => Ok(()),
            };
        }
    };
    if spec.task == Task::TokenClassification && matches!(columns.text, TextColumns::Text { .. }) {
        return Err(DataError::Spec(
            "token classification needs a column of words, not of text".into(),
        ));
    }
    let Some(tokenizer) = tokenizer else {
        return Err(DataError::NoTokenizer {
            path: table.path().into(),
            column: column.clone(),
        });
    };
    let special = tokenizer.special_tokens(pair);
    match spec.max_length {
        Some(max_length) if max_length <= special => Err(TokenizerError::MaxLengthTooSmall {
            max_length,
            special,
        }
        .into()),
        Some(_) | None => Ok(()),
    }
}

fn refuse_faults(
    table: &Table,
    columns: &Columns,
    outcomes: &[Result<Outcome, RowFault>],
) -> Result<(), DataError> {
    let all = || outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    let mut faults: Vec<RowFault> = all().take(MAX_FAULTS_SHOWN).cloned().collect();
    if faults.is_empty() {
        return Ok(());
    }
    for fault in &mut faults {
        if let RowFaultKind::NotANumber { numeric_column, .. } = &mut fault.kind {
            *numeric_column = first_numeric_column(table, columns);
        }
    }
    Err(DataError::Rows {
        path: table.path().into(),
        total: all().count(),
        rows: table.rows().len(),
        faults,
    })
}

/// A column that is not read so far and whose first values are numbers.
fn first_numeric_column(table: &Table, columns: &Columns) -> Option<String> {
    columns.ignored(table).into_iter().find(|name| {
        table.rows().iter().take(MAX_FAULTS_SHOWN).all(|row| {
            table
                .get(row, name)
                .is_some_and(|cell| number(cell).is_ok())
        })
    })
}
