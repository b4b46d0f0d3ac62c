//! Products of bf16 pairs that meet a table by distance: scores from it, and through it the gradients of scores. It knows
//! tiles and buffers, not softmax.
//!
//! Row i and column j of a tile meet column `first + j - i` of the table: a few neighbouring rows meet a run of columns, and
//! each of them stands one element further. Scores are written through rows one element further apart than the tile's;
//! gradients are read so, with zeros in margins for what lies beside the tile.

use super::super::pairs::{
    Layout, PairBlock, PairScratch, copy_rows, multiply_pairs, pack_by_rows, padded, pair_rows,
};
use super::super::{Head, Tile};
use crate::aligned::Aligned;
use crate::elementwise::convert_in;
use crate::gemm::PANEL;
use crate::gemm_bf16::{Ahead, Product, pairs_of, product_tile};
use crate::simd::Simd;
use half::bf16;

/// Query rows and key columns of a tile: with the buffers below they stay in the L2 cache.
pub(super) const BLOCKS: [usize; 2] = [super::Q_ROWS, 192];

/// Columns beside a tile of scores on each side: what a run of whole vectors reaches beyond it is less.
pub(super) const MARGIN: usize = PANEL;

/// Distance between rows of a tile of scores: with both margins, and rows fall into different cache sets.
pub(super) const STRIDE: usize = BLOCKS[1] + 2 * MARGIN + 16;

/// Values of a tile of scores.
pub(super) const TILE: usize = BLOCKS[0] * STRIDE;

/// Distance between rows of rounded gradients and of pairs of rows.
pub(super) const NARROW: usize = BLOCKS[1] + 16;

/// Where these are.
pub(super) const MARGINED: Layout = Layout {
    stride: STRIDE,
    margin: MARGIN,
    narrow: NARROW,
};

/// Distance between rows of turned scores, of which there are [`PANEL`].
const TURNED: usize = BLOCKS[0] + 2 * MARGIN + 16;

/// Zeros beside the gradients of scores on each side: more than the rows of a product.
const ZEROS: usize = 16;

/// Distance between rows of skewed gradients: odd, so that rows one element further apart are whole pairs apart.
const SKEWED: usize = BLOCKS[1] + 2 * ZEROS + 17;

/// Distance between diagonal pairs of rows.
const DIAGONAL: usize = BLOCKS[1] + 2 * ZEROS + 16;

const _: () = assert!(SKEWED % 2 == 1 && BLOCKS[0] <= BLOCKS[1] && BLOCKS[0].is_multiple_of(16));

/// Buffers that a thread keeps between tasks, beside those of attention on pairs. m queries and n keys of a tile.
#[derive(Default)]
pub(in super::super) struct SkewScratch {
    /// Rows of a table [PANEL, Dh].
    pub(super) gathered: Aligned<bf16>,
    /// Keys of the sequence [T, Dh], rows of whole pairs.
    pub(super) keys: Aligned<bf16>,
    /// Of each query of the tile its result times the gradient of it [m].
    pub(super) deltas: Aligned<f32>,
    /// Some keys' position scores, then gradients of scores, turned: [PANEL, m].
    turned: Aligned<f32>,
    /// Rounded gradients of scores between zeros: [m, n], or [n, m] turned.
    skewed: Aligned<bf16>,
    /// The same as pairs of two rows, the second one column further: [m / 2, n], or [n / 2, m].
    diagonal: Aligned<u32>,
}

/// The tables of one head by distance.
#[derive(Clone, Copy)]
pub(super) struct HeadTables<'a> {
    pub keys: Option<HeadTable<'a>>,
    pub queries: Option<HeadTable<'a>>,
    /// Column c stands for the distance c - columns / 2.
    pub columns: usize,
}

#[derive(Clone, Copy)]
pub(super) struct HeadTable<'a> {
    /// Panels of columns, pairs along Dh: what scores are made with.
    pub by_rows: &'a [bf16],
    /// Panels of Dh, pairs of columns: what gradients are made with; empty in the forward.
    pub by_columns: &'a [bf16],
}

impl HeadTables<'_> {
    /// The column of the keys' table that the first query and the first key of a tile meet.
    fn keys_first(&self, tile: Tile) -> usize {
        self.columns / 2 + tile.j - tile.i
    }

    /// The column of the queries' table that they meet.
    fn queries_first(&self, tile: Tile) -> usize {
        self.columns / 2 + tile.i - tile.j
    }
}

