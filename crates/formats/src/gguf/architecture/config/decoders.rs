//! Decoders with rotary positions: the fields of each family's config.json. What llama.cpp leaves
//! to its code is the model's own.

use serde_json::{Map, Value, json};

use super::rope::rope;
use super::{BOS_AND_EOS, Fields, object};
use crate::Result;

/// The layers of Gemma 3 27B, whose scores have a scale of their own in llama.cpp's code.
const GEMMA3_27B_LAYERS: usize = 62;

/// The same of Gemma 2 27B.
const GEMMA2_27B_LAYERS: usize = 46;

/// What all of them share; a class is named by its stem.
fn decoder(fields: &Fields<'_>, stem: &str, model_type: &str) -> Result<Map<String, Value>> {
    let (width, heads) = (fields.needed("embedding_length")?, fields.heads()?);
    let head_dim = head_dim(fields)?;
    let mut config = object(json!({
        "model_type": model_type,
        "architectures": [format!("{stem}ForCausalLM")],
        "vocab_size": fields.rows("token_embd.weight")?,
        "hidden_size": width,
        "intermediate_size": fields.needed("feed_forward_length")?,
        "num_hidden_layers": fields.needed("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.key_value_heads()?,
        "head_dim": head_dim,
        "max_position_embeddings": fields.needed("context_length")?,
        "rms_norm_eps": fields.needed_float("attention.layer_norm_rms_epsilon")?,
        "tie_word_embeddings": !fields.has("output.weight"),
        // A class of transformers has ids of its own where a file says none.
        "bos_token_id": null,
        "eos_token_id": null,
        "pad_token_id": null,
    }));
    fields.token_ids(&mut config, &BOS_AND_EOS)?;
    fields.token_ids(&mut config, &[("pad", "padding_token_id")])?;
    // Mixtures of experts share the names of their architecture.
    fields.refuse_unless("expert_count", 0.0)?;
    fields.refuse_unless("attention.value_length", head_dim as f64)?;
    rope(fields, &mut config, head_dim)?;
    Ok(config)
}

fn head_dim(fields: &Fields<'_>) -> Result<usize> {
    match fields.number("attention.key_length")? {
        Some(own) => Ok(own),
        None => Ok(fields.needed("embedding_length")? / fields.heads()?.max(1)),
    }
}

/// Whether linear layers of attention and of the feed-forward layer have biases.
fn add_biases(fields: &Fields<'_>, config: &mut Map<String, Value>) {
    for (key, tensor) in [
        ("attention_bias", "blk.0.attn_q.bias"),
        ("mlp_bias", "blk.0.ffn_gate.bias"),
    ] {
        config.insert(key.to_owned(), json!(fields.has(tensor)));
    }
}

/// LLaMA and all that transformers computes as it does. Mistral's files have its name too; those
/// with a window say it.
pub(in super::super) fn llama(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let window = fields.number("attention.sliding_window")?;
    if let Some(window) = window.filter(|window| *window > 0) {
        let mut config = decoder(fields, "Mistral", "mistral")?;
        config.insert("hidden_act".to_owned(), json!("silu"));
        config.insert("sliding_window".to_owned(), json!(window));
        return Ok(config);
    }
    let mut config = decoder(fields, "Llama", "llama")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    add_biases(fields, &mut config);
    Ok(config)
}

pub(in super::super) fn qwen2(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Qwen2", "qwen2")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    Ok(config)
}

pub(in super::super) fn qwen3(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Qwen3", "qwen3")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    add_biases(fields, &mut config);
    Ok(config)
}

pub(in super::super) fn phi3(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Phi3", "phi3")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    // 0 is none.
    let window = fields.number("attention.sliding_window")?;
    let window = window.filter(|window| *window > 0);
    config.insert("sliding_window".to_owned(), json!(window));
    Ok(config)
}

pub(in super::super) fn granite(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Granite", "granite")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    add_biases(fields, &mut config);
    // A factor that is missing or 0 is none.
    let factor = |name: &str| Ok(fields.float(name)?.filter(|n| *n != 0.0)) as Result<Option<f64>>;
    let scale = factor("attention.scale")?;
    let usual = 1.0 / (head_dim(fields)? as f64).sqrt();
    for (key, value) in [
        ("attention_multiplier", scale.unwrap_or(usual)),
        (
            "embedding_multiplier",
            factor("embedding_scale")?.unwrap_or(1.0),
        ),
        (
            "residual_multiplier",
            factor("residual_scale")?.unwrap_or(1.0),
        ),
        ("logits_scaling", factor("logit_scale")?.unwrap_or(1.0)),
    ] {
        config.insert(key.to_owned(), json!(value));
    }
    Ok(config)
}

/// Every fourth layer has no positions, as in llama.cpp's code and in transformers' default.
pub(in super::super) fn smollm3(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "SmolLM3", "smollm3")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    config.insert("no_rope_layer_interval".to_owned(), json!(4));
    add_biases(fields, &mut config);
    Ok(config)
}

/// OLMo 3 has the same name, and windows.
pub(in super::super) fn olmo2(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Olmo2", "olmo2")?;
    config.insert("hidden_act".to_owned(), json!("silu"));
    add_biases(fields, &mut config);
    fields.refuse_unless("attention.sliding_window", 0.0)?;
    Ok(config)
}

pub(in super::super) fn gemma(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Gemma", "gemma")?;
    config.insert("hidden_act".to_owned(), json!("gelu_pytorch_tanh"));
    Ok(config)
}

pub(in super::super) fn gemma2(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Gemma2", "gemma2")?;
    config.insert("hidden_activation".to_owned(), json!("gelu_pytorch_tanh"));
    if let Some(window) = fields.number("attention.sliding_window")? {
        config.insert("sliding_window".to_owned(), json!(window));
    }
    // What a file leaves out, llama.cpp and transformers have alike.
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = fields.float(key)? {
            config.insert(key.to_owned(), json!(cap));
        }
    }
    add_score_scale(fields, &mut config, GEMMA2_27B_LAYERS)?;
    Ok(config)
}

/// What scores are divided by the root of: of a model of so many layers another number.
fn add_score_scale(
    fields: &Fields<'_>,
    config: &mut Map<String, Value>,
    layers_of_27b: usize,
) -> Result<()> {
    let scalar = match fields.needed("block_count")? == layers_of_27b {
        true => fields.needed("embedding_length")? / fields.heads()?.max(1),
        false => head_dim(fields)?,
    };
    config.insert("query_pre_attn_scalar".to_owned(), json!(scalar));
    Ok(())
}

pub(in super::super) fn gemma3(fields: &Fields<'_>) -> Result<Map<String, Value>> {
    let mut config = decoder(fields, "Gemma3", "gemma3_text")?;
    config.insert("hidden_activation".to_owned(), json!("gelu_pytorch_tanh"));
    if let Some(window) = fields.number("attention.sliding_window")? {
        config.insert("sliding_window".to_owned(), json!(window));
    }
    if let Some(every) = fields.number("attention.sliding_window_pattern")? {
        config.insert("sliding_window_pattern".to_owned(), json!(every));
    }
    if let Some(theta) = fields.float("rope.freq_base_swa")? {
        config.insert("rope_local_base_freq".to_owned(), json!(theta));
    }
    add_score_scale(fields, &mut config, GEMMA3_27B_LAYERS)?;
    fields.refuse_unless("final_logit_softcapping", 0.0)?;
    Ok(config)
}
