//! Where a model or an adapter lies, if not in the folder that was named: one or two folders down,
//! or beside a file.

use std::path::{Path, PathBuf};

use lowrank_formats::files;

use crate::error::RunError;

/// Folders that are looked into, at most.
const MOST_LOOKED_INTO: usize = 500;

/// Places that an error lists, at most.
const MOST_SHOWN: usize = 6;

/// The file that makes a folder a model.
pub const MODEL_FILE: &str = "config.json";

/// The file that makes a folder an adapter.
pub const ADAPTER_FILE: &str = "adapter_config.json";

/// Why a folder without a model's config.json is no model, and what to pass in its place.
pub fn no_model_in(dir: &Path) -> RunError {
    let name = format!("`{}`", dir.display());
    if files::is_file(&dir.join(ADAPTER_FILE)) {
        return RunError::usage(format!(
            "{name} holds an adapter (`{ADAPTER_FILE}`), expected a model with `{MODEL_FILE}`"
        ))
        .hint("pass it as --adapter, and its base as --model");
    }
    let holds_none = format!("{name} holds no `{MODEL_FILE}`");
    elsewhere(dir, MODEL_FILE, "--model", holds_none).unwrap_or_else(|holds_none| {
        let hint = match gguf_file_in(dir) {
            Some(file) => format!("pass --model {}", file.display()),
            None => "pass --model with a directory that holds config.json and weights".to_owned(),
        };
        RunError::failure(holds_none).hint(hint)
    })
}

/// The GGUF file in a folder, the first by name; a part of one stands for all of it.
fn gguf_file_in(dir: &Path) -> Option<PathBuf> {
    let entries = files::list(dir).ok()?.into_iter().map(|entry| entry.path);
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|end| end == "gguf");
    entries.filter(is_gguf).min()
}

/// Why a folder without an adapter's configuration is no adapter, and what to pass in its place.
pub fn no_adapter_in(dir: &Path) -> RunError {
    let name = format!("`{}`", dir.display());
    let holds_none = format!("{name} holds no `{ADAPTER_FILE}`");
    let found = elsewhere(dir, ADAPTER_FILE, "--adapter", holds_none);
    found.unwrap_or_else(|holds_none| {
        if files::is_file(&dir.join(MODEL_FILE)) {
            return RunError::usage(format!("{holds_none}: it is a model"))
                .hint("pass it as --model; leave --adapter out, or pass the adapter's directory there");
        }
        let weights = ["adapter_model.safetensors", "adapter_model.bin"];
        let hint = match weights.iter().find(|file| files::is_file(&dir.join(file))) {
            Some(file) => format!(
                "it holds `{file}` alone; copy `{ADAPTER_FILE}`, which PEFT writes beside it, there too"
            ),
            None => "pass --adapter with a directory that holds adapter_config.json, a run, or a loralib .bin file".to_owned(),
        };
        RunError::failure(holds_none).hint(hint)
    })
}

/// An error that lists the folders below `dir` that hold `file`; the words back where there is
/// none.
fn elsewhere(dir: &Path, file: &str, flag: &str, holds_none: String) -> Result<RunError, String> {
    let found = folders_with(dir, file);
    let Some(last) = found.last() else {
        return Err(holds_none);
    };
    let shown: Vec<String> = found
        .iter()
        .take(MOST_SHOWN)
        .map(|place| format!("`{}`", place.display()))
        .collect();
    let more = match found.len().saturating_sub(MOST_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let hint = match found.len() {
        1 => format!("pass {flag} {}", last.display()),
        _ => format!(
            "pass {flag} with one of these, such as {flag} {}",
            last.display()
        ),
    };
    let message = format!("{holds_none}; found in {}{more}", shown.join(", "));
    Ok(RunError::usage(message).hint(hint))
}

/// Folders one or two levels below `dir` that hold `file`, in the order of names, numbers in them
/// by size.
fn folders_with(dir: &Path, file: &str) -> Vec<PathBuf> {
    let (mut found, mut level, mut looked_into) = (Vec::new(), vec![dir.to_owned()], 0);
    for _ in 0..2 {
        let mut below = Vec::new();
        for folder in level {
            looked_into += 1;
            if looked_into > MOST_LOOKED_INTO {
                break;
            }
            below.extend(folders_in(&folder));
        }
        let holds = |folder: &&PathBuf| files::is_file(&folder.join(file));
        found.extend(below.iter().filter(holds).cloned());
        level = below;
    }
    found.sort_by_key(|folder| in_order(folder));
    found
}

/// A folder that cannot be listed has nothing to offer: the error is about the one that was named.
fn folders_in(dir: &Path) -> Vec<PathBuf> {
    let entries = files::list(dir).unwrap_or_default();
    let paths = entries.into_iter().map(|entry| entry.path);
    paths.filter(|path| files::is_dir(path)).collect()
}

/// `checkpoint-4` before `checkpoint-10`.
fn in_order(path: &Path) -> (String, u64, String) {
    let name = path.display().to_string();
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name[stem.len()..].parse().unwrap_or(0);
    (stem.to_owned(), number, name.clone())
}
