//! The register tile, and the strip of tiles that a block of rows makes.

use super::finish::Rectangle;
use super::{PANEL, STRIP_STRIDE, Source, Task};
use crate::simd::{Simd, SimdOp};

/// Repeats a body for each row i < M, i a constant: LLVM leaves a loop of twelve such bodies rolled, and an accumulator array
/// that is indexed by a variable lives in memory (measured: 24 GFLOP/s instead of more than 100).
macro_rules! each_row {
    ($m:expr, $i:ident, $body:block) => {
        each_row!(@ $m, $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11);
    };
    (@ $m:expr, $i:ident, $body:block, $($n:literal)*) => {
        $(if $n < $m {
            const $i: usize = $n;
            $body
        })*
    };
}
pub(crate) use each_row;

/// Operands of a small product by raw strides: c[i, j] (=|+=) alpha * Σ a[i, k] b[k, j] + bias[j].
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// Element (i, kk) at `a + i * a_row + kk * a_col`.
    pub a: *const f32,
    /// Distance between rows of a.
    pub a_row: usize,
    /// Distance between columns of a.
    pub a_col: usize,
    /// Panel p (of `panel` columns), depth kk, column j at `b + p * b_panel + kk * b_row + j`.
    pub b: *const f32,
    /// Distance between depths of b.
    pub b_row: usize,
    /// Distance between panels of [`PANEL`] columns.
    pub b_panel: usize,
    /// Whether b may be read up to the next whole panel.
    pub b_padded: bool,
    /// Element (i, j) at `c + i * c_row + j`.
    pub c: *mut f32,
    /// Distance between rows of c.
    pub c_row: usize,
    /// `[n]`, or null.
    pub bias: *const f32,
    /// Rows of the product.
    pub m: usize,
    /// Columns of the product.
    pub n: usize,
    /// Depth of the product.
    pub k: usize,
    /// Factor of the product.
    pub alpha: f32,
    /// Whether c is added to.
    pub accumulate: bool,
}

/// Computes a small product, any shape.
///
/// # Safety
/// The pointers with their strides cover the operands' shapes (b up to the whole panel if `b_padded`), and c overlaps
/// neither of the others.
#[inline(always)]
pub(crate) unsafe fn multiply_block<S: Simd>(s: S, block: &Block) {
    let mut i = 0;
    while i < block.m {
        let rows = (block.m - i).min(S::GEMM_ROWS);
        // SAFETY: rows i .. i + rows lie inside m; the caller's contract covers the rest.
        unsafe {
            let part = Block {
                a: block.a.add(i * block.a_row),
                c: block.c.add(i * block.c_row),
                m: rows,
                ..*block
            };
            s.call(Rows(&part));
        }
        i += rows;
    }
}

/// At most `GEMM_ROWS` rows of a product. Constructed only by `multiply_block` and `Strip`, under their contracts.
struct Rows<'a>(&'a Block);

impl SimdOp for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made the block upholds `multiply_block`'s contract.
        unsafe {
            match self.0.m {
                12 => tiles::<S, 12>(s, self.0),
                11 => tiles::<S, 11>(s, self.0),
                10 => tiles::<S, 10>(s, self.0),
                9 => tiles::<S, 9>(s, self.0),
                8 => tiles::<S, 8>(s, self.0),
                7 => tiles::<S, 7>(s, self.0),
                6 => tiles::<S, 6>(s, self.0),
                5 => tiles::<S, 5>(s, self.0),
                4 => tiles::<S, 4>(s, self.0),
                3 => tiles::<S, 3>(s, self.0),
                2 => tiles::<S, 2>(s, self.0),
                _ => tiles::<S, 1>(s, self.0),
            }
        }
    }
}

/// Tiles of M rows from left to right.
///
/// # Safety
/// As `multiply_block`; `block.m` is M.
#[inline(always)]
unsafe fn tiles<S: Simd, const M: usize>(s: S, block: &Block) {
    // Tiles taller than the instruction set's registers hold are never asked for: compile none.
    if M > S::GEMM_ROWS {
        return;
    }
    let width = S::GEMM_VECS * S::LANES;
    let mut j = 0;
    while j < block.n {
        let columns = (block.n - j).min(width);
        // A tile never straddles a panel, since its width divides the panel's.
        let b = block.b.wrapping_add(j / PANEL * block.b_panel + j % PANEL);
        let tile = Tile {
            block,
            b,
            j,
            columns,
        };
        match (S::GEMM_VECS, columns > S::LANES) {
            (8, _) => call_tile::<S, M, 8>(s, tile),
            (_, true) => call_tile::<S, M, 2>(s, tile),
            (_, false) => call_tile::<S, M, 1>(s, tile),
        }
        j += columns;
    }
}

/// Any strides, and b that ends within the tile.
const ANY: u8 = 0;
/// Rows of a `STRIP_STRIDE` apart, contiguous.
const STRIP: u8 = 1;
/// Contiguous columns of a.
const COLUMNS: u8 = 2;
/// Contiguous rows of a.
const ROWS: u8 = 3;

