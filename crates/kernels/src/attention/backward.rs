//! The backward task: one head of one sequence.

use super::{
    AttentionMask, AttentionSaved, Head, KV_BLOCK, Q_BLOCK, Run, Scratch, TILE_STRIDE, Tile,
    pack_panels, prefetch_rows,
};
use crate::dropout::{GROUP, Mask};
use crate::element::Element;
use crate::gemm::{Block, PANEL, multiply_block};
use crate::math::exp;
use crate::parallel::SharedMut;
use crate::simd::{Simd, SimdOp, lanes_at, load_at, store_at};

pub(super) struct Backward<'a> {
    pub head: Head,
    pub mask: Option<Mask>,
    pub saved: AttentionSaved<'a>,
    pub d_out: &'a [f32],
    pub d_q: SharedMut,
    pub d_k: SharedMut,
    pub d_v: SharedMut,
    pub scratch: &'a mut Scratch,
}

impl SimdOp for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = self.head;
        if head.q_len == 0 || head.kv_len == 0 {
            clear_gradients(head, self.d_q, self.d_k, self.d_v);
            return;
        }
        prefetch_rows(s, self.saved.k, head.kv_at(0), head.kv_len, &head);
        prefetch_rows(s, self.saved.v, head.kv_at(0), head.kv_len, &head);
        for of_q in [self.saved.q, self.d_out, self.saved.out] {
            prefetch_rows(s, of_q, head.q_at(0), head.q_len.min(Q_BLOCK), &head);
        }
        pack_panels(s, head.kv_rows(self.saved.k), &mut self.scratch.keys);
        pack_panels(s, head.kv_rows(self.saved.v), &mut self.scratch.values);
        let scores = self
            .scratch
            .scores
            .at_least(Q_BLOCK * TILE_STRIDE)
            .as_mut_ptr();
        let d_scores = self
            .scratch
            .d_scores
            .at_least(Q_BLOCK * TILE_STRIDE)
            .as_mut_ptr();
        if head.attends != AttentionMask::Full {
            // A key's first tile is not the same for all keys of a tile, and some keys may have none.
            clear_gradients(head, self.d_q, self.d_k, self.d_v);
        }
        head.for_each_tile([Q_BLOCK, KV_BLOCK], |tile| {
            s.call(BackwardTile {
                task: &self,
                tile,
                scores,
                d_scores,
            });
        });
    }
}

/// Zero gradients: without queries or without keys, those of the other side are.
pub(super) fn clear_gradients<E: Element>(
    head: Head,
    d_q: SharedMut<E>,
    d_k: SharedMut<E>,
    d_v: SharedMut<E>,
) {
    // SAFETY: the rows lie inside the buffers, whose lengths the entry asserted, and no other task writes this
    // head's columns of this sequence's rows.
    unsafe {
        for i in 0..head.q_len {
            let row = d_q.get().add(head.q_at(i));
            std::slice::from_raw_parts_mut(row, head.head_dim).fill(E::default());
        }
        for j in 0..head.kv_len {
            for d in [d_k, d_v] {
                let row = d.get().add(head.kv_at(j));
                std::slice::from_raw_parts_mut(row, head.head_dim).fill(E::default());
            }
        }
    }
}

struct BackwardTile<'a, 't> {
    task: &'a Backward<'t>,
    tile: Tile,
    scores: *mut f32,
    d_scores: *mut f32,
}

