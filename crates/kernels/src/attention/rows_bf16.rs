//! Rows of a tile of attention on bf16: the softmax, and its gradient. Scores come as the products left them, before their
//! scale; what meets the next product leaves in bf16, in the same walk.

use super::forward::RowState;
use super::pairs::{PLAIN, PairScratch, STRIDE, store_pairs};
use super::{Head, Run, Tile};
use crate::dropout::{GROUP, Mask};
use crate::gemm_bf16::pairs_of;
use crate::math::exp2_for_bf16;
use crate::simd::{Simd, lanes_at, load_at, store_at};
use half::bf16;
use std::f32::consts::LOG2_E;
use std::ops::Range;

/// A row of scores becomes exponentials less the running maximum, zero outside its columns and up to the end of `narrow`,
/// with dropout; the running sum follows, and `out` is brought to the new maximum.
#[inline(always)]
pub(super) fn softmax_row<S: Simd>(
    s: S,
    (head, mask): (&Head, Option<&Mask>),
    (tile, row): (Tile, usize),
    (scores, narrow): (&[f32], &mut [bf16]),
    state: &mut RowState,
    out: &mut [f32],
) {
    let columns = head.tile_columns(tile, row);
    narrow[..columns.start].fill(bf16::ZERO);
    narrow[columns.end..].fill(bf16::ZERO);
    if columns.is_empty() {
        return;
    }
    let max = scaled_max(s, &scores[columns.clone()], head.scale).max(state.max[row]);
    let (factor, shift) = (s.splat(head.scale * LOG2_E), s.splat(-max * LOG2_E));
    let mut sum = s.splat(0.0);
    let mut factors = [1.0; GROUP];
    let mut start = columns.start;
    while start < columns.end {
        let run = Run::new(tile, start, columns.end);
        if let Some(mask) = mask {
            factors = mask.group(s, run.group(head, tile.i + row));
        }
        let mut at = 0;
        while at < run.len {
            let n = lanes_at::<S>(at, run.len);
            let score = load_at(s, scores, start + at, n);
            let mut e = exp2_for_bf16(s, s.mul_add(score, factor, shift));
            if n < S::LANES {
                e = only(s, e, 0..n);
            }
            sum = s.add(sum, e);
            if mask.is_some() {
                e = s.mul(e, load_at(s, &factors, run.within + at, n));
            }
            store_at(s, narrow, start + at, e, n);
            at += S::LANES;
        }
        start += run.len;
    }
    state.advance(s, (tile, row), max, s.reduce_add(sum), out);
}

/// Two neighbouring rows of a tile, and what the gradients of their scores depend on. Behind an odd tile's end the second
/// counts as one without columns.
pub(super) struct GradientRows<'a> {
    pub head: &'a Head,
    pub mask: Option<&'a Mask>,
    pub tile: Tile,
    /// The first of the two; even.
    pub row: usize,
    /// Logarithm of each row's sum of exponentials.
    pub lse: [f32; 2],
    /// Each row of out times that of d_out.
    pub delta: [f32; 2],
}

impl GradientRows<'_> {
    /// `scores` and what d_out vᵀ gave become dropped-out probabilities, as pairs of rows, and d_s = p (d_p mask - delta)
    /// scale, as pairs of rows and as rows; zero outside the rows' columns.
    #[inline(always)]
    pub(super) fn gradients<S: Simd>(&self, s: S, scratch: &mut PairScratch) {
        let (head, tile, n) = (self.head, self.tile, self.tile.n);
        let columns = [self.columns(0), self.columns(1)];
        // Neighbours' columns differ by one on each side at most.
        let start = columns[0].start.min(columns[1].start);
        let end = columns[0].end.max(columns[1].end);
        let at_row = self.row * STRIDE;
        let [p, d] = &scratch.scores;
        let p = [&p[at_row..][..n], &p[at_row + STRIDE..][..n]];
        let d = [&d[at_row..][..n], &d[at_row + STRIDE..][..n]];
        let [p_pairs, d_pairs] = &mut scratch.row_pairs;
        let at_pair = self.row / 2 * PLAIN.narrow;
        let (p_pairs, d_pairs) = (&mut p_pairs[at_pair..][..n], &mut d_pairs[at_pair..][..n]);
        let (first, second) = scratch.narrow[self.row * PLAIN.narrow..].split_at_mut(PLAIN.narrow);
        let narrow_len = 2 * pairs_of(n);
        let mut narrow = [&mut first[..narrow_len], &mut second[..narrow_len]];
        for row in &mut narrow {
            row[..start].fill(bf16::ZERO);
            row[end..].fill(bf16::ZERO);
        }
        for pairs in [&mut *p_pairs, &mut *d_pairs] {
            pairs[..start].fill(0);
            pairs[end..].fill(0);
        }
        let (factor, scale) = (s.splat(head.scale * LOG2_E), s.splat(head.scale));
        let mut factors = [[1.0; GROUP]; 2];
        let mut start = start;
        while start < end {
            let run = Run::new(tile, start, end);
            if let Some(mask) = self.mask {
                for (r, factors) in factors.iter_mut().enumerate() {
                    *factors = mask.group(s, run.group(head, tile.i + self.row + r));
                }
            }
            let mut at = 0;
            while at < run.len {
                let lanes = lanes_at::<S>(at, run.len);
                let column = start + at;
                let mut probability = [s.splat(0.0); 2];
                let mut d_score = [s.splat(0.0); 2];
                for r in 0..2 {
                    let shift = s.splat(-self.lse[r] * LOG2_E);
                    let score = load_at(s, p[r], column, lanes);
                    let mut e = exp2_for_bf16(s, s.mul_add(score, factor, shift));
                    let mut d_p = load_at(s, d[r], column, lanes);
                    let mask = load_at(s, &factors[r], run.within + at, lanes);
                    if self.mask.is_some() {
                        d_p = s.mul(d_p, mask);
                    }
                    let mut d_e = s.mul(s.mul(e, s.sub(d_p, s.splat(self.delta[r]))), scale);
                    if self.mask.is_some() {
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
                at += S::LANES;
            }
            start += run.len;
        }
    }

    fn columns(&self, r: usize) -> Range<usize> {
        if self.row + r < self.tile.m {
            self.head.tile_columns(self.tile, self.row + r)
        } else {
            let first = self.head.tile_columns(self.tile, self.row);
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
