//! Layer norm with the residual sum and the dropout before it, forward and backward.

use crate::dropout::{Dropout, Mask};
use crate::element::Element;
use crate::elementwise::{add_in_place, add_row_sums};
use crate::isa::Isa;
use crate::parallel::rows_per_task;
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use crate::tasks::each_task;
use rayon::prelude::*;

/// Independent sums over a row: one alone would wait for the addition before it.
pub(crate) const CHAINS: usize = 4;

/// Arguments of [`layer_norm_forward`]. Shapes: x, residual, y [n, d]; weight, bias `[d]`; mean,
/// rstd `[n]`.
pub struct LayerNormForward<'a, E> {
    /// The input; on return z = dropout(x) + residual, which the backward needs.
    pub x: &'a mut [E],
    /// Added after the dropout.
    pub residual: Option<&'a [E]>,
    /// Applied to x; an element's index is its position in x.
    pub dropout: Option<Dropout>,
    /// The norm's weight.
    pub weight: &'a [f32],
    /// The norm's bias.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
    /// The result.
    pub y: &'a mut [E],
    /// Mean of each row of z, saved for the backward.
    pub mean: &'a mut [f32],
    /// 1 / √(variance + eps) of each row of z, saved for the backward.
    pub rstd: &'a mut [f32],
}

/// y = (z - mean) rstd weight + bias over each row of z = dropout(x) + residual; the variance is
/// the biased one.
///
/// Panics if a length disagrees.
pub fn layer_norm_forward<E: Element>(isa: Isa, args: LayerNormForward<E>) {
    let d = args.weight.len();
    let n = args.mean.len();
    assert_eq!(args.bias.len(), d);
    assert_eq!(args.rstd.len(), n);
    assert_eq!(args.x.len(), n * d);
    assert_eq!(args.y.len(), n * d);
    if let Some(residual) = args.residual {
        assert_eq!(residual.len(), n * d);
    }
    if n == 0 || d == 0 {
        return;
    }
    let (residual, weight, bias, eps) = (args.residual, args.weight, args.bias, args.eps);
    let mask = args.dropout.filter(|d| d.p > 0.0).map(Mask::new);
    let rows = rows_per_task(d);
    let task = |index: usize, x: &mut [E], y: &mut [E], mean: &mut [f32], rstd: &mut [f32]| {
        let first = index * rows * d;
        let op = ForwardRows {
            residual: residual.map(|r| &r[first..first + x.len()]),
            x,
            mask,
            first,
            weight,
            bias,
            eps,
            y,
            mean,
            rstd,
        };
        dispatch(isa, op);
    };
    if n <= rows {
        task(0, args.x, args.y, args.mean, args.rstd);
    } else {
        (args.x.par_chunks_mut(rows * d))
            .zip(args.y.par_chunks_mut(rows * d))
            .zip(args.mean.par_chunks_mut(rows))
            .zip(args.rstd.par_chunks_mut(rows))
            .enumerate()
            .for_each(each_task(|(index, (((x, y), mean), rstd))| {
                task(index, x, y, mean, rstd)
            }));
    }
}

struct ForwardRows<'a, E> {
    x: &'a mut [E],
    residual: Option<&'a [E]>,
    mask: Option<Mask>,
    first: usize,
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
    y: &'a mut [E],
    mean: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl<E: Element> SimdOp for ForwardRows<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.weight.len();
        for row in 0..self.mean.len() {
            let z = &mut self.x[row * d..][..d];
            if let Some(mask) = &self.mask {
                mask.apply(s, (self.first + row * d) as u64, z);
            }
            if let Some(residual) = self.residual {
                add_in_place(s, z, &residual[row * d..][..d]);
            }
            let y = &mut self.y[row * d..][..d];
            (self.mean[row], self.rstd[row]) = normalize(s, z, self.weight, self.bias, self.eps, y);
        }
    }
}

