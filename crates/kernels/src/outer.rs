//! The gradients of an adapter's factors: c += alpha aᵀ x for a few columns of `a` against wide rows of `x`.

use crate::element::Element;
use crate::gemm::each_row;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::parallel::{SharedMut, for_each_task};
use crate::simd::{Simd, SimdOp, dispatch, load_at, store_at};

/// Columns of `a` that a pass over the rows takes at once.
const A_COLUMNS: usize = 8;

/// Rows ahead of which x is asked for.
const AHEAD: usize = 12;

/// How c is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OuterLayout {
    /// c [r, n], as aᵀ x comes out: the gradient of A.
    Rows,
    /// c [n, r], its transpose: the gradient of B.
    Transposed,
}

/// c += alpha aᵀ x. Shapes: a [m, r], x [m, n] with rows end to end, c [r, n] or [n, r]. Each element's sum over m runs in
/// order. Panics if a length disagrees.
pub fn outer_add<E: Element>(
    isa: Isa,
    a: MatRef,
    x: MatRef<E>,
    alpha: f32,
    c: &mut [f32],
    layout: OuterLayout,
) {
    let (m, r, n) = (a.rows(), a.cols(), x.cols());
    assert_eq!(x.rows(), m, "rows");
    assert!(x.col_stride() == 1 || n <= 1, "rows of x are contiguous");
    assert_eq!(c.len(), r * n, "c [{r}, {n}]");
    let c = SharedMut::new(c);
    // Two tiles of three vectors of the widest instruction set: whole cache lines of bf16, so that the line that the two share
    // comes from memory once.
    let block = 96;
    for_each_task(n.div_ceil(block) * r.div_ceil(A_COLUMNS), |task| {
        let (columns, first) = (
            task / r.div_ceil(A_COLUMNS),
            task % r.div_ceil(A_COLUMNS) * A_COLUMNS,
        );
        let op = Block {
            a,
            x,
            alpha,
            c,
            layout,
            of_a: first..(first + A_COLUMNS).min(r),
            of_x: columns * block..(columns * block + block).min(n),
        };
        dispatch(isa, op);
    });
}

/// Some columns of `a` against some of `x`.
struct Block<'a, E> {
    a: MatRef<'a>,
    x: MatRef<'a, E>,
    alpha: f32,
    c: SharedMut,
    layout: OuterLayout,
    of_a: std::ops::Range<usize>,
    of_x: std::ops::Range<usize>,
}

impl<E: Element> SimdOp for Block<'_, E> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut j = self.of_x.start;
        while j < self.of_x.end {
            let left = self.of_x.end - j;
            // Sixteen registers hold a tile of one vector, thirty-two one of three.
            let vectors = if S::LANES == 16 && left >= 3 * S::LANES {
                3
            } else {
                1
            };
            let op = Tile {
                block: &self,
                j,
                columns: left.min(vectors * S::LANES),
            };
            match (self.of_a.len(), vectors) {
                (8, 3) => s.call(TileOf::<E, 8, 3>(op)),
                (8, _) => s.call(TileOf::<E, 8, 1>(op)),
                (4..=7, 3) => s.call(TileOf::<E, 4, 3>(op)),
                (_, 3) => s.call(TileOf::<E, 1, 3>(op)),
                _ => s.call(TileOf::<E, 1, 1>(op)),
            }
            j += vectors * S::LANES;
        }
    }
}

struct Tile<'b, 'a, E> {
    block: &'b Block<'a, E>,
    j: usize,
    columns: usize,
}

/// A register tile of R columns of `a`, repeated until all of the block's are done.
struct TileOf<'b, 'a, E, const R: usize, const V: usize>(Tile<'b, 'a, E>);

impl<E: Element, const R: usize, const V: usize> SimdOp for TileOf<'_, '_, E, R, V> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let of_a = self.0.block.of_a.clone();
        let mut first = of_a.start;
        while first + R <= of_a.end {
            self.columns_from(s, first);
            first += R;
        }
        while first < of_a.end {
            TileOf::<E, 1, V>(Tile { ..self.0 }).columns_from(s, first);
            first += 1;
        }
    }
}

impl<E: Element, const R: usize, const V: usize> TileOf<'_, '_, E, R, V> {
    #[allow(
        clippy::needless_range_loop,
        reason = "the vector's index is the inner one of `sums`"
    )]
    #[inline(always)]
    fn columns_from<S: Simd>(&self, s: S, first: usize) {
        let Tile { block, j, columns } = self.0;
        let (a, x) = (block.a, block.x);
        let (a_row, a_col, x_row) = (a.row_stride(), a.col_stride(), x.row_stride());
        let mut sums = [[s.splat(0.0); V]; R];
        let whole = columns == V * S::LANES;
        for row in 0..a.rows() {
            let start = row * x_row + j;
            let mut xv = [s.splat(0.0); V];
            if whole {
                let ahead = x.as_ptr().wrapping_add(start + AHEAD * x_row);
                s.prefetch(ahead.cast());
                s.prefetch(ahead.wrapping_add(V * S::LANES - 1).cast());
                for v in 0..V {
                    xv[v] = load_at(s, x.data(), start + v * S::LANES, S::LANES);
                }
            } else {
                xv[0] = load_at(s, x.data(), start, columns);
            }
            // SAFETY: element (row, first + I) lies inside the view, as first + R <= its columns.
            let p = unsafe { a.as_ptr().add(row * a_row + first * a_col) };
            each_row!(R, I, {
                // SAFETY: as above.
                let av = s.splat(unsafe { *p.add(I * a_col) });
                for v in 0..V {
                    sums[I][v] = s.mul_add(av, xv[v], sums[I][v]);
                }
            });
        }
        let vectors = if whole { V } else { 1 };
        for i in 0..R {
            for v in 0..vectors {
                let lanes = (columns - v * S::LANES).min(S::LANES);
                let mut values = [0.0f32; 16];
                store_at(s, &mut values, 0, sums[i][v], S::LANES);
                self.add(first + i, j + v * S::LANES, &values[..lanes]);
            }
        }
    }

    #[inline(always)]
    fn add(&self, i: usize, j: usize, values: &[f32]) {
        let block = self.0.block;
        let (r, n) = (block.a.cols(), block.x.cols());
        for (lane, value) in values.iter().enumerate() {
            let at = match block.layout {
                OuterLayout::Rows => i * n + j + lane,
                OuterLayout::Transposed => (j + lane) * r + i,
            };
            // SAFETY: i < r and j + lane < n, whose product is the length of c; tasks' rectangles are disjoint.
            unsafe { *block.c.get().add(at) += block.alpha * value };
        }
    }
}
