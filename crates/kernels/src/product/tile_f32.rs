//! The f32 register tile: up to `GEMM_ROWS` rows against any number of columns, from f32 lines or
//! from bf16 pairs that are widened in registers.

use super::panels::PANEL;
use super::strips::STRIP_STRIDE;
use crate::simd::{Simd, SimdOp};

/// Repeats a body for each row i < M, i a constant: LLVM leaves a loop of twelve such bodies
/// rolled, and an accumulator array that is indexed by a variable lives in memory (measured: 24
/// GFLOP/s instead of more than 100).
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
/// The pointers with their strides cover the operands' shapes (b up to the whole panel if
/// `b_padded`), and c overlaps neither of the others.
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
            s.call(Rows::<false>(&part));
        }
        i += rows;
    }
}

/// [`multiply_block`] of at most `GEMM_ROWS` rows, without a function boundary of its own.
///
/// # Safety
/// As [`multiply_block`].
#[inline(always)]
pub(super) unsafe fn multiply_rows<S: Simd>(s: S, block: &Block) {
    Rows::<false>(block).run(s);
}

/// The same with b as bf16 pairs of neighbouring depths: pair p of column j at `b + p * b_row + j`,
/// in words of four bytes.
///
/// # Safety
/// As [`multiply_block`]; all pairs of a panel exist, also the half of the last one that an odd
/// depth does not use.
#[inline(always)]
pub(super) unsafe fn multiply_rows_of_pairs<S: Simd>(s: S, block: &Block) {
    Rows::<true>(block).run(s);
}

/// At most `GEMM_ROWS` rows of a product. Constructed only by the functions above, under their
/// contracts.
struct Rows<'a, const PAIRS: bool>(&'a Block);

impl<const PAIRS: bool> SimdOp for Rows<'_, PAIRS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made the block upholds `multiply_block`'s contract.
        unsafe {
            match self.0.m {
                12 => tiles::<S, 12, PAIRS>(s, self.0),
                11 => tiles::<S, 11, PAIRS>(s, self.0),
                10 => tiles::<S, 10, PAIRS>(s, self.0),
                9 => tiles::<S, 9, PAIRS>(s, self.0),
                8 => tiles::<S, 8, PAIRS>(s, self.0),
                7 => tiles::<S, 7, PAIRS>(s, self.0),
                6 => tiles::<S, 6, PAIRS>(s, self.0),
                5 => tiles::<S, 5, PAIRS>(s, self.0),
                4 => tiles::<S, 4, PAIRS>(s, self.0),
                3 => tiles::<S, 3, PAIRS>(s, self.0),
                2 => tiles::<S, 2, PAIRS>(s, self.0),
                _ => tiles::<S, 1, PAIRS>(s, self.0),
            }
        }
    }
}

/// Tiles of M rows from left to right.
///
/// # Safety
/// As `multiply_block`; `block.m` is M.
#[inline(always)]
unsafe fn tiles<S: Simd, const M: usize, const PAIRS: bool>(s: S, block: &Block) {
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
            (8, _) => call_tile::<S, M, 8, PAIRS>(s, tile),
            (_, true) => call_tile::<S, M, 2, PAIRS>(s, tile),
            (_, false) => call_tile::<S, M, 1, PAIRS>(s, tile),
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
/// b in bf16 pairs.
const PAIRED: u8 = 4;

#[inline(always)]
fn call_tile<S: Simd, const M: usize, const V: usize, const PAIRS: bool>(s: S, tile: Tile) {
    if PAIRS {
        return s.call(TileOf::<M, V, PAIRED>(tile));
    }
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

/// One register tile of M rows and V vectors, with what is known of its strides. Each is a function
/// of its own: with several loops in one, LLVM keeps some of the accumulators in memory.
struct TileOf<'a, const M: usize, const V: usize, const KIND: u8>(Tile<'a>);

impl<const M: usize, const V: usize, const KIND: u8> SimdOp for TileOf<'_, M, V, KIND> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: whoever made the block upholds `multiply_block`'s contract; columns j .. j +
        // columns lie inside n, and `call_tile` chose a kind whose strides are the block's, and
        // other than ANY only where all of b exists.
        unsafe {
            let sums = match KIND {
                ANY => self.sum_products_of_any(s),
                PAIRED => self.sum_products_of_pairs(s),
                _ => self.sum_products(s),
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
        // c is needed at the end; a shallow tile's end comes too soon, so it asks for the tile
        // after the next.
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

    /// The inner loop over bf16 pairs, one of whose loads is two depths of b.
    ///
    /// # Safety
    /// As `multiply_rows_of_pairs`.
    #[allow(
        clippy::needless_range_loop,
        reason = "the vector's index is the inner one of `sums`"
    )]
    #[inline(always)]
    unsafe fn sum_products_of_pairs<S: Simd>(&self, s: S) -> [[S::V; V]; M] {
        let block = self.0.block;
        let (mut a, mut b) = (block.a, self.0.b.cast::<u32>());
        let upper = s.splat_u(0xffff_0000);
        let mut sums = [[s.splat(0.0); V]; M];
        for pair in 0..block.k.div_ceil(2) {
            let mut bv = [s.splat_u(0); V];
            // SAFETY: the caller's contract; b stays below its pairs, a below the depth k.
            unsafe {
                for (v, x) in bv.iter_mut().enumerate() {
                    *x = s.load_u(b.add(v * S::LANES));
                    s.prefetch(b.wrapping_add(v * S::LANES + AHEAD * block.b_row).cast());
                }
                each_row!(M, I, {
                    let av = s.splat(*a.add(I * block.a_row));
                    for v in 0..V {
                        sums[I][v] = s.mul_add(av, s.of_bits(s.shl16_u(bv[v])), sums[I][v]);
                    }
                });
                if 2 * pair + 1 < block.k {
                    let a = a.wrapping_add(block.a_col);
                    each_row!(M, I, {
                        let av = s.splat(*a.add(I * block.a_row));
                        for v in 0..V {
                            let high = s.of_bits(s.and_u(bv[v], upper));
                            sums[I][v] = s.mul_add(av, high, sums[I][v]);
                        }
                    });
                }
            }
            a = a.wrapping_add(2 * block.a_col);
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
            // SAFETY: the caller's contract; partial loads and stores stop at `columns`, and no
            // lanes touch nothing.
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
