//! The one error type of this crate: what was wrong, in which file, what was expected, and a hint
//! where there is one.

use std::path::{Path, PathBuf};

use crate::dtype::DType;
use crate::files::shown;
use crate::gguf::GgufFault;
use crate::safetensors::SafetensorsFault;
use crate::torch::TorchFault;

/// One thing wrong at one place of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where: a key, or a path of keys joined by dots.
    pub place: String,
    /// What was expected and what was found.
    pub message: String,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Anything that can go wrong between a file and us.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {error}", shown(path))]
    Io {
        /// What was tried: `read`, `create`, ….
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file that is read whole is none.
    #[error(
        "cannot read `{}`: it is {found}, expected a regular file",
        shown(path)
    )]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        found: &'static str,
    },
    /// A file is longer than any of its kind.
    #[error(
        "`{}` has {found} bytes or more, expected at most {most} in {what}",
        shown(path)
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its bytes, as far as they were counted.
        found: u64,
        /// The most that are read.
        most: u64,
        /// What it should be, with its article.
        what: &'static str,
    },
    /// A text file holds bytes that are no UTF-8.
    #[error("`{}`, line {line}: it is not UTF-8", shown(path))]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A file that had to be JSON is not.
    #[error(
        "`{}` is not valid JSON: {message} (line {line}, column {column})",
        shown(path)
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1.
        column: usize,
        /// The parser's words.
        message: String,
    },
    /// A safetensors file that breaks its own rules.
    #[error("`{}` is not a valid safetensors file: {fault}", shown(path))]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// Which rule.
        fault: SafetensorsFault,
    },
    /// A PyTorch file that is broken, or that holds what we refuse to read.
    #[error("cannot read `{}` as a PyTorch file: {fault}", shown(path))]
    Torch {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: TorchFault,
    },
    /// A GGUF file that is broken, or that holds what is not read.
    #[error("cannot read `{}` as a GGUF file: {fault}", shown(path))]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: Box<GgufFault>,
    },
    /// Packed values whose parts do not fit each other, or that are packed in a way that is not
    /// known.
    #[error("`{name}` of the quantised model in `{}` {message}", shown(path))]
    Packed {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor or setting.
        name: String,
        /// What is wrong with it.
        message: String,
    },
    /// A configuration file with one or more faults, all of them listed.
    #[error("{}", config_message(path, faults))]
    Config {
        /// The file.
        path: PathBuf,
        /// Each fault.
        faults: Vec<Fault>,
    },
    /// A folder without any of the files that would make it what it should be.
    #[error("`{}` holds none of {}", shown(dir), quoted_list(expected))]
    NothingFound {
        /// The folder.
        dir: PathBuf,
        /// The names looked for, in order of preference.
        expected: Vec<String>,
    },
    /// A file that is none of the formats it may be.
    #[error(
        "`{}` is neither a safetensors file nor a PyTorch file (it starts with {found})",
        shown(path)
    )]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: String,
    },
    /// A checkpoint lacks a tensor that was asked for.
    #[error("`{}` has no tensor `{name}`", shown(path))]
    MissingTensor {
        /// The checkpoint.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// A name that is there and looks like it.
        nearest: Option<String>,
    },
    /// A tensor is stored in a type that cannot be used for this.
    #[error(
        "tensor `{name}` in `{}` is stored as {found}, expected {expected}",
        shown(path)
    )]
    WrongDType {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type.
        found: DType,
        /// The types that would do.
        expected: &'static str,
    },
    /// A read that does not fit the tensor.
    #[error(
        "tensor `{name}` in `{}` has {found} values, asked for {start}..{end}",
        shown(path)
    )]
    OutOfRange {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its number of values.
        found: usize,
        /// First value asked for.
        start: usize,
        /// One past the last value asked for.
        end: usize,
    },
    /// The shards of a checkpoint and its index contradict each other.
    #[error("{}", config_message(path, faults))]
    Index {
        /// The index file.
        path: PathBuf,
        /// Each contradiction.
        faults: Vec<Fault>,
    },
    /// An adapter of another method than LoRA.
    #[error("`{}` is an adapter of type `{found}`, expected `LORA`", shown(path))]
    NotLora {
        /// The configuration file.
        path: PathBuf,
        /// Its `peft_type`.
        found: String,
    },
    /// A pattern of module names that is not a regular expression we can run.
    #[error("`{field}` holds a pattern that cannot be used: `{pattern}`: {message}")]
    Pattern {
        /// The field of the adapter's configuration.
        field: &'static str,
        /// The pattern.
        pattern: String,
        /// What the regular expression engine said.
        message: String,
    },
    /// Adapter tensors that do not form pairs, or that only another layer type could use.
    #[error("`{}` is not a usable adapter\n{}", shown(path), fault_lines(faults))]
    Adapter {
        /// The file.
        path: PathBuf,
        /// Each fault.
        faults: Vec<Fault>,
    },
    /// Tensors handed to a writer that cannot be written.
    #[error("cannot write `{}`: {message}", shown(path))]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// The output exists and may not be replaced.
    #[error("`{}` exists already", shown(path))]
    AlreadyExists {
        /// The file or folder.
        path: PathBuf,
    },
    /// The output folder holds a run already.
    #[error("`{}` already holds a run", shown(path))]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// Another process works in the run's folder.
    #[error("the run in `{}` is in use by another process", shown(path))]
    RunBusy {
        /// The folder.
        path: PathBuf,
    },
    /// The folder is no run of ours.
    #[error("`{}` holds no run", shown(path))]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
}

