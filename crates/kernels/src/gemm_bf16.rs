//! Products by the names of before [`crate::product`], until the engine calls that.

use crate::activation::Activation;
use crate::aligned::typed;
use crate::element::Element;
use crate::gemm::with_scratch;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::product::{self, Arithmetic, LowRankTerm, Output, PackedWeights, Side, WeightFormat};
pub(crate) use crate::product::{
    Ahead, PairTile as Product, pack_columns, pack_rows_of, pairs_of, product_tile,
};
pub use crate::product::{pack_bf16, packed_bf16_len, unpack_bf16};
use half::bf16;

/// The packed operand b [n, k].
#[derive(Clone, Copy, Debug)]
pub enum PackedBf16<'a> {
    /// The packed form of b.
    Rows(&'a [bf16]),
    /// The packed form of bᵀ [k, n].
    Transposed(&'a [bf16]),
}

/// The second product: h [m, r] times the packed g [n, r], h multiplied by `scale` first.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a> {
    /// [m, r].
    pub h: MatRef<'a>,
    /// The packed form of g [n, r].
    pub g_packed: &'a [bf16],
    /// Factor of the term.
    pub scale: f32,
}

/// One product with its terms.
#[derive(Clone, Copy, Debug)]
pub struct GemmBf16<'a, A> {
    /// [m, k]; may be any view.
    pub a: MatRef<'a, A>,
    /// Factor of a.
    pub alpha: f32,
    /// b [n, k].
    pub b: PackedBf16<'a>,
    /// Rows of b: columns of c.
    pub n: usize,
    /// The second product, if there is one.
    pub low_rank: Option<LowRank<'a>>,
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
}

/// What becomes of v = alpha·a·bᵀ + scale·h·gᵀ + bias. All matrices are [m, n].
pub enum Epilogue<'a, C> {
    /// c = v.
    Store(&'a mut [C]),
    /// c += v.
    Add(&'a mut [C]),
    /// c = f(v), and v itself is stored if its backward will need it.
    Activate {
        /// f.
        kind: Activation,
        /// v.
        pre: Option<&'a mut [C]>,
        /// f(v).
        c: &'a mut [C],
    },
    /// c = v f'(pre): the backward of an activation between two layers.
    ActivateBackward {
        /// f.
        kind: Activation,
        /// The activation's input.
        pre: &'a [C],
        /// The gradient of that input.
        c: &'a mut [C],
    },
}

/// Runs a product. Panics if a length disagrees with the shapes.
pub fn gemm_bf16<A: Element, C: Element>(isa: Isa, g: &GemmBf16<A>, epilogue: Epilogue<C>) {
    let (k, m) = (g.a.cols(), g.a.rows());
    let packed = |values, shape| PackedWeights::new(WeightFormat::Bf16, shape, typed(values));
    let b = match g.b {
        PackedBf16::Rows(b) => packed(b, [g.n, k]).panels(Side::Straight),
        PackedBf16::Transposed(b) => packed(b, [k, g.n]).panels(Side::Transposed),
    };
    let term = g.low_rank.map(|term| LowRankTerm {
        rows: 0..m,
        h: term.h,
        g: packed(term.g_packed, [g.n, term.h.cols()]),
        scale: term.scale,
    });
    let call = product::Product {
        alpha: g.alpha,
        bias: g.bias,
        low_rank: term.as_slice(),
        ..product::Product::new(Arithmetic::Bf16, A::any_view(g.a), &b)
    };
    let (c, epilogue) = match epilogue {
        Epilogue::Store(c) => (c, product::Epilogue::Store),
        Epilogue::Add(c) => (c, product::Epilogue::Add),
        Epilogue::Activate { kind, pre, c } => {
            let pre = pre.map(C::any_mut);
            (c, product::Epilogue::Activate { kind, pre })
        }
        Epilogue::ActivateBackward { kind, pre, c } => {
            let pre = C::any(pre);
            (c, product::Epilogue::ActivateBackward { kind, pre })
        }
    };
    assert_eq!(c.len(), m * g.n, "c");
    let c = Output {
        values: C::any_mut(c),
        row_stride: g.n,
    };
    with_scratch(isa, &call, epilogue, c);
}
