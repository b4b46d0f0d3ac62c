//! y = x·Wᵀ + bias + scaling · dropout(x)·Aᵀ·Bᵀ, the LoRA paper's equation 3 (section 4.1).
//! Shapes: x [M, in], W [out, in], bias `[out]`, A [r, in], B [out, r], h = dropout(x)·Aᵀ [M, r], y
//! [M, out]. Saved: x only if A or W is trained and the op below cannot make it again, h only if
//! there is an adapter; with an activation behind, y (by the tape). A frozen weight gets no
//! gradient. The adapter's two products and the bias ride in the base product where the arithmetic
//! allows it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use lowrank_kernels::{Activation, DType, Dropout};

use crate::call::{Call, Epilogue, LowRankTerm, Operand, Outer, Product, Rows, Transpose, Write};
use crate::device::Device;
use crate::meter::Purpose;
use crate::ops::blocks::{Blocks, add_to_b, packed_b};
use crate::ops::dropout::{drop_out, dropped_out};
use crate::param::{Matrix, PackedMatrix, Param, TrainableId, Trainables};
use crate::site::Site;
use crate::slots::Segment;
use crate::tape::{Backprop, Backward, Output, SavedInput, Tape, Through, Var};
use crate::tensor::Tensor;

/// A low-rank adapter of one linear layer.
#[derive(Debug, Clone, Copy)]
pub struct Adapter {
    /// A [r, in].
    pub a: TrainableId,
    /// B [out, r], or that of the parts below each other; see [`crate::ops::blocks`].
    pub b: TrainableId,
    /// The parts of a fused layer that are adapted, each at its own rank; nothing where the layer
    /// is adapted as one.
    pub blocks: Option<Blocks>,
    /// alpha / r, or alpha / √r with rsLoRA.
    pub scaling: f32,
    /// Probability of dropping an element of x, in the adapter's branch only.
    pub dropout: f32,
    /// The site of that dropout: fixed by the layer's name, so that adapting one more layer changes
    /// no other's mask.
    pub site: Site,
}

/// The weights of one linear layer.
#[derive(Debug, Clone, Copy)]
pub struct LinearParams<'m> {
    /// W [out, in].
    pub weight: &'m Matrix,
    /// bias `[out]`.
    pub bias: Option<&'m Param>,
    /// The layer's own adapter, if it has one and it is switched on.
    pub adapter: Option<&'m Adapter>,
    /// What it has in slots 2, 3, …, for passes whose rows name slots.
    pub slots: &'m [Option<Adapter>],
}

/// An adapter on some rows.
struct Term<'m> {
    rows: Range<usize>,
    adapter: &'m Adapter,
}

impl<'m> LinearParams<'m> {
    /// The adapters of so many rows of x, in their order.
    fn terms(&self, tape: &Tape<'_>, rows: usize) -> Vec<Term<'m>> {
        let own = self.adapter.map(|adapter| {
            let rows = 0..rows;
            Term { rows, adapter }
        });
        if self.adapter.is_none() && self.slots.is_empty() {
            return Vec::new();
        }
        let Some(segments) = tape.segments(rows) else {
            return own.into_iter().collect();
        };
        let term = |Segment { rows, slot }: &Segment| {
            let adapter = match slot {
                0 => None,
                1 => self.adapter,
                loaded => self.slots.get(loaded - 2)?.as_ref(),
            };
            let adapter = adapter?;
            let rows = rows.clone();
            Some(Term { rows, adapter })
        };
        segments.iter().filter_map(term).collect()
    }

    fn trained(&self) -> bool {
        self.adapter.is_some()
            || self.weight.trainable().is_some()
            || self.bias.is_some_and(|b| b.trainable().is_some())
    }
}

/// Forward of a linear layer. Panics if the widths disagree.
pub fn linear<'m>(tape: &mut Tape<'m>, x: Var, params: LinearParams<'m>) -> Var {
    let dtype = tape.device().numerics().activations;
    forward(tape, x, params, dtype, None)
}

/// As [`linear`] with y in f32 whatever activations are: logits, which a loss or a person reads.
pub fn linear_f32<'m>(tape: &mut Tape<'m>, x: Var, params: LinearParams<'m>) -> Var {
    forward(tape, x, params, DType::F32, None)
}

/// f(y) of a linear layer, with f in the epilogue of the product.
pub fn linear_activation<'m>(
    tape: &mut Tape<'m>,
    x: Var,
    params: LinearParams<'m>,
    kind: Activation,
) -> Var {
    let dtype = tape.device().numerics().activations;
    forward(tape, x, params, dtype, Some(kind))
}

