//! Products of tensors for the ops that need them: one form for every storage, so that an op is written once.
//! An operand decides the arithmetic: packed f32 panels multiply in f32, packed bf16 panels in bf16 with f32 sums.

use lowrank_kernels as kernels;
use lowrank_kernels::{
    Activation, DType, Element, Epilogue, Finish, Gemm, GemmBf16, LowRank, MatRef, OuterLayout,
    PackedBf16, PackedF32, bf16,
};

use crate::meter::Purpose;
use crate::param::{Matrix, PackedMatrix, Trainables, pack_into, packed_len};
use crate::tensor::{Tensor, with_element};

/// Columns up to which one side counts as a factor's: wider ones are worth packing.
const THIN: usize = 32;

/// The packed second operand b [n, k] of a product.
pub(crate) enum Packed<'a> {
    /// A frozen weight [n, k].
    Frozen(&'a PackedMatrix),
    /// The packed form of [k, n], used the other way round: the product makes the panels that it needs in cache.
    Transposed {
        packed: &'a Tensor,
        shape: [usize; 2],
    },
    /// A trained value, packed in scratch: [n, k].
    Scratch { packed: Tensor, shape: [usize; 2] },
}

impl<'a> Packed<'a> {
    /// A trained value [n, k], or its transpose, in the device's precision.
    pub(crate) fn trained(value: &Tensor, transposed: bool) -> Self {
        let device = value.device();
        let (rows, cols) = (value.rows(), value.cols());
        let [n, k] = if transposed {
            [cols, rows]
        } else {
            [rows, cols]
        };
        let precision = device.precision();
        let len = packed_len(precision, n, k);
        let mut packed = Tensor::uninit_as(precision, device, 1, len, Purpose::Workspace);
        device.exec("pack", 0, |isa| {
            let view = value.view();
            let view = if transposed { view.transposed() } else { view };
            pack_into(isa, view, &mut packed, 0..len);
        });
        Packed::Scratch {
            packed,
            shape: [n, k],
        }
    }

    /// W [out, in] of a layer.
    pub(crate) fn weight(trainables: &Trainables, weight: &'a Matrix) -> Self {
        match weight {
            Matrix::Frozen(packed) => Packed::Frozen(packed),
            Matrix::Trainable(id) => Packed::trained(&trainables.get(*id).value, false),
            Matrix::TrainableConv1d(id) => Packed::trained(&trainables.get(*id).value, true),
        }
    }

    /// Wᵀ [in, out] of a layer: what d_y·W needs.
    pub(crate) fn weight_transposed(trainables: &Trainables, weight: &'a Matrix) -> Self {
        match weight {
            Matrix::Frozen(packed) => {
                let shape = [packed.out_features(), packed.in_features()];
                Packed::turn(packed.tensor(), shape)
            }
            Matrix::Trainable(id) => Packed::trained(&trainables.get(*id).value, true),
            Matrix::TrainableConv1d(id) => Packed::trained(&trainables.get(*id).value, false),
        }
    }

    /// f32 panels of a transposed weight are made in scratch once for all rows; those of bf16 are made in cache, by the
    /// product itself.
    fn turn(source: &'a Tensor, [n, k]: [usize; 2]) -> Self {
        let shape = [k, n];
        if source.dtype() == DType::Bf16 {
            let packed = source;
            return Packed::Transposed { packed, shape };
        }
        let device = source.device();
        let len = kernels::packed_len(k, n);
        let mut packed = Tensor::uninit(device, 1, len, Purpose::Workspace);
        device.exec("pack", 0, |isa| {
            kernels::repack_transposed(isa, source.data(), n, k, packed.data_mut());
        });
        Packed::Scratch { packed, shape }
    }

    /// The transpose of what is packed already, turned in cache in either precision: d·b, where d [m, depth] is the gradient of
    /// a product with b. In bf16 the depth is padded with zeros to whole panels. Panics for what is turned already.
    pub(crate) fn turned(&self) -> Packed<'_> {
        match self {
            Packed::Frozen(_) | Packed::Scratch { .. } => {}
            Packed::Transposed { .. } => panic!("an operand turned twice"),
        }
        let ([n, k], packed) = (self.shape(), self.tensor());
        let n = match packed.dtype() {
            DType::Bf16 => n.next_multiple_of(kernels::PANEL),
            DType::F32 => n,
        };
        let shape = [k, n];
        Packed::Transposed { packed, shape }
    }

    /// [n, k].
    pub(crate) fn shape(&self) -> [usize; 2] {
        match self {
            Packed::Frozen(w) => [w.out_features(), w.in_features()],
            Packed::Transposed { shape, .. } | Packed::Scratch { shape, .. } => *shape,
        }
    }

    fn tensor(&self) -> &Tensor {
        match self {
            Packed::Frozen(w) => w.tensor(),
            Packed::Transposed { packed, .. } => packed,
            Packed::Scratch { packed, .. } => packed,
        }
    }

    /// Panics on the dry device and for bf16.
    fn f32(&self) -> PackedF32<'_> {
        match self {
            Packed::Frozen(_) | Packed::Scratch { .. } => PackedF32::Rows(self.tensor().data()),
            Packed::Transposed { packed, .. } => PackedF32::Transposed(packed.data()),
        }
    }

    /// Panics on the dry device and for f32.
    fn bf16(&self) -> PackedBf16<'_> {
        match self {
            Packed::Frozen(_) | Packed::Scratch { .. } => PackedBf16::Rows(self.tensor().values()),
            Packed::Transposed { packed, .. } => PackedBf16::Transposed(packed.values()),
        }
    }
}

