//! Mistral (Jiang et al. 2023): LLaMA without any bias, each layer looking at a window where there
//! is one.
//! Source: transformers `modeling_mistral.py`.

use lowrank_formats::ConfigReader;

use crate::families::decoder::{Defaults, LLAMA, Read, RopeRule, WindowRule};
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("mistral", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "MistralForSequenceClassification",
    tokens: None,
    causal_lm: Some("MistralForCausalLM"),
};

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 14_336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    ..LLAMA
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let windows = WindowRule::Always(Some(4096));
    Read::new(reader, &DEFAULTS, windows, RopeRule::One).family()
}
