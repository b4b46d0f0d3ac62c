//! Qwen 2 and 2.5 (Yang et al. 2024): LLaMA with biases of queries, keys and values. Source:
//! transformers `modeling_qwen2.py`.

use lowrank_formats::ConfigReader;

use crate::families::decoder::{Defaults, LLAMA, Read, RopeRule, WindowRule};
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("qwen2", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "Qwen2ForSequenceClassification",
    tokens: None,
    causal_lm: Some("Qwen2ForCausalLM"),
};

/// Qwen 3's too.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    ..LLAMA
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let mut read = Read::new(reader, &DEFAULTS, WindowRule::Upper(4096), RopeRule::One);
    read.config.biases.qkv = true;
    read.family()
}