/// The low-rank term of an adapter: scale · h·gᵀ, h [m, r] in f32, g [n, r] packed.
pub(crate) struct LowRankTerm<'a> {
    pub h: &'a Tensor,
    pub g: &'a Packed<'a>,
    pub scale: f32,
}

/// v = alpha · a·bᵀ + scale · h·gᵀ + bias.
pub(crate) struct Product<'a> {
    /// [m, k].
    pub a: &'a Tensor,
    /// [n, k].
    pub b: &'a Packed<'a>,
    pub alpha: f32,
    pub low_rank: Option<LowRankTerm<'a>>,
    /// `[n]`; absent on the dry device.
    pub bias: Option<&'a [f32]>,
    /// What a profile calls it.
    pub label: &'static str,
}

impl<'a> Product<'a> {
    /// a·bᵀ.
    pub(crate) fn new(a: &'a Tensor, b: &'a Packed<'a>) -> Self {
        let [n, k] = b.shape();
        let label = if n.min(k) <= THIN {
            "product with a factor"
        } else {
            "product"
        };
        Product {
            a,
            b,
            alpha: 1.0,
            low_rank: None,
            bias: None,
            label,
        }
    }

    /// c = v.
    pub(crate) fn store(&self, c: &mut Tensor) {
        self.run(c, End::Store);
    }

    /// c = v, or c += v.
    pub(crate) fn write(&self, c: &mut Tensor, accumulate: bool) {
        self.run(c, if accumulate { End::Add } else { End::Store });
    }

    /// c = f(v), and pre = v for the backward if it is wanted.
    pub(crate) fn activate(&self, kind: Activation, pre: Option<&mut Tensor>, c: &mut Tensor) {
        self.run(c, End::Activate { kind, pre });
    }

    /// c = v f'(pre).
    pub(crate) fn activate_backward(&self, kind: Activation, pre: &Tensor, c: &mut Tensor) {
        self.run(c, End::ActivateBackward { kind, pre });
    }

    fn run(&self, c: &mut Tensor, end: End<'_>) {
        assert_eq!(
            (c.rows(), c.cols()),
            (self.a.rows(), self.b.shape()[0]),
            "the product's shape"
        );
        let device = c.device().clone();
        device.exec(self.label, self.flops(), |isa| {
            match self.b.tensor().dtype() {
                DType::F32 => self.run_f32(isa, c, end),
                DType::Bf16 => with_element!(c.dtype(), C => {
                    self.run_bf16::<C>(isa, end.epilogue(c.values_mut()));
                }),
            }
        });
    }

    fn run_f32(&self, isa: kernels::Isa, c: &mut Tensor, end: End<'_>) {
        let n = c.cols();
        let base = Gemm {
            a: self.a.view(),
            b: self.b.f32(),
            n,
            bias: self.bias,
            alpha: self.alpha,
            accumulate: matches!(end, End::Add),
        };
        let finish = end.finish();
        let Some(term) = &self.low_rank else {
            kernels::gemm_then(isa, &base, c.data_mut(), n, finish);
            return;
        };
        kernels::gemm(isa, &base, c.data_mut(), n);
        let low_rank = Gemm {
            a: term.h.view(),
            b: term.g.f32(),
            bias: None,
            alpha: term.scale,
            accumulate: true,
            ..base
        };
        kernels::gemm_then(isa, &low_rank, c.data_mut(), n, finish);
    }

    fn run_bf16<C: Element>(&self, isa: kernels::Isa, epilogue: Epilogue<'_, C>) {
        let low_rank = self.low_rank.as_ref().map(|term| LowRank {
            h: term.h.view(),
            g_packed: term.g.tensor().values(),
            scale: term.scale,
        });
        with_element!(self.a.dtype(), A => {
            let call = GemmBf16 {
                a: self.a.view_as::<A>(),
                alpha: self.alpha,
                b: self.b.bf16(),
                n: self.b.shape()[0],
                low_rank,
                bias: self.bias,
            };
            kernels::gemm_bf16(isa, &call, epilogue);
        });
    }

