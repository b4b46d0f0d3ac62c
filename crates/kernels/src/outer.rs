//! Outer products, the gradients of weights and factors: c += alpha aᵀ x. Factors, a few columns of
//! `a` against wide rows of `x`, have tiles of their own; wide ones are products whose second
//! operand is x as it lies, or packed.

use crate::aligned::typed;
use crate::element::{DType, Element, ValuesMut};
use crate::isa::Isa;
use crate::matrix::{AnyMatRef, MatRef, each_type};
use crate::parallel::{SharedMut, for_each_task};
use crate::product::{
    Arithmetic, Epilogue, Order, Output, PANEL, PackedWeights, PanelForm, PanelSource, Product,
    ProductShape, RowsOf, Side, WeightFormat, each_row, pack_bf16, packed_bf16_len, product,
    product_scratch,
};
use crate::scratch::{Scratch, ScratchNeed, bytes_of};
use crate::simd::{Simd, SimdOp, dispatch, load_at, store_at};

/// Columns of `a` that a pass over the rows takes at once.
const A_COLUMNS: usize = 8;

/// Rows ahead of which x is asked for.
const AHEAD: usize = 12;

/// Columns up to which one side counts as a factor's: wider ones are worth packing.
const THIN: usize = 32;

/// Rows over which bf16 pairs are summed at once: their packed strips and a panel share the L2
/// cache.
const PACKED_ROWS: usize = 2048;

/// c += alpha·aᵀ·x. Rows of both are contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Outer<'a> {
    /// What multiplies operands of which one is bf16 and none is a factor's; all others are
    /// multiplied in f32.
    pub arithmetic: Arithmetic,
    /// [rows, m].
    pub a: AnyMatRef<'a>,
    /// [rows, n].
    pub x: AnyMatRef<'a>,
    /// Factor of the product.
    pub alpha: f32,
}

/// What an outer product's scratch depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterShape {
    /// What multiplies, as in [`Outer`].
    pub arithmetic: Arithmetic,
    /// Rows of a and x.
    pub rows: usize,
    /// Columns of a.
    pub m: usize,
    /// Columns of x.
    pub n: usize,
    /// The type of a.
    pub a: DType,
    /// The type of x.
    pub x: DType,
}

/// How an outer product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As a product in f32.
    Product,
    /// As the product of the sides exchanged, which is then transposed: few columns would leave
    /// most lanes idle.
    Exchanged,
    /// a is a factor's side.
    ThinA,
    /// x is a factor's side.
    ThinX,
    /// As products of bf16 pairs of neighbouring rows, even parts of so many rows.
    Pairs { part: usize },
}

impl OuterShape {
    fn form(&self) -> Form {
        match (self.a, self.x, self.arithmetic) {
            (DType::F32, DType::F32, _) if self.n < PANEL && self.n < self.m => Form::Exchanged,
            (DType::F32, DType::F32, _) => Form::Product,
            (DType::F32, DType::Bf16, _) if self.m <= THIN => Form::ThinA,
            (DType::Bf16, DType::F32, _) if self.n <= THIN => Form::ThinX,
            (_, _, Arithmetic::F32) => Form::Product,
            (_, _, Arithmetic::Bf16) => {
                let part = self.rows.div_ceil(self.rows.div_ceil(PACKED_ROWS).max(1));
                let part = part.next_multiple_of(2);
                Form::Pairs { part }
            }
        }
    }

    /// The product of a transposed first operand [rows, m] and x [rows, n].
    fn product(&self, [m, n]: [usize; 2], x: DType) -> ProductShape {
        ProductShape {
            arithmetic: Arithmetic::F32,
            m,
            n,
            k: self.rows,
            a: Order::Columns,
            b: match x {
                DType::F32 => PanelForm::Lines,
                DType::Bf16 => PanelForm::Decoded,
            },
            c: DType::F32,
            rank: 0,
            terms: 0,
            outliers: 0,
        }
    }
}

impl OuterShape {
    /// The different products of [`Form::Pairs`]: over a whole part and over the last one. A single
    /// column of `a` is a row of its transpose too.
    fn parts(self, part: usize) -> impl Iterator<Item = ProductShape> {
        let last = match self.rows % part.max(1) {
            0 => part.min(self.rows),
            rest => rest,
        };
        let orders = [Order::Columns, Order::Rows].into_iter();
        orders
            .take(if self.m == 1 { 2 } else { 1 })
            .flat_map(move |a| {
                [part.min(self.rows), last].map(|k| ProductShape {
                    arithmetic: Arithmetic::Bf16,
                    b: PanelForm::Pairs,
                    a,
                    k,
                    ..self.product([self.m, self.n], self.x)
                })
            })
    }
}

/// The scratch that [`outer`] needs on a number of threads.
pub fn outer_scratch(shape: &OuterShape, threads: usize) -> ScratchNeed {
    let OuterShape { m, n, .. } = *shape;
    let need = |product: &ProductShape| product_scratch(product, threads);
    let (shared, product) = match shape.form() {
        Form::ThinA | Form::ThinX => return ScratchNeed::default(),
        Form::Product => (0, need(&shape.product([m, n], shape.x))),
        Form::Exchanged => {
            let product = shape.product([n, m], shape.a);
            (bytes_of::<f32>(m * n), need(&product))
        }
        Form::Pairs { part } => {
            let len = packed_bf16_len(n, part);
            let products = shape.parts(part);
            let product = products.fold(ScratchNeed::default(), |most, p| most.max(need(&p)));
            (bytes_of::<half::bf16>(len), product)
        }
    };
    ScratchNeed { shared, ..product }
}