/// One row's y; returns its mean and rstd.
#[inline(always)]
fn normalize<S: Simd, E: Element>(
    s: S,
    z: &[E],
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    y: &mut [E],
) -> (f32, f32) {
    let d = z.len();
    let row_mean = row_sum(s, z) / d as f32;
    // Two passes: the mean square minus the squared mean would cancel.
    let variance = row_square_deviation(s, z, row_mean) / d as f32;
    let row_rstd = 1.0 / (variance + eps).sqrt();
    affine(s, z, [row_mean, row_rstd], [weight, bias], y);
    (row_mean, row_rstd)
}

/// One row's y = (z - mean) rstd weight + bias.
#[inline(always)]
fn affine<S: Simd, E: Element>(
    s: S,
    z: &[E],
    [mean, rstd]: [f32; 2],
    [weight, bias]: [&[f32]; 2],
    y: &mut [E],
) {
    let (mean, rstd, d) = (s.splat(mean), s.splat(rstd), z.len());
    let mut at = 0;
    while at < d {
        let n = lanes_at::<S>(at, d);
        let normal = s.mul(s.sub(load_at(s, z, at, n), mean), rstd);
        let value = s.mul_add(normal, load_at(s, weight, at, n), load_at(s, bias, at, n));
        store_at(s, y, at, value, n);
        at += S::LANES;
    }
}

/// y once more, with the bits that the forward gave it, from z, mean and rstd. Shapes: z, y [n, d];
/// `stats` mean and rstd `[n]`; `params` weight and bias `[d]`. Panics if a length disagrees.
pub fn layer_norm_recompute<E: Element>(
    isa: Isa,
    z: &[E],
    stats: [&[f32]; 2],
    params: [&[f32]; 2],
    y: &mut [E],
) {
    let ([mean, rstd], [weight, bias]) = (stats, params);
    let (n, d) = (mean.len(), weight.len());
    assert_eq!(rstd.len(), n);
    assert_eq!(bias.len(), d);
    assert_eq!(z.len(), n * d);
    assert_eq!(y.len(), n * d);
    if n == 0 || d == 0 {
        return;
    }
    crate::parallel::for_each_chunk(y, rows_per_task(d) * d, |start, y| {
        let rows = start / d..(start + y.len()) / d;
        let op = Recompute {
            z: &z[start..start + y.len()],
            stats: [&mean[rows.clone()], &rstd[rows]],
            params,
            y,
        };
        dispatch(isa, op);
    });
}

struct Recompute<'a, E> {
    z: &'a [E],
    stats: [&'a [f32]; 2],
    params: [&'a [f32]; 2],
    y: &'a mut [E],
}

impl<E: Element> SimdOp for Recompute<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ([mean, rstd], d) = (self.stats, self.params[0].len());
        let rows = self.z.chunks_exact(d).zip(self.y.chunks_exact_mut(d));
        for (row, (z, y)) in rows.enumerate() {
            affine(s, z, [mean[row], rstd[row]], self.params, y);
        }
    }
}

/// Arguments of [`layer_norm`]. Shapes: z, y [n, d]; weight, bias `[d]`; mean, rstd `[n]`.
pub struct LayerNorm<'a, E> {
    /// The input, left as it is.
    pub z: &'a [E],
    /// The norm's weight.
    pub weight: &'a [f32],
    /// The norm's bias.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
    /// The result.
    pub y: &'a mut [E],
    /// Mean of each row, saved for the backward.
    pub mean: &'a mut [f32],
    /// 1 / √(variance + eps) of each row, saved for the backward.
    pub rstd: &'a mut [f32],
}

/// As [`layer_norm_forward`] without dropout and residual, for an input that others still read.
///
/// Panics if a length disagrees.
pub fn layer_norm<E: Element>(isa: Isa, args: LayerNorm<E>) {
    let (n, d) = (args.mean.len(), args.weight.len());
    assert_eq!(args.bias.len(), d);
    assert_eq!(args.rstd.len(), n);
    assert_eq!(args.z.len(), n * d);
    assert_eq!(args.y.len(), n * d);
    if n == 0 || d == 0 {
        return;
    }
    let (weight, bias, eps) = (args.weight, args.bias, args.eps);
    let rows = rows_per_task(d);
    (args.z.par_chunks(rows * d))
        .zip(args.y.par_chunks_mut(rows * d))
        .zip(args.mean.par_chunks_mut(rows))
        .zip(args.rstd.par_chunks_mut(rows))
        .for_each(each_task(|(((z, y), mean), rstd)| {
            let part = LayerNorm {
                z,
                weight,
                bias,
                eps,
                y,
                mean,
                rstd,
            };
            dispatch(isa, part);
        }));
}

