//! The forward task on bf16: one head of one sequence.

use super::forward::{RowState, clear_outputs};
use super::pairs::{
    BLOCKS, PLAIN, PairBlock, PairScratch, STRIDE, TILE, copy_rows, multiply_pairs,
    pack_by_columns, pack_by_rows, padded, store_row,
};
use super::rows_bf16::softmax_row;
use super::{Head, Scratch, Tile, prefetch_row, prefetch_rows};
use crate::dropout::Mask;
use crate::gemm::PANEL;
use crate::gemm_bf16::pairs_of;
use crate::parallel::SharedMut;
use crate::simd::{Simd, SimdOp};
use half::bf16;

pub(super) struct Forward<'a> {
    pub head: Head,
    pub mask: Option<Mask>,
    pub q: &'a [bf16],
    pub k: &'a [bf16],
    pub v: &'a [bf16],
    pub out: SharedMut<bf16>,
    pub lse: SharedMut,
    pub scratch: &'a mut Scratch,
}

impl SimdOp for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = self.head;
        if head.kv_len == 0 {
            clear_outputs(head, self.out, self.lse);
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch.pairs);
        prefetch_rows(s, self.k, head.kv_at(0), head.kv_len, &head);
        prefetch_rows(s, self.q, head.q_at(0), head.q_len.min(BLOCKS[0]), &head);
        prefetch_rows(s, self.v, head.kv_at(0), head.kv_len, &head);
        pack_by_rows(s, head.kv_rows(self.k), &mut scratch.panels[0]);
        pack_by_columns(s, head.kv_rows(self.v), &mut scratch.keys_turned);
        scratch.scores[0].at_least(TILE);
        scratch.narrow.at_least(TILE);
        scratch.sums[0].at_least(BLOCKS[0] * padded(head.head_dim));
        let mut state = RowState::default();
        head.for_each_tile(BLOCKS, |tile| {
            s.call(ForwardTile {
                task: &self,
                tile,
                scratch: &mut scratch,
                state: &mut state,
            });
        });
        self.scratch.pairs = scratch;
    }
}

struct ForwardTile<'a, 't> {
    task: &'a Forward<'t>,
    tile: Tile,
    scratch: &'a mut PairScratch,
    state: &'a mut RowState,
}

impl SimdOp for ForwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ForwardTile {
            task,
            tile,
            scratch,
            state,
        } = self;
        let head = task.head;
        if tile.is_first {
            *state = RowState::default();
            copy_rows(s, head.q_rows(task.q, tile.i, tile.m), &mut scratch.rows[0]);
        }
        task.tile(s, tile, scratch, state);
        if tile.is_last {
            store_results(s, (&head, tile), scratch, state, (task.out, task.lse));
        }
    }
}

/// What the sums and the state of a block of queries come to, once their last tile is done.
#[inline(always)]
pub(super) fn store_results<S: Simd>(
    s: S,
    (head, tile): (&Head, Tile),
    pairs: &PairScratch,
    state: &RowState,
    (out, lse): (SharedMut<bf16>, SharedMut),
) {
    let width = padded(head.head_dim);
    for row in 0..tile.m {
        let sum = state.sum[row];
        let sums = &pairs.sums[0][row * width..][..width];
        let i = tile.i + row;
        // SAFETY: row i of this head is inside the buffers, whose lengths the entry asserted, and no other task writes this
        // head's columns of this sequence's rows.
        unsafe {
            store_row(s, sums, 1.0 / sum, out.get().add(head.q_at(i)), head);
            *lse.get().add(head.lse_at(i)) = state.max[row] + sum.ln();
        }
    }
}

/// Asks for row `row` of what a task will write and of what the next one, most likely the next head, will read.
#[inline(always)]
pub(super) fn prefetch_beside<S: Simd>(
    s: S,
    head: &Head,
    [q, k, v]: [&[bf16]; 3],
    out: SharedMut<bf16>,
    row: usize,
) {
    prefetch_row(s, out.get(), head.q_at(0), row, head);
    let beside = head.head_dim;
    prefetch_row(s, q.as_ptr(), head.q_at(0) + beside, row, head);
    for of_kv in [k, v] {
        if row < head.kv_len {
            prefetch_row(s, of_kv.as_ptr(), head.kv_at(0) + beside, row, head);
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn tile<S: Simd>(&self, s: S, tile: Tile, scratch: &mut PairScratch, state: &mut RowState) {
        let head = self.head;
        let (depth, width) = (pairs_of(head.head_dim), padded(head.head_dim));
        // SAFETY: rows hold m rows of whole pairs, panels T keys up to whole panels (j is a multiple of PANEL), the turned
        // values panels of pairs_of(T) pairs (j is even), and tiles and sums were sized in `run`.
        unsafe {
            multiply_pairs(
                s,
                &PairBlock {
                    a: scratch.rows[0].as_ptr().cast(),
                    a_row: depth,
                    a_pair: 1,
                    b: scratch.panels[0].as_ptr().cast::<u32>().add(tile.j * depth),
                    b_panel: PANEL * depth,
                    shape: [tile.m, tile.n, depth],
                    c: scratch.scores[0].as_mut_ptr(),
                    c_row: STRIDE,
                    accumulate: false,
                },
            );
        }
        for row in 0..tile.m {
            if tile.is_first && tile.i + row < BLOCKS[1] {
                prefetch_beside(s, &head, [self.q, self.k, self.v], self.out, tile.i + row);
            }
            let scores = &scratch.scores[0][row * STRIDE..][..tile.n];
            let narrow = &mut scratch.narrow[row * PLAIN.narrow..][..2 * pairs_of(tile.n)];
            let sums = &mut scratch.sums[0][row * width..][..width];
            let of_head = (&head, self.mask.as_ref());
            softmax_row(s, of_head, (tile, row), (scores, narrow), state, sums);
        }
        // SAFETY: as above; the rows of `narrow` were just made.
        unsafe { scratch.meet_keys(s, &head, tile, &PLAIN) };
    }
}