/// Brings the keys of a sequence into the forms that [`scores`] wants, and makes room for it.
#[inline(always)]
pub(super) fn prepare_keys<S: Simd>(
    s: S,
    head: &Head,
    k: &[bf16],
    pairs: &mut PairScratch,
    skew: &mut SkewScratch,
) {
    pack_by_rows(s, head.kv_rows(k), &mut pairs.panels[0]);
    copy_rows(s, head.kv_rows(k), &mut skew.keys);
    pairs.scores[0].at_least(TILE);
    pairs.narrow.at_least(BLOCKS[0] * NARROW);
    pairs.sums[0].at_least(BLOCKS[0] * padded(head.head_dim));
    skew.turned.at_least(PANEL * TURNED);
}

/// The scores of a tile, before their scale, from column [`MARGIN`] of `pairs.scores[0]` on; the margins hold anything
/// afterwards. The tile's queries are `pairs.rows[0]`, the keys as `prepare_keys` left them.
#[inline(always)]
pub(super) fn scores<S: Simd>(
    s: S,
    (head, tile): (&Head, Tile),
    tables: &HeadTables,
    pairs: &mut PairScratch,
    skew: &mut SkewScratch,
) {
    let depth = pairs_of(head.head_dim);
    let scores = pairs.scores[0].as_mut_ptr().wrapping_add(MARGIN);
    // SAFETY: rows hold m rows of whole pairs, panels T keys up to whole panels (j is a multiple of PANEL), the buffers
    // were sized by `prepare_keys`, and the tables cover the distances of the sequence.
    unsafe {
        if let Some(table) = tables.queries {
            let first = tables.queries_first(tile);
            let keys = &skew.keys[2 * tile.j * depth..];
            let turned = skew.turned.as_mut_ptr();
            position_to_content(
                s,
                tile,
                [keys, table.by_rows],
                (depth, first),
                [turned, scores],
            );
        }
        multiply_pairs(
            s,
            &PairBlock {
                a: pairs.rows[0].as_ptr().cast(),
                a_row: depth,
                a_pair: 1,
                b: pairs.panels[0].as_ptr().cast::<u32>().add(tile.j * depth),
                b_panel: PANEL * depth,
                shape: [tile.m, tile.n, depth],
                c: scores,
                c_row: STRIDE,
                accumulate: tables.queries.is_some(),
            },
        );
        if let Some(table) = tables.keys {
            let product = Skewed {
                a: pairs.rows[0].as_ptr().cast(),
                table: table.by_rows.as_ptr().cast(),
                depth,
                shape: [tile.m, tile.n],
                first: tables.keys_first(tile),
                c: scores,
                c_row: STRIDE,
                accumulate: true,
            };
            multiply_skewed(s, &product);
        }
    }
}

/// Writes the keys' position scores over a tile. Each block of keys makes them by key, and they are turned.
///
/// # Safety
/// `keys` are the tile's, rows of `depth` pairs; the buffers have their sizes and are this thread's alone.
#[inline(always)]
unsafe fn position_to_content<S: Simd>(
    s: S,
    tile: Tile,
    [keys, table]: [&[bf16]; 2],
    (depth, first): (usize, usize),
    [turned, scores]: [*mut f32; 2],
) {
    for block in (0..tile.n).step_by(PANEL) {
        let rows = (tile.n - block).min(PANEL);
        // SAFETY: the caller's contract. Blocks of LANES rows and columns that reach beyond the tile stay inside both
        // buffers: `turned` has PANEL rows, the scores BLOCKS[0], and both a margin.
        unsafe {
            let product = Skewed {
                a: keys[2 * block * depth..].as_ptr().cast(),
                table: table.as_ptr().cast(),
                depth,
                shape: [rows, tile.m],
                first: first - block,
                c: turned.add(MARGIN),
                c_row: TURNED,
                accumulate: false,
            };
            multiply_skewed(s, &product);
            for row in (0..rows).step_by(S::LANES) {
                for i in (0..tile.m).step_by(S::LANES) {
                    let from = turned.add(row * TURNED + MARGIN + i);
                    let to = scores.add(i * STRIDE + block + row);
                    s.transpose(from, TURNED, to, STRIDE);
                }
            }
        }
    }
}

/// A product of rows with the run of a table that each meets.
struct Skewed {
    /// Rows of `depth` pairs.
    a: *const u32,
    /// Panels of columns, pairs along the depth.
    table: *const u32,
    depth: usize,
    /// Rows and columns of the result.
    shape: [usize; 2],
    /// The column of the table that row 0 and column 0 meet.
    first: usize,
    /// Rows with margins on both sides.
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
}

