//! Products: which kernel multiplies what, and the layouts that they need.
//! An operand's format decides the arithmetic: f32 panels multiply in f32, bf16 panels in bf16 with f32 sums.

use lowrank_kernels::{
    self as kernels, DType, Element, Finish, Gemm, GemmBf16, Isa, LowRank, MatRef, OuterLayout,
    PackedBf16, PackedF32, bf16,
};

use super::{packed_len, with_element};
use crate::call::{Epilogue, Operand, Product, Rows, Transpose, Write};
use crate::param::PackedMatrix;
use crate::space::{Carver, Plain};
use crate::tensor::Tensor;

/// Columns up to which one side of an outer product counts as a factor's: wider ones are worth packing.
const THIN: usize = 32;

/// Bytes of a transposed f32 copy that is made once for all rows of a product. A larger one, a vocabulary's, is made in
/// cache by the tasks that need it, with the same bits: a copy would be as large as the table.
const LARGEST_COPY: usize = 48 << 20;

/// Rows over which [`outer_bf16`] sums at once: their packed strips and a panel share the L2 cache.
const OUTER_ROWS: usize = 2048;

/// The whole layout of a matrix. Panics if T is not its format.
pub(super) fn panels<T: Plain>(matrix: &PackedMatrix) -> &[T] {
    &matrix.host()[..len_of(matrix)]
}

fn len_of(matrix: &PackedMatrix) -> usize {
    let (rows, depth) = (matrix.out_features(), matrix.in_features());
    packed_len(matrix.format(), rows, depth)
}

/// Lays out rows of a matrix from `first` on, which stands at a panel's start.
pub(super) fn pack_rows(isa: Isa, rows: MatRef<'_>, first: usize, into: &mut PackedMatrix) {
    let (format, depth) = (into.format(), into.in_features());
    // Blocks are whole panels, so that the layout of the rows before ends where this one begins.
    let start = packed_len(format, first, depth);
    let part = start..start + packed_len(format, rows.rows(), depth);
    match format {
        DType::F32 => kernels::pack(isa, rows, &mut into.host_mut()[part]),
        DType::Bf16 => kernels::pack_bf16(isa, rows, &mut into.host_mut()[part]),
    }
}

/// Lays out a trained value or its transpose.
pub(super) fn pack(isa: Isa, x: &Tensor, transpose: Transpose, into: &mut PackedMatrix) {
    let view = view::<f32>(&x.into());
    let view = match transpose {
        Transpose::No => view,
        Transpose::Yes => view.transposed(),
    };
    pack_rows(isa, view, 0, into);
}

fn view<'a, E: Element + Plain>(rows: &Rows<'a>) -> MatRef<'a, E> {
    let tensor = rows.tensor;
    MatRef::new(tensor.host(), tensor.rows(), tensor.cols()).rows_range(rows.rows.clone())
}

/// Values of the transposed copy that a product makes.
fn copy_len(b: &Operand<'_>) -> usize {
    let is_copied = b.transpose == Transpose::Yes && b.matrix.format() == DType::F32;
    let [n, k] = b.shape();
    let len = kernels::packed_len(n, k);
    if is_copied && len * size_of::<f32>() <= LARGEST_COPY {
        len
    } else {
        0
    }
}

pub(super) fn product_scratch_bytes(product: &Product<'_>) -> usize {
    Carver::bytes::<f32>(copy_len(&product.b))
}

/// A product.
pub(super) fn product(isa: Isa, product: Product<'_>, mut scratch: Carver<'_>) {
    match product.b.matrix.format() {
        DType::F32 => product_f32(isa, product, &mut scratch),
        DType::Bf16 => with_element!(product.c.tensor.dtype(), C => {
            product_bf16::<C>(isa, product);
        }),
    }
}

fn product_f32(isa: Isa, product: Product<'_>, scratch: &mut Carver<'_>) {
    let Product {
        a,
        b,
        alpha,
        low_rank,
        bias,
        c,
        epilogue,
        ..
    } = product;
    let [n, k] = b.shape();
    let copy = scratch.take::<f32>(copy_len(&b));
    let source = match b.transpose {
        Transpose::No => PackedF32::Rows(panels(b.matrix)),
        Transpose::Yes if copy.is_empty() => PackedF32::Transposed(panels(b.matrix)),
        Transpose::Yes => {
            kernels::repack_transposed(isa, panels(b.matrix), k, n, copy);
            PackedF32::Rows(copy)
        }
    };
    let base = Gemm {
        a: view(&a),
        b: source,
        n,
        bias: bias.map(Tensor::host),
        alpha,
        accumulate: matches!(epilogue, Epilogue::Write(Write::Add)),
    };
    let finish = match epilogue {
        Epilogue::Write(_) => Finish::Nothing,
        Epilogue::Activate { kind, pre } => Finish::Activate {
            kind,
            pre: pre.map(Tensor::host_mut),
        },
        Epilogue::ActivateBackward { kind, pre } => Finish::ActivateBackward {
            kind,
            pre: pre.host(),
        },
    };
    let c = &mut c.tensor.host_mut()[c.rows.start * n..c.rows.end * n];
    let Some(term) = &low_rank else {
        kernels::gemm_then(isa, &base, c, n, finish);
        return;
    };
    kernels::gemm(isa, &base, c, n);
    let low_rank = Gemm {
        a: view(&term.h.into()),
        b: match term.g.transpose {
            Transpose::No => PackedF32::Rows(panels(term.g.matrix)),
            Transpose::Yes => PackedF32::Transposed(panels(term.g.matrix)),
        },
        bias: None,
        alpha: term.scale,
        accumulate: true,
        ..base
    };
    kernels::gemm_then(isa, &low_rank, c, n, finish);
}

