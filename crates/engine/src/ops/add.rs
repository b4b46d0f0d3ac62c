//! z = dropout(x) + residual: the end of a pre-norm sublayer. Shapes: x, residual, z [M, D]. Saved:
//! nothing; z takes x's place.

use std::sync::Arc;

use lowrank_kernels::Dropout;

use crate::call::Call;
use crate::ops::dropout::{drop_out, dropped_out};
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward of dropout with probability `p` and the residual sum. Panics if the shapes disagree.
pub fn add(tape: &mut Tape<'_>, x: Var, residual: Var, p: f32) -> Var {
    let device = tape.device().clone();
    let dropout = tape.dropout(p);
    let (x_node, residual_node) = (x.node(), residual.node());
    let mut z = x.into_owned();
    if let Some(dropout) = dropout {
        drop_out(&mut z, dropout);
    }
    device.run(Call::Add {
        x: residual.tensor(),
        out: &mut z,
    });
    drop(residual);
    let needed = x_node.is_some() || residual_node.is_some();
    tape.push(z, needed, || AddBackward {
        x_node,
        residual_node,
        dropout,
    })
}

struct AddBackward {
    x_node: Option<usize>,
    residual_node: Option<usize>,
    dropout: Option<Dropout>,
}

impl Backward for AddBackward {
    fn backward(self: Box<Self>, d_z: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let Some(dropout) = self.dropout.filter(|_| self.x_node.is_some()) else {
            cx.add_shared(self.residual_node, d_z.clone());
            cx.add_shared(self.x_node, d_z);
            return;
        };
        let d_x = dropped_out(&d_z, dropout);
        cx.add_shared(self.residual_node, d_z);
        cx.add(self.x_node, d_x);
    }
}
