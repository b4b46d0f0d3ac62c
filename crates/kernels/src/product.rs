//! Products of matrices: c = alpha·a·bᵀ + Σ scale·h·gᵀ + bias, and then what the layer does with
//! it, tile by tile in cache.
//!
//! One driver cuts the work into tasks of some rows of `a` against some panels of `b`, in whichever
//! format the panels are stored ([`PanelSource`]). An [`Arithmetic`] is a register tile, and the
//! form of its operands in cache. The sum of an element runs in an order that the depth alone
//! decides, so that its bits depend on neither the other rows, nor the row's place, nor the
//! threads.

mod block_forms;
mod block_panels;
mod driver;
mod epilogue;
mod integers;
mod pack_bf16;

mod pack_f32;
mod pack_int8;
mod panels;
mod plan;
mod strips;
mod task_panels;
mod terms;
mod tile_bf16;
mod tile_f32;
mod tile_int8;
mod weights;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::activation::Activation;
use crate::element::{DType, Values, ValuesMut};
use crate::isa::Isa;
use crate::matrix::{AnyMatRef, MatRef};
use crate::scratch::{Scratch, ScratchNeed};
pub use block_forms::{BlockFormat, BlockRows, NF4_VALUES};
use driver::Job;
use epilogue::Sink;
use integers::Integers;
pub use integers::{IntegerPanels, Rounding};
pub(crate) use pack_bf16::{pack_bf16, pack_columns, pack_rows_of, packed_bf16_len, pairs_of};
pub(crate) use pack_f32::pack_rows;
pub use pack_f32::{pack, packed_len, repack_transposed, unpack};
pub(crate) use panels::RowsOf;
pub use panels::{PANEL, PanelForm, PanelPart, PanelSource, PanelsInPlace};
pub use plan::{Order, ProductShape};
pub(crate) use strips::STRIP_STRIDE;
pub(crate) use tile_bf16::{Ahead, Product as PairTile, product_tile};
pub(crate) use tile_f32::{Block, each_row, multiply_block};
pub use weights::{
    PackedWeights, Side, WeightFormat, WeightPanels, pack_blocks, pack_weights, packed_bytes,
};

/// What multiplies, whatever the operands are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// f32 values; bf16 and smaller ones are widened in cache or registers. Sums over 384 of the
    /// depth are added in order.
    F32,
    /// Pairs of bf16 values with f32 sums over the whole depth; wider operands are rounded in
    /// cache.
    Bf16,
}

impl Arithmetic {
    /// The name, as users write it.
    pub fn name(self) -> &'static str {
        self.format().name()
    }

    /// The format whose panels it reads as they lie: that of what is packed for one use.
    pub fn format(self) -> WeightFormat {
        match self {
            Arithmetic::F32 => WeightFormat::F32,
            Arithmetic::Bf16 => WeightFormat::Bf16,
        }
    }
}

/// A low-rank term of some rows of a product: scale·h·gᵀ.
#[derive(Clone, Debug)]
pub struct LowRankTerm<'a> {
    /// Rows of c that it is added to.
    pub rows: Range<usize>,
    /// [rows, r].
    pub h: MatRef<'a>,
    /// g [n, r], in the format of the arithmetic.
    pub g: PackedWeights<'a>,
    /// Factor of the term.
    pub scale: f32,
}

/// v = alpha·a·bᵀ + Σ scale·h·gᵀ + bias.
#[derive(Clone, Copy)]
pub struct Product<'a> {
    /// What multiplies.
    pub arithmetic: Arithmetic,
    /// [m, k]; may be any view. Fastest with contiguous rows or columns.
    pub a: AnyMatRef<'a>,
    /// b [n, k].
    pub b: &'a dyn PanelSource,
    /// Factor of a·bᵀ.
    pub alpha: f32,
    /// Terms of adapters, added in order.
    pub low_rank: &'a [LowRankTerm<'a>],
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
}

/// What becomes of v. Matrices are [m, n], in the type of c and with its distance between rows.
#[derive(Debug)]
pub enum Epilogue<'a> {
    /// c = v.
    Store,
    /// c += v.
    Add,
    /// c = f(v), and pre = v if its backward will need it.
    Activate {
        /// f.
        kind: Activation,
        /// v.
        pre: Option<ValuesMut<'a>>,
    },
    /// c = v f'(pre): the backward of an activation between two layers.
    ActivateBackward {
        /// f.
        kind: Activation,
        /// The activation's input.
        pre: Values<'a>,
    },
}

