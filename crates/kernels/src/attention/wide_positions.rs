//! Position scores in f32, and their gradients: blocks of [`PANEL`] rows times runs of distances
//! that start at a panel.

use super::arithmetic::{Arithmetic, At, HeadGradients};
use super::positions::{HeadTable, TRANSPOSED, WithPositions};
use super::wide::{BLOCK, WideWork, as_depth};
use crate::matrix::MatRef;
use crate::product::{Block, PANEL, multiply_block, pack_rows};
use crate::simd::Simd;

/// Distance between rows of a tile.
const STRIDE: usize = f32::MARGINED.stride;

impl WithPositions for f32 {
    fn table_lens(columns: usize, head_dim: usize) -> [usize; 2] {
        [columns * head_dim; 2]
    }

    fn gradient_width(head_dim: usize) -> usize {
        head_dim
    }

    #[inline(always)]
    fn lay_out<S: Simd>(
        s: S,
        rows: MatRef<f32>,
        p: usize,
        _: usize,
        for_scores: &mut [f32],
        for_gradients: &mut [f32],
    ) {
        let d = rows.cols();
        pack_rows(
            s,
            rows,
            &mut for_scores[p * PANEL * d..][..PANEL * d],
            PANEL,
        );
        if !for_gradients.is_empty() {
            let for_gradients = for_gradients[p * PANEL * d..].chunks_exact_mut(d);
            let rows = rows.data().chunks_exact(rows.row_stride());
            for (to, from) in for_gradients.zip(rows) {
                to.copy_from_slice(&from[..d]);
            }
        }
    }

    #[inline(always)]
    fn prepare_positions<S: Simd>(_: S, _: &mut WideWork, _: MatRef<f32>) {}

    #[inline(always)]
    unsafe fn add_keys_scores<S: Simd>(
        s: S,
        w: &mut WideWork,
        at: &At,
        q: MatRef<f32>,
        table: &HeadTable<f32>,
        first: usize,
    ) {
        for block in (0..at.tile.m).step_by(PANEL) {
            let product = Block {
                c: w.scores[0][block * STRIDE..].as_mut_ptr(),
                c_row: STRIDE + 1,
                n: at.tile.n + PANEL,
                accumulate: true,
                ..with_table(at, rows_of_block(q, block), table, first - block - PANEL)
            };
            // SAFETY: the run of distances lies inside the table: first - (m - 1) and first + n do;
            // a row of the skewed view ends inside its right margin.
            unsafe { multiply_block(s, &product) };
        }
    }

