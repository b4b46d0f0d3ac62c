//! What can be wrong with a data file or a tokenizer, said with file, line and column. Knows
//! nothing of how rows are read.

mod column;
mod row;
mod tokenizer;

use std::path::PathBuf;

use thiserror::Error;

pub use column::{ColumnRole, Naming};
pub use row::{RowFault, RowFaultKind};
pub use tokenizer::TokenizerError;

/// How many faulty rows an error names; it always says how many there are in all.
pub const MAX_FAULTS_SHOWN: usize = 10;

/// A data file that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file is no regular one where it must be, too long, or cannot be read: the error names
    /// it.
    #[error(transparent)]
    File(#[from] lowrank_formats::FormatError),
    /// The file's extension names no format that we read.
    #[error("`{}`: the format cannot be told from the extension", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
    },
    /// A file that has no header was said to lack one.
    #[error("`{}`: rows of a {format} file have no header to be without", path.display())]
    HeaderAbsent {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: &'static str,
    },
    /// A Parquet file, in a build without the reader for it.
    #[error("`{}`: this build does not read Parquet", path.display())]
    ParquetNotBuilt {
        /// The file.
        path: PathBuf,
    },
    /// The file as a whole cannot be parsed.
    #[error("`{}`, line {line}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1; for Parquet the row.
        line: u64,
        /// What is wrong.
        problem: FileProblem,
    },
    /// No row in the file.
    #[error("`{}`: the file holds no row{}", path.display(), if *header_only { ", only a header" } else { "" })]
    Empty {
        /// The file.
        path: PathBuf,
        /// Whether a header line was there.
        header_only: bool,
    },
    /// Two columns of the same name.
    #[error("`{}`, line 1: column name `{name}` stands {times} times in the header", path.display())]
    DuplicateColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
        /// How often.
        times: usize,
    },
    /// A column that was asked for is not there.
    #[error("`{}`: no column `{column}` for {role}; found {}", path.display(), name_list(columns))]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        column: String,
        /// What it should hold.
        role: ColumnRole,
        /// The columns that are there.
        columns: Vec<String>,
        /// The nearest of them.
        nearest: Option<String>,
        /// Where the columns have their names from.
        naming: Naming,
    },
    /// No column was named, and several have names that we know.
    #[error("`{}`: several columns may hold {role}: {}", path.display(), name_list(columns))]
    SeveralColumnsFor {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        role: ColumnRole,
        /// The columns that may be meant.
        columns: Vec<String>,
    },
    /// A column of labels that are half of one kind and half of another, so that neither is the
    /// fault.
    #[error("`{}`, column `{column}`: {count} labels are {} (`{}`) and {count} are {} (`{}`): which are meant?", path.display(), kinds[0].0, shorten(&kinds[0].1), kinds[1].0, shorten(&kinds[1].1))]
    MixedLabels {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// How many there are of each kind.
        count: u64,
        /// The kinds, with an example of each.
        kinds: Box<[(&'static str, String); 2]>,
    },
    /// A column for several labels that holds only 0 and 1, and no vectors of one length.
    #[error("`{}`, column `{column}`: only 0 and 1, but no vectors of one length (line {line}: `{}`): these labels are neither places of a vector nor names", path.display(), shorten(example))]
    NoVectors {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// A line that shows it.
        line: u64,
        /// What stands there.
        example: String,
    },
    /// No row has a label.
    #[error("`{}`: none of {rows} rows has a label{}{}", path.display(), column.as_ref().map(|c| format!(" in column `{c}`")).unwrap_or_default(), found.as_ref().map(|(line, word)| format!(": on line {line} stands `{word}`")).unwrap_or_default())]
    NoLabelledRow {
        /// The file.
        path: PathBuf,
        /// Rows in the file.
        rows: usize,
        /// Where labels were looked for.
        column: Option<String>,
        /// The line of the first word that is no label, and the word; `None` where nothing stands
        /// at all.
        found: Option<(u64, String)>,
    },
    /// No column was named, and none has a name that we know.
    #[error("`{}`: no column is known to hold {role}; found {}", path.display(), name_list(columns))]
    NoColumnFor {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        role: ColumnRole,
        /// The columns that are there.
        columns: Vec<String>,
        /// Where the columns have their names from.
        naming: Naming,
    },
    /// Plain text where rows need labels.
    #[error("`{}`: a text file holds no labels; expected a table", path.display())]
    NoLabelsInText {
        /// The file.
        path: PathBuf,
    },
    /// Chats for a model without a chat template.
    #[error("`{}`: column `{column}` holds chats, and the model has no chat template to lay them out by", path.display())]
    Conversations {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// Text rows, but no tokenizer to turn them into ids.
    #[error("`{}`: rows are text (column `{column}`), and there is no tokenizer", path.display())]
    NoTokenizer {
        /// The file.
        path: PathBuf,
        /// The column of text.
        column: String,
    },
    /// Some rows cannot be used.
    #[error("`{}`: {}", path.display(), row_faults(*total, *rows, faults))]
    Rows {
        /// The file.
        path: PathBuf,
        /// Faulty rows in all.
        total: usize,
        /// Rows in the file.
        rows: usize,
        /// The first of them, at most [`MAX_FAULTS_SHOWN`].
        faults: Vec<RowFault>,
    },
    /// More rows cannot be used than may be left out.
    #[error("`{}`: {}\n  at most {} % of the rows may be left out", path.display(), row_faults(*total, *rows, faults), 100.0 * share)]
    TooManyBadRows {
        /// The file.
        path: PathBuf,
        /// Faulty rows in all.
        total: usize,
        /// Rows in the file.
        rows: usize,
        /// The largest share that may be left out.
        share: f64,
        /// The first of them, at most [`MAX_FAULTS_SHOWN`].
        faults: Vec<RowFault>,
    },
    /// Every row is longer than allowed, and long rows were to be dropped.
    #[error("`{}`: all {rows} rows are longer than {max_length} tokens (the shortest has {shortest}): nothing is left", path.display())]
    AllRowsTooLong {
        /// The file.
        path: PathBuf,
        /// Rows in the file.
        rows: usize,
        /// The limit.
        max_length: usize,
        /// Tokens of the shortest row.
        shortest: usize,
    },
    /// More rows than a 32-bit row number can name.
    #[error("`{}`: {rows} rows, the largest number supported is {}", path.display(), u32::MAX)]
    TooManyRows {
        /// The file.
        path: PathBuf,
        /// Rows in the file.
        rows: usize,
    },
    /// A wish that does not fit the task, whatever the file holds.
    #[error("{0}")]
    Spec(String),
    /// A set of label names that cannot be used.
    #[error(transparent)]
    Labels(#[from] LabelMapError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl DataError {
    /// What to do about it: a command or an edit.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::UnknownFormat { .. } => {
                Some("expected .jsonl or .json (objects such as `{\"text\": \"...\", \"label\": \"...\"}`), .csv or .tsv (a header `text,label`), .txt (a language model's text) or .parquet".into())
            }
            Self::HeaderAbsent { .. } => Some("leave out --no-header".into()),
            Self::ParquetNotBuilt { .. } => {
                Some("build with `--features parquet`, or convert the file to JSONL".into())
            }
            Self::Malformed { problem, .. } => problem.hint(),
            Self::DuplicateColumn { .. } => Some("rename one of the columns".into()),
            Self::MissingColumn { nearest, naming, .. } => match nearest {
                Some(name) => Some(format!("did you mean `{name}`?")),
                None => naming.hint(),
            },
            Self::NoColumnFor { role, naming, .. } => {
                let name = role.hint();
                Some(naming.hint().map_or(name.into(), |taken| format!("{name}; {taken}")))
            }
            Self::NoLabelsInText { .. } => Some(
                "write rows such as `{\"text\": \"...\", \"label\": \"...\"}` into a .jsonl file, or name a table .csv or .tsv; --task causal_lm trains a language model on the text".into(),
            ),
            Self::Conversations { .. } => Some(
                "pass --chat-template with a file or the name of a built-in one, such as chatml; or write each exchange as a row: `{\"prompt\": \"...\", \"completion\": \"...\"}`".into(),
            ),
            Self::SeveralColumnsFor { .. } => Some("name one with --label-column".into()),
            Self::MixedLabels { kinds, .. } => Some(match kinds[1].0 {
                "fractions" => "--task regression predicts numbers; for classes, mend the fractions".into(),
                _ => "mend one of them, or name every class with --labels".into(),
            }),
            Self::NoVectors { .. } => Some(
                "for one label a row pass --task single_label; for several give each row a vector of one length such as `0,1,0`, a list of names, or one column of 0 and 1 a label (--label-columns)".into(),
            ),
            Self::NoLabelledRow { found, .. } => {
                let known = "GLUE's test files, for example, are published without labels; `lowrank predict` needs none";
                Some(found.as_ref().map_or(known.into(), |(_, word)| {
                    format!("if `{word}` is a class, name all classes with --labels; {known}")
                }))
            }
            Self::NoTokenizer { .. } => Some(
                "put `tokenizer.json` beside the model, or give rows that are already tokenised (`input_ids`)".into(),
            ),
            Self::Rows { faults, total, rows, .. } => {
                let hint = faults.iter().find_map(|fault| fault.kind.hint());
                // Where most rows are of no use, it is not they that are wrong.
                let few = 2 * total < *rows;
                let skip = few.then(|| "--bad-rows skip leaves out rows that cannot be used".to_string());
                match (hint, skip) {
                    (Some(hint), Some(skip)) => Some(format!("{hint}; {skip}")),
                    (hint, skip) => hint.or(skip),
                }
            }
            Self::TooManyBadRows { total, rows, .. } => {
                let share = (1000.0 * *total as f64 / (*rows).max(1) as f64).ceil() / 1000.0;
                (total < rows).then(|| format!("mend them, or pass --max-bad-rows {share} to go on without them"))
            }
            Self::AllRowsTooLong { .. } => {
                Some("pass --long-rows truncate to cut them, or a larger --max-length".into())
            }
            Self::Tokenizer(error) => error.hint(),
            Self::Labels(_)
            | Self::Empty { .. }
            | Self::TooManyRows { .. }
            | Self::Spec(_) => None,
        }
    }
}