impl SimdOp for BackwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (task, tile, head) = (self.task, self.tile, self.task.head);
        let (p, d_s) = (self.scores, self.d_scores);
        let q = task.saved.q[head.q_at(tile.i)..].as_ptr();
        let d_out = task.d_out[head.q_at(tile.i)..].as_ptr();
        let rows = Block {
            a: q,
            a_row: head.width,
            a_col: 1,
            b: task.scratch.keys[tile.j * head.head_dim..].as_ptr(),
            b_row: PANEL,
            b_panel: head.head_dim * PANEL,
            b_padded: true,
            c: p,
            c_row: TILE_STRIDE,
            bias: std::ptr::null(),
            m: tile.m,
            n: tile.n,
            k: head.head_dim,
            alpha: head.scale,
            accumulate: false,
        };
        // Gradients of keys and values: the transposed tile times rows of queries or of d_out.
        let columns = Block {
            a: p,
            a_row: 1,
            a_col: TILE_STRIDE,
            b: d_out,
            b_row: head.width,
            b_panel: PANEL,
            b_padded: false,
            c_row: head.width,
            m: tile.n,
            n: head.head_dim,
            k: tile.m,
            alpha: 1.0,
            accumulate: tile.i > 0 || head.attends != AttentionMask::Full,
            ..rows
        };
        // SAFETY: the entry asserted the lengths of all operands; tile rows and columns lie inside the sequence; the
        // two score buffers hold Q_BLOCK rows of TILE_STRIDE, of which this thread is the only user; no other task
        // writes this head's columns of this sequence's rows of d_q, d_k and d_v.
        unsafe {
            multiply_block(s, &rows);
            let values = task.scratch.values[tile.j * head.head_dim..].as_ptr();
            multiply_block(
                s,
                &Block {
                    a: d_out,
                    b: values,
                    c: d_s,
                    alpha: 1.0,
                    ..rows
                },
            );
            for row in 0..tile.m {
                let p = std::slice::from_raw_parts_mut(p.add(row * TILE_STRIDE), tile.n);
                let d_s = std::slice::from_raw_parts_mut(d_s.add(row * TILE_STRIDE), tile.n);
                let at = head.q_at(tile.i + row);
                let (out, d_out) = (&task.saved.out[at..], &task.d_out[at..]);
                let context = RowContext {
                    head,
                    mask: task.mask.as_ref(),
                    tile,
                    row,
                    lse: task.saved.lse[head.lse_at(tile.i + row)],
                    delta: dot(s, &out[..head.head_dim], &d_out[..head.head_dim]),
                    score_factor: 1.0,
                };
                row_gradient(s, context, p, d_s);
            }
            let d_v = task.d_v.get().add(head.kv_at(tile.j));
            multiply_block(s, &Block { c: d_v, ..columns });
            let d_k = task.d_k.get().add(head.kv_at(tile.j));
            multiply_block(
                s,
                &Block {
                    a: d_s,
                    b: q,
                    c: d_k,
                    ..columns
                },
            );
            multiply_block(
                s,
                &Block {
                    a: d_s,
                    a_row: TILE_STRIDE,
                    a_col: 1,
                    b: task.saved.k[head.kv_at(tile.j)..].as_ptr(),
                    c: task.d_q.get().add(head.q_at(tile.i)),
                    m: tile.m,
                    k: tile.n,
                    accumulate: !tile.is_first,
                    ..columns
                },
            );
        }
    }
}

/// What the gradient of a row of scores depends on.
#[derive(Clone, Copy)]
pub(super) struct RowContext<'a> {
    pub head: Head,
    pub mask: Option<&'a Mask>,
    pub tile: Tile,
    /// The row of the tile.
    pub row: usize,
    pub lse: f32,
    /// The row of out times that of d_out.
    pub delta: f32,
    /// What the scores are still to be multiplied with.
    pub score_factor: f32,
}

/// Scores p become dropped-out probabilities, and d_p becomes d_s = p (d_p mask - delta) scale; zero outside the row's columns.
#[inline(always)]
pub(super) fn row_gradient<S: Simd>(s: S, row: RowContext, p: &mut [f32], d_s: &mut [f32]) {
    let (head, tile) = (row.head, row.tile);
    let (delta, lse, scale) = (s.splat(row.delta), s.splat(row.lse), s.splat(head.scale));
    let score_factor = s.splat(row.score_factor);
    let mut factors = [1.0; GROUP];
    let columns = head.tile_columns(tile, row.row);
    let mut start = columns.start;
    while start < columns.end {
        let run = Run::new(tile, start, columns.end);
        if let Some(mask) = row.mask {
            factors = mask.group(s, run.group(&head, tile.i + row.row));
        }
        let mut at = 0;
        while at < run.len {
            let n = lanes_at::<S>(at, run.len);
            let factor = load_at(s, &factors, run.within + at, n);
            let at_column = start + at;
            let score = s.mul(load_at(s, p, at_column, n), score_factor);
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

/// Of each query of a tile its row of out times that of d_out. Beside the stores of the rows' gradients these loads would wait
/// for them: a tenth of a whole backward.
#[inline(always)]
pub(super) fn dots<S: Simd, E: Element>(
    s: S,
    (head, tile): (&Head, Tile),
    [out, d_out]: [&[E]; 2],
    deltas: &mut [f32],
) {
    for (row, delta) in deltas[..tile.m].iter_mut().enumerate() {
        let at = head.q_at(tile.i + row);
        *delta = dot(
            s,
            &out[at..][..head.head_dim],
            &d_out[at..][..head.head_dim],
        );
    }
}

#[inline(always)]
pub(super) fn dot<S: Simd, E: Element>(s: S, a: &[E], b: &[E]) -> f32 {
    let mut sum = s.splat(0.0);
    let mut at = 0;
    while at < a.len() {
        let n = lanes_at::<S>(at, a.len());
        sum = s.mul_add(load_at(s, a, at, n), load_at(s, b, at, n), sum);
        at += S::LANES;
    }
    s.reduce_add(sum)
}
