//! Tables of tokens that an adapter brings: PEFT writes them where a vocabulary grew, or with
//! `save_embedding_layers`. They take the place of the base's own, which may have fewer rows. They
//! are run and merged, not trained.
//! Source: PEFT 0.21.2, `get_peft_model_state_dict`, `AutoPeftModel.from_pretrained`.

use std::collections::BTreeMap;

use lowrank_formats::peft::{AdapterConfig, AdapterFile, AdapterTensor, KEY_PREFIX, Matcher};

use crate::error::ModelError;
use crate::families::LM_HEAD;
use crate::model::ModelConfig;

/// An adapter's tables of tokens, by the names of the model's tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTables {
    tensors: BTreeMap<String, AdapterTensor>,
    rows: usize,
    /// Whether the adapter trains all of them, so that they stand among its own tensors too.
    is_trained: bool,
}

impl TokenTables {
    /// Takes the tables out of an adapter's tensors, if it brings some. Modules that the adapter
    /// trains (`modules_to_save`) stay there too: their rows are needed to load the model.
    ///
    /// # Errors
    /// Tables that contradict each other or are no tables, a value that is not finite, one of two
    /// tied tables trained by itself.
    pub fn take(
        file: AdapterFile,
        adapter: &AdapterConfig,
        config: &ModelConfig,
    ) -> Result<(AdapterFile, Option<Self>), ModelError> {
        let path = config.family.naming.tokens;
        let (tokens, head) = (format!("{path}.weight"), format!("{LM_HEAD}.weight"));
        let has_head = config.family.classes.causal_lm.is_some();
        let is_tied = config.facts.tie_word_embeddings;
        let mut tensors = BTreeMap::new();
        let file = with_grown_tables(file, [path, LM_HEAD], config.facts.vocab_size);
        for name in [&tokens, &head] {
            let Some(tensor) = file.get(&format!("{KEY_PREFIX}{name}")) else {
                continue;
            };
            if *name == head && !has_head {
                continue;
            }
            check(name, tensor)?;
            // One table under two names: a model that ties them has only the first.
            let place = if is_tied { &tokens } else { name };
            if let Some(other) = tensors.insert(place.clone(), tensor.clone())
                && other != *tensor
            {
                return Err(ModelError::AdapterConfig(vec![format!(
                    "`{tokens}` and `{head}` differ in the adapter, but the model ties them (`tie_word_embeddings`)"
                )]));
            }
        }
        let mut rows = tensors.values().map(|tensor| tensor.shape[0]);
        let Some(first) = rows.next() else {
            return Ok((file, None));
        };
        if let Some(other) = rows.find(|rows| *rows != first) {
            return Err(ModelError::AdapterConfig(vec![format!(
                "its tables of tokens have {first} and {other} rows, expected as many"
            )]));
        }
        let trained = |path: &str| -> Result<bool, ModelError> {
            match adapter.lora() {
                Some(lora) if lora.modules_to_save.is_some() && lora.target_modules.is_some() => {
                    Ok(Matcher::new(lora)?.is_module_to_save(path))
                }
                Some(_) | None => Ok(false),
            }
        };
        if has_head && is_tied {
            refuse_one_of_two(path, &trained)?;
        }
        let (mut kept, mut is_trained) = (file, true);
        for (name, path) in [(&tokens, path), (&head, LM_HEAD)] {
            let key = format!("{KEY_PREFIX}{name}");
            if kept.get(&key).is_some() && !trained(path)? {
                kept = kept.without(&key);
                is_trained = false;
            }
        }
        let tables = TokenTables {
            tensors,
            rows: first,
            is_trained,
        };
        Ok((kept, Some(tables)))
    }

    /// Rows of the tables: the vocabulary that the adapter was trained with.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Whether the adapter trains all of them (`modules_to_save`).
    pub fn is_trained(&self) -> bool {
        self.is_trained
    }

    /// The names of the model's tensors that the tables stand for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tables by the names of the model's tensors.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, AdapterTensor> {
        &self.tensors
    }
}

/// Beside low-rank values of a table or trained rows of it PEFT writes the table itself. It is the
/// base's, which is left alone, unless the vocabulary grew.
fn with_grown_tables(file: AdapterFile, paths: [&str; 2], vocab_size: usize) -> AdapterFile {
    let grown: Vec<String> = (file.iter())
        .filter(|(_, tensor)| tensor.shape.first() > Some(&vocab_size))
        .map(|(key, _)| key.to_owned())
        .collect();
    file.map_keys(|key| {
        let plain = |path: &&str| {
            let own = format!("{KEY_PREFIX}{path}");
            let inside = [".base_layer.weight", ".token_adapter.base_layer.weight"];
            let is_own = |end: &&str| key.strip_prefix(&own) == Some(*end);
            inside.iter().any(is_own).then(|| format!("{own}.weight"))
        };
        let table = paths.iter().find_map(plain);
        table
            .filter(|_| grown.iter().any(|other| other == key))
            .unwrap_or_else(|| key.to_owned())
    })
}

/// PEFT trains a copy of the one, which parts it from the other.
fn refuse_one_of_two(
    tokens: &str,
    trained: &dyn Fn(&str) -> Result<bool, ModelError>,
) -> Result<(), ModelError> {
    let (one, other) = match (trained(tokens)?, trained(LM_HEAD)?) {
        (true, false) => (tokens, LM_HEAD),
        (false, true) => (LM_HEAD, tokens),
        (true, true) | (false, false) => return Ok(()),
    };
    Err(ModelError::AdapterUnsupported(vec![format!(
        "modules_to_save: the adapter trains `{one}` apart from `{other}`, and the model has one table for both (`tie_word_embeddings`)"
    )]))
}

fn check(name: &str, tensor: &AdapterTensor) -> Result<(), ModelError> {
    let fault = |message: String| {
        Err(ModelError::AdapterConfig(vec![format!(
            "`{name}`: {message}"
        )]))
    };
    if tensor.shape.len() != 2 || tensor.shape.contains(&0) {
        return fault(format!(
            "expected a table of tokens, found {:?}",
            tensor.shape
        ));
    }
    match tensor.data.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => fault(format!(
            "value {at} is {}, expected a finite number",
            tensor.data[at]
        )),
    }
}
