//! y = x·Wᵀ + bias + scaling · dropout(x)·Aᵀ·Bᵀ, the LoRA paper's equation 3 (section 4.1).
//! Shapes: x [M, in], W [out, in], bias `[out]`, A [r, in], B [out, r], h = dropout(x)·Aᵀ [M, r], y [M, out].
//! Saved: x only if A or W is trained, h only if there is an adapter. A frozen weight gets no gradient.

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::{Dropout, Gemm};

use crate::device::Device;
use crate::meter::Purpose;
use crate::param::{Matrix, Param, TrainableId, Trainables};
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// A low-rank adapter of one linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Adapter {
    /// A [r, in].
    pub a: TrainableId,
    /// B [out, r].
    pub b: TrainableId,
    /// alpha / r, or alpha / √r with rsLoRA.
    pub scaling: f32,
    /// Probability of dropping an element of x, in the adapter's branch only.
    pub dropout: f32,
    /// The site of that dropout: fixed by the layer's name, so that adapting one more layer changes no other's mask.
    pub site: u32,
}

/// The weights of one linear layer.
#[derive(Debug, Clone, Copy)]
pub struct LinearParams<'m> {
    /// W [out, in].
    pub weight: &'m Matrix,
    /// bias `[out]`.
    pub bias: Option<&'m Param>,
    /// The adapter, if this layer has one and it is switched on.
    pub adapter: Option<&'m Adapter>,
}

impl LinearParams<'_> {
    fn trained(&self) -> bool {
        self.adapter.is_some()
            || self.weight.trainable().is_some()
            || self.bias.is_some_and(|b| b.trainable().is_some())
    }
}

/// Forward of a linear layer. Panics if the widths disagree.
pub fn linear<'m>(tape: &mut Tape<'m>, x: Var, params: LinearParams<'m>) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let [out, inp] = params.weight.shape(trainables);
    assert_eq!(
        x.cols(),
        inp,
        "linear: x is [{}, {}], W is [{out}, {inp}]",
        x.rows(),
        x.cols()
    );
    let rows = x.rows();
    let mut y = Tensor::uninit(&device, rows, out, Purpose::Activations);
    base_forward(&device, trainables, x.tensor(), &params, &mut y);

    let dropout = params
        .adapter
        .and_then(|adapter| tape.dropout_at(adapter.dropout, adapter.site));
    let h = params
        .adapter
        .map(|adapter| adapter_forward(&device, trainables, x.tensor(), adapter, dropout, &mut y));

    let needed = x.requires_grad() || params.trained();
    let keeps_x = params.adapter.is_some() || params.weight.trainable().is_some();
    tape.push(y, needed, || LinearBackward {
        x: keeps_x.then(|| x.shared()),
        x_node: x.node(),
        h,
        params,
        dropout,
        rows,
    })
}

/// A packed copy of `value` (or of its transpose) in scratch, as the second operand of a GEMM.
fn pack(value: &Tensor, transposed: bool) -> Tensor {
    let device = value.device();
    let (n, k) = if transposed {
        (value.cols(), value.rows())
    } else {
        (value.rows(), value.cols())
    };
    let mut packed = Tensor::uninit(device, 1, kernels::packed_len(n, k), Purpose::Workspace);
    device.exec(0, |isa| {
        let view = if transposed {
            value.view().transposed()
        } else {
            value.view()
        };
        kernels::pack(isa, view, packed.data_mut());
    });
    packed
}

/// W of a trained weight in panels, in scratch; a frozen one has its own.
pub(crate) fn pack_trained(trainables: &Trainables, weight: &Matrix) -> Option<Tensor> {
    match weight {
        Matrix::Frozen(_) => None,
        Matrix::Trainable(id) => Some(pack(&trainables.get(*id).value, false)),
        Matrix::TrainableConv1d(id) => Some(pack(&trainables.get(*id).value, true)),
    }
}

/// W in panels: a frozen weight's own, or what [`pack_trained`] made.
pub(crate) fn packed_of<'a>(weight: &'a Matrix, trained: Option<&'a Tensor>) -> &'a Tensor {
    match weight {
        Matrix::Frozen(packed) => packed.tensor(),
        Matrix::Trainable(_) | Matrix::TrainableConv1d(_) => {
            trained.expect("a trained weight was packed")
        }
    }
}

