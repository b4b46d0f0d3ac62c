//! Rows of a tile: the softmax, and its gradient. In f32 scores come scaled and leave as f32; on
//! bf16 they come as the products left them, and what meets the next product leaves in bf16, in the
//! same walk.

use super::arithmetic::At;
use super::head::{MOST_ROWS, Run, Tile};
use crate::dropout::GROUP;
use crate::element::Element;
use crate::elementwise::scale_in_place;
use crate::loss::{exp_in_place, row_max};
use crate::math::{exp, exp2_for_bf16, tanh};
use crate::matrix::MatRef;
use crate::simd::{Simd, SimdOp, lanes_at, load_at, store_at};
use half::bf16;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// Running maximum and sum of a block's rows.
pub struct RowState {
    pub max: [f32; MOST_ROWS],
    pub sum: [f32; MOST_ROWS],
}

impl RowState {
    /// A tile's new maximum, and its sum of exponentials less that; `out` is brought to the new
    /// maximum.
    #[inline(always)]
    fn advance<S: Simd>(
        &mut self,
        s: S,
        tile: Tile,
        row: usize,
        [max, sum]: [f32; 2],
        out: &mut [f32],
    ) {
        if tile.is_first {
            self.sum[row] = sum;
        } else {
            let correction = (self.max[row] - max).exp();
            self.sum[row] = self.sum[row] * correction + sum;
            scale_in_place(s, out, correction);
        }
        self.max[row] = max;
    }
}

impl Default for RowState {
    fn default() -> Self {
        Self {
            max: [f32::NEG_INFINITY; MOST_ROWS],
            sum: [0.0; MOST_ROWS],
        }
    }
}

/// A soft cap in the lanes of a vector.
#[derive(Clone, Copy)]
struct SoftCap<V> {
    cap: V,
    /// Of the scores as they come, over the cap.
    factor: V,
}

impl<V: Copy> SoftCap<V> {
    #[inline(always)]
    fn new<S: Simd<V = V>>(s: S, cap: f32, factor: f32) -> Self {
        Self {
            cap: s.splat(cap),
            factor: s.splat(factor / cap),
        }
    }

    /// The capped score, and the slope there.
    #[inline(always)]
    fn apply<S: Simd<V = V>>(&self, s: S, score: V) -> (V, V) {
        let t = tanh(s, s.mul(score, self.factor));
        (s.mul(t, self.cap), s.neg_mul_add(t, t, s.splat(1.0)))
    }
}

/// Scores, to be multiplied with `factor`, become capped ones. A function of its own: beside the
/// hyperbolic tangent, the values of a softmax would not stay in registers.
pub(super) struct CapInPlace<'a> {
    pub scores: &'a mut [f32],
    pub cap: f32,
    pub factor: f32,
}

impl SimdOp for CapInPlace<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self {
            scores,
            cap,
            factor,
        } = self;
        let cap = SoftCap::new(s, cap, factor);
        let mut at = 0;
        while at < scores.len() {
            let n = lanes_at::<S>(at, scores.len());
            let (capped, _) = cap.apply(s, load_at(s, scores, at, n));
            store_at(s, scores, at, capped, n);
            at += S::LANES;
        }
    }
}

/// Scaled scores p become exponentials, in place: [`super::arithmetic::Arithmetic::softmax`] in
/// f32.
#[inline(always)]
pub(super) fn softmax_row<S: Simd>(
    s: S,
    at: &At,
    row: usize,
    p: &mut [f32],
    state: &mut RowState,
    out: &mut [f32],
) {
    let (head, tile) = (at.head, at.tile);
    let columns = head.tile_columns(tile, row);
    p[..columns.start].fill(0.0);
    p[columns.end..].fill(0.0);
    if columns.is_empty() {
        return;
    }
    let start = tile.j + columns.start;
    let p = &mut p[columns];
    if let Some(cap) = head.soft_cap {
        s.call(CapInPlace {
            scores: &mut *p,
            cap,
            factor: 1.0,
        });
    }
    let max = row_max(s, p).max(state.max[row]);
    let sum = exp_in_place(s, p, max);
    state.advance(s, tile, row, [max, sum], out);
    if let Some(mask) = at.mask {
        mask.apply(s, head.dropout_index(tile.i + row) + start as u64, p);
    }
}

/// A row of scores, and the place of its exponentials.
pub(super) struct SoftmaxRow<'a> {
    pub scores: &'a mut [f32],
    pub narrow: &'a mut [bf16],
}

