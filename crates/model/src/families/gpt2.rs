//! GPT-2 (Radford et al. 2019) and what shares its architecture, such as DistilGPT-2 and
//! Cerebras-GPT: weights stored as `Conv1D` [in, out], queries, keys and values from one fused
//! layer, pre-norm. Source: transformers `modeling_gpt2.py`.

use std::sync::Arc;

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;

use crate::config::{Dropouts, Facts, read_activation, read_dropout, read_heads, read_pad_token};
use crate::families::decoder::{DecoderConfig, Names, Projections, SCORE, Scores};
use crate::families::residual::Norms;
use crate::families::{Classes, Family, FamilyConfig, Fused};
use crate::load::{Layout, Naming};

/// The registry's line.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "gpt2",
        prefix: "transformer.",
        tokens: NAMES.tokens,
    },
    heads: SCORE,
    classes: Classes {
        sequence: "GPT2ForSequenceClassification",
        tokens: None,
        causal_lm: Some("GPT2LMHeadModel"),
    },
    default_targets: &["c_attn"],
    default_saved: &[],
    fused: &[Fused::qkv("c_attn")],
    // The causal mask as a buffer, and the copy of a tied table that some files hold.
    ignored: &[".attn.bias", ".attn.masked_bias", "lm_head.weight"],
    read,
};

const NAMES: Names = Names {
    tokens: "transformer.wte",
    positions: "transformer.wpe",
    projects: None,
    final_norm: "transformer.ln_f",
    layers: "transformer.h",
    attention_norm: "ln_1",
    projections: Projections::Fused("attn.c_attn"),
    attention_output: "attn.c_proj",
    mlp_norm: "ln_2",
    mlp_input: "mlp.c_fc",
    mlp_output: "mlp.c_proj",
};

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let width = reader.usize_or("n_embd", 768, 1..=1 << 16);
    let heads = read_heads(reader, "n_head", 12, "n_embd", width);
    let layers = reader.usize_or("n_layer", 12, 1..=1 << 10);
    // Computes the scores in f32, as is always done here.
    reader.bool_or("reorder_and_upcast_attn", false);
    if reader.bool_or("add_cross_attention", false) {
        reader.fault("add_cross_attention", "expected false: there is no encoder");
    }
    let facts = Facts {
        vocab_size: reader.usize_or("vocab_size", 50257, 1..=1 << 24),
        hidden_size: width,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: width / heads,
        intermediate_size: reader.usize_or("n_inner", 4 * width, 1..=1 << 20),
        max_positions: reader.usize_or("n_positions", 1024, 1..=1 << 20),
        type_vocab_size: 1,
        pad_token_id: read_pad_token(reader),
        initializer_range: reader.f64_or("initializer_range", 0.02, 0.0..=10.0) as f32,
        tie_word_embeddings: reader.bool_or("tie_word_embeddings", true),
    };
    let scale = match reader.bool_or("scale_attn_weights", true) {
        true => 1.0 / (facts.head_dim as f32).sqrt(),
        false => 1.0,
    };
    let by_layer = reader.bool_or("scale_attn_by_inverse_layer_idx", false);
    let scores = |i: usize| Scores {
        scale: match by_layer {
            true => scale / (i + 1) as f32,
            false => scale,
        },
        window: None,
    };
    let architecture = DecoderConfig {
        names: &NAMES,
        layout: Layout::Conv1d,
        token_width: width,
        padding_idx: None,
        first_position: 0,
        activation: read_activation(reader, "activation_function", Activation::GeluTanh),
        norms: Norms::First,
        has_final_norm: true,
        layer_norm_eps: reader.f64_or("layer_norm_epsilon", 1e-5, 0.0..=1.0) as f32,
        has_norm_parameters: true,
        has_projection_bias: true,
        has_bias: true,
        // What is summed into the residual stream starts smaller the deeper the model. Source:
        // Radford et al. 2019, 2.3.
        residual_std: facts.initializer_range / (2.0 * layers as f32).sqrt(),
        scores: (0..layers).map(scores).collect(),
    };
    FamilyConfig {
        facts,
        dropouts: Dropouts {
            hidden: read_dropout(reader, "resid_pdrop", 0.1),
            attention: read_dropout(reader, "attn_pdrop", 0.1),
            embedding: Some(read_dropout(reader, "embd_pdrop", 0.1)),
            pooler: None,
            classifier: None,
        },
        architecture: Arc::new(architecture),
    }
}