/// Wᵀ in panels, in scratch: what d_y·W needs.
pub(crate) fn pack_transposed(device: &Device, trainables: &Trainables, weight: &Matrix) -> Tensor {
    match weight {
        Matrix::Frozen(packed) => {
            let (out, inp) = (packed.out_features(), packed.in_features());
            let len = kernels::packed_len(inp, out);
            let mut transposed = Tensor::uninit(device, 1, len, Purpose::Workspace);
            device.exec(0, |isa| {
                kernels::repack_transposed(isa, packed.packed(), out, inp, transposed.data_mut());
            });
            transposed
        }
        Matrix::Trainable(id) => pack(&trainables.get(*id).value, true),
        Matrix::TrainableConv1d(id) => pack(&trainables.get(*id).value, false),
    }
}

/// c (+)= alpha · a·bᵀ + bias, with b packed; `k` is the depth, for the count.
pub(crate) struct Product<'a> {
    pub a: &'a Tensor,
    pub b_packed: &'a Tensor,
    pub bias: Option<&'a [f32]>,
    pub alpha: f32,
    pub accumulate: bool,
}

impl Product<'_> {
    pub(crate) fn run(&self, c: &mut Tensor) {
        let (m, k) = (self.a.rows(), self.a.cols());
        assert_eq!(c.rows(), m, "gemm: a has {m} rows, c has {}", c.rows());
        let n = c.cols();
        let device = self.a.device();
        device.exec(2 * (m * n * k) as u64, |isa| {
            let call = Gemm {
                a: self.a.view(),
                b_packed: self.b_packed.data(),
                n,
                bias: self.bias,
                alpha: self.alpha,
                accumulate: self.accumulate,
            };
            kernels::gemm(isa, &call, c.data_mut(), n);
        });
    }
}

/// into += alpha · aᵀ·b, the gradient of a weight: a [M, out], b [M, in], into [out, in].
pub(crate) fn add_outer(a: &Tensor, b: &Tensor, alpha: f32, into: &mut Tensor) {
    let flops = 2 * (a.rows() * a.cols() * b.cols()) as u64;
    let stride = into.cols();
    a.device().exec(flops, |isa| {
        kernels::gemm_transposed_a(isa, a.view(), b.view(), alpha, into.data_mut(), stride);
    });
}

fn base_forward(
    device: &Device,
    trainables: &Trainables,
    x: &Tensor,
    params: &LinearParams<'_>,
    y: &mut Tensor,
) {
    let scratch = pack_trained(trainables, params.weight);
    let b_packed = packed_of(params.weight, scratch.as_ref());
    let bias = params
        .bias
        .filter(|_| !device.is_dry())
        .map(|b| b.data(trainables));
    Product {
        a: x,
        b_packed,
        bias,
        alpha: 1.0,
        accumulate: false,
    }
    .run(y);
}

/// x as the adapter sees it: itself, or a copy with dropout applied.
fn dropped(x: &Tensor, dropout: Option<Dropout>) -> Option<Tensor> {
    let dropout = dropout?;
    let mut copy = x.duplicate();
    x.device().exec(0, |isa| {
        kernels::dropout_apply(isa, dropout, copy.data_mut())
    });
    Some(copy)
}

/// Adds the adapter's branch to y and returns h.
fn adapter_forward(
    device: &Device,
    trainables: &Trainables,
    x: &Tensor,
    adapter: &Adapter,
    dropout: Option<Dropout>,
    y: &mut Tensor,
) -> Tensor {
    let (a, b) = (
        &trainables.get(adapter.a).value,
        &trainables.get(adapter.b).value,
    );
    let mut h = Tensor::uninit(device, x.rows(), a.rows(), Purpose::Activations);
    let dropped = dropped(x, dropout);
    let x = dropped.as_ref().unwrap_or(x);
    Product {
        a: x,
        b_packed: &pack(a, false),
        bias: None,
        alpha: 1.0,
        accumulate: false,
    }
    .run(&mut h);
    drop(dropped);
    let alpha = adapter.scaling;
    Product {
        a: &h,
        b_packed: &pack(b, false),
        bias: None,
        alpha,
        accumulate: true,
    }
    .run(y);
    h
}

