//! The register tile: up to `GEMM_ROWS` rows against one panel, over the whole depth.

use crate::gemm::{PANEL, each_row};
use crate::simd::{Simd, SimdOp};
use half::bf16;

/// Rows of the largest tile of any instruction set.
const MAX_ROWS: usize = 12;

/// Values of a tile: rows of [`PANEL`].
pub(super) const TILE_LEN: usize = MAX_ROWS * PANEL;

/// How far ahead b is asked for, in pairs.
const AHEAD: usize = 8;

/// The operands of one tile.
pub(super) struct Product {
    /// Row i, pair p at `a + i * a_row + 2 p`.
    pub a: *const bf16,
    /// Distance between rows of a; even.
    pub a_row: usize,
    /// One panel: pair p, column j at `b + (p * PANEL + j) * 2`.
    pub b: *const bf16,
    /// Depth in pairs.
    pub pairs: usize,
    /// Rows, at most `GEMM_ROWS`.
    pub rows: usize,
    /// Columns that are wanted, at most `PANEL`; those beyond are unspecified.
    pub columns: usize,
    /// Whether the tile is added to.
    pub accumulate: bool,
    /// What to bring nearer meanwhile.
    pub ahead: Ahead,
}

/// Memory to ask for while a tile is multiplied: from `start`, `step` elements further for each pair.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    pub start: *const bf16,
    pub step: usize,
}

impl Ahead {
    pub(super) const NOTHING: Self = Self {
        start: std::ptr::null(),
        step: 0,
    };
}

/// tile (=|+=) a·bᵀ.
///
/// # Safety
/// a covers rows x pairs, b a whole panel.
#[inline(always)]
pub(super) unsafe fn product_tile<S: Simd>(s: S, product: &Product, tile: &mut [f32; TILE_LEN]) {
    let width = S::GEMM_VECS * S::LANES;
    let mut j = 0;
    while j < product.columns {
        let op = RowsOf { product, tile, j };
        match (S::GEMM_VECS, product.columns - j > S::LANES) {
            (8, _) => s.call(Columns::<8>(op)),
            (_, true) => s.call(Columns::<2>(op)),
            (_, false) => s.call(Columns::<1>(op)),
        }
        j += width;
    }
}

/// The columns from j on of a tile. Constructed only by `product_tile`, under its contract.
struct RowsOf<'a> {
    product: &'a Product,
    tile: &'a mut [f32; TILE_LEN],
    j: usize,
}

struct Columns<'a, const V: usize>(RowsOf<'a>);

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
fn tile<S: Simd, const M: usize, const V: usize>(s: S, op: RowsOf) {
    // Tiles taller than the instruction set's registers hold are never asked for: compile none.
    if M <= S::GEMM_ROWS {
        s.call(TileOf::<M, V>(op));
    }
}

/// One register tile; a function of its own, as LLVM keeps accumulators of several loops in one in memory.
struct TileOf<'a, const M: usize, const V: usize>(RowsOf<'a>);

impl<const M: usize, const V: usize> SimdOp for TileOf<'_, M, V> {
    type Output = ();
    #[allow(
        clippy::needless_range_loop,
        reason = "the vector's index is the inner one of `sums`"
    )]
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let RowsOf { product, tile, j } = self.0;
        let a_row = product.a_row / 2;
        let mut a = product.a.cast::<u32>();
        let mut b = product.b.cast::<u32>().wrapping_add(j);
        let Ahead {
            start: mut ahead,
            step,
        } = product.ahead;
        let mut sums = [[s.splat(0.0); V]; M];
        // SAFETY: `product_tile`'s contract; the tile holds MAX_ROWS rows of PANEL, and j + V * LANES <= PANEL.
        unsafe {
            if product.accumulate {
                each_row!(M, I, {
                    for v in 0..V {
                        sums[I][v] = s.load(tile.as_ptr().add(I * PANEL + j + v * S::LANES));
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
                a = a.wrapping_add(1);
                b = b.wrapping_add(PANEL);
            }
            each_row!(M, I, {
                for v in 0..V {
                    s.store(
                        tile.as_mut_ptr().add(I * PANEL + j + v * S::LANES),
                        sums[I][v],
                    );
                }
            });
        }
    }
}
