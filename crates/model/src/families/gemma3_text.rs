//! Gemma 3 (Gemma Team 2025), its language model: norms around each sublayer and of each head, five
//! layers that look at a window to one that does not, a rotation for each kind. Source:
//! transformers `modeling_gemma3.py`.

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;

use crate::families::decoder::{
    Defaults, HeadNorms, LLAMA, NormPlaces, Read, RopeRule, WindowRule,
};
use crate::families::gemma::read_like_gemma;
use crate::families::gemma2::SOFT_CAPS;
use crate::families::{Classes, Family, FamilyConfig};

/// The registry's line.
pub const FAMILY: Family = Family::rotary("gemma3_text", CLASSES, &["q_proj", "v_proj"], read);

const CLASSES: Classes = Classes {
    sequence: "Gemma3ForSequenceClassification",
    tokens: None,
    causal_lm: Some("Gemma3ForCausalLM"),
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_208,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 131_072,
    rope_theta: 1e6,
    pad_token_id: Some(0),
    tie_word_embeddings: true,
    activation: ("hidden_activation", Activation::GeluTanh),
    ..LLAMA
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let windows = WindowRule::AllBut {
        every: 6,
        window: 4096,
    };
    let ropes = RopeRule::ByWindow { local_theta: 1e4 };
    let mut read = Read::new(reader, &DEFAULTS, windows, ropes);
    read.read_biases(reader);
    read_like_gemma(reader, &mut read);
    let scale = reader.f64_or("query_pre_attn_scalar", 256.0, 1e-6..=1e12);
    let config = &mut read.config;
    config.score_scale = scale.powf(-0.5) as f32;
    // transformers reads `attn_logit_softcapping` here and applies it nowhere.
    config.head_norms = HeadNorms::Each;
    config.norms = NormPlaces::Around;
    let cap = reader.opt_f64("final_logit_softcapping", SOFT_CAPS);
    config.logit_soft_cap = cap.map(|cap| cap as f32);
    read.family()
}