/// Scores become exponentials in `narrow`, zero up to its end: the softmax on bf16.
#[inline(always)]
pub(super) fn narrow_softmax_row<S: Simd>(
    s: S,
    at: &At,
    row: usize,
    rows: SoftmaxRow<'_>,
    state: &mut RowState,
    out: &mut [f32],
) {
    let SoftmaxRow { scores, narrow } = rows;
    let (head, tile) = (at.head, at.tile);
    let columns = head.tile_columns(tile, row);
    narrow[..columns.start].fill(bf16::ZERO);
    narrow[columns.end..].fill(bf16::ZERO);
    if columns.is_empty() {
        return;
    }
    let scale = match head.soft_cap {
        None => head.scale,
        Some(cap) => {
            s.call(CapInPlace {
                scores: &mut scores[columns.clone()],
                cap,
                factor: head.scale,
            });
            1.0
        }
    };
    let max = scaled_max(s, &scores[columns.clone()], scale).max(state.max[row]);
    let (factor, shift) = (s.splat(scale * LOG2_E), s.splat(-max * LOG2_E));
    let mut sum = s.splat(0.0);
    let mut factors = [1.0; GROUP];
    let mut start = columns.start;
    while start < columns.end {
        let run = Run::new(tile, start, columns.end);
        if let Some(mask) = at.mask {
            factors = mask.group(s, run.group(head, tile.i + row));
        }
        let mut at_run = 0;
        while at_run < run.len {
            let n = lanes_at::<S>(at_run, run.len);
            let score = load_at(s, scores, start + at_run, n);
            let mut e = exp2_for_bf16(s, s.mul_add(score, factor, shift));
            if n < S::LANES {
                e = only(s, e, 0..n);
            }
            sum = s.add(sum, e);
            if at.mask.is_some() {
                e = s.mul(e, load_at(s, &factors, run.within + at_run, n));
            }
            store_at(s, narrow, start + at_run, e, n);
            at_run += S::LANES;
        }
        start += run.len;
    }
    state.advance(s, tile, row, [max, s.reduce_add(sum)], out);
}

/// What the gradient of a row of scores depends on.
#[derive(Clone, Copy)]
pub(super) struct RowGradient {
    /// The row of the tile.
    pub row: usize,
    /// Logarithm of its sum of exponentials.
    pub lse: f32,
    /// The row of out times that of d_out.
    pub delta: f32,
    /// What the scores are still to be multiplied with.
    pub score_factor: f32,
}

impl RowGradient {
    /// Scores p become dropped-out probabilities, and d_p becomes d_s = p (d_p mask - delta) scale;
    /// zero outside the row's columns.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(&self, s: S, at: &At, p: &mut [f32], d_s: &mut [f32]) {
        match at.head.soft_cap {
            None => self.apply_to::<S, false>(s, at, p, d_s),
            Some(_) => self.apply_to::<S, true>(s, at, p, d_s),
        }
    }

    /// A loop for each kind of scores: beside a cap's hyperbolic tangent, the values of the other
    /// kind would not stay in registers.
    #[inline(always)]
    fn apply_to<S: Simd, const CAPPED: bool>(&self, s: S, at: &At, p: &mut [f32], d_s: &mut [f32]) {
        let (head, tile) = (at.head, at.tile);
        let (delta, lse, scale) = (s.splat(self.delta), s.splat(self.lse), s.splat(head.scale));
        let score_factor = s.splat(self.score_factor);
        let cap = SoftCap::new(s, head.soft_cap.unwrap_or(1.0), self.score_factor);
        let mut factors = [1.0; GROUP];
        let columns = head.tile_columns(tile, self.row);
        let mut start = columns.start;
        while start < columns.end {
            let run = Run::new(tile, start, columns.end);
            if let Some(mask) = at.mask {
                factors = mask.group(s, run.group(head, tile.i + self.row));
            }
            let mut at = 0;
            while at < run.len {
                let n = lanes_at::<S>(at, run.len);
                let factor = load_at(s, &factors, run.within + at, n);
                let at_column = start + at;
                let score = load_at(s, p, at_column, n);
                let (score, scale) = if CAPPED {
                    let (score, slope) = cap.apply(s, score);
                    (score, s.mul(scale, slope))
                } else {
                    (s.mul(score, score_factor), scale)
                };
                let probability = exp(s, s.sub(score, lse));
                let d_p = s.mul(load_at(s, d_s, at_column, n), factor);
                let d_score = s.mul(s.mul(probability, s.sub(d_p, delta)), scale);
                store_at(s, p, at_column, s.mul(probability, factor), n);
                store_at(s, d_s, at_column, d_score, n);
                at += S::LANES;
            }
            start += run.len;
        }
        for x in [p, d_s] {
            x[..columns.start].fill(0.0);
            x[columns.end..].fill(0.0);
        }
    }
}

