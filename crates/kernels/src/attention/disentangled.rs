//! Disentangled attention (He et al. 2020) by offsets, forward and backward: a score is a sum of three products,
//! `scale (q_i·k_j + q_i·pos_k[r] + k_j·pos_q[r])`, where r is the row that the distance i - j falls into.
//!
//! Nothing is gathered. The tables are laid out once a call by distance, so that the position scores of neighbouring
//! rows lie on neighbouring diagonals: a block of [`BLOCK`] rows times a run of distances is a small product whose result
//! is a parallelogram of the score tile. Rows of that result one element further apart than the tile's are the tile itself,
//! straight for the queries' product and transposed for the keys'. The backward reads the gradient of the tile in the same
//! way. Margins of [`BLOCK`] columns around the tile take what the parallelogram's corners hold.

mod backward;
mod backward_bf16;
mod bf16;
mod forward;
mod forward_bf16;
mod skewed;

pub use bf16::{
    PairWorkspace, disentangled_attention_backward_bf16, disentangled_attention_forward_bf16,
    disentangled_backward_workspace_bf16, disentangled_forward_workspace_bf16,
};
pub(super) use skewed::SkewScratch;

use super::backward::clear_gradients;
use super::{
    AttentionMask, AttentionShape, Head, KV_BLOCK, MOST_ROWS, SCRATCH, Scratch, TILE_STRIDE, Tile,
    make_mask, pack_panels, run_tasks,
};
use crate::gemm::{Block, PANEL, multiply_block};
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::{SharedMut, for_each_task};
use crate::simd::{Simd, SimdOp, dispatch};

/// Rows of a parallelogram, and the margin on each side of a tile: a panel, so that runs of distances start at one.
const BLOCK: usize = PANEL;

/// Query rows of a tile.
const Q_ROWS: usize = MOST_ROWS / BLOCK * BLOCK;

/// Key columns of a tile: with both margins they fit between two rows, and they are a multiple of the panel.
const KV_COLUMNS: usize = KV_BLOCK - 2 * BLOCK;

/// Distance between rows of the keys' position scores, and of their gradient: Q_ROWS, two margins, and no power of two.
const TURNED_STRIDE: usize = Q_ROWS + 2 * BLOCK + 16;

/// Backward tasks, about: heads times groups of sequences, each with a gradient of the tables of its own.
const BACKWARD_TASKS: usize = 32;

/// The tables of relative positions, projected for one layer and shared by all sequences. Either may be absent.
#[derive(Clone, Copy, Debug)]
pub struct RelativePositions<'a, E = f32> {
    /// `[2 reach - 1]`: the row of the tables for the distance i - j = entry - (reach - 1). No sequence is longer than reach.
    pub rows: &'a [u32],
    /// pos_k [R, H * Dh]: content to position.
    pub keys: Option<&'a [E]>,
    /// pos_q [R, H * Dh]: position to content.
    pub queries: Option<&'a [E]>,
}

/// Operands. Query i of a sequence stands at its position i. Shapes: q [q rows, H * Dh]; k, v [kv rows, H * Dh].
#[derive(Clone, Copy, Debug)]
pub struct DisentangledInputs<'a, E = f32> {
    /// Queries.
    pub q: &'a [E],
    /// Keys.
    pub k: &'a [E],
    /// Values.
    pub v: &'a [E],
    /// Projected relative positions.
    pub positions: RelativePositions<'a, E>,
}

/// What the backward needs. Shapes: out [q rows, H * Dh]; lse [q rows, H].
#[derive(Clone, Copy, Debug)]
pub struct DisentangledSaved<'a, E = f32> {
    /// The operands.
    pub inputs: DisentangledInputs<'a, E>,
    /// The forward's result.
    pub out: &'a [E],
    /// Logarithm of each row's sum of exponentials.
    pub lse: &'a [f32],
}

/// Gradients of the operands, of their shapes, all overwritten.
#[derive(Debug)]
pub struct DisentangledGradients<'a, E = f32> {
    /// Of the queries.
    pub d_q: &'a mut [E],
    /// Of the keys.
    pub d_k: &'a mut [E],
    /// Of the values.
    pub d_v: &'a mut [E],
    /// Of pos_k, if it is wanted; only where there is a pos_k.
    pub d_keys: Option<&'a mut [E]>,
    /// Of pos_q, if it is wanted; only where there is a pos_q.
    pub d_queries: Option<&'a mut [E]>,
}

