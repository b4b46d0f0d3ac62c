//! The names of a checkpoint's tensors: what wrappers of PyTorch put before and between them, and
//! transformers' old names. It knows no shapes and reads no values.

use std::collections::{BTreeMap, BTreeSet};

use lowrank_formats::Checkpoint;

use crate::error::ModelError;

/// Parts of a path that wrappers put anywhere in it and that no module is called: `torch.compile`,
/// FSDP, its checkpointing.
const WRAPPERS: [&str; 3] = [
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
];

/// What a family's tensors are called.
#[derive(Debug, Clone, Copy)]
pub struct Naming {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// The base model's attribute in the full model, with its dot.
    pub prefix: &'static str,
    /// The path of the table of tokens.
    pub tokens: &'static str,
}

/// The names that a model asks for, and those that they have in a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Today's name without wrappers → name in the file.
    in_file: BTreeMap<String, String>,
    /// The file is of the bare body: its names lack the family's prefix.
    bare_prefix: Option<&'static str>,
    /// What was left out of the names, as it stands in the file.
    left_out: BTreeSet<String>,
}

impl Names {
    /// Finds the family's table of tokens in the checkpoint; what stands before it is what every
    /// tensor stands under. Files of the bare body lack the family's prefix. Source: transformers
    /// `PreTrainedModel._load_pretrained_model`.
    ///
    /// # Errors
    /// The file is the state dict of a model with adapters, or holds several models, or one of
    /// another family.
    pub(crate) fn read(
        checkpoint: &Checkpoint,
        family: Naming,
        others: &[Naming],
    ) -> Result<Self, ModelError> {
        let mut names = Names::default();
        for info in checkpoint.infos() {
            let today = names.without_wrappers(&todays_name(&info.name));
            names.add(today, &info.name)?;
        }
        if let Some(name) = names.in_file.keys().find(|name| is_of_adapter(name)) {
            return Err(ModelError::NotPlainWeights {
                name: names.in_file[name].clone(),
            });
        }
        let table = format!("{}.weight", family.tokens);
        let bare = table.strip_prefix(family.prefix).unwrap_or(&table);
        let mut prefix = names.before(&table)?;
        if prefix.is_none() {
            prefix = names.before(bare)?;
            let has_prefix = |name: &String| name.starts_with(family.prefix);
            if prefix.is_some() || !names.in_file.keys().any(has_prefix) {
                names.bare_prefix = Some(family.prefix);
            }
            refuse_other_family(prefix.as_deref(), family, others)?;
        }
        if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
            names = names.without_prefix(&prefix)?;
        }
        Ok(names)
    }

    /// The name in the file of what a model calls `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let body = self
            .bare_prefix
            .and_then(|prefix| name.strip_prefix(prefix));
        self.in_file.get(body.unwrap_or(name)).map(String::as_str)
    }

    /// All names in the file.
    pub(crate) fn in_file(&self) -> impl Iterator<Item = &str> {
        self.in_file.values().map(String::as_str)
    }

    /// What was left out of the names: `module.`, `_orig_mod.`.
    pub(crate) fn left_out(&self) -> Vec<String> {
        self.left_out.iter().cloned().collect()
    }

    fn add(&mut self, name: String, file_name: &str) -> Result<(), ModelError> {
        match self.in_file.insert(name.clone(), file_name.to_owned()) {
            None => Ok(()),
            Some(other) => Err(ModelError::AmbiguousNames {
                meaning: name,
                names: vec![other, file_name.to_owned()],
            }),
        }
    }

    fn without_wrappers(&mut self, name: &str) -> String {
        if !WRAPPERS.iter().any(|wrapper| name.contains(wrapper)) {
            return name.to_owned();
        }
        let mut parts: Vec<&str> = name.split('.').collect();
        parts.retain(|part| {
            let is_wrapper = WRAPPERS.contains(part);
            if is_wrapper {
                self.left_out.insert(format!("{part}."));
            }
            !is_wrapper
        });
        parts.join(".")
    }

    /// What stands before the one tensor whose name ends in `table`; nothing where there is none.
    fn before(&self, table: &str) -> Result<Option<String>, ModelError> {
        let mut found = BTreeSet::new();
        for name in self.in_file.keys() {
            if let Some(prefix) = name.strip_suffix(table)
                && (prefix.is_empty() || prefix.ends_with('.'))
            {
                found.insert(prefix);
            }
        }
        match found.len() {
            0 => Ok(None),
            1 => Ok(found.first().map(|prefix| (*prefix).to_owned())),
            // A model beside others of which each stands under a name of its own (a teacher, an
            // average).
            _ if found.contains("") => Ok(Some(String::new())),
            _ => Err(ModelError::AmbiguousNames {
                meaning: table.to_owned(),
                names: found
                    .iter()
                    .map(|prefix| format!("{prefix}{table}"))
                    .collect(),
            }),
        }
    }

    fn without_prefix(self, prefix: &str) -> Result<Self, ModelError> {
        let mut stripped = Names {
            in_file: BTreeMap::new(),
            ..self
        };
        for (name, file_name) in &self.in_file {
            let name = name.strip_prefix(prefix).unwrap_or(name);
            stripped.add(name.to_owned(), file_name)?;
        }
        stripped.left_out.insert(prefix.to_owned());
        Ok(stripped)
    }
}

/// Whether a name is that of an adapter's tensor, as PEFT or loralib write it.
fn is_of_adapter(name: &str) -> bool {
    name.split('.')
        .any(|part| ["lora_A", "lora_B", "lora_embedding_A", "base_layer"].contains(&part))
}

/// The body of a BERT under the name of RoBERTa's is no RoBERTa.
fn refuse_other_family(
    prefix: Option<&str>,
    family: Naming,
    others: &[Naming],
) -> Result<(), ModelError> {
    let Some(prefix) = prefix else { return Ok(()) };
    let other = others.iter().find(|other| {
        other.prefix != family.prefix && other.prefix != "model." && prefix.ends_with(other.prefix)
    });
    match other {
        None => Ok(()),
        Some(other) => Err(ModelError::UnsupportedConfig(format!(
            "`model_type` is `{}`, but the tensors in the checkpoint stand under `{prefix}`, as those of a `{}` model do",
            family.model_type, other.model_type
        ))),
    }
}

/// Today's name of a tensor. Source: transformers' renaming of `gamma` and `beta`.
fn todays_name(name: &str) -> String {
    let renamed = [(".gamma", ".weight"), (".beta", ".bias")]
        .into_iter()
        .find_map(|(old, new)| Some(format!("{}{new}", name.strip_suffix(old)?)));
    renamed.unwrap_or_else(|| name.to_string())
}
