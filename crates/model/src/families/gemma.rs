//! Gemma (Gemma Team 2024): LLaMA with a scaled table of tokens, norms of 1 + weight and GeGLU.
//! Source: transformers `modeling_gemma.py`.

use lowrank_engine::Activation;
use lowrank_engine::ops::norm::RmsFactor;
use lowrank_formats::ConfigReader;

use crate::families::decoder::{Defaults, LLAMA, Read, RopeRule, WindowRule};
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("gemma", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "GemmaForSequenceClassification",
    tokens: None,
    causal_lm: Some("GemmaForCausalLM"),
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 3072,
    intermediate_size: 24_576,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: Some(16),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    pad_token_id: Some(0),
    tie_word_embeddings: true,
    activation: ("hidden_act", Activation::GeluTanh),
    ..LLAMA
};

/// What all of Gemma's generations have.
pub(super) fn read_like_gemma(reader: &ConfigReader<'_>, read: &mut Read) {
    read.config.norm_factor = RmsFactor::OnePlusWeight;
    read.config.token_scale = (read.facts.hidden_size as f32).sqrt();
    let key = "use_bidirectional_attention";
    if reader.has(key) && reader.raw(key).and_then(serde_json::Value::as_bool) != Some(false) {
        reader.fault(key, "expected false: this family is trained as a decoder");
    }
}

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let mut read = Read::new(reader, &DEFAULTS, WindowRule::Never, RopeRule::One);
    // The official files say `gelu` and mean its approximation.
    if reader.raw("hidden_act").and_then(serde_json::Value::as_str) == Some("gelu") {
        read.config.activation = Activation::GeluTanh;
    }
    read.read_biases(reader);
    read_like_gemma(reader, &mut read);
    read.family()
}