fn forward<'m>(
    tape: &mut Tape<'m>,
    x: Var,
    params: LinearParams<'m>,
    dtype: DType,
    activation: Option<Activation>,
) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let [out, inp] = params.weight.shape(trainables);
    let rows = x.rows();
    assert_eq!(
        x.cols(),
        inp,
        "linear: x is [{rows}, {}], W is [{out}, {inp}]",
        x.cols()
    );
    let new_y = || Tensor::uninit_as(dtype, &device, rows, out, Purpose::Activations);
    let mut y = new_y();
    let dropout = params
        .adapter
        .and_then(|adapter| tape.dropout_at(adapter.dropout, adapter.site));
    let terms = params.terms(tape, rows);
    let mut h: Vec<Tensor> = (terms.iter())
        .map(|term| {
            let x = Rows::of(x.tensor(), term.rows.clone());
            adapter_h(&device, trainables, x, term.adapter, dropout)
        })
        .collect();
    let packed = packed_bs(&device, trainables, &terms);
    let b = params.weight.operand(&device, trainables, Transpose::No);
    let needed = x.requires_grad() || params.trained();
    let mut pre = (activation.is_some() && needed && tape.recording()).then(new_y);
    let low_rank: Vec<LowRankTerm<'_>> = (terms.iter().zip(&h))
        .map(|(term, h)| LowRankTerm {
            rows: term.rows.clone(),
            h,
            g: Operand::straight(&packed[&term.adapter.b]),
            scale: term.adapter.scaling,
        })
        .collect();
    device.run(Call::Product(Product {
        low_rank: &low_rank,
        bias: params.bias.map(|bias| bias.tensor(trainables)),
        epilogue: match activation {
            None => Epilogue::Write(Write::Store),
            Some(kind) => Epilogue::Activate {
                kind,
                pre: pre.as_mut(),
            },
        },
        ..Product::new(x.tensor(), b.get(), &mut y)
    }));
    drop((b, low_rank));
    drop(packed);
    // A pass with slots is not recorded.
    let h = h.pop();
    let needs_x = params.adapter.is_some() || params.weight.trainable().is_some();
    let kept = needs_x.then(|| tape.keep(&x));
    tape.push_output(y, needed, || {
        let op = LinearBackward {
            x: kept,
            x_node: x.node(),
            h,
            params,
            dropout,
        };
        let through = activation.zip(pre).map(|(kind, pre)| Through {
            kind,
            pre: Arc::new(pre),
        });
        let output = Output {
            through,
            ..Output::default()
        };
        (op, output)
    })
}

/// B of each adapter among the terms.
fn packed_bs(
    device: &Device,
    trainables: &Trainables,
    terms: &[Term<'_>],
) -> BTreeMap<TrainableId, PackedMatrix> {
    let mut packed = BTreeMap::new();
    for Term { adapter, .. } in terms {
        let pack = || packed_b(device, adapter, trainables, Transpose::No);
        packed.entry(adapter.b).or_insert_with(pack);
    }
    packed
}

/// x as the adapter sees it: itself, or a copy with dropout applied.
fn dropped(x: &Tensor, dropout: Option<Dropout>) -> Option<Tensor> {
    dropout.map(|dropout| dropped_out(x, dropout))
}

/// h = dropout(x)·Aᵀ, in f32; with dropout of all rows of x.
fn adapter_h(
    device: &Device,
    trainables: &Trainables,
    x: Rows<'_>,
    adapter: &Adapter,
    dropout: Option<Dropout>,
) -> Tensor {
    let a = &trainables.get(adapter.a).value;
    let mut h = Tensor::uninit(device, x.rows.len(), a.rows(), Purpose::Activations);
    let dropped = dropped(x.tensor, dropout);
    let x = dropped.as_ref().map_or(x, Rows::from);
    let a = PackedMatrix::trained(device, a, Transpose::No);
    device.run(Call::Product(Product::new(
        x,
        Operand::straight(&a),
        &mut h,
    )));
    h
}

/// into += alpha · aᵀ·b.
fn add_outer(device: &Device, a: &Tensor, b: &Tensor, alpha: f32, out: &mut Tensor) {
    device.run(Call::Outer(Outer {
        alpha,
        ..Outer::new(a, b, out)
    }));
}

struct LinearBackward<'m> {
    x: Option<SavedInput<'m>>,
    x_node: Option<usize>,
    h: Option<Tensor>,
    params: LinearParams<'m>,
    dropout: Option<Dropout>,
}

