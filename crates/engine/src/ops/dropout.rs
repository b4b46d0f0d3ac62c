//! y = mask(x) / (1 - p). Shapes: x, y [M, D]. Saved: nothing; the mask is computed again.

use std::sync::Arc;

use lowrank_kernels as kernels;
use lowrank_kernels::Dropout;

use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::{Tensor, with_element};

/// Forward of dropout with probability `p` of zero; the identity in inference.
pub fn dropout(tape: &mut Tape<'_>, x: Var, p: f32) -> Var {
    let Some(dropout) = tape.dropout(p) else {
        return x;
    };
    let device = tape.device().clone();
    let x_node = x.node();
    let mut y = x.into_owned();
    let dtype = y.dtype();
    device.exec(
        0,
        |isa| with_element!(dtype, E => kernels::dropout_apply(isa, dropout, y.values_mut::<E>())),
    );
    tape.push(y, x_node.is_some(), || DropoutBackward { x_node, dropout })
}

struct DropoutBackward {
    x_node: Option<usize>,
    dropout: Dropout,
}

impl Backward for DropoutBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let mut d_x = Arc::try_unwrap(d_y).unwrap_or_else(|shared| shared.duplicate());
        let dtype = d_x.dtype();
        cx.device.exec(0, |isa| {
            with_element!(dtype, E => {
                kernels::dropout_apply(isa, self.dropout, d_x.values_mut::<E>());
            });
        });
        cx.add(self.x_node, d_x);
    }
}