impl FormatError {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            FormatError::Safetensors { fault, .. } => fault.hint().map(str::to_owned),
            FormatError::Torch { fault, .. } => fault.hint(),
            FormatError::Gguf { fault, .. } => fault.hint(),
            FormatError::MissingTensor { nearest, .. } => nearest
                .as_ref()
                .map(|name| format!("the nearest name in it is `{name}`")),
            FormatError::UnknownFormat { found, .. } if found.contains("version https") => {
                Some("this is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`".into())
            }
            FormatError::NotLora { .. } => {
                Some("only LoRA adapters are supported; other PEFT methods have other layers".into())
            }
            FormatError::Pattern { .. } => Some(
                "patterns are Python regular expressions matched against the whole module path; list plain names to match suffixes".into(),
            ),
            FormatError::RunExists { .. } => Some("choose another folder, or resume the run".into()),
            FormatError::RunBusy { .. } => {
                Some("wait for it to end or stop it; the lock is released when it exits".into())
            }
            FormatError::Io { error, .. } => match error.kind() {
                std::io::ErrorKind::StorageFull => Some("free some space; nothing that was there before is lost".into()),
                std::io::ErrorKind::PermissionDenied => Some("check the owner and the permissions of the folder".into()),
                _ => None,
            },
            _ => None,
        }
    }

    /// Closure for `map_err`: an I/O error at `path` while trying to `action`.
    pub fn io<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(std::io::Error) -> FormatError + 'a {
        move |error| FormatError::Io {
            action,
            path: path.to_owned(),
            error,
        }
    }
}

fn config_message(path: &Path, faults: &[Fault]) -> String {
    let count = match faults.len() {
        1 => "a fault".to_owned(),
        n => format!("{n} faults"),
    };
    format!("`{}` has {count}\n{}", shown(path), fault_lines(faults))
}

/// Faults one a line, indented; a long list is cut with its count.
fn fault_lines(faults: &[Fault]) -> String {
    const SHOWN: usize = 20;
    let mut lines: Vec<String> = faults
        .iter()
        .take(SHOWN)
        .map(|fault| format!("  {fault}"))
        .collect();
    if faults.len() > SHOWN {
        lines.push(format!("  … and {} more", faults.len() - SHOWN));
    }
    lines.join("\n")
}

fn quoted_list(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