/// Two neighbouring rows of a tile, and what the gradients of their scores depend on. Behind an odd
/// tile's end the second counts as one without columns.
pub(super) struct PairGradient {
    /// The first of the two; even.
    pub row: usize,
    /// Logarithm of each row's sum of exponentials.
    pub lse: [f32; 2],
    /// Each row of out times that of d_out.
    pub delta: [f32; 2],
}

/// Where [`PairGradient`] reads and writes.
pub(super) struct PairRows<'a> {
    /// Scores of both rows.
    pub scores: [&'a [f32]; 2],
    /// Gradients of their probabilities.
    pub d_p: [&'a [f32]; 2],
    /// Probabilities, and gradients of scores, as pairs of rows.
    pub pairs: [&'a mut [u32]; 2],
    /// Gradients of scores as rows, up to whole pairs.
    pub narrow: [&'a mut [bf16]; 2],
}

impl PairGradient {
    /// Scores and gradients of probabilities become dropped-out probabilities, as pairs of rows,
    /// and d_s = p (d_p mask - delta) scale, as pairs of rows and as rows; zero outside the rows'
    /// columns.
    #[inline(always)]
    pub(super) fn apply<S: Simd>(&self, s: S, at: &At, rows: PairRows) {
        match at.head.soft_cap {
            None => self.apply_to::<S, false>(s, at, rows),
            Some(_) => self.apply_to::<S, true>(s, at, rows),
        }
    }

    /// A loop for each kind of scores, as in [`RowGradient`].
    #[inline(always)]
    fn apply_to<S: Simd, const CAPPED: bool>(&self, s: S, at: &At, rows: PairRows) {
        let (head, tile) = (at.head, at.tile);
        let columns = [self.columns(at, 0), self.columns(at, 1)];
        // Neighbours' columns differ by one on each side at most.
        let start = columns[0].start.min(columns[1].start);
        let end = columns[0].end.max(columns[1].end);
        let (p, d) = (rows.scores, rows.d_p);
        let ([p_pairs, d_pairs], mut narrow) = (rows.pairs, rows.narrow);
        for row in &mut narrow {
            row[..start].fill(bf16::ZERO);
            row[end..].fill(bf16::ZERO);
        }
        for pairs in [&mut *p_pairs, &mut *d_pairs] {
            pairs[..start].fill(0);
            pairs[end..].fill(0);
        }
        let (factor, scale) = (s.splat(head.scale * LOG2_E), s.splat(head.scale));
        let cap = SoftCap::new(s, head.soft_cap.unwrap_or(1.0), head.scale);
        let mut factors = [[1.0; GROUP]; 2];
        let mut start = start;
        while start < end {
            let run = Run::new(tile, start, end);
            if let Some(mask) = at.mask {
                for (r, factors) in factors.iter_mut().enumerate() {
                    *factors = mask.group(s, run.group(head, tile.i + self.row + r));
                }
            }
            let mut at_run = 0;
            while at_run < run.len {
                let lanes = lanes_at::<S>(at_run, run.len);
                let column = start + at_run;
                let mut probability = [s.splat(0.0); 2];
                let mut d_score = [s.splat(0.0); 2];
                for r in 0..2 {
                    let shift = s.splat(-self.lse[r] * LOG2_E);
                    let score = load_at(s, p[r], column, lanes);
                    let (power, scale) = if CAPPED {
                        let (score, slope) = cap.apply(s, score);
                        let power = s.mul_add(score, s.splat(LOG2_E), shift);
                        (power, s.mul(scale, slope))
                    } else {
                        (s.mul_add(score, factor, shift), scale)
                    };
                    let mut e = exp2_for_bf16(s, power);
                    let mut d_p = load_at(s, d[r], column, lanes);
                    let mask = load_at(s, &factors[r], run.within + at_run, lanes);
                    if at.mask.is_some() {
                        d_p = s.mul(d_p, mask);
                    }
                    let mut d_e = s.mul(s.mul(e, s.sub(d_p, s.splat(self.delta[r]))), scale);
                    if at.mask.is_some() {
                        e = s.mul(e, mask);
                    }
                    if column < columns[r].start || column + lanes > columns[r].end {
                        let inside = within(&columns[r], column, lanes);
                        (e, d_e) = (only(s, e, inside.clone()), only(s, d_e, inside));
                    }
                    (probability[r], d_score[r]) = (e, d_e);
                    store_at(s, narrow[r], column, d_e, lanes);
                }
                let pair = s.pair(probability[0], probability[1]);
                store_pairs(s, p_pairs, column, pair, lanes);
                let pair = s.pair(d_score[0], d_score[1]);
                store_pairs(s, d_pairs, column, pair, lanes);
                at_run += S::LANES;
            }
            start += run.len;
        }
    }

    fn columns(&self, at: &At, r: usize) -> Range<usize> {
        if self.row + r < at.tile.m {
            at.head.tile_columns(at.tile, self.row + r)
        } else {
            let first = at.head.tile_columns(at.tile, self.row);
            first.start..first.start
        }
    }
}

/// The lanes of a vector of `lanes` values at `column` that lie in `columns`.
#[inline(always)]
fn within(columns: &Range<usize>, column: usize, lanes: usize) -> Range<usize> {
    let lane = |at: usize| at.saturating_sub(column).min(lanes);
    lane(columns.start)..lane(columns.end)
}

/// The largest value, times `factor`.
#[inline(always)]
fn scaled_max<S: Simd>(s: S, x: &[f32], factor: f32) -> f32 {
    if x.len() < S::LANES {
        let mut largest = f32::NEG_INFINITY;
        for &v in x {
            largest = largest.max(v * factor);
        }
        return largest;
    }
    // The last vector may overlap the one before: a maximum does not mind.
    let last = x.len() - S::LANES;
    let factor = s.splat(factor);
    let mut max = s.mul(load_at(s, x, last, S::LANES), factor);
    let mut at = 0;
    while at < last {
        max = s.max(max, s.mul(load_at(s, x, at, S::LANES), factor));
        at += S::LANES;
    }
    s.reduce_max(max)
}

/// Some lanes as they are, the others zero.
#[inline(always)]
fn only<S: Simd>(s: S, v: S::V, lanes: Range<usize>) -> S::V {
    let mut values = [0.0f32; 16];
    store_at(s, &mut values, 0, v, S::LANES);
    values[..lanes.start].fill(0.0);
    values[lanes.end..].fill(0.0);
    load_at(s, &values, 0, S::LANES)
}

/// Stores the first `n` lanes to a slice at `at`. Bounds are asserted.
#[inline(always)]
pub(super) fn store_pairs<S: Simd>(s: S, pairs: &mut [u32], at: usize, v: S::U, n: usize) {
    assert!(n <= S::LANES && at + n <= pairs.len());
    if n == S::LANES {
        // SAFETY: a whole vector from `at` lies inside `pairs`.
        unsafe { s.store_u(pairs.as_mut_ptr().add(at), v) };
    } else {
        let mut lanes = [0u32; 16];
        // SAFETY: LANES <= 16.
        unsafe { s.store_u(lanes.as_mut_ptr(), v) };
        pairs[at..at + n].copy_from_slice(&lanes[..n]);
    }
}

/// Of each query of a tile its row of out times that of d_out. Beside the stores of the rows'
/// gradients these loads would wait for them: a tenth of a whole backward.
#[inline(always)]
pub(super) fn dots<S: Simd, E: Element>(
    s: S,
    out: MatRef<E>,
    d_out: MatRef<E>,
    deltas: &mut [f32],
) {
    for (row, delta) in deltas[..out.rows()].iter_mut().enumerate() {
        *delta = dot(s, row_of(out, row), row_of(d_out, row));
    }
}

/// Row `row` of a view with contiguous rows.
pub(super) fn row_of<E: Copy>(x: MatRef<'_, E>, row: usize) -> &[E] {
    &x.data()[row * x.row_stride()..][..x.cols()]
}

#[inline(always)]
fn dot<S: Simd, E: Element>(s: S, a: &[E], b: &[E]) -> f32 {
    let mut sum = s.splat(0.0);
    let mut at = 0;
    while at < a.len() {
        let n = lanes_at::<S>(at, a.len());
        sum = s.mul_add(load_at(s, a, at, n), load_at(s, b, at, n), sum);
        at += S::LANES;
    }
    s.reduce_add(sum)
}
