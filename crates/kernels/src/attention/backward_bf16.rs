//! The backward task on bf16: one head of one sequence. Scores are computed again; their gradients meet the other operands
//! as bf16 pairs, along keys for d_q and along queries for d_k and d_v. All sums are f32.

use super::backward::{RowContext, clear_gradients, dot, row_gradient};
use super::pairs::{
    BLOCKS, PLAIN, PairBlock, PairScratch, STRIDE, TILE, copy_rows, multiply_pairs,
    pack_by_columns, pack_by_rows, padded, store_row,
};
use super::{AttentionSaved, Head, Scratch, Tile, at_least, prefetch_rows};
use crate::dropout::Mask;
use crate::gemm::PANEL;
use crate::gemm_bf16::pairs_of;
use crate::parallel::SharedMut;
use crate::simd::{Simd, SimdOp};
use half::bf16;

pub(super) struct Backward<'a> {
    pub head: Head,
    pub mask: Option<Mask>,
    pub saved: AttentionSaved<'a, bf16>,
    pub d_out: &'a [bf16],
    /// Of q, k and v.
    pub gradients: [SharedMut<bf16>; 3],
    pub scratch: &'a mut Scratch,
}

impl SimdOp for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = self.head;
        if head.q_len == 0 || head.kv_len == 0 {
            let [d_q, d_k, d_v] = self.gradients;
            clear_gradients(head, d_q, d_k, d_v);
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch.pairs);
        let width = padded(head.head_dim);
        for sums in &mut scratch.sums[1..] {
            at_least(sums, head.kv_len * width).fill(0.0);
        }
        at_least(&mut scratch.sums[0], BLOCKS[0] * width).fill(0.0);
        self.tiles(s, &mut scratch);
        for j in 0..head.kv_len {
            for (which, sums) in scratch.sums.iter().enumerate().skip(1) {
                self.store(s, which, &sums[j * width..][..width], head.kv_at(j));
            }
        }
        self.scratch.pairs = scratch;
    }
}

struct BackwardTile<'a, 't> {
    task: &'a Backward<'t>,
    tile: Tile,
    scratch: &'a mut PairScratch,
}

impl SimdOp for BackwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let BackwardTile {
            task,
            tile,
            scratch,
        } = self;
        let head = task.head;
        if tile.is_first {
            for (which, x) in [task.saved.q, task.d_out].into_iter().enumerate() {
                let rows = head.q_rows(x, tile.i, tile.m);
                copy_rows(s, rows, &mut scratch.rows[which]);
                pack_by_columns(s, rows, &mut scratch.turned[which]);
            }
        }
        task.scores(s, tile, scratch);
        task.rows(s, tile, scratch);
        // SAFETY: `tiles` sized the buffers; the rows of this tile were just made.
        unsafe { scratch.add_gradients(s, &head, tile, &PLAIN) };
        let width = padded(head.head_dim);
        for row in 0..if tile.is_last { tile.m } else { 0 } {
            let sums = &scratch.sums[0][row * width..][..width];
            task.store(s, 0, sums, head.q_at(tile.i + row));
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, which: usize, sums: &[f32], at: usize) {
        // SAFETY: the row lies inside the buffer, whose length the entry asserted, and no other task writes this head's
        // columns of this sequence's rows.
        unsafe {
            store_row(
                s,
                sums,
                1.0,
                self.gradients[which].get().add(at),
                &self.head,
            )
        };
    }

    #[inline(always)]
    fn tiles<S: Simd>(&self, s: S, scratch: &mut PairScratch) {
        let (head, saved) = (self.head, self.saved);
        prefetch_rows(s, saved.k, head.kv_at(0), head.kv_len, &head);
        prefetch_rows(s, saved.v, head.kv_at(0), head.kv_len, &head);
        pack_by_rows(s, head.kv_rows(saved.k), &mut scratch.panels[0]);
        pack_by_rows(s, head.kv_rows(saved.v), &mut scratch.panels[1]);
        pack_by_columns(s, head.kv_rows(saved.k), &mut scratch.keys_turned);
        for tile in [0, 1] {
            at_least(&mut scratch.scores[tile], TILE);
            at_least(&mut scratch.row_pairs[tile], TILE / 2);
        }
        at_least(&mut scratch.narrow, TILE);
        head.for_each_tile(BLOCKS, |tile| {
            s.call(BackwardTile {
                task: self,
                tile,
                scratch,
            });
        });
    }

    /// q kᵀ and d_out vᵀ.
    #[inline(always)]
    fn scores<S: Simd>(&self, s: S, tile: Tile, scratch: &mut PairScratch) {
        let depth = pairs_of(self.head.head_dim);
        for which in [0, 1] {
            let block = PairBlock {
                a: scratch.rows[which].as_ptr().cast(),
                a_row: depth,
                a_pair: 1,
                b: scratch.panels[which]
                    .as_ptr()
                    .cast::<u32>()
                    .wrapping_add(tile.j * depth),
                b_panel: PANEL * depth,
                shape: [tile.m, tile.n, depth],
                c: scratch.scores[which].as_mut_ptr(),
                c_row: STRIDE,
                accumulate: false,
            };
            // SAFETY: rows hold m rows of whole pairs, panels T rows up to whole panels (j is a multiple of PANEL), and the
            // scores BLOCKS[0] rows of STRIDE.
            unsafe { multiply_pairs(s, &block) };
        }
    }

    /// Probabilities and gradients of scores, as pairs of rows and the latter as rows too.
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, tile: Tile, scratch: &mut PairScratch) {
        let (head, n) = (self.head, tile.n);
        for row in 0..tile.m {
            let at = head.q_at(tile.i + row);
            let (out, d_out) = (&self.saved.out[at..], &self.d_out[at..]);
            let context = RowContext {
                head,
                mask: self.mask.as_ref(),
                tile,
                row,
                lse: self.saved.lse[head.lse_at(tile.i + row)],
                delta: dot(s, &out[..head.head_dim], &d_out[..head.head_dim]),
                score_factor: head.scale,
            };
            let [p, d_s] = &mut scratch.scores;
            let (p, d_s) = (&mut p[row * STRIDE..][..n], &mut d_s[row * STRIDE..][..n]);
            row_gradient(s, context, p, d_s);
            scratch.narrow_row(s, 1, row, n, &PLAIN);
            scratch.pair_up(s, tile, row, &PLAIN);
        }
    }
}
