//! One part of a projection that is fused head by head: `y[:, h·Dh + c] = x[:, (h·parts + part)·Dh + c] + bias[h·Dh + c]`.
//! Shapes: x [M, H·parts·Dh], bias `[H·Dh]`, y [M, H·Dh]. Saved: nothing. Source: transformers `modeling_deberta.py`,
//! `DisentangledSelfAttention`.

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::Element;

use crate::meter::Purpose;
use crate::param::Param;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::{Tensor, with_element};

/// Which part of a fused projection.
#[derive(Debug, Clone, Copy)]
pub struct HeadPart {
    /// Dh.
    pub head_dim: usize,
    /// Parts of a head.
    pub parts: usize,
    /// The part's number.
    pub part: usize,
}

impl HeadPart {
    /// The part's columns in x, head by head.
    fn of<'a, E>(&self, x: &'a [E]) -> impl Iterator<Item = &'a [E]> {
        x.chunks_exact(self.head_dim)
            .skip(self.part)
            .step_by(self.parts)
    }

    /// One row.
    fn select<E: Element>(&self, from: &[E], bias: Option<&[f32]>, to: &mut [E]) {
        let heads = to.chunks_exact_mut(self.head_dim);
        heads
            .zip(self.of(from))
            .for_each(|(to, from)| to.copy_from_slice(from));
        for (to, bias) in to.iter_mut().zip(bias.into_iter().flatten()) {
            *to = E::narrow(to.widen() + bias);
        }
    }

    /// Adds the gradient of one row.
    fn add<E: Element>(&self, from: &[E], to: &mut [E]) {
        for (to, from) in self.of_mut(to).zip(from.chunks_exact(self.head_dim)) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = E::narrow(to.widen() + from.widen());
            }
        }
    }

    fn of_mut<'a, E>(&self, x: &'a mut [E]) -> impl Iterator<Item = &'a mut [E]> {
        x.chunks_exact_mut(self.head_dim)
            .skip(self.part)
            .step_by(self.parts)
    }
}

/// Forward of the selection. Panics if x is no whole number of heads wide.
pub fn head_part<'m>(tape: &mut Tape<'m>, x: &Var, form: HeadPart, bias: Option<&'m Param>) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let (rows, x_cols) = (x.rows(), x.cols());
    assert!(
        x_cols.is_multiple_of(form.head_dim * form.parts) && form.part < form.parts,
        "head_part: {form:?} of {x_cols} columns"
    );
    let cols = x_cols / form.parts;
    let dtype = x.tensor().dtype();
    let mut y = Tensor::uninit_as(dtype, &device, rows, cols, Purpose::Activations);
    device.exec("head_part", 0, |_| {
        let bias = bias.map(|bias| bias.data(trainables));
        with_element!(dtype, E => {
            let rows = x.tensor().values::<E>().chunks_exact(x_cols);
            for (to, from) in y.values_mut::<E>().chunks_exact_mut(cols).zip(rows) {
                form.select(from, bias, to);
            }
        });
    });
    let x_node = x.node();
    let trained = bias.is_some_and(|bias| bias.trainable().is_some());
    tape.push(y, x_node.is_some() || trained, || HeadPartBackward {
        x_node,
        x_cols,
        form,
        bias,
    })
}

struct HeadPartBackward<'m> {
    x_node: Option<usize>,
    x_cols: usize,
    form: HeadPart,
    bias: Option<&'m Param>,
}

impl Backward for HeadPartBackward<'_> {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let HeadPartBackward {
            x_node,
            x_cols,
            form,
            bias,
        } = *self;
        let (rows, cols) = (d_y.rows(), d_y.cols());
        let dtype = d_y.dtype();
        if let Some(id) = bias.and_then(Param::trainable) {
            let d_bias = cx.gradients.get_mut(id);
            cx.device.exec("head_part", 0, |isa| {
                with_element!(dtype, E => {
                    kernels::column_sum(isa, d_y.values::<E>(), cols, d_bias.data_mut());
                });
            });
        }
        cx.write(x_node, rows, x_cols, |device, d_x, accumulate| {
            if !accumulate {
                d_x.fill(0.0);
            }
            device.exec("head_part", 0, |_| {
                with_element!(dtype, E => {
                    let rows = d_y.values::<E>().chunks_exact(cols);
                    for (to, from) in d_x.values_mut::<E>().chunks_exact_mut(x_cols).zip(rows) {
                        form.add(from, to);
                    }
                });
            });
        });
    }
}
