//! Rotations of a GGUF file as `rope_theta` and `rope_scaling` say them. Source: llama.cpp
//! `convert_hf_to_gguf.py` and `llama-model.cpp`.

use std::f64::consts::PI;

use serde_json::{Map, Value, json};

use super::Fields;
use crate::Result;

/// Divisors of each pair's frequency, as LLaMA 3.1 and its relatives have them.
const FREQUENCIES: &str = "rope_freqs.weight";
/// Divisors for short and for long texts.
const SHORT: &str = "rope_factors_short.weight";
const LONG: &str = "rope_factors_long.weight";

/// Where llama3's rotation changes, in positions, and its bounds; files do not say them.
const LLAMA3_ORIGINAL: f64 = 8192.0;
const LLAMA3_BOUNDS: [f64; 2] = [1.0, 4.0];

/// The base where the file says none: llama.cpp's.
const THETA: f64 = 10_000.0;

/// Adds the fields of a rotation of heads of `head_dim` values.
pub(super) fn rope(
    fields: &Fields<'_>,
    config: &mut Map<String, Value>,
    head_dim: usize,
) -> Result<()> {
    let theta = fields.float("rope.freq_base")?.unwrap_or(THETA);
    config.insert("rope_theta".to_owned(), json!(theta));
    let turned = fields.number("rope.dimension_count")?.unwrap_or(head_dim);
    if turned != head_dim {
        let part = turned as f64 / head_dim.max(1) as f64;
        config.insert("partial_rotary_factor".to_owned(), json!(part));
    }
    let original = fields.number("rope.scaling.original_context_length")?;
    let kind = fields.gguf.text(&fields.key("rope.scaling.type"))?;
    let scaling = match kind.unwrap_or("none") {
        "none" | "longrope" if fields.has(SHORT) || fields.has(LONG) => {
            let original = match original {
                Some(original) => original,
                None => fields.needed("context_length")?,
            };
            let key = "original_max_position_embeddings";
            config.insert(key.to_owned(), json!(original));
            long_rope(fields)?
        }
        "none" => match fields.vector(FREQUENCIES)? {
            Some(divisors) => by_divisors(divisors, theta),
            // A factor without a type is linear; its old key is that of files from 2023.
            None if kind.is_none() => {
                let factor = fields.float("rope.scaling.factor")?;
                let old = || fields.float("rope.scale_linear");
                match factor.map_or_else(old, |factor| Ok(Some(factor)))? {
                    Some(factor) if factor != 0.0 && factor != 1.0 => linear(factor),
                    Some(_) | None => return Ok(()),
                }
            }
            None => return Ok(()),
        },
        "linear" => linear(fields.needed_float("rope.scaling.factor")?),
        "yarn" => yarn(fields, original)?,
        other => return Err(unknown(fields, other)),
    };
    if kind.is_some_and(|kind| kind != "none") && fields.has(FREQUENCIES) {
        let expected = "no tensor beside `rope.scaling.type`";
        return Err(fields.gguf.wrong_key(FREQUENCIES, expected, "a tensor"));
    }
    config.insert("rope_scaling".to_owned(), scaling);
    Ok(())
}

fn unknown(fields: &Fields<'_>, found: &str) -> crate::error::FormatError {
    let (expected, found) = match found {
        "longrope" => (
            format!("`longrope` with `{SHORT}` and `{LONG}`"),
            "`longrope` without these tensors".to_owned(),
        ),
        _ => (
            "`none`, `linear`, `yarn` or `longrope`".to_owned(),
            format!("the text `{found}`"),
        ),
    };
    let key = fields.key("rope.scaling.type");
    fields.gguf.wrong_key(&key, &expected, &found)
}

fn linear(factor: f64) -> Value {
    json!({ "rope_type": "linear", "factor": factor })
}

fn yarn(fields: &Fields<'_>, original: Option<usize>) -> Result<Value> {
    // They change cosines and sines in ways of llama.cpp's own.
    for (name, neutral) in [
        ("yarn_ext_factor", 1.0),
        ("yarn_attn_factor", 1.0),
        ("attn_factor", 1.0),
        ("yarn_log_multiplier", 0.0),
    ] {
        fields.refuse_unless(&format!("rope.scaling.{name}"), neutral)?;
    }
    let original = match original {
        Some(original) => original,
        None => fields.needed("rope.scaling.original_context_length")?,
    };
    let beta = |name: &str, usual: f64| {
        let found = fields.float(&format!("rope.scaling.yarn_beta_{name}"))?;
        Ok(found.unwrap_or(usual)) as Result<f64>
    };
    Ok(json!({
        "rope_type": "yarn",
        "factor": fields.needed_float("rope.scaling.factor")?,
        "original_max_position_embeddings": original,
        "beta_fast": beta("fast", 32.0)?,
        "beta_slow": beta("slow", 1.0)?,
    }))
}

fn long_rope(fields: &Fields<'_>) -> Result<Value> {
    let factors = |tensor: &str| {
        let missing = || fields.gguf.wrong_key(tensor, "a tensor", "missing");
        fields.vector(tensor)?.ok_or_else(missing)
    };
    Ok(json!({
        "rope_type": "longrope",
        "short_factor": factors(SHORT)?,
        "long_factor": factors(LONG)?,
        "attention_factor": fields.float("rope.scaling.attn_factor")?.unwrap_or(1.0),
    }))
}

/// A rotation of which the file has the divisors alone: LLaMA 3's where they are its own, and
/// otherwise one with the same factors for texts of all lengths.
fn by_divisors(divisors: Vec<f64>, theta: f64) -> Value {
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let [low, high] = LLAMA3_BOUNDS;
    let is_llama3 = divisors.iter().enumerate().all(|(i, found)| {
        let turn = 2.0 * PI * theta.powf(i as f64 / divisors.len() as f64);
        let smooth = ((LLAMA3_ORIGINAL / turn - low) / (high - low)).clamp(0.0, 1.0);
        let expected = 1.0 / ((1.0 - smooth) / factor + smooth);
        (found - expected).abs() <= 1e-5 * expected
    });
    if is_llama3 {
        return json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": LLAMA3_ORIGINAL as usize,
        });
    }
    json!({
        "rope_type": "longrope",
        "short_factor": divisors,
        "long_factor": divisors,
        "attention_factor": 1.0,
    })
}
