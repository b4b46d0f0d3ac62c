//! GPT-Neo (Black et al. 2021): GPT-3's architecture (Brown et al. 2020) with layers that see all
//! tokens and layers that see a window in turn; scores are not scaled, projections have no bias.
//! Source: transformers `modeling_gpt_neo.py`.

use std::sync::Arc;

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;
use serde_json::Value;

use crate::config::{Dropouts, Facts, read_activation, read_dropout, read_heads, read_pad_token};
use crate::families::decoder::{DecoderConfig, Names, Projections, SCORE, Scores};
use crate::families::residual::Norms;
use crate::families::{Classes, Family, FamilyConfig};
use crate::load::{Layout, Naming};

/// The registry's line.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "gpt_neo",
        prefix: "transformer.",
        tokens: NAMES.tokens,
    },
    heads: SCORE,
    classes: Classes {
        sequence: "GPTNeoForSequenceClassification",
        tokens: None,
        causal_lm: Some("GPTNeoForCausalLM"),
    },
    default_targets: &["q_proj", "v_proj"],
    default_saved: &[],
    fused: &[],
    // The masks as buffers, and the copy of a tied table that some files hold.
    ignored: &[
        ".attention.bias",
        ".attention.masked_bias",
        "lm_head.weight",
    ],
    read,
};

const NAMES: Names = Names {
    tokens: "transformer.wte",
    positions: "transformer.wpe",
    projects: None,
    final_norm: "transformer.ln_f",
    layers: "transformer.h",
    attention_norm: "ln_1",
    projections: Projections::Separate([
        "attn.attention.k_proj",
        "attn.attention.v_proj",
        "attn.attention.q_proj",
    ]),
    attention_output: "attn.attention.out_proj",
    mlp_norm: "ln_2",
    mlp_input: "mlp.c_fc",
    mlp_output: "mlp.c_proj",
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let width = reader.usize_or("hidden_size", 2048, 1..=1 << 16);
    let heads = read_heads(reader, "num_heads", 16, "hidden_size", width);
    let layers = reader.usize_or("num_layers", 24, 1..=1 << 10);
    let facts = Facts {
        vocab_size: reader.usize_or("vocab_size", 50257, 1..=1 << 24),
        hidden_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: width / heads,
        intermediate_size: reader.usize_or("intermediate_size", 4 * width, 1..=1 << 20),
        max_positions: reader.usize_or("max_position_embeddings", 2048, 1..=1 << 20),
        type_vocab_size: 1,
        pad_token_id: read_pad_token(reader),
        initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
        tie_word_embeddings: reader.bool_or("tie_word_embeddings", true),
    };
    let window = reader.usize_or("window_size", 256, 1..=1 << 20);
    let is_local = read_attention_types(reader, layers);
    let scores = |is_local: bool| Scores {
        scale: 1.0,
        window: is_local.then_some(window),
    };
    let architecture = DecoderConfig {
        names: &NAMES,
        layout: Layout::Linear,
        token_width: width,
        padding_idx: None,
        first_position: 0,
        activation: read_activation(reader, "activation_function", Activation::GeluTanh),
        norms: Norms::First,
        has_final_norm: true,
        layer_norm_eps: reader.f64_or("layer_norm_epsilon", 1e-5, 0.0..=1.0) as f32,
        has_norm_parameters: true,
        has_projection_bias: false,
        has_bias: true,
        residual_std: facts.initializer_range,
        scores: is_local.into_iter().map(scores).collect(),
    };
    FamilyConfig {
        facts,
        dropouts: Dropouts {
            hidden: read_dropout(reader, "resid_dropout", 0.0),
            attention: read_dropout(reader, "attention_dropout", 0.0),
            embedding: Some(read_dropout(reader, "embed_dropout", 0.0)),
            pooler: None,
            classifier: None,
        },
        architecture: Arc::new(architecture),
    }
}

/// `attention_types`, a list of [kinds, repetitions]: whether each layer is local. Source:
/// transformers `GPTNeoConfig.expand_attention_types_params`.
fn read_attention_types(reader: &ConfigReader<'_>, num_layers: usize) -> Vec<bool> {
    let alternating = || (0..num_layers).map(|i| i % 2 == 1).collect();
    let Some(value) = reader.raw("attention_types").filter(|v| !v.is_null()) else {
        return alternating();
    };
    match expand(value) {
        Some(layers) if layers.len() == num_layers => layers,
        Some(layers) => {
            let message = format!(
                "expected kinds for num_layers = {num_layers} layers, found {}",
                layers.len()
            );
            reader.fault("attention_types", message);
            alternating()
        }
        None => {
            reader.fault(
                "attention_types",
                "expected a list such as [[[\"global\", \"local\"], 12]]",
            );
            alternating()
        }
    }
}

fn expand(value: &Value) -> Option<Vec<bool>> {
    const MOST: u64 = 1 << 10;
    let mut layers = Vec::new();
    for item in value.as_array()? {
        let kinds: Option<Vec<bool>> = item
            .get(0)?
            .as_array()?
            .iter()
            .map(|kind| match kind.as_str()? {
                "global" => Some(false),
                "local" => Some(true),
                _ => None,
            })
            .collect();
        let (kinds, times) = (kinds?, item.get(1)?.as_u64()?);
        for _ in 0..times.min(MOST) {
            layers.extend_from_slice(&kinds);
        }
    }
    Some(layers)
}
