//! OLMo 2 (OLMo Team 2025): LLaMA with norms after each sublayer and of all heads of queries and
//! keys. Source: transformers `modeling_olmo2.py`.

use lowrank_formats::ConfigReader;

use crate::families::decoder::{
    Defaults, HeadNorms, LLAMA, NormPlaces, Read, RopeRule, WindowRule,
};
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("olmo2", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "Olmo2ForSequenceClassification",
    tokens: None,
    causal_lm: Some("Olmo2ForCausalLM"),
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 50_304,
    rms_norm_eps: 1e-5,
    pad_token_id: Some(1),
    ..LLAMA
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let mut read = Read::new(reader, &DEFAULTS, WindowRule::Never, RopeRule::One);
    read.read_attention_bias(reader);
    read.config.head_norms = HeadNorms::Whole;
    read.config.norms = NormPlaces::Last;
    read.family()
}