#[inline(always)]
fn call_tile<S: Simd, const M: usize, const V: usize>(s: S, tile: Tile) {
    let block = tile.block;
    let whole = tile.columns == V * S::LANES || block.b_padded;
    match (block.a_row, block.a_col) {
        (STRIP_STRIDE, 1) if whole => s.call(TileOf::<M, V, STRIP>(tile)),
        (1, _) if whole => s.call(TileOf::<M, V, COLUMNS>(tile)),
        (_, 1) if whole => s.call(TileOf::<M, V, ROWS>(tile)),
        _ => s.call(TileOf::<M, V, ANY>(tile)),
    }
}

/// How far ahead b is asked for, in depths.
const AHEAD: usize = 16;

/// Where a register tile lies.
struct Tile<'a> {
    block: &'a Block,
    /// Column j, depth 0 of b.
    b: *const f32,
    j: usize,
    columns: usize,
}

/// One register tile of M rows and V vectors, with what is known of its strides. Each is a function of its own: with several
/// loops in one, LLVM keeps some of the accumulators in memory.
struct TileOf<'a, const M: usize, const V: usize, const KIND: u8>(Tile<'a>);

impl<const M: usize, const V: usize, const KIND: u8> SimdOp for TileOf<'_, M, V, KIND> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made the block upholds `multiply_block`'s contract; columns j .. j + columns lie inside n, and
        // `call_tile` chose a kind whose strides are the block's, and other than ANY only where all of b exists.
        unsafe {
            let sums = if KIND == ANY {
                self.sum_products_of_any(s)
            } else {
                self.sum_products(s)
            };
            self.store(s, &sums);
        }
    }
}

impl<const M: usize, const V: usize, const KIND: u8> TileOf<'_, M, V, KIND> {
    /// The inner loop: per depth V loads of b and M broadcasts of a for M * V multiply-adds.
    ///
    /// # Safety
    /// As `multiply_block`, with b readable V whole vectors wide.
    #[allow(
        clippy::needless_range_loop,
        reason = "the vector's index is the inner one of `sums`"
    )]
    #[inline(always)]
    unsafe fn sum_products<S: Simd>(&self, s: S) -> [[S::V; V]; M] {
        let block = self.0.block;
        let (a_row, a_col) = match KIND {
            STRIP => (STRIP_STRIDE, 1),
            COLUMNS => (1, block.a_col),
            _ => (block.a_row, 1),
        };
        let (mut a, mut b) = (block.a, self.0.b);
        let mut sums = [[s.splat(0.0); V]; M];
        // c is needed at the end; a shallow tile's end comes too soon, so it asks for the tile after the next.
        let near = if block.k < 64 { 2 * PANEL } else { 0 };
        each_row!(M, I, {
            for v in 0..V {
                let at = I * block.c_row + self.0.j + near + v * S::LANES;
                s.prefetch(block.c.wrapping_add(at));
            }
        });
        for _ in 0..block.k {
            // SAFETY: the caller's contract; a and b stay below the depth k.
            unsafe {
                let mut bv = [s.splat(0.0); V];
                for (v, x) in bv.iter_mut().enumerate() {
                    *x = s.load(b.add(v * S::LANES));
                    s.prefetch(b.wrapping_add(v * S::LANES + AHEAD * block.b_row));
                }
                each_row!(M, I, {
                    let av = s.splat(*a.add(I * a_row));
                    for v in 0..V {
                        sums[I][v] = s.mul_add(av, bv[v], sums[I][v]);
                    }
                });
            }
            a = a.wrapping_add(a_col);
            b = b.wrapping_add(block.b_row);
        }
        sums
    }

    /// The inner loop for any strides, and where b ends within the tile.
    ///
    /// # Safety
    /// As `multiply_block`.
    #[allow(
        clippy::needless_range_loop,
        reason = "the vector's index is the inner one of `sums`"
    )]
    #[inline(always)]
    unsafe fn sum_products_of_any<S: Simd>(&self, s: S) -> [[S::V; V]; M] {
        let block = self.0.block;
        let mut sums = [[s.splat(0.0); V]; M];
        for kk in 0..block.k {
            for v in 0..V {
                let lanes = self.lanes::<S>(v);
                // SAFETY: the caller's contract; partial loads stop at `columns`.
                unsafe {
                    let b = self.0.b.wrapping_add(kk * block.b_row + v * S::LANES);
                    let bv = s.load_n(b, lanes);
                    each_row!(M, I, {
                        let av = s.splat(*block.a.add(I * block.a_row + kk * block.a_col));
                        sums[I][v] = s.mul_add(av, bv, sums[I][v]);
                    });
                }
            }
        }
        sums
    }

    /// c (=|+=) alpha * sums + bias.
    ///
    /// # Safety
    /// As `multiply_block`.
    #[allow(
        clippy::needless_range_loop,
        reason = "the vector's index is the inner one of `sums`"
    )]
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, s: S, sums: &[[S::V; V]; M]) {
        let block = self.0.block;
        let alpha = s.splat(block.alpha);
        for v in 0..V {
            let lanes = self.lanes::<S>(v);
            let at = self.0.j + v * S::LANES;
            // SAFETY: the caller's contract; partial loads and stores stop at `columns`, and no lanes touch nothing.
            unsafe {
                let bias = if block.bias.is_null() {
                    s.splat(0.0)
                } else {
                    s.load_n(block.bias.wrapping_add(at), lanes)
                };
                each_row!(M, I, {
                    let c = block.c.wrapping_add(I * block.c_row + at);
                    let start = if block.accumulate {
                        s.add(s.load_n(c, lanes), bias)
                    } else {
                        bias
                    };
                    s.store_n(c, s.mul_add(alpha, sums[I][v], start), lanes);
                });
            }
        }
    }

    /// Columns of vector v.
    #[inline(always)]
    fn lanes<S: Simd>(&self, v: usize) -> usize {
        self.0.columns.saturating_sub(v * S::LANES).min(S::LANES)
    }
}