/// c[i, j] (=|+=) a[i]·table[first + j - i]. Up to [`MARGIN`] elements beside each row of c hold anything afterwards.
///
/// # Safety
/// The pointers cover the shape, c with its margins, and the table the columns from `first - m + 1` to `first + n - 1` up to
/// whole panels.
#[inline(always)]
unsafe fn multiply_skewed<S: Simd>(s: S, x: &Skewed) {
    let [m, n] = x.shape;
    // A run starts at a whole vector, so that it never straddles panels; the scalar kernel's vectors are eight wide.
    let step = S::LANES.max(8);
    for i in (0..m).step_by(S::GEMM_ROWS) {
        let rows = (m - i).min(S::GEMM_ROWS);
        let mut column = (x.first - i - (rows - 1)) / step * step;
        let end = x.first - i + n;
        while column < end {
            let within = column % PANEL;
            let columns = (PANEL - within).min(end - column);
            // Row i meets `column` at this column of c.
            let j = (column + i) as isize - x.first as isize;
            // SAFETY: the caller's contract; rows i .. lie inside the shape, and the columns that they do not meet are
            // fewer than the rows and a vector, which is less than a margin.
            unsafe {
                let product = Product {
                    a: x.a.add(i * x.depth),
                    a_row: x.depth,
                    a_pair: 1,
                    b: x.table.add((column - within) * x.depth + within),
                    pairs: x.depth,
                    rows,
                    columns,
                    c: x.c.offset((i * x.c_row) as isize + j),
                    c_row: x.c_row + 1,
                    accumulate: x.accumulate,
                    ahead: Ahead::NOTHING,
                };
                product_tile(s, &product);
            }
            column += columns;
        }
    }
}

/// What one table's position scores give: to their own rows, and to the table.
pub(super) struct SkewedGradients<'a> {
    pub head: Head,
    pub tile: Tile,
    pub tables: HeadTables<'a>,
}

impl SkewedGradients<'_> {
    /// Makes room for a tile.
    pub(super) fn reserve(skew: &mut SkewScratch) {
        skew.turned.at_least(PANEL * TURNED);
        skew.skewed.at_least(BLOCKS[1] * SKEWED);
        skew.diagonal.at_least(BLOCKS[1] / 2 * DIAGONAL);
    }

    /// From the gradients of scores, rows of `pairs.scores[1]` between margins of zeros: adds to the sums of d_q, and to
    /// d_table [columns, padded Dh] of the keys' table, if it is wanted.
    ///
    /// # Safety
    /// d_table is this thread's alone; queries are turned, sums and scratch sized for the tile.
    #[inline(always)]
    pub(super) unsafe fn content_to_position<S: Simd>(
        &self,
        s: S,
        pairs: &mut PairScratch,
        skew: &mut SkewScratch,
        d_table: Option<*mut f32>,
    ) {
        let Some(table) = self.tables.keys else {
            return;
        };
        let tile = self.tile;
        for row in 0..tile.m {
            skew.add_rows(
                s,
                (row, tile.m),
                tile.n,
                |row| &pairs.scores[1][row * STRIDE + MARGIN - ZEROS..],
                d_table.is_some(),
            );
        }
        let side = Side {
            shape: [tile.m, tile.n],
            first: self.tables.keys_first(tile),
            table: table.by_columns,
            table_panel: self.tables.columns / 2 * PANEL,
            sums: pairs.sums[0].as_mut_ptr(),
            rows: pairs.turned[0].as_ptr().cast(),
            rows_panel: pairs_of(tile.m) * PANEL,
            d_table,
        };
        // SAFETY: the caller's contract.
        unsafe { side.add(s, self.head.head_dim, skew) };
    }

    /// The same for the queries' table: adds to the sums of d_k. The gradients are turned first.
    ///
    /// # Safety
    /// As `content_to_position`, with the keys turned.
    #[inline(always)]
    pub(super) unsafe fn position_to_content<S: Simd>(
        &self,
        s: S,
        pairs: &mut PairScratch,
        skew: &mut SkewScratch,
        d_table: Option<*mut f32>,
    ) {
        let Some(table) = self.tables.queries else {
            return;
        };
        let (head, tile) = (self.head, self.tile);
        let mut turned = std::mem::take(&mut skew.turned);
        for block in (0..tile.n).step_by(PANEL) {
            let rows = (tile.n - block).min(PANEL);
            for row in (0..rows).step_by(S::LANES) {
                for i in (0..tile.m).step_by(S::LANES) {
                    let from = &pairs.scores[1][i * STRIDE + MARGIN + block + row..];
                    let to = &mut turned[row * TURNED + MARGIN + i..];
                    // SAFETY: blocks of LANES rows and columns that reach beyond the tile stay inside both buffers.
                    unsafe { s.transpose(from.as_ptr(), STRIDE, to.as_mut_ptr(), TURNED) };
                }
            }
            for row in turned.chunks_exact_mut(TURNED).take(rows) {
                row[MARGIN - ZEROS..MARGIN].fill(0.0);
                row[MARGIN + tile.m..][..MARGIN].fill(0.0);
            }
            for row in block..block + rows {
                skew.add_rows(
                    s,
                    (row, tile.n),
                    tile.m,
                    |row| &turned[(row - block) * TURNED + MARGIN - ZEROS..],
                    d_table.is_some(),
                );
            }
        }
        skew.turned = turned;
        let side = Side {
            shape: [tile.n, tile.m],
            first: self.tables.queries_first(tile),
            table: table.by_columns,
            table_panel: self.tables.columns / 2 * PANEL,
            sums: pairs.sums[1][tile.j * padded(head.head_dim)..].as_mut_ptr(),
            rows: (pairs.keys_turned[tile.j * PANEL..].as_ptr()).cast(),
            rows_panel: pairs_of(head.kv_len) * PANEL,
            d_table,
        };
        // SAFETY: the caller's contract.
        unsafe { side.add(s, head.head_dim, skew) };
    }
}

