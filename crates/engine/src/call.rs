//! What a backend is asked for: every primitive as data over tensors. A call knows its name, its
//! operations, what it touches and whether its shapes fit; how it is computed is the backend's
//! matter.
//! Shapes: M rows, of which ranges may be named; D or C columns; [n, k] a weight with n outputs.

mod attention;
mod check;
mod product;
mod touched;

use std::ops::Range;

use lowrank_kernels::{Activation, AdamW, CrossEntropyForm, Dropout, RmsFactor};

use crate::ops::blocks::Blocks;
use crate::ops::head_part::HeadPart;
use crate::ops::rope::RopeForm;
use crate::param::PackedMatrix;
use crate::tensor::{Scalar, Tensor};

pub use attention::{AttentionGradients, AttentionInputs, CachedAttention, PositionTables};
pub use product::{Epilogue, LowRankTerm, Operand, Outer, Product};

/// Some rows of a tensor, to read.
#[derive(Clone, Debug)]
pub struct Rows<'a> {
    /// The tensor.
    pub tensor: &'a Tensor,
    /// Which of its rows.
    pub rows: Range<usize>,
}

impl<'a> Rows<'a> {
    /// Some rows.
    pub fn of(tensor: &'a Tensor, rows: Range<usize>) -> Self {
        Rows { tensor, rows }
    }
}

impl<'a> From<&'a Tensor> for Rows<'a> {
    /// All rows.
    fn from(tensor: &'a Tensor) -> Self {
        let rows = 0..tensor.rows();
        Rows { tensor, rows }
    }
}

/// Some rows of a tensor, to overwrite.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// The tensor.
    pub tensor: &'a mut Tensor,
    /// Which of its rows.
    pub rows: Range<usize>,
}

impl<'a> RowsMut<'a> {
    /// Some rows.
    pub fn of(tensor: &'a mut Tensor, rows: Range<usize>) -> Self {
        RowsMut { tensor, rows }
    }
}

impl<'a> From<&'a mut Tensor> for RowsMut<'a> {
    /// All rows.
    fn from(tensor: &'a mut Tensor) -> Self {
        let rows = 0..tensor.rows();
        RowsMut { tensor, rows }
    }
}

/// What happens to what an output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is overwritten.
    Store,
    /// It is added to.
    Add,
}

/// Whether a matrix is taken as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transpose {
    /// As it is stored.
    No,
    /// Rows as columns.
    Yes,
}

impl Transpose {
    /// The transpose of the transpose.
    pub fn flipped(self) -> Self {
        match self {
            Transpose::No => Transpose::Yes,
            Transpose::Yes => Transpose::No,
        }
    }
}

/// What a norm reads.
#[derive(Debug)]
pub enum NormInput<'a> {
    /// z, left as it is.
    Plain(&'a Tensor),
    /// x, which becomes z = dropout(x) + residual.
    Residual {
        /// x, then z.
        x: &'a mut Tensor,
        /// Added after the dropout.
        residual: Option<&'a Tensor>,
        /// Of x.
        dropout: Option<Dropout>,
    },
}

impl NormInput<'_> {
    fn tensor(&self) -> &Tensor {
        match self {
            NormInput::Plain(z) => z,
            NormInput::Residual { x, .. } => x,
        }
    }
}

/// What kind of norm, beside its weight.
#[derive(Clone, Copy, Debug)]
pub enum NormKind<'a> {
    /// (z - mean)·rstd·weight + bias, rstd = 1 / √(variance + eps).
    Layer {
        /// bias `[D]`.
        bias: &'a Tensor,
    },
    /// z·rstd·factor, rstd = 1 / √(mean of squares + eps).
    Rms {
        /// What the weight means.
        factor: RmsFactor,
    },
}

/// A norm over each row of z [M, D].
#[derive(Clone, Copy, Debug)]
pub struct NormForm<'a> {
    /// weight `[D]`.
    pub weight: &'a Tensor,
    /// What else there is.
    pub kind: NormKind<'a>,
    /// Added below the root.
    pub eps: f32,
}

/// The forward of a norm. Shapes: z, y [M, D]; mean, rstd `[M]`.
#[derive(Debug)]
pub struct Norm<'a> {
    /// z, or what it is made of.
    pub input: NormInput<'a>,
    /// The norm.
    pub form: NormForm<'a>,
    /// y.
    pub y: &'a mut Tensor,
    /// Mean of each row, of a layer norm.
    pub mean: Option<&'a mut Tensor>,
    /// Factor of each row.
    pub rstd: &'a mut Tensor,
}

