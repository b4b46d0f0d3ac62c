//! What decoders of the Llama kind add: rotary positions, RMS norm and gated activations.

use super::{activation, activation_derivative};
use crate::{Activation, Rope, RopeLayout};

/// x [M, heads * head_dim] with its pairs turned.
pub fn rope(rope: &Rope, x: &[f64]) -> Vec<f64> {
    let mut y = x.to_vec();
    for_each_pair(rope, x.len(), |[a, b], cos, sin| {
        y[a] = x[a] * cos - x[b] * sin;
        y[b] = x[a] * sin + x[b] * cos;
    });
    y
}

/// Gradient of x for [`rope`]: the transposed matrices of the pairs.
pub fn rope_backward(rope: &Rope, d_y: &[f64]) -> Vec<f64> {
    let mut d_x = d_y.to_vec();
    for_each_pair(rope, d_y.len(), |[a, b], cos, sin| {
        d_x[a] = d_y[a] * cos + d_y[b] * sin;
        d_x[b] = d_y[b] * cos - d_y[a] * sin;
    });
    d_x
}

/// Calls `pair([place of a, place of b], cos, sin)` for each pair of `len` elements.
fn for_each_pair(rope: &Rope, len: usize, mut pair: impl FnMut([usize; 2], f64, f64)) {
    let pairs = rope.rotary_dim / 2;
    let width = len / rope.positions.len().max(1);
    for (row, &position) in rope.positions.iter().enumerate() {
        for head in (0..width).step_by(rope.head_dim) {
            let start = row * width + head;
            for i in 0..pairs {
                let places = match rope.layout {
                    RopeLayout::HalfSplit => [start + i, start + i + pairs],
                    RopeLayout::Interleaved => [start + 2 * i, start + 2 * i + 1],
                };
                let at = position as usize * pairs + i;
                pair(places, f64::from(rope.cos[at]), f64::from(rope.sin[at]));
            }
        }
    }
}

/// (y, rstd) of the RMS norm over rows of d = factor.len() of z; `factor` is the weight, or 1 + the
/// weight.
pub fn rms_norm(z: &[f64], factor: &[f64], eps: f64) -> (Vec<f64>, Vec<f64>) {
    let d = factor.len();
    let (mut y, mut rstds) = (Vec::new(), Vec::new());
    for row in z.chunks_exact(d) {
        let mean_square = row.iter().map(|v| v * v).sum::<f64>() / d as f64;
        let rstd = 1.0 / (mean_square + eps).sqrt();
        y.extend(row.iter().zip(factor).map(|(v, f)| v * rstd * f));
        rstds.push(rstd);
    }
    (y, rstds)
}

/// Gradients (d_z, d_factor) of [`rms_norm`]; that of the weight is that of the factor.
pub fn rms_norm_backward(
    z: &[f64],
    factor: &[f64],
    rstd: &[f64],
    d_y: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let d = factor.len();
    let mut d_z = vec![0.0; z.len()];
    let mut d_factor = vec![0.0; d];
    for (row, &rstd) in rstd.iter().enumerate() {
        let normal = |j: usize| z[row * d + j] * rstd;
        let g = |j: usize| d_y[row * d + j] * factor[j];
        let mean = (0..d).map(|j| g(j) * normal(j)).sum::<f64>() / d as f64;
        for j in 0..d {
            d_z[row * d + j] = rstd * (g(j) - normal(j) * mean);
            d_factor[j] += d_y[row * d + j] * normal(j);
        }
    }
    (d_z, d_factor)
}

/// f(gate) up of one element.
pub fn gated(kind: Activation, gate: f64, up: f64) -> f64 {
    activation(kind, gate) * up
}

/// Gradients (d_gate, d_up) of [`gated`].
pub fn gated_backward(kind: Activation, gate: f64, up: f64, d_y: f64) -> (f64, f64) {
    let d_gate = activation_derivative(kind, gate) * up * d_y;
    (d_gate, activation(kind, gate) * d_y)
}
