//! What `config.json` says, as types that every family shares, and readers of fields that several
//! have. Names are Hugging Face's. It knows no family.

mod labels;
mod sizes;

use lowrank_engine::Activation;
use lowrank_engine::ops::attention::{AttentionForm, AttentionMask};
use lowrank_formats::ConfigReader;
use serde_json::Value;

use crate::error::ModelError;
pub use labels::{HeadNames, LabelFields};
pub use lowrank_formats::Task;
pub use sizes::{builtin_config, builtin_names};

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

impl Facts {
    /// The attention of one layer, its scores divided by √Dh.
    pub(crate) fn attention(&self, mask: AttentionMask, dropout: f32) -> AttentionForm {
        AttentionForm {
            num_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            soft_cap: None,
            mask,
            dropout,
        }
    }
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
    /// Sets every one that there is, from 0 to 0.999.
    pub(crate) fn set_all(&mut self, p: f64) -> Result<(), ModelError> {
        let p = checked_dropout(p)?;
        (self.hidden, self.attention) = (p, p);
        let others = [&mut self.embedding, &mut self.pooler, &mut self.classifier];
        others.into_iter().flatten().for_each(|other| *other = p);
        Ok(())
    }

    /// Before a classifier.
    pub(crate) fn before_classifier(&self) -> f32 {
        self.classifier.unwrap_or(self.hidden)
    }
}

/// The largest probability of dropout.
const MOST_DROPOUT: f64 = 0.999;

pub(crate) fn checked_dropout(p: f64) -> Result<f32, ModelError> {
    if (0.0..=MOST_DROPOUT).contains(&p) {
        return Ok(p as f32);
    }
    Err(ModelError::UnsupportedConfig(format!(
        "dropout is {p}, expected a number from 0 to {MOST_DROPOUT}"
    )))
}

/// transformers' names of the functions that the kernels have; several are the same function
/// computed in another way.
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
    width_name: &str,
    hidden_size: usize,
) -> usize {
    let heads = reader.usize_or(key, default, 1..=1 << 12);
    if !hidden_size.is_multiple_of(heads) {
        let message = format!("expected a divisor of {width_name} = {hidden_size}, found {heads}");
        reader.fault(key, message);
    }
    heads
}
