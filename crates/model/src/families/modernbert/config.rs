//! What config.json says of a ModernBERT, in today's form (`layer_types`, `rope_parameters`) and in
//! the first one (`global_attn_every_n_layers`, `global_rope_theta`, `local_rope_theta`). It knows
//! no network. Source: transformers 5.24 `configuration_modernbert.py`.

use std::sync::Arc;

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;

use crate::config::{Dropouts, Facts, read_activation, read_dropout, read_heads, read_pad_token};
use crate::families::FamilyConfig;
use crate::families::decoder::{local_layers, read_ropes_by_window};
use crate::modules::RopeKind;

/// What the configuration says beside the facts.
#[derive(Debug)]
pub(super) struct ModernBertConfig {
    pub(super) norm_eps: f32,
    pub(super) norm_bias: bool,
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) classifier_bias: bool,
    pub(super) activation: Activation,
    pub(super) classifier_activation: Activation,
    pub(super) pooling: Pooling,
    /// Which layers look at the tokens around.
    pub(super) is_local: Vec<bool>,
    /// How far they look on each side.
    pub(super) reach: usize,
    /// Of layers that look at all tokens, and of the others.
    pub(super) ropes: [RopeKind; 2],
}

/// What of a sequence a classifier reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// Its first token.
    First,
    /// The mean over its tokens.
    Mean,
}

const POOLINGS: [(&str, Pooling); 2] = [("cls", Pooling::First), ("mean", Pooling::Mean)];

pub(super) fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let width = reader.usize_or("hidden_size", 768, 1..=1 << 16);
    let heads = read_heads(reader, "num_attention_heads", 12, "hidden_size", width);
    let layers = reader.usize_or("num_hidden_layers", 22, 1..=1 << 10);
    let head_dim = width / heads.max(1);
    if !head_dim.is_multiple_of(2) {
        let message = format!("expected heads of an even width, found {head_dim}");
        reader.fault("num_attention_heads", message);
    }
    let pad_token_id = match reader.raw("pad_token_id") {
        None => Some(50_283),
        Some(_) => read_pad_token(reader),
    };
    let facts = Facts {
        vocab_size: reader.usize_or("vocab_size", 50_368, 1..=1 << 24),
        hidden_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim,
        intermediate_size: reader.usize_or("intermediate_size", 1152, 1..=1 << 20),
        max_positions: reader.usize_or("max_position_embeddings", 8192, 1..=1 << 24),
        type_vocab_size: 1,
        pad_token_id,
        initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
        tie_word_embeddings: true,
    };
    let every = reader.usize_or("global_attn_every_n_layers", 3, 1..=1 << 10);
    let is_local = match reader.opt_strings("layer_types") {
        Some(types) => local_layers(reader, &types, layers),
        None => (0..layers).map(|i| !i.is_multiple_of(every)).collect(),
    };
    let large = 1.0..=1e12;
    let thetas = [
        reader.f64_or("global_rope_theta", 160_000.0, large.clone()),
        reader.f64_or("local_rope_theta", 10_000.0, large),
    ];
    let bias = |key: &str| reader.bool_or(key, false);
    FamilyConfig {
        dropouts: Dropouts {
            hidden: read_dropout(reader, "mlp_dropout", 0.0),
            attention: read_dropout(reader, "attention_dropout", 0.0),
            embedding: Some(read_dropout(reader, "embedding_dropout", 0.0)),
            pooler: None,
            classifier: Some(read_dropout(reader, "classifier_dropout", 0.0)),
        },
        architecture: Arc::new(ModernBertConfig {
            norm_eps: reader.f64_or("norm_eps", 1e-5, 0.0..=1.0) as f32,
            norm_bias: bias("norm_bias"),
            attention_bias: bias("attention_bias"),
            mlp_bias: bias("mlp_bias"),
            classifier_bias: bias("classifier_bias"),
            activation: read_activation(reader, "hidden_activation", Activation::Gelu),
            classifier_activation: read_activation(
                reader,
                "classifier_activation",
                Activation::Gelu,
            ),
            pooling: reader.choice_or("classifier_pooling", Pooling::First, &POOLINGS),
            is_local,
            reach: reader.usize_or("local_attention", 128, 1..=1 << 24) / 2,
            ropes: read_ropes_by_window(reader, &facts, thetas),
        }),
        facts,
    }
}
