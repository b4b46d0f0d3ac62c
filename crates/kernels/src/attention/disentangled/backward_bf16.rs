//! The backward task on bf16 pairs: one head of one group of sequences. As attention's, and from the gradients of a tile's
//! scores what they give through each table and to it.

use super::super::backward::{RowContext, clear_gradients, dots, row_gradient};
use super::super::pairs::{
    PairBlock, PairScratch, copy_rows, multiply_pairs, pack_by_columns, pack_by_rows, padded,
    store_row,
};
use super::super::{Head, SCRATCH, Scratch, Tile, make_mask, prefetch_row, prefetch_rows};
use super::bf16::PairTables;
use super::skewed::{
    BLOCKS, HeadTables, MARGIN, MARGINED, NARROW, STRIDE, SkewScratch, SkewedGradients, TILE,
    prepare_keys, scores,
};
use super::{AttentionShape, DisentangledSaved, groups, longest_first};
use crate::dropout::Mask;
use crate::gemm::PANEL;
use crate::gemm_bf16::pairs_of;
use crate::isa::Isa;
use crate::parallel::{SharedMut, for_each_task};
use crate::simd::{Simd, SimdOp, dispatch};
use half::bf16;

/// The whole backward, before the groups are summed.
pub(super) struct Groups<'a> {
    pub isa: Isa,
    pub shape: &'a AttentionShape<'a>,
    pub saved: &'a DisentangledSaved<'a, bf16>,
    pub d_out: &'a [bf16],
    pub tables: PairTables<'a>,
    /// d_q, d_k and d_v.
    pub gradients: [SharedMut<bf16>; 3],
    /// Of the keys' and the queries' table, where wanted: per group and head [columns, padded Dh].
    pub of_tables: [Option<SharedMut>; 2],
}

impl Groups<'_> {
    pub(super) fn run(&self) {
        let (shape, n_groups) = (self.shape, groups(self.shape));
        let mask = make_mask(shape);
        let part_len = shape.columns() * padded(shape.head_dim);
        let sequences = longest_first(shape);
        for_each_task(n_groups * shape.num_heads, |task| {
            let (group, h) = (task / shape.num_heads, task % shape.num_heads);
            // SAFETY: each buffer holds a part for every group and head (the entry split them so), and each task takes its
            // own.
            let part = |all: SharedMut| unsafe {
                let part = all.get().add(task * part_len);
                std::slice::from_raw_parts_mut(part, part_len).fill(0.0);
                part
            };
            let of_tables = self.of_tables.map(|all| all.map(part));
            SCRATCH.with_borrow_mut(|scratch| {
                let mut mine = sequences.iter().skip(group).step_by(n_groups).peekable();
                while let Some(&b) = mine.next() {
                    let backward = Backward {
                        all: self,
                        head: shape.head(b, h),
                        next: mine.peek().map(|&&b| shape.head(b, h)),
                        mask,
                        tables: self.tables.head(h),
                        of_tables,
                        scratch,
                    };
                    dispatch(self.isa, backward);
                }
            });
        });
    }
}

/// One head of one sequence.
struct Backward<'a> {
    all: &'a Groups<'a>,
    head: Head,
    /// The task after this one.
    next: Option<Head>,
    mask: Option<Mask>,
    tables: HeadTables<'a>,
    of_tables: [Option<*mut f32>; 2],
    scratch: &'a mut Scratch,
}

impl SimdOp for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let head = self.head;
        if head.q_len == 0 || head.kv_len == 0 {
            let [d_q, d_k, d_v] = self.all.gradients;
            clear_gradients(head, d_q, d_k, d_v);
            return;
        }
        let mut pairs = std::mem::take(&mut self.scratch.pairs);
        let mut skew = std::mem::take(&mut self.scratch.skewed);
        self.prepare(s, &mut pairs, &mut skew);
        head.for_each_tile(BLOCKS, |tile| {
            s.call(BackwardTile {
                task: &self,
                tile,
                pairs: &mut pairs,
                skew: &mut skew,
            });
        });
        let width = padded(head.head_dim);
        for j in 0..head.kv_len {
            for which in [1, 2] {
                let sums = &pairs.sums[which][j * width..][..width];
                self.store(s, which, sums, head.kv_at(j));
            }
        }
        self.scratch.pairs = pairs;
        self.scratch.skewed = skew;
    }
}

struct BackwardTile<'a, 't> {
    task: &'a Backward<'t>,
    tile: Tile,
    pairs: &'a mut PairScratch,
    skew: &'a mut SkewScratch,
}

impl SimdOp for BackwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (task, tile, pairs, skew) = (self.task, self.tile, self.pairs, self.skew);
        let head = task.head;
        if tile.is_first {
            let of_q = [task.all.saved.inputs.q, task.all.d_out];
            for (which, x) in of_q.into_iter().enumerate() {
                let rows = head.q_rows(x, tile.i, tile.m);
                copy_rows(s, rows, &mut pairs.rows[which]);
                pack_by_columns(s, rows, &mut pairs.turned[which]);
            }
            let of_q = [task.all.saved.out, task.all.d_out];
            dots(s, (&head, tile), of_q, skew.deltas.at_least(tile.m));
        }
        scores(s, (&head, tile), &task.tables, pairs, skew);
        task.probabilities(s, tile, pairs);
        task.rows(s, tile, pairs, &skew.deltas);
        // SAFETY: `prepare` sized the buffers; the rows of this tile were just made.
        unsafe { pairs.add_gradients(s, &head, tile, &MARGINED) };
        let through = SkewedGradients {
            head,
            tile,
            tables: task.tables,
        };
        let [d_keys, d_queries] = task.of_tables;
        // SAFETY: each task has its own part of the tables' gradients; `prepare` sized the scratch.
        unsafe {
            through.content_to_position(s, pairs, skew, d_keys);
            through.position_to_content(s, pairs, skew, d_queries);
        }
        let width = padded(head.head_dim);
        for row in 0..if tile.is_last { tile.m } else { 0 } {
            let sums = &pairs.sums[0][row * width..][..width];
            task.store(s, 0, sums, head.q_at(tile.i + row));
        }
    }
}

