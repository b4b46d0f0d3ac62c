//! The forward task on bf16: one head of one sequence.

use super::forward::{RowState, softmax_row};
use super::pairs::{
    BLOCKS, PairBlock, PairScratch, STRIDE, TILE, copy_rows, multiply_pairs, pack_by_columns,
    pack_by_rows, padded, store_row,
};
use super::{Head, Scratch, Tile, at_least, prefetch_rows};
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
        let mut scratch = std::mem::take(&mut self.scratch.pairs);
        let width = padded(head.head_dim);
        if head.kv_len > 0 {
            prefetch_rows(s, self.k, head.kv_at(0), head.kv_len, &head);
            prefetch_rows(s, self.v, head.kv_at(0), head.kv_len, &head);
            pack_by_rows(s, head.kv_rows(self.k), &mut scratch.panels[0]);
            pack_by_columns(s, head.kv_rows(self.v), &mut scratch.keys_turned);
        }
        at_least(&mut scratch.scores[0], TILE);
        at_least(&mut scratch.narrow, TILE);
        at_least(&mut scratch.sums[0], BLOCKS[0] * width);
        let mut state = RowState::default();
        if head.kv_len == 0 {
            for i in 0..head.q_len {
                // SAFETY: row i of this head is inside the buffers, whose lengths the entry asserted, and no other
                // task writes this head's columns of this sequence's rows.
                unsafe {
                    store_row(
                        s,
                        &scratch.sums[0][..width],
                        0.0,
                        self.out.get().add(head.q_at(i)),
                        &head,
                    );
                    *self.lse.get().add(head.lse_at(i)) = f32::NEG_INFINITY;
                }
            }
        } else {
            head.for_each_tile(BLOCKS, |tile| {
                s.call(ForwardTile {
                    task: &self,
                    tile,
                    scratch: &mut scratch,
                    state: &mut state,
                });
            });
        }
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
        if !tile.is_last {
            return;
        }
        let width = padded(head.head_dim);
        for row in 0..tile.m {
            let sum = state.sum[row];
            let sums = &scratch.sums[0][row * width..][..width];
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
            let p = &mut scratch.scores[0][row * STRIDE..][..tile.n];
            scale_in_place(s, p, head.scale);
            let sums = &mut scratch.sums[0][row * width..][..width];
            softmax_row(s, &head, self.mask.as_ref(), (tile, row), p, state, sums);
            let narrow = &mut scratch.narrow[row * STRIDE..][..2 * pairs_of(tile.n)];
            convert_in(s, &mut narrow[..tile.n], p);
            narrow[tile.n..].fill(bf16::ZERO);
        }
        // SAFETY: as above.
        unsafe {
            multiply_pairs(
                s,
                &PairBlock {
                    a: scratch.narrow.as_ptr().cast(),
                    a_row: STRIDE / 2,
                    a_pair: 1,
                    b: scratch
                        .keys_turned
                        .as_ptr()
                        .cast::<u32>()
                        .add(tile.j / 2 * PANEL),
                    b_panel: PANEL * pairs_of(head.kv_len),
                    shape: [tile.m, head.head_dim, pairs_of(tile.n)],
                    c: scratch.sums[0].as_mut_ptr(),
                    c_row: width,
                    accumulate: !tile.is_first,
                },
            );
        }
    }
}
