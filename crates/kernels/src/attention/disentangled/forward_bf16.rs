//! The forward task on bf16 pairs: one head of one sequence.

use super::super::forward::{RowState, softmax_row};
use super::super::pairs::{
    PairBlock, PairScratch, copy_rows, multiply_pairs, pack_by_columns, padded, store_row,
};
use super::super::{Head, Scratch, Tile, prefetch_rows};
use super::skewed::{
    BLOCKS, HeadTables, MARGIN, NARROW, STRIDE, SkewScratch, prefetch_row, prepare_keys, scores,
};
use crate::dropout::Mask;
use crate::elementwise::{convert_in, scale_in_place};
use crate::gemm::PANEL;
use crate::gemm_bf16::pairs_of;
use crate::parallel::SharedMut;
use crate::simd::{Simd, SimdOp};
use half::bf16;

pub(super) struct Forward<'a> {
    pub head: Head,
    pub mask: Option<Mask>,
    pub tables: HeadTables<'a>,
    /// q, k and v.
    pub inputs: [&'a [bf16]; 3],
    pub out: SharedMut<bf16>,
    pub lse: SharedMut,
    pub scratch: &'a mut Scratch,
}

impl SimdOp for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (head, [q, k, v]) = (self.head, self.inputs);
        if head.kv_len == 0 {
            for i in 0..head.q_len {
                // SAFETY: row i of this head is inside the buffers, whose lengths the entry asserted, and no other task
                // writes this head's columns of this sequence's rows.
                unsafe {
                    let row = self.out.get().add(head.q_at(i));
                    std::slice::from_raw_parts_mut(row, head.head_dim).fill(bf16::ZERO);
                    *self.lse.get().add(head.lse_at(i)) = f32::NEG_INFINITY;
                }
            }
            return;
        }
        let mut pairs = std::mem::take(&mut self.scratch.pairs);
        let mut skew = std::mem::take(&mut self.scratch.skewed);
        prefetch_rows(s, k, head.kv_at(0), head.kv_len, &head);
        prefetch_rows(s, q, head.q_at(0), head.q_len.min(BLOCKS[0]), &head);
        prefetch_rows(s, v, head.kv_at(0), head.kv_len, &head);
        prepare_keys(s, &head, k, &mut pairs, &mut skew);
        pack_by_columns(s, head.kv_rows(v), &mut pairs.keys_turned);
        let mut state = RowState::default();
        head.for_each_tile(BLOCKS, |tile| {
            s.call(ForwardTile {
                task: &self,
                tile,
                pairs: &mut pairs,
                skew: &mut skew,
                state: &mut state,
            });
        });
        self.scratch.pairs = pairs;
        self.scratch.skewed = skew;
    }
}

struct ForwardTile<'a, 't> {
    task: &'a Forward<'t>,
    tile: Tile,
    pairs: &'a mut PairScratch,
    skew: &'a mut SkewScratch,
    state: &'a mut RowState,
}

impl SimdOp for ForwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (task, tile, pairs, state) = (self.task, self.tile, self.pairs, self.state);
        let head = task.head;
        if tile.is_first {
            *state = RowState::default();
            let rows = head.q_rows(task.inputs[0], tile.i, tile.m);
            copy_rows(s, rows, &mut pairs.rows[0]);
        }
        scores(s, (&head, tile), &task.tables, pairs, self.skew);
        task.values(s, tile, pairs, state);
        if !tile.is_last {
            return;
        }
        let width = padded(head.head_dim);
        for row in 0..tile.m {
            let sum = state.sum[row];
            let sums = &pairs.sums[0][row * width..][..width];
            let i = tile.i + row;
            // SAFETY: row i of this head is inside the buffers, whose lengths the entry asserted, and no other task writes
            // this head's columns of this sequence's rows.
            unsafe {
                store_row(s, sums, 1.0 / sum, task.out.get().add(head.q_at(i)), &head);
                *task.lse.get().add(head.lse_at(i)) = state.max[row] + sum.ln();
            }
        }
    }
}

impl Forward<'_> {
    /// Asks for row `row` of what this task will write and of what the next one, most likely the next head, will read.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize) {
        let (head, [q, k, v]) = (self.head, self.inputs);
        prefetch_row(s, self.out.get(), head.q_at(0), row, &head);
        let beside = head.head_dim;
        prefetch_row(s, q.as_ptr(), head.q_at(0) + beside, row, &head);
        for of_kv in [k, v] {
            if row < head.kv_len {
                prefetch_row(s, of_kv.as_ptr(), head.kv_at(0) + beside, row, &head);
            }
        }
    }

    /// Scores become exponentials, which meet the values.
    #[inline(always)]
    fn values<S: Simd>(&self, s: S, tile: Tile, pairs: &mut PairScratch, state: &mut RowState) {
        let head = self.head;
        let width = padded(head.head_dim);
        for row in 0..tile.m {
            if tile.is_first {
                self.prefetch(s, tile.i + row);
            }
            let p = &mut pairs.scores[0][row * STRIDE + MARGIN..][..tile.n];
            scale_in_place(s, p, head.scale);
            let sums = &mut pairs.sums[0][row * width..][..width];
            softmax_row(s, &head, self.mask.as_ref(), (tile, row), p, state, sums);
            let narrow = &mut pairs.narrow[row * NARROW..][..2 * pairs_of(tile.n)];
            convert_in(s, &mut narrow[..tile.n], p);
            narrow[tile.n..].fill(bf16::ZERO);
        }
        let block = PairBlock {
            a: pairs.narrow.as_ptr().cast(),
            a_row: NARROW / 2,
            a_pair: 1,
            b: pairs.keys_turned[tile.j * PANEL..].as_ptr().cast(),
            b_panel: PANEL * pairs_of(head.kv_len),
            shape: [tile.m, head.head_dim, pairs_of(tile.n)],
            c: pairs.sums[0].as_mut_ptr(),
            c_row: width,
            accumulate: !tile.is_first,
        };
        // SAFETY: the rounded probabilities hold m rows of whole pairs, the turned values panels of pairs_of(T) pairs (j is
        // even), the sums BLOCKS[0] rows of whole panels.
        unsafe { multiply_pairs(s, &block) };
    }
}