/// c [m, n], with rows `row_stride` elements apart. What lies between the rows is untouched.
#[derive(Debug)]
pub struct Output<'a> {
    /// The elements.
    pub values: ValuesMut<'a>,
    /// At least n.
    pub row_stride: usize,
}

impl<'a> Product<'a> {
    /// a·bᵀ.
    pub fn new(arithmetic: Arithmetic, a: AnyMatRef<'a>, b: &'a dyn PanelSource) -> Self {
        Self {
            arithmetic,
            a,
            b,
            alpha: 1.0,
            low_rank: &[],
            bias: None,
        }
    }

    /// The shape, with c of a type.
    pub fn shape(&self, c: DType) -> ProductShape {
        let ([n, k], panels, integers) = (self.b.shape(), self.b.in_place(), self.b.integers());
        let form = panels.map_or(PanelForm::Decoded, |panels| panels.form());
        ProductShape {
            arithmetic: self.arithmetic,
            m: self.a.rows(),
            n,
            k,
            a: Order::of(self.a),
            b: integers.map_or(form, |integers| PanelForm::Integers(integers.side)),
            c,
            rank: self.low_rank.iter().map(|term| term.h.cols()).sum(),
            terms: self.low_rank.len(),
            outliers: integers.map_or(0, |integers| integers.outliers()),
        }
    }

    /// Panics if a length disagrees with the shape.
    fn check(&self, shape: &ProductShape, panels: Option<PanelsInPlace>) {
        let ProductShape { m, n, k, .. } = *shape;
        assert_eq!(self.a.cols(), k, "the product's depth");
        if let Some(panels) = panels {
            panels.check(n, k);
        }
        if let Some(integers) = self.b.integers() {
            integers.check();
        }
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), n, "bias");
        }
        let format = self.arithmetic.format();
        for term in self.low_rank {
            let Range { start, end } = term.rows;
            assert!(
                start <= end && end <= m,
                "rows {start}..{end} of a term, of {m}"
            );
            assert_eq!(term.h.rows(), end - start, "rows of a term");
            let rank = term.h.cols();
            assert!(
                term.h.col_stride() == 1 || rank <= 1,
                "rows of h are contiguous"
            );
            assert_eq!(term.g.shape(), [n, rank], "g of a term");
            assert_eq!(
                term.g.format(),
                format,
                "g of a term, in the arithmetic's format"
            );
        }
    }
}

/// Runs a product. Panics if a length disagrees with the shapes, or if `scratch` is less than
/// [`product_scratch`] says.
pub fn product(isa: Isa, call: &Product, epilogue: Epilogue, c: Output, scratch: &mut Scratch<'_>) {
    let in_place = call.b.in_place();
    let shape = call.shape(c.values.dtype());
    call.check(&shape, in_place);
    let sink = Sink::new(&shape, epilogue, c, call.bias);
    if shape.m == 0 || shape.n == 0 {
        return;
    }
    let plan = shape.plan(scratch.threads());
    let (mut shared, slots) = scratch.split(plan.scratch());
    let panels = call.b.integers().zip(shape.integers());
    let integers = panels
        .map(|(panels, needed)| Integers::new(isa, call, panels, &needed, &mut shared, &slots));
    let beside = integers.as_ref().and_then(Integers::term);
    let with_beside;
    let low_rank = match beside {
        None => call.low_rank,
        Some(term) => {
            with_beside = [&[term], call.low_rank].concat();
            &with_beside
        }
    };
    Job {
        isa,
        call: &Product { low_rank, ..*call },
        shape,
        in_place,
        integers: integers.as_ref(),
        plan: &plan,
        sink: &sink,
        slots: &slots,
    }
    .run();
}

/// The scratch that [`product`] needs on a number of threads.
pub fn product_scratch(shape: &ProductShape, threads: usize) -> ScratchNeed {
    match (shape.m, shape.n) {
        (0, _) | (_, 0) => ScratchNeed::default(),
        _ => shape.plan(threads).scratch(),
    }
}
