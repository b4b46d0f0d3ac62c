//! Position scores on bf16 pairs, and their gradients: a few neighbouring rows meet a run of the
//! table's columns, and each of them stands one element further. Scores are written through rows
//! one element further apart than the tile's; gradients are read so, with zeros in margins for what
//! lies beside the tile.

use super::arithmetic::{Arithmetic, At, Carver, HeadGradients, Pass, WorkNeed};
use super::pairs::{PairBlock, PairWork, copy_rows, multiply_pairs, padded, pair_rows};
use super::positions::{HeadTable, TRANSPOSED, WithPositions};
use crate::elementwise::convert_in;
use crate::matrix::MatRef;
use crate::product::PANEL;
use crate::product::{Ahead, PairTile, pack_columns, pack_rows_of, pairs_of, product_tile};
use crate::simd::Simd;
use half::bf16;

/// Query rows and key columns of a tile.
const BLOCKS: [usize; 2] = bf16::MARGINED.blocks;

/// Columns beside a tile of scores on each side: what a run of whole vectors reaches beyond it is
/// less.
const MARGIN: usize = bf16::MARGINED.margin;

/// Distance between rows of a tile of scores.
const STRIDE: usize = bf16::MARGINED.stride;

/// Zeros beside the gradients of scores on each side: more than the rows of a product.
const ZEROS: usize = 16;

/// Distance between rows of skewed gradients: odd, so that rows one element further apart are whole
/// pairs apart.
const SKEWED: usize = BLOCKS[1] + 2 * ZEROS + 17;

/// Distance between diagonal pairs of rows.
const DIAGONAL: usize = BLOCKS[1] + 2 * ZEROS + 16;

const _: () = assert!(SKEWED % 2 == 1 && BLOCKS[0] <= BLOCKS[1] && BLOCKS[0].is_multiple_of(16));

/// Buffers of a thread beside those of attention on pairs. m queries and n keys of a tile, S keys
/// of the sequence.
pub struct SkewWork<'w> {
    /// Keys [S, Dh], rows of whole pairs.
    keys: &'w mut [bf16],
    /// Some keys' position scores, then gradients of scores, transposed: [PANEL, m].
    transposed: &'w mut [f32],
    /// Rounded gradients of scores between zeros: [m, n], or [n, m] transposed.
    skewed: &'w mut [bf16],
    /// The same as pairs of two rows, the second one column further: [m / 2, n], or [n / 2, m].
    diagonal: &'w mut [u32],
}

/// The buffers, empty for scores without margins.
pub(super) fn skew_work<'w>(carver: &mut Carver<'w>, need: &WorkNeed) -> SkewWork<'w> {
    let relative = usize::from(need.layout.margin > 0);
    let backward = relative * usize::from(need.pass == Pass::Backward);
    SkewWork {
        keys: carver.take(relative * need.kv_len * 2 * pairs_of(need.head_dim)),
        transposed: carver.take(relative * PANEL * TRANSPOSED),
        skewed: carver.take(backward * BLOCKS[1] * SKEWED),
        diagonal: carver.take(backward * BLOCKS[1] / 2 * DIAGONAL),
    }
}

impl WithPositions for bf16 {
    fn table_lens(columns: usize, head_dim: usize) -> [usize; 2] {
        [columns * 2 * pairs_of(head_dim), columns * padded(head_dim)]
    }

    fn gradient_width(head_dim: usize) -> usize {
        padded(head_dim)
    }

    /// For scores panels of columns, pairs along Dh; for gradients panels of Dh, pairs of columns.
    #[inline(always)]
    fn lay_out<S: Simd>(
        s: S,
        rows: MatRef<bf16>,
        p: usize,
        columns: usize,
        for_scores: &mut [bf16],
        for_gradients: &mut [bf16],
    ) {
        let d = rows.cols();
        let len = PANEL * 2 * pairs_of(d);
        pack_rows_of(s, rows, &mut for_scores[p * len..][..len]);
        for (q, panel) in for_gradients.chunks_exact_mut(columns * PANEL).enumerate() {
            let of_panel = q * PANEL..((q + 1) * PANEL).min(d);
            let columns = rows.transposed().rows_range(of_panel);
            pack_columns(s, columns, &mut panel[p * PANEL * PANEL..][..PANEL * PANEL]);
        }
    }

    #[inline(always)]
    fn prepare_positions<S: Simd>(s: S, w: &mut PairWork, k: MatRef<bf16>) {
        copy_rows(s, k, w.skew.keys);
    }