/// f32 values of workspace that the forward needs with `n_tables` tables.
pub fn disentangled_forward_workspace(shape: &AttentionShape, n_tables: usize) -> usize {
    2 * n_tables * shape.table_len()
}

/// f32 values of workspace that the backward needs with `n_tables` tables, the gradient of `n_trained` of which is wanted.
pub fn disentangled_backward_workspace(
    shape: &AttentionShape,
    n_tables: usize,
    n_trained: usize,
) -> usize {
    (2 * n_tables + groups(shape) * n_trained) * shape.table_len()
}

/// out = softmax(scores) v by head and sequence, the probabilities with dropout if asked. A sequence without keys gives 0.
///
/// Shapes: out [q rows, H * Dh]; lse [q rows, H]; workspace `[disentangled_forward_workspace]`. Panics if a length
/// disagrees, a sequence is longer than the reach, or a row is past the end of a table.
pub fn disentangled_attention_forward(
    isa: Isa,
    shape: &AttentionShape,
    inputs: &DisentangledInputs,
    workspace: &mut [f32],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let DisentangledInputs { q, k, v, .. } = *inputs;
    shape.check_lengths(&[q, out], &[k, v], lse);
    check(shape, &inputs.positions);
    let tables = Tables::prepare(isa, shape, &inputs.positions, workspace);
    let mask = make_mask(shape);
    let (out, lse) = (SharedMut::new(out), SharedMut::new(lse));
    run_tasks(shape, |head, scratch| {
        let op = forward::Forward {
            scores: Scores {
                head,
                q: inputs.q,
                k: inputs.k,
                tables,
            },
            mask,
            v: inputs.v,
            out,
            lse,
            scratch,
        };
        dispatch(isa, op);
    });
}

/// The gradients. Scores are computed again from q, k, the tables and lse, dropout from its key. Each task adds up the
/// gradients of the tables over its own sequences; tasks are summed in their order.
///
/// Shapes: d_out [q rows, H * Dh]; workspace `[disentangled_backward_workspace]`. Panics if a length disagrees.
pub fn disentangled_attention_backward(
    isa: Isa,
    shape: &AttentionShape,
    saved: &DisentangledSaved,
    d_out: &[f32],
    workspace: &mut [f32],
    gradients: DisentangledGradients,
) {
    let (DisentangledInputs { q, k, v, .. }, positions) = (saved.inputs, &saved.inputs.positions);
    let DisentangledGradients {
        d_q,
        d_k,
        d_v,
        d_keys,
        d_queries,
    } = gradients;
    shape.check_lengths(&[q, saved.out, d_out, d_q], &[k, v, d_k, d_v], saved.lse);
    check(shape, positions);
    let prepared = disentangled_forward_workspace(shape, positions.count());
    let (prepared, partial) = workspace.split_at_mut(prepared);
    let tables = Tables::prepare(isa, shape, positions, prepared);
    let part = groups(shape) * shape.table_len();
    let [mut of_keys, mut of_queries] =
        split_partial(partial, part, [&d_keys, &d_queries], positions);
    if shape.width() > 0 {
        let task = backward::Groups {
            isa,
            shape,
            saved,
            d_out,
            tables,
            d_q: SharedMut::new(d_q),
            d_k: SharedMut::new(d_k),
            d_v: SharedMut::new(d_v),
            d_keys: of_keys.as_deref_mut().map(SharedMut::new),
            d_queries: of_queries.as_deref_mut().map(SharedMut::new),
        };
        task.run();
    }
    for (d, partial, side) in [
        (d_keys, of_keys, Side::Keys),
        (d_queries, of_queries, Side::Queries),
    ] {
        if let Some((d, partial)) = d.zip(partial) {
            sum_groups(shape, positions, partial, d, side);
        }
    }
}