fn product_bf16<C: Element + Plain>(isa: Isa, product: Product<'_>) {
    let Product {
        a,
        b,
        alpha,
        low_rank,
        bias,
        c,
        epilogue,
        ..
    } = product;
    let [n, _] = b.shape();
    let source = match b.transpose {
        Transpose::No => PackedBf16::Rows(panels(b.matrix)),
        Transpose::Yes => PackedBf16::Transposed(panels(b.matrix)),
    };
    let low_rank = low_rank.as_ref().map(|term| {
        assert_eq!(
            term.g.transpose,
            Transpose::No,
            "a factor is packed as it is used"
        );
        LowRank {
            h: view(&term.h.into()),
            g_packed: panels(term.g.matrix),
            scale: term.scale,
        }
    });
    let c = &mut c.tensor.host_mut::<C>()[c.rows.start * n..c.rows.end * n];
    let epilogue = match epilogue {
        Epilogue::Write(Write::Store) => kernels::Epilogue::Store(c),
        Epilogue::Write(Write::Add) => kernels::Epilogue::Add(c),
        Epilogue::Activate { kind, pre } => {
            let pre = pre.map(Tensor::host_mut);
            kernels::Epilogue::Activate { kind, pre, c }
        }
        Epilogue::ActivateBackward { kind, pre } => {
            let pre = pre.host();
            kernels::Epilogue::ActivateBackward { kind, pre, c }
        }
    };
    with_element!(a.tensor.dtype(), A => {
        let call = GemmBf16 {
            a: view::<A>(&a),
            alpha,
            b: source,
            n,
            low_rank,
            bias: bias.map(Tensor::host),
        };
        kernels::gemm_bf16(isa, &call, epilogue);
    });
}

/// How an outer product is computed.
enum Outer {
    F32,
    /// a is a factor's side.
    ThinA,
    /// b is a factor's side.
    ThinB,
    /// Both are wide and one is bf16: packed, parts of so many rows.
    Packed {
        part: usize,
    },
}

impl Outer {
    fn of(a: &Tensor, b: &Rows<'_>) -> Self {
        match (a.dtype(), b.tensor.dtype()) {
            (DType::F32, DType::F32) => Outer::F32,
            (DType::F32, DType::Bf16) if a.cols() <= THIN => Outer::ThinA,
            (DType::Bf16, DType::F32) if b.tensor.cols() <= THIN => Outer::ThinB,
            _ => {
                let rows = a.rows();
                let part = rows.div_ceil(rows.div_ceil(OUTER_ROWS).max(1));
                let part = part.next_multiple_of(2);
                Outer::Packed { part }
            }
        }
    }
}

pub(super) fn outer_scratch_bytes(a: &Tensor, b: &Rows<'_>) -> usize {
    match Outer::of(a, b) {
        Outer::F32 | Outer::ThinA | Outer::ThinB => 0,
        Outer::Packed { part } => {
            Carver::bytes::<bf16>(kernels::packed_bf16_len(b.tensor.cols(), part))
        }
    }
}

/// into += alpha · aᵀ·b.
pub(super) fn outer(
    isa: Isa,
    a: &Tensor,
    b: Rows<'_>,
    alpha: f32,
    into: &mut Tensor,
    mut scratch: Carver<'_>,
) {
    let stride = into.cols();
    let a_rows = Rows::from(a);
    match Outer::of(a, &b) {
        Outer::F32 => {
            let (a, b) = (view(&a_rows), view(&b));
            kernels::gemm_transposed_a(isa, a, b, alpha, into.host_mut(), stride);
        }
        Outer::ThinA => {
            let (a, b) = (view(&a_rows), view::<bf16>(&b));
            kernels::outer_add(isa, a, b, alpha, into.host_mut(), OuterLayout::Rows);
        }
        Outer::ThinB => {
            let (a, b) = (view::<bf16>(&a_rows), view(&b));
            kernels::outer_add(isa, b, a, alpha, into.host_mut(), OuterLayout::Transposed);
        }
        Outer::Packed { part } => {
            let packed = scratch.take(kernels::packed_bf16_len(b.tensor.cols(), part));
            outer_bf16(isa, &a_rows, &b, (alpha, part), into, packed);
        }
    }
}

/// On bf16 pairs of neighbouring rows, with f32 sums over even parts of at most [`OUTER_ROWS`].
fn outer_bf16(
    isa: Isa,
    a: &Rows<'_>,
    b: &Rows<'_>,
    (alpha, part): (f32, usize),
    into: &mut Tensor,
    packed: &mut [bf16],
) {
    let (rows, n) = (a.rows.len(), b.tensor.cols());
    for first in (0..rows).step_by(part) {
        let of = first..(first + part).min(rows);
        let packed = &mut packed[..kernels::packed_bf16_len(n, of.len())];
        with_element!(b.tensor.dtype(), B => {
            let b = view::<B>(b).rows_range(of.clone()).transposed();
            kernels::pack_bf16(isa, b, packed);
        });
        with_element!(a.tensor.dtype(), A => {
            let a = view::<A>(a).cols_range(0..into.rows());
            let call = GemmBf16 {
                a: a.rows_range(of.clone()).transposed(),
                alpha,
                b: PackedBf16::Rows(packed),
                n,
                low_rank: None,
                bias: None,
            };
            kernels::gemm_bf16(isa, &call, kernels::Epilogue::Add(into.host_mut::<f32>()));
        });
    }
}