    #[inline(always)]
    unsafe fn write_queries_scores<S: Simd>(
        s: S,
        w: &mut WideWork,
        at: &At,
        k: MatRef<f32>,
        table: &HeadTable<f32>,
        first: usize,
    ) {
        let transposed = w.transposed.as_mut_ptr();
        for block in (0..at.tile.n).step_by(PANEL) {
            let keys = rows_of_block(k, block);
            let product = Block {
                c: transposed,
                c_row: TRANSPOSED,
                n: at.tile.m + PANEL,
                ..with_table(at, keys, table, first - block - PANEL)
            };
            // SAFETY: as in `add_keys_scores`. Blocks of LANES rows and columns that reach beyond
            // the tile stay inside both buffers: `transposed` has PANEL rows with a margin, the
            // scores all rows of a block and a margin.
            unsafe {
                multiply_block(s, &product);
                for row in (0..keys.rows()).step_by(S::LANES) {
                    for i in (0..at.tile.m).step_by(S::LANES) {
                        // Row j of the product holds query i at column i + PANEL - j.
                        let from = transposed.add(PANEL + row * (TRANSPOSED - 1) + i);
                        let to = w.scores[0][i * STRIDE + PANEL + block + row..].as_mut_ptr();
                        s.transpose(from, TRANSPOSED - 1, to, STRIDE);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add_keys_gradients<S: Simd>(
        s: S,
        w: &mut WideWork,
        at: &At,
        x: &HeadGradients<f32>,
        table: &HeadTable<f32>,
        first: usize,
    ) {
        let q = at.queries(x.x.q);
        for block in (0..at.tile.m).step_by(PANEL) {
            let skewed = Skewed {
                a: w.scores[1][block * STRIDE..].as_ptr(),
                a_row: STRIDE + 1,
                depth: at.tile.n + PANEL,
                x: rows_of_block(q, block),
                column: first - block - PANEL,
            };
            let d_q = x.d_q.at(at.tile.i + block);
            // SAFETY: the caller's contract; a row of the skewed view ends inside its right margin;
            // the run of distances lies inside the table.
            unsafe { skewed.add(s, table, d_q, x.d_q.stride()) };
        }
    }

    #[inline(always)]
    unsafe fn add_queries_gradients<S: Simd>(
        s: S,
        w: &mut WideWork,
        at: &At,
        x: &HeadGradients<f32>,
        table: &HeadTable<f32>,
        first: usize,
    ) {
        let (tile, k) = (at.tile, at.keys(x.x.k));
        for block in (0..tile.n).step_by(PANEL) {
            let keys = rows_of_block(k, block);
            for i in (0..tile.m).step_by(S::LANES) {
                for row in (0..keys.rows()).step_by(S::LANES) {
                    let from = w.scores[1][i * STRIDE + PANEL + block + row..].as_ptr();
                    let to = w.transposed[row * TRANSPOSED + PANEL + i..].as_mut_ptr();
                    // SAFETY: blocks of LANES rows and columns that reach beyond the tile stay
                    // inside both buffers; what they leave in the right margin is overwritten with
                    // zeros.
                    unsafe { s.transpose(from, STRIDE, to, TRANSPOSED) };
                }
            }
            for row in w.transposed.chunks_exact_mut(TRANSPOSED).take(keys.rows()) {
                row[..PANEL].fill(0.0);
                row[PANEL + tile.m..].fill(0.0);
            }
            let skewed = Skewed {
                a: w.transposed.as_ptr(),
                a_row: TRANSPOSED + 1,
                depth: tile.m + PANEL,
                x: keys,
                column: first - block - PANEL,
            };
            let d_k = x.d_k.at(tile.j + block);
            // SAFETY: as in `add_keys_gradients`.
            unsafe { skewed.add(s, table, d_k, x.d_k.stride()) };
        }
    }
}

/// At most PANEL rows from `block` on.
fn rows_of_block(x: MatRef<f32>, block: usize) -> MatRef<f32> {
    x.rows_range(block..(block + PANEL).min(x.rows()))
}

/// Rows times the table's columns from `column` on, a multiple of the panel.
fn with_table(at: &At, rows: MatRef<f32>, table: &HeadTable<f32>, column: usize) -> Block {
    let d = at.head.head_dim;
    Block {
        a: rows.as_ptr(),
        a_row: rows.row_stride(),
        b: table.for_scores[column * d..].as_ptr(),
        b_panel: d * PANEL,
        b_padded: true,
        m: rows.rows(),
        k: d,
        alpha: at.head.scale,
        ..BLOCK
    }
}

/// A skewed view of gradients of scores, the rows that they belong to, and the first of the table's
/// columns that they meet.
struct Skewed<'a> {
    a: *const f32,
    a_row: usize,
    depth: usize,
    x: MatRef<'a, f32>,
    column: usize,
}

impl Skewed<'_> {
    /// Adds the view times the table to the rows' gradient (its first row, and the distance between
    /// rows), and the view's transpose times the rows to the table's, if it is wanted.
    ///
    /// # Safety
    /// As `multiply_block` for both products.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, s: S, table: &HeadTable<f32>, d_x: *mut f32, stride: usize) {
        let d = self.x.cols();
        let skewed = Block {
            a: self.a,
            a_row: self.a_row,
            b: table.for_gradients[self.column * d..].as_ptr(),
            b_row: d,
            c: d_x,
            c_row: stride,
            m: self.x.rows(),
            n: d,
            k: self.depth,
            accumulate: true,
            ..BLOCK
        };
        // SAFETY: the caller's contract.
        unsafe {
            multiply_block(s, &skewed);
            if let Some(d_table) = table.d_table {
                let transposed = Block {
                    a: self.a,
                    a_row: 1,
                    a_col: self.a_row,
                    c: d_table.add(self.column * d),
                    c_row: d,
                    m: self.depth,
                    accumulate: true,
                    ..as_depth(self.x)
                };
                multiply_block(s, &transposed);
            }
        }
    }
}