impl<'a> Outer<'a> {
    /// The shape.
    pub fn shape(&self) -> OuterShape {
        OuterShape {
            arithmetic: self.arithmetic,
            rows: self.a.rows(),
            m: self.a.cols(),
            n: self.x.cols(),
            a: self.a.dtype(),
            x: self.x.dtype(),
        }
    }
}

/// Adds an outer product to c [m, n]. Each element's sum over the rows runs in order. Panics if a
/// length disagrees, or if `scratch` is less than [`outer_scratch`] says.
pub fn outer(isa: Isa, call: &Outer, c: &mut [f32], scratch: &mut Scratch<'_>) {
    let (shape, Outer { a, x, alpha, .. }) = (call.shape(), *call);
    let OuterShape { rows, m, n, .. } = shape;
    assert_eq!(x.rows(), rows, "rows");
    assert_eq!(c.len(), m * n, "c [{m}, {n}]");
    for side in [a, x] {
        assert!(
            side.col_stride() == 1 || side.cols() <= 1,
            "rows of the operands are contiguous"
        );
    }
    match (shape.form(), a, x) {
        (Form::ThinA, AnyMatRef::F32(a), x) => {
            each_type!(x, x => outer_add(isa, a, x, alpha, c, OuterLayout::Rows));
        }
        (Form::ThinX, a, AnyMatRef::F32(x)) => {
            each_type!(a, a => outer_add(isa, x, a, alpha, c, OuterLayout::Transposed));
        }
        (Form::Exchanged, a, x) => {
            let (mut room, mut rest) = scratch.cut(bytes_of::<f32>(m * n));
            let exchanged = room.take::<f32>(m * n);
            let product = AsProduct { isa, a: x, alpha };
            product.run(&RowsOf(a), Epilogue::Store, exchanged, &mut rest);
            for (i, c) in c.chunks_exact_mut(n.max(1)).enumerate() {
                for (j, c) in c.iter_mut().enumerate() {
                    *c += exchanged[j * m + i];
                }
            }
        }
        (Form::Pairs { part }, a, x) => by_pairs(isa, &Outer { a, x, ..*call }, part, c, scratch),
        (Form::Product | Form::ThinA | Form::ThinX, a, x) => {
            let product = AsProduct { isa, a, alpha };
            product.run(&RowsOf(x), Epilogue::Add, c, scratch);
        }
    }
}

/// alpha·aᵀ·b in f32.
struct AsProduct<'a> {
    isa: Isa,
    a: AnyMatRef<'a>,
    alpha: f32,
}

impl AsProduct<'_> {
    fn run(&self, b: &RowsOf, epilogue: Epilogue, c: &mut [f32], scratch: &mut Scratch<'_>) {
        let call = Product {
            alpha: self.alpha,
            ..Product::new(Arithmetic::F32, self.a.transposed(), b)
        };
        let [row_stride, _] = b.shape();
        let values = ValuesMut::F32(c);
        product(
            self.isa,
            &call,
            epilogue,
            Output { values, row_stride },
            scratch,
        );
    }
}

/// On bf16 pairs of neighbouring rows, with f32 sums over parts of the rows.
fn by_pairs(isa: Isa, call: &Outer, part: usize, c: &mut [f32], scratch: &mut Scratch<'_>) {
    let (rows, n) = (call.a.rows(), call.x.cols());
    let len = packed_bf16_len(n, part);
    let (mut room, mut rest) = scratch.cut(bytes_of::<half::bf16>(len));
    let packed = room.take::<half::bf16>(len);
    for first in (0..rows).step_by(part.max(1)) {
        let of = first..(first + part).min(rows);
        let shape = [n, of.len()];
        let packed = &mut packed[..packed_bf16_len(n, of.len())];
        let x = call.x.rows_range(of.clone()).transposed();
        each_type!(x, x => pack_bf16(isa, x, packed));
        let b = PackedWeights::new(WeightFormat::Bf16, shape, typed(packed)).panels(Side::Straight);
        let product_of = Product {
            alpha: call.alpha,
            ..Product::new(Arithmetic::Bf16, call.a.rows_range(of).transposed(), &b)
        };
        let c = Output {
            values: ValuesMut::F32(c),
            row_stride: n,
        };
        product(isa, &product_of, Epilogue::Add, c, &mut rest);
    }
}

/// How c is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OuterLayout {
    /// c [r, n], as aᵀ x comes out: the gradient of A.
    Rows,
    /// c [n, r], its transpose: the gradient of B.
    Transposed,
}

/// c += alpha aᵀ x. Shapes: a [m, r], x [m, n] with rows end to end, c [r, n] or [n, r]. Each
/// element's sum over m runs in order. Panics if a length disagrees.
fn outer_add<E: Element>(
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
    // Two tiles of three vectors of the widest instruction set: whole cache lines of bf16, so that
    // the line that the two share comes from memory once.
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
            // SAFETY: i < r and j + lane < n, whose product is the length of c; tasks' rectangles
            // are disjoint.
            unsafe { *block.c.get().add(at) += block.alpha * value };
        }
    }
}
