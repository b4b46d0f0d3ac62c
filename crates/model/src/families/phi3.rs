//! Phi-3, 3.5 and 4-mini (Abdin et al. 2024): LLaMA with fused layers and dropout of sublayers, and
//! with `longrope` other rotations beyond the original length. A sequence's own length decides,
//! where transformers takes the longest of the batch. Source: transformers `modeling_phi3.py`.

use lowrank_formats::ConfigReader;

use crate::config::read_dropout;
use crate::families::decoder::{Defaults, Fusion, LLAMA, Read, RopeRule, WindowRule};
use crate::families::{Classes, Family, FamilyConfig, Fused};

/// The registry's line.
pub const FAMILY: Family = Family {
    fused: &[Fused::qkv("qkv_proj"), Fused::gate_up("gate_up_proj")],
    ..Family::rotary("phi3", CLASSES, &["qkv_proj"], read)
};

const CLASSES: Classes = Classes {
    sequence: "Phi3ForSequenceClassification",
    tokens: None,
    causal_lm: Some("Phi3ForCausalLM"),
};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    pad_token_id: Some(32_000),
    ..LLAMA
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let mut read = Read::new(
        reader,
        &DEFAULTS,
        WindowRule::Always(None),
        RopeRule::OneOfPhi3,
    );
    read.config.fusion = Fusion::QkvAndGateUp;
    read.dropouts.hidden = read_dropout(reader, "resid_pdrop", 0.0);
    read.family()
}