/// What is wrong with a file as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FileProblem {
    /// Bytes that are not UTF-8.
    #[error("not UTF-8 text")]
    NotUtf8,
    /// A UTF-16 byte order mark.
    #[error("UTF-16 text, expected UTF-8")]
    Utf16,
    /// A gzip, zip or other file that is no text at all.
    #[error("this is a {0} file, not text")]
    Compressed(&'static str),
    /// A JSON document of columns instead of rows.
    #[error("the file is one JSON object of columns, expected an object for each row")]
    JsonColumns,
    /// More columns than any table has.
    #[error("{found} columns, at most {most} are read")]
    TooManyColumns {
        /// Columns in the header.
        found: usize,
        /// The most.
        most: usize,
    },
    /// A quote that opens a field and is never closed.
    #[error("the quote that opens field {field} is never closed")]
    OpenQuote {
        /// The field, counted from 1.
        field: usize,
    },
    /// A file of no data set of text generation that is known.
    #[error(
        "the rows are of no data set that is known: expected E2E, WebNLG, DART, or JSONL with `prompt` and `references`"
    )]
    NoNlgData,
    /// A file that is not written as its data set is.
    #[error("this is not written as {format} is: expected {shapes}")]
    OtherNlgData {
        /// The data set.
        format: &'static str,
        /// How it is written.
        shapes: &'static str,
    },
    /// The Parquet decoder refused.
    #[error("not a readable Parquet file: {0}")]
    Parquet(String),
}