struct LinearBackward<'m> {
    x: Option<Arc<Tensor>>,
    x_node: Option<usize>,
    h: Option<Tensor>,
    params: LinearParams<'m>,
    dropout: Option<Dropout>,
    rows: usize,
}

impl Backward for LinearBackward<'_> {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let LinearBackward {
            x,
            x_node,
            h,
            params,
            dropout,
            rows,
        } = *self;
        assert_eq!(
            d_y.rows(),
            rows,
            "linear: the gradient of y has {} rows, y had {rows}",
            d_y.rows()
        );
        if let Some(id) = params.bias.and_then(Param::trainable) {
            let d_bias = cx.gradients.get_mut(id);
            let cols = d_y.cols();
            cx.device.exec(0, |isa| {
                kernels::column_sum(isa, d_y.data(), cols, d_bias.data_mut())
            });
        }
        if let Some(id) = params.weight.trainable() {
            let x = x.as_ref().expect("x is kept where W is trained");
            let d_weight = cx.gradients.get_mut(id);
            match params.weight {
                Matrix::TrainableConv1d(_) => add_outer(x, &d_y, 1.0, d_weight),
                Matrix::Frozen(_) | Matrix::Trainable(_) => add_outer(&d_y, x, 1.0, d_weight),
            }
        }
        let d_h = params.adapter.zip(h).map(|(adapter, h)| {
            let x = x.as_ref().expect("x is kept where there is an adapter");
            adapter_backward(cx, adapter, x, &h, dropout, &d_y)
        });
        drop(x);
        if x_node.is_some() {
            input_backward(cx, x_node, &params, d_h.as_ref(), dropout, &d_y);
        }
    }
}

/// d_B += s·d_yᵀ·h, d_A += d_hᵀ·dropout(x); returns d_h = s·d_y·B [M, r].
fn adapter_backward(
    cx: &mut Backprop<'_>,
    adapter: &Adapter,
    x: &Tensor,
    h: &Tensor,
    dropout: Option<Dropout>,
    d_y: &Tensor,
) -> Tensor {
    let (alpha, trainables) = (adapter.scaling, cx.trainables);
    let b = &trainables.get(adapter.b).value;
    add_outer(d_y, h, alpha, cx.gradients.get_mut(adapter.b));
    let mut d_h = Tensor::uninit(&cx.device, d_y.rows(), h.cols(), Purpose::Activations);
    Product {
        a: d_y,
        b_packed: &pack(b, true),
        bias: None,
        alpha,
        accumulate: false,
    }
    .run(&mut d_h);
    let dropped = dropped(x, dropout);
    add_outer(
        &d_h,
        dropped.as_ref().unwrap_or(x),
        1.0,
        cx.gradients.get_mut(adapter.a),
    );
    d_h
}

/// d_x += d_y·W + dropout(d_h·A).
fn input_backward(
    cx: &mut Backprop<'_>,
    x_node: Option<usize>,
    params: &LinearParams<'_>,
    d_h: Option<&Tensor>,
    dropout: Option<Dropout>,
    d_y: &Tensor,
) {
    let trainables = cx.trainables;
    let inp = params.weight.shape(trainables)[1];
    let transposed = pack_transposed(&cx.device, trainables, params.weight);
    cx.write(x_node, d_y.rows(), inp, |_, d_x, accumulate| {
        Product {
            a: d_y,
            b_packed: &transposed,
            bias: None,
            alpha: 1.0,
            accumulate,
        }
        .run(d_x);
    });
    drop(transposed);
    let Some((adapter, d_h)) = params.adapter.zip(d_h) else {
        return;
    };
    let a = pack(&trainables.get(adapter.a).value, true);
    let through_a = |d_x: &mut Tensor, accumulate| {
        Product {
            a: d_h,
            b_packed: &a,
            bias: None,
            alpha: 1.0,
            accumulate,
        }
        .run(d_x);
    };
    match dropout {
        None => cx.write(x_node, d_y.rows(), inp, |_, d_x, accumulate| {
            through_a(d_x, accumulate)
        }),
        Some(dropout) => {
            let mut d_x = Tensor::uninit(&cx.device, d_y.rows(), inp, Purpose::Activations);
            through_a(&mut d_x, false);
            cx.device.exec(0, |isa| {
                kernels::dropout_apply(isa, dropout, d_x.data_mut())
            });
            cx.add(x_node, d_x);
        }
    }
}
