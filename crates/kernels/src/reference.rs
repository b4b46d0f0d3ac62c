//! The definition of every operation in `f64`: slow, plain, one thread. What the kernels are tested
//! against.
//!
//! Gradients are written from the formulas, not from the kernels, and are themselves checked
//! against finite differences.

mod decoder;
mod disentangled;
mod integers;

use crate::dropout::{Dropout, Mask};
use crate::{Activation, AdamW, AttentionMask};
pub use decoder::{gated, gated_backward, rms_norm, rms_norm_backward, rope, rope_backward};
pub use disentangled::{
    Disentangled, DisentangledGradients, disentangled_attention, disentangled_attention_backward,
};
pub use integers::{IntegerWeight, Quantised, int8_weight, integer_operands, quantise};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// `c[m,n] = start + alpha * a[m,k] · b[n,k]ᵀ + bias`, all row-major; `start` is c where it
/// accumulates, else zeros.
pub fn gemm(
    [m, n, k]: [usize; 3],
    a: &[f64],
    b: &[f64],
    alpha: f64,
    bias: Option<&[f64]>,
    start: &[f64],
) -> Vec<f64> {
    let mut c = start.to_vec();
    for i in 0..m {
        for j in 0..n {
            let dot: f64 = (0..k).map(|kk| a[i * k + kk] * b[j * k + kk]).sum();
            c[i * n + j] += alpha * dot + bias.map_or(0.0, |bias| bias[j]);
        }
    }
    c
}

/// The row-major transpose of x [rows, cols].
pub fn transpose(x: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    assert_eq!(x.len(), rows * cols);
    (0..rows * cols)
        .map(|i| x[i % rows.max(1) * cols + i / rows.max(1)])
        .collect()
}

/// Gradients of a and b for c = alpha * a · bᵀ: (d_c · b, d_cᵀ · a), each times alpha.
pub fn gemm_backward(
    [m, n, k]: [usize; 3],
    a: &[f64],
    b: &[f64],
    alpha: f64,
    d_c: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (a_t, b_t) = (transpose(a, m, k), transpose(b, n, k));
    let d_c_t = transpose(d_c, m, n);
    let d_a = gemm([m, k, n], d_c, &b_t, alpha, None, &vec![0.0; m * k]);
    let d_b = gemm([n, k, m], &d_c_t, &a_t, alpha, None, &vec![0.0; n * k]);
    (d_a, d_b)
}

/// The error function by its series with positive terms; 1 beyond 6, where it differs by less than
/// 1e-16.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() > 6.0 {
        return x.signum();
    }
    // erf x = 2/√π e^(-x²) Σ 2^n x^(2n+1) / (1 · 3 · ... · (2n+1)).
    let mut term = x;
    let mut sum = x;
    let mut n = 0.0;
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

/// f(x).
pub fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Gelu => x * 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)),
        Activation::GeluTanh => 0.5 * x * (1.0 + gelu_inner(x).tanh()),
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

fn gelu_inner(x: f64) -> f64 {
    (2.0 / PI).sqrt() * (x + 0.044_715 * x.powi(3))
}

/// f'(x).
pub fn activation_derivative(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Gelu => {
            let density = (-x * x / 2.0).exp() / (2.0 * PI).sqrt();
            0.5 * (1.0 + erf(x * FRAC_1_SQRT_2)) + x * density
        }
        Activation::GeluTanh => {
            let t = gelu_inner(x).tanh();
            let slope = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * slope
        }
        Activation::Relu => f64::from(x > 0.0),
        Activation::Silu => {
            let y = 1.0 / (1.0 + (-x).exp());
            y * (1.0 + x * (1.0 - y))
        }
        Activation::Tanh => 1.0 - x.tanh().powi(2),
    }
}

/// The factor, 0 or 1 / (1 - p), of the element of an index.
pub fn dropout_factor(d: Dropout, index: u64) -> f64 {
    f64::from(Mask::new(d).factor(index))
}

/// What [`layer_norm`] returns.
pub struct LayerNorm {
    /// dropout(x) + residual.
    pub z: Vec<f64>,
    /// The result.
    pub y: Vec<f64>,
    /// Mean of each row.
    pub mean: Vec<f64>,
    /// 1 / √(variance + eps) of each row.
    pub rstd: Vec<f64>,
}