    #[inline(always)]
    unsafe fn add_keys_scores<S: Simd>(
        s: S,
        w: &mut PairWork,
        at: &At,
        _: MatRef<bf16>,
        table: &HeadTable<bf16>,
        first: usize,
    ) {
        let product = Skewed {
            a: w.rows[0].as_ptr().cast(),
            table: table.for_scores.as_ptr().cast(),
            depth: pairs_of(at.head.head_dim),
            shape: [at.tile.m, at.tile.n],
            first,
            c: w.scores[0][MARGIN..].as_mut_ptr(),
            c_row: STRIDE,
            accumulate: true,
        };
        // SAFETY: rows hold m rows of whole pairs, the scores m rows between margins, and the table
        // covers the distances.
        unsafe { multiply_skewed(s, &product) };
    }

    /// Each block of keys makes them by key, and they are transposed.
    #[inline(always)]
    unsafe fn write_queries_scores<S: Simd>(
        s: S,
        w: &mut PairWork,
        at: &At,
        _: MatRef<bf16>,
        table: &HeadTable<bf16>,
        first: usize,
    ) {
        let (tile, depth) = (at.tile, pairs_of(at.head.head_dim));
        let transposed = w.skew.transposed.as_mut_ptr();
        let scores = w.scores[0][MARGIN..].as_mut_ptr();
        for block in (0..tile.n).step_by(PANEL) {
            let rows = (tile.n - block).min(PANEL);
            let keys = w.skew.keys[2 * (tile.j + block) * depth..].as_ptr();
            // SAFETY: as in `add_keys_scores`. Blocks of LANES rows and columns that reach beyond
            // the tile stay inside both buffers: `transposed` has PANEL rows, the scores BLOCKS[0],
            // and both a margin.
            unsafe {
                let product = Skewed {
                    a: keys.cast(),
                    table: table.for_scores.as_ptr().cast(),
                    depth,
                    shape: [rows, tile.m],
                    first: first - block,
                    c: transposed.add(MARGIN),
                    c_row: TRANSPOSED,
                    accumulate: false,
                };
                multiply_skewed(s, &product);
                for row in (0..rows).step_by(S::LANES) {
                    for i in (0..tile.m).step_by(S::LANES) {
                        let from = transposed.add(row * TRANSPOSED + MARGIN + i);
                        let to = scores.add(i * STRIDE + block + row);
                        s.transpose(from, TRANSPOSED, to, STRIDE);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add_keys_gradients<S: Simd>(
        s: S,
        w: &mut PairWork,
        at: &At,
        _: &HeadGradients<bf16>,
        table: &HeadTable<bf16>,
        first: usize,
    ) {
        let tile = at.tile;
        let mut rows = SkewedRows {
            skewed: w.skew.skewed,
            diagonal: table.d_table.is_some().then_some(&mut *w.skew.diagonal),
            shape: [tile.m, tile.n],
        };
        for row in 0..tile.m {
            rows.add(s, row, |row| &w.scores[1][row * STRIDE + MARGIN - ZEROS..]);
        }
        let side = Meeting {
            shape: [tile.m, tile.n],
            first,
            table,
            sums: w.sums[0].as_mut_ptr(),
            rows: w.transposed[0].as_ptr().cast(),
            rows_panel: pairs_of(tile.m) * PANEL,
        };
        // SAFETY: the caller's contract.
        unsafe { side.add(s, at.head.head_dim, &w.skew) };
    }

    /// The gradients are transposed first.
    #[inline(always)]
    unsafe fn add_queries_gradients<S: Simd>(
        s: S,
        w: &mut PairWork,
        at: &At,
        _: &HeadGradients<bf16>,
        table: &HeadTable<bf16>,
        first: usize,
    ) {
        let (head, tile) = (at.head, at.tile);
        let SkewWork {
            transposed,
            skewed,
            diagonal,
            ..
        } = &mut w.skew;
        let mut of_keys = SkewedRows {
            skewed,
            diagonal: table.d_table.is_some().then_some(&mut **diagonal),
            shape: [tile.n, tile.m],
        };
        for block in (0..tile.n).step_by(PANEL) {
            let rows = (tile.n - block).min(PANEL);
            for row in (0..rows).step_by(S::LANES) {
                for i in (0..tile.m).step_by(S::LANES) {
                    let from = &w.scores[1][i * STRIDE + MARGIN + block + row..];
                    let to = &mut transposed[row * TRANSPOSED + MARGIN + i..];
                    // SAFETY: blocks of LANES rows and columns that reach beyond the tile stay
                    // inside both buffers.
                    unsafe { s.transpose(from.as_ptr(), STRIDE, to.as_mut_ptr(), TRANSPOSED) };
                }
            }
            for row in transposed.chunks_exact_mut(TRANSPOSED).take(rows) {
                row[MARGIN - ZEROS..MARGIN].fill(0.0);
                row[MARGIN + tile.m..][..MARGIN].fill(0.0);
            }
            for row in block..block + rows {
                let at = |row: usize| &transposed[(row - block) * TRANSPOSED + MARGIN - ZEROS..];
                of_keys.add(s, row, at);
            }
        }
        let side = Meeting {
            shape: [tile.n, tile.m],
            first,
            table,
            sums: w.sums[1][tile.j * padded(head.head_dim)..].as_mut_ptr(),
            rows: w.keys_transposed[tile.j * PANEL..].as_ptr().cast(),
            rows_panel: pairs_of(head.kv_len) * PANEL,
        };
        // SAFETY: the caller's contract.
        unsafe { side.add(s, head.head_dim, &w.skew) };
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

/// c[i, j] (=|+=) a[i]·table[first + j - i]. Up to [`MARGIN`] elements beside each row of c hold
/// anything afterwards.
///
/// # Safety
/// The pointers cover the shape, c with its margins, and the table the columns from `first - m + 1`
/// to `first + n - 1` up to whole panels.
#[inline(always)]
unsafe fn multiply_skewed<S: Simd>(s: S, x: &Skewed) {
    let [m, n] = x.shape;
    // A run starts at a whole vector, so that it never straddles panels; the scalar kernel's
    // vectors are eight wide.
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
            // SAFETY: the caller's contract; rows i .. lie inside the shape, and the columns that
            // they do not meet are fewer than the rows and a vector, which is less than a margin.
            unsafe {
                let product = PairTile {
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

/// Gradients of scores in the rows' own order, as they are taken over.
struct SkewedRows<'a> {
    skewed: &'a mut [bf16],
    /// Only for a table's gradient.
    diagonal: Option<&'a mut [u32]>,
    /// Rows and columns.
    shape: [usize; 2],
}

impl SkewedRows<'_> {
    /// Takes over row `row`, and with every second row the diagonal pairs of both. `at` gives a row
    /// from ZEROS columns before its first on.
    #[inline(always)]
    fn add<'a, S: Simd>(&mut self, s: S, row: usize, at: impl Fn(usize) -> &'a [f32]) {
        let [m, n] = self.shape;
        let n = n + 2 * ZEROS;
        convert_in(s, &mut self.skewed[row * SKEWED..][..n], &at(row)[..n]);
        let Some(diagonal) = &mut self.diagonal else {
            return;
        };
        if row % 2 == 1 || row + 1 == m {
            let first = row - row % 2;
            let second = (row % 2 == 1).then(|| &at(row)[1..n + 1]);
            let pairs = &mut diagonal[first / 2 * DIAGONAL..][..n];
            pair_rows(s, &at(first)[..n], second, pairs);
        }
    }
}

/// What gradients of scores in the rows' own order meet.
struct Meeting<'a> {
    /// Rows and columns.
    shape: [usize; 2],
    /// The column of the table that row 0 and column 0 meet.
    first: usize,
    table: &'a HeadTable<'a, bf16>,
    /// Of row 0; rows of whole panels.
    sums: *mut f32,
    /// The operand that the rows belong to: panels of Dh, pairs of rows.
    rows: *const u32,
    /// Distance between its panels.
    rows_panel: usize,
}

impl Meeting<'_> {
    /// sums[i] += Σ_j d[i, j] table[first + j - i], and d_table[first + j - i] += Σ_i d[i, j]
    /// rows[i].
    ///
    /// # Safety
    /// The pointers cover the shape; `skew` holds the rows between zeros.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, s: S, d: usize, skew: &SkewWork) {
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
                b: self.table.for_gradients[2 * start * PANEL..]
                    .as_ptr()
                    .cast(),
                b_panel: self.table.columns / 2 * PANEL,
                shape: [rows, d, end - start],
                c: self.sums.wrapping_add(i * width),
                c_row: width,
                accumulate: true,
            };
            // SAFETY: the caller's contract; columns that a row does not meet are fewer than ZEROS
            // on each side.
            unsafe { multiply_pairs(s, &block) };
        }
        let Some(d_table) = self.table.d_table else {
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