impl<E: Element> SimdOp for LayerNorm<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.weight.len();
        for row in 0..self.mean.len() {
            let (z, y) = (&self.z[row * d..][..d], &mut self.y[row * d..][..d]);
            (self.mean[row], self.rstd[row]) = normalize(s, z, self.weight, self.bias, self.eps, y);
        }
    }
}

#[inline(always)]
fn row_sum<S: Simd, E: Element>(s: S, x: &[E]) -> f32 {
    let mut sums = [s.splat(0.0); CHAINS];
    let run = CHAINS * S::LANES;
    let mut at = 0;
    while at + run <= x.len() {
        for (c, sum) in sums.iter_mut().enumerate() {
            *sum = s.add(*sum, load_at(s, x, at + c * S::LANES, S::LANES));
        }
        at += run;
    }
    while at < x.len() {
        sums[0] = s.add(sums[0], load_at(s, x, at, lanes_at::<S>(at, x.len())));
        at += S::LANES;
    }
    s.reduce_add(joined(s, sums))
}

/// The sum of the chains' sums.
#[inline(always)]
pub(crate) fn joined<S: Simd>(s: S, [a, b, c, d]: [S::V; CHAINS]) -> S::V {
    s.add(s.add(a, b), s.add(c, d))
}

#[inline(always)]
fn row_square_deviation<S: Simd, E: Element>(s: S, x: &[E], mean: f32) -> f32 {
    let center = s.splat(mean);
    let mut sums = [s.splat(0.0); CHAINS];
    let run = CHAINS * S::LANES;
    let whole = x.len() / S::LANES * S::LANES;
    let mut at = 0;
    while at + run <= whole {
        for (c, sum) in sums.iter_mut().enumerate() {
            let deviation = s.sub(load_at(s, x, at + c * S::LANES, S::LANES), center);
            *sum = s.mul_add(deviation, deviation, *sum);
        }
        at += run;
    }
    while at < whole {
        let deviation = s.sub(load_at(s, x, at, S::LANES), center);
        sums[0] = s.mul_add(deviation, deviation, sums[0]);
        at += S::LANES;
    }
    // The lanes behind the end would count as -mean: the rest is summed one by one.
    let mut rest = 0.0;
    for &v in &x[whole..] {
        rest += (v.widen() - mean) * (v.widen() - mean);
    }
    s.reduce_add(joined(s, sums)) + rest
}

/// d_z in place of d_y: d_z = rstd (g - mean(g) - n mean(g n)) with g = d_y weight and n = (z -
/// mean) rstd.
///
/// Shapes: z, d_y [n, d]; mean, rstd `[n]`; weight `[d]`. Panics if a length disagrees. The
/// gradient of the residual is d_z itself; that of x is d_z after the same dropout.
pub fn layer_norm_backward<E: Element>(
    isa: Isa,
    z: &[E],
    mean: &[f32],
    rstd: &[f32],
    weight: &[f32],
    d_y: &mut [E],
) {
    let (n, d) = (mean.len(), weight.len());
    assert_eq!(rstd.len(), n);
    assert_eq!(z.len(), n * d);
    assert_eq!(d_y.len(), n * d);
    if n == 0 || d == 0 {
        return;
    }
    let rows = rows_per_task(d);
    crate::parallel::for_each_chunk(d_y, rows * d, |start, d_y| {
        let first = start / d;
        let count = d_y.len() / d;
        let op = BackwardRows {
            z: &z[start..start + d_y.len()],
            mean: &mean[first..first + count],
            rstd: &rstd[first..first + count],
            weight,
            d_y,
        };
        dispatch(isa, op);
    });
}

