//! Qwen 3 (Yang et al. 2025): LLaMA with norms of each head of queries and keys. Source:
//! transformers `modeling_qwen3.py`.

use lowrank_formats::ConfigReader;

use crate::families::decoder::{Defaults, HeadNorms, Read, RopeRule, WindowRule};
use crate::families::{Classes, Family, FamilyConfig, qwen2};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("qwen3", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "Qwen3ForSequenceClassification",
    tokens: None,
    causal_lm: Some("Qwen3ForCausalLM"),
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let defaults = Defaults {
        head_dim: Some(128),
        ..qwen2::DEFAULTS
    };
    let mut read = Read::new(reader, &defaults, WindowRule::Upper(4096), RopeRule::One);
    read.read_biases(reader);
    read.config.head_norms = HeadNorms::Each;
    read.family()
}
