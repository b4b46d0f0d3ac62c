//! The backward task: one head of one group of sequences.

use super::super::backward::{RowContext, dot, row_gradient};
use super::super::{Scratch, prefetch_rows};
use super::*;
use crate::dropout::Mask;

/// The whole backward, before the groups are summed.
pub(super) struct Groups<'a> {
    pub isa: Isa,
    pub shape: &'a AttentionShape<'a>,
    pub saved: &'a DisentangledSaved<'a>,
    pub d_out: &'a [f32],
    pub tables: Tables<'a>,
    pub d_q: SharedMut,
    pub d_k: SharedMut,
    pub d_v: SharedMut,
    /// The keys' table's gradient, if it is wanted: per group and head [columns, Dh].
    pub d_keys: Option<SharedMut>,
    /// The queries' table's, likewise.
    pub d_queries: Option<SharedMut>,
}

impl Groups<'_> {
    pub(super) fn run(&self) {
        let (shape, n_groups) = (self.shape, groups(self.shape));
        let mask = make_mask(shape);
        let sequences = longest_first(shape);
        for_each_task(n_groups * shape.num_heads, |task| {
            let (group, h) = (task / shape.num_heads, task % shape.num_heads);
            // SAFETY: each buffer holds a part for every group and head (the entry split them so), and each task takes its
            // own.
            let part = |all: SharedMut| unsafe {
                let start = group * shape.table_len() + h * self.tables.head_len;
                let part = all.get().add(start);
                std::slice::from_raw_parts_mut(part, self.tables.head_len).fill(0.0);
                part
            };
            let (d_keys, d_queries) = (self.d_keys.map(part), self.d_queries.map(part));
            SCRATCH.with_borrow_mut(|scratch| {
                for &b in sequences.iter().skip(group).step_by(n_groups) {
                    let backward = Backward {
                        scores: Scores {
                            head: shape.head(b, h),
                            q: self.saved.inputs.q,
                            k: self.saved.inputs.k,
                            tables: self.tables,
                        },
                        all: self,
                        mask,
                        d_keys,
                        d_queries,
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
    scores: Scores<'a>,
    all: &'a Groups<'a>,
    mask: Option<Mask>,
    d_keys: Option<*mut f32>,
    d_queries: Option<*mut f32>,
    scratch: &'a mut Scratch,
}

impl SimdOp for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (head, all) = (self.scores.head, self.all);
        if head.q_len == 0 || head.kv_len == 0 {
            clear_gradients(head, all.d_q, all.d_k, all.d_v);
            return;
        }
        let v = all.saved.inputs.v;
        prefetch_rows(s, self.scores.k, head.kv_at(0), head.kv_len, &head);
        prefetch_rows(s, v, head.kv_at(0), head.kv_len, &head);
        for of_q in [self.scores.q, all.d_out, all.saved.out] {
            prefetch_rows(s, of_q, head.q_at(0), head.q_len.min(Q_ROWS), &head);
        }
        pack_panels(s, head.kv_rows(self.scores.k), &mut self.scratch.keys);
        pack_panels(s, head.kv_rows(v), &mut self.scratch.values);
        let buffers = Buffers::of(self.scratch);
        let d_scores = self
            .scratch
            .d_scores
            .at_least(Q_ROWS * TILE_STRIDE)
            .as_mut_ptr();
        head.for_each_tile([Q_ROWS, KV_COLUMNS], |tile| {
            s.call(BackwardTile {
                task: &self,
                tile,
                buffers,
                d_scores,
            });
        });
    }
}

struct BackwardTile<'a, 't> {
    task: &'a Backward<'t>,
    tile: Tile,
    buffers: Buffers,
    /// As the scores, with zeros in the margins once the rows are done.
    d_scores: *mut f32,
}

impl SimdOp for BackwardTile<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (task, tile, all) = (self.task, self.tile, self.task.all);
        let head = task.scores.head;
        let at_q = head.q_at(tile.i);
        let at_kv = head.kv_at(tile.j);
        let p = self.buffers.scores.wrapping_add(BLOCK);
        let d_s = self.d_scores.wrapping_add(BLOCK);
        // d_p = d_out vᵀ.
        let d_p = Block {
            a: all.d_out[at_q..].as_ptr(),
            a_row: head.width,
            a_col: 1,
            b: task.scratch.values[tile.j * head.head_dim..].as_ptr(),
            b_row: PANEL,
            b_panel: head.head_dim * PANEL,
            b_padded: true,
            c: d_s,
            c_row: TILE_STRIDE,
            bias: std::ptr::null(),
            m: tile.m,
            n: tile.n,
            k: head.head_dim,
            alpha: 1.0,
            accumulate: false,
        };
        // Gradients of keys and values: the transposed tile times rows of queries or of d_out.
        let columns = Block {
            a: p,
            a_row: 1,
            a_col: TILE_STRIDE,
            b: d_p.a,
            b_row: head.width,
            b_panel: PANEL,
            b_padded: false,
            c_row: head.width,
            m: tile.n,
            n: head.head_dim,
            k: tile.m,
            accumulate: tile.i > 0,
            ..d_p
        };
        // SAFETY: the entry asserted the lengths of all operands; tile rows and columns lie inside the sequence; the
        // buffers were made for this thread; no other task writes this head's columns of this sequence's rows of d_q,
        // d_k and d_v.
        unsafe {
            task.scores.tile(s, tile, self.buffers);
            multiply_block(s, &d_p);
            self.rows(s);
            let d_v = all.d_v.get().add(at_kv);
            multiply_block(s, &Block { c: d_v, ..columns });
            let d_k = Block {
                a: d_s,
                b: task.scores.q[at_q..].as_ptr(),
                c: all.d_k.get().add(at_kv),
                ..columns
            };
            multiply_block(s, &d_k);
            let d_q = Block {
                a: d_s,
                a_row: TILE_STRIDE,
                a_col: 1,
                b: task.scores.k[at_kv..].as_ptr(),
                c: all.d_q.get().add(at_q),
                m: tile.m,
                k: tile.n,
                accumulate: !tile.is_first,
                ..columns
            };
            multiply_block(s, &d_q);
            if let Some(table) = task.scores.tables.keys {
                self.content_to_position(s, task.scores.part(table.rows), task.d_keys);
            }
            if let Some(table) = task.scores.tables.queries {
                self.position_to_content(s, task.scores.part(table.rows), task.d_queries);
            }
        }
    }
}

impl BackwardTile<'_, '_> {
    /// Probabilities and gradients of scores, row by row, and zeros in the margins of the latter.
    ///
    /// # Safety
    /// The buffers are this thread's alone and hold scores and d_p.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self, s: S) {
        let (task, tile) = (self.task, self.tile);
        let (head, all) = (task.scores.head, task.all);
        for row in 0..tile.m {
            let at = row * TILE_STRIDE;
            // SAFETY: the caller's contract; a row with both margins is shorter than the distance between rows.
            let (p, d_s) = unsafe {
                let p = self.buffers.scores.add(at + BLOCK);
                let d_s = std::slice::from_raw_parts_mut(self.d_scores.add(at), tile.n + 2 * BLOCK);
                (std::slice::from_raw_parts_mut(p, tile.n), d_s)
            };
            let of_row = head.q_at(tile.i + row);
            let (out, d_out) = (&all.saved.out[of_row..], &all.d_out[of_row..]);
            let context = RowContext {
                head,
                mask: task.mask.as_ref(),
                tile,
                row,
                lse: all.saved.lse[head.lse_at(tile.i + row)],
                delta: dot(s, &out[..head.head_dim], &d_out[..head.head_dim]),
                score_factor: 1.0,
            };
            row_gradient(s, context, p, &mut d_s[BLOCK..][..tile.n]);
            d_s[..BLOCK].fill(0.0);
            d_s[BLOCK + tile.n..].fill(0.0);
        }
    }

    /// Adds what the queries' position scores give to d_q and to the gradient of the keys' table.
    ///
    /// # Safety
    /// As `rows`; the table's gradient has the table's length and is this task's alone.
    #[inline(always)]
    unsafe fn content_to_position<S: Simd>(&self, s: S, table: &[f32], d_table: Option<*mut f32>) {
        let (task, tile) = (self.task, self.tile);
        let (head, d) = (task.scores.head, task.scores.head.head_dim);
        for block in (0..tile.m).step_by(BLOCK) {
            let at_q = head.q_at(tile.i + block);
            let rows = (tile.m - block).min(BLOCK);
            let column = task.scores.keys_column(tile.i + block, tile.j);
            let skewed = Block {
                a: self.d_scores.wrapping_add(block * TILE_STRIDE),
                a_row: TILE_STRIDE + 1,
                a_col: 1,
                b: table[column * d..].as_ptr(),
                b_row: d,
                b_panel: PANEL,
                b_padded: false,
                c: task.all.d_q.get().wrapping_add(at_q),
                c_row: head.width,
                bias: std::ptr::null(),
                m: rows,
                n: d,
                k: tile.n + BLOCK,
                alpha: 1.0,
                accumulate: true,
            };
            // SAFETY: the caller's contract; a row of the skewed view ends inside its right margin; the run of distances
            // lies inside the table (see `Scores::tile`).
            unsafe {
                add_both(
                    s,
                    skewed,
                    &task.scores.q[at_q..],
                    head.width,
                    d_table.map(|d_table| d_table.add(column * d)),
                )
            };
        }
    }

    /// Adds what the keys' position scores give to d_k and to the gradient of the queries' table.
    ///
    /// # Safety
    /// As `content_to_position`.
    #[inline(always)]
    unsafe fn position_to_content<S: Simd>(&self, s: S, table: &[f32], d_table: Option<*mut f32>) {
        let (task, tile) = (self.task, self.tile);
        let (head, d) = (task.scores.head, task.scores.head.head_dim);
        let turned = self.buffers.turned;
        for block in (0..tile.n).step_by(BLOCK) {
            let at_kv = head.kv_at(tile.j + block);
            let rows = (tile.n - block).min(BLOCK);
            let column = task.scores.queries_column(tile.i, tile.j + block);
            // SAFETY: the caller's contract. Blocks of LANES rows and columns that reach beyond the tile stay inside both
            // buffers; what they leave in the right margin is overwritten with zeros.
            unsafe {
                for i in (0..tile.m).step_by(S::LANES) {
                    for row in (0..rows).step_by(S::LANES) {
                        let from = self.d_scores.add(i * TILE_STRIDE + BLOCK + block + row);
                        let to = turned.add(row * TURNED_STRIDE + BLOCK + i);
                        s.transpose(from, TILE_STRIDE, to, TURNED_STRIDE);
                    }
                }
                for row in 0..rows {
                    let row = std::slice::from_raw_parts_mut(
                        turned.add(row * TURNED_STRIDE),
                        TURNED_STRIDE,
                    );
                    row[..BLOCK].fill(0.0);
                    row[BLOCK + tile.m..].fill(0.0);
                }
                let skewed = Block {
                    a: turned,
                    a_row: TURNED_STRIDE + 1,
                    a_col: 1,
                    b: table[column * d..].as_ptr(),
                    b_row: d,
                    b_panel: PANEL,
                    b_padded: false,
                    c: task.all.d_k.get().add(at_kv),
                    c_row: head.width,
                    bias: std::ptr::null(),
                    m: rows,
                    n: d,
                    k: tile.m + BLOCK,
                    alpha: 1.0,
                    accumulate: true,
                };
                add_both(
                    s,
                    skewed,
                    &task.scores.k[at_kv..],
                    head.width,
                    d_table.map(|d_table| d_table.add(column * d)),
                );
            }
        }
    }
}

/// Adds a skewed view of d_s times the table to one gradient, and its transpose times `x` to the table's, if wanted.
///
/// # Safety
/// As `multiply_block` for both products; `x` holds the view's rows, `x_row` apart.
#[inline(always)]
unsafe fn add_both<S: Simd>(
    s: S,
    skewed: Block,
    x: &[f32],
    x_row: usize,
    d_table: Option<*mut f32>,
) {
    // SAFETY: the caller's contract.
    unsafe {
        multiply_block(s, &skewed);
        if let Some(d_table) = d_table {
            let turned = Block {
                a_row: 1,
                a_col: skewed.a_row,
                b: x.as_ptr(),
                b_row: x_row,
                c: d_table,
                c_row: skewed.n,
                m: skewed.k,
                k: skewed.m,
                ..skewed
            };
            multiply_block(s, &turned);
        }
    }
}