/// A strip of at most `GEMM_ROWS` rows against all panels of a task, one depth block.
pub(super) struct Strip<'a, 't> {
    pub task: &'a Task<'t>,
    /// b from the task's first panel and the depth `k_start` on.
    pub source: Source,
    pub row: usize,
    pub rows: usize,
    pub k_start: usize,
    pub depth: usize,
    pub buffer: &'a mut Vec<f32>,
}

impl SimdOp for Strip<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let task = self.task;
        let (g, source) = (task.g, self.source);
        let first_block = self.k_start == 0;
        // Rows of a are copied to where their distance is known beforehand and no power of two (rows 4 KiB apart would
        // evict each other), unless too few panels would use the copy.
        let copied = g.a.col_stride() == 1 && task.panels.len() > 2;
        if copied {
            self.buffer.resize(S::GEMM_ROWS * STRIP_STRIDE, 0.0);
            for i in 0..self.rows {
                let from = (self.row + i) * g.a.row_stride() + self.k_start;
                self.buffer[i * STRIP_STRIDE..][..self.depth]
                    .copy_from_slice(&g.a.data()[from..from + self.depth]);
            }
        }
        let from = self.row * g.a.row_stride() + self.k_start * g.a.col_stride();
        let (a, a_row) = if copied {
            (self.buffer.as_ptr(), STRIP_STRIDE)
        } else {
            (g.a.as_ptr().wrapping_add(from), g.a.row_stride())
        };
        let n_panels = task.panels.len();
        let last_block = self.k_start + self.depth >= g.a.cols();
        for p in 0..n_panels {
            if copied {
                self.prefetch_next(s, p, n_panels);
            }
            let column = (task.panels.start + p) * PANEL;
            let n = (g.n - column).min(PANEL);
            let bias = match g.bias {
                Some(bias) if first_block => bias[column..column + n].as_ptr(),
                _ => std::ptr::null(),
            };
            let rectangle = Rectangle {
                start: self.row * task.c_stride + column,
                rows: self.rows,
                columns: n,
                stride: task.c_stride,
            };
            if last_block {
                task.finisher.prefetch(s, rectangle);
            }
            let c = task.out.get().wrapping_add(rectangle.start);
            let block = Block {
                a,
                a_row,
                a_col: g.a.col_stride(),
                b: source.at(p, 0),
                b_row: source.k_stride,
                b_panel: source.panel_stride,
                b_padded: source.padded,
                c,
                c_row: task.c_stride,
                bias,
                m: self.rows,
                n,
                k: self.depth,
                alpha: g.alpha,
                accumulate: g.accumulate || !first_block,
            };
            // `gemm` and `gemm_transposed_a` asserted the lengths of a, b, bias and c against the shapes; row, k_start and
            // the panel lie inside them. Tasks write disjoint rectangles of c, which nothing else borrows.
            Rows(&block).run(s);
            if last_block {
                // SAFETY: the rectangle lies inside c, and no other task has it.
                unsafe { task.finisher.apply(s, task.out, rectangle) };
            }
        }
    }
}

impl Strip<'_, '_> {
    /// While panel p of n_panels is computed, the p-th share of the next strip's rows comes nearer.
    #[inline(always)]
    fn prefetch_next<S: Simd>(&self, s: S, p: usize, n_panels: usize) {
        let a = self.task.g.a;
        let next = self.row + self.rows;
        let (row, k_start) = if next < self.task.rows.end {
            (next, self.k_start)
        } else {
            (self.task.rows.start, self.k_start + self.depth)
        };
        for i in p * self.rows / n_panels..(p + 1) * self.rows / n_panels {
            let start = a
                .as_ptr()
                .wrapping_add((row + i) * a.row_stride() + k_start);
            for line in (0..self.depth).step_by(16) {
                s.prefetch(start.wrapping_add(line));
            }
        }
    }
}
