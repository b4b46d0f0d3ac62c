//! RMS norm with the residual sum and the dropout before it, forward and backward. Statistics are
//! f32 whatever the storage.

use crate::dropout::{Dropout, Mask};
use crate::element::Element;
use crate::elementwise::{add_in_place, add_row_sums};
use crate::isa::Isa;
use crate::norm::{CHAINS, joined};
use crate::parallel::{for_each_chunk, rows_per_task};
use crate::simd::{Simd, SimdOp, dispatch, lanes_at, load_at, store_at};
use crate::tasks::each_task;
use rayon::prelude::*;

/// What the norm multiplies by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmsFactor {
    /// The weight.
    Weight,
    /// 1 + the weight, as in Gemma, summed in f32.
    OnePlusWeight,
}

/// An RMS norm over rows of `weight.len()` elements: y = z rstd factor, where rstd is
/// 1 / √(mean(z²) + eps).
///
/// A stored bf16 is widened before and y rounded once, as in Gemma and OLMo 2; transformers'
/// `LlamaRMSNorm` rounds z rstd too. Source: Zhang & Sennrich 2019, equation 4; transformers 5.24,
/// `LlamaRMSNorm` and `GemmaRMSNorm`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// The weight `[d]`.
    pub weight: &'a [f32],
    /// What it means.
    pub factor: RmsFactor,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm<'_> {
    /// Elements of a row. Panics if `z` elements are not that many rows.
    fn check(&self, z: usize, rows: usize) -> usize {
        let d = self.weight.len();
        assert_eq!(z, rows * d, "{rows} rows of {d}");
        d
    }

    /// What is added to the weight.
    fn offset(&self) -> f32 {
        match self.factor {
            RmsFactor::Weight => 0.0,
            RmsFactor::OnePlusWeight => 1.0,
        }
    }
}

/// The sum that a norm is of: z = dropout(x) + residual. Shapes: x, residual [n, d].
pub struct ResidualSum<'a, E> {
    /// The input; on return z, which the backward needs.
    pub x: &'a mut [E],
    /// Added after the dropout, if there is one.
    pub residual: Option<&'a [E]>,
    /// Applied to x; an element's index is its position in x.
    pub dropout: Option<Dropout>,
}

/// y and rstd of z, which stays as it is. Shapes: z, y [n, d]; rstd `[n]`, saved for the backward.
///
/// Panics if a length disagrees.
pub fn rms_norm<E: Element>(isa: Isa, norm: &RmsNorm, z: &[E], y: &mut [E], rstd: &mut [f32]) {
    let d = norm.check(z.len(), rstd.len());
    assert_eq!(y.len(), z.len());
    if d == 0 {
        return;
    }
    let rows = rows_per_task(d);
    (z.par_chunks(rows * d))
        .zip(y.par_chunks_mut(rows * d))
        .zip(rstd.par_chunks_mut(rows))
        .for_each(each_task(|((z, y), rstd)| {
            dispatch(isa, Rows { norm, z, y, rstd })
        }));
}

/// [`rms_norm`] of a sum, each row of which is normalized while it is in the cache; the same bits
/// as one after the other.
///
/// Panics if a length disagrees.
pub fn rms_norm_of_sum<E: Element>(
    isa: Isa,
    norm: &RmsNorm,
    sum: ResidualSum<E>,
    y: &mut [E],
    rstd: &mut [f32],
) {
    let d = norm.check(sum.x.len(), rstd.len());
    if let Some(residual) = sum.residual {
        assert_eq!(residual.len(), sum.x.len());
    }
    assert_eq!(y.len(), sum.x.len());
    if d == 0 {
        return;
    }
    let mask = sum.dropout.filter(|d| d.p > 0.0).map(Mask::new);
    let rows = rows_per_task(d);
    (sum.x.par_chunks_mut(rows * d))
        .zip(y.par_chunks_mut(rows * d))
        .zip(rstd.par_chunks_mut(rows))
        .enumerate()
        .for_each(each_task(|(task, ((x, y), rstd))| {
            let x: &mut [E] = x;
            let first = task * rows * d;
            let op = SumRows {
                norm,
                first,
                mask,
                residual: sum.residual.map(|r| &r[first..first + x.len()]),
                x,
                y,
                rstd,
            };
            dispatch(isa, op);
        }));
}

struct Rows<'a, E> {
    norm: &'a RmsNorm<'a>,
    z: &'a [E],
    y: &'a mut [E],
    rstd: &'a mut [f32],
}

