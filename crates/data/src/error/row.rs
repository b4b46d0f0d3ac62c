//! What can be wrong with a row, said with line and column.

use thiserror::Error;

use super::name_list;
use crate::labels::LabelOrigin;

/// One row that cannot be used.
#[derive(Debug, Clone, PartialEq, Error)]
#[error("line {line}{}: {kind}", column.as_ref().map(|c| format!(", column `{c}`")).unwrap_or_default())]
pub struct RowFault {
    /// The line, counted from 1; for Parquet the row.
    pub line: u64,
    /// The column, where the fault is in one.
    pub column: Option<String>,
    /// What is wrong.
    pub kind: RowFaultKind,
}

/// What is wrong with a row.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum RowFaultKind {
    /// The line is not a JSON value.
    #[error("not JSON: {message}")]
    NotJson {
        /// What the parser said, with the position in the line.
        message: String,
        /// Whether the line holds `NaN` or `Infinity`, as Python writes them.
        python_constant: bool,
    },
    /// The document is no XML, or is cut off.
    #[error("not XML: {0}")]
    NotXml(String),
    /// The line is JSON, but no object.
    #[error("expected a JSON object, found {found}")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A byte 0, which no text holds.
    #[error("a NUL byte")]
    NulByte,
    /// Too many or too few fields.
    #[error("expected {expected} fields as in the header, found {found}")]
    Ragged {
        /// Fields in the header.
        expected: usize,
        /// Fields in the row.
        found: usize,
    },
    /// The row has no such column, or `null` in it.
    #[error("no value{}", nearest.as_ref().map(|n| format!(" (the row has `{n}`)")).unwrap_or_default())]
    Missing {
        /// The nearest key of this row.
        nearest: Option<String>,
    },
    /// A value of another type than the column must have.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A label that the map does not hold.
    #[error("label `{label}` is not in the map; known: {}", name_list(known))]
    UnknownLabel {
        /// The label.
        label: String,
        /// The nearest name.
        nearest: Option<String>,
        /// The names of the map.
        known: Vec<String>,
        /// Where they come from.
        origin: LabelOrigin,
    },
    /// The row has no label, or a word that means so.
    #[error("no label{}{}", found.as_ref().map(|w| format!(": `{w}` is not a class")).unwrap_or_default(), nearest.as_ref().map(|n| format!(" (the row has `{n}`)")).unwrap_or_default())]
    Unlabelled {
        /// The word.
        found: Option<String>,
        /// The nearest key of a row that lacks the column.
        nearest: Option<String>,
    },
    /// A label of another kind than those of most rows.
    #[error("`{found}` is {what}, and the labels of this column are {others}")]
    OddLabel {
        /// The label.
        found: String,
        /// What it is.
        what: &'static str,
        /// What most are.
        others: &'static str,
    },
    /// A regression target that is no number.
    #[error("`{found}` is not a number")]
    NotANumber {
        /// What stands there.
        found: String,
        /// A column of the file whose values are numbers.
        numeric_column: Option<String>,
    },
    /// A regression target that is NaN or infinite.
    #[error("`{found}` is not finite")]
    NotFinite {
        /// What stands there.
        found: String,
    },
    /// A fraction where a class is expected.
    #[error("`{found}` is not a class")]
    NotAClass {
        /// What stands there.
        found: String,
    },
    /// A vector of 0 and 1 of the wrong length.
    #[error("expected {expected} labels, found {found}")]
    LabelCount {
        /// Number of labels in the map.
        expected: usize,
        /// Values in the row.
        found: usize,
    },
    /// Not one value for each word or id.
    #[error("expected {expected} {of}, one for each of the {each}, found {found}")]
    Unequal {
        /// Number of words or ids.
        expected: usize,
        /// Number of values.
        found: usize,
        /// What the values are: `labels`, `token types` or `mask values`.
        of: &'static str,
        /// What they are for: `words` or `token ids`.
        each: &'static str,
    },
    /// Earlier turns beside a prompt.
    #[error("earlier turns of a conversation, which are not read")]
    Conversation,
    /// A chat that is none, or that the chat template refuses.
    #[error("{0}")]
    Chat(String),
    /// No token at all.
    #[error("the row has no {0}")]
    NoTokens(&'static str),
    /// A token id that the model has no row for.
    #[error("token id {id} at position {position}, the model's vocabulary has {vocab_size}")]
    IdOutOfVocabulary {
        /// The id.
        id: i64,
        /// Its position in the row.
        position: usize,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A token type that the model has no row for.
    #[error("token type {id} at position {position}, the model has {type_vocab_size}")]
    TypeOutOfRange {
        /// The token type.
        id: i64,
        /// Its position in the row.
        position: usize,
        /// Rows of the embedding.
        type_vocab_size: usize,
    },
    /// An attention mask that hides something else than padding at the end.
    #[error("the attention mask is not ones followed by zeros")]
    MaskNotAPrefix,
    /// The row is longer than allowed, and long rows are refused.
    #[error("{tokens} tokens, at most {max_length} are allowed")]
    TooLong {
        /// Its tokens.
        tokens: usize,
        /// The limit.
        max_length: usize,
    },
    /// The tokenizer refused the text.
    #[error("the text cannot be tokenised: {0}")]
    Tokenize(String),
}

impl RowFaultKind {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotJson { python_constant: true, .. } => {
                Some("`NaN` and `Infinity` are no JSON: remove these rows, or write `null`".into())
            }
            // Python prints its dictionaries with single quotes.
            Self::NotJson { message, .. } if message.starts_with("key must be a string") => Some(
                "names and texts stand in double quotes: with Python, write each row by `json.dumps(row)`".into(),
            ),
            Self::Missing { nearest: Some(name) } => Some(format!("did you mean `{name}`?")),
            Self::UnknownLabel { nearest, origin, .. } => Some(match nearest {
                Some(name) => format!("did you mean `{name}`? {}", origin.explain()),
                None => origin.explain().into(),
            }),
            Self::Unlabelled { nearest: Some(name), .. } => Some(format!("did you mean `{name}`?")),
            Self::Unlabelled { found, nearest: None } => Some(match found {
                None => "--unlabelled drop leaves rows without a label out".into(),
                Some(word) => format!(
                    "--unlabelled drop leaves rows without a label out; if `{word}` is a class, name all classes with --labels"
                ),
            }),
            Self::OddLabel { .. } => Some("mend the row; if it is a class, name all classes with --labels".into()),
            Self::NotANumber { numeric_column: Some(name), .. } => {
                Some(format!("column `{name}` holds numbers: pass --label-column {name}"))
            }
            Self::NotAClass { .. } => {
                Some("--task regression predicts numbers; --label-column names another column".into())
            }
            Self::WrongType { expected, found } if expected.contains("list") && !found.contains("list") => {
                Some("write lists as JSON, `[\"a\", \"b\"]`; Python's `['a', 'b']` is read too".into())
            }
            Self::Ragged { .. } => {
                Some("quote a field that holds the separator (CSV); a tab inside a TSV field cannot be written".into())
            }
            Self::IdOutOfVocabulary { .. } => {
                Some("the rows, the tokenizer and the model must belong together".into())
            }
            Self::TooLong { .. } => {
                Some("pass --long-rows truncate or drop, or a larger --max-length".into())
            }
            Self::MaskNotAPrefix => {
                Some("pad on the right, or leave padding out: batches here are padding-free".into())
            }
            Self::Conversation => Some(
                "write what was said before into the prompt, or name the columns with --text-column and --text-pair-column to leave it out".into(),
            ),
            Self::NotJson { .. }
            | Self::NotAnObject { .. }
            | Self::NulByte
            | Self::Missing { nearest: None }
            | Self::WrongType { .. }
            | Self::NotANumber { numeric_column: None, .. }
            | Self::NotFinite { .. }
            | Self::LabelCount { .. }
            | Self::Unequal { .. }
            | Self::Chat(_)
            | Self::NoTokens(_)
            | Self::TypeOutOfRange { .. }
            | Self::NotXml(_)
            | Self::Tokenize(_) => None,
        }
    }
}
