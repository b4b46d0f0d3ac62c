//! LLaMA (Touvron et al. 2023) to LLaMA 3.2, and what shares its architecture, such as SmolLM and
//! TinyLlama: RMS norms first, grouped heads, SwiGLU, rotary positions. Source: transformers
//! `modeling_llama.py`.

use lowrank_formats::ConfigReader;

use crate::families::decoder::{LLAMA, Read, RopeRule, WindowRule};
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("llama", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "LlamaForSequenceClassification",
    tokens: None,
    causal_lm: Some("LlamaForCausalLM"),
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let mut read = Read::new(reader, &LLAMA, WindowRule::Never, RopeRule::One);
    read.read_biases(reader);
    read.family()
}
