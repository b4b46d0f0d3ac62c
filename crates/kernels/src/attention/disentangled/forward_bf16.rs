//! The forward task on bf16 pairs: one head of one sequence.

use super::super::forward::{RowState, clear_outputs};
use super::super::forward_bf16::{prefetch_beside, store_results};
use super::super::pairs::{PairScratch, copy_rows, pack_by_columns, padded};
use super::super::rows_bf16::softmax_row;
use super::super::{Head, Scratch, Tile, prefetch_rows};
use super::skewed::{
    BLOCKS, HeadTables, MARGIN, MARGINED, STRIDE, SkewScratch, prepare_keys, scores,
};
use crate::dropout::Mask;
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
            clear_outputs(head, self.out, self.lse);
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
        if tile.is_last {
            store_results(s, (&head, tile), pairs, state, (task.out, task.lse));
        }
    }
}

impl Forward<'_> {
    /// Scores become exponentials, which meet the values.
    #[inline(always)]
    fn values<S: Simd>(&self, s: S, tile: Tile, pairs: &mut PairScratch, state: &mut RowState) {
        let head = self.head;
        let width = padded(head.head_dim);
        for row in 0..tile.m {
            if tile.is_first {
                prefetch_beside(s, &head, self.inputs, self.out, tile.i + row);
            }
            let scores = &pairs.scores[0][row * STRIDE + MARGIN..][..tile.n];
            let narrow = &mut pairs.narrow[row * MARGINED.narrow..][..2 * pairs_of(tile.n)];
            let sums = &mut pairs.sums[0][row * width..][..width];
            let of_head = (&head, self.mask.as_ref());
            softmax_row(s, of_head, (tile, row), (scores, narrow), state, sums);
        }
        // SAFETY: `prepare_keys` and the packed values sized the buffers; the rows of this tile were just made.
        unsafe { pairs.meet_keys(s, &head, tile, &MARGINED) };
    }
}