impl<E> RelativePositions<'_, E> {
    fn count(&self) -> usize {
        usize::from(self.keys.is_some()) + usize::from(self.queries.is_some())
    }

    /// The table's row of column c in the layout by distance.
    fn row(&self, side: Side, c: usize, columns: usize) -> usize {
        let reach = self.rows.len() / 2 + 1;
        let middle = columns / 2;
        // Columns beyond the reach are never used: any row will do.
        let entry = match side {
            Side::Keys => (reach - 1 + middle).saturating_sub(c),
            Side::Queries => (reach - 1 + c).saturating_sub(middle),
        };
        self.rows[entry.min(self.rows.len() - 1)] as usize
    }
}

/// Which table: its columns rise with j - i (keys) or with i - j (queries).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Keys,
    Queries,
}

impl AttentionShape<'_> {
    /// Columns of a table laid out by distance: column c stands for the distance c - columns / 2.
    fn columns(&self) -> usize {
        let sequences = 0..self.q_offsets.len().saturating_sub(1);
        let longest = sequences.map(|b| self.q_len(b).max(self.kv_len(b))).max();
        2 * longest.unwrap_or(0).next_multiple_of(BLOCK)
    }

    /// Values of a table of all heads laid out by distance.
    fn table_len(&self) -> usize {
        self.columns() * self.width()
    }
}

/// Groups of sequences in the backward: a function of the shape alone.
fn groups(shape: &AttentionShape) -> usize {
    let sequences = shape.q_offsets.len().saturating_sub(1);
    BACKWARD_TASKS
        .div_ceil(shape.num_heads.max(1))
        .min(sequences)
}

/// The sequences as the groups deal them out in turn, the longest first: a function of the shape alone.
fn longest_first(shape: &AttentionShape) -> Vec<usize> {
    let mut sequences: Vec<usize> = (0..shape.q_offsets.len().saturating_sub(1)).collect();
    sequences.sort_by_key(|&b| std::cmp::Reverse(shape.q_len(b) * shape.kv_len(b)));
    sequences
}

/// Of the keys' and the queries' table the part of a workspace that takes its gradient, where that is wanted. Panics if the
/// workspace is not as long as these parts, or if a gradient is not as long as its table.
fn split_partial<'a, E>(
    workspace: &'a mut [f32],
    part: usize,
    wanted: [&Option<&mut [E]>; 2],
    positions: &RelativePositions<E>,
) -> [Option<&'a mut [f32]>; 2] {
    let n_wanted = wanted.iter().filter(|d| d.is_some()).count();
    assert_eq!(workspace.len(), n_wanted * part, "the workspace's length");
    let mut rest = workspace;
    let tables = [positions.keys, positions.queries];
    let mut of = |d: &Option<&mut [E]>, table: Option<&[E]>| {
        let (d, table) = (d.as_deref()?, table.expect("only where there is a table"));
        assert_eq!(d.len(), table.len());
        let (mine, others) = std::mem::take(&mut rest).split_at_mut(part);
        rest = others;
        Some(mine)
    };
    [of(wanted[0], tables[0]), of(wanted[1], tables[1])]
}

/// Panics unless the positions reach as far as the sequences and the tables hold every row that they name.
fn check<E>(shape: &AttentionShape, positions: &RelativePositions<E>) {
    assert_eq!(shape.mask, AttentionMask::Full, "only bidirectional");
    assert!(positions.rows.len() % 2 == 1, "an odd number of distances");
    let reach = positions.rows.len() / 2 + 1;
    for b in 0..shape.q_offsets.len().saturating_sub(1) {
        let longest = shape.q_len(b).max(shape.kv_len(b));
        assert!(
            longest <= reach,
            "{longest} positions, the reach is {reach}"
        );
    }
    let last = positions
        .rows
        .iter()
        .max()
        .map_or(0, |&row| row as usize + 1);
    for table in positions.keys.iter().chain(&positions.queries) {
        assert!(
            table.len() >= last * shape.width(),
            "a row past the end of a table"
        );
    }
}

/// The tables by distance: rows [H][columns][Dh] for the backward's products, and panels of them for the scores'.
#[derive(Clone, Copy)]
struct Tables<'a> {
    keys: Option<Table<'a>>,
    queries: Option<Table<'a>>,
    /// Values of one head.
    head_len: usize,
    columns: usize,
}

#[derive(Clone, Copy)]
struct Table<'a> {
    rows: &'a [f32],
    panels: &'a [f32],
}