impl<E: Element> SimdOp for Rows<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.norm.weight.len();
        let rows = self.z.chunks_exact(d).zip(self.y.chunks_exact_mut(d));
        for ((z, y), rstd) in rows.zip(self.rstd) {
            *rstd = row_rstd(s, z, self.norm.eps);
            multiply(s, self.norm, z, *rstd, y);
        }
    }
}

struct SumRows<'a, E> {
    norm: &'a RmsNorm<'a>,
    first: usize,
    mask: Option<Mask>,
    x: &'a mut [E],
    residual: Option<&'a [E]>,
    y: &'a mut [E],
    rstd: &'a mut [f32],
}

impl<E: Element> SimdOp for SumRows<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.norm.weight.len();
        for (row, rstd) in self.rstd.iter_mut().enumerate() {
            let (at, z) = (row * d, &mut self.x[row * d..][..d]);
            if let Some(mask) = &self.mask {
                mask.apply(s, (self.first + at) as u64, z);
            }
            if let Some(residual) = self.residual {
                add_in_place(s, z, &residual[at..][..d]);
            }
            *rstd = row_rstd(s, z, self.norm.eps);
            multiply(s, self.norm, z, *rstd, &mut self.y[at..][..d]);
        }
    }
}

#[inline(always)]
fn row_rstd<S: Simd, E: Element>(s: S, z: &[E], eps: f32) -> f32 {
    let mut sums = [s.splat(0.0); CHAINS];
    let mut at = 0;
    while at < z.len() {
        for sum in &mut sums {
            // Behind the end the lanes are zero, and so are their squares.
            let at_lane = at.min(z.len());
            let v = load_at(s, z, at_lane, lanes_at::<S>(at_lane, z.len()));
            *sum = s.mul_add(v, v, *sum);
            at += S::LANES;
        }
    }
    1.0 / (s.reduce_add(joined(s, sums)) / z.len() as f32 + eps).sqrt()
}

/// One row's y = z rstd factor.
#[inline(always)]
fn multiply<S: Simd, E: Element>(s: S, norm: &RmsNorm, z: &[E], rstd: f32, y: &mut [E]) {
    let (rstd, offset) = (s.splat(rstd), s.splat(norm.offset()));
    let mut at = 0;
    while at < z.len() {
        let n = lanes_at::<S>(at, z.len());
        let factor = s.add(load_at(s, norm.weight, at, n), offset);
        let value = s.mul(s.mul(load_at(s, z, at, n), rstd), factor);
        store_at(s, y, at, value, n);
        at += S::LANES;
    }
}

/// y once more, with the bits that the forward gave it, from z and rstd. Shapes: z, y [n, d]; rstd
/// `[n]`. Panics if a length disagrees.
pub fn rms_norm_recompute<E: Element>(
    isa: Isa,
    norm: &RmsNorm,
    z: &[E],
    rstd: &[f32],
    y: &mut [E],
) {
    for_each_part(norm, z, rstd, y, |z, rstd, y| {
        dispatch(isa, Recompute { norm, z, rstd, y });
    });
}

/// Calls `part` with each part of the rows [n, d] that are written, and z and rstd of the same
/// rows. Panics if a length disagrees.
fn for_each_part<E: Element>(
    norm: &RmsNorm,
    z: &[E],
    rstd: &[f32],
    written: &mut [E],
    part: impl Fn(&[E], &[f32], &mut [E]) + Sync + Send,
) {
    let d = norm.check(z.len(), rstd.len());
    assert_eq!(written.len(), z.len());
    for_each_chunk(written, rows_per_task(d) * d.max(1), |start, written| {
        let end = start + written.len();
        part(&z[start..end], &rstd[start / d..end / d], written);
    });
}

struct Recompute<'a, E> {
    norm: &'a RmsNorm<'a>,
    z: &'a [E],
    rstd: &'a [f32],
    y: &'a mut [E],
}

impl<E: Element> SimdOp for Recompute<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.norm.weight.len();
        let rows = self.z.chunks_exact(d).zip(self.y.chunks_exact_mut(d));
        for ((z, y), rstd) in rows.zip(self.rstd) {
            multiply(s, self.norm, z, *rstd, y);
        }
    }
}

