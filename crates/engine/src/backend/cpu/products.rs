//! Products: the layouts and the scratch that they need, by the format of the weights and the
//! arithmetic of the call.

use std::ops::Range;

use lowrank_kernels::product::{
    self as products, BlockRows, Order, Output, PackedWeights, PanelForm, ProductShape, Side,
    WeightFormat, product_scratch,
};
use lowrank_kernels::{
    self as kernels, AnyMatRef, DType, Isa, MatRef, OuterShape, Scratch, Values, ValuesMut,
    outer_scratch,
};

use crate::call::{Epilogue, LowRankTerm, Operand, Outer, Product, Rows, Transpose, Write};
use crate::param::PackedMatrix;
use crate::tensor::Tensor;

/// Bytes of a transposed f32 copy that is made once for all rows of a product. A larger one, a
/// vocabulary's, is made in cache by the tasks that need it, with the same bits: a copy would be as
/// large as the table.
const LARGEST_COPY: usize = 48 << 20;

/// The layout of a matrix.
pub(super) fn weights(matrix: &PackedMatrix) -> PackedWeights<'_> {
    weights_of(matrix, [matrix.out_features(), matrix.in_features()])
}

/// The layout of a matrix, whose last panel may count as whole.
fn weights_of(matrix: &PackedMatrix, [rows, depth]: [usize; 2]) -> PackedWeights<'_> {
    let format = matrix.format();
    let bytes = products::packed_bytes(format, rows, depth);
    PackedWeights::new(format, [rows, depth], &matrix.host()[..bytes])
}

/// Lays out rows of a matrix from `first` on, which stands at a panel's start.
pub(super) fn pack_rows(isa: Isa, rows: MatRef<'_>, first: usize, into: &mut PackedMatrix) {
    let (format, depth) = (into.format(), into.in_features());
    // Blocks are whole panels, so that the layout of the rows before ends where this one begins.
    let start = products::packed_bytes(format, first, depth);
    let len = products::packed_bytes(format, rows.rows(), depth);
    products::pack_weights(isa, format, rows, &mut into.host_mut()[start..start + len]);
}

/// Lays out rows of a matrix in blocks, of which the first stands at a panel's start.
pub(super) fn pack_block_rows(parts: &BlockRows, rows: Range<usize>, into: &mut PackedMatrix) {
    let (format, depth) = (into.format(), into.in_features());
    let WeightFormat::Blocks(blocks) = format else {
        panic!("{} weights have no blocks", format.name());
    };
    let start = products::packed_bytes(format, rows.start, depth);
    let len = products::packed_bytes(format, rows.len(), depth);
    let bytes = &mut into.host_mut()[start..start + len];
    products::pack_blocks(blocks, parts, [rows.len(), depth], bytes);
}

/// Lays out a trained value or its transpose.
pub(super) fn pack(isa: Isa, x: &Tensor, transpose: Transpose, into: &mut PackedMatrix) {
    let view = MatRef::new(x.host(), x.rows(), x.cols());
    let view = match transpose {
        Transpose::No => view,
        Transpose::Yes => view.transposed(),
    };
    pack_rows(isa, view, 0, into);
}

fn view<'a>(rows: &Rows<'a>) -> AnyMatRef<'a> {
    let tensor = rows.tensor;
    let (n, cols) = (tensor.rows(), tensor.cols());
    let view: AnyMatRef<'_> = match tensor.dtype() {
        DType::F32 => MatRef::<f32>::new(tensor.host(), n, cols).into(),
        DType::Bf16 => MatRef::<kernels::bf16>::new(tensor.host(), n, cols).into(),
    };
    view.rows_range(rows.rows.clone())
}

pub(super) fn values(tensor: &Tensor) -> Values<'_> {
    match tensor.dtype() {
        DType::F32 => Values::F32(tensor.host()),
        DType::Bf16 => Values::Bf16(tensor.host()),
    }
}

fn values_mut(tensor: &mut Tensor) -> ValuesMut<'_> {
    match tensor.dtype() {
        DType::F32 => ValuesMut::F32(tensor.host_mut()),
        DType::Bf16 => ValuesMut::Bf16(tensor.host_mut()),
    }
}

/// Bytes of the transposed copy that a product makes.
fn copy_bytes(b: &Operand<'_>) -> usize {
    let is_copied = b.transpose == Transpose::Yes && b.matrix.format() == WeightFormat::F32;
    let [n, k] = b.shape();
    match products::packed_bytes(WeightFormat::F32, n, k) {
        bytes if is_copied && bytes <= LARGEST_COPY => bytes,
        _ => 0,
    }
}

