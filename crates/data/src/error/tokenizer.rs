//! What can be wrong with a tokenizer's files, and with text that goes through it. Knows nothing of how they are read.

use std::path::PathBuf;

use thiserror::Error;

/// A tokenizer that cannot be loaded or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// No file that we know in the directory.
    #[error("`{}` holds no tokenizer (looked for `tokenizer.json`, `vocab.txt`, `vocab.json` with `merges.txt`)", dir.display())]
    NotFound {
        /// The directory.
        dir: PathBuf,
    },
    /// `vocab.json` alone.
    #[error("`{}` holds `vocab.json` without `merges.txt`: the merges of a byte-level BPE cannot be guessed", dir.display())]
    NoMerges {
        /// The directory.
        dir: PathBuf,
    },
    /// A SentencePiece model alone.
    #[error("`{}` holds only a SentencePiece model (`{file}`), which is not read", dir.display())]
    SentencePiece {
        /// The directory.
        dir: PathBuf,
        /// The file.
        file: String,
    },
    /// A file is no regular one, too long, or cannot be read or written: the error names it.
    #[error(transparent)]
    File(#[from] lowrank_formats::FormatError),
    /// A file that cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file with wrong content.
    #[error("`{}`{}: {problem}", path.display(), line.map(|n| format!(", line {n}")).unwrap_or_default())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, where one can be named.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// A special token that the model cannot do without.
    #[error("`{}` has no entry for the {role} token `{token}`", path.display())]
    NoSpecialToken {
        /// The vocabulary.
        path: PathBuf,
        /// Which one: `cls`, `sep` or `unk`.
        role: &'static str,
        /// The token.
        token: String,
    },
    /// A maximum length that leaves no place for text.
    #[error(
        "a maximum length of {max_length} leaves no room for text beside {special} special tokens"
    )]
    MaxLengthTooSmall {
        /// The maximum length.
        max_length: usize,
        /// Special tokens around the text.
        special: usize,
    },
    /// A template wants an end token, and the tokenizer names none.
    #[error("the tokenizer has no end token, but the template wants `{{eos}}`")]
    NoEosToken,
    /// The tokenizer library refused a text.
    #[error("the text cannot be tokenised: {0}")]
    Encode(String),
}

impl TokenizerError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::NotFound { .. } | Self::NoMerges { .. } => Some(
                "put the model's `tokenizer.json` there, or give rows that are already tokenised (`input_ids`)".into(),
            ),
            Self::SentencePiece { .. } => Some(
                "make a `tokenizer.json`: in Python, `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`".into(),
            ),
            Self::NoSpecialToken { role, .. } => {
                Some(format!("name the right one as `{role}_token` in `special_tokens_map.json`"))
            }
            Self::MaxLengthTooSmall { special, .. } => {
                Some(format!("give at least {}", special + 1))
            }
            Self::NoEosToken => {
                Some("name one as `eos_token` in `special_tokens_map.json`, or leave `{eos}` out of the template".into())
            }
            Self::Read { .. } | Self::Write { .. } | Self::Malformed { .. } | Self::Encode(_) => None,
        }
    }
}