impl<'a> Tables<'a> {
    fn prepare(
        isa: Isa,
        shape: &AttentionShape,
        positions: &RelativePositions,
        workspace: &'a mut [f32],
    ) -> Self {
        let len = shape.table_len();
        assert_eq!(workspace.len(), 2 * positions.count() * len);
        let mut rest = workspace;
        let mut make = |from: Option<&[f32]>, side| {
            let from = from?;
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(2 * len);
            rest = others;
            let (rows, panels) = mine.split_at_mut(len);
            lay_out(isa, shape, positions, (from, side), rows, panels);
            Some(Table { rows, panels })
        };
        Tables {
            keys: make(positions.keys, Side::Keys),
            queries: make(positions.queries, Side::Queries),
            head_len: shape.columns() * shape.head_dim,
            columns: shape.columns(),
        }
    }
}

/// Copies one table by distance, head by head, and packs it.
fn lay_out(
    isa: Isa,
    shape: &AttentionShape,
    positions: &RelativePositions,
    (from, side): (&[f32], Side),
    rows: &mut [f32],
    panels: &mut [f32],
) {
    let (columns, d, width) = (shape.columns(), shape.head_dim, shape.width());
    if columns * d == 0 {
        return;
    }
    let (rows, panels) = (SharedMut::new(rows), SharedMut::new(panels));
    for_each_task(shape.num_heads, |head| {
        // SAFETY: both buffers are `num_heads` parts of columns * d long, as the callers split them, and each task
        // takes one part of its own.
        let (rows, panels) = unsafe {
            let part = |x: SharedMut| {
                std::slice::from_raw_parts_mut(x.get().add(head * columns * d), columns * d)
            };
            (part(rows), part(panels))
        };
        for (c, row) in rows.chunks_exact_mut(d).enumerate() {
            let start = positions.row(side, c, columns) * width + head * d;
            row.copy_from_slice(&from[start..start + d]);
        }
        crate::gemm::pack(isa, MatRef::new(rows, columns, d), panels);
    });
}

