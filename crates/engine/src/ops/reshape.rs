//! The same values under another shape, row by row: heads as rows, for a norm of each. Shapes: x
//! [M, H·Dh], y [M·H, Dh], or back. Saved: nothing; y takes x's place.

use std::sync::Arc;

use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward. Panics if the number of values is not a whole number of rows of `cols`.
pub fn reshape(tape: &mut Tape<'_>, x: Var, cols: usize) -> Var {
    let (x_node, x_cols) = (x.node(), x.cols());
    let y = x.into_owned();
    let rows = y.len() / cols.max(1);
    let y = y.reshaped(rows, cols);
    tape.push(y, x_node.is_some(), || ReshapeBackward { x_node, x_cols })
}

struct ReshapeBackward {
    x_node: Option<usize>,
    x_cols: usize,
}

impl Backward for ReshapeBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let d_y = Tensor::owned(d_y);
        let rows = d_y.len() / self.x_cols.max(1);
        cx.add(self.x_node, d_y.reshaped(rows, self.x_cols));
    }
}
