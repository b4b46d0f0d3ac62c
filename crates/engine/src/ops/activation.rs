//! y = f(x), element by element. Shapes: x, y [M, D]. Saved: x (the pre-activation).

use std::sync::Arc;

use lowrank_kernels::Activation;

use crate::call::Call;
use crate::meter::Purpose;
use crate::tape::{Backprop, Backward, Output, Tape, Through, Var};
use crate::tensor::Tensor;

/// Forward of an activation; overwrites x where nothing needs it any more.
pub fn activation(tape: &mut Tape<'_>, x: Var, kind: Activation) -> Var {
    let device = tape.device().clone();
    let run = |x, y: &mut Tensor| device.run(Call::Activation { kind, x, y });
    if !(tape.recording() && x.requires_grad()) {
        let mut y = x.into_owned();
        run(None, &mut y);
        return tape.constant(y);
    }
    let mut y = x.tensor().uninit_like(Purpose::Activations);
    run(Some(x.tensor()), &mut y);
    let x_node = x.node();
    tape.push_output(y, true, || {
        let pre = x.shared();
        let output = Output {
            through: Some(Through { kind, pre }),
            ..Output::default()
        };
        (ActivationBackward { x_node }, output)
    })
}

struct ActivationBackward {
    x_node: Option<usize>,
}

impl Backward for ActivationBackward {
    fn backward(self: Box<Self>, d_x: Arc<Tensor>, cx: &mut Backprop<'_>) {
        // The tape has multiplied by f'(x) already.
        cx.add_shared(self.x_node, d_x);
    }
}
