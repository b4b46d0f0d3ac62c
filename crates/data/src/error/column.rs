//! What a column is for and where its name is from, and the hints that follow. Knows nothing of
//! files.

use thiserror::Error;

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ColumnRole {
    /// The text, or the first of a pair.
    #[error("the text")]
    Text,
    /// The second text of a pair.
    #[error("the second text")]
    TextPair,
    /// What a prompt is about.
    #[error("the context")]
    Context,
    /// A language model's prompt.
    #[error("the prompt")]
    Prompt,
    /// The label.
    #[error("the label")]
    Label,
    /// The words of token classification.
    #[error("the words")]
    Words,
    /// Token ids.
    #[error("the token ids")]
    Ids,
}

impl ColumnRole {
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Text => {
                "name the column of text with --text-column (and that of a second text with --text-pair-column)"
            }
            Self::TextPair => "name the column of the second text with --text-pair-column",
            Self::Context => "name the column of what the prompt is about with --context-column",
            Self::Prompt => "name the column of prompts with --text-column",
            Self::Label => {
                "name the column of labels with --label-column; where each label has a column of 0 and 1, name them with --label-columns"
            }
            Self::Words => {
                "token classification needs a list of words in each row, for example `{\"tokens\": [\"a\", \"b\"], \"tags\": [\"O\", \"O\"]}`"
            }
            Self::Ids => "name the column of token ids with --text-column",
        }
    }
}

/// Where columns have their names from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// A table's first line, which may have been a row.
    FirstLine,
    /// Their place: the table has no header.
    Place,
    /// The rows themselves, or the format.
    Rows,
}

impl Naming {
    pub(super) fn hint(self) -> Option<String> {
        match self {
            Self::FirstLine => Some("the first line was taken for the header: where it is a row, pass --no-header and name columns by their place, as in --text-column 0 --label-column 1".into()),
            Self::Place => Some("without a header columns are named by their place, as in --text-column 0 --label-column 1".into()),
            Self::Rows => None,
        }
    }
}
