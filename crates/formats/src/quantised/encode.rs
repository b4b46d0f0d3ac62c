//! Values put into blocks, with the bits of the reference encoders.
//! Source: gguf-py 0.19, `quants.py`; bitsandbytes 0.50, `backends/default/ops.py`.

use half::f16;

use super::{BlockFormat, BlockParts};
use crate::dtype::{DType, encode_f32, fits};

/// The bytes of values in a type that has an encoder here: the plain floats, Q8_0 and Q4_0. Nothing
/// for other types, and where a value or scale is out of the type's range. Panics if the values are
/// no whole blocks.
pub fn bytes(format: &BlockFormat, values: &[f32]) -> Option<Vec<u8>> {
    if let Some(dtype) = format.plain() {
        let is_written = matches!(dtype, DType::F32 | DType::F16 | DType::BF16);
        let is_held = is_written && values.iter().all(|value| fits(*value, dtype));
        return is_held.then(|| encode_f32(values, dtype));
    }
    let mut out = Vec::with_capacity(values.len() / format.values * format.bytes);
    let parts = match format.name {
        "Q8_0" => q8_0(values),
        "Q4_0" => q4_0(values),
        _ => return None,
    };
    if parts.not_finite().is_some() {
        return None;
    }
    for (scale, codes) in parts.scales.iter().zip(parts.codes.chunks_exact(32)) {
        out.extend((*scale as u16).to_le_bytes());
        match format.name {
            "Q8_0" => out.extend(codes.iter().map(|code| code ^ 128)),
            _ => {
                let (low, high) = codes.split_at(16);
                out.extend(low.iter().zip(high).map(|(low, high)| low | high << 4));
            }
        }
    }
    Some(out)
}

fn largest(block: &[f32]) -> f32 {
    block.iter().fold(0.0f32, |max, v| max.max(v.abs()))
}

/// 1 / d, or zero.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

fn half_bits(d: f32) -> u32 {
    u32::from(f16::from_f32(d).to_bits())
}

/// Q8_0: blocks of 32, the largest magnitude is 127, halves are rounded away from zero. Panics if
/// the values are no whole blocks, as the others do.
pub fn q8_0(values: &[f32]) -> BlockParts {
    let mut parts = BlockParts::default();
    for block in blocks(values, 32) {
        let d = largest(block) / 127.0;
        let id = inverse(d);
        parts.scales.push(half_bits(d));
        let codes = block.iter().map(|v| ((v * id).round() as i8 as u8) ^ 128);
        parts.codes.extend(codes);
    }
    parts
}

/// Q4_0: blocks of 32, the first value of the largest magnitude is -8.
pub fn q4_0(values: &[f32]) -> BlockParts {
    let mut parts = BlockParts::default();
    for block in blocks(values, 32) {
        let max = block
            .iter()
            .fold(0.0f32, |max, v| match v.abs() > max.abs() {
                true => *v,
                false => max,
            });
        let d = max / -8.0;
        let id = inverse(d);
        parts.scales.push(half_bits(d));
        let codes = block.iter().map(|v| ((v * id + 8.5) as u8).min(15));
        parts.codes.extend(codes);
    }
    parts
}

/// NF4: blocks of 64 with their largest magnitude in f32; the nearest of the sixteen values of
/// `map`, which rise.
pub fn nf4(values: &[f32], map: &[f32; 16]) -> BlockParts {
    let mut parts = BlockParts::default();
    let mut bounds = [0.0; 15];
    for (bound, pair) in bounds.iter_mut().zip(map.windows(2)) {
        *bound = (pair[0] + pair[1]) / 2.0;
    }
    for block in blocks(values, 64) {
        let absmax = largest(block);
        let inverse = 1.0 / absmax.max(1e-38);
        parts.scales.push(absmax.to_bits());
        let code = |v: &f32| {
            let scaled = (v * inverse).clamp(-1.0, 1.0);
            bounds.iter().filter(|bound| **bound < scaled).count() as u8
        };
        parts.codes.extend(block.iter().map(code));
    }
    parts
}

fn blocks(values: &[f32], len: usize) -> std::slice::ChunksExact<'_, f32> {
    assert_eq!(values.len() % len, 0, "whole blocks of {len}");
    values.chunks_exact(len)
}
