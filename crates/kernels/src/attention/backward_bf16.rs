//! The backward task on bf16: one head of one sequence. Scores are computed again; their gradients meet the other operands
//! as bf16 pairs, along keys for d_q and along queries for d_k and d_v. All sums are f32.

use super::backward::{clear_gradients, dots};
use super::pairs::{
    BLOCKS, PLAIN, PairBlock, PairScratch, STRIDE, TILE, copy_rows, multiply_pairs,
    pack_by_columns, pack_by_rows, padded, store_row,
};
use super::rows_bf16::GradientRows;
use super::{AttentionSaved, Head, Scratch, Tile, prefetch_row, prefetch_rows};
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
            sums.at_least(head.kv_len * width).fill(0.0);
        }
        scratch.sums[0].at_least(BLOCKS[0] * width).fill(0.0);
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
        for of_kv in [saved.k, saved.v] {
            prefetch_rows(s, of_kv, head.kv_at(0), head.kv_len, &head);
        }
        for of_q in [saved.q, self.d_out, saved.out] {
            prefetch_rows(s, of_q, head.q_at(0), head.q_len.min(BLOCKS[0]), &head);
        }
        pack_by_rows(s, head.kv_rows(saved.k), &mut scratch.panels[0]);
        pack_by_rows(s, head.kv_rows(saved.v), &mut scratch.panels[1]);
        pack_by_columns(s, head.kv_rows(saved.k), &mut scratch.keys_turned);
        for tile in [0, 1] {
            scratch.scores[tile].at_least(TILE);
            scratch.row_pairs[tile].at_least(TILE / 2);
        }
        scratch.narrow.at_least(TILE);
        head.for_each_tile(BLOCKS, |tile| {
            s.call(BackwardTile {
                task: self,
                tile,
                scratch,
            });
        });
    }

    /// Asks for row `row` of what this task will write and of what the next one, most likely the next head, will read.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize) {
        let (head, saved) = (self.head, self.saved);
        let [d_q, d_k, d_v] = self.gradients.map(|d| d.get().cast_const());
        prefetch_row(s, d_q, head.q_at(0), row, &head);
        for of_q in [saved.q, self.d_out, saved.out] {
            prefetch_row(s, of_q.as_ptr(), head.q_at(0) + head.head_dim, row, &head);
        }
        if row < head.kv_len {
            for of_kv in [d_k, d_v] {
                prefetch_row(s, of_kv, head.kv_at(0), row, &head);
            }
            for of_kv in [saved.k, saved.v] {
                prefetch_row(s, of_kv.as_ptr(), head.kv_at(0) + head.head_dim, row, &head);
            }
        }
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
        let head = self.head;
        let mut deltas = [0.0; BLOCKS[0]];
        dots(s, (&head, tile), [self.saved.out, self.d_out], &mut deltas);
        for row in 0..tile.m {
            if tile.is_first && tile.i + row < BLOCKS[1] {
                self.prefetch(s, tile.i + row);
            }
            if row % 2 == 1 {
                continue;
            }
            // Behind an odd tile's end any row will do for the second.
            let second = (row + 1).min(tile.m - 1);
            let rows = GradientRows {
                head: &head,
                mask: self.mask.as_ref(),
                tile,
                row,
                lse: [row, second].map(|row| self.saved.lse[head.lse_at(tile.i + row)]),
                delta: [deltas[row], deltas[second]],
            };
            rows.gradients(s, scratch);
        }
    }
}