struct BackwardRows<'a, E> {
    z: &'a [E],
    mean: &'a [f32],
    rstd: &'a [f32],
    weight: &'a [f32],
    d_y: &'a mut [E],
}

impl<E: Element> SimdOp for BackwardRows<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.weight.len();
        for row in 0..self.mean.len() {
            let z = &self.z[row * d..][..d];
            let d_y = &mut self.d_y[row * d..][..d];
            let (mean, rstd) = (s.splat(self.mean[row]), s.splat(self.rstd[row]));
            let mut sum = s.splat(0.0);
            let mut product = s.splat(0.0);
            let mut at = 0;
            while at < d {
                let n = lanes_at::<S>(at, d);
                // Behind the end g is 0, and so are both terms.
                let g = s.mul(load_at(s, d_y, at, n), load_at(s, self.weight, at, n));
                let normal = s.mul(s.sub(load_at(s, z, at, n), mean), rstd);
                sum = s.add(sum, g);
                product = s.mul_add(g, normal, product);
                at += S::LANES;
            }
            let mean_g = s.splat(s.reduce_add(sum) / d as f32);
            let mean_product = s.splat(s.reduce_add(product) / d as f32);
            let mut at = 0;
            while at < d {
                let n = lanes_at::<S>(at, d);
                let g = s.mul(load_at(s, d_y, at, n), load_at(s, self.weight, at, n));
                let normal = s.mul(s.sub(load_at(s, z, at, n), mean), rstd);
                let centered = s.neg_mul_add(normal, mean_product, s.sub(g, mean_g));
                store_at(s, d_y, at, s.mul(rstd, centered), n);
                at += S::LANES;
            }
        }
    }
}

/// d_weight += Σ d_y (z - mean) rstd and d_bias += Σ d_y over the rows, in fixed chunks, in order.
///
/// `d_y` is the upstream gradient, untouched by [`layer_norm_backward`]. Panics if a length
/// disagrees.
pub fn layer_norm_param_grads<E: Element>(
    isa: Isa,
    z: &[E],
    mean: &[f32],
    rstd: &[f32],
    d_y: &[E],
    [d_weight, d_bias]: [&mut [f32]; 2],
) {
    let (n, d) = (mean.len(), d_weight.len());
    assert_eq!(d_bias.len(), d);
    assert_eq!(rstd.len(), n);
    assert_eq!(z.len(), n * d);
    assert_eq!(d_y.len(), n * d);
    if d == 0 {
        return;
    }
    add_row_sums(isa, n, [d_weight, d_bias], |rows, [d_weight, d_bias]| {
        let op = ParamGrads {
            z: &z[rows.start * d..rows.end * d],
            mean: &mean[rows.clone()],
            rstd: &rstd[rows.clone()],
            d_y: &d_y[rows.start * d..rows.end * d],
            d_weight,
            d_bias,
        };
        dispatch(isa, op);
    });
}

struct ParamGrads<'a, E> {
    z: &'a [E],
    mean: &'a [f32],
    rstd: &'a [f32],
    d_y: &'a [E],
    d_weight: &'a mut [f32],
    d_bias: &'a mut [f32],
}

impl<E: Element> SimdOp for ParamGrads<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.d_weight.len();
        for row in 0..self.mean.len() {
            let z = &self.z[row * d..][..d];
            let d_y = &self.d_y[row * d..][..d];
            let (mean, rstd) = (s.splat(self.mean[row]), s.splat(self.rstd[row]));
            let mut at = 0;
            while at < d {
                let n = lanes_at::<S>(at, d);
                let g = load_at(s, d_y, at, n);
                let normal = s.mul(s.sub(load_at(s, z, at, n), mean), rstd);
                let weight = s.mul_add(g, normal, load_at(s, self.d_weight, at, n));
                store_at(s, self.d_weight, at, weight, n);
                let bias = s.add(g, load_at(s, self.d_bias, at, n));
                store_at(s, self.d_bias, at, bias, n);
                at += S::LANES;
            }
        }
    }
}
