//! The chat templates of a model as texts: files of their own, entries of `tokenizer_config.json`,
//! keys of a GGUF file. Knows nothing of Jinja. Source: transformers 5.24
//! `tokenization_utils_base.py`; gguf-py 0.19 `gguf_writer.py`.

use std::path::{Path, PathBuf};

use lowrank_formats::files;
use lowrank_formats::gguf::{Gguf, is_gguf};
use serde_json::Value;

use super::read::{read_if_there, read_text};
use super::settings::{malformed, parse_object};
use crate::error::TokenizerError;

/// The file of the template that is taken where none is named.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// The folder of named templates, a file each.
pub(super) const FOLDER: &str = "additional_chat_templates";

/// The name that the first one has among named ones.
const DEFAULT: &str = "default";

/// A chat template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTemplate {
    /// Its name, such as `tool_use`; none for the one that is taken where none is named.
    pub name: Option<String>,
    /// The Jinja source.
    pub text: String,
}

impl NamedTemplate {
    fn new(name: &str, text: String) -> NamedTemplate {
        let name = (name != DEFAULT).then(|| name.to_owned());
        NamedTemplate { name, text }
    }
}

/// The chat templates of a model in a folder or in a GGUF file, in the order in which it has them;
/// none where it has none. In a folder those of `chat_template.jinja` and of
/// `additional_chat_templates/NAME.jinja` take the place of all that `tokenizer_config.json` has.
///
/// # Errors
/// Files that cannot be read; a `chat_template` that is neither text nor a list of names and texts.
pub fn chat_templates(model: &Path) -> Result<Vec<NamedTemplate>, TokenizerError> {
    if is_gguf(model)? {
        return of_gguf(&Gguf::open(model)?);
    }
    let mut templates = Vec::new();
    if files::is_named(&model.join(CHAT_TEMPLATE_FILE)) {
        templates.push(NamedTemplate::new(
            DEFAULT,
            read_text(&model.join(CHAT_TEMPLATE_FILE))?,
        ));
    }
    for (name, path) in additional(model)? {
        templates.push(NamedTemplate::new(&name, read_text(&path)?));
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    let path = model.join("tokenizer_config.json");
    match read_if_there(&path)? {
        Some(bytes) => match parse_object(&path, &bytes)?.get("chat_template") {
            Some(value) => of_config(&path, value),
            None => Ok(templates),
        },
        None => Ok(templates),
    }
}

/// The files of named templates, with their names.
pub(super) fn additional(dir: &Path) -> Result<Vec<(String, PathBuf)>, TokenizerError> {
    let folder = dir.join(FOLDER);
    if !files::is_dir(&folder) {
        return Ok(Vec::new());
    }
    let named = files::list(&folder)?.into_iter().filter_map(|entry| {
        let name = entry.name.to_str()?.strip_suffix(".jinja")?.to_owned();
        Some((name, entry.path))
    });
    Ok(named.collect())
}

/// A text, or in older files a list of objects with `name` and `template`.
fn of_config(path: &Path, value: &Value) -> Result<Vec<NamedTemplate>, TokenizerError> {
    let named = |entry: &Value| {
        let name = entry.get("name")?.as_str()?;
        let text = entry.get("template")?.as_str()?;
        Some(NamedTemplate::new(name, text.to_owned()))
    };
    let found = match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => Some(vec![NamedTemplate::new(DEFAULT, text.clone())]),
        Value::Array(list) => list.iter().map(named).collect(),
        Value::Object(map) => map
            .iter()
            .map(|(name, text)| Some(NamedTemplate::new(name, text.as_str()?.to_owned())))
            .collect(),
        Value::Bool(_) | Value::Number(_) => None,
    };
    found.ok_or_else(|| {
        let problem =
            "`chat_template`: expected text, or a list of objects with `name` and `template`";
        malformed(path, None, problem.into())
    })
}

/// The template of a GGUF file, then those that `tokenizer.chat_templates` names.
pub(super) fn of_gguf(gguf: &Gguf) -> Result<Vec<NamedTemplate>, TokenizerError> {
    const KEY: &str = "tokenizer.chat_template";
    let mut templates = Vec::new();
    if let Some(text) = gguf.text(KEY)? {
        templates.push(NamedTemplate::new(DEFAULT, text.to_owned()));
    }
    for name in gguf.texts("tokenizer.chat_templates")?.unwrap_or_default() {
        let key = format!("{KEY}.{name}");
        let missing = || gguf.wrong_key(&key, "the text of a template", "missing");
        let text = gguf.text(&key)?.ok_or_else(missing)?;
        templates.push(NamedTemplate::new(&name, text.to_owned()));
    }
    Ok(templates)
}
