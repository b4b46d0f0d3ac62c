//! What can be wrong with a tokenizer's files, and with text that goes through it. Knows nothing of
//! how they are read.

use std::path::PathBuf;

use lowrank_formats::files::shown;
use thiserror::Error;

/// A tokenizer that cannot be loaded or used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// No file that we know in the directory.
    #[error(
        "`{}` holds no tokenizer (looked for `tokenizer.json`, `vocab.txt`, `vocab.json` with `merges.txt`, `spm.model`, `sentencepiece.bpe.model`, `tokenizer.model`)",
        shown(dir)
    )]
    NotFound {
        /// The directory.
        dir: PathBuf,
    },
    /// `vocab.json` alone.
    #[error(
        "`{}` holds `vocab.json` without `merges.txt`: the merges of a byte-level BPE cannot be guessed",
        shown(dir)
    )]
    NoMerges {
        /// The directory.
        dir: PathBuf,
    },
    /// A tokenizer class that is not known, without a `tokenizer.json`.
    #[error(
        "`{}` names the tokenizer `{class}`, which is not known, and there is no `tokenizer.json`",
        shown(path)
    )]
    UnknownClass {
        /// The file that names it.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A tokenizer class that splits text in Python, and reads no `tokenizer.json`.
    #[error(
        "`{}` names the tokenizer `{class}`, which divides text by Python code of its own",
        shown(path)
    )]
    PythonClass {
        /// The file that names it.
        path: PathBuf,
        /// The class.
        class: String,
    },
    /// A vocabulary of which nothing says how it is used.
    #[error(
        "`{}` names no tokenizer class, and that of the model type `{model_type}` is not known",
        shown(dir)
    )]
    UnknownModelType {
        /// The directory.
        dir: PathBuf,
        /// The model's type.
        model_type: String,
    },
    /// A vocabulary of another kind than the class's.
    #[error(
        "`{}`: {class} is read from `{expected}`, found {}",
        shown(dir),
        list(found)
    )]
    OtherFiles {
        /// The directory.
        dir: PathBuf,
        /// The class, or what stands for it.
        class: String,
        /// The vocabulary that it takes.
        expected: &'static str,
        /// The vocabularies that are there.
        found: Vec<&'static str>,
    },
    /// A text far longer than what is kept of it, of which no part can be tokenised alone.
    #[error(
        "a text of {bytes} bytes that cannot be tokenised in parts (it has no blanks, or the tokenizer does not part texts at them); at most {most} are tokenised at once"
    )]
    LongText {
        /// Its bytes.
        bytes: usize,
        /// The most bytes.
        most: usize,
    },
    /// A file is no regular one, too long, or cannot be read or written: the error names it.
    #[error(transparent)]
    File(#[from] lowrank_formats::FormatError),
    /// A file with wrong content.
    #[error("`{}`{}: {problem}", shown(path), line.map(|n| format!(", line {n}")).unwrap_or_default())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, where one can be named.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// A special token that the model cannot do without.
    #[error("`{}` has no entry for the {role} token `{token}`", shown(path))]
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
            Self::LongText { .. } => {
                Some("shorten the text, or pass --bad-rows skip to leave such rows out".into())
            }
            Self::NotFound { .. } | Self::NoMerges { .. } => Some(
                "put the model's `tokenizer.json` there, or give rows that are already tokenised (`input_ids`)".into(),
            ),
            Self::UnknownClass { .. } | Self::UnknownModelType { .. } => Some(
                "make a `tokenizer.json`: in Python, `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`".into(),
            ),
            Self::PythonClass { .. } => Some(
                "give rows that are already tokenised (`input_ids`); or, where a `tokenizer.json` there gives the same ids, name \
                 `PreTrainedTokenizerFast` as `tokenizer_class`"
                    .into(),
            ),
            Self::OtherFiles { .. } => Some(
                "name the right class as `tokenizer_class` in `tokenizer_config.json`".into(),
            ),
            Self::NoSpecialToken { role, .. } => {
                Some(format!("name the right one as `{role}_token` in `special_tokens_map.json`"))
            }
            Self::MaxLengthTooSmall { special, .. } => {
                Some(format!("pass --max-length {} or more", special + 1))
            }
            Self::NoEosToken => {
                Some("name one as `eos_token` in `special_tokens_map.json`, or leave `{eos}` out of the template".into())
            }
            Self::Malformed { .. } | Self::Encode(_) => None,
        }
    }
}

/// Names with commas between them.
fn list(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
