//! The forward task: one head of one sequence.

use super::super::forward::{RowState, clear_outputs, out_row, softmax_row};
use super::super::{Scratch, prefetch_rows};
use super::*;
use crate::dropout::Mask;
use crate::elementwise::scale_in_place;

pub(super) struct Forward<'a> {
    pub scores: Scores<'a>,
    pub mask: Option<Mask>,
    pub v: &'a [f32],
    pub out: SharedMut,
    pub lse: SharedMut,
    pub scratch: &'a mut Scratch,
}

impl SimdOp for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = self.scores.head;
        if head.kv_len == 0 {
            clear_outputs(head, self.out, self.lse);
            return;
        }
        prefetch_rows(s, self.scores.k, head.kv_at(0), head.kv_len, &head);
        prefetch_rows(s, self.scores.q, head.q_at(0), head.q_len, &head);
        prefetch_rows(s, self.v, head.kv_at(0), head.kv_len, &head);
        pack_panels(s, head.kv_rows(self.scores.k), &mut self.scratch.keys);
        let buffers = Buffers::of(self.scratch);
        let mut state = RowState::default();
        head.for_each_tile([Q_ROWS, KV_COLUMNS], |tile| {
            if tile.is_first {
                state = RowState::default();
            }
            s.call(ForwardTile {
                task: &self,
                tile,
                state: &mut state,
                buffers,
            });
            for row in 0..if tile.is_last { tile.m } else { 0 } {
                let sum = state.sum[row];
                // SAFETY: row i of this head is inside the buffers, whose lengths the entry asserted, and no other task
                // writes this head's columns of this sequence's rows.
                unsafe {
                    scale_in_place(s, out_row(self.out, &head, tile.i + row), 1.0 / sum);
                    *self.lse.get().add(head.lse_at(tile.i + row)) = state.max[row] + sum.ln();
                }
            }
        });
    }
}

struct ForwardTile<'a, 't> {
    task: &'a Forward<'t>,
    tile: Tile,
    state: &'a mut RowState,
    buffers: Buffers,
}

impl SimdOp for ForwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (task, tile, head) = (self.task, self.tile, self.task.scores.head);
        let scores = self.buffers.scores.wrapping_add(BLOCK);
        // SAFETY: the entry asserted the lengths of v and out; tile rows and columns lie inside the sequence; the buffers
        // were made for this thread, and keys were packed up to whole panels.
        unsafe {
            task.scores.tile(s, tile, self.buffers);
            for row in 0..tile.m {
                let p = std::slice::from_raw_parts_mut(scores.add(row * TILE_STRIDE), tile.n);
                let out = out_row(task.out, &head, tile.i + row);
                let mask = task.mask.as_ref();
                softmax_row(s, &head, mask, (tile, row), p, self.state, out);
            }
            multiply_block(
                s,
                &Block {
                    a: scores,
                    a_row: TILE_STRIDE,
                    a_col: 1,
                    b: task.v.as_ptr().add(head.kv_at(tile.j)),
                    b_row: head.width,
                    b_panel: PANEL,
                    b_padded: false,
                    c: task.out.get().add(head.q_at(tile.i)),
                    c_row: head.width,
                    bias: std::ptr::null(),
                    m: tile.m,
                    n: head.head_dim,
                    k: tile.n,
                    alpha: 1.0,
                    accumulate: !tile.is_first,
                },
            );
        }
    }
}
