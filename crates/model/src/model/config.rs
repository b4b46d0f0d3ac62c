//! The configuration of a model: `config.json`, parsed once and strictly, every fault of the file
//! at once.

use std::path::Path;
use std::sync::Arc;

use lowrank_formats::{ConfigReader, model_config_file, read_json, read_model_config};
use serde_json::Value;

use crate::config::{Dropouts, Facts, LabelFields, checked_dropout};
use crate::error::ModelError;
use crate::families::{Architecture, Family, FamilyConfig, family};

/// The configuration of a model, parsed once.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The family's name.
    pub model_type: String,
    pub(crate) family: &'static Family,
    /// The model's shape.
    pub facts: Facts,
    /// Its dropout.
    pub dropouts: Dropouts,
    /// What the file says of labels.
    pub labels: LabelFields,
    /// transformers' `problem_type`, if the file has one.
    pub problem_type: Option<String>,
    /// The classes that the checkpoint was saved from, such as `BertForSequenceClassification`.
    pub architectures: Vec<String>,
    pub(crate) architecture: Arc<dyn Architecture>,
}

impl ModelConfig {
    /// Reads and checks a `config.json`.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        Self::from_value(path, read_json(path)?)
    }

    /// Reads and checks the configuration of a model: of a folder with `config.json`, or of a GGUF
    /// file.
    pub fn open(model: &Path) -> Result<Self, ModelError> {
        Self::from_value(&model_config_file(model), read_model_config(model)?)
    }

    /// Checks a parsed `config.json`; `path` is for messages.
    pub fn from_value(path: &Path, value: Value) -> Result<Self, ModelError> {
        let reader = ConfigReader::new(path, &value);
        let model_type = reader.string("model_type");
        let family = match family(&model_type) {
            Ok(family) => family,
            Err(unknown) => {
                reader.finish()?;
                return Err(unknown);
            }
        };
        let own = (family.read)(&reader);
        let config = ModelConfig {
            model_type,
            family,
            facts: own.facts,
            dropouts: own.dropouts,
            labels: LabelFields::read(&reader),
            problem_type: reader.opt_string("problem_type"),
            architectures: architectures(&reader),
            architecture: own.architecture,
        };
        reader.finish()?;
        Ok(config)
    }

    /// What the family's network is built from.
    pub(crate) fn of_family(&self) -> FamilyConfig {
        FamilyConfig {
            facts: self.facts.clone(),
            dropouts: self.dropouts.clone(),
            architecture: self.architecture.clone(),
        }
    }

    /// Sets every dropout probability of the model, from 0 to 0.999.
    pub fn set_dropout(&mut self, p: f64) -> Result<(), ModelError> {
        self.dropouts.set_all(p)
    }

    /// Sets the probability of dropout before the classifier, from 0 to 0.999.
    /// Errors where the family has no dropout of its own there.
    pub fn set_classifier_dropout(&mut self, p: f64) -> Result<(), ModelError> {
        let Some(own) = &mut self.dropouts.classifier else {
            return Err(ModelError::UnsupportedConfig(format!(
                "a `{}` model has no dropout of its own before a classifier",
                self.model_type
            )));
        };
        *own = checked_dropout(p)?;
        Ok(())
    }
}

/// The classes in `architectures`; one by itself is a list of one.
fn architectures(reader: &ConfigReader<'_>) -> Vec<String> {
    match reader.raw("architectures") {
        Some(Value::String(name)) => vec![name.clone()],
        Some(_) | None => reader.opt_strings("architectures").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(value: Value) -> ModelConfig {
        ModelConfig::from_value(Path::new("config.json"), value).expect("a configuration")
    }

    #[test]
    fn dropout_is_set_where_the_family_has_its_own() {
        let mut gpt2 = config(json!({ "model_type": "gpt2", "embd_pdrop": 0.2 }));
        assert_eq!(gpt2.dropouts.embedding, Some(0.2));
        gpt2.set_dropout(0.5).expect("a probability");
        let own = &gpt2.dropouts;
        assert_eq!((own.hidden, own.attention), (0.5, 0.5));
        assert_eq!((own.embedding, own.pooler), (Some(0.5), None));
        assert!(gpt2.set_classifier_dropout(0.5).is_err());
        let mut opt = config(json!({ "model_type": "opt" }));
        opt.set_dropout(0.5).expect("a probability");
        assert_eq!(opt.dropouts.embedding, None);
    }

    #[test]
    fn the_classifiers_dropout_is_its_own_or_that_of_hidden_states() {
        let fields = |classifier: Value| {
            json!({
                "model_type": "bert", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1,
                "num_attention_heads": 2, "intermediate_size": 4, "max_position_embeddings": 4,
                "hidden_dropout_prob": 0.3, "classifier_dropout": classifier,
            })
        };
        assert_eq!(config(fields(json!(0.4))).dropouts.classifier, Some(0.4));
        let mut bert = config(fields(Value::Null));
        assert_eq!(bert.dropouts.classifier, Some(0.3));
        bert.set_classifier_dropout(0.0).expect("a probability");
        assert_eq!(bert.dropouts.classifier, Some(0.0));
        assert_eq!(bert.dropouts.hidden, 0.3);
        for p in [-0.1, 0.9995, f64::NAN] {
            assert!(bert.set_dropout(p).is_err(), "{p}");
        }
        assert_eq!(
            (bert.facts.num_key_value_heads, bert.facts.head_dim),
            (2, 2)
        );
    }
}
