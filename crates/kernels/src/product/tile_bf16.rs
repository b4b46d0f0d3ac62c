//! The bf16 register tile: up to `GEMM_ROWS` rows against one panel, pairs of the depth with f32
//! sums.

use super::panels::PANEL;
use super::tile_f32::each_row;
use crate::simd::{Simd, SimdOp};
use half::bf16;

/// How far ahead b is asked for, in pairs.
const AHEAD: usize = 8;

/// The operands of one tile. Distances are in pairs, those of c in values.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Row i, pair p at `a + i * a_row + p * a_pair`; need not be aligned.
    pub a: *const u32,
    /// Distance between rows of a.
    pub a_row: usize,
    /// Distance between pairs of a row.
    pub a_pair: usize,
    /// One panel: pair p, column j at `b + p * PANEL + j`.
    pub b: *const u32,
    /// Depth in pairs.
    pub pairs: usize,
    /// Rows, at most `GEMM_ROWS`.
    pub rows: usize,
    /// Columns that are wanted, at most `PANEL`; those up to the next whole vector are unspecified.
    pub columns: usize,
    /// Element (i, j) at `c + i * c_row + j`, with room for whole vectors.
    pub c: *mut f32,
    /// Distance between rows of c.
    pub c_row: usize,
    /// Whether c is added to.
    pub accumulate: bool,
    /// What to bring nearer meanwhile.
    pub ahead: Ahead,
}

/// Memory to ask for while a tile is multiplied: from `start`, `step` bf16 values further for each
/// pair.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    pub start: *const bf16,
    pub step: usize,
}

impl Ahead {
    pub(crate) const NOTHING: Self = Self {
        start: std::ptr::null(),
        step: 0,
    };
}

/// c (=|+=) a·bᵀ.
///
/// # Safety
/// a covers rows x pairs, b a whole panel, c the rows with room for whole vectors.
#[inline(always)]
pub(crate) unsafe fn product_tile<S: Simd>(s: S, product: &Product) {
    let width = S::GEMM_VECS * S::LANES;
    let mut j = 0;
    while j < product.columns {
        let op = From { product, j };
        match (S::GEMM_VECS, product.columns - j > S::LANES) {
            (8, _) => s.call(Columns::<8>(op)),
            (_, true) => s.call(Columns::<2>(op)),
            (_, false) => s.call(Columns::<1>(op)),
        }
        j += width;
    }
}

/// The columns from j on of a tile. Constructed only by `product_tile`, under its contract.
struct From<'a> {
    product: &'a Product,
    j: usize,
}

struct Columns<'a, const V: usize>(From<'a>);

impl<const V: usize> SimdOp for Columns<'_, V> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.0.product.rows {
            12 => tile::<S, 12, V>(s, self.0),
            11 => tile::<S, 11, V>(s, self.0),
            10 => tile::<S, 10, V>(s, self.0),
            9 => tile::<S, 9, V>(s, self.0),
            8 => tile::<S, 8, V>(s, self.0),
            7 => tile::<S, 7, V>(s, self.0),
            6 => tile::<S, 6, V>(s, self.0),
            5 => tile::<S, 5, V>(s, self.0),
            4 => tile::<S, 4, V>(s, self.0),
            3 => tile::<S, 3, V>(s, self.0),
            2 => tile::<S, 2, V>(s, self.0),
            _ => tile::<S, 1, V>(s, self.0),
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const M: usize, const V: usize>(s: S, op: From) {
    // Tiles taller than the instruction set's registers hold are never asked for: compile none.
    if M <= S::GEMM_ROWS {
        s.call(TileOf::<M, V>(op));
    }
}

/// One register tile; a function of its own, as LLVM keeps accumulators of several loops in one in
/// memory.
struct TileOf<'a, const M: usize, const V: usize>(From<'a>);

impl<const M: usize, const V: usize> SimdOp for TileOf<'_, M, V> {
    type Output = ();
    #[allow(
        clippy::needless_range_loop,
        reason = "the vector's index is the inner one of `sums`"
    )]
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let From { product, j } = self.0;
        let (a_row, a_pair) = (product.a_row, product.a_pair);
        let (mut a, mut b) = (product.a, product.b.wrapping_add(j));
        let (c, c_row) = (product.c.wrapping_add(j), product.c_row);
        let Ahead {
            start: mut ahead,
            step,
        } = product.ahead;
        let mut sums = [[s.splat(0.0); V]; M];
        // SAFETY: `product_tile`'s contract; j + V * LANES ends with the vector that holds the last
        // column.
        unsafe {
            if product.accumulate {
                each_row!(M, I, {
                    for v in 0..V {
                        sums[I][v] = s.load(c.add(I * c_row + v * S::LANES));
                    }
                });
            }
            for _ in 0..product.pairs {
                let mut bv = [s.splat_u(0); V];
                for (v, x) in bv.iter_mut().enumerate() {
                    *x = s.load_u(b.add(v * S::LANES));
                    s.prefetch(b.wrapping_add(v * S::LANES + AHEAD * PANEL).cast());
                }
                s.prefetch_far(ahead.cast());
                ahead = ahead.wrapping_add(step);
                each_row!(M, I, {
                    let av = s.splat_u(a.add(I * a_row).read_unaligned());
                    for v in 0..V {
                        sums[I][v] = s.dot_pairs(sums[I][v], av, bv[v]);
                    }
                });
                a = a.wrapping_add(a_pair);
                b = b.wrapping_add(PANEL);
            }
            each_row!(M, I, {
                for v in 0..V {
                    s.store(c.add(I * c_row + v * S::LANES), sums[I][v]);
                }
            });
        }
    }
}