/// What a norm's backward and recomputation read.
#[derive(Clone, Copy, Debug)]
pub struct NormSaved<'a> {
    /// z [M, D].
    pub z: &'a Tensor,
    /// Mean of each row, of a layer norm.
    pub mean: Option<&'a Tensor>,
    /// Factor of each row.
    pub rstd: &'a Tensor,
}

/// The rotation of pairs of each head's elements by the position of the token. Shapes: cos, sin
/// [positions, rotary_dim / 2].
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Dh, rotary_dim and the pairs.
    pub form: RopeForm,
    /// Cosines.
    pub cos: &'a Tensor,
    /// Sines.
    pub sin: &'a Tensor,
    /// The position of each token `[M]`.
    pub positions: &'a [u32],
}

/// Which way a rotation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationSense {
    /// Forward's.
    Forward,
    /// The inverse, a gradient's.
    Backward,
}

/// The input of a gated activation f(gate)·up.
#[derive(Clone, Copy, Debug)]
pub enum GateUp<'a> {
    /// gate and up, [M, F] each.
    Separate(&'a Tensor, &'a Tensor),
    /// [M, 2F], gate before up.
    Halves(&'a Tensor),
}

/// Gradients of [`GateUp`], of its shapes, overwritten.
#[derive(Debug)]
pub enum GateUpGradients<'a> {
    /// Of gate and up.
    Separate(&'a mut Tensor, &'a mut Tensor),
    /// Of both in one row.
    Halves(&'a mut Tensor),
}

/// A table [V, D].
#[derive(Clone, Copy, Debug)]
pub enum TableRef<'a> {
    /// Rows one after the other.
    Rows(&'a Tensor),
    /// A matrix that a head multiplies with too.
    Packed(&'a PackedMatrix),
}

/// A table and the rows to read from it, `[M]`.
#[derive(Clone, Copy, Debug)]
pub struct TableRows<'a> {
    /// The table.
    pub table: TableRef<'a>,
    /// Row numbers.
    pub ids: &'a [u32],
}

/// Cross entropy of logits [N, C] against labels `[N]`, -100 of which count for nothing. The logits
/// become what they have as a gradient, or are used up where the gradient has a place of its own.
#[derive(Debug)]
pub struct CrossEntropy<'a> {
    /// [N, C] in f32.
    pub logits: &'a mut Tensor,
    /// Classes.
    pub labels: &'a [i64],
    /// Factor of the gradient, and label smoothing.
    pub form: CrossEntropyForm,
    /// Where the gradient goes: rows of at least C columns, of which those behind C become zero.
    pub gradient: Option<RowsMut<'a>>,
    /// Added to: the losses' sum in f64.
    pub sum: &'a mut Scalar,
}

/// A loss of each element, whose logits become their gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementLoss {
    /// The squared error.
    Mse,
    /// Binary cross entropy with logits.
    BceWithLogits,
}

