//! Rows to examples: token ids and a label each, checked against the vocabulary and the map. The
//! faults of all rows are collected before they are reported.

mod bad_rows;
mod blocks;
mod causal;
mod chat;
mod collect;
mod form;
mod length;
mod plan;
mod prompt;
mod row;
mod task;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::columns::{ColumnSpec, Columns, TextColumns};
use crate::error::{DataError, MAX_FAULTS_SHOWN, RowFault, RowFaultKind, TokenizerError};
use crate::labels::several::{SeveralCell, several};
use crate::labels::value::number;
use crate::labels::{Label, LabelMap, LabelOrigin, LabelSummary, Task, UnlabelledRows};
use crate::nlg::{self, NlgFormat};
use crate::rows::{FileFormat, Header, Table};
use crate::tokenizer::Tokenizer;
pub use bad_rows::{BadRows, DEFAULT_MAX_BAD_ROWS};
pub use causal::{Template, TemplateError};
pub(crate) use chat::turns_of;
pub use chat::{AskedChat, ChatFormat, ChatReport, ChatUse, asked_chats_of};
use collect::{Outcome, Read};
pub use form::DataForm;
use plan::LabelPlan;
pub use prompt::{Completed, Prompt, completed_of, prompts_of};
use row::RowReader;
pub use row::words_of;
pub use task::{TaskGuess, guess_task};

/// What to do with a row that is longer than the maximum length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LongRows {
    /// Cut it, a chat by whole turns from the left, other rows as transformers does; how much was
    /// cut is in the report.
    #[default]
    Truncate,
    /// Leave it out.
    Drop,
    /// It cannot be used: see [`BadRows`].
    #[serde(rename = "error")]
    Refuse,
    /// A plain text becomes as many rows as it takes, so that each of its tokens is learned once.
    Blocks,
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
    /// Where those classes come from, for messages.
    pub labels_from: LabelOrigin,
    /// Whether rows must have labels.
    pub need: LabelNeed,
    /// What becomes of rows without one where they must.
    pub unlabelled: UnlabelledRows,
    /// The most tokens a row may have, special tokens included.
    pub max_length: Option<usize>,
    /// What to do with longer rows.
    pub long_rows: LongRows,
    /// What to do with rows that cannot be used.
    pub bad_rows: BadRows,
    /// The largest share of a file's rows, from 0 to 1, that [`BadRows::Skip`] leaves out; one row
    /// always may be.
    pub max_bad_rows: f64,
    /// Which data set of text generation a file is of. A language model's file is looked at where
    /// this is not given and no column is named.
    pub nlg: Option<NlgFormat>,
    /// How a language model's rows are laid out.
    pub template: Template,
    /// How chats are laid out, and which rows are chats; none can be read without.
    pub chat: Option<ChatFormat>,
    /// Rows of the model's token embedding; every id must be below.
    pub vocab_size: Option<usize>,
    /// Rows of the model's token type embedding; every token type must be below.
    pub type_vocab_size: Option<usize>,
}