fn side(b: &Operand<'_>) -> Side {
    match b.transpose {
        Transpose::No => Side::Straight,
        Transpose::Yes => Side::Transposed,
    }
}

pub(super) fn product_scratch_bytes(product: &Product<'_>, threads: usize) -> usize {
    let (b, copy, [n, _]) = (&product.b, copy_bytes(&product.b), product.b.shape());
    let shape = ProductShape {
        arithmetic: product.arithmetic,
        m: product.a.rows.len(),
        n,
        k: product.a.tensor.cols(),
        a: Order::Rows,
        b: match copy {
            0 => b.matrix.format().form(side(b)),
            _ => PanelForm::Lines,
        },
        c: product.c.tensor.dtype(),
        rank: product.low_rank.iter().map(|term| term.h.cols()).sum(),
        terms: product.low_rank.len(),
        outliers: b.outliers().len(),
    };
    kernels::bytes_of::<u8>(copy) + product_scratch(&shape, threads).bytes(threads)
}

/// A product, on the pool that the scratch is for.
pub(super) fn product<'a>(isa: Isa, product: Product<'a>, scratch: &mut Scratch<'_>) {
    let Product {
        arithmetic,
        a,
        b,
        alpha,
        low_rank,
        bias,
        c,
        epilogue,
        rounding,
        ..
    } = product;
    // A wider `a` has zeros where the last panel of a transposed matrix has rows of zeros.
    let (n, k) = (b.shape()[0], a.tensor.cols());
    let (mut room, mut scratch) = scratch.cut(copy_bytes(&b));
    let copy = room.take::<f32>(copy_bytes(&b) / size_of::<f32>());
    let operand = if copy.is_empty() {
        let shape = match b.transpose {
            Transpose::No => [n, k],
            Transpose::Yes => [k, n],
        };
        let panels = weights_of(b.matrix, shape).panels(side(&b));
        panels.with_outliers(b.outliers()).with_rounding(rounding)
    } else {
        let straight = &b.matrix.host()[..kernels::packed_len(k, n)];
        kernels::repack_transposed(isa, straight, k, n, copy);
        PackedWeights::of_f32([n, k], copy).panels(Side::Straight)
    };
    let term = |term: &LowRankTerm<'a>| {
        assert_eq!(
            term.g.transpose,
            Transpose::No,
            "a factor is packed as it is used"
        );
        products::LowRankTerm {
            rows: term.rows.clone(),
            h: MatRef::new(term.h.host(), term.h.rows(), term.h.cols()),
            g: weights(term.g.matrix),
            scale: term.scale,
        }
    };
    let low_rank: Vec<_> = low_rank.iter().map(term).collect();
    let call = products::Product {
        alpha,
        low_rank: &low_rank,
        bias: bias.map(Tensor::host),
        ..products::Product::new(arithmetic, view(&a), &operand)
    };
    let epilogue = match epilogue {
        Epilogue::Write(Write::Store) => products::Epilogue::Store,
        Epilogue::Write(Write::Add) => products::Epilogue::Add,
        Epilogue::Activate { kind, pre } => {
            let pre = pre.map(values_mut);
            products::Epilogue::Activate { kind, pre }
        }
        Epilogue::ActivateBackward { kind, pre } => {
            let pre = values(pre);
            products::Epilogue::ActivateBackward { kind, pre }
        }
    };
    let part = c.rows.start * n..c.rows.end * n;
    let values = match values_mut(c.tensor) {
        ValuesMut::F32(c) => ValuesMut::F32(&mut c[part]),
        ValuesMut::Bf16(c) => ValuesMut::Bf16(&mut c[part]),
    };
    let c = Output {
        values,
        row_stride: n,
    };
    products::product(isa, &call, epilogue, c, &mut scratch);
}

pub(super) fn outer_scratch_bytes(outer: &Outer<'_>, threads: usize) -> usize {
    let shape = OuterShape {
        arithmetic: outer.arithmetic,
        rows: outer.a.rows(),
        m: outer.out.rows(),
        n: outer.out.cols(),
        a: outer.a.dtype(),
        x: outer.b.tensor.dtype(),
    };
    outer_scratch(&shape, threads).bytes(threads)
}

/// An outer product, on the pool that the scratch is for.
pub(super) fn outer(isa: Isa, outer: Outer<'_>, scratch: &mut Scratch<'_>) {
    let Outer { a, b, out, .. } = outer;
    let call = kernels::Outer {
        arithmetic: outer.arithmetic,
        a: view(&a.into()).cols_range(0..out.rows()),
        x: view(&b),
        alpha: outer.alpha,
    };
    kernels::outer(isa, &call, out.host_mut(), scratch);
}