impl Backward<'_> {
    #[inline(always)]
    fn prepare<S: Simd>(&self, s: S, pairs: &mut PairScratch, skew: &mut SkewScratch) {
        let (head, inputs) = (self.head, &self.all.saved.inputs);
        for of_kv in [inputs.k, inputs.v] {
            prefetch_rows(s, of_kv, head.kv_at(0), head.kv_len, &head);
        }
        for of_q in [inputs.q, self.all.d_out, self.all.saved.out] {
            prefetch_rows(s, of_q, head.q_at(0), head.q_len.min(BLOCKS[0]), &head);
        }
        prepare_keys(s, &head, inputs.k, pairs, skew);
        pack_by_rows(s, head.kv_rows(inputs.v), &mut pairs.panels[1]);
        pack_by_columns(s, head.kv_rows(inputs.k), &mut pairs.keys_turned);
        pairs.scores[1].at_least(TILE);
        for row_pairs in &mut pairs.row_pairs {
            row_pairs.at_least(BLOCKS[0] / 2 * NARROW);
        }
        for sums in &mut pairs.sums[1..] {
            sums.at_least(head.kv_len * padded(head.head_dim)).fill(0.0);
        }
        SkewedGradients::reserve(skew);
    }

    /// Asks for row `row` of what this task will write and of what the next one will read.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, s: S, row: usize) {
        let (head, inputs) = (self.head, &self.all.saved.inputs);
        let [d_q, d_k, d_v] = self.all.gradients.map(|d| d.get().cast_const());
        prefetch_row(s, d_q, head.q_at(0), row, &head);
        for of_kv in [d_k, d_v] {
            if row < head.kv_len {
                prefetch_row(s, of_kv, head.kv_at(0), row, &head);
            }
        }
        let Some(next) = self.next else {
            return;
        };
        for of_q in [inputs.q, self.all.d_out, self.all.saved.out] {
            if row < next.q_len.min(BLOCKS[0]) {
                prefetch_row(s, of_q.as_ptr(), next.q_at(0), row, &next);
            }
        }
        for of_kv in [inputs.k, inputs.v] {
            if row < next.kv_len {
                prefetch_row(s, of_kv.as_ptr(), next.kv_at(0), row, &next);
            }
        }
    }

    #[inline(always)]
    fn store<S: Simd>(&self, s: S, which: usize, sums: &[f32], at: usize) {
        // SAFETY: the row lies inside the buffer, whose length the entry asserted, and no other task writes this head's
        // columns of this sequence's rows.
        unsafe {
            let row = self.all.gradients[which].get().add(at);
            store_row(s, sums, 1.0, row, &self.head);
        }
    }

    /// The gradients of probabilities, d_out vᵀ.
    #[inline(always)]
    fn probabilities<S: Simd>(&self, s: S, tile: Tile, pairs: &mut PairScratch) {
        let depth = pairs_of(self.head.head_dim);
        let block = PairBlock {
            a: pairs.rows[1].as_ptr().cast(),
            a_row: depth,
            a_pair: 1,
            b: pairs.panels[1][2 * tile.j * depth..].as_ptr().cast(),
            b_panel: PANEL * depth,
            shape: [tile.m, tile.n, depth],
            c: pairs.scores[1][MARGIN..].as_mut_ptr(),
            c_row: STRIDE,
            accumulate: false,
        };
        // SAFETY: rows hold m rows of whole pairs, panels T rows up to whole panels (j is a multiple of PANEL), and the
        // scores BLOCKS[0] rows of STRIDE.
        unsafe { multiply_pairs(s, &block) };
    }

    /// Probabilities and gradients of scores, as pairs of rows and the latter as rows too, with zeros in their margins.
    #[inline(always)]
    fn rows<S: Simd>(&self, s: S, tile: Tile, pairs: &mut PairScratch, deltas: &[f32]) {
        let (head, saved, n) = (self.head, self.all.saved, tile.n);
        for row in 0..tile.m {
            if tile.is_first {
                self.prefetch(s, tile.i + row);
            }
            let context = RowContext {
                head,
                mask: self.mask.as_ref(),
                tile,
                row,
                lse: saved.lse[head.lse_at(tile.i + row)],
                delta: deltas[row],
                score_factor: head.scale,
            };
            let [p, d_s] = &mut pairs.scores;
            let p = &mut p[row * STRIDE + MARGIN..][..n];
            let d_s = &mut d_s[row * STRIDE..][..n + 2 * MARGIN];
            row_gradient(s, context, p, &mut d_s[MARGIN..][..n]);
            d_s[..MARGIN].fill(0.0);
            d_s[MARGIN + n..].fill(0.0);
            pairs.narrow_row(s, row, n, &MARGINED);
            pairs.pair_up(s, tile, row, &MARGINED);
        }
    }
}