impl FileProblem {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotUtf8 => Some("convert it, for example `iconv -f latin1 -t utf-8 FILE`".into()),
            Self::Utf16 => Some("convert it: `iconv -f utf-16 -t utf-8 FILE`".into()),
            Self::Compressed(_) => Some("unpack it first".into()),
            Self::JsonColumns => {
                Some("with pandas, write it by `to_json(FILE, orient=\"records\", lines=True)`".into())
            }
            Self::OpenQuote { .. } => Some(
                "double each quote inside a quoted field, or name the file .tsv if quotes mean nothing in it".into(),
            ),
            Self::NoNlgData => Some("name its kind with --data-format e2e, webnlg, dart or references".into()),
            Self::OtherNlgData { .. } => Some("leave --data-format out if the rows are of another kind".into()),
            Self::Parquet(_) | Self::TooManyColumns { .. } => None,
        }
    }
}

/// Label names that make no map.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LabelMapError {
    /// Two classes of one name.
    #[error("label `{name}` is named twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// No name at all.
    #[error("no label is named")]
    Empty,
    /// `id2label` is not an object of `"0".."n-1"` to names.
    #[error("`id2label`: {0}")]
    Id2Label(String),
}

/// Names in backticks, at most ten of them.
pub(crate) fn name_list(names: &[String]) -> String {
    const SHOWN: usize = 10;
    if names.is_empty() {
        return "none".into();
    }
    let mut text = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{}`", shorten(name)))
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// A value from a file, cut so that it fits a message.
pub(crate) fn shorten(value: &str) -> String {
    const LONGEST: usize = 60;
    if value.chars().count() <= LONGEST {
        return value.to_string();
    }
    let mut short: String = value.chars().take(LONGEST).collect();
    short.push('…');
    short
}

fn row_faults(total: usize, rows: usize, faults: &[RowFault]) -> String {
    let mut text = format!("{total} of {rows} rows cannot be used");
    for fault in faults {
        text.push_str(&format!("\n  {fault}"));
    }
    if total > faults.len() {
        text.push_str(&format!("\n  and {} more", total - faults.len()));
    }
    text
}
