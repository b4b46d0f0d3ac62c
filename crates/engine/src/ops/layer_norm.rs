//! z = dropout(x) + residual, y = (z - mean)·rstd·weight + bias over each row: the end of a post-norm sublayer in one op.
//! Shapes: x, residual, z, y [M, D]; weight, bias `[D]`; mean, rstd `[M]`. Saved: z, mean, rstd (z takes x's place, or is x),
//! of which y is made again for ops above whose backward reads it.
//! Source: Ba et al. 2016; transformers `BertSelfOutput`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use lowrank_kernels::Dropout;

use crate::call::{Call, LayerNorm, NormInput, NormSaved};
use crate::meter::Purpose;
use crate::ops::dropout::{drop_out, dropped_out};
use crate::param::{Param, Trainables};
use crate::tape::{Again, Backprop, Backward, Output, Tape, Var};
use crate::tensor::Tensor;

/// The weights of a layer norm.
#[derive(Debug, Clone, Copy)]
pub struct LayerNormParams<'m> {
    /// weight `[D]`.
    pub weight: &'m Param,
    /// bias `[D]`.
    pub bias: &'m Param,
    /// Added to the variance.
    pub eps: f32,
}

/// Forward of dropout, residual add and layer norm. `residual` may be absent; `p` is the dropout of x.
pub fn layer_norm<'m>(
    tape: &mut Tape<'m>,
    x: Var,
    residual: Option<Var>,
    params: LayerNormParams<'m>,
    p: f32,
) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let dropout = tape.dropout(p);
    let (x_node, residual_node) = (x.node(), residual.as_ref().and_then(Var::node));
    let rows = x.rows();
    let mut y = x.tensor().uninit_like(Purpose::Activations);
    let mut mean = Tensor::uninit(&device, 1, rows, Purpose::Activations);
    let mut rstd = Tensor::uninit(&device, 1, rows, Purpose::Activations);
    let mut run = |input| {
        device.run(Call::LayerNorm(LayerNorm {
            input,
            weight: params.weight.tensor(trainables),
            bias: params.bias.tensor(trainables),
            eps: params.eps,
            y: &mut y,
            mean: &mut mean,
            rstd: &mut rstd,
        }));
    };
    let z = if residual.is_none() && dropout.is_none() {
        // z is x itself: others may go on reading it, as a pre-norm residual stream is.
        let z = x.shared();
        run(NormInput::Plain(&z));
        z
    } else {
        let mut z = x.into_owned();
        run(NormInput::Residual {
            x: &mut z,
            residual: residual.as_ref().map(Var::tensor),
            dropout,
        });
        Arc::new(z)
    };
    drop(residual);
    let trained = params.weight.trainable().is_some() || params.bias.trainable().is_some();
    let needed = x_node.is_some() || residual_node.is_some() || trained;
    tape.push_output(y, needed, || {
        let saved = Rc::new(Saved {
            z,
            mean,
            rstd,
            params,
            y: RefCell::default(),
        });
        let again: Rc<dyn Again + 'm> = saved.clone();
        let op = LayerNormBackward {
            saved,
            x_node,
            residual_node,
            dropout,
        };
        let output = Output {
            again: Some(again),
            ..Output::default()
        };
        (op, output)
    })
}

struct Saved<'m> {
    z: Arc<Tensor>,
    mean: Tensor,
    rstd: Tensor,
    params: LayerNormParams<'m>,
    /// y, from the first op above that asks for it until this op's own backward.
    y: RefCell<Option<Arc<Tensor>>>,
}

impl Saved<'_> {
    fn tensors(&self) -> NormSaved<'_> {
        let (z, mean, rstd) = (&*self.z, &self.mean, &self.rstd);
        NormSaved { z, mean, rstd }
    }
}

impl Again for Saved<'_> {
    fn again(&self, trainables: &Trainables) -> Arc<Tensor> {
        let make = || {
            let mut y = self.z.uninit_like(Purpose::Activations);
            self.z.device().run(Call::LayerNormAgain {
                saved: self.tensors(),
                weight: self.params.weight.tensor(trainables),
                bias: self.params.bias.tensor(trainables),
                y: &mut y,
            });
            Arc::new(y)
        };
        self.y.borrow_mut().get_or_insert_with(make).clone()
    }
}

struct LayerNormBackward<'m> {
    saved: Rc<Saved<'m>>,
    x_node: Option<usize>,
    residual_node: Option<usize>,
    dropout: Option<Dropout>,
}

impl LayerNormBackward<'_> {
    fn param_grads(&self, d_y: &Tensor, cx: &mut Backprop<'_>) {
        let saved = &self.saved;
        let LayerNormParams { weight, bias, .. } = saved.params;
        let (weight, bias) = (weight.trainable(), bias.trainable());
        if weight.is_none() && bias.is_none() {
            return;
        }
        // The kernel writes both; a frozen one's goes to scratch.
        let cols = d_y.cols();
        let mut d_weight = Tensor::zeros(&cx.device, 1, cols, Purpose::Workspace);
        let mut d_bias = Tensor::zeros(&cx.device, 1, cols, Purpose::Workspace);
        cx.device.run(Call::LayerNormParamGrads {
            saved: saved.tensors(),
            d_y,
            d_weight: &mut d_weight,
            d_bias: &mut d_bias,
        });
        for (id, x) in [(weight, &d_weight), (bias, &d_bias)] {
            let Some(id) = id else { continue };
            let out = cx.gradients.get_mut(id);
            cx.device.run(Call::Add { x, out });
        }
    }
}

impl Backward for LayerNormBackward<'_> {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        self.saved.y.take();
        self.param_grads(&d_y, cx);
        if self.x_node.is_none() && self.residual_node.is_none() {
            return;
        }
        let mut d_z = Arc::try_unwrap(d_y).unwrap_or_else(|shared| shared.duplicate());
        let LayerNormBackward {
            saved,
            x_node,
            residual_node,
            dropout,
        } = *self;
        cx.device.run(Call::LayerNormBackward {
            saved: saved.tensors(),
            weight: saved.params.weight.tensor(cx.trainables),
            d: &mut d_z,
        });
        drop(saved);
        let Some(dropout) = dropout else {
            let d_z = Arc::new(d_z);
            cx.add_shared(residual_node, d_z.clone());
            cx.add_shared(x_node, d_z);
            return;
        };
        if x_node.is_none() {
            cx.add(residual_node, d_z);
            return;
        }
        if residual_node.is_some() {
            let d_x = dropped_out(&d_z, dropout);
            cx.add(residual_node, d_z);
            cx.add(x_node, d_x);
        } else {
            drop_out(&mut d_z, dropout);
            cx.add(x_node, d_z);
        }
    }
}