/// Layer norm over rows of d = weight.len() of z.
pub fn layer_norm(z: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> LayerNorm {
    let d = weight.len();
    let mut result = LayerNorm {
        z: z.to_vec(),
        y: Vec::new(),
        mean: Vec::new(),
        rstd: Vec::new(),
    };
    for row in z.chunks_exact(d) {
        let mean = row.iter().sum::<f64>() / d as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / d as f64;
        let rstd = 1.0 / (variance + eps).sqrt();
        for (j, v) in row.iter().enumerate() {
            result.y.push((v - mean) * rstd * weight[j] + bias[j]);
        }
        result.mean.push(mean);
        result.rstd.push(rstd);
    }
    result
}

/// Gradients (d_z, d_weight, d_bias) of [`layer_norm`].
pub fn layer_norm_backward(
    norm: &LayerNorm,
    weight: &[f64],
    d_y: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let d = weight.len();
    let mut d_z = vec![0.0; norm.z.len()];
    let (mut d_weight, mut d_bias) = (vec![0.0; d], vec![0.0; d]);
    for row in 0..norm.mean.len() {
        let normal = |j: usize| (norm.z[row * d + j] - norm.mean[row]) * norm.rstd[row];
        let g = |j: usize| d_y[row * d + j] * weight[j];
        let mean_g = (0..d).map(g).sum::<f64>() / d as f64;
        let mean_product = (0..d).map(|j| g(j) * normal(j)).sum::<f64>() / d as f64;
        for j in 0..d {
            d_z[row * d + j] = norm.rstd[row] * (g(j) - mean_g - normal(j) * mean_product);
            d_weight[j] += d_y[row * d + j] * normal(j);
            d_bias[j] += d_y[row * d + j];
        }
    }
    (d_z, d_weight, d_bias)
}

/// The sums of the columns of x [n, cols].
pub fn column_sum(x: &[f64], cols: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cols];
    for (i, v) in x.iter().enumerate() {
        sums[i % cols] += v;
    }
    sums
}

/// The rows of a table [rows, d] named by ids.
pub fn embedding(table: &[f64], d: usize, ids: &[u32]) -> Vec<f64> {
    ids.iter()
        .flat_map(|&id| table[id as usize * d..][..d].to_vec())
        .collect()
}

/// Gradient of the table [rows, d]: rows of d_out summed by id.
pub fn embedding_backward(rows: usize, d: usize, ids: &[u32], d_out: &[f64]) -> Vec<f64> {
    let mut d_table = vec![0.0; rows * d];
    for (i, &id) in ids.iter().enumerate() {
        for j in 0..d {
            d_table[id as usize * d + j] += d_out[i * d + j];
        }
    }
    d_table
}

/// Operands of [`attention`]; the shapes are those of [`crate::AttentionShape`].
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Heads, offsets, scale and dropout.
    pub shape: crate::AttentionShape<'a>,
    /// Queries.
    pub q: &'a [f64],
    /// Keys.
    pub k: &'a [f64],
    /// Values.
    pub v: &'a [f64],
}

impl Attention<'_> {
    /// Calls `row(head, query row, the first key of its sequence, the keys it attends to)` for each
    /// row of each head.
    fn for_each_row(&self, mut row: impl FnMut(usize, usize, usize, std::ops::Range<usize>)) {
        let shape = &self.shape;
        for b in 0..shape.q_offsets.len().saturating_sub(1) {
            for h in 0..shape.num_heads {
                for i in shape.q_offsets[b]..shape.q_offsets[b + 1] {
                    let (first, end) = (shape.kv_offsets[b], shape.kv_offsets[b + 1]);
                    // The last query's key is the last key.
                    let own = (i + end + 1).wrapping_sub(shape.q_offsets[b + 1]);
                    let keys = match shape.mask {
                        AttentionMask::Full => first..end,
                        AttentionMask::Causal { window: None } => first..own,
                        AttentionMask::Causal { window: Some(keys) } => {
                            own.saturating_sub(keys).max(first)..own
                        }
                        AttentionMask::Near { reach } => {
                            let own = own - 1;
                            own.saturating_sub(reach).max(first)..(own + reach + 1).min(end)
                        }
                    };
                    row(h, i, first, keys);
                }
            }
        }
    }

    /// Position of element c of head h of a row of queries.
    fn at(&self, row: usize, h: usize, c: usize) -> usize {
        (row * self.shape.num_heads + h) * self.shape.head_dim + c
    }

    /// Position of element c, for query head h, of a row of keys.
    fn at_kv(&self, row: usize, h: usize, c: usize) -> usize {
        let heads = self.shape.num_key_value_heads;
        let of_kv = h * heads / self.shape.num_heads;
        (row * heads + of_kv) * self.shape.head_dim + c
    }

    /// What a row's keys are to it.
    fn row(&self, h: usize, i: usize, first: usize, keys: std::ops::Range<usize>) -> AttentionRow {
        let d = self.shape.head_dim;
        let scores: Vec<(f64, f64)> = (keys.clone())
            .map(|j| {
                let dot = (0..d).map(|c| self.q[self.at(i, h, c)] * self.k[self.at_kv(j, h, c)]);
                score(&self.shape, dot.sum::<f64>())
            })
            .collect();
        let max = (scores.iter()).fold(f64::NEG_INFINITY, |max, (score, _)| max.max(*score));
        let sum: f64 = scores.iter().map(|(score, _)| (score - max).exp()).sum();
        let row = ((i * self.shape.num_heads + h) as u64) << 32;
        AttentionRow {
            p: scores.iter().map(|(x, _)| (x - max).exp() / sum).collect(),
            slopes: scores.iter().map(|(_, slope)| *slope).collect(),
            factors: keys
                .map(|j| row + (j - first) as u64)
                .map(|at| (self.shape.dropout).map_or(1.0, |dropout| dropout_factor(dropout, at)))
                .collect(),
            lse: max + sum.ln(),
        }
    }
}

