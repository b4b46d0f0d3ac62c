//! Products by the names of before [`crate::product`], until the engine calls that.

use std::cell::RefCell;

use crate::activation::{Activation, activation_backward, activation_forward_in_place};
use crate::aligned::typed;
use crate::element::ValuesMut;
use crate::isa::Isa;
use crate::matrix::MatRef;
use crate::outer::{Outer, outer, outer_scratch};
use crate::product::{
    Arithmetic, Epilogue, Output, PackedWeights, PanelSource, Product, Side, WeightFormat, product,
    product_scratch,
};
pub(crate) use crate::product::{Block, STRIP_STRIDE, multiply_block, pack_rows};
pub use crate::product::{PANEL, pack, packed_len, repack_transposed, unpack};
use crate::scratch::ScratchBuffer;

/// The packed operand b [n, k].
#[derive(Clone, Copy, Debug)]
pub enum PackedF32<'a> {
    /// The packed form of b.
    Rows(&'a [f32]),
    /// The packed form of bᵀ [k, n].
    Transposed(&'a [f32]),
}

/// One product.
#[derive(Clone, Copy, Debug)]
pub struct Gemm<'a> {
    /// [m, k]; may be a transposed view.
    pub a: MatRef<'a>,
    /// b [n, k].
    pub b: PackedF32<'a>,
    /// Rows of b: columns of c.
    pub n: usize,
    /// `[n]`, added once.
    pub bias: Option<&'a [f32]>,
    /// Factor of the product.
    pub alpha: f32,
    /// Whether c is added to, rather than overwritten.
    pub accumulate: bool,
}

/// What becomes of c when its sum over the whole depth is complete. `pre` is [m, n] with the rows of c.
pub enum Finish<'a> {
    /// Nothing: c is the product.
    Nothing,
    /// c = f(c), and pre = c as it was if its backward will need it.
    Activate {
        /// f.
        kind: Activation,
        /// The activation's input.
        pre: Option<&'a mut [f32]>,
    },
    /// c = c f'(pre): the backward of an activation between two layers.
    ActivateBackward {
        /// f.
        kind: Activation,
        /// The activation's input.
        pre: &'a [f32],
    },
}

/// `c[i * c_stride + j] = (accumulate ? c : 0) + alpha * Σ a[i, k] b[j, k] + bias[j]`.
pub fn gemm(isa: Isa, g: &Gemm, c: &mut [f32], c_stride: usize) {
    let k = g.a.cols();
    let (values, shape, side) = match g.b {
        PackedF32::Rows(b) => (b, [g.n, k], Side::Straight),
        PackedF32::Transposed(b) => (b, [k, g.n], Side::Transposed),
    };
    let b = PackedWeights::new(WeightFormat::F32, shape, typed(values)).panels(side);
    run(isa, g, &b, (c, c_stride));
}

fn run(isa: Isa, g: &Gemm, b: &dyn PanelSource, (c, row_stride): (&mut [f32], usize)) {
    let call = Product {
        alpha: g.alpha,
        bias: g.bias,
        ..Product::new(Arithmetic::F32, g.a.into(), b)
    };
    let epilogue = if g.accumulate {
        Epilogue::Add
    } else {
        Epilogue::Store
    };
    let values = ValuesMut::F32(c);
    with_scratch(isa, &call, epilogue, Output { values, row_stride });
}

thread_local! {
    static SCRATCH: RefCell<ScratchBuffer> = RefCell::new(ScratchBuffer::new(0, 1));
}

/// [`product`] with scratch that the thread keeps.
pub(crate) fn with_scratch(isa: Isa, call: &Product, epilogue: Epilogue, c: Output) {
    let threads = rayon::current_num_threads();
    let bytes = product_scratch(&call.shape(c.values.dtype()), threads).bytes(threads);
    let mut buffer = SCRATCH.replace(ScratchBuffer::new(0, 1));
    if !buffer.holds(bytes, threads) {
        buffer = ScratchBuffer::new(bytes, threads);
    }
    product(isa, call, epilogue, c, &mut buffer.scratch());
    SCRATCH.set(buffer);
}

/// As [`gemm`], and then what `finish` says.
pub fn gemm_then(isa: Isa, g: &Gemm, c: &mut [f32], c_stride: usize, finish: Finish<'_>) {
    gemm(isa, g, c, c_stride);
    let mut finish = finish;
    for row in 0..g.a.rows() {
        let row = row * c_stride..row * c_stride + g.n;
        let c = &mut c[row.clone()];
        match &mut finish {
            Finish::Nothing => return,
            Finish::Activate { kind, pre } => {
                if let Some(pre) = pre {
                    pre[row].copy_from_slice(c);
                }
                activation_forward_in_place(isa, *kind, c);
            }
            Finish::ActivateBackward { kind, pre } => {
                activation_backward(isa, *kind, &pre[row], c);
            }
        }
    }
}

/// c += alpha * aᵀ · x.
pub fn gemm_transposed_a(
    isa: Isa,
    a: MatRef,
    x: MatRef,
    alpha: f32,
    c: &mut [f32],
    c_stride: usize,
) {
    assert_eq!(c_stride, x.cols(), "rows of c end to end");
    let call = Outer {
        arithmetic: Arithmetic::F32,
        a: a.into(),
        x: x.into(),
        alpha,
    };
    with_outer_scratch(isa, &call, c);
}

fn with_outer_scratch(isa: Isa, call: &Outer, c: &mut [f32]) {
    let threads = rayon::current_num_threads();
    let bytes = outer_scratch(&call.shape(), threads).bytes(threads);
    outer(
        isa,
        call,
        c,
        &mut ScratchBuffer::new(bytes, threads).scratch(),
    );
}
