//! Gemma 2 (Gemma Team 2024): Gemma with norms around each sublayer, capped scores and logits, and
//! a window in every other layer. Source: transformers `modeling_gemma2.py`.

use std::ops::RangeInclusive;

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;

use crate::families::decoder::{Defaults, LLAMA, NormPlaces, Read, RopeRule, WindowRule};
use crate::families::gemma::read_like_gemma;
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("gemma2", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "Gemma2ForSequenceClassification",
    tokens: None,
    causal_lm: Some("Gemma2ForCausalLM"),
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    pad_token_id: Some(0),
    tie_word_embeddings: true,
    activation: ("hidden_activation", Activation::GeluTanh),
    ..LLAMA
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    // The first layer looks at a window, the second at all.
    let windows = WindowRule::AllBut {
        every: 2,
        window: 4096,
    };
    let mut read = Read::new(reader, &DEFAULTS, windows, RopeRule::One);
    read.read_attention_bias(reader);
    read_like_gemma(reader, &mut read);
    let scale = reader.f64_or("query_pre_attn_scalar", 256.0, 1e-6..=1e12);
    let config = &mut read.config;
    config.score_scale = scale.powf(-0.5) as f32;
    config.norms = NormPlaces::Around;
    config.score_soft_cap = read_soft_cap(reader, "attn_logit_softcapping", 50.0);
    config.logit_soft_cap = read_soft_cap(reader, "final_logit_softcapping", 30.0);
    read.family()
}

/// What a soft cap may be.
pub(super) const SOFT_CAPS: RangeInclusive<f64> = 1e-3..=1e6;

/// A soft cap; `null` is none, and what a file leaves out is the class's.
fn read_soft_cap(reader: &ConfigReader<'_>, key: &str, default: f64) -> Option<f32> {
    if reader.raw(key).is_some_and(serde_json::Value::is_null) {
        return None;
    }
    Some(reader.f64_or(key, default, SOFT_CAPS) as f32)
}