/// d_z in place of d_y: d_z = rstd (g - n mean(g n)) with g = d_y factor and n = z rstd.
///
/// Shapes: z, d_y [n, d]; rstd `[n]`. Panics if a length disagrees. The gradient of the residual is
/// d_z itself; that of x is d_z after the same dropout.
pub fn rms_norm_backward<E: Element>(
    isa: Isa,
    norm: &RmsNorm,
    z: &[E],
    rstd: &[f32],
    d_y: &mut [E],
) {
    for_each_part(norm, z, rstd, d_y, |z, rstd, d_y| {
        dispatch(isa, Backward { norm, z, rstd, d_y });
    });
}

struct Backward<'a, E> {
    norm: &'a RmsNorm<'a>,
    z: &'a [E],
    rstd: &'a [f32],
    d_y: &'a mut [E],
}

impl<E: Element> SimdOp for Backward<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (weight, d) = (self.norm.weight, self.norm.weight.len());
        let offset = s.splat(self.norm.offset());
        let rows = self.z.chunks_exact(d).zip(self.d_y.chunks_exact_mut(d));
        for ((z, d_y), &rstd) in rows.zip(self.rstd) {
            let product = gradient_dot(s, self.norm, z, d_y);
            // mean(g n) rstd, with the rstd of n taken out of the sum.
            let shrink = s.splat(product * rstd / d as f32 * rstd);
            let rstd = s.splat(rstd);
            let mut at = 0;
            while at < d {
                let n = lanes_at::<S>(at, d);
                let factor = s.add(load_at(s, weight, at, n), offset);
                let g = s.mul(load_at(s, d_y, at, n), factor);
                let centered = s.neg_mul_add(load_at(s, z, at, n), shrink, g);
                store_at(s, d_y, at, s.mul(rstd, centered), n);
                at += S::LANES;
            }
        }
    }
}

/// Σ d_y factor z of a row.
#[inline(always)]
fn gradient_dot<S: Simd, E: Element>(s: S, norm: &RmsNorm, z: &[E], d_y: &[E]) -> f32 {
    let offset = s.splat(norm.offset());
    let mut sums = [s.splat(0.0); CHAINS];
    let mut at = 0;
    while at < z.len() {
        for sum in &mut sums {
            // Behind the end z and d_y are zero.
            let at_lane = at.min(z.len());
            let n = lanes_at::<S>(at_lane, z.len());
            let factor = s.add(load_at(s, norm.weight, at_lane, n), offset);
            let g = s.mul(load_at(s, d_y, at_lane, n), factor);
            *sum = s.mul_add(g, load_at(s, z, at_lane, n), *sum);
            at += S::LANES;
        }
    }
    s.reduce_add(joined(s, sums))
}

/// d_weight += Σ d_y z rstd over the rows, in fixed chunks, in order; the same for either factor.
///
/// `d_y` is the upstream gradient, untouched by [`rms_norm_backward`]. Shapes: z, d_y [n, d]; rstd
/// `[n]`; d_weight `[d]`. Panics if a length disagrees.
pub fn rms_norm_weight_grad<E: Element>(
    isa: Isa,
    z: &[E],
    rstd: &[f32],
    d_y: &[E],
    d_weight: &mut [f32],
) {
    let (n, d) = (rstd.len(), d_weight.len());
    assert_eq!(z.len(), n * d);
    assert_eq!(d_y.len(), n * d);
    if d == 0 {
        return;
    }
    add_row_sums(isa, n, [d_weight], |rows, [d_weight]| {
        let op = WeightGrad {
            z: &z[rows.start * d..rows.end * d],
            d_y: &d_y[rows.start * d..rows.end * d],
            rstd: &rstd[rows],
            d_weight,
        };
        dispatch(isa, op);
    });
}

struct WeightGrad<'a, E> {
    z: &'a [E],
    d_y: &'a [E],
    rstd: &'a [f32],
    d_weight: &'a mut [f32],
}

impl<E: Element> SimdOp for WeightGrad<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.d_weight.len();
        let rows = self.z.chunks_exact(d).zip(self.d_y.chunks_exact(d));
        for ((z, d_y), &rstd) in rows.zip(self.rstd) {
            let rstd = s.splat(rstd);
            let mut at = 0;
            while at < d {
                let n = lanes_at::<S>(at, d);
                let normal = s.mul(load_at(s, z, at, n), rstd);
                let sum = load_at(s, self.d_weight, at, n);
                let sum = s.mul_add(load_at(s, d_y, at, n), normal, sum);
                store_at(s, self.d_weight, at, sum, n);
                at += S::LANES;
            }
        }
    }
}
