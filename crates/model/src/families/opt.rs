//! OPT (Zhang et al. 2022), Meta's replication of GPT-3: positions start at row 2, norms before the
//! sublayers (after them in the 350M model, whose token table is narrower too), ReLU. Source:
//! transformers `modeling_opt.py`.

use std::sync::Arc;

use lowrank_engine::Activation;
use lowrank_formats::ConfigReader;

use crate::config::{Dropouts, Facts, read_activation, read_dropout, read_heads};
use crate::families::decoder::{DecoderConfig, Names, Projections, SCORE, Scores};
use crate::families::residual::Norms;
use crate::families::{Classes, Family, FamilyConfig};
use crate::load::{Layout, Naming};

/// The registry's line.
pub const FAMILY: Family = Family {
    naming: Naming {
        model_type: "opt",
        prefix: "model.",
        tokens: NAMES.tokens,
    },
    heads: SCORE,
    classes: Classes {
        sequence: "OPTForSequenceClassification",
        tokens: None,
        causal_lm: Some("OPTForCausalLM"),
    },
    default_targets: &["q_proj", "v_proj"],
    default_saved: &[],
    fused: &[],
    // The copy of a tied table that some files hold.
    ignored: &["lm_head.weight"],
    read,
};

const NAMES: Names = Names {
    tokens: "model.decoder.embed_tokens",
    positions: "model.decoder.embed_positions",
    projects: Some(["model.decoder.project_in", "model.decoder.project_out"]),
    final_norm: "model.decoder.final_layer_norm",
    layers: "model.decoder.layers",
    attention_norm: "self_attn_layer_norm",
    projections: Projections::Separate([
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.q_proj",
    ]),
    attention_output: "self_attn.out_proj",
    mlp_norm: "final_layer_norm",
    mlp_input: "fc1",
    mlp_output: "fc2",
};

/// Rows of the position table that no token has.
const POSITION_OFFSET: u32 = 2;

/// PyTorch's default.
const LAYER_NORM_EPS: f32 = 1e-5;

fn read(reader: &ConfigReader<'_>) -> FamilyConfig {
    let width = reader.usize_or("hidden_size", 768, 1..=1 << 16);
    let heads = read_heads(reader, "num_attention_heads", 12, "hidden_size", width);
    let norm_first = reader.bool_or("do_layer_norm_before", true);
    let has_bias = reader.bool_or("enable_bias", true);
    if reader.f64_or("layerdrop", 0.0, 0.0..=1.0) > 0.0 {
        reader.fault("layerdrop", "expected 0: layers are not dropped here");
    }
    let facts = Facts {
        vocab_size: reader.usize_or("vocab_size", 50272, 1..=1 << 24),
        hidden_size: width,
        num_hidden_layers: reader.usize_or("num_hidden_layers", 12, 1..=1 << 10),
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: width / heads,
        intermediate_size: reader.usize_or("ffn_dim", 3072, 1..=1 << 20),
        max_positions: reader.usize_or("max_position_embeddings", 2048, 1..=1 << 20),
        type_vocab_size: 1,
        pad_token_id: Some(reader.usize_or("pad_token_id", 1, 0..=1 << 24) as u32),
        initializer_range: reader.f64_or("init_std", 0.02, 0.0..=10.0) as f32,
        tie_word_embeddings: reader.bool_or("tie_word_embeddings", true),
    };
    let scores = Scores {
        scale: 1.0 / (facts.head_dim as f32).sqrt(),
        window: None,
    };
    let architecture = DecoderConfig {
        names: &NAMES,
        layout: Layout::Linear,
        token_width: reader.usize_or("word_embed_proj_dim", width, 1..=1 << 16),
        padding_idx: facts.pad_token_id,
        first_position: POSITION_OFFSET,
        activation: read_activation(reader, "activation_function", Activation::Relu),
        norms: match norm_first {
            true => Norms::First,
            false => Norms::Last,
        },
        has_final_norm: norm_first && !reader.bool_or("_remove_final_layer_norm", false),
        layer_norm_eps: LAYER_NORM_EPS,
        has_norm_parameters: reader.bool_or("layer_norm_elementwise_affine", true),
        has_projection_bias: has_bias,
        has_bias,
        residual_std: facts.initializer_range,
        scores: vec![scores; facts.num_hidden_layers],
    };
    FamilyConfig {
        facts,
        dropouts: Dropouts {
            hidden: read_dropout(reader, "dropout", 0.1),
            attention: read_dropout(reader, "attention_dropout", 0.0),
            embedding: None,
            pooler: None,
            classifier: None,
        },
        architecture: Arc::new(architecture),
    }
}