/// Of each key of a row its probability, the slope of its score over the product of query and key,
/// and its dropout factor.
struct AttentionRow {
    p: Vec<f64>,
    slopes: Vec<f64>,
    factors: Vec<f64>,
    /// The logarithm of the sum of exponentials.
    lse: f64,
}

/// The score of a product of query and key, and its slope.
fn score(shape: &crate::AttentionShape, product: f64) -> (f64, f64) {
    let scale = f64::from(shape.scale);
    match shape.soft_cap.map(f64::from) {
        None => (scale * product, scale),
        Some(cap) => {
            let t = (scale * product / cap).tanh();
            (cap * t, scale * (1.0 - t * t))
        }
    }
}

/// (out, lse) of attention.
pub fn attention(x: &Attention) -> (Vec<f64>, Vec<f64>) {
    let mut out = vec![0.0; x.q.len()];
    let d = x.shape.head_dim;
    let mut lse = vec![0.0; x.q.len() / d.max(1)];
    x.for_each_row(|h, i, first, keys| {
        let row = x.row(h, i, first, keys.clone());
        lse[i * x.shape.num_heads + h] = row.lse;
        for (n, j) in keys.enumerate() {
            for c in 0..d {
                out[x.at(i, h, c)] += row.p[n] * row.factors[n] * x.v[x.at_kv(j, h, c)];
            }
        }
    });
    (out, lse)
}

/// Gradients (d_q, d_k, d_v) of attention.
pub fn attention_backward(x: &Attention, d_out: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let d = x.shape.head_dim;
    let (mut d_q, mut d_k, mut d_v) = (
        vec![0.0; x.q.len()],
        vec![0.0; x.k.len()],
        vec![0.0; x.v.len()],
    );
    x.for_each_row(|h, i, first, keys| {
        let row = x.row(h, i, first, keys.clone());
        let d_p: Vec<f64> = (keys.clone())
            .zip(&row.factors)
            .map(|(j, factor)| {
                let dot = (0..d).map(|c| d_out[x.at(i, h, c)] * x.v[x.at_kv(j, h, c)]);
                dot.sum::<f64>() * factor
            })
            .collect();
        let delta: f64 = row.p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
        for (n, j) in keys.enumerate() {
            let d_score = row.p[n] * (d_p[n] - delta) * row.slopes[n];
            for c in 0..d {
                d_v[x.at_kv(j, h, c)] += row.p[n] * row.factors[n] * d_out[x.at(i, h, c)];
                d_q[x.at(i, h, c)] += d_score * x.k[x.at_kv(j, h, c)];
                d_k[x.at_kv(j, h, c)] += d_score * x.q[x.at(i, h, c)];
            }
        }
    });
    (d_q, d_k, d_v)
}

/// (losses, d_logits) of cross entropy over rows of c; label -100 does not count.
pub fn cross_entropy(
    logits: &[f64],
    c: usize,
    labels: &[i64],
    scale: f64,
    smoothing: f64,
) -> (Vec<f64>, Vec<f64>) {
    let mut losses = Vec::new();
    let mut d_logits = vec![0.0; logits.len()];
    for (i, &label) in labels.iter().enumerate() {
        if label == -100 {
            losses.push(0.0);
            continue;
        }
        let row = &logits[i * c..][..c];
        let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|x| (x - max).exp()).sum();
        let mut loss = 0.0;
        for (j, x) in row.iter().enumerate() {
            let onehot = f64::from(j as i64 == label);
            let target = (1.0 - smoothing) * onehot + smoothing / c as f64;
            loss += target * (sum.ln() + max - x);
            d_logits[i * c + j] = ((x - max).exp() / sum - target) * scale;
        }
        losses.push(loss);
    }
    (losses, d_logits)
}

/// (loss, gradient) of the squared error of one element.
pub fn mse(x: f64, target: f64, scale: f64) -> (f64, f64) {
    ((x - target).powi(2), 2.0 * (x - target) * scale)
}

/// (loss, gradient) of the binary cross entropy of one logit.
pub fn bce_with_logits(x: f64, target: f64, scale: f64) -> (f64, f64) {
    let loss = x.max(0.0) - x * target + (-x.abs()).exp().ln_1p();
    (loss, (1.0 / (1.0 + (-x).exp()) - target) * scale)
}

/// One AdamW step of one element: the new (param, m, v).
pub fn adamw(adamw: &AdamW, param: f64, grad: f64, m: f64, v: f64) -> (f64, f64, f64) {
    let step = adamw.step as f64;
    let param = param * (1.0 - adamw.lr * adamw.weight_decay);
    let m = adamw.beta1 * m + (1.0 - adamw.beta1) * grad;
    let v = adamw.beta2 * v + (1.0 - adamw.beta2) * grad * grad;
    let m_hat = m / (1.0 - adamw.beta1.powf(step));
    let v_hat = v / (1.0 - adamw.beta2.powf(step));
    (param - adamw.lr * m_hat / (v_hat.sqrt() + adamw.eps), m, v)
}
