//! A product and what becomes of it.

use std::ops::Range;

use lowrank_kernels::Activation;
use lowrank_kernels::product::{Arithmetic, Rounding};

use super::check::check_range;
use super::{Rows, RowsMut, Transpose, Write};
use crate::param::PackedMatrix;
use crate::tensor::Tensor;

/// The second operand [n, k] of a product.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a> {
    /// What is stored.
    pub matrix: &'a PackedMatrix,
    /// Whether [n, k] is its transpose.
    pub transpose: Transpose,
}

impl<'a> Operand<'a> {
    /// A matrix [n, k] as it is.
    pub fn straight(matrix: &'a PackedMatrix) -> Self {
        let transpose = Transpose::No;
        Operand { matrix, transpose }
    }

    /// The transpose [n, k] of a matrix [k, n].
    pub fn transposed(matrix: &'a PackedMatrix) -> Self {
        let transpose = Transpose::Yes;
        Operand { matrix, transpose }
    }

    /// The columns of the other operand that are kept beside.
    pub fn outliers(&self) -> &'a [u32] {
        let outliers = self.matrix.outliers();
        match self.transpose {
            Transpose::No => &outliers.inputs,
            Transpose::Yes => &outliers.gradients,
        }
    }

    /// [n, k].
    pub fn shape(&self) -> [usize; 2] {
        let (rows, cols) = (self.matrix.out_features(), self.matrix.in_features());
        match self.transpose {
            Transpose::No => [rows, cols],
            Transpose::Yes => [cols, rows],
        }
    }
}

/// The low-rank term of an adapter on some rows: scale · h·gᵀ, h [rows, r] in f32, g [n, r].
#[derive(Clone, Debug)]
pub struct LowRankTerm<'a> {
    /// Which rows of the product it is added to.
    pub rows: Range<usize>,
    /// h.
    pub h: &'a Tensor,
    /// g.
    pub g: Operand<'a>,
    /// Factor of the term.
    pub scale: f32,
}

/// What becomes of v, the value of a product, on its way to c.
#[derive(Debug)]
pub enum Epilogue<'a> {
    /// c = v, or c += v.
    Write(Write),
    /// c = f(v), and pre = v for the backward if it is wanted.
    Activate {
        /// f.
        kind: Activation,
        /// [m, n] in the storage of c.
        pre: Option<&'a mut Tensor>,
    },
    /// c = v f'(pre): the backward of an activation between two layers.
    ActivateBackward {
        /// f.
        kind: Activation,
        /// [m, n] in the storage of c.
        pre: &'a Tensor,
    },
}

/// v = alpha · a·bᵀ + scale · h·gᵀ + bias. Sums are f32.
#[derive(Debug)]
pub struct Product<'a> {
    /// What multiplies.
    pub arithmetic: Arithmetic,
    /// [m, k], or wider, where the columns behind k are zeros: see
    /// [`crate::backend::Sizes::depth_multiple`].
    pub a: Rows<'a>,
    /// [n, k].
    pub b: Operand<'a>,
    /// Factor of the product.
    pub alpha: f32,
    /// The adapters' terms; no row has two.
    pub low_rank: &'a [LowRankTerm<'a>],
    /// `[n]`, f32.
    pub bias: Option<&'a Tensor>,
    /// c [m, n].
    pub c: RowsMut<'a>,
    /// From v to c.
    pub epilogue: Epilogue<'a>,
    /// How a is rounded where b is integers.
    pub rounding: Rounding,
    /// What a profile calls it.
    pub label: &'static str,
}

/// Columns up to which one side counts as a factor's.
const THIN: usize = 32;

impl<'a> Product<'a> {
    /// c = a·bᵀ, in the arithmetic of b's device.
    pub fn new(a: impl Into<Rows<'a>>, b: Operand<'a>, c: impl Into<RowsMut<'a>>) -> Self {
        let [n, k] = b.shape();
        Product {
            arithmetic: b.matrix.device().numerics().arithmetic,
            a: a.into(),
            b,
            alpha: 1.0,
            low_rank: &[],
            bias: None,
            c: c.into(),
            epilogue: Epilogue::Write(Write::Store),
            rounding: Rounding::Nearest,
            label: match n.min(k) <= THIN {
                true => "product with a factor",
                false => "product",
            },
        }
    }

    pub(super) fn check(&self) {
        let ([n, k], m) = (self.b.shape(), self.a.rows.len());
        assert!(self.a.tensor.cols() >= k, "the product's depth");
        let c = (self.c.rows.len(), self.c.tensor.cols());
        assert_eq!(c, (m, n), "the product's shape");
        check_range(&self.a.rows, self.a.tensor);
        check_range(&self.c.rows, self.c.tensor);
        let mut end = 0;
        for LowRankTerm { rows, h, g, .. } in self.low_rank {
            let is_apart = end <= rows.start && rows.end <= m;
            assert!(is_apart, "terms on rows {rows:?} of {m}, behind {end}");
            assert_eq!(h.rows(), rows.len(), "rows of a low-rank term");
            assert_eq!(g.shape(), [n, h.cols()], "a low-rank term's factor");
            end = rows.end;
        }
        if let Some(bias) = self.bias {
            assert_eq!(bias.len(), n, "the bias");
        }
        let pre = match &self.epilogue {
            Epilogue::Write(_) | Epilogue::Activate { pre: None, .. } => return,
            Epilogue::Activate { pre: Some(pre), .. } => &**pre,
            Epilogue::ActivateBackward { pre, .. } => pre,
        };
        assert_eq!((pre.rows(), pre.cols()), (m, n), "the activation's input");
        assert_eq!(pre.dtype(), self.c.tensor.dtype(), "its storage");
    }
}

/// out += alpha · aᵀ·b: the gradient of a weight or a factor.
#[derive(Debug)]
pub struct Outer<'a> {
    /// What multiplies, where no operand is a factor's or f32 is all that there is.
    pub arithmetic: Arithmetic,
    /// [M, out], or wider, where the columns behind are padding.
    pub a: &'a Tensor,
    /// [M, in].
    pub b: Rows<'a>,
    /// Factor of the product.
    pub alpha: f32,
    /// [out, in], f32.
    pub out: &'a mut Tensor,
}

impl<'a> Outer<'a> {
    /// out += aᵀ·b, in the arithmetic of a's device.
    pub fn new(a: &'a Tensor, b: impl Into<Rows<'a>>, out: &'a mut Tensor) -> Self {
        Outer {
            arithmetic: a.device().numerics().arithmetic,
            a,
            b: b.into(),
            alpha: 1.0,
            out,
        }
    }

    pub(super) fn check(&self) {
        let Outer { a, b, out, .. } = self;
        check_range(&b.rows, b.tensor);
        assert_eq!(a.rows(), b.rows.len(), "rows of an outer product");
        assert!(
            a.cols() >= out.rows() && b.tensor.cols() == out.cols(),
            "an outer product of {a:?} and {:?} into {out:?}",
            b.tensor
        );
    }
}
