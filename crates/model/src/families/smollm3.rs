//! SmolLM3 (Hugging Face 2025): LLaMA with no positions in every fourth layer, which
//! alone may look at a window. Source: transformers
//! `modeling_smollm3.py`.

use lowrank_formats::ConfigReader;

use crate::families::decoder::{Defaults, LLAMA, Read, RopeRule, WindowRule, local_layers};
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("smollm3", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "SmolLM3ForSequenceClassification",
    tokens: None,
    causal_lm: Some("SmolLM3ForCausalLM"),
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 128_256,
    hidden_size: 2048,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    rope_theta: 2e6,
    pad_token_id: Some(128_004),
    tie_word_embeddings: true,
    ..LLAMA
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let mut read = Read::new(reader, &DEFAULTS, WindowRule::Never, RopeRule::One);
    read.read_biases(reader);
    let layers = read.facts.num_hidden_layers;
    let interval = reader.usize_or("no_rope_layer_interval", 4, 1..=1 << 10);
    let by_interval = || (1..=layers).map(|i| !i.is_multiple_of(interval)).collect();
    let has_rope = reader
        .opt_bools("no_rope_layers")
        .unwrap_or_else(by_interval);
    if has_rope.len() != layers {
        let message = format!("expected {layers} layers, found {}", has_rope.len());
        reader.fault("no_rope_layers", message);
    }
    let window = reader.opt_usize("sliding_window", 1..=1 << 24);
    let window = window.filter(|_| reader.bool_or("use_sliding_window", false));
    let without_rope = || has_rope.iter().map(|has_rope| !has_rope).collect();
    let is_local = match reader.opt_strings("layer_types") {
        Some(types) => local_layers(reader, &types, layers),
        None => without_rope(),
    };
    let kinds = has_rope.iter().zip(is_local);
    for (layer, (has_rope, is_local)) in read.config.layers.iter_mut().zip(kinds) {
        layer.rope = layer.rope.filter(|_| *has_rope);
        layer.window = window.filter(|_| is_local);
    }
    read.family()
}
