//! `config.json`, read strictly: every fault of the file at once. Names are Hugging Face's. It holds what every family
//! has; the fields of one family are read in its own file.

use std::path::Path;

use lowrank_engine::Activation;
use lowrank_formats::peft::TaskType;
use lowrank_formats::{ConfigReader, read_json};
use serde_json::Value;

use crate::error::ModelError;
use crate::families::family;
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
}

/// The configuration of a model: what every family has. A family reads its own fields from `raw`.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The family.
    pub model_type: String,
    /// The model's shape.
    pub facts: Facts,
    /// What the file says of labels.
    pub labels: LabelFields,
    /// transformers' `problem_type`, if the file has one.
    pub problem_type: Option<String>,
    /// The classes that the checkpoint was saved from, such as `BertForSequenceClassification`.
    pub architectures: Vec<String>,
    /// The whole file: to copy through, and for the family's own fields.
    raw: Value,
}

impl ModelConfig {
    /// Reads and checks a `config.json`.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        Self::from_value(path, read_json(path)?)
    }

    /// Checks a parsed `config.json`; `path` is for messages.
    pub fn from_value(path: &Path, raw: Value) -> Result<Self, ModelError> {
        let reader = ConfigReader::new(path, &raw);
        let model_type = reader.string("model_type");
        let facts = match family(&model_type) {
            Ok(family) => (family.facts)(&reader),
            Err(unknown) => {
                reader.finish()?;
                return Err(unknown);
            }
        };
        let config = ModelConfig {
            facts,
            labels: LabelFields::read(&reader),
            problem_type: reader.opt_string("problem_type"),
            architectures: architectures(&reader),
            model_type,
            raw: Value::Null,
        };
        reader.finish()?;
        Ok(ModelConfig { raw, ..config })
    }

    /// A reader of the family's own fields, which were checked when this was made.
    pub fn reader(&self) -> ConfigReader<'_> {
        ConfigReader::new(Path::new("config.json"), &self.raw)
    }

    /// Sets the number of tokens in the vocabulary.
    pub fn set_vocab_size(&mut self, rows: usize) -> Result<(), ModelError> {
        self.raw["vocab_size"] = rows.into();
        let changed = Self::from_value(Path::new("config.json"), self.raw.clone())?;
        self.facts = changed.facts;
        Ok(())
    }

    /// Sets every dropout probability of the model, from 0 to below 1.
    pub fn set_dropout(&mut self, p: f64) -> Result<(), ModelError> {
        for key in family(&self.model_type)?.dropouts {
            self.raw[*key] = p.into();
        }
        Self::from_value(Path::new("config.json"), self.raw.clone()).map(|_| ())
    }

    /// Sets the probability of dropout before the classifier, from 0 to below 1.
    /// Errors where the family has no dropout of its own there.
    pub fn set_classifier_dropout(&mut self, p: f64) -> Result<(), ModelError> {
        let known = |key: &&&str| ["classifier_dropout", "cls_dropout"].contains(*key);
        let Some(key) = family(&self.model_type)?.dropouts.iter().find(known) else {
            return Err(ModelError::UnsupportedConfig(format!(
                "a `{}` model has no dropout of its own before a classifier",
                self.model_type
            )));
        };
        self.raw[*key] = p.into();
        Self::from_value(Path::new("config.json"), self.raw.clone()).map(|_| ())
    }
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
    reader.f64_or(key, default, 0.0..=0.999) as f32
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
