//! A norm over each row, with the dropout and residual sum before it: the end of a post-norm
//! sublayer in one op. z = dropout(x) + residual; y = (z - mean)·rstd·weight + bias, or y =
//! z·rstd·factor without a mean.
//! Shapes: x, residual, z, y [M, D]; weight, bias `[D]`; mean, rstd `[M]`. Saved: z, mean, rstd (z
//! takes x's place, or is x), of which y is made again for ops above whose backward reads it.
//! Source: Ba et al. 2016; transformers `BertSelfOutput`. Zhang & Sennrich 2019; transformers
//! `LlamaRMSNorm`, `GemmaRMSNorm`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use lowrank_kernels::Dropout;
pub use lowrank_kernels::RmsFactor;

use crate::call::{Call, Norm, NormForm, NormInput, NormKind, NormSaved};
use crate::meter::Purpose;
use crate::ops::dropout::{drop_out, dropped_out};
use crate::param::{Param, TrainableId, Trainables};
use crate::tape::{Backprop, Backward, Output, RecomputeOutput, Tape, Var};
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

/// The weight of an RMS norm.
#[derive(Debug, Clone, Copy)]
pub struct RmsNormParams<'m> {
    /// weight `[D]`.
    pub weight: &'m Param,
    /// What the weight means.
    pub factor: RmsFactor,
    /// Added to the mean square.
    pub eps: f32,
}

/// Forward of dropout, residual add and layer norm. `residual` may be absent; `p` is the dropout of
/// x.
pub fn layer_norm<'m>(
    tape: &mut Tape<'m>,
    x: Var,
    residual: Option<Var>,
    params: LayerNormParams<'m>,
    p: f32,
) -> Var {
    let LayerNormParams { weight, bias, eps } = params;
    let kind = Kind::Layer { bias };
    norm(tape, x, residual, Params { weight, kind, eps }, p)
}

/// As [`layer_norm`] with an RMS norm.
pub fn rms_norm<'m>(
    tape: &mut Tape<'m>,
    x: Var,
    residual: Option<Var>,
    params: RmsNormParams<'m>,
    p: f32,
) -> Var {
    let RmsNormParams {
        weight,
        factor,
        eps,
    } = params;
    let kind = Kind::Rms { factor };
    norm(tape, x, residual, Params { weight, kind, eps }, p)
}

#[derive(Clone, Copy)]
enum Kind<'m> {
    Layer { bias: &'m Param },
    Rms { factor: RmsFactor },
}

#[derive(Clone, Copy)]
struct Params<'m> {
    weight: &'m Param,
    kind: Kind<'m>,
    eps: f32,
}

impl<'m> Params<'m> {
    fn bias(&self) -> Option<&'m Param> {
        match self.kind {
            Kind::Layer { bias } => Some(bias),
            Kind::Rms { .. } => None,
        }
    }

    fn form<'a>(&self, trainables: &'a Trainables) -> NormForm<'a>
    where
        'm: 'a,
    {
        NormForm {
            weight: self.weight.tensor(trainables),
            kind: match self.kind {
                Kind::Layer { bias } => NormKind::Layer {
                    bias: bias.tensor(trainables),
                },
                Kind::Rms { factor } => NormKind::Rms { factor },
            },
            eps: self.eps,
        }
    }

    /// The ids of a trained weight and bias.
    fn trained(&self) -> [Option<TrainableId>; 2] {
        [Some(self.weight), self.bias()].map(|param| param.and_then(Param::trainable))
    }
}

fn norm<'m>(tape: &mut Tape<'m>, x: Var, residual: Option<Var>, params: Params<'m>, p: f32) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let dropout = tape.dropout(p);
    let (x_node, residual_node) = (x.node(), residual.as_ref().and_then(Var::node));
    let rows = x.rows();
    let mut y = x.tensor().uninit_like(Purpose::Activations);
    let stats = || Tensor::uninit(&device, 1, rows, Purpose::Activations);
    let mut mean = params.bias().map(|_| stats());
    let mut rstd = stats();
    let mut run = |input| {
        device.run(Call::Norm(Norm {
            input,
            form: params.form(trainables),
            y: &mut y,
            mean: mean.as_mut(),
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
    let trained = params.trained().iter().any(Option::is_some);
    let needed = x_node.is_some() || residual_node.is_some() || trained;
    tape.push_output(y, needed, || {
        let saved = Rc::new(Saved {
            z,
            mean,
            rstd,
            params,
            y: RefCell::default(),
        });
        let recompute: Rc<dyn RecomputeOutput + 'm> = saved.clone();
        let op = NormBackward {
            saved,
            x_node,
            residual_node,
            dropout,
        };
        let output = Output {
            recompute: Some(recompute),
            ..Output::default()
        };
        (op, output)
    })
}

struct Saved<'m> {
    z: Arc<Tensor>,
    /// Of a layer norm.
    mean: Option<Tensor>,
    rstd: Tensor,
    params: Params<'m>,
    /// y, from the first op above that asks for it until this op's own backward.
    y: RefCell<Option<Arc<Tensor>>>,
}

impl Saved<'_> {
    fn tensors(&self) -> NormSaved<'_> {
        let (z, mean, rstd) = (&*self.z, self.mean.as_ref(), &self.rstd);
        NormSaved { z, mean, rstd }
    }
}

impl RecomputeOutput for Saved<'_> {
    fn recompute(&self, trainables: &Trainables) -> Arc<Tensor> {
        let make = || {
            let mut y = self.z.uninit_like(Purpose::Activations);
            self.z.device().run(Call::NormRecompute {
                saved: self.tensors(),
                form: self.params.form(trainables),
                y: &mut y,
            });
            Arc::new(y)
        };
        self.y.borrow_mut().get_or_insert_with(make).clone()
    }
}

struct NormBackward<'m> {
    saved: Rc<Saved<'m>>,
    x_node: Option<usize>,
    residual_node: Option<usize>,
    dropout: Option<Dropout>,
}

impl NormBackward<'_> {
    fn param_grads(&self, d_y: &Tensor, cx: &mut Backprop<'_>) {
        let trained = self.saved.params.trained();
        if let [None, bias] = trained {
            // A bias alone needs nothing of what was saved; the sums and their order are the other
            // call's.
            if let Some(id) = bias {
                let (x, out) = (d_y, cx.gradients.get_mut(id));
                cx.device.run(Call::ColumnSum { x, out });
            }
            return;
        }
        // The call writes both; a frozen bias's goes to scratch.
        let zeros = || Tensor::zeros(&cx.device, 1, d_y.cols(), Purpose::Workspace);
        let (mut d_weight, mut d_bias) = (zeros(), self.saved.params.bias().map(|_| zeros()));
        cx.device.run(Call::NormParamGrads {
            saved: self.saved.tensors(),
            d_y,
            d_weight: &mut d_weight,
            d_bias: d_bias.as_mut(),
        });
        for (id, x) in trained.into_iter().zip([Some(&d_weight), d_bias.as_ref()]) {
            if let (Some(id), Some(x)) = (id, x) {
                let out = cx.gradients.get_mut(id);
                cx.device.run(Call::Add { x, out });
            }
        }
    }
}

impl Backward for NormBackward<'_> {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        self.saved.y.take();
        self.param_grads(&d_y, cx);
        if self.x_node.is_none() && self.residual_node.is_none() {
            return;
        }
        let mut d_z = Tensor::owned(d_y);
        let NormBackward {
            saved,
            x_node,
            residual_node,
            dropout,
        } = *self;
        cx.device.run(Call::NormBackward {
            saved: saved.tensors(),
            form: saved.params.form(cx.trainables),
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
