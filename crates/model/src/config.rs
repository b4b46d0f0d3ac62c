//! `config.json`, parsed once and strictly: every fault of the file at once. Names are Hugging Face's. It holds what every
//! family has; the fields of one family are read in its own file.

use std::path::Path;
use std::sync::Arc;

use lowrank_engine::Activation;
use lowrank_formats::peft::TaskType;
use lowrank_formats::{ConfigReader, read_json};
use serde_json::Value;

use crate::error::ModelError;
use crate::families::{Architecture, family};
use crate::label_fields::LabelFields;

/// What the head predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// One of several classes for a sequence; cross-entropy.
    SingleLabel,
    /// Any of several classes for a sequence; binary cross-entropy.
    MultiLabel,
    /// A number for a sequence; mean squared error.
    Regression,
    /// One of several classes for each token; cross-entropy.
    TokenClassification,
    /// The next token of the vocabulary; cross-entropy.
    CausalLm,
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 5] = [
        Task::SingleLabel,
        Task::MultiLabel,
        Task::Regression,
        Task::TokenClassification,
        Task::CausalLm,
    ];

    /// transformers' `problem_type`, or `token_classification` or `causal_lm`.
    pub fn name(self) -> &'static str {
        match self {
            Task::SingleLabel => "single_label_classification",
            Task::MultiLabel => "multi_label_classification",
            Task::Regression => "regression",
            Task::TokenClassification => "token_classification",
            Task::CausalLm => "causal_lm",
        }
    }

    /// PEFT's `task_type`.
    pub fn peft_type(self) -> TaskType {
        match self {
            Task::SingleLabel | Task::MultiLabel | Task::Regression => {
                TaskType::SequenceClassification
            }
            Task::TokenClassification => TaskType::TokenClassification,
            Task::CausalLm => TaskType::CausalLm,
        }
    }
}

/// What the rest of the program knows of a model's shape; the family reads it from its own fields.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// V.
    pub vocab_size: usize,
    /// D.
    pub hidden_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// H.
    pub num_attention_heads: usize,
    /// Hkv, the heads of keys and values.
    pub num_key_value_heads: usize,
    /// Dh.
    pub head_dim: usize,
    /// F.
    pub intermediate_size: usize,
    /// The longest sequence in tokens.
    pub max_positions: usize,
    /// Kinds of segments; 1 where the family knows none.
    pub type_vocab_size: usize,
    /// The padding token, where the family has one by itself.
    pub pad_token_id: Option<u32>,
    /// Standard deviation of new weights.
    pub initializer_range: f32,
    /// Whether a language model's output table is its input table.
    pub tie_word_embeddings: bool,
}

/// The probabilities of dropout; absent where the family has none of its own there.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropouts {
    /// Of what a sublayer adds to the residual stream.
    pub hidden: f32,
    /// Of attention's probabilities.
    pub attention: f32,
    /// Of the embeddings' sum.
    pub embedding: Option<f32>,
    /// Before the pooler's layer.
    pub pooler: Option<f32>,
    /// Before the classifier.
    pub classifier: Option<f32>,
}

impl Dropouts {
    /// Before a classifier.
    pub(crate) fn before_classifier(&self) -> f32 {
        self.classifier.unwrap_or(self.hidden)
    }
}

/// The largest probability of dropout.
const MOST_DROPOUT: f64 = 0.999;

/// A family's fields of config.json after they were read.
#[derive(Debug, Clone)]
pub struct FamilyConfig {
    /// The model's shape.
    pub facts: Facts,
    /// Its dropout.
    pub dropouts: Dropouts,
    /// All else, which only the family's network needs.
    pub architecture: Arc<dyn Architecture>,
}

/// The configuration of a model, parsed once.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The family.
    pub model_type: String,
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

    /// Checks a parsed `config.json`; `path` is for messages.
    pub fn from_value(path: &Path, value: Value) -> Result<Self, ModelError> {
        let reader = ConfigReader::new(path, &value);
        let model_type = reader.string("model_type");
        let own = match family(&model_type) {
            Ok(family) => (family.read)(&reader),
            Err(unknown) => {
                reader.finish()?;
                return Err(unknown);
            }
        };
        let config = ModelConfig {
            model_type,
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

    /// Sets every dropout probability of the model, from 0 to 0.999.
    pub fn set_dropout(&mut self, p: f64) -> Result<(), ModelError> {
        let p = checked_dropout(p)?;
        let own = &mut self.dropouts;
        (own.hidden, own.attention) = (p, p);
        let others = [&mut own.embedding, &mut own.pooler, &mut own.classifier];
        others.into_iter().flatten().for_each(|other| *other = p);
        Ok(())
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

fn checked_dropout(p: f64) -> Result<f32, ModelError> {
    if (0.0..=MOST_DROPOUT).contains(&p) {
        return Ok(p as f32);
    }
    Err(ModelError::UnsupportedConfig(format!(
        "dropout is {p}, expected a number from 0 to {MOST_DROPOUT}"
    )))
}

/// transformers' names of the functions that the kernels have; several are the same function computed in another way.
/// Source: transformers `ACT2CLS` (5.24).
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_accurate", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

/// transformers' names of functions that no kernel computes.
const OTHER_ACTIVATIONS: [&str; 13] = [
    "gelu_10",
    "hardswish",
    "laplace",
    "leaky_relu",
    "linear",
    "mish",
    "prelu",
    "quick_gelu",
    "relu2",
    "relu6",
    "sigmoid",
    "sqrtsoftplus",
    "xielu",
];

/// An activation by its name in transformers' `ACT2FN`.
pub(crate) fn read_activation(
    reader: &ConfigReader<'_>,
    key: &str,
    default: Activation,
) -> Activation {
    match reader.raw(key).and_then(Value::as_str) {
        Some(name) if OTHER_ACTIVATIONS.contains(&name) => {
            let known: Vec<String> = ACTIVATIONS.iter().map(|(n, _)| format!("`{n}`")).collect();
            let message = format!(
                "`{name}` is an activation of transformers that is not supported, expected one of {}",
                known.join(", ")
            );
            reader.fault(key, message);
            default
        }
        Some(_) | None => reader.choice_or(key, default, ACTIVATIONS),
    }
}

/// A probability of dropout.
pub(crate) fn read_dropout(reader: &ConfigReader<'_>, key: &str, default: f64) -> f32 {
    reader.f64_or(key, default, 0.0..=MOST_DROPOUT) as f32
}

/// A probability of dropout that another one stands for where it is absent.
pub(crate) fn read_dropout_else(reader: &ConfigReader<'_>, key: &str, other: f32) -> f32 {
    let own = reader.opt_f64(key, 0.0..=MOST_DROPOUT);
    own.map_or(other, |p| p as f32)
}

/// `pad_token_id`, if the file has one.
pub(crate) fn read_pad_token(reader: &ConfigReader<'_>) -> Option<u32> {
    let id = reader.opt_usize("pad_token_id", 0..=1 << 24)?;
    Some(id as u32)
}

/// The number of heads, which must divide the width, given by name and value.
pub(crate) fn read_heads(
    reader: &ConfigReader<'_>,
    key: &str,
    default: usize,
    width: (&str, usize),
) -> usize {
    let heads = reader.usize_or(key, default, 1..=1 << 12);
    let (name, hidden_size) = width;
    if !hidden_size.is_multiple_of(heads) {
        let message = format!("expected a divisor of {name} = {hidden_size}, found {heads}");
        reader.fault(key, message);
    }
    heads
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
