//! `config.json` of an encoder, read strictly: every fault of the file at once. Names are Hugging Face's.

use std::path::Path;

use lowrank_engine::Activation;
use lowrank_formats::peft::TaskType;
use lowrank_formats::{ConfigReader, read_json};
use serde_json::Value;

use crate::error::ModelError;
use crate::families::family;

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
}

impl Task {
    /// Every task.
    pub const ALL: [Task; 4] = [
        Task::SingleLabel,
        Task::MultiLabel,
        Task::Regression,
        Task::TokenClassification,
    ];

    /// transformers' `problem_type`, or `token_classification`.
    pub fn name(self) -> &'static str {
        match self {
            Task::SingleLabel => "single_label_classification",
            Task::MultiLabel => "multi_label_classification",
            Task::Regression => "regression",
            Task::TokenClassification => "token_classification",
        }
    }

    /// PEFT's `task_type`.
    pub fn peft_type(self) -> TaskType {
        match self {
            Task::SingleLabel | Task::MultiLabel | Task::Regression => {
                TaskType::SequenceClassification
            }
            Task::TokenClassification => TaskType::TokenClassification,
        }
    }
}

/// The configuration of an encoder. Field names are Hugging Face's.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// The family.
    pub model_type: String,
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
    /// The feed-forward's activation.
    pub hidden_act: Activation,
    /// Rows of the position table.
    pub max_position_embeddings: usize,
    /// Rows of the token-type table.
    pub type_vocab_size: usize,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f32,
    /// The padding token; RoBERTa's positions start after it.
    pub pad_token_id: u32,
    /// Standard deviation of new weights.
    pub initializer_range: f32,
    /// Dropout of embeddings and sublayer outputs.
    pub hidden_dropout_prob: f32,
    /// Dropout of attention probabilities.
    pub attention_probs_dropout_prob: f32,
    /// Dropout before the classifier; the hidden one if absent.
    pub classifier_dropout: Option<f32>,
    /// Label names by id, if the file has them.
    pub id2label: Option<Vec<String>>,
    /// transformers' `problem_type`, if the file has one.
    pub problem_type: Option<String>,
    /// The classes that the checkpoint was saved from, such as `BertForSequenceClassification`.
    pub architectures: Vec<String>,
    /// The whole file, to copy through.
    pub raw: Value,
}

const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("tanh", Activation::Tanh),
];

impl EncoderConfig {
    /// Reads and checks a `config.json`.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        Self::from_value(path, read_json(path)?)
    }

    /// Checks a parsed `config.json`; `path` is for messages.
    pub fn from_value(path: &Path, raw: Value) -> Result<Self, ModelError> {
        let reader = ConfigReader::new(path, &raw);
        let model_type = reader.string("model_type");
        if raw.get("model_type").is_some_and(Value::is_string) {
            family(&model_type)?;
        }
        // transformers' own defaults differ by family.
        let pad_token_id = if model_type == "bert" { 0 } else { 1 };
        let hidden_size = reader.usize("hidden_size", 1..=1 << 16);
        let num_attention_heads = reader.usize("num_attention_heads", 1..=1 << 12);
        if !hidden_size.is_multiple_of(num_attention_heads) {
            let message = format!(
                "expected a divisor of hidden_size = {hidden_size}, found {num_attention_heads}"
            );
            reader.fault("num_attention_heads", message);
        }
        let p = |key: &str, default: f64| reader.f64_or(key, default, 0.0..=0.999) as f32;
        let config = EncoderConfig {
            vocab_size: reader.usize("vocab_size", 1..=1 << 24),
            hidden_size,
            num_hidden_layers: reader.usize("num_hidden_layers", 1..=1 << 10),
            num_attention_heads,
            intermediate_size: reader.usize("intermediate_size", 1..=1 << 20),
            hidden_act: reader.choice_or("hidden_act", Activation::Gelu, ACTIVATIONS),
            max_position_embeddings: reader.usize("max_position_embeddings", 1..=1 << 20),
            type_vocab_size: reader.usize_or("type_vocab_size", 2, 1..=1 << 16),
            layer_norm_eps: reader.f64_or("layer_norm_eps", 1e-12, 0.0..=1.0) as f32,
            pad_token_id: reader.usize_or("pad_token_id", pad_token_id, 0..=1 << 24) as u32,
            initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
            hidden_dropout_prob: p("hidden_dropout_prob", 0.1),
            attention_probs_dropout_prob: p("attention_probs_dropout_prob", 0.1),
            classifier_dropout: reader
                .opt_f64("classifier_dropout", 0.0..=0.999)
                .map(|v| v as f32),
            id2label: labels(&reader),
            problem_type: reader.opt_string("problem_type"),
            architectures: reader.opt_strings("architectures").unwrap_or_default(),
            model_type,
            raw: Value::Null,
        };
        let positions = reader.string_or("position_embedding_type", "absolute");
        if positions != "absolute" {
            reader.fault(
                "position_embedding_type",
                format!("expected `absolute`, found `{positions}`"),
            );
        }
        for key in ["is_decoder", "add_cross_attention"] {
            if reader.bool_or(key, false) {
                reader.fault(key, "expected false: this family is trained as an encoder");
            }
        }
        let offset = if config.model_type == "bert" {
            0
        } else {
            config.pad_token_id as usize + 1
        };
        if config.max_position_embeddings <= offset {
            let message = format!(
                "expected more than {offset}, found {}",
                config.max_position_embeddings
            );
            reader.fault("max_position_embeddings", message);
        }
        reader.finish()?;
        Ok(EncoderConfig { raw, ..config })
    }

    /// Dropout before the classifier.
    pub fn classifier_dropout(&self) -> f32 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }
}

/// `id2label` in the order of its ids, which must be 0, 1, 2, …
fn labels(reader: &ConfigReader<'_>) -> Option<Vec<String>> {
    let map = reader.opt_string_map("id2label")?;
    let mut labels = vec![None; map.len()];
    for (id, label) in &map {
        match id.parse::<usize>().ok().and_then(|id| labels.get_mut(id)) {
            Some(slot) => *slot = Some(label.clone()),
            None => reader.fault(
                "id2label",
                format!(
                    "expected ids 0 to {}, found `{id}`",
                    map.len().saturating_sub(1)
                ),
            ),
        }
    }
    labels.into_iter().collect()
}