/// d = the sum over groups and columns of what belongs to each row of a table; zeros for rows that no distance names.
fn sum_groups(
    shape: &AttentionShape,
    positions: &RelativePositions,
    partial: &[f32],
    d: &mut [f32],
    side: Side,
) {
    let (columns, head_dim, width) = (shape.columns(), shape.head_dim, shape.width());
    d.fill(0.0);
    if columns * head_dim == 0 {
        return;
    }
    let d = SharedMut::new(d);
    for_each_task(shape.num_heads, |head| {
        for group in partial.chunks_exact(shape.table_len()) {
            let of_head = &group[head * columns * head_dim..][..columns * head_dim];
            for (c, from) in of_head.chunks_exact(head_dim).enumerate() {
                let start = positions.row(side, c, columns) * width + head * head_dim;
                // SAFETY: the table reaches beyond every row that the positions name (asserted at the entry), and no
                // other task writes this head's columns.
                let to = unsafe { std::slice::from_raw_parts_mut(d.get().add(start), head_dim) };
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    });
}

/// What the scores of one head of one sequence are made of.
#[derive(Clone, Copy)]
struct Scores<'a> {
    head: Head,
    q: &'a [f32],
    k: &'a [f32],
    tables: Tables<'a>,
}

/// Buffers of one thread.
#[derive(Clone, Copy)]
struct Buffers {
    /// The keys' panels.
    keys: *const f32,
    /// Q_ROWS rows, TILE_STRIDE apart; the tile begins at column BLOCK.
    scores: *mut f32,
    /// BLOCK rows, TURNED_STRIDE apart.
    turned: *mut f32,
}

impl Buffers {
    /// A thread's, large enough; the keys as they are packed by now.
    fn of(scratch: &mut Scratch) -> Self {
        Buffers {
            keys: scratch.keys.as_ptr(),
            scores: scratch.scores.at_least(Q_ROWS * TILE_STRIDE).as_mut_ptr(),
            turned: scratch
                .positions
                .at_least(BLOCK * TURNED_STRIDE)
                .as_mut_ptr(),
        }
    }
}

impl Scores<'_> {
    /// This head's part of a table.
    fn part<'t>(&self, table: &'t [f32]) -> &'t [f32] {
        &table[self.head.head * self.tables.head_len..][..self.tables.head_len]
    }

    /// First column of the keys' table for query block `i` and the tile's keys.
    fn keys_column(&self, i: usize, j: usize) -> usize {
        self.tables.columns / 2 + j - i - BLOCK
    }

    /// First column of the queries' table for key block `j` and the tile's queries.
    fn queries_column(&self, i: usize, j: usize) -> usize {
        self.tables.columns / 2 + i - j - BLOCK
    }

    /// The scores of a tile; its margins hold anything afterwards.
    ///
    /// # Safety
    /// The buffers are as they say and this thread's alone; the tile lies inside the sequence and starts at multiples of
    /// BLOCK.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, s: S, tile: Tile, buffers: Buffers) {
        let head = self.head;
        let content = Block {
            a: self.q[head.q_at(tile.i)..].as_ptr(),
            a_row: head.width,
            a_col: 1,
            b: buffers.keys.wrapping_add(tile.j * head.head_dim),
            b_row: PANEL,
            b_panel: head.head_dim * PANEL,
            b_padded: true,
            c: buffers.scores.wrapping_add(BLOCK),
            c_row: TILE_STRIDE,
            bias: std::ptr::null(),
            m: tile.m,
            n: tile.n,
            k: head.head_dim,
            alpha: head.scale,
            accumulate: self.tables.queries.is_some(),
        };
        // SAFETY: the caller's contract; the entry asserted the lengths of q and k. Runs of distances start at a panel and
        // end inside the table: j - i lies between -columns / 2 and columns / 2 - 1 - n.
        unsafe {
            if let Some(table) = self.tables.queries {
                self.position_to_content(s, tile, buffers, self.part(table.panels));
            }
            multiply_block(s, &content);
            let Some(table) = self.tables.keys else {
                return;
            };
            let panels = self.part(table.panels);
            for block in (0..tile.m).step_by(BLOCK) {
                let column = self.keys_column(tile.i + block, tile.j);
                multiply_block(
                    s,
                    &Block {
                        a: content.a.wrapping_add(block * head.width),
                        b: panels[column * head.head_dim..].as_ptr(),
                        c: buffers.scores.wrapping_add(block * TILE_STRIDE),
                        c_row: TILE_STRIDE + 1,
                        m: (tile.m - block).min(BLOCK),
                        n: tile.n + BLOCK,
                        accumulate: true,
                        ..content
                    },
                );
            }
        }
    }

    /// Writes the keys' position scores over the tile.
    ///
    /// # Safety
    /// As `tile`.
    #[inline(always)]
    unsafe fn position_to_content<S: Simd>(
        &self,
        s: S,
        tile: Tile,
        buffers: Buffers,
        panels: &[f32],
    ) {
        let head = self.head;
        for block in (0..tile.n).step_by(BLOCK) {
            let rows = (tile.n - block).min(BLOCK);
            let column = self.queries_column(tile.i, tile.j + block);
            // SAFETY: as in `tile`. Blocks of LANES rows and columns that reach beyond the tile stay inside both
            // buffers: `turned` has BLOCK rows with a margin, the scores have Q_ROWS rows and a margin of BLOCK.
            unsafe {
                multiply_block(
                    s,
                    &Block {
                        a: self.k[head.kv_at(tile.j + block)..].as_ptr(),
                        a_row: head.width,
                        a_col: 1,
                        b: panels[column * head.head_dim..].as_ptr(),
                        b_row: PANEL,
                        b_panel: head.head_dim * PANEL,
                        b_padded: true,
                        c: buffers.turned,
                        c_row: TURNED_STRIDE,
                        bias: std::ptr::null(),
                        m: rows,
                        n: tile.m + BLOCK,
                        k: head.head_dim,
                        alpha: head.scale,
                        accumulate: false,
                    },
                );
                for row in (0..rows).step_by(S::LANES) {
                    for i in (0..tile.m).step_by(S::LANES) {
                        // Row j of the product holds query i at column i + BLOCK - j.
                        let from = buffers
                            .turned
                            .wrapping_add(BLOCK + row * (TURNED_STRIDE - 1) + i);
                        let to = buffers
                            .scores
                            .wrapping_add(i * TILE_STRIDE + BLOCK + block + row);
                        s.transpose(from, TURNED_STRIDE - 1, to, TILE_STRIDE);
                    }
                }
            }
        }
    }
}
