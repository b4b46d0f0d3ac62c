//! The forward task: one head of one sequence.

use super::{
    Head, KV_BLOCK, MOST_ROWS, Q_BLOCK, Scratch, TILE_STRIDE, Tile, pack_panels, prefetch_rows,
};
use crate::dropout::Mask;
use crate::element::Element;
use crate::elementwise::scale_in_place;
use crate::gemm::{Block, PANEL, multiply_block};
use crate::loss::{exp_in_place, row_max};
use crate::parallel::SharedMut;
use crate::simd::{Simd, SimdOp};

pub(super) struct Forward<'a> {
    pub head: Head,
    pub mask: Option<Mask>,
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: SharedMut,
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
        prefetch_rows(s, self.k, head.kv_at(0), head.kv_len, &head);
        prefetch_rows(s, self.q, head.q_at(0), head.q_len, &head);
        prefetch_rows(s, self.v, head.kv_at(0), head.kv_len, &head);
        pack_panels(s, head.kv_rows(self.k), &mut self.scratch.keys);
        let scores = self
            .scratch
            .scores
            .at_least(Q_BLOCK * TILE_STRIDE)
            .as_mut_ptr();
        let mut state = RowState::default();
        head.for_each_tile([Q_BLOCK, KV_BLOCK], |tile| {
            if tile.is_first {
                state = RowState::default();
            }
            s.call(ForwardTile {
                task: &self,
                tile,
                state: &mut state,
                scores,
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

/// The results of queries without keys.
pub(super) fn clear_outputs<E: Element>(head: Head, out: SharedMut<E>, lse: SharedMut) {
    for i in 0..head.q_len {
        // SAFETY: row i of this head is inside the buffers, whose lengths the entry asserted, and no other task writes this
        // head's columns of this sequence's rows.
        unsafe {
            let row = out.get().add(head.q_at(i));
            std::slice::from_raw_parts_mut(row, head.head_dim).fill(E::default());
            *lse.get().add(head.lse_at(i)) = f32::NEG_INFINITY;
        }
    }
}

/// Row `i` of this head's output.
///
/// # Safety
/// `i` is below the sequence's length, the buffer outlives the use, and nothing else uses the row meanwhile.
pub(super) unsafe fn out_row<'a>(out: SharedMut, head: &Head, i: usize) -> &'a mut [f32] {
    // SAFETY: the caller's contract.
    unsafe { std::slice::from_raw_parts_mut(out.get().add(head.q_at(i)), head.head_dim) }
}

/// Running maximum and sum of a block's rows.
pub(super) struct RowState {
    pub max: [f32; MOST_ROWS],
    pub sum: [f32; MOST_ROWS],
}

impl RowState {
    /// A tile's new maximum, and its sum of exponentials less that; `out` is brought to the new maximum.
    #[inline(always)]
    pub fn advance<S: Simd>(
        &mut self,
        s: S,
        (tile, row): (Tile, usize),
        max: f32,
        sum: f32,
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

struct ForwardTile<'a, 't> {
    task: &'a Forward<'t>,
    tile: Tile,
    state: &'a mut RowState,
    scores: *mut f32,
}

impl SimdOp for ForwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (task, tile, head) = (self.task, self.tile, self.task.head);
        let scores = self.scores;
        // SAFETY: the entry asserted the lengths of q, k, v and out; tile rows and columns lie inside the sequence; the
        // scores hold Q_BLOCK rows of TILE_STRIDE, of which this thread is the only user; keys were packed up to whole panels.
        unsafe {
            multiply_block(
                s,
                &Block {
                    a: task.q.as_ptr().add(head.q_at(tile.i)),
                    a_row: head.width,
                    a_col: 1,
                    b: task.scratch.keys.as_ptr().add(tile.j * head.head_dim),
                    b_row: PANEL,
                    b_panel: head.head_dim * PANEL,
                    b_padded: true,
                    c: scores,
                    c_row: TILE_STRIDE,
                    bias: std::ptr::null(),
                    m: tile.m,
                    n: tile.n,
                    k: head.head_dim,
                    alpha: head.scale,
                    accumulate: false,
                },
            );
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

/// A row of scaled scores becomes exponentials less the running maximum, zero outside its columns, with dropout; the running
/// sum follows, and `out` is brought to the new maximum.
#[inline(always)]
pub(super) fn softmax_row<S: Simd>(
    s: S,
    head: &Head,
    mask: Option<&Mask>,
    (tile, row): (Tile, usize),
    p: &mut [f32],
    state: &mut RowState,
    out: &mut [f32],
) {
    let columns = head.tile_columns(tile, row);
    p[..columns.start].fill(0.0);
    p[columns.end..].fill(0.0);
    if columns.is_empty() {
        return;
    }
    let start = tile.j + columns.start;
    let p = &mut p[columns];
    let max = row_max(s, p).max(state.max[row]);
    let sum = exp_in_place(s, p, max);
    state.advance(s, (tile, row), max, sum, out);
    if let Some(mask) = mask {
        mask.apply(s, head.dropout_index(tile.i + row) + start as u64, p);
    }
}