    fn flops(&self) -> u64 {
        let ([n, k], m) = (self.b.shape(), self.a.rows());
        assert_eq!(self.a.cols(), k, "the product's depth");
        let rank = self.low_rank.as_ref().map_or(0, |term| term.h.cols());
        2 * (m * n * (k + rank)) as u64
    }
}

/// What becomes of v. All matrices are [m, n] in the storage of c.
enum End<'a> {
    Store,
    Add,
    Activate {
        kind: Activation,
        pre: Option<&'a mut Tensor>,
    },
    ActivateBackward {
        kind: Activation,
        pre: &'a Tensor,
    },
}

impl<'a> End<'a> {
    /// For bf16 panels.
    fn epilogue<C: Element>(self, c: &'a mut [C]) -> Epilogue<'a, C> {
        match self {
            End::Store => Epilogue::Store(c),
            End::Add => Epilogue::Add(c),
            End::Activate { kind, pre } => {
                let pre = pre.map(|pre| pre.values_mut());
                Epilogue::Activate { kind, pre, c }
            }
            End::ActivateBackward { kind, pre } => {
                let pre = pre.values();
                Epilogue::ActivateBackward { kind, pre, c }
            }
        }
    }

    /// For f32 panels, whose last product is followed by it.
    fn finish(self) -> Finish<'a> {
        match self {
            End::Store | End::Add => Finish::Nothing,
            End::Activate { kind, pre } => {
                let pre = pre.map(Tensor::data_mut);
                Finish::Activate { kind, pre }
            }
            End::ActivateBackward { kind, pre } => {
                let pre = pre.data();
                Finish::ActivateBackward { kind, pre }
            }
        }
    }
}

/// into += alpha · aᵀ·b, the gradient of a weight or of a factor: a [M, out or wider], b [M, in], into [out, in] in f32. Columns
/// of `a` behind `out` are padding.
pub(crate) fn add_outer(a: &Tensor, b: &Tensor, alpha: f32, into: &mut Tensor) {
    let flops = 2 * (a.rows() * a.cols() * b.cols()) as u64;
    let stride = into.cols();
    let device = a.device().clone();
    match (a.dtype(), b.dtype()) {
        (DType::F32, DType::F32) => device.exec("outer product", flops, |isa| {
            kernels::gemm_transposed_a(isa, a.view(), b.view(), alpha, into.data_mut(), stride);
        }),
        (DType::F32, DType::Bf16) if a.cols() <= THIN => {
            device.exec("outer product", flops, |isa| {
                let x = b.view_as::<bf16>();
                kernels::outer_add(isa, a.view(), x, alpha, into.data_mut(), OuterLayout::Rows);
            })
        }
        (DType::Bf16, DType::F32) if b.cols() <= THIN => {
            device.exec("outer product", flops, |isa| {
                let (x, layout) = (a.view_as::<bf16>(), OuterLayout::Transposed);
                kernels::outer_add(isa, b.view(), x, alpha, into.data_mut(), layout);
            })
        }
        _ => outer_bf16((a, b), alpha, flops, into),
    }
}

/// Rows over which [`outer_bf16`] sums at once: their packed strips and a panel share the L2 cache.
const OUTER_ROWS: usize = 2048;

/// [`add_outer`] on bf16 pairs of neighbouring rows, with f32 sums over even parts of at most [`OUTER_ROWS`].
fn outer_bf16((a, b): (&Tensor, &Tensor), alpha: f32, flops: u64, into: &mut Tensor) {
    let (rows, n) = (a.rows(), b.cols());
    let part = rows.div_ceil(rows.div_ceil(OUTER_ROWS).max(1));
    let part = part.next_multiple_of(2);
    let device = a.device().clone();
    let len = kernels::packed_bf16_len(n, part);
    let mut packed = Tensor::uninit_as(DType::Bf16, &device, 1, len, Purpose::Workspace);
    device.exec("outer product", flops, |isa| {
        for first in (0..rows).step_by(part) {
            let of = first..(first + part).min(rows);
            let len = kernels::packed_bf16_len(n, of.len());
            with_element!(b.dtype(), B => {
                let b = b.view_as::<B>().rows_range(of.clone()).transposed();
                kernels::pack_bf16(isa, b, &mut packed.values_mut()[..len]);
            });
            with_element!(a.dtype(), A => {
                let a: MatRef<'_, A> = a.view_as().cols_range(0..into.rows());
                let call = GemmBf16 {
                    a: a.rows_range(of.clone()).transposed(),
                    alpha,
                    b: PackedBf16::Rows(&packed.values()[..len]),
                    n,
                    low_rank: None,
                    bias: None,
                };
                kernels::gemm_bf16(isa, &call, Epilogue::Add(into.data_mut()));
            });
        }
    });
}
