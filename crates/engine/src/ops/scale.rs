//! y = factor·x. Shapes: x, y [M, D]. Saved: nothing; y takes x's place.

use std::sync::Arc;

use crate::call::Call;
use crate::tape::{Backprop, Backward, Tape, Var};
use crate::tensor::Tensor;

/// Forward; x itself where the factor is 1.
pub fn scale(tape: &mut Tape<'_>, x: Var, factor: f32) -> Var {
    if factor == 1.0 {
        return x;
    }
    let x_node = x.node();
    let y = scaled(x.into_owned(), factor);
    tape.push(y, x_node.is_some(), || ScaleBackward { x_node, factor })
}

struct ScaleBackward {
    x_node: Option<usize>,
    factor: f32,
}

impl Backward for ScaleBackward {
    fn backward(self: Box<Self>, d_y: Arc<Tensor>, cx: &mut Backprop<'_>) {
        let d_y = Tensor::owned(d_y);
        cx.add(self.x_node, scaled(d_y, self.factor));
    }
}

fn scaled(mut x: Tensor, factor: f32) -> Tensor {
    let device = x.device().clone();
    device.run(Call::Scale { x: &mut x, factor });
    x
}