/// One primitive. Its line says what becomes of its fields.
#[allow(missing_docs)]
#[derive(Debug)]
pub enum Call<'a> {
    /// Sets every value.
    Fill { out: &'a mut Tensor, value: f32 },
    /// Copies rows in the same storage.
    Copy { x: Rows<'a>, out: RowsMut<'a> },
    /// Copies into another storage.
    Convert { x: &'a Tensor, out: &'a mut Tensor },
    /// out += x.
    Add { x: &'a Tensor, out: &'a mut Tensor },
    /// x *= factor.
    Scale { x: &'a mut Tensor, factor: f32 },
    /// Lays out a trained matrix [rows, cols], or its transpose, as a product's operand.
    Pack {
        x: &'a Tensor,
        transpose: Transpose,
        out: &'a mut PackedMatrix,
    },
    /// A product.
    Product(Product<'a>),
    /// An outer product.
    Outer(Outer<'a>),
    /// The B [out, n·r] of a stored one of some parts.
    ExpandBlocks {
        blocks: Blocks,
        stored: &'a Tensor,
        out: &'a mut Tensor,
    },
    /// out += the blocks of a whole B, into the stored form.
    GatherBlocks {
        blocks: Blocks,
        whole: &'a Tensor,
        out: &'a mut Tensor,
    },
    /// out [Mq, H·Dh] = softmax(scores)·v, and the logarithm of each row's sum of exponentials, lse
    /// [Mq, H].
    Attention {
        inputs: AttentionInputs<'a>,
        out: &'a mut Tensor,
        lse: &'a mut Tensor,
    },
    /// The gradients of attention.
    AttentionBackward {
        inputs: AttentionInputs<'a>,
        out: &'a Tensor,
        lse: &'a Tensor,
        d_out: &'a Tensor,
        gradients: AttentionGradients<'a>,
    },
    /// Attention over rows of a pool.
    CachedAttention(CachedAttention<'a>),
    /// A norm.
    Norm(Norm<'a>),
    /// y once more, with the bits of the first time.
    NormRecompute {
        saved: NormSaved<'a>,
        form: NormForm<'a>,
        y: &'a mut Tensor,
    },
    /// d_y becomes d_z.
    NormBackward {
        saved: NormSaved<'a>,
        form: NormForm<'a>,
        d: &'a mut Tensor,
    },
    /// d_weight += and, of a layer norm, d_bias +=.
    NormParamGrads {
        saved: NormSaved<'a>,
        d_y: &'a Tensor,
        d_weight: &'a mut Tensor,
        d_bias: Option<&'a mut Tensor>,
    },
    /// Rotates x [M, H·Dh] in place.
    Rotate {
        rotation: Rotation<'a>,
        sense: RotationSense,
        x: &'a mut Tensor,
    },
    /// y [M, F] = f(gate)·up.
    Gated {
        kind: Activation,
        x: GateUp<'a>,
        y: &'a mut Tensor,
    },
    /// The gradients of gate and up.
    GatedBackward {
        kind: Activation,
        x: GateUp<'a>,
        d_y: &'a Tensor,
        d_x: GateUpGradients<'a>,
    },
    /// y = f(x), or f of itself.
    Activation {
        kind: Activation,
        x: Option<&'a Tensor>,
        y: &'a mut Tensor,
    },
    /// d *= f'(pre).
    ActivationBackward {
        kind: Activation,
        pre: &'a Tensor,
        d: &'a mut Tensor,
    },
    /// y = mask(x) / (1 - p), or of itself.
    Dropout {
        dropout: Dropout,
        x: Option<&'a Tensor>,
        y: &'a mut Tensor,
    },
    /// out += the sums of x's columns.
    ColumnSum { x: &'a Tensor, out: &'a mut Tensor },
    /// y = Σ `tables[ids]`.
    Embedding {
        tables: &'a [TableRows<'a>],
        y: &'a mut Tensor,
    },
    /// `d_table[ids]` += d_y, but for the rows of one id.
    EmbeddingBackward {
        d_y: &'a Tensor,
        ids: &'a [u32],
        padding_idx: Option<u32>,
        d_table: &'a mut Tensor,
    },
    /// y = `x[rows]`.
    Gather {
        x: &'a Tensor,
        rows: &'a [usize],
        y: &'a mut Tensor,
    },
    /// `out[rows]` = x.
    Scatter {
        x: &'a Tensor,
        rows: &'a [u32],
        out: &'a mut Tensor,
    },
    /// `d_x[rows]` += d_y.
    ScatterAdd {
        d_y: &'a Tensor,
        rows: &'a [usize],
        d_x: &'a mut Tensor,
    },
    /// y = x[:, first..].
    Slice {
        x: &'a Tensor,
        first: usize,
        y: &'a mut Tensor,
    },
    /// d_x[:, first..] += d_y.
    SliceBackward {
        d_y: &'a Tensor,
        first: usize,
        d_x: &'a mut Tensor,
    },
    /// out[:, columns] = x.
    PutColumns {
        x: &'a Tensor,
        columns: &'a [u32],
        out: &'a mut Tensor,
    },
    /// out = x[:, columns], which become zero in x.
    TakeColumns {
        x: &'a mut Tensor,
        columns: &'a [u32],
        out: &'a mut Tensor,
    },
    /// One part of a projection that is fused head by head.
    HeadPart {
        x: &'a Tensor,
        form: HeadPart,
        bias: Option<&'a Tensor>,
        y: &'a mut Tensor,
    },
    /// Its part of d_x += d_y.
    HeadPartBackward {
        d_y: &'a Tensor,
        form: HeadPart,
        d_x: &'a mut Tensor,
    },
    /// The rows around each row of its sequence, side by side.
    Unfold {
        x: &'a Tensor,
        offsets: &'a [usize],
        taps: usize,
        y: &'a mut Tensor,
    },
    /// d_x = what d_y gives to each row.
    UnfoldBackward {
        d_y: &'a Tensor,
        offsets: &'a [usize],
        taps: usize,
        d_x: &'a mut Tensor,
    },
    /// A classifier's or language model's loss.
    CrossEntropy(CrossEntropy<'a>),
    /// A loss of each element.
    ElementLoss {
        kind: ElementLoss,
        logits: &'a mut Tensor,
        targets: &'a [f32],
        grad_scale: f32,
        sum: &'a mut Scalar,
    },
    /// One step of AdamW.
    AdamW {
        settings: AdamW,
        gradient: &'a Tensor,
        value: &'a mut Tensor,
        m: &'a mut Tensor,
        v: &'a mut Tensor,
    },
    /// out = 0.
    ClearScalar { out: &'a mut Scalar },
    /// out += Σ x².
    SumOfSquares { x: &'a Tensor, out: &'a mut Scalar },
}

impl Call<'_> {
    /// What a profile calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Call::Fill { .. } | Call::ClearScalar { .. } => "fill",
            Call::Copy { .. } | Call::Convert { .. } => "copy",
            Call::Add { .. } => "add",
            Call::Pack { .. } => "pack",
            Call::Product(product) => product.label,
            Call::Outer(_) => "outer product",
            Call::ExpandBlocks { .. } | Call::GatherBlocks { .. } => "blocks",
            Call::Attention { inputs, .. } | Call::AttentionBackward { inputs, .. } => {
                inputs.name()
            }
            Call::CachedAttention(_) => "cached_attention",
            Call::Norm(Norm { form, .. })
            | Call::NormRecompute { form, .. }
            | Call::NormBackward { form, .. } => match form.kind {
                NormKind::Layer { .. } => "layer_norm",
                NormKind::Rms { .. } => "rms_norm",
            },
            Call::NormParamGrads { d_bias, .. } => match d_bias {
                Some(_) => "layer_norm",
                None => "rms_norm",
            },
            Call::Rotate { .. } => "rope",
            Call::Gated { .. } | Call::GatedBackward { .. } => "gated activation",
            Call::Activation { .. } | Call::ActivationBackward { .. } => "activation",
            Call::Dropout { .. } => "dropout",
            Call::ColumnSum { .. } => "bias gradient",
            Call::Embedding { .. } | Call::EmbeddingBackward { .. } => "embedding",
            Call::Gather { .. } | Call::Scatter { .. } | Call::ScatterAdd { .. } => "rows",
            Call::Slice { .. }
            | Call::SliceBackward { .. }
            | Call::PutColumns { .. }
            | Call::TakeColumns { .. } => "columns",
            Call::HeadPart { .. } | Call::HeadPartBackward { .. } => "head_part",
            Call::Unfold { .. } | Call::UnfoldBackward { .. } => "neighbours",
            Call::CrossEntropy(_) => "cross_entropy",
            Call::ElementLoss { .. } => "loss",
            Call::Scale { .. } => "scale",
            Call::AdamW { .. } | Call::SumOfSquares { .. } => "optimizer",
        }
    }

    /// Floating-point operations of its products (a multiply-add is two); what else it does counts
    /// for nothing.
    pub fn flops(&self) -> u64 {
        match self {
            Call::Product(product) => {
                let [n, k] = product.b.shape();
                let terms = product.low_rank.iter();
                let terms: usize = terms.map(|term| term.h.len()).sum();
                2 * (n * (product.a.rows.len() * k + terms)) as u64
            }
            Call::Outer(Outer { a, b, .. }) => 2 * (a.rows() * a.cols() * b.tensor.cols()) as u64,
            Call::Attention { inputs, .. } => inputs.flops(2 + inputs.tables()),
            // Of each table: its scores again, what they give to the content, and to the table.
            Call::AttentionBackward {
                inputs, gradients, ..
            } => inputs.flops(5 + 2 * inputs.tables() + gradients.tables()),
            Call::CachedAttention(call) => 4 * call.shape.pairs() * call.q.cols() as u64,
            _ => 0,
        }
    }

    /// Bytes of all that it reads and writes, each counted once.
    pub fn bytes(&self) -> u64 {
        let mut bytes = 0;
        self.for_each_storage(&mut |storage| bytes += storage.bytes() as u64);
        bytes
    }
}