impl SkewScratch {
    /// Takes over row `row` of `m` rows of gradients, and with every second row the diagonal pairs of both. `at` gives a row
    /// from ZEROS columns before its first on.
    #[inline(always)]
    fn add_rows<'a, S: Simd>(
        &mut self,
        s: S,
        (row, m): (usize, usize),
        n: usize,
        at: impl Fn(usize) -> &'a [f32],
        diagonal: bool,
    ) {
        let n = n + 2 * ZEROS;
        convert_in(s, &mut self.skewed[row * SKEWED..][..n], &at(row)[..n]);
        if diagonal && (row % 2 == 1 || row + 1 == m) {
            let first = row - row % 2;
            let second = (row % 2 == 1).then(|| &at(row)[1..n + 1]);
            let pairs = &mut self.diagonal[first / 2 * DIAGONAL..][..n];
            pair_rows(s, &at(first)[..n], second, pairs);
        }
    }
}

/// Gradients of scores in the rows' own order, and what they meet.
struct Side<'a> {
    /// Rows and columns.
    shape: [usize; 2],
    /// The column of the table that row 0 and column 0 meet.
    first: usize,
    /// Panels of Dh, pairs of columns.
    table: &'a [bf16],
    /// Distance between its panels, in pairs.
    table_panel: usize,
    /// Of row 0; rows of whole panels.
    sums: *mut f32,
    /// The operand that the rows belong to: panels of Dh, pairs of rows.
    rows: *const u32,
    /// Distance between its panels.
    rows_panel: usize,
    d_table: Option<*mut f32>,
}

impl Side<'_> {
    /// sums[i] += Σ_j d[i, j] table[first + j - i], and d_table[first + j - i] += Σ_i d[i, j] rows[i].
    ///
    /// # Safety
    /// The pointers cover the shape; `skew` holds the rows between zeros.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, s: S, d: usize, skew: &SkewScratch) {
        let ([m, n], first) = (self.shape, self.first);
        let width = padded(d);
        for i in (0..m).step_by(S::GEMM_ROWS) {
            let rows = (m - i).min(S::GEMM_ROWS);
            // The pairs of columns that these rows meet.
            let (start, end) = ((first - i - (rows - 1)) / 2, (first - i + n).div_ceil(2));
            let a = (i * (SKEWED + 1) + ZEROS + 2 * start) - first;
            let block = PairBlock {
                a: skew.skewed[a..].as_ptr().cast(),
                a_row: SKEWED.div_ceil(2),
                a_pair: 1,
                b: self.table[2 * start * PANEL..].as_ptr().cast(),
                b_panel: self.table_panel,
                shape: [rows, d, end - start],
                c: self.sums.wrapping_add(i * width),
                c_row: width,
                accumulate: true,
            };
            // SAFETY: the caller's contract; columns that a row does not meet are fewer than ZEROS on each side.
            unsafe { multiply_pairs(s, &block) };
        }
        let Some(d_table) = self.d_table else {
            return;
        };
        for c in (first + 1 - m..first + n).step_by(S::GEMM_ROWS) {
            let columns = (first + n - c).min(S::GEMM_ROWS);
            // The pairs of rows that these columns meet.
            let start = (first + 1).saturating_sub(c + columns) / 2;
            let end = (first + n - c).min(m).div_ceil(2);
            let block = PairBlock {
                a: skew.diagonal[(start * (DIAGONAL + 2) + ZEROS + c) - first..].as_ptr(),
                a_row: 1,
                a_pair: DIAGONAL + 2,
                b: self.rows.wrapping_add(start * PANEL),
                b_panel: self.rows_panel,
                shape: [columns, d, end - start],
                c: d_table.wrapping_add(c * width),
                c_row: width,
                accumulate: true,
            };
            // SAFETY: as above.
            unsafe { multiply_pairs(s, &block) };
        }
    }
}