impl Backward for LinearBackward<'_> {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let LinearBackward {
            x,
            x_node,
            h,
            params,
            dropout,
        } = *self;
        if let Some(id) = params.bias.and_then(Param::trainable) {
            let (x, out) = (&*d_y, cx.gradients.get_mut(id));
            cx.device.run(Call::ColumnSum { x, out });
        }
        let x = x.map(|x| x.tensor(cx.trainables));
        if let Some(id) = params.weight.trainable() {
            let x = x.as_ref().expect("x is kept where W is trained");
            let d_weight = cx.gradients.get_mut(id);
            match params.weight {
                Matrix::TrainableConv1d(_) => add_outer(&cx.device, x, &d_y, 1.0, d_weight),
                Matrix::Frozen(_) | Matrix::Trainable(_) => {
                    add_outer(&cx.device, &d_y, x, 1.0, d_weight);
                }
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

/// d_B += s·d_yᵀ·h, d_A += s·d_hᵀ·dropout(x); returns d_h = d_y·B [M, r], still without the factor
/// s.
fn adapter_backward(
    cx: &mut Backprop<'_>,
    adapter: &Adapter,
    x: &Tensor,
    h: &Tensor,
    dropout: Option<Dropout>,
    d_y: &Tensor,
) -> Tensor {
    let (scaling, device) = (adapter.scaling, &cx.device);
    let b = packed_b(device, adapter, cx.trainables, Transpose::Yes);
    let d_b = cx.gradients.get_mut(adapter.b);
    add_to_b(adapter.blocks, d_b, |d_b| {
        add_outer(device, d_y, h, scaling, d_b);
    });
    let mut d_h = Tensor::uninit(device, d_y.rows(), h.cols(), Purpose::Activations);
    device.run(Call::Product(Product::new(
        d_y,
        Operand::straight(&b),
        &mut d_h,
    )));
    drop(b);
    let dropped = dropped(x, dropout);
    let x = dropped.as_ref().unwrap_or(x);
    add_outer(device, &d_h, x, scaling, cx.gradients.get_mut(adapter.a));
    d_h
}

/// d_x += d_y·W + dropout(s·d_h·A), times f'(pre) where x ends in an activation.
fn input_backward(
    cx: &mut Backprop<'_>,
    x_node: Option<usize>,
    params: &LinearParams<'_>,
    d_h: Option<&Tensor>,
    dropout: Option<Dropout>,
    d_y: &Tensor,
) {
    let (device, trainables) = (cx.device.clone(), cx.trainables);
    let (rows, inp) = (d_y.rows(), params.weight.shape(trainables)[1]);
    let adapted = params.adapter.zip(d_h);
    let a = adapted.map(|(adapter, _)| {
        let a = &trainables.get(adapter.a).value;
        PackedMatrix::trained(&device, a, Transpose::Yes)
    });
    let term = adapted
        .zip(a.as_ref())
        .map(|((adapter, h), g)| LowRankTerm {
            rows: 0..rows,
            h,
            g: Operand::straight(g),
            scale: adapter.scaling,
        });
    // With dropout the term's columns are dropped on their own; else it rides in the base product.
    let (low_rank, dropped) = match (term, dropout) {
        (Some(term), Some(dropout)) => (None, Some((term, dropout))),
        (term, _) => (term, None),
    };
    let b = params.weight.operand(&device, trainables, Transpose::Yes);
    let rounding = cx.rounding();
    let run = |d_x: &mut Tensor, epilogue: Epilogue<'_>| {
        device.run(Call::Product(Product {
            low_rank: low_rank.as_slice(),
            epilogue,
            rounding,
            ..Product::new(d_y, b.get(), d_x)
        }));
    };
    match cx.through(x_node) {
        None => cx.write(x_node, rows, inp, |_, d_x, write| {
            run(d_x, Epilogue::Write(write));
        }),
        Some((node, Through { kind, pre })) => {
            let mut d_pre = Tensor::activations(&device, rows, inp);
            let pre = &*pre;
            run(&mut d_pre, Epilogue::ActivateBackward { kind, pre });
            cx.add_below(node, Arc::new(d_pre));
        }
    }
    drop(b);
    if let Some((term, dropout)) = dropped {
        let mut d_x = Tensor::activations(&device, rows, inp);
        device.run(Call::Product(Product {
            alpha: term.scale,
            ..Product::new(term.h, term.g, &mut d_x)
        }));
        drop_out(&mut d_x, dropout);
        cx.add(x_node, d_x);
    }
}
