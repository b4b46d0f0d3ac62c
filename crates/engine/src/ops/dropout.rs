//! y = mask(x) / (1 - p). Shapes: x, y [M, D]. Saved: nothing; the mask is computed again.

use std::sync::Arc;

use lowrank_kernels::Dropout;

use crate::call::Call;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward of dropout with probability `p` of zero; the identity in inference.
pub fn dropout(tape: &mut Tape<'_>, x: Var, p: f32) -> Var {
    let Some(dropout) = tape.dropout(p) else {
        return x;
    };
    let x_node = x.node();
    let mut y = x.into_owned();
    drop_out(&mut y, dropout);
    tape.push(y, x_node.is_some(), || DropoutBackward { x_node, dropout })
}

/// x = mask(x) / (1 - p), whatever its storage; on a gradient it is the backward.
pub(crate) fn drop_out(x: &mut Tensor, dropout: Dropout) {
    let device = x.device().clone();
    let (x, y) = (None, x);
    device.run(Call::Dropout { dropout, x, y });
}

/// As [`drop_out`] where `x` is still needed: mask(x) / (1 - p) in the same storage, for the same
/// purpose.
pub(crate) fn dropped_out(x: &Tensor, dropout: Dropout) -> Tensor {
    let mut out = x.uninit_like(x.purpose());
    let (x, y) = (Some(x), &mut out);
    y.device().clone().run(Call::Dropout { dropout, x, y });
    out
}

struct DropoutBackward {
    x_node: Option<usize>,
    dropout: Dropout,
}

impl Backward for DropoutBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let d_x = match Arc::try_unwrap(d_y) {
            Ok(mut own) => {
                drop_out(&mut own, self.dropout);
                own
            }
            Err(shared) => dropped_out(&shared, self.dropout),
        };
        cx.add(self.x_node, d_x);
    }
}
