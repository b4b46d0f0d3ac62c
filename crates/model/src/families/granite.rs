//! Granite 3 (IBM 2024): LLaMA with four factors, of the table of tokens, the scores, the residual
//! stream and the logits.
//! Source: transformers `modeling_granite.py`.

use lowrank_formats::ConfigReader;

use crate::families::decoder::{LLAMA, Read, RopeRule, WindowRule};
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("granite", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "GraniteForSequenceClassification",
    tokens: None,
    causal_lm: Some("GraniteForCausalLM"),
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let mut read = Read::new(reader, &LLAMA, WindowRule::Never, RopeRule::One);
    read.read_biases(reader);
    let factor = |key: &str| reader.f64_or(key, 1.0, 1e-12..=1e12);
    read.config.token_scale = factor("embedding_multiplier") as f32;
    read.config.score_scale = factor("attention_multiplier") as f32;
    read.config.residual_scale = factor("residual_multiplier") as f32;
    read.config.logit_scale = (1.0 / factor("logits_scaling")) as f32;
    read.family()
}
