//! One part of a projection that is fused head by head: `y[:, h·Dh + c] = x[:, (h·parts +
//! part)·Dh + c] + bias[h·Dh + c]`.
//! Shapes: x [M, H·parts·Dh], bias `[H·Dh]`, y [M, H·Dh]. Saved: nothing. Source: transformers
//! `modeling_deberta.py`, `DisentangledSelfAttention`.

use std::sync::Arc;

use crate::call::Call;
use crate::meter::Purpose;
use crate::param::{Param, TrainableId};
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

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
    /// The column of x that becomes column `i` of y.
    pub(crate) fn column(&self, i: usize) -> usize {
        let (head, at) = (i / self.head_dim, i % self.head_dim);
        (head * self.parts + self.part) * self.head_dim + at
    }
}

/// Forward of the selection. Panics if x is no whole number of heads wide.
pub fn head_part<'m>(tape: &mut Tape<'m>, x: &Var, form: HeadPart, bias: Option<&'m Param>) -> Var {
    let device = tape.device().clone();
    let trainables = tape.trainables();
    let (dtype, cols) = (x.tensor().dtype(), x.cols() / form.parts);
    let mut y = Tensor::uninit_as(dtype, &device, x.rows(), cols, Purpose::Activations);
    device.run(Call::HeadPart {
        x: x.tensor(),
        form,
        bias: bias.map(|bias| bias.tensor(trainables)),
        y: &mut y,
    });
    let (x_node, x_cols) = (x.node(), x.cols());
    let trained = bias.and_then(Param::trainable);
    tape.push(y, x_node.is_some() || trained.is_some(), || {
        HeadPartBackward {
            x_node,
            x_cols,
            form,
            bias: trained,
        }
    })
}

struct HeadPartBackward {
    x_node: Option<usize>,
    x_cols: usize,
    form: HeadPart,
    bias: Option<TrainableId>,
}

impl Backward for HeadPartBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let (d_y, form) = (&*d_y, self.form);
        if let Some(id) = self.bias {
            let (x, out) = (d_y, cx.gradients.get_mut(id));
            cx.device.run(Call::ColumnSum { x, out });
        }
        cx.accumulate(self.x_node, d_y.rows(), self.x_cols, |device, d_x| {
            device.run(Call::HeadPartBackward { d_y, form, d_x });
        });
    }
}