impl LoadSpec {
    /// The usual way for a task: format and columns found, labels required and learned, nothing
    /// cut.
    pub fn new(task: Task) -> Self {
        Self {
            format: None,
            header: Header::Present,
            columns: ColumnSpec::default(),
            task,
            labels: None,
            labels_from: LabelOrigin::default(),
            need: LabelNeed::Required,
            unlabelled: UnlabelledRows::default(),
            max_length: None,
            long_rows: LongRows::Truncate,
            bad_rows: BadRows::Error,
            max_bad_rows: DEFAULT_MAX_BAD_ROWS,
            nlg: None,
            template: Template::default(),
            chat: None,
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
    /// The label, of the kind that the task needs; [`Label::None`] for all rows of a file without
    /// labels.
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
    /// What a language model's rows are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<DataForm>,
    /// The columns that were not.
    pub ignored_columns: Vec<String>,
    /// Rows in the file.
    pub rows: usize,
    /// Lines that held nothing.
    pub blank_lines: u64,
    /// Rows left out because they cannot be used.
    pub bad_rows: usize,
    /// Rows left out because they have no words.
    pub wordless_rows: usize,
    /// Rows left out because they are too long.
    pub dropped_rows: usize,
    /// Rows left out because they have no label.
    pub unlabelled_rows: usize,
    /// Rows that were cut.
    pub truncated_rows: usize,
    /// Tokens cut off in all.
    pub truncated_tokens: u64,
    /// Tokens kept in all.
    pub tokens: u64,
    /// Tokens of the longest row that was kept.
    pub longest: usize,
    /// What a user should know of the file, one sentence each.
    pub notes: Vec<String>,
    /// What became of chats, where rows are some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chats: Option<ChatReport>,
    /// What the labels are.
    pub labels: LabelSummary,
}

/// A file's examples.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// One for each row that was kept, in file order; at least one.
    pub examples: Arc<Vec<Example>>,
    /// The rows that gave no example, and why, in file order.
    pub left_out: Vec<RowFault>,
    /// The classes, given or learned; `None` for regression, and where no labels are read and none
    /// were given.
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

/// Reads a file's rows and turns them into examples. Without a tokenizer only rows that are already
/// tokenised (`input_ids`) can be used.
pub fn load_examples(
    path: &Path,
    spec: &LoadSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Loaded, DataError> {
    examples_from_table(&read_table(path, spec)?, spec, tokenizer)
}

/// Reads a file's rows. Of a data set of text generation each reference is a row of `prompt` and
/// `completion`.
pub fn read_table(path: &Path, spec: &LoadSpec) -> Result<Table, DataError> {
    let is_causal = spec.task == Task::CausalLm;
    if let Some(format) = spec.nlg.filter(|_| !is_causal) {
        return Err(DataError::Spec(format!(
            "rows of `{format}` are for a language model, and the task is another: leave out --data-format, or pass --task causal_lm"
        )));
    }
    let open = is_causal && spec.format.is_none() && spec.columns == ColumnSpec::default();
    match spec.nlg.or_else(|| nlg::detect(path).filter(|_| open)) {
        Some(format) => nlg::read_table(path, format),
        None => match spec.bad_rows {
            BadRows::Error => Table::read(path, spec.format, spec.header),
            BadRows::Skip => Table::read_lenient(path, spec.format, spec.header),
        },
    }
}

/// Whether rows that were read are chats, laid out by the chat template of `spec`.
///
/// # Errors
/// As for [`examples_from_table`], of columns.
pub fn reads_chats(table: &Table, spec: &LoadSpec) -> Result<bool, DataError> {
    let Some(chat) = spec.chat.as_ref().filter(|_| spec.task == Task::CausalLm) else {
        return Ok(false);
    };
    let columns = spec.columns.resolve(table, spec.task, spec.need, None)?;
    Ok(chat.takes(table, &columns.text))
}

/// Turns rows that were read into examples. Rows are worked on in parallel; the result is in file
/// order.
pub fn examples_from_table(
    table: &Table,
    spec: &LoadSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Loaded, DataError> {
    let is_labelled = spec.task != Task::CausalLm && spec.need == LabelNeed::Required;
    if is_labelled && table.format() == FileFormat::Text {
        return Err(DataError::NoLabelsInText {
            path: table.path().into(),
        });
    }
    let known = spec.labels.as_ref();
    let mut columns = spec.columns.resolve(table, spec.task, spec.need, known)?;
    refuse_duplicates(table, &columns)?;
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
    let Usable {
        read,
        plan,
        mut bad,
        parted,
    } = usable(table, &columns, spec, tokenizer)?;
    bad.sort_by_key(|fault| fault.line);
    let mut notes = table.notes().to_vec();
    let chats = ChatReport::of(&read);
    if let (Some(chats), Some(format)) = (&chats, &spec.chat) {
        notes.push(chats.note(format.loss_on));
    }
    let outcomes: Vec<Outcome> = read.into_iter().flat_map(|read| read.outcomes).collect();
    if !bad.is_empty() {
        notes.push(bad_rows::note(&bad, table.row_count()));
    }
    notes.extend(parted_note(parted));
    let report = LoadReport {
        path: table.path().into(),
        format: table.format(),
        ignored_columns: columns.ignored(table),
        form: DataForm::of(table, &columns.text, spec),
        columns,
        rows: table.row_count(),
        blank_lines: table.blank_lines(),
        bad_rows: bad.len(),
        wordless_rows: 0,
        dropped_rows: 0,
        unlabelled_rows: 0,
        truncated_rows: 0,
        truncated_tokens: 0,
        tokens: 0,
        longest: 0,
        notes,
        chats,
        labels: LabelSummary::new(plan.layout(spec.task)),
    };
    let naming = plan.naming();
    let loaded = Loaded {
        examples: Arc::new(Vec::with_capacity(outcomes.len())),
        left_out: bad,
        label_map: plan.into_map(),
        report,
    };
    let mut loaded = collect::collect(outcomes, loaded, spec)?;
    let labels = loaded.examples.iter().map(|example| &example.label);
    let layout = loaded.report.labels.layout;
    loaded.report.labels = LabelSummary::of(layout, labels, loaded.label_map.as_ref(), &naming);
    Ok(loaded)
}

/// What is said of texts of which only a part was tokenised, if there are some.
fn parted_note(parted: usize) -> Option<String> {
    let texts = match parted {
        0 => return None,
        1 => "1 text is".to_owned(),
        _ => format!("{parted} texts are"),
    };
    Some(format!(
        "{texts} so long that only the part was tokenised which decides on the tokens that are kept: of those that are cut, more were not counted"
    ))
}

/// What a file gives.
struct Usable {
    /// What becomes of each row that can be used.
    read: Vec<Read>,
    /// What their labels mean.
    plan: LabelPlan,
    /// The rows that cannot be used.
    bad: Vec<RowFault>,
    /// Texts so long that only a part of them was tokenised.
    parted: usize,
}

/// Reads all rows. Where rows are left out, the others are read again as if these had never been
/// there, so that no bad row has a say in what the labels of the others mean.
fn usable(
    table: &Table,
    columns: &Columns,
    spec: &LoadSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Usable, DataError> {
    let mut bad = table.faults().to_vec();
    if !bad.is_empty() {
        bad_rows::allow(table, &bad, spec)?;
    }
    let mut rest = Cow::Borrowed(table);
    loop {
        let parted = AtomicUsize::new(0);
        let plan = LabelPlan::new(&rest, columns.label.as_ref(), spec)?;
        let reader = RowReader {
            table: &rest,
            columns,
            spec,
            tokenizer,
            plan: &plan,
            answers_are_chats: (spec.chat.as_ref())
                .is_some_and(|chat| chat.takes(&rest, &columns.text)),
            parted: &parted,
        };
        let rows = rest.rows().par_iter();
        let read: Vec<Result<Read, RowFault>> = rows.map(|row| reader.read(row)).collect();
        refuse_all_unlabelled(&rest, columns, &read)?;
        let keep: Vec<bool> = read.iter().map(Result::is_ok).collect();
        if keep.iter().all(|keep| *keep) {
            let read = read.into_iter().filter_map(Result::ok).collect();
            return Ok(Usable {
                read,
                plan,
                bad,
                parted: parted.into_inner(),
            });
        }
        let mut faults: Vec<RowFault> = read.into_iter().filter_map(Result::err).collect();
        name_numbers(&rest, columns, &mut faults);
        bad.extend(faults);
        bad_rows::allow(table, &bad, spec)?;
        rest = Cow::Owned(rest.keeping(&keep));
    }
}

/// A file in which no row has a label is told so once, not row by row.
fn refuse_all_unlabelled(
    table: &Table,
    columns: &Columns,
    read: &[Result<Read, RowFault>],
) -> Result<(), DataError> {
    // The line and what stands there.
    let word = |read: &Result<Read, RowFault>| {
        let fault = match read {
            Err(fault) => fault,
            Ok(read) => match read.outcomes.as_slice() {
                [Outcome::Unlabelled(fault)] => fault,
                _ => return None,
            },
        };
        match &fault.kind {
            RowFaultKind::Unlabelled {
                nearest: None,
                found,
            } => Some((fault.line, found.clone())),
            _ => None,
        }
    };
    let words: Option<Vec<(u64, Option<String>)>> = read.iter().map(word).collect();
    let Some(words) = words.filter(|words| words.len() > 1) else {
        return Ok(());
    };
    // A list that lacks one of its labels has others: its row is named.
    if let Some(crate::columns::LabelColumns::One(name)) = &columns.label {
        let mut cells = table.rows().iter().map(|row| table.get(row, name));
        if cells.any(|cell| matches!(several(cell, None), Ok(SeveralCell::List(_)))) {
            return Ok(());
        }
    }
    let found = words
        .into_iter()
        .find_map(|(line, word)| Some((line, word?)));
    let column = columns.label.as_ref().map(|label| label.names().join(", "));
    Err(DataError::NoLabelledRow {
        path: table.path().into(),
        rows: read.len(),
        column,
        found,
    })
}

/// Two columns of one name are only wrong where that name is read.
fn refuse_duplicates(table: &Table, columns: &Columns) -> Result<(), DataError> {
    let read = columns.read().into_iter();
    let found = read.map(|name| (name, table.times_named(name)));
    match found.into_iter().find(|(_, times)| *times > 1) {
        None => Ok(()),
        Some((name, times)) => Err(DataError::DuplicateColumn {
            path: table.path().into(),
            name: name.clone(),
            times,
        }),
    }
}

/// What is wrong whatever the rows hold.
fn refuse_impossible(
    table: &Table,
    columns: &Columns,
    spec: &LoadSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), DataError> {
    let is_plain = matches!(columns.text, TextColumns::Text { pair: None, .. });
    if spec.long_rows == LongRows::Blocks && !(is_plain && spec.task == Task::CausalLm) {
        return Err(DataError::Spec(format!(
            "`long_rows: blocks` cuts a language model's plain texts into rows, but the rows are {}: pass truncate, drop or error",
            columns.text.describe()
        )));
    }
    let (column, pair) = match &columns.text {
        TextColumns::Text { text, pair } => (text, pair.is_some()),
        TextColumns::Completion { prompt, .. } => (&prompt.prompt, false),
        TextColumns::Words { words } => (words, false),
        TextColumns::Chat { turns, .. } if spec.chat.is_none() => {
            return Err(DataError::Conversations {
                path: table.path().into(),
                column: turns.clone(),
            });
        }
        TextColumns::Chat { turns, .. } => (turns, false),
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

/// Where targets are no numbers, a column that holds some is named.
fn name_numbers(table: &Table, columns: &Columns, faults: &mut [RowFault]) {
    for fault in faults.iter_mut().take(MAX_FAULTS_SHOWN) {
        if let RowFaultKind::NotANumber { numeric_column, .. } = &mut fault.kind {
            *numeric_column = first_numeric_column(table, columns);
        }
    }
}

/// A column that is not read so far and whose first values are numbers.
fn first_numeric_column(table: &Table, columns: &Columns) -> Option<String> {
    columns.ignored(table).into_iter().find(|name| {
        table.rows().iter().take(MAX_FAULTS_SHOWN).all(|row| {
            table
                .get(row, name)
                .is_some_and(|cell| number(Some(cell)).is_ok())
        })
    })
}
